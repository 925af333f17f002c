"""Anchors: what of a scan falls into the image."""

import numpy as np
import pytest

from marigold_ros.anchors import find_anchors
from marigold_ros.config import RangeConfig
from marigold_ros.geometry import Camera

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
