"""A robot's drive through one scene, as pictures, depth, scans and poses: the demo recording is made of it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from marigold_ros.config import Unusable

from .dataset import Studio, build_stage, random_of
from .lidar import cast_lidar, scan_pattern, to_points
from .lighting import develop, draw_response, meter
from .movers import add_movers
from .render import Camera, World, look
from .stage import Stage

# The LiDAR sits 10 cm above the camera; its x is the camera's z (forward), its y is -x, its z is -y.
CAMERA_FROM_LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, -0.10], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)

Frame = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]

_TURN_PERIOD_S = 3.0


@dataclass(frozen=True)
class Course:
    """How a recording differs from a plain drive.

    still: the camera stays where the drive begins. movers: how many things cross the view. turn_deg_s: the camera
    looks left and right of its way all the time, at most this fast. image_noise: standard deviation of the picture's
    noise, of 255 levels.
    """

    still: bool = False
    movers: int = 0
    turn_deg_s: float = 0.0
    image_noise: float = 0.0


def clearance(
    world: World, points: np.ndarray, heights: tuple[float, ...] = (0.12, 0.5, 0.9), rays: int = 24
) -> np.ndarray:
    """Distance (n,) in metres from floor points (n, 2) to the nearest thing at any of the heights."""
    a = np.arange(rays) / rays * 2 * np.pi
    d = np.stack([np.cos(a), np.sin(a), 0 * a], -1)
    best = np.full(len(points), np.inf)
    for h in heights:
        o = np.concatenate([points, np.full((len(points), 1), h)], 1)
        r = world.ranges(np.repeat(o, rays, 0), np.tile(d, (len(points), 1)), 100.0).reshape(len(points), rays)
        best = np.minimum(best, r.min(1))
    return best


def plan(free: np.ndarray, start: tuple[int, int], goal: tuple[int, int]) -> list[tuple[int, int]]:
    """Cheapest way over a grid of clearances (ny, nx) from start to goal, keeping away from things; [] if none."""
    cost = {start: 0.0}
    came: dict[tuple[int, int], tuple[int, int]] = {}
    queue = [(0.0, start)]
    while queue:
        so_far, at = heapq.heappop(queue)
        if at == goal:
            way = [at]
            while way[-1] != start:
                way.append(came[way[-1]])
            return way[::-1]
        if so_far > cost[at]:
            continue
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                to = (at[0] + dy, at[1] + dx)
                if to == at or not (0 <= to[0] < free.shape[0] and 0 <= to[1] < free.shape[1]) or free[to] < 0.4:
                    continue
                c = so_far + np.hypot(dx, dy) * (1 + 1.5 / free[to] ** 2)
                if c < cost.get(to, np.inf):
                    cost[to] = c
                    came[to] = at
                    heapq.heappush(queue, (c, to))
    return []


def _smooth(line: np.ndarray, rounds: int) -> np.ndarray:
    line = line.copy()
    for _ in range(rounds):
        line[1:-1] = (line[:-2] + 2 * line[1:-1] + line[2:]) / 4
    return line


def drive(
    world: World,
    rng: np.random.Generator,
    length: float,
    bounds: tuple[float, float, float, float],
    step: float = 0.3,
    ground: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray | None:
    """A smooth drive (n, 2) on the floor about `length` metres long within bounds (x0, x1, y0, y1), or None.

    `ground`: which of the points (n, 2) may be driven on, None for all.
    """
    xs, ys = np.arange(bounds[0], bounds[1], step), np.arange(bounds[2], bounds[3], step)
    gx, gy = np.meshgrid(xs, ys)
    points = np.stack([gx.ravel(), gy.ravel()], -1)
    free = clearance(world, points)
    if ground is not None:
        free = np.where(ground(points), free, 0.0)
    free = free.reshape(gx.shape)
    cells = np.argwhere(free > 0.7)
    for _ in range(40):
        if len(cells) < 2:
            return None
        a, b = (tuple(int(v) for v in cells[rng.integers(0, len(cells))]) for _ in range(2))
        apart = step * np.hypot(a[0] - b[0], a[1] - b[1])
        if apart < min(length * 0.75, 0.6 * np.hypot(xs[-1] - xs[0], ys[-1] - ys[0])):
            continue
        way = plan(free, a, b)
        if len(way) < 4 or step * len(way) < length * 0.95:
            continue
        return _smooth(np.array([[xs[j], ys[i]] for i, j in way]), 12)
    return None


def _find_drive(studio: Studio, seed: int, family: str, length: float) -> tuple[Stage, World, np.ndarray]:
    """The first scene of the seed with a drive of that length: (stage, world, line)."""
    for turn in range(30):
        rng = random_of(seed, "train", 900, turn)
        stage = build_stage(studio, family, rng)
        world = World(studio.mi, studio.device, stage.builder, stage.lighting())
        x, y = np.array([d[0] for d in stage.taken]), np.array([d[1] for d in stage.taken])
        if len(x) < (25 if family == "warehouse" else 6):
            continue  # too bare to be worth a recording
        line = drive(world, rng, length, (x.min() - 1, x.max() + 1, y.min() - 1, y.max() + 1), ground=stage.ground)
        if line is not None:
            return stage, world, line
    raise Unusable(f"seed {seed}: no drive of {length:.1f} m found; choose another seed, or a shorter drive")


def _along(line: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) and headings (n,) at distances (n,) metres along a polyline, heading smoothed."""
    s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    at = lambda d: np.stack([np.interp(d, s, line[:, c]) for c in range(2)], -1)  # noqa: E731
    ahead = at(np.minimum(distance + 0.6, s[-1])) - at(np.maximum(np.minimum(distance, s[-1] - 0.6) - 0.3, 0))
    heading = np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))
    return at(distance), _smooth(heading[:, None], 20)[:, 0] if len(heading) > 2 else heading


def intrinsics(width: int, height: int, fov_deg: float = 78.0) -> np.ndarray:
    """K (3, 3) of the recording's camera."""
    f = width / 2 / np.tan(np.radians(fov_deg) / 2)
    return np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]])


def render_sequence(
    seed: int,
    frames: int,
    width: int = 640,
    height: int = 480,
    spp: int = 16,
    family: str = "warehouse",
    rate_hz: float = 10.0,
    speed: float = 0.8,
    beams: int = 16,
    azimuths: int = 900,
    noise_m: float = 0.015,
    dropout: float = 0.03,
    copies: float = 1.0,
    studio: Studio | None = None,
    course: Course | None = None,
) -> Iterator[Frame]:
    """A drive through a scene, or what `course` makes of it, frame by frame.

    Yields (rgb uint8 (H, W, 3), depth_m float32 (H, W), points in the LiDAR frame (N, 3) float32,
    map_from_camera (4, 4), stamp_s). The scan is taken at the instant of the picture. `intrinsics(width, height)`
    is the K, `CAMERA_FROM_LIDAR` the mounting.
    """
    studio = studio or Studio.open(seed, "train", 0, copies)
    course = course or Course()
    length = speed * frames / rate_hz
    stage, world, line = _find_drive(studio, seed, family, length + 1.5)
    rng = random_of(seed, "train", 901)
    stamps = np.arange(frames) / rate_hz
    where, heading = _along(line, stamps * speed)
    if course.still:
        where, heading = np.tile(where[:1], (frames, 1)), np.full(frames, heading[0])
    movers = add_movers(stage, course.movers, stamps, where, heading, random_of(seed, "train", 902))
    if movers:
        world = World(studio.mi, studio.device, stage.builder, world.light)
    heading = heading + _turns(stamps, np.radians(course.turn_deg_s))
    specks = random_of(seed, "train", 903)
    response = draw_response(rng, True)
    response.target, response.curve, response.black = 0.24, 0, 0.0
    k, pattern, level = intrinsics(width, height), scan_pattern(beams, azimuths), None
    eye = rng.uniform(0.6, 0.8)
    shakes = 0.0 if course.still else 1.0  # a robot on wheels does, a little
    for i in range(frames):
        pitch = np.radians(-2.0 + shakes * (0.25 * np.sin(i * 0.9) + rng.normal(0, 0.05)))
        roll = np.radians(shakes * (0.2 * np.sin(i * 0.63 + 1) + rng.normal(0, 0.05)))
        position = np.array([*where[i], eye + shakes * 0.003 * np.sin(i * 1.7)])
        if movers:
            world.shift([(mover.vertices, mover.offset_m(stamps[i])) for mover in movers])
        cam = Camera(position, look(heading[i], pitch, roll), k, width, height)
        map_from_camera = np.eye(4)
        map_from_camera[:3, :3], map_from_camera[:3, 3] = cam.rotation, position
        radiance, depth = world.image(cam, spp, seed * 1000 + i)
        seen = meter(radiance, depth, response)
        level = seen if level is None else level * 0.93 + seen * 0.07  # exposure follows slowly
        ranges = cast_lidar(world, map_from_camera @ CAMERA_FROM_LIDAR, pattern, 60.0, noise_m, dropout, rng)
        rgb = _with_noise(develop(radiance, level, response), course.image_noise, specks)
        yield rgb, depth, to_points(ranges, pattern), map_from_camera, float(stamps[i])


def _turns(stamps: np.ndarray, fastest: float) -> np.ndarray:
    """(n,) radians off the way at the times: a sine whose rate is at most `fastest` radians per second."""
    omega = 2 * np.pi / _TURN_PERIOD_S
    return fastest / omega * np.sin(omega * stamps)


def _with_noise(rgb: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """The picture with normal noise of so many levels; as it is where there is none."""
    if deviation == 0:
        return rgb
    return np.clip(np.rint(rgb + rng.normal(0, deviation, rgb.shape)), 0, 255).astype(np.uint8)
