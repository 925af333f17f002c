"""Triangle meshes in numpy: primitives, and the builder that merges them into one mesh with materials.

World frame: x, y level, z up, metres. A scene is ONE mesh, because then every scene runs the same compiled
kernels (see `render.py`), and building it costs little more than concatenating arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass
class Mesh:
    """A piece of geometry.

    v (n, 3) float32 positions in metres, n (n, 3) float32 unit normals, uv (n, 2) float32 texture
    coordinates in metres along the surface, f (m, 3) int32 vertex indices, part (m,) int32 which of the
    materials handed to `Builder.add` each face takes.
    """

    v: np.ndarray
    n: np.ndarray
    uv: np.ndarray
    f: np.ndarray
    part: np.ndarray

    def moved(
        self, rotation: np.ndarray | None = None, offset: ArrayLike = (0.0, 0.0, 0.0), scale: ArrayLike = 1.0
    ) -> Mesh:
        """The mesh scaled (a number or x, y, z), rotated by `rotation` (3, 3), then shifted by `offset`."""
        s = np.asarray(scale, np.float32)
        v = self.v * s
        n = self.n
        if s.ndim:
            n = n / s
            n = n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)
        if rotation is not None:
            r = np.asarray(rotation, np.float32).T
            v, n = v @ r, n @ r
        return Mesh(v + np.asarray(offset, np.float32), n, self.uv, self.f, self.part)

    def as_part(self, part: int) -> Mesh:
        """The same mesh with every face on material number `part`."""
        return Mesh(self.v, self.n, self.uv, self.f, np.full(len(self.f), part, np.int32))


def join(meshes: list[Mesh]) -> Mesh:
    """One mesh of several."""
    starts = np.cumsum([0] + [len(m.v) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.v for m in meshes]).astype(np.float32),
        np.concatenate([m.n for m in meshes]).astype(np.float32),
        np.concatenate([m.uv for m in meshes]).astype(np.float32),
        np.concatenate([m.f + s for m, s in zip(meshes, starts, strict=True)]).astype(np.int32),
        np.concatenate([m.part for m in meshes]).astype(np.int32),
    )


def rot_z(angle: float) -> np.ndarray:
    """Rotation (3, 3) about z by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)


def rot_x(angle: float) -> np.ndarray:
    """Rotation (3, 3) about x by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]], np.float32)


def rot_y(angle: float) -> np.ndarray:
    """Rotation (3, 3) about y by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def smooth_normals(v: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Area-weighted vertex normals (n, 3) of the triangles `f` on the points `v`."""
    p = v[f]
    g = np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])
    n = np.zeros_like(v)
    for k in range(3):
        for c in range(3):
            n[:, c] += np.bincount(f[:, k], g[:, c], len(v)).astype(np.float32)
    return n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-12)


def triangles(v: ArrayLike, f: ArrayLike, uv: ArrayLike, n: ArrayLike = None, part: int = 0) -> Mesh:
    """A mesh of points (n, 3), faces (m, 3), uv (n, 2); smooth normals are made if none are given."""
    v = np.asarray(v, np.float32)
    f = np.asarray(f, np.int32)
    n = smooth_normals(v, f) if n is None else np.asarray(n, np.float32)
    return Mesh(v, n, np.asarray(uv, np.float32), f, np.full(len(f), part, np.int32))


# corner signs of the four vertices of each box side, the axis of its normal and the axes of its texture
_BOX_N = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float32)
_BOX_U = np.array([[0, 1, 0], [0, -1, 0], [-1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], np.float32)
_BOX_V = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 0], [0, -1, 0]], np.float32)


def boxes(centers: ArrayLike, sizes: ArrayLike, yaws: ArrayLike = 0.0, part: ArrayLike = 0) -> Mesh:
    """k boxes at once: centers (k, 3), sizes (k, 3) full edge lengths, yaws (k,) radians, part a number or (k,)."""
    c = np.atleast_2d(np.asarray(centers, np.float32))
    k = len(c)
    s = np.broadcast_to(np.asarray(sizes, np.float32), (k, 3)) / 2
    yaw = np.broadcast_to(np.asarray(yaws, np.float32), (k,))
    corner = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
    sides = _BOX_N[:, None] + _BOX_U[:, None] * corner[None, :, :1] + _BOX_V[:, None] * corner[None, :, 1:]
    v = sides[None] * s[:, None, None]  # (k, 6, 4, 3)
    u_half = np.abs(np.einsum("sc,kc->ks", np.abs(_BOX_U), s))
    v_half = np.abs(np.einsum("sc,kc->ks", np.abs(_BOX_V), s))
    uv = np.stack([corner[None, None, :, 0] * u_half[..., None], corner[None, None, :, 1] * v_half[..., None]], -1)
    # a shift per side keeps neighbouring sides from showing the same patch of texture
    uv = uv + (np.arange(6, dtype=np.float32) * 0.37)[None, :, None, None] + c[:, None, None, :2] * 0.77
    r = np.zeros((k, 3, 3), np.float32)
    r[:, 0, 0] = r[:, 1, 1] = np.cos(yaw)
    r[:, 1, 0], r[:, 0, 1], r[:, 2, 2] = np.sin(yaw), -np.sin(yaw), 1
    v = np.einsum("kij,ksqj->ksqi", r, v) + c[:, None, None]
    n = np.broadcast_to(np.einsum("kij,sj->ksi", r, _BOX_N)[:, :, None], v.shape)
    base = np.arange(k * 6, dtype=np.int32)[:, None, None] * 4
    f = (base + np.array([[0, 1, 2], [0, 2, 3]], np.int32)[None]).reshape(-1, 3)
    mesh = triangles(v.reshape(-1, 3), f, uv.reshape(-1, 2), n.reshape(-1, 3))
    mesh.part = np.repeat(np.broadcast_to(np.asarray(part, np.int32), (k,)), 12).astype(np.int32)
    return mesh


def box(center: ArrayLike, size: ArrayLike, yaw: float = 0.0, part: int = 0) -> Mesh:
    """One box: centre (3,), full size (3,), yaw in radians."""
    return boxes([center], [size], [yaw], part)


def quad(origin: ArrayLike, u: ArrayLike, v: ArrayLike, part: int = 0) -> Mesh:
    """A parallelogram from a corner `origin` and two edges u, v (3,), metres; its normal is u × v."""
    o, u, v = (np.asarray(a, np.float32) for a in (origin, u, v))
    lu, lv = float(np.linalg.norm(u)), float(np.linalg.norm(v))
    n = np.cross(u, v) / max(lu * lv, 1e-9)
    pts = [o, o + u, o + u + v, o + v]
    return triangles(pts, [[0, 1, 2], [0, 2, 3]], [[0, 0], [lu, 0], [lu, lv], [0, lv]], [n] * 4, part)


def grid(xs: np.ndarray, ys: np.ndarray, height: ArrayLike, part: int = 0) -> Mesh:
    """A height field over the grid xs × ys (metres): `height` is an array (ny, nx) of z."""
    gx, gy = np.meshgrid(np.asarray(xs, np.float32), np.asarray(ys, np.float32))
    v = np.stack([gx, gy, np.broadcast_to(height, gx.shape)], -1).reshape(-1, 3)
    f = grid_faces(len(ys), len(xs))
    return triangles(v, f, v[:, :2].copy(), None, part)


def grid_faces(rows: int, cols: int) -> np.ndarray:
    """Faces of a grid of rows × cols points stored row by row."""
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(cols - 1), indexing="ij")
    a, b = i * cols + j, i * cols + (j + 1)
    c, d = a + cols, b + cols
    return np.stack([np.stack([a, b, d], -1), np.stack([a, d, c], -1)], 2).reshape(-1, 3).astype(np.int32)


def tube(
    points: ArrayLike, radii: ArrayLike, segments: int = 8, caps: bool = True, part: int = 0, flat: float = 1.0
) -> Mesh:
    """A tube along the polyline `points` (k, 3) with `radii` (k,) or a number, metres.

    `flat` squeezes the second axis of its cross section. Used for limbs, legs, branches, poles, rails, cables.
    """
    p = np.asarray(points, np.float32)
    k = len(p)
    r = np.broadcast_to(np.asarray(radii, np.float32), (k,)).copy()
    d = np.gradient(p, axis=0)
    d /= np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-9)
    ref = np.where(np.abs(d[:, 2:3]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]]) if k < 3 else None
    if ref is None:  # one reference for the whole line, or the section would twist where it turns upright
        mean = np.abs(d).mean(0)
        ref = np.zeros((k, 3))
        ref[:, int(np.argmin(mean))] = 1
    a = np.cross(d, ref)
    a /= np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-9)
    b = np.cross(d, a)
    if caps:  # a ring of (almost) no radius closes each end
        p = np.concatenate([p[:1], p, p[-1:]])
        a, b = np.concatenate([a[:1], a, a[-1:]]), np.concatenate([b[:1], b, b[-1:]])
        r = np.concatenate([[1e-4], r, [1e-4]])
    phi = np.linspace(0, 2 * np.pi, segments + 1)
    ring = a[:, None] * np.cos(phi)[None, :, None] + b[:, None] * (np.sin(phi) * flat)[None, :, None]
    v = (p[:, None] + ring * r[:, None, None]).reshape(-1, 3)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(p, axis=0), axis=1))])
    turn = phi * max(float(r.mean()), 0.01)
    uv = np.stack(np.broadcast_arrays(turn[None, :], length[:, None]), -1).reshape(-1, 2)
    f = grid_faces(len(p), segments + 1)[:, ::-1]
    n = ring / np.maximum(np.linalg.norm(ring, axis=2, keepdims=True), 1e-9)
    if caps:
        axis = d[[0, -1]] * np.array([[-1], [1]])
        n = n.copy()
        n[0], n[-1] = axis[0], axis[1]
    return triangles(v, f, uv, n.reshape(-1, 3), part)


def capsule(
    p0: ArrayLike, p1: ArrayLike, r0: float, r1: float, segments: int = 8, part: int = 0, flat: float = 1.0
) -> Mesh:
    """A limb from p0 to p1 (3,) with rounded ends of radius r0 and r1, metres."""
    p0, p1 = np.asarray(p0, float), np.asarray(p1, float)
    d = (p1 - p0) / max(np.linalg.norm(p1 - p0), 1e-9)
    pts = [p0 - d * r0 * 0.95, p0 - d * r0 * 0.6, p0, (p0 + p1) / 2, p1, p1 + d * r1 * 0.6, p1 + d * r1 * 0.95]
    rad = [r0 * 0.3, r0 * 0.8, r0, (r0 + r1) / 2 * 1.04, r1, r1 * 0.8, r1 * 0.3]
    return tube(pts, rad, segments, True, part, flat)


def sphere(center: ArrayLike, radius: ArrayLike, rings: int = 8, segments: int = 12, part: int = 0) -> Mesh:
    """A sphere (radius a number) or ellipsoid (radius of 3), metres."""
    r = np.broadcast_to(np.asarray(radius, np.float32), (3,))
    th = np.linspace(0, np.pi, rings + 1)
    ph = np.linspace(0, 2 * np.pi, segments + 1)
    n = np.stack(
        np.broadcast_arrays(
            np.sin(th)[:, None] * np.cos(ph)[None], np.sin(th)[:, None] * np.sin(ph)[None], np.cos(th)[:, None]
        ),
        -1,
    ).reshape(-1, 3)
    uv = np.stack(np.broadcast_arrays(ph[None] * r[0], th[:, None] * r[2]), -1).reshape(-1, 2)
    nn = n / r
    nn /= np.linalg.norm(nn, axis=1, keepdims=True)
    f = grid_faces(rings + 1, segments + 1)[:, ::-1]
    return triangles(n * r + np.asarray(center), f, uv, nn, part)


def lumpy(
    rng: np.random.Generator, radius: ArrayLike, roughness: float, rings: int = 9, segments: int = 14, part: int = 0
) -> Mesh:
    """A sphere or ellipsoid with random bumps (rocks, bushes, cushions): radius metres, roughness 0 to 0.5."""
    m = sphere((0, 0, 0), 1.0, rings, segments, part)
    bump = np.zeros(len(m.v))
    for freq in (1.3, 2.2, 3.7, 6.0):
        k = rng.normal(size=(3, 3)) * freq
        bump += (np.sin(m.v @ k + rng.uniform(0, 6.28, 3)).sum(1)) / freq
    v = m.v * (1 + roughness * bump[:, None]) * np.broadcast_to(np.asarray(radius, np.float32), (3,))
    scale = float(np.mean(radius))
    return triangles(v, m.f, m.uv * scale, None, part)


def lathe(profile: ArrayLike, segments: int = 12, part: int = 0) -> Mesh:
    """A body of revolution about z: profile (k, 2) of radius and height, metres (vases, bowls, lamps, cones)."""
    pr = np.asarray(profile, np.float32)
    ph = np.linspace(0, 2 * np.pi, segments + 1)
    v = np.stack(
        np.broadcast_arrays(pr[:, :1] * np.cos(ph)[None], pr[:, :1] * np.sin(ph)[None], pr[:, 1:]), -1
    ).reshape(-1, 3)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(pr, axis=0), axis=1))])
    uv = np.stack(np.broadcast_arrays(ph[None] * max(float(pr[:, 0].mean()), 0.01), length[:, None]), -1)
    return triangles(v, grid_faces(len(pr), segments + 1), uv.reshape(-1, 2), None, part)


def prism(outline: ArrayLike, depth: float, part: int = 0) -> Mesh:
    """A convex outline (k, 2) in x, z (metres, anticlockwise seen from -y) drawn out along y, centred, flat sides."""
    o = np.asarray(outline, np.float32)
    k = len(o)
    h = depth / 2
    front = np.stack([o[:, 0], np.full(k, -h), o[:, 1]], -1)
    back = np.stack([o[:, 0], np.full(k, h), o[:, 1]], -1)
    nxt = np.roll(np.arange(k), -1)
    sides = np.stack([front, front[nxt], back[nxt], back], 1)  # (k, 4, 3)
    d = o[nxt] - o
    length = np.linalg.norm(d, axis=1)
    n = np.stack([d[:, 1], np.zeros(k), -d[:, 0]], -1) / np.maximum(length[:, None], 1e-9)
    suv = np.zeros((k, 4, 2), np.float32)
    suv[:, 1:3, 0] = length[:, None]
    suv[:, 2:, 1] = depth
    fan = np.stack([np.zeros(k - 2), np.arange(1, k - 1), np.arange(2, k)], -1).astype(np.int32)
    quads = np.arange(k)[:, None, None] * 4 + np.array([[0, 1, 2], [0, 2, 3]])[None]
    v = np.concatenate([front, back, sides.reshape(-1, 3)])
    f = np.concatenate([fan, fan[:, ::-1] + k, quads.reshape(-1, 3) + 2 * k])
    nn = np.concatenate([np.tile([0, -1, 0], (k, 1)), np.tile([0, 1, 0], (k, 1)), np.repeat(n, 4, 0)])
    return triangles(v, f, np.concatenate([o, o, suv.reshape(-1, 2)]), nn, part)


def leaves(
    rng: np.random.Generator, points: np.ndarray, size: float, outward: np.ndarray | None = None, part: ArrayLike = 0
) -> Mesh:
    """Small bent quads at `points` (k, 3), about `size` metres; `outward` (k, 3) is the shading normal wished for.

    Foliage must be many small surfaces: its texture gradient and its holes are what a network sees of a tree.
    """
    k = len(points)
    a = rng.normal(size=(k, 3))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b = np.cross(a, rng.normal(size=(k, 3)))
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    s = size * rng.uniform(0.6, 1.4, (k, 1)) / 2
    c = np.cross(a, b)
    p = np.asarray(points)
    v = np.stack([p - a * s, p - b * s * 0.7 + c * s * 0.3, p + a * s, p + b * s * 0.7 + c * s * 0.3], 1)
    n = c if outward is None else outward * 0.75 + c * 0.5 * np.sign((c * outward).sum(1, keepdims=True))
    n = n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)
    f = (np.arange(k)[:, None, None] * 4 + np.array([[0, 1, 2], [0, 2, 3]])[None]).reshape(-1, 3)
    uv = rng.uniform(0, 8, (k, 1, 2)) + np.array([[0, 0], [1, 0], [1, 1], [0, 1]])[None] * size
    mesh = triangles(v.reshape(-1, 3), f, uv.reshape(-1, 2), np.repeat(n, 4, 0))
    # leaves are spread over the two or three parts given, so that a crown is not of one colour
    parts = np.atleast_1d(np.asarray(part, np.int32))
    mesh.part = np.repeat(parts[rng.integers(0, len(parts), k)], 2).astype(np.int32)
    return mesh


def blades(rng: np.random.Generator, points: np.ndarray, height: float, part: ArrayLike = 0) -> Mesh:
    """Upright blades of grass at `points` (k, 3), about `height` metres: a thin triangle each."""
    k = len(points)
    az = rng.uniform(0, 2 * np.pi, k)
    side = np.stack([np.cos(az), np.sin(az), 0 * az], -1)
    h = height * rng.uniform(0.4, 1.5, (k, 1))
    tip = np.asarray(points) + np.concatenate([rng.normal(0, 0.35, (k, 2)) * h, h], 1)
    w = height * rng.uniform(0.04, 0.12, (k, 1))
    v = np.stack([points - side * w, points + side * w, tip], 1).reshape(-1, 3)
    n = np.repeat(np.stack([0.3 * side[:, 1], -0.3 * side[:, 0], 0 * az + 0.95], -1), 3, 0)
    uv = rng.uniform(0, 9, (k, 1, 2)) + np.array([[0, 0], [0.02, 0], [0.01, height]])[None]
    mesh = triangles(v, np.arange(3 * k).reshape(k, 3), uv.reshape(-1, 2), n)
    parts = np.atleast_1d(np.asarray(part, np.int32))
    mesh.part = parts[rng.integers(0, len(parts), k)].astype(np.int32)
    return mesh


def sheet(width: float, height: float, waves: float, amplitude: float, rng: np.random.Generator, part: int = 0) -> Mesh:
    """A hanging wavy cloth in the x, z plane from z = 0 to `height`, metres: curtains, banners."""
    x = np.linspace(-width / 2, width / 2, int(10 + width * waves * 6))
    z = np.linspace(0, height, 6)
    phase = rng.uniform(0, 6.28)
    wob = rng.uniform(-0.6, 0.6, 4)
    ph = 2 * np.pi * waves * x + phase + wob[0] * np.sin(3 * x + wob[1] * 5)
    y = amplitude * np.sin(ph)[None] * (1.15 - 0.5 * (z / height))[:, None]
    v = np.stack(np.broadcast_arrays(x[None], y, z[:, None]), -1).reshape(-1, 3)
    f = grid_faces(len(z), len(x))
    return triangles(v, f, v[:, [0, 2]].copy(), None, part)


class Builder:
    """Collects meshes and materials of one scene.

    `materials` rows are described in `textures.py` (`Material.row`); row numbers are what `add` takes.
    """

    def __init__(self) -> None:
        self.meshes: list[Mesh] = []
        self.rows: list[np.ndarray] = []

    def material(self, row: np.ndarray) -> int:
        """Registers a material row and returns its number."""
        self.rows.append(row)
        return len(self.rows) - 1

    def add(
        self,
        mesh: Mesh,
        materials: ArrayLike,
        rotation: np.ndarray | None = None,
        offset: ArrayLike = (0.0, 0.0, 0.0),
        scale: ArrayLike = 1.0,
    ) -> None:
        """Adds a mesh at a place; `materials` is a material number or one per part of the mesh."""
        m = mesh.moved(rotation, offset, scale)
        table = np.atleast_1d(np.asarray(materials, np.int32))
        m.part = table[np.minimum(m.part, len(table) - 1)]
        self.meshes.append(m)

    def merged(self) -> Mesh:
        """All geometry as one mesh, `part` being the material number of each face."""
        return join(self.meshes)
