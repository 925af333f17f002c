"""The scores of ways to metric depth over the steps of a case: means, flicker, calibration, recovery after a fault."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from marigold_ros.anchors import Anchors, find_anchors
from marigold_ros.config import Config, Unusable
from marigold_ros.geometry import Camera
from marigold_ros.metric import MetricFit, Refusal, apply_fit
from marigold_ros.metric_baselines import LINEAR, METHODS, ORACLE, OURS, Question, oracle_line, own_fit
from marigold_ros.metric_sequence_cases import CLEAN, Case, Step, cases
from marigold_ros.metric_sequences import Sequence
from marigold_ros.pipeline import FrameDepth, Pipeline, Scan
from marigold_ros.scores import near_rates, score

GLOBAL = "ours, no correction"
FORGETFUL, PER_FRAME, SMOOTHED = "ours, no memory", "fit per frame", "smoothed scale and shift"
OTHERS = ("least squares", "Huber", "median scaling", LINEAR)
SEQUENCE_METHODS = (OURS, GLOBAL, ORACLE, FORGETFUL, PER_FRAME, SMOOTHED, *OTHERS)
# What neither remembers nor changes with the case is asked in every fourth frame of a fault.
_EVERY = 4
_SMOOTHING = 0.3
# The oracle looks at so many of the truth's pixels.
_ORACLE_PIXELS = 800
# A fault is over when AbsRel is within this factor of the clean run's, for so many frames.
_RECOVERED, _RECOVERED_FRAMES = 1.1, 3
# What a frame without a surface in reach is said to be nearer than, to count as a wall in the sky.
_WALL_M = 30.0
_OUTSIDE = ("rectify", "network")


@dataclass(frozen=True)
class Answer:
    """Metres (M,) at the pixels of the sequence, NaN unknown, and their standard deviation where the method has it."""

    depth_m: np.ndarray
    sigma_m: np.ndarray | None = None
    state: str | None = None
    stage_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SequenceRow:
    """One method's scores in one case; NaN where it gave nothing or a score does not apply.

    Errors are means over the frames that have depth, rates over all frames. frames: how many count. sky_wall: share of
    the pixels that see no surface which are said to be nearer than 30 m. within_1, within_2: share of the errors within
    one and two standard deviations. flicker: frame-to-frame step of the median ln z, of its error unless the scene
    stands still. noise: standard deviation over time of ln z of a pixel, the median pixel's. recovery_s: seconds after
    the fault until AbsRel is within 10 % of the clean run's, infinite if that did not happen. states: share of the
    frames. over_time: AbsRel of every step of the case, of which those from `scored_from` on count; for plots.
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
    sky_wall: float
    within_1: float = math.nan
    within_2: float = math.nan
    flicker_p95: float = math.nan
    flicker_max: float = math.nan
    noise: float = math.nan
    recovery_s: float = math.nan
    states: dict[str, float] = field(default_factory=dict)
    stage_ms: dict[str, tuple[float, float]] = field(default_factory=dict)
    over_time: tuple[float, ...] = ()
    scored_from: int = 0


class Replay:
    """An estimator whose answer is already known: `relative` is set before each frame."""

    def __init__(self, sequence: Sequence) -> None:
        self.space = sequence.space
        self.relative = sequence.relative[0]
        self._own = sequence.own

    def __call__(self, rgb: np.ndarray, focal_px: float | None = None) -> np.ndarray:
        """(H, W) float32 relative depth."""
        return self.relative

    def with_disagreement(self, rgb: np.ndarray, focal_px: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As a call, and no disagreement."""
        return self.relative, np.zeros_like(self.relative)

    def fit_of(self, camera: Camera) -> MetricFit | None:
        """That of the sequence."""
        return self._own


class Chain:
    """The node's chain on a sequence, from anchors to metres, with what it remembers."""

    def __init__(self, sequence: Sequence, config: Config) -> None:
        self._estimator = Replay(sequence)
        self._pipeline = Pipeline(self._estimator)
        self._config = config

    def __call__(self, step: Step) -> Answer:
        """The answer to the next step."""
        self._estimator.relative = step.sequence.relative[step.frame]
        rgb, camera = step.sequence.rgb[step.frame], step.sequence.camera
        found = self._pipeline(rgb, camera, step.stamp_ns, lambda: _scan(step), self._config)
        return _answer(found, step.sequence.pixels)


def _scan(step: Step) -> Scan:
    if step.points is None:
        raise Unusable("no scan")
    return Scan(step.points, step.camera_from_lidar)


def _answer(found: FrameDepth, pixels: np.ndarray) -> Answer:
    def at(image: np.ndarray | None) -> np.ndarray | None:
        return None if image is None else image[pixels[:, 1], pixels[:, 0]]

    depth_m = at(found.depth_m)
    state = getattr(found, "state", None)
    return Answer(
        np.full(len(pixels), np.nan, np.float32) if depth_m is None else depth_m,
        at(found.sigma_m),
        None if state is None else str(getattr(state, "value", state)),
        found.stage_s,
    )


class Smoothed:
    """Exponential smoothing of scale and shift, as users do it against flicker; the last ones hold without anchors."""

    def __init__(self) -> None:
        self._line: np.ndarray | None = None

    def __call__(self, fit: MetricFit | None) -> MetricFit | None:
        """The smoothed fit after a frame whose own is `fit`."""
        if fit is not None:
            line = np.array([fit.scale, fit.shift])
            self._line = line if self._line is None else (1 - _SMOOTHING) * self._line + _SMOOTHING * line
            self._fit = fit
        if self._line is None:
            return None
        return replace(self._fit, scale=float(self._line[0]), shift=float(self._line[1]))


class Oracle:
    """The best scale and shift of a frame, found once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], np.ndarray] = {}

    def __call__(self, sequence: Sequence, frame: int) -> np.ndarray:
        """(M,) metres."""
        key = sequence.name, frame
        if key not in self._found:
            self._found[key] = self._fitted(sequence, frame)
        return self._found[key]

    @staticmethod
    def _fitted(sequence: Sequence, frame: int) -> np.ndarray:
        truth_m = sequence.truth_m[frame]
        known = np.flatnonzero(np.isfinite(truth_m))
        few = known[:: max(1, len(known) // _ORACLE_PIXELS)]
        if len(few) == 0:
            return np.full(len(truth_m), np.nan, np.float32)
        asked = Question(sequence.relative[frame], sequence.space, _none(), sequence.pixels[few])
        fit = MetricFit(sequence.space, *oracle_line(asked, truth_m[few]), 0, 0, math.nan)
        return _applied(fit, sequence, frame)


def _applied(fit: MetricFit | None, sequence: Sequence, frame: int) -> np.ndarray:
    if fit is None:
        return np.full(len(sequence.pixels), np.nan, np.float32)
    relative = sequence.relative[frame][sequence.pixels[:, 1], sequence.pixels[:, 0]]
    return apply_fit(fit, relative, Config().fit.max_depth_m)


def _none() -> Anchors:
    empty = np.empty(0, np.float32)
    return Anchors(np.empty((0, 2), np.float32), empty, empty, 0)


def answers(case: Case, oracle: Oracle) -> Iterator[dict[str, Answer]]:
    """The answers of all methods, step by step; the slow ones that remember nothing only now and then in faults."""
    config = Config()
    plain = replace(config, fit=replace(config.fit, correction_limit=1.0))
    first = case.steps[0].sequence
    chain, chain_alone, smoothed = Chain(first, config), Chain(first, plain), Smoothed()
    for number, step in enumerate(case.steps):
        sequence = step.sequence
        found = {OURS: chain(step), GLOBAL: chain_alone(step), ORACLE: Answer(oracle(sequence, step.frame))}
        anchors = _none()
        if step.points is not None:
            anchors = find_anchors(step.points, step.camera_from_lidar, sequence.camera, config.range)
        asked = Question(sequence.relative[step.frame], sequence.space, anchors, sequence.pixels, sequence.own)
        fit = own_fit(asked)
        fit = None if isinstance(fit, Refusal) else fit
        found[PER_FRAME] = Answer(_applied(fit, sequence, step.frame))
        found[SMOOTHED] = Answer(_applied(smoothed(fit), sequence, step.frame))
        if case.group == CLEAN or number % _EVERY == 0:
            found[FORGETFUL] = Chain(sequence, config)(step)
            found |= {name: Answer(METHODS[name](asked)) for name in OTHERS}
        yield found


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
        found = {name: _mean([getattr(s, name) for s in scores]) for name in ("abs_rel", "rmse_m", "mae_m", "delta1")}
        pixels = np.array([n.pixels for n in near], np.float64)
        for name in ("miss", "phantom"):
            rates = np.nan_to_num([getattr(n, name) for n in near])
            found[name] = float(rates @ pixels / pixels.sum()) if pixels.sum() else math.nan
        found["coverage"] = _mean([s.coverage for s in scores])
        found["sky_wall"] = self._sky_wall(counted)
        return found

    def _sky_wall(self, counted: list[tuple[int, Answer]]) -> float:
        walls = beyond = 0
        for number, answer in counted:
            step = self._case.steps[number]
            sky = step.sequence.beyond[step.frame]
            beyond += int(sky.sum())
            with np.errstate(invalid="ignore"):
                walls += int((answer.depth_m[sky] < _WALL_M).sum())
        return walls / beyond if beyond else math.nan

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


def _mean(values: list[float]) -> float:
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
