"""How a camera, and its picture, moved until an image, as far as that is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from marigold_ros.geometry import Camera

# (4, 4) now_from_then of the camera since the image of a time in nanoseconds; None where it is not known.
FindMotion = Callable[[int], "np.ndarray | None"]
# (2,) by how many pixels the picture has moved right and down since then; None where it is not known.
FindShift = Callable[[int], "np.ndarray | None"]


def unknown_motion(then_ns: int) -> None:
    """The camera, and its picture, may have moved anyhow."""


# A motion that was seen may be wrong by this share of the speed that an unknown one may have.
_SEEN_SHARE = 0.05


@dataclass(frozen=True)
class Motion:
    """What tells the motion of the undistorted `camera` until its image of `stamp_ns`.

    `known_since` is as good as tf2, `seen_since` comes from the picture; `shift_since` is that of the whole picture.
    """

    stamp_ns: int
    camera: Camera
    known_since: FindMotion = unknown_motion
    seen_since: FindMotion = unknown_motion
    shift_since: FindShift = unknown_motion

    def elapsed_s(self, then_ns: int) -> float:
        """Seconds since the image of another time."""
        return (self.stamp_ns - then_ns) * 1e-9

    def since(self, then_ns: int) -> tuple[np.ndarray | None, float]:
        """The best that is known, and the share of an unknown motion's speed by which it may be wrong."""
        known = self.known_since(then_ns)
        if known is not None:
            return known, 0.0
        seen = self.seen_since(then_ns)
        return (None, 1.0) if seen is None else (seen, _SEEN_SHARE)
