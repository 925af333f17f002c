"""Does the LiDAR lie where the extrinsic says, and when its stamps say? A watch over many frames.

Each frame says where brightness changes beside the edges of its scan (`calibration_evidence`). An offset that stays is
a wrong extrinsic, one that goes with the motion of the picture is a wrong time; both are solved for together
(`calibration_fit`). Errors of frames that follow each other are alike, and a robot that stands still sees the same ones
for ever. So evidence is counted in looks: a look ends when the picture has become another one, and how sure the
estimate is follows from the scatter between looks, not between frames. Of pitch and roll the ground tells, too, as it
passes (`calibration_ground`); what is surer of the two counts.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.calibration_evidence import Evidence, frame_evidence
from marigold_ros.calibration_fit import ENDLESS, Group, Prior, Views, explained
from marigold_ros.calibration_ground import GroundWatch
from marigold_ros.geometry import Camera
from marigold_ros.picture_motion import PictureTrack, likeness

# A look ends at the earliest after the first of these times, when the picture is less like its first one than this;
# after the second time, when it is less like it than that.
_LOOK_ENDS = ((0.5, 0.35), (2.0, 0.6))
# A look this much like an earlier one adds to it: going to and fro shows nothing new.
_SEEN_BEFORE = 0.5
# A robot that creeps looks at one thing for long: fewer looks at most would be of that alone.
_LEAST_LOOKS, _MOST_LOOKS = 8, 120
# Motions of the picture are alike within this, in degrees per second, and large ones within half of themselves; a
# camera that shakes has so many in a look, and further ones are taken for the nearest of them.
_LIKE_MOTION_DEG, _MOST_MOTIONS = 3.0, 4
# Fewer clear edges than this in all looks together, each counted once per look, say nothing, whatever they agree on.
_LEAST_EDGES = 5.0
_MANY_ANCHORS = 4096
# What neighbouring looks have in common makes the estimate less sure than their scatter says, which few looks do not
# tell well either: about Student's t of half of them, for turns; a delay has to be known well anyway.
_INFLATION, _FEW = 1.5, 5.0
# What scenes and sensors have about them: errors in degrees that no number of looks takes out, of the turns and of what
# goes with the motion of the picture; and the size in degrees and seconds from which on an error matters.
_FLOOR_DEG, _MOTION_FLOOR_DEG = (0.12, 0.06, 0.12), 0.02
MATTERS = (0.3, 0.25, 0.4, 0.015)
# Where little turned, what scenes have about them looks like a long delay: one less sure than this is not told.
_MOST_DELAY_SIGMA_S = 0.02
# What a component has to be in standard deviations, floor and all, to be told; and by how much the pictures have to
# agree better with all of it than with errors half of what matters: where edges are few the best is one of several.
ALARM = 3.0
# The same of what the ground says, and the part of its comparisons' spread that no number of them takes out: a floor
# that shines or is not flat makes all of them wrong, and alike. And as how many clear edges it counts, times its
# variance, where its standard deviation is below that many degrees.
_GROUND_FLOOR_DEG, _GROUND_SPREAD, _GROUND_WEIGHT, _GROUND_SURE_DEG = 0.15, 0.4, 0.7, 0.35
# Within so many standard deviations of what the ground says edges are right, if it says so many from nought.
_GROUND_AGREES = 2.0
# Comparisons of the ground after which is judged, whether the picture has become another one or not.
_JUDGED_AFTER = 4
# A pitch or a roll is none if what stands upright is against it: a shelf's edges may all be wrong together.
_MOST_AGAINST = 0.1
# Looks in succession that say so.
_TIMES = 3
UNKNOWNS = ("pitch", "yaw", "roll", "delay")


@dataclass(frozen=True)
class Calibration:
    """What `looks` different views of the world say of extrinsic and time.

    `turn_deg` (3,): by how much the anchors are turned about the camera's x, y and z. `delay_s`: how much older than
    its stamp a scan is. Each with one standard deviation. `shift_px`: how far right and down of their places the
    anchors in the middle of the picture lie, by that turn. `problem`: a sentence, where it is certain that something is
    wrong.
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
    """The edges of the frames in which the picture stayed much the same, by how it moved."""

    first: np.ndarray
    began_ns: int
    groups: dict[tuple[int, int], Group] = field(default_factory=dict)

    def add(self, motion: tuple[int, int], group: Group) -> None:
        """Among those of the same motion, or of one like it."""
        if motion not in self.groups and len(self.groups) == _MOST_MOTIONS:
            motion = min(self.groups, key=lambda other: math.dist(other, motion))
        if motion in self.groups:
            self.groups[motion].add(group)
        else:
            self.groups[motion] = group.scaled(1.0)

    def once(self) -> dict[tuple[int, int], Group]:
        """Its groups, each edge counted once per look, not once per frame."""
        frames = sum(group.frames for group in self.groups.values())
        return {motion: group.scaled(1.0 / frames) for motion, group in self.groups.items()}


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
        self._ground = GroundWatch()
        self._new_ground = 0
        self._looks: deque[_Look] = deque(maxlen=_MOST_LOOKS)
        self._look: _Look | None = None
        self._suspected = 0
        self._frames = 0
        self.verdict: Calibration | None = None
        # Of the last frame, for who wants to draw it.
        self.evidence: Evidence | None = None
        self.motion: np.ndarray | None = None
        self.ground_deg: np.ndarray | None = None

    def begin(self, stamp_ns: int, camera: Camera) -> None:
        """A frame of this time is to come: one that goes back, or of another camera, starts anew."""
        if camera != self._camera or stamp_ns < self._newest_ns:
            self.reset()
            self._camera = camera

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
        moved = (0.0, 0.0) if self.motion is None else tuple(self.motion * age_s)
        # Of many anchors, one direction at a time is enough, and takes half the time.
        self._frames += 1
        axes = (0, 1) if len(anchors) <= _MANY_ANCHORS else (self._frames % 2,)
        self.evidence = frame_evidence(grey, camera, anchors, origin_m, moved, axes)
        self.ground_deg = self._ground.see(stamp_ns, self._track, camera, anchors)
        self._new_ground += self.ground_deg is not None
        over = self._look is not None and self._is_over(self._look, stamp_ns, thumb)
        if over:
            self._keep(self._look)
            self._look = None
        if over or self._new_ground == _JUDGED_AFTER:
            self._judge()
        if self._look is None:
            self._look = _Look(thumb, stamp_ns)
        if self.motion is not None:
            motion_deg = np.degrees(self.motion)
            right, down = np.rint(np.sign(motion_deg) * np.log2(1.0 + np.abs(motion_deg) / _LIKE_MOTION_DEG))
            self._look.add((int(right), int(down)), Group(self.evidence.sums, motion_deg))
        return self.verdict

    @staticmethod
    def _is_over(look: _Look, stamp_ns: int, thumb: np.ndarray) -> bool:
        age_s, alike = (stamp_ns - look.began_ns) * 1e-9, likeness(look.first, thumb)
        return any(age_s >= least_s and alike < most for least_s, most in _LOOK_ENDS)

    def _keep(self, look: _Look) -> None:
        """Among the looks, or in the earlier one that it resembles."""
        for earlier in self._looks:
            if likeness(earlier.first, look.first) > _SEEN_BEFORE:
                # As much as all that was seen here before, however long: what is mended, or slips, is not to drown.
                earlier.groups = earlier.once()
                for motion, group in look.once().items():
                    earlier.add(motion, group)
                return
        self._looks.append(look)

    def _judge(self) -> None:
        self._new_ground = 0
        looks, ground = [look.once() for look in self._looks if look.groups], self._ground.turn()
        if len(looks) < _LEAST_LOOKS and ground is None:
            return
        by_ground, prior = np.zeros(4, bool), Prior()
        if ground is not None:
            few = 1.0 + _FEW / ground.blocks
            inflated, floor = _INFLATION * few * ground.sigma_deg, _GROUND_SPREAD * ground.spread_deg
            ground_sigma = np.sqrt(inflated**2 + floor**2 + _GROUND_FLOOR_DEG**2)
            prior = _prior(ground.turn_deg, ground_sigma)
        estimate, sigma, certain = _by_edges(looks, prior)
        if ground is not None:
            # What edges are not certain of may be anything, however little it scatters; unless the ground agrees.
            off, wrong = np.abs(estimate[[0, 2]] - ground.turn_deg), np.abs(ground.turn_deg)
            certain[[0, 2]] |= (off < _GROUND_AGREES * ground_sigma) & (wrong > _GROUND_AGREES * ground_sigma)
            by_ground[[0, 2]] = (ground_sigma < sigma[[0, 2]]) | ~certain[[0, 2]]
            for i, turn_deg, sigma_deg in zip((0, 2), ground.turn_deg, ground_sigma, strict=True):
                if by_ground[i]:
                    estimate[i], sigma[i], certain[i] = turn_deg, sigma_deg, True
        pitch, yaw, roll, delay_s = map(float, estimate)
        sigmas = tuple(map(float, sigma))
        shift = self._camera.fx * math.radians(yaw), -self._camera.fy * math.radians(pitch)
        verdict = Calibration(len(looks), (pitch, yaw, roll), sigmas[:3], delay_s, sigmas[3], shift)
        told = certain & (np.abs(estimate) > MATTERS) & (np.abs(verdict.significance) > ALARM)
        self._suspected = self._suspected + 1 if told.any() else 0
        problem = None
        if self._suspected >= _TIMES:
            worst = max(np.flatnonzero(told), key=lambda i: abs(verdict.significance[i]))
            seen = f"{ground.count} comparisons of the ground" if by_ground[worst] else f"{len(looks)} views"
            problem = _problem(verdict, worst, seen)
        self.verdict = replace(verdict, problem=problem)


def _prior(turn_deg: np.ndarray, sigma_deg: np.ndarray) -> Prior:
    """What the ground says of pitch and roll (2,): what stands upright then tells a yaw from a roll."""
    prior = Prior()
    sure = sigma_deg < _GROUND_SURE_DEG
    known = np.array([0, 2])[sure]
    prior.mean[known], prior.off[known] = turn_deg[sure], sigma_deg[sure]
    prior.weight[known] = _GROUND_WEIGHT / sigma_deg[sure] ** 2
    return prior


def _by_edges(looks: Views, prior: Prior) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turns about x, y, z in degrees and a delay in seconds (4,), standard deviations (4,), and of which (4,) it is
    certain that they are no other ones.
    """
    if len(looks) < _LEAST_LOOKS:
        return np.zeros(4), np.full(4, ENDLESS), np.zeros(4, bool)
    found = explained(looks, 0.5 * np.array(MATTERS), prior)
    few = 1.0 + _FEW / len(looks)
    # What the floor makes up in time at the motions that were seen: where nothing turned, no time can be told.
    floor_s = _MOTION_FLOOR_DEG / max(found.motion_deg, _MOTION_FLOOR_DEG)
    inflated = found.scatter * _INFLATION * (few, few, few, 1.0)
    sigma = np.linalg.norm([inflated, found.held_back, (*_FLOOR_DEG, floor_s)], axis=0)
    certain = np.full(4, found.surer > ALARM)
    certain[:3] &= found.weight[:3] > _LEAST_EDGES
    certain[3] &= sigma[3] < _MOST_DELAY_SIGMA_S
    certain[[0, 2]] &= found.against < _MOST_AGAINST
    return found.estimate, sigma, certain


def _problem(found: Calibration, worst: int, seen: str) -> str:
    """What is wrong, in words, and what was `seen` of it."""
    sure = f"{abs(found.significance[worst]):.1f} standard deviations, {seen}"
    if UNKNOWNS[worst] == "delay":
        older = "older" if found.delay_s > 0 else "newer"
        return (
            f"the time offset looks wrong: scans are {abs(found.delay_s) * 1e3:.0f} ms {older} than their "
            f"stamps say, against the images ({sure}); check the clocks and the drivers' stamps, or add "
            f"{-found.delay_s:.3f} to the sensor's time_offset_s"
        )
    right, down = found.shift_px
    if UNKNOWNS[worst] == "roll":
        where = f"are turned by {abs(found.turn_deg[2]):.1f}° about the optical axis"
    elif UNKNOWNS[worst] == "yaw":
        where = f"lie {abs(right):.0f} px to the {'right' if right > 0 else 'left'}"
    else:
        where = f"lie {abs(down):.0f} px too {'low' if down > 0 else 'high'}"
    turn = "" if UNKNOWNS[worst] == "roll" else f", {abs(found.turn_deg[worst]):.1f}° of {UNKNOWNS[worst]}"
    return f"the extrinsic looks wrong: anchors {where}{turn} ({sure}); check camera_from_lidar"
