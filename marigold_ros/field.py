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

from marigold_ros.anchors import Anchors, at_random
from marigold_ros.metric import MetricFit, apply_corrected, apply_fit, sample
from marigold_ros.vote import CELLS, FARTHEST_LN, places_of, trust_of

# Columns, rows and steps of log depth.
_NODES = (*CELLS, 6)
_SHAPE = _NODES[1], _NODES[0], _NODES[2]
# More anchors than this say nothing new about so few nodes, and take their time.
MOST_ANCHORS = 4096
# Coarse to fine: how far anchors reach, in passes of a [1 2 1] / 4 filter, and the weight of anchors at which a node
# goes half of the way.
_LEVELS = ((100, 0.001), (16, 0.002), (3, 0.01), (1, 0.05), (1, 0.02))
# In the finest levels an anchor is shared by the eight nodes around it; the coarser ones do not tell the nearest from
# all of them, which take four times as long.
_SHARED_LEVELS = 3
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
# Anchors in parts of the image of so many nodes each way are beside each other.
_BESIDE = 2
# cv2.remap takes no larger pictures, and every row of the image is as many rows there as there are steps of log depth.
_BAND_ROWS = 4096


@dataclass(frozen=True)
class Evidence:
    """What N anchors say of a fit: `residual`, ln of measured over fitted depth, and the `weight` of each, float32.

    `depth_m`, (N,): what was measured. `left` and `said`, (N,): as those of `Anchors`. `trust` (N,) float32 in [0, 1]:
    whether those around agree. `pixels` (N, 2) u, v. `index` and `share`, (8, N), are the nodes around each anchor and
    its share in them, `node` (N,) the nearest one; nodes are counted over rows, columns, steps. `low` and `high`: ln m
    of the end nodes.
    """

    residual: np.ndarray
    weight: np.ndarray
    depth_m: np.ndarray
    left: np.ndarray
    said: np.ndarray
    trust: np.ndarray
    pixels: np.ndarray
    index: np.ndarray
    share: np.ndarray
    node: np.ndarray
    low: float
    high: float

    @property
    def fresh(self) -> np.ndarray:
        """(N,) bool: those of this image."""
        return np.isnan(self.said)

    def at(self, grid: np.ndarray) -> np.ndarray:
        """(N,) values of a grid (rows, columns, steps) at the anchors, interpolated."""
        values = grid.ravel()[self.index]
        values *= self.share
        return values.sum(axis=0)

    def of(self, chosen: np.ndarray | slice) -> Evidence:
        """The evidence of some anchors, (N,) bool or a slice, whose order is random; the nodes stay."""
        parts = (self.residual, self.weight, self.depth_m, self.left, self.said, self.trust, self.pixels)
        return Evidence(
            *(part[chosen] for part in parts),
            self.index[:, chosen],
            self.share[:, chosen],
            self.node[chosen],
            self.low,
            self.high,
        )


@dataclass(frozen=True)
class Field:
    """`log_factor` (rows, columns, steps) float32: ln of the factor on depth at nodes from `low` to `high` ln m."""

    log_factor: np.ndarray
    low: float
    high: float


def evidence_of(depth_m: np.ndarray, anchors: Anchors, sigma: float) -> Evidence | None:
    """What anchors say of (H, W) `depth_m`, NaN unknown; None where no anchor lies on known depth.

    Many are thinned out. sigma: the relative error of `depth_m` at anchors that are not wrong, as its fit has it.
    """
    some = at_random(len(anchors), MOST_ANCHORS)
    pixels, measured_m = anchors.pixels[some], anchors.depth_m[some]
    predicted_m = sample(depth_m, pixels).astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = np.log(measured_m / predicted_m)
        known = np.abs(residual) < FARTHEST_LN
    if not known.any():
        return None
    pixels, residual, measured_m = pixels[known], residual[known].astype(np.float32), measured_m[known]
    weight, left, said = (part[some][known] for part in (anchors.weight, anchors.left, anchors.said))
    log_m = np.log(predicted_m[known])
    low, high = float(log_m.min()), max(float(log_m.max()), float(log_m.min()) + 0.1)
    places = _places(pixels, depth_m.shape, (log_m - np.float32(low)) * np.float32(1 / (high - low)))
    column, row, step = (places + np.float32(0.5)).astype(np.intp)
    node = (row * _NODES[0] + column) * _NODES[2] + step
    trust = trust_of(places[:2], residual, sigma)
    return Evidence(residual, weight, measured_m, left, said, trust, pixels, *_corners(places), node, low, high)


def fitted_field(evidence: Evidence, limit: float) -> Field:
    """The field that brings depth to the anchors. limit: the largest factor on depth, and one over it the smallest."""
    log_factor = np.zeros(_SHAPE, np.float32)
    told, trusted = evidence.residual * evidence.left, evidence.weight * evidence.trust * evidence.left
    missing = told
    weights = {shared: _at_nodes(evidence, trusted, shared) for shared in (False, True)}
    for level, (passes, half_weight) in enumerate(_LEVELS):
        if level > 0:
            missing = told - evidence.at(log_factor)
        shared = level >= len(_LEVELS) - _SHARED_LEVELS
        grids = np.stack([weights[shared], _at_nodes(evidence, trusted * missing, shared)], axis=2)
        spread = _spread(grids, passes)
        log_factor += spread[:, :, 1] / (spread[:, :, 0] + np.float32(half_weight))
    bound = np.float32(math.log(limit))
    return Field(np.clip(log_factor, -bound, bound), evidence.low, evidence.high)


def agreement(evidence: Evidence, field: Field, error: float) -> float:
    """The share of the anchors that a field, of whatever image, brings depth to within `error` of, in ln."""
    nodes = np.linspace(evidence.low, evidence.high, _NODES[2], dtype=np.float32)
    place = np.clip((nodes - field.low) * (_NODES[2] - 1) / (field.high - field.low), 0, _NODES[2] - 1)
    first = np.minimum(place.astype(np.intp), _NODES[2] - 2)
    rest = (place - first).astype(np.float32)
    grid = field.log_factor[:, :, first] * (np.float32(1) - rest) + field.log_factor[:, :, first + 1] * rest
    return float(np.count_nonzero(np.abs(evidence.residual - evidence.at(grid)) < error) / len(evidence.residual))


def believed(evidence: Evidence) -> Evidence:
    """The part of the evidence that is rather right than wrong; all of it, where nothing is."""
    right = evidence.trust > 0.5
    return evidence.of(right) if right.any() else evidence


def corrected(depth_m: np.ndarray, anchors: Anchors, sigma: float, limit: float, max_depth_m: float) -> np.ndarray:
    """(H, W) float32 metres brought to the anchors, see `evidence_of` and `fitted_field`; beyond `max_depth_m` NaN."""
    evidence = evidence_of(depth_m, anchors, sigma)
    if evidence is None:
        return depth_m
    corrected_m = factor_of(fitted_field(evidence, limit), depth_m)
    corrected_m *= depth_m
    corrected_m[corrected_m > max_depth_m] = np.nan
    return corrected_m


def apply_field(
    field: Field, fit: MetricFit, coarse: np.ndarray, fitted_m: np.ndarray, max_depth_m: float
) -> np.ndarray:
    """(H, W) float32 metres: the fit's, (H, W) `fitted_m`, corrected. What they have beyond `max_depth_m` stays NaN.

    Worked out at the size of (h, w) `coarse` relative depth: an enlarged answer has no more detail.
    """
    # The factor also where the fit has more than that: beside it, in the image, it may have less.
    factor = factor_of(field, apply_fit(fit, coarse, math.inf))
    corrected_m = apply_corrected(fit, coarse, factor, fitted_m.shape[::-1], max_depth_m)
    np.copyto(corrected_m, np.float32(np.nan), where=np.isnan(fitted_m))
    return corrected_m


def factor_of(field: Field, depth_m: np.ndarray) -> np.ndarray:
    """(h, w) float32: what a field multiplies (h, w) `depth_m`, of any size, by; 1 where that is NaN."""
    factor, beyond = read_back(field.log_factor, field.low, field.high, depth_m)
    # In place: fresh memory costs more than the arithmetic.
    beyond *= np.float32(-1.0 / _FADE)
    beyond += np.float32(1.0)
    np.maximum(beyond, np.float32(0), out=beyond)
    factor *= beyond
    cv2.exp(factor, factor)
    cv2.patchNaNs(factor, 1.0)
    return factor


def read_back(grid: np.ndarray, low: float, high: float, depth_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) float32 values of a grid (rows, columns, steps) at every pixel of `depth_m`, (h, w) of any size, and how
    far each depth lies beyond the end nodes at `low` and `high`, in ln.
    """
    steps = grid.shape[2]
    columns, first_row = _maps(depth_m.shape, steps)
    # A strip for each row of the image, the steps of log depth below each other: one lookup interpolates along all.
    # Not by a product of matrices: that wakes threads of BLAS, which go on spinning while the network wants the cores.
    rows = np.ascontiguousarray(grid.transpose(0, 2, 1)).reshape(_NODES[1], -1)
    strips = cv2.resize(rows, (rows.shape[1], len(depth_m)), interpolation=cv2.INTER_LINEAR)
    log_m = cv2.log(depth_m)
    place = np.clip(log_m, np.float32(low), np.float32(high))
    beyond = cv2.absdiff(log_m, place, log_m)
    place -= np.float32(low)
    place *= np.float32((steps - 1) / (high - low))
    place += first_row
    values = np.empty_like(place)
    for top in range(0, len(depth_m), _BAND_ROWS):
        band = slice(top, top + _BAND_ROWS)
        strip = strips[band].reshape(-1, _NODES[0])
        cv2.remap(strip, columns[band], place[band], cv2.INTER_LINEAR, values[band], cv2.BORDER_REPLICATE)
    return values, beyond


def node_distance(evidence: Evidence) -> np.ndarray:
    """(rows, columns, steps) float32: from each node to the nearest one with an anchor, in the widths of nodes, at most
    `FARTHEST`.

    Log depth counts as well, so that a surface far behind the anchors is far from them; and so does time: an anchor of
    an earlier image is away from its place, the farther the less is left of it, in a few steps, the first one at once.
    """
    squared = np.full((_SHAPE[2], *_SHAPE[:2]), FARTHEST**2, np.float32)
    away = np.ceil((np.float32(1) - evidence.left) * np.float32(_AGES))
    away[~evidence.fresh] = np.maximum(away[~evidence.fresh], 1)
    for age in np.unique(away):
        within = _squared_within(evidence.node[away == age])
        np.minimum(squared, within + np.float32((age / _AGES * FARTHEST) ** 2), out=squared)
    width = _NODES_PER_LN * (evidence.high - evidence.low) / (_SHAPE[2] - 1)
    distance = squared.copy()
    for apart in range(1, _SHAPE[2]):
        across = squared + np.float32((apart * width) ** 2)
        np.minimum(distance[apart:], across[:-apart], out=distance[apart:])
        np.minimum(distance[:-apart], across[apart:], out=distance[:-apart])
    return np.ascontiguousarray(cv2.sqrt(distance.reshape(_SHAPE[2], -1)).T).reshape(_SHAPE)


def _squared_within(node: np.ndarray) -> np.ndarray:
    """(steps, rows, columns) float32: the squared distance from each node to the nearest of some of the same step."""
    free = np.ones(np.prod(_SHAPE), np.uint8)
    free[node] = 0
    free = free.reshape(_SHAPE)
    within = np.empty((_SHAPE[2], *_SHAPE[:2]), np.float32)
    for step in range(_SHAPE[2]):
        of_step = np.ascontiguousarray(free[:, :, step])
        within[step] = FARTHEST if of_step.all() else cv2.distanceTransform(of_step, cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.square(within, out=within)


def squared_distance(evidence: Evidence, depth_m: np.ndarray) -> np.ndarray:
    """(h, w) float32: the square of `node_distance` at every pixel of `depth_m`, (h, w) of any size."""
    distance, beyond = read_back(node_distance(evidence), evidence.low, evidence.high, depth_m)
    beyond *= np.float32(_NODES_PER_LN)
    return cv2.add(cv2.multiply(distance, distance), cv2.multiply(beyond, beyond))


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


def _places(pixels: np.ndarray, shape: tuple[int, int], height: np.ndarray) -> np.ndarray:
    """(3, N) float32: where pixels (N, 2) lie in the grid, in nodes; `height` in [0, 1] along the third axis.

    The nodes are the centres of equal cells of the image, as `cv2.resize` has them.
    """
    steps = np.minimum(height * np.float32(_NODES[2] - 1), np.float32(_NODES[2] - 1))
    return np.concatenate([places_of(pixels, shape), steps[None]])


def _corners(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(8, N) flat numbers of the nodes around `places` (3, N), and the share of each, float32."""
    first = np.minimum(places.astype(np.intp), np.array(_NODES)[:, None] - 2)
    rest = places - first.astype(np.float32)
    ends = np.stack([1 - rest, rest])  # (2, 3, N)
    share = (ends[:, None, None, 1] * ends[None, :, None, 0] * ends[None, None, :, 2]).reshape(8, -1)
    base = (first[1] * _NODES[0] + first[0]) * _NODES[2] + first[2]
    steps = np.array([0, 1])
    offsets = (steps[:, None, None] * (_NODES[0] * _NODES[2]) + steps[:, None] * _NODES[2] + steps).ravel()
    return base + offsets[:, None], share


def _at_nodes(evidence: Evidence, values: np.ndarray, shared: bool) -> np.ndarray:
    """(rows, columns, steps) float32: the sums of `values` (N,) by node."""
    index, values = (evidence.index.ravel(), (evidence.share * values).ravel()) if shared else (evidence.node, values)
    return np.bincount(index, values, np.prod(_SHAPE)).astype(np.float32).reshape(_SHAPE)


def _spread(grids: np.ndarray, passes: int) -> np.ndarray:
    """Grids (rows, columns, n, steps) smoothed along all axes but n."""
    rows, columns, count, steps = grids.shape
    kernel = _kernel(passes)
    smooth = cv2.sepFilter2D(
        grids.reshape(rows, columns, count * steps), cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REFLECT
    )
    # Small enough for BLAS to take one thread.
    return (smooth.reshape(-1, steps) @ _smoothing(steps, -(-passes // _STEP_PASSES))).reshape(grids.shape)


@lru_cache
def _kernel(passes: int) -> np.ndarray:
    """As many passes of a [1 2 1] / 4 filter as one filter, float32; its ends, beyond three deviations, cut off."""
    reach = min(passes, math.ceil(3.0 * math.sqrt(passes / 2)))
    kernel = np.array([math.comb(2 * passes, passes + i) / 4.0**passes for i in range(-reach, reach + 1)])
    return (kernel / kernel.sum()).astype(np.float32)


@lru_cache
def _smoothing(count: int, passes: int) -> np.ndarray:
    """(count, count) float32: as many passes of a [1 2 1] / 4 filter, the ends reflected; symmetric."""
    once = np.eye(count) / 2 + np.eye(count, k=1) / 4 + np.eye(count, k=-1) / 4
    once[0, 0] += 0.25
    once[-1, -1] += 0.25
    return np.linalg.matrix_power(once, passes).astype(np.float32)
