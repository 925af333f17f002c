"""Cases for the fit of metres: anchors in some pattern, with some fault, and truth that they do not give away.

A pattern picks the points that the sensor sees and the pixels that are held out: whole beams or rows at a distance, or
64-pixel blocks of a checkerboard; never random neighbours of anchors. A fault then spoils the points or the extrinsic,
and `find_anchors` makes anchors of them as in the node. The truth stays whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from marigold_ros.anchors import Anchors, find_anchors
from marigold_ros.beams import beam_of_each_point, every_nth_beam
from marigold_ros.config import RangeConfig
from marigold_ros.geometry import backproject, pixel_rays, project, transformed, turned
from marigold_ros.metric_frames import Frame
from marigold_ros.real_data import KITTI

SEED = 0
BLOCK_PX = 64
KEPT_BEAMS = (4, 16, 32)
KITTI_POINTS = (50, 200, 1000)
LINES = 16
INDOOR_POINTS = 500
# Held-out rows keep this distance from the lines; every so many pixels of a row or column are asked about.
_LINE_GAP_PX = 8
_TRUTH_STEP_PX = 4
# Pixels between the points of a line: a 2D scanner of 0.25 degrees at the indoor camera's focal length.
_LINE_STEP_PX = 2
# Depth factors of wrong anchors: most are too near (rain, dust, things in the way), the rest too far (glass).
_NEAR_SHARE, _NEAR_FACTORS, _FAR_FACTORS = 0.6, (0.15, 0.7), (1.4, 3.0)


@dataclass(frozen=True)
class Fault:
    """What is wrong with the points: a share of wrong depths, or the LiDAR turned about the camera's x, y and z."""

    name: str
    wrong: float = 0.0
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)


CLEAN = Fault("clean")
WRONG = (Fault("10 % wrong", wrong=0.1), Fault("30 % wrong", wrong=0.3), Fault("50 % wrong", wrong=0.5))
TURNED_1_DEG = (
    Fault("yaw 1°", turn_deg=(0.0, 1.0, 0.0)),
    Fault("pitch 1°", turn_deg=(1.0, 0.0, 0.0)),
    Fault("pitch -1°", turn_deg=(-1.0, 0.0, 0.0)),
)
TURNED = (*TURNED_1_DEG, Fault("yaw 2°", turn_deg=(0.0, 2.0, 0.0)))
FAULTS = (CLEAN, *WRONG, *TURNED)


@dataclass(frozen=True)
class Pattern:
    """Which points of `frame` the sensor sees, (N, 3) float32 in its own frame, and the truth that is held out.

    truth_m: (H, W) float32 metres, NaN where unknown or not asked about; never known at the pixel of a point.
    """

    frame: Frame
    name: str
    points: np.ndarray
    truth_m: np.ndarray


@dataclass(frozen=True)
class Case:
    """A pattern with a fault: what the fit is given, and what its answer is held against."""

    pattern: Pattern
    fault: Fault
    anchors: Anchors


def patterns(frame: Frame) -> Iterator[Pattern]:
    """All patterns of a frame, by its dataset."""
    yield from (_kitti if frame.dataset == KITTI else _indoor)(frame)


def cases(pattern: Pattern, faults: tuple[Fault, ...] = FAULTS) -> Iterator[Case]:
    """The pattern with each fault, by fixed seeds."""
    frame = pattern.frame
    for fault in faults:
        random = np.random.default_rng([SEED, zlib.crc32(f"{frame.name} {pattern.name} {fault.name}".encode())])
        points = with_wrong_depths(pattern.points, frame.camera_from_lidar, fault.wrong, random)
        extrinsic = turned(frame.camera_from_lidar, fault.turn_deg)
        yield Case(pattern, fault, find_anchors(points, extrinsic, frame.camera, RangeConfig()))


def with_wrong_depths(
    points: np.ndarray, camera_from_lidar: np.ndarray, share: float, random: np.random.Generator
) -> np.ndarray:
    """(N, 3) points, a `share` of which moved along the camera's rays, so that their pixels stay: 60 % nearer."""
    chosen = random.permutation(len(points))[: round(share * len(points))]
    near = round(_NEAR_SHARE * len(chosen))
    factors = np.concatenate([random.uniform(*_NEAR_FACTORS, near), random.uniform(*_FAR_FACTORS, len(chosen) - near)])
    spoilt = points.astype(np.float64)
    in_camera = transformed(spoilt[chosen], camera_from_lidar) * factors[:, None]
    spoilt[chosen] = transformed(in_camera, np.linalg.inv(camera_from_lidar))
    return spoilt.astype(np.float32)


def white_block(pixels: np.ndarray) -> np.ndarray:
    """(N,) bool: which of the (N, 2) pixels u, v lie in white squares of the checkerboard of 64-pixel blocks."""
    return np.floor((pixels + 0.5) / BLOCK_PX).astype(np.intp).sum(axis=1) % 2 == 0


def _kitti(frame: Frame) -> Iterator[Pattern]:
    """Some of the beams, the others held out; random points of white blocks, all points of black ones held out."""
    assert frame.points is not None
    beams = beam_of_each_point(frame.points)
    seen, pixels = _in_image(frame, frame.points)
    for count in KEPT_BEAMS:
        kept = every_nth_beam(beams, count)
        yield _pattern(frame, f"{count} of 64 beams", frame.points[kept & seen], frame.points[~kept & seen])
    white = np.zeros(len(seen), bool)
    white[seen] = white_block(pixels[seen])
    order = np.random.default_rng([SEED, zlib.crc32(frame.name.encode())]).permutation(np.flatnonzero(white))
    for count in KITTI_POINTS:
        yield _pattern(frame, f"{count} points", frame.points[order[:count]], frame.points[seen & ~white])


def _indoor(frame: Frame) -> Iterator[Pattern]:
    """One row as a 2D scanner gives, 16 rows, or random pixels of white blocks; pixels away from them held out."""
    assert frame.depth_m is not None
    rows, columns = frame.depth_m.shape
    every = np.arange(rows)
    asked = np.zeros((rows, columns), bool)
    asked[::_TRUTH_STEP_PX, ::_TRUTH_STEP_PX] = True
    for name, lines in (("2D scan", [rows // 2]), (f"{LINES} lines", (2 * np.arange(LINES) + 1) * rows // (2 * LINES))):
        measured = np.zeros((rows, columns), bool)
        measured[lines, ::_LINE_STEP_PX] = True
        far = np.abs(every[:, None] - np.asarray(lines)).min(axis=1) >= _LINE_GAP_PX
        yield _of_pixels(frame, name, measured, asked & far[:, None])
    v, u = np.indices((rows, columns))
    white = white_block(np.stack([u.ravel(), v.ravel()], axis=1)).reshape(rows, columns)
    candidates = np.flatnonzero(white & np.isfinite(frame.depth_m))
    random = np.random.default_rng([SEED, zlib.crc32(frame.name.encode())])
    measured = np.zeros(rows * columns, bool)
    measured[random.permutation(candidates)[:INDOOR_POINTS]] = True
    yield _of_pixels(frame, f"{INDOOR_POINTS} points", measured.reshape(rows, columns), asked & ~white)


def _of_pixels(frame: Frame, name: str, measured: np.ndarray, asked: np.ndarray) -> Pattern:
    """The pattern whose points are the `measured` pixels of the depth image; (H, W) bool both."""
    assert frame.depth_m is not None
    points = backproject(frame.depth_m, pixel_rays(frame.camera))[measured & np.isfinite(frame.depth_m)]
    return Pattern(frame, name, points, np.where(asked, frame.depth_m, np.float32(np.nan)))


def _pattern(frame: Frame, name: str, points: np.ndarray, held_out: np.ndarray) -> Pattern:
    """The pattern of LiDAR points; of held-out ones in one pixel the nearest counts, pixels of points do not."""
    truth_m = np.full((frame.camera.height, frame.camera.width), np.nan, np.float32)
    anchors = find_anchors(
        held_out, frame.camera_from_lidar, frame.camera, replace(RangeConfig(), max_points=1_000_000)
    )
    order = np.argsort(-anchors.depth_m)
    truth_m[_row_column(frame, anchors.pixels[order])] = anchors.depth_m[order]
    truth_m[_row_column(frame, _in_image(frame, points)[1])] = np.nan
    return Pattern(frame, name, points, truth_m)


def _in_image(frame: Frame, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool: the points within the image, and (N, 2) the pixels of all."""
    pixels, _ = project(transformed(points, frame.camera_from_lidar), frame.camera)
    return frame.camera.contains(pixels), pixels


def _row_column(frame: Frame, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    u, v = np.rint(pixels).astype(np.intp).T
    return np.clip(v, 0, frame.camera.height - 1), np.clip(u, 0, frame.camera.width - 1)
