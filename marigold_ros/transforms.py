"""Where the range sensors sit: camera_from_lidar, from tf2 or from two parameters, behind one interface."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from rclpy.node import Node
from rclpy.time import Time

from marigold_ros.config import Fault, RangeConfig, Unusable
from marigold_ros.decoding import matrix_from_transform
from marigold_ros.geometry import transform_from_quaternion
from marigold_ros.sweep import Sweep, sweep_through

# What moves and is published comes within this time; where tf2 has waited for it longer, it will not come by itself;
# if so many images found it late: those of a slow camera are far apart.
_PATIENCE_S, _TIMES = 1.0, 3
# How long tf2 keeps what moves.
_KEPT_NS = 10_000_000_000


# A transform, and why what the robot drove between the two times is not in it, where it should be.
Placed = tuple[np.ndarray, "str | None"]


class Extrinsic(Protocol):
    """Gives the transform that moves a scan into an image."""

    def camera_from_lidar(self, camera_frame: str, image_ns: int, lidar_frame: str, scan_ns: int) -> Placed:
        """(4, 4) from the LiDAR's frame at the scan's time into the camera's optical frame at the image's time.

        Raises `Unusable` when it is not known.
        """

    def camera_motion(self, camera_frame: str, then_ns: int, now_ns: int) -> np.ndarray | None:
        """(4, 4) from the camera's frame at one time into that at another; None where it is not known."""

    def sweep(
        self,
        camera_frame: str,
        image_ns: int,
        lidar_frame: str,
        scan_ns: int,
        offset_s: np.ndarray | None,
        time_error_s: float,
    ) -> Sweep | None:
        """How the sensor moved while it measured, points at (N,) `offset_s` from the scan's time; None if not known.

        The rest as in `Sweep`.
        """

    def forget(self) -> None:
        """Time went backwards: what was known of the future is void."""


class StaticExtrinsic:
    """One transform for ever, whatever the frames are called."""

    def __init__(self, settings: RangeConfig) -> None:
        self._camera_from_lidar = transform_from_quaternion(settings.translation_m, settings.rotation_xyzw)

    def camera_from_lidar(self, camera_frame: str, image_ns: int, lidar_frame: str, scan_ns: int) -> Placed:
        """(4, 4) of the parameters translation_m and rotation_xyzw."""
        return self._camera_from_lidar, None

    def camera_motion(self, camera_frame: str, then_ns: int, now_ns: int) -> None:
        """Nobody knows."""

    def sweep(
        self,
        camera_frame: str,
        image_ns: int,
        lidar_frame: str,
        scan_ns: int,
        offset_s: np.ndarray | None,
        time_error_s: float,
    ) -> Sweep | None:
        """Nothing is known of motion."""
        return None

    def forget(self) -> None:
        """Nothing depends on time."""


class TfListener:
    """tf2's buffer, filled from /tf and /tf_static; one for all sensors, since all of it goes through Python."""

    def __init__(self, node: Node, section: str = "range") -> None:
        try:
            import tf2_ros
        except ImportError:
            raise Unusable(
                f"{section}.extrinsic='tf': tf2_ros is not installed; install ros-$ROS_DISTRO-tf2-ros-py, or set "
                f"{section}.extrinsic='static' with {section}.translation_m and {section}.rotation_xyzw"
            ) from None
        self.errors = tf2_ros.TransformException
        # A time that is not known, perhaps not yet.
        self.late = tf2_ros.ExtrapolationException
        # Without the node: it would add a service at every configure, and its own handling of time jumps is broken.
        self.buffer = tf2_ros.Buffer()
        self._listener: Any = tf2_ros.TransformListener(self.buffer, node)

    def close(self) -> None:
        """Drop the subscriptions to /tf and /tf_static."""
        self._listener.unregister()


class TfExtrinsic:
    """Asks tf2; never waits, because a scan without a transform is worth less than a late frame.

    With a `fixed_frame` the scan is also moved from its own time to the image's: what the robot drove in between is
    taken out. Where only that is not known yet, because odometry comes later than the image is answered, the mount
    alone is told, with the reason.
    """

    def __init__(self, listener: TfListener, fixed_frame: str, section: str = "range") -> None:
        self._buffer, self._errors, self._late = listener.buffer, listener.errors, listener.late
        self._fixed_frame = fixed_frame
        self._section = section
        # The times of the images since the last one whose transform was known: of the first, the last, and how many.
        self._late_since_ns: int | None = None
        self._late_ns: int | None = None
        self._times_late = 0

    def camera_from_lidar(self, camera_frame: str, image_ns: int, lidar_frame: str, scan_ns: int) -> Placed:
        """(4, 4) from /tf and /tf_static.

        A time at which tf2 does not know the mount may be known in the next image; where that has gone on for
        `_PATIENCE_S`, in several images, it is a `Fault`: a publisher that died, or a clock that is off.
        """
        for sensor, frame in (("image", camera_frame), (self._section, lidar_frame)):
            if not frame:
                raise Unusable(f"{sensor} header.frame_id='': tf2 needs the name of the frame; set it in the driver")
        unmoved = None
        try:
            found = self._look_up(camera_frame, image_ns, lidar_frame, scan_ns)
        except self._late as problem:
            reason = self._farthest_off(camera_frame, image_ns, lidar_frame, scan_ns)
            reason = (
                reason or f"no transform from {lidar_frame!r} to {camera_frame!r}: {problem}; is its publisher alive?"
            )
            found, unmoved = self._mount(camera_frame, lidar_frame, scan_ns), reason
            if found is None:
                raise self._waited(image_ns)(reason) from None
        except self._errors as problem:
            raise Fault(
                f"no transform from {lidar_frame!r} to {camera_frame!r}: {problem}; publish it (static_transform_"
                f"publisher, robot_state_publisher) or set {self._section}.extrinsic='static'"
            ) from None
        self._late_since_ns, self._late_ns, self._times_late = None, None, 0
        return found, unmoved

    def _mount(self, camera_frame: str, lidar_frame: str, scan_ns: int) -> np.ndarray | None:
        """(4, 4) without the fixed frame, if that is what was missing."""
        if not self._fixed_frame:
            return None
        try:
            return matrix_from_transform(
                self._buffer.lookup_transform(camera_frame, lidar_frame, Time(nanoseconds=scan_ns))
            )
        except self._errors:
            return None

    def _waited(self, image_ns: int) -> type[Unusable]:
        """What it is that tf2 does not know the time of this image either."""
        if self._late_since_ns is None:
            self._late_since_ns = image_ns
        self._times_late += image_ns != self._late_ns
        self._late_ns = image_ns
        waited = self._times_late >= _TIMES and image_ns - self._late_since_ns > _PATIENCE_S * 1e9
        return Fault if waited else Unusable

    def sweep(
        self,
        camera_frame: str,
        image_ns: int,
        lidar_frame: str,
        scan_ns: int,
        offset_s: np.ndarray | None,
        time_error_s: float,
    ) -> Sweep | None:
        """Known through the fixed frame. Times that tf2 does not know yet, or no longer, are left out."""
        if not self._fixed_frame:
            return None

        def pose(time_s: float) -> np.ndarray | None:
            try:
                return self._look_up(camera_frame, image_ns, lidar_frame, scan_ns + round(time_s * 1e9))
            except self._errors:
                return None

        return sweep_through(pose, offset_s, time_error_s)

    def camera_motion(self, camera_frame: str, then_ns: int, now_ns: int) -> np.ndarray | None:
        """(4, 4) by way of the fixed frame."""
        if not self._fixed_frame:
            return None
        try:
            return self._look_up(camera_frame, now_ns, camera_frame, then_ns)
        except self._errors:
            return None

    def forget(self) -> None:
        """Drop what moves; tf2 keeps static transforms."""
        self._buffer.clear()
        self._late_since_ns, self._late_ns, self._times_late = None, None, 0

    def _look_up(self, camera_frame: str, image_ns: int, lidar_frame: str, time_ns: int) -> np.ndarray:
        image_time, time = Time(nanoseconds=image_ns), Time(nanoseconds=time_ns)
        if self._fixed_frame:
            found = self._buffer.lookup_transform_full(camera_frame, image_time, lidar_frame, time, self._fixed_frame)
        else:
            found = self._buffer.lookup_transform(camera_frame, lidar_frame, time)
        return matrix_from_transform(found)

    def _farthest_off(self, camera_frame: str, image_ns: int, lidar_frame: str, scan_ns: int) -> str | None:
        """Which transform tf2 does not know at its time, by how much, and what to do; None where it has none at all."""
        asked = [(lidar_frame, self._fixed_frame or camera_frame, "scan", scan_ns)]
        if self._fixed_frame:
            asked.append((camera_frame, self._fixed_frame, "image", image_ns))
        found: list[tuple[int, str]] = []
        for source, target, what, time_ns in asked:
            try:
                newest_ns = self._buffer.get_latest_common_time(target, source).nanoseconds
            except self._errors:
                continue
            if newest_ns == 0:  # static
                continue
            age_ns = time_ns - newest_ns
            than = f"the newest is {abs(age_ns) * 1e-9:.3f} s {'older' if age_ns > 0 else 'newer'} than the {what}"
            words = (
                f"no transform from {source!r} to {target!r} at the time of the {what}: {than}; is its publisher alive "
                f"(ros2 run tf2_ros tf2_monitor {target} {source}), do the clocks agree (use_sim_time)?"
            )
            # What is too old is gone when it is older than all that tf2 keeps.
            found.append((max(age_ns, -age_ns - _KEPT_NS), words))
        return max(found)[1] if found else None
