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
    listener = TfListener(None)
    extrinsic = TfExtrinsic(listener, "")
    extrinsic.forget()
    listener.close()
    assert listener.buffer.cleared == 1
    assert not listener._listener.listening


def test_without_tf2_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    with pytest.raises(Unusable, match=r"range2\.extrinsic='static' with range2\.translation_m"):
        TfListener(None, "range2")


SECOND = 1_000_000_000
OFFSETS_S = np.linspace(-0.08, 0.02, 500, dtype=np.float32)


def sweep_of(listener, offset_s=OFFSETS_S, fixed_frame="odom"):
    extrinsic = TfExtrinsic(listener, fixed_frame)
    return extrinsic.sweep("camera", 5 * SECOND, "lidar", 5 * SECOND, offset_s, 0.01)


@pytest.fixture
def moving(tf2, monkeypatch):
    monkeypatch.setenv("FAKE_TF2_MOTION", "0.5 2.0")
    return TfListener(None)


def test_a_sweep_is_known_at_a_few_times_of_the_scan(moving):
    sweep = sweep_of(moving)
    asked_s = [(source_ns - 5 * SECOND) * 1e-9 for _, _, _, source_ns, _ in moving.buffer.asked]
    np.testing.assert_allclose(asked_s, np.linspace(-0.08, 0.02, 5), atol=1e-8)
    np.testing.assert_allclose(sweep.times_s, asked_s, atol=1e-8)
    assert (sweep.turned_rad, sweep.moved_m) == (pytest.approx(0.05, rel=1e-3), pytest.approx(0.2, rel=0.05))
    assert sweep.time_error_s == 0.01


def test_times_that_tf2_does_not_know_yet_are_left_out(moving):
    moving.buffer.newest_ns = 5 * SECOND
    np.testing.assert_allclose(sweep_of(moving).times_s, [-0.08, -0.055, -0.03, -0.005], atol=1e-8)
    moving.buffer.newest_ns = 4 * SECOND
    assert sweep_of(moving) is None


def test_how_fast_the_robot_moves_is_known_without_times_of_the_points(moving):
    for offset_s, end_s in ((None, 0.0), (np.full(7, 0.01, np.float32), 0.01)):
        sweep = sweep_of(moving, offset_s)
        np.testing.assert_allclose(sweep.times_s, [end_s - 0.05, end_s], atol=1e-8)
        assert sweep.turned_rad == pytest.approx(0.025, rel=1e-3)


def test_without_a_fixed_frame_nothing_is_known_of_motion(moving):
    assert sweep_of(moving, fixed_frame="") is None
    assert not moving.buffer.asked
    assert StaticExtrinsic(STATIC).sweep("camera", 0, "lidar", 0, OFFSETS_S, 0.01) is None
