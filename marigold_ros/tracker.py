"""Metres over time: each frame's anchors weighed against what the last frames knew.

Scale and shift are never smoothed: the last metric map is carried over to the new relative depth (`metric_map`), and
what it says of scale and shift there is fused with the anchors by their covariances. An innovation gate keeps out what
contradicts it, until it is said twice. (Bar-Shalom et al., Estimation with Applications to Tracking and Navigation,
2001.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.config import FitConfig
from marigold_ros.metric import MetricFit, Refusal, fit_metric, judged, sample
from marigold_ros.metric_map import MetricMap, glance, relative_sigma
from marigold_ros.motion import Motion
from marigold_ros.robust_fit import Belief, NoLine, weigh

OK, DEGRADED, HOLD, RELATIVE, FAULT = STATES = ("OK", "DEGRADED", "HOLD", "RELATIVE", "FAULT")

# 99.9 % of chi-square with two degrees of freedom.
_GATE = 13.8
# Anchors that stand on their own know the scale, and fix depth to this, relative, one standard deviation, the median
# over the image.
_STRONG_SIGMA, _STRONG_RELIABILITY = 0.06, 0.5
# So many frames in a row with such anchors, in agreement, make a cold start good.
_SETTLED = 3


def never(fit: MetricFit) -> bool:
    """What contradicts a fit contradicts it."""
    return False


@dataclass(frozen=True)
class Metres:
    """What is known of the metres of one frame.

    fit: None where nothing is known, or too little (RELATIVE, FAULT). fresh: whether this frame's anchors are in it.
    sigma: its relative uncertainty, the median over the image, NaN without a fit. age_s: since anchors last were in it,
    None before the first time. problem: why the anchors of this frame are not in it, or it is not used. jumps: how
    often the metres started anew because anchors contradicted them twice.
    """

    state: str
    fit: MetricFit | None
    fresh: bool
    sigma: float
    age_s: float | None
    problem: str | None
    jumps: int


class MetricTracker:
    """Fuses each frame's anchors with what is known from the frames before; one camera, one checkpoint."""

    def __init__(self, space: str) -> None:
        self._space = space
        self._jumps = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything but the count of jumps: another time, another camera."""
        self._map: MetricMap | None = None
        self._map_ns = 0
        self._scan: Hashable = None
        self._rejected: MetricFit | None = None
        self._evidence_ns: int | None = None
        self._streak = 0

    def update(
        self,
        relative: np.ndarray,
        anchors: Anchors | None,
        config: FitConfig,
        motion: Motion,
        *,
        problem: str | None = None,
        fault: bool = False,
        own: MetricFit | None = None,
        scan: Hashable = None,
        explained: Callable[[MetricFit], bool] = never,
    ) -> Metres:
        """The metres of the (H, W) float32 `relative` of the image until which the `motion` is told.

        anchors: None where there are none, for the reason `problem`; `fault`: the reason will not pass by itself. own:
        a metric checkpoint's fit for this image. scan: tells scans apart; what one says in a second image is not said
        twice. explained: whether anchors too weak to stand on their own, though they contradict a fit, are where its
        correction has them.
        """
        known = self._carried_over(relative, config, motion)
        p = None if anchors is None else sample(relative, anchors.pixels)
        new = None if anchors is None else fit_metric(relative, anchors, self._space, config, own, shape=known, p=p)
        if isinstance(new, Refusal):
            new, problem, fault = None, new.reason, new.fault
        again, self._scan = scan is not None and scan == self._scan, scan
        here = glance(relative)
        fit, fresh, problem = self._weighed(here, known, new, problem, again, explained)
        if known is not None and anchors is not None and relative_sigma(here, fit) > config.max_sigma:
            # What was known is lost: what the anchors say by themselves, they need not say in the next frame only.
            alone = fit_metric(relative, anchors, self._space, config, own, p=p)
            if isinstance(alone, MetricFit) and relative_sigma(here, alone) <= config.max_sigma:
                fit, fresh, problem = self._weighed(here, None, alone, None, again, explained)
        fit = None if fit is None else judged(fit, anchors, p, config)
        return self._answer(motion.stamp_ns, relative, fit, fresh, problem, fault, config)

    def _carried_over(self, relative: np.ndarray, config: FitConfig, motion: Motion) -> MetricFit | None:
        """What is known of the metres before this frame's anchors are looked at."""
        if self._map is None:
            return None
        now_from_then, unknown = motion.since(self._map_ns)
        found = self._map.carried_to(
            relative, motion.elapsed_s(self._map_ns), unknown * config.speed_m_s, motion.camera, now_from_then,
            motion.shift_since(self._map_ns),
        )  # fmt: skip
        if found is None:
            self._map = self._rejected = None
            return None
        fit, step = found
        self._rejected = None if self._rejected is None else step(self._rejected)
        return fit

    def _weighed(
        self,
        here: np.ndarray,
        known: MetricFit | None,
        new: MetricFit | None,
        problem: str | None,
        again: bool,
        explained: Callable[[MetricFit], bool],
    ) -> tuple[MetricFit | None, bool, str | None]:
        """The fit for this frame, whether its anchors are in it, and why not.

        here: (K,) see `glance`. again: the anchors were in the last frame.
        """
        rejected, self._rejected = self._rejected, None
        if new is None:
            return known, False, problem
        strong = new.evidence.reliability >= _STRONG_RELIABILITY and relative_sigma(here, new) <= _STRONG_SIGMA
        if known is None:
            self._streak = int(strong)
            return new, True, problem
        fused, contradiction = _fused(new, known)
        if contradiction <= _GATE:
            if not again or not strong:
                self._streak = self._streak + 1 if strong else 0
            return fused, True, problem
        if not strong and explained(known):
            self._streak = 0
            return known, True, problem  # the network is wrong here by what was measured before
        if strong and not again and rejected is not None and _fused(new, rejected)[1] <= _GATE:
            self._jumps += 1
            self._streak = _SETTLED  # said twice, and what it contradicts is gone
            return new, True, problem
        self._rejected = rejected if again else new if strong else None
        problem = (
            f"the anchors contradict the frames before (chi-square {contradiction:.0f}, by chance up to {_GATE:g}): "
            "the last metres are held"
        )
        return known, False, problem

    def _answer(
        self,
        stamp_ns: int,
        relative: np.ndarray,
        fit: MetricFit | None,
        fresh: bool,
        problem: str | None,
        fault: bool,
        config: FitConfig,
    ) -> Metres:
        """Remember the fit for the next frame; say whether it may be used, and as what."""
        if fresh:
            self._evidence_ns = stamp_ns
        age_s = None if self._evidence_ns is None else (stamp_ns - self._evidence_ns) * 1e-9
        if fit is None or age_s > config.hold_s:
            self._map, self._streak = None, 0
            return Metres(FAULT if fault else RELATIVE, None, False, math.nan, age_s, problem, self._jumps)
        self._map, self._map_ns = MetricMap.of(fit, relative), stamp_ns
        sigma = relative_sigma(self._map.relative, fit)
        if sigma > config.max_sigma:
            # Nor remembered: what is as unsure as that wanders, and would seem sure where it came to be flat.
            self._map, self._streak = None, 0
            doubt = f"the metres are uncertain by {sigma:.0%} (fit.max_sigma={config.max_sigma:g})"
            problem = doubt if problem is None else f"{doubt}: {problem}"
            return Metres(FAULT if fault else RELATIVE, None, False, math.nan, age_s, problem, self._jumps)
        if fresh:
            state = OK if self._streak >= _SETTLED else DEGRADED
            return Metres(state, fit, True, sigma, age_s, problem, self._jumps)
        return Metres(HOLD, fit, False, sigma, age_s, problem, self._jumps)


def _fused(new: MetricFit, known: MetricFit) -> tuple[MetricFit, float]:
    """The anchors' fit with what was known, and how much they contradict each other (chi-square)."""
    scale, both, shift = known.covariance
    known_by = scale * shift - both**2
    information = (shift / known_by, -both / known_by, scale / known_by)
    try:
        line = weigh(new.evidence, Belief(known.scale, known.shift, information))
    except NoLine:
        return new, math.inf
    return replace(new, scale=line.scale, shift=line.shift, covariance=line.covariance), line.contradiction
