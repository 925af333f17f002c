"""What is far beyond all evidence is no depth."""

import math

import numpy as np

from marigold_ros.unknown import ENDLESS, Reach, forget_far, reach_of

# Of anchors from 1 to 30 m, of which the fit makes 20 m at most.
DEPTH_M = np.linspace(1.0, 30.0, 500, dtype=np.float32)
FITTED_M = DEPTH_M * np.float32(2 / 3)


def reach(expected=10.0, depth_m=DEPTH_M, fitted_m=FITTED_M, before=ENDLESS):
    return reach_of(depth_m, fitted_m, lambda beyond_m: expected, before)


def test_the_far_end_is_not_the_one_farthest_point():
    depth_m = np.append(np.linspace(1.0, 10.0, 1000), 80.0).astype(np.float32)
    assert 9.8 < reach(depth_m=depth_m, fitted_m=depth_m).depth_m < 10.0
    assert reach(depth_m=depth_m[:0], fitted_m=depth_m[:0]) == Reach()


def test_what_lies_behind_all_anchors_is_beyond_reach_if_some_would_lie_there():
    assert 20.0 < reach().fitted_m < 22.1
    assert reach(depth_m=0.7 * DEPTH_M).fitted_m < 22.1
    assert reach(expected=2.0).fitted_m == math.inf  # they may have missed it
    assert reach(depth_m=0.6 * DEPTH_M).fitted_m == math.inf  # the sensor may not reach it


def test_what_was_beyond_reach_stays_so_for_small_changes():
    for change in ({"expected": 2.0}, {"depth_m": 0.6 * DEPTH_M}):
        assert reach(**change, before=reach()).fitted_m < 22.1
    for change in ({"expected": 1.0}, {"depth_m": 0.5 * DEPTH_M}):
        assert reach(**change, before=reach()).fitted_m == math.inf


def test_beyond_the_evidence_by_hand():
    """Evidence to 10 m: nothing beyond 20 m, at the far end of relative depth, where the sky is, beyond 12.5 m."""
    depth_m = np.float32([[5.0, 19.0, 21.0, 12.0, 13.0, np.nan]])
    relative = np.float32([[0.3, 0.99, 0.99, 1.0, 0.999, 1.0]])
    found = depth_m.copy()
    forget_far(found, relative, Reach(10.0), 120.0)
    np.testing.assert_array_equal(found, [[5.0, 19.0, np.nan, 12.0, np.nan, np.nan]])
    for limits in ((Reach(), 15.0), (Reach(fitted_m=15.0), 120.0)):
        found = depth_m.copy()
        forget_far(found, relative, *limits)
        np.testing.assert_array_equal(found, [[5.0, np.nan, np.nan, 12.0, 13.0, np.nan]])
