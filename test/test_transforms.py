"""Where the LiDAR sits. tf2_ros is not on PyPI, so `fake_tf2/tf2_ros.py` stands in for it: what is tested is what we
ask of it and how we take its answers, not tf2 itself."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
from rclpy.time import Time

from marigold_ros.config import Fault, RangeConfig, Unusable
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
    found, unmoved = StaticExtrinsic(STATIC).camera_from_lidar("any", 0, "other", 0)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-12)
    assert unmoved is None


def test_tf2_is_asked_at_the_time_of_the_scan(tf2):
    extrinsic = TfExtrinsic(TfListener(None), fixed_frame="")
    found, unmoved = extrinsic.camera_from_lidar("camera", 50, "lidar", 40)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-12)
    assert unmoved is None
    assert extrinsic._buffer.asked == [("camera", "lidar", 40)]


def test_with_a_fixed_frame_both_times_count(tf2):
    extrinsic = TfExtrinsic(TfListener(None), fixed_frame="odom")
    found, unmoved = extrinsic.camera_from_lidar("camera", 50, "lidar", 40)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-12)
    assert unmoved is None
    assert extrinsic._buffer.asked == [("camera", 50, "lidar", 40, "odom")]


def test_a_missing_transform_names_both_frames(tf2):
    with pytest.raises(Unusable, match="no transform from 'roof' to 'camera'"):
        TfExtrinsic(TfListener(None), "").camera_from_lidar("camera", 0, "roof", 0)


SECOND = 1_000_000_000


@pytest.fixture
def silent(tf2):
    """Of what moves, nothing came since the fifth second."""
    listener = TfListener(None)
    listener.buffer.newest_ns = 5 * SECOND
    return listener


def refusal(extrinsic, image_s, scan_s=None):
    scan_s = image_s if scan_s is None else scan_s
    with pytest.raises(Unusable) as caught:
        extrinsic.camera_from_lidar("camera", round(image_s * SECOND), "lidar", round(scan_s * SECOND))
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("fixed_frame", ["", "odom"])
def test_a_transform_that_is_late_passes_and_one_that_never_comes_is_a_fault(silent, fixed_frame):
    extrinsic = TfExtrinsic(silent, fixed_frame)
    extrinsic.camera_from_lidar("camera", 5 * SECOND, "lidar", 5 * SECOND)
    kinds = [refusal(extrinsic, 5.1 + i / 4)[0] for i in range(6)]
    assert kinds == 5 * [Unusable] + [Fault]
    silent.buffer.newest_ns = 7 * SECOND  # it came after all
    extrinsic.camera_from_lidar("camera", 7 * SECOND, "lidar", 7 * SECOND)
    assert refusal(extrinsic, 9.0)[0] is Unusable


def test_where_odometry_alone_is_late_the_mount_serves_with_the_reason(silent, monkeypatch):
    """As of LiDAR odometry, which is known 60 ms after the scan: never when an image is answered."""
    static, moving = silent.buffer.lookup_transform, silent.buffer.lookup_transform_full

    def lookup_transform(*asked):
        newest_ns, silent.buffer.newest_ns = silent.buffer.newest_ns, None
        try:
            return static(*asked)
        finally:
            silent.buffer.newest_ns = newest_ns

    monkeypatch.setattr(silent.buffer, "lookup_transform", lookup_transform)
    extrinsic = TfExtrinsic(silent, "odom")
    for image_s in (5.1, 6.0, 7.0, 8.0):
        found, unmoved = extrinsic.camera_from_lidar("camera", round(image_s * SECOND), "lidar", 5 * SECOND)
        np.testing.assert_allclose(found, EXPECTED, atol=1e-12)
        assert f"the newest is {image_s - 5:.3f} s older than the image" in unmoved
        assert extrinsic.sweep("camera", round(image_s * SECOND), "lidar", round(image_s * SECOND), None, 0.0) is None
    monkeypatch.setattr(silent.buffer, "lookup_transform_full", lambda *asked: moving(*asked))
    assert extrinsic.camera_from_lidar("camera", 5 * SECOND, "lidar", 5 * SECOND)[1] is None


def test_one_late_lookup_passes_however_late_it_is(silent):
    assert refusal(TfExtrinsic(silent, ""), 1000.0)[0] is Unusable


def test_the_transform_that_never_comes_is_named_with_its_age_and_the_way_out(silent):
    _, said = refusal(TfExtrinsic(silent, ""), 8.0, 8.25)
    assert "no transform from 'lidar' to 'camera' at the time of the scan: the newest is 3.250 s older" in said
    assert "is its publisher alive (ros2 run tf2_ros tf2_monitor camera lidar)" in said
    assert "do the clocks agree (use_sim_time)?" in said
    # With a fixed frame either way may be what is missing: that of the later time is farther off.
    _, said = refusal(TfExtrinsic(silent, "odom"), 8.0, 8.25)
    assert "no transform from 'lidar' to 'odom' at the time of the scan: the newest is 3.250 s older" in said
    _, said = refusal(TfExtrinsic(silent, "odom"), 8.5, 8.25)
    assert "no transform from 'camera' to 'odom' at the time of the image: the newest is 3.500 s older" in said


def test_what_comes_early_is_not_what_is_missing(silent, monkeypatch):
    """Odometry is ahead of the image, and the LiDAR's mount behind its scan."""
    newest_s = {"camera": 5.5, "lidar": 4.9}
    monkeypatch.setattr(
        silent.buffer, "get_latest_common_time", lambda target, source: Time(nanoseconds=int(newest_s[source] * 1e9))
    )
    silent.buffer.newest_ns = 4 * SECOND
    assert (
        "'lidar' to 'odom' at the time of the scan: the newest is 0.100 s older"
        in refusal(TfExtrinsic(silent, "odom"), 5.0)[1]
    )


def test_transforms_of_another_clock_are_a_fault_too(silent, monkeypatch):
    """Stamps count from the sensor's boot, /tf from 1970: tf2 knows no time as old."""

    def too_old(*asked):
        raise sys.modules["tf2_ros"].ExtrapolationException("Lookup would require extrapolation into the past")

    monkeypatch.setattr(silent.buffer, "lookup_transform", too_old)
    silent.buffer.newest_ns = 1000 * SECOND
    extrinsic = TfExtrinsic(silent, "")
    said = [refusal(extrinsic, image_s) for image_s in (7.0, 8.0, 9.0)]
    assert [kind for kind, _ in said] == [Unusable, Unusable, Fault]
    assert "the newest is 991.000 s newer than the scan" in said[2][1]


def test_after_time_went_back_what_moves_may_be_late_once_more(silent):
    extrinsic = TfExtrinsic(silent, "")
    assert [refusal(extrinsic, image_s)[0] for image_s in (100.0, 102.0, 104.0)] == [Unusable, Unusable, Fault]
    extrinsic.forget()
    silent.buffer.newest_ns = -1
    said = [refusal(extrinsic, image_s) for image_s in (6.0, 8.0, 10.0)]
    assert [kind for kind, _ in said] == [Unusable, Unusable, Fault]
    assert "no transform from 'lidar' to 'camera': Lookup would require" in said[2][1]


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
