"""Depth that was measured, by a LiDAR or as a dense image, as maps of an image's pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.decoding import depth_from_image
from marigold_ros.geometry import Camera, resize
from marigold_ros.recordings import TRUTH_STRIDE, truth_from_png
from marigold_ros.topics import COMPRESSED


def stored_size(width: int, height: int, longest_px: int) -> tuple[int, int]:
    """Width and height shrunk so that the longer is at most `longest_px`; 0 leaves them."""
    scale = min(1.0, longest_px / max(width, height)) if longest_px else 1.0
    return max(1, round(width * scale)), max(1, round(height * scale))


def shrunk(rgb: np.ndarray, camera: Camera, longest_px: int) -> tuple[np.ndarray, Camera]:
    """The image and its camera at `stored_size`."""
    width, height = stored_size(camera.width, camera.height, longest_px)
    return resize(rgb, width, height), camera.resized(width, height)


def depth_map(pixels: np.ndarray, depth_m: np.ndarray, camera: Camera, stored: Camera) -> np.ndarray:
    """(H, W) float32 of the `stored` image: depths (N,) at pixels (N, 2) u, v of the `camera`'s, NaN elsewhere.

    Where several fall into one pixel, the nearest wins: the others may be what it hides.
    """
    scale = np.array([stored.width / camera.width, stored.height / camera.height])
    u, v = np.rint((pixels + 0.5) * scale - 0.5).astype(np.intp).T
    u, v = np.clip(u, 0, stored.width - 1), np.clip(v, 0, stored.height - 1)
    depths = np.full((stored.height, stored.width), np.inf, np.float32)
    np.minimum.at(depths, (v, u), depth_m)
    return np.where(np.isinf(depths), np.float32(np.nan), depths)


def true_depth(message: Any, type: str, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) and metres (N,) of a dense depth image of the same camera, of all or of every second pixel.

    Raises `Unusable` for other sizes and for what is no depth image.
    """
    depth_m = truth_from_png(message.data) if type == COMPRESSED else depth_from_image(message)
    rows, columns = depth_m.shape
    halves = ((camera.height + 1) // TRUTH_STRIDE, (camera.width + 1) // TRUTH_STRIDE)
    if (rows, columns) not in ((camera.height, camera.width), halves):
        raise Unusable(
            f"true depth of {columns}x{rows} for an image of {camera.width}x{camera.height}: must have its size, or "
            "every second of its pixels"
        )
    stride = 1 if (rows, columns) == (camera.height, camera.width) else TRUTH_STRIDE
    v, u = np.nonzero(np.isfinite(depth_m))
    return np.stack([u, v], axis=1).astype(np.float32) * stride, depth_m[v, u]
