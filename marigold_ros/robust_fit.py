"""Robust straight lines: y = scale * p + shift through samples of which half may be wrong.

p is a network's relative depth, y the measured depth in the space in which the network is affine. Errors are relative
depth errors, `slope` times a difference in y. Sources: MSAC (Torr and Zisserman, 2000); graduated non-convexity with
Geman and McClure's kernel (Yang et al., arXiv 1909.08605); attenuation by errors in p (Fuller, Measurement Error
Models, 1987).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from marigold_ros.compiled import Double, Doubles, compiled

_HYPOTHESES = 96
_FACTORS = 16
_JUDGES = 512
_ENOUGH = 10
# Refinements, with a kernel that narrows. All but the last two look at a part of the samples.
# Geman-McClure: at so many standard deviations a sample's influence has fallen to a quarter.
_WIDTHS = (10.0, 8.2, 6.7, 5.5, 4.5, 3.7, 3.05, 2.5)
_EARLY_SAMPLES = 2048
# Relative depth error of a network where it is good; where it is not, the residuals say so: of those up to _GROSS.
_SIGMA, _GROSS = 0.04, 0.3
USUAL_SIGMA, _POOLED = 0.1, 20.0
# A group of samples counts as at most so many independent ones.
_GROUP_COUNTS = 4.0
_TINY = 1e-9
# One standard deviation of a scale of which next to nothing is known, as a share of it.
_LOOSEST = 3.0
_NORMAL_MEDIAN = 0.6745
# Where errors in p explain almost all of its spread (reliability 1 - noise / spread), samples say nothing of the scale.
_USELESS, _USEFUL = 0.2, 0.6


@dataclass(frozen=True)
class Samples:
    """(N,) float64 each: p, y, `slope` = |d ln z / dy|, `weight` >= 0, and two errors; and groups.

    noise: standard deviation of the measurement, relative to its depth; blur: of p, for not knowing the pixel. groups:
    (k, N) int >= 0: samples with the same number in one of the k rows are likely to be wrong alike.
    """

    p: np.ndarray
    y: np.ndarray
    slope: np.ndarray
    weight: np.ndarray
    noise: np.ndarray
    blur: np.ndarray
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.p)

    @property
    def numbers(self) -> tuple[np.ndarray, ...]:
        """All but the groups."""
        return self.p, self.y, self.slope, self.weight, self.noise, self.blur

    def some(self, count: int, random: np.random.Generator) -> Samples:
        """At most `count` of them; of more than that some may come twice, which costs less than to avoid it."""
        if len(self) <= count:
            return self
        chosen = random.integers(len(self), size=count)
        return Samples(*(part.take(chosen, axis=-1) for part in vars(self).values()))


@dataclass(frozen=True)
class Base:
    """A line whose shape serves where samples cannot tell: moved to them by a factor, or a term if `additive`.

    looseness: one standard deviation of its scale, as a share of it, if additive; else of shift over scale, in units of
    p: where p is near the line's zero, little is known of the scale.
    """

    scale: float
    shift: float
    additive: bool
    looseness: float


@dataclass(frozen=True)
class Belief:
    """A line that is known from elsewhere: information about (scale, shift), as (scale, both, shift)."""

    scale: float
    shift: float
    information: tuple[float, float, float]


@dataclass(frozen=True)
class Line:
    """A fitted line; `covariance` of (scale, shift), as (scale, both, shift).

    contradiction: how far what was put together was apart, chi-square; of two degrees of freedom with a whole belief.
    """

    scale: float
    shift: float
    covariance: tuple[float, float, float]
    contradiction: float


@dataclass(frozen=True)
class Evidence:
    """What samples say: scale with its information, and the value at their mean p with its own, independently.

    base: what is known of the scale for want of a better belief. effective: how many independent samples it rests on.
    reliability: near 1 where samples fix the scale, 0 and less where errors in p explain their spread. sigma: relative
    depth error of the network at the samples, one standard deviation.
    """

    scale: float
    scale_information: float
    mean_p: float
    mean_y: float
    mean_information: float
    base: Belief
    effective: float
    reliability: float
    sigma: float


def median(values: np.ndarray) -> float:
    """Of (N,) numbers, N > 0; several times as fast as `np.median`."""
    below, above = (len(values) - 1) // 2, len(values) // 2
    ordered = np.partition(values, above if below == above else (below, above))
    return float(ordered[below] + ordered[above]) / 2.0


class NoLine(ValueError):
    """No line with a positive scale goes through the samples; says why."""


def gather(
    samples: Samples,
    base: Base,
    tolerance: float,
    seed: int,
    free_scale: bool = True,
) -> Evidence:
    """What the samples say: the line that most of them agree with, refined.

    tolerance: relative error up to which a sample counts for a hypothesis. Without a `free_scale` hypotheses keep that
    of `base`. Raises `NoLine` where samples ask for a scale that is not positive.
    """
    random = np.random.default_rng(seed)
    scale, shift = _best_hypothesis(samples, base, tolerance, random, free_scale)
    return _refined(samples, base, scale, shift, random)


def weigh(evidence: Evidence, belief: Belief | None = None) -> Line:
    """The line by evidence and `belief`; without one, by evidence and the scale of the base that it was gathered with.

    Raises `NoLine` where its scale is not positive.
    """
    known = evidence.base if belief is None else belief
    e, (about_scale, about_both, about_shift) = evidence, known.information
    # Information about (scale, shift); the samples' mean lies on the line: mean_y = mean_p * scale + shift.
    w, p = e.mean_information, e.mean_p
    in_scale, in_both, in_shift = e.scale_information + w * p * p + about_scale, w * p + about_both, w + about_shift
    to_scale = e.scale_information * e.scale + w * p * e.mean_y + about_scale * known.scale + about_both * known.shift
    to_shift = w * e.mean_y + about_both * known.scale + about_shift * known.shift
    determinant = in_scale * in_shift - in_both**2
    variances = in_shift / determinant, -in_both / determinant, in_scale / determinant
    scale = variances[0] * to_scale + variances[1] * to_shift
    shift = variances[1] * to_scale + variances[2] * to_shift
    if not scale > 0:
        raise NoLine(f"the best scale is not positive ({scale:.4g}): wrong extrinsic or wrong checkpoint")
    off_scale, off_shift = scale - known.scale, shift - known.shift
    contradiction = about_scale * off_scale**2 + 2.0 * about_both * off_scale * off_shift + about_shift * off_shift**2
    contradiction += e.scale_information * (scale - e.scale) ** 2 + w * (p * scale + shift - e.mean_y) ** 2
    return Line(scale, shift, variances, contradiction)


def _best_hypothesis(
    samples: Samples, base: Base, tolerance: float, random: np.random.Generator, free_scale: bool
) -> tuple[float, float]:
    """Of lines through two samples, and `base` moved to one, that with the least sum of squares, cut off (MSAC)."""
    # As `random.choice` with these chances; the sums are made once.
    up_to = np.cumsum(samples.weight)
    drawn = np.searchsorted(up_to, random.random(_FACTORS + 2 * _HYPOTHESES) * up_to[-1], side="right")
    drawn = np.minimum(drawn, len(samples) - 1)
    judges = samples.some(_JUDGES, random)
    scales, shifts = _moved(base, samples, drawn[:_FACTORS])
    if free_scale and len(samples) > 1:
        first, second = drawn[_FACTORS:].reshape(2, _HYPOTHESES)
        apart = np.abs(samples.p[first] - samples.p[second]) > 0.02 * np.ptp(samples.p)
        first, second = first[apart], second[apart]
        through_two = (samples.y[first] - samples.y[second]) / (samples.p[first] - samples.p[second])
        scales = np.concatenate([scales, through_two])
        shifts = np.concatenate([shifts, samples.y[first] - through_two * samples.p[first]])
    cost = _costs(scales, shifts, judges.p, judges.y, judges.slope, judges.weight, tolerance**2)
    positive = scales > 0
    best, best_negative = cost[positive].min(initial=np.inf), cost[~positive].min(initial=np.inf)
    # A few samples, or a wall, lie on a line of any slope: only what no positive scale explains is a sign.
    unexplained = best > (2.0 * _SIGMA) ** 2 * judges.weight.sum()
    if len(judges) >= _ENOUGH and unexplained and best_negative < 0.5 * best:
        raise NoLine("the anchors ask for a negative scale: wrong extrinsic, or a checkpoint of another space")
    if not positive.any():
        # The base has no depth where the samples lie, beyond infinity or behind the lens: its scale serves.
        return base.scale, median(judges.y - base.scale * judges.p)
    winner = np.flatnonzero(positive)[np.argmin(cost[positive])]
    return float(scales[winner]), float(shifts[winner])


def _costs_by_numpy(
    scales: np.ndarray,
    shifts: np.ndarray,
    p: np.ndarray,
    y: np.ndarray,
    slope: np.ndarray,
    weight: np.ndarray,
    most: float,
) -> np.ndarray:
    """(lines,) weighted sums of squared relative errors at (N,) samples, each at most `most`."""
    error = np.multiply.outer(scales, p)
    # In place: fresh memory for each step costs more than the arithmetic.
    error += shifts[:, None]
    error -= y
    error *= slope
    np.square(error, out=error)
    return np.minimum(error, most, out=error) @ weight


@compiled(_costs_by_numpy)
def _costs(
    scales: Doubles, shifts: Doubles, p: Doubles, y: Doubles, slope: Doubles, weight: Doubles, most: Double
) -> np.ndarray:
    costs = np.empty(len(scales))
    for line in range(len(scales)):
        scale, shift, cost = scales[line], shifts[line], 0.0
        for i in range(len(p)):
            error = (scale * p[i] + shift - y[i]) * slope[i]
            squared = error * error
            cost += weight[i] * (squared if squared < most else most)
        costs[line] = cost
    return costs


def _moved(base: Base, samples: Samples, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and shifts of `base` moved through each of the `chosen` samples, where it can be."""
    p, y = samples.p[chosen], samples.y[chosen]
    if base.additive:
        return np.full(len(p), base.scale), y - base.scale * p
    factor = y / (base.scale * p + base.shift)
    factor = factor[factor > 0]
    return factor * base.scale, factor * base.shift


def _refined(samples: Samples, base: Base, scale: float, shift: float, random: np.random.Generator) -> Evidence:
    """Reweighted least squares from a hypothesis, with a kernel that narrows."""
    part, sigma = samples.some(_EARLY_SAMPLES, random), _SIGMA
    for kernel in _WIDTHS[:-2]:
        evidence = _evidence(part, base, scale, shift, kernel, _SIGMA)
        line = weigh(evidence)
        scale, shift = line.scale, line.shift
    # Few samples lie on a line by themselves: what is usual counts as some, too.
    share = evidence.effective / (evidence.effective + _POOLED)
    sigma = math.hypot(math.sqrt(share) * _relative_error(part, scale, shift), math.sqrt(1.0 - share) * USUAL_SIGMA)
    line = weigh(_evidence(samples, base, scale, shift, _WIDTHS[-2], sigma))
    return _evidence(samples, base, line.scale, line.shift, _WIDTHS[-1], sigma, last=True)


def _relative_error(samples: Samples, scale: float, shift: float) -> float:
    """The samples' own standard deviation about a line, of those that are not wrong altogether."""
    error = np.abs(samples.slope * (scale * samples.p + shift - samples.y))
    order = np.argsort(error)
    order = order[: np.searchsorted(error[order], _GROSS)]
    if len(order) == 0:
        return _GROSS
    share = np.cumsum(samples.weight[order])
    median = error[order[np.searchsorted(share, 0.5 * share[-1])]]
    return max(float(median) / _NORMAL_MEDIAN, _SIGMA)


def _evidence(
    samples: Samples,
    base: Base,
    scale: float,
    shift: float,
    kernel: float,
    sigma: float,
    last: bool = False,
) -> Evidence:
    """One step of reweighting; `sigma`: what the relative errors about the line are.

    last: what the samples say is not to be taken for more than their groups can say.
    """
    p = samples.p
    agreeing, information, (total, mean_p, mean_y, spread, product, in_p) = _moments(
        *samples.numbers, scale, shift, kernel**2, max(sigma, USUAL_SIGMA)
    )
    reliability = float(1.0 - in_p / spread) if spread > 0 else -np.inf
    if product <= 0:
        reliability = 0.0  # what is nearer seems farther: these samples know nothing of the scale
    scale = float(product / spread) if reliability > _USELESS else scale
    if last:
        # The line is that of all samples; how sure it is, and where, that of what is independent.
        independent = np.ones(len(p))
        for group in samples.groups:
            count = np.bincount(group, agreeing)
            # Where many disagree, those that agree may do so by chance.
            most = _GROUP_COUNTS * count / np.maximum(np.bincount(group, samples.weight), _TINY)
            independent = np.minimum(independent, (most / np.maximum(np.maximum(count, most), _TINY))[group])
        agreeing, information = agreeing * independent, information * independent
        total = information.sum()
        middle = information @ p / total
        mean_y, mean_p = mean_y + scale * (middle - mean_p), middle
        spread = information @ (p - mean_p) ** 2
    ramp = min(max((reliability - _USELESS) / (_USEFUL - _USELESS), 0.0), 1.0)
    useful = ramp**2 * (3.0 - 2.0 * ramp)
    effective = float(agreeing.sum())
    # Many samples that fix the scale need no base; it would only pull at them.
    needless = useful * min(effective / _ENOUGH, 1.0)
    trust = (_SIGMA / sigma) ** 2
    mean_p, mean_y = float(mean_p), float(mean_y)
    return Evidence(
        scale=scale,
        scale_information=float(useful * spread) * trust,
        mean_p=mean_p,
        mean_y=mean_y,
        mean_information=float(total) * trust,
        base=_scale_alone(base, mean_p, mean_y, scale, 1.0 - needless),
        effective=effective,
        reliability=reliability,
        sigma=sigma,
    )


def _moments_by_numpy(
    p: np.ndarray,
    y: np.ndarray,
    slope: np.ndarray,
    weight: np.ndarray,
    noise: np.ndarray,
    blur: np.ndarray,
    scale: float,
    shift: float,
    squared_kernel: float,
    sigma: float,
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float, float, float, float]]:
    """(N,) how far samples agree with a line, and their information; of the latter the total, the means of p and y,
    the spread of p, its product with y, and what of the spread is error: the network's, and of the pixel; not the
    measurement's. At one depth a flat line fits all samples, and the network's seem to be none: `sigma` is its.
    """
    blurred = np.square(scale * slope * blur)
    variance = _SIGMA**2 + np.square(noise) + blurred
    error = slope * (scale * p + shift - y)
    limit = squared_kernel * variance
    agreeing = weight * np.square(limit / (limit + np.square(error)))
    information = agreeing * np.square(slope) / variance
    total = information.sum()
    mean_p, mean_y = information @ p / total, information @ y / total
    off = p - mean_p
    spread, product = information @ np.square(off), (information * off) @ (y - mean_y)
    in_p = information @ ((sigma**2 + blurred) / np.square(slope * scale))
    return agreeing, information, (total, mean_p, mean_y, spread, product, in_p)


@compiled(_moments_by_numpy)
def _moments(
    p: Doubles,
    y: Doubles,
    slope: Doubles,
    weight: Doubles,
    noise: Doubles,
    blur: Doubles,
    scale: Double,
    shift: Double,
    squared_kernel: Double,
    sigma: Double,
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float, float, float, float]]:
    agreeing, information = np.empty(len(p)), np.empty(len(p))
    total = sum_p = sum_y = in_p = 0.0
    for i in range(len(p)):
        steep = scale * slope[i]
        blurred = steep * blur[i] * steep * blur[i]
        variance = _SIGMA * _SIGMA + noise[i] * noise[i] + blurred
        error = slope[i] * (scale * p[i] + shift - y[i])
        limit = squared_kernel * variance
        share = limit / (limit + error * error)
        agreeing[i] = weight[i] * share * share
        told = agreeing[i] * slope[i] * slope[i] / variance
        information[i] = told
        total += told
        sum_p += told * p[i]
        sum_y += told * y[i]
        in_p += told * (sigma * sigma + blurred) / (steep * steep)
    mean_p, mean_y = sum_p / total, sum_y / total
    spread = product = 0.0
    for i in range(len(p)):
        weighted = information[i] * (p[i] - mean_p)
        spread += weighted * (p[i] - mean_p)
        product += weighted * (y[i] - mean_y)
    return agreeing, information, (total, mean_p, mean_y, spread, product, in_p)


def _scale_alone(base: Base, mean_p: float, mean_y: float, found: float, need: float) -> Belief:
    """What `base`, moved to the samples' mean, says of the scale, where that of the samples was `found` to be.

    need: from 0, the samples know it well, to 1.
    """
    scale, looseness = base.scale, base.looseness
    if not base.additive:
        from_zero = mean_p + base.shift / base.scale
        scale = mean_y / from_zero if from_zero * mean_y > 0 else found
        looseness = min(looseness / max(abs(from_zero), _TINY), _LOOSEST)
    # A share of the larger: a base that is far too flat would be far too sure.
    return Belief(scale, 0.0, (need / (looseness * max(scale, found)) ** 2, 0.0, 0.0))
