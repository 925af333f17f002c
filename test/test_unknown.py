"""What is far beyond all evidence is no depth."""

import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.unknown import far_end, forget_far


def test_the_far_end_is_not_the_one_farthest_point():
    depth_m = np.append(np.linspace(1.0, 10.0, 1000), 80.0).astype(np.float32)
    ones = np.ones(len(depth_m), np.float32)
    assert 9.8 < far_end(Anchors(np.zeros((len(depth_m), 2), np.float32), depth_m, ones, len(depth_m))) < 10.0


def test_beyond_the_evidence_by_hand():
    """Evidence to 10 m: nothing beyond 20 m, at the far end of relative depth, where the sky is, beyond 12.5 m."""
    depth_m = np.float32([[5.0, 19.0, 21.0, 12.0, 13.0, np.nan]])
    relative = np.float32([[0.3, 0.99, 0.99, 1.0, 0.999, 1.0]])
    found = depth_m.copy()
    forget_far(found, relative, 10.0, 120.0)
    np.testing.assert_array_equal(found, [[5.0, 19.0, np.nan, 12.0, np.nan, np.nan]])
    found = depth_m.copy()
    forget_far(found, relative, np.inf, 15.0)
    np.testing.assert_array_equal(found, [[5.0, np.nan, np.nan, 12.0, 13.0, np.nan]])
