"""Faults in sequences: the frames and scans that the chain is given, one after the other. The truth stays whole."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from marigold_ros.config import RangeConfig
from marigold_ros.geometry import project, transformed, turned
from marigold_ros.metric_cases import SEED, TURNED, Fault, with_wrong_depths
from marigold_ros.metric_sequences import Sequence

CLEAN, WRONG, EXTRINSIC, DELAY = "clean", "wrong anchors", "extrinsic", "delay"
DROPOUT, RESTART, JUMP, COHERENT, DEGENERATE = "dropout", "restart", "jump", "coherent", "degenerate"
GROUPS = (CLEAN, WRONG, EXTRINSIC, DELAY, DROPOUT, RESTART, JUMP, COHERENT, DEGENERATE)
AFTER_CLEAN, COLD = "after 3 clean frames", "from a cold start"

SHARES = (0.1, 0.3, 0.5)
TURNS = (Fault("yaw 0.5°", turn_deg=(0.0, 0.5, 0.0)), *TURNED)
# Of the LiDAR along the camera's x, y and z axes.
SHIFTS_M = {"shifted 5 cm": (0.05, 0.0, 0.0), "shifted 10 cm": (0.10, 0.0, 0.0), "raised 10 cm": (0.0, -0.10, 0.0)}
DELAYS_S = (0.05, 0.10, 0.15, 0.20)
DROPOUTS_S = (0.3, 2.0, 5.0)
RESTART_S = 1.0
COUNTS = (1, 2, 3, 5, 10, 50)
# Faults that last are measured over so many frames, degenerate anchors over so many.
_LASTING, _DEGENERATE = 60, 20
# Seconds before and after what happens once.
_BEFORE_S, _AFTER_S = 1.5, 2.0
_AHEAD_S = 60.0
# A LiDAR that sees over what blocks the camera: this share of the points is farther by one factor, in a frame of ten.
_COHERENT_SHARE, _COHERENT_FACTOR, _COHERENT_EVERY = 0.65, 1.8, 10
_ONE_DEPTH = 0.02
_CLEAN_FIRST = 3


@dataclass(frozen=True)
class Step:
    """One image of a case: frame `frame` of `sequence` at `stamp_ns`, with `points` (N, 3) of a scan, None without.

    age_s: by how much the scan is known to be older than the image.
    """

    sequence: Sequence
    frame: int
    stamp_ns: int
    points: np.ndarray | None
    camera_from_lidar: np.ndarray
    age_s: float = 0.0


@dataclass(frozen=True)
class Case:
    """Steps with a fault of a `group`, of which those in `scored` count.

    recovers_at: the step from which the fault is over, or from which nothing is as before; None where it lasts.
    """

    group: str
    name: str
    steps: list[Step]
    scored: range
    recovers_at: int | None = None


# What a fault makes of a scan: (sequence, number of the frame) -> (N, 3) points.
Spoilt = Callable[[Sequence, int], np.ndarray]


def cases(sequence: Sequence, before: Sequence | None, groups: tuple[str, ...] = GROUPS) -> Iterator[Case]:
    """The cases of the groups, the clean one always first. `before`: what the sequence is cut to from, if anything."""
    yield Case(CLEAN, CLEAN, _steps(sequence, range(len(sequence))), range(len(sequence)))
    makers = {
        WRONG: _wrong, EXTRINSIC: _extrinsic, DELAY: _delayed, DROPOUT: _dropouts, RESTART: _restarts,
        COHERENT: _coherent, DEGENERATE: _degenerate,
    }  # fmt: skip
    for group in groups:
        if group == JUMP:
            yield from _jumps(sequence, before)
        elif group != CLEAN:
            yield from makers[group](sequence)


def _steps(sequence: Sequence, frames: range, scan: Spoilt | None = None) -> list[Step]:
    return [
        Step(
            sequence, frame, sequence.stamps_ns[frame],
            sequence.scans[frame] if scan is None else scan(sequence, frame), sequence.camera_from_lidar,
        )
        for frame in frames
    ]  # fmt: skip


def _random(sequence: Sequence, fault: str, frame: int) -> np.random.Generator:
    return np.random.default_rng([SEED, zlib.crc32(f"{sequence.name} {fault}".encode()), frame])


def _lasting(sequence: Sequence, limit: int = _LASTING) -> range:
    return range(min(limit, len(sequence)))


def _wrong(sequence: Sequence) -> Iterator[Case]:
    frames = _lasting(sequence)
    for share in SHARES:
        name = f"{share:.0%} wrong".replace("%", " %")

        def spoilt(of: Sequence, frame: int, share: float = share, name: str = name) -> np.ndarray:
            return with_wrong_depths(of.scans[frame], of.camera_from_lidar, share, _random(of, name, frame))

        yield Case(WRONG, name, _steps(sequence, frames, spoilt), frames)


def _extrinsic(sequence: Sequence) -> Iterator[Case]:
    frames = _lasting(sequence)
    clean = _steps(sequence, frames)
    wrong = {fault.name: turned(sequence.camera_from_lidar, fault.turn_deg) for fault in TURNS}
    for name, shift_m in SHIFTS_M.items():
        wrong[name] = sequence.camera_from_lidar.copy()
        wrong[name][:3, 3] += shift_m
    for name, camera_from_lidar in wrong.items():
        yield Case(EXTRINSIC, name, [replace(step, camera_from_lidar=camera_from_lidar) for step in clean], frames)


def _delayed(sequence: Sequence) -> Iterator[Case]:
    """Scans of earlier frames under the stamp of now, by delays that are whole frames; none where nothing moves."""
    if sequence.still:
        return
    for delay_s in DELAYS_S:
        back = round(delay_s / sequence.period_s)
        if back == 0 or abs(back * sequence.period_s - delay_s) > 0.1 * delay_s or back >= len(sequence):
            continue
        frames = range(back, min(_LASTING + back, len(sequence)))
        steps = _steps(sequence, frames, lambda of, frame, back=back: of.scans[frame - back])
        yield Case(DELAY, f"{delay_s * 1e3:.0f} ms late", steps, range(len(steps)))


def _dropouts(sequence: Sequence) -> Iterator[Case]:
    """No scans for a while."""
    for length_s in DROPOUTS_S:
        found = _interrupted(sequence, length_s)
        if found is not None:
            steps, gone = found
            yield Case(DROPOUT, f"no scans for {length_s:g} s", steps, gone, gone.stop)


def _restarts(sequence: Sequence) -> Iterator[Case]:
    """A LiDAR that is silent while it starts; its first scan begins in mid-turn. Or its clock, too, starts anew."""
    found = _interrupted(sequence, RESTART_S)
    if found is None:
        return
    steps, gone = found
    later = range(gone.start, len(steps))
    first = steps[gone.stop]
    part = first.points[first.points[:, 1] > 0]
    again = [*steps[: gone.stop], replace(first, points=part), *steps[gone.stop + 1 :]]
    yield Case(RESTART, f"LiDAR restarts, {RESTART_S:g} s", again, later, gone.stop)
    # Stamps that count from the sensor's start are of no image's time: to the node these scans are none.
    lost = [*steps[: gone.stop], *(replace(step, points=None) for step in steps[gone.stop :])]
    yield Case(RESTART, "LiDAR restarts, clock at zero", lost, later)


def _interrupted(sequence: Sequence, length_s: float) -> tuple[list[Step], range] | None:
    """Steps without scans for so long, and which these are; None where too few would come after.

    As in the node, the last scan serves while it is not older than range.max_age_s.
    """
    begins = round(_BEFORE_S / sequence.period_s)
    kept = round(RangeConfig().max_age_s / sequence.period_s)
    ends = begins + round(length_s / sequence.period_s)
    count = min(ends + round(_AFTER_S / sequence.period_s), len(sequence))
    if count < ends + 3:
        return None
    steps = _steps(sequence, range(count))
    for gone in range(begins, ends):
        last = steps[begins - 1].points if gone < begins + kept else None
        age_s = (steps[gone].stamp_ns - steps[begins - 1].stamp_ns) * 1e-9
        steps[gone] = replace(steps[gone], points=last, age_s=age_s)
    return steps, range(begins, ends)


def _jumps(sequence: Sequence, before: Sequence | None) -> Iterator[Case]:
    first = min(round(_BEFORE_S / sequence.period_s), len(sequence) // 2)
    after = min(round(_AFTER_S / sequence.period_s), len(sequence) - first)
    scored = range(first, first + after)
    again = _steps(sequence, range(first)) + _steps(sequence, range(after))
    yield Case(JUMP, "time starts again", again, scored, first)
    ahead = _steps(sequence, range(first + after))
    ahead[first:] = [replace(step, stamp_ns=step.stamp_ns + round(_AHEAD_S * 1e9)) for step in ahead[first:]]
    yield Case(JUMP, f"time jumps ahead {_AHEAD_S:.0f} s", ahead, scored, first)
    if before is None or before.camera != sequence.camera:
        return
    period_ns = round(sequence.period_s * 1e9)
    other = _steps(before, range(min(first, len(before))))
    cut = other + _steps(sequence, range(after))
    cut = [replace(step, stamp_ns=sequence.stamps_ns[0] + number * period_ns) for number, step in enumerate(cut)]
    yield Case(JUMP, "another scene", cut, range(len(other), len(cut)), len(other))


def _coherent(sequence: Sequence) -> Iterator[Case]:
    """Most of a scan wrong by one factor, in single frames: nothing in the frame itself shows it."""
    steps = _steps(sequence, _lasting(sequence))
    spoilt = range(_COHERENT_EVERY - 1, len(steps), _COHERENT_EVERY)
    for number in spoilt:
        points = sequence.scans[number].astype(np.float64)
        chosen = _random(sequence, COHERENT, number).permutation(len(points))[: round(_COHERENT_SHARE * len(points))]
        in_camera = transformed(points[chosen], sequence.camera_from_lidar) * _COHERENT_FACTOR
        points[chosen] = transformed(in_camera, np.linalg.inv(sequence.camera_from_lidar))
        steps[number] = replace(steps[number], points=points.astype(np.float32))
    if spoilt:
        yield Case(COHERENT, f"single frames, {_COHERENT_SHARE:.0%} by one factor".replace("%", " %"), steps, spoilt)


def _degenerate(sequence: Sequence) -> Iterator[Case]:
    """Scans that cannot fix scale and shift, once the chain has seen whole ones, and without that."""
    pickers: dict[str, Spoilt] = {}
    for count in COUNTS:
        pickers[f"{count} anchor{'s' if count > 1 else ''}"] = lambda of, frame, count=count: _few(of, frame, count)
    pickers |= {"one depth": _one_depth, "far half": _far_half, "one corner": _one_corner, "2D scan": _one_beam}
    for when, clean in ((AFTER_CLEAN, _CLEAN_FIRST), (COLD, 0)):
        for name, picked in pickers.items():
            frames = _lasting(sequence, clean + _DEGENERATE)
            steps = _steps(sequence, frames, lambda of, frame, f=picked, c=clean: _after(c, f, of, frame))
            yield Case(DEGENERATE, f"{name}, {when}", steps, range(clean, len(steps)))


def _after(clean: int, picked: Spoilt, of: Sequence, frame: int) -> np.ndarray:
    return of.scans[frame] if frame < clean else picked(of, frame)


def _in_view(of: Sequence, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of the scan that the camera may see, (N, 2) their pixels, (N,) their depths."""
    points = of.scans[frame]
    pixels, depth_m = project(transformed(points, of.camera_from_lidar), of.camera)
    with np.errstate(invalid="ignore"):
        seen = ((pixels >= 0) & (pixels <= (of.camera.width - 1, of.camera.height - 1))).all(axis=1)
    seen &= depth_m >= RangeConfig().min_depth_m
    return points[seen], pixels[seen], depth_m[seen]


def _few(of: Sequence, frame: int, count: int) -> np.ndarray:
    points, _, _ = _in_view(of, frame)
    return points[_random(of, f"{count} points", frame).permutation(len(points))[:count]]


def _one_depth(of: Sequence, frame: int) -> np.ndarray:
    points, _, depth_m = _in_view(of, frame)
    middle = np.median(depth_m) if len(depth_m) else 0.0
    return points[np.abs(depth_m - middle) <= _ONE_DEPTH * middle]


def _far_half(of: Sequence, frame: int) -> np.ndarray:
    points, _, depth_m = _in_view(of, frame)
    return points[depth_m >= np.median(depth_m)] if len(depth_m) else points


def _one_corner(of: Sequence, frame: int) -> np.ndarray:
    """The left quarter's lower half."""
    points, pixels, _ = _in_view(of, frame)
    return points[(pixels[:, 0] < of.camera.width / 4) & (pixels[:, 1] > of.camera.height / 2)]


def _one_beam(of: Sequence, frame: int) -> np.ndarray:
    """The beam next below the LiDAR's horizon, as a level 2D scanner would have on a floor that is not quite."""
    points, _, _ = _in_view(of, frame)
    elevation = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    below = elevation[elevation < 0]
    return points[np.abs(elevation - below.max()) < 0.25] if len(below) else points
