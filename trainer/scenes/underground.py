"""Mines: drifts through rough rock, lit by the robot's own headlight. For recordings only, never in training sets.

What is learnt from rooms, halls and streets does not hold here: nothing is straight or level, walls, roof and ground
are of one stone, and brightness falls off with the distance from the camera.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .geometry import Mesh, box, boxes, grid_faces, join, lumpy, prism, triangles, tube
from .lighting import make_sky
from .objects import wheel
from .stage import Stage

Rng = np.random.Generator
Bumps = Callable[[np.ndarray], np.ndarray]  # displacement (n, 3) in metres of points (n, 3)

_STEP_M = 0.25  # between the rings of a drift
_AROUND = 56  # points of a ring
_FLOOR = 16  # those of them that lie on the ground


@dataclass
class Drift:
    """A tunnel: centre line (n, 2), width and height in metres."""

    line: np.ndarray
    width: float
    height: float

    def place(self, s: float, side: float, z: float = 0.0) -> np.ndarray:
        """The point (3,) s metres along the line, `side` metres to its left, at height z."""
        at, left = self._frames(np.array([s]))
        return np.array([*(at[0] + side * left[0]), z])

    def parallel(self, side: float, z: float, begin: float, end: float, step: float = 0.5) -> np.ndarray:
        """Points (k, 3) of the line `side` metres to the left of the centre, at height z, between two distances."""
        at, left = self._frames(np.arange(begin, end, step))
        return np.concatenate([at + side * left, np.full((len(at), 1), z)], 1)

    def yaw(self, s: float) -> float:
        """Heading in radians at s metres."""
        left = self._frames(np.array([s]))[1][0]
        return float(np.arctan2(-left[0], left[1]))

    @property
    def length(self) -> float:
        """Metres along the line."""
        return float(self._lengths()[-1])

    def profile(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (k, 2) across (to the left) and up of an arch: ground from right to left, left wall, roof, right
        wall; and its unit normals outwards (k, 2). The last point is the first."""
        half, spring = self.width / 2, self.height - self.width * 0.42
        ground = np.stack([np.linspace(-half, half, _FLOOR), np.zeros(_FLOOR)], -1)
        arc = np.linspace(0, np.pi, _AROUND - _FLOOR - 8)
        roof = np.stack([half * np.cos(arc), spring + (self.height - spring) * np.sin(arc)], -1)
        walls = np.linspace(0, spring, 6)[1:-1]
        left, right = (np.stack([np.full(4, s * half), walls], -1) for s in (1, -1))
        points = np.concatenate([ground, left, roof, right[::-1], ground[:1]])
        normals = np.concatenate(
            [
                np.tile([0.0, -1.0], (_FLOOR, 1)),
                np.tile([1.0, 0.0], (4, 1)),
                np.stack([np.cos(arc), np.sin(arc)], -1),
                np.tile([-1.0, 0.0], (4, 1)),
                [[0.0, -1.0]],
            ]
        )
        return points, normals

    def inside(self, points: np.ndarray, margin: float) -> np.ndarray:
        """Which points (n, 3) lie at least `margin` metres within the smooth arch."""
        ends = self.line[0], self.line[-1]
        away = np.full(len(points), np.inf)
        for a, b in zip(self.line[:-1], self.line[1:], strict=True):
            d = b - a
            t = np.clip((points[:, :2] - a) @ d / (d @ d), 0, 1)
            away = np.minimum(away, np.linalg.norm(points[:, :2] - a - t[:, None] * d, axis=1))
        for end in ends:  # the face at the end of a drift is its own
            away[np.linalg.norm(points[:, :2] - end, axis=1) < 0.3] = np.inf
        half, spring = self.width / 2, self.height - self.width * 0.42
        up = np.clip((points[:, 2] - spring) / (self.height - spring), 0, 1)
        return (away < half * np.sqrt(1 - up**2) - margin) & (points[:, 2] < self.height - margin)

    def rock(self, bumps: Bumps) -> tuple[Mesh, np.ndarray]:
        """Walls and roof (part 0) and ground (part 1), each face flat; and the corners (m, 3, 3) of the faces."""
        points, normals = self.profile()
        s = np.arange(0, self.length + _STEP_M, _STEP_M)
        at, left = self._frames(s)
        # A drift ends in a rough face: the last rings shrink.
        scale = np.ones(len(s))
        scale[:3], scale[-3:] = (0.02, 0.6, 0.9), (0.9, 0.6, 0.02)
        across = points[None, :, 0] * scale[:, None]
        middle = 0.4 * self.height
        up = middle + (points[None, :, 1] - middle) * scale[:, None]
        v = np.concatenate([at[:, None] + across[..., None] * left[:, None], up[..., None]], -1)
        n = np.concatenate(
            [normals[None, :, :1] * left[:, None], np.broadcast_to(normals[None, :, 1:], (*up.shape, 1))], -1
        )
        ground = np.arange(len(points)) < _FLOOR
        ground[-1] = True
        strength = np.where(ground, 0.12, 1.0)[None, :, None]
        v = v + n * bumps(v.reshape(-1, 3)).reshape(*up.shape, 1) * strength
        around = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        uv = np.stack(np.broadcast_arrays(s[:, None], around[None]), -1)
        faces = grid_faces(len(s), len(points))
        corners = v.reshape(-1, 3)[faces]
        flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
        mesh = triangles(
            corners.reshape(-1, 3), np.arange(3 * len(faces)).reshape(-1, 3), uv.reshape(-1, 2)[faces].reshape(-1, 2),
            np.repeat(flat, 3, 0),
        )  # fmt: skip
        mesh.part = (faces % len(points) < _FLOOR).all(1).astype(np.int32)
        return mesh, corners

    def _lengths(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(self.line, axis=0), axis=1))])

    def _frames(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (k, 2) of the centre line and unit vectors (k, 2) to its left at distances (k,)."""
        lengths = self._lengths()
        at = np.stack([np.interp(s, lengths, self.line[:, c]) for c in range(2)], -1)
        slope = np.gradient(self.line, lengths, axis=0)
        d = np.stack([np.interp(s, lengths, slope[:, c]) for c in range(2)], -1)
        d /= np.linalg.norm(d, axis=1, keepdims=True)
        return at, np.stack([-d[:, 1], d[:, 0]], -1)


def bumps(rng: Rng, amplitude: float) -> Bumps:
    """Bumps of blasted rock, about `amplitude` metres: smooth swells, and blocks broken along planes."""
    waves = [(rng.normal(size=(3, 3)) * 6.28 / size, rng.uniform(0, 6.28, 3), share)
             for size, share in ((4.0, 0.6), (1.7, 0.35), (0.8, 0.2))]  # fmt: skip
    planes = rng.normal(size=(3, 3)) / np.array([[0.7], [1.1], [0.45]])

    def at(points: np.ndarray) -> np.ndarray:
        swell = sum(share * np.sin(points @ k + phase).sum(1) / 3 for k, phase, share in waves)
        steps = points @ planes.T + swell[:, None]
        block = ((np.floor(steps) * 0.618) % 1.0 - 0.5).sum(1) / 2
        return amplitude * (swell + 0.8 * block)

    return at


def mine(stage: Stage) -> None:
    """A long winding drift with side drifts, supports, pipes, rails, ore carts, rubble and puddles."""
    rng = stage.rng
    stage.indoor = True
    stage.sky = make_sky(rng, "night")
    main, sides = _plan(rng)
    drifts = [main, *sides]
    _rock(stage, drifts)
    _support(stage, main)
    _services(stage, main)
    _rails(stage, main)
    _puddles(stage, drifts)
    for drift in drifts:
        _things(stage, drift)
    _lamps(stage, main)
    stage.headlight = np.array([9.0, 8.6, 7.6])
    stage.interior_ambient = np.full(3, 0.0015)
    stage.ground = lambda points: np.any(
        [d.inside(np.concatenate([points, np.full((len(points), 1), 0.5)], 1), 0.5) for d in drifts], axis=0
    )

    def view(r: Rng) -> tuple[np.ndarray, float]:
        s = r.uniform(4, main.length - 12)
        return main.place(s, r.uniform(-0.5, 0.5), r.uniform(0.5, 1.6)), main.yaw(s) + float(r.normal(0, 0.25))

    stage.view = view


def _plan(rng: Rng) -> tuple[Drift, list[Drift]]:
    """The main drift along x, about 75 m long, and the side drifts that leave it."""
    x = np.arange(0.0, 74.0, 1.0)
    y = sum(a * np.sin(x / size + rng.uniform(0, 6.28)) for a, size in ((2.6, 8.0), (1.1, 4.0)))
    main = Drift(np.stack([x, y], -1), rng.uniform(3.8, 4.8), rng.uniform(2.7, 3.4))
    sides, s = [], rng.uniform(7, 12)
    out = float(rng.choice([-1, 1]))
    while s < main.length - 8:
        angle = main.yaw(s) + out * rng.uniform(0.7, 1.4)
        t = np.arange(0.0, rng.uniform(7, 13), 1.0)
        bend = rng.normal(0, 0.03)
        heading = angle + bend * t
        line = main.place(s, 0)[:2] + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], -1), 0)
        sides.append(Drift(np.concatenate([[main.place(s, 0)[:2]], line]), rng.uniform(2.8, 4.2), rng.uniform(2.3, 3)))
        out = -out
        s += rng.uniform(9, 15)
    return main, sides


def _rock(stage: Stage, drifts: list[Drift]) -> None:
    """The rock round the drifts; what would stand in another drift is left out."""
    rng = stage.rng
    shape = bumps(rng, rng.uniform(0.16, 0.26))
    stone = np.array([[1.0, 0.72, 0.5], [0.9, 0.95, 1.05], [1.0, 0.9, 0.75], [0.85, 0.6, 0.5]][int(rng.integers(0, 4))])
    walls = stage.mat("cobble|dirt|concrete", tint=stone, mean=rng.uniform(0.1, 0.3), scale=1.8, macro=0.4, spec=0.03)
    ground = stage.mat("gravel|dirt", tint=stone, mean=rng.uniform(0.06, 0.2), macro=0.4)
    for number, drift in enumerate(drifts):
        mesh, corners = drift.rock(shape)
        ground_face = mesh.part == 1
        hidden = np.zeros(len(corners), bool)
        for rank, other in enumerate(drifts):
            if other is not drift:
                within = other.inside(corners.reshape(-1, 3), 0.12).reshape(-1, 3).all(1)
                # Where drifts meet, the ground of one of them stays.
                hidden |= within & (~ground_face | (rank < number))
        mesh.f, mesh.part = mesh.f[~hidden], mesh.part[~hidden]
        stage.add(mesh, [walls, ground])


def _support(stage: Stage, main: Drift) -> None:
    """Steel arches, timber sets, or nothing but rock."""
    rng = stage.rng
    kind = str(rng.choice(["arches", "timber", "both"]))
    steel = stage.mat("metal", tint=np.array([1.0, 0.7, 0.5]), mean=rng.uniform(0.06, 0.25))
    wood = stage.mat("bark|wood", mean=rng.uniform(0.08, 0.25))
    points, _ = main.profile()
    arch = points[_FLOOR:-1] * [0.93, 0.95]
    s = rng.uniform(1, 3)
    while s < main.length - 2:
        yaw = main.yaw(s)
        left = np.array([-np.sin(yaw), np.cos(yaw)])
        if kind == "arches" or (kind == "both" and s < main.length / 2):
            line = main.place(s, 0)[None] + np.concatenate([arch[:, :1] * left, arch[:, 1:]], 1)
            stage.add(tube(line, 0.06, 6), steel)
            s += rng.uniform(1.2, 2.2)
            continue
        half, top = main.width / 2 - 0.3, main.height * 0.78
        for side in (-half, half):
            foot = main.place(s, side, -0.1)
            stage.add(tube([foot, foot + np.array([*(-0.08 * np.sign(side) * left), top])], 0.11, 9), wood)
        ends = [main.place(s, side, top) for side in (-half - 0.15, half + 0.15)]
        stage.add(tube(ends, 0.12, 9), wood)
        for side in np.linspace(-half, half, 6):  # lagging under the roof
            if rng.random() < 0.7:
                stage.add(tube([main.place(s, side, top + 0.16), main.place(s + 1.8, side, top + 0.2)], 0.05, 5), wood)
        s += rng.uniform(1.6, 2.6)


def _services(stage: Stage, main: Drift) -> None:
    """Pipes, cables and an air duct along the main drift."""
    rng = stage.rng
    wall = float(rng.choice([-1, 1]))
    end = main.length - 1.5
    for z in np.arange(0.5, 1.7, rng.uniform(0.25, 0.6)):
        r = rng.uniform(0.03, 0.11)
        paint = stage.mat("metal|plain", mean=rng.uniform(0.08, 0.6))
        stage.add(tube(main.parallel(wall * (main.width / 2 - 0.32 - r), z, 0.5, end), r, 8), paint)
    for z in (1.55, 1.75, 1.85)[: int(rng.integers(1, 4))]:
        line = main.parallel(-wall * (main.width / 2 - 0.36), z, 0.5, end, 0.4)
        line[:, 2] -= 0.12 * np.abs(np.sin(np.arange(len(line)) * 0.6 + z))
        stage.add(tube(line, 0.02, 5), stage.mat("plain", mean=0.03))
    if rng.random() < 0.8:
        r = rng.uniform(0.25, 0.38)
        line = main.parallel(-wall * main.width * 0.17, main.height - r - 0.28, 0.5, end)
        line[:, 2] += 0.03 * np.sin(np.arange(len(line)) * 1.3)
        colour = np.array([[1.0, 0.75, 0.1], [1.0, 0.4, 0.1], [0.3, 0.5, 0.9]][int(rng.integers(0, 3))])
        stage.add(tube(line, r, 16), stage.mat("fabric|plain", tint=colour, mean=rng.uniform(0.2, 0.45)))


def _rails(stage: Stage, main: Drift) -> None:
    """Rails on sleepers and a train of ore carts on them."""
    rng = stage.rng
    side = float(rng.choice([-1, 1])) * main.width * 0.2
    steel = stage.mat("metal", mean=0.15, spec=0.4, rough=0.25)
    wood = stage.mat("wood|bark", mean=0.1)
    for k in (-0.3, 0.3):
        stage.add(tube(main.parallel(side + k, 0.07, 0.5, main.length - 1), 0.028, 5), steel)
    s = np.arange(0.6, main.length - 1, 0.75)
    at = np.array([main.place(d, side, 0.01) for d in s])
    yaws = np.array([main.yaw(d) for d in s])
    stage.add(boxes(at, (0.18, 1.0, 0.08), yaws), wood)
    begin = rng.uniform(6, 12)
    paint = stage.mat("metal|plain", mean=rng.uniform(0.04, 0.2))
    ore = stage.mat("gravel|cobble", mean=rng.uniform(0.04, 0.25))
    while begin < main.length - 6:
        for _ in range(int(rng.integers(1, 4))):
            if begin > main.length - 4:
                break
            place = main.place(begin, side, 0.09)
            stage.add(cart(rng), [paint, ore, steel, steel], main.yaw(begin), place)
            stage.taken.append((float(place[0]), float(place[1]), 0.8))
            begin += 1.75
        begin += rng.uniform(7, 16)


def cart(rng: Rng) -> Mesh:
    """An ore cart along x. Parts: 0 tub, 1 ore, 2 and 3 wheels and frame."""
    tub = prism([(-0.55, 0.35), (0.55, 0.35), (0.72, 1.0), (-0.72, 1.0)], 0.9, 0)
    heap = lumpy(rng, (0.6, 0.4, 0.2), 0.12, 6, 12, 1).moved(offset=(0, 0, 1.0))
    wheels = [wheel(0.17, 0.08).moved(offset=(x, y, 0.15)) for x in (-0.35, 0.35) for y in (-0.32, 0.32)]
    return join([tub, heap, *wheels, box((0, 0, 0.28), (1.5, 0.3, 0.12), 0, 3)])


def _puddles(stage: Stage, drifts: list[Drift]) -> None:
    """Water in the hollows of the ground, and mud."""
    rng = stage.rng
    water = stage.mat("plain", mean=0.015, spec=0.05, rough=0.02, macro=0.0)
    for drift in drifts:
        for _ in range(int(drift.length / 9) + 1):
            at = drift.place(rng.uniform(0, drift.length - 1), rng.normal(0, 0.5), -0.015)
            # Level and wider than the hollow: the ground round it stands higher.
            stage.add(box((0, 0, -0.01), (rng.uniform(1, 4), rng.uniform(0.6, 1.6), 0.02)), water, drift.yaw(1), at)


def _things(stage: Stage, drift: Drift) -> None:
    """Rubble at the walls, barrels, pallets, people, cribs of timber."""
    rng = stage.rng
    stone = stage.mat("cobble|concrete|dirt", mean=rng.uniform(0.08, 0.25))
    for _ in range(int(drift.length * 1.6)):
        s, side = rng.uniform(1, drift.length - 0.8), float(rng.choice([-1, 1]))
        size = rng.uniform(0.06, 0.32)
        at = drift.place(s, side * (drift.width / 2 - 0.15 - abs(rng.normal(0, 0.3))), size * 0.3)
        stage.add(lumpy(rng, size * rng.uniform(0.6, 1.3, 3), 0.16, 5, 8), stone, rng.uniform(0, 6.28), at)
    wood = stage.mat("wood|bark|planks", mean=rng.uniform(0.1, 0.3))
    for _ in range(int(drift.length / 4)):
        s, side = rng.uniform(2, drift.length - 1.5), float(rng.choice([-1, 1]))
        at = drift.place(s, side * (drift.width / 2 - 0.75))
        if not stage.free(at[0], at[1], 0.6):
            continue
        kind = str(rng.choice(["bin", "pallet", "person", "crib", "thing", "sign"], p=[0.3, 0.2, 0.15, 0.2, 0.1, 0.05]))
        if kind != "crib":
            stage.put(kind, at, rng.uniform(0, 6.28), claim=0.7)
            continue
        stage.add(crib(int(rng.integers(4, 14))), wood, rng.uniform(0, 1.5), at)
        stage.taken.append((float(at[0]), float(at[1]), 0.6))


def crib(layers: int) -> Mesh:
    """A stack of crossed timbers that holds the roof up. Parts: 0."""
    beams = []
    for k in range(layers):
        z = 0.07 + 0.14 * k
        for d in (-0.3, 0.3):
            beams.append(box((d, 0, z), (0.14, 0.9, 0.13)) if k % 2 else box((0, d, z), (0.9, 0.14, 0.13)))
    return join(beams)


def _lamps(stage: Stage, main: Drift) -> None:
    """A lamp at the roof here and there, some of them dead."""
    rng = stage.rng
    colour = np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.45, 0.95)])
    s = rng.uniform(3, 15)
    while s < main.length - 3:
        on = rng.random() < 0.7
        z = main.height - 0.45
        at, yaw = main.place(s, 0, z), main.yaw(s)
        glow = stage.mat("plain", mean=0.7, emission=colour * 8 if on else (0, 0, 0))
        stage.add(box((0, 0, 0.05), (0.5, 0.14, 0.09)), glow, yaw, at)
        if on:
            u = np.array([np.cos(yaw), np.sin(yaw), 0]) * 0.5
            v = np.array([np.sin(yaw), -np.cos(yaw), 0]) * 0.14
            stage.lamp(at - u / 2 - v / 2 - [0, 0, 0.01], u, v, colour * rng.uniform(4, 12))
        s += rng.uniform(9, 18)
