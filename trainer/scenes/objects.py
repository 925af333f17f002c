"""Things that stand in scenes: people, trees, cars, furniture. All stand on z = 0, centred on x = y = 0, metres.

Each function returns a `Mesh` whose `part` numbers say which material a face takes (listed in the docstrings);
materials are chosen by the families. `ObjectBank` makes a stock of them once per process.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .geometry import (
    Mesh,
    box,
    boxes,
    capsule,
    grid_faces,
    join,
    lathe,
    leaves,
    lumpy,
    prism,
    rot_x,
    rot_y,
    rot_z,
    sphere,
    triangles,
    tube,
)

Rng = np.random.Generator


def person(rng: Rng) -> Mesh:
    """A standing or walking person facing x. Parts: 0 skin, 1 top, 2 trousers or skirt, 3 hair, 4 shoes, 5 bag."""
    h = rng.uniform(0.93, 1.06)
    stride = rng.choice([rng.uniform(0.0, 0.08), rng.uniform(0.2, 0.5)])
    fat = rng.uniform(0.85, 1.25)
    out = []
    for side in (-1, 1):
        a = side * stride
        knee_bend = max(0.0, -a) * 0.9 + 0.05
        hip = np.array([0, side * 0.09, 0.9])
        knee = hip + 0.43 * np.array([np.sin(a), 0, -np.cos(a)])
        b = a - knee_bend
        ankle = knee + 0.42 * np.array([np.sin(b), 0, -np.cos(b)])
        out.append(capsule(hip, knee, 0.085 * fat, 0.06 * fat, 8, 2))
        out.append(capsule(knee, ankle, 0.062 * fat, 0.045, 8, 2))
        out.append(capsule(ankle + np.array([-0.03, 0, -0.04]), ankle + np.array([0.15, 0, -0.05]), 0.045, 0.04, 6, 4))
        # the arm swings against the leg of its side
        s = -a * rng.uniform(0.5, 1.1)
        elbow_bend = rng.choice([rng.uniform(0.1, 0.6), rng.uniform(0.8, 2.2)], p=[0.75, 0.25])
        shoulder = np.array([0, side * 0.19 * fat, 1.42])
        elbow = shoulder + 0.29 * np.array([np.sin(s), side * 0.15, -np.cos(s)])
        hand = elbow + 0.26 * np.array([np.sin(s + elbow_bend), side * 0.02, -np.cos(s + elbow_bend)])
        sleeve = int(rng.choice([0, 1]))
        out.append(capsule(shoulder, elbow, 0.052 * fat, 0.042, 7, 1))
        out.append(capsule(elbow, hand, 0.04, 0.03, 7, sleeve))
        out.append(sphere(hand + np.array([0, 0, -0.03]), (0.045, 0.025, 0.06), 5, 7, 0))
    torso = [(0.02, 0, 0.86), (0, 0, 0.98), (0, 0, 1.12), (0.01, 0, 1.3), (0, 0, 1.44), (0, 0, 1.5)]
    out.append(tube(torso, np.array([0.15, 0.165, 0.15, 0.18, 0.165, 0.07]) * fat, 12, True, 1, 0.66).moved(rot_z(0)))
    if rng.random() < 0.2:  # a skirt or coat
        out.append(lathe([(0.15, 1.0), (0.2 * fat, 0.8), (0.24, rng.uniform(0.4, 0.7))], 12, 2))
    out.append(tube([(0, 0, 1.46), (0.01, 0, 1.58)], 0.055, 8, False, 0))
    out.append(sphere((0.02, 0, 1.66), (0.1, 0.08, 0.125), 8, 12, 0))
    out.append(sphere((-0.012, 0, 1.69), (0.105, 0.09, 0.115 + 0.02 * rng.random()), 7, 12, 3))
    if rng.random() < 0.35:
        out.append(box((-0.2, 0, 1.22), (0.17, 0.3, 0.45), 0, 5))
    m = join(out)
    low = m.v[:, 2].min()
    return m.moved(offset=(0, 0, -low)).moved(scale=h)


def _points_in_ball(rng: Rng, n: int, shell: float) -> np.ndarray:
    d = rng.normal(size=(n, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    return d * rng.uniform(shell, 1.0, (n, 1)) ** (1 / 3)


def tree(rng: Rng, count: int = 4200, fine: float = 1.0) -> Mesh:
    """A tree 4 to 14 m high of `count` leaves, whose size goes with `fine`. Parts: 0 bark, 1 and 2 leaves."""
    kind = rng.choice(["round", "round", "tall", "conifer", "bare"])
    h = rng.uniform(4, 13)
    r0 = h * rng.uniform(0.014, 0.028)
    lean = rng.normal(0, 0.03, 2)
    trunk_z = np.linspace(-0.2, h * 0.85, 7)
    sway = np.cumsum(rng.normal(0, 0.03 * h / 7, (7, 2)), 0) + lean * trunk_z[:, None]
    line = np.concatenate([sway - sway[0], trunk_z[:, None]], 1)
    radii = r0 * np.array([1.5, 1, 0.9, 0.78, 0.6, 0.4, 0.15])
    out = [tube(line, radii, 8, False, 0)]
    ends = []
    for _ in range(int(rng.integers(6, 14)) * (2 if kind == "bare" else 1)):
        t = rng.uniform(0.3, 0.95)
        start = np.array([np.interp(t, np.linspace(0, 1, 7), line[:, c]) for c in range(3)])
        az, up = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.1)
        length = h * rng.uniform(0.12, 0.3) * (1.25 - t)
        end = start + length * np.array([np.cos(az) * np.cos(up), np.sin(az) * np.cos(up), np.sin(up)])
        mid = (start + end) / 2 + rng.normal(0, 0.06 * length, 3)
        out.append(tube([start, mid, end], r0 * np.array([0.5, 0.32, 0.12]) * (1.2 - 0.6 * t), 5, False, 0))
        ends.append(end)
        if kind == "bare":
            for _ in range(4):
                tip = end + rng.normal(0, 0.12 * h, 3) * [0.6, 0.6, 0.4] + [0, 0, 0.08 * h]
                out.append(tube([mid, (mid + tip) / 2, tip], r0 * np.array([0.16, 0.1, 0.04]), 4, False, 0))
    if kind == "bare":
        return join(out)
    if kind == "conifer":
        t = rng.random(count) ** 0.6
        az = rng.uniform(0, 2 * np.pi, count)
        tier = 0.75 + 0.25 * np.cos(t * 60)
        rad = h * 0.22 * t * tier * rng.uniform(0.5, 1.0, count) ** 0.5
        p = np.stack([rad * np.cos(az), rad * np.sin(az), h * (1.0 - 0.88 * t)], -1)
        d = np.stack([np.cos(az), np.sin(az), np.full(count, 0.4)], -1)
        out.append(leaves(rng, p, 0.043 * fine * h**0.8, d / np.linalg.norm(d, axis=1, keepdims=True), (1, 2)))
        return join(out)
    blobs = len(ends)
    each = count // blobs
    crown = h * (0.16 if kind == "round" else 0.11)
    for e in ends:
        d = _points_in_ball(rng, each, 0.25)
        size = crown * rng.uniform(0.6, 1.3) * np.array([1, 1, 0.8])
        norm = np.linalg.norm(d, axis=1, keepdims=True)
        out.append(
            leaves(
                rng,
                e + d * size,
                (h * 0.011 + 0.05) * fine,
                d / np.maximum(norm, 1e-6),
                (1, 2, int(rng.choice([1, 2]))),
            )
        )
    return join(out)


def bush(rng: Rng, count: int = 2400, fine: float = 1.0) -> Mesh:
    """A bush about 1 m high; the size of its leaves goes with `fine`. Parts: 0 dark inside, 1 and 2 leaves."""
    out = []
    for _ in range(int(rng.integers(2, 6))):
        r = rng.uniform(0.3, 0.6)
        at = np.array([*rng.uniform(-0.5, 0.5, 2), r * rng.uniform(0.5, 1.0)])
        core = lumpy(rng, r * 0.8, 0.12, 7, 10, 0)
        core.v += at
        d = _points_in_ball(rng, count // 4, 0.6)
        n = d / np.linalg.norm(d, axis=1, keepdims=True)
        out += [core, leaves(rng, at + d * r * 1.06, rng.uniform(0.035, 0.085) * fine, n, (1, 2))]
    return join(out)


def hedge(rng: Rng, length: float, height: float, depth: float, count: int = 2200) -> Mesh:
    """A trimmed hedge along x. Parts: 0 dark inside, 1 and 2 leaves."""
    u = rng.random((count, 3)) - 0.5
    side = rng.choice(3, count, p=[0.08, 0.62, 0.3])
    sign = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    u[np.arange(count), side] = 0.5 * np.where(side == 2, 1, sign)
    size = np.array([length, depth, height])
    p = u * size + [0, 0, height / 2]
    n = np.zeros((count, 3))
    n[np.arange(count), side] = np.where(side == 2, 1, sign)
    p += rng.normal(0, 0.06, p.shape) + 0.1 * np.sin(p[:, [1, 0, 0]] * 3)
    inner = box((0, 0, height * 0.46), size * [0.99, 0.8, 0.92], 0, 0)
    return join([inner, leaves(rng, p, rng.uniform(0.09, 0.2), n, (1, 2))])


def rock(rng: Rng) -> Mesh:
    """A rock about 1 m wide. Parts: 0 stone."""
    m = lumpy(rng, (0.5, rng.uniform(0.3, 0.6), rng.uniform(0.2, 0.5)), rng.uniform(0.05, 0.16), 10, 16)
    return m.moved(offset=(0, 0, 0.12))


def wheel(radius: float, width: float) -> Mesh:
    """A wheel with its axis along y, centred at its axle. Parts: 2 tyre, 3 rim."""
    y = np.array([-0.5, -0.5, -0.35, 0.35, 0.5, 0.5]) * width
    tyre = tube(
        [(0, a, 0) for a in (y[0], y[2], y[3], y[5])], [radius * 0.9, radius, radius, radius * 0.9], 18, True, 2
    )
    rim = tube([(0, -width * 0.52, 0), (0, width * 0.52, 0)], radius * 0.62, 14, True, 3)
    return join([tyre, rim])


_CARS = {  # length, width, body top, roof, cabin bottom (x0, x1), cabin top (x0, x1): fractions of the length
    "hatch": (3.9, 1.7, 0.92, 1.48, (-0.49, 0.26), (-0.4, 0.06)),
    "sedan": (4.6, 1.78, 0.92, 1.44, (-0.36, 0.24), (-0.22, 0.07)),
    "estate": (4.6, 1.78, 0.93, 1.46, (-0.49, 0.24), (-0.43, 0.07)),
    "suv": (4.5, 1.85, 1.08, 1.72, (-0.49, 0.24), (-0.43, 0.08)),
    "van": (5.0, 1.95, 1.15, 2.1, (-0.495, 0.44), (-0.49, 0.28)),
    "truck": (6.8, 2.2, 1.2, 3.0, (-0.499, 0.30), (-0.499, 0.295)),
    "bus": (9.5, 2.5, 1.1, 3.0, (-0.499, 0.495), (-0.495, 0.485)),
}


def car(rng: Rng, kind: str | None = None) -> Mesh:
    """A car facing x. Parts: 0 paint, 1 glass, 2 tyre and trim, 3 rim, 4 front lamp, 5 rear lamp."""
    kind = kind or str(rng.choice(list(_CARS), p=[0.25, 0.22, 0.17, 0.17, 0.1, 0.05, 0.04]))
    length, w, top, roof, bottom_x, top_x = _CARS[kind]
    low = 0.22 if kind not in ("truck", "bus") else 0.4
    # body: sections along x, each a rounded box; it narrows and drops towards the ends
    xs = np.linspace(-0.5, 0.5, 13)
    end = 1 - np.abs(2 * xs) ** 8 * 0.3
    drop = 1 - (np.clip(xs - 0.2, 0, 1) / 0.3) ** 2 * (0.2 if kind not in ("bus", "van", "truck") else 0.04)
    phi = np.linspace(0, 2 * np.pi, 25)
    cr = np.sign(np.cos(phi)) * np.abs(np.cos(phi)) ** 0.35
    sr = np.sign(np.sin(phi)) * np.abs(np.sin(phi)) ** 0.35
    rings = []
    for x, e, d in zip(xs, end, drop, strict=True):
        z0, z1 = low + 0.12 * (1 - e), low + (top - low) * d * (0.7 + 0.3 * e)
        rings.append(np.stack([np.full(25, x * length), cr * w / 2 * e, (z0 + z1) / 2 + sr * (z1 - z0) / 2], -1))
    rings = [
        np.repeat(rings[0].mean(0, keepdims=True), 25, 0),
        *rings,
        np.repeat(rings[-1].mean(0, keepdims=True), 25, 0),
    ]
    v = np.stack(rings).reshape(-1, 3)
    body = triangles(v, grid_faces(len(rings), 25), np.stack([v[:, 0], v[:, 2] + v[:, 1]], -1), None, 0)
    x0, x1 = (a * length for a in bottom_x)
    t0, t1 = (a * length for a in top_x)
    wide, narrow = w * 0.94, w * (0.76 if kind not in ("bus", "truck", "van") else 0.9)
    zb, zt = top - 0.07, roof
    glass_part = 0 if kind == "truck" else 1
    glass = _frustum(x0, x1, wide, zb, t0, t1, narrow, zt - 0.05, glass_part)
    lid = _frustum(t0 - 0.02, t1 + 0.03, narrow * 1.01, zt - 0.06, t0 + 0.1, t1 - 0.1, narrow * 0.86, zt, 0)
    out = [body, glass, lid]
    # pillars in the colour of the car
    for f in (0.0, 0.38, 0.66, 1.0) if kind != "truck" else ():
        for side in (-1, 1):
            a = np.array([x0 + (x1 - x0) * f, side * wide / 2, zb])
            b = np.array([t0 + (t1 - t0) * f, side * narrow / 2, zt - 0.04])
            out.append(tube([a, b], 0.045 if kind != "van" else 0.07, 5, False, 0))
    if kind in ("truck",):
        out.append(box((length * 0.41, 0, 1.45), (length * 0.17, w * 0.94, 1.7), 0, 0))
        out.append(box((length * 0.495, 0, 1.75), (0.02, w * 0.84, 0.7), 0, 1))
    if kind == "van" and rng.random() < 0.6:
        out.append(box((-length * 0.16, 0, 1.62), (length * 0.6, w * 0.93, 0.8), 0, 0))
    r = 0.32 if kind not in ("truck", "bus") else 0.47
    for fx in (-0.3, 0.32):
        for side in (-1, 1):
            out.append(wheel(r, 0.21).moved(offset=(fx * length, side * (w / 2 - 0.1), r)))
    for side in (-1, 1):
        out.append(box((length * 0.475, side * w * 0.34, top * 0.68), (0.16, 0.34, 0.14), 0, 4))
        out.append(box((-length * 0.48, side * w * 0.36, top * 0.78), (0.12, 0.24, 0.22), 0, 5))
        out.append(box((x1 - 0.1, side * (w / 2 + 0.07), top + 0.05), (0.12, 0.18, 0.13), 0, 2))
    for end_x in (-0.496, 0.5):
        out.append(box((end_x * length, 0, 0.42), (0.05, 0.52, 0.12), 0, 4))
    out.append(box((0, 0, low + 0.03), (length * 0.9, w * 0.97, 0.12), 0, 2))
    return join(out)


def _frustum(
    x0: float, x1: float, wide: float, z0: float, t0: float, t1: float, narrow: float, z1: float, part: int
) -> Mesh:
    b = np.array([[x0, -wide / 2, z0], [x1, -wide / 2, z0], [x1, wide / 2, z0], [x0, wide / 2, z0]], np.float32)
    t = np.array([[t0, -narrow / 2, z1], [t1, -narrow / 2, z1], [t1, narrow / 2, z1], [t0, narrow / 2, z1]], np.float32)
    out = []
    for k in range(4):
        j = (k + 1) % 4
        q = np.stack([b[k], b[j], t[j], t[k]])
        n = np.cross(q[1] - q[0], q[3] - q[0])
        n /= np.linalg.norm(n)
        out.append(triangles(q, [[0, 1, 2], [0, 2, 3]], q[:, [0, 2]] + q[:, 1:2], [n] * 4, part))
    out.append(triangles(t, [[0, 1, 2], [0, 2, 3]], t[:, :2], [[0, 0, 1]] * 4, part))
    return join(out)


def _arc(points: ArrayLike, n: int = 9) -> np.ndarray:
    """A smooth line (n, 3) through a few control points (quadratic blends)."""
    p = np.asarray(points, float)
    t = np.linspace(0, len(p) - 1, n * 4)
    line = np.stack([np.interp(t, np.arange(len(p)), p[:, c]) for c in range(3)], -1)
    for _ in range(10):
        line[1:-1] = (line[:-2] + 2 * line[1:-1] + line[2:]) / 4
    return line[::2]


def chair(rng: Rng) -> Mesh:
    """A chair facing x. Parts: 0 seat and back, 1 legs and frame."""
    kind = rng.choice(["plain", "curved", "office", "stool", "arm"])
    h, w, d = rng.uniform(0.42, 0.5), rng.uniform(0.4, 0.52), rng.uniform(0.4, 0.5)
    r = rng.uniform(0.011, 0.024)
    out = [box((0, 0, h), (d, w, rng.uniform(0.025, 0.09)), 0, 0)]
    back = rng.uniform(0.38, 0.6)
    tilt = rot_y(-rng.uniform(0.05, 0.3))
    if kind != "stool":
        if rng.random() < 0.3:  # bars
            bars = [box((0, 0, z), (0.02, w * 0.92, 0.05), 0, 0) for z in np.linspace(0.15, back, 4)]
            out += [m.moved(tilt, (-d / 2, 0, h)) for m in bars]
            out += [
                tube([(0, s * w * 0.46, 0), (0, s * w * 0.46, back + 0.04)], r, 7, True, 1).moved(tilt, (-d / 2, 0, h))
                for s in (-1, 1)
            ]
        else:
            out.append(
                box((0, 0, back * 0.55 + 0.05), (rng.uniform(0.02, 0.09), w * 0.95, back * 0.9), 0, 0).moved(
                    tilt, (-d / 2, 0, h)
                )
            )
    if kind == "curved" or kind == "arm":
        for s in (-1, 1):
            y = s * (w / 2 + r)
            up = h + rng.uniform(0.16, 0.24)
            loop = _arc(
                [(-d * 0.5, y, up), (d * 0.5, y, up), (d * 0.62, y, h), (d * 0.3, y, 0.02), (-d * 0.6, y, 0.02)]
            )
            out.append(tube(loop, r * 1.3, 8, True, 1, rng.uniform(0.6, 1.6)))
            out.append(tube([(d * 0.3, y, h), (d * 0.3, 0, h)], r, 6, True, 1))
            out.append(tube([(-d * 0.5, y, up), (-d * 0.52, y * 0.95, h + back * 0.6)], r, 6, True, 1))
    elif kind == "office":
        out.append(tube([(0, 0, 0.08), (0, 0, h)], 0.03, 8, True, 1))
        for a in np.arange(5) * 2 * np.pi / 5:
            tip = np.array([np.cos(a) * 0.28, np.sin(a) * 0.28, 0.05])
            out.append(tube([(0, 0, 0.1), tip], [0.03, 0.016], 6, True, 1))
            out.append(sphere(tip - [0, 0, 0.02], 0.03, 5, 7, 1))
    else:
        spread = rng.uniform(0, 0.06)
        for sx in (-1, 1):
            for sy in (-1, 1):
                a = np.array([sx * d * 0.43, sy * w * 0.43, h])
                b = np.array([sx * (d * 0.43 + spread), sy * (w * 0.43 + spread), 0])
                out.append(tube([a, b], [r * 1.2, r * rng.uniform(0.6, 1)], 7, True, 1))
    return join(out)


def table(rng: Rng) -> Mesh:
    """A table or desk. Parts: 0 top, 1 legs, 2 and 3 things on it."""
    low = rng.random() < 0.35
    h = rng.uniform(0.35, 0.5) if low else rng.uniform(0.7, 0.77)
    length, w = rng.uniform(0.6, 1.9), rng.uniform(0.5, 0.95)
    out = []
    r = rng.uniform(0.015, 0.04)
    if rng.random() < 0.25:
        length = w
        out.append(lathe([(1e-3, h), (w / 2, h), (w / 2, h - 0.03), (1e-3, h - 0.03)], 28, 0))
        out.append(lathe([(w * 0.3, 0), (w * 0.28, 0.02), (r, 0.05), (r, h)], 16, 1))
    else:
        out.append(box((0, 0, h - 0.02), (length, w, 0.04), 0, 0))
        for sx in (-1, 1):
            for sy in (-1, 1):
                top = np.array([sx * (length / 2 - 0.06), sy * (w / 2 - 0.06), h - 0.03])
                out.append(tube([top, top * [1.02, 1.02, 0]], [r, r * rng.uniform(0.6, 1)], 7, True, 1))
        if rng.random() < 0.3:
            out.append(box((length * 0.3, 0, h / 2), (length * 0.3, w * 0.85, h * 0.85), 0, 0))
    for _ in range(int(rng.integers(0, 7))):
        x, y = rng.uniform(-0.35, 0.35, 2) * [length, w]
        out.append(small_thing(rng, int(rng.integers(2, 4))).moved(rot_z(rng.uniform(0, 6.28)), (x, y, h)))
    return join(out)


def small_thing(rng: Rng, part: int = 0) -> Mesh:
    """A small thing of 5 to 40 cm: bottle, vase, bowl, book stack, box, ball, screen, cup."""
    kind = rng.integers(0, 7)
    s = rng.uniform(0.6, 1.4)
    if kind == 0:
        m = lathe(np.array([(0.04, 0), (0.042, 0.16), (0.015, 0.22), (0.015, 0.28), (0.001, 0.28)]) * s, 12)
    elif kind == 1:
        k = rng.uniform(0.03, 0.12, 5)
        m = lathe(np.array([(k[0], 0), (k[1], 0.08), (k[2], 0.16), (k[3], 0.24), (k[4] * 0.7, 0.3)]) * s, 14)
    elif kind == 2:
        m = lathe(np.array([(0.04, 0), (0.1, 0.03), (0.14, 0.08), (0.13, 0.08), (0.05, 0.03)]) * s, 14)
    elif kind == 3:
        n = int(rng.integers(1, 5))
        z = np.cumsum(rng.uniform(0.02, 0.05, n))
        m = boxes(
            np.stack([rng.normal(0, 0.01, n), rng.normal(0, 0.01, n), z - 0.015], -1),
            (0.2, 0.15, 0.03),
            rng.normal(0, 0.2, n),
        )
    elif kind == 4:
        size = rng.uniform(0.08, 0.35, 3)
        m = box((0, 0, size[2] / 2), size)
    elif kind == 5:
        r = rng.uniform(0.04, 0.13)
        m = sphere((0, 0, r), r, 9, 14)
    else:
        m = join(
            [
                box((0, 0, 0.28), (0.03, 0.5, 0.3)),
                box((0, 0, 0.07), (0.04, 0.05, 0.14)),
                box((0, 0, 0.01), (0.18, 0.22, 0.02)),
            ]
        )
    return m.as_part(part)


def sofa(rng: Rng) -> Mesh:
    """A sofa or armchair facing x. Parts: 0 cloth, 1 cushions, 2 feet."""
    seats = int(rng.integers(1, 4))
    w = 0.65 * seats
    h, arm = rng.uniform(0.32, 0.45), rng.uniform(0.1, 0.24)
    back = rng.uniform(0.65, 0.95)
    out = [
        box((0, 0, h * 0.62), (0.8, w + 2 * arm, h * 0.75), 0, 0),
        box((-0.38, 0, back * 0.5 + 0.05), (0.2, w + 2 * arm, back * 0.9), 0, 0),
    ]
    for s in (-1, 1):
        out.append(box((0, s * (w + arm) / 2, 0.33), (0.84, arm, 0.5), 0, 0))
        out.append(
            capsule((-0.38, s * (w + arm) / 2, 0.58), (0.38, s * (w + arm) / 2, 0.58), arm * 0.55, arm * 0.55, 10, 0)
        )
        for x in (-0.35, 0.35):
            out.append(box((x, s * w * 0.5, 0.04), (0.05, 0.05, 0.1), 0, 2))
    for k in range(seats):
        y = (k + 0.5) / seats * w - w / 2
        out.append(lumpy(rng, (0.4, 0.31, 0.11), 0.02, 8, 14, 0).moved(offset=(0.06, y, h)))
        if rng.random() < 0.6:
            pillow = lumpy(rng, (0.07, 0.22, 0.2), 0.03, 8, 14, 1)
            out.append(pillow.moved(rot_y(-0.3) @ rot_x(rng.normal(0, 0.3)), (-0.2, y, h + 0.26)))
    return join(out)


def bed(rng: Rng) -> Mesh:
    """A bed along x, head at -x. Parts: 0 blanket, 1 pillows and sheet, 2 frame."""
    w = rng.uniform(0.9, 1.8)
    out = [
        box((0, 0, 0.18), (2.05, w, 0.24), 0, 2),
        box((-1.04, 0, 0.45), (0.05, w + 0.06, 0.9), 0, 2),
        box((0, 0, 0.38), (2.0, w * 0.98, 0.2), 0, 1),
    ]
    out.append(lumpy(rng, (0.85, w * 0.55, 0.14), 0.03, 10, 20, 0).moved(offset=(0.28, 0, 0.42)))
    for y in (-0.25, 0.25):
        out.append(lumpy(rng, (0.2, w * 0.2, 0.1), 0.03, 8, 14, 1).moved(offset=(-0.75, y * w, 0.52)))
    return join(out)


def shelf(rng: Rng) -> Mesh:
    """A shelf with things, open towards x. Parts: 0 boards, 1 to 5 things."""
    w, h, d = rng.uniform(0.6, 1.8), rng.uniform(0.8, 2.3), rng.uniform(0.25, 0.42)
    n = int(rng.integers(2, 7))
    z = np.linspace(0.06, h, n + 1)
    out = [boxes([(0, -w / 2, h / 2), (0, w / 2, h / 2)], (d, 0.025, h), 0.0, 0)]
    out.append(boxes(np.stack([0 * z, 0 * z, z], -1), (d, w, 0.025), 0.0, 0))
    if rng.random() < 0.7:
        out.append(box((-d / 2 + 0.01, 0, h / 2), (0.012, w, h), 0, 0))
    centers, sizes, yaw, part = [], [], [], []
    for k in range(n):
        room = z[k + 1] - z[k] - 0.04
        y = -w / 2 + 0.03
        while y < w / 2 - 0.08:
            if rng.random() < 0.12:
                y += rng.uniform(0.05, 0.35)
                continue
            sy = rng.choice([rng.uniform(0.015, 0.05), rng.uniform(0.05, 0.25)], p=[0.75, 0.25])
            if y + sy > w / 2 - 0.02:
                break
            s = np.array([d * rng.uniform(0.4, 0.85), sy, room * rng.uniform(0.45, 0.95)])
            centers.append((-d / 2 + s[0] / 2 + rng.uniform(0.01, 0.04), y + sy / 2, z[k] + 0.0125 + s[2] / 2))
            sizes.append(s)
            yaw.append(rng.normal(0, 0.02))
            part.append(rng.integers(1, 6))
            y += sy + 0.002
    if centers:
        out.append(boxes(centers, np.array(sizes), yaw, part))
    return join(out)


def cabinet(rng: Rng) -> Mesh:
    """A cupboard, sideboard, fridge or kitchen unit facing x. Parts: 0 body, 1 doors, 2 handles, 3 top."""
    w, d = rng.uniform(0.5, 2.2), rng.uniform(0.35, 0.62)
    h = rng.choice([rng.uniform(0.5, 0.95), rng.uniform(1.6, 2.2)])
    out = [box((0, 0, h / 2 + 0.03), (d, w, h - 0.06), 0, 0), box((0.01, 0, h), (d + 0.03, w + 0.02, 0.035), 0, 3)]
    n = max(1, int(w / rng.uniform(0.4, 0.7)))
    rows = int(rng.integers(1, 4))
    for i in range(n):
        for j in range(rows):
            y, z = (i + 0.5) / n * w - w / 2, 0.08 + (j + 0.5) / rows * (h - 0.14)
            out.append(box((d / 2 + 0.008, y, z), (0.018, w / n - 0.012, (h - 0.14) / rows - 0.012), 0, 1))
            hand = tube(
                [(d / 2 + 0.04, y + 0.3 * w / n, z - 0.05), (d / 2 + 0.04, y + 0.3 * w / n, z + 0.05)],
                0.007,
                6,
                True,
                2,
            )
            out.append(hand)
    return join(out)


def floor_lamp(rng: Rng) -> Mesh:
    """A standing lamp. Parts: 0 stand, 1 shade."""
    h = rng.uniform(1.2, 1.8)
    r = rng.uniform(0.12, 0.24)
    return join(
        [
            lathe([(0.001, 0.03), (0.13, 0.03), (0.14, 0), (0.14, -0.001)][::-1], 14, 0),
            tube([(0, 0, 0), (0, 0, h)], 0.012, 7, True, 0),
            lathe([(r, h - 0.15), (r * rng.uniform(0.4, 1), h + 0.12)], 16, 1),
        ]
    )


def plant(rng: Rng) -> Mesh:
    """A plant in a pot, 0.4 to 1.6 m. Parts: 0 pot, 1 stems, 2 leaves."""
    h = rng.uniform(0.4, 1.6)
    r = rng.uniform(0.1, 0.2)
    out = [lathe([(r * 0.7, 0), (r, 0.25), (r * 0.9, 0.25), (0.01, 0.22)], 14, 0)]
    for _ in range(int(rng.integers(5, 16))):
        az = rng.uniform(0, 6.28)
        reach = rng.uniform(0.1, 0.4) * h
        tip = np.array([np.cos(az) * reach, np.sin(az) * reach, 0.22 + h * rng.uniform(0.5, 1)])
        line = _arc([(0, 0, 0.2), (tip[0] * 0.2, tip[1] * 0.2, tip[2] * 0.8), tip], 5)
        out.append(tube(line, np.linspace(0.008, 0.003, len(line)), 4, False, 1))
        k = int(rng.integers(4, 14))
        at = line[rng.integers(len(line) // 3, len(line), k)] + rng.normal(0, 0.04, (k, 3))
        out.append(leaves(rng, at, rng.uniform(0.07, 0.22), None, 2))
    return join(out)


def bicycle(rng: Rng) -> Mesh:
    """A bicycle along x. Parts: 0 frame, 1 tyres and saddle, 2 metal."""
    out = []
    phi = np.linspace(0, 2 * np.pi, 25)
    for x in (-0.52, 0.52):
        ring = np.stack([x + 0.33 * np.cos(phi), 0 * phi, 0.34 + 0.33 * np.sin(phi)], -1)
        out.append(tube(ring, 0.018, 6, False, 1))
        for a in phi[::3]:
            out.append(tube([(x, 0, 0.34), (x + 0.32 * np.cos(a), 0, 0.34 + 0.32 * np.sin(a))], 0.0025, 3, False, 2))
    bb, seat, head = (-0.08, 0, 0.3), (-0.22, 0, 0.82), (0.36, 0, 0.85)
    for a, b in (
        (bb, seat),
        (bb, head),
        (seat, head),
        ((-0.52, 0, 0.34), bb),
        ((-0.52, 0, 0.34), seat),
        (head, (0.52, 0, 0.34)),
    ):
        out.append(tube([a, b], 0.017, 6, True, 0))
    out.append(tube([seat, (-0.25, 0, 0.95)], 0.013, 6, True, 2))
    out.append(sphere((-0.26, 0, 0.97), (0.13, 0.07, 0.035), 6, 9, 1))
    out.append(tube([head, (0.33, 0, 1.0)], 0.013, 6, True, 2))
    out.append(
        tube([(0.25, -0.28, 1.02), (0.34, -0.12, 1.02), (0.34, 0.12, 1.02), (0.25, 0.28, 1.02)], 0.012, 6, True, 1)
    )
    if rng.random() < 0.5:
        out.append(box((-0.55, 0, 0.75), (0.36, 0.14, 0.02), 0, 2))
    return join(out)


def bench(rng: Rng) -> Mesh:
    """A park bench facing x. Parts: 0 slats, 1 frame."""
    w = rng.uniform(1.2, 2.0)
    out = [boxes([(x, 0, 0.45) for x in (-0.15, 0, 0.15)], (0.11, w, 0.035), 0, 0)]
    if rng.random() < 0.75:
        out.append(boxes([(-0.24 - 0.05 * k, 0, 0.6 + 0.15 * k) for k in range(2)], (0.03, w, 0.11), 0, 0))
    for y in (-0.42 * w, 0.42 * w):
        out.append(
            boxes(
                [(-0.18, y, 0.22), (0.18, y, 0.22), (0, y, 0.42)],
                [(0.05, 0.05, 0.44), (0.05, 0.05, 0.44), (0.4, 0.05, 0.03)],
                0,
                1,
            )
        )
        out.append(tube([(-0.2, y, 0.42), (-0.32, y, 0.85)], 0.02, 6, True, 1))
    return join(out)


def bin_(rng: Rng) -> Mesh:
    """A litter bin, box on a post, or barrel. Parts: 0 body, 1 lid or post."""
    kind = rng.integers(0, 3)
    if kind == 0:
        return join(
            [
                box((0, 0, 0.75), (0.3, 0.36, 0.5), 0, 0),
                box((0, 0, 1.02), (0.34, 0.4, 0.05), 0, 1),
                tube([(0, 0, 0), (0, 0, 0.6)], 0.04, 8, True, 1),
            ]
        )
    if kind == 1:
        return lathe([(0.001, 0), (0.28, 0), (0.3, 0.3), (0.28, 0.6), (0.3, 0.88), (0.001, 0.88)], 18, 0)
    return join(
        [
            box((0, 0, 0.55), (0.5, 0.55, 1.0), 0, 0),
            prism([(-0.28, 1.05), (0.28, 1.05), (0.2, 1.15), (-0.28, 1.12)], 0.6, 1),
            *[wheel(0.1, 0.05).as_part(1).moved(offset=(-0.25, y, 0.1)) for y in (-0.2, 0.2)],
        ]
    )


def sign(rng: Rng) -> Mesh:
    """A road sign, facing x. Parts: 0 pole, 1 plate."""
    h = rng.uniform(1.8, 3.0)
    out = [tube([(0, 0, 0), (0, 0, h)], 0.035, 8, True, 0)]
    if rng.random() < 0.5:
        plate = lathe([(1e-3, 0.03), (rng.uniform(0.25, 0.4), 0.03), (0.3, 0.0), (1e-3, 0.0)], 20, 1)
        out.append(plate.moved(rot_y(np.pi / 2), (0.03, 0, h - 0.1)))
    else:
        out.append(box((0.05, 0, h - 0.1), (0.02, rng.uniform(0.4, 1.4), rng.uniform(0.3, 0.8)), 0, 1))
    return join(out)


def pallet_load(rng: Rng) -> Mesh:
    """A pallet with stacked boxes. Parts: 0 pallet, 1 to 3 boxes."""
    out = [boxes([(x, 0, 0.13) for x in np.linspace(-0.52, 0.52, 7)], (0.1, 0.8, 0.022), 0, 0)]
    out.append(boxes([(x, y, 0.06) for x in (-0.5, 0, 0.5) for y in (-0.35, 0, 0.35)], (0.12, 0.1, 0.12), 0, 0))
    nx, ny, nz = rng.integers(1, 4), rng.integers(1, 3), rng.integers(0, 5)
    size = np.array([1.15 / nx, 0.78 / ny, rng.uniform(0.2, 0.45)])
    at, parts = [], []
    for k in range(nz):
        for i in range(nx):
            for j in range(ny):
                if k == nz - 1 and rng.random() < 0.3:
                    continue
                at.append(((i + 0.5) * size[0] - 0.575, (j + 0.5) * size[1] - 0.39, 0.142 + (k + 0.5) * size[2]))
                parts.append(int(rng.integers(1, 4)))
    if at:
        out.append(boxes(at, size * [0.96, 0.96, 0.99], rng.normal(0, 0.025, len(at)), parts))
    return join(out)


STOCK = {
    "person": (person, 24),
    "tree": (tree, 14),
    "tree_far": (lambda rng: tree(rng, 1100, 2.0), 10),
    "bush": (bush, 10),
    "bush_far": (lambda rng: bush(rng, 450, 2.2), 8),
    "rock": (rock, 8),
    "car": (car, 18),
    "chair": (chair, 20),
    "table": (table, 16),
    "sofa": (sofa, 8),
    "bed": (bed, 4),
    "shelf": (shelf, 10),
    "cabinet": (cabinet, 12),
    "floor_lamp": (floor_lamp, 5),
    "plant": (plant, 8),
    "bicycle": (bicycle, 3),
    "bench": (bench, 5),
    "bin": (bin_, 6),
    "sign": (sign, 8),
    "pallet": (pallet_load, 12),
    "thing": (small_thing, 24),
}


class ObjectBank:
    """A stock of objects of every kind, made once per process from a seed."""

    def __init__(self, seed: int, copies: float = 1.0) -> None:
        rng = np.random.default_rng([seed, 78])
        self.stock = {k: [make(rng) for _ in range(max(1, round(n * copies)))] for k, (make, n) in STOCK.items()}
        self.bounds = {k: [np.abs(m.v[:, :2]).max(0) for m in v] for k, v in self.stock.items()}

    def pick(self, rng: Rng, kind: str) -> Mesh:
        """A random object of the kind."""
        stock = self.stock[kind]
        return stock[int(rng.integers(0, len(stock)))]
