"""A spinning LiDAR in a scene. LiDAR frame: x forward, y left, z up; metres."""

from __future__ import annotations

import numpy as np

from .render import World


def scan_pattern(
    beams: int = 16, azimuths: int = 900, lowest_deg: float = -15.0, highest_deg: float = 15.0, front_deg: float = 360.0
) -> np.ndarray:
    """Unit directions (beams * azimuths, 3) of one turn in the LiDAR frame, azimuth slowest.

    `front_deg` below 360 keeps only the sector about the x axis, at the same spacing.
    """
    elevation = np.radians(np.linspace(lowest_deg, highest_deg, beams))
    azimuth = np.linspace(-np.pi, np.pi, azimuths, endpoint=False)
    azimuth = azimuth[np.abs(azimuth) <= np.radians(front_deg) / 2 + 1e-9]
    a, e = np.meshgrid(azimuth, elevation, indexing="ij")
    return np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], -1).reshape(-1, 3)


def cast_lidar(
    scene: World,
    lidar_pose: np.ndarray,
    directions: np.ndarray,
    reach_m: float = 100.0,
    noise_m: float = 0.0,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Ranges (N,) float32 in metres along `directions` (N, 3, LiDAR frame); +inf where no echo comes back.

    lidar_pose: world_from_lidar (4, 4). noise_m: standard deviation of the range; dropout: share of echoes that
    get lost. Both need `rng`.
    """
    d = np.asarray(directions, np.float32)
    world = d @ lidar_pose[:3, :3].T.astype(np.float32)
    ranges = scene.ranges(lidar_pose[:3, 3].astype(np.float32), world, reach_m)
    if (noise_m > 0 or dropout > 0) and rng is None:
        raise ValueError("noise and drop-outs need a generator of random numbers")
    if noise_m > 0:
        ranges = np.maximum(ranges + rng.normal(0, noise_m, len(ranges)).astype(np.float32), 0.05)
    if dropout > 0:
        ranges = np.where(rng.random(len(ranges)) < dropout, np.inf, ranges)
    return ranges.astype(np.float32)


def to_points(ranges: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Points (M, 3) float32 in the LiDAR frame of those rays that have an echo."""
    hit = np.isfinite(ranges)
    return (ranges[hit, None] * np.asarray(directions)[hit]).astype(np.float32)
