"""Anchors of earlier images, where they are now: they serve where an image has none of its own, for a while."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from marigold_ros.anchors import Anchors, at_random
from marigold_ros.field import MOST_ANCHORS, Evidence, beside
from marigold_ros.geometry import seen_from
from marigold_ros.metric import FittedDepth
from marigold_ros.motion import Motion

# After so many seconds half of what an anchor said is left: where the picture's motion is known, and the camera's. What
# is less than a part of it is forgotten.
_HALF_S, _HALF_INFORMED_S = 1.0, 4.0
_LEAST = 0.05
# So many have room beside however many of an image's own.
_MOST_BESIDE = 1024
# Something else is there now where the fit, since an anchor was measured, has gone farther by more than this, or come
# nearer by more than so many of its own sigmas, within these bounds, all in ln. What is near must not be pushed away;
# what goes farther may as well be the network, which is not sure of its edges.
_FARTHER_LN, _NEARER_SIGMAS, _NEARER_LN = 0.5, 2.5, (0.08, 0.25)


@dataclass(frozen=True)
class _Held:
    """N anchors in an image: `pixels` (N, 2), `depth_m`, `weight`, `age` in half-lives, and what they `said` when they
    were measured, ln of measured over fitted depth, all float32.
    """

    pixels: np.ndarray
    depth_m: np.ndarray
    weight: np.ndarray
    age: np.ndarray
    said: np.ndarray

    def of(self, chosen: np.ndarray) -> _Held:
        """Some of them, (N,) bool."""
        places = np.flatnonzero(chosen)  # taking them is several times as fast as choosing them
        parts = (self.pixels, self.depth_m, self.weight, self.age, self.said)
        return _Held(*(part.take(places, axis=0) for part in parts))

    @property
    def left(self) -> np.ndarray:
        """(N,) the share of each that counts."""
        return 1.0 / (1.0 + np.square(self.age))


class AnchorMemory:
    """The anchors of one camera that were last believed."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        # What was believed last, as long as nobody has asked for it, and what was made of it then.
        self._evidence: Evidence | None = None
        self._held: _Held | None = None
        self._stamp_ns = 0

    def remember(self, stamp_ns: int, evidence: Evidence) -> None:
        """Keep what is believed of the evidence of the image of `stamp_ns`, and nothing else."""
        self._evidence, self._held, self._stamp_ns = evidence, None, stamp_ns

    def move(self, motion: Motion) -> None:
        """Move those held to where they are in the image until which the `motion` is told. Where it is not known they
        stay: it may be until the next image.
        """
        if self._evidence is not None:
            self._held, self._evidence = _believed(self._evidence), None
        if self._held is None or self._stamp_ns == motion.stamp_ns:
            return
        moved = _moved(self._held, self._stamp_ns, motion)
        if moved is not None:
            self._held, self._stamp_ns = moved, motion.stamp_ns

    def beside(self, fresh: Anchors, fitted: FittedDepth, sigma: float, motion: Motion) -> Anchors:
        """The anchors of an image, and where it has none those held, see `at`: a part of all that count at least."""
        held = self.at(fitted, sigma, motion, fresh.pixels)
        if held is None:
            return fresh
        # Of many any may go, for they are in no order.
        count = min(len(held), max(_MOST_BESIDE, MOST_ANCHORS - len(fresh)))
        some = at_random(len(fresh), MOST_ANCHORS - count)
        arrays = ("pixels", "depth_m", "weight", "noise_m", "noise_px", "left", "said")
        both = {name: np.concatenate([getattr(fresh, name)[some], getattr(held, name)[:count]]) for name in arrays}
        return Anchors(**both, seen=fresh.seen + count)

    def at(self, fitted: FittedDepth, sigma: float, motion: Motion, taken: np.ndarray | None = None) -> Anchors | None:
        """Those in the image whose depth is `fitted` and until which the `motion` is told; None if none are, or it is
        not known. sigma: the fit's relative error at anchors. taken: none beside these pixels (N, 2).
        """
        self.move(motion)
        if self._held is None or self._stamp_ns != motion.stamp_ns:
            return None
        held = self._held if taken is None else self._held.of(~beside(self._held.pixels, taken, fitted.shape))
        held = held.of(_still_there(held, fitted, sigma)) if len(held.depth_m) > 0 else held
        if len(held.depth_m) == 0:
            return None
        noise = np.zeros(len(held.depth_m), np.float32)  # their weight has it
        return Anchors(held.pixels, held.depth_m, held.weight, len(noise), noise, noise, held.left, held.said)


def _believed(evidence: Evidence) -> _Held:
    """Those that those around do not call wrong."""
    said = np.where(evidence.fresh, evidence.residual, evidence.said)
    age = np.sqrt(1.0 / evidence.left - 1.0)
    return _Held(evidence.pixels, evidence.depth_m, evidence.weight, age, said).of(evidence.trust > 0)


def _still_there(held: _Held, fitted: FittedDepth, sigma: float) -> np.ndarray:
    """(N,) bool: the anchors where the fit sees no other surface than when they were measured."""
    with np.errstate(invalid="ignore", divide="ignore"):
        change = np.log(held.depth_m / fitted.at(held.pixels)) - held.said
        nearer_ln = np.clip(_NEARER_SIGMAS * sigma, *_NEARER_LN)
        return (change < nearer_ln) & (change > -_FARTHER_LN)


def _moved(held: _Held, then_ns: int, motion: Motion) -> _Held | None:
    """Those that are in the image now, where they are; None where nobody knows."""
    now_from_then, _ = motion.since(then_ns)
    if now_from_then is not None:
        pixels, depth_m, seen = seen_from(held.pixels, held.depth_m, motion.camera, now_from_then)
        half_s = _HALF_INFORMED_S
    else:
        shift_px = motion.shift_since(then_ns)
        if shift_px is None:
            return None
        pixels, depth_m, half_s = held.pixels + shift_px, held.depth_m, _HALF_S
        seen = motion.camera.contains(pixels)
    age = held.age + np.float32(motion.elapsed_s(then_ns) / half_s)
    moved = replace(held, pixels=pixels.astype(np.float32), depth_m=depth_m.astype(np.float32), age=age)
    return moved.of(seen & (moved.left > _LEAST))
