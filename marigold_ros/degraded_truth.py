"""Relative depth made from the truth by adding a network's typical errors.

So that the chain from relative depth to metres can be judged apart from a weak network. The errors, in this order: a
smooth random field of relative depth, then normalisation as a network's, a gamma, blurred edges.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from marigold_ros.metric import to_space

# Standard deviation of ln z, and the distance in pixels over which the field changes.
_FIELDS = ((0.05, 120), (0.015, 30))
_GAMMA = 1.04
_EDGE_BLUR_PX = 1.5
# Of the field's deviation in a sequence, what is new in each frame; the rest is the scene's, as it is of a network.
_NEW_SHARE = 0.2


def filled(depth_m: np.ndarray) -> np.ndarray:
    """(H, W) metres with every unknown pixel (NaN) at the depth of the nearest known one; one must be known."""
    unknown = ~np.isfinite(depth_m)
    if not unknown.any():
        return depth_m
    _, labels = cv2.distanceTransformWithLabels(
        unknown.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(labels.max() + 1, depth_m.dtype)
    of_label[labels[~unknown]] = depth_m[~unknown]
    return of_label[labels]


def degraded(depth_m: np.ndarray, space: str, seed: int, number: int | None = None) -> np.ndarray:
    """(H, W) metres, NaN unknown -> (H, W) float32 in [0, 1], roughly affine in `space` and increasing with distance.

    The same seed gives the same answer. number: of a frame in a sequence; a fifth of the field's deviation is then new
    in each, the rest stays where it is in the image.
    """
    random = np.random.default_rng(seed)
    own = np.random.default_rng([seed, 0 if number is None else number])
    log_m = np.log(filled(depth_m).astype(np.float64))
    for sigma, pixels in _FIELDS:
        error = _smooth_field(depth_m.shape, pixels, random)
        if number is not None:
            error = math.sqrt(1 - _NEW_SHARE**2) * error + _NEW_SHARE * _smooth_field(depth_m.shape, pixels, own)
        log_m += sigma * error
    y = to_space(np.exp(log_m), space)
    relative = (y - y.min()) / max(float(np.ptp(y)), 1e-12)
    return cv2.GaussianBlur(relative**_GAMMA, (0, 0), _EDGE_BLUR_PX).astype(np.float32)


def _smooth_field(shape: tuple[int, int], pixels: int, random: np.random.Generator) -> np.ndarray:
    """(H, W) normal numbers of mean 0 and deviation 1 that change over so many pixels."""
    # On a coarse grid: a wide kernel at full size takes long.
    step = max(1, pixels // 8)
    rows, columns = (side // step + 1 for side in shape)
    coarse = cv2.GaussianBlur(random.standard_normal((rows, columns)), (0, 0), pixels / step / 2)
    field = cv2.resize(coarse, (columns * step, rows * step), interpolation=cv2.INTER_CUBIC)[: shape[0], : shape[1]]
    return (field - field.mean()) / max(float(field.std()), 1e-12)
