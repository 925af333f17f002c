"""How far two answers to one image are apart, pixel by pixel, and what that says of how sure they are."""

from __future__ import annotations

import numpy as np

_TINY = 1e-9


def aligned_to(reference: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """(h, w) float32: `answer` after the scale and shift that bring it nearest to `reference`, in least squares.

    Relative depth is known up to scale and shift only, and two passes of a network settle on slightly different ones.
    The scale is never negative: an answer that contradicts the reference is flattened, not turned over.
    """
    spread = answer - answer.mean()
    scale = float(np.vdot(spread, reference - reference.mean())) / max(float(np.vdot(spread, spread)), _TINY)
    return (spread * np.float32(max(scale, 0.0)) + reference.mean()).astype(np.float32)


def disagreement(reference: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """(h, w) float32 >= 0 in units of relative depth: |reference - answer| after `aligned_to`."""
    return np.abs(reference - aligned_to(reference, answer))
