"""How far wrong metric depth may be: one standard deviation in metres at every pixel, learned from the frame itself.

Depth is good where anchors are and gets worse away from them, how fast depends on the network, the scene and the
sensor. So the correction is fitted again without a part of the anchors, and its errors there are looked at: how they
grow with the distance to the anchors that were left, and with the doubt about the pixel itself. That law, with the
distances to all anchors, makes the deviation at every pixel. What scale and shift may be wrong by is added to it.

Doubt is about what ln depth may change by at this very pixel: at an edge of depth a pixel to the side is another depth,
and where the network's two answers disagree, either may be right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from marigold_ros.compiled import Bool, Float, Floats, Int, Mask, Pixels, compiled
from marigold_ros.correction import Correction
from marigold_ros.edges import edge_ln, floating
from marigold_ros.field import FARTHEST, Evidence, distances, fitted_field, node_distance
from marigold_ros.geometry import between_rows, stretched, widened
from marigold_ros.metric import DEPTH, INVERSE, SPACES, FittedDepth, MetricFit, log_slope

# Anchors are left out in blocks, a third of them at a time, in so many parts of the image's width; of these, some are
# joined to larger blocks: so many each way, for this share of the image, the largest last. So there are short and long
# distances to what is left. The law depends on which blocks these are, so the image is divided twice.
_FOLDS, _DIVISIONS = 3, 2
_BLOCKS, _JOINED = 48, ((3, 0.6), (12, 0.2))
# Fewer anchors than this on either side say nothing.
_FEWEST = 8
# Once the law is known, a part of the anchors is left out in one of so many frames.
_EVERY = 6
# The law is found by trying these, on at most so many errors.
_NEAR = np.array([0.0015 * 80.0 ** (step / 11) for step in range(12)])
_GROWTH = np.array([0.15 * 33.0 ** (step / 5) for step in range(6)])
_DOUBTFUL = np.array([0.3, 0.6, 1.0])
_MOST_ERRORS = 768
# A few wrong anchors may be left: their share, and their density over ln, of a factor of e at most.
_WRONG_SHARE, _WRONG_DENSITY = 0.01, 0.3
# What is held before anything was seen: deviation near anchors, growth per node and weight of doubt, each with the
# deviation of its ln; and how many errors that is worth.
_USUAL_NEAR, _USUAL_GROWTH, _USUAL_DOUBTFUL = (0.02, 1.0), (0.9, 0.7), (0.8, 0.5)
_USUAL_COUNT = 20
# A Cauchy distribution has this share within so many of its widths; a normal one within one deviation.
_WITHIN, _WIDTHS_WITHIN = 0.683, 1.84
# A deviation of this part of depth is no confidence at all.
_NO_CONFIDENCE = 0.5
# The smooth part is worked out for about so many pixels across.
_ACROSS = 160


@dataclass(frozen=True)
class Errors:
    """Of N anchors that were left out, (N,) float32: `error`, ln of measured over corrected depth; `distance` to the
    others, in nodes; `doubt` there.
    """

    error: np.ndarray
    distance: np.ndarray
    doubt: np.ndarray


@dataclass(frozen=True)
class Law:
    """The deviation of ln depth: the root of near² (1 + growth² distance²) + doubt² doubtful², distance in nodes."""

    near: float
    growth: float
    doubtful: float


USUAL = Law(_WIDTHS_WITHIN * _USUAL_NEAR[0], _USUAL_GROWTH[0], _WIDTHS_WITHIN * _USUAL_DOUBTFUL[0])


class Uncertainty:
    """Learns the law from frame to frame.

    The first frame takes it from all of its anchors, left out in turn; after that one frame in six leaves a part of
    them out, and another brings the law up to date, so that the price is spread.
    """

    def __init__(self) -> None:
        self._errors: deque[Errors] = deque(maxlen=_FOLDS * _DIVISIONS)
        self._fold = self._turn = 0
        self.law = USUAL

    def learn(self, evidence: Evidence, limit: float, find_doubt: Callable[[], np.ndarray]) -> None:
        """Look at a frame. limit: that of the correction; find_doubt: gives (H, W) of the depth before it, if asked."""
        self._turn = (self._turn + 1) % _EVERY
        if not self._errors:
            for _ in range(_FOLDS * _DIVISIONS):
                self._leave_out(evidence, limit, find_doubt())
            self.law = law_of(self._errors)
        elif self._turn == 0:
            self._leave_out(evidence, limit, find_doubt())
        elif self._turn == _EVERY // 2:
            self.law = law_of(self._errors)

    def _leave_out(self, evidence: Evidence, limit: float, doubt: np.ndarray) -> None:
        division, fold = divmod(self._fold, _FOLDS)
        self._fold = (self._fold + 1) % (_FOLDS * _DIVISIONS)
        chosen = _folds(evidence.pixels, doubt.shape[1], division) == fold
        found = left_out(evidence, chosen, limit, doubt)
        if found is not None:
            self._errors.append(found)


def left_out(evidence: Evidence, chosen: np.ndarray, limit: float, doubt: np.ndarray) -> Errors | None:
    """The errors of a correction without the `chosen` anchors, (N,) bool, at those of them that are of this image and
    not wrong.

    None where there are too few.
    """
    others, asked = evidence.of(~chosen), evidence.of(chosen & (evidence.trust > 0) & evidence.fresh)
    if min(len(asked.residual), len(others.residual)) < _FEWEST:
        return None
    field = fitted_field(others, limit)
    error = asked.residual - asked.at(field.log_factor)
    column, row = np.rint(asked.pixels).astype(np.intp).T
    doubt = doubt[np.clip(row, 0, doubt.shape[0] - 1), np.clip(column, 0, doubt.shape[1] - 1)]
    return Errors(error, asked.at(node_distance(others)), doubt)


def law_of(errors: Sequence[Errors]) -> Law:
    """The law that makes the errors most likely.

    The errors of networks have long tails, so they are taken to be Cauchy distributed; in the last step the law is
    scaled so that 68 % lie within.
    """
    if not errors:
        return USUAL
    error, distance, doubt = (np.concatenate([getattr(e, k) for e in errors]) for k in ("error", "distance", "doubt"))
    if len(error) > _MOST_ERRORS:
        some = np.random.default_rng(0).permutation(len(error))[:_MOST_ERRORS]
        error, distance, doubt = error[some], distance[some], doubt[some]
    squared = np.square(np.minimum(distance, FARTHEST)).astype(np.float32)
    tried = [axis.ravel().astype(np.float32) for axis in np.meshgrid(_NEAR, _GROWTH, _DOUBTFUL, indexing="ij")]
    near, growth, doubtful = (np.square(axis)[:, None] for axis in tried)
    variance = near + near * growth * squared + doubtful * np.square(doubt)
    right = np.sqrt(variance) / (np.float32(np.pi) * (variance + np.square(error)))  # Cauchy's density
    usual = sum(
        ((np.log(values) - np.log(mean)) / deviation) ** 2
        for values, (mean, deviation) in zip(tried, (_USUAL_NEAR, _USUAL_GROWTH, _USUAL_DOUBTFUL), strict=True)
    )
    likely = np.log(np.float32(1 - _WRONG_SHARE) * right + np.float32(_WRONG_SHARE * _WRONG_DENSITY)).sum(axis=1)
    best = np.argmax(likely - 0.5 * usual)
    ratio = np.quantile(np.abs(error) / np.sqrt(variance[best]), _WITHIN)
    scale = (ratio * len(error) + _WIDTHS_WITHIN * _USUAL_COUNT) / (len(error) + _USUAL_COUNT)
    near, growth, doubtful = (float(values[best]) for values in tried)
    return Law(float(scale * near), growth, float(scale * doubtful))


def smooth_variance(law: Law, fitted: FittedDepth, correction: Correction | None) -> np.ndarray:
    """(h, W) float32 variance of ln depth that is not doubt, at every so-manieth row of the `fitted` depth; without a
    correction all is far from every anchor.

    The correction mends what is wrong with the fit where its anchors are near, and the law, which was learned behind
    it, knows what is left; the fit's own variance counts far from them. Without any of this image all of it counts.
    """
    fit, width = fitted.fit, fitted.shape[1]
    small_m, small = fitted.every(max(1, width // _ACROSS))
    if correction is None:
        distance = beyond = np.full(small_m.shape, FARTHEST, np.float32)
    else:
        distance, beyond = distances(correction.evidence, small_m)
    numbers = np.array([law.near**2, (law.near * law.growth) ** 2, *fit.covariance], np.float32)
    fresh = correction is not None and correction.fresh
    variance = _variance(distance, beyond, small_m, small, numbers, SPACES.index(fit.space), fresh)
    return widened(variance, width)


def _variance_by_numpy(
    distance: np.ndarray,
    beyond: np.ndarray,
    depth_m: np.ndarray,
    p: np.ndarray,
    numbers: np.ndarray,
    space: int,
    fresh: bool,
) -> np.ndarray:
    """`smooth_variance` of (h, w) fitted depth and relative depth `p`, `distances` away from anchors.

    numbers: of the law, near², (near growth)²; of the fit, variance of scale, covariance, variance of shift. fresh:
    whether anchors are of this image.
    """
    near, growing, *covariance = numbers
    squared = np.minimum(np.square(distance) + np.square(beyond), np.float32(FARTHEST**2))
    variance, of_fit = near + growing * squared, fit_variance(covariance, p, depth_m, SPACES[space])
    share = squared * np.float32(1.0 / FARTHEST**2)
    variance = np.maximum(variance, of_fit * share) if fresh else variance + of_fit
    variance[np.isnan(depth_m)] = near + growing * np.float32(FARTHEST**2)
    return variance


@compiled(_variance_by_numpy)
def _variance(
    distance: Pixels, beyond: Pixels, depth_m: Pixels, p: Pixels, numbers: Floats, space: Int, fresh: Bool
) -> np.ndarray:
    rows, columns = depth_m.shape
    near, growing, of_scale, both, of_shift = numbers
    result, farthest = np.empty((rows, columns), np.float32), np.float32(FARTHEST**2)
    for i in range(rows):
        away, beside, depths, values, into = distance[i], beyond[i], depth_m[i], p[i], result[i]
        for j in range(columns):
            squared = away[j] * away[j] + beside[j] * beside[j]
            squared = squared if squared < farthest else farthest
            slope = depths[j] if space == INVERSE else np.float32(1)
            slope = np.float32(1) / depths[j] if space == DEPTH else slope
            variance = near + growing * squared
            of_fit = slope * slope * ((of_scale * values[j] + both + both) * values[j] + of_shift)
            if fresh:
                of_fit *= squared * (np.float32(1) / farthest)
                variance = variance if variance > of_fit else of_fit
            else:
                variance += of_fit
            into[j] = variance if depths[j] == depths[j] else near + growing * farthest
    return result


def fit_variance(covariance: Sequence[float], relative: np.ndarray, fitted_m: np.ndarray, space: str) -> np.ndarray:
    """Variance of ln depth by that of scale and shift: κ² (p² var s + 2 p cov + var t), κ = d ln z / dy."""
    scale, both, shift = (np.float32(v) for v in covariance)
    return log_slope(fitted_m, space) ** 2 * ((scale * relative + 2 * both) * relative + shift)


def doubt_of(coarse_m: np.ndarray, disagreement: np.ndarray | None, fit: MetricFit, width: int) -> np.ndarray:
    """(h, w) float32: what ln depth may change by at a pixel of an image so wide, by edges of (h, w) `coarse_m`, the
    fit's metres of what the network answered, and by the disagreement of two answers, if there is one, (h, w) in units
    of relative depth.
    """
    doubt = edge_ln(coarse_m)
    # A pixel to the side in the image is less far in the answer.
    doubt *= np.float32(coarse_m.shape[1] / width)
    if disagreement is not None:
        apart = log_slope(coarse_m, fit.space) * (disagreement * np.float32(fit.scale))
        cv2.patchNaNs(apart, 0.0)
        doubt = cv2.magnitude(doubt, apart)
    return doubt


def rated(
    depth_m: np.ndarray,
    variance: np.ndarray,
    doubt: np.ndarray,
    law: Law,
    *,
    sigma: bool = False,
    confidence: bool = False,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What is asked for of (H, W) `depth_m`: sigma in metres and confidence in [0, 1], (H, W) float32.

    Sigma is depth's deviation by the `smooth_variance` and the doubt, (h, w) of any sizes. Confidence is
    1 - 2 sigma / depth, at least 0, and 0 where depth is unknown.
    """
    wide = (widened(part, depth_m.shape[1]) for part in (variance, doubt))
    sigma_m, sure = _rated(depth_m, *wide, np.float32(law.doubtful**2), sigma, confidence)
    return sigma_m if sigma else None, sure if confidence else None


def _rated_by_numpy(
    depth_m: np.ndarray, variance: np.ndarray, doubt: np.ndarray, weight: float, sigma: bool, confidence: bool
) -> tuple[np.ndarray, np.ndarray]:
    """`rated` by (h, W) variance and doubt, and the weight of doubt squared; (0, 0) of what is not asked for."""
    variance, doubt = (stretched(part, *depth_m.shape[::-1]) for part in (variance, doubt))
    deviation = cv2.sqrt(cv2.add(cv2.multiply(doubt, doubt, scale=float(weight)), variance))
    sigma_m = sure = np.zeros((0, 0), np.float32)
    if sigma:
        sigma_m = cv2.multiply(deviation, depth_m)
    if confidence:
        sure = np.maximum(np.float32(1.0) - deviation * np.float32(1 / _NO_CONFIDENCE), np.float32(0))
        sure[np.isnan(depth_m)] = 0.0
    return sigma_m, sure


@compiled(_rated_by_numpy)
def _rated(
    depth_m: Pixels, variance: Pixels, doubt: Pixels, weight: Float, sigma: Bool, confidence: Bool
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = depth_m.shape
    sigma_m = np.empty((rows, columns) if sigma else (0, 0), np.float32)
    sure = np.empty((rows, columns) if confidence else (0, 0), np.float32)
    variances, deviation = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for i in range(rows):
        depths = depth_m[i]
        between_rows(variances, variance, i, rows)
        between_rows(deviation, doubt, i, rows)
        for j in range(columns):
            deviation[j] = np.sqrt(variances[j] + weight * deviation[j] * deviation[j])
        if sigma:
            into = sigma_m[i]
            for j in range(columns):
                into[j] = deviation[j] * depths[j]
        if confidence:
            into = sure[i]
            for j in range(columns):
                value = np.float32(1) - np.float32(1 / _NO_CONFIDENCE) * deviation[j]
                value = value if value > 0 else np.float32(0)
                into[j] = value if depths[j] == depths[j] else np.float32(0)
    return sigma_m, sure


def solid_part(depth_m: np.ndarray, variance: np.ndarray, min_confidence: float) -> np.ndarray:
    """(H, W) float32 metres: what does not float at an edge and has this confidence by `smooth_variance`; else NaN.

    Without the doubt about single pixels: a thin pole is nothing but edges, and must not go for it.
    """
    most = (_NO_CONFIDENCE * (1.0 - min_confidence)) ** 2
    return _solid(depth_m, floating(depth_m), widened(variance, depth_m.shape[1]), np.float32(most))


def _solid_by_numpy(depth_m: np.ndarray, unwanted: np.ndarray, variance: np.ndarray, most: float) -> np.ndarray:
    """(H, W) float32: depth, NaN where it is unwanted or (h, W) variance is larger than `most`."""
    variance = stretched(variance, *depth_m.shape[::-1])
    return np.where(unwanted | (variance > most), np.float32(np.nan), depth_m)


@compiled(_solid_by_numpy)
def _solid(depth_m: Pixels, unwanted: Mask, variance: Pixels, most: Float) -> np.ndarray:
    rows, columns = depth_m.shape
    solid_m, variances = np.empty((rows, columns), np.float32), np.empty(columns, np.float32)
    for i in range(rows):
        between_rows(variances, variance, i, rows)
        depths, mask, into = depth_m[i], unwanted[i], solid_m[i]
        for j in range(columns):
            into[j] = np.float32(np.nan) if mask[j] | (variances[j] > most) else depths[j]
    return solid_m


def _folds(pixels: np.ndarray, width: int, division: int) -> np.ndarray:
    """(N,) which part, 0 to 2, each of the (N, 2) pixels belongs to."""
    table = _fold_table(division)
    column, row = np.clip((pixels + np.float32(0.5)) * np.float32(_BLOCKS / width), 0, None).astype(np.intp).T
    return table[row % len(table), column % len(table)]


@lru_cache
def _fold_table(division: int) -> np.ndarray:
    """(4 blocks, 4 blocks) the part of each block, at random, but for some joined blocks that are of one part."""
    random = np.random.default_rng(division)
    size = 4 * _BLOCKS
    table = random.integers(_FOLDS, size=(size, size))
    for joined, share in _JOINED:
        parts, whole = random.integers(_FOLDS, size=(size // joined,) * 2), random.random((size // joined,) * 2) < share
        parts, whole = (np.repeat(np.repeat(grid, joined, 0), joined, 1) for grid in (parts, whole))
        table = np.where(whole, parts, table)
    return table
