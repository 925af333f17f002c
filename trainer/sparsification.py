"""How well a per-pixel uncertainty ranks the true errors: sparsification curves and the area between them.

Ilg et al., "Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow" (ECCV 2018, arXiv 1802.07095): remove
the most uncertain pixels step by step, look at the mean error of the rest, and compare with removal by the true error.
"""

from __future__ import annotations

import numpy as np

from marigold_ros.config import Unusable

STEPS = 100


def fractions() -> np.ndarray:
    """(STEPS,) the removed fractions: the middles of STEPS equal parts of [0, 1], so that a mean is an integral."""
    return (np.arange(STEPS) + 0.5) / STEPS


class Ranking:
    """Pixels in the order of their `uncertainty` (N,), larger is less sure; sorted once for several errors.

    Pixels of equal uncertainty count as removed in random order, in expectation: a constant gives a flat curve, and
    nothing depends on the order in which the pixels come. Raises `Unusable` for no pixels and for what is not finite.
    """

    def __init__(self, uncertainty: np.ndarray) -> None:
        uncertainty = np.ravel(uncertainty)
        if len(uncertainty) == 0 or not np.isfinite(uncertainty).all():
            raise Unusable(f"{len(uncertainty)} uncertainties: give finite ones, of one pixel at least")
        _, self._group, self._size = np.unique(uncertainty, return_inverse=True, return_counts=True)

    def curve(self, error: np.ndarray, root: bool = False) -> np.ndarray:
        """(STEPS,) mean of the errors (N,) >= 0 of the pixels that are left after each of the `fractions` is removed.

        `root`: the root of the mean square instead, as RMSE wants it. Raises `Unusable` for errors of other pixels.
        """
        error = np.ravel(error).astype(np.float64)
        if len(error) != len(self._group) or not np.isfinite(error).all():
            raise Unusable(f"{len(error)} errors for {len(self._group)} uncertainties: give a finite one for each")
        sums = np.bincount(self._group, weights=error**2 if root else error)
        # Within a group the sum grows evenly: that is the expectation over all orders.
        pixels, total = (np.concatenate([[0], np.cumsum(parts)]) for parts in (self._size, sums))
        count = np.ceil((1.0 - fractions()) * len(error))
        means = np.interp(count, pixels, total) / count
        return np.sqrt(means) if root else means


def ause(error: np.ndarray, uncertainty: np.ndarray, root: bool = False) -> float:
    """Area under the sparsification error: between the uncertainty's curve and the oracle's, in the error's unit.

    0 is a perfect ranking; one that knows nothing has that of a constant uncertainty.
    """
    return float(np.mean(Ranking(uncertainty).curve(error, root) - Ranking(error).curve(error, root)))
