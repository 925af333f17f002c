"""What is no metric depth: the sky, and what lies far beyond all that was measured.

It becomes NaN, never a number and never +inf. REP 117 has +inf for "nothing within range", but a network's answer at
the far end may be the sky, a far wall or a guess; depth_image_proc takes neither for a point, and what scales
or averages depth images, viewers among it, gets along with NaN more often.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from marigold_ros.compiled import Float, Pixels, WrittenPixels, compiled

# Anchors are evidence of depth up to this percentile of theirs. So many times as far nothing is known any more, and at
# the far end of relative depth, where the sky is, already not much farther.
_FAR_PERCENTILE, _FAR_FACTOR = 99.0, 2.0
FAR_END, _SKY_FACTOR = 0.995, 1.25
# Where they reach the first of these, in metres, nothing is known either beyond so many times what the fit has at this
# percentile of them, if so many parts of the image would be expected to have anchors there; once that is so, it stays
# as long as the second ones are reached. A sensor of less reach says nothing of what is behind.
_REACH_M, _EXPECTED = (20.0, 16.0), (3.0, 1.5)
_REACH_FACTOR, _REACH_PERCENTILE = 1.1, 99.9


@dataclass(frozen=True)
class Reach:
    """How far there is evidence, `depth_m`, and how much the fit may have, `fitted_m`; infinite where nothing tells."""

    depth_m: float = math.inf
    fitted_m: float = math.inf

    @property
    def farthest_m(self) -> tuple[float, float]:
        """Beyond how many metres nothing is known; and where relative depth is beyond `FAR_END`."""
        return _FAR_FACTOR * self.depth_m, _SKY_FACTOR * self.depth_m

    @property
    def sky(self) -> bool:
        """Whether something is known to be beyond all that the sensor reaches."""
        return self.fitted_m < math.inf


ENDLESS = Reach()


def reach_of(
    depth_m: np.ndarray, fitted_m: np.ndarray, expected: Callable[[float], float], before: Reach = ENDLESS
) -> Reach:
    """How far anchors reach by measured (N,) `depth_m`, and (N,) `fitted_m` of the fit.

    expected: gives how many parts of the image would have anchors where the fit has more than so many metres, if that
    were a surface: if they are some, it is the sky, or beyond the sensor's range. before: of the last image.
    """
    if len(depth_m) == 0:
        return ENDLESS
    far_m, once = _percentile(depth_m, _FAR_PERCENTILE), int(before.sky)
    if far_m < _REACH_M[once]:
        return Reach(far_m)
    most_m = _REACH_FACTOR * _percentile(fitted_m, _REACH_PERCENTILE)
    return Reach(far_m, most_m if expected(most_m) >= _EXPECTED[once] else math.inf)


def _percentile(values: np.ndarray, percent: float) -> float:
    place = round(percent / 100.0 * (len(values) - 1))
    return float(np.partition(values, place)[place])  # a tenth of what `np.percentile` takes


def forget_far(depth_m: np.ndarray, relative: np.ndarray, reach: Reach, max_depth_m: float) -> None:
    """Set (H, W) `depth_m` of the fit to NaN beyond `max_depth_m` and beyond the `reach`; (H, W) `relative`."""
    most_m, most_sky_m = reach.farthest_m
    _forget(depth_m, relative, np.float32(min(max_depth_m, reach.fitted_m, most_m)), np.float32(most_sky_m))


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
