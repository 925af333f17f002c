"""Which frames of a recording are worth training on, and which are kept apart to measure with."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from marigold_ros.geometry import resize

# Blur that is gone when the image is shrunk to this does not matter to a network that sees it smaller still.
_SHARPNESS_PX = 640
_MOTION_SIZE = (64, 48)
# So many frames say what is sharp in this surrounding.
_WINDOW = 31


def sharpness(rgb: np.ndarray) -> float:
    """Variance of the Laplacian of the grey (H, W, 3) uint8 image, at most 640 pixels wide or high."""
    scale = min(1.0, _SHARPNESS_PX / max(rgb.shape[:2]))
    small = resize(rgb, max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    return float(cv2.Laplacian(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())


def miniature(rgb: np.ndarray) -> np.ndarray:
    """(48, 64) float32 grey, its mean 0: what two frames are compared by, whatever the exposure."""
    grey = cv2.cvtColor(resize(rgb, *_MOTION_SIZE), cv2.COLOR_RGB2GRAY).astype(np.float32)
    return grey - grey.mean()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two miniatures as a share of their contrast: 0 the same, about 1 unrelated."""
    contrast = math.sqrt((float(a.var()) + float(b.var())) / 2)
    return float(np.abs(a - b).mean()) / max(contrast, 1.0)  # less than a grey level is noise


@dataclass(frozen=True)
class Look:
    """What the selection sees of a frame. `motion`: difference from the last kept one, inf where there is none."""

    sharpness: float
    blurred: bool
    motion: float
    miniature: np.ndarray


class Selection:
    """Compares each frame with those before it; every frame that could be kept must be shown to it, in order."""

    def __init__(self, min_sharpness: float) -> None:
        self._min_sharpness = min_sharpness
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._kept: np.ndarray | None = None

    def look(self, rgb: np.ndarray) -> Look:
        """A frame is blurred when its sharpness is less than `min_sharpness` times the median of those about it."""
        value, small = sharpness(rgb), miniature(rgb)
        self._recent.append(value)
        blurred = value < self._min_sharpness * float(np.median(self._recent))
        motion = math.inf if self._kept is None else difference(small, self._kept)
        return Look(value, blurred, motion, small)

    def keep(self, look: Look) -> None:
        """The frame was kept: the next ones are compared with it."""
        self._kept = look.miniature


class TimeSplit:
    """Holds stretches of a recording out, evenly over its time; neighbours in time look alike.

    `share` of the `duration_s` is held out, in stretches of about `block_s` seconds, at least one; the recording is cut
    into as many periods, and each ends with a stretch. Training frames within `gap_s` of a stretch belong to neither.
    """

    def __init__(self, duration_s: float, share: float, block_s: float, gap_s: float) -> None:
        self._count = max(1, round(duration_s * share / block_s))
        self._period_s = max(duration_s, 1e-9) / self._count
        self._train_s = (1 - share) * self._period_s
        self._share, self._gap_s = share, gap_s

    def __call__(self, time_s: float) -> str | None:
        """'train', 'held_out', or None in between, for a time since the first frame."""
        if self._share in (0, 1):
            return "held_out" if self._share else "train"
        period = min(int(time_s / self._period_s), self._count - 1)
        phase_s = time_s - period * self._period_s
        if phase_s >= self._train_s:
            return "held_out"
        after_stretch = period > 0 and phase_s < self._gap_s
        return None if after_stretch or phase_s > self._train_s - self._gap_s else "train"
