"""How a picture moves as a whole, and whether two pictures show the same view, from thumbnails."""

from __future__ import annotations

import math
from collections import deque
from functools import lru_cache

import cv2
import numpy as np

from marigold_ros.geometry import Camera

# Pictures are judged at about this many pixels per degree, or at their own where they have fewer.
_PX_PER_DEGREE = 3.4
# Width of the thumbnails by which pictures are compared, and the size of the details that count, in pixels.
_THUMB_PX, _DETAIL_PX = 80, 15
# Share of two thumbnails' spectra that has to agree with one motion.
_SURE = 0.4
# Thumbnails more alike than this show the same view, though nothing in it tells a motion.
_SAME_VIEW = 0.8
# After so long without an image nobody knows where the picture is; for so long it is taken to go on as it did.
_LOST_NS, _BEYOND_NS = 1_000_000_000, 250_000_000
_MOST_PLACES = 300
# Grey levels by which thumbnails of the same view may differ.
_THUMB_NOISE = 2.0


def working_picture(rgb: np.ndarray, camera: Camera) -> np.ndarray:
    """(h, w) float32 grey of (H, W, 3) uint8, at the resolution at which pictures are judged."""
    # By a whole number, for which OpenCV is ten times as fast.
    shrink = max(1, round(camera.fx * math.pi / 180.0 / _PX_PER_DEGREE))
    size = max(16, camera.width // shrink), max(16, camera.height // shrink)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32)


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """(h, w) float32: a small picture's details, in which a small motion shows."""
    size = _THUMB_PX, max(8, round(_THUMB_PX * grey.shape[0] / grey.shape[1]))
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return small - cv2.blur(small, (_DETAIL_PX, _DETAIL_PX))


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """How alike two thumbnails are: 1 the same, about 0 for different views; noise on a blank wall is no difference."""
    apart = max(cv2.norm(a, b, cv2.NORM_L2SQR) - 2 * a.size * _THUMB_NOISE**2, 0.0)
    return 1.0 - apart / (cv2.norm(a, cv2.NORM_L2SQR) + cv2.norm(b, cv2.NORM_L2SQR) + 1e-6)


def shift_between(before: np.ndarray, now: np.ndarray) -> np.ndarray | None:
    """(2,) by how many pixels the second of two thumbnails lies right and down of the first (phase correlation).

    Nought where most of the picture stays, whatever crosses it; None where they have little in common.
    """
    # Copies: OpenCV multiplies what it is given by the window, in place.
    moved, response = cv2.phaseCorrelate(before.copy(), now.copy(), _window(now.shape))
    if response < _SURE or max(map(abs, moved)) > now.shape[1] / 4:
        return None  # another picture altogether
    there = np.array([[1, 0, moved[0]], [0, 1, moved[1]]], np.float32)
    shifted = cv2.warpAffine(before, there, now.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    moves = np.median(cv2.absdiff(shifted, now)) < np.median(cv2.absdiff(before, now))
    return np.array(moved) if moves else np.zeros(2)


@lru_cache(maxsize=4)
def _window(shape: tuple[int, int]) -> np.ndarray:
    return cv2.createHanningWindow(shape[::-1], cv2.CV_32F)


class PictureTrack:
    """Where a camera's picture has moved to, as a whole, image by image: a gyroscope for who has none.

    Of the newest image: `grey`, its `working_picture`; `thumb`, its `thumbnail`; `motion`, (2,) radians per second
    rightwards and downwards, None where that cannot be told.
    """

    def __init__(self) -> None:
        self.grey = self.thumb = np.empty((0, 0), np.float32)
        self.motion: np.ndarray | None = None
        self._camera: Camera | None = None
        # (stamp in ns, pixels right, pixels down) since the picture was last lost.
        self._places: deque[tuple[int, float, float]] = deque(maxlen=_MOST_PLACES)

    def see(self, stamp_ns: int, rgb: np.ndarray, camera: Camera) -> None:
        """Take the next (H, W, 3) uint8 image; a time that goes back, or another camera, starts anew."""
        if camera != self._camera or (self._places and stamp_ns < self._places[-1][0]):
            self._camera = camera
            self._places.clear()
        elif self._places and stamp_ns == self._places[-1][0]:
            return
        before, self.grey = self.thumb, working_picture(rgb, camera)
        self.thumb = thumbnail(self.grey)
        self.motion = None
        elapsed_ns = stamp_ns - self._places[-1][0] if self._places else 0
        shift = shift_between(before, self.thumb) if 0 < elapsed_ns < _LOST_NS else None
        if shift is not None:
            focal_px = camera.fx * self.thumb.shape[1] / camera.width
            self.motion = shift / (focal_px * elapsed_ns * 1e-9)
        elif 0 < elapsed_ns < _LOST_NS and likeness(before, self.thumb) > _SAME_VIEW:
            shift = np.zeros(2)  # too bland to tell, but the same
        if shift is None:
            self._places.clear()
            self._places.append((stamp_ns, 0.0, 0.0))
            return
        _, right, down = self._places[-1]
        right, down = np.array([right, down]) + shift * (camera.width / self.thumb.shape[1])
        self._places.append((stamp_ns, float(right), float(down)))

    def shift_px(self, since_ns: int, until_ns: int) -> np.ndarray | None:
        """(2,) by how many pixels things have moved right and down between two times; None where nobody knows."""
        ends = [self._place(stamp_ns) for stamp_ns in (since_ns, until_ns)]
        return None if ends[0] is None or ends[1] is None else ends[1] - ends[0]

    def _place(self, stamp_ns: int) -> np.ndarray | None:
        places = self._places
        if len(places) < 2 or not places[0][0] <= stamp_ns <= places[-1][0] + _BEYOND_NS:
            return None
        # The two images around that time, or the last two: beyond them the picture goes on as it did.
        after = next(i for i in range(len(places) - 1, 0, -1) if i == 1 or places[i - 1][0] <= stamp_ns)
        first, second = np.array(places[after - 1], np.float64), np.array(places[after], np.float64)
        return first[1:] + (second[1:] - first[1:]) * ((stamp_ns - first[0]) / (second[0] - first[0]))
