"""Surface normals of the node: its own process, over real DDS, real checkpoints on disk."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("torch")
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

from flat_scene_node import FlatScene
from marigold_ros.config import Config, ModelConfig, Unusable
from marigold_ros.decoding import camera_from_info, rgb_from_image
from marigold_ros.diagnostics import OK, WARN, Diagnostics
from marigold_ros.estimator import load_normals_estimator
from marigold_ros.frames import FrameProcessor
from marigold_ros.geometry import rectifier
from marigold_ros.motion import unknown_motion
from marigold_ros.outputs import Wanted
from ros_harness import HEIGHT, OFTEN, REAL, STATIC, WIDTH, good_image, good_info, stamp
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
        parameters={**STATIC, **settings, "model.confidence": "mirror", **OFTEN},
        arguments=["-r", "__ns:=/up"],
    )


@pytest.fixture(scope="module")
def estimator(checkpoints):
    return load_normals_estimator(ModelConfig(checkpoint=str(checkpoints["normals"])))


def vectors(image: Image) -> np.ndarray:
    assert (image.encoding, image.width, image.height, image.step) == ("32FC3", WIDTH, HEIGHT, 12 * WIDTH)
    assert image.header.frame_id == "camera"
    return np.frombuffer(image.data, "<f4").reshape(HEIGHT, WIDTH, 3)


def test_they_are_unit_vectors_of_the_network_that_is_named(robot, node, estimator):
    robot.listen(__up__normals=Image)
    found = vectors(robot.frame_answered(NORMALS, "/up/"))
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1.0, rtol=1e-3)
    # With other threads torch adds up in another order, which random weights make much of.
    np.testing.assert_allclose(found, estimator(rgb_from_image(good_image())), atol=2e-3)
    timed = {"normals time p50 (ms)", "latency"}  # the stamps are not those of this time
    robot.spin_until(lambda: timed < robot.values(NODE).keys(), "diagnostics", 20.0)
    assert robot.values(NODE)["normals"].startswith("normals on ")
    assert robot.statuses[NODE].level == DiagnosticStatus.OK, robot.status(NODE)


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
    np.testing.assert_allclose(found[~straight.unseen], expected[~straight.unseen], atol=2e-3)


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
        ({"model.normals_checkpoint": "depth"}, ["model.normals_checkpoint=", "gives depth, not normals"]),
        ({"model.checkpoint": "normals"}, ["as model.normals_checkpoint it serves beside one for depth"]),
        ({"model.normals_checkpoint": "nowhere"}, ["model.normals_checkpoint='nowhere'"]),
    ],
)
def test_a_checkpoint_of_the_other_kind_assert_refused(robot, start_node, checkpoints, settings, told):
    given = {"model.checkpoint": "depth", **settings}
    node = start_node(
        program=REAL,
        parameters={**STATIC, **OFTEN, **{name: checkpoints.get(of, of) for name, of in given.items()}},
        arguments=["-r", "__ns:=/wrong"],
    )
    robot.assert_refused("/wrong/depth_node", node, *told)
    assert node.stop() == 0


# Which network runs when, in this process: what hands the messages over is a stand-in, the frames' way is real.


class Networks(FlatScene):
    """Depth of the flat scene and normals towards the camera, and a list of what was asked for and published."""

    def __init__(self):
        super().__init__()
        self.log, self.broken, self.wanted = [], False, Wanted(False, False, False, False)
        self.said, self.diagnostics, self.stamp_s = [], Diagnostics("test"), 0
        clock = SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=time.time_ns()))
        node = SimpleNamespace(
            get_logger=lambda: SimpleNamespace(warning=self.said.append),
            resolve_topic_name=lambda name: f"/{name}",
            context=SimpleNamespace(ok=lambda: True),
            get_clock=lambda: clock,
        )
        sources = SimpleNamespace(
            problems=(),
            label="range",
            expect=lambda stamp_ns: None,
            scans=self.no_scan,
            peek=lambda message, config: [],
            motion_until=lambda message: unknown_motion,
        )
        outputs = SimpleNamespace(wanted=lambda: self.wanted, publish=self.publish, publish_normals=self.send)
        arguments = (node, Config, self, sources, outputs, self.diagnostics, self.normals)
        self.frames = FrameProcessor(*arguments)
        self.frames.on_camera_info(good_info())

    def no_scan(self, message, config):
        raise Unusable("no scan")

    def coarse(self, rgb, focal_px=None):
        self.log.append("depth")
        return super().coarse(rgb, focal_px)

    def normals(self, rgb):
        self.log.append("normals")
        return np.full(rgb.shape, np.nan if self.broken else 1.0, np.float32)

    def publish(self, frame, header, wanted, settings):
        self.log.append("depth sent")
        return wanted.relative or frame.depth_m is not None

    def send(self, normals, header):
        self.log.append("normals sent")

    def see(self, **wanted):
        """What one more image makes them do, while this is wanted."""
        nothing = dict.fromkeys(("relative", "depth", "points", "visual"), False)
        self.wanted, self.log = Wanted(**{**nothing, **wanted}), []
        self.stamp_s += 1
        image = good_image()
        image.header.stamp = stamp(time.time_ns() - 10**11 + self.stamp_s * 10**9)
        self.diagnostics.count("image")
        self.frames.process(image)
        return self.log

    def told(self):
        status = self.diagnostics.message("active", True, 0).status[0]
        return status.level, {pair.key: pair.value for pair in status.values}


def test_only_what_is_wanted_runs_and_depth_goes_out_first():
    networks = Networks()
    networks.see()
    assert networks.see() == []
    assert networks.see(normals=True) == ["normals", "normals sent"]
    assert networks.see(relative=True) == ["depth", "depth sent"]
    assert networks.see(relative=True, normals=True) == ["depth", "depth sent", "normals", "normals sent"]
    level, values = networks.told()
    assert (level, values["published total"], values["processed total"]) == (OK, "3", "3")
    assert networks.see(depth=True, normals=True)[-1] == "normals sent"  # there are no metres, but they do
    assert networks.told()[1]["published total"] == "4"


@pytest.mark.parametrize("wanted", [{}, {"normals": True}, {"relative": True}])
def test_the_first_look_at_a_camera_runs_both_whatever_is_wanted(wanted):
    networks = Networks()
    assert [of for of in networks.see(**wanted) if not of.endswith("sent")] == ["depth", "normals"]
    assert networks.see() == []


def test_a_broken_network_for_normals_costs_no_depth():
    networks = Networks()
    networks.broken = True
    networks.see(relative=True)
    assert networks.see(relative=True, normals=True) == ["depth", "depth sent", "normals"]
    level, values = networks.told()
    assert (level, values["frames failed"], values["published total"]) == (WARN, "0", "2")
    assert values.get("metric state") != "FAULT"
    (said,) = networks.said
    assert "/normals" in said
    assert "network for normals is not finite" in said
    assert networks.see(relative=True) == ["depth", "depth sent"]
    assert networks.told()[0] == OK
