"""Range points -> anchors: pixels of the image with a measured depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marigold_ros.config import RangeConfig
from marigold_ros.geometry import Camera, project, transformed

# Tiles over which anchors are thinned out evenly, in pixels; the field's networks are smooth at this scale.
_TILE_PX = 32
# Occlusion vote: a point is suspect when this share of the points in its 3x3 tiles lies at least this factor nearer.
_VOTE_TILE_PX = 16
_NEARER = 1.2
_VOTE_SHARE = 0.25
_SUSPECT_WEIGHT = 0.25
# What a spinning LiDAR that was calibrated with care has; in pixels what is left of extrinsic and timing.
LIDAR_NOISE_M, LIDAR_NOISE_PX = 0.03, 1.5


@dataclass(frozen=True)
class Anchors:
    """Range measurements in the image: `pixels` (N, 2) u, v; `depth_m` (N,); `weight` (N,) in (0, 1]; all float32.

    `seen` counts the finite points of the scan, so that `seen - len(anchors)` fell outside the image or the limits.
    `noise_m` and `noise_px`, (N,) float32, are one standard deviation of depth and of position in the image; where
    they are not given, those of a spinning LiDAR.
    """

    pixels: np.ndarray
    depth_m: np.ndarray
    weight: np.ndarray
    seen: int
    noise_m: np.ndarray | None = None
    noise_px: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, usual in (("noise_m", LIDAR_NOISE_M), ("noise_px", LIDAR_NOISE_PX)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.full(len(self.depth_m), usual, np.float32))

    def __len__(self) -> int:
        return len(self.depth_m)


def find_anchors(
    points: np.ndarray,
    camera_from_lidar: np.ndarray,
    camera: Camera,
    limits: RangeConfig,
    unseen: np.ndarray | None = None,
) -> Anchors:
    """Project a scan into the image.

    `points`: (N, 3) float32 metres in the LiDAR's frame (rows with NaN, and exact zeros, which drivers send for "no
    return", are ignored); `camera_from_lidar`: (4, 4) into the camera's optical frame; `camera`: undistorted. Points
    outside the image, at its `unseen` pixels, (H, W) bool, or not between `limits.min_depth_m` and
    `limits.max_depth_m` along the optical axis, are dropped; more than `limits.max_points` are thinned out evenly over
    the image. Points that nearer neighbours suggest are hidden from the camera get a smaller weight; they are never
    deleted, so one raindrop cannot delete a wall.
    """
    squared = np.einsum("ij,ij->i", points, points)
    points = points[np.isfinite(squared) & (squared > 0)]
    pixels, depth_m = project(transformed(points, camera_from_lidar), camera)
    inside = (depth_m >= limits.min_depth_m) & (depth_m <= limits.max_depth_m)
    with np.errstate(invalid="ignore"):
        inside &= (pixels[:, 0] >= -0.5) & (pixels[:, 0] <= camera.width - 0.5)
        inside &= (pixels[:, 1] >= -0.5) & (pixels[:, 1] <= camera.height - 0.5)
    pixels, depth_m = pixels[inside].astype(np.float32), depth_m[inside].astype(np.float32)
    if unseen is not None:
        column, row = np.rint(pixels).astype(np.intp).T
        hit = ~unseen[np.clip(row, 0, camera.height - 1), np.clip(column, 0, camera.width - 1)]
        pixels, depth_m = pixels[hit], depth_m[hit]
    weight = _visibility(pixels, depth_m, camera)
    if len(depth_m) > limits.max_points:
        kept = _spread_evenly(pixels, limits.max_points, camera)
        pixels, depth_m, weight = pixels[kept], depth_m[kept], weight[kept]
    return Anchors(pixels, depth_m, weight, seen=len(points))


def _tiles(pixels: np.ndarray, camera: Camera, size_px: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Row and column of the tile that each pixel lies in, and the number of rows and columns."""
    shape = (camera.height + size_px - 1) // size_px, (camera.width + size_px - 1) // size_px
    # Not `//`: floor division of floats takes twenty times as long, and here no pixel lies below -0.5.
    tiles = ((pixels + np.float32(0.5)) * np.float32(1.0 / size_px)).astype(np.intp)
    return np.minimum(tiles[:, 1], shape[0] - 1), np.minimum(tiles[:, 0], shape[1] - 1), shape


def _visibility(pixels: np.ndarray, depth_m: np.ndarray, camera: Camera) -> np.ndarray:
    """(N,) float32 weights by a vote of the points around each one (reference: soft occlusion vote by histograms)."""
    weight = np.ones(len(depth_m), np.float32)
    if len(depth_m) == 0:
        return weight
    rows, columns, shape = _tiles(pixels, camera, _VOTE_TILE_PX)
    bins = np.floor(np.log(depth_m) / np.log(_NEARER)).astype(np.intp)
    bins -= bins.min()
    count = bins.max() + 1
    flat = (rows * shape[1] + columns) * count + bins
    histogram = np.bincount(flat, minlength=shape[0] * shape[1] * count).reshape(*shape, count)
    padded = np.pad(histogram, ((1, 1), (1, 1), (0, 0)))
    window = sum(padded[i : i + shape[0], j : j + shape[1]] for i in range(3) for j in range(3))
    up_to = np.cumsum(window, axis=2)
    # Two bins nearer: at least the factor _NEARER whatever the position within the bins.
    nearer = np.where(bins >= 2, up_to[rows, columns, np.maximum(bins - 2, 0)], 0)
    hidden = (nearer >= 3) & (nearer >= _VOTE_SHARE * up_to[rows, columns, -1])
    weight[hidden] = _SUSPECT_WEIGHT
    return weight


def _spread_evenly(pixels: np.ndarray, budget: int, camera: Camera) -> np.ndarray:
    """Indices of at most `budget` pixels, taken round-robin from the tiles of the image."""
    rows, columns, shape = _tiles(pixels, camera, _TILE_PX)
    tile = rows * shape[1] + columns
    order = np.argsort(tile.astype(np.uint16) if shape[0] * shape[1] <= 65536 else tile, kind="stable")  # radix sort
    starts = np.searchsorted(tile[order], np.arange(shape[0] * shape[1]))
    turn = np.empty(len(tile), np.intp)
    turn[order] = np.arange(len(tile)) - starts[tile[order]]
    full_turns = np.searchsorted(np.cumsum(np.bincount(turn)), budget, side="right")
    kept = np.flatnonzero(turn < full_turns)
    last = np.flatnonzero(turn == full_turns)[: budget - len(kept)]
    return np.sort(np.concatenate([kept, last]))
