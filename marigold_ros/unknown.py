"""What is no metric depth: the sky, and what lies far beyond all that was measured.

It becomes NaN, never a number and never +inf. REP 117 has +inf for "nothing within range", but a network's answer at
the far end may be the sky, a far wall or a guess; depth_image_proc takes neither for a point, and what scales
or averages depth images, viewers among it, gets along with NaN more often.
"""

from __future__ import annotations

import numpy as np

from marigold_ros.anchors import Anchors

# Anchors are evidence of depth up to this percentile of theirs. So many times as far nothing is known any more, and at
# the far end of relative depth, where the sky is, already not much farther.
_FAR_PERCENTILE, _FAR_FACTOR = 99.0, 2.0
_FAR_END, _SKY_FACTOR = 0.995, 1.25


def far_end(anchors: Anchors) -> float:
    """How far, in metres, there is evidence of depth."""
    return float(np.percentile(anchors.depth_m, _FAR_PERCENTILE))


def forget_far(depth_m: np.ndarray, relative: np.ndarray, far_m: float, max_depth_m: float) -> None:
    """Set (H, W) `depth_m` to NaN beyond `max_depth_m` and where it lies far beyond `far_end`; (H, W) `relative`."""
    unknown = depth_m > np.float32(min(max_depth_m, _FAR_FACTOR * far_m))
    sky = relative > np.float32(_FAR_END)
    sky &= depth_m > np.float32(_SKY_FACTOR * far_m)
    unknown |= sky
    depth_m[unknown] = np.nan
