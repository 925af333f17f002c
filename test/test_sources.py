"""Several range sensors, over real DDS: each alone and together, one that fails, and a robot that turns meanwhile."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")
from sensor_msgs.msg import Image, PointField

from flat_scene_node import depth_m
from marigold_ros.config import Config, Range2Config, RangeConfig
from marigold_ros.sources import RangeSource, RangeSources
from ros_harness import (
    HEIGHT,
    OFTEN,
    STATIC,
    TEST,
    TOF_HEIGHT,
    TOF_WIDTH,
    TRANSLATION_M,
    WIDTH,
    cloud_of,
    good_cloud,
    good_image,
    lidar_points,
    stamp,
    tof_image,
    tof_info,
)


def floats(image: Image) -> np.ndarray:
    return np.frombuffer(image.data, "<f4").reshape(image.height, image.width)


def truncated():
    cloud = good_cloud()
    cloud.data = cloud.data[:-1]
    return cloud


TWO = "/two/"
BOTH = {"range2": tof_image, "range2/camera_info": tof_info}
TOF_POINTS, LIDAR_POINTS = TOF_WIDTH * TOF_HEIGHT - 1, len(lidar_points())


@pytest.fixture(scope="module")
def node(start_node):
    """A node with a LiDAR and a ToF camera."""
    settings = {"range2.type": "depth_image", "range2.extrinsic": "static", **OFTEN}
    return start_node(parameters={**STATIC, **settings}, arguments=["-r", "__ns:=/two"])


def diagnosed(robot, key) -> str:
    return robot.values(TWO + "depth_node").get(key, "")


def send_until(robot, condition, what, **frame):
    """Send frames until the condition holds; returns the stamps."""
    sent = []
    robot.send_until(
        lambda: sent.append(robot.send_frame(prefix=TWO, **{k: make() for k, make in frame.items()})),
        condition,
        what,
    )
    return sent


@pytest.fixture
def listening(robot, node):
    robot.listen(__two__depth=Image, __two__relative_depth=Image)
    robot.frame_answered(TWO + "depth", TWO, **BOTH)
    return robot


def test_points_of_a_lidar_and_pixels_of_a_tof_camera_are_anchors_together(listening, node):
    answer = listening.frame_answered(TWO + "depth", TWO, **BOTH)
    np.testing.assert_allclose(floats(answer), depth_m(WIDTH, HEIGHT), rtol=2e-3)
    together = str(LIDAR_POINTS + TOF_POINTS)
    send_until(listening, lambda: diagnosed(listening, "anchors used") == together, "all anchors", **BOTH)
    assert float(diagnosed(listening, "range2 scan rate (Hz)")) > 0


@pytest.mark.parametrize(
    ("frame", "topic", "reason", "left"),
    [
        ({**BOTH, "range": lambda: None}, "/two/range", "older than the image (range.max_age_s", TOF_POINTS),
        ({**BOTH, "range": truncated}, "/two/range", "cloud data of", TOF_POINTS),
        ({"range2": lambda: None}, "/two/range2", "older than the image (range2.max_age_s", LIDAR_POINTS),
        ({**BOTH, "range2/camera_info": lambda: tof_info(0.0)}, "/two/range2", "K has fx=0.0", LIDAR_POINTS),
        ({**BOTH, "range2": lambda: tof_image("rgb8")}, "/two/range2", "encoding='rgb8': depth must be", LIDAR_POINTS),
    ],
)
def test_one_that_fails_is_named_and_the_other_serves(listening, node, frame, topic, reason, left):
    def noticed():
        return f"{topic}: " in listening.status(TWO + "depth_node") and reason in listening.status(TWO + "depth_node")

    send_until(listening, noticed, f"{topic}: {reason}", **frame)
    send_until(listening, lambda: diagnosed(listening, "anchors used") == str(left), "the other's", **frame)
    answer = listening.frame_answered(TWO + "depth", TWO, **frame)
    np.testing.assert_allclose(floats(answer), depth_m(WIDTH, HEIGHT), rtol=2e-3)
    assert f"{topic}: " in node.log
    assert reason in node.log
    together = str(LIDAR_POINTS + TOF_POINTS)
    send_until(listening, lambda: diagnosed(listening, "anchors used") == together, "both again", **BOTH)
    listening.spin_until(lambda: reason not in listening.status(TWO + "depth_node"), "an end of the complaint")


def test_without_any_there_are_no_metres_and_each_is_named(listening, node):
    nothing = {"range": lambda: None}

    def noticed():
        status = listening.status(TWO + "depth_node")
        return "no metric depth since" in status and "/two/range: the nearest" in status and "/two/range2: " in status

    sent = send_until(listening, noticed, "both topics in the diagnostics", **nothing)
    listening.spin_until(lambda: sent[-1] in listening.answers[TWO + "relative_depth"], "relative depth")
    assert not set(sent) & set(listening.answers[TWO + "depth"])
    assert "no metric depth" in node.log
    listening.frame_answered(TWO + "depth", TWO, **BOTH)


def test_a_depth_camera_alone_gives_metres(robot, start_node):
    """Remapped to an image_rect, its camera info is looked for beside it."""
    node = start_node(
        parameters={"range.type": "depth_image", "range.extrinsic": "static"},
        arguments=["-r", "__ns:=/tof", "-r", "range:=/stereo/depth/image_rect"],
    )
    robot.listen(__tof__depth=Image)
    sent = []

    def send():
        at = robot.next_stamp()
        for topic, message in (("camera_info", tof_info()), ("image_rect", tof_image("32FC1"))):
            message.header.stamp = stamp(at)
            robot.send(f"/stereo/depth/{topic}", message)
        sent.append(robot.send_frame(at, "/tof/", range=None))

    robot.send_until(send, lambda: set(sent) & set(robot.answers["/tof/depth"]), "metres")
    answer = robot.answers["/tof/depth"][max(set(sent) & set(robot.answers["/tof/depth"]))]
    np.testing.assert_allclose(floats(answer), depth_m(WIDTH, HEIGHT), rtol=1e-3)
    assert node.stop() == 0


TURN_RAD_S, SPEED_M_S = 1.5, 3.0


def swept_cloud(with_times: bool):
    """The flat scene as a LiDAR sees it that turns and drives while it measures; each point at its own time."""
    points = lidar_points(2)
    offset_s = np.linspace(-0.1, 0.0, len(points))
    np.random.default_rng(0).shuffle(offset_s)
    camera = np.stack([-points[:, 1], -points[:, 2], points[:, 0]], 1) + TRANSLATION_M  # camera at the image's time
    angle, radius = TURN_RAD_S * offset_s, SPEED_M_S / TURN_RAD_S
    # The camera at the point's time stands at `place` and is turned by `angle` about y.
    dx, dz = camera[:, 0] - radius * (1 - np.cos(angle)), camera[:, 2] - radius * np.sin(angle)
    x, z = np.cos(angle) * dx - np.sin(angle) * dz, np.sin(angle) * dx + np.cos(angle) * dz
    then = np.stack([x, camera[:, 1], z], 1) - TRANSLATION_M
    lidar = np.stack([then[:, 2], -then[:, 0], -then[:, 1]], 1).astype(np.float32)
    cloud = cloud_of(lidar)
    if with_times:
        cloud.point_step, cloud.row_step = 16, 16 * len(lidar)
        cloud.fields.append(PointField(name="time", offset=12, datatype=PointField.FLOAT32, count=1))
        cloud.data = np.concatenate([lidar, offset_s[:, None].astype(np.float32)], axis=1).tobytes()
    return cloud


def cloud_at_one_second():
    cloud = swept_cloud(with_times=True)
    cloud.header.stamp = stamp(10**9)
    return cloud


class Place:
    """An extrinsic that remembers what it was asked."""

    unmoved = None

    def camera_from_lidar(self, *between):
        return np.eye(4), self.unmoved

    def sweep(self, camera_frame, image_ns, lidar_frame, scan_ns, offset_s, time_error_s):
        self.asked = offset_s, time_error_s


class Names:
    """As much of a node as a source needs."""

    def resolve_topic_name(self, name, only_expand=False):
        return f"/robot/{name}"


@pytest.mark.parametrize(
    ("fixed_frame", "unmoved", "age_s"), [("odom", None, 0.0), ("odom", "odometry is late", 0.04), ("", None, 0.04)]
)
def test_a_scan_that_odometry_has_not_moved_keeps_its_age_and_the_times_of_its_points(fixed_frame, unmoved, age_s):
    settings, place = Range2Config(type="pointcloud2", fixed_frame=fixed_frame), Place()
    place.unmoved = unmoved
    source = RangeSource(Names(), settings, place, None)
    source.scans.add(cloud_at_one_second())
    image = good_image()
    image.header.stamp = stamp(1_040_000_000)
    found = source.scans.nearest(10**9, 1.0)
    scan, why = source.placed(found, image, settings)
    assert (scan.age_s, why) == (age_s, unmoved)
    # Moved by odometry, which cannot say how it moved in between: then nothing is left to do.
    assert scan.offset_s is (found.offset_s if age_s else None)
    assert hasattr(place, "asked") == (unmoved is None)  # or odometry that came meanwhile would move it once more


class Robot(Names):
    """As much of a node as all sources need."""

    def __init__(self):
        self.said = []

    def get_logger(self):
        return SimpleNamespace(warning=self.said.append)


def test_what_is_there_and_in_place_is_peeked_at_and_the_rest_is_not_spoken_of():
    tof = Range2Config(type="depth_image", extrinsic="static")
    config, robot = Config(range=RangeConfig(extrinsic="static"), range2=tof), Robot()
    sources = RangeSources(robot, config, diagnostics=None)
    lidar, camera = (sources._sources[name] for name in ("range", "range2"))
    image, depth = good_image(), tof_image()
    image.header.stamp, depth.header.stamp = stamp(1_040_000_000), stamp(10**9)
    assert sources.peek(image, config) == []
    lidar.scans.add(cloud_at_one_second())
    camera.scans.add(depth)
    assert [scan.limits for scan in sources.peek(image, config)] == [config.range]  # the other has no camera info yet
    camera._keep_info(tof_info())
    assert [scan.limits for scan in sources.peek(image, config)] == [config.range, tof]
    lidar.extrinsic = Place()
    lidar.extrinsic.unmoved = "odometry is late"
    assert [scan.limits for scan in sources.peek(image, config)] == [tof]
    assert robot.said == []


@pytest.mark.parametrize(
    ("settings", "timed", "error_s"),
    [
        ({"fixed_frame": "odom"}, True, 0.005),
        ({"fixed_frame": "odom", "point_times": False}, False, 0.005),
        ({}, True, 0.005),
        ({"point_times": False}, False, 0.005),
    ],
)
def test_times_of_points_are_read_where_they_serve(settings, timed, error_s):
    settings, place = Range2Config(type="pointcloud2", **settings), Place()
    source = RangeSource(Names(), settings, place, None)
    source.scans.add(cloud_at_one_second())
    found = source.scans.nearest(10**9, 1.0)
    assert (found.offset_s is not None) == timed
    scan, unmoved = source.placed(found, good_image(), settings)
    assert scan.limits is settings
    assert unmoved is None
    assert place.asked[0] is found.offset_s
    assert place.asked[1] == error_s
    assert (source.name, source.topic) == ("range2", "/robot/range2")


def test_a_turning_robot_s_points_are_moved_each_from_its_own_time(robot, start_node):
    node = start_node(
        parameters={"range.fixed_frame": "odom", "fit.correction_limit": 1.0, **OFTEN},
        arguments=["-r", "__ns:=/turn"],
        environment={"PYTHONPATH": str(TEST / "fake_tf2"), "FAKE_TF2_MOTION": f"{TURN_RAD_S} {SPEED_M_S}"},
    )
    robot.listen(__turn__depth=Image)

    def residual(with_times: bool) -> float:
        """After a few frames, so that the diagnostics speak of them."""
        sent = []
        robot.send_until(
            lambda: sent.append(robot.send_frame(prefix="/turn/", range=swept_cloud(with_times))),
            lambda: len(sent) > 2 and sent[2] in robot.answers["/turn/depth"],
            "answers",
        )
        return float(robot.fresh_diagnostics("/turn/depth_node")["residual (relative)"])

    answer = robot.frame_answered("/turn/depth", "/turn/", range=lambda: swept_cloud(True))
    np.testing.assert_allclose(floats(answer), depth_m(WIDTH, HEIGHT), rtol=5e-3)
    assert residual(True) < 0.002
    assert residual(False) > 0.01
    assert node.stop() == 0
