"""Names and wants; the publishing itself is tested over DDS in test_depth_node.py."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header

from marigold_ros.config import OutputConfig, RangeConfig, Unusable
from marigold_ros.geometry import Camera
from marigold_ros.outputs import Outputs, Wanted, info_topic
from marigold_ros.pipeline import FrameDepth
from marigold_ros.sources import RangeSource


@pytest.mark.parametrize(
    ("depth", "info"),
    [
        ("/depth", "/depth/camera_info"),
        ("/robot/depth", "/robot/depth/camera_info"),
        ("/camera/depth/image", "/camera/depth/camera_info"),
        ("/camera/depth/image_rect", "/camera/depth/camera_info"),
        ("/image", "/camera_info"),
    ],
)
def test_the_camera_info_is_where_subscribers_look_for_it(depth, info):
    assert info_topic(depth) == info


@pytest.fixture
def remapped(ros_domain):
    """A function that makes a node of these remappings."""
    made = []

    def make(*rules):
        arguments = [word for rule in rules for word in ("-r", rule)]
        made.append(LifecycleNode("remapped", cli_args=["--ros-args", *arguments]))
        return made[-1]

    yield make
    for node in made:
        node.destroy_node()


def test_the_camera_s_own_info_is_not_published_onto_by_way_of_its_remapping(remapped):
    """The sibling of /image_depth is /camera_info, a name that the rule for the input remaps as well."""
    node = remapped("depth:=image_depth", "camera_info:=/rig/camera_info")
    with pytest.raises(Unusable, match="'/image_depth': its camera info would go to '/rig/camera_info'"):
        Outputs(node, OutputConfig())
    assert node.count_publishers("/rig/camera_info") == 0
    Outputs(remapped("depth:=depth/image", "camera_info:=/rig/camera_info"), OutputConfig()).close()


def test_a_range_sensor_does_not_take_the_colour_camera_s_info_by_way_of_its_remapping(remapped):
    settings = RangeConfig(type="depth_image")
    node = remapped("range:=/image_tof", "camera_info:=/rig/camera_info")
    with pytest.raises(Unusable, match=r"'/image_tof': .*'/camera_info' is remapped to '/rig/camera_info'.*range:="):
        RangeSource(node, settings, None, None)
    # Depth that is registered to the colour camera may share its info.
    node = remapped("range:=/rig/image_depth", "camera_info:=/rig/camera_info")
    assert "/rig/camera_info" in [asked.topic for asked in RangeSource(node, settings, None, None).inputs(None)]
    node = remapped("range:=/image_tof", "camera_info:=/rig/camera_info")
    RangeSource(node, RangeConfig(), None, None)  # a LiDAR has none


def test_only_metric_outputs_ask_for_a_fit():
    assert not Wanted(relative=True, depth=False, points=False, visual=False).metric
    assert Wanted(relative=False, depth=False, points=False, visual=True).metric
    assert not Wanted(relative=False, depth=False, points=False, visual=False, confidence=True).metric
    assert Wanted(relative=False, depth=False, points=False, visual=False, confidence=True).anything
    assert Wanted(relative=False, depth=False, points=False, visual=False, sigma=True).metric
    assert not Wanted(relative=False, depth=False, points=False, visual=False).anything


ONLY_DEPTH, ONLY_POINTS = (Wanted(relative=False, visual=False, depth=d, points=not d) for d in (True, False))


@pytest.mark.parametrize("least", [0.0, 0.2])
@pytest.mark.parametrize("depth_solid", [False, True])
def test_what_is_unsure_or_floats_is_looked_for_where_something_is_to_be_without_it(depth_solid, least):
    settings = OutputConfig(depth_solid=depth_solid, points_min_confidence=least)
    assert ONLY_POINTS.solid(settings) == (least > 0.0)
    assert ONLY_DEPTH.solid(settings) == (depth_solid and least > 0.0)


@pytest.mark.parametrize(
    ("encoding", "kind", "unit", "unknown"), [("32FC1", "f4", 1, np.nan), ("16UC1", "u2", 1000, 0)]
)
def test_depth_is_whole_unless_only_what_is_solid_is_asked_for(remapped, encoding, kind, unit, unknown):
    published, whole = [], np.array([[1.0, 2.0], [3.0, np.nan]], np.float32)
    frame = FrameDepth(np.zeros((2, 2, 3), np.uint8), Camera(2, 2, 1.0, 1.0, 0.5, 0.5), whole, whole)
    solid = FrameDepth(frame.rgb, frame.camera, whole, whole, solid_m=np.where(whole == 2.0, np.nan, whole))
    outputs = Outputs(remapped(), OutputConfig(depth_encoding=encoding))
    outputs._depth = SimpleNamespace(publish=published.append)

    def depth(of, depth_solid):
        settings = OutputConfig(depth_encoding=encoding, depth_solid=depth_solid)
        assert outputs.publish(of, Header(), ONLY_DEPTH, settings)
        return np.frombuffer(published[-1].data, kind)

    np.testing.assert_array_equal(depth(solid, True), [unit, unknown, 3 * unit, unknown])
    np.testing.assert_array_equal(depth(solid, False), [unit, 2 * unit, 3 * unit, unknown])
    np.testing.assert_array_equal(depth(frame, True), [unit, 2 * unit, 3 * unit, unknown])
    outputs.close()
