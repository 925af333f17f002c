"""Range points -> anchors: pixels of the image with a measured depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from marigold_ros.compiled import Float, FloatRows, Floats, Int, Mask, compiled
from marigold_ros.config import RangeConfig
from marigold_ros.geometry import Camera, in_image, transformed
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
# What is not known of a point's time, one standard deviation in seconds: where it is told or all points have one, and
# elsewhere, of a scan that takes 0.1 s and whose stamp may be any time within.
TIME_ERROR_S, _TIME_ERROR_OF_SCAN_S = 0.005, 0.03


@dataclass(frozen=True)
class Scan:
    """Range points (N, 3) float32 in the sensor's frame, and (4, 4) `camera_from_lidar`.

    `limits` are the sensor's settings, None for those of section range. `sweep` tells how it moved meanwhile. `age_s`:
    by how much the scan was stamped before the image, unless the transform makes up for it. `stamp_ns`: its time, where
    that is known. `offset_s`: (N,) float32 seconds from the stamp to the points' own times, where these are known.
    """

    points: np.ndarray
    camera_from_lidar: np.ndarray
    limits: RangeConfig | None = None
    sweep: Sweep | None = None
    age_s: float = 0.0
    stamp_ns: int | None = None
    offset_s: np.ndarray | None = None

    def equals(self, other: Scan) -> bool:
        """Whether it is the other one: the same points, at the same places."""
        if self.sweep is None or other.sweep is None:
            same_motion = self.sweep is other.sweep
        else:
            same_motion = self.sweep.equals(other.sweep)
        plain = ("limits", "age_s", "stamp_ns")
        return (
            same_motion
            and self.points is other.points
            and self.offset_s is other.offset_s
            and np.array_equal(self.camera_from_lidar, other.camera_from_lidar)
            and all(getattr(self, name) == getattr(other, name) for name in plain)
        )


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


def time_error_s(offset_s: np.ndarray | None, settings: RangeConfig) -> float:
    """One standard deviation of what is not known of points' times, of which the sensor tells (N,) `offset_s`."""
    told = offset_s is not None or settings.type == "depth_image" or not settings.point_times
    return TIME_ERROR_S if told else _TIME_ERROR_OF_SCAN_S


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
    weight = _visibility(pixels, np.log(depth_m), camera.width, camera.height)
    counts = [len(part[1]) for _, part in parts]
    shares = _fair_shares([min(n, of.max_points) for n, of in zip(counts, limits, strict=True)], settings.max_points)
    if shares != counts:
        ends = np.cumsum(counts)
        kept = np.concatenate([
            end - count + _spread_evenly(pixels[end - count : end], share, camera)
            for end, count, share in zip(ends, counts, shares, strict=True)
        ])  # fmt: skip
        pixels, depth_m, weight, noise_m, noise_px = (
            a.take(kept, axis=0) for a in (pixels, depth_m, weight, noise_m, noise_px)
        )
    return Anchors(pixels, depth_m, weight, sum(seen for seen, _ in parts), noise_m, noise_px)


@lru_cache(maxsize=4)
def at_random(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below `count`, at random but always the same, and in an order that is random, too.

    Not every second one: clouds are stored by beams, and whole beams would go.
    """
    order = _order(max(count - 1, 0).bit_length())
    chosen = order[order < count][:most]
    chosen.flags.writeable = False  # it is everybody's
    return chosen


@lru_cache
def _order(bits: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(1 << bits)


def _in_image(
    scan: Scan, limits: RangeConfig, camera: Camera, unseen: np.ndarray | None
) -> tuple[int, tuple[np.ndarray, ...]]:
    """How many points are finite; of those in the image, pixels, depth_m, noise_m, noise_px as in `Anchors`."""
    points, sweep, offset_s = np.ascontiguousarray(scan.points, np.float32), scan.sweep, scan.offset_s
    least_m, box_m = limits.min_range_m, limits.self_box_m
    shown = camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height
    lens = np.array([*shown, limits.min_depth_m, limits.max_depth_m], np.float32)
    unseen = np.zeros((0, 0), np.bool_) if unseen is None else unseen
    if sweep is None or offset_s is None or sweep.still or len(points) == 0:
        pose = np.ascontiguousarray(scan.camera_from_lidar[:3], np.float32)
        seen, pixels, depth_m = _projected(points, pose, _bounds(least_m, box_m), lens, unseen)
    else:
        share, slack_m = may_be_seen(offset_s, sweep, camera.cone_rad)
        first = np.ascontiguousarray(sweep.camera_from_sensor[0][:3], np.float32)
        seen, wanted = _worth_moving(points, first, _bounds(least_m, box_m), np.float32(share), np.float32(slack_m))
        in_camera = moved(points.take(wanted, axis=0), offset_s.take(wanted), sweep)
        _, pixels, depth_m = _projected(in_camera, np.eye(3, 4, dtype=np.float32), _bounds(), lens, unseen)
    return seen, (pixels, depth_m, *_noise(limits, sweep, depth_m, camera))


def _bounds(least_m: float = 0.0, box_m: tuple[float, ...] = (0.0,) * 6) -> np.ndarray:
    """(7,) float32: the square of the least range, and the box of least x y z and greatest x y z that is left out."""
    return np.array([least_m**2, *box_m], np.float32)


def _measured(points: np.ndarray, bounds: np.ndarray) -> tuple[int, np.ndarray]:
    """How many of (N, 3) points are finite and not zero; (N,) bool, which of these are within `_bounds`."""
    squared = np.einsum("ij,ij->i", points, points)
    wanted = (squared > 0) & (squared < np.inf)
    seen = np.count_nonzero(wanted)
    wanted &= squared >= bounds[0]
    least, most = bounds[1:4], bounds[4:]
    if (least != most).any():
        wanted &= ~((points > least) & (points < most)).all(axis=1)
    return seen, wanted


def _worth_moving_by_numpy(
    points: np.ndarray, first: np.ndarray, bounds: np.ndarray, share: float, slack_m: float
) -> tuple[int, np.ndarray]:
    """How many of (N, 3) points are finite and not zero; the numbers of those within `_bounds` that may be seen.

    first: (3, 4) camera from sensor at the first of the times. share, slack_m: see `may_be_seen`.
    """
    seen, wanted = _measured(points, bounds)
    in_camera = transformed(points, first)
    with np.errstate(invalid="ignore"):
        distance_m = np.sqrt(np.einsum("ij,ij->i", in_camera, in_camera))
        wanted &= in_camera[:, 2] >= share * distance_m - slack_m
    return seen, np.flatnonzero(wanted)


@compiled(_worth_moving_by_numpy)
def _worth_moving(
    points: FloatRows, first: FloatRows, bounds: Floats, share: Float, slack_m: Float
) -> tuple[int, np.ndarray]:
    wanted = np.empty(len(points), np.int64)
    seen = found = 0
    for i in range(len(points)):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        squared = x * x + y * y + z * z
        if not (squared > 0 and squared < np.inf):
            continue
        seen += 1
        on_robot = bounds[1] < x < bounds[4] and bounds[2] < y < bounds[5] and bounds[3] < z < bounds[6]
        right = first[0, 0] * x + first[0, 1] * y + first[0, 2] * z + first[0, 3]
        down = first[1, 0] * x + first[1, 1] * y + first[1, 2] * z + first[1, 3]
        ahead = first[2, 0] * x + first[2, 1] * y + first[2, 2] * z + first[2, 3]
        distance_m = np.sqrt(right * right + down * down + ahead * ahead)
        if squared >= bounds[0] and not on_robot and ahead >= share * distance_m - slack_m:
            wanted[found] = i
            found += 1
    return seen, wanted[:found].copy()


def _projected_by_numpy(
    points: np.ndarray, pose: np.ndarray, bounds: np.ndarray, lens: np.ndarray, unseen: np.ndarray
) -> tuple[int, np.ndarray, np.ndarray]:
    """How many of (N, 3) points are finite and not zero; (M, 2) pixels and (M,) depth of those in the image.

    pose: (3, 4), camera from sensor. bounds: see `_bounds`. lens: fx, fy, cx, cy, width, height of the image, least and
    greatest depth. unseen: (H, W) bool, or empty. All float32.
    """
    fx, fy, cx, cy, width, height, nearest_m, farthest_m = lens
    seen, wanted = _measured(points, bounds)
    in_camera = transformed(points, pose)
    # As `project`, but only of what is left: fresh memory for all points is what costs here.
    depth_m = in_camera[:, 2]
    with np.errstate(invalid="ignore"):
        ahead = np.flatnonzero(wanted & (depth_m > 0) & (depth_m >= nearest_m) & (depth_m <= farthest_m))
    depth_m = depth_m[ahead]
    pixels = np.empty((len(ahead), 2), np.float32)
    for axis, (focal, centre) in enumerate(((fx, cx), (fy, cy))):
        with np.errstate(over="ignore"):
            place = in_camera[ahead, axis] / depth_m
            place *= focal
            place += centre
        pixels[:, axis] = place
    inside = in_image(pixels, width, height)
    if unseen.size:
        column, row = np.rint(np.clip(pixels, 0, (width - 1, height - 1))).astype(np.intp).T
        inside &= ~unseen[row, column]
    return seen, pixels[inside], depth_m[inside]


@compiled(_projected_by_numpy)
def _projected(
    points: FloatRows, pose: FloatRows, bounds: Floats, lens: Floats, unseen: Mask
) -> tuple[int, np.ndarray, np.ndarray]:
    fx, fy, cx, cy, width, height, nearest_m, farthest_m = lens
    pixels, depth_m = np.empty((len(points), 2), np.float32), np.empty(len(points), np.float32)
    seen = found = 0
    for i in range(len(points)):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        squared = x * x + y * y + z * z
        if not (squared > 0 and squared < np.inf):
            continue
        seen += 1
        on_robot = bounds[1] < x < bounds[4] and bounds[2] < y < bounds[5] and bounds[3] < z < bounds[6]
        if squared < bounds[0] or on_robot:
            continue
        depth = pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3]
        if not (depth > 0 and depth >= nearest_m and depth <= farthest_m):
            continue
        u = (pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3]) / depth * fx + cx
        v = (pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3]) / depth * fy + cy
        half = np.float32(0.5)
        if not (u >= -half and u < width - half and v >= -half and v < height - half):
            continue
        if unseen.size:
            row, column = int(max(v, np.float32(0)) + half), int(max(u, np.float32(0)) + half)
            if unseen[min(row, unseen.shape[0] - 1), min(column, unseen.shape[1] - 1)]:
                continue
        pixels[found, 0], pixels[found, 1], depth_m[found] = u, v, depth
        found += 1
    return seen, pixels[:found].copy(), depth_m[:found].copy()


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


def _tiles(pixels: np.ndarray, width: int, height: int, size_px: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Number of the tile that each pixel lies in, row by row, and the number of rows and columns."""
    shape = (height + size_px - 1) // size_px, (width + size_px - 1) // size_px
    # Not `//`: floor division of floats takes twenty times as long, and here no pixel lies below -0.5.
    tiles = ((pixels + np.float32(0.5)) * np.float32(1.0 / size_px)).astype(np.int32)
    numbers = np.minimum(tiles[:, 1], shape[0] - 1).astype(np.intp)
    numbers *= shape[1]
    numbers += np.minimum(tiles[:, 0], shape[1] - 1)
    return numbers, shape


def _visibility_by_numpy(pixels: np.ndarray, log_m: np.ndarray, width: int, height: int) -> np.ndarray:
    """(N,) float32 weights by a vote of the points around each one, which have (N, 2) pixels and (N,) float32 ln m.

    (Reference: soft occlusion vote by histograms.)
    """
    weight = np.ones(len(log_m), np.float32)
    if len(log_m) == 0:
        return weight
    tiles, shape = _tiles(pixels, width, height, _VOTE_TILE_PX)
    bins = log_m * np.float32(1.0 / np.log(_NEARER))
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


@compiled(_visibility_by_numpy)
def _visibility(pixels: FloatRows, log_m: Floats, width: Int, height: Int) -> np.ndarray:
    weight = np.ones(len(log_m), np.float32)
    if len(log_m) == 0:
        return weight
    rows, columns = (height + _VOTE_TILE_PX - 1) // _VOTE_TILE_PX, (width + _VOTE_TILE_PX - 1) // _VOTE_TILE_PX
    per_ln, per_px = np.float32(1.0 / np.log(_NEARER)), np.float32(1.0 / _VOTE_TILE_PX)
    least = most = log_m[0] * per_ln
    for i in range(len(log_m)):
        place = log_m[i] * per_ln
        least, most = place if place < least else least, place if place > most else most
    least = np.floor(least)
    count = int(most - least) + 1
    # A tile more on every side; in each, how many points there are up to each of the bins.
    up_to = np.zeros((rows + 2, (columns + 2) * count), np.float32)
    tile, bin_ = np.empty(len(log_m), np.int64), np.empty(len(log_m), np.int64)
    for i in range(len(log_m)):
        row = min(int((pixels[i, 1] + np.float32(0.5)) * per_px), rows - 1)
        column = min(int((pixels[i, 0] + np.float32(0.5)) * per_px), columns - 1)
        tile[i], bin_[i] = row * columns + column, int(log_m[i] * per_ln - least)
        up_to[row + 1, (column + 1) * count + bin_[i]] += np.float32(1)
    for row in range(1, rows + 1):
        line = up_to[row]
        for column in range(1, columns + 1):
            for k in range(column * count + 1, (column + 1) * count):
                line[k] += line[k - 1]
    # Of 3x3 tiles: of those above and below each other, then of those beside each other.
    tall, around = np.empty(up_to.shape[1], np.float32), np.empty((rows, columns * count), np.float32)
    left, middle, right = tall[: -2 * count], tall[count:-count], tall[2 * count :]
    for row in range(rows):
        above, here, below, into = up_to[row], up_to[row + 1], up_to[row + 2], around[row]
        for k in range(len(tall)):
            tall[k] = above[k] + here[k] + below[k]
        for k in range(len(into)):
            into[k] = left[k] + middle[k] + right[k]
    found = around.reshape(-1, count)
    for i in range(len(log_m)):
        # Two bins nearer: at least the factor _NEARER whatever the position within the bins.
        nearer = found[tile[i], bin_[i] - 2] if bin_[i] >= 2 else np.float32(0)
        if nearer >= 3 and nearer >= np.float32(_VOTE_SHARE) * found[tile[i], -1]:
            weight[i] = _SUSPECT_WEIGHT
    return weight


def _spread_evenly(pixels: np.ndarray, budget: int, camera: Camera) -> np.ndarray:
    """Indices of at most `budget` pixels, taken round-robin from the tiles of the image."""
    return _in_turns(pixels, budget, camera.width, camera.height)


def _in_turns_by_numpy(pixels: np.ndarray, budget: int, width: int, height: int) -> np.ndarray:
    if len(pixels) <= budget:
        return np.arange(len(pixels))
    tile, shape = _tiles(pixels, width, height, _TILE_PX)
    order = np.argsort(tile.astype(np.uint16) if shape[0] * shape[1] <= 65536 else tile, kind="stable")  # radix sort
    starts = np.searchsorted(tile[order], np.arange(shape[0] * shape[1]))
    turn = np.empty(len(tile), np.intp)
    turn[order] = np.arange(len(tile)) - starts[tile[order]]
    full_turns = np.searchsorted(np.cumsum(np.bincount(turn)), budget, side="right")
    kept = np.flatnonzero(turn < full_turns)
    last = np.flatnonzero(turn == full_turns)[: budget - len(kept)]
    return np.sort(np.concatenate([kept, last]))


@compiled(_in_turns_by_numpy)
def _in_turns(pixels: FloatRows, budget: Int, width: Int, height: Int) -> np.ndarray:
    if len(pixels) <= budget:
        return np.arange(len(pixels))
    rows, columns = (height + _TILE_PX - 1) // _TILE_PX, (width + _TILE_PX - 1) // _TILE_PX
    # The how manieth each pixel is in its tile, and how many are the how manieth.
    turn, in_tile = np.empty(len(pixels), np.int64), np.zeros(rows * columns, np.int64)
    in_turn = np.zeros(len(pixels) + 1, np.int64)
    for i in range(len(pixels)):
        row = min(int((pixels[i, 1] + np.float32(0.5)) * np.float32(1.0 / _TILE_PX)), rows - 1)
        column = min(int((pixels[i, 0] + np.float32(0.5)) * np.float32(1.0 / _TILE_PX)), columns - 1)
        turn[i] = in_tile[row * columns + column]
        in_tile[row * columns + column] += 1
        in_turn[turn[i]] += 1
    left, full_turns = budget, 0
    while in_turn[full_turns] <= left:
        left -= in_turn[full_turns]
        full_turns += 1
    kept, found = np.empty(budget, np.int64), 0
    for i in range(len(pixels)):
        last = turn[i] == full_turns and left > 0
        if last or turn[i] < full_turns:
            kept[found] = i
            found += 1
            left -= last
    return kept
