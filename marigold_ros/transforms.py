"""Where the LiDAR sits: camera_from_lidar, from tf2 or from two parameters, behind one interface."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from rclpy.node import Node
from rclpy.time import Time

from marigold_ros.config import Fault, RangeConfig, Unusable
from marigold_ros.decoding import matrix_from_transform
from marigold_ros.geometry import transform_from_quaternion


class Extrinsic(Protocol):
    """Gives the transform that moves a scan into an image."""

    def camera_from_lidar(self, camera_frame: str, image_ns: int, lidar_frame: str, scan_ns: int) -> np.ndarray:
        """(4, 4) from the LiDAR's frame at the scan's time into the camera's optical frame at the image's time.

        Raises `Unusable` when it is not known.
        """

    def camera_motion(self, camera_frame: str, then_ns: int, now_ns: int) -> np.ndarray | None:
        """(4, 4) from the camera's frame at one time into that at another; None where it is not known."""

    def forget(self) -> None:
        """Time went backwards: what was known of the future is void."""

    def close(self) -> None:
        """Let go of subscriptions."""


class StaticExtrinsic:
    """One transform for ever, whatever the frames are called."""

    def __init__(self, settings: RangeConfig) -> None:
        self._camera_from_lidar = transform_from_quaternion(settings.translation_m, settings.rotation_xyzw)

    def camera_from_lidar(self, camera_frame: str, image_ns: int, lidar_frame: str, scan_ns: int) -> np.ndarray:
        """(4, 4) of the parameters range.translation_m and range.rotation_xyzw."""
        return self._camera_from_lidar

    def camera_motion(self, camera_frame: str, then_ns: int, now_ns: int) -> None:
        """Nobody knows."""

    def forget(self) -> None:
        """Nothing depends on time."""

    def close(self) -> None:
        """Nothing to let go of."""


class TfExtrinsic:
    """Asks tf2; never waits, because a scan without a transform is worth less than a late frame.

    With a `fixed_frame` the scan is also moved from its own time to the image's: what the robot drove in between is
    taken out.
    """

    def __init__(self, node: Node, fixed_frame: str) -> None:
        try:
            import tf2_ros
        except ImportError:
            raise Unusable(
                "range.extrinsic='tf': tf2_ros is not installed; install ros-$ROS_DISTRO-tf2-ros, or set "
                "range.extrinsic='static' with range.translation_m and range.rotation_xyzw"
            ) from None
        self._errors = tf2_ros.TransformException
        self._fixed_frame = fixed_frame
        # Without the node: it would add a service at every configure, and its own handling of time jumps is broken.
        self._buffer = tf2_ros.Buffer()
        self._listener: Any = tf2_ros.TransformListener(self._buffer, node)

    def camera_from_lidar(self, camera_frame: str, image_ns: int, lidar_frame: str, scan_ns: int) -> np.ndarray:
        """(4, 4) from /tf and /tf_static."""
        for sensor, frame in (("image", camera_frame), ("range", lidar_frame)):
            if not frame:
                raise Unusable(f"{sensor} header.frame_id='': tf2 needs the name of the frame; set it in the driver")
        image_time, scan_time = Time(nanoseconds=image_ns), Time(nanoseconds=scan_ns)
        try:
            if self._fixed_frame:
                found = self._buffer.lookup_transform_full(
                    camera_frame, image_time, lidar_frame, scan_time, self._fixed_frame
                )
            else:
                found = self._buffer.lookup_transform(camera_frame, lidar_frame, scan_time)
        except self._errors as problem:
            raise Fault(
                f"no transform from {lidar_frame!r} to {camera_frame!r}: {problem}; publish it (static_transform_"
                "publisher, robot_state_publisher) or set range.extrinsic='static'"
            ) from None
        return matrix_from_transform(found)

    def camera_motion(self, camera_frame: str, then_ns: int, now_ns: int) -> np.ndarray | None:
        """(4, 4) by way of the fixed frame."""
        if not self._fixed_frame:
            return None
        then, now = Time(nanoseconds=then_ns), Time(nanoseconds=now_ns)
        try:
            found = self._buffer.lookup_transform_full(camera_frame, now, camera_frame, then, self._fixed_frame)
        except self._errors:
            return None
        return matrix_from_transform(found)

    def forget(self) -> None:
        """Drop what moves; tf2 keeps static transforms."""
        self._buffer.clear()

    def close(self) -> None:
        """Drop the subscriptions to /tf and /tf_static."""
        self._listener.unregister()


def make_extrinsic(node: Node, settings: RangeConfig) -> Extrinsic:
    """The extrinsic that `range.extrinsic` asks for; raises `Unusable` where there is no tf2."""
    if settings.extrinsic == "static" or settings.type == "none":
        return StaticExtrinsic(settings)
    return TfExtrinsic(node, settings.fixed_frame)
