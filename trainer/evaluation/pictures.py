"""Pictures of single images of an evaluation: image | prediction | truth | error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.files import written_beside
from marigold_ros.visual import colour_map

# Errors at the end of the colours.
_WORST_RELATIVE, _WORST_DEG, _WORST_INTENSITY = 0.3, 45.0, 0.3
_TILE_PX = 400
_GAP_PX, _TITLE_PX = 4, 26
_HEADINGS = ("image", "prediction", "truth", "error")


def depth_tiles(rgb: np.ndarray, predicted_m: np.ndarray, truth_m: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    """Depth from red (near) to blue, both alike; relative error up to 30 %; black where no truth counts."""
    known = np.where(valid, truth_m, np.nan).astype(np.float32)
    farthest = float(np.nanpercentile(known, 98))
    error = np.abs(predicted_m / known - 1.0)
    shown = [_red_to_blue(depth_m, farthest) for depth_m in (predicted_m, _visible(known))]
    return [rgb, *shown, _heat(_visible(error), _WORST_RELATIVE)]


def normals_tiles(rgb: np.ndarray, predicted: np.ndarray, truth: np.ndarray, angles: np.ndarray) -> list[np.ndarray]:
    """Normals as the field draws them (facing surfaces lilac, floors green); angles up to 45 degrees."""
    known = np.isfinite(angles)
    tiles = [rgb]
    for normals in (predicted, np.where(known[..., None], truth, 0.0)):
        length = np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-6)
        colours = (normals / length * np.float32((1, -1, -1)) + 1.0) * 127.5
        tiles.append(colours.astype(np.uint8))
    tiles[2][~known] = 0
    return [*tiles, _heat(angles, _WORST_DEG)]


def image_tiles(rgb: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> list[np.ndarray]:
    """Intrinsic images as they are compared; absolute error up to 0.3."""
    error = np.abs(predicted - truth).mean(axis=2)
    shown = [(np.nan_to_num(np.clip(image, 0.0, 1.0)) * 255.0).astype(np.uint8) for image in (predicted, truth)]
    return [rgb, *shown, _heat(error, _WORST_INTENSITY)]


def _red_to_blue(depth_m: np.ndarray, farthest_m: float) -> np.ndarray:
    return colour_map(depth_m.astype(np.float32), farthest_m)[..., ::-1]


def _visible(values: np.ndarray) -> np.ndarray:
    """Sparse values, as a LiDAR's, with each spread over its neighbours: single pixels vanish when shrunk."""
    if np.isfinite(values).mean() > 0.6:
        return values
    spread = cv2.dilate(np.nan_to_num(values, nan=-1.0).astype(np.float32), np.ones((5, 5), np.uint8))
    return np.where(spread >= 0, spread, np.nan)


def _heat(error: np.ndarray, worst: float) -> np.ndarray:
    share = np.nan_to_num(np.clip(error / worst, 0.0, 1.0))
    picture = cv2.applyColorMap((share * 255.0).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1].copy()
    picture[~np.isfinite(error)] = 0
    return picture


def write_picture(path: Path, rows: Sequence[Sequence[np.ndarray]], title: str) -> None:
    """A PNG with the tiles of `rows` beside and under each other, below `title`."""
    height, width = rows[0][0].shape[:2]
    size = (_TILE_PX, max(1, round(_TILE_PX * height / width)))
    strips = [_strip(title, len(rows[0]))]
    for tiles in rows:
        small = [cv2.resize(np.ascontiguousarray(tile), size, interpolation=cv2.INTER_AREA) for tile in tiles]
        padded = [cv2.copyMakeBorder(tile, 0, _GAP_PX, 0, _GAP_PX, cv2.BORDER_CONSTANT) for tile in small]
        strips.append(np.hstack(padded))
    with written_beside(path) as beside:
        if not cv2.imwrite(str(beside), np.vstack(strips)[..., ::-1]):
            raise Unusable(f"picture {path}: cannot be written; make room on the disk")


def _strip(title: str, tiles: int) -> np.ndarray:
    """Two lines of text: the title, and what the tiles are."""
    strip = np.zeros((2 * _TITLE_PX, tiles * (_TILE_PX + _GAP_PX), 3), np.uint8)
    _write(strip, title, 0, 0)
    for number, heading in enumerate(_HEADINGS[:tiles]):
        _write(strip, heading, number * (_TILE_PX + _GAP_PX), _TITLE_PX)
    return strip


def _write(strip: np.ndarray, text: str, left: int, top: int) -> None:
    cv2.putText(strip, text, (left + 6, top + 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (230, 230, 230), 1, cv2.LINE_AA)
