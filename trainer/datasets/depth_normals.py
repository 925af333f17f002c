"""Surface normals of a depth map, for datasets that were rendered without them.

The inverse depth of a plane is linear in pixel coordinates, so planes are fitted to it in small windows. Of the windows
around a pixel the one that is most of a plane counts: beside an edge of depth that is one wholly on the pixel's side.
"""

from __future__ import annotations

import cv2
import numpy as np

_WINDOW_PX = 5
# Deviation of inverse depth from a plane, relative to itself, that rounding and smooth curves leave; above it no window
# around the pixel is of one surface, and its normal is not known.
_MOST_UNEVEN = 0.004


def normals_from_depth(depth_m: np.ndarray, k: np.ndarray, window_px: int = _WINDOW_PX) -> np.ndarray:
    """(H, W) depth along the optical axis, metres, to (H, W, 3) unit normals in the optical frame, facing the camera.

    k: (3, 3) camera matrix, pixels. NaN where depth is not known or infinite in all windows, or no window is even.
    With w = 1 / depth = a u + b v + c on a plane, its normal is along (fx a, fy b, a cx + b cy + c).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(np.isfinite(depth_m) & (depth_m > 0), 1.0 / depth_m, np.nan)
    slopes, unevenness = _planes(inverse, window_px)
    across, down = _best(slopes, unevenness, window_px // 2)
    # The plane through the pixel itself, from where rays come.
    rows, columns = np.mgrid[: inverse.shape[0], : inverse.shape[1]]
    towards = inverse - across * (columns - k[0, 2]) - down * (rows - k[1, 2])
    normals = np.stack([k[0, 0] * across, k[1, 1] * down, towards], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    # The side that is seen: n . ray is the inverse depth up to a positive factor, hence turned round.
    return -normals.astype(np.float32)


def _planes(inverse: np.ndarray, window_px: int) -> tuple[np.ndarray, np.ndarray]:
    """(2, H, W) slopes across and down of the planes fitted to the windows centred at each pixel, and their unevenness.

    Windows with an unknown pixel, or over the border, are infinitely uneven.
    """
    known = np.isfinite(inverse)
    values = np.where(known, inverse, 0.0)
    offsets = np.arange(window_px, dtype=np.float64) - window_px // 2
    ones = np.ones(window_px)

    def summed(of: np.ndarray, along: np.ndarray, down: np.ndarray) -> np.ndarray:
        return cv2.sepFilter2D(of, cv2.CV_64F, along, down, borderType=cv2.BORDER_CONSTANT)

    count, spread = window_px**2, float(offsets @ offsets) * window_px
    mean = summed(values, ones, ones) / count
    across = summed(values, offsets, ones) / spread
    down = summed(values, ones, offsets) / spread
    squares = summed(values**2, ones, ones) / count - mean**2 - (across**2 + down**2) * spread / count
    with np.errstate(divide="ignore", invalid="ignore"):
        unevenness = np.sqrt(np.maximum(squares, 0.0)) / mean
    whole = summed(known.astype(np.float64), ones, ones) > count - 0.5
    return np.stack([across, down]), np.where(whole, unevenness, np.inf)


def _best(slopes: np.ndarray, unevenness: np.ndarray, reach: int) -> np.ndarray:
    """The slopes (2, H, W) of the evenest of nine windows that hold a pixel: around it, beside it, at its corners."""
    height, width = unevenness.shape
    padded = np.pad(unevenness, reach, constant_values=np.inf)
    padded_slopes = np.pad(slopes, ((0, 0), (reach, reach), (reach, reach)))
    least = np.full((height, width), _MOST_UNEVEN)
    best = np.full((2, height, width), np.nan)
    for down in (reach, 0, 2 * reach):
        for across in (reach, 0, 2 * reach):
            place = (slice(down, down + height), slice(across, across + width))
            better = padded[place] < least
            least[better] = padded[place][better]
            best[:, better] = padded_slopes[(slice(None), *place)][:, better]
    return best
