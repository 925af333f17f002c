"""How the camera moved from one image to the next, in metres, by points of known depth that are found again.

Anchors are points in space, and their texture is found again in the next image (Lucas-Kanade); where the camera is that
sees them there is the perspective-n-point problem, with RANSAC for what moved by itself or was not found. In metres,
for the anchors are.
"""

from __future__ import annotations

import cv2
import numpy as np

from marigold_ros.geometry import Camera

# So many points, those with the most texture around them, of those with depth.
_POINTS = 150
# Pixels of the working picture: the window that is found again, the corner it needs, and how far from where the motion
# takes it a point may be; levels of the pyramid; RANSAC's rounds.
_WINDOW, _CORNER, _WITHIN_PX, _LEVELS, _ROUNDS = 11, 5, 0.5, 2, 100
# Fewer points, or a smaller share of those found again, that move alike say nothing: it may be a lorry that does.
_FEWEST, _LEAST_SHARE = 20, 0.5


def motion_between(
    before: np.ndarray,
    now: np.ndarray,
    pixels: np.ndarray,
    depth_m: np.ndarray,
    camera: Camera,
    shift_px: np.ndarray | None = None,
) -> np.ndarray | None:
    """(4, 4) now_from_before of the camera between two working pictures (h, w) uint8; None where it cannot be told.

    pixels (N, 2) and depth_m (N,): points of the (H, W) image before. shift_px: (2,) by how many pixels the picture
    moved right and down as a whole, to look there first.
    """
    # Pixel centres are whole numbers in both pictures.
    shrink = camera.width / before.shape[1], camera.height / before.shape[0]
    places = ((pixels + 0.5) / shrink - 0.5).astype(np.float32)
    chosen = _most_texture(before, places)
    places, pixels, depth_m = places[chosen], pixels[chosen], depth_m[chosen]
    if len(places) < _FEWEST:
        return None
    guess = places if shift_px is None else places + (shift_px / shrink).astype(np.float32)
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        before, now, places[:, None], guess[:, None].copy(), winSize=(_WINDOW, _WINDOW), maxLevel=_LEVELS,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )  # fmt: skip
    known = status[:, 0] > 0
    return _pose(pixels[known], depth_m[known], ((found[known, 0] + 0.5) * shrink - 0.5), camera, max(shrink))


def _most_texture(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(M,) numbers of those of `places` (N, 2) of a picture that are found again best."""
    rows, columns = picture.shape
    corner = cv2.cornerMinEigenVal(picture, _CORNER)
    column, row = np.rint(places).astype(np.intp).T
    strength = corner[np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)]
    most = min(_POINTS, len(places))
    chosen = np.argpartition(-strength, most - 1)[:most] if most else np.empty(0, np.intp)
    return chosen[strength[chosen] > 0]


def _pose(
    pixels: np.ndarray, depth_m: np.ndarray, found: np.ndarray, camera: Camera, shrink: float
) -> np.ndarray | None:
    """(4, 4) now_from_before of the camera that sees the points (N, 2), (N,) at the pixels `found` (N, 2)."""
    if len(pixels) < _FEWEST:
        return None
    across, down = (pixels[:, 0] - camera.cx) / camera.fx, (pixels[:, 1] - camera.cy) / camera.fy
    points = (depth_m[:, None] * np.stack([across, down, np.ones_like(across)], axis=1)).astype(np.float64)
    found = np.ascontiguousarray(found, np.float64)
    solved, turn, shift_m, alike = cv2.solvePnPRansac(
        points, found, camera.matrix, None, iterationsCount=_ROUNDS, reprojectionError=_WITHIN_PX * shrink,
        flags=cv2.SOLVEPNP_AP3P,
    )  # fmt: skip
    if not solved or alike is None or len(alike) < max(_FEWEST, _LEAST_SHARE * len(points)):
        return None
    alike = alike[:, 0]
    turn, shift_m = cv2.solvePnPRefineLM(points[alike], found[alike], camera.matrix, None, turn, shift_m)
    now_from_before = np.eye(4)
    now_from_before[:3, :3], now_from_before[:3, 3] = cv2.Rodrigues(turn)[0], shift_m[:, 0]
    return now_from_before if np.isfinite(now_from_before).all() else None
