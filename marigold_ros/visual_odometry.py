"""How the camera moved from one image to the next, in metres, by points of known depth that are found again.

Anchors are points in space, and their texture is found again in the next image (Lucas-Kanade); where the camera is that
sees them there is the perspective-n-point problem, with RANSAC for what moved by itself or was not found. In metres,
for the anchors are.
"""

from __future__ import annotations

import cv2
import numpy as np

from marigold_ros.geometry import Camera

# Of each part of the picture, so many across and down, the points with the most texture around them; of those with this
# part of what the best have, or more, for where there is less they are not found again.
_PARTS, _OF_EACH = (12, 9), 3
_BEST, _TEXTURE = 0.9, 0.1
# Pixels of the working picture: the window that is found again, the corner it needs, and how far from where the motion
# takes it a point may be; levels of the pyramid; RANSAC's rounds.
_WINDOW, _CORNER, _WITHIN_PX, _LEVELS, _ROUNDS = 11, 5, 0.5, 2, 100
# Where this share of the points stays where it is, to so many pixels, the camera stands.
_STAYING, _STAYS_PX = 0.6, 0.15
# The motion's deviation by the points' noise, as a part of their median depth, above which it is not known.
_UNSURE = 0.005
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
    moved right and down as a whole, to look there first. Where the camera stands, the answer is the identity itself.
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
    found, known = found[:, 0], status[:, 0] > 0
    if np.count_nonzero(known) < _FEWEST:
        return None
    if np.mean(np.abs(found - places).max(axis=1)[known] < _STAYS_PX) > _STAYING:
        return np.eye(4)  # what else moves, moves by itself
    return _pose(pixels[known], depth_m[known], (found[known] + 0.5) * shrink - 0.5, camera, max(shrink))


def _most_texture(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(M,) numbers of those of `places` (N, 2) of a picture that are found again best, of each part of it: what moves
    by itself may have more texture than all the rest.
    """
    rows, columns = picture.shape
    corner = cv2.cornerMinEigenVal(picture, _CORNER)
    if len(places) == 0:
        return np.empty(0, np.intp)
    column, row = np.rint(places).astype(np.intp).T
    column, row = np.clip(column, 0, columns - 1), np.clip(row, 0, rows - 1)
    strength = corner[row, column]
    part = (row * _PARTS[1] // rows) * _PARTS[0] + column * _PARTS[0] // columns
    # By part, the strongest first; then those that are among the first of their part.
    order = np.lexsort((-strength, part))
    begin = np.searchsorted(part[order], part[order])
    order = order[np.arange(len(order)) - begin < _OF_EACH]
    return order[strength[order] > _TEXTURE * np.quantile(strength, _BEST)]


def _pose(
    pixels: np.ndarray, depth_m: np.ndarray, found: np.ndarray, camera: Camera, shrink: float
) -> np.ndarray | None:
    """(4, 4) now_from_before of the camera that sees the points (N, 2), (N,) at the pixels `found` (N, 2)."""
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
    if _deviation_m(points[alike], found[alike], turn, shift_m, camera) > _UNSURE * np.median(depth_m):
        return None
    now_from_before = np.eye(4)
    now_from_before[:3, :3], now_from_before[:3, 3] = cv2.Rodrigues(turn)[0], shift_m[:, 0]
    return now_from_before if np.isfinite(now_from_before).all() else None


def _deviation_m(points: np.ndarray, found: np.ndarray, turn: np.ndarray, shift_m: np.ndarray, camera: Camera) -> float:
    """How far wrong the motion (3, 1) `shift_m` may be, by how well the points lie where they were found."""
    expected, jacobian = cv2.projectPoints(points, turn, shift_m, camera.matrix, None)
    noise_px2 = np.square(expected[:, 0] - found).sum() / max(2 * len(points) - 6, 1)
    information = jacobian[:, :6].T @ jacobian[:, :6]
    try:
        covariance = noise_px2 * np.linalg.inv(information)
    except np.linalg.LinAlgError:
        return np.inf
    return float(np.sqrt(np.trace(covariance[3:, 3:])))
