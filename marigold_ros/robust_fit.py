"""Robust straight lines: y = scale * p + shift through samples of which half may be wrong.

p is a network's relative depth, y the measured depth in the space in which the network is affine. Errors are relative
depth errors, `slope` times a difference in y. Sources: MSAC (Torr and Zisserman, 2000); graduated non-convexity with
Geman and McClure's kernel (Yang et al., arXiv 1909.08605); attenuation by errors in p (Fuller, Measurement Error
Models, 1987).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from marigold_ros.compiled import Bool, Double, Doubles, IntRows, Ints, compiled

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
# Lines go through two samples that are farther apart than this share of all p.
_APART = 0.02
# A weighted median is known to 1e-9 after so many halvings.
_HALVINGS = 30
# What may be wrong with what was gathered.
_FINE, _NEGATIVE, _NOT_POSITIVE = range(3)
_NO_POSITIVE_SCALE = "the best scale is not positive ({:.4g}): wrong extrinsic or wrong checkpoint"


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
    half = len(values) // 2
    # One place alone is found by vector instructions, two are not.
    ordered = np.partition(values, half)
    above = float(ordered[half])
    return above if len(values) % 2 else (float(ordered[:half].max()) + above) / 2.0


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
    base_line = np.array([base.scale, base.shift, base.looseness, base.additive])
    draws = _draws(seed, len(samples))
    problem, *found = _gathered(*samples.numbers, samples.groups, base_line, *draws, tolerance, free_scale)
    of_samples, (of_base, about_base), quality = (tuple(map(float, part)) for part in found)
    if problem == _NEGATIVE:
        raise NoLine("the anchors ask for a negative scale: wrong extrinsic, or a checkpoint of another space")
    if problem == _NOT_POSITIVE:
        raise NoLine(_NO_POSITIVE_SCALE.format(of_samples[0]))
    return Evidence(*of_samples, Belief(of_base, 0.0, (about_base, 0.0, 0.0)), *quality)


def weigh(evidence: Evidence, belief: Belief | None = None) -> Line:
    """The line by evidence and `belief`; without one, by evidence and the scale of the base that it was gathered with.

    Raises `NoLine` where its scale is not positive.
    """
    known = evidence.base if belief is None else belief
    e, (about_scale, about_both, about_shift) = evidence, known.information
    of_samples = e.scale, e.scale_information, e.mean_p, e.mean_y, e.mean_information
    scale, shift, covariance = _weighed(of_samples, (known.scale, known.shift), known.information)
    if not scale > 0:
        raise NoLine(_NO_POSITIVE_SCALE.format(scale))
    off_scale, off_shift = scale - known.scale, shift - known.shift
    contradiction = about_scale * off_scale**2 + 2.0 * about_both * off_scale * off_shift + about_shift * off_shift**2
    contradiction += e.scale_information * (scale - e.scale) ** 2
    contradiction += e.mean_information * (e.mean_p * scale + shift - e.mean_y) ** 2
    return Line(scale, shift, covariance, contradiction)


def _weighed(
    of_samples: tuple[float, float, float, float, float],
    known: tuple[float, float],
    about: tuple[float, float, float],
) -> tuple[float, float, tuple[float, float, float]]:
    """Scale, shift and their covariance, by what samples say (the first five of `Evidence`) and a known line, which
    there is so much information about.
    """
    own_scale, information, p, y, w = of_samples
    (scale, shift), (about_scale, about_both, about_shift) = known, about
    # Information about (scale, shift); the samples' mean lies on the line: y = p * scale + shift.
    in_scale, in_both, in_shift = information + w * p * p + about_scale, w * p + about_both, w + about_shift
    to_scale = information * own_scale + w * p * y + about_scale * scale + about_both * shift
    to_shift = w * y + about_both * scale + about_shift * shift
    determinant = in_scale * in_shift - in_both**2
    variances = in_shift / determinant, -in_both / determinant, in_scale / determinant
    return (
        variances[0] * to_scale + variances[1] * to_shift,
        variances[1] * to_scale + variances[2] * to_shift,
        variances,
    )


@lru_cache(maxsize=4)
def _draws(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random numbers for `_lines`, and which of `count` samples judge these, and are refined with at first."""
    random = np.random.default_rng(seed)
    uniform = random.random(_FACTORS + 2 * _HYPOTHESES)
    # Some may come twice, which costs less than to avoid it.
    parts = (
        random.integers(count, size=most) if count > most else np.arange(count) for most in (_JUDGES, _EARLY_SAMPLES)
    )
    draws = uniform, *parts
    for part in draws:
        part.flags.writeable = False  # it is everybody's
    return draws


@compiled()
def _gathered(
    p: Doubles,
    y: Doubles,
    slope: Doubles,
    weight: Doubles,
    noise: Doubles,
    blur: Doubles,
    groups: IntRows,
    base: Doubles,
    uniform: Doubles,
    judges: Ints,
    early: Ints,
    tolerance: Double,
    free_scale: Bool,
) -> tuple[int, tuple[float, ...], tuple[float, float], tuple[float, float, float]]:
    """What is wrong, if anything, and the numbers of `Evidence`: those of the samples; of the base, scale and the
    information about it; effective, reliability, sigma.

    base: scale, shift, looseness, and whether it is additive. uniform, judges, early: see `_draws`.
    """
    problem, scale, shift = _best_hypothesis(
        p, y, weight, base, uniform, p[judges], y[judges], slope[judges], weight[judges], tolerance, free_scale
    )
    part = p[early], y[early], slope[early], weight[early], noise[early], blur[early]
    # Reweighted least squares with a kernel that narrows.
    sigma, of_samples, of_base, quality = _SIGMA, (scale, 0.0, 0.0, 0.0, 0.0), (scale, 0.0), (0.0, 0.0, 0.0)
    for width in range(len(_WIDTHS)):
        if problem != _FINE:
            break
        last_but_one, last = width == len(_WIDTHS) - 2, width == len(_WIDTHS) - 1
        if last_but_one:
            # Few samples lie on a line by themselves: what is usual counts as some, too.
            share = quality[0] / (quality[0] + _POOLED)
            own = _relative_error(part[0], part[1], part[2], part[3], scale, shift)
            sigma = math.hypot(math.sqrt(share) * own, math.sqrt(1.0 - share) * USUAL_SIGMA)
            part = p, y, slope, weight, noise, blur
        of_samples, of_base, quality = _evidence(part, groups, base, scale, shift, _WIDTHS[width], sigma, last)
        if not last:
            scale, shift, _ = _weighed(of_samples, (of_base[0], 0.0), (of_base[1], 0.0, 0.0))
            if not scale > 0:
                problem, of_samples = _NOT_POSITIVE, (scale, 0.0, 0.0, 0.0, 0.0)
    return problem, of_samples, of_base, quality


def _best_hypothesis(
    p: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    base: np.ndarray,
    uniform: np.ndarray,
    judges_p: np.ndarray,
    judges_y: np.ndarray,
    judges_slope: np.ndarray,
    judges_weight: np.ndarray,
    tolerance: float,
    free_scale: bool,
) -> tuple[int, float, float]:
    """What is wrong, if anything; of lines through two samples, and `base` moved to one, that with the least sum of
    squares, cut off (MSAC).
    """
    scales, shifts = _lines(p, y, weight, base, uniform, free_scale)
    costs = _costs(scales, shifts, judges_p, judges_y, judges_slope, judges_weight, tolerance**2)
    winner, best, best_negative = -1, np.inf, np.inf
    for line in range(len(scales)):
        if scales[line] > 0:
            if costs[line] < best:
                winner, best = line, costs[line]
        elif costs[line] < best_negative:
            best_negative = costs[line]
    # A few samples, or a wall, lie on a line of any slope: only what no positive scale explains is a sign.
    unexplained = best > (2.0 * _SIGMA) ** 2 * judges_weight.sum()
    if len(judges_p) >= _ENOUGH and unexplained and best_negative < 0.5 * best:
        return _NEGATIVE, base[0], base[1]
    if winner < 0:
        # The base has no depth where the samples lie, beyond infinity or behind the lens: its scale serves.
        return _FINE, base[0], np.median(judges_y - base[0] * judges_p)
    return _FINE, scales[winner], shifts[winner]


def _lines_by_numpy(
    p: np.ndarray, y: np.ndarray, weight: np.ndarray, base: np.ndarray, uniform: np.ndarray, free_scale: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and shifts: of `base` moved through samples, where it can be, and, with a `free_scale`, through two.

    Samples are drawn with chances by their weights.
    """
    up_to = np.cumsum(weight)
    drawn = np.minimum(np.searchsorted(up_to, uniform * up_to[-1], side="right"), len(p) - 1)
    first, (scale, shift, _, additive) = drawn[:_FACTORS], base
    if additive:
        scales, shifts = np.full(len(first), scale), y[first] - scale * p[first]
    else:
        factor = y[first] / (scale * p[first] + shift)
        factor = factor[factor > 0]
        scales, shifts = factor * scale, factor * shift
    if free_scale:
        first, second = drawn[_FACTORS:].reshape(2, _HYPOTHESES)
        apart = np.abs(p[first] - p[second]) > _APART * np.ptp(p)
        first, second = first[apart], second[apart]
        through_two = (y[first] - y[second]) / (p[first] - p[second])
        scales = np.concatenate([scales, through_two])
        shifts = np.concatenate([shifts, y[first] - through_two * p[first]])
    return scales, shifts


@compiled(_lines_by_numpy, inner=True)
def _lines(
    p: Doubles, y: Doubles, weight: Doubles, base: Doubles, uniform: Doubles, free_scale: Bool
) -> tuple[np.ndarray, np.ndarray]:
    up_to, total, least, most = np.empty(len(p)), 0.0, p[0], p[0]
    for i in range(len(p)):
        total += weight[i]
        up_to[i] = total
        least, most = min(least, p[i]), max(most, p[i])
    drawn = np.minimum(np.searchsorted(up_to, uniform * total, side="right"), len(p) - 1)
    scales, shifts, found = np.empty(_FACTORS + _HYPOTHESES), np.empty(_FACTORS + _HYPOTHESES), 0
    for i in drawn[:_FACTORS]:
        if base[3] > 0:
            scales[found], shifts[found] = base[0], y[i] - base[0] * p[i]
            found += 1
            continue
        factor = y[i] / (base[0] * p[i] + base[1])
        if factor > 0:
            scales[found], shifts[found] = factor * base[0], factor * base[1]
            found += 1
    if free_scale:
        for first, second in zip(drawn[_FACTORS : _FACTORS + _HYPOTHESES], drawn[_FACTORS + _HYPOTHESES :]):  # noqa: B905
            if abs(p[first] - p[second]) > _APART * (most - least):
                scales[found] = (y[first] - y[second]) / (p[first] - p[second])
                shifts[found] = y[first] - scales[found] * p[first]
                found += 1
    return scales[:found], shifts[:found]


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


@compiled(_costs_by_numpy, inner=True)
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


def _relative_error_by_numpy(
    p: np.ndarray, y: np.ndarray, slope: np.ndarray, weight: np.ndarray, scale: float, shift: float
) -> float:
    """The samples' own standard deviation about a line, of those that are not wrong altogether."""
    error = np.abs(slope * (scale * p + shift - y))
    order = np.argsort(error)
    order = order[: np.searchsorted(error[order], _GROSS)]
    if len(order) == 0:
        return _GROSS
    share = np.cumsum(weight[order])
    median = error[order[np.searchsorted(share, 0.5 * share[-1])]]
    return max(float(median) / _NORMAL_MEDIAN, _SIGMA)


@compiled(_relative_error_by_numpy, inner=True)
def _relative_error(p: Doubles, y: Doubles, slope: Doubles, weight: Doubles, scale: Double, shift: Double) -> float:
    error, total, low, high = np.empty(len(p)), 0.0, -1.0, _GROSS
    for i in range(len(p)):
        error[i] = abs(slope[i] * (scale * p[i] + shift - y[i]))
        total += weight[i] if error[i] < _GROSS else 0.0
    if total == 0.0:
        return _GROSS
    # Halving what the median may lie in is several times as fast as sorting.
    for _ in range(_HALVINGS):
        middle, below = 0.5 * (low + high), 0.0
        for i in range(len(p)):
            below += weight[i] if error[i] <= middle else 0.0
        low, high = (low, middle) if below >= 0.5 * total else (middle, high)
    return max(high / _NORMAL_MEDIAN, _SIGMA)


def _evidence(
    samples: tuple[np.ndarray, ...],
    groups: np.ndarray,
    base: np.ndarray,
    scale: float,
    shift: float,
    kernel: float,
    sigma: float,
    last: bool,
) -> tuple[tuple[float, ...], tuple[float, float], tuple[float, float, float]]:
    """One step of reweighting, see `_gathered`; `sigma`: what the relative errors about the line are.

    last: what the samples say is not to be taken for more than their `groups` can say.
    """
    p, y, slope, weight, noise, blur = samples
    agreeing, information, (total, mean_p, mean_y, spread, product, in_p) = _moments(
        p, y, slope, weight, noise, blur, scale, shift, kernel**2, max(sigma, USUAL_SIGMA)
    )
    reliability = 1.0 - in_p / spread if spread > 0 else -np.inf
    if product <= 0:
        reliability = 0.0  # what is nearer seems farther: these samples know nothing of the scale
    scale = product / spread if reliability > _USELESS else scale
    effective = agreeing.sum()
    if last:
        # The line is that of all samples; how sure it is, and where, that of what is independent.
        effective, total, middle, spread = _independent(p, weight, agreeing, information, groups)
        mean_y, mean_p = mean_y + scale * (middle - mean_p), middle
    ramp = min(max((reliability - _USELESS) / (_USEFUL - _USELESS), 0.0), 1.0)
    useful = ramp**2 * (3.0 - 2.0 * ramp)
    # Many samples that fix the scale need no base; it would only pull at them.
    needless = useful * min(effective / _ENOUGH, 1.0)
    trust = (_SIGMA / sigma) ** 2
    of_base = _scale_alone(base, mean_p, mean_y, scale, 1.0 - needless)
    of_samples = scale, useful * spread * trust, mean_p, mean_y, total * trust
    return of_samples, of_base, (effective, reliability, sigma)


def _independent_by_numpy(
    p: np.ndarray, weight: np.ndarray, agreeing: np.ndarray, information: np.ndarray, groups: np.ndarray
) -> tuple[float, float, float, float]:
    """How many independent samples agree; of their information the total, the mean of p and its spread."""
    independent = np.ones(len(p))
    for group in groups:
        count = np.bincount(group, agreeing)
        # Where many disagree, those that agree may do so by chance.
        most = _GROUP_COUNTS * count / np.maximum(np.bincount(group, weight), _TINY)
        independent = np.minimum(independent, (most / np.maximum(np.maximum(count, most), _TINY))[group])
    information = information * independent
    total = information.sum()
    middle = information @ p / total
    return agreeing @ independent, total, middle, information @ (p - middle) ** 2


@compiled(_independent_by_numpy, inner=True)
def _independent(
    p: Doubles, weight: Doubles, agreeing: Doubles, information: Doubles, groups: IntRows
) -> tuple[float, float, float, float]:
    independent = np.ones(len(p))
    for g in range(len(groups)):
        group = groups[g]
        count, weights = np.zeros(group.max() + 1), np.zeros(group.max() + 1)
        for i in range(len(p)):
            count[group[i]] += agreeing[i]
            weights[group[i]] += weight[i]
        for k in range(len(count)):
            most = _GROUP_COUNTS * count[k] / max(weights[k], _TINY)
            count[k] = most / max(max(count[k], most), _TINY)
        for i in range(len(p)):
            independent[i] = min(independent[i], count[group[i]])
    effective = total = middle = spread = 0.0
    for i in range(len(p)):
        told = information[i] * independent[i]
        effective += agreeing[i] * independent[i]
        total += told
        middle += told * p[i]
    middle /= total
    for i in range(len(p)):
        spread += information[i] * independent[i] * (p[i] - middle) ** 2
    return effective, total, middle, spread


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


@compiled(_moments_by_numpy, inner=True)
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


def _scale_alone(base: np.ndarray, mean_p: float, mean_y: float, found: float, need: float) -> tuple[float, float]:
    """What `base`, moved to the samples' mean, says of the scale, where that of the samples was `found` to be; and the
    information about it.

    need: from 0, the samples know it well, to 1.
    """
    scale, looseness = base[0], base[2]
    if base[3] == 0:
        from_zero = mean_p + base[1] / base[0]
        scale = mean_y / from_zero if from_zero * mean_y > 0 else found
        looseness = min(looseness / max(abs(from_zero), _TINY), _LOOSEST)
    # A share of the larger: a base that is far too flat would be far too sure.
    return scale, need / (looseness * max(scale, found)) ** 2
