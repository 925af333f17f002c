"""How a camera, and its picture, moved since an earlier image, as far as that is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# (4, 4) now_from_then of the camera since the image of a time in nanoseconds; None where it is not known.
FindMotion = Callable[[int], "np.ndarray | None"]
# (2,) by how many pixels the picture has moved right and down since then; None where it is not known.
FindShift = Callable[[int], "np.ndarray | None"]


def unknown_motion(then_ns: int) -> None:
    """The camera, and its picture, may have moved anyhow."""


@dataclass(frozen=True)
class Motion:
    """What tells the motion until one image: of the camera, and of the picture as a whole."""

    camera: FindMotion = unknown_motion
    picture: FindShift = unknown_motion
