"""What is no metric depth: the sky, and what lies far beyond all that was measured.

It becomes NaN, never a number and never +inf. REP 117 has +inf for "nothing within range", but a network's answer at
the far end may be the sky, a far wall or a guess; depth_image_proc takes neither for a point, and what scales
or averages depth images, viewers among it, gets along with NaN more often.
"""

from __future__ import annotations

import math

import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.compiled import Float, Pixels, WrittenPixels, compiled

# Anchors are evidence of depth up to this percentile of theirs. So many times as far nothing is known any more, and at
# the far end of relative depth, where the sky is, already not much farther.
_FAR_PERCENTILE, _FAR_FACTOR = 99.0, 2.0
FAR_END, _SKY_FACTOR = 0.995, 1.25


def far_end(anchors: Anchors) -> float:
    """How far, in metres, there is evidence of depth; infinite without any."""
    if len(anchors) == 0:
        return math.inf
    place = round(_FAR_PERCENTILE / 100.0 * (len(anchors) - 1))
    return float(np.partition(anchors.depth_m, place)[place])  # a tenth of what `np.percentile` takes


def farthest_known(far_m: float) -> tuple[float, float]:
    """Beyond how many metres nothing is known, if `far_end` is this; and where relative depth is beyond `FAR_END`."""
    return _FAR_FACTOR * far_m, _SKY_FACTOR * far_m


def forget_far(depth_m: np.ndarray, relative: np.ndarray, far_m: float, max_depth_m: float) -> None:
    """Set (H, W) `depth_m` to NaN beyond `max_depth_m` and what is `farthest_known`; (H, W) `relative`."""
    most_m, most_sky_m = farthest_known(far_m)
    _forget(depth_m, relative, np.float32(min(max_depth_m, most_m)), np.float32(most_sky_m))


def _forget_by_numpy(depth_m: np.ndarray, relative: np.ndarray, most_m: float, most_sky_m: float) -> None:
    """Set (H, W) `depth_m` to NaN beyond `most_m`, and where relative depth is at its end beyond `most_sky_m`."""
    unknown = depth_m > most_m
    sky = relative > np.float32(FAR_END)
    sky &= depth_m > most_sky_m
    unknown |= sky
    depth_m[unknown] = np.nan


@compiled(_forget_by_numpy)
def _forget(depth_m: WrittenPixels, relative: Pixels, most_m: Float, most_sky_m: Float) -> None:
    rows, columns = depth_m.shape
    for i in range(rows):
        depths, values = depth_m[i], relative[i]
        for j in range(columns):
            most = most_sky_m if values[j] > np.float32(FAR_END) else most_m
            depths[j] = np.float32(np.nan) if depths[j] > min(most, most_m) else depths[j]
