"""Range points -> anchors: pixels of the image with a measured depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from marigold_ros.config import RangeConfig
from marigold_ros.geometry import Camera, transformed
from marigold_ros.sweep import Sweep, may_be_seen, moved

# Tiles over which anchors are thinned out evenly, in pixels; the field's networks are smooth at this scale.
_TILE_PX = 32
# Occlusion vote: a point is suspect when this share of the points in its 3x3 tiles lies at least this factor nearer.
_VOTE_TILE_PX = 16
_NEARER = 1.2
_VOTE_SHARE = 0.25
_SUSPECT_WEIGHT = 0.25
# What a spinning LiDAR that was calibrated with care has; in pixels what is left of extrinsic and timing.
LIDAR_NOISE_M, LIDAR_NOISE_PX = 0.03, 1.5
# Noise by the type of the sensor where the settings give none: metres, their growth with the squared depth, pixels.
_NOISE = {
    "pointcloud2": (LIDAR_NOISE_M, 0.0, LIDAR_NOISE_PX),
    "laserscan": (LIDAR_NOISE_M, 0.0, LIDAR_NOISE_PX),
    # A time-of-flight camera's; the growth is that of a good stereo camera.
    "depth_image": (0.02, 0.002, 1.5),
    "radar": (0.25, 0.0, 8.0),
}


@dataclass(frozen=True)
class Scan:
    """Range points (N, 3) float32 in the sensor's frame, and (4, 4) `camera_from_lidar`.

    `limits` are the sensor's settings, None for those of section range. `sweep` tells how it moved meanwhile. `age_s`:
    by how much the scan was stamped before the image, unless the transform makes up for it. `stamp_ns`: its time, where
    that is known. `shift_px`: by how much things have moved right and down in the picture meanwhile.
    """

    points: np.ndarray
    camera_from_lidar: np.ndarray
    limits: RangeConfig | None = None
    sweep: Sweep | None = None
    age_s: float = 0.0
    stamp_ns: int | None = None
    shift_px: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Anchors:
    """Range measurements in the image: `pixels` (N, 2) u, v; `depth_m` (N,); `weight` (N,) in (0, 1]; all float32.

    `seen` counts the finite points of the scans, so that `seen - len(anchors)` fell outside the image or the limits.
    `noise_m` and `noise_px`, (N,) float32, are one standard deviation of depth and of position in the image; where
    they are not given, those of a spinning LiDAR. Of those that were measured for an earlier image, (N,) float32:
    `left`, in (0, 1], the share that still counts, and `said`, ln of measured over fitted depth there; 1 and NaN of
    others.
    """

    pixels: np.ndarray
    depth_m: np.ndarray
    weight: np.ndarray
    seen: int
    noise_m: np.ndarray | None = None
    noise_px: np.ndarray | None = None
    left: np.ndarray | None = None
    said: np.ndarray | None = None

    def __post_init__(self) -> None:
        usually = {"noise_m": LIDAR_NOISE_M, "noise_px": LIDAR_NOISE_PX, "left": 1.0, "said": np.nan}
        for name, usual in usually.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.full(len(self.depth_m), usual, np.float32))

    def __len__(self) -> int:
        return len(self.depth_m)


def find_anchors(
    points: np.ndarray,
    camera_from_lidar: np.ndarray,
    camera: Camera,
    limits: RangeConfig,
    unseen: np.ndarray | None = None,
) -> Anchors:
    """`anchors_of` one scan whose points were all measured at one time."""
    return anchors_of([Scan(points, camera_from_lidar, limits)], camera, limits, unseen)


def anchors_of(
    scans: Sequence[Scan], camera: Camera, settings: RangeConfig, unseen: np.ndarray | None = None
) -> Anchors:
    """Project scans, of one sensor or of several, into the image.

    Points: rows with NaN, and exact zeros, which drivers send for "no return", are ignored; `camera`: undistorted.
    Points outside the image, at its `unseen` pixels, (H, W) bool, on the robot's own body, or not between the limits'
    depths along the optical axis, are dropped. More than `settings.max_points` are thinned out evenly over the image;
    the sensors share them evenly, and what one does not need is the others'. Points that nearer neighbours, of
    whichever sensor, suggest are hidden from the camera get a smaller weight; they are never deleted, so one raindrop
    cannot delete a wall.
    """
    limits = [scan.limits or settings for scan in scans]
    parts = [_in_image(scan, of, camera, unseen) for scan, of in zip(scans, limits, strict=True)]
    columns = [np.concatenate(column) for column in zip(*(part for _, part in parts), strict=True)]
    pixels, depth_m, noise_m, noise_px = columns or (np.empty((0, 2), np.float32), *np.empty((3, 0), np.float32))
    weight = _visibility(pixels, depth_m, camera)
    counts = [len(part[1]) for _, part in parts]
    shares = _fair_shares([min(n, of.max_points) for n, of in zip(counts, limits, strict=True)], settings.max_points)
    if shares != counts:
        ends = np.cumsum(counts)
        kept = np.concatenate([
            end - count + _spread_evenly(pixels[end - count : end], share, camera)
            for end, count, share in zip(ends, counts, shares, strict=True)
        ])  # fmt: skip
        pixels, depth_m, weight, noise_m, noise_px = (a[kept] for a in (pixels, depth_m, weight, noise_m, noise_px))
    return Anchors(pixels, depth_m, weight, sum(seen for seen, _ in parts), noise_m, noise_px)


def at_random(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below `count`, at random but always the same, and in an order that is random, too.

    Not every second one: clouds are stored by beams, and whole beams would go.
    """
    order = _order(max(count - 1, 0).bit_length())
    return order[order < count][:most]


@lru_cache
def _order(bits: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(1 << bits)


def _in_image(
    scan: Scan, limits: RangeConfig, camera: Camera, unseen: np.ndarray | None
) -> tuple[int, tuple[np.ndarray, ...]]:
    """How many points are finite; of those in the image, pixels, depth_m, noise_m, noise_px as in `Anchors`."""
    points, sweep = scan.points, scan.sweep
    squared = np.einsum("ij,ij->i", points, points)
    measured = (squared > 0) & (squared < np.inf)
    seen = np.count_nonzero(measured)
    if limits.min_range_m > 0:
        measured &= squared >= limits.min_range_m**2
    if limits.self_box_m[:3] != limits.self_box_m[3:]:
        measured &= ~_within(points, limits.self_box_m)
    in_camera = _in_camera(scan, squared, measured, camera)
    # As `project`, but only of what is left: fresh memory for all points is what costs here.
    depth_m = in_camera[:, 2]
    ahead = np.flatnonzero((depth_m > 0) & (depth_m >= limits.min_depth_m) & (depth_m <= limits.max_depth_m))
    depth_m = depth_m[ahead].astype(np.float32)
    pixels = np.empty((len(ahead), 2), np.float32)
    for axis, (focal, centre) in enumerate(((camera.fx, camera.cx), (camera.fy, camera.cy))):
        with np.errstate(over="ignore"):
            place = in_camera[ahead, axis] / depth_m
            place *= np.float32(focal)
            place += np.float32(centre + scan.shift_px[axis])
        pixels[:, axis] = place
    inside = camera.contains(pixels)
    if unseen is not None:
        column, row = np.rint(np.clip(pixels, 0, (camera.width - 1, camera.height - 1))).astype(np.intp).T
        inside &= ~unseen[row, column]
    if not inside.all():
        pixels, depth_m = pixels[inside], depth_m[inside]
    return seen, (pixels, depth_m, *_noise(limits, sweep, depth_m, camera))


def _in_camera(scan: Scan, squared_m: np.ndarray, wanted: np.ndarray, camera: Camera) -> np.ndarray:
    """(M, 3) points of those that are `wanted`, (N,) bool, in the camera's frame; perhaps without some behind it."""
    sweep = scan.sweep
    if sweep is None or sweep.offset_s is None or sweep.still or len(scan.points) == 0:
        in_camera = transformed(scan.points, scan.camera_from_lidar)
        return in_camera[wanted & (in_camera[:, 2] > 0)]
    with np.errstate(invalid="ignore"):
        chosen = wanted & may_be_seen(scan.points, sweep.offset_s, np.sqrt(squared_m), sweep, camera.cone_rad)
    return moved(scan.points[chosen], sweep.offset_s[chosen], sweep)


def _within(points: np.ndarray, box_m: tuple[float, ...]) -> np.ndarray:
    """(N,) bool: which points lie in the box of least x y z and greatest x y z."""
    within = np.ones(len(points), bool)
    for axis in range(3):
        within &= (points[:, axis] > box_m[axis]) & (points[:, axis] < box_m[axis + 3])
    return within


def _noise(
    limits: RangeConfig, sweep: Sweep | None, depth_m: np.ndarray, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) float32 metres and pixels, one standard deviation each."""
    usual_m, growth, usual_px = _NOISE.get(limits.type, _NOISE["pointcloud2"])
    if limits.noise_m > 0:
        usual_m, growth = limits.noise_m, limits.noise_growth
    noise_m = np.float32(usual_m) + np.float32(growth) * np.square(depth_m)
    noise_px = np.full(len(depth_m), limits.noise_px or usual_px, np.float32)
    if sweep is not None and not sweep.still:
        noise_px = np.sqrt(np.square(noise_px) + sweep.pixel_variance(depth_m, camera.focal_px)).astype(np.float32)
    return noise_m, noise_px


def _fair_shares(wanted: Sequence[int], budget: int) -> list[int]:
    """How many of `budget` each gets: the same for all, and what one does not want is the others'."""
    shares, left = [0] * len(wanted), budget
    for waiting, i in zip(range(len(wanted), 0, -1), np.argsort(wanted, kind="stable"), strict=True):
        shares[i] = min(wanted[i], left // waiting)
        left -= shares[i]
    return shares


def _tiles(pixels: np.ndarray, camera: Camera, size_px: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Number of the tile that each pixel lies in, row by row, and the number of rows and columns."""
    shape = (camera.height + size_px - 1) // size_px, (camera.width + size_px - 1) // size_px
    # Not `//`: floor division of floats takes twenty times as long, and here no pixel lies below -0.5.
    tiles = ((pixels + np.float32(0.5)) * np.float32(1.0 / size_px)).astype(np.int32)
    numbers = np.minimum(tiles[:, 1], shape[0] - 1).astype(np.intp)
    numbers *= shape[1]
    numbers += np.minimum(tiles[:, 0], shape[1] - 1)
    return numbers, shape


def _visibility(pixels: np.ndarray, depth_m: np.ndarray, camera: Camera) -> np.ndarray:
    """(N,) float32 weights by a vote of the points around each one (reference: soft occlusion vote by histograms)."""
    weight = np.ones(len(depth_m), np.float32)
    if len(depth_m) == 0:
        return weight
    tiles, shape = _tiles(pixels, camera, _VOTE_TILE_PX)
    bins = np.log(depth_m) * np.float32(1.0 / np.log(_NEARER))
    bins -= np.floor(bins.min())
    bins = bins.astype(np.intp)
    # Two empty bins in front of the nearest, for what lies two bins nearer.
    bins += 2
    count = int(bins.max()) + 1
    tiles *= count
    bins += tiles
    histogram = np.bincount(bins, minlength=shape[0] * shape[1] * count).astype(np.float32).reshape(*shape, count)
    window = cv2.boxFilter(histogram, -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    up_to = np.cumsum(window.reshape(*shape, count), axis=2).reshape(-1)
    # Two bins nearer: at least the factor _NEARER whatever the position within the bins.
    bins -= 2
    nearer = up_to[bins]
    tiles += count - 1
    hidden = (nearer >= 3) & (nearer >= _VOTE_SHARE * up_to[tiles])
    weight[hidden] = _SUSPECT_WEIGHT
    return weight


def _spread_evenly(pixels: np.ndarray, budget: int, camera: Camera) -> np.ndarray:
    """Indices of at most `budget` pixels, taken round-robin from the tiles of the image."""
    if len(pixels) <= budget:
        return np.arange(len(pixels))
    tile, shape = _tiles(pixels, camera, _TILE_PX)
    order = np.argsort(tile.astype(np.uint16) if shape[0] * shape[1] <= 65536 else tile, kind="stable")  # radix sort
    starts = np.searchsorted(tile[order], np.arange(shape[0] * shape[1]))
    turn = np.empty(len(tile), np.intp)
    turn[order] = np.arange(len(tile)) - starts[tile[order]]
    full_turns = np.searchsorted(np.cumsum(np.bincount(turn)), budget, side="right")
    kept = np.flatnonzero(turn < full_turns)
    last = np.flatnonzero(turn == full_turns)[: budget - len(kept)]
    return np.sort(np.concatenate([kept, last]))
