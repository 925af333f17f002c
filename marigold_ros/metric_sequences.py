"""Recordings as sequences on which metric depth is measured over time: what camera, network and LiDAR gave by frame.

The recordings are generated (`python -m trainer record`), so the truth is exact and dense. The network runs once per
frame; its answers are kept for all faults and methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera, project, resize, transformed
from marigold_ros.metric import MetricFit
from marigold_ros.metric_frames import SEQUENCES, Frame
from marigold_ros.recordings import (
    CAMERA_INFO,
    GROUND_TRUTH,
    IMAGE,
    RANGE,
    Recording,
    read_frames,
    recorded_camera,
    recorded_extrinsic,
)

# Every so many pixels of a row or column are asked about; the recordings know every second.
_TRUTH_STEP_PX = 8
# A camera that stands moves less than this, and turns less than this many radians.
_STANDS_M, _STANDS_RAD = 1e-3, 1e-4
# Less than this share of the pixels is no sky.
_LEAST_SKY = 0.05
# The truth is stored in millimetres.
_STEADY_M = 5e-3

# Relative depth of a frame, at its size or smaller, and a metric checkpoint's own fit for it; None where it has none.
Source = Callable[[Frame], "tuple[np.ndarray, MetricFit | None] | None"]


@dataclass(frozen=True)
class Sequence:
    """A recording as the chain sees it, n frames; what is held against its answers is `truth_m`.

    stamps_ns: n times. rgb: n images (H, W, 3) uint8. coarse: n maps (h, w) float32, affine in `space`, of the image's
    size or smaller, as the network answers. scans: n point clouds (N, 3) float32 in the LiDAR's frame. pixels: (M, 2)
    integer u, v that are asked about, the same every time. truth_m: (n, M) float32 metres, NaN where unknown or a point
    of the frame's scan lies. beyond: (n, M) bool, where no surface is within what a recording's truth holds (65 m):
    sky; nowhere where that is little of the sequence, as through a hall's windows. still: whether camera and scene
    stand. poses: n times (4, 4) odom_from_camera, or None where the recording has none.
    """

    name: str
    camera: Camera
    camera_from_lidar: np.ndarray
    space: str
    own: MetricFit | None
    stamps_ns: list[int]
    rgb: list[np.ndarray]
    coarse: list[np.ndarray]
    scans: list[np.ndarray]
    pixels: np.ndarray
    truth_m: np.ndarray
    beyond: np.ndarray
    still: bool
    poses: list[np.ndarray | None]

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def relative(self, frame: int) -> np.ndarray:
        """(H, W) float32 relative depth."""
        return resize(self.coarse[frame], self.camera.width, self.camera.height)

    @property
    def period_s(self) -> float:
        """Seconds from frame to frame."""
        return float(np.median(np.diff(self.stamps_ns))) * 1e-9 if len(self) > 1 else 0.1


def read_sequence(path: Path, source: Source, space: str, frames: int | None = None) -> Sequence:
    """The sequence of a recording, or of its first `frames`; raises `Unusable` where it lacks what is needed."""
    with Recording(path) as recording:
        missing = [topic for topic in (IMAGE, CAMERA_INFO, RANGE, GROUND_TRUTH) if topic not in recording.topics]
        if missing:
            raise Unusable(
                f"sequence {path}: has no {missing[0]}; give recordings that `python -m trainer record` made"
            )
        camera, camera_from_lidar = recorded_camera(recording), recorded_extrinsic(recording)
        name = path.resolve().name
        pixels = _asked(camera)
        stamps_ns, rgb, coarse, scans, truth, poses = [], [], [], [], [], []
        beyond, own = [], None
        for number, frame in enumerate(read_frames(recording)):
            if number == frames:
                break
            seen = Frame(
                SEQUENCES, name, frame.rgb, camera, frame.points, camera_from_lidar, frame.depth_m, number=number
            )
            found = source(seen)
            if found is None:
                raise Unusable(f"sequence {path}: frame {number} has no relative depth; take another --relative")
            if frame.rgb.shape[:2] != (camera.height, camera.width):
                raise Unusable(f"sequence {path}: images are not of the camera info's size; record it again")
            coarse.append(found[0])
            own = found[1]
            stamps_ns.append(frame.stamp_ns)
            rgb.append(frame.rgb)
            scans.append(frame.points)
            truth_m, behind = _truth(seen, pixels)
            truth.append(truth_m)
            beyond.append(behind)
            poses.append(frame.odom_from_camera)
    if not stamps_ns:
        raise Unusable(f"sequence {path}: has no whole frame; record it again")
    return Sequence(
        name, camera, camera_from_lidar, space, own, stamps_ns, rgb, coarse, scans, pixels, np.stack(truth),
        _sky(np.stack(beyond)), _stands(poses) and _unchanging(np.stack(truth)), poses,
    )  # fmt: skip


def _asked(camera: Camera) -> np.ndarray:
    """(M, 2) pixels u, v of the grid."""
    v, u = np.mgrid[0 : camera.height : _TRUTH_STEP_PX, 0 : camera.width : _TRUTH_STEP_PX]
    return np.stack([u.ravel(), v.ravel()], axis=1)


def _truth(frame: Frame, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M,) metres at the pixels without those of the scan's points, and (M,) bool where there is none to be known."""
    assert frame.depth_m is not None
    assert frame.points is not None
    truth_m = frame.depth_m[pixels[:, 1], pixels[:, 0]]
    hit = np.zeros(frame.depth_m.shape, bool)
    places, _ = project(transformed(frame.points, frame.camera_from_lidar), frame.camera)
    column, row = np.rint(places[frame.camera.contains(places)]).astype(np.intp).T
    hit[row, column] = True
    anchored = hit[pixels[:, 1], pixels[:, 0]]
    return np.where(anchored, np.float32(np.nan), truth_m), np.isnan(truth_m)


def _sky(beyond: np.ndarray) -> np.ndarray:
    return beyond if beyond.mean() >= _LEAST_SKY else np.zeros_like(beyond)


def _stands(poses: list[np.ndarray | None]) -> bool:
    """Whether there are poses, and all of them are one and the same."""
    if any(pose is None for pose in poses):
        return False
    first = np.linalg.inv(poses[0])
    apart = [first @ pose for pose in poses]
    turned = max(np.abs(pose[:3, :3] - np.eye(3)).max() for pose in apart)
    return turned < _STANDS_RAD and max(np.linalg.norm(pose[:3, 3]) for pose in apart) < _STANDS_M


def _unchanging(truth_m: np.ndarray) -> bool:
    """Whether the (n, M) metres are the same in all frames."""
    always = np.isfinite(truth_m).all(axis=0)
    return bool(np.ptp(truth_m[:, always], axis=0).max(initial=0.0) < _STEADY_M)
