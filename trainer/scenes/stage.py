"""What all families of scenes share: the stage on which objects are put, and the shell of rooms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .geometry import Builder, Mesh, box, boxes, join, quad, rot_z
from .lighting import Sky, make_sky
from .objects import ObjectBank
from .render import Lighting
from .textures import Bank

Rng = np.random.Generator
# Where a robot carries its headlight, in the camera's frame: to its right and above, so that things cast shadows.
HEADLIGHT_AT = np.array([0.25, -0.3, 0.0])
BODY = "plain|wood|metal|fabric|plain|speckled|cardboard|corrugated|marble"


@dataclass
class Stage:
    """A scene being built. `taken` holds discs (x, y, radius) where things stand; `view` proposes cameras.

    `ground`: which of the points (n, 2) a robot may drive on, None for all. `headlight`: irradiance (3,) at 1 m of a
    lamp that the camera carries, the key light then.
    """

    rng: Rng
    bank: Bank
    objects: ObjectBank
    family: str
    builder: Builder = field(default_factory=Builder)
    taken: list[tuple[float, float, float]] = field(default_factory=list)
    lights: list[np.ndarray] = field(default_factory=list)
    sky: Sky | None = None
    indoor: bool = False
    interior_ambient: np.ndarray = field(default_factory=lambda: np.full(3, 0.01))
    view: Callable[[Rng], tuple[np.ndarray, float]] | None = None
    warp: Callable[[np.ndarray], np.ndarray] | None = None
    lamps: list[np.ndarray] = field(default_factory=list)
    headlight: np.ndarray | None = None
    ground: Callable[[np.ndarray], np.ndarray] | None = None

    def mat(self, category: str, **kw: Any) -> int:
        """A new material of the category (or of several, '|' between); see `Bank.material`."""
        return self.builder.material(self.bank.material(self.rng, category, **kw))

    def shade(self, lo: float = 0.02, hi: float = 0.8, **kw: Any) -> int:
        """A thing's material of any kind, its mean albedo between lo and hi."""
        return self.mat(BODY, mean=float(self.rng.uniform(lo, hi)), **kw)

    def add(
        self, mesh: Mesh, mats: ArrayLike, yaw: float = 0.0, at: ArrayLike = (0.0, 0.0, 0.0), scale: ArrayLike = 1.0
    ) -> None:
        """Adds a mesh turned about z and moved."""
        self.builder.add(mesh, mats, rot_z(yaw) if yaw else None, at, scale)

    def free(self, x: float, y: float, r: float) -> bool:
        """Whether a disc is clear of all things."""
        return all((x - a) ** 2 + (y - b) ** 2 > (r + c) ** 2 for a, b, c in self.taken)

    def put(
        self, kind: str, at: ArrayLike, yaw: float, scale: ArrayLike = 1.0, mats: ArrayLike = None, claim: float = 1.0
    ) -> None:
        """Puts an object of the bank on the ground at (x, y[, z]) with materials fit for its kind."""
        # few large leaves do for greens that the camera stays away from
        away = np.hypot(max(abs(at[0] - 15) - 25, 0), at[1]) > (22 if kind == "tree" else 16)
        mesh = self.objects.pick(self.rng, f"{kind}_far" if away and kind in ("tree", "bush") else kind)
        z = at[2] if len(at) > 2 else 0.0
        self.add(mesh, mats if mats is not None else dress(self, kind), yaw, (at[0], at[1], z), scale)
        if claim > 0:
            reach = float(np.linalg.norm(np.abs(mesh.v[:, :2]).max(0) * np.max(scale))) * 0.75 * claim
            self.taken.append((float(at[0]), float(at[1]), reach))

    def box(self, center: ArrayLike, size: ArrayLike, mat: int, yaw: float = 0.0) -> None:
        """Adds one box."""
        self.add(box(center, size, yaw), mat)

    def lamp(self, corner: ArrayLike, u: ArrayLike, v: ArrayLike, rgb: ArrayLike, lit: bool = True) -> None:
        """A rectangular light emitting along u × v; its face is seen too."""
        u, v = np.asarray(u, float), np.asarray(v, float)
        if lit:
            self.lights.append(np.concatenate([corner, u, v, rgb]))

    def lighting(self, sky: Sky | None = None) -> Lighting:
        """The light of the finished stage, under another sky if one is given."""
        sky = sky or self.sky or make_sky(self.rng)
        amb = self.interior_ambient if self.indoor else sky.mean * 0.5 + sky.sun_rgb * 0.03
        if self.headlight is not None:
            return Lighting(
                sky=sky.radiance,
                key_rgb=self.headlight,
                key_at=np.zeros(3),
                key_is_point=True,
                key_radius=0.05,
                lights=self.lights,
                ambient=amb,
                open_sky=False,
                carried_at=HEADLIGHT_AT,
            )
        if self.lamps:
            return Lighting(
                sky=sky.radiance,
                key_rgb=np.array([2.4, 1.9, 1.3]),
                key_at=self.lamps[0],
                key_is_point=True,
                key_radius=0.05,
                lights=self.lights,
                ambient=amb,
                open_sky=False,
            )
        return Lighting(
            sky=sky.radiance,
            key_rgb=sky.sun_rgb,
            key_at=sky.sun,
            lights=self.lights,
            ambient=amb,
            open_sky=not self.indoor,
        )


def dress(stage: Stage, kind: str) -> list[int]:
    """Materials for the parts of an object of the kind."""
    rng, mat = stage.rng, stage.mat
    u = rng.uniform
    if kind == "person":
        skin = mat("plain", tint=np.array([1.0, 0.72, 0.55]) * u(0.9, 1.1), mean=u(0.06, 0.5), spec=0.02)
        hair = mat("bark", mean=u(0.01, 0.15), scale=0.1)
        cloth = [
            mat("fabric|fabric|stripes|plain|camo|poster", mean=u(0.02, 0.75), scale=u(0.5, 1.5)) for _ in range(4)
        ]
        return [skin, cloth[0], cloth[1], hair, cloth[2], cloth[3]]
    if kind in ("tree", "bush", "hedge"):
        tint = np.array([1, 1, 1]) * u(0.7, 1.3)
        a, b = (mat("foliage", tint=tint * u(0.7, 1.3), mean=u(0.04, 0.2)) for _ in range(2))
        inside = mat("foliage", mean=0.02) if kind != "tree" else mat("bark", mean=u(0.04, 0.25))
        return [inside, a, b]
    if kind == "car":
        paint = mat(
            "plain",
            mean=float(rng.choice([0.02, 0.05, 0.2, 0.4, 0.75])) * u(0.7, 1.2),
            spec=0.05,
            rough=u(0.02, 0.2),
            macro=0,
        )
        glass = mat("plain", mean=0.015, spec=u(0.05, 0.12), rough=0.02, macro=0)
        tyre, rim = mat("asphalt", mean=0.02), mat("metal", mean=u(0.1, 0.5), spec=0.4)
        front, rear = (
            mat("plain", mean=0.7, spec=0.2, rough=0.1),
            mat("plain", tint=np.array([1.6, 0.15, 0.12]), mean=0.15, spec=0.05),
        )
        return [paint, glass, tyre, rim, front, rear]
    if kind == "rock":
        return [mat("concrete|dirt|cobble|speckled", mean=u(0.1, 0.5))]
    if kind in ("table", "cabinet", "shelf", "bench", "bed"):
        wood = mat("wood|wood|planks|plain|marble", mean=u(0.04, 0.8))
        rest = [mat("plain|poster|metal|cardboard|stripes|fabric|goods", mean=u(0.03, 0.8)) for _ in range(5)]
        if kind == "bed":
            return [mat("fabric|stripes|plain|carpet", mean=u(0.05, 0.85)), mat("fabric|plain", mean=u(0.3, 0.9)), wood]
        if kind == "cabinet":
            door = wood if rng.random() < 0.5 else mat("wood|plain|plain|marble", mean=u(0.05, 0.85))
            return [
                wood,
                door,
                mat("metal", mean=u(0.1, 0.6), spec=0.5),
                mat("marble|wood|speckled|plain", mean=u(0.03, 0.8)),
            ]
        return [wood, *rest]
    if kind == "sofa":
        cloth = mat("fabric|fabric|carpet|stripes|plain", mean=u(0.03, 0.75))
        return [
            cloth,
            mat("fabric|stripes|wallpaper|poster", mean=u(0.05, 0.8)) if rng.random() < 0.6 else cloth,
            mat("wood|metal"),
        ]
    if kind == "chair":
        legs = (
            mat("metal", mean=u(0.2, 0.7), spec=u(0.4, 0.9), rough=u(0.03, 0.3))
            if rng.random() < 0.5
            else mat("wood|plain", mean=u(0.02, 0.8))
        )
        return [mat("wood|plain|fabric|plain|stripes", mean=u(0.03, 0.9)), legs]
    if kind == "floor_lamp":
        glow = np.array([1.0, 0.8, 0.55]) * (u(1, 5) if rng.random() < 0.5 else 0)
        return [mat("metal|plain", mean=u(0.02, 0.6)), mat("fabric|plain", mean=u(0.4, 0.9), emission=glow)]
    if kind == "plant":
        return [
            mat("plain|speckled|tiles", mean=u(0.05, 0.8)),
            mat("foliage", mean=0.06),
            mat("foliage", mean=u(0.05, 0.2), spec=0.04),
        ]
    if kind == "bicycle":
        return [
            mat("plain|metal", mean=u(0.02, 0.6), spec=0.05, rough=0.15),
            mat("asphalt", mean=0.02),
            mat("metal", mean=u(0.1, 0.5), spec=0.5),
        ]
    if kind == "sign":
        return [mat("metal|plain", mean=u(0.1, 0.5)), mat("poster|plain", mean=u(0.2, 0.8), scale=u(0.8, 2))]
    if kind == "pallet":
        return [
            mat("wood|planks", mean=u(0.1, 0.5)),
            *[mat("cardboard|cardboard|plain|poster", mean=u(0.1, 0.6)) for _ in range(3)],
        ]
    if kind == "thing":
        return [mat("plain|poster|metal|marble|tiles|speckled", mean=u(0.03, 0.85), scale=u(0.3, 1))]
    return [stage.shade() for _ in range(4)]


def strip(x0: float, x1: float, y0: float, y1: float, z: float, step: float = 4.0) -> Mesh:
    """A level strip along x, cut every `step` metres so that it can be bent afterwards."""
    xs = np.linspace(x0, x1, max(2, int((x1 - x0) / step) + 1))
    n = len(xs)
    v = np.zeros((2 * n, 3), np.float32)
    v[:n, 0] = v[n:, 0] = xs
    v[:n, 1], v[n:, 1] = y0, y1
    v[:, 2] = z
    i = np.arange(n - 1)
    f = np.concatenate([np.stack([i, i + 1, i + 1 + n], -1), np.stack([i, i + 1 + n, i + n], -1)]).astype(np.int32)
    normal = np.tile(np.array([0, 0, 1], np.float32), (2 * n, 1))
    return Mesh(v, normal, v[:, :2].copy(), f, np.zeros(len(f), np.int32))


Opening = tuple[float, float, float, float]  # from, to along the wall, and from, to upwards, metres


def wall(p0: ArrayLike, p1: ArrayLike, height: float, thick: float, openings: list[Opening]) -> Mesh:
    """A wall from p0 to p1 (x, y) of boxes around its openings; its inner face runs along p0–p1, inside is left."""
    p0, p1 = np.asarray(p0, float), np.asarray(p1, float)
    length = float(np.linalg.norm(p1 - p0))
    yaw = float(np.arctan2(p1[1] - p0[1], p1[0] - p0[0]))
    centers, sizes = [], []

    def piece(a: float, b: float, z0: float, z1: float) -> None:
        if b - a > 1e-3 and z1 - z0 > 1e-3:
            centers.append(((a + b) / 2, -thick / 2, (z0 + z1) / 2))
            sizes.append((b - a, thick, z1 - z0))

    at = -thick  # corners overlap
    for a, b, z0, z1 in sorted(openings):
        piece(at, a, 0, height)
        piece(a, b, 0, z0)
        piece(a, b, z1, height)
        at = b
    piece(at, length + thick, 0, height)
    return boxes(centers, np.array(sizes)).moved(rot_z(yaw), (p0[0], p0[1], 0))


def along(p0: ArrayLike, p1: ArrayLike, s: float, inward: float = 0.0, z: float = 0.0) -> np.ndarray:
    """The point s metres along the wall p0–p1, `inward` metres inside, at height z."""
    p0, p1 = np.asarray(p0, float), np.asarray(p1, float)
    d = (p1 - p0) / np.linalg.norm(p1 - p0)
    n = np.array([-d[1], d[0]])
    return np.array([*(p0 + d * s + n * inward), z])


def rect_corners(x0: float, x1: float, y0: float, y1: float) -> list[tuple[float, float]]:
    """Corners of a rectangle, anticlockwise, so that the inside is left of each side."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def clutter(stage: Stage, x: float, y: float, z: float, n: int, spread: float) -> None:
    """A few small things about a place."""
    for _ in range(n):
        a = stage.rng.normal(0, spread, 2)
        stage.put("thing", (x + a[0], y + a[1], z), stage.rng.uniform(0, 6.28), stage.rng.uniform(0.6, 1.5), claim=0)


def frame(size: ArrayLike, width: float, depth: float) -> Mesh:
    """A rectangular frame in the x, z plane: size (w, h) outside, standing on z = 0."""
    w, h = size
    return join(
        [
            boxes(
                [
                    (-w / 2 + width / 2, 0, h / 2),
                    (w / 2 - width / 2, 0, h / 2),
                    (0, 0, width / 2),
                    (0, 0, h - width / 2),
                ],
                [(width, depth, h), (width, depth, h), (w, depth, width), (w, depth, width)],
            )
        ]
    )


def panel(center: ArrayLike, u: ArrayLike, v: ArrayLike) -> Mesh:
    """A rectangle about a centre with full edges u and v."""
    c, u, v = (np.asarray(a, float) for a in (center, u, v))
    return quad(c - u / 2 - v / 2, u, v)
