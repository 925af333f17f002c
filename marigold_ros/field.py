"""A smooth, bounded correction of metric depth where anchors contradict the global fit.

A network's errors vary over the image: the slope of the floor, a far field that is bent. The logarithm of measured over
fitted depth at the anchors is spread over a grid of column, row and log depth, from coarse to fine, and read back at
every pixel. Log depth as the third axis keeps a correction on its side of an edge of depth. Away from the anchors, over
the image and beyond their depths, it fades, and what changes changes smoothly. (A bilateral
grid, Chen et al., SIGGRAPH 2007, filled by normalised convolution of what the coarser levels left over.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from marigold_ros.anchors import LIDAR_NOISE_PX, Anchors, at_random
from marigold_ros.compiled import (
    Doubles,
    Float,
    FloatRows,
    Floats,
    Grid,
    Grids,
    Int,
    Pixels,
    WrittenGrid,
    compiled,
)
from marigold_ros.metric import FittedDepth, MetricFit, apply_corrected, apply_fit
from marigold_ros.unknown import ENDLESS, Reach, reach_of
from marigold_ros.vote import CELLS, FARTHEST_LN, places_of, trust_of

# Columns, rows and steps of log depth.
_NODES = (*CELLS, 6)
_SHAPE = _NODES[1], _NODES[0], _NODES[2]
# More anchors than this say nothing new about so few nodes, and take their time.
MOST_ANCHORS = 4096
# Coarse to fine: how far anchors reach, in passes of a [1 2 1] / 4 filter, and the weight of anchors at which a node
# goes half of the way.
_LEVELS = ((100, 0.001), (16, 0.002), (3, 0.01), (1, 0.05), (1, 0.02))
# An anchor whose noise is so much, in ln depth, counts half.
_SURE_LN = 0.02
# The end nodes are at least so far apart, in ln m.
_LEAST_LN = 0.1
# Whether anchors agree with a field is told by so many of them.
_ASKED = 1024
# In the finest levels an anchor is shared by the eight nodes around it; the coarser ones do not tell the nearest from
# all of them, which take four times as long.
_SHARED_LEVELS = 3
# From so many passes on, products of matrices take half as long as a filter.
_FAR_PASSES = 50
# Along log depth, whose nodes are few, anchors reach less far.
_STEP_PASSES = 16
# In the distance to the anchors: a ln of depth is as far as half of the image.
_NODES_PER_LN = 30.0
# Beyond the nearest and farthest anchor the correction fades to nothing over this much of ln depth.
_FADE = 0.5
# Beyond so many nodes from any anchor depth rests on the scale and shift alone, and gets no worse.
FARTHEST = 7.0
# In so many steps.
_AGES = 5
# Anchors in parts of the image of so many nodes each way are beside each other; how far all reach is told by whether
# they lie in larger ones.
_BESIDE, _REACHED = 2, 3
# cv2.remap takes no larger pictures, and every row of the image is as many rows there as there are steps of log depth.
_BAND_ROWS = 4096


@dataclass(frozen=True)
class Evidence:
    """What N anchors say of a fit: `residual`, ln of measured over fitted depth, and the `weight` of each, float32.

    `depth_m`, (N,): what was measured. `left` and `said`, (N,): as those of `Anchors`. `trust` (N,) float32 in [0, 1]:
    whether those around agree. `pixels` (N, 2) u, v. `places` (3, N): column, row and step in the grid. `low`
    and `high`: ln m of the end nodes.
    """

    residual: np.ndarray
    weight: np.ndarray
    depth_m: np.ndarray
    left: np.ndarray
    said: np.ndarray
    trust: np.ndarray
    pixels: np.ndarray
    places: np.ndarray
    low: float
    high: float

    @property
    def fresh(self) -> np.ndarray:
        """(N,) bool: those of this image."""
        return np.isnan(self.said)

    def at(self, grid: np.ndarray) -> np.ndarray:
        """(N,) values of a grid (rows, columns, steps) at the anchors, interpolated."""
        return _read(np.ascontiguousarray(grid), self.places)

    def reach(self, fitted: FittedDepth, before: Reach = ENDLESS) -> Reach:
        """How far those reach that are rather right than wrong. before: what did in the last image."""
        right = np.flatnonzero(self.trust > 0.5)
        depth_m = self.depth_m.take(right)

        def expected(most_m: float) -> float:
            shape = tuple(-(-nodes // _REACHED) for nodes in _SHAPE[:2])
            column, row = (self.places[:2].take(right, axis=1) * np.float32(1 / _REACHED)).astype(np.intp)
            has = (np.bincount(row * shape[1] + column, minlength=shape[0] * shape[1]) > 0).reshape(shape)
            # Where the sensor does not look there are none, whatever is there.
            rows, columns = (np.flatnonzero(has.sum(axis=axis) > 1) for axis in (1, 0))
            if len(rows) == 0 or len(columns) == 0:
                return 0.0
            ends = rows[0] / shape[0], (rows[-1] + 1) / shape[0], columns[0] / shape[1], (columns[-1] + 1) / shape[1]
            return np.count_nonzero(has) * fitted.share_beyond(most_m, *ends)

        return reach_of(depth_m, depth_m * np.exp(-self.residual.take(right)), expected, before)

    def of(self, chosen: np.ndarray | slice) -> Evidence:
        """The evidence of some anchors, (N,) bool or a slice, whose order is random; the nodes stay."""
        parts = (self.residual, self.weight, self.depth_m, self.left, self.said, self.trust, self.pixels)
        return Evidence(
            *(part[chosen] for part in parts),
            np.ascontiguousarray(self.places[:, chosen]),
            self.low,
            self.high,
        )


@dataclass(frozen=True)
class Field:
    """`log_factor` (rows, columns, steps) float32: ln of the factor on depth at nodes from `low` to `high` ln m."""

    log_factor: np.ndarray
    low: float
    high: float


def evidence_of(fitted: FittedDepth, anchors: Anchors, sigma: float) -> Evidence | None:
    """What anchors say of the `fitted` depth; None where no anchor lies on known depth.

    Many are thinned out. sigma: the relative error of that depth at anchors that are not wrong, as its fit has it.
    """
    some = at_random(len(anchors), MOST_ANCHORS)
    pixels, measured_m = (np.asarray(part, np.float32).take(some, axis=0) for part in (anchors.pixels, anchors.depth_m))
    known, residual, places, low, high = _placed(fitted.at(pixels), pixels, measured_m, *fitted.shape)
    if len(known) == 0:
        return None
    chosen = some.take(known)
    weight, noise_m, noise_px, left, said = (
        part.take(chosen) for part in (anchors.weight, anchors.noise_m, anchors.noise_px, anchors.left, anchors.said)
    )
    pixels, measured_m = pixels.take(known, axis=0), measured_m.take(known)
    weight = weight * _sureness(fitted, pixels, measured_m, noise_m, noise_px)
    trust = trust_of(places[:2], residual, sigma)
    return Evidence(residual, weight, measured_m, left, said, trust, pixels, places, low, high)


def _sureness(
    fitted: FittedDepth, pixels: np.ndarray, measured_m: np.ndarray, noise_m: np.ndarray, noise_px: np.ndarray
) -> np.ndarray:
    """(N,) float32 in (0, 1]: what anchors count, by the noise of their sensor, see `Anchors`.

    Not by edges of depth alone, which the fit weighs down: beside them the correction has nothing but these anchors.
    """
    variance = np.square(noise_m / measured_m)
    coarser = np.flatnonzero(noise_px > LIDAR_NOISE_PX)
    if len(coarser) > 0:
        steep = fitted.steepness_ln(pixels.take(coarser, axis=0), measured_m.take(coarser))
        variance[coarser] += (np.square(noise_px.take(coarser)) - np.float32(LIDAR_NOISE_PX**2)) * np.square(steep)
    return np.float32(_SURE_LN**2) / (np.float32(_SURE_LN**2) + variance)


def _placed_by_numpy(
    predicted_m: np.ndarray, pixels: np.ndarray, measured_m: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Of N anchors with (N, 2) pixels in an image of that size, and (N,) predicted and measured depth: the numbers of
    those where the one is near the other, and their residual, places, low and high, see `Evidence`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = np.log(measured_m / predicted_m)
        known = np.flatnonzero(np.abs(residual) < FARTHEST_LN)
    log_m = np.log(predicted_m.take(known))
    low, high = (float(log_m.min()), float(log_m.max())) if len(known) > 0 else (0.0, 0.0)
    high = max(high, low + _LEAST_LN)
    # The nodes are the centres of equal cells of the image, as `cv2.resize` has them.
    steps = np.minimum(
        (log_m - np.float32(low)) * np.float32((_NODES[2] - 1) / (high - low)), np.float32(_NODES[2] - 1)
    )
    places = np.concatenate([places_of(pixels.take(known, axis=0), (height, width)), steps[None]])
    return known, residual.take(known), places, low, high


@compiled(_placed_by_numpy)
def _placed(
    predicted_m: Floats, pixels: FloatRows, measured_m: Floats, height: Int, width: Int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    count = len(pixels)
    last_column, last_row = np.float32(_NODES[0] - 1), np.float32(_NODES[1] - 1)
    known, residual = np.empty(count, np.int64), np.empty(count, np.float32)
    places = np.empty((3, count), np.float32)
    found, low, high = 0, np.float32(np.inf), np.float32(-np.inf)
    for i in range(count):
        off = np.log(measured_m[i] / predicted_m[i])
        if not abs(off) < np.float32(FARTHEST_LN):  # NaN is not
            continue
        column = (pixels[i, 0] + np.float32(0.5)) * np.float32(_NODES[0] / width) - np.float32(0.5)
        row = (pixels[i, 1] + np.float32(0.5)) * np.float32(_NODES[1] / height) - np.float32(0.5)
        places[0, found] = min(max(column, np.float32(0)), last_column)
        places[1, found] = min(max(row, np.float32(0)), last_row)
        places[2, found] = np.log(predicted_m[i])
        low, high = min(low, places[2, found]), max(high, places[2, found])
        known[found], residual[found] = i, off
        found += 1
    if found == 0:
        low = high = np.float32(0)
    ends = np.float64(low), max(np.float64(high), np.float64(low) + _LEAST_LN)
    per_ln = np.float32((_NODES[2] - 1) / (ends[1] - ends[0]))
    for i in range(found):
        places[2, i] = min((places[2, i] - low) * per_ln, np.float32(_NODES[2] - 1))
    return known[:found].copy(), residual[:found].copy(), places[:, :found].copy(), ends[0], ends[1]


def fitted_field(evidence: Evidence, limit: float) -> Field:
    """The field that brings depth to the anchors. limit: the largest factor on depth, and one over it the smallest."""
    log_factor = np.zeros(_SHAPE, np.float32)
    told, trusted = evidence.residual * evidence.left, evidence.weight * evidence.trust * evidence.left
    for level, (passes, half_weight) in enumerate(_LEVELS):
        missing = told - evidence.at(log_factor) if level > 0 else told
        put = _at_corners if level >= len(_LEVELS) - _SHARED_LEVELS else _at_nearest
        _add_means(log_factor, _spread(put(trusted, missing, evidence.places), passes), np.float32(half_weight))
    bound = np.float32(math.log(limit))
    return Field(np.clip(log_factor, -bound, bound, out=log_factor), evidence.low, evidence.high)


def agreement(evidence: Evidence, field: Field, error: float) -> float:
    """The share of the anchors that a field, of whatever image, brings depth to within `error` of, in ln."""
    count, ends = min(_ASKED, len(evidence.residual)), np.array([evidence.low, evidence.high, field.low, field.high])
    there = _read_elsewhere(np.ascontiguousarray(field.log_factor), evidence.places, count, ends)
    return float(np.count_nonzero(np.abs(evidence.residual[:count] - there) < error) / count)


def _read_elsewhere_by_numpy(grid: np.ndarray, places: np.ndarray, count: int, ends: np.ndarray) -> np.ndarray:
    """`_read`, at the first of the places, of a grid whose end nodes are others: `ends` are low and high of the places,
    and those of the grid.
    """
    low, high, other_low, other_high = ends
    place = (np.linspace(low, high, _NODES[2]) - other_low) * (_NODES[2] - 1) / (other_high - other_low)
    place = np.clip(place, 0, _NODES[2] - 1).astype(np.float32)
    first = np.minimum(place.astype(np.intp), _NODES[2] - 2)
    between = np.zeros((_NODES[2], _NODES[2]), np.float32)
    between[first, np.arange(_NODES[2])] = np.float32(1) - (place - first)
    between[first + 1, np.arange(_NODES[2])] = place - first
    return _read_by_numpy(grid @ between, places[:, :count])


@compiled(_read_elsewhere_by_numpy)
def _read_elsewhere(grid: Grid, places: FloatRows, count: Int, ends: Doubles) -> np.ndarray:
    low, high, other_low, other_high = ends
    last = _NODES[2] - 1
    place, found = np.empty(last + 1, np.float32), np.empty(count, np.float32)
    for step in range(last + 1):
        there = (low + step * (high - low) / last - other_low) * last / (other_high - other_low)
        place[step] = min(max(there, 0.0), float(last))
    for i in range(count):
        step = min(int(places[2, i]), last - 1)
        near = _value(grid, places[0, i], places[1, i], place[step])
        far = _value(grid, places[0, i], places[1, i], place[step + 1])
        found[i] = near + (far - near) * (places[2, i] - np.float32(step))
    return found


def corrected(depth_m: np.ndarray, anchors: Anchors, sigma: float, limit: float, max_depth_m: float) -> np.ndarray:
    """(H, W) float32 metres brought to the anchors, see `evidence_of` and `fitted_field`; beyond `max_depth_m` NaN."""
    evidence = evidence_of(FittedDepth.of_metres(depth_m), anchors, sigma)
    if evidence is None:
        return depth_m
    corrected_m = factor_of(fitted_field(evidence, limit), depth_m)
    corrected_m *= depth_m
    corrected_m[corrected_m > max_depth_m] = np.nan
    return corrected_m


def apply_field(
    field: Field,
    fit: MetricFit,
    coarse: np.ndarray,
    relative: np.ndarray,
    max_depth_m: float,
    reach: Reach = ENDLESS,
) -> np.ndarray:
    """(H, W) float32 metres: the fit's at (H, W) `relative`, corrected, see `apply_corrected`.

    Worked out at the size of (h, w) `coarse` relative depth: an enlarged answer has no more detail.
    """
    # The factor also where the fit has more than the most: beside it, in the image, it may have less.
    factor = factor_of(field, apply_fit(fit, coarse, math.inf))
    return apply_corrected(fit, coarse, factor, relative, max_depth_m, reach)


def factor_of(field: Field, depth_m: np.ndarray) -> np.ndarray:
    """(h, w) float32: what a field multiplies (h, w) `depth_m`, of any size, by; 1 where that is NaN."""
    log_factor = read_back(field.log_factor, field.low, field.high, depth_m, _FADE)
    return cv2.exp(log_factor, log_factor)


def read_back(grid: np.ndarray, low: float, high: float, depth_m: np.ndarray, fade: float = math.inf) -> np.ndarray:
    """(h, w) float32 values of a grid (rows, columns, steps) at every pixel of `depth_m`, (h, w) of any size; 0 where
    that is NaN. Over so much, in ln, beyond the end nodes at `low` and `high` they `fade` to 0.
    """
    log_m = cv2.log(np.ascontiguousarray(depth_m, np.float32))
    return _interpolated(np.ascontiguousarray(grid), log_m, np.float32(low), np.float32(high), np.float32(1.0 / fade))


def _interpolated_by_numpy(grid: np.ndarray, log_m: np.ndarray, low: float, high: float, fading: float) -> np.ndarray:
    """`read_back` for (h, w) float32 ln m; of values, this part is lost in a ln beyond the ends."""
    steps = grid.shape[2]
    columns, first_row = _maps(log_m.shape, steps)
    # A strip for each row of the image, the steps of log depth below each other: one lookup interpolates along all.
    # Not by a product of matrices: that wakes threads of BLAS, which go on spinning while the network wants the cores.
    rows = np.ascontiguousarray(grid.transpose(0, 2, 1)).reshape(_NODES[1], -1)
    strips = cv2.resize(rows, (rows.shape[1], len(log_m)), interpolation=cv2.INTER_LINEAR)
    place = np.clip(log_m, low, high)
    beyond = cv2.absdiff(log_m, place)
    place -= low
    place *= np.float32((steps - 1) / (high - low))
    place += first_row
    values = np.empty_like(place)
    for top in range(0, len(log_m), _BAND_ROWS):
        band = slice(top, top + _BAND_ROWS)
        strip = strips[band].reshape(-1, _NODES[0])
        cv2.remap(strip, columns[band], place[band], cv2.INTER_LINEAR, values[band], cv2.BORDER_REPLICATE)
    values *= np.maximum(np.float32(1) - beyond * fading, np.float32(0))
    return cv2.patchNaNs(values, 0.0)


@compiled(_interpolated_by_numpy)
def _interpolated(grid: Grid, log_m: Pixels, low: Float, high: Float, fading: Float) -> np.ndarray:
    height, width = log_m.shape
    rows, _, steps = grid.shape
    values, wide = np.empty((height, width), np.float32), _as_wide_as(width, grid)
    (along, beyond), per_ln = np.empty((2, width), np.float32), np.float32(steps - 1) / (high - low)
    for i in range(height):
        wanted = log_m[i]
        for j in range(width):
            within = wanted[j] if wanted[j] > low else low  # NaN is not
            within = within if within < high else high
            beyond[j] = abs(wanted[j] - within)
            along[j] = (within - low) * per_ln
        place = min(max((i + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
        row = min(int(place), rows - 2)
        down, found = np.float32(place - row), values[i]
        found[:] = np.float32(0)
        # All steps count, most of them nothing: to look up the two around each pixel takes three times as long.
        for step in range(steps):
            above, below = wide[row, step], wide[row + 1, step]
            for j in range(width):
                share = np.float32(1) - abs(along[j] - np.float32(step))
                share = share if share > 0 else np.float32(0)
                found[j] += share * (above[j] + (below[j] - above[j]) * down)
        for j in range(width):
            left = np.float32(1) - beyond[j] * fading
            found[j] *= left if left > 0 else np.float32(0)
    return values


def _as_wide_as(width: int, grid: np.ndarray) -> np.ndarray:
    """Of `_interpolated`: (rows, steps, width) the grid (rows, columns, steps) at each column of an image."""
    rows, columns, steps = grid.shape
    left, to_right = np.empty(width, np.uint64), np.empty(width, np.float32)
    for j in range(width):
        place = min(max((j + 0.5) * columns / width - 0.5, 0.0), columns - 1.0)
        left[j] = min(int(place), columns - 2)
        to_right[j] = place - left[j]
    wide, line = np.empty((rows, steps, width), np.float32), np.empty(columns, np.float32)
    for row in range(rows):
        for step in range(steps):
            for column in range(columns):
                line[column] = grid[row, column, step]
            into = wide[row, step]
            for j in range(width):
                near, far = line[left[j]], line[left[j] + np.uint64(1)]
                into[j] = near + (far - near) * to_right[j]
    return wide


def node_distance(evidence: Evidence) -> np.ndarray:
    """(rows, columns, steps) float32: from each node to the nearest one with an anchor that is rather right than wrong,
    if any is, in the widths of nodes, at most `FARTHEST`.

    Log depth counts as well, so that a surface far behind the anchors is far from them; and so does time: an anchor of
    an earlier image is away from its place, the farther the less is left of it, in a few steps, the first one at once.
    """
    step = _NODES_PER_LN * (evidence.high - evidence.low) / (_SHAPE[2] - 1)
    return _distances(evidence.places, evidence.trust, evidence.left, evidence.said, np.float32(step))


def _distances_by_numpy(
    places: np.ndarray, trust: np.ndarray, left: np.ndarray, said: np.ndarray, step: float
) -> np.ndarray:
    """`node_distance`, by parts (N,) of the evidence. step: how far steps are apart, in the widths of nodes."""
    right = trust > 0.5
    if not right.any():
        right[:] = True
    node, fresh = _nearest_node(places)[right], np.isnan(said[right])
    away = np.ceil((np.float32(1) - left[right]) * np.float32(_AGES))
    away[~fresh] = np.maximum(away[~fresh], 1)
    squared = np.full(math.prod(_SHAPE), FARTHEST**2, np.float32)
    for age in np.unique(away)[::-1]:
        squared[node[away == age]] = (age / _AGES * FARTHEST) ** 2
    return np.sqrt(_nearest_by_numpy(squared.reshape(_SHAPE), step))


@compiled(_distances_by_numpy)
def _distances(places: FloatRows, trust: Floats, left: Floats, said: Floats, step: Float) -> np.ndarray:
    squared = np.full((_NODES[1], _NODES[0], _NODES[2]), np.float32(FARTHEST**2))
    half, none_right = np.float32(0.5), True
    for i in range(len(trust)):
        none_right = none_right and not trust[i] > 0.5
    for i in range(len(trust)):
        if none_right or trust[i] > 0.5:
            away = np.ceil((np.float32(1) - left[i]) * np.float32(_AGES))
            away = away if np.isnan(said[i]) else max(away, np.float32(1))
            distance = away * np.float32(FARTHEST / _AGES)
            column, row = int(places[0, i] + half), int(places[1, i] + half)
            nearest = int(places[2, i] + half)
            squared[row, column, nearest] = min(squared[row, column, nearest], distance * distance)
    return np.sqrt(_nearest(squared, step))


def _nearest_by_numpy(squared: np.ndarray, step: float) -> np.ndarray:
    """Squared distances (rows, columns, steps) at some nodes, or FARTHEST, and from there on: those at all nodes.

    step: how far steps are apart, in the widths of nodes.
    """
    nearest = squared
    for axis, width in enumerate((1.0, 1.0, float(step))):
        before = nearest.swapaxes(0, axis)
        after = before.copy()
        for apart in range(1, min(len(before), math.ceil(FARTHEST / width))):
            gone = before + np.float32((apart * width) ** 2)
            np.minimum(after[apart:], gone[:-apart], out=after[apart:])
            np.minimum(after[:-apart], gone[apart:], out=after[:-apart])
        nearest = after.swapaxes(0, axis)
    return np.ascontiguousarray(nearest)


def _nearest(squared: np.ndarray, step: float) -> np.ndarray:
    """For loops: as `_nearest_by_numpy`."""
    rows, columns, steps = squared.shape
    reach, farthest = int(FARTHEST), np.float32(FARTHEST**2)
    # All nodes make one line, with what is farthest around it: rows and columns are so many numbers away.
    row, count = columns * steps, rows * columns * steps
    padded = np.full(count + 2 * reach * row, farthest)
    padded[reach * row : reach * row + count] = squared.ravel()
    down = padded[reach * row :][:count].copy()
    for apart in range(1, reach + 1):
        _nearer(down, padded[(reach - apart) * row :], padded[(reach + apart) * row :], np.float32(apart**2))
    # Between rows, too.
    margin = reach * steps
    wide = np.full((rows, row + 2 * margin), farthest)
    wide[:, margin : margin + row] = down.reshape(rows, row)
    line, across = wide.ravel(), wide.copy()
    into = across.ravel()[margin : len(line) - margin]
    for apart in range(1, reach + 1):
        gap = apart * steps
        _nearer(into, line[margin - gap :], line[margin + gap :], np.float32(apart**2))
    # Along the steps all nodes of one step are a line.
    before = np.ascontiguousarray(across[:, margin : margin + row]).reshape(-1, steps).T.copy()
    after = before.copy()
    for of in range(steps):
        for other in range(steps):
            _nearer(after[of], before[other], before[other], ((other - of) * step) * ((other - of) * step))
    return np.ascontiguousarray(after.T).reshape(rows, columns, steps)


def _nearer(into: np.ndarray, left: np.ndarray, right: np.ndarray, away: float) -> None:
    """For loops: `into`, (N,), is at most what `left` and `right`, (N, or more,), have and so much."""
    for k in range(len(into)):
        gone = (left[k] if left[k] < right[k] else right[k]) + away
        into[k] = gone if gone < into[k] else into[k]


def distances(evidence: Evidence, depth_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) float32 each: `node_distance` at every pixel of `depth_m`, (h, w) of any size, and the distance beyond the
    end nodes, across that.
    """
    log_m = cv2.log(depth_m)
    beyond = cv2.absdiff(log_m, np.clip(log_m, np.float32(evidence.low), np.float32(evidence.high)))
    beyond *= np.float32(_NODES_PER_LN)
    return read_back(node_distance(evidence), evidence.low, evidence.high, depth_m), beyond


@lru_cache(maxsize=4)
def _maps(shape: tuple[int, int], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Of an image (H, W): (H, W) each pixel's column in the grid; (H, 1) the first row of its strip in its band."""
    across = (np.arange(shape[1], dtype=np.float32) + 0.5) * (_NODES[0] / shape[1]) - 0.5
    across = np.clip(across, 0, _NODES[0] - 1).astype(np.float32)
    first_row = (np.arange(shape[0]) % _BAND_ROWS * steps).astype(np.float32)[:, None]
    return np.ascontiguousarray(np.broadcast_to(across, shape)), first_row


def beside(pixels: np.ndarray, others: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N,) bool: which of pixels (N, 2) of an image (H, W) share a small part of it with one of `others` (M, 2)."""
    taken = np.zeros(_SHAPE[0] * _SHAPE[1], bool)
    taken[_part(others, shape)] = True
    return taken[_part(pixels, shape)]


def _part(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N,) the number of the part of the image, `_BESIDE` nodes wide and high, of each of pixels (N, 2)."""
    column, row = ((pixels[:, axis] + 0.5) * (_NODES[axis] / (_BESIDE * shape[1 - axis])) for axis in (0, 1))
    return row.astype(np.intp) * _NODES[0] + column.astype(np.intp)


def _corners_of(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(8, N) flat numbers of the nodes around `places` (3, N), and the share of each, float32."""
    first = np.minimum(places.astype(np.intp), np.array(_NODES)[:, None] - 2)
    rest = places - first.astype(np.float32)
    ends = np.stack([1 - rest, rest])  # (2, 3, N)
    share = (ends[:, None, None, 1] * ends[None, :, None, 0] * ends[None, None, :, 2]).reshape(8, -1)
    base = (first[1] * _NODES[0] + first[0]) * _NODES[2] + first[2]
    steps = np.array([0, 1])
    offsets = (steps[:, None, None] * (_NODES[0] * _NODES[2]) + steps[:, None] * _NODES[2] + steps).ravel()
    return base + offsets[:, None], share


def _read_by_numpy(grid: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(N,) float32: values of a grid (rows, columns, steps) at `places` (3, N), interpolated."""
    index, share = _corners_of(places)
    return (grid.ravel()[index] * share).sum(axis=0)


@compiled(_read_by_numpy)
def _read(grid: Grid, places: FloatRows) -> np.ndarray:
    found = np.empty(places.shape[1], np.float32)
    for i in range(len(found)):
        found[i] = _value(grid, places[0, i], places[1, i], places[2, i])
    return found


def _value(grid: np.ndarray, at_column: float, at_row: float, at_step: float) -> float:
    """For loops: what a grid has at a place."""
    rows, columns, steps = grid.shape
    column, row, step = min(int(at_column), columns - 2), min(int(at_row), rows - 2), min(int(at_step), steps - 2)
    right, below, beyond = at_column - np.float32(column), at_row - np.float32(row), at_step - np.float32(step)
    value = np.float32(0)
    for down in range(2):
        near, far = grid[row + down, column], grid[row + down, column + 1]
        left_value = near[step] + (near[step + 1] - near[step]) * beyond
        right_value = far[step] + (far[step + 1] - far[step]) * beyond
        here = left_value + (right_value - left_value) * right
        value += here * below if down else here * (np.float32(1) - below)
    return value


def _nearest_node(places: np.ndarray) -> np.ndarray:
    """(N,) flat numbers of the nodes that are nearest to `places` (3, N)."""
    column, row, step = (places + np.float32(0.5)).astype(np.intp)
    return (row * _NODES[0] + column) * _NODES[2] + step


def _sums_at(index: np.ndarray, share: np.ndarray, weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(rows, columns, 2, steps) float32: the sums of `weight` (N,), and of `values` (N,) times it, at the nodes `index`
    (k, N), which have these shares (k, N) of them.
    """
    parts = (share * part for part in (weight, weight * values))
    sums = [np.bincount(index.ravel(), part.ravel(), math.prod(_SHAPE)) for part in parts]
    return np.stack([of.astype(np.float32).reshape(_SHAPE) for of in sums], axis=2)


def _at_nearest_by_numpy(weight: np.ndarray, values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`_sums_at` the nodes that are nearest to `places` (3, N)."""
    return _sums_at(_nearest_node(places)[None], np.ones((1, len(values)), np.float32), weight, values)


@compiled(_at_nearest_by_numpy)
def _at_nearest(weight: Floats, values: Floats, places: FloatRows) -> np.ndarray:
    sums, half = np.zeros((_NODES[1], _NODES[0], 2, _NODES[2]), np.float32), np.float32(0.5)
    for i in range(len(values)):
        into = sums[int(places[1, i] + half), int(places[0, i] + half)]
        step = int(places[2, i] + half)
        into[0, step] += weight[i]
        into[1, step] += weight[i] * values[i]
    return sums


def _at_corners_by_numpy(weight: np.ndarray, values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`_sums_at` the eight nodes around `places` (3, N)."""
    return _sums_at(*_corners_of(places), weight, values)


@compiled(_at_corners_by_numpy)
def _at_corners(weight: Floats, values: Floats, places: FloatRows) -> np.ndarray:
    columns, rows, steps = _NODES
    sums = np.zeros((rows, columns, 2, steps), np.float32)
    for i in range(len(values)):
        column, row = min(int(places[0, i]), columns - 2), min(int(places[1, i]), rows - 2)
        step = min(int(places[2, i]), steps - 2)
        right, below = places[0, i] - np.float32(column), places[1, i] - np.float32(row)
        beyond = places[2, i] - np.float32(step)
        for down in range(2):
            of_row = weight[i] * below if down else weight[i] * (np.float32(1) - below)
            for across in range(2):
                share = of_row * right if across else of_row * (np.float32(1) - right)
                into = sums[row + down, column + across]
                farther = share * beyond
                into[0, step] += share - farther
                into[0, step + 1] += farther
                into[1, step] += (share - farther) * values[i]
                into[1, step + 1] += farther * values[i]
    return sums


def _spread(sums: np.ndarray, passes: int) -> np.ndarray:
    """(rows, columns, n, steps) smoothed along all axes but n, the ends reflected."""
    rows, columns, count, steps = sums.shape
    flat = sums.reshape(rows, columns, count * steps)
    if passes < _FAR_PASSES:
        kernel = _kernel(passes)
        smooth = cv2.sepFilter2D(flat, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REFLECT)
    else:
        down = np.matmul(_filtering(rows, passes), flat.transpose(1, 0, 2))
        smooth = np.matmul(_filtering(columns, passes), down.transpose(1, 0, 2))
    # All of them small enough for BLAS to take one thread.
    return (smooth.reshape(-1, steps) @ _smoothing(steps, -(-passes // _STEP_PASSES))).reshape(sums.shape)


def _add_means_by_numpy(log_factor: np.ndarray, spread: np.ndarray, half_weight: float) -> None:
    """Add means to (rows, columns, steps): of the sums that have been spread, weights and weighted values, (rows,
    columns, 2, steps). Each node goes as far as its weight lets it: half of the way at the `half_weight`.
    """
    log_factor += spread[:, :, 1] / (spread[:, :, 0] + half_weight)


@compiled(_add_means_by_numpy)
def _add_means(log_factor: WrittenGrid, spread: Grids, half_weight: Float) -> None:
    rows, columns, steps = log_factor.shape
    for row in range(rows):
        for column in range(columns):
            into, weight, total = log_factor[row, column], spread[row, column, 0], spread[row, column, 1]
            for step in range(steps):
                into[step] += total[step] / (weight[step] + half_weight)


@lru_cache
def _kernel(passes: int) -> np.ndarray:
    """As many passes of a [1 2 1] / 4 filter as one filter, float32; its ends, beyond three deviations, cut off."""
    reach = min(passes, math.ceil(3.0 * math.sqrt(passes / 2)))
    kernel = np.array([math.comb(2 * passes, passes + i) / 4.0**passes for i in range(-reach, reach + 1)])
    return (kernel / kernel.sum()).astype(np.float32)


@lru_cache
def _filtering(count: int, passes: int) -> np.ndarray:
    """(count, count) float32: the filter `_kernel` along so many nodes, the ends reflected."""
    each, alone = np.eye(count, dtype=np.float32), np.ones(1, np.float32)
    return cv2.sepFilter2D(each, cv2.CV_32F, alone, _kernel(passes), borderType=cv2.BORDER_REFLECT)


@lru_cache
def _smoothing(count: int, passes: int) -> np.ndarray:
    """(count, count) float32: as many passes of a [1 2 1] / 4 filter, the ends reflected; symmetric."""
    once = np.eye(count) / 2 + np.eye(count, k=1) / 4 + np.eye(count, k=-1) / 4
    once[0, 0] += 0.25
    once[-1, -1] += 0.25
    return np.linalg.matrix_power(once, passes).astype(np.float32)
