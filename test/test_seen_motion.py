"""Odometry from what the camera sees: used where nobody else knows and it counts, chained, and for scans of then."""

from dataclasses import replace

import numpy as np
import pytest

from marigold_ros import seen_motion
from marigold_ros.anchors import Anchors, Scan, anchors_of
from marigold_ros.config import RangeConfig
from marigold_ros.field import evidence_of
from marigold_ros.geometry import transformed
from marigold_ros.metric import FittedDepth
from marigold_ros.motion import unknown_motion
from marigold_ros.picture_motion import PictureTrack
from marigold_ros.seen_motion import SeenMotion
from marigold_ros.visual_odometry import motion_between
from textured_world import CAMERA, moved, picture, points

TENTH = 100_000_000
# Ahead and to the right, turning.
PATH = [moved(0.04 * step, 0.08 * step, 0.8 * step) for step in range(5)]


def anchors(depth_m, step=6):
    pixels, known_m = points(depth_m, step)
    return Anchors(pixels, known_m, np.ones(len(known_m), np.float32), len(known_m))


@pytest.fixture
def asked(monkeypatch):
    """How often the motion between two images was worked out."""
    calls = []
    monkeypatch.setattr(seen_motion, "motion_between", lambda *a: calls.append(1) or motion_between(*a))
    return calls


def drive(count, remember=lambda step: True):
    """What has seen so many images of the path, with anchors everywhere in those of `remember`."""
    seen = SeenMotion(PictureTrack())
    for step in range(count):
        rgb, depth_m = picture(PATH[step])
        seen.see(step * TENTH, rgb, CAMERA)
        if remember(step) and step < count - 1:
            seen.remember(evidence_of(FittedDepth.of_metres(depth_m), anchors(depth_m), 0.02))
    return seen


def error(found, then, now):
    """Metres and radians, about."""
    return np.abs(found - PATH[now] @ np.linalg.inv(PATH[then])).max()


def test_the_motion_is_chained_over_images(asked):
    motion = drive(4).until_now(unknown_motion)
    assert error(motion.seen_since(2 * TENTH), 2, 3) < 0.02
    assert error(motion.seen_since(0), 0, 3) < 0.04
    assert len(asked) == 3  # nothing is worked out twice
    assert motion.seen_since(TENTH // 2) is None  # there was no image
    np.testing.assert_array_equal(motion.seen_since(3 * TENTH), np.eye(4))


def test_what_is_found_again_are_the_anchors_that_are_believed_with_their_own_depths(monkeypatch):
    """A quarter is measured at half of its depth."""
    asked_of = []
    monkeypatch.setattr(seen_motion, "motion_between", lambda *given: asked_of.append(given))
    seen, (rgb, depth_m) = SeenMotion(PictureTrack()), picture()
    seen.see(0, rgb, CAMERA)
    found = anchors(depth_m)
    found.depth_m[np.random.default_rng(0).random(len(found)) < 0.25] *= np.float32(0.5)
    seen.remember(evidence_of(FittedDepth.of_metres(depth_m), found, 0.02))
    seen.see(TENTH, rgb, CAMERA)
    seen.until_now(unknown_motion).seen_since(0)
    ((_, _, pixels, known_m, *_),) = asked_of
    assert len(pixels) > 0.7 * len(found)
    u, v = pixels.astype(int).T
    np.testing.assert_allclose(known_m, depth_m[v, u], rtol=1e-3)


def test_what_is_known_or_not_asked_for_is_not_worked_out(asked):
    seen, known = drive(3), np.eye(4)
    found, doubt = seen.until_now(lambda then_ns: known).since(TENTH)
    assert found is known
    assert doubt == 0
    seen.until_now(unknown_motion).shift_since(TENTH)
    assert asked == []
    found, doubt = seen.until_now(unknown_motion).since(TENTH)
    assert error(found, 1, 2) < 0.02
    assert 0 < doubt < 1
    assert asked == [1]


def test_what_was_asked_for_once_is_worked_out_with_the_next_image(asked):
    seen = drive(2)
    assert asked == []
    seen.until_now(unknown_motion).seen_since(0)
    depth_m = picture(PATH[1])[1]
    seen.remember(evidence_of(FittedDepth.of_metres(depth_m), anchors(depth_m), 0.02))
    rgb, depth_m = picture(PATH[2])
    seen.see(2 * TENTH, rgb, CAMERA)
    assert asked == [1, 1]
    assert error(seen.until_now(unknown_motion).seen_since(0), 0, 2) < 0.03
    assert asked == [1, 1]
    for step in (3, 4):
        seen.remember(evidence_of(FittedDepth.of_metres(depth_m), anchors(depth_m), 0.02))
        rgb, depth_m = picture(PATH[step])
        seen.see(step * TENTH, rgb, CAMERA)
    assert asked == [1, 1, 1]  # and no more when nobody asked again


def test_where_an_image_has_no_points_the_way_on_is_unknown():
    motion = drive(4, remember=lambda step: step != 1).until_now(unknown_motion)
    assert error(motion.seen_since(2 * TENTH), 2, 3) < 0.02
    assert motion.seen_since(TENTH) is None
    assert motion.seen_since(0) is None


def yaw_deg(scan):
    """By how much points ahead are turned rightwards."""
    ahead = scan.camera_from_lidar[:3, 2]
    return np.degrees(np.arctan2(ahead[0], ahead[2]))


def test_a_scan_of_an_earlier_image_is_moved_with_the_camera():
    seen, pose = drive(4), np.eye(4)
    scan = Scan(np.zeros((0, 3), np.float32), pose, age_s=0.2)
    found = seen.in_time(scan)
    assert found.age_s == 0.0
    assert error(found.camera_from_lidar, 1, 3) < 0.03
    # Between two images: from the nearer one by the camera's motion, until that with the picture.
    found = seen.in_time(Scan(scan.points, pose, age_s=0.14))
    assert error(found.camera_from_lidar, 2, 3) < 0.02
    assert yaw_deg(found) == pytest.approx(1.4 * -0.8, abs=0.3)
    now = Scan(scan.points, pose)
    assert seen.in_time(now) is now


def test_a_scan_that_takes_long_is_moved_from_the_image_nearest_to_the_middle_of_its_points_times():
    """A LiDAR at 5 Hz that is stamped at its end, at the time of an image, and whose middle is the image before."""
    scan = Scan(np.zeros((3, 3), np.float32), np.eye(4), age_s=0.1, offset_s=np.float32([-0.2, -0.13, 0.0]))
    found = drive(4).in_time(scan)
    for transform in (found.camera_from_lidar, found.sweep.camera_from_sensor[2]):
        assert error(transform, 1, 3) < 0.03
    assert yaw_deg(found) == pytest.approx(2 * -0.8, abs=0.3)


def test_a_scan_moves_with_the_picture_where_the_cameras_motion_is_unknown():
    seen = drive(4, remember=lambda step: False)
    found = seen.in_time(Scan(np.zeros((0, 3), np.float32), np.eye(4), age_s=0.1))
    np.testing.assert_array_equal(found.camera_from_lidar[:3, 3], [0, 0, 0])
    assert yaw_deg(found) == pytest.approx(-0.8, abs=0.61)
    long_ago = Scan(found.points, np.eye(4), age_s=60.0)
    assert seen.in_time(long_ago) is long_ago


TURN_DEG_S = 60.0


def turning(first=0):
    """What has seen a camera turn right at 10 Hz, until the image of time 0.3 s, where it looks ahead."""
    seen = SeenMotion(PictureTrack())
    for step in range(first, 4):
        seen.see(step * TENTH, picture(moved(yaw_deg=TURN_DEG_S * (step / 10 - 0.3)))[0], CAMERA)
    return seen


def at_times(offset_s):
    """Pixels of points all over the last image, and the points as measured so many seconds from its time on."""
    pixels, depth_m = points(picture()[1], 12)
    inside = np.abs(pixels[:, 0] - CAMERA.cx) < 80
    pixels, depth_m = pixels[inside], depth_m[inside]
    there = np.column_stack([(pixels - (CAMERA.cx, CAMERA.cy)) / CAMERA.fx * depth_m[:, None], depth_m])
    offset_s = np.resize(np.float32(offset_s), len(there))
    then = [transformed(point[None], moved(yaw_deg=TURN_DEG_S * t)) for point, t in zip(there, offset_s, strict=True)]
    return pixels, np.concatenate(then).astype(np.float32), offset_s


def apart_px(scan, pixels):
    """Median and greatest distance of the anchors from where they belong."""
    anchors = anchors_of([scan], CAMERA, RangeConfig())
    apart = np.linalg.norm(anchors.pixels - pixels, axis=1)
    return np.median(apart), apart.max()


def test_a_scan_before_a_turning_camera_is_turned_with_it_to_the_very_edges():
    pixels, measured, _ = at_times([-0.05])
    scan = Scan(measured, np.eye(4), age_s=0.05)
    assert apart_px(scan, pixels)[0] > 13
    assert apart_px(turning().in_time(scan), pixels)[1] < 0.5


def test_points_before_a_turning_camera_are_moved_each_from_its_own_time():
    """A LiDAR that is stamped at its start, with the image, and sees the front 30 to 70 ms later."""
    pixels, measured, offset_s = at_times(np.linspace(0.03, 0.07, 7))
    scan, seen = Scan(measured, np.eye(4)), turning()
    assert apart_px(seen.in_time(scan), pixels)[0] > 13
    in_time = seen.in_time(replace(scan, offset_s=offset_s))
    assert apart_px(in_time, pixels)[1] < 0.7
    # What is not known of their times is noise: 0.3 degrees.
    noise_px = anchors_of([in_time], CAMERA, RangeConfig()).noise_px
    np.testing.assert_allclose(noise_px, np.hypot(1.5, CAMERA.fx * np.deg2rad(0.3)), rtol=0.03)
    assert seen.in_time(in_time) is in_time


def test_a_scan_that_began_before_the_first_image_is_moved_by_what_is_known_of_its_end():
    """It lasted from 0.14 to 0.24 s, and the first image is of 0.2 s: of the middle of the scan nothing is known."""
    pixels, measured, offset_s = at_times(np.linspace(-0.16, -0.06, 7))
    scan = Scan(measured, np.eye(4), age_s=0.06, offset_s=offset_s + np.float32(0.06))
    seen = turning(first=2)
    found = seen.in_time(scan)
    assert apart_px(found, pixels)[1] < 0.7
    np.testing.assert_array_equal(found.camera_from_lidar, found.sweep.camera_from_sensor[0])
    nothing = replace(scan, age_s=0.4)
    assert seen.in_time(nothing) is nothing


def test_points_before_a_standing_camera_stay_whatever_their_times():
    seen = SeenMotion(PictureTrack())
    for step in range(3):
        seen.see(step * TENTH, picture()[0], CAMERA)
    scan = Scan(points_ahead := np.array([[0.3, 0.2, 4.0]] * 3, np.float32), np.eye(4), age_s=0.04)
    found = seen.in_time(replace(scan, offset_s=np.array([0.0, 0.05, 0.1], np.float32)))
    anchors, expected = (anchors_of([one], CAMERA, RangeConfig()) for one in (found, Scan(points_ahead, np.eye(4))))
    np.testing.assert_array_equal(anchors.pixels, expected.pixels)
    np.testing.assert_array_equal(anchors.noise_px, expected.noise_px)


def test_time_that_goes_back_and_another_camera_start_anew():
    for again in (lambda seen: seen.see(TENTH // 2, picture()[0], CAMERA), lambda seen: seen.reset()):
        seen = drive(3)
        again(seen)
        seen.see(10 * TENTH, picture(PATH[3])[0], CAMERA)
        assert seen.until_now(unknown_motion).since(TENTH) == (None, 1.0)


def creep(count, step_m):
    """The motion told of a camera that goes straight ahead, by so much an image."""
    seen, whole = SeenMotion(PictureTrack()), np.eye(4)
    for step in range(count):
        rgb, depth_m = picture(moved(ahead_m=step * step_m))
        seen.see(step * TENTH, rgb, CAMERA)
        if step:
            whole = seen.until_now(unknown_motion).seen_since((step - 1) * TENTH) @ whole
        seen.remember(evidence_of(FittedDepth.of_metres(depth_m), anchors(depth_m), 0.02))
    return whole


def test_who_creeps_does_not_stand_for_ever():
    """2 mm an image move nothing by a tenth of a pixel; all 30 of them do."""
    np.testing.assert_array_equal(creep(3, 0.002), np.eye(4))
    whole = creep(31, 0.002)
    assert whole[2, 3] == pytest.approx(-0.06, abs=0.025)
    assert np.abs(creep(10, 0.0) - np.eye(4)).max() == 0
