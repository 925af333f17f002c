"""How far two answers to one image are apart, pixel by pixel, and what that says of how sure they are.

Which disagreement ranks true errors, and how well, is measured by `python -m trainer confidence` (docs/performance.md).
"""

from __future__ import annotations

import numpy as np

# The working size of the second, mirrored pass, as a part of the first's, by the values of model.confidence.
SECOND_PASS = {"mirror": 1.0, "mirror_half": 0.5}
# nano's median disagreement, the mean of 100 held-out generated scenes, in units of relative depth.
TYPICAL = {"mirror": 0.0144, "mirror_half": 0.0432}

_TINY = 1e-9


def aligned_to(reference: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """(h, w) float32: `answer` after the scale and shift that bring it nearest to `reference`, in least squares.

    Relative depth is known up to scale and shift only, and two passes of a network settle on slightly different ones.
    The scale is never negative: an answer that contradicts the reference is flattened, not turned over.
    """
    mean, spread = float(reference.mean()), answer - answer.mean()
    scale = float(np.vdot(spread, reference - np.float32(mean))) / max(float(np.vdot(spread, spread)), _TINY)
    return spread * np.float32(max(scale, 0.0)) + np.float32(mean)


def disagreement(reference: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """(h, w) float32 >= 0 in units of relative depth: |reference - answer| after `aligned_to`, both (h, w) float32."""
    return np.abs(reference - aligned_to(reference, answer))


def confidence_of(disagreement: np.ndarray, method: str) -> np.ndarray:
    """(H, W) float32 in [0, 1], 1 is sure: 1 / (1 + disagreement / typical), so 0.5 at the typical disagreement.

    `method` is the value of model.confidence that the disagreement comes from; `TYPICAL` has the typical ones.
    """
    return 1.0 / (1.0 + disagreement * np.float32(1.0 / TYPICAL[method]))
