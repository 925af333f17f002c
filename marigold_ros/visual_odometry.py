"""How the camera moved from one image to the next, in metres, by points of known depth that are found again.

Anchors are points in space, and their texture is found again in the next image (Lucas-Kanade); where the camera is that
sees them there is the perspective-n-point problem, with RANSAC for what moved by itself or was not found. In metres,
for the anchors are.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from marigold_ros.field import beside
from marigold_ros.geometry import Camera

# (2,) by how many pixels the picture has moved right and down from a time to another; None where it is not known.
FindShift = Callable[[int, int], "np.ndarray | None"]

# So many points, those with the most texture around them, of those with depth.
_POINTS = 150
# Pixels of the working picture: the window that is found again, the corner it needs, and how far from where the motion
# takes it a point may be; levels of the pyramid; RANSAC's rounds.
_WINDOW, _CORNER, _WITHIN_PX, _LEVELS, _ROUNDS = 11, 5, 0.5, 2, 100
# So many images are remembered.
_IMAGES = 32
# Fewer points, or a smaller share of them, that move alike say nothing.
_FEWEST, _LEAST_SHARE = 20, 0.3


@dataclass
class _Image:
    """A working picture (h, w) uint8, the points (N, 2) pixels and (N,) metres in it, and (4, 4) how the camera moved
    until the next image, once that was asked for.
    """

    stamp_ns: int
    grey: np.ndarray
    pixels: np.ndarray | None = None
    depth_m: np.ndarray | None = None
    step: np.ndarray | None = None
    asked: bool = False


class VisualOdometry:
    """Tells how one camera moved since an earlier image; what nobody asks for is not worked out."""

    def __init__(self) -> None:
        self._images: deque[_Image] = deque(maxlen=_IMAGES)

    def reset(self) -> None:
        """Forget everything."""
        self._images.clear()

    def see(self, stamp_ns: int, grey: np.ndarray) -> None:
        """Take the `working_picture` of the next image; where time goes back, or its size changes, it is the first."""
        if self._images:
            newest = self._images[-1]
            if stamp_ns == newest.stamp_ns:
                return
            if stamp_ns < newest.stamp_ns or grey.shape != newest.grey.shape:
                self._images.clear()
        self._images.append(_Image(stamp_ns, cv2.convertScaleAbs(grey)))

    def remember(self, pixels: np.ndarray, depth_m: np.ndarray) -> None:
        """Take points (N, 2) pixels and (N,) metres of the newest image."""
        self._images[-1].pixels, self._images[-1].depth_m = pixels, depth_m

    def unseen_share(self, pixels: np.ndarray, shape: tuple[int, int]) -> float:
        """The share of the last points, of an image (H, W), beside which none of these (N, 2) pixels is."""
        last = next((image.pixels for image in reversed(self._images) if image.pixels is not None), None)
        return 0.0 if last is None else 1.0 - float(np.mean(beside(last, pixels, shape)))

    def nearest_ns(self, stamp_ns: int) -> int:
        """The time of the image nearest to a time."""
        return min((image.stamp_ns for image in self._images), key=lambda ns: abs(ns - stamp_ns))

    def since(self, then_ns: int, camera: Camera, find_shift: FindShift) -> np.ndarray | None:
        """(4, 4) now_from_then of the camera between an earlier image and the newest; None where it cannot be told.

        find_shift: how the picture moved as a whole between two images, to look there first.
        """
        images = list(self._images)
        begin = next((number for number, image in enumerate(images) if image.stamp_ns == then_ns), None)
        if begin is None:
            return None
        now_from_then = np.eye(4)
        for before, after in itertools.pairwise(images[begin:]):
            if not before.asked:
                before.asked, before.step = True, _step(before, after, camera, find_shift)
            if before.step is None:
                return None
            now_from_then = before.step @ now_from_then
        return now_from_then


def _step(before: _Image, after: _Image, camera: Camera, find_shift: FindShift) -> np.ndarray | None:
    if before.pixels is None:
        return None
    shift_px = find_shift(before.stamp_ns, after.stamp_ns)
    return motion_between(before.grey, after.grey, before.pixels, before.depth_m, camera, shift_px)


def motion_between(
    before: np.ndarray,
    now: np.ndarray,
    pixels: np.ndarray,
    depth_m: np.ndarray,
    camera: Camera,
    shift_px: np.ndarray | None = None,
) -> np.ndarray | None:
    """(4, 4) now_from_before of the camera between two working pictures (h, w) uint8; None where it cannot be told.

    pixels (N, 2) and depth_m (N,): points of the (H, W) image before.
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
    matrix = np.array([[camera.fx, 0.0, camera.cx], [0.0, camera.fy, camera.cy], [0.0, 0.0, 1.0]])
    solved, turn, shift_m, alike = cv2.solvePnPRansac(
        points, found, matrix, None, iterationsCount=_ROUNDS, reprojectionError=_WITHIN_PX * shrink,
        flags=cv2.SOLVEPNP_AP3P,
    )  # fmt: skip
    if not solved or alike is None or len(alike) < max(_FEWEST, _LEAST_SHARE * len(points)):
        return None
    alike = alike[:, 0]
    turn, shift_m = cv2.solvePnPRefineLM(points[alike], found[alike], matrix, None, turn, shift_m)
    now_from_before = np.eye(4)
    now_from_before[:3, :3], now_from_before[:3, 3] = cv2.Rodrigues(turn)[0], shift_m[:, 0]
    return now_from_before if np.isfinite(now_from_before).all() else None
