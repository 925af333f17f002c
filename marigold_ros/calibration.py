"""Does the LiDAR lie where the extrinsic says, and when its stamps say? A watch over many frames.

Each frame gives normal equations of the turn by which the anchors lie beside the picture (`calibration_evidence`). A
turn that stays is a wrong extrinsic, one that goes with the motion of the picture is a wrong time; both are solved for
together. Errors of frames that follow each other are alike, and a robot that stands still sees the same ones for ever.
So evidence is counted in looks: a look ends when the picture has become another one, and how sure the mean is follows
from the scatter between looks, not between frames.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.calibration_evidence import Evidence, frame_evidence
from marigold_ros.geometry import Camera
from marigold_ros.picture_motion import PictureTrack, likeness

# A look ends at the earliest after the first of these times, when the picture is less like its first one than this;
# after the second time, when it is less like it than that.
_LOOK_ENDS = ((0.5, 0.35), (2.0, 0.6))
# A look this much like an earlier one adds to it: going to and fro shows nothing new.
_SEEN_BEFORE = 0.5
# What remains of a look when the same is seen again.
_KEPT = 0.7
# A robot that creeps looks at one thing for long: fewer looks at most would be of that alone.
_LEAST_LOOKS, _MOST_LOOKS, _LEAST_S = 8, 120, 5.0
# Without evidence, 1 / (rad, rad, rad, s)^2 in squared pixels of the working picture.
_PRIOR = (1e3, 1e3, 1e3, 200.0)
# How far off a single edge is, in pixels of the working picture; the edges of one thing are wrong together.
_EDGE_PX = 0.7
# Fewer clear edges than this, counted once per look, say nothing, whatever they agree on.
_LEAST_EDGES = 30.0
_MANY_ANCHORS = 4096
# What neighbouring looks have in common makes the mean less sure than their scatter says, which few looks do not tell
# well either: about Student's t of half of them, for turns; a delay has to be known well anyway.
_INFLATION, _FEW = 1.5, 5.0
# What scenes and sensors have about them: errors in degrees that no number of looks takes out, of the turns and of what
# goes with the motion of the picture; and the size in degrees and seconds from which on an error matters.
_FLOOR_DEG, _MOTION_FLOOR_DEG = (0.18, 0.06, 0.3), 0.03
MATTERS = (0.2, 0.25, 0.5, 0.015)
# Where little turned, what scenes have about them looks like a long delay: one less sure than this is not told.
_MOST_DELAY_SIGMA_S = 0.015
# What a component has to be in standard deviations, floor and all, to be told.
ALARM = 3.0
# Looks in succession that say so.
_TIMES = 4
UNKNOWNS = ("pitch", "yaw", "roll", "delay")


@dataclass(frozen=True)
class Calibration:
    """What `looks` different views of the world say of extrinsic and time.

    `turn_deg` (3,): by how much the anchors are turned about the camera's x, y and z; at least, for textures draw the
    estimate towards nought, to about half. `delay_s`: how much older than its stamp a scan is, in the same sense.
    Each with one standard deviation. `shift_px`: how far right and down of their places the anchors in the middle of
    the picture lie, by that turn. `problem`: a sentence, where it is certain that something is wrong.
    """

    looks: int
    turn_deg: tuple[float, float, float]
    turn_sigma_deg: tuple[float, float, float]
    delay_s: float
    delay_sigma_s: float
    shift_px: tuple[float, float]
    problem: str | None = None

    @property
    def significance(self) -> tuple[float, float, float, float]:
        """Turns about x, y, z and delay in standard deviations."""
        pairs = zip((*self.turn_deg, self.delay_s), (*self.turn_sigma_deg, self.delay_sigma_s), strict=True)
        return tuple(value / sigma for value, sigma in pairs)


@dataclass
class _Look:
    """Sums of normal equations over the frames in which the picture stayed much the same."""

    matrix: np.ndarray
    vector: np.ndarray
    first: np.ndarray
    began_ns: int
    frames: int = 0


class CalibrationMonitor:
    """Collects evidence frame by frame and judges it look by look; one camera, one range sensor."""

    def __init__(self, track: PictureTrack | None = None) -> None:
        """track: of the same camera, where somebody else has one."""
        self._track = PictureTrack() if track is None else track
        self.reset()

    def reset(self) -> None:
        """Forget all: another camera, another time."""
        self._camera: Camera | None = None
        self._newest_ns = 0
        self._looks: deque[_Look] = deque(maxlen=_MOST_LOOKS)
        self._look: _Look | None = None
        self._began_ns = 0
        self._suspected = 0
        self._shrunk = 1.0
        self._frames = 0
        self.verdict: Calibration | None = None
        # Of the last frame, for who wants to draw it.
        self.evidence: Evidence | None = None
        self.motion: np.ndarray | None = None

    def begin(self, stamp_ns: int, camera: Camera) -> None:
        """A frame of this time is to come: one that goes back, or of another camera, starts anew."""
        if camera != self._camera or stamp_ns < self._newest_ns:
            self.reset()
            self._camera, self._began_ns = camera, stamp_ns

    def update(
        self,
        stamp_ns: int,
        rgb: np.ndarray,
        camera: Camera,
        anchors: Anchors,
        origin_m: np.ndarray,
        age_s: float = 0.0,
    ) -> Calibration | None:
        """Take a frame, (H, W, 3) uint8 with its anchors; gives the verdict so far, None while there is none.

        origin_m: (3,) where the LiDAR sits in the camera's frame; age_s: by how much the scan is known to be older than
        the image, and has not been moved.
        """
        if stamp_ns == self._newest_ns and camera == self._camera:
            return self.verdict
        self.begin(stamp_ns, camera)
        self._newest_ns = stamp_ns
        self._track.see(stamp_ns, rgb, camera)
        grey, thumb, self.motion = self._track.grey, self._track.thumb, self._track.motion
        self._shrunk = grey.shape[1] / camera.width
        moved = (0.0, 0.0) if self.motion is None else tuple(self.motion * age_s)
        # Of many anchors, one direction at a time is enough, and takes half the time.
        self._frames += 1
        axes = (0, 1) if len(anchors) <= _MANY_ANCHORS else (self._frames % 2,)
        self.evidence = frame_evidence(grey, camera, anchors, origin_m, moved, axes)
        if self._look is not None and self._is_over(self._look, stamp_ns, thumb):
            self._keep(self._look)
            self._look = None
            self._judge(stamp_ns)
        if self._look is None:
            self._look = _Look(np.zeros((4, 4)), np.zeros(4), thumb, stamp_ns)
        if self.motion is not None:
            right, down = self.motion
            # A scan that is older than its stamp lies where things were: against the motion of the picture.
            unknowns = np.column_stack([np.eye(3), (down, -right, 0.0)])
            self._look.frames += 1
            self._look.matrix += unknowns.T @ self.evidence.matrix @ unknowns
            self._look.vector += unknowns.T @ self.evidence.vector
        return self.verdict

    @staticmethod
    def _is_over(look: _Look, stamp_ns: int, thumb: np.ndarray) -> bool:
        age_s, alike = (stamp_ns - look.began_ns) * 1e-9, likeness(look.first, thumb)
        return any(age_s >= least_s and alike < most for least_s, most in _LOOK_ENDS)

    def _keep(self, look: _Look) -> None:
        """Among the looks, or in the earlier one that it resembles."""
        for earlier in self._looks:
            if likeness(earlier.first, look.first) > _SEEN_BEFORE:
                # What is mended, or slips, must not drown in all that was seen here before.
                earlier.matrix = _KEPT * earlier.matrix + look.matrix
                earlier.vector = _KEPT * earlier.vector + look.vector
                earlier.frames += look.frames
                return
        self._looks.append(look)

    def _delay_floor_s(self) -> float:
        """The time that the floor makes up at the motions that were seen: where nothing turned, no time can be told."""
        total = sum(look.matrix for look in self._looks) + np.diag(_PRIOR)
        of_turns = total[:3, :3]
        of_delay = total[3, 3] - total[3, :3] @ np.linalg.solve(of_turns, total[:3, 3])
        motion = math.sqrt(max(of_delay, 1e-9) / (0.5 * (of_turns[0, 0] + of_turns[1, 1])))
        return math.radians(_MOTION_FLOOR_DEG) / motion

    def _judge(self, stamp_ns: int) -> None:
        if len(self._looks) < _LEAST_LOOKS or (stamp_ns - self._began_ns) * 1e-9 < _LEAST_S:
            return
        estimate, sigma = _solved(self._looks)
        sizes = np.array([*np.degrees(estimate[:3]), estimate[3]])
        few = 1.0 + _FEW / len(self._looks)
        sigmas = np.hypot(
            _INFLATION * np.array([*np.degrees(few * sigma[:3]), sigma[3]]), (*_FLOOR_DEG, self._delay_floor_s())
        )
        shift = self._camera.fx * float(estimate[1]), -self._camera.fy * float(estimate[0])
        found = Calibration(
            len(self._looks), tuple(map(float, sizes[:3])), tuple(map(float, sigmas[:3])), float(sizes[3]),
            float(sigmas[3]), shift,
        )  # fmt: skip
        edges = np.diag(_once_each(self._looks))[:2] / (self._camera.fx * self._shrunk) ** 2
        enough = np.array([*edges, edges.sum(), edges.sum()]) > _LEAST_EDGES
        told = (np.abs(sizes) > MATTERS) & (np.abs(found.significance) > ALARM) & enough
        told[3] &= sigmas[3] < _MOST_DELAY_SIGMA_S
        wrong = list(np.flatnonzero(told))
        self._suspected = self._suspected + 1 if wrong else 0
        problem = _problem(found, wrong) if self._suspected >= _TIMES else None
        self.verdict = replace(found, problem=problem)


def _solved(looks: Sequence[_Look]) -> tuple[np.ndarray, np.ndarray]:
    """Turns in radians and delay in seconds (4,), and their standard deviations (4,).

    By leaving out one look at a time (jackknife): what rests on a single look is not sure, however clear that was.
    """
    matrices, vectors = np.array([look.matrix for look in looks]), np.array([look.vector for look in looks])
    matrix, vector = matrices.sum(axis=0) + np.diag(_PRIOR), vectors.sum(axis=0)
    estimate = np.linalg.solve(matrix, vector)
    without = np.linalg.solve(matrix - matrices, (vector - vectors)[..., None])[..., 0]
    variance = (len(looks) - 1) * ((without - estimate) ** 2).mean(axis=0)
    # Looks that agree by chance are no surer than their edges, each of which is one, in however many frames of a look.
    once = _once_each(looks) + np.diag(_PRIOR) * 1e-3
    return estimate, np.sqrt(variance + _EDGE_PX**2 * np.diag(np.linalg.inv(once)))


def _once_each(looks: Sequence[_Look]) -> np.ndarray:
    """(4, 4) normal matrix in which each edge counts once per look, not once per frame."""
    return sum(look.matrix / max(look.frames, 1) for look in looks)


def _problem(found: Calibration, wrong: list[int]) -> str:
    """What is wrong, in words; the most certain of it."""
    worst = max(wrong, key=lambda i: abs(found.significance[i]))
    sure = f"{abs(found.significance[worst]):.1f} standard deviations, {found.looks} views"
    if UNKNOWNS[worst] == "delay":
        older = "older" if found.delay_s > 0 else "newer"
        return (
            f"the time offset looks wrong: scans are at least {abs(found.delay_s) * 1e3:.0f} ms {older} than their "
            f"stamps say, against the images ({sure}); check the clocks and the drivers' stamps, or add "
            f"{-found.delay_s:.3f} to the sensor's time_offset_s"
        )
    right, down = found.shift_px
    if UNKNOWNS[worst] == "roll":
        where = f"are turned by at least {abs(found.turn_deg[2]):.1f}° about the optical axis"
    elif UNKNOWNS[worst] == "yaw":
        where = f"lie at least {abs(right):.0f} px to the {'right' if right > 0 else 'left'}"
    else:
        where = f"lie at least {abs(down):.0f} px too {'low' if down > 0 else 'high'}"
    turn = "" if UNKNOWNS[worst] == "roll" else f", {abs(found.turn_deg[worst]):.1f}° of {UNKNOWNS[worst]}"
    return f"the extrinsic looks wrong: anchors {where}{turn} ({sure}); check camera_from_lidar"
