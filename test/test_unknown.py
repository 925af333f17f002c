"""What is far beyond all evidence is no depth."""

import math

import numpy as np

from marigold_ros.unknown import Reach, forget_far, reach_of


def same(relative):
    return relative


def test_the_far_end_is_not_the_one_farthest_point():
    depth_m = np.append(np.linspace(1.0, 10.0, 1000), 80.0).astype(np.float32)
    reach = reach_of(depth_m, np.zeros(1001, np.float32), 300, np.zeros((96, 128), np.float32), same)
    assert 9.8 < reach.depth_m < 10.0


def test_what_lies_behind_all_anchors_is_beyond_reach_if_it_is_large():
    """Of 100 parts of the image that anchors lie in, none lies on the tenth of it that is behind them all: were that a
    surface, ten would.
    """
    coarse = np.full((400, 100), 0.6, np.float32)
    coarse[:40] = 0.9
    depth_m, relative = np.full(500, 20.0, np.float32), np.linspace(0.1, 0.7, 500, dtype=np.float32)
    assert 0.69 < reach_of(depth_m, relative, 100, coarse, same).relative <= 0.7
    # Few may have missed it; so may many if it is small.
    assert reach_of(depth_m, relative, 10, coarse, same).relative == math.inf
    coarse[4:] = 0.6
    assert reach_of(depth_m, relative, 100, coarse, same).relative == math.inf
    # A sensor that does not reach far says nothing of it.
    coarse[4:40] = 0.9
    assert reach_of(0.5 * depth_m, relative, 100, coarse, same).relative == math.inf
    # And where some lie on it, or the fit sees it little farther, it is no sky.
    assert reach_of(depth_m, relative, 100, coarse, lambda p: p + 0.21).relative == math.inf
    depth_m = np.append(depth_m, np.full(3, 20.0, np.float32))
    assert reach_of(depth_m, np.append(relative, [np.float32(0.9)] * 3), 100, coarse, same).relative == math.inf


def test_beyond_the_evidence_by_hand():
    """Evidence to 10 m: nothing beyond 20 m, at the far end of relative depth, where the sky is, beyond 12.5 m."""
    depth_m = np.float32([[5.0, 19.0, 21.0, 12.0, 13.0, np.nan]])
    relative = np.float32([[0.3, 0.99, 0.99, 1.0, 0.999, 1.0]])
    found = depth_m.copy()
    forget_far(found, relative, Reach(10.0), 120.0)
    np.testing.assert_array_equal(found, [[5.0, 19.0, np.nan, 12.0, np.nan, np.nan]])
    found = depth_m.copy()
    forget_far(found, relative, Reach(), 15.0)
    np.testing.assert_array_equal(found, [[5.0, np.nan, np.nan, 12.0, 13.0, np.nan]])
    found = depth_m.copy()
    forget_far(found, relative, Reach(relative=0.995), 120.0)
    np.testing.assert_array_equal(found, [[5.0, 19.0, 21.0, np.nan, np.nan, np.nan]])
