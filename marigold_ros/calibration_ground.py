"""Pitch and roll of the extrinsic, by how the ground passes the camera.

How the picture of a plane changes while a camera moves tells how the plane lies (its homography is R + t n'/d); a scan
tells how it lies as well, as the extrinsic has it. By what turn the one has to be turned into the other is what the
extrinsic is wrong by. That needs a robot that drives and a ground with some texture, and no edges: streets and open
places have it. A turn about the ground's normal, yaw, leaves it as it is and is not seen.

From one picture to another brightness itself is compared (direct alignment, Gauss-Newton with Cauchy's weights), for
there is little else on asphalt: of the ground, whose inverse depth is that of a plane to be turned, and of the scan's
other points, which keep the camera's own turn apart from the plane's.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.geometry import Camera
from marigold_ros.picture_motion import PictureTrack
from marigold_ros.visual_odometry import motion_between

# The ground's plane: its normal's least part along the picture's upright; how far points may lie off it, as a part of
# the camera's height above it; how many planes are tried, each through three points, and on how many it has to rest.
_DOWNWARDS, _ON_GROUND, _TRIED, _FEWEST = 0.7, 0.05, 64, 60
_MOST_POINTS = 1500
# It has to be seen so wide either way, one standard deviation as a part of the height; a single beam shows a line.
_WIDE = 0.3
# What is not on the ground by more than this stands there, and hides it so many degrees around.
_STANDS, _AROUND_DEG = 0.12, 2.0
# Of ground farther than so many heights little is seen to move.
_FAR = 8.0
# Pixels of the ground, and other points of the scan, that are compared; and how many of the ground are too few.
_MOST_PIXELS, _MOST_OTHERS, _FEWEST_PIXELS = 3000, 1000, 500
# The camera's way from picture to picture, as a part of its height; after so many seconds it stands.
_WAY, _LEAST_WAY, _LONGEST_S = 0.35, 0.2, 2.0
# From one comparison to the next: the ground is to be another one, and the processor to be free.
_PAUSE_S = 0.5
# Standard deviations in pixels of what pictures are smoothed by, and rounds at each.
_SMOOTH_PX, _ROUNDS = (2.5, 1.0), 8
# A step that is none, in radians and metres.
_NO_STEP = 1e-3
# Pixels from the picture's border at which nothing is compared; which part of them the other picture has to show.
_BORDER_PX, _LEAST_SEEN = 4, 0.4
# Grey levels that are noise, whatever the residuals say; how alike the two pictures of the ground have to be.
_NOISE, _ALIKE = 0.5, 0.8
# Standard deviation in degrees of how wrong extrinsics are; a turn of more than that many is none. Of how brightness
# changes as a whole, in grey levels, and contrast.
_USUAL_DEG, _MOST_DEG, _USUAL_LIGHT, _USUAL_CONTRAST = 3.0, 6.0, 30.0, 0.5
# Neighbouring pixels are wrong alike: so many times as unsure as if they were not; and what each ground has about it.
_ALIKE_PIXELS, _UNEVEN_DEG = 3.0, 0.3
# Comparisons that follow each other see much the same and are wrong alike: so many are a block.
_KEPT, _BLOCK, _LEAST_BLOCKS, _TURN_ROUNDS = 120, 4, 5, 8


@dataclass(frozen=True)
class GroundTurn:
    """By how many degrees the anchors are turned about the camera's x and z: `turn_deg` (2,), `sigma_deg` (2,).

    `count` comparisons say so, in `blocks` that are as good as independent; `spread_deg` (2,) is the standard deviation
    of a single one.
    """

    turn_deg: np.ndarray
    sigma_deg: np.ndarray
    spread_deg: np.ndarray
    count: int
    blocks: int


@dataclass(frozen=True)
class _Key:
    """A working picture to compare later ones with, and where things are in it."""

    stamp_ns: int
    grey: np.ndarray
    anchors: Anchors
    plane: np.ndarray


@dataclass(frozen=True)
class _Pixels:
    """What is compared: `rays` (N, 3) with 1 along the axis; pixels `at` (N, 2); the first `ground` of them are of the
    plane, the others have inverse depths `inverse` (N - ground,).
    """

    rays: np.ndarray
    at: np.ndarray
    ground: int
    inverse: np.ndarray


@dataclass(frozen=True)
class _Found:
    """What two pictures say: `turn_deg` (2,) about x and z, its `covariance` (2, 2), and the camera's way (3,)."""

    turn_deg: np.ndarray
    covariance: np.ndarray
    way_m: np.ndarray


class GroundWatch:
    """Compares pictures of the ground as a robot drives over it; one camera, one range sensor."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self._key: _Key | None = None
        self._due_ns = 0
        self._speed_m_s: np.ndarray | None = None
        self._found: deque[_Found] = deque(maxlen=_KEPT)

    def see(self, stamp_ns: int, track: PictureTrack, camera: Camera, anchors: Anchors) -> np.ndarray | None:
        """Take a frame, the picture that `track` saw last and its anchors.

        Gives (2,) degrees by which the anchors are turned about x and z, where there is a new comparison, by it alone.
        """
        key = self._key
        if stamp_ns < self._due_ns:
            return None
        if key is None or stamp_ns - key.stamp_ns > _LONGEST_S * 1e9:
            self._begin(stamp_ns, track.grey, camera, anchors)
            return None
        found = self._compared(key, stamp_ns, track, camera)
        if found is None:
            return None
        self._found.append(found)
        return found.turn_deg

    def _begin(self, stamp_ns: int, grey: np.ndarray, camera: Camera, anchors: Anchors) -> None:
        right = anchors.weight > 0.5
        anchors = Anchors(anchors.pixels[right], anchors.depth_m[right], anchors.weight[right], anchors.seen)
        plane = _ground(_points(anchors, camera))
        self._key = None if plane is None else _Key(stamp_ns, grey, anchors, plane)

    def _pause(self, key: _Key) -> None:
        self._key, self._due_ns = None, key.stamp_ns + round(_PAUSE_S * 1e9)

    def _compared(self, key: _Key, stamp_ns: int, track: PictureTrack, camera: Camera) -> _Found | None:
        elapsed_s = (stamp_ns - key.stamp_ns) * 1e-9
        shift_px = track.shift_px(key.stamp_ns, stamp_ns)
        before, now = (cv2.convertScaleAbs(grey) for grey in (key.grey, track.grey))
        moved = motion_between(before, now, key.anchors.pixels, key.anchors.depth_m, camera, shift_px)
        turn, way_m = np.eye(3), np.zeros(3)
        if moved is not None:
            turn, way_m = moved[:3, :3], moved[:3, 3]
        elif self._speed_m_s is not None:
            way_m = self._speed_m_s * elapsed_s
        if (moved is not None or self._speed_m_s is not None) and not self._far_enough(key, way_m, elapsed_s):
            return None
        seen = camera.resized(*track.grey.shape[::-1])
        pixels = _pixels(key, camera, seen)
        found = None if pixels is None else _aligned(key.grey, track.grey, pixels, key.plane, seen, turn, way_m)
        if found is None:
            self._speed_m_s = None
            self._pause(key)
            return None
        self._speed_m_s = found.way_m / elapsed_s
        if not self._far_enough(key, found.way_m, elapsed_s):
            return None
        self._pause(key)
        return found

    def _far_enough(self, key: _Key, way_m: np.ndarray, elapsed_s: float) -> bool:
        """Whether the way from the key tells; otherwise a later picture is waited for."""
        way = float(np.linalg.norm(way_m) * np.linalg.norm(key.plane))
        if way < _LEAST_WAY:
            self._due_ns = key.stamp_ns + round(min(_WAY / max(way, 1e-3), 3.0) * elapsed_s * 1e9)
        return way >= _LEAST_WAY

    def turn(self) -> GroundTurn | None:
        """What all comparisons say together; None while they are too few."""
        if len(self._found) < _LEAST_BLOCKS * _BLOCK:
            return None
        turns = np.array([found.turn_deg for found in self._found])
        information = np.linalg.inv([found.covariance for found in self._found])
        estimate = np.median(turns, axis=0)
        for _ in range(_TURN_ROUNDS):
            off = turns - estimate
            weight = 1.0 / (1.0 + 0.25 * np.einsum("ni,nij,nj->n", off, information, off))
            weighted = weight[:, None, None] * information
            pulls = np.einsum("nij,nj->ni", weighted, off)
            estimate = estimate + np.linalg.solve(weighted.sum(axis=0), pulls.sum(axis=0))
        # Leaving out one block at a time (jackknife).
        begin = np.arange(0, len(turns), _BLOCK)
        left = weighted.sum(axis=0) - np.add.reduceat(weighted, begin)
        moves = np.linalg.solve(left, np.add.reduceat(pulls, begin)[..., None])[..., 0]
        sigma = np.sqrt((1.0 - 1.0 / len(moves)) * (moves**2).sum(axis=0))
        spread = 1.4826 * np.median(np.abs(turns - estimate), axis=0)
        return GroundTurn(estimate, sigma, spread, len(turns), len(moves))


def _points(anchors: Anchors, camera: Camera) -> np.ndarray:
    """(N, 3) metres in the camera's frame."""
    across = (anchors.pixels[:, 0] - camera.cx) / camera.fx
    down = (anchors.pixels[:, 1] - camera.cy) / camera.fy
    return (anchors.depth_m * np.stack([across, down, np.ones_like(across)])).T.astype(np.float64)


def _ground(points: np.ndarray) -> np.ndarray | None:
    """(3,) p for which p @ x = 1 of the points x (N, 3) on the ground; None where none is seen.

    Of a camera that hangs upside down it is above; so is a ceiling, which does as well.
    """
    below = _plane(points)
    if below is not None:
        return below
    above = _plane(points * (1.0, -1.0, 1.0))
    return None if above is None else above * (1.0, -1.0, 1.0)


def _plane(points: np.ndarray) -> np.ndarray | None:
    """As `_ground`, of a plane below."""
    points = points[points[:, 1] > 0.0]
    points = points[:: max(1, len(points) // _MOST_POINTS)]
    if len(points) < _FEWEST:
        return None
    corners = points[np.random.default_rng(0).integers(0, len(points), (_TRIED, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals *= np.sign(normals[:, 1:2])
    height = np.einsum("ni,ni->n", normals, corners[:, 0])
    possible = (normals[:, 1] > _DOWNWARDS * np.linalg.norm(normals, axis=1)) & (height > 0)
    if not possible.any():
        return None
    planes = normals[possible] / height[possible, None]
    # By how well points lie on it, not by how many do: a plane through the ground and the foot of a wall has more.
    off = np.minimum(np.abs(planes @ points.T - 1.0) / _ON_GROUND, 1.0)
    off = off[(off**2).sum(axis=1).argmin()] * _ON_GROUND
    for _ in range(4):
        on = off < _ON_GROUND
        if np.count_nonzero(on) < _FEWEST:
            return None
        on = off < np.clip(4.0 * np.median(off[on]), 0.2 * _ON_GROUND, _ON_GROUND)
        middle = points[on].mean(axis=0)
        _, spread, axes = np.linalg.svd(points[on] - middle, full_matrices=False)
        plane = axes[2] / (axes[2] @ middle)
        off = np.abs(points @ plane - 1.0)
    wide = spread[1] / math.sqrt(np.count_nonzero(on)) * np.linalg.norm(plane)
    return plane if wide > _WIDE and plane[1] > _DOWNWARDS * np.linalg.norm(plane) else None


def _pixels(key: _Key, camera: Camera, seen: Camera) -> _Pixels | None:
    """What of the key's picture is compared; `seen` is the camera of the picture, `camera` that of the anchors."""
    rows, columns = key.grey.shape
    shrink = np.array([camera.width / columns, camera.height / rows])
    at = np.rint((key.anchors.pixels + 0.5) / shrink - 0.5).astype(np.intp)
    stands = np.abs(_points(key.anchors, camera) @ key.plane - 1.0) > _STANDS
    hidden = np.zeros((rows, columns), np.uint8)
    hidden[np.clip(at[stands, 1], 0, rows - 1), np.clip(at[stands, 0], 0, columns - 1)] = 1
    around = 2 * math.ceil(math.radians(_AROUND_DEG) * seen.fx) + 1
    hidden = cv2.dilate(hidden, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (around, around)))
    # Inverse depth over the picture, against that of the farthest ground that counts.
    down, across = np.ogrid[:rows, :columns]
    inverse = ((across - seen.cx) / seen.fx) * key.plane[0] + ((down - seen.cy) / seen.fy) * key.plane[1] + key.plane[2]
    ground = (inverse * _FAR > np.linalg.norm(key.plane)) & (hidden == 0)
    ground[:_BORDER_PX] = ground[-_BORDER_PX:] = ground[:, :_BORDER_PX] = ground[:, -_BORDER_PX:] = False
    number = np.flatnonzero(ground)
    if len(number) < _FEWEST_PIXELS:
        return None
    number = number[np.linspace(0, len(number) - 1, min(len(number), _MOST_PIXELS)).astype(np.intp)]
    other = at[stands]
    inside = (other >= _BORDER_PX).all(axis=1) & (other < (columns - _BORDER_PX, rows - _BORDER_PX)).all(axis=1)
    other = np.flatnonzero(stands)[inside]
    other = other[np.linspace(0, len(other) - 1, min(len(other), _MOST_OTHERS)).astype(np.intp)]
    places = np.concatenate([np.stack([number % columns, number // columns], axis=1), at[other]])
    rays = np.ones((len(places), 3), np.float32)
    rays[:, :2] = (places - (seen.cx, seen.cy)) / (seen.fx, seen.fy)
    return _Pixels(rays, places, len(number), (1.0 / key.anchors.depth_m[other]).astype(np.float32))


def _aligned(
    before: np.ndarray, now: np.ndarray, pixels: _Pixels, plane: np.ndarray, seen: Camera, turn: np.ndarray,
    way_m: np.ndarray,
) -> _Found | None:  # fmt: skip
    """By what turn of the anchors one working picture becomes the next; None where it is not clear.

    turn (3, 3), way_m (3,): about how the camera moved from `before` to `now`.
    """
    # The plane's turn, and by how much all is brighter and richer in contrast: exposure changes.
    tilt, light = np.zeros(2), np.zeros(2)
    prior = np.array([0.0] * 6 + [math.radians(_USUAL_DEG) ** -2] * 2 + [_USUAL_LIGHT**-2, _USUAL_CONTRAST**-2])
    for smooth_px in _SMOOTH_PX:
        first, second = (cv2.GaussianBlur(grey, (0, 0), smooth_px) for grey in (before, now))
        # Brightness and its two slopes, to be looked up at once.
        slopes = [cv2.Sobel(second, cv2.CV_32F, *order, ksize=3, scale=0.125) for order in ((1, 0), (0, 1))]
        second = cv2.merge([second, *slopes])
        brightness = first[pixels.at[:, 1], pixels.at[:, 0]]
        for _ in range(_ROUNDS):
            now_tilted = cv2.Rodrigues(np.array([tilt[0], 0.0, tilt[1]]))[0] @ plane
            looked = _looked_up(second, pixels, now_tilted, seen, turn, way_m)
            if looked is None:
                return None
            there, found, jacobian = looked
            was = brightness[there]
            residual = found - was - (light[0] + light[1] * was)
            noise = max(1.4826 * float(np.median(np.abs(residual))), _NOISE)
            weight = 1.0 / (1.0 + (residual / (2.0 * noise)) ** 2)
            jacobian = np.concatenate([jacobian, np.full_like(was, -1.0)[:, None], -was[:, None]], axis=1)
            weighted = jacobian * weight[:, None]
            information = (weighted.T @ jacobian).astype(np.float64) / noise**2 + np.diag(prior)
            pull = -(weighted.T @ residual).astype(np.float64) / noise**2
            pull[6:] -= prior[6:] * (*tilt, *light)
            try:
                step = np.linalg.solve(information, pull)
            except np.linalg.LinAlgError:
                return None
            turn, way_m = cv2.Rodrigues(step[:3])[0] @ turn, way_m + step[3:6]
            tilt, light = tilt + step[6:8], light + step[8:]
            if np.abs(step[:8]).max() < _NO_STEP:
                break
    with np.errstate(invalid="ignore"):  # without any texture it is NaN, and not alike
        alike = np.corrcoef(found, was)[0, 1]
    covariance = np.linalg.inv(information)[6:8, 6:8] * math.degrees(1.0) ** 2
    if not (alike >= _ALIKE and np.abs(tilt).max() <= math.radians(_MOST_DEG) and np.isfinite(covariance).all()):
        return None
    # The ground is to be turned back by what the anchors are turned.
    return _Found(-np.degrees(tilt), covariance * _ALIKE_PIXELS**2 + np.eye(2) * _UNEVEN_DEG**2, way_m)


def _looked_up(
    picture: np.ndarray, pixels: _Pixels, plane: np.ndarray, seen: Camera, turn: np.ndarray, way_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Which pixels (M,) another picture shows, brightness there (M,), and its change (M, 8) per unit of a further turn
    of the camera (3), its way (3) and a turn of the plane about x and z; None where it shows too few.
    """
    rows, columns = picture.shape[:2]
    plane, way_m = plane.astype(np.float32), way_m.astype(np.float32)
    inverse = pixels.rays @ plane
    inverse[pixels.ground :] = pixels.inverse
    turned = pixels.rays @ turn.T.astype(np.float32)
    x, y, z = (turned + inverse[:, None] * way_m).T
    x, y, z = x / np.maximum(z, 1e-3), y / np.maximum(z, 1e-3), z
    u, v = x * np.float32(seen.fx) + np.float32(seen.cx), y * np.float32(seen.fy) + np.float32(seen.cy)
    inside = (np.minimum(u, v) > _BORDER_PX) & (u < columns - _BORDER_PX) & (v < rows - _BORDER_PX) & (z > 0.05)
    there = np.flatnonzero(inside)
    if len(there) < _LEAST_SEEN * len(inside) or np.searchsorted(there, pixels.ground) < _FEWEST_PIXELS // 2:
        return None
    looked = cv2.remap(picture, u[there][None], v[there][None], cv2.INTER_LINEAR)[0]
    right, down = looked[:, 1] * np.float32(seen.fx) / z[there], looked[:, 2] * np.float32(seen.fy) / z[there]
    # By the point's place in space, times its inverse depth.
    slope = np.stack([right, down, -(right * x[there] + down * y[there])], axis=1)
    tilted = np.cross(plane, pixels.rays[there])[:, [0, 2]] * (slope @ way_m)[:, None]
    tilted[there >= pixels.ground] = 0.0
    jacobian = np.concatenate([np.cross(turned[there], slope), slope * inverse[there, None], tilted], axis=1)
    return there, looked[:, 0], jacobian
