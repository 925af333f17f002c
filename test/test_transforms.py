"""Where the LiDAR sits. tf2_ros is not on PyPI, so `fake_tf2/tf2_ros.py` stands in for it: what is tested is what we
ask of it and how we take its answers, not tf2 itself."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
from marigold_ros.config import RangeConfig, Unusable
from marigold_ros.transforms import StaticExtrinsic, TfExtrinsic, TfListener
from ros_harness import ROTATION_XYZW, TRANSLATION_M

FAKE = Path(__file__).resolve().parent / "fake_tf2"
STATIC = RangeConfig(extrinsic="static", translation_m=tuple(TRANSLATION_M), rotation_xyzw=tuple(ROTATION_XYZW))
# x forward, y left, z up -> x right, y down, z forward
EXPECTED = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, 0.05], [0, 0, 0, 1]])


@pytest.fixture
def tf2(monkeypatch):
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.delitem(sys.modules, "tf2_ros", raising=False)
    yield
    sys.modules.pop("tf2_ros", None)


def test_the_static_extrinsic_is_what_the_parameters_say():
    found = StaticExtrinsic(STATIC).camera_from_lidar("any", 0, "other", 0)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-12)


def test_tf2_is_asked_at_the_time_of_the_scan(tf2):
    extrinsic = TfExtrinsic(TfListener(None), fixed_frame="")
    np.testing.assert_allclose(extrinsic.camera_from_lidar("camera", 50, "lidar", 40), EXPECTED, atol=1e-12)
    assert extrinsic._buffer.asked == [("camera", "lidar", 40)]


def test_with_a_fixed_frame_both_times_count(tf2):
    extrinsic = TfExtrinsic(TfListener(None), fixed_frame="odom")
    np.testing.assert_allclose(extrinsic.camera_from_lidar("camera", 50, "lidar", 40), EXPECTED, atol=1e-12)
    assert extrinsic._buffer.asked == [("camera", 50, "lidar", 40, "odom")]


def test_a_missing_transform_names_both_frames(tf2):
    with pytest.raises(Unusable, match="no transform from 'roof' to 'camera'"):
        TfExtrinsic(TfListener(None), "").camera_from_lidar("camera", 0, "roof", 0)


@pytest.mark.parametrize("frames", [("", "lidar"), ("camera", "")])
def test_headers_need_frames(tf2, frames):
    with pytest.raises(Unusable, match=r"header\.frame_id=''"):
        TfExtrinsic(TfListener(None), "").camera_from_lidar(frames[0], 0, frames[1], 0)


def test_time_going_back_clears_and_close_unsubscribes(tf2):
    extrinsic = TfExtrinsic(None, "")
    extrinsic.forget()
    extrinsic.close()
    assert extrinsic._buffer.cleared == 1
    assert not extrinsic._listener.listening


def test_without_tf2_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    with pytest.raises(Unusable, match=r"range\.extrinsic='static'"):
        make_extrinsic(None, RangeConfig(extrinsic="tf"))


@pytest.mark.parametrize("settings", [STATIC, RangeConfig(type="none")])
def test_tf2_is_not_needed_where_it_is_not_asked(monkeypatch, settings):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    assert isinstance(make_extrinsic(None, settings), StaticExtrinsic)
