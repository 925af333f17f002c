"""How a picture moves as a whole, and whether two pictures show the same view, from thumbnails."""

from __future__ import annotations

import bisect
import math
from functools import lru_cache

import cv2
import numpy as np

from marigold_ros.geometry import Camera

# Pictures are judged at about this many pixels per degree, or at their own where they have fewer.
_PX_PER_DEGREE = 3.4
# The longer side of the thumbnails by which pictures are compared, and the size of the details that count, in pixels.
_THUMB_PX, _DETAIL_PX = 80, 15
# Share of two thumbnails' spectra that has to agree with one motion.
_SURE = 0.4
# Thumbnails more alike than this show the same view, though nothing in it tells a motion.
_SAME_VIEW = 0.8
# After so long without an image nobody knows where the picture is; for so long it is taken to go on as it did.
_LOST_NS, _BEYOND_NS = 1_000_000_000, 250_000_000
# Places are kept for at least so long, as metres may be held.
_KEPT_NS = 70_000_000_000
# Places are told by one thumbnail until the picture has moved so many pixels of it.
_NEW_KEY_PX = 3.0
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
    rows, columns = grey.shape
    scale = _THUMB_PX / max(rows, columns)
    size = max(8, round(columns * scale)), max(8, round(rows * scale))
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
    if response < _SURE or abs(moved[0]) > now.shape[1] / 4 or abs(moved[1]) > now.shape[0] / 4:
        return None  # another picture altogether
    there = np.array([[1, 0, moved[0]], [0, 1, moved[1]]], np.float32)
    shifted = cv2.warpAffine(before, there, now.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    # A blank sky is the same wherever it goes: what has details tells.
    detailed = cv2.max(np.abs(before), np.abs(now)) > _THUMB_NOISE
    if not detailed.any():
        return np.zeros(2)
    stays, moves = (np.median(cv2.absdiff(picture, now)[detailed]) for picture in (before, shifted))
    return np.array(moved) if moves < stays else np.zeros(2)


@lru_cache(maxsize=4)
def _window(shape: tuple[int, int]) -> np.ndarray:
    return cv2.createHanningWindow(shape[::-1], cv2.CV_32F)


class PictureTrack:
    """Where a camera's picture has moved to, as a whole, image by image: a gyroscope for who has none.

    Of the newest image: `grey`, its `working_picture`; `thumb`, its `thumbnail`.
    """

    def __init__(self) -> None:
        self.grey = self.thumb = np.empty((0, 0), np.float32)
        self._camera: Camera | None = None
        # The camera of the first image since the picture was lost, and the thumbnail of the image before the newest.
        self._first_camera: Camera | None = None
        self._before: np.ndarray | None = None
        # Times of the images since the picture was last lost, and its places (pixels right, pixels down) then.
        self._stamps_ns: list[int] = []
        self._places: list[np.ndarray] = []
        # The thumbnail that places are told by, and the place of its image. Not that of the image before: what a
        # thumbnail moves by between two images is little, and would be rounded towards nought each time.
        self._key = self.thumb, np.zeros(2)

    def see(self, stamp_ns: int, rgb: np.ndarray, camera: Camera) -> None:
        """Take the next (H, W, 3) uint8 image; a time that goes back, or another camera, starts anew."""
        before_ns = self._stamps_ns[-1] if self._stamps_ns else None
        if stamp_ns == before_ns and camera == self._camera:
            return
        known = before_ns is not None and 0 < stamp_ns - before_ns < _LOST_NS and self._first_camera.resembles(camera)
        self._camera = camera
        before, self.grey = self.thumb, working_picture(rgb, camera)
        self.thumb = thumbnail(self.grey)
        # A refined focal length may change the size of the working picture by a pixel, and that of its thumbnail.
        known = known and self.thumb.shape == before.shape
        place = self._followed(before) if known else None
        if place is None:
            self._first_camera, self._before = camera, None
            self._stamps_ns, self._places = [stamp_ns], [np.zeros(2)]
            self._key = self.thumb, self._places[0]
            return
        self._before = before
        self._stamps_ns.append(stamp_ns)
        self._places.append(place)
        if stamp_ns - self._stamps_ns[0] > 2 * _KEPT_NS:
            first = bisect.bisect_left(self._stamps_ns, stamp_ns - _KEPT_NS)
            del self._stamps_ns[:first], self._places[:first]

    @property
    def motion(self) -> np.ndarray | None:
        """(2,) radians per second rightwards and downwards since the image before; None where that cannot be told."""
        # Of the two images alone: the difference of two places has the errors of both.
        step = None if self._before is None else shift_between(self._before, self.thumb)
        if step is None:
            return None
        elapsed_s = (self._stamps_ns[-1] - self._stamps_ns[-2]) * 1e-9
        return self._in_pixels(step) / (self._camera.fx, self._camera.fy) / elapsed_s

    def _followed(self, before: np.ndarray) -> np.ndarray | None:
        """The place of the newest thumbnail, by the key, or by that of the image before; None where it is lost."""
        for key, place in (self._key, (before, self._places[-1])):
            shift = shift_between(key, self.thumb)
            if shift is not None:
                found = place + self._in_pixels(shift)
                self._key = (self.thumb, found) if np.abs(shift).max() > _NEW_KEY_PX else (key, place)
                return found
        if likeness(before, self.thumb) > _SAME_VIEW:
            return self._places[-1]  # too bland to tell, but the same
        return None

    def _in_pixels(self, shift: np.ndarray) -> np.ndarray:
        """(2,) pixels of the camera from those of the thumbnail."""
        rows, columns = self.thumb.shape
        return shift * (self._camera.width / columns, self._camera.height / rows)

    def shift_px(self, since_ns: int, until_ns: int) -> np.ndarray | None:
        """(2,) by how many pixels things have moved right and down between two times; None where nobody knows."""
        since, until = self._place(since_ns), self._place(until_ns)
        return None if since is None or until is None else until - since

    def _place(self, stamp_ns: int) -> np.ndarray | None:
        stamps_ns = self._stamps_ns
        if len(stamps_ns) < 2 or not stamps_ns[0] <= stamp_ns <= stamps_ns[-1] + _BEYOND_NS:
            return None
        # The two images around that time, or the last two: beyond them the picture goes on as it did.
        after = min(max(bisect.bisect_right(stamps_ns, stamp_ns), 1), len(stamps_ns) - 1)
        first, second = self._places[after - 1], self._places[after]
        share = (stamp_ns - stamps_ns[after - 1]) / (stamps_ns[after] - stamps_ns[after - 1])
        return first + (second - first) * share
