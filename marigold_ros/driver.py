"""Feeds frames to a depth node in another process and takes its answers: for evaluations, benchmarks and tests."""

from __future__ import annotations

import array
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from marigold_ros import decoding, messages, processes
from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera

_RELIABLE = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
_CAMERA_FRAME, _LIDAR_FRAME = "camera_optical", "lidar"
_TOPICS = {"image": "/camera/image", "camera_info": "/camera/camera_info", "range": "/lidar/points"}
_START_S = 180.0


def cloud_message(points: np.ndarray, header: Header) -> PointCloud2:
    """(N, 3) float32 metres -> PointCloud2 of x, y, z."""
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(points, np.float32).reshape(-1).view(np.uint8))
    fields = [PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, n in enumerate("xyz")]
    return PointCloud2(
        header=header, height=1, width=len(points), fields=fields, point_step=12, row_step=12 * len(points), data=data
    )


class Driver(Node):
    """Camera, LiDAR and subscriber in one; `depths`, `clouds` and `facts` are what came back.

    `arrivals_s` maps the stamp of each depth image to the seconds from its stamp to its arrival here.
    """

    def __init__(self, context: rclpy.Context, points: bool) -> None:
        super().__init__("driver", context=context)
        self.depths: deque[Image] = deque(maxlen=10)
        self.clouds: deque[PointCloud2] = deque(maxlen=10)
        self.arrivals_s: dict[int, float] = {}
        self.facts: dict[str, str] = {}
        self.node_has_failed = False
        self._image = self.create_publisher(Image, _TOPICS["image"], _RELIABLE)
        self._info = self.create_publisher(CameraInfo, _TOPICS["camera_info"], _RELIABLE)
        self._range = self.create_publisher(PointCloud2, _TOPICS["range"], _RELIABLE)
        self.create_subscription(Image, "/depth", self._on_depth, _RELIABLE)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        if points:
            self.create_subscription(PointCloud2, "/points", lambda cloud: self.clouds.append(cloud), _RELIABLE)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self)

    def _on_depth(self, message: Image) -> None:
        stamp_ns = decoding.stamp_ns(message.header)
        self.arrivals_s[stamp_ns] = (time.time_ns() - stamp_ns) * 1e-9
        self.depths.append(message)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.node_has_failed = status.level == DiagnosticStatus.ERROR
            self.facts = {pair.key: pair.value for pair in status.values} | {"status": status.message}

    def spin_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Handle messages until `done`; False after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                return False
            self._executor.spin_once(timeout_sec=0.02)
        return True

    def is_connected(self) -> bool:
        """Whether the node is active and listens to all three inputs."""
        listened = all(p.get_subscription_count() for p in (self._image, self._info, self._range))
        return self.facts.get("lifecycle state") == "active" and listened

    def send(self, rgb: np.ndarray, camera: Camera, points: np.ndarray) -> int:
        """Publish one frame, (H, W, 3) uint8, and its scan, (N, 3) float32, stamped now; returns the stamp."""
        stamp_ns = time.time_ns()
        headers = [self._header(stamp_ns, frame) for frame in (_CAMERA_FRAME, _LIDAR_FRAME)]
        self._info.publish(messages.camera_info(camera, headers[0]))
        self._range.publish(cloud_message(points, headers[1]))
        self._image.publish(messages.colour_image(rgb, "rgb8", headers[0]))
        return stamp_ns

    @staticmethod
    def _header(stamp_ns: int, frame: str) -> Header:
        header = Header(frame_id=frame)
        header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
        return header

    def ask(self, rgb: np.ndarray, camera: Camera, points: np.ndarray, timeout_s: float = 30.0) -> np.ndarray:
        """The (H, W) float32 depth in metres that the node answers to a frame; raises `Unusable` when none comes."""
        deadline, sent = time.monotonic() + timeout_s, set()
        while time.monotonic() < deadline:
            sent.add(self.send(rgb, camera, points))  # again, because inputs are best effort
            # A slow network answers an earlier one of these frames, and that is as good.
            if self.spin_until(lambda: self._answer_to(sent) is not None, timeout_s / 6):
                found = self._answer_to(sent)
                return np.frombuffer(found.data, np.float32).reshape(found.height, found.width)
        self.spin_until(lambda: False, 1.1)  # the node's next diagnostics say why
        raise Unusable(f"the node gave no depth within {timeout_s:.0f} s: {self.facts.get('status')}")

    def _answer_to(self, stamps: Collection[int]) -> Image | None:
        """The newest depth image with one of these stamps."""
        return next((m for m in reversed(self.depths) if decoding.stamp_ns(m.header) in stamps), None)

    def cloud_of(self, stamp_ns: int) -> PointCloud2 | None:
        """The cloud of that stamp, if it came."""
        self.spin_until(lambda: any(decoding.stamp_ns(m.header) == stamp_ns for m in self.clouds), 5.0)
        return next((m for m in self.clouds if decoding.stamp_ns(m.header) == stamp_ns), None)

    def close(self) -> None:
        """Leave the network."""
        self._executor.shutdown()
        self.destroy_node()


@contextmanager
def driven_node(parameters: Mapping[str, Any], log: IO | None = None, points: bool = False) -> Iterator[tuple]:
    """A depth node in a process and DDS domain of its own, active, with a `Driver` connected: (driver, process).

    Parameters: the node's; log: a file for what it prints. This process' DDS profile is set as a side effect.
    """
    environment = processes.private_environment(processes.free_domain())
    processes.adopt(environment)
    context = rclpy.Context()
    rclpy.init(args=[], context=context, domain_id=int(environment["ROS_DOMAIN_ID"]))
    driver = Driver(context, points)
    process = processes.start("marigold_ros.depth_node", processes.ros_arguments(parameters, _TOPICS), environment, log)
    try:
        decided = lambda: driver.is_connected() or driver.node_has_failed or process.poll() is not None  # noqa: E731
        driver.spin_until(decided, _START_S)
        if not driver.is_connected():
            raise Unusable(f"the node did not become active: {driver.facts.get('status', 'it said nothing')}")
        yield driver, process
    finally:
        processes.stop(process)
        driver.close()
        rclpy.try_shutdown(context=context)
