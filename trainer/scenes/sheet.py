"""Contact sheets: pictures beside their depth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def colour_depth(depth: np.ndarray) -> np.ndarray:
    """Depth (H, W) metres as BGR colours by log distance between its 1st and 99th percentile; sky is black."""
    solid = np.isfinite(depth)
    z = np.log(np.maximum(np.where(solid, depth, 1.0), 0.05).astype(np.float32))
    lo, hi = np.percentile(z[solid], [1, 99]) if solid.any() else (0, 1)
    t = np.clip((z - lo) / max(hi - lo, 1e-6), 0, 1)
    image = cv2.applyColorMap(((1 - t) * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    image[~solid] = 0
    return image


def tile(rgb: np.ndarray, depth: np.ndarray, label: str, width: int = 256, height: int = 192) -> np.ndarray:
    """Picture over depth for wide images, side by side otherwise: always (height, 2 * width, 3) BGR."""
    a, b = rgb[..., ::-1], colour_depth(depth)
    h, w = depth.shape
    out = np.zeros((height, 2 * width, 3), np.uint8)
    if w / h > 2:
        s = height // 2
        for k, m in enumerate((a, b)):
            small = cv2.resize(m, (min(2 * width, s * w // h), s), interpolation=cv2.INTER_AREA)
            out[k * s : k * s + s, : small.shape[1]] = small
    else:
        out[:, :width], out[:, width:] = cv2.resize(a, (width, height)), cv2.resize(b, (width, height))
    cv2.putText(out, label, (4, height - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1)
    return out


def contact_sheet(root: Path, split: str, indices: list[int], target: Path, columns: int = 3) -> int:
    """Writes a sheet of the finished samples among `indices`; returns how many it shows."""
    import json

    from .dataset import complete, paths

    tiles = []
    for index in indices:
        if not complete(root, split, index):
            continue
        picture, distance, camera = paths(root, split, index)
        about = json.loads(camera.read_text())
        depth = np.load(distance).astype(np.float32)
        near, far = np.percentile(depth[np.isfinite(depth)], [1, 99])
        label = f"{index} {about['family']} {about['sky']} {near:.1f}-{far:.0f} m"
        tiles.append(tile(cv2.imread(str(picture))[..., ::-1], depth, label))
    if not tiles:
        return 0
    while len(tiles) % columns:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [np.concatenate(tiles[k : k + columns], 1) for k in range(0, len(tiles), columns)]
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), np.concatenate(rows, 0))
    return len(tiles)
