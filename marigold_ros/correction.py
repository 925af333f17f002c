"""The correction of metric depth over time: made of each frame's anchors, or, without any, of the last ones.

A network's errors change with the view, but what was measured stays where it is. So while anchors are missing, the last
ones are moved to where they are now: by the camera's motion, where that is known, else with the picture, at the depth
they had. Anchors that contradict the last correction as a whole are held off once in the same way; said twice, they are
believed.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.field import Evidence, Field, agreement, evidence_of, fitted_field
from marigold_ros.geometry import Camera, seen_from
from marigold_ros.picture_motion import PictureTrack
from marigold_ros.tracker import HOLD, FindMotion, Metres

# After so many seconds half of a correction is left: where the picture's motion is known, and where the camera's is.
_HALF_S, _HALF_INFORMED_S = 1.0, 4.0
# Anchors agree with a correction up to this much in ln depth. Where this share of those that agreed in the frame before
# do so now, or less, they contradict it; unless more time has passed.
_SAME_LN, _CONTRADICTION, _SOON_NS = 0.2, 0.6, 500_000_000
_PROBLEM = "the anchors contradict the correction of the frame before: its own are used once more"


@dataclass(frozen=True)
class Correction:
    """What depth is brought to anchors by, and what it rests on.

    left: the share of `field` that counts. fresh: the anchors are this image's. problem: why they are not, though this
    image has some.
    """

    evidence: Evidence
    field: Field
    left: float
    fresh: bool
    problem: str | None = None


class Corrector:
    """Makes the corrections of one camera's frames."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: another camera, another time."""
        # The anchors that were last believed, of the image of this time, and the correction that they made, if any.
        self._anchors: Anchors | None = None
        self._stamp_ns = 0
        self._field: Field | None = None
        self._agreed = 0.0
        self._jumps = 0
        # The last scan, and whether it was held off.
        self._scan: Hashable = None
        self._held_off = False

    def __call__(
        self,
        stamp_ns: int,
        camera: Camera,
        fitted_m: np.ndarray | None,
        metres: Metres,
        anchors: Anchors | None,
        limit: float,
        track: PictureTrack,
        find_motion: FindMotion,
        scan: Hashable = None,
    ) -> Correction | None:
        """The correction of (H, W) `fitted_m` of the image of `stamp_ns`; None where nothing is known of one.

        anchors: those in the fit, if `metres` are fresh. limit: the largest factor on depth. track: that has seen the
        image. scan: tells scans apart; what one says in a second image is not said twice.
        """
        if fitted_m is None or stamp_ns < self._stamp_ns or not (metres.fresh or metres.state == HOLD):
            self.reset()
        if fitted_m is None:
            return None
        if not metres.fresh:
            return self._held(stamp_ns, camera, fitted_m, metres, limit, track, find_motion)
        evidence = evidence_of(fitted_m, anchors, metres.fit.evidence.sigma)
        if evidence is None:  # none of them lies on known depth, or near the fit
            return self._held(stamp_ns, camera, fitted_m, metres, limit, track, find_motion)
        again, self._scan = scan is not None and scan == self._scan, scan
        self._held_off = self._held_off if again else self._contradicted(stamp_ns, evidence, metres)
        if self._held_off:
            held = self._held(stamp_ns, camera, fitted_m, metres, limit, track, find_motion)
            if held is not None:
                return replace(held, problem=_PROBLEM)
            self._held_off = False
        field = fitted_field(evidence, limit)
        self._anchors, self._stamp_ns, self._field = anchors, stamp_ns, field if limit > 1.0 else None
        return Correction(evidence, field, 1.0, True)

    def _contradicted(self, stamp_ns: int, evidence: Evidence, metres: Metres) -> bool:
        """Whether far fewer of the anchors agree with the last correction than of the frame before did."""
        agreed, self._agreed = self._agreed, 0.0
        jumped, self._jumps = metres.jumps != self._jumps, metres.jumps
        if self._field is None or jumped:
            return False
        self._agreed = agreement(evidence, self._field, _SAME_LN)
        return stamp_ns - self._stamp_ns < _SOON_NS and self._agreed < _CONTRADICTION * agreed

    def _held(
        self,
        stamp_ns: int,
        camera: Camera,
        fitted_m: np.ndarray,
        metres: Metres,
        limit: float,
        track: PictureTrack,
        find_motion: FindMotion,
    ) -> Correction | None:
        """The correction by the last anchors, once more; what contradicts it again is believed."""
        self._field = None
        if self._anchors is None:
            return None
        motion, shift_px = find_motion(self._stamp_ns), track.shift_px(self._stamp_ns, stamp_ns)
        anchors = _moved(self._anchors, camera, motion, shift_px)
        evidence = None if anchors is None else evidence_of(fitted_m, anchors, metres.fit.evidence.sigma)
        if evidence is None:
            return None
        age_s = (stamp_ns - self._stamp_ns) * 1e-9
        half_s = _HALF_S if motion is None else _HALF_INFORMED_S
        return Correction(evidence, fitted_field(evidence, limit), 1.0 / (1.0 + (age_s / half_s) ** 2), False)


def _moved(
    anchors: Anchors, camera: Camera, now_from_then: np.ndarray | None, shift_px: np.ndarray | None
) -> Anchors | None:
    """Those of the anchors that are in the image now, where they are; None where nobody knows."""
    if now_from_then is not None:
        pixels, depth_m, seen = seen_from(anchors.pixels, anchors.depth_m, camera, now_from_then)
    elif shift_px is not None:
        pixels, depth_m = anchors.pixels + shift_px, anchors.depth_m
        seen = camera.contains(pixels)
    else:
        return None
    pixels, depth_m = pixels[seen].astype(np.float32), depth_m[seen].astype(np.float32)
    return replace(
        anchors, pixels=pixels, depth_m=depth_m, weight=anchors.weight[seen], noise_m=anchors.noise_m[seen],
        noise_px=anchors.noise_px[seen],
    )  # fmt: skip
