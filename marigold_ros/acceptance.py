"""Whether a line through anchors may be believed: metres that rest on chance are worse than none.

Anchors that lie about at one depth agree with a flat line whatever the network says, and of wrong ones some agree with
any. Of a weak network, on the other hand, right anchors are far off any line, over whole surfaces; those around them
are off by as much, which those around wrong ones are not.
"""

from __future__ import annotations

import numpy as np

from marigold_ros.anchors import Anchors, at_random
from marigold_ros.config import FitConfig
from marigold_ros.vote import FARTHEST_LN, places_of, trust_of

# Without a frame before, where no more than this share of the anchors agrees, they must be so many times as many as
# agree on some one depth: that many do by chance.
_MOST, _BETTER = 0.5, 1.2
# Or else they must be this share of those that the anchors around them confirm, and more of these than agree on one
# depth.
_OF_CONFIRMED = 2 / 3
# As many anchors are asked.
_ASKED = 4096


def why_not(
    anchors: Anchors,
    image: tuple[int, int],
    predicted_m: np.ndarray,
    error: np.ndarray,
    tolerance: float,
    sigma: float,
    config: FitConfig,
    cold: bool,
) -> str | None:
    """Why not to believe a line that gives the N anchors of an image (H, W) `predicted_m`; None where it may be.

    error: (N,) that of the metres, relative. Anchors agree with the line up to a relative error of `tolerance`.
    sigma: the fit's relative error at anchors that are not wrong. cold: nothing is known from the frames before, which
    wrong metres would have to contradict.
    """
    depth_m, agree = anchors.depth_m.astype(np.float64), error <= tolerance
    count, agreeing = len(agree), int(np.count_nonzero(agree))
    few = agreeing < config.min_inliers * count
    by_chance = cold and agreeing < _MOST * count and agreeing < _BETTER * _on_one_depth(depth_m, tolerance)
    if not few and not by_chance:
        return None
    if _confirmed(anchors.pixels, image, depth_m, predicted_m, agree, tolerance, sigma, config.min_inliers, cold):
        return None
    why = f" (fit.min_inliers={config.min_inliers})" if few else ", hardly more than lie at one depth"
    what = f"only {agreeing} of {count} anchors agree with one scale and shift{why}"
    return f"{what}: check the extrinsic and the time stamps"


def _confirmed(
    pixels: np.ndarray,
    image: tuple[int, int],
    depth_m: np.ndarray,
    predicted_m: np.ndarray,
    agree: np.ndarray,
    tolerance: float,
    sigma: float,
    fewest: float,
    cold: bool,
) -> bool:
    """Whether the share `fewest` of the anchors is confirmed by those around, and most of these `agree` with the line.

    If `cold`, also more than agree on some one depth.
    """
    some = at_random(len(depth_m), _ASKED)
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = np.log(depth_m[some] / predicted_m[some]).astype(np.float32)
        near = np.abs(residual) < np.float32(FARTHEST_LN)
    some = some[near]
    trust = trust_of(places_of(pixels[some], image), residual[near], sigma)
    confirmed, right = float(trust.sum()), float(trust @ agree[some])
    if confirmed <= fewest * len(near) or right < max(_OF_CONFIRMED, fewest) * confirmed:
        return False
    return not cold or right > _on_one_depth(depth_m[some], tolerance, trust)


def _on_one_depth(depth_m: np.ndarray, error: float, weight: np.ndarray | None = None) -> float:
    """The most anchors, or the most of their weight, whose depth lies within a relative `error` of one and the same."""
    order = np.argsort(depth_m)
    ordered = depth_m[order]
    up_to = np.concatenate([[0.0], np.cumsum(np.ones(len(order)) if weight is None else weight[order])])
    reach = np.searchsorted(ordered, ordered * ((1.0 + error) / (1.0 - error)), side="right")
    return float((up_to[reach] - up_to[:-1]).max())
