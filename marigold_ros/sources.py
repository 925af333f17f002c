"""The range sensors of the node: their topics, their scans and their places in the camera's frame.

One that fails does not stop the others; what is wrong with it is said under its topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2

from marigold_ros import decoding
from marigold_ros.anchors import Scan, time_error_s
from marigold_ros.complaints import Complaints
from marigold_ros.config import Config, Fault, RangeConfig, Unusable
from marigold_ros.diagnostics import Diagnostics
from marigold_ros.motion import FindMotion
from marigold_ros.outputs import info_topic
from marigold_ros.scans import ScanBuffer, StampedPoints
from marigold_ros.transforms import Extrinsic, StaticExtrinsic, TfExtrinsic, TfListener

RangeMessage = PointCloud2 | LaserScan | Image
_MESSAGES = {"pointcloud2": PointCloud2, "radar": PointCloud2, "laserscan": LaserScan, "depth_image": Image}


@dataclass(frozen=True)
class Input:
    """A topic to subscribe to: message type, name, what to call, and how many messages to keep."""

    kind: type
    topic: str
    callback: Callable[[object], None]
    depth: int


class RangeSource:
    """One range sensor. `name` is its topic and the section of its settings; `topic` what the topic resolves to."""

    def __init__(
        self, node: Node, settings: RangeConfig, extrinsic: Extrinsic, on_unusable: Callable[[str, Unusable], None]
    ) -> None:
        self.name = settings.SECTION
        self.topic = node.resolve_topic_name(self.name)
        self.extrinsic = extrinsic
        self.scans = ScanBuffer(
            self._decode, lambda problem: on_unusable(self.name, problem), self.name, settings.time_offset_s
        )
        self._type, self._timed = settings.type, settings.point_times
        # The sibling of an `image…` topic, as image_transport has it, else below the topic.
        self._info_topic = info_topic(self.topic)
        if self._type == "depth_image":
            self._require_own_info(node)
        self._info: CameraInfo | None = None

    def inputs(self, on_scan: Callable[[str], None]) -> Iterator[Input]:
        """The topics of this sensor; `on_scan` is called with its name for every message."""

        def keep(message: RangeMessage) -> None:
            on_scan(self.name)
            self.scans.add(message)

        yield Input(_MESSAGES[self._type], self.name, keep, 5)
        if self._type == "depth_image":
            yield Input(CameraInfo, self._info_topic, self._keep_info, 1)

    @property
    def readable(self) -> bool:
        """Whether what its messages need besides has come."""
        return self._type != "depth_image" or self._info is not None

    def placed(
        self, found: StampedPoints, image: Image | CompressedImage, settings: RangeConfig
    ) -> tuple[Scan, str | None]:
        """Points with their place in this image's camera; raises `Unusable` where it is not known.

        And why what the robot drove meanwhile is not in it, where a fixed frame should tell it.
        """
        between = image.header.frame_id, decoding.stamp_ns(image.header), found.frame, found.stamp_ns
        camera_from_lidar, unmoved = self.extrinsic.camera_from_lidar(*between)
        error_s = time_error_s(found.offset_s, settings)
        # Asked a moment later, tf2 may know: then the sweep would move what is moved with the picture already.
        sweep = None if unmoved else self.extrinsic.sweep(*between, found.offset_s, error_s)
        moved = settings.fixed_frame and unmoved is None
        age_s = 0.0 if moved else (between[1] - found.stamp_ns) * 1e-9
        # What odometry has moved as a whole is not to be moved with the picture as well.
        offset_s = None if moved and sweep is None else found.offset_s
        return Scan(found.points, camera_from_lidar, settings, sweep, age_s, found.stamp_ns, offset_s), unmoved

    def _require_own_info(self, node: Node) -> None:
        """Raise `Unusable` where the remapping of `camera_info` would lead to the colour camera's intrinsics."""
        colours = node.resolve_topic_name("camera_info")
        if self._info_topic == node.resolve_topic_name("camera_info", only_expand=True) != colours:
            raise Unusable(
                f"topic {self.topic!r}: its camera info {self._info_topic!r} is remapped to {colours!r}, that of the "
                f"colour camera; remap {self.name} to another namespace, e.g. {self.name}:=/tof/image"
            )

    def _keep_info(self, message: CameraInfo) -> None:
        self._info = message

    def _decode(self, message: RangeMessage) -> decoding.RangePoints:
        if self._type == "depth_image":
            if self._info is None:
                raise Unusable(f"no camera info on {self._info_topic!r}, which a depth image needs")
            return decoding.RangePoints(decoding.points_from_depth(message, self._info))
        if self._type == "laserscan":
            points, offsets = decoding.points_from_scan, decoding.offsets_from_scan
        else:
            points, offsets = decoding.points_from_cloud, decoding.offsets_from_cloud
        return decoding.RangePoints(points(message), offsets(message) if self._timed else None)


class RangeSources:
    """All range sensors of the node; from configure to cleanup."""

    def __init__(self, node: Node, config: Config, diagnostics: Diagnostics) -> None:
        self._diagnostics = diagnostics
        self._complain = Complaints(node.get_logger().warning)
        self._usual_topic = node.resolve_topic_name("range")
        self._tf: TfListener | None = None
        self._sources: dict[str, RangeSource] = {}
        try:
            for settings in config.ranges:
                extrinsic = self._extrinsic(node, settings)
                self._sources[settings.SECTION] = RangeSource(node, settings, extrinsic, self._unusable)
        except Unusable:
            self.close()
            raise

    @property
    def problems(self) -> tuple[str, ...]:
        """The keys under which what is wrong with the sensors stands in the diagnostics."""
        return tuple(key for name in self._sources for key in (name, f"{name} missing", f"{name} motion"))

    @property
    def label(self) -> str:
        """Their topics, for what is said of all together."""
        return ", ".join(source.topic for source in self._sources.values()) or self._usual_topic

    def inputs(self) -> Iterator[Input]:
        """What to subscribe to."""
        for source in self._sources.values():
            yield from source.inputs(self._count)

    def expect(self, image_ns: int) -> None:
        """An image of this time is in work."""
        for source in self._sources.values():
            source.scans.expect(image_ns)

    def forget_after(self, image_ns: int, config: Config) -> None:
        """Time went back to `image_ns`: what was known of the future is void."""
        for settings in config.ranges:
            source = self._sources[settings.SECTION]
            source.scans.forget_after(image_ns + int(settings.max_age_s * 1e9))
            source.extrinsic.forget()

    def scans(self, image: Image | CompressedImage, config: Config) -> list[Scan]:
        """The scans that serve for this image, one per sensor at most; raises `Unusable` where there is none."""
        found, problems = [], {}
        for settings in config.ranges:
            source = self._sources[settings.SECTION]
            try:
                points = source.scans.nearest(decoding.stamp_ns(image.header), settings.max_age_s)
                self._diagnostics.solved(source.name)
                scan, unmoved = source.placed(points, image, settings)
                found.append(scan)
                self._diagnostics.solved(f"{source.name} missing")
                self._notice_late_odometry(source, unmoved)
            except Unusable as problem:
                problems[source] = problem
                self._diagnostics.solved(f"{source.name} motion")  # of a scan that there is not
        if found:
            for source, problem in problems.items():
                self._diagnostics.problem(f"{source.name} missing", f"{source.topic}: {problem}")
                self._complain(source.topic, str(problem), "the other range sensors serve")
            return found
        if not problems:
            raise Unusable("range.type='none': relative depth only")
        if len(problems) == 1:
            raise next(iter(problems.values()))
        kind = Fault if all(isinstance(problem, Fault) for problem in problems.values()) else Unusable
        raise kind("; ".join(f"{source.topic}: {problem}" for source, problem in problems.items()))

    def peek(self, image: Image | CompressedImage, config: Config) -> list[Scan]:
        """Of the `scans` those that are there, and in place, already; says nothing of others, which time may mend."""
        found = []
        for settings in config.ranges:
            source = self._sources[settings.SECTION]
            try:
                if source.readable:
                    points = source.scans.nearest(decoding.stamp_ns(image.header), settings.max_age_s)
                    scan, unmoved = source.placed(points, image, settings)
                    found += [scan] if unmoved is None else []
            except Unusable:
                continue
        return found

    def _notice_late_odometry(self, source: RangeSource, unmoved: str | None) -> None:
        """Say that what the camera sees of its motion has to serve, or that it need not any more."""
        if unmoved is None:
            self._diagnostics.solved(f"{source.name} motion")
        else:
            self._diagnostics.problem(f"{source.name} motion", f"{source.topic}: {unmoved}")
            self._complain(source.topic, unmoved, "the motion that the camera sees serves")

    def motion_until(self, image: Image | CompressedImage) -> FindMotion:
        """Tells how the camera moved until this image, by the first sensor whose extrinsic knows."""
        camera_frame, now_ns = image.header.frame_id, decoding.stamp_ns(image.header)
        extrinsics = [source.extrinsic for source in self._sources.values()]

        def since(then_ns: int) -> Any:
            found = (extrinsic.camera_motion(camera_frame, then_ns, now_ns) for extrinsic in extrinsics)
            return next((motion for motion in found if motion is not None), None)

        return since

    def close(self) -> None:
        """Let go of tf2's subscriptions."""
        if self._tf is not None:
            self._tf.close()

    def _extrinsic(self, node: Node, settings: RangeConfig) -> Extrinsic:
        """The one that the settings ask for; raises `Unusable` where there is no tf2."""
        if settings.extrinsic == "static":
            return StaticExtrinsic(settings)
        if self._tf is None:
            self._tf = TfListener(node, settings.SECTION)
        return TfExtrinsic(self._tf, settings.fixed_frame, settings.SECTION)

    def _count(self, name: str) -> None:
        self._diagnostics.count("scan" if name == "range" else f"{name} scan")

    def _unusable(self, name: str, problem: Unusable) -> None:
        """Drop, count, say once."""
        topic = self._sources[name].topic
        self._diagnostics.problem(name, f"{topic}: {problem}")
        self._diagnostics.count("unusable")
        self._complain(topic, str(problem), "dropped")
