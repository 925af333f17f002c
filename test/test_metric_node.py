"""The node with metric checkpoints, over real DDS: metres without a LiDAR, and better ones with it."""

import numpy as np
import pytest

pytest.importorskip("rclpy")
from sensor_msgs.msg import Image, PointCloud2

from flat_scene_node import depth_m
from ros_harness import HEIGHT, OFTEN, REAL, STATIC, WIDTH, cloud_of, lidar_points, nanoseconds

TRUE_M = depth_m(WIDTH, HEIGHT)


def floats(image: Image) -> np.ndarray:
    return np.frombuffer(image.data, "<f4").reshape(image.height, image.width)


def answers(robot, name, **changed):
    """Relative depth and metres of one image, which has points too, and what the node then says of itself."""
    relative, depth, points = (f"/{name}/{topic}" for topic in ("relative_depth", "depth", "points"))
    robot.listen(**{topic.replace("/", "__"): Image for topic in (relative, depth)})
    robot.listen(**{points.replace("/", "__"): PointCloud2})
    image = robot.frame_answered(depth, f"/{name}/", **changed)
    stamp_ns = nanoseconds(image.header.stamp)
    robot.spin_until(lambda: stamp_ns in robot.answers[relative] and stamp_ns in robot.answers[points], "the others")
    facts = robot.fresh_diagnostics(f"/{name}/depth_node") | {"status": robot.status(f"/{name}/depth_node")}
    return floats(robot.answers[relative][stamp_ns]), floats(image), facts


def test_without_a_range_sensor_a_real_checkpoints_own_metres_are_published(robot, start_node, tmp_path):
    """The weights are random and so is the depth; that the right metres come of it is what counts."""
    pytest.importorskip("torch")
    from small_checkpoint import make_metric, write_small_checkpoint

    checkpoint = make_metric(write_small_checkpoint(tmp_path / "small", "log_depth"), canonical_focal_px=80.0)
    settings = {"model.checkpoint": checkpoint, "model.engine": "torch", "range.type": "none", **STATIC}
    node = start_node(REAL, {**settings, **OFTEN}, ["-r", "__ns:=/alone"])
    relative, found_m, facts = answers(robot, "alone")
    assert np.ptp(relative) > 0.05
    # To 80 pixels the tests' camera, 64x48 with 50 pixels, would be enlarged 1.6 times; multiples of 32 make it 96x64.
    focal_px = 50.0 * (96 / 64 * 64 / 48) ** 0.5
    np.testing.assert_allclose(found_m, 0.1 * 800.0**relative * focal_px / 80.0, rtol=1e-4)
    assert (facts["metres from"], facts["metric state"]) == ("the checkpoint", "DEGRADED")
    assert facts["status"].endswith("frames per second")
    assert "no metric depth" not in node.log
    assert node.stop() == 0


@pytest.fixture
def led(start_node):
    """A node with a LiDAR before the flat scene, which its metric checkpoint takes for 1.3 times as far."""
    parameters = {**STATIC, **OFTEN}
    return start_node(parameters=parameters, arguments=["-r", "__ns:=/led"], environment={"FLAT_SCENE_FACTOR": "1.3"})


def settled(robot, wanted, **changed):
    """Metres and facts of an image of which the node says what is `wanted`: an image may overtake its scan."""
    for _ in range(20):
        _, found_m, facts = answers(robot, "led", **changed)
        if wanted in f"{facts['status']}, metres from {facts['metres from']}":
            return found_m, facts
    raise AssertionError(f"{wanted!r} never came: {facts}")


def test_anchors_lead_a_metric_checkpoint_unless_there_are_none_or_they_contradict_it(robot, led):
    found_m, facts = settled(robot, "range points")
    np.testing.assert_allclose(found_m, TRUE_M, rtol=5e-3)
    assert float(facts["residual (relative)"]) < 0.01

    found_m, facts = settled(robot, "metres from the checkpoint", range=lambda: None)
    np.testing.assert_allclose(found_m, 1.3 * TRUE_M, rtol=1e-4)
    assert facts["metric state"] == "DEGRADED"
    assert "no scan" in facts["status"] or "older than the image" in facts["status"]

    found_m, facts = settled(robot, "the anchors ask for", range=lambda: cloud_of(6.0 * lidar_points()))
    np.testing.assert_allclose(found_m, 1.3 * TRUE_M, rtol=1e-4)
    assert facts["status"].startswith("metres from the checkpoint: ")
    assert facts["metres from"] == "the checkpoint"
    assert "metres from the checkpoint" in led.log
    assert led.stop() == 0
