"""Ways to metric depth over the steps of a case: the node's whole chain, what it is without its parts, and others'."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from marigold_ros.anchors import Anchors, find_anchors
from marigold_ros.config import Config, Unusable
from marigold_ros.geometry import Camera
from marigold_ros.metric import MetricFit, Refusal, apply_fit
from marigold_ros.metric_baselines import GLOBAL, METHODS, ORACLE, OURS, Question, oracle_line, own_fit
from marigold_ros.metric_sequence_cases import CLEAN, COHERENT, Case, Step
from marigold_ros.metric_sequences import Sequence
from marigold_ros.pipeline import FrameDepth, Pipeline, Scan

ODOMETRY = "ours, with odometry"
FORGETFUL, PER_FRAME, SMOOTHED = "ours, no memory", "fit per frame", "smoothed scale and shift"
OTHERS = [name for name in METHODS if name not in (OURS, GLOBAL)]
SEQUENCE_METHODS = (OURS, ODOMETRY, GLOBAL, ORACLE, FORGETFUL, PER_FRAME, SMOOTHED, *OTHERS)
# What neither remembers nor changes with the case is asked in every fourth frame of a fault.
_EVERY = 4
_SMOOTHING = 0.3
# The oracle looks at so many of the truth's pixels.
_ORACLE_PIXELS = 800


@dataclass(frozen=True)
class Answer:
    """Metres (M,) at the pixels of the sequence, NaN unknown, and their standard deviation where the method has it."""

    depth_m: np.ndarray
    sigma_m: np.ndarray | None = None
    state: str | None = None
    stage_s: dict[str, float] = field(default_factory=dict)


class Replay:
    """An estimator whose answer is already known: `answer` is set before each frame."""

    def __init__(self, sequence: Sequence) -> None:
        self.space = sequence.space
        self.answer = sequence.coarse[0]
        self._own = sequence.own

    def coarse(self, rgb: np.ndarray, focal_px: float | None = None) -> np.ndarray:
        """(h, w) float32 relative depth."""
        return self.answer

    def with_disagreement(self, rgb: np.ndarray, focal_px: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As `coarse`, and no disagreement."""
        return self.answer, np.zeros_like(self.answer)

    def fit_of(self, camera: Camera) -> MetricFit | None:
        """That of the sequence."""
        return self._own


class Chain:
    """The node's chain on a sequence, from anchors to metres, with what it remembers.

    odometry: the camera's motion is known, as by tf2 through `range.fixed_frame`. sigma: its deviation is asked for.
    """

    def __init__(self, sequence: Sequence, config: Config, odometry: bool = False, sigma: bool = False) -> None:
        self._estimator = Replay(sequence)
        self._sigma = sigma
        self._odometry = odometry
        self._poses: dict[int, np.ndarray | None] = {}
        self._pipeline = Pipeline(self._estimator)
        self._config = config

    def __call__(self, step: Step) -> Answer:
        """The answer to the next step."""
        self._estimator.answer = step.sequence.coarse[step.frame]
        rgb, camera = step.sequence.rgb[step.frame], step.sequence.camera
        if self._odometry:
            self._poses[step.stamp_ns] = step.sequence.poses[step.frame]
        found = self._pipeline(
            rgb,
            camera,
            step.stamp_ns,
            lambda: self._scan(step),
            self._config,
            sigma=self._sigma,
            find_motion=lambda then_ns: self._moved(then_ns, step.stamp_ns),
        )
        return _answer(found, step.sequence.pixels)

    def _scan(self, step: Step) -> Scan:
        if step.points is None:
            raise Unusable("no scan")
        measured_ns = step.stamp_ns - round(step.age_s * 1e9)
        moved = self._moved(measured_ns, step.stamp_ns) if step.age_s > 0 else None
        if moved is not None:
            return Scan(step.points, moved @ step.camera_from_lidar, stamp_ns=measured_ns)
        return Scan(step.points, step.camera_from_lidar, age_s=step.age_s, stamp_ns=measured_ns)

    def _moved(self, then_ns: int, now_ns: int) -> np.ndarray | None:
        """(4, 4) now_from_then."""
        then, now = self._poses.get(then_ns), self._poses.get(now_ns)
        return None if then is None or now is None else np.linalg.inv(now) @ then


def _answer(found: FrameDepth, pixels: np.ndarray) -> Answer:
    def at(image: np.ndarray | None) -> np.ndarray | None:
        return None if image is None else image[pixels[:, 1], pixels[:, 0]]

    depth_m = at(found.depth_m)
    return Answer(
        np.full(len(pixels), np.nan, np.float32) if depth_m is None else depth_m,
        at(found.sigma_m),
        found.state,
        found.stage_s,
    )


class Smoothed:
    """Exponential smoothing of scale and shift, as users do it against flicker; the last ones hold without anchors."""

    def __init__(self) -> None:
        self._line: np.ndarray | None = None
        self._fit: MetricFit | None = None

    def __call__(self, fit: MetricFit | None) -> MetricFit | None:
        """The smoothed fit after a frame whose own is `fit`."""
        if fit is not None:
            line = np.array([fit.scale, fit.shift])
            self._line = line if self._line is None else (1 - _SMOOTHING) * self._line + _SMOOTHING * line
            self._fit = fit
        if self._fit is None or self._line is None:
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
        asked = Question(sequence.relative(frame), sequence.space, _none(), sequence.pixels[few])
        fit = MetricFit(sequence.space, *oracle_line(asked, truth_m[few]), 0, 0, math.nan)
        return _applied(fit, sequence, frame)


def _applied(fit: MetricFit | None, sequence: Sequence, frame: int) -> np.ndarray:
    if fit is None:
        return np.full(len(sequence.pixels), np.nan, np.float32)
    relative = sequence.relative(frame)[sequence.pixels[:, 1], sequence.pixels[:, 0]]
    return apply_fit(fit, relative, Config().fit.max_depth_m)


def _none() -> Anchors:
    empty = np.empty(0, np.float32)
    return Anchors(np.empty((0, 2), np.float32), empty, empty, 0)


def answers(case: Case, oracle: Oracle) -> Iterator[dict[str, Answer]]:
    """The answers of all methods, step by step; the slow ones that remember nothing only now and then in faults."""
    config = Config()
    plain = replace(config, fit=replace(config.fit, correction_limit=1.0))
    first = case.steps[0].sequence
    chain, chain_alone, smoothed = Chain(first, config, sigma=True), Chain(first, plain), Smoothed()
    informed = Chain(first, config, odometry=True)
    for number, step in enumerate(case.steps):
        sequence = step.sequence
        found = {OURS: chain(step), GLOBAL: chain_alone(step), ORACLE: Answer(oracle(sequence, step.frame))}
        if all(pose is not None for pose in sequence.poses):
            found[ODOMETRY] = informed(step)
        anchors = _none()
        if step.points is not None:
            anchors = find_anchors(step.points, step.camera_from_lidar, sequence.camera, config.range)
        asked = Question(sequence.relative(step.frame), sequence.space, anchors, sequence.pixels, sequence.own)
        fit = own_fit(asked)
        fit = None if isinstance(fit, Refusal) else fit
        found[PER_FRAME] = Answer(_applied(fit, sequence, step.frame))
        found[SMOOTHED] = Answer(_applied(smoothed(fit), sequence, step.frame))
        if number in case.scored and (case.group in (CLEAN, COHERENT) or number % _EVERY == 0):
            found[FORGETFUL] = Chain(sequence, config)(step)
            found |= {name: Answer(METHODS[name](asked)) for name in OTHERS}
        yield found
