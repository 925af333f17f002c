"""How far anchors lie beside the picture that they belong to, from one frame.

Where a scan's depth jumps, the picture usually changes its brightness. The offset between the two, over all jumps, is
the solution of normal equations (first moments of the brightness about each jump), not the best of several extrinsics
that were tried. Jumps are found and placed in the LiDAR's view, so that what the camera does not see behind an edge
weighs as little as what it sees in addition. No network is asked: what a weak one gets wrong, it gets wrong in every
frame, and nothing would tell that from a wrong extrinsic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.geometry import Camera

# How far from a jump brightness is looked at; how far apart two neighbours of a scan may be, along a beam and across.
_REACH_DEG = 2.5
_SPAN_DEG = (1.2, 2.6)
# Least jump, in ln m.
_JUMP = 0.25
# Brightness that is noise, in grey levels from pixel to pixel.
_NOISE = 0.3
# Least change of the slope of inverse depth between neighbours where planes meet: a part of it, and metres of noise.
_BEND, _BEND_M = 0.15, 0.12
# More edges than this of one kind say little more, and take their time.
_MOST_EDGES = 200


@dataclass(frozen=True)
class Evidence:
    """Normal equations of one frame.

    `matrix` (3, 3) and `vector` (3,) are those of the turn, in radians about the camera's x, y and z, by which the
    anchors lie beside the picture. `edges` (M, 2) are the places of the jumps in the camera's picture, `offset_px` (M,)
    how far from there brightness changes, rightwards for the first `rightwards` of them and downwards for the rest, in
    pixels of the camera, and `trust` (M,) in [0, 1] is how clear that is.
    """

    matrix: np.ndarray
    vector: np.ndarray
    edges: np.ndarray
    offset_px: np.ndarray
    trust: np.ndarray
    rightwards: int


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
    px_per_degree = seen.fx * math.pi / 180.0
    reach = max(2, round(_REACH_DEG * px_per_degree))
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
    matrix, vector, edges, offsets, trusts = np.zeros((3, 3)), np.zeros(3), [], [], []
    for axis in axes:
        middle, edge_m = _edges(view, lidar_m, axis, px_per_degree)
        # The edge is the nearer thing's: with its depth it goes back from the LiDAR's view to the camera's.
        ray = ((middle - centre) / focal * edge_m + origin[:2]) / (edge_m + origin[2])
        edge = (ray + np.float32(moved)) * focal + centre
        inside = (edge > reach + 2).all(axis=1) & (edge < (columns - reach - 3, rows - reach - 3)).all(axis=1)
        edge, (x, y) = edge[inside], ray[inside].T.astype(np.float64)
        offset, trust = _brightness_step(grey, edge, axis, reach)
        # What a turn of the anchors moves them by, along the axis; brightness then lies the other way.
        turned = (-x * y, 1 + x * x, -y) if axis == 0 else (-1 - y * y, x * y, x)
        design = -float(focal[axis]) * np.stack(turned)
        matrix += (design * trust) @ design.T
        vector += design @ (offset * trust)
        edges.append(edge)
        offsets.append(offset / float(to_seen[axis]))
        trusts.append(trust)
    rightwards = len(edges[0]) if 0 in axes else 0
    places = (np.concatenate(edges) - centre) / to_seen + np.array([camera.cx, camera.cy], np.float32)
    return Evidence(matrix, vector, places, np.concatenate(offsets), np.concatenate(trusts), rightwards)


def _beyond(anchors: Anchors, least_m: float) -> Anchors:
    far = anchors.depth_m > least_m
    return Anchors(anchors.pixels[far], anchors.depth_m[far], anchors.weight[far], anchors.seen)


def _edges(view: np.ndarray, depth_m: np.ndarray, axis: int, px_per_degree: float) -> tuple[np.ndarray, np.ndarray]:
    """Places (M, 2) in `view`, and depths (M, 1) of what is nearer there, of edges across `axis` (0 right, 1 down).

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
    if axis == 1:
        j = 1 + np.flatnonzero(row & ~(jump[:-2] | jump[1:-1] | jump[2:]))
        bend = slope[j + 1] - slope[j - 1]
        bent = np.abs(bend) * apart[j] > np.maximum(_BEND, _BEND_M * inverse[j]) * inverse[j]
        j = _some(j[bent])
        bend = slope[j + 1] - slope[j - 1]
        meet = (slope[j + 1] - slope[j]) / bend
        j, meet = j[(meet > 0) & (meet < 1)], meet[(meet > 0) & (meet < 1)]
        i, share = np.concatenate([i, j]), np.concatenate([share, meet])
        edge_m = np.concatenate([edge_m, 1.0 / (inverse[j] + slope[j - 1] * meet * apart[j])])
    places = np.empty((len(i), 2), np.float32)
    places[:, axis] = along[i] + share * apart[i]
    places[:, 1 - axis] = across[i] + share * (across[i + 1] - across[i])
    return places, edge_m[:, None]


def _some(numbers: np.ndarray) -> np.ndarray:
    """At most `_MOST_EDGES`, evenly."""
    if len(numbers) <= _MOST_EDGES:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, _MOST_EDGES).astype(np.intp)]


def _brightness_step(grey: np.ndarray, edge: np.ndarray, axis: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """(M,) where brightness changes along `axis`, in pixels from `edge` (M, 2), and (M,) in [0, 1] how clear that is.

    The first moment of the slope over the whole step: what goes up and down again, as texture does, cancels.
    """
    column, row = np.rint(edge).astype(np.intp).T
    reaches = np.arange(-reach - 1, reach + 2)
    along, across = (1, grey.shape[1]) if axis == 0 else (grey.shape[1], 1)
    at = row * grey.shape[1] + column + reaches[:, None] * along
    flat = grey.ravel()
    profile = 0.5 * flat[at] + 0.25 * (flat[at - across] + flat[at + across])
    slope = 0.5 * (profile[2:] - profile[:-2])
    place = reaches[1:-1, None] - (edge[:, axis] - (column, row)[axis])
    step, length = slope.sum(axis=0), np.abs(slope).sum(axis=0) + np.float32(_NOISE * len(slope))
    trust = (step / length).astype(np.float64) ** 2
    # Where the step is nought, so is the trust; the moment over the step is then not worth its digits.
    offset = np.einsum("om,om->m", slope, place) / np.where(np.abs(step) > 1e-3, step, np.inf)
    return np.clip(offset, -reach / np.maximum(trust, 1e-6), reach / np.maximum(trust, 1e-6)), trust
