"""The node as its own process, over real DDS: frames, bad input, parameters, lifecycle, shutdown."""

import hashlib
import os
import shutil
import signal
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from flat_scene_node import depth_m, relative_depth
from marigold_ros.checkpoints import describe
from marigold_ros.config import Unusable
from marigold_ros.export import cached_file, onnx_file, ready_file
from marigold_ros.selfcheck import reference_of
from ros_harness import (
    HEIGHT,
    OFTEN,
    REAL,
    STATIC,
    TEST,
    WIDTH,
    cloud_of,
    good_image,
    good_info,
    lidar_points,
    nanoseconds,
    stamp,
)

OUTPUTS = {
    "depth": Image,
    "depth__camera_info": CameraInfo,
    "depth__status": DiagnosticArray,
    "points": PointCloud2,
    "relative_depth": Image,
}
PREFIX = "/robot/"


@pytest.fixture(scope="module")
def node(start_node):
    """A node with the default extrinsic: tf2, which a stand-in plays since tf2_ros is not on PyPI."""
    return start_node(
        parameters={**OFTEN, "model.confidence": "mirror"},
        arguments=["-r", "__ns:=/robot"],
        environment={"PYTHONPATH": str(TEST / "fake_tf2")},
    )


@pytest.fixture
def listening(robot, node):
    """The robot, listening to every output of the running node."""
    robot.listen(**{f"{PREFIX}{name}".replace("/", "__"): kind for name, kind in OUTPUTS.items()})
    robot.frame_answered(PREFIX + "depth", PREFIX)
    return robot


def send_until_logged(robot, node, text, **changed):
    """Send bad frames until the node has complained, then one more; returns the stamp of that one."""

    def send():
        return robot.send_frame(prefix=PREFIX, **{key: make() for key, make in changed.items()})

    robot.send_until(send, lambda: text in node.log, f"{text!r} in the log")
    return send()


def said_once(node, text, since) -> bool:
    """Whether the node said it once, or once per ten seconds where the machine is that slow."""
    return 1 <= node.log.count(text) <= 1 + (time.monotonic() - since) // 10.0


def floats(image: Image) -> np.ndarray:
    return np.frombuffer(image.data, "<f4").reshape(image.height, image.width)


# Good frames


def test_a_frame_comes_back_in_metres_under_its_own_header(listening):
    depth = listening.frame_answered(PREFIX + "depth", PREFIX)
    assert (depth.encoding, depth.width, depth.height, depth.step) == ("32FC1", WIDTH, HEIGHT, 4 * WIDTH)
    assert depth.header.frame_id == "camera"
    np.testing.assert_allclose(floats(depth), depth_m(WIDTH, HEIGHT), rtol=1e-3)


def test_camera_info_and_cloud_carry_the_identical_stamp(listening):
    depth = listening.frame_answered(PREFIX + "depth", PREFIX)
    key = depth.header.stamp.sec * 10**9 + depth.header.stamp.nanosec
    info_topic, points_topic = PREFIX + "depth/camera_info", PREFIX + "points"
    listening.spin_until(
        lambda: key in listening.answers[info_topic] and key in listening.answers[points_topic], "both"
    )
    info, cloud = listening.answers[info_topic][key], listening.answers[points_topic][key]
    assert info.header == depth.header
    assert cloud.header == depth.header
    assert (info.width, info.height, list(info.k)) == (WIDTH, HEIGHT, list(good_info().k))
    assert (cloud.height, cloud.width, cloud.point_step, cloud.is_dense) == (HEIGHT, WIDTH, 16, False)


def test_relative_depth_has_a_topic_of_its_own(listening):
    relative = listening.frame_answered(PREFIX + "relative_depth", PREFIX)
    np.testing.assert_array_equal(floats(relative), relative_depth(WIDTH, HEIGHT))


def test_the_visual_is_made_while_somebody_looks(listening):
    listening.listen(**{f"{PREFIX}depth/visual".replace("/", "__"): Image})
    picture = listening.frame_answered(PREFIX + "depth/visual", PREFIX)
    assert (picture.encoding, picture.width, picture.height) == ("bgr8", WIDTH, HEIGHT)
    listening.ignore(PREFIX + "depth/visual")


def test_sigma_and_confidence_have_topics_of_their_own_while_somebody_listens(listening, node):
    assert "comparing" not in node.log
    listening.listen(**{f"{PREFIX}{topic}".replace("/", "__"): Image for topic in ("confidence", "depth/sigma")})
    confidence = listening.frame_answered(PREFIX + "confidence", PREFIX)
    assert (confidence.encoding, confidence.header.frame_id) == ("32FC1", "camera")
    key = confidence.header.stamp.sec * 10**9 + confidence.header.stamp.nanosec
    sigma_topic, depth_topic = PREFIX + "depth/sigma", PREFIX + "depth"
    listening.spin_until(
        lambda: key in listening.answers[sigma_topic] and key in listening.answers[depth_topic], "sigma and depth"
    )
    sigma, depth = (listening.answers[topic][key] for topic in (sigma_topic, depth_topic))
    assert (sigma.encoding, sigma.header) == ("32FC1", depth.header)
    expected = np.clip(1 - 2 * floats(sigma) / floats(depth), 0, 1)
    np.testing.assert_allclose(floats(confidence), expected, atol=1e-5)
    # The two passes of the flat scene's network do not agree at the right, but the anchors say that it is right.
    assert 0.9 < floats(confidence).min() <= floats(confidence).max() <= 1.0
    listening.ignore(PREFIX + "confidence")
    listening.ignore(PREFIX + "depth/sigma")


def test_the_cloud_has_what_is_sure_enough_and_depth_the_same_where_that_is_asked_for(listening):
    def set_to(name, **value):
        assert set_parameter(listening, f"output.{name}", **value).successful

    def known():
        """Where depth and cloud are known, each (H, W)."""
        depth = listening.frame_answered(PREFIX + "depth", PREFIX)
        key = nanoseconds(depth.header.stamp)
        listening.spin_until(lambda: key in listening.answers[PREFIX + "points"], "points")
        points = np.frombuffer(listening.answers[PREFIX + "points"][key].data, "<f4").reshape(HEIGHT, WIDTH, 4)
        in_cloud = np.isfinite(points[..., 2])
        assert (np.isfinite(points[..., :3]).all(axis=2) == in_cloud).all()
        return np.isfinite(floats(depth)), in_cloud

    for solid in (False, True):
        set_to("depth_solid", bool_value=solid)
        for least, fewest, most in ((0.2, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.99, 0.2, 0.8)):
            set_to("points_min_confidence", double_value=least)
            in_depth, in_cloud = known()
            assert fewest <= in_cloud.mean() <= most
            assert (in_depth == in_cloud).all() if solid else in_depth.all()
    set_to("points_min_confidence", double_value=0.2)
    set_to("depth_solid", bool_value=False)


def test_distorted_images_are_rectified_and_the_outputs_say_so(listening):
    def distorted():
        info = good_info()
        info.d = [-0.1, 0.01, 0.0, 0.0, 0.0]
        return info

    depth = listening.frame_answered(PREFIX + "depth", PREFIX, camera_info=distorted)
    key = depth.header.stamp.sec * 10**9 + depth.header.stamp.nanosec
    listening.spin_until(lambda: key in listening.answers[PREFIX + "depth/camera_info"], "camera info")
    assert list(listening.answers[PREFIX + "depth/camera_info"][key].d) == [0.0] * 5


def test_no_fit_means_no_metres_and_relative_depth_goes_on(listening, node):
    bad = send_until_logged(listening, node, "no metric depth", range=lambda: None)
    listening.spin_until(lambda: bad in listening.answers[PREFIX + "relative_depth"], "relative depth")
    listening.spin_until(lambda: "no metric depth since" in listening.status(), "diagnostics")
    assert bad not in listening.answers[PREFIX + "depth"]
    assert bad not in listening.answers[PREFIX + "points"]


def test_a_fit_is_held_for_a_while(listening):
    listening.frame_answered(PREFIX + "depth", PREFIX)
    sent = []
    listening.send_until(
        lambda: sent.append(listening.send_frame(listening.next_stamp(0.05), PREFIX, range=None)),
        lambda: any(s in listening.answers[PREFIX + "depth"] for s in sent),
        "depth from the held fit",
        seconds=5.0,  # not longer than the fit is held: each frame is 0.05 s later than the one before
    )


# Bad input: the node lives, says so once, publishes nothing wrong, and answers the next good frame


def changed_image(**fields):
    def make():
        image = good_image()
        for name, value in fields.items():
            setattr(image, name, value)
        return image

    return {"image": make}


def changed_info(**fields):
    def make():
        info = good_info()
        for name, value in fields.items():
            setattr(info, name, value)
        return info

    return {"camera_info": make}


def changed_cloud(make):
    return {"range": make}


def behind():
    return cloud_of(lidar_points() * np.float32([-1, 1, 1]))


def nowhere():
    cloud = cloud_of(lidar_points())
    cloud.header.frame_id = "nowhere"
    return cloud


def truncated_cloud():
    cloud = cloud_of(lidar_points())
    cloud.data = cloud.data[:-1]
    return cloud


def test_the_state_of_the_metres_comes_with_every_frame(listening):
    listening.frame_answered(PREFIX + "depth", PREFIX)
    (status,) = listening.frame_answered(PREFIX + "depth/status", PREFIX).status
    values = {pair.key: pair.value for pair in status.values}
    assert status.name.endswith("depth_node: metres")
    assert (status.level, status.message) == (b"\0", values["metric state"])
    assert values["metric state"] in ("OK", "DEGRADED")
    assert 0.0 < float(values["fit uncertainty (relative)"]) < 0.2


UNUSABLE = {
    "truncated image data": (changed_image(data=b"\1" * 100), "image data of 100 bytes"),
    "wrong step": (changed_image(step=7), "step=7"),
    "zero size": (changed_image(width=0, height=0, data=b""), "image of 0x0"),
    "unknown encoding": (changed_image(encoding="rgb9"), "encoding='rgb9'"),
    "NaN intrinsics": (changed_info(k=[float("nan")] * 9), "fx=nan"),
    "zero intrinsics": (changed_info(k=[0.0] * 9), "fx=0.0"),
    "camera info of another size": (changed_info(width=640, height=480), "camera info of 640x480"),
}
WITHOUT_METRES = {
    "empty cloud": (changed_cloud(lambda: cloud_of(np.empty((0, 3)))), "cloud of 0x1 points"),
    "cloud without z": (changed_cloud(lambda: cloud_of(lidar_points(), "xyw")), "needs 'z' as FLOAT32"),
    "truncated cloud": (changed_cloud(truncated_cloud), "cloud data of"),
    "all points behind the camera": (changed_cloud(behind), "no anchor lies in the image"),
    "no transform": (changed_cloud(nowhere), "no transform from 'nowhere' to 'camera'"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_an_unusable_message_is_dropped_and_named_once(listening, node, what):
    since, (changed, text) = time.monotonic(), UNUSABLE[what]
    send_until_logged(listening, node, text, **changed)
    before, sent = int(listening.fresh_diagnostics()["messages unusable"]), []

    def send():
        sent.append(listening.send_frame(prefix=PREFIX, **{key: make() for key, make in changed.items()}))

    listening.send_until(send, lambda: int(listening.values()["messages unusable"]) > before, "it to be counted")
    listening.frame_answered(PREFIX + "depth", PREFIX)
    assert node.running()
    assert said_once(node, text, since)
    assert all(sent[0] not in listening.answers[PREFIX + name.replace("__", "/")] for name in OUTPUTS)


@pytest.mark.parametrize("what", WITHOUT_METRES)
def test_an_unusable_scan_gives_no_metres_and_is_named_once(listening, node, what):
    since, (changed, text) = time.monotonic(), WITHOUT_METRES[what]
    bad = send_until_logged(listening, node, text, **changed)
    listening.spin_until(lambda: bad in listening.answers[PREFIX + "relative_depth"], "relative depth")
    listening.frame_answered(PREFIX + "depth", PREFIX)
    assert node.running()
    assert said_once(node, text, since)
    assert bad not in listening.answers[PREFIX + "depth"]
    assert bad not in listening.answers[PREFIX + "points"]


def test_a_scan_ten_seconds_old_gives_no_metres(listening, node):
    sent = []

    def send():
        cloud = cloud_of(lidar_points())
        cloud.header.stamp = stamp(listening.next_stamp() - 10 * 10**9)
        sent.append(listening.send_frame(listening.stamp_ns, PREFIX, range=cloud))

    listening.send_until(
        send, lambda: "10.000 s older than the image" in listening.status(), "the scan's age in the diagnostics"
    )
    listening.frame_answered(PREFIX + "depth", PREFIX)
    assert "older than the image" in node.log
    assert not set(sent) & set(listening.answers[PREFIX + "depth"])


def test_time_that_goes_backwards_starts_anew(listening, node):
    listening.frame_answered(PREFIX + "depth", PREFIX)
    listening.stamp_ns -= 1000 * 10**9
    sent = []
    listening.send_until(
        lambda: sent.append(listening.send_frame(prefix=PREFIX, range=None)),
        lambda: any(s in listening.answers[PREFIX + "relative_depth"] for s in sent),
        "relative depth",
    )
    listening.spin_until(lambda: "time went back by" in node.log, "the log")
    assert not set(sent) & set(listening.answers[PREFIX + "depth"]), "a fit of the future was used"
    depth = listening.frame_answered(PREFIX + "depth", PREFIX)
    np.testing.assert_allclose(floats(depth), depth_m(WIDTH, HEIGHT), rtol=1e-3)
    assert node.log.count("time went back by") == 1


# Work only for listeners


def test_the_network_rests_while_nobody_listens(listening, node):
    listening.ignore()
    listening.spin_until(lambda: "the network rests" in listening.status(), "a resting network")
    looks = node.log.count("looking")
    before = int(listening.values()["image total"])

    listening.send_until(
        lambda: listening.send_frame(prefix=PREFIX),
        lambda: int(listening.values()["image total"]) > before + 3,
        "images that are not looked at",
    )
    assert node.log.count("looking") == looks


def test_before_anybody_listens_the_network_looks_once_to_be_ready(robot, start_node):
    node = start_node(parameters=STATIC, arguments=["-r", "__ns:=/ready"])
    robot.send_until(
        lambda: robot.send_frame(prefix="/ready/"), lambda: node.log.count("looking") == 1, "a look at the first image"
    )
    before = int(robot.values("/ready/depth_node").get("image total", 0))
    robot.send_until(
        lambda: robot.send_frame(prefix="/ready/"),
        lambda: int(robot.values("/ready/depth_node").get("image total", 0)) > before + 3,
        "images that are not looked at",
    )
    assert node.log.count("looking") == 1
    assert node.stop() == 0


# Parameters


def parameter(name, **value) -> Parameter:
    kinds = {"bool_value": 1, "integer_value": 2, "double_value": 3, "string_value": 4, "double_array_value": 8}
    kind = kinds[next(iter(value))]
    return Parameter(name=name, value=ParameterValue(type=kind, **value))


def set_parameter(robot, name, **value):
    request = SetParameters.Request(parameters=[parameter(name, **value)])
    return robot.call(SetParameters, PREFIX + "depth_node/set_parameters", request).results[0]


def test_a_good_value_is_taken(robot, node):
    assert set_parameter(robot, "range.max_age_s", double_value=0.3).successful
    assert set_parameter(robot, "range.max_age_s", integer_value=1).successful


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("range.max_age_s", {"double_value": 1000.0}, "range.max_age_s"),
        ("range.min_depth_m", {"double_value": 100.0}, "must be less than range.max_depth_m=100.0"),
        ("model.checkpoint", {"string_value": "other"}, "read-only"),
        ("output.points_stride", {"string_value": "many"}, "output.points_stride='many': must be of type int"),
    ],
)
def test_a_bad_value_is_refused_with_the_reason(robot, node, name, value, reason):
    result = set_parameter(robot, name, **value)
    assert not result.successful
    assert reason in result.reason


def test_parameters_are_described(robot, node):
    request = DescribeParameters.Request(names=["range.max_age_s", "model.engine"])
    age, engine = robot.call(DescribeParameters, PREFIX + "depth_node/describe_parameters", request).descriptors
    assert age.description
    assert (age.floating_point_range[0].from_value, age.floating_point_range[0].to_value) == (0.0, 10.0)
    assert engine.read_only
    assert "'openvino'" in engine.additional_constraints


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"range.max_age_s": -1.0}, "range.max_age_s=-1.0: must lie between"),
        ({"model.engine": "abacus"}, "model.engine='abacus': must be one of"),
        ({"model.width": 100, "model.height": 96}, "model.width=100: must be a multiple of 32"),
        ({"output.points_stride": "many"}, "output.points_stride='many': must be of type int"),
    ],
)
def test_a_bad_start_value_stops_the_node_with_the_reason(start_node, parameters, sentence):
    node = start_node(parameters=parameters)
    assert node.process.wait(30) == 1
    assert sentence in node.log
    assert "Traceback" not in node.log


INPUT_DEPTHS = {"image": 1, "camera_info": 1, "range": 5}  # images count when they are new; scans are all looked at
ALL_OUTPUTS = [*(name.replace("__", "/") for name in OUTPUTS), "depth/visual", "depth/sigma", "confidence"]


def test_inputs_are_best_effort_and_short_and_outputs_reliable(listening):
    """Reliability as DDS tells everybody; depth, which DDS does not tell, as the node does."""
    found = {
        **{t: listening.node.get_subscriptions_info_by_topic(PREFIX + t) for t in INPUT_DEPTHS},
        **{t: listening.node.get_publishers_info_by_topic(PREFIX + t) for t in ALL_OUTPUTS},
    }
    for topic, ends in found.items():
        (end,) = ends
        wanted = ReliabilityPolicy.BEST_EFFORT if topic in INPUT_DEPTHS else ReliabilityPolicy.RELIABLE
        assert (end.node_name, end.qos_profile.reliability) == ("depth_node", wanted), topic
        assert end.qos_profile.durability == DurabilityPolicy.VOLATILE, topic
    ends = {t: "subscription" for t in INPUT_DEPTHS} | {t: "publisher" for t in ALL_OUTPUTS}
    names = [f"qos_overrides.{PREFIX}{topic}.{end}.depth" for topic, end in ends.items()]
    request = GetParameters.Request(names=names)
    values = listening.call(GetParameters, PREFIX + "depth_node/get_parameters", request).values
    assert [value.integer_value for value in values] == [INPUT_DEPTHS.get(topic, 2) for topic in ends]


def test_qos_can_be_overridden_and_a_bad_override_is_named(robot, start_node):
    override = {"qos_overrides./over/image.subscription.reliability": "reliable"}
    node = start_node(parameters={**STATIC, **override}, arguments=["-r", "__ns:=/over"])
    robot.spin_until(lambda: robot.node.get_subscriptions_info_by_topic("/over/image"), "the subscription")
    (found,) = robot.node.get_subscriptions_info_by_topic("/over/image")
    assert found.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    assert node.stop() == 0
    bad = {"qos_overrides./worse/depth.publisher.reliability": "eventually"}
    node = start_node(parameters={**STATIC, **OFTEN, **bad}, arguments=["-r", "__ns:=/worse"])
    robot.assert_refused("/worse/depth_node", node, "topic 'depth' cannot be made", "`eventually`")
    assert node.stop() == 0


def test_the_node_does_not_publish_onto_the_camera_s_own_info(robot, start_node):
    remappings = ["-r", "depth:=/rig/image_depth", "-r", "camera_info:=/rig/camera_info"]
    node = start_node(parameters={**STATIC, **OFTEN}, arguments=["-r", "__ns:=/rig", *remappings])
    reason = "'/rig/image_depth': its camera info would go to '/rig/camera_info'"
    robot.assert_refused("/rig/depth_node", node, reason)
    assert node.stop() == 0


def test_a_misspelt_parameter_is_noticed(start_node, robot):
    node = start_node(parameters={**STATIC, "range.max_age": 1.0}, arguments=["-r", "__ns:=/misspelt"])
    robot.spin_until(lambda: "did you mean range.max_age_s?" in node.log, "the hint")
    robot.spin_until(lambda: "ready after" in node.log, "start")
    assert node.stop(signal.SIGTERM) == 0


# Lifecycle


def change(robot, label, name="/robot/depth_node"):
    request = ChangeState.Request()
    request.transition.label = label
    return robot.call(ChangeState, f"{name}/change_state", request).success


def state(robot, name="/robot/depth_node"):
    return robot.call(GetState, f"{name}/get_state", GetState.Request()).current_state.label


def test_the_node_comes_up_active(robot, node):
    robot.spin_until(lambda: state(robot) == "active", "active")


def test_it_goes_all_the_way_down_and_up_again(listening, node):
    assert change(listening, "deactivate")
    assert state(listening) == "inactive"
    assert change(listening, "activate")
    listening.frame_answered(PREFIX + "depth", PREFIX)
    assert change(listening, "deactivate")
    assert change(listening, "cleanup")
    assert state(listening) == "unconfigured"
    assert "closed" in node.log
    assert listening.node.count_publishers(PREFIX + "depth") == 0
    assert change(listening, "configure")
    assert state(listening) == "inactive"
    assert change(listening, "activate")
    listening.frame_answered(PREFIX + "depth", PREFIX)


def test_an_impossible_transition_does_not_end_the_node(listening, node):
    request = ChangeState.Request()
    request.transition.id = Transition.TRANSITION_CONFIGURE  # while active
    assert not listening.call(ChangeState, "/robot/depth_node/change_state", request).success
    listening.frame_answered(PREFIX + "depth", PREFIX)
    assert node.running()
    assert state(listening) == "active"
    assert "cannot change the state" in node.log


def test_without_autostart_it_waits_for_a_manager(robot, start_node):
    node = start_node(parameters={**STATIC, "node.autostart": False}, arguments=["-r", "__node:=waiting"])
    assert state(robot, "/waiting") == "unconfigured"
    assert change(robot, "configure", "/waiting")
    assert change(robot, "shutdown", "/waiting")
    assert state(robot, "/waiting") == "finalized"
    assert node.stop() == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_slow_network_drops_frames_and_stops_cleanly_in_mid_frame(robot, start_node, how):
    name = f"/slow_{how.name.lower()}"
    node = start_node(parameters=STATIC, arguments=["-r", f"__ns:={name}"], environment={"FLAT_SCENE_SECONDS": "0.4"})
    topic = f"{name}/relative_depth"
    robot.listen(**{topic.replace("/", "__"): Image})
    robot.frame_answered(topic, f"{name}/")
    sent = []

    def dropped():
        return int(robot.values(f"{name}/depth_node").get("images dropped", 0)) > 0

    def send():
        sent.extend(robot.send_frame(robot.next_stamp(0.05), f"{name}/") for _ in range(2))

    robot.send_until(send, dropped, "dropped images in the diagnostics")
    robot.spin_until(lambda: sent[-1] in robot.answers[topic], "the newest frame")
    assert sum(s in robot.answers[topic] for s in sent) < len(sent)
    looks = node.log.count("looking")
    robot.send_frame(prefix=f"{name}/")
    robot.spin_until(lambda: node.log.count("looking") > looks, "a frame in work")
    assert node.stop(how) == 0
    assert "closed" in node.log
    assert "Traceback" not in node.log


# Real networks, and those that cannot be


def test_without_tf2_the_way_out_is_named(robot, start_node):
    try:
        import tf2_ros  # noqa: F401
    except ImportError:
        node = start_node(parameters=OFTEN, arguments=["-r", "__ns:=/untransformed"])
        robot.assert_refused("/untransformed/depth_node", node, "set range.extrinsic='static'")
        assert node.stop() == 0
    else:
        pytest.skip("tf2_ros is installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("torch")
    from small_checkpoint import write_small_checkpoint

    return write_small_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", onnx=True)


def test_the_real_network_answers_over_dds(robot, start_node, checkpoint):
    node = start_node(
        program=REAL,
        parameters={**STATIC, "model.checkpoint": checkpoint, "model.confidence": "mirror_half"},
        arguments=["-r", "__ns:=/real"],
    )
    robot.listen(__real__relative_depth=Image)
    answer = floats(robot.frame_answered("/real/relative_depth", "/real/", seconds=60.0))
    assert answer.shape == (HEIGHT, WIDTH)
    assert np.isfinite(answer).all()
    robot.listen(__real__confidence=Image)
    confidence = floats(robot.frame_answered("/real/confidence", "/real/", seconds=60.0))
    assert confidence.shape == (HEIGHT, WIDTH)
    assert 0.0 < confidence.min() < confidence.max() <= 1.0
    assert node.stop() == 0


def damaged(folder):
    next(folder.glob("unet/*.safetensors")).write_bytes(b"not tensors")


def incomplete(folder):
    (folder / "model_index.json").unlink()


@pytest.mark.parametrize("harm", [damaged, incomplete])
def test_a_harmed_checkpoint_is_named_and_nothing_is_published_until_it_is_mended(
    robot, start_node, checkpoint, tmp_path, harm
):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    for exported in broken.glob("**/*.onnx"):
        exported.unlink()
    harm(broken)
    (tmp_path / "file").write_text("in the way")  # the network beside the checkpoint needs no cache
    name = f"/harm_{harm.__name__}/depth_node"
    topic = name.replace("depth_node", "relative_depth")
    robot.listen(**{topic.replace("/", "__"): Image})
    node = start_node(
        program=REAL,
        parameters={**STATIC, **OFTEN, "model.checkpoint": broken, "model.cache_dir": tmp_path / "file" / "cache"},
        arguments=["-r", f"__ns:={name.removesuffix('/depth_node')}"],
    )
    robot.assert_refused(name, node, str(broken))
    shutil.copytree(checkpoint, broken, dirs_exist_ok=True)
    assert change(robot, "configure", name)
    assert change(robot, "activate", name)
    answer = floats(robot.frame_answered(topic, name.removesuffix("depth_node")))
    assert np.isfinite(answer).all()
    robot.spin_until(lambda: "cannot become" not in robot.status(name), "an end of the complaint")
    (told,) = [line for line in node.log.splitlines() if "cannot be written" in line]
    assert "the self-check will be made at every start: folder" in told
    assert node.stop() == 0


@pytest.fixture
def without_onnx(checkpoint, tmp_path):
    """The checkpoint as most are published: the weights alone."""
    from marigold_ros.checkpoints import seal

    plain = tmp_path / "plain"
    shutil.copytree(checkpoint, plain, ignore=shutil.ignore_patterns("*.onnx", "*.npz"))
    seal(plain)
    return plain


def export_to(cache, info, checkpoint):
    """The exported network of `info` in a cache: that which lies beside `checkpoint`, the same one."""
    cached = cached_file(info, cache)
    cached.parent.mkdir()
    for of in (lambda network: network, reference_of):
        shutil.copy(of(checkpoint / "model.onnx"), of(cached))
    checksums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (cached, reference_of(cached))]
    cached.with_suffix(".sha256").write_text("".join(f"{checksum}\n" for checksum in checksums))
    assert ready_file(info, cache) == cached  # so that what is done to it is what it is refused for
    return cached


def test_an_export_that_is_damaged_or_gone_is_refused_with_the_command_until_it_is_back(
    robot, start_node, checkpoint, without_onnx, tmp_path
):
    """Also where the cache can never be written: it is the export that needs it, and says so."""
    info, cache, name = describe(without_onnx), tmp_path / "cache", "/exported/depth_node"
    cached = export_to(cache, info, checkpoint)
    command = f"ros2 run marigold_ros export --checkpoint {without_onnx} --cache-dir {cache}"
    whole = cached.read_bytes()
    settings = {"model.checkpoint": without_onnx, "model.cache_dir": cache, "model.engine": "openvino"}
    node = start_node(program=REAL, parameters={**STATIC, **OFTEN, **settings}, arguments=["-r", "__ns:=/exported"])
    robot.listen(__exported__relative_depth=Image)

    def answers():
        robot.frame_answered("/exported/relative_depth", "/exported/")
        assert "openvino" in robot.fresh_diagnostics(name)["engine"]
        assert robot.statuses[name].level == DiagnosticStatus.OK, robot.status(name)
        assert robot.status(name).endswith("frames per second")

    answers()
    assert change(robot, "deactivate", name)
    assert change(robot, "cleanup", name)
    os.truncate(cached, len(whole) // 2)
    assert not change(robot, "configure", name)
    robot.assert_refused(name, node, f"its export {cached} is damaged; run: {command}")
    cache.rename(tmp_path / "aside")
    cache.write_text("in the way")
    assert not change(robot, "configure", name)
    robot.assert_refused(name, node, f"is not exported for OpenVINO yet; run: {command}")
    with pytest.raises(Unusable, match=r"cannot be written .*model\.cache_dir"):
        onnx_file(info, cache)
    cache.unlink()
    (tmp_path / "aside").rename(cache)
    cached.write_bytes(whole)
    assert change(robot, "configure", name)
    assert change(robot, "activate", name)
    answers()
    assert node.stop() == 0


def test_torch_runs_a_checkpoint_whose_cached_network_is_cut_in_half(
    robot, start_node, checkpoint, without_onnx, tmp_path
):
    cached = export_to(tmp_path / "cache", describe(without_onnx), checkpoint)
    os.truncate(cached, cached.stat().st_size // 2)
    node = start_node(
        program=REAL,
        parameters={**STATIC, **OFTEN, "model.checkpoint": without_onnx, "model.cache_dir": cached.parent},
        arguments=["-r", "__ns:=/halved"],
    )
    robot.listen(__halved__relative_depth=Image)
    answer = floats(robot.frame_answered("/halved/relative_depth", "/halved/", seconds=60.0))
    assert answer.shape == (HEIGHT, WIDTH)
    assert "torch" in robot.fresh_diagnostics("/halved/depth_node")["engine"]
    assert robot.statuses["/halved/depth_node"].level == DiagnosticStatus.OK, robot.status("/halved/depth_node")
    assert f"{cached} is damaged" in node.log
    assert "until then torch runs it" in node.log
    assert "on torch" in node.log
    assert node.stop() == 0


def test_png_is_as_good_as_jpeg():
    """The two formats share the node's path, so one decode is enough here."""
    from marigold_ros.decoding import rgb_from_compressed

    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    message = CompressedImage(format="png", data=cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    np.testing.assert_array_equal(rgb_from_compressed(message), pixels)
