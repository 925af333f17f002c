"""What looks like the sky beside the sky is the sky as well, whatever depth the network gives it.

Networks blur outlines and fill what is between leaves and rails: depth there is that of what is near, and only the
picture tells. The sky's colour, whatever it is, comes from where the picture is plain and depth already unknown. It
counts where what anchors hit near by has another one, and a picture too dark to tell anything apart tells nothing. What
is near stays, whatever it looks like: what stands above the sensor's view has nothing else to speak for it.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from marigold_ros.compiled import Colours, FloatRows, Grid, Int, Pixels, WrittenPixels, compiled

# The longer side of the image has so many square cells. The sky's colour in one is the mean of the plain ones up to so
# many cells away; so many rows below the lowest of them all the ground is, which may be as bright.
_CELLS, _AROUND, _BELOW = 40, 5, 2
# A cell is plain where so many samples each way are unknown, no channel of them differs by more than this, of 255, and
# one is brighter than that.
_SAMPLES, _PLAIN, _DARK = 3, 24, 30
# A pixel looks like the sky if no channel is farther from the sky's; unless so many of the anchors do, as far around as
# the sky's colour counts, or so many of those in this cell and the next ones, as on a pole.
_ALIKE, _ANCHORS_ALIKE = 25, ((_AROUND, 0.1), (1, 0.5))
# Nearer than this, in metres, nothing is taken for the sky.
_NEAR_M = 8.0


def forget_alike(depth_m: np.ndarray, rgb: np.ndarray, anchored: np.ndarray) -> None:
    """Set to NaN what of (H, W) `depth_m` looks like the unknown around it, if that is the sky.

    rgb: (H, W, 3) uint8, black where the lens did not see. anchored: (N, 2) float32 pixels u, v of anchors that are
    rather right than wrong.
    """
    rgb, cell = np.ascontiguousarray(rgb), max(max(depth_m.shape) // _CELLS, 1)
    plain = _plain(depth_m, rgb, cell)
    rows = np.flatnonzero(plain[:, :, 3].any(axis=1))
    if len(rows) == 0:
        return
    around = _around(plain, _AROUND)
    with np.errstate(invalid="ignore"):
        colour = around[:, :, :3] / around[:, :, 3:]
    colour[rows[-1] + _BELOW :] = np.nan
    hits = _hit(rgb, colour, np.ascontiguousarray(anchored, np.float32), cell)
    for cells, most in _ANCHORS_ALIKE:
        alike = _around(hits, cells)
        colour[alike[:, :, 0] > most * alike[:, :, 1]] = np.nan
    _forget(depth_m, rgb, colour, cell)


def _around(grid: np.ndarray, cells: int) -> np.ndarray:
    """(h, w, n) sums over so many cells around each."""
    size = (2 * cells + 1, 2 * cells + 1)
    return cv2.boxFilter(grid, cv2.CV_32F, size, normalize=False, borderType=cv2.BORDER_CONSTANT)


def _plain_by_numpy(depth_m: np.ndarray, rgb: np.ndarray, cell: int) -> np.ndarray:
    """(h, w, 4) float32: of plain cells the mean colour, and 1; of others 0. What is left over belongs to the last."""
    h, w = (side // cell for side in depth_m.shape)
    inside = (2 * np.arange(_SAMPLES) + 1) * cell // (2 * _SAMPLES)
    row, column = ((np.arange(count)[:, None] * cell + inside).ravel() for count in (h, w))
    shape = h, _SAMPLES, w, _SAMPLES
    seen = rgb[row[:, None], column].reshape(*shape, 3)
    most, least = seen.max(axis=(1, 3)), seen.min(axis=(1, 3))
    plain = np.isnan(depth_m[row[:, None], column]).reshape(shape).all(axis=(1, 3))
    plain &= (most - least <= _PLAIN).all(axis=2) & (most > _DARK).any(axis=2)
    mean = seen.mean(axis=(1, 3), dtype=np.float32)
    return np.concatenate([mean, np.ones((h, w, 1), np.float32)], axis=2) * plain[:, :, None]


@compiled(_plain_by_numpy)
def _plain(depth_m: Pixels, rgb: Colours, cell: Int) -> np.ndarray:
    h, w, samples = depth_m.shape[0] // cell, depth_m.shape[1] // cell, _SAMPLES
    result = np.zeros((h, w, 4), np.float32)
    for row in range(h):
        for column in range(w):
            plain, dark = True, True
            for channel in range(3):
                total, most, least = 0, 0, 255
                for sample in range(samples * samples):
                    i = row * cell + (2 * (sample // samples) + 1) * cell // (2 * samples)
                    j = column * cell + (2 * (sample % samples) + 1) * cell // (2 * samples)
                    plain = plain and np.isnan(depth_m[i, j])
                    if not plain:
                        break
                    value = np.int64(rgb[i, j, channel])
                    total, most, least = total + value, max(most, value), min(least, value)
                plain = plain and most - least <= _PLAIN
                dark = dark and most <= _DARK
                result[row, column, channel] = np.float32(total) / np.float32(samples * samples)
            result[row, column, 3] = 1
            if dark or not plain:
                result[row, column, :] = 0
    return result


def _hit_by_numpy(rgb: np.ndarray, colour: np.ndarray, anchored: np.ndarray, cell: int) -> np.ndarray:
    """(h, w, 2) float32: in each cell that has a `colour`, (h, w, 3), NaN for none, how many anchors look like it, and
    how many there are.
    """
    h, w = colour.shape[:2]
    j, i = (np.clip(np.rint(anchored[:, axis]).astype(np.intp), 0, rgb.shape[1 - axis] - 1) for axis in (0, 1))
    place = np.minimum(i // cell, h - 1) * w + np.minimum(j // cell, w - 1)
    off = np.abs(rgb[i, j] - colour.reshape(-1, 3)[place]).max(axis=1)
    counts = [np.bincount(place[chosen], minlength=h * w) for chosen in (off <= _ALIKE, ~np.isnan(off))]
    return np.stack(counts, axis=1).astype(np.float32).reshape(h, w, 2)


@compiled(_hit_by_numpy)
def _hit(rgb: Colours, colour: Grid, anchored: FloatRows, cell: Int) -> np.ndarray:
    h, w, _ = colour.shape
    result = np.zeros((h, w, 2), np.float32)
    for k in range(len(anchored)):
        j = min(max(int(np.rint(anchored[k, 0])), 0), rgb.shape[1] - 1)
        i = min(max(int(np.rint(anchored[k, 1])), 0), rgb.shape[0] - 1)
        row, column = min(i // cell, h - 1), min(j // cell, w - 1)
        of, seen = colour[row, column], rgb[i, j]
        if of[0] == of[0]:
            off = max(abs(seen[0] - of[0]), abs(seen[1] - of[1]), abs(seen[2] - of[2]))
            result[row, column, 0] += off <= _ALIKE
            result[row, column, 1] += 1
    return result


def _forget_by_numpy(depth_m: np.ndarray, rgb: np.ndarray, colour: np.ndarray, cell: int) -> None:
    """Set (H, W) `depth_m` to NaN where the picture looks like the `colour` of its cell, (h, w, 3), NaN for none, and
    nothing is near.
    """
    row, column = (np.minimum(np.arange(rgb.shape[of]) // cell, colour.shape[of] - 1) for of in (0, 1))
    off = np.abs(rgb - colour[row[:, None], column]).max(axis=2)
    with np.errstate(invalid="ignore"):
        depth_m[(off <= _ALIKE) & (depth_m >= np.float32(_NEAR_M))] = np.nan


@compiled(_forget_by_numpy)
def _forget(depth_m: WrittenPixels, rgb: Colours, colour: Grid, cell: Int) -> None:
    rows, columns = depth_m.shape
    h, w, _ = colour.shape
    # All channels of a row, as they lie in memory: that is what makes vectors of loops.
    seen, low, high = rgb.reshape(rows, 3 * columns), np.empty(3 * columns, np.uint8), np.empty(3 * columns, np.uint8)
    off, differs = np.empty(3 * columns, np.uint8), np.empty(columns, np.uint8)
    for row in range(h):
        some = False
        low[:], high[:] = 255, 0
        for column in range(w):
            of = colour[row, column]
            if of[0] == of[0]:
                some = True
                for channel in range(3):
                    least = np.uint8(max(math.ceil(of[channel] - _ALIKE), 0))
                    most = np.uint8(min(math.floor(of[channel] + _ALIKE), 255))
                    for j in range(column * cell, (column + 1) * cell if column + 1 < w else columns):
                        low[3 * j + channel], high[3 * j + channel] = least, most
        if not some:
            continue
        for i in range(row * cell, (row + 1) * cell if row + 1 < h else rows):
            values, depths = seen[i], depth_m[i]
            for k in range(len(values)):
                off[k] = (values[k] < low[k]) | (values[k] > high[k])
            for j in range(len(depths)):
                differs[j] = off[3 * j] | off[3 * j + 1] | off[3 * j + 2]
            for j in range(len(depths)):
                depths[j] = depths[j] if differs[j] or depths[j] < np.float32(_NEAR_M) else np.float32(np.nan)
