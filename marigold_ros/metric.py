"""Relative depth and anchors -> metres.

A network of the Marigold family answers up to an unknown scale and shift: y = scale * relative + shift, where y = g(z)
and g depends on the checkpoint's `space`. g increases with z in every space, so a usable scale is always positive.
Residuals are measured as *relative depth error* in every space, because a metre matters at 2 m and not at 80 m.

A metric checkpoint comes with a scale and shift of its own (`canonical`). Anchors refine them, with that scale as a
prior: few anchors, or all at one depth, correct the metres by a common factor; many at many depths the scale as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.config import FitConfig, Unusable

SPACES = ("depth", "inverse_depth", "log_depth")

_HYPOTHESES = 96
_HYPOTHESIS_ANCHORS = 512
_REFINEMENTS = 8
# Relative error at which an anchor's influence has fallen to a quarter (Geman-McClure); narrowed to it from 4x.
_KERNEL = 0.1
# Neighbouring anchors share the network's error: a cell counts as at most this many independent ones.
_CELL_PX = 64
_CELL_CAP = 2.0
# A metric checkpoint's own scale is held to be right to this part of it (one sigma), an anchor to `_KERNEL`.
_OWN_SIGMA = 0.2
# Anchors that ask for more than so many times its metres, or its scale, contradict it: feet would be 3.28 times.
_OWN_FACTOR = 3.0


@dataclass(frozen=True)
class MetricFit:
    """g(metres) = scale * relative + shift, with the evidence it rests on.

    `residual` is the median relative depth error over all anchors, `inliers` how many agree with the fit. A metric
    checkpoint's own scale and shift rest on no anchors; their residual is NaN.
    `covariance` is that of (scale, shift): variance of the scale, covariance, variance of the shift.
    """

    space: str
    scale: float
    shift: float
    anchors: int
    inliers: int
    residual: float
    covariance: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def source(self) -> str:
        """What the metres come from, in words."""
        return f"{self.anchors} LiDAR points" if self.anchors else "the checkpoint"


@dataclass(frozen=True)
class Refusal:
    """Why no fit could be had: a sentence that names the numbers."""

    reason: str


def to_space(depth_m: np.ndarray, space: str) -> np.ndarray:
    """g(z): metres -> z ('depth'), -1/z ('inverse_depth') or ln z ('log_depth'); +inf metres give g's limit."""
    if space == "depth":
        return np.asarray(depth_m)
    if space == "inverse_depth":
        return -1.0 / np.asarray(depth_m)
    if space == "log_depth":
        return np.log(depth_m)
    raise Unusable(f"space={space!r}: must be one of {', '.join(SPACES)}")


def from_space(y: np.ndarray, space: str) -> np.ndarray:
    """The inverse of `to_space`: metres; NaN where no positive depth has this y."""
    y = np.asarray(y)
    with np.errstate(divide="ignore", invalid="ignore"):
        if space == "depth":
            return np.where(y > 0, y, np.nan)
        if space == "inverse_depth":
            return np.where(y < 0, -1.0 / y, np.nan)
        if space == "log_depth":
            return np.exp(y)
    raise Unusable(f"space={space!r}: must be one of {', '.join(SPACES)}")


def log_slope(depth_m: np.ndarray, space: str) -> np.ndarray:
    """|d ln z / dy|: turns a residual in the space into a relative depth error."""
    depth_m = np.asarray(depth_m)
    return {"depth": 1.0 / depth_m, "inverse_depth": depth_m, "log_depth": np.ones_like(depth_m)}[space]


def _solve(p: np.ndarray, y: np.ndarray, weight: np.ndarray, own: MetricFit | None = None) -> tuple[float, float]:
    """Weighted least squares of y on p, with the scale of `own` as a prior; without, a constant p gives scale 0."""
    total = weight.sum()
    p_mean, y_mean = weight @ p / total, weight @ y / total
    spread, covariance = weight @ (p - p_mean) ** 2, weight @ ((p - p_mean) * (y - y_mean))
    if own is not None:
        prior = (_KERNEL / (_OWN_SIGMA * own.scale)) ** 2
        spread, covariance = spread + prior, covariance + prior * own.scale
    scale = float(covariance / spread) if spread > 1e-12 * total else 0.0
    return scale, float(y_mean - scale * p_mean)


def sample(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(N,) bilinear samples of the (H, W) image at (N, 2) pixels u, v; clamped at the border."""
    rows, columns = image.shape
    u = np.clip(pixels[:, 0], 0, columns - 1)
    v = np.clip(pixels[:, 1], 0, rows - 1)
    u0 = np.minimum(u.astype(np.intp), max(columns - 2, 0))
    v0 = np.minimum(v.astype(np.intp), max(rows - 2, 0))
    u1, v1 = np.minimum(u0 + 1, columns - 1), np.minimum(v0 + 1, rows - 1)
    du, dv = u - u0, v - v0
    top = image[v0, u0] * (1 - du) + image[v0, u1] * du
    bottom = image[v1, u0] * (1 - du) + image[v1, u1] * du
    return top * (1 - dv) + bottom * dv


def fit_metric(
    relative: np.ndarray, anchors: Anchors, space: str, config: FitConfig, own: MetricFit | None = None
) -> MetricFit | Refusal:
    """Robust scale and shift from anchors, or the reason why there is none.

    `relative`: (H, W) float32 of the image the anchors were projected into, affine in `space`. Random two-anchor
    hypotheses find the scale that most anchors agree with (MSAC on the relative depth error, so half of the anchors
    may be wrong); reweighted least squares with a shrinking Geman-McClure kernel refines it. Never returns a scale
    that is not positive.

    own: a metric checkpoint's scale and shift for this image. Hypotheses are then single anchors under its scale, the
    refinement has that scale as a prior, so that anchors may lie at one depth, and what contradicts it is refused.
    """
    count = len(anchors)
    if count < config.min_anchors:
        return Refusal(f"{count} anchors in the image: fit.min_anchors={config.min_anchors} are needed")
    low, high = np.percentile(anchors.depth_m, (5, 95))
    if own is None and high < low * (1.0 + config.min_spread):
        return Refusal(
            f"all anchors lie at about one depth ({low:.2f} to {high:.2f} m): scale and shift cannot be told apart "
            f"(fit.min_spread={config.min_spread})"
        )
    p = sample(relative, anchors.pixels).astype(np.float64)
    if not np.isfinite(p).all() or (own is None and np.ptp(p) < 1e-6):
        return Refusal("the network's answer at the anchors is constant or not finite")
    depth_m = anchors.depth_m.astype(np.float64)
    y, slope = to_space(depth_m, space), log_slope(depth_m, space)
    weight = anchors.weight * _cell_balance(anchors.pixels)

    start = _best_hypothesis(p, y, slope, weight, config) if own is None else _best_factor(p, y, weight, own, config)
    if isinstance(start, str):
        return Refusal(start)
    scale, shift = _refined(p, y, slope, weight, *start, own)
    if scale <= 0:
        return Refusal(f"the best scale is not positive ({scale:.4g}): wrong extrinsic or wrong checkpoint")
    if own is not None and (contradiction := _contradiction(own, scale, shift, p)):
        return Refusal(contradiction)
    predicted_m = from_space(scale * p + shift, space)
    error = np.nan_to_num(np.abs(predicted_m - depth_m) / depth_m, nan=np.inf)
    inliers = int(np.count_nonzero(error <= config.inlier_error))
    if inliers < config.min_inliers * count:
        return Refusal(
            f"only {inliers} of {count} anchors agree with one scale and shift (fit.min_inliers="
            f"{config.min_inliers}): check the extrinsic and the time stamps"
        )
    return MetricFit(space, scale, shift, count, inliers, float(np.median(error)))


def _contradiction(own: MetricFit, scale: float, shift: float, p: np.ndarray) -> str | None:
    """What a fit to anchors at `p` has against a metric checkpoint's own: metres or a scale beyond `_OWN_FACTOR`."""
    factor, bend = math.exp(np.median((scale - own.scale) * p + shift - own.shift)), scale / own.scale
    if all(1.0 / _OWN_FACTOR <= ratio <= _OWN_FACTOR for ratio in (factor, bend)):
        return None
    return (
        f"the anchors ask for {factor:.2f} times the checkpoint's metres and {bend:.2f} times its scale, which differs "
        f"by more than a factor of {_OWN_FACTOR:g}: check the range's unit, the extrinsic and the camera info"
    )


def _cell_balance(pixels: np.ndarray) -> np.ndarray:
    """(N,) factors that let the anchors of one image cell count as at most `_CELL_CAP` together."""
    cells = (np.maximum(pixels, 0) * np.float32(1.0 / _CELL_PX)).astype(np.intp)  # `//` is twenty times slower
    index = cells[:, 1] * (cells[:, 0].max() + 1) + cells[:, 0]
    return np.minimum(1.0, _CELL_CAP / np.bincount(index)[index])


def _best_hypothesis(
    p: np.ndarray, y: np.ndarray, slope: np.ndarray, weight: np.ndarray, config: FitConfig
) -> tuple[float, float] | str:
    """The scale and shift through two anchors that the weighted rest agrees with best, or why there is none."""
    random = np.random.default_rng(config.seed)
    chance = weight / weight.sum()
    judges = random.choice(len(p), min(len(p), _HYPOTHESIS_ANCHORS), replace=False)
    first, second = random.choice(len(p), (2, _HYPOTHESES), p=chance)
    apart = np.abs(p[first] - p[second]) > 0.02 * np.ptp(p)
    first, second = first[apart], second[apart]
    scales = (y[first] - y[second]) / (p[first] - p[second])
    shifts = y[first] - scales * p[first]
    error = slope[judges] * (scales[:, None] * p[judges] + shifts[:, None] - y[judges])  # (hypotheses, judges)
    cost = np.minimum(error**2, config.inlier_error**2) @ weight[judges]
    positive = scales > 0
    if not positive.any():
        return "no two anchors give a positive scale: wrong extrinsic, or a checkpoint of another space"
    best, best_negative = cost[positive].min(), cost[~positive].min(initial=np.inf)
    if best_negative < 0.5 * best:
        return "the anchors ask for a negative scale: wrong extrinsic, or a checkpoint of another space"
    winner = np.flatnonzero(positive)[np.argmin(cost[positive])]
    return float(scales[winner]), float(shifts[winner])


def _best_factor(
    p: np.ndarray, y: np.ndarray, weight: np.ndarray, own: MetricFit, config: FitConfig
) -> tuple[float, float]:
    """The scale of `own` and the shift, in log depth a factor on its metres, that most anchors agree with."""
    random = np.random.default_rng(config.seed)
    shifts = y - own.scale * p
    judges = random.choice(len(p), min(len(p), _HYPOTHESIS_ANCHORS), replace=False)
    tried = random.choice(shifts, _HYPOTHESES, p=weight / weight.sum())
    cost = np.minimum((tried[:, None] - shifts[judges]) ** 2, config.inlier_error**2) @ weight[judges]
    return own.scale, float(tried[np.argmin(cost)])


def _refined(
    p: np.ndarray,
    y: np.ndarray,
    slope: np.ndarray,
    weight: np.ndarray,
    scale: float,
    shift: float,
    own: MetricFit | None,
) -> tuple[float, float]:
    """Reweighted least squares from a hypothesis, with a Geman-McClure kernel that narrows to `_KERNEL`."""
    for kernel in _KERNEL * np.geomspace(4.0, 1.0, _REFINEMENTS):
        error = slope * (scale * p + shift - y)
        robust = (kernel**2 / (kernel**2 + error**2)) ** 2
        scale, shift = _solve(p, y, weight * robust * slope**2, own)
    return scale, shift


def apply_fit(fit: MetricFit, relative: np.ndarray, max_depth_m: float) -> np.ndarray:
    """(H, W) relative -> (H, W) float32 metres; NaN where the depth is not positive or beyond `max_depth_m`."""
    y = relative * np.float32(fit.scale)
    y += np.float32(fit.shift)
    low = np.float32(to_space(np.float64(1e-3), fit.space))
    high = np.float32(to_space(np.float64(max_depth_m), fit.space))
    y[~((y > low) & (y <= high))] = np.nan
    if fit.space == "inverse_depth":
        np.divide(np.float32(-1.0), y, out=y)
    elif fit.space == "log_depth":
        np.exp(y, out=y)
    return y


class FitHolder:
    """Keeps the last fit for a while when no new one can be had; time going backwards forgets it."""

    def __init__(self) -> None:
        self._fit: MetricFit | None = None
        self._fit_ns = 0
        self._newest_ns = 0

    def update(self, stamp_ns: int, fit: MetricFit | None, hold_s: float) -> MetricFit | None:
        """The fit to use for the image of `stamp_ns`: the new one, else the last one if at most `hold_s` old."""
        if stamp_ns < self._newest_ns:
            self._fit = None
        self._newest_ns = stamp_ns
        if fit is not None:
            self._fit, self._fit_ns = fit, stamp_ns
        if self._fit is not None and stamp_ns - self._fit_ns > hold_s * 1e9:
            self._fit = None
        return self._fit

    def age_s(self) -> float | None:
        """Seconds of image time between the newest image and the fit in use; None without one."""
        return None if self._fit is None else (self._newest_ns - self._fit_ns) * 1e-9
