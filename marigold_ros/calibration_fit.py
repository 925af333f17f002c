"""The turn and the delay by which a scan lies beside the pictures, from the edges of many views.

Where brightness changes beside edges (`calibration_evidence`) is explained by a turn of the extrinsic, which is the
same in all views, and a delay, which moves edges as the picture moves. The best explanation is where most changes lie:
an M-estimate with Welsch's kernel, by reweighted least squares from a wide kernel to a narrow one. How sure it is
follows from leaving out one view at a time, and one part of the picture at a time (jackknife): what rests on a single
view, or on the one end of a wall that a robot drives along, is not sure, however clear that is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from marigold_ros.calibration_evidence import OFFSETS_DEG, PARTS, EdgeSums

# Standard deviation of the kernel in degrees, where it begins, and by which factor it narrows each round.
_KERNEL_DEG, _FIRST_KERNEL_DEG, _NARROWER = 0.4, 2.0, 0.8
_ROUNDS, _NEAR_ROUNDS = 40, 12
# Steps that are none, in degrees and seconds.
_NO_STEP = (0.005, 0.005, 0.005, 0.0005)
# Degrees and seconds by which nothing is known.
ENDLESS = 1e3


@dataclass
class Group:
    """Edges of frames of one view in which the picture moved alike.

    motion_deg: (2,) sum of its motions rightwards and downwards in degrees per second; `frames` of them.
    """

    sums: EdgeSums
    motion_deg: np.ndarray
    frames: float = 1.0

    def add(self, other: Group) -> None:
        """As if its frames were among these."""
        self.sums.add(other.sums)
        self.motion_deg = self.motion_deg + other.motion_deg
        self.frames += other.frames

    def scaled(self, by: float) -> Group:
        """As if there were so many times the frames."""
        return Group(self.sums.scaled(by), by * self.motion_deg, by * self.frames)


@dataclass(frozen=True)
class Prior:
    """What is taken for likely without evidence: turns in degrees and a delay in seconds `mean` (4,), which count like
    so much `Found.weight` (4,), and how far `off` (4,) they may be.

    Unless something is known: nothing is wrong, or 2 degrees and 0.1 s are.
    """

    mean: np.ndarray = field(default_factory=lambda: np.zeros(4))
    weight: np.ndarray = field(default_factory=lambda: np.array([3.0, 3.0, 3.0, 500.0]))
    off: np.ndarray = field(default_factory=lambda: np.array([2.0, 2.0, 2.0, 0.1]))


@dataclass(frozen=True)
class Found:
    """Turns about the camera's x, y and z in degrees, and a delay in seconds: `estimate` (4,).

    How far off it may be (4,): by how evidence scatters, and `held_back` by the prior; `sigma` is both.
    `weight` (4,): so many clear edges say so; of the delay, times their motions in degrees per second, squared.
    `motion_deg`: how many degrees per second the picture of these edges moved, beside what a turn explains as well.
    `surer`: by how many of its standard deviations over the views more brightness changes where the estimate has edges
    than where any errors that are as good as none have them. `against`: the share of that which edges to the
    right lose: what stands upright, against what lies.
    """

    estimate: np.ndarray
    scatter: np.ndarray
    held_back: np.ndarray
    weight: np.ndarray
    motion_deg: float
    surer: float
    against: float

    @property
    def sigma(self) -> np.ndarray:
        """(4,) by how much it may be off altogether."""
        return np.hypot(self.scatter, self.held_back)


# What tells groups of like motion apart, of all views.
Views = Sequence[Mapping[tuple[int, int], Group]]


def explained(views: Views, none: np.ndarray, prior: Prior | None = None) -> Found:
    """What explains the groups of each of two or more views best.

    none: (4,) errors that are as good as none, in degrees and seconds.
    """
    prior = prior or Prior()
    rows, numbers = _rows_of_each(views)
    few = _rows(_together(views).values())
    estimate, near = _climbed(few, prior), _climbed_near(few, none, prior)
    agree, slopes, curved = _derivatives(rows, estimate)
    curvature = _summed(curved.reshape(-1, 16), numbers, len(views)).reshape(-1, 4, 4)
    whole = curvature.sum(axis=0) + np.diag(prior.weight)
    by_view = _scatter(whole, curvature, _summed(slopes, numbers, len(views)))
    of_parts = _summed(curved.reshape(-1, 16), rows.parts, PARTS).reshape(-1, 4, 4)
    by_part = _scatter(whole, of_parts, _summed(slopes, rows.parts, PARTS))
    gain = agree - _moments(rows, near, _KERNEL_DEG)[0]
    upright = gain[rows.parts < PARTS // 2].sum()
    gain = np.bincount(numbers, gain, len(views))
    surer = gain.mean() / max(gain.std(ddof=1) / math.sqrt(len(gain)), 1e-9)
    against = -upright / max(gain.sum(), 1e-9)
    seen = whole - np.diag(prior.weight)
    turns, delay = seen[:3, :3], seen[3, 3] - seen[3, :3] @ np.linalg.pinv(seen[:3, :3]) @ seen[:3, 3]
    motion_deg = math.sqrt(max(delay, 0.0) / max(0.5 * (turns[0, 0] + turns[1, 1]), 1e-9))
    # What the prior holds back does not scatter.
    held_back = np.linalg.norm(np.linalg.pinv(whole) * prior.weight * prior.off, axis=1)
    scatter, weight = np.hypot(by_view, by_part), np.diagonal(seen)
    return Found(estimate, scatter, held_back, weight, motion_deg, float(surer), float(against))


@dataclass(frozen=True)
class _Rows:
    """`changes` (R, O) of brightness at `OFFSETS_DEG`, which `design` (R, 4) of turn and delay moves; (R,) `parts`."""

    changes: np.ndarray
    design: np.ndarray
    parts: np.ndarray


def _rows(groups: Iterable[Group]) -> _Rows:
    changes, design, parts = [], [], []
    for group in groups:
        part = np.flatnonzero(group.sums.count > 0)
        turns = group.sums.turns[part] / group.sums.count[part, None]
        right, down = group.motion_deg / group.frames
        # A scan that is older than its stamp lies where things were: against the motion of the picture.
        design.append(np.column_stack([turns, turns @ (down, -right, 0.0)]))
        changes.append(group.sums.changes[part])
        parts.append(part)
    return _Rows(np.concatenate(changes), np.concatenate(design), np.concatenate(parts))


def _rows_of_each(views: Views) -> tuple[_Rows, np.ndarray]:
    """Rows of all views, and (R,) the number of its view."""
    rows = [_rows(groups.values()) for groups in views]
    numbers = np.repeat(np.arange(len(views)), [len(one.parts) for one in rows])
    return _Rows(
        *(np.concatenate([getattr(one, name) for one in rows]) for name in ("changes", "design", "parts"))
    ), numbers


def _together(views: Views) -> dict[tuple[int, int], Group]:
    """Groups of like motion of all views as one: fewer rows to look at again and again."""
    together: dict[tuple[int, int], Group] = {}
    for groups in views:
        for motion, group in groups.items():
            if motion in together:
                together[motion].add(group)
            else:
                together[motion] = group.scaled(1.0)
    return together


def _moments(rows: _Rows, estimate: np.ndarray, kernel_deg: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R,) sums of changes under the kernel about where the estimate has them; times residuals; times their squares."""
    residual = OFFSETS_DEG - (rows.design @ estimate).astype(np.float32)[:, None]
    squared = residual * residual
    under = np.exp(squared * np.float32(-0.5 / kernel_deg**2)) * rows.changes
    return under.sum(axis=1), (under * residual).sum(axis=1), (under * squared).sum(axis=1)


def _step(rows: _Rows, estimate: np.ndarray, kernel_deg: float, prior: Prior) -> np.ndarray:
    """(4,) by which reweighted least squares moves the estimate."""
    weight, pull, _ = _moments(rows, estimate, kernel_deg)
    whole = (rows.design.T * weight) @ rows.design + np.diag(prior.weight)
    return np.linalg.solve(whole, rows.design.T @ pull + prior.weight * (prior.mean - estimate))


def _climbed(rows: _Rows, prior: Prior) -> np.ndarray:
    """(4,) the estimate from a wide kernel to a narrow one: a large error is seen from afar, without its details."""
    estimate, kernel_deg = prior.mean, _FIRST_KERNEL_DEG
    for _ in range(_ROUNDS):
        step = _step(rows, estimate, kernel_deg, prior)
        estimate = estimate + step
        if kernel_deg == _KERNEL_DEG and (np.abs(step) < _NO_STEP).all():
            break
        kernel_deg = max(_KERNEL_DEG, _NARROWER * kernel_deg)
    return estimate


def _climbed_near(rows: _Rows, most: np.ndarray, prior: Prior) -> np.ndarray:
    """(4,) the best estimate that has no error larger than `most`."""
    estimate = np.zeros(4)
    for _ in range(_NEAR_ROUNDS):
        estimate = np.clip(estimate + _step(rows, estimate, _KERNEL_DEG, prior), -most, most)
    return estimate


def _derivatives(rows: _Rows, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of what is under the kernel (R,): the slope (R, 4) and the curvature downwards (R, 4, 4), times kernel_deg^2.

    The curvature, unlike the weights of least squares, is nought where brightness changes alike everywhere.
    """
    under, pull, spread = _moments(rows, estimate, _KERNEL_DEG)
    curved = (under - spread / np.float32(_KERNEL_DEG**2)).astype(np.float64)
    return under, rows.design * pull[:, None], curved[:, None, None] * rows.design[:, :, None] * rows.design[:, None, :]


def _summed(values: np.ndarray, of: np.ndarray, count: int) -> np.ndarray:
    """(count, K) sums of the rows of (R, K) values with the numbers (R,) `of`."""
    return np.stack([np.bincount(of, column, count) for column in values.T], axis=1)


def _scatter(whole: np.ndarray, curvature: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """(4,) standard deviation of the estimate by leaving out one of (N, 4, 4) and (N, 4) at a time."""
    used = np.abs(curvature).any(axis=(1, 2)) | slopes.any(axis=1)
    left, slopes = whole - curvature[used], slopes[used]
    if len(left) < 2 or np.linalg.eigvalsh(left)[:, 0].min() <= 0:
        return np.full(4, ENDLESS)  # without one of them, anything goes
    moves = np.linalg.solve(left, (slopes - slopes.mean(axis=0))[..., None])[..., 0]
    return np.sqrt((1.0 - 1.0 / len(moves)) * (moves**2).sum(axis=0))
