"""Sparse depth images in files -> anchors: 16-bit PNG as KITTI's, or arrays of metres."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.config import Unusable, one_line

SUFFIXES = (".png", ".npy")
KITTI_PER_METRE = 256.0
# More add nothing but time; they are thinned out at random, by a fixed seed.
_MOST_ANCHORS = 8192
# One standard deviation, of the depth; what measured it is not known.
_NOISE = 0.01


def read_sparse_depth(path: Path, per_metre: float = KITTI_PER_METRE) -> np.ndarray:
    """(H, W) float32 metres, NaN unknown, of a .png (uint16, 0 unknown) or .npy (float metres; NaN, inf, 0 unknown).

    per_metre: what a .png counts to the metre, 256 as KITTI's or 1000 for millimetres. Raises `Unusable` for files that
    hold no such image, and for negative depth.
    """
    if not 0.0 < per_metre < float("inf"):
        raise Unusable(f"--anchors-per-metre {per_metre}: must be a positive number; 1000 for millimetres")
    if path.suffix.lower() not in SUFFIXES:
        raise Unusable(f"anchors {path}: must be a {' or '.join(SUFFIXES)} file, a sparse depth image")
    depth_m = _read_array(path) if path.suffix.lower() == ".npy" else _read_png(path, per_metre)
    depth_m[~np.isfinite(depth_m) | (depth_m == 0)] = np.nan
    if (depth_m < 0).any():
        raise Unusable(f"anchors {path}: has negative depth ({np.nanmin(depth_m):g} m); unknown is NaN or 0")
    return depth_m


def anchors_of(depth_m: np.ndarray) -> Anchors:
    """Anchors at the known pixels of (H, W) metres, NaN unknown; of more than 8192 a part, the same ones each time."""
    v, u = np.nonzero(np.isfinite(depth_m))
    seen = len(v)
    if seen > _MOST_ANCHORS:
        kept = np.sort(np.random.default_rng(0).choice(seen, _MOST_ANCHORS, replace=False))
        v, u = v[kept], u[kept]
    known_m = depth_m[v, u].astype(np.float32)
    pixels = np.stack([u, v], axis=1).astype(np.float32)
    noise_px = np.full(len(known_m), 0.5, np.float32)
    return Anchors(pixels, known_m, np.ones(len(known_m), np.float32), seen, known_m * np.float32(_NOISE), noise_px)


def _read_png(path: Path, per_metre: float) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if image is None:
        raise Unusable(f"anchors {path}: cannot be read; give a 16-bit .png or a .npy of metres")
    if image.ndim != 2 or image.dtype != np.uint16:
        raise Unusable(
            f"anchors {path}: has {image.dtype} values of shape {image.shape}; a sparse depth image is uint16, (H, W)"
        )
    return image.astype(np.float32) / np.float32(per_metre)


def _read_array(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Unusable(
            f"anchors {path}: cannot be read ({one_line(error)}); give a .npy of (H, W) float metres"
        ) from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f":
        what = f"{values.dtype} values of shape {values.shape}" if isinstance(values, np.ndarray) else "several arrays"
        raise Unusable(f"anchors {path}: has {what}; a sparse depth image is (H, W) float metres, NaN or 0 unknown")
    return values.astype(np.float32)
