"""Where the picture changes its brightness beside the edges of a scan, from one frame.

Where a scan's depth jumps, or two planes meet, the picture usually changes its brightness. By how much it does so at
each offset from there is added up over all edges of a frame: where extrinsic and time are right, the sums peak at
nought, and what textures and shadows add lies beside the peak without moving it. Edges are found and placed in the
LiDAR's view, so that what the camera does not see behind an edge weighs as little as what it sees in addition. No
network is asked: what a weak one gets wrong, it gets wrong in every frame, and nothing would tell that from a wrong
extrinsic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.geometry import Camera

# Offsets from an edge at which brightness is looked at, in degrees, and how much of the picture must lie around it.
_REACH_DEG, _STEP_DEG, _MARGIN_DEG = 4.5, 0.25, 2.5
OFFSETS_DEG = np.array(range(-18, 19), np.float32) * _STEP_DEG
# How far apart two neighbours of a scan may be, along a beam and across, in degrees.
_SPAN_DEG = (1.2, 2.6)
# Least jump, in ln m.
_JUMP = 0.25
# Brightness that is noise, in grey levels from pixel to pixel.
_NOISE = 0.6
# Least change of the slope of inverse depth between neighbours where planes meet: a part of it, and metres of noise.
_BEND, _BEND_M = 0.15, 0.12
# More edges than this of one kind say little more, and take their time.
_MOST_EDGES = 200
# The picture in parts, in tangents of the angle from the optical axis: so large, so many either way across and down.
_PART, _ACROSS, _DOWN = 0.2, 4, 2
_PARTS = (2 * _ACROSS + 1) * (2 * _DOWN + 1)
# First those in which edges across `axis` 0 lie, then those of 1.
PARTS = 2 * _PARTS


@dataclass
class EdgeSums:
    """Sums over edges, in each of `PARTS` parts of the picture and directions.

    `changes` (P, O): which share of the brightness's change per degree lies at `OFFSETS_DEG`. `turns` (P, 3): by how
    many degrees rightwards, or downwards, brightness lies off an edge per degree by which the anchors are turned about
    the camera's x, y and z. `count` (P,).
    """

    changes: np.ndarray
    turns: np.ndarray
    count: np.ndarray

    def add(self, other: EdgeSums) -> None:
        """Add the other ones."""
        self.changes += other.changes
        self.turns += other.turns
        self.count += other.count

    def scaled(self, by: float) -> EdgeSums:
        """So many times these."""
        return EdgeSums(np.float32(by) * self.changes, by * self.turns, by * self.count)


@dataclass(frozen=True)
class Evidence:
    """The edges of one frame.

    `edges` (M, 2) are their places in the camera's picture, in pixels, the first `rightwards` of them those across
    which brightness is looked for to the right, the others downwards. `changes` (M, O) at `OFFSETS_DEG` from there and
    `turns` (M, 3) are as in `EdgeSums`, `parts` (M,) those in which the edges lie.
    """

    edges: np.ndarray
    rightwards: int
    changes: np.ndarray
    turns: np.ndarray
    parts: np.ndarray

    @cached_property
    def sums(self) -> EdgeSums:
        """Of all of its edges."""
        of = (np.arange(PARTS)[:, None] == self.parts).astype(np.float32)
        return EdgeSums(of @ self.changes, of @ self.turns, of.sum(axis=1))

    @cached_property
    def clear(self) -> np.ndarray:
        """(M,) in [0, 1]: the largest share of the change within one step."""
        return np.minimum(self.changes.max(axis=1, initial=0.0) * _STEP_DEG, 1.0)

    @property
    def right_deg(self) -> float:
        """How many degrees to the right of the edges across which that is looked for it changes most; NaN without."""
        changes = self.changes[: self.rightwards].sum(axis=0)
        around = slice(max(changes.argmax() - 1, 0), changes.argmax() + 2)
        return float((changes * OFFSETS_DEG)[around].sum() / changes[around].sum()) if changes.any() else math.nan

    @property
    def offset_deg(self) -> np.ndarray:
        """(M,) degrees from each edge to where brightness changes most; the middle of the places that tell no less."""
        most = self.changes >= 0.999 * self.changes.max(axis=1, keepdims=True, initial=0.0)
        return (most * OFFSETS_DEG).sum(axis=1) / most.sum(axis=1)


def frame_evidence(
    grey: np.ndarray,
    camera: Camera,
    anchors: Anchors,
    origin_m: np.ndarray,
    moved: tuple[float, float] = (0.0, 0.0),
    axes: Sequence[int] = (0, 1),
) -> Evidence:
    """What a `working_picture` says of the anchors in it; `camera` is that of the anchors.

    origin_m: (3,) where the LiDAR sits in the camera's frame. moved: by how many radians rightwards and downwards the
    picture is known to have moved since the scan. axes: directions in which edges are looked for, 0 rightwards, 1 down.
    """
    rows, columns = grey.shape
    seen = camera.resized(columns, rows)
    focal, centre = np.array([seen.fx, seen.fy], np.float32), np.array([seen.cx, seen.cy], np.float32)
    px_per_degree = focal * np.float32(math.pi / 180.0)
    margin = np.maximum(2, np.rint(_MARGIN_DEG * px_per_degree)) + 2
    to_seen = np.float32(seen.fx / camera.fx), np.float32(seen.fy / camera.fy)
    origin = np.asarray(origin_m, np.float32)
    if origin[2] > 0:  # what lies beside or behind a LiDAR that sits before the camera
        anchors = _beyond(anchors, origin[2] + 0.1)
    lidar_m = anchors.depth_m - origin[2]
    # The picture that a camera in the LiDAR's place would take: each point moves by its parallax.
    parallax = anchors.depth_m / lidar_m
    view = np.empty((len(anchors), 2), np.float32)
    for i, principal in enumerate((camera.cx, camera.cy)):
        from_centre = (anchors.pixels[:, i] - np.float32(principal)) * to_seen[i]
        view[:, i] = from_centre * parallax - origin[i] * focal[i] / lidar_m + centre[i]
    edges, changes, turns, parts = [], [], [], []
    for axis in axes:
        middle, edge_m, unsure_deg = _edges(view, lidar_m, axis, px_per_degree[axis])
        # The edge is the nearer thing's: with its depth it goes back from the LiDAR's view to the camera's.
        ray = ((middle - centre) / focal * edge_m + origin[:2]) / (edge_m + origin[2])
        edge = (ray + np.float32(moved)) * focal + centre
        inside = (edge > margin).all(axis=1) & (edge < (columns, rows) - margin - 1).all(axis=1)
        edge, (x, y) = edge[inside], ray[inside].T
        edges.append(edge)
        changes.append(_changes(grey, edge, axis, px_per_degree[axis], unsure_deg[inside]))
        # What a turn of the anchors moves them by, along the axis; brightness then lies the other way.
        turned = (x * y, -1 - x * x, y) if axis == 0 else (1 + y * y, -x * y, -x)
        turns.append(np.stack(turned, axis=1))
        across = np.clip(np.rint(x / _PART), -_ACROSS, _ACROSS) + _ACROSS
        down = np.clip(np.rint(y / _PART), -_DOWN, _DOWN) + _DOWN
        parts.append((axis * _PARTS + across * (2 * _DOWN + 1) + down).astype(np.intp))
    rightwards = len(edges[0]) if 0 in axes else 0
    places = (np.concatenate(edges) - centre) / to_seen + np.array([camera.cx, camera.cy], np.float32)
    return Evidence(places, rightwards, np.concatenate(changes), np.concatenate(turns), np.concatenate(parts))


def _beyond(anchors: Anchors, least_m: float) -> Anchors:
    far = anchors.depth_m > least_m
    return Anchors(anchors.pixels[far], anchors.depth_m[far], anchors.weight[far], anchors.seen)


def _edges(
    view: np.ndarray, depth_m: np.ndarray, axis: int, px_per_degree: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (M, 2) in `view`, and depths (M, 1) of what is nearer there, of edges across `axis` (0 right, 1 down).

    And (M,) degrees in which each may be anywhere: of a jump that is known no better than between which neighbours.
    Four neighbours in a row tell. Planes are straight in inverse depth: where it jumps and no neighbour on either side
    foretells half of that, a thing ends; beams far enough apart for it show also where two planes meet.
    """
    lines = (view[:, 1 - axis] * np.float32(0.5)).astype(np.int64)
    # Along each line, with the anchor's number in the lowest bits: numpy sorts numbers faster than it sorts orders.
    keys = (lines << 20) + np.rint(view[:, axis] * np.float32(64.0)).astype(np.int64)
    order = np.sort((keys << 24) + np.arange(len(keys))) & 0xFFFFFF
    across, along, sorted_m = view[order, 1 - axis], view[order, axis], depth_m[order]
    apart = np.diff(along)
    near = (apart > 0) & (apart <= _SPAN_DEG[axis] * px_per_degree) & (np.abs(np.diff(across)) <= 1.0)
    inverse = 1.0 / sorted_m
    slope = np.diff(inverse) / np.maximum(apart, np.float32(0.3))
    ratio = sorted_m[1:] / sorted_m[:-1]
    jump = (ratio > math.exp(_JUMP)) | (ratio < math.exp(-_JUMP))
    row = near[:-2] & near[1:-1] & near[2:]
    i = 1 + np.flatnonzero(row & jump[1:-1])
    for beside in (-1, 1):
        i = i[(slope[i] - slope[i + beside]) * slope[i] > 0.5 * slope[i] ** 2]
    i = _some(i)
    share, edge_m = np.full(len(i), 0.5, np.float32), np.minimum(sorted_m[i], sorted_m[i + 1])
    unsure_deg = apart[i] / np.float32(px_per_degree)
    if axis == 1:
        j = 1 + np.flatnonzero(row & ~(jump[:-2] | jump[1:-1] | jump[2:]))
        bend = slope[j + 1] - slope[j - 1]
        bent = np.abs(bend) * apart[j] > np.maximum(_BEND, _BEND_M * inverse[j]) * inverse[j]
        j = _some(j[bent])
        bend = slope[j + 1] - slope[j - 1]
        meet = (slope[j + 1] - slope[j]) / bend
        j, meet = j[(meet > 0) & (meet < 1)], meet[(meet > 0) & (meet < 1)]
        i, share = np.concatenate([i, j]), np.concatenate([share, meet])
        unsure_deg = np.concatenate([unsure_deg, np.zeros(len(j), np.float32)])
        edge_m = np.concatenate([edge_m, 1.0 / (inverse[j] + slope[j - 1] * meet * apart[j])])
    places = np.empty((len(i), 2), np.float32)
    places[:, axis] = along[i] + share * apart[i]
    places[:, 1 - axis] = across[i] + share * (across[i + 1] - across[i])
    return places, edge_m[:, None], unsure_deg


def _some(numbers: np.ndarray) -> np.ndarray:
    """At most `_MOST_EDGES`, evenly."""
    if len(numbers) <= _MOST_EDGES:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, _MOST_EDGES).astype(np.intp)]


def _changes(grey: np.ndarray, edge: np.ndarray, axis: int, px_per_degree: float, unsure_deg: np.ndarray) -> np.ndarray:
    """(M, O) shares per degree of the change of brightness at `OFFSETS_DEG` along `axis` from `edge` (M, 2), in pixels.

    What an edge is `unsure_deg` (M,) about counts alike all over it: where a robot drives along a wall whose upper end
    lies between two beams, the middle between them is wrong for as long by the same.
    """
    rows, columns = grey.shape
    column, row = np.rint(edge).astype(np.intp).T
    reach = math.ceil((_REACH_DEG + 0.5 * _SPAN_DEG[axis]) * px_per_degree) + 1
    along = np.arange(-reach - 1, reach + 2)
    # Beyond the picture goes on as it is at its border, without a change.
    if axis == 0:
        at, beside = row[:, None] * columns + np.clip(column[:, None] + along, 0, columns - 1), columns
    else:
        at, beside = np.clip(row[:, None] + along, 0, rows - 1) * columns + column[:, None], 1
    flat = grey.ravel()
    profile = 0.5 * flat[at] + 0.25 * (flat[at - beside] + flat[at + beside])
    change = 0.25 * (profile[:, 2:] - profile[:, :-2]) ** 2
    upto = np.cumsum(change, axis=1)
    upto /= upto[:, -1:] + np.float32(_NOISE**2 * change.shape[1])
    # Pixel i of `change` covers i to i + 1 of the sum.
    upto = np.concatenate([np.zeros((len(edge), 1), np.float32), upto], axis=1)
    middle = (edge[:, axis] - (column, row)[axis] + np.float32(reach + 0.5))[:, None] + OFFSETS_DEG * px_per_degree
    half = np.maximum(0.5 * unsure_deg, 0.5 / px_per_degree)[:, None] * np.float32(px_per_degree)
    return (_between(upto, middle + half) - _between(upto, middle - half)) * (0.5 * px_per_degree) / half


def _between(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(M, O) values of each row of (M, N) `values` at places (M, O), which need not be whole."""
    at = np.clip(at, 0.0, values.shape[1] - 1.0)
    i = np.minimum(at.astype(np.intp), values.shape[1] - 2)
    i_flat = i + (np.arange(len(values)) * values.shape[1])[:, None]
    flat, share = values.ravel(), (at - i).astype(np.float32)
    return flat[i_flat] * (1.0 - share) + flat[i_flat + 1] * share
