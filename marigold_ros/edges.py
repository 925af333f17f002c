"""Edges of depth: how deep they are, and the pixels on them that float between two surfaces."""

from __future__ import annotations

import cv2
import numpy as np

# Nearer and farther than all depths; stand for unknown ones, which are neither.
_NEAREST_M, _FARTHEST_M = 1e-6, 1e9
# An edge is where the depths of 3x3 pixels differ by this factor; its two surfaces lie within 11x11, which are so many
# steps of two pixels each way.
_EDGE_RATIO, _AROUND_STEPS, _BORDER_PX = 1.1, 5, 5
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
    inverse = np.reciprocal(depth_m)  # three times as fast as `cv2.divide`
    cv2.patchNaNs(inverse, 0.0)
    close = np.ones((3, 3), np.uint8)
    nearest, farthest = cv2.dilate(inverse, close), cv2.erode(inverse, close)
    found = nearest > farthest * np.float32(_EDGE_RATIO)
    if not found.any():
        return found
    # The square around is looked at for every second pixel of every second row, from their 3x3 pixels.
    around = np.ones((_AROUND_STEPS, _AROUND_STEPS), np.uint8)
    near = cv2.dilate(np.ascontiguousarray(nearest[::2, ::2]), around)
    far = cv2.erode(np.ascontiguousarray(farthest[::2, ::2]), around)
    # At the border of the image planes grow to one side only.
    found[:_BORDER_PX], found[-_BORDER_PX:], found[:, :_BORDER_PX], found[:, -_BORDER_PX:] = (False,) * 4
    place = np.flatnonzero(found)  # ten times as fast as `np.nonzero` of rows and columns
    row, column = np.divmod(place, found.shape[1])
    value, growth = inverse.ravel()[place], nearest.ravel()[place] - farthest.ravel()[place]
    # Between two of them what either sees counts, so that no side is preferred.
    corners = [(r, c) for r in (row >> 1, (row + 1) >> 1) for c in (column >> 1, (column + 1) >> 1)]
    near = np.maximum.reduce([near[corner] for corner in corners])
    far = np.minimum.reduce([far[corner] for corner in corners])
    span = near - far
    surface = span * np.float32(_SURFACE)
    in_the_air = span < growth * np.float32(_PLANE_GROWTH)
    in_the_air &= (value < near - surface) & (value > far + surface)
    found.ravel()[place] = in_the_air
    return found
