"""Depth as a picture for people."""

import numpy as np

from marigold_ros.visual import colour_map


def test_near_is_red_far_is_blue_unknown_is_black():
    depth_m = np.float32([[0.1, 9.0, np.nan, 500.0]])
    near, far, unknown, beyond = colour_map(depth_m, 10.0)[0].astype(int)  # BGR
    assert near[2] > near[0]
    assert far[0] > far[2]
    assert not unknown.any()
    assert beyond.any()


def test_the_far_end_follows_the_frame():
    ramp = np.linspace(1.0, 5.0, 6400, dtype=np.float32).reshape(64, 100)
    np.testing.assert_array_equal(colour_map(ramp, 0.0)[:, :80], colour_map(10 * ramp, 0.0)[:, :80])


def test_nothing_known_is_all_black():
    assert not colour_map(np.full((16, 16), np.nan, np.float32), 0.0).any()
