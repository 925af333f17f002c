"""Relative depth and anchors -> metres.

A network of the Marigold family answers up to an unknown scale and shift: y = scale * relative + shift, where y = g(z)
and g depends on the checkpoint's `space`. g increases with z in every space, so a usable scale is always positive.
Residuals are measured as *relative depth error* in every space, because a metre matters at 2 m and not at 80 m.

A metric checkpoint comes with a scale and shift of its own (`canonical`). Anchors refine them, with that scale as a
prior: few anchors, or all at one depth, correct the metres by a common factor; many at many depths the scale as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from marigold_ros.acceptance import why_not
from marigold_ros.anchors import Anchors, at_random
from marigold_ros.compiled import Bool, Double, Doubles, Float, FloatRows, Floats, Int, Ints, Pixels, compiled
from marigold_ros.config import FitConfig, Unusable
from marigold_ros.geometry import between_rows, stretched, widened
from marigold_ros.robust_fit import Base, Evidence, NoLine, Samples, gather, median, weigh
from marigold_ros.unknown import ENDLESS, FAR_END, Reach

SPACES = ("depth", "inverse_depth", "log_depth")
# Their places in that list, which is how loops know them.
DEPTH, INVERSE = 0, 1

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

    `residual` is the median relative depth error over all anchors of the image, `inliers` how many of these agree with
    the fit, which may rest on others: so many `anchors`. Without any they are NaN and 0. A metric checkpoint's own
    scale and shift rest on none.
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


# Metres as they are.
_AS_IT_IS = MetricFit("depth", 1.0, 0.0, anchors=0, inliers=0, residual=math.nan)


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


def depth_at(y: float, space: int) -> float:
    """For loops: `from_space`, by the space's place in `SPACES`."""
    if space == DEPTH:
        return y if y > 0 else np.nan
    if space == INVERSE:
        return -1.0 / y if y < 0 else np.nan
    return np.exp(y)


def log_slope_at(y: float, space: int) -> float:
    """For loops: `log_slope` at the depth whose g is y; infinite where there is none."""
    if space == DEPTH:
        return 1.0 / y if y > 0 else np.inf
    if space == INVERSE:
        return -1.0 / y if y < 0 else np.inf
    return 1.0


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
    found = np.empty(len(pixels), np.float64)
    for i in range(len(pixels)):
        found[i] = bilinear(image, pixels[i, 0], pixels[i, 1])
    return found


def bilinear(image: np.ndarray, u: float, v: float) -> float:
    """For loops: what `sample` gives of one pixel."""
    rows, columns = image.shape
    right, below = min(columns - 1, 1), min(rows - 1, 1)
    u, v = min(max(np.float64(u), 0.0), columns - 1.0), min(max(np.float64(v), 0.0), rows - 1.0)
    column, row = max(min(int(u), columns - 2), 0), max(min(int(v), rows - 2), 0)
    du, dv = u - column, v - row
    top = image[row, column] * (1 - du) + image[row, column + right] * du
    bottom = image[row + below, column] * (1 - du) + image[row + below, column + right] * du
    return top * (1 - dv) + bottom * dv


def fit_metric(
    relative: np.ndarray,
    anchors: Anchors,
    space: str,
    config: FitConfig,
    own: MetricFit | None = None,
    shape: MetricFit | None = None,
    p: np.ndarray | None = None,
) -> MetricFit | Refusal:
    """Robust scale and shift from anchors, or the reason why there is none.

    `relative`: (H, W) float32 of the image the anchors were projected into, affine in `space`. Half of the anchors may
    be wrong. Where they cannot tell scale from shift (one depth, a few anchors) they move a line that is known by a
    common factor: that of a metric checkpoint (`own`), that of `shape`, such as the last frame's, or a typical scene's;
    the covariance says so. Never returns a scale that is not positive.

    own: a metric checkpoint's scale and shift for this image: anchors that contradict it are refused. p: (N,) what
    `sample` gives at the anchors, where somebody has it.
    """
    if len(anchors) == 0:
        return Refusal("no anchor lies in the image: check the extrinsic, and that both sensors look the same way")
    relative = np.ascontiguousarray(relative, np.float32)
    p = sample(relative, anchors.pixels) if p is None else p
    constant = own is None and np.ptp(p) < 1e-6 and np.ptp(relative[::_GLANCE_PX, ::_GLANCE_PX]) < 1e-6
    if constant or not np.isfinite(p).all():
        return Refusal("the network's answer is constant or not finite: its engine or checkpoint is broken", fault=True)
    try:
        samples = _samples(relative, anchors, p, space)
        evidence = gather(samples, _base(space, own, shape), config.inlier_error, config.seed, free_scale=own is None)
        line = weigh(evidence)
    except NoLine as problem:
        return Refusal(str(problem), fault=True)
    if own is not None and (contradiction := _contradiction(own, line.scale, line.shift, p)):
        return Refusal(contradiction)
    fit = MetricFit(space, line.scale, line.shift, len(anchors), 0, math.nan, line.covariance, evidence)
    predicted_m, error = _off(fit, anchors, p)
    tolerance = _tolerance(evidence, config)
    reason = why_not(anchors, relative.shape, predicted_m, error, tolerance, evidence.sigma, config, shape is None)
    if reason is not None:
        return Refusal(reason)
    return _judged(fit, error, tolerance)


def judged(fit: MetricFit, anchors: Anchors | None, p: np.ndarray | None, config: FitConfig) -> MetricFit:
    """The fit with what the anchors of an image say of it: its inliers and residual. p: (N,) relative depth at them."""
    if anchors is None or len(anchors) == 0:
        return replace(fit, inliers=0, residual=math.nan)
    return _judged(fit, _off(fit, anchors, p)[1], _tolerance(fit.evidence, config))


def _judged(fit: MetricFit, error: np.ndarray, tolerance: float) -> MetricFit:
    return replace(fit, inliers=int(np.count_nonzero(error <= tolerance)), residual=median(error))


def _tolerance(evidence: Evidence, config: FitConfig) -> float:
    """The relative error up to which an anchor agrees with a fit."""
    # Of a weak network the right anchors, too, are farther off.
    return max(config.inlier_error, _WEAK_SIGMAS * evidence.sigma)


def _off(fit: MetricFit, anchors: Anchors, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) metres by the fit at the anchors, where relative depth is p (N,), and how far off they are, relative."""
    depth_m = np.ascontiguousarray(anchors.depth_m, np.float32)
    return _predicted(p, depth_m, fit.scale, fit.shift, SPACES.index(fit.space))


def _samples(relative: np.ndarray, anchors: Anchors, p: np.ndarray, space: str) -> Samples:
    """What a line is fitted to: the anchors, or of many a part; `p` (N,) is relative depth at all of them."""
    some = at_random(len(anchors), _MOST_SAMPLES)
    measured = (anchors.depth_m, anchors.weight, anchors.noise_m, anchors.noise_px)
    floats = (np.ascontiguousarray(part, np.float32) for part in (anchors.pixels, *measured))
    return Samples(*_measured(relative, *floats, p, some, SPACES.index(space)))


def _measured_by_numpy(
    relative: np.ndarray,
    pixels: np.ndarray,
    depth_m: np.ndarray,
    weight: np.ndarray,
    noise_m: np.ndarray,
    noise_px: np.ndarray,
    p: np.ndarray,
    some: np.ndarray,
    space: int,
) -> tuple[np.ndarray, ...]:
    """The parts of `Samples`, of `some` (M,) of N anchors, with what `Anchors` has of them, and (N,) `p`, in (H, W)
    `relative` depth that is affine in `SPACES[space]`.
    """
    pixels, depth_m, p = pixels[some], depth_m[some].astype(np.float64), p[some]
    # Neighbouring anchors count as at most `_CELL_CAP` together.
    cells = (np.maximum(pixels, 0) * np.float32(_CELLS / max(relative.shape))).astype(np.intp)
    cell = cells[:, 1] * (_CELLS + 1) + cells[:, 0]
    balance = np.minimum(1.0, _CELL_CAP / np.bincount(cell)[cell])
    # A network's answer bends over depth, and is off over whole parts of the image.
    octave = np.floor(np.log(depth_m) * (1.0 / math.log(_ALIKE_FACTOR))).astype(np.int64)
    part = (np.maximum(pixels, 0) * np.float32(_PARTS / max(relative.shape))).astype(np.int64)
    groups = np.stack([octave - octave.min(), part[:, 1] * (_PARTS + 1) + part[:, 0]])
    y, slope = to_space(depth_m, SPACES[space]), log_slope(depth_m, SPACES[space])
    blur = noise_px[some].astype(np.float64) * _steepness_by_numpy(relative, pixels)
    return p, np.ascontiguousarray(y), slope, weight[some] * balance, noise_m[some] / depth_m, blur, groups


@compiled(_measured_by_numpy)
def _measured(
    relative: Pixels,
    pixels: FloatRows,
    depth_m: Floats,
    weight: Floats,
    noise_m: Floats,
    noise_px: Floats,
    p: Doubles,
    some: Ints,
    space: Int,
) -> tuple[np.ndarray, ...]:
    count, longer = len(some), max(relative.shape)
    of_p, y, slope, weights = np.empty(count), np.empty(count), np.empty(count), np.empty(count)
    noise, blur, groups = np.empty(count), np.empty(count), np.empty((2, count), np.int64)
    cell, in_cell = np.empty(count, np.int64), np.zeros((_CELLS + 1) ** 2)
    for i in range(count):
        u, v = max(pixels[some[i], 0], np.float32(0)), max(pixels[some[i], 1], np.float32(0))
        per_px = np.float32(_CELLS / longer)
        cell[i] = min(int(v * per_px), _CELLS) * (_CELLS + 1) + min(int(u * per_px), _CELLS)
        in_cell[cell[i]] += 1.0
        per_px = np.float32(_PARTS / longer)
        groups[1, i] = int(v * per_px) * (_PARTS + 1) + int(u * per_px)
        groups[0, i] = int(np.floor(np.log(np.float64(depth_m[some[i]])) * (1.0 / math.log(_ALIKE_FACTOR))))
    nearest = groups[0].min()
    for i in range(count):
        of, z = some[i], np.float64(depth_m[some[i]])
        groups[0, i] -= nearest
        of_p[i], weights[i] = p[of], weight[of] * min(1.0, _CELL_CAP / in_cell[cell[i]])
        noise[i], blur[i] = noise_m[of] / z, noise_px[of] * _steepness(relative, pixels[of, 0], pixels[of, 1])
        y[i] = z if space == DEPTH else -1.0 / z if space == INVERSE else np.log(z)
        slope[i] = log_slope_at(y[i], space)
    return of_p, y, slope, weights, noise, blur, groups


def _predicted_by_numpy(
    p: np.ndarray, depth_m: np.ndarray, scale: float, shift: float, space: int
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) metres by a line over (N,) `p`, NaN where there are none; (N,) float32 how far off (N,) measured ones they
    are, relative, infinite where there are none.
    """
    predicted_m = from_space(scale * p + shift, SPACES[space])
    error = np.abs(predicted_m - depth_m) / depth_m
    return predicted_m, np.where(np.isnan(error), np.inf, error).astype(np.float32)


@compiled(_predicted_by_numpy)
def _predicted(p: Doubles, depth_m: Floats, scale: Double, shift: Double, space: Int) -> tuple[np.ndarray, np.ndarray]:
    predicted_m, error = np.empty(len(p)), np.empty(len(p), np.float32)
    for i in range(len(p)):
        predicted_m[i] = z = depth_at(scale * p[i] + shift, space)
        error[i] = abs(z - depth_m[i]) / depth_m[i] if z == z else np.inf
    return predicted_m, error


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


def _steepness(relative: np.ndarray, u: float, v: float) -> float:
    """For loops: what `_steepness_by_numpy` gives of one pixel."""
    rows, columns = relative.shape
    row = max(min(int(v + np.float32(0.5)), rows - 1), 0)
    column = max(min(int(u + np.float32(0.5)), columns - 1), 0)
    left, right = max(column - _STEEP_PX, 0), min(column + _STEEP_PX, columns - 1)
    above, below = max(row - _STEEP_PX, 0), min(row + _STEEP_PX, rows - 1)
    across, down = relative[row, right] - relative[row, left], relative[below, column] - relative[above, column]
    return max(abs(across), abs(down)) * np.float32(0.5 / _STEEP_PX)


def apply_fit(fit: MetricFit, relative: np.ndarray, max_depth_m: float) -> np.ndarray:
    """(H, W) relative -> (H, W) float32 metres; NaN where the depth is not positive or beyond `max_depth_m`."""
    p, line = np.atleast_2d(np.ascontiguousarray(relative, np.float32)), (np.float32(fit.scale), np.float32(fit.shift))
    metres = _on_line(p, *line, *_limits(fit.space, max_depth_m), fit.space == "inverse_depth")
    return (np.exp(metres, out=metres) if fit.space == "log_depth" else metres).reshape(np.shape(relative))


@dataclass(frozen=True)
class FittedDepth:
    """Metres of (H, W) float32 `relative` depth by a fit, worked out only where they are asked for; NaN as `apply_fit`
    has it.
    """

    fit: MetricFit
    relative: np.ndarray
    max_depth_m: float

    @staticmethod
    def of_metres(depth_m: np.ndarray) -> FittedDepth:
        """Of (H, W) metres that need no fit, NaN unknown."""
        return FittedDepth(_AS_IT_IS, np.ascontiguousarray(depth_m, np.float32), math.inf)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image, pixels."""
        return self.relative.shape

    def at(self, pixels: np.ndarray) -> np.ndarray:
        """(N,) float32 at (N, 2) pixels u, v, as `sample` has relative depth there."""
        return apply_fit(self.fit, sample(self.relative, pixels), self.max_depth_m)

    def steepness_ln(self, pixels: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
        """(N,) float32: by how much ln depth changes over a pixel at (N, 2) pixels, where it is (N,) `depth_m`."""
        steep = _steepness_by_numpy(self.relative, pixels) * np.float32(self.fit.scale)
        return (steep * log_slope(depth_m, self.fit.space)).astype(np.float32)

    def share_beyond(self, depth_m: float, top: float, bottom: float, left: float, right: float) -> float:
        """For which share of a part of the image the fit has more than so many metres, or none; the part's borders are
        shares of height and width.
        """
        rows, columns = self.shape
        part = self.relative[round(top * rows) : round(bottom * rows), round(left * columns) : round(right * columns)]
        glance = part[::_GLANCE_PX, ::_GLANCE_PX]
        most = (to_space(np.float64(depth_m), self.fit.space) - self.fit.shift) / self.fit.scale
        return np.count_nonzero(glance > most) / max(glance.size, 1)

    def every(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(h, w) float32 metres, and relative depth, at every so-manieth row and column."""
        at = slice(step // 2, None, step)
        small = np.ascontiguousarray(self.relative[at, at])
        return apply_fit(self.fit, small, self.max_depth_m), small


def apply_corrected(
    fit: MetricFit,
    coarse: np.ndarray,
    factor: np.ndarray,
    relative: np.ndarray,
    max_depth_m: float,
    reach: Reach = ENDLESS,
) -> np.ndarray:
    """(h, w) `coarse` relative depth, and as large a `factor` on its metres -> (H, W) float32 metres as `apply_fit`.

    Resized in the space of the fit, as relative depth is, so that edges stay as sharp as the network drew them. What
    the fit itself has no metres for at (H, W) `relative` stays NaN, and what `forget_far` forgets is.
    """
    y = coarse * np.float32(fit.scale)
    y += np.float32(fit.shift)
    if fit.space == "depth":
        y *= factor
    elif fit.space == "inverse_depth":
        y /= factor
    else:
        y += np.log(factor)
    ends = np.array([
        *_limits(fit.space, min(max_depth_m, reach.fitted_m)),
        *(_limits(fit.space, min(max_depth_m, most_m))[1] for most_m in reach.farthest_m),
    ])  # fmt: skip
    line = np.float32(fit.scale), np.float32(fit.shift)
    metres = _enlarged(widened(y, relative.shape[1]), relative, *line, ends, fit.space == "inverse_depth")
    return np.exp(metres, out=metres) if fit.space == "log_depth" else metres


def _enlarged_by_numpy(
    wide: np.ndarray, relative: np.ndarray, scale: float, shift: float, ends: np.ndarray, inverse: bool
) -> np.ndarray:
    """`_on_line` of (h, W) `wide` at the size of (H, W) `relative`; NaN where that has no metres by scale and shift.

    ends: what those lie between; and the most that is known, elsewhere and where relative depth is at its end.
    """
    low, high, most, most_sky = ends
    y = relative * scale
    y += shift
    known = y > low
    known &= y <= high
    y = stretched(wide, *relative.shape[::-1])
    known &= y > low
    known &= y <= most
    if most_sky < most:
        sky = relative > np.float32(FAR_END)
        sky &= y > most_sky
        known &= np.logical_not(sky, out=sky)
    np.copyto(y, np.float32(np.nan), where=np.logical_not(known, out=known))
    return np.divide(np.float32(-1.0), y, out=y) if inverse else y


@compiled(_enlarged_by_numpy)
def _enlarged(wide: Pixels, relative: Pixels, scale: Float, shift: Float, ends: Floats, inverse: Bool) -> np.ndarray:
    rows, columns = relative.shape
    low, high, most, most_sky = ends
    result, line = np.empty((rows, columns), np.float32), np.empty(columns, np.float32)
    for i in range(rows):
        between_rows(line, wide, i, rows)
        values, into = relative[i], result[i]
        for j in range(columns):
            fitted = values[j] * scale + shift
            limit = most_sky if values[j] > np.float32(FAR_END) else most
            known = (line[j] > low) & (line[j] <= limit) & (fitted > low) & (fitted <= high)
            into[j] = (np.float32(-1) / line[j] if inverse else line[j]) if known else np.float32(np.nan)
    return result


@lru_cache(maxsize=16)
def _limits(space: str, max_depth_m: float) -> tuple[np.float32, np.float32]:
    """What the values of a space lie between: above the first, that of a millimetre, up to that of the other depth."""
    low, high = (np.float32(to_space(np.float64(limit), space)) for limit in (1e-3, max_depth_m))
    return low, high


def _on_line_by_numpy(p: np.ndarray, scale: float, shift: float, low: float, high: float, inverse: bool) -> np.ndarray:
    """(H, W) float32 y = scale * p + shift, or -1 / y if `inverse`; NaN where it is not in (low, high]."""
    y = p * scale
    y += shift
    known = y > low
    known &= y <= high
    np.copyto(y, np.float32(np.nan), where=np.logical_not(known, out=known))
    return np.divide(np.float32(-1.0), y, out=y) if inverse else y


@compiled(_on_line_by_numpy)
def _on_line(p: Pixels, scale: Float, shift: Float, low: Float, high: Float, inverse: Bool) -> np.ndarray:
    rows, columns = p.shape
    result = np.empty((rows, columns), np.float32)
    for i in range(rows):
        line, into = p[i], result[i]
        for j in range(columns):
            y = line[j] * scale + shift
            into[j] = (np.float32(-1) / y if inverse else y) if (y > low) & (y <= high) else np.float32(np.nan)
    return result
