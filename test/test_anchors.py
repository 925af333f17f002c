"""Anchors: what of a scan falls into the image."""

import numpy as np
import pytest

from marigold_ros.anchors import Scan, anchors_of, find_anchors
from marigold_ros.config import Range2Config, RangeConfig, Unusable
from marigold_ros.geometry import Camera
from marigold_ros.sweep import Sweep

CAMERA = Camera(320, 240, 200.0, 200.0, 159.5, 119.5)
LIMITS = RangeConfig()
# LiDAR x forward, y left, z up -> camera x right, y down, z forward, mounted 0.2 m above it.
CAMERA_FROM_LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, -0.2], [1, 0, 0, 0], [0, 0, 0, 1]], float)


def plane_of_points(x_m: float, count: int = 400) -> np.ndarray:
    """Points of a wall `x_m` ahead of the LiDAR."""
    y, z = np.random.default_rng(0).uniform(-0.5, 0.5, (2, count)) * x_m
    return np.stack([np.full(count, x_m), y, z], axis=1).astype(np.float32)


def test_a_point_straight_ahead_lands_where_the_mounting_says():
    anchors = find_anchors(np.array([[4.0, 1.0, 0.0]], np.float32), CAMERA_FROM_LIDAR, CAMERA, LIMITS)
    np.testing.assert_allclose(anchors.pixels, [[159.5 - 50, 119.5 - 10]], atol=1e-4)
    np.testing.assert_allclose(anchors.depth_m, [4.0])


def test_missing_behind_near_far_and_outside_points_are_dropped():
    points = np.array(
        [[np.nan, 0, 0], [0, 0, 0], [-5, 0, 0], [0.1, 0, 0], [500, 0, 0], [5, 50, 0], [np.inf, 0, 0], [5, 0, 0]],
        np.float32,
    )
    anchors = find_anchors(points, CAMERA_FROM_LIDAR, CAMERA, LIMITS)
    assert len(anchors) == 1
    assert anchors.seen == 5


INSIDE = [(-0.5, 0.0), (0.0, -0.5), (3.49, 2.49), (1.0, 2.0)]
OUTSIDE = [(3.5, 0.0), (0.0, 2.5), (-0.51, 0.0), (0.0, 2.51)]


@pytest.mark.parametrize("pixel", INSIDE + OUTSIDE)
def test_the_image_ends_where_its_last_pixels_do_for_anchors_and_for_all_others(pixel):
    """Nothing at the far end would round to a pixel that is none."""
    camera = Camera(4, 3, 1.0, 1.0, 0.0, 0.0)
    anchors = find_anchors(np.float32([[*pixel, 1.0]]), np.eye(4), camera, LIMITS)
    assert len(anchors) == (pixel in INSIDE)
    assert camera.contains(np.array([pixel])).tolist() == [pixel in INSIDE]
    # A point of nowhere, as what lies behind the camera is projected to, is not in it.
    assert not camera.contains(np.array([[np.nan, 1.0], [np.inf, 1.0]])).any()


@pytest.mark.parametrize("points", [np.empty((0, 3), np.float32), np.full((9, 3), np.nan, np.float32)])
def test_an_empty_scan_gives_no_anchors(points):
    assert len(find_anchors(points, CAMERA_FROM_LIDAR, CAMERA, LIMITS)) == 0


def test_too_many_anchors_are_thinned_out_evenly():
    rng = np.random.default_rng(3)
    crowd = np.stack([np.full(20000, 5.0), rng.uniform(0.5, 1.0, 20000), rng.uniform(0, 0.5, 20000)], 1)
    sparse = np.stack([np.full(50, 5.0), rng.uniform(-3, -2, 50), rng.uniform(-2, -1, 50)], 1)
    limits = RangeConfig(max_points=1000)
    anchors = find_anchors(np.concatenate([crowd, sparse]).astype(np.float32), CAMERA_FROM_LIDAR, CAMERA, limits)
    assert len(anchors) == 1000
    assert np.count_nonzero(anchors.pixels[:, 0] > 200) == 50


def test_points_behind_a_nearer_surface_lose_weight_but_stay():
    # The wall's points show through a box as parallax lets them: same pixels, much deeper.
    box, wall = plane_of_points(2.0), plane_of_points(8.0)
    anchors = find_anchors(np.concatenate([box, wall]), CAMERA_FROM_LIDAR, CAMERA, LIMITS)
    assert anchors.weight[anchors.depth_m < 3].min() == 1.0
    assert np.mean(anchors.weight[anchors.depth_m > 7] < 1.0) > 0.9


def test_one_raindrop_does_not_hide_a_wall():
    drop = np.array([[1.0, 0.0, 0.0]], np.float32)
    anchors = find_anchors(np.concatenate([drop, plane_of_points(8.0)]), CAMERA_FROM_LIDAR, CAMERA, LIMITS)
    assert anchors.weight.min() == 1.0


# Noise


def one_point(limits, depth_m=10.0, sweep=None):
    points = np.array([[depth_m, 0.0, 0.0]], np.float32)
    return anchors_of([Scan(points, CAMERA_FROM_LIDAR, limits, sweep)], CAMERA, LIMITS)


@pytest.mark.parametrize(
    ("settings", "noise_m", "noise_px"),
    [
        ({}, 0.03, 1.5),
        ({"type": "laserscan"}, 0.03, 1.5),
        ({"type": "depth_image"}, 0.02 + 0.002 * 100, 1.5),
        ({"type": "radar"}, 0.25, 8.0),
        ({"type": "radar", "noise_m": 0.1}, 0.1, 8.0),
        ({"noise_m": 0.01, "noise_growth": 0.004, "noise_px": 3.0}, 0.01 + 0.004 * 100, 3.0),
    ],
)
def test_noise_is_the_sensor_s_own(settings, noise_m, noise_px):
    anchors = one_point(RangeConfig(**settings))
    np.testing.assert_allclose((anchors.noise_m[0], anchors.noise_px[0]), (noise_m, noise_px), rtol=1e-6)
    assert anchors.noise_m.dtype == anchors.noise_px.dtype == np.float32


def test_motion_during_an_unknown_time_is_noise_in_the_image():
    poses = np.stack([np.eye(4), np.eye(4)])
    poses[1, 0, 3] = 0.1  # 1 m/s sideways: 0.05 m in the 0.05 s that are not known; at 5 m 2 px of 200
    anchors = one_point(LIMITS, 5.0, Sweep(np.array([0.0, 0.1]), poses, 0.05))
    np.testing.assert_allclose(anchors.noise_px, [2.5], rtol=1e-5)
    np.testing.assert_allclose(anchors.pixels, one_point(LIMITS, 5.0).pixels)


def test_points_with_times_are_moved_each_from_its_own():
    poses = np.stack([CAMERA_FROM_LIDAR, CAMERA_FROM_LIDAR])
    poses[1, 2, 3] += 1.0
    offset_s = np.array([0.0, 0.05, 0.1], np.float32)
    points = np.repeat(np.array([[5.0, 0.0, 0.0]], np.float32), 3, axis=0)
    scan = Scan(points, CAMERA_FROM_LIDAR, LIMITS, Sweep(np.array([0.0, 0.1]), poses, 0.005), offset_s=offset_s)
    np.testing.assert_allclose(anchors_of([scan], CAMERA, LIMITS).depth_m, [5.0, 5.5, 6.0], atol=0.003)


@pytest.mark.parametrize("points", [np.array([[-5.0, 0, 0]] * 3, np.float32), np.full((3, 3), np.nan, np.float32)])
def test_a_moving_scan_of_which_nothing_is_seen_gives_no_anchors(points):
    poses = np.stack([CAMERA_FROM_LIDAR, CAMERA_FROM_LIDAR])
    poses[1, 2, 3] += 1.0
    sweep = Sweep(np.array([0.0, 0.1]), poses, 0.005)
    for count in (3, 0):
        scan = Scan(points[:count], CAMERA_FROM_LIDAR, LIMITS, sweep, offset_s=np.zeros(count, np.float32))
        assert len(anchors_of([scan], CAMERA, LIMITS)) == 0


@pytest.mark.filterwarnings("error")
def test_points_at_the_lens_do_not_make_noise():
    limits = RangeConfig(min_depth_m=0.0)
    points = np.array([[1e-38, 1.0, 0.0], [np.inf, 0, 0], [np.nan, 0, 0], [1e20, 1e20, 0], [4, 0, 0]], np.float32)
    np.testing.assert_allclose(find_anchors(points, CAMERA_FROM_LIDAR, CAMERA, limits).depth_m, [4.0])


# Several sensors

TOF = RangeConfig(type="depth_image")


def scan_of(points, limits=LIMITS) -> Scan:
    return Scan(points, CAMERA_FROM_LIDAR, limits)


def test_sensors_stand_side_by_side_each_with_its_noise():
    lidar, tof = plane_of_points(8.0, 30), plane_of_points(7.5, 20)
    anchors = anchors_of([scan_of(lidar), scan_of(tof, TOF)], CAMERA, LIMITS)
    alone = [find_anchors(points, CAMERA_FROM_LIDAR, CAMERA, LIMITS) for points in (lidar, tof)]
    np.testing.assert_array_equal(anchors.pixels, np.concatenate([one.pixels for one in alone]))
    np.testing.assert_array_equal(anchors.depth_m, np.concatenate([one.depth_m for one in alone]))
    assert (anchors.seen, len(anchors)) == (50, sum(map(len, alone)))
    np.testing.assert_allclose(anchors.noise_m[: len(alone[0])], 0.03)
    np.testing.assert_allclose(anchors.noise_m[len(alone[0]) :], 0.02 + 0.002 * 7.5**2, rtol=1e-5)


def test_what_one_sensor_sees_hides_what_another_sees_behind():
    near, wall = plane_of_points(2.0), plane_of_points(8.0)
    anchors = anchors_of([scan_of(wall), scan_of(near, TOF)], CAMERA, LIMITS)
    assert np.mean(anchors.weight[anchors.depth_m > 7] < 1.0) > 0.9
    assert anchors.weight[anchors.depth_m < 3].min() == 1.0
    assert anchors.weight.min() > 0


def test_the_same_raindrop_in_every_sensor_does_not_hide_a_wall():
    drop = np.array([[1.0, 0.0, 0.0]], np.float32)
    wall = plane_of_points(8.0)
    scans = [scan_of(np.concatenate([drop, wall[:200]])), scan_of(drop, TOF), scan_of(np.concatenate([drop, wall]))]
    anchors = anchors_of(scans, CAMERA, LIMITS)
    assert np.count_nonzero(anchors.depth_m < 2) == 3
    assert anchors.weight.min() == 1.0


def counts_of(sizes, budget, caps=()):
    """Anchors of each of several sensors, which see their walls at different depths."""
    caps = caps or [1_000_000] * len(sizes)
    walls = [plane_of_points(5.0 + 0.1 * i, size) for i, size in enumerate(sizes)]
    seen = [w[np.abs(w[:, 1:] / w[:, :1]).max(axis=1) < 0.49] for w in walls]
    scans = [scan_of(w, RangeConfig(max_points=cap)) for w, cap in zip(seen, caps, strict=True)]
    anchors = anchors_of(scans, CAMERA, RangeConfig(max_points=budget))
    return [len(w) for w in seen], [
        np.count_nonzero(np.isclose(anchors.depth_m, 5.0 + 0.1 * i)) for i in range(len(sizes))
    ]


def test_a_dense_sensor_does_not_crowd_out_a_sparse_one():
    (_, few), used = counts_of((9000, 100), 1000)
    assert used == [1000 - few, few]


def test_a_budget_is_shared_evenly_among_those_who_need_it():
    (_, few, _), used = counts_of((5000, 50, 5000), 1001)
    assert used[1] == few
    assert sum(used) == 1001
    assert abs(used[0] - used[2]) <= 1


def test_a_sensor_s_own_limit_leaves_more_to_the_others():
    _, used = counts_of((5000, 5000), 1000, caps=(5000, 200))
    assert used == [800, 200]


def test_no_scan_gives_no_anchors():
    assert len(anchors_of([], CAMERA, LIMITS)) == 0


# The robot's own body


def test_points_on_the_robot_itself_are_dropped():
    mast, wall = plane_of_points(0.5), plane_of_points(8.0)
    boxed = RangeConfig(self_box_m=(-0.6, -0.6, -1.0, 0.6, 0.6, 0.3))
    anchors = anchors_of([scan_of(np.concatenate([mast, wall]), boxed)], CAMERA, LIMITS)
    outside = mast[mast[:, 2] > 0.3]
    seen = find_anchors(np.concatenate([outside, wall]), CAMERA_FROM_LIDAR, CAMERA, LIMITS)
    np.testing.assert_array_equal(anchors.depth_m, seen.depth_m)
    assert anchors.seen == 800


def test_the_box_is_in_the_sensor_s_frame_and_its_own():
    point = np.array([[2.0, 0.5, 0.0]], np.float32)
    boxed = RangeConfig(self_box_m=(1.9, 0.4, -0.1, 2.1, 0.6, 0.1))
    assert len(anchors_of([scan_of(point, boxed), scan_of(point)], CAMERA, LIMITS)) == 1


def test_too_near_to_the_sensor_is_dropped_whatever_its_depth():
    points = np.array([[0.5, 0.1, 0.0], [1.2, 0.3, 0.0]], np.float32)
    anchors = anchors_of([scan_of(points, RangeConfig(min_range_m=1.0))], CAMERA, LIMITS)
    np.testing.assert_allclose(anchors.depth_m, [1.2])


@pytest.mark.parametrize("box", [(1.0, 0, 0, -1.0, 0, 0), (0, 0, 0.1, 1, 1, 0)])
def test_a_box_upside_down_is_refused(box):
    with pytest.raises(Unusable, match=r"range2\.self_box_m=.*least x y z, then the greatest"):
        Range2Config(self_box_m=box)
