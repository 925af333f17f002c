"""The scores of ways to metric depth over the steps of a case: means, flicker, calibration, recovery after a fault."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from marigold_ros.metric_chain import SEQUENCE_METHODS, Answer, Oracle, answers
from marigold_ros.metric_sequence_cases import CLEAN, Case, cases
from marigold_ros.metric_sequences import Sequence
from marigold_ros.scores import near_rates, score

# A fault is over when AbsRel is within this factor of the clean run's, for so many frames.
_RECOVERED, _RECOVERED_FRAMES = 1.1, 3
# What the sky is said to be nearer than, to count as a wall in it.
_WALL_M = 30.0
_OUTSIDE = ("rectify", "network", "beside")


@dataclass(frozen=True)
class SequenceRow:
    """One method's scores in one case; NaN where it gave nothing or a score does not apply.

    Errors are means over the frames that have depth, rates over all frames. frames: how many count. sky_depth,
    sky_wall: of the pixels that see no surface, the shares that are given any depth, and one nearer than 30 m.
    within_1, within_2: share of the errors within one and two standard deviations. flicker: frame-to-frame step of the
    median ln z, of its error unless the scene stands still. noise: standard deviation over time of ln z of a pixel, the
    median pixel's. recovery_s: seconds after the fault until AbsRel is within 10 % of the clean run's, infinite if that
    did not happen. states: share of the frames. usual: AbsRel of the clean run at the same frames. stage_ms: p50 and
    p95 of each stage after the network. over_time: AbsRel of every step of the case, of which those from `scored_from`
    on count; for plots. known_on: of a mean over sequences, how many have a score, by its name, where not all do.
    """

    sequence: str
    group: str
    fault: str
    method: str
    frames: int
    abs_rel: float
    rmse_m: float
    mae_m: float
    delta1: float
    miss: float
    phantom: float
    coverage: float
    sky_depth: float
    sky_wall: float
    within_1: float = math.nan
    within_2: float = math.nan
    flicker_p95: float = math.nan
    flicker_max: float = math.nan
    noise: float = math.nan
    recovery_s: float = math.nan
    usual: float = math.nan
    states: dict[str, float] = field(default_factory=dict)
    stage_ms: dict[str, tuple[float, float]] = field(default_factory=dict)
    over_time: tuple[float, ...] = ()
    scored_from: int = 0
    known_on: dict[str, int] = field(default_factory=dict)


class Track:
    """What one method answered in a case so far."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._numbers: list[int] = []
        self._answers: list[Answer] = []

    def add(self, number: int, answer: Answer) -> None:
        """The answer to step `number`."""
        self._numbers.append(number)
        self._answers.append(answer)

    def row(self, method: str, clean: dict[tuple[str, int], float] | None = None) -> SequenceRow:
        """The scores. `clean`: AbsRel of the clean run by sequence and frame, for the time of recovery."""
        case = self._case
        name = case.steps[-1].sequence.name
        counted = [(n, a) for n, a in zip(self._numbers, self._answers, strict=True) if n in case.scored]
        errors = dict(zip(self._numbers, map(self._abs_rel, self._numbers, self._answers), strict=True))
        every = len(self._numbers) == len(case.steps)
        return SequenceRow(
            name, case.group, case.name, method, len(counted), **self._errors(counted),
            **_calibration([(self._truth(n), a) for n, a in counted]),
            **(self._steadiness(counted) if every else {}),
            recovery_s=self._recovery_s(errors, clean) if every and clean is not None else math.nan,
            usual=self._usual(counted, clean or {}),
            states=_shares([a.state for _, a in counted]),
            stage_ms=_times([a.stage_s for _, a in counted]),
            over_time=tuple(errors.values()) if every else (),
            scored_from=case.scored.start,
        )  # fmt: skip

    def abs_rel_by_frame(self) -> dict[tuple[str, int], float]:
        """AbsRel by sequence and frame."""
        steps = (self._case.steps[number] for number in self._numbers)
        found = map(self._abs_rel, self._numbers, self._answers)
        return {(step.sequence.name, step.frame): error for step, error in zip(steps, found, strict=True)}

    def _truth(self, number: int) -> np.ndarray:
        step = self._case.steps[number]
        return step.sequence.truth_m[step.frame]

    def _abs_rel(self, number: int, answer: Answer) -> float:
        return float(score(answer.depth_m, self._truth(number)).abs_rel)

    def _errors(self, counted: list[tuple[int, Answer]]) -> dict[str, float]:
        scores = [score(answer.depth_m, self._truth(number)) for number, answer in counted]
        near = [near_rates(answer.depth_m, self._truth(number)) for number, answer in counted]
        names = "abs_rel", "rmse_m", "mae_m", "delta1", "coverage"
        found = {name: known_mean(getattr(s, name) for s in scores) for name in names}
        pixels = np.array([n.pixels for n in near], np.float64)
        for name in ("miss", "phantom"):
            rates = np.nan_to_num([getattr(n, name) for n in near])
            found[name] = float(rates @ pixels / pixels.sum()) if pixels.sum() else math.nan
        sky_m = [answer.depth_m[self._sky(number)] for number, answer in counted]
        in_sky = np.concatenate(sky_m) if sky_m else np.empty(0)
        if len(in_sky) == 0:
            return found | {"sky_depth": math.nan, "sky_wall": math.nan}
        with np.errstate(invalid="ignore"):
            return found | {
                "sky_depth": float(np.mean(np.isfinite(in_sky))),
                "sky_wall": float(np.mean(in_sky < _WALL_M)),
            }

    def _sky(self, number: int) -> np.ndarray:
        step = self._case.steps[number]
        return step.sequence.beyond[step.frame]

    def _steadiness(self, counted: list[tuple[int, Answer]]) -> dict[str, float]:
        """Flicker and noise."""
        still = all(self._case.steps[number].sequence.still for number, _ in counted)
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = [np.log(a.depth_m) if still else np.log(a.depth_m / self._truth(n)) for n, a in counted]
        found = flicker(logs)
        return {
            "flicker_p95": float(np.percentile(found, 95)) if found else math.nan,
            "flicker_max": max(found) if found else math.nan,
            "noise": temporal_noise(logs) if still and logs else math.nan,
        }

    def _usual(self, counted: list[tuple[int, Answer]], clean: dict[tuple[str, int], float]) -> float:
        steps = [self._case.steps[number] for number, _ in counted]
        return known_mean(clean.get((step.sequence.name, step.frame), math.nan) for step in steps)

    def _recovery_s(self, errors: dict[int, float], clean: dict[tuple[str, int], float]) -> float:
        case = self._case
        if case.recovers_at is None:
            return math.nan
        after = range(case.recovers_at, len(case.steps))
        steps = [case.steps[number] for number in after]
        usual = [clean.get((step.sequence.name, step.frame), math.nan) for step in steps]
        return recovery_s([errors[number] for number in after], usual, steps[0].sequence.period_s)


def flicker(logs: list[np.ndarray]) -> list[float]:
    """Steps of the median from frame to frame, |median(next) - median(this)|, over the pixels known in both.

    logs: (M,) ln z of each frame, NaN or infinite where unknown.
    """
    steps = []
    for this, following in itertools.pairwise(logs):
        both = np.isfinite(this) & np.isfinite(following)
        if both.any():
            steps.append(float(abs(np.median(following[both]) - np.median(this[both]))))
    return steps


def temporal_noise(logs: list[np.ndarray]) -> float:
    """The median pixel's standard deviation of ln z over time, of the pixels known in every frame."""
    stacked = np.stack(logs)
    always = np.isfinite(stacked).all(axis=0)
    return float(np.median(stacked[:, always].std(axis=0))) if always.any() else math.nan


def recovery_s(errors: list[float], usual: list[float], period_s: float) -> float:
    """Seconds until three frames in a row have at most 1.1 times their usual error, infinite if none do.

    Both are AbsRel by frame, NaN where there is no depth; where the usual run has none, its next error is asked.
    """
    asked = _next_known(usual)
    fine = [math.isnan(u) or e <= _RECOVERED * u for e, u in zip(errors, asked, strict=True)]
    for start in range(len(fine) - _RECOVERED_FRAMES + 1):
        if all(fine[start : start + _RECOVERED_FRAMES]):
            return start * period_s
    return math.inf


def _next_known(values: list[float]) -> list[float]:
    """The values with the next one in place of every NaN, the last ones as they are."""
    filled = list(values)
    for place in range(len(filled) - 2, -1, -1):
        if math.isnan(filled[place]):
            filled[place] = filled[place + 1]
    return filled


def _calibration(counted: list[tuple[np.ndarray, Answer]]) -> dict[str, float]:
    """Share of the errors within one and two standard deviations."""
    ratios = []
    for truth_m, answer in counted:
        if answer.sigma_m is None:
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.abs(answer.depth_m - truth_m) / answer.sigma_m
        ratios.append(ratio[np.isfinite(truth_m) & np.isfinite(answer.depth_m) & np.isfinite(ratio)])
    together = np.concatenate(ratios) if ratios else np.empty(0)
    if len(together) == 0:
        return {}
    return {"within_1": float(np.mean(together <= 1)), "within_2": float(np.mean(together <= 2))}


def _shares(states: list[str | None]) -> dict[str, float]:
    known = Counter(state for state in states if state is not None)
    return {state: count / len(states) for state, count in known.most_common()}


def _times(stage_s: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """p50 and p95 in milliseconds of each stage after the network, and of their sum."""
    names = dict.fromkeys(name for stages in stage_s for name in stages if name not in _OUTSIDE)
    of_name = {name: [stages.get(name, 0.0) for stages in stage_s] for name in names}
    if not of_name:
        return {}
    of_name["together"] = list(np.sum(list(of_name.values()), axis=0))
    return {name: tuple(float(v) for v in np.percentile(np.array(s) * 1e3, (50, 95))) for name, s in of_name.items()}


def known_mean(values: Iterable[float]) -> float:
    """The mean of those that are not NaN; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def sequence_rows(
    sequence: Sequence, before: Sequence | None, groups: tuple[str, ...], note: Callable[[str], None]
) -> list[SequenceRow]:
    """The rows of every case of a sequence; `note` is told each case's name."""
    oracle = Oracle()
    clean: dict[str, dict[tuple[str, int], float]] = {}
    rows = []
    for case in cases(sequence, before, groups):
        note(f"{sequence.name}, {case.name}")
        tracks = {method: Track(case) for method in SEQUENCE_METHODS}
        for number, found in enumerate(answers(case, oracle)):
            for method, answer in found.items():
                tracks[method].add(number, answer)
        if case.group == CLEAN:
            clean = {method: track.abs_rel_by_frame() for method, track in tracks.items()}
        rows += [track.row(method, clean[method]) for method, track in tracks.items()]
    return rows
