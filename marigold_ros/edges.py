"""Edges of depth: how deep they are, and the pixels on them that float between two surfaces."""

from __future__ import annotations

import cv2
import numpy as np

from marigold_ros.compiled import Mask, Pixels, compiled

# Nearer and farther than all depths; stand for unknown ones, which are neither.
_NEAREST_M, _FARTHEST_M = 1e-6, 1e9
# An edge is where the depths of 3x3 pixels differ by this factor; its two surfaces lie within 11x11, which are so many
# steps of two pixels each way.
_EDGE_RATIO, _AROUND_STEPS, _BORDER_PX = 1.1, 5, 5
# Inverse depth of a plane grows evenly: over 11 pixels five times as much as over 3. What grows by less is an edge.
_PLANE_GROWTH = 3.0
# This part of the way from one surface to the other is still the surface.
_SURFACE = 0.12


def edge_ln(depth_m: np.ndarray) -> np.ndarray:
    """(H, W) metres, NaN unknown -> (H, W) float32: about what a pixel to the side changes ln depth by.

    Half of what the nearest and farthest known depth of 3x3 pixels differ by; 0 where none is known.
    """
    ratio = _depth_ratio(np.ascontiguousarray(depth_m, np.float32))
    cv2.log(ratio, ratio)
    ratio *= np.float32(0.5)
    return ratio


def _depth_ratio_by_numpy(depth_m: np.ndarray) -> np.ndarray:
    """(H, W) float32: the farthest by the nearest known depth of 3x3 pixels; 1 where none is known."""
    kernel = np.ones((3, 3), np.uint8)
    filled = depth_m.copy()
    cv2.patchNaNs(filled, _FARTHEST_M)
    nearest_m = cv2.erode(filled, kernel)
    np.copyto(filled, depth_m)
    cv2.patchNaNs(filled, _NEAREST_M)
    ratio = cv2.divide(cv2.dilate(filled, kernel), nearest_m)
    return np.maximum(ratio, np.float32(1.0), out=ratio)


@compiled(_depth_ratio_by_numpy)
def _depth_ratio(depth_m: Pixels) -> np.ndarray:
    rows, columns = depth_m.shape
    ratio = np.empty((rows, columns), np.float32)
    high, low = np.empty(columns + 2, np.float32), np.empty(columns + 2, np.float32)
    high_left, high_middle, high_right = high[:-2], high[1:-1], high[2:]
    low_left, low_middle, low_right = low[:-2], low[1:-1], low[2:]
    for i in range(rows):
        high_middle[:], low_middle[:] = np.float32(_NEAREST_M), np.float32(_FARTHEST_M)
        for k in range(max(i - 1, 0), min(i + 2, rows)):
            line = depth_m[k]
            for j in range(columns):
                # Comparisons with NaN are false.
                high_middle[j] = line[j] if line[j] > high_middle[j] else high_middle[j]
                low_middle[j] = line[j] if line[j] < low_middle[j] else low_middle[j]
        high[0], high[-1], low[0], low[-1] = high[1], high[-2], low[1], low[-2]
        into = ratio[i]
        for j in range(columns):
            most = high_left[j] if high_left[j] > high_middle[j] else high_middle[j]
            most = most if most > high_right[j] else high_right[j]
            least = low_left[j] if low_left[j] < low_middle[j] else low_middle[j]
            least = least if least < low_right[j] else low_right[j]
            into[j] = most / least if most > least else np.float32(1)
    return ratio


def floating(depth_m: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels between a near and a far surface, where networks blur an edge and there is only air.

    (H, W) metres, NaN unknown, which counts as far: most of it is the sky. Told by inverse depth, in which planes are
    even: a floor that is seen at a grazing angle stays, however steep its depth, and so do both surfaces of an edge
    and what is thin and nearer than all around it.
    """
    depth_m = np.ascontiguousarray(depth_m, np.float32)
    return _in_the_air(depth_m, *_steep(depth_m))


def _steep_by_numpy(depth_m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, W) bool: pixels at which there may be an edge; and the greatest and least inverse depth of 11x11 pixels
    around every second pixel of every second row.
    """
    inverse = np.reciprocal(depth_m)  # three times as fast as `cv2.divide`
    cv2.patchNaNs(inverse, 0.0)
    close = np.ones((3, 3), np.uint8)
    nearest, farthest = cv2.dilate(inverse, close), cv2.erode(inverse, close)
    # Of every second pixel's 3x3.
    around = np.ones((_AROUND_STEPS, _AROUND_STEPS), np.uint8)
    near = cv2.dilate(np.ascontiguousarray(nearest[::2, ::2]), around)
    far = cv2.erode(np.ascontiguousarray(farthest[::2, ::2]), around)
    return nearest > farthest * np.float32(_EDGE_RATIO), near, far


@compiled(_steep_by_numpy)
def _steep(depth_m: Pixels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Row by row, so that what is in work stays in the cache. Slices of the same length are what makes vectors of loops.
    rows, columns = depth_m.shape
    steep = np.empty((rows, columns), np.bool_)
    half_rows, half_columns = (rows + 1) // 2, (columns + 1) // 2
    low, high = np.empty((half_rows, half_columns), np.float32), np.empty((half_rows, half_columns), np.float32)
    # Metres do as well as their inverse, with unknown ones beyond all others; only the last are divided.
    known_m = np.empty((3, columns), np.float32)
    nearest, farthest = np.empty(columns, np.float32), np.empty(columns, np.float32)
    # With what the ends are repeated by.
    least, most = np.empty(columns + 2, np.float32), np.empty(columns + 2, np.float32)
    wide_low, wide_high = np.empty(half_columns + 4, np.float32), np.empty(half_columns + 4, np.float32)
    for i in range(-1, rows):
        if i + 1 < rows:
            source, into = depth_m[i + 1], known_m[(i + 1) % 3]
            for j in range(columns):
                into[j] = source[j] if source[j] == source[j] else np.float32(np.inf)
        if i < 0:
            continue
        above, here, below = known_m[max(i - 1, 0) % 3], known_m[i % 3], known_m[min(i + 1, rows - 1) % 3]
        left, middle, right = least[:-2], least[1:-1], least[2:]
        for j in range(columns):
            value = above[j] if above[j] < here[j] else here[j]
            middle[j] = value if value < below[j] else below[j]
        least[0], least[-1] = least[1], least[-2]
        for j in range(columns):
            value = left[j] if left[j] < middle[j] else middle[j]
            nearest[j] = value if value < right[j] else right[j]
        left, middle, right = most[:-2], most[1:-1], most[2:]
        for j in range(columns):
            value = above[j] if above[j] > here[j] else here[j]
            middle[j] = value if value > below[j] else below[j]
        most[0], most[-1] = most[1], most[-2]
        found = steep[i]
        for j in range(columns):
            value = left[j] if left[j] > middle[j] else middle[j]
            farthest[j] = value if value > right[j] else right[j]
            found[j] = farthest[j] > nearest[j] * np.float32(_EDGE_RATIO)
        if i % 2:
            continue
        for j in range(half_columns):
            wide_low[j + 2], wide_high[j + 2] = nearest[2 * j], farthest[2 * j]
        wide_low[:2], wide_low[-2:] = wide_low[2], wide_low[-3]
        wide_high[:2], wide_high[-2:] = wide_high[2], wide_high[-3]
        _least_of_five(low[i // 2], wide_low[:-4], wide_low[1:-3], wide_low[2:-2], wide_low[3:-1], wide_low[4:])
        _most_of_five(high[i // 2], wide_high[:-4], wide_high[1:-3], wide_high[2:-2], wide_high[3:-1], wide_high[4:])
    near, far = np.empty((half_rows, half_columns), np.float32), np.empty((half_rows, half_columns), np.float32)
    last = half_rows - 1
    for i in range(half_rows):
        a, b, d, e = max(i - 2, 0), max(i - 1, 0), min(i + 1, last), min(i + 2, last)
        _least_of_five(near[i], low[a], low[b], low[i], low[d], low[e])
        _most_of_five(far[i], high[a], high[b], high[i], high[d], high[e])
        closest, remotest = near[i], far[i]
        for j in range(half_columns):
            closest[j] = np.float32(1) / closest[j]
            remotest[j] = np.float32(1) / remotest[j]
    return steep, near, far


def _least_of_five(into: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, e: np.ndarray) -> None:
    """For loops: the least of (N,) numbers."""
    for j in range(len(into)):
        first, second = a[j] if a[j] < b[j] else b[j], c[j] if c[j] < d[j] else d[j]
        first = first if first < second else second
        into[j] = first if first < e[j] else e[j]


def _most_of_five(into: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, e: np.ndarray) -> None:
    """For loops: the greatest of (N,) numbers."""
    for j in range(len(into)):
        first, second = a[j] if a[j] > b[j] else b[j], c[j] if c[j] > d[j] else d[j]
        first = first if first > second else second
        into[j] = first if first > e[j] else e[j]


def _in_the_air_by_numpy(depth_m: np.ndarray, steep: np.ndarray, near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """(H, W) bool: which of the `steep` pixels, see `_steep_by_numpy`, lie between two surfaces."""
    floating = np.zeros_like(steep)
    # At the border of the image planes grow to one side only.
    inner = slice(_BORDER_PX, -_BORDER_PX)
    floating[inner, inner] = steep[inner, inner]
    place = np.flatnonzero(floating)  # ten times as fast as `np.nonzero` of rows and columns
    if len(place) == 0:
        return floating
    row, column = np.divmod(place, depth_m.shape[1])
    around = [place + (i * depth_m.shape[1] + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    around = [np.nan_to_num(np.float32(1) / depth_m.ravel()[pixel], copy=False) for pixel in around]
    value, growth = around[4], np.maximum.reduce(around) - np.minimum.reduce(around)
    # Between two of those looked around what either sees counts, so that no side is preferred.
    corners = [(r, c) for r in (row >> 1, (row + 1) >> 1) for c in (column >> 1, (column + 1) >> 1)]
    near = np.maximum.reduce([near[corner] for corner in corners])
    far = np.minimum.reduce([far[corner] for corner in corners])
    span = near - far
    surface = span * np.float32(_SURFACE)
    in_the_air = span < growth * np.float32(_PLANE_GROWTH)
    in_the_air &= (value < near - surface) & (value > far + surface)
    floating.ravel()[place] = in_the_air
    return floating


@compiled(_in_the_air_by_numpy)
def _in_the_air(depth_m: Pixels, steep: Mask, near: Pixels, far: Pixels) -> np.ndarray:
    rows, columns = depth_m.shape
    floating = np.zeros((rows, columns), np.bool_)
    # Eight pixels at once: most are not steep. What is left over at the end of the image is border.
    eights = steep.ravel()[: rows * columns // 8 * 8].view(np.uint64)
    for eight in range(len(eights)):
        if eights[eight] == 0:
            continue
        for place in range(8 * eight, 8 * eight + 8):
            i, j = place // columns, place % columns
            inside = _BORDER_PX <= i < rows - _BORDER_PX and _BORDER_PX <= j < columns - _BORDER_PX
            if not (steep[i, j] and inside):
                continue
            closest, remotest = np.float32(0), np.float32(np.inf)
            for k in range(i - 1, i + 2):
                for m in range(j - 1, j + 2):
                    value = np.float32(1) / depth_m[k, m] if depth_m[k, m] == depth_m[k, m] else np.float32(0)
                    closest, remotest = max(closest, value), min(remotest, value)
            value = np.float32(1) / depth_m[i, j] if depth_m[i, j] == depth_m[i, j] else np.float32(0)
            most, least = np.float32(0), np.float32(np.inf)
            for k in (i >> 1, (i + 1) >> 1):
                for m in (j >> 1, (j + 1) >> 1):
                    most, least = max(most, near[k, m]), min(least, far[k, m])
            span = most - least
            surface = span * np.float32(_SURFACE)
            plane = span >= (closest - remotest) * np.float32(_PLANE_GROWTH)
            floating[i, j] = not plane and least + surface < value < most - surface
    return floating
