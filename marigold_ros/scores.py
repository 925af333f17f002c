"""How well a metric depth map agrees with the truth: the project's one definition of its errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# What a robot must not miss: nearer than this, and off by this part of it.
_NEAR_M, _OFF = 5.0, 0.25


@dataclass(frozen=True)
class Scores:
    """Errors over the pixels where both prediction and truth are known.

    abs_rel: mean |predicted - true| / true; delta1: share of pixels with max(predicted/true, true/predicted) < 1.25;
    rmse_m: root of the mean squared error in metres; mae_m: mean |predicted - true| in metres; pixels: how many were
    compared; coverage: their share of the pixels whose truth is known. All errors are NaN when nothing could be
    compared.
    """

    abs_rel: float
    delta1: float
    rmse_m: float
    pixels: int
    coverage: float
    mae_m: float = np.nan


@dataclass(frozen=True)
class NearRates:
    """What matters to a robot nearby: over the pixels whose truth is nearer than a limit.

    miss: share of them predicted much too far, or unknown; phantom: share predicted much too near; pixels: how many
    there are. The rates are NaN when there are none.
    """

    miss: float
    phantom: float
    pixels: int


def score(predicted_m: np.ndarray, truth_m: np.ndarray, valid: np.ndarray | None = None) -> Scores:
    """Compare `predicted_m` with `truth_m`, arrays of one shape in metres; NaN or <= 0 means unknown in both.

    `valid`: bool array of the same shape that narrows the pixels of the truth to be asked about.
    """
    known = np.isfinite(truth_m) & (truth_m > 0)
    if valid is not None:
        known &= valid
    asked = int(np.count_nonzero(known))
    with np.errstate(invalid="ignore"):
        known &= np.isfinite(predicted_m) & (predicted_m > 0)
    predicted, truth = predicted_m[known].astype(np.float64), truth_m[known].astype(np.float64)
    if len(truth) == 0:
        return Scores(np.nan, np.nan, np.nan, 0, 0.0)
    difference = np.abs(predicted - truth)
    ratio = np.maximum(predicted / truth, truth / predicted)
    return Scores(
        abs_rel=float(np.mean(difference / truth)),
        delta1=float(np.mean(ratio < 1.25)),
        rmse_m=float(np.sqrt(np.mean(difference**2))),
        pixels=len(truth),
        coverage=len(truth) / asked,
        mae_m=float(np.mean(difference)),
    )


def near_rates(predicted_m: np.ndarray, truth_m: np.ndarray) -> NearRates:
    """Misses and phantoms where `truth_m` is less than 5 m: depth off by more than a quarter of the truth.

    Arrays of one shape in metres; NaN or <= 0 means unknown in both.
    """
    with np.errstate(invalid="ignore"):
        near = (truth_m > 0) & (truth_m < _NEAR_M)
    predicted, truth = predicted_m[near], truth_m[near]
    if len(truth) == 0:
        return NearRates(np.nan, np.nan, 0)
    with np.errstate(invalid="ignore"):
        known = np.isfinite(predicted) & (predicted > 0)
        miss = ~known | (predicted > (1 + _OFF) * truth)
        phantom = known & (predicted < (1 - _OFF) * truth)
    return NearRates(float(np.mean(miss)), float(np.mean(phantom)), len(truth))


def shares_within(predicted_m: np.ndarray, sigma_m: np.ndarray, truth_m: np.ndarray) -> tuple[float, float]:
    """Shares of the errors that lie within one and within two standard deviations, 0.68 and 0.95 of normal ones.

    Arrays of one shape in metres; NaN means unknown; NaN when nothing can be compared.
    """
    with np.errstate(invalid="ignore"):
        sigmas = np.abs(predicted_m - truth_m) / sigma_m
    sigmas = sigmas[np.isfinite(sigmas)]
    if len(sigmas) == 0:
        return np.nan, np.nan
    return float(np.mean(sigmas <= 1.0)), float(np.mean(sigmas <= 2.0))
