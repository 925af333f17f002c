"""Names and wants; the publishing itself is tested over DDS in test_depth_node.py."""

import pytest

pytest.importorskip("rclpy")
from marigold_ros.outputs import Wanted, info_topic


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


def test_only_metric_outputs_ask_for_a_fit():
    assert not Wanted(relative=True, depth=False, points=False, visual=False).metric
    assert Wanted(relative=False, depth=False, points=False, visual=True).metric
    assert not Wanted(relative=False, depth=False, points=False, visual=False, confidence=True).metric
    assert Wanted(relative=False, depth=False, points=False, visual=False, confidence=True).anything
    assert Wanted(relative=False, depth=False, points=False, visual=False, sigma=True).metric
    assert not Wanted(relative=False, depth=False, points=False, visual=False).anything
