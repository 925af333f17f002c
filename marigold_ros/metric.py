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

from marigold_ros.acceptance import relative_error, why_not
from marigold_ros.anchors import Anchors, at_random
from marigold_ros.compiled import Bool, Float, FloatRows, Pixels, compiled
from marigold_ros.config import FitConfig, Unusable
from marigold_ros.geometry import resize
from marigold_ros.robust_fit import Base, Evidence, NoLine, Samples, gather, median, weigh

SPACES = ("depth", "inverse_depth", "log_depth")

# Scale, shift and looseness (see `Base`) of a typical scene, the network's answer in [0, 1]: the nearest depth is a
# thirteenth of the farthest; scenes differ by so much.
_TYPICAL = {"depth": (1.0, 0.08, 0.12), "inverse_depth": (1.0, -1.08, 0.25), "log_depth": (3.0, 0.0, 0.4)}
# Neighbouring anchors share the network's error: a cell, so many along the longer side, counts as at most so many.
_CELLS = 16
_CELL_CAP = 2.0
_WEAK_SIGMAS = 1.5
# The network errs alike at depths that differ by less than this factor, and in squares of this part of the image.
_ALIKE_FACTOR, _PARTS = 1.2, 4
# Whether the network answers at all is seen at every so-manieth pixel.
_GLANCE_PX = 16
# How steep the network's answer is at an anchor is looked up so many pixels to all sides.
_STEEP_PX = 2
# A metric checkpoint's own scale is held to be right to this part of it (one sigma).
OWN_SIGMA = 0.2
# Anchors that ask for more than so many times its metres, or its scale, contradict it: feet would be 3.28 times.
_OWN_FACTOR = 3.0
# Of more anchors than this the line is no surer, and takes longer.
_MOST_SAMPLES = 4096


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
    evidence: Evidence | None = None

    @property
    def source(self) -> str:
        """What the metres come from, in words."""
        return f"{self.anchors} range points" if self.anchors else "the checkpoint"


@dataclass(frozen=True)
class Refusal:
    """Why no fit could be had: a sentence that names the numbers; `fault`: it will not pass by itself."""

    reason: str
    fault: bool = False


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
    if space == "depth":
        return 1.0 / depth_m
    return depth_m if space == "inverse_depth" else np.ones_like(depth_m)


def sample(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(N,) float64 bilinear samples of the (H, W) image at (N, 2) pixels u, v; clamped at the border."""
    return _sample(np.ascontiguousarray(image, np.float32), np.ascontiguousarray(pixels, np.float32))


def _sample_by_numpy(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    rows, columns = image.shape
    flat = image.ravel()
    u, v = (np.minimum(np.maximum(pixels[:, i], 0), side - 1) for i, side in enumerate((columns, rows)))
    u0, v0 = (np.minimum(at.astype(np.intp), max(side - 2, 0)) for at, side in ((u, columns), (v, rows)))
    du, dv = u - u0, v - v0
    right, below = min(columns - 1, 1), columns * min(rows - 1, 1)
    first = v0 * columns + u0
    top = flat[first] * (1 - du) + flat[first + right] * du
    bottom = flat[first + below] * (1 - du) + flat[first + (below + right)] * du
    return top * (1 - dv) + bottom * dv


@compiled(_sample_by_numpy)
def _sample(image: Pixels, pixels: FloatRows) -> np.ndarray:
    rows, columns = image.shape
    right, below = min(columns - 1, 1), min(rows - 1, 1)
    found = np.empty(len(pixels), np.float64)
    for i in range(len(pixels)):
        u = min(max(np.float64(pixels[i, 0]), 0.0), columns - 1.0)
        v = min(max(np.float64(pixels[i, 1]), 0.0), rows - 1.0)
        column, row = max(min(int(u), columns - 2), 0), max(min(int(v), rows - 2), 0)
        du, dv = u - column, v - row
        top = image[row, column] * (1 - du) + image[row, column + right] * du
        bottom = image[row + below, column] * (1 - du) + image[row + below, column + right] * du
        found[i] = top * (1 - dv) + bottom * dv
    return found


def fit_metric(
    relative: np.ndarray,
    anchors: Anchors,
    space: str,
    config: FitConfig,
    own: MetricFit | None = None,
    shape: MetricFit | None = None,
) -> MetricFit | Refusal:
    """Robust scale and shift from anchors, or the reason why there is none.

    `relative`: (H, W) float32 of the image the anchors were projected into, affine in `space`. Half of the anchors may
    be wrong. Where they cannot tell scale from shift (one depth, a few anchors) they move a line that is known by a
    common factor: that of a metric checkpoint (`own`), that of `shape`, such as the last frame's, or a typical scene's;
    the covariance says so. Never returns a scale that is not positive.

    own: a metric checkpoint's scale and shift for this image: anchors that contradict it are refused.
    """
    if len(anchors) == 0:
        return Refusal("no anchor lies in the image: check the extrinsic, and that both sensors look the same way")
    p = sample(relative, anchors.pixels).astype(np.float64)
    if not np.isfinite(p).all() or (own is None and np.ptp(relative[::_GLANCE_PX, ::_GLANCE_PX]) < 1e-6):
        return Refusal("the network's answer is constant or not finite: its engine or checkpoint is broken", fault=True)
    try:
        samples = _samples(relative, anchors, p, space)
        evidence = gather(samples, _base(space, own, shape), config.inlier_error, config.seed, free_scale=own is None)
        line = weigh(evidence)
    except NoLine as problem:
        return Refusal(str(problem), fault=True)
    if own is not None and (contradiction := _contradiction(own, line.scale, line.shift, p)):
        return Refusal(contradiction)
    depth_m, predicted_m = anchors.depth_m.astype(np.float64), from_space(line.scale * p + line.shift, space)
    # Of a weak network the right anchors, too, are farther off.
    tolerance = max(config.inlier_error, _WEAK_SIGMAS * evidence.sigma)
    reason = why_not(anchors, relative.shape, predicted_m, tolerance, evidence.sigma, config, cold=shape is None)
    if reason is not None:
        return Refusal(reason)
    error = relative_error(predicted_m, depth_m)
    count, inliers = len(anchors), int(np.count_nonzero(error <= tolerance))
    return MetricFit(space, line.scale, line.shift, count, inliers, median(error), line.covariance, evidence)


def _samples(relative: np.ndarray, anchors: Anchors, p: np.ndarray, space: str) -> Samples:
    """What a line is fitted to: the anchors, or of many a part; `p` (N,) is relative depth at all of them."""
    some = at_random(len(anchors), _MOST_SAMPLES)
    pixels, depth_m = anchors.pixels.take(some, axis=0), anchors.depth_m.take(some).astype(np.float64)
    return Samples(
        p=p.take(some),
        y=to_space(depth_m, space),
        slope=log_slope(depth_m, space),
        weight=anchors.weight.take(some) * _cell_balance(pixels, relative.shape),
        noise=anchors.noise_m.take(some) / depth_m,
        blur=anchors.noise_px.take(some).astype(np.float64)
        * _steepness(np.ascontiguousarray(relative, np.float32), pixels),
        groups=_alike(pixels, depth_m, relative.shape),
    )


def _base(space: str, own: MetricFit | None, shape: MetricFit | None) -> Base:
    """The line that anchors move where they cannot tell more."""
    if own is not None:
        return Base(own.scale, own.shift, True, OWN_SIGMA)
    additive = space == "log_depth"
    if shape is not None:
        return Base(shape.scale, shape.shift, additive, _TYPICAL[space][2])
    scale, shift, sigma = _TYPICAL[space]
    return Base(scale, shift, additive, sigma)


def _contradiction(own: MetricFit, scale: float, shift: float, p: np.ndarray) -> str | None:
    """What a fit to anchors at `p` has against a metric checkpoint's own: metres or a scale beyond `_OWN_FACTOR`."""
    factor, bend = math.exp(median((scale - own.scale) * p + shift - own.shift)), scale / own.scale
    if all(1.0 / _OWN_FACTOR <= ratio <= _OWN_FACTOR for ratio in (factor, bend)):
        return None
    return (
        f"the anchors ask for {factor:.2f} times the checkpoint's metres and {bend:.2f} times its scale, which differs "
        f"by more than a factor of {_OWN_FACTOR:g}: check the range's unit, the extrinsic and the camera info"
    )


def _cell_balance(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N,) factors that let the anchors of one cell of the (H, W) image count as at most `_CELL_CAP` together."""
    cells = (np.maximum(pixels, 0) * np.float32(_CELLS / max(shape))).astype(np.intp)
    index = cells[:, 1] * (_CELLS + 1) + cells[:, 0]
    return np.minimum(1.0, _CELL_CAP / np.bincount(index)[index])


def _alike(pixels: np.ndarray, depth_m: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(2, N) the same number for anchors at about the same depth, and in the same part of the (H, W) image.

    A network's answer bends over depth, and is off over whole parts of the image.
    """
    octave = np.floor(np.log(depth_m) * (1.0 / math.log(_ALIKE_FACTOR))).astype(np.intp)
    part = (np.maximum(pixels, 0) * np.float32(_PARTS / max(shape))).astype(np.intp)
    return np.stack([octave - octave.min(), part[:, 1] * (_PARTS + 1) + part[:, 0]])


def _steepness_by_numpy(relative: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(N,) float32: by how much (H, W) `relative` changes over a pixel at (N, 2) `pixels`, the larger of across and
    down.
    """
    rows, columns = relative.shape
    flat = relative.ravel()
    u, v = (pixels + np.float32(0.5)).astype(np.int32).T
    u, v = np.minimum(u, columns - 1), np.minimum(v, rows - 1)
    left, right = np.maximum(u - _STEEP_PX, 0), np.minimum(u + _STEEP_PX, columns - 1)
    above, below = np.maximum(v - _STEEP_PX, 0), np.minimum(v + _STEEP_PX, rows - 1)
    across = flat[v * columns + right] - flat[v * columns + left]
    down = flat[below * columns + u] - flat[above * columns + u]
    return np.maximum(np.abs(across), np.abs(down)) * np.float32(0.5 / _STEEP_PX)


@compiled(_steepness_by_numpy)
def _steepness(relative: Pixels, pixels: FloatRows) -> np.ndarray:
    rows, columns = relative.shape
    found = np.empty(len(pixels), np.float32)
    for i in range(len(pixels)):
        u, v = int(pixels[i, 0] + np.float32(0.5)), int(pixels[i, 1] + np.float32(0.5))
        row, column = max(min(v, rows - 1), 0), max(min(u, columns - 1), 0)
        left, right = max(column - _STEEP_PX, 0), min(column + _STEEP_PX, columns - 1)
        above, below = max(row - _STEEP_PX, 0), min(row + _STEEP_PX, rows - 1)
        across = abs(relative[row, right] - relative[row, left])
        down = abs(relative[below, column] - relative[above, column])
        found[i] = max(across, down) * np.float32(0.5 / _STEEP_PX)
    return found


def apply_fit(fit: MetricFit, relative: np.ndarray, max_depth_m: float) -> np.ndarray:
    """(H, W) relative -> (H, W) float32 metres; NaN where the depth is not positive or beyond `max_depth_m`."""
    return _metres(relative, fit.scale, fit.shift, fit.space, max_depth_m, relative)


def apply_corrected(
    fit: MetricFit, relative: np.ndarray, factor: np.ndarray, fitted_m: np.ndarray, max_depth_m: float
) -> np.ndarray:
    """(h, w) relative, and as large a `factor` on its metres -> (H, W) float32 metres as `apply_fit`.

    Resized in the space of the fit, as relative depth is, so that edges stay as sharp as the network drew them. What is
    NaN in the fit's own metres, (H, W) `fitted_m`, stays so.
    """
    y = relative * np.float32(fit.scale)
    y += np.float32(fit.shift)
    if fit.space == "depth":
        y *= factor
    elif fit.space == "inverse_depth":
        y /= factor
    else:
        y += np.log(factor)
    return _metres(resize(y, *fitted_m.shape[::-1]), 1.0, 0.0, fit.space, max_depth_m, fitted_m)


def _metres(
    p: np.ndarray, scale: float, shift: float, space: str, max_depth_m: float, besides: np.ndarray
) -> np.ndarray:
    """`from_space` of (H, W) `p` times `scale` and `shift`; NaN beyond `max_depth_m` and where `besides` is."""
    low, high = (np.float32(to_space(np.float64(limit), space)) for limit in (1e-3, max_depth_m))
    arrays = (np.atleast_2d(np.ascontiguousarray(part, np.float32)) for part in (p, besides))
    metres = _on_line(*arrays, np.float32(scale), np.float32(shift), low, high, space == "inverse_depth")
    return (np.exp(metres, out=metres) if space == "log_depth" else metres).reshape(np.shape(p))


def _on_line_by_numpy(
    p: np.ndarray, besides: np.ndarray, scale: float, shift: float, low: float, high: float, inverse: bool
) -> np.ndarray:
    """(H, W) float32 y = scale * p + shift, or -1 / y if `inverse`; NaN where it is not in (low, high] or no number
    is beside it.
    """
    y = p * scale
    y += shift
    known = y > low
    known &= y <= high
    known &= besides == besides
    np.copyto(y, np.float32(np.nan), where=np.logical_not(known, out=known))
    return np.divide(np.float32(-1.0), y, out=y) if inverse else y


@compiled(_on_line_by_numpy)
def _on_line(
    p: Pixels, besides: Pixels, scale: Float, shift: Float, low: Float, high: Float, inverse: Bool
) -> np.ndarray:
    rows, columns = p.shape
    result = np.empty((rows, columns), np.float32)
    for i in range(rows):
        line, beside, into = p[i], besides[i], result[i]
        for j in range(columns):
            y = line[j] * scale + shift
            known = (y > low) & (y <= high) & (beside[j] == beside[j])
            into[j] = (np.float32(-1) / y if inverse else y) if known else np.float32(np.nan)
    return result
