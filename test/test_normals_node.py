"""Surface normals of the node: its own process, over real DDS, real checkpoints on disk."""

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("torch")
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

from marigold_ros.config import ModelConfig
from marigold_ros.decoding import camera_from_info, rgb_from_image
from marigold_ros.estimator import load_normals_estimator
from marigold_ros.geometry import rectifier
from ros_harness import HEIGHT, REAL, STATIC, WIDTH, good_image, good_info
from small_checkpoint import write_small_checkpoint

NODE, NORMALS, RELATIVE = "/up/depth_node", "/up/normals", "/up/relative_depth"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {task: write_small_checkpoint(folder / task, onnx=True, task=task) for task in ("depth", "normals")}


@pytest.fixture(scope="module")
def node(start_node, checkpoints):
    settings = {"model.checkpoint": checkpoints["depth"], "model.normals_checkpoint": checkpoints["normals"]}
    return start_node(
        program=REAL,
        # What is asked of depth alone does not stop the other network.
        parameters={**STATIC, **settings, "model.confidence": "mirror", "node.diagnostics_period_s": 0.1},
        arguments=["-r", "__ns:=/up"],
    )


@pytest.fixture(scope="module")
def estimator(checkpoints):
    return load_normals_estimator(ModelConfig(checkpoint=str(checkpoints["normals"])))


def vectors(image: Image) -> np.ndarray:
    assert (image.encoding, image.width, image.height, image.step) == ("32FC3", WIDTH, HEIGHT, 12 * WIDTH)
    assert image.header.frame_id == "camera"
    return np.frombuffer(image.data, "<f4").reshape(HEIGHT, WIDTH, 3)


def test_alone_they_cost_no_depth(robot, node, estimator):
    robot.listen(__up__normals=Image)
    found = vectors(robot.frame_answered(NORMALS, "/up/"))
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1.0, rtol=1e-3)
    np.testing.assert_allclose(found, estimator(rgb_from_image(good_image())), atol=1e-5)
    robot.spin_until(lambda: float(robot.values(NODE).get("published rate (Hz)", 0)) > 0, "diagnostics", 20.0)
    assert "normals time p50 (ms)" in robot.values(NODE)
    assert int(robot.values(NODE)["frames failed"]) == 0
    assert robot.statuses[NODE].level == DiagnosticStatus.OK, robot.status(NODE)
    before = robot.values(NODE).get("network time p50 (ms)")
    robot.frame_answered(NORMALS, "/up/")
    assert robot.values(NODE).get("network time p50 (ms)") == before


def test_they_come_beside_depth_with_the_same_stamp(robot, node):
    robot.listen(__up__normals=Image, __up__relative_depth=Image)
    relative = robot.frame_answered(RELATIVE, "/up/")
    key = relative.header.stamp.sec * 10**9 + relative.header.stamp.nanosec
    robot.spin_until(lambda: key in robot.answers[NORMALS], "normals of the same image")
    assert robot.answers[NORMALS][key].header == relative.header
    robot.ignore(RELATIVE)


def test_of_a_distorted_image_they_are_those_of_the_rectified_one_and_unknown_where_the_lens_did_not_see(
    robot, node, estimator
):
    info = good_info()
    info.d = [0.3, 0.0, 0.0, 0.0, 0.0]
    robot.listen(__up__normals=Image)
    found = vectors(robot.frame_answered(NORMALS, "/up/", camera_info=lambda: info))
    straight = rectifier(camera_from_info(info, WIDTH, HEIGHT))
    assert 0 < straight.unseen.sum() < 0.5 * straight.unseen.size
    assert np.isnan(found[straight.unseen]).all()
    expected = estimator(straight(rgb_from_image(good_image())))
    np.testing.assert_allclose(found[~straight.unseen], expected[~straight.unseen], atol=1e-5)


def test_without_a_checkpoint_for_them_there_is_no_topic(robot, start_node, checkpoints):
    node = start_node(
        program=REAL,
        parameters={**STATIC, "model.checkpoint": checkpoints["depth"]},
        arguments=["-r", "__ns:=/down"],
    )
    robot.listen(__down__relative_depth=Image)
    robot.frame_answered("/down/relative_depth", "/down/")
    assert robot.node.count_publishers("/down/normals") == 0
    assert node.stop() == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model.normals_checkpoint": "depth"}, "gives depth, not normals"),
        ({"model.checkpoint": "normals"}, "as model.normals_checkpoint it serves beside one for depth"),
        ({"model.normals_checkpoint": "nowhere"}, "nowhere"),
    ],
)
def test_a_checkpoint_of_the_other_kind_is_refused(robot, start_node, checkpoints, settings, told):
    given = {"model.checkpoint": "depth", **settings}
    node = start_node(
        program=REAL,
        parameters={**STATIC, **{name: checkpoints.get(of, of) for name, of in given.items()}},
        arguments=["-r", "__ns:=/wrong"],
    )
    robot.spin_until(lambda: "cannot become inactive" in node.log, "the reason")
    assert told in node.log
    assert "Traceback" not in node.log
    assert node.stop() == 0
