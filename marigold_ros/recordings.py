"""Recordings (rosbag2, MCAP) of a camera, a LiDAR and the true depth: writing, reading, frame by frame. No ROS needed.

A recording is a folder with metadata.yaml and one .mcap file, as `ros2 bag` writes it; Foxglove opens the .mcap alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from marigold_ros.config import Unusable, one_line
from marigold_ros.geometry import Camera, quaternion_from_rotation, transform_from_quaternion

IMAGE = "/camera/image/compressed"
CAMERA_INFO = "/camera/camera_info"
RANGE = "/lidar/points"
GROUND_TRUTH = "/ground_truth/depth/compressed"
TF = "/tf"
TF_STATIC = "/tf_static"
ODOM_FRAME = "odom"
CAMERA_FRAME = "camera_optical"
LIDAR_FRAME = "lidar"

# The truth is stored at every second pixel of every second row: whole, it would be most of the recording.
TRUTH_STRIDE = 2
_JPEG_QUALITY = 88
_NEVER = QosTime(2147483647, 4294967295)
_LATCHED = Qos(
    QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL,
    _NEVER, _NEVER, QosLiveliness.AUTOMATIC, _NEVER, False,
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One camera frame: `rgb` (H, W, 3) uint8; `depth_m` (H, W) float32 true depth along z, NaN unknown;
    `points` (N, 3) float32 in the LiDAR's frame; all of one time. `odom_from_camera`: (4, 4), None where not recorded.
    """

    stamp_ns: int
    rgb: np.ndarray
    depth_m: np.ndarray
    points: np.ndarray
    odom_from_camera: np.ndarray | None = None


@dataclass(frozen=True)
class Recorded:
    """One message of a recording: `data` is its CDR bytes."""

    topic: str
    type: str
    stamp_ns: int
    data: bytes


class RecordingWriter:
    """Writes messages into the folder `path`; use it in a `with` statement.

    The folder appears, and an old recording there is replaced, when the statement ends without an error and something
    was written; until then all goes into the folder `.NAME.part` beside it. When writing or closing fails (a full disk)
    that folder is left, and `Unusable` names the file in it; after any other error it is removed.
    """

    def __init__(self, path: Path) -> None:
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._path = Path(path)
        target = self._path.resolve()
        _files_of_recording(self._path)  # what must not be replaced is refused before the work, not after it
        self._part = target.with_name(f".{target.name}.part")
        _make_part(self._part)
        # One level deeper, because the .mcap is named after its folder.
        self._writer = Writer(self._part / target.name, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        self._connections: dict[str, Any] = {}
        self._cut_short = False

    def knows(self, type: str) -> bool:
        """Whether messages of this type can be written: their definition goes into the file."""
        return type in self._store.types

    def write(self, topic: str, type: str, stamp_ns: int, data: bytes) -> None:
        """Append one serialised message."""
        connection = self._connections.get(topic)
        if connection is None:
            qos = [_LATCHED] if topic == TF_STATIC else []
            connection = self._writer.add_connection(topic, type, typestore=self._store, offered_qos_profiles=qos)
            self._connections[topic] = connection
        try:
            self._writer.write(connection, stamp_ns, data)
        except OSError as full:
            self._cut_short = True
            raise self._kept(full) from full

    def write_message(self, topic: str, stamp_ns: int, message: Any) -> None:
        """Append one message of rosbags' own message classes."""
        type = message.__msgtype__
        self.write(topic, type, stamp_ns, self._store.serialize_cdr(message, type))

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self._writer.close()
            except OSError as full:
                raise self._kept(full) from full
            if self._connections:
                self._put_in_place()
                return
        else:
            with suppress(Exception):  # the first problem is the one to be told
                self._writer.close()
            if self._cut_short:
                return
        shutil.rmtree(self._part)

    def _kept(self, problem: OSError) -> Unusable:
        """A disk that is full or gone: hours may have been recorded, and nobody can record them again."""
        file = self._writer.path / f"{self._writer.path.name}.mcap"
        return Unusable(
            f"recording {self._path}: cannot be written ({problem.strerror or problem}); what was recorded until then "
            f"is left in {file}, perhaps without its end: 'mcap recover {file} -o FILE' makes a whole one of it"
        )

    def _put_in_place(self) -> None:
        try:
            for file in _files_of_recording(self._path):
                file.unlink()
            self._writer.path.replace(self._path.resolve())
        except (Unusable, OSError) as problem:  # somebody put something there in the meantime
            raise Unusable(f"{problem}; the new recording is in {self._writer.path}") from None
        self._part.rmdir()


def _make_part(part: Path) -> None:
    """Make the folder in which a recording grows; nothing that lies there is deleted."""
    try:
        part.mkdir(parents=True)
    except FileExistsError:
        left = "is left of a recording that was killed, or still grows"
        raise Unusable(f"{part}: {left}; give another folder, or delete this one") from None
    except OSError as problem:
        raise Unusable(f"{part}: cannot be made, {problem.strerror}; give another folder") from None


def _files_of_recording(path: Path) -> list[Path]:
    """The files of the recording in the folder `path`, none where it is empty or absent.

    Raises `Unusable` where there is anything but one recording: what is not ours must not be replaced.
    """
    if not path.exists():
        return []
    refused = f"{path}: exists and is no recording"
    if not path.is_dir():
        raise Unusable(f"{refused} but a file; give another folder")
    files = sorted(path.iterdir())
    known = [f for f in files if f.is_file() and (f.name == "metadata.yaml" or f.suffix == ".mcap")]
    foreign = [f.name for f in files if f not in known] or [f.name for f in known if f.suffix == ".mcap"][1:]
    if foreign:
        raise Unusable(f"{refused} alone, it holds {foreign[0]}; give another folder")
    if len(known) == 1:
        raise Unusable(f"{refused}, it holds {known[0].name} alone; give another folder")
    return known


class Recording:
    """A recording opened for reading; use it in a `with` statement.

    A rosbag2 folder (MCAP or SQLite, compressed or not), or an .mcap or .db3 file alone. Raises `Unusable` where it is
    none or is damaged, be it here or while it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise Unusable(f"recording {path}: no such file or folder; give a rosbag2 folder or an .mcap file")
        if self.path.is_dir() and not (self.path / "metadata.yaml").is_file():
            raise Unusable(
                f"recording {path}: has no metadata.yaml; give a rosbag2 folder, or one of its .mcap or .db3 files; "
                f"where a recorder was killed, 'ros2 bag reindex {path}' makes one"
            )
        if self.path.is_file() and self.path.suffix not in (".mcap", ".db3"):
            raise Unusable(f"recording {path}: is no .mcap or .db3 file; give one, or a rosbag2 folder")
        try:
            self._reader = AnyReader([self.path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
            self._reader.open()
        except Exception as problem:  # rosbags lets through what its storages and decompressors raise
            raise self._damaged(problem) from problem
        self.topics: Mapping[str, str] = {c.topic: c.msgtype for c in self._reader.connections}
        self.counts: Mapping[str, int] = {topic: info.msgcount for topic, info in self._reader.topics.items()}
        self.duration_s = self._reader.duration * 1e-9

    def messages(self, topics: Iterable[str] | None = None) -> Iterator[Recorded]:
        """All messages in the order of time, or those of `topics`."""
        wanted = None if topics is None else set(topics)
        connections = [c for c in self._reader.connections if wanted is None or c.topic in wanted]
        if not connections:
            return
        try:
            for connection, stamp_ns, data in self._reader.messages(connections):
                yield Recorded(connection.topic, connection.msgtype, stamp_ns, bytes(data))
        except Exception as problem:  # as above; what the caller raises does not come by here
            raise self._damaged(problem) from problem

    def decoded(self, recorded: Recorded) -> Any:
        """The message as an object of rosbags' classes: fields as in ROS, arrays as numpy arrays."""
        try:
            return self._reader.deserialize(recorded.data, recorded.type)
        except Exception as problem:  # whatever its bytes lead to
            raise Unusable(
                f"message of {recorded.type} in {recorded.topic}: {len(recorded.data)} bytes cannot be read as one "
                f"({one_line(problem)}); record it again"
            ) from problem

    def _damaged(self, problem: Exception) -> Unusable:
        return Unusable(
            f"recording {self.path}: is damaged or was cut short ({one_line(problem)}); copy it again, or save what is "
            "whole of it ('mcap recover FILE -o NEW' for .mcap, sqlite3's '.recover' for .db3)"
        )

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def header_stamp_ns(message: Any) -> int:
    """Nanoseconds of the header of a message, of ROS' or of rosbags' classes."""
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def truth_png(depth_m: np.ndarray) -> bytes:
    """(H, W) metres -> PNG of every second pixel in millimetres, 16 bits, 0 where unknown or beyond 65 m."""
    coarse = depth_m[::TRUTH_STRIDE, ::TRUTH_STRIDE]
    with np.errstate(invalid="ignore"):
        known = (coarse > 0) & (coarse < 65.0)
    millimetres = np.where(known, np.round(np.where(known, coarse, 0.0) * 1000.0), 0).astype(np.uint16)
    return cv2.imencode(".png", millimetres, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def truth_from_png(png: bytes | np.ndarray) -> np.ndarray:
    """PNG of `truth_png` -> (H/2, W/2) float32 metres, NaN unknown: the depth of the image's every second pixel."""
    millimetres = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) if len(png) else None
    if millimetres is None or millimetres.dtype != np.uint16 or millimetres.ndim != 2:
        raise Unusable("ground truth: is no 16-bit PNG; record it as `python -m trainer record` does")
    return np.where(millimetres > 0, millimetres * np.float32(1e-3), np.float32(np.nan)).astype(np.float32)


def write_frames(path: Path, frames: Iterable[Frame], camera: Camera, camera_from_lidar: np.ndarray) -> int:
    """Write `frames` of `camera` as a recording into the folder `path`; returns how many there were."""
    messages = _Messages(camera)
    count = 0
    with RecordingWriter(path) as writer:
        for frame in frames:
            if count == 0:
                mounted = messages.transform(frame.stamp_ns, CAMERA_FRAME, LIDAR_FRAME, camera_from_lidar)
                writer.write_message(TF_STATIC, frame.stamp_ns, mounted)
            if frame.odom_from_camera is not None:
                pose = messages.transform(frame.stamp_ns, ODOM_FRAME, CAMERA_FRAME, frame.odom_from_camera)
                writer.write_message(TF, frame.stamp_ns, pose)
            # The sensors come before the truth, as they would on a robot.
            writer.write_message(CAMERA_INFO, frame.stamp_ns, messages.camera_info(frame.stamp_ns))
            writer.write_message(RANGE, frame.stamp_ns, messages.cloud(frame))
            writer.write_message(IMAGE, frame.stamp_ns, messages.image(frame))
            writer.write_message(GROUND_TRUTH, frame.stamp_ns, messages.truth(frame))
            count += 1
    return count


class _Messages:
    """Builds the messages of one recording out of rosbags' classes."""

    def __init__(self, camera: Camera) -> None:
        self._types = get_typestore(Stores.ROS2_JAZZY).types
        self._camera = camera

    def _make(self, type: str, *values: Any) -> Any:
        return self._types[type](*values)

    def _header(self, stamp_ns: int, frame: str = CAMERA_FRAME) -> Any:
        stamp = self._make("builtin_interfaces/msg/Time", stamp_ns // 1_000_000_000, stamp_ns % 1_000_000_000)
        return self._make("std_msgs/msg/Header", stamp, frame)

    def image(self, frame: Frame) -> Any:
        bgr = cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].reshape(-1)
        return self._make(
            "sensor_msgs/msg/CompressedImage", self._header(frame.stamp_ns), "rgb8; jpeg compressed bgr8", jpeg
        )

    def truth(self, frame: Frame) -> Any:
        png = np.frombuffer(truth_png(frame.depth_m), np.uint8)
        return self._make("sensor_msgs/msg/CompressedImage", self._header(frame.stamp_ns), "16UC1; png", png)

    def camera_info(self, stamp_ns: int) -> Any:
        camera = self._camera
        k = camera.matrix
        p = np.column_stack([k, np.zeros(3)])
        roi = self._make("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
        d = np.array(camera.distortion or (0.0,) * 5)
        return self._make(
            "sensor_msgs/msg/CameraInfo", self._header(stamp_ns), camera.height, camera.width,
            camera.distortion_model, d, k.reshape(-1), np.eye(3).reshape(-1), p.reshape(-1), 0, 0, roi,
        )  # fmt: skip

    def cloud(self, frame: Frame) -> Any:
        points = np.ascontiguousarray(frame.points, np.float32)
        fields = [self._make("sensor_msgs/msg/PointField", name, 4 * i, 7, 1) for i, name in enumerate("xyz")]
        data = points.reshape(-1).view(np.uint8)
        return self._make(
            "sensor_msgs/msg/PointCloud2", self._header(frame.stamp_ns, LIDAR_FRAME), 1, len(points), fields, False,
            12, 12 * len(points), data, True,
        )  # fmt: skip

    def transform(self, stamp_ns: int, parent: str, child: str, parent_from_child: np.ndarray) -> Any:
        x, y, z = map(float, parent_from_child[:3, 3])
        rotation = quaternion_from_rotation(parent_from_child[:3, :3])
        transform = self._make(
            "geometry_msgs/msg/Transform",
            self._make("geometry_msgs/msg/Vector3", x, y, z),
            self._make("geometry_msgs/msg/Quaternion", *rotation),
        )
        stamped = self._make("geometry_msgs/msg/TransformStamped", self._header(stamp_ns, parent), child, transform)
        return self._make("tf2_msgs/msg/TFMessage", [stamped])


def recorded_extrinsic(recording: Recording) -> np.ndarray:
    """(4, 4) camera_from_lidar out of the recording's /tf_static."""
    for _, camera_from_lidar in _transforms(recording, TF_STATIC, CAMERA_FRAME, LIDAR_FRAME):
        return camera_from_lidar
    raise Unusable(f"{TF_STATIC} of the recording: has no transform from {LIDAR_FRAME!r} to {CAMERA_FRAME!r}")


def _transforms(recording: Recording, topic: str, parent: str, child: str) -> Iterator[tuple[int, np.ndarray]]:
    """Stamp in nanoseconds and (4, 4) parent_from_child of every such transform in the topic."""
    for recorded in recording.messages([topic]):
        for stamped in recording.decoded(recorded).transforms:
            if (stamped.header.frame_id, stamped.child_frame_id) == (parent, child):
                t, q = stamped.transform.translation, stamped.transform.rotation
                yield header_stamp_ns(stamped), transform_from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))


def recorded_camera(recording: Recording) -> Camera:
    """The camera of the recording's first camera info."""
    for recorded in recording.messages([CAMERA_INFO]):
        info = recording.decoded(recorded)
        k = info.k
        return Camera(info.width, info.height, k[0], k[4], k[2], k[5], info.distortion_model, tuple(info.d))
    raise Unusable(f"the recording has no {CAMERA_INFO}")


def read_frames(recording: Recording) -> Iterator[Frame]:
    """The frames that `write_frames` wrote; `depth_m` is known at every second pixel of every second row only."""
    poses = dict(_transforms(recording, TF, ODOM_FRAME, CAMERA_FRAME))
    pending: dict[int, dict[str, Any]] = {}
    for recorded in recording.messages([IMAGE, RANGE, GROUND_TRUTH]):
        message = recording.decoded(recorded)
        parts = pending.setdefault(header_stamp_ns(message), {})
        parts[recorded.topic] = message
        if len(parts) == 3:
            stamp_ns = header_stamp_ns(message)
            yield _frame(pending.pop(stamp_ns), stamp_ns, poses.get(stamp_ns))


def _frame(parts: Mapping[str, Any], stamp_ns: int, odom_from_camera: np.ndarray | None) -> Frame:
    rgb = cv2.cvtColor(cv2.imdecode(parts[IMAGE].data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    depth_m = np.full(rgb.shape[:2], np.nan, np.float32)
    depth_m[::TRUTH_STRIDE, ::TRUTH_STRIDE] = truth_from_png(parts[GROUND_TRUTH].data)
    points = parts[RANGE].data.view(np.float32).reshape(-1, 3)
    return Frame(stamp_ns, rgb, depth_m, points, odom_from_camera)
