"""A sensor that moved while it measured: each point from its own time to the image's.

A spinning LiDAR takes a tenth of a second for a scan; on a robot that turns by 60 degrees a second, its first and its
last point lie six degrees apart of where they would have been seen at one time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np

from marigold_ros.compiled import FloatRows, Ints, compiled

# Times within a scan at which it is asked where the sensor was; in between, it is held to move evenly.
_KNOTS = 5
# Where all points have one time, how fast the sensor moves is seen from this long before.
_LOOK_BACK_S = 0.05
# Poses between which points do not move any more: of 0.1 s, 0.4 ms each.
_STEPS = 256
# A sensor that moves less than this within its sweep stands: a thousandth of a degree, a tenth of a millimetre.
_STILL_RAD, _STILL_M = 2e-5, 1e-4


@dataclass(frozen=True)
class Sweep:
    """Where the sensor was while it measured.

    `times_s`, (K,) float64 increasing, K >= 2, from the scan's stamp on; `camera_from_sensor`, (K, 4, 4), from the
    sensor at these times into the camera's optical frame at the image's time. `time_error_s` is one standard deviation
    of what is not known of a point's time.
    """

    times_s: np.ndarray
    camera_from_sensor: np.ndarray
    time_error_s: float

    def equals(self, other: Sweep) -> bool:
        """Whether it is the same motion."""
        return (
            self.time_error_s == other.time_error_s
            and np.array_equal(self.times_s, other.times_s)
            and np.array_equal(self.camera_from_sensor, other.camera_from_sensor)
        )

    @cached_property
    def turned_rad(self) -> float:
        """By how much the sensor turned from the first of the times to the last, all of the way."""
        return float(np.linalg.norm(self.turns, axis=1).sum())

    @cached_property
    def moved_m(self) -> float:
        """How far the sensor went from the first of the times to the last, all of the way."""
        return float(np.linalg.norm(np.diff(self.camera_from_sensor[:, :3, 3], axis=0), axis=1).sum())

    @cached_property
    def turns(self) -> np.ndarray:
        """(K - 1, 3) rotation vectors in radians from each time to the next, in the sensor's frame."""
        rotations = self.camera_from_sensor[:, :3, :3]
        return np.stack([cv2.Rodrigues(a.T @ b)[0][:, 0] for a, b in pairwise(rotations)])

    @property
    def still(self) -> bool:
        """Whether one pose serves for all points."""
        return self.turned_rad < _STILL_RAD and self.moved_m < _STILL_M

    def pixel_variance(self, depth_m: np.ndarray, focal_px: float) -> np.ndarray:
        """(N,) squared pixels by which points at these depths may be misplaced for the time that is not known."""
        lasted_s = self.times_s[-1] - self.times_s[0]
        turn_rad_s, speed_m_s = self.turned_rad / lasted_s, self.moved_m / lasted_s
        return (focal_px * self.time_error_s) ** 2 * (turn_rad_s**2 + np.square(speed_m_s / depth_m))


def first_and_last_s(offset_s: np.ndarray | None) -> tuple[float, float]:
    """Of points that have (N,) `offset_s`; the stamp's time where all have that, or where there are none."""
    if offset_s is None or len(offset_s) == 0:
        return 0.0, 0.0
    return float(offset_s.min()), float(offset_s.max())


def sweep_through(
    find_pose: Callable[[float], np.ndarray | None], offset_s: np.ndarray | None, time_error_s: float
) -> Sweep | None:
    """How a sensor moved whose points have (N,) `offset_s`, or one time; None if not known. The rest as in `Sweep`.

    find_pose: gives one of `camera_from_sensor`, None where it is not known; such times are left out.
    """
    begin_s, end_s = first_and_last_s(offset_s)
    several = end_s > begin_s
    asked_s = np.linspace(begin_s, end_s, _KNOTS) if several else np.array([begin_s - _LOOK_BACK_S, begin_s])
    poses = {time_s: find_pose(time_s) for time_s in asked_s.tolist()}
    known = {time_s: pose for time_s, pose in poses.items() if pose is not None}
    if len(known) < 2:
        return None
    return Sweep(np.array(list(known)), np.stack(list(known.values())), time_error_s)


def may_be_seen(offset_s: np.ndarray, sweep: Sweep, cone_rad: float) -> tuple[float, float]:
    """A share and a slack in metres, for a cheap look at all points of a spinning LiDAR, most of which no camera sees.

    What is within `cone_rad` of the camera's optical axis has, if it had been measured at the first of the times, at
    least this share of its distance to the camera as depth, less the slack. (By at most theta and m between the first
    of the times and any other: z >= r cos(cone + theta) - 2 m.)
    """
    lasted_s = sweep.times_s[-1] - sweep.times_s[0]
    farthest_s = max(abs(time_s - sweep.times_s[0]) for time_s in first_and_last_s(offset_s))
    beyond = max(1.0, farthest_s / lasted_s)
    return math.cos(min(cone_rad + beyond * sweep.turned_rad, math.pi)), 2 * beyond * sweep.moved_m


def moved(points: np.ndarray, offset_s: np.ndarray, sweep: Sweep) -> np.ndarray:
    """(N, 3) float32 points, measured at (N,) `offset_s`, in the camera's frame at the image's time."""
    if len(points) == 0:
        return points
    begin_s, end_s = first_and_last_s(offset_s)
    if end_s <= begin_s:
        end_s = begin_s + 1e-6
    poses = poses_at(np.linspace(begin_s, end_s, _STEPS), sweep).astype(np.float32).reshape(_STEPS, 12)
    step = ((offset_s - np.float32(begin_s)) * np.float32((_STEPS - 1) / (end_s - begin_s)) + 0.5).astype(np.int64)
    return _in_poses(np.ascontiguousarray(points), step, poses)


def _in_poses_by_numpy(points: np.ndarray, step: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """(N, 3) float32 points, each moved by one of the poses (S, 12), rows of three by four: that which `step` names."""
    x, y, z = points.T
    result = np.empty_like(points)
    # Number by number: (N, 3, 4) at once would be a megabyte of fresh memory per scan, which costs more than the sums.
    for axis in range(3):
        a, b, c, d = (np.ascontiguousarray(poses[:, 4 * axis + i])[step] for i in range(4))
        a *= x
        b *= y
        c *= z
        a += b
        a += c
        a += d
        result[:, axis] = a
    return result


@compiled(_in_poses_by_numpy)
def _in_poses(points: FloatRows, step: Ints, poses: FloatRows) -> np.ndarray:
    result = np.empty((len(points), 3), np.float32)
    for i in range(len(points)):
        pose, x, y, z = poses[max(min(step[i], len(poses) - 1), 0)], points[i, 0], points[i, 1], points[i, 2]
        for axis in range(3):
            first = 4 * axis
            result[i, axis] = pose[first] * x + pose[first + 1] * y + pose[first + 2] * z + pose[first + 3]
    return result


def poses_at(times_s: np.ndarray, sweep: Sweep) -> np.ndarray:
    """(S, 3, 4) float64 poses: between two known ones, and beyond the ends, at constant speed and turn."""
    known_s, known = sweep.times_s, sweep.camera_from_sensor
    before = np.clip(np.searchsorted(known_s, times_s, side="right") - 1, 0, len(known_s) - 2)
    share = ((times_s - known_s[before]) / (known_s[before + 1] - known_s[before]))[:, None, None]
    begin, end = known[:-1], known[1:]
    poses = np.empty((len(times_s), 3, 4))
    poses[:, :, :3] = begin[before, :3, :3] @ _rotations(sweep.turns[before] * share[..., 0])
    poses[:, :, 3] = begin[before, :3, 3] + share[..., 0] * (end - begin)[before, :3, 3]
    return poses


def _rotations(vectors: np.ndarray) -> np.ndarray:
    """(S, 3) rotation vectors in radians -> (S, 3, 3), by Rodrigues' formula."""
    angle = np.linalg.norm(vectors, axis=1)
    x, y, z = (vectors / np.maximum(angle, 1e-12)[:, None]).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    sine, versine = np.sin(angle)[:, None, None], (1.0 - np.cos(angle))[:, None, None]
    return np.eye(3) + sine * cross + versine * (cross @ cross)
