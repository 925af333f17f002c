"""The correction of metric depth over time: made of each frame's anchors, and of earlier ones where it has none.

A network's errors change with the view, but what was measured stays where it is. So anchors are remembered, and moved
to where they are now: by the camera's motion, where that is known, else with the picture, at the depth they had. They
serve where a frame has no anchors of its own, and count less and less. Anchors that contradict the last correction as
a whole are held off once; said twice, they are believed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from marigold_ros.anchor_memory import AnchorMemory
from marigold_ros.anchors import Anchors
from marigold_ros.field import Evidence, Field, agreement, evidence_of, fitted_field
from marigold_ros.metric import FittedDepth
from marigold_ros.motion import Motion
from marigold_ros.tracker import HOLD, Metres

# Anchors agree with a correction up to this much in ln depth. Where this share of those that agreed in the frame before
# do so now, or less, they contradict it; unless more time has passed.
_SAME_LN, _CONTRADICTION, _SOON_NS = 0.2, 0.6, 500_000_000
# So many of the anchors that agree with a correction are explained by it.
_EXPLAINED = 0.8
# Fewer are no whole that could.
_MANY = 20
_PROBLEM = "the anchors contradict the correction of the frame before: its own are used once more"


@dataclass(frozen=True)
class Correction:
    """What depth is brought to anchors by, and what it rests on.

    fresh: some of the anchors are this image's. problem: why they are not, though this image has some.
    """

    evidence: Evidence
    field: Field
    fresh: bool
    problem: str | None = None


class Corrector:
    """Makes the corrections of one camera's frames."""

    def __init__(self) -> None:
        self._memory = AnchorMemory()
        self.reset()

    def reset(self) -> None:
        """Forget everything: another camera, another time."""
        self._memory.reset()
        # The correction that was last made of anchors that were new then, if any, and how many of them agreed with the
        # one before.
        self._stamp_ns = 0
        self._field: Field | None = None
        self._agreed = 0.0
        self._jumps = 0
        # The last scan, and whether it was held off.
        self._scan: Hashable = None
        self._held_off = False

    def get_ready(self, motion: Motion) -> None:
        """Do what can be done for the image until which the `motion` is told before its depth is there."""
        self._memory.move(motion)

    def __call__(
        self,
        fitted: FittedDepth | None,
        metres: Metres,
        anchors: Anchors | None,
        limit: float,
        motion: Motion,
        scan: Hashable = None,
    ) -> Correction | None:
        """The correction of the `fitted` depth of the image until which the `motion` is told; None where none is known.

        anchors: those in the fit, if `metres` are fresh. limit: the largest factor on depth. scan: tells scans apart;
        what one says in a second image is not said twice.
        """
        if fitted is None or not (metres.fresh or metres.state == HOLD):
            self.reset()
            return None
        stamp_ns = motion.stamp_ns
        sigma = metres.fit.evidence.sigma
        if metres.fresh:
            evidence = evidence_of(fitted, self._memory.beside(anchors, fitted, sigma, motion), sigma)
            # Where none of this image's lies on known depth, near the fit, they say nothing.
            if evidence is not None and evidence.fresh.any():
                held = self._instead(evidence, metres, scan, stamp_ns, lambda: self._held(fitted, sigma, limit, motion))
                return held or self._followed(stamp_ns, evidence, limit)
        return self._held(fitted, sigma, limit, motion)

    def explains(self, fitted: FittedDepth, anchors: Anchors, limit: float, motion: Motion) -> bool:
        """Whether most anchors are where remembered ones bring the `fitted` depth to.

        Few anchors may contradict a fit though nothing is wrong with them: where the network is wrong.
        """
        sigma = fitted.fit.evidence.sigma
        held = self._memory.at(fitted, sigma, motion)
        remembered = None if held is None else evidence_of(fitted, held, sigma)
        evidence = evidence_of(fitted, anchors, sigma)
        if remembered is None or evidence is None:
            return False
        return agreement(evidence, fitted_field(remembered, limit), _SAME_LN) >= _EXPLAINED

    def _followed(self, stamp_ns: int, evidence: Evidence, limit: float) -> Correction:
        """The correction by anchors of this image."""
        field = fitted_field(evidence, limit)
        self._memory.remember(stamp_ns, evidence)
        self._stamp_ns, self._field = stamp_ns, field if limit > 1.0 else None
        return Correction(evidence, field, True)

    def _held(self, fitted: FittedDepth, sigma: float, limit: float, motion: Motion) -> Correction | None:
        """The correction by remembered anchors alone; what contradicts it again is believed."""
        self._field = None
        held = self._memory.at(fitted, sigma, motion)
        evidence = None if held is None else evidence_of(fitted, held, sigma)
        return None if evidence is None else Correction(evidence, fitted_field(evidence, limit), False)

    def _instead(
        self,
        evidence: Evidence,
        metres: Metres,
        scan: Hashable,
        stamp_ns: int,
        find_held: Callable[[], Correction | None],
    ) -> Correction | None:
        """The correction by remembered anchors, where those of this image contradict it as a whole and have to wait
        until they are confirmed; a scan's answer stays the same.
        """
        again, self._scan = scan is not None and scan == self._scan, scan
        if again:
            held = find_held() if self._held_off else None
        else:
            agreed, self._agreed = self._agreed, 0.0
            held = self._contradicted(evidence, metres, stamp_ns, agreed, find_held)
        self._held_off = held is not None
        return None if held is None else replace(held, problem=_PROBLEM)

    def _contradicted(
        self,
        evidence: Evidence,
        metres: Metres,
        stamp_ns: int,
        agreed: float,
        find_held: Callable[[], Correction | None],
    ) -> Correction | None:
        """What is contradicted because far fewer of the anchors agree with it than the share `agreed` before."""
        jumped, self._jumps = metres.jumps != self._jumps, metres.jumps
        fresh = evidence if evidence.fresh.all() else evidence.of(evidence.fresh)
        if self._field is None or jumped or len(fresh.residual) < _MANY:
            return None
        self._agreed = agreement(fresh, self._field, _SAME_LN)
        if stamp_ns - self._stamp_ns >= _SOON_NS or self._agreed >= _CONTRADICTION * agreed:
            return None
        # That field stayed where it was in the image. Where the camera turned fast, it may be that.
        held = find_held()
        if held is not None:
            self._agreed = max(self._agreed, agreement(fresh, held.field, _SAME_LN))
        return held if self._agreed < _CONTRADICTION * agreed else None
