"""Depth as a picture for people."""

from __future__ import annotations

import cv2
import numpy as np


def colour_map(depth_m: np.ndarray, max_m: float) -> np.ndarray:
    """(H, W) metres -> (H, W, 3) uint8 BGR in turbo's colours, near red and far blue; black where unknown.

    `max_m` is the far end of the colours; 0 takes the 98th percentile of this frame.
    """
    if max_m <= 0:
        some = depth_m[::8, ::8]
        some = some[np.isfinite(some)]
        max_m = float(np.percentile(some, 98)) if len(some) else 1.0
    # Saturates, and turns NaN into something to be painted over.
    nearness = cv2.convertScaleAbs(np.clip(1.0 - depth_m * np.float32(1.0 / max_m), 0.0, 1.0), alpha=255.0)
    picture = cv2.applyColorMap(nearness, cv2.COLORMAP_TURBO)
    picture[np.isnan(depth_m)] = 0
    return picture
