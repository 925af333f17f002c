"""Edges of depth: how deep they are, and the pixels on them that float between two surfaces."""

from __future__ import annotations

import cv2
import numpy as np

# Nearer and farther than all depths; stand for unknown ones, which are neither.
_NEAREST_M, _FARTHEST_M = 1e-6, 1e9
# An edge is where the depths of 3x3 pixels differ by this factor; its two surfaces lie within a square of so many.
_EDGE_RATIO, _AROUND_PX = 1.1, 11
# Inverse depth of a plane grows evenly: over 11 pixels five times as much as over 3. What grows by less is an edge.
_PLANE_GROWTH = 3.0
# This part of the way from one surface to the other is still the surface.
_SURFACE = 0.12


def edge_ln(depth_m: np.ndarray) -> np.ndarray:
    """(H, W) metres, NaN unknown -> (H, W) float32: about what a pixel to the side changes ln depth by.

    Half of what the nearest and farthest known depth of 3x3 pixels differ by; 0 where none is known.
    """
    kernel = np.ones((3, 3), np.uint8)
    filled = depth_m.copy()
    cv2.patchNaNs(filled, _FARTHEST_M)
    nearest_m = cv2.erode(filled, kernel)
    np.copyto(filled, depth_m)
    cv2.patchNaNs(filled, _NEAREST_M)
    ratio = cv2.divide(cv2.dilate(filled, kernel), nearest_m)
    np.maximum(ratio, np.float32(1.0), out=ratio)
    cv2.log(ratio, ratio)
    ratio *= np.float32(0.5)
    return ratio


def floating(depth_m: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels between a near and a far surface, where networks blur an edge and there is only air.

    (H, W) metres, NaN unknown, which counts as far: most of it is the sky. Told by inverse depth, in which planes are
    even: a floor that is seen at a grazing angle stays, however steep its depth, and so do both surfaces of an edge
    and what is thin and nearer than all around it.
    """
    inverse = cv2.divide(1.0, depth_m)
    cv2.patchNaNs(inverse, 0.0)
    close = np.ones((3, 3), np.uint8)
    nearest, farthest = cv2.dilate(inverse, close), cv2.erode(inverse, close)
    found = nearest > farthest * np.float32(_EDGE_RATIO)
    if not found.any():
        return found
    around = np.ones((_AROUND_PX, _AROUND_PX), np.uint8)
    near, far = cv2.dilate(inverse, around), cv2.erode(inverse, around)
    span = near - far
    nearest -= farthest
    nearest *= np.float32(_PLANE_GROWTH)
    found &= span < nearest
    span *= np.float32(_SURFACE)
    near -= span
    far += span
    found &= inverse < near
    found &= inverse > far
    # At the border of the image planes grow to one side only.
    border = _AROUND_PX // 2
    inside = found[border:-border, border:-border].copy()
    found[:] = False
    found[border:-border, border:-border] = inside
    return found
