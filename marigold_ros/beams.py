"""Spinning LiDARs: which beam measured which point, and depth maps made from anchors alone.

A scan thinned to some of its beams stands in for a cheaper sensor; the beams left out are an honest test. What anchors
give without looking at the image (`plane_depth`, `linear_depth`) is what a network has to be compared with.
"""

from __future__ import annotations

import numpy as np

from marigold_ros.anchors import Anchors

_PLANE_ROUNDS = 20
_PLANE_FLOOR = 1e-3


def beam_of_each_point(points: np.ndarray) -> np.ndarray:
    """(N,) beam numbers of the (N, 3) points of a scan stored one beam after the other, each a sweep of azimuth.

    A new beam begins where the azimuth, which grows within a sweep, wraps back to its start.
    """
    azimuth = np.arctan2(points[:, 1], points[:, 0]) % (2 * np.pi)
    wraps = np.diff(azimuth) < -np.pi
    return np.concatenate([[0], np.cumsum(wraps)])[: len(points)]


def every_nth_beam(beams: np.ndarray, kept: int) -> np.ndarray:
    """(N,) bool: the points of `kept` beams, evenly spread over all; the rest is held out.

    Of 64 beams and 16 kept these are the beams 0, 4, 8, …
    """
    total = int(beams.max()) + 1
    if not 0 < kept <= total:
        raise ValueError(f"{kept} beams of {total}: must lie between 1 and {total}")
    chosen = np.arange(kept) * total // kept
    return np.isin(beams, chosen)


def linear_depth(anchors: Anchors, pixels: np.ndarray) -> np.ndarray:
    """(M,) depth at (M, 2) pixels, linear over the anchors' Delaunay triangles, the nearest anchor's outside."""
    from matplotlib.tri import LinearTriInterpolator, Triangulation

    corners, first = np.unique(anchors.pixels.astype(np.float64), axis=0, return_index=True)
    triangles = Triangulation(corners[:, 0], corners[:, 1])
    values = anchors.depth_m[first]
    depth_m = LinearTriInterpolator(triangles, values)(pixels[:, 0], pixels[:, 1]).filled(np.nan)
    outside = np.flatnonzero(np.isnan(depth_m))
    for chunk in np.array_split(outside, max(1, len(outside) // 256)):
        distance = ((pixels[chunk, None, :] - corners[None]) ** 2).sum(axis=2)
        depth_m[chunk] = values[distance.argmin(axis=1)]
    return depth_m.astype(np.float32)


def plane_depth(anchors: Anchors, pixels: np.ndarray) -> np.ndarray:
    """(M,) depth at (M, 2) pixels if inverse depth were a plane a*u + b*v + c, fitted robustly to the anchors.

    The best guess that never looks at the image: a road seen by a level camera is exactly such a plane.
    """
    columns, inverse = _with_one(anchors.pixels), 1.0 / anchors.depth_m.astype(np.float64)
    lowest, highest = inverse.min(), inverse.max()
    predicted, error = inverse, np.ones(len(inverse))
    for _ in range(_PLANE_ROUNDS):
        # |1/z - 1/predicted| * predicted is the relative error of the depth; rows are reweighted to its absolute value.
        root = 1.0 / (predicted * np.sqrt(np.maximum(error, _PLANE_FLOOR)))
        plane = np.linalg.lstsq(columns * root[:, None], inverse * root, rcond=None)[0]
        predicted = np.clip(columns @ plane, lowest, highest)
        error = np.abs(inverse / predicted - 1.0)
    return (1.0 / np.clip(_with_one(pixels) @ plane, lowest, highest)).astype(np.float32)


def _with_one(pixels: np.ndarray) -> np.ndarray:
    """(N, 2) pixels -> (N, 3) u, v, 1."""
    return np.column_stack([pixels.astype(np.float64), np.ones(len(pixels))])
