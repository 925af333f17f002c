"""The camera's motion from two pictures and points of known depth, in a world of textured boards."""

import numpy as np
import pytest

from marigold_ros.picture_motion import working_picture
from marigold_ros.visual_odometry import motion_between
from textured_world import CAMERA, moved, picture, points


def grey(rgb):
    return np.rint(working_picture(rgb, CAMERA)).astype(np.uint8)


def found(after, seed=0, change=None, **options):
    """The motion from the origin to a pose, the points changed by `change`."""
    rgb, depth_m = picture()
    pixels, known_m = points(depth_m)
    if change is not None:
        known_m = change(known_m)
    there, _ = picture(after, seed)
    return motion_between(grey(rgb), grey(there), pixels, known_m, CAMERA, **options)


def apart(one, other):
    """Metres and degrees."""
    between = np.linalg.inv(one) @ other
    turn = np.rad2deg(np.arccos(np.clip((np.trace(between[:3, :3]) - 1) / 2, -1, 1)))
    return np.linalg.norm(one[:3, 3] - other[:3, 3]), turn


@pytest.mark.parametrize(
    "pose", [moved(), moved(ahead_m=0.2), moved(right_m=0.1), moved(yaw_deg=2.0), moved(0.05, 0.1, -1.5)]
)
def test_the_motion_is_told_in_metres(pose):
    shift_m, turn_deg = apart(found(pose), pose)
    assert shift_m < 0.015
    assert turn_deg < 0.1


def test_points_that_are_wrong_or_went_their_own_way_do_not_count():
    """30 % of them are at half or twice their distance."""
    random, pose = np.random.default_rng(0), moved(0.05, 0.15, 1.0)

    def wrong(depth_m):
        factor = np.where(random.random(len(depth_m)) < 0.5, 0.5, 2.0)
        return np.where(random.random(len(depth_m)) < 0.3, depth_m * factor, depth_m)

    shift_m, turn_deg = apart(found(pose, change=wrong), pose)
    assert shift_m < 0.02
    assert turn_deg < 0.15


def test_the_depths_give_the_scale():
    """With all depths half as large the same pictures are of half the motion."""
    pose = moved(ahead_m=0.2)
    half = found(pose, change=lambda depth_m: depth_m * 0.5)
    np.testing.assert_allclose(half[:3, 3], 0.5 * pose[:3, 3], atol=0.01)


def test_a_large_turn_is_found_where_the_picture_is_known_to_have_moved():
    """12 degrees are 60 pixels, more than can be searched."""
    pose = moved(yaw_deg=12.0)
    shift_px = np.array([-CAMERA.fx * np.tan(np.deg2rad(12.0)), 0.0])
    _, turn_deg = apart(found(pose, shift_px=shift_px), pose)
    assert turn_deg < 0.3
    blind = found(pose)
    assert blind is None or apart(blind, pose)[1] > 3.0


def test_what_cannot_be_told_is_none():
    assert found(moved(), seed=1) is None  # another view
    rgb, depth_m = picture()
    pixels, known_m = points(depth_m)
    blank = np.full_like(grey(rgb), 90)
    assert motion_between(blank, blank, pixels, known_m, CAMERA) is None
    assert motion_between(grey(rgb), grey(rgb), pixels[:10], known_m[:10], CAMERA) is None
    assert motion_between(grey(rgb), grey(rgb), pixels[:0], known_m[:0], CAMERA) is None
