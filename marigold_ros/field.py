"""A smooth, bounded correction of metric depth where anchors contradict the global fit.

A network's errors vary over the image: the slope of the floor, a far field that is bent. The logarithm of measured over
fitted depth at the anchors is spread over a grid of column, row and log depth, from coarse to fine, and read back at
every pixel. Log depth as the third axis keeps a correction on its side of an edge of depth. Away from the anchors, over
the image and beyond their depths, it fades, and what changes changes smoothly. (A bilateral
grid, Chen et al., SIGGRAPH 2007, filled by normalised convolution of what the coarser levels left over.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.metric import sample

# Columns, rows and steps of log depth.
_NODES = (61, 46, 6)
# More anchors than this say nothing new about so few nodes, and take their time.
_MOST_ANCHORS = 4096


# Coarse to fine: how far anchors reach, in passes of a [1 2 1] / 4 filter; the weight of anchors at which a node goes
# half of the way; and beyond what difference to the levels before, in ln, an anchor is wrong and not the network. What
# is wrong is told from what is bent by the anchors around, once they have had their say.
# Along log depth, whose nodes are few, they reach less far.
_STEP_PASSES = 16
# Beyond the nearest and farthest anchor the correction fades to nothing over this much of ln depth.
_FADE = 0.5
# cv2.remap takes no larger pictures, and every row of the image is as many rows there as there are steps of log depth.
_BAND_ROWS = 4096
_LEVELS = ((100, 0.001, 1.0), (30, 0.001, 0.8), (8, 0.005, 0.6), (3, 0.02, 0.4), (1, 0.05, 0.3))


@dataclass(frozen=True)
class Field:
    """`log_factor` (steps, rows, columns) float32: ln of the factor on depth at nodes from `low` to `high` ln m."""

    log_factor: np.ndarray
    low: float
    high: float


def correction_field(depth_m: np.ndarray, anchors: Anchors, limit: float) -> Field | None:
    """The field that brings (H, W) `depth_m`, NaN unknown, to the anchors; None where no anchor lies on known depth.

    limit: the largest factor on depth, and one over it the smallest.
    """
    predicted_m = sample(depth_m, anchors.pixels).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = np.log(anchors.depth_m / predicted_m)
    known = np.flatnonzero(np.abs(residual) < _LEVELS[0][2])
    if len(known) == 0:
        return None
    if len(known) > _MOST_ANCHORS:
        # Not every second one: clouds are stored by beams, and whole beams would go.
        known = np.random.default_rng(0).permutation(known)[:_MOST_ANCHORS]
    residual, weight, log_m = residual[known], anchors.weight[known].astype(np.float64), np.log(predicted_m[known])
    low, high = float(log_m.min()), max(float(log_m.max()), float(log_m.min()) + 0.1)
    index, share = _corners(_places(anchors.pixels[known], depth_m.shape, (log_m - low) / (high - low)))
    log_factor = np.zeros(np.prod(_NODES))
    for passes, half_weight, gross in _LEVELS:
        left = residual - np.einsum("cn,cn->n", log_factor[index], share)
        judged = weight * np.maximum(1.0 - (left / gross) ** 2, 0.0) ** 2
        weights, sums = _spread(np.stack([_at_nodes(index, share * v) for v in (judged, judged * left)]), passes)
        log_factor += (sums / (weights + np.float32(half_weight))).ravel()
    bound = np.log(limit)
    return Field(np.clip(log_factor, -bound, bound).astype(np.float32).reshape(_NODES[::-1]), low, high)


def corrected(depth_m: np.ndarray, anchors: Anchors, limit: float, max_depth_m: float) -> np.ndarray:
    """(H, W) float32 metres brought to the anchors, see `correction_field`; beyond `max_depth_m` NaN."""
    field = correction_field(depth_m, anchors, limit)
    if field is None:
        return depth_m
    depth_m = apply_field(field, depth_m)
    depth_m[depth_m > max_depth_m] = np.nan
    return depth_m


def apply_field(field: Field, depth_m: np.ndarray) -> np.ndarray:
    """(H, W) float32 metres, corrected; NaN stays NaN."""
    steps = len(field.log_factor)
    columns, first_row = _maps(depth_m.shape, steps)
    # A strip for each row of the image, the steps of log depth below each other: one lookup interpolates along all.
    # Not by a product of matrices: that wakes threads of BLAS, which go on spinning while the network wants the cores.
    rows = np.ascontiguousarray(field.log_factor.transpose(1, 0, 2)).reshape(_NODES[1], -1)
    strips = cv2.resize(rows, (rows.shape[1], len(depth_m)), interpolation=cv2.INTER_LINEAR)
    log_m = cv2.log(depth_m)
    place = np.clip(log_m, np.float32(field.low), np.float32(field.high))
    # In place from here: fresh memory costs more than the arithmetic.
    fading = cv2.absdiff(log_m, place, log_m)
    fading *= np.float32(-1.0 / _FADE)
    fading += np.float32(1.0)
    np.maximum(fading, np.float32(0), out=fading)
    place -= np.float32(field.low)
    place *= np.float32((steps - 1) / (field.high - field.low))
    place += first_row
    corrected_m = np.empty_like(place)
    for top in range(0, len(depth_m), _BAND_ROWS):
        band = slice(top, top + _BAND_ROWS)
        strip = strips[band].reshape(-1, _NODES[0])
        cv2.remap(strip, columns[band], place[band], cv2.INTER_LINEAR, corrected_m[band], cv2.BORDER_REPLICATE)
    corrected_m *= fading
    cv2.exp(corrected_m, corrected_m)
    corrected_m *= depth_m
    return corrected_m


@lru_cache(maxsize=2)
def _maps(shape: tuple[int, int], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Of an image (H, W): (H, W) each pixel's column in the grid; (H, 1) the first row of its strip in its band."""
    across = (np.arange(shape[1], dtype=np.float32) + 0.5) * (_NODES[0] / shape[1]) - 0.5
    across = np.clip(across, 0, _NODES[0] - 1).astype(np.float32)
    first_row = (np.arange(shape[0]) % _BAND_ROWS * steps).astype(np.float32)[:, None]
    return np.ascontiguousarray(np.broadcast_to(across, shape)), first_row


def _places(pixels: np.ndarray, shape: tuple[int, int], height: np.ndarray) -> np.ndarray:
    """(3, N) where pixels (N, 2) lie in the grid, in nodes; `height` in [0, 1] along the third axis.

    The nodes are the centres of equal cells of the image, as `cv2.resize` has them.
    """
    across = (pixels[:, 0] + 0.5) * (_NODES[0] / shape[1]) - 0.5
    down = (pixels[:, 1] + 0.5) * (_NODES[1] / shape[0]) - 0.5
    last = np.array(_NODES)[:, None] - 1.0
    return np.clip(np.stack([across, down, height * (_NODES[2] - 1)]), 0.0, last)


def _corners(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(8, N) flat numbers of the nodes around `places` (3, N), and the share of each."""
    first = np.minimum(places.astype(np.intp), np.array(_NODES)[:, None] - 2)
    rest = places - first
    ends = np.stack([1.0 - rest, rest])  # (2, 3, N)
    share = np.einsum("kn,jn,in->kjin", ends[:, 2], ends[:, 1], ends[:, 0]).reshape(8, -1)
    steps = np.array([0, 1])
    strides = np.array([1, _NODES[0], _NODES[0] * _NODES[1]])
    offsets = (steps[:, None, None] * strides[2] + steps[:, None] * strides[1] + steps * strides[0]).ravel()
    return strides @ first + offsets[:, None], share


def _at_nodes(index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(steps, rows, columns) float32: the sums of `values` by node."""
    return np.bincount(index.ravel(), values.ravel(), np.prod(_NODES)).reshape(_NODES[::-1]).astype(np.float32)


def _spread(grids: np.ndarray, passes: int) -> np.ndarray:
    """Grids (n, steps, rows, columns) smoothed along all axes."""
    rows, columns = (_smoothing(count, passes) for count in grids.shape[2:])
    steps = _smoothing(grids.shape[1], -(-passes // _STEP_PASSES))
    smooth = rows @ (grids @ columns)  # each small enough for BLAS to take one thread
    return (steps @ smooth.reshape(len(grids), len(steps), -1)).reshape(grids.shape)


@lru_cache
def _smoothing(count: int, passes: int) -> np.ndarray:
    """(count, count) float32: as many passes of a [1 2 1] / 4 filter, the ends reflected; symmetric."""
    once = np.eye(count) / 2 + np.eye(count, k=1) / 4 + np.eye(count, k=-1) / 4
    once[0, 0] += 0.25
    once[-1, -1] += 0.25
    return np.linalg.matrix_power(once, passes).astype(np.float32)
