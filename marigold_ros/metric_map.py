"""The metres of a frame, remembered at a grid of its pixels, in terms of the next frame's relative depth.

A network of the Marigold family normalises every image anew: its scale and shift jump when a near object comes into
view. The metric map does not. So the map is compared with the new relative depth, which says what scale and shift it
has now, and how sure that is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from marigold_ros.compiled import Double, DoubleRows, Doubles, Int, IntRows, Pixels, compiled
from marigold_ros.geometry import Camera, seen_from
from marigold_ros.metric import SPACES, MetricFit, depth_at, from_space, log_slope, log_slope_at, to_space
from marigold_ros.robust_fit import Base, NoLine, Samples, gather, median, weigh

# The map is remembered at so many pixels across and down.
_GRID = (32, 24)
# Relative errors up to which a pixel supports a comparison of maps, the share of pixels that must, and the fewest.
_SAME, _SAME_SHARE, _FEWEST = 0.3, 0.5, 50
# Those that scale and shift are told from must be within so many medians of the errors; up to the other all are.
_SAME_MEDIANS, _SAME_LEAST = 4.0, 0.01
# Where as many are within this of what they were, scale and shift are looked for from where they were.
_UNCHANGED = 0.1
# What the metres lose from a frame to the next, and over a second: relative, one standard deviation.
_EACH, _DRIFT = 0.01, 0.044
_SINGULAR = 1e-9
_ROUNDS = 4


@dataclass(frozen=True)
class MetricMap:
    """A frame's fit, and its relative depth at pixels (K, 2) of the (H, W) image, (K,) float64."""

    fit: MetricFit
    pixels: np.ndarray
    relative: np.ndarray

    @staticmethod
    def of(fit: MetricFit, relative: np.ndarray) -> MetricMap:
        """The map of (H, W) float32 `relative`."""
        return MetricMap(fit, _grid(relative.shape), glance(relative))

    def carried_to(
        self,
        relative: np.ndarray,
        elapsed_s: float,
        speed_m_s: float,
        camera: Camera,
        now_from_then: np.ndarray | None = None,
        shift_px: np.ndarray | None = None,
    ) -> tuple[MetricFit, Carried] | None:
        """The fit of (H, W) float32 `relative`, of a later image, that keeps the map's metres; None in another scene.

        now_from_then: (4, 4) how the camera moved; None where that is not known: then the picture may be known to have
        moved by `shift_px` (2,). speed_m_s: what it may have moved by besides. The fit's covariance has grown by what
        time and motion may have changed.
        """
        relative, space = np.ascontiguousarray(relative, np.float32), SPACES.index(self.fit.space)
        pose = np.empty((0, 4)) if now_from_then is None else np.ascontiguousarray(now_from_then[:3], np.float64)
        shift = np.zeros(2) if shift_px is None else np.asarray(shift_px, np.float64)
        lens = np.array([camera.fx, camera.fy, camera.cx, camera.cy], np.float64)
        known = self.pixels, self.relative, self.fit.scale, self.fit.shift, space
        p, depth_m = _seen_again(relative, *known, pose, shift, lens)
        if len(p) < _FEWEST:
            return None
        line = _line_of_same(p, to_space(depth_m, self.fit.space), log_slope(depth_m, self.fit.space), self.fit)
        if line is None:
            return None
        step = Carried(line[0] / self.fit.scale, (line[1] - self.fit.shift) / self.fit.scale)
        fit = step(self.fit)
        whole = glance(relative)
        noise = _covariance_of_whole(whole, fit)
        if noise is None:
            return None
        # Motion goes on the same way: what it adds to the deviation adds up, and not its square.
        growth = 1.0 + speed_m_s * elapsed_s / median(depth_m) / relative_sigma(whole, fit)
        lost = _EACH**2 + _DRIFT**2 * elapsed_s
        covariance = tuple(growth**2 * of + lost * more for of, more in zip(fit.covariance, noise, strict=True))
        return replace(fit, covariance=covariance), step


def _seen_again_by_numpy(
    relative: np.ndarray,
    pixels: np.ndarray,
    p: np.ndarray,
    scale: float,
    shift: float,
    space: int,
    pose: np.ndarray,
    shift_px: np.ndarray,
    lens: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(M,) relative depths in (H, W) `relative` where the map's pixels (K, 2) are now, and the metres that they have by
    (K,) relative depth `p` and its scale and shift: of those that are in sight.

    pose: (3, 4) as the camera moved; empty, the picture moved by `shift_px` (2,). lens: fx, fy, cx, cy.
    """
    depth_m = from_space(scale * p + shift, SPACES[space])
    camera = Camera(*relative.shape[::-1], *lens)
    if len(pose) > 0:
        places, depth_m, known = seen_from(pixels, depth_m, camera, pose)
    else:
        places = pixels + shift_px
        known = np.isfinite(depth_m) & camera.contains(places)
    return _at(relative, np.rint(places[known]).astype(np.intp)), depth_m[known]


@compiled(_seen_again_by_numpy)
def _seen_again(
    relative: Pixels,
    pixels: IntRows,
    p: Doubles,
    scale: Double,
    shift: Double,
    space: Int,
    pose: DoubleRows,
    shift_px: Doubles,
    lens: Doubles,
) -> tuple[np.ndarray, np.ndarray]:
    fx, fy, cx, cy = lens
    height, width = relative.shape
    again, depth_m, found = np.empty(len(p)), np.empty(len(p)), 0
    for i in range(len(p)):
        z = depth_at(scale * p[i] + shift, space)
        if not z < np.inf:  # NaN is not
            continue
        u, v = pixels[i, 0] + shift_px[0], pixels[i, 1] + shift_px[1]
        if len(pose) > 0:
            x, y = z * (pixels[i, 0] - cx) / fx, z * (pixels[i, 1] - cy) / fy
            right = pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3]
            down = pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3]
            z = pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3]
            u, v = right / z * fx + cx, down / z * fy + cy
        if z > 0 and -0.5 <= u < width - 0.5 and -0.5 <= v < height - 0.5:
            again[found], depth_m[found] = relative[int(np.rint(v)), int(np.rint(u))], z
            found += 1
    return again[:found].copy(), depth_m[:found].copy()


@dataclass(frozen=True)
class Carried:
    """What takes a later image's relative depth p to that of an earlier one: factor * p + term."""

    factor: float
    term: float

    def __call__(self, fit: MetricFit) -> MetricFit:
        """The earlier image's fit, in terms of the later one's relative depth; its covariance too."""
        of_scale, both, of_shift = fit.covariance
        with_term = of_scale * self.term + both
        covariance = of_scale * self.factor**2, with_term * self.factor, (with_term + both) * self.term + of_shift
        scale, shift = fit.scale * self.factor, fit.scale * self.term + fit.shift
        return replace(fit, scale=scale, shift=shift, covariance=covariance)


def glance(relative: np.ndarray) -> np.ndarray:
    """(K,) float64: (H, W) relative depth at the pixels that the map is remembered at."""
    return _at(relative, _grid(relative.shape))


def relative_sigma(p: np.ndarray, fit: MetricFit) -> float:
    """The standard deviation of ln z by the fit's covariance alone, the median over relative depths (K,), see `glance`;
    infinite where none of them is a depth.
    """
    return _sigma(p, fit.scale, fit.shift, *fit.covariance, SPACES.index(fit.space))


def _sigma_by_numpy(
    p: np.ndarray, scale: float, shift: float, of_scale: float, both: float, of_shift: float, space: int
) -> float:
    depth_m = from_space(scale * p + shift, SPACES[space])
    known = np.isfinite(depth_m)
    if not known.any():
        return math.inf
    p, slope = p[known], log_slope(depth_m[known], SPACES[space])
    return math.sqrt(median(slope**2 * (of_scale * p**2 + 2.0 * both * p + of_shift)))


@compiled(_sigma_by_numpy)
def _sigma(
    p: Doubles, scale: Double, shift: Double, of_scale: Double, both: Double, of_shift: Double, space: Int
) -> float:
    variance, found = np.empty(len(p)), 0
    for i in range(len(p)):
        slope = log_slope_at(scale * p[i] + shift, space)
        if slope < np.inf:
            variance[found] = slope * slope * ((of_scale * p[i] + 2.0 * both) * p[i] + of_shift)
            found += 1
    return math.sqrt(np.median(variance[:found])) if found > 0 else np.inf


def _line_of_same(p: np.ndarray, y: np.ndarray, slope: np.ndarray, before: MetricFit) -> tuple[float, float] | None:
    """Scale and shift of y over p; None where too few agree.

    Both are a network's answers and equally wrong, so neither is regressed on the other: the slope is that of the
    reduced major axis. (Regression would flatten the map a little with every frame.)
    """
    scale, shift = before.scale, before.shift
    if np.count_nonzero(np.abs(slope * (scale * p + shift - y)) < _UNCHANGED) < _SAME_SHARE * len(p):
        nothing, one = np.zeros_like(p), np.ones_like(p)
        samples = Samples(p, y, slope, one, nothing, nothing, groups=np.empty((0, len(p)), np.int64))
        try:
            line = weigh(gather(samples, Base(scale, shift, True, 1.0), _SAME, seed=0))
        except NoLine:
            return None
        scale, shift = line.scale, line.shift
    same, scale, shift = _reduced_major_axis(p, y, scale, shift, SPACES.index(before.space))
    return (scale, shift) if same else None


def _reduced_major_axis_by_numpy(
    p: np.ndarray, y: np.ndarray, scale: float, shift: float, space: int
) -> tuple[bool, float, float]:
    """Whether enough of y over p, (K,), agrees; scale and shift of what does, from where they are looked for."""
    for _ in range(_ROUNDS):
        # What is the same, and what it weighs, is told from the middle between the two: either alone would take sides.
        middle_m = from_space((y + scale * p + shift) / 2.0, SPACES[space])
        slope = log_slope(np.where(np.isfinite(middle_m), middle_m, 1.0), SPACES[space])
        off = np.where(np.isfinite(middle_m), np.abs(slope * (scale * p + shift - y)), np.inf)
        if np.count_nonzero(off < _SAME) < _SAME_SHARE * len(p):
            return False, scale, shift
        # Without what changed more than most of the map did, by itself: somebody who comes nearer would bend the line.
        same = off < min(max(_SAME_MEDIANS * median(off), _SAME_LEAST), _SAME)
        weight = np.where(same, slope**2, 0.0)
        total = weight.sum()
        mean_p, mean_y = weight @ p / total, weight @ y / total
        spread_p, spread_y = weight @ (p - mean_p) ** 2, weight @ (y - mean_y) ** 2
        if spread_p > 0 and spread_y > 0:  # else all that stays is at one depth: it tells the shift alone
            scale = math.sqrt(spread_y / spread_p)
        shift = float(mean_y - scale * mean_p)
    return True, scale, shift


@compiled(_reduced_major_axis_by_numpy)
def _reduced_major_axis(p: Doubles, y: Doubles, scale: Double, shift: Double, space: Int) -> tuple[bool, float, float]:
    off, squared = np.empty(len(p)), np.empty(len(p))
    for _ in range(_ROUNDS):
        agreeing = 0
        for i in range(len(p)):
            slope = log_slope_at((y[i] + scale * p[i] + shift) / 2.0, space)
            squared[i] = slope * slope
            off[i] = abs(slope * (scale * p[i] + shift - y[i])) if slope < np.inf else np.inf
            agreeing += off[i] < _SAME
        if agreeing < _SAME_SHARE * len(p):
            return False, scale, shift
        most = min(max(_SAME_MEDIANS * np.median(off), _SAME_LEAST), _SAME)
        total = mean_p = mean_y = spread_p = spread_y = 0.0
        for i in range(len(p)):
            if off[i] < most:
                total += squared[i]
                mean_p += squared[i] * p[i]
                mean_y += squared[i] * y[i]
        mean_p /= total
        mean_y /= total
        for i in range(len(p)):
            if off[i] < most:
                spread_p += squared[i] * (p[i] - mean_p) ** 2
                spread_y += squared[i] * (y[i] - mean_y) ** 2
        if spread_p > 0 and spread_y > 0:
            scale = math.sqrt(spread_y / spread_p)
        shift = mean_y - scale * mean_p
    return True, scale, shift


def _covariance_of_whole(p: np.ndarray, fit: MetricFit) -> tuple[float, float, float] | None:
    """Covariance as `MetricFit` has it, for which the relative variance is 1, on average over the map (K,).

    None where there is next to no map.
    """
    known, of_scale, both, of_shift = _sums(p, fit.scale, fit.shift, SPACES.index(fit.space))
    # Of two variables: the share of the variance of one that the other does not explain.
    determinant = of_scale * of_shift - both**2
    if known < _FEWEST or determinant <= _SINGULAR * of_scale * of_shift:
        return None
    share = known / (2.0 * determinant)
    return of_shift * share, -both * share, of_scale * share


def _sums_by_numpy(p: np.ndarray, scale: float, shift: float, space: int) -> tuple[int, float, float, float]:
    """How many of (K,) relative depths are depths; of these the sums of squared `log_slope`, times p squared, p, 1."""
    depth_m = from_space(scale * p + shift, SPACES[space])
    known = np.isfinite(depth_m)
    p, squared = p[known], log_slope(depth_m[known], SPACES[space]) ** 2
    return len(p), squared @ p**2, squared @ p, squared.sum()


@compiled(_sums_by_numpy)
def _sums(p: Doubles, scale: Double, shift: Double, space: Int) -> tuple[int, float, float, float]:
    known, of_scale, both, of_shift = 0, 0.0, 0.0, 0.0
    for i in range(len(p)):
        slope = log_slope_at(scale * p[i] + shift, space)
        if slope < np.inf:
            known += 1
            of_scale += slope * slope * p[i] * p[i]
            both += slope * slope * p[i]
            of_shift += slope * slope
    return known, of_scale, both, of_shift


@lru_cache(maxsize=2)
def _grid(shape: tuple[int, int]) -> np.ndarray:
    """(K, 2) pixels u, v: the centres of a grid of cells over an (H, W) image."""
    v = ((np.arange(_GRID[1]) + 0.5) * shape[0] / _GRID[1]).astype(np.intp)
    u = ((np.arange(_GRID[0]) + 0.5) * shape[1] / _GRID[0]).astype(np.intp)
    pixels = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    pixels.flags.writeable = False  # they are everybody's
    return pixels


def _at(relative: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(K,) float64."""
    return relative[pixels[:, 1], pixels[:, 0]].astype(np.float64)
