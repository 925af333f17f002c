"""What the node tests need: a node process, and a robot that talks to it over DDS. Nothing sleeps, everything spins."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2, PointField

from flat_scene_node import FAR_M, NEAR_M, depth_m

TEST = Path(__file__).resolve().parent
FLAT_SCENE = [str(TEST / "flat_scene_node.py")]
REAL = ["-m", "marigold_ros.depth_node"]
WIDTH, HEIGHT, FOCAL_PX = 64, 48, 50.0
# A LiDAR with x forward, y left, z up, a bit beside the camera; the fake tf2_ros says the same.
TRANSLATION_M, ROTATION_XYZW = [0.1, -0.2, 0.05], [0.5, -0.5, 0.5, 0.5]
OFTEN = {"node.diagnostics_period_s": 0.1}
STATIC = {"range.extrinsic": "static", "range.translation_m": TRANSLATION_M, "range.rotation_xyzw": ROTATION_XYZW}
# What the node publishes in every state.
ALWAYS = ("/diagnostics", "/parameter_events", "/rosout")


class NodeProcess:
    """`depth_node` in a process of its own, its output in a file."""

    def __init__(self, log: Path, program=FLAT_SCENE, parameters=None, arguments=(), environment=None):
        self.log_file = log
        settings = [word for name, value in (parameters or {}).items() for word in ("-p", f"{name}:={value}")]
        command = [sys.executable, *program, "--ros-args", *settings, *arguments]
        path = os.pathsep.join([os.environ["PYTHONPATH"], *(environment or {}).pop("PYTHONPATH", "").split()])
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": path, **(environment or {})}
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self, how=signal.SIGINT, seconds=15.0) -> int:
        self.process.send_signal(how)
        return self.process.wait(seconds)

    def kill(self):
        if self.running():
            self.process.kill()
            self.process.wait()


class Robot:
    """Publishes frames and collects answers by their stamp in nanoseconds."""

    def __init__(self):
        self.node = rclpy.create_node("robot")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.stamp_ns = 1_700_000_000_000_000_000
        self.answers: dict[str, dict[int, object]] = {}
        self.statuses: dict[str, DiagnosticStatus] = {}
        self._publishers, self._subscriptions, self._clients = {}, {}, {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_status, 10)

    def _on_status(self, message):
        for status in message.status:
            self.statuses[status.name.removesuffix(": depth")] = status

    def spin_until(self, condition, what, seconds=60.0):
        """Spin until `condition` holds; the deadline is generous because test machines are busy."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
            self.executor.spin_once(timeout_sec=0.02)

    def send_until(self, send, condition, what, seconds=60.0):
        """Call `send` again and again, with a moment to act upon it each time, until `condition` holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
            send()
            until = time.monotonic() + 0.3
            while time.monotonic() < until and not condition():
                self.executor.spin_once(timeout_sec=0.02)

    def listen(self, **topics):
        """Subscribe to topics given as name=type ('__' stands for '/'), unless already subscribed."""
        for name, kind in topics.items():
            topic = name.replace("__", "/")
            kept = self.answers.setdefault(topic, {})
            if topic not in self._subscriptions:
                self._subscriptions[topic] = self.node.create_subscription(
                    kind,
                    topic,
                    lambda m, kept=kept: kept.__setitem__(nanoseconds(m.header.stamp), m),
                    QoSProfile(depth=5),
                )

    def ignore(self, *topics):
        """Take subscriptions back."""
        for topic in topics or list(self._subscriptions):
            self.node.destroy_subscription(self._subscriptions.pop(topic))

    def send(self, topic, message):
        """Publish on `topic`, reliably."""
        key = topic, type(message)
        if key not in self._publishers:
            profile = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE)
            self._publishers[key] = self.node.create_publisher(type(message), topic, profile)
        self._publishers[key].publish(message)

    def next_stamp(self, seconds=5.0) -> int:
        """A new time; five seconds on, so that no fit of an earlier frame is still held."""
        self.stamp_ns += round(seconds * 1e9)
        return self.stamp_ns

    def send_frame(self, stamp_ns=None, prefix="", **changed) -> int:
        """Publish camera info, scan and image of one time, each by default the good one; returns the stamp."""
        stamp_ns = self.next_stamp() if stamp_ns is None else stamp_ns
        messages = {"camera_info": good_info(), "range": good_cloud(), "image": good_image(), **changed}
        for topic, message in messages.items():
            if message is not None:
                keep = message.header.stamp.sec or message.header.stamp.nanosec
                if not keep:
                    message.header.stamp = stamp(stamp_ns)
                self.send(prefix + topic, message)
        return stamp_ns

    def frame_answered(self, topic="depth", prefix="", seconds=60.0, **changed):
        """Send new frames, one after the other, until one is answered on `topic`; returns that answer."""
        deadline, answers, sent = time.monotonic() + seconds, self.answers[topic], []
        while not (found := [s for s in sent if s in answers]):
            assert time.monotonic() < deadline, f"no answer on {topic} within {seconds} s to {len(sent)} frames"
            sent.append(self.send_frame(prefix=prefix, **{k: make() for k, make in changed.items()}))
            until = time.monotonic() + 0.3
            while time.monotonic() < until and sent[-1] not in answers:
                self.executor.spin_once(timeout_sec=0.02)
        return answers[found[-1]]

    def call(self, kind, service, request, seconds=60.0):
        """The response of a service.

        A server that has just been found may answer before it has found the client, and the answer is lost: what can
        be asked twice is asked again.
        """
        if service not in self._clients:
            self._clients[service] = self.node.create_client(kind, service)
        client, futures = self._clients[service], []
        self.spin_until(client.service_is_ready, f"service {service}", seconds)
        deadline = time.monotonic() + seconds
        while not any(future.done() for future in futures):
            assert time.monotonic() < deadline, f"waited {seconds} s in vain for the response of {service}"
            futures.append(client.call_async(request))
            patience = deadline if kind is ChangeState else min(deadline, time.monotonic() + 5.0)
            while time.monotonic() < patience and not any(future.done() for future in futures):
                self.executor.spin_once(timeout_sec=0.02)
        return next(future.result() for future in futures if future.done())

    def fresh_diagnostics(self, node="/robot/depth_node") -> dict[str, str]:
        """The key-values of what the node says from now on, not of a message under way."""
        for _ in range(2):
            known = self.statuses.get(node)
            self.spin_until(lambda: self.statuses.get(node) is not known, f"diagnostics of {node}")  # noqa: B023
        return self.values(node)

    def assert_refused(self, name, process, *texts):
        """Wait until a node says why it does not become inactive, and look that nothing half-loaded stays."""
        self.spin_until(lambda: all(text in self.status(name) for text in ("cannot become inactive", *texts)), texts)
        assert self.statuses[name].level == DiagnosticStatus.ERROR
        assert self.values(name)["lifecycle state"] == "unconfigured"
        assert all(text in process.log for text in texts)
        assert "Traceback" not in process.log
        space, _, node = name.rpartition("/")

        def published():
            return {topic for topic, _ in self.node.get_publisher_names_and_types_by_node(node, space or "/")}

        self.spin_until(lambda: (node, space or "/") in self.node.get_node_names_and_namespaces(), "the node's topics")
        self.spin_until(lambda: published() == {*ALWAYS, f"{name}/transition_event"}, "an end of all other topics")

    def status(self, node="/robot/depth_node") -> str:
        """What the node's newest diagnostics say; '' before the first."""
        return self.statuses[node].message if node in self.statuses else ""

    def values(self, node="/robot/depth_node") -> dict[str, str]:
        """The key-values of the node's newest diagnostics."""
        return {pair.key: pair.value for pair in self.statuses[node].values} if node in self.statuses else {}


def nanoseconds(stamp) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def stamp(stamp_ns: int):
    return rclpy.time.Time(nanoseconds=stamp_ns).to_msg()


def good_image() -> Image:
    image = Image(width=WIDTH, height=HEIGHT, encoding="rgb8", step=3 * WIDTH)
    image.header.frame_id = "camera"
    image.data = np.arange(3 * WIDTH * HEIGHT, dtype=np.uint32).astype(np.uint8).tobytes()
    return image


def compressed_image(format: str, data: bytes) -> CompressedImage:
    image = CompressedImage(format=format, data=data)
    image.header.frame_id = "camera"
    return image


def good_info() -> CameraInfo:
    cx, cy = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    info = CameraInfo(width=WIDTH, height=HEIGHT, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [FOCAL_PX, 0.0, cx, 0.0, FOCAL_PX, cy, 0.0, 0.0, 1.0]
    info.p = [FOCAL_PX, 0.0, cx, 0.0, 0.0, FOCAL_PX, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    info.header.frame_id = "camera"
    return info


def lidar_points(every: int = 4) -> np.ndarray:
    """(N, 3) float32 in the LiDAR's frame: the flat scene at every n-th pixel, the camera's rays done by hand."""
    v, u = np.mgrid[0:HEIGHT:every, 0:WIDTH:every]
    z = depth_m(WIDTH, HEIGHT)[v, u]
    x = (u - (WIDTH - 1) / 2) / FOCAL_PX * z - TRANSLATION_M[0]
    y = (v - (HEIGHT - 1) / 2) / FOCAL_PX * z - TRANSLATION_M[1]
    return np.stack([z - TRANSLATION_M[2], -x, -y], axis=-1).reshape(-1, 3).astype(np.float32)


def cloud_of(points: np.ndarray, names: str = "xyz") -> PointCloud2:
    cloud = PointCloud2(height=1, width=len(points), point_step=12, row_step=12 * len(points))
    cloud.fields = [PointField(name=n, offset=4 * i, datatype=7, count=1) for i, n in enumerate(names)]
    cloud.data = np.ascontiguousarray(points, np.float32).tobytes()
    cloud.header.frame_id = "lidar"
    return cloud


def good_cloud() -> PointCloud2:
    return cloud_of(lidar_points())


def good_scan() -> LaserScan:
    """What a 2D LiDAR at the tests' mounting measures of the flat scene, whose depth is the same in every row.

    A pixel u has the depth z(u) = a + b u, so that a beam at angle t meets it where z - t_z = r cos t and
    -((u - c_x) / f z - t_x) = r sin t; u is found by looking up the angles of all pixels.
    """
    u = np.linspace(0, WIDTH - 1, 2000)
    z = NEAR_M + (FAR_M - NEAR_M) * u / (WIDTH - 1)
    forward, left = z - TRANSLATION_M[2], TRANSLATION_M[0] - (u - (WIDTH - 1) / 2) / FOCAL_PX * z
    angles = np.arctan2(left, forward)
    order = np.argsort(angles)
    scan = LaserScan(angle_min=-0.4, angle_max=0.4, angle_increment=0.01, range_min=0.1, range_max=30.0)
    beams = scan.angle_min + np.arange(81) * scan.angle_increment
    ranges = np.interp(beams, angles[order], np.hypot(forward, left)[order])
    ranges[::9] = np.inf
    scan.ranges = ranges.tolist()
    scan.header.frame_id = "lidar"
    return scan


# A ToF camera at the colour camera's place, with a quarter of its pixels each way.
TOF_WIDTH, TOF_HEIGHT = WIDTH // 4, HEIGHT // 4


def tof_info(focal_px: float = FOCAL_PX / 4) -> CameraInfo:
    info = CameraInfo(width=TOF_WIDTH, height=TOF_HEIGHT, distortion_model="plumb_bob")
    cx, cy = (TOF_WIDTH - 1) / 2, (TOF_HEIGHT - 1) / 2
    info.k = [focal_px, 0.0, cx, 0.0, focal_px, cy, 0.0, 0.0, 1.0]
    info.p = [focal_px, 0.0, cx, 0.0, 0.0, focal_px, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def tof_image(encoding: str = "16UC1") -> Image:
    """The flat scene as the ToF camera sees it: its pixel u lies at 4 u + 1.5 of the colour image."""
    u = 4 * np.arange(TOF_WIDTH) + 1.5
    row_m = np.interp(u, np.arange(WIDTH), depth_m(WIDTH, HEIGHT)[0])
    depth = np.repeat(row_m[None], TOF_HEIGHT, axis=0)
    depth[0, 0] = 0.0  # no return
    data = depth.astype("<f4") if encoding == "32FC1" else np.round(depth * 1000).astype("<u2")
    image = Image(width=TOF_WIDTH, height=TOF_HEIGHT, encoding=encoding, step=data.strides[0], data=data.tobytes())
    image.header.frame_id = "tof"
    return image
