"""Scale and shift between a prediction and its truth, as the published depth protocols fit them.

Least squares over the valid pixels, unweighted, in the space in which the prediction is affine; reference: Marigold's
src/util/alignment.py. Robust fits, as the robot uses them, would give other numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from marigold_ros.config import Unusable

# What a prediction can be aligned in; 'none' compares metres as they are.
ALIGNMENTS = ("depth", "disparity", "log_depth", "none")
# The least disparity that is turned back into a depth, 1/m.
_LEAST_DISPARITY = 1e-3


@dataclass(frozen=True)
class Aligned:
    """depth_m (H, W) float32, before any clipping; scale and shift that gave it, of `space`."""

    depth_m: np.ndarray
    space: str
    scale: float
    shift: float


def align(relative: np.ndarray, depth_m: np.ndarray, valid: np.ndarray, space: str, longest_px: int = 0) -> Aligned:
    """Bring (H, W) `relative` onto (H, W) `depth_m` by least squares over the `valid` pixels, in `space`.

    relative increases with distance. space: 'depth', 'disparity' (1/z; fitted only where what is predicted of it,
    1 - relative, is above 0, and at least 0.001 1/m afterwards) or 'log_depth'.
    longest_px: as `fitted_columns`. Raises `Unusable` where no pixel is left to fit.
    """
    to, back = {
        "depth": (_same, _same),
        "disparity": (_inverse, _from_disparity),
        "log_depth": (np.log, np.exp),
    }[space]
    if space == "disparity":
        valid = valid & (relative < 1)
    columns = fitted_columns(valid.shape, longest_px)
    known = valid[:, columns]
    if not known.any():
        raise Unusable(f"alignment in {space}: there is no valid pixel to fit scale and shift to")
    p, y = relative[:, columns][known].astype(np.float64), to(depth_m[:, columns][known].astype(np.float64))
    scale, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], axis=1), y, rcond=None)[0]
    return Aligned(
        back(relative.astype(np.float64) * scale + shift).astype(np.float32), space, float(scale), float(shift)
    )


def fitted_columns(shape: tuple[int, int], longest_px: int) -> np.ndarray:
    """The columns of an (H, W) map that the fit sees where a side is longer than `longest_px`; all where that is 0.

    The published code hands the map to torch's Upsample as (1, H, W), which is a signal of length W with H channels:
    only columns are left out, and all rows stay.
    """
    index = torch.arange(shape[1], dtype=torch.float64)
    factor = longest_px / max(shape)
    if not 0 < factor < 1:
        return index.long().numpy()
    chosen = torch.nn.functional.interpolate(index[None, None], scale_factor=factor, mode="nearest")
    return chosen[0, 0].long().numpy()


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _inverse(values: np.ndarray) -> np.ndarray:
    return 1.0 / values


def _from_disparity(disparity: np.ndarray) -> np.ndarray:
    return 1.0 / np.maximum(disparity, _LEAST_DISPARITY)
