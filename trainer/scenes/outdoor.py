"""Streets and open ground."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from .geometry import blades, box, boxes, grid, grid_faces, leaves, lumpy, quad, rot_z, triangles, tube
from .lighting import make_sky
from .objects import hedge
from .stage import Stage, clutter, dress, strip

Rng = np.random.Generator
Height = Callable[[ArrayLike, ArrayLike], np.ndarray]  # of the ground at x, y
FACADES = "facade|bricks|plaster|plaster|concrete|tiles|bricks"


def building(stage: Stage, x0: float, x1: float, y: float, out: float, height: float, depth: float, near: bool) -> None:
    """A house with its front on the line y from x0 to x1, facing `out` (+1 towards +y, or -1)."""
    rng = stage.rng
    kind = str(rng.choice(FACADES.split("|")))
    wall = stage.mat(kind, mean=rng.uniform(0.1, 0.7), macro=0.3)
    cx, w = (x0 + x1) / 2, x1 - x0
    stage.add(box((cx, y - out * depth / 2, height / 2), (w, depth, height)), wall)
    if rng.random() < 0.55:  # a saddle roof along x
        rise, eaves = rng.uniform(1.5, 4), 0.4
        tile = stage.mat(
            "bricks|tiles|corrugated|plain",
            tint=rng.choice([1.0, 0.6]) * np.array([1, rng.uniform(0.4, 1), rng.uniform(0.3, 1)]),
            mean=rng.uniform(0.05, 0.3),
        )
        ridge = y - out * depth / 2
        for side in (-1, 1):
            edge = ridge + side * (depth / 2 + eaves)
            a, b = (x1 + 0.3, x0 - 0.3) if side > 0 else (x0 - 0.3, x1 + 0.3)
            stage.add(quad((a, edge, height - 0.1), (b - a, 0, 0), (0, ridge - edge, rise)), tile)
        for x, s in ((x0, -1), (x1, 1)):
            tri = np.array(
                [
                    [x, ridge - s * depth / 2, height],
                    [x, ridge + s * depth / 2, height],
                    [x, ridge, height + rise - 0.2],
                ],
                np.float32,
            )
            m = quad(tri[0], tri[1] - tri[0], tri[2] - tri[0])
            m.f = m.f[:1]
            m.v = np.stack([tri[0], tri[1], tri[2], tri[2]])
            m.part = m.part[:1]
            stage.add(m, wall)
    else:
        stage.add(box((cx, y - out * depth / 2, height + 0.15), (w + 0.2, depth + 0.2, 0.4)), stage.shade(0.1, 0.6))
    if kind == "facade" or not near:
        return
    floor_h = rng.uniform(2.8, 3.6)
    nz = max(1, int(height / floor_h))
    nx = max(1, int(w / rng.uniform(1.8, 3.6)))
    ww, wh = rng.uniform(0.4, 0.8) * w / nx, rng.uniform(0.4, 0.7) * floor_h
    glass = stage.mat("plain", mean=rng.uniform(0.01, 0.06), spec=rng.uniform(0.04, 0.15), rough=0.03, macro=0.3)
    frame_m = stage.mat("plain|wood|metal", mean=float(rng.choice([0.75, 0.1, 0.4])))
    gx = x0 + (np.arange(nx) + 0.5) * w / nx
    gz = (np.arange(nz) + 0.5) * floor_h + 0.15
    at = np.stack(np.meshgrid(gx, gz), -1).reshape(-1, 2)
    if rng.random() < 0.35 and nz > 1:  # shops in the ground floor
        low = at[:, 1] < floor_h
        at = at[~low]
        stage.add(boxes([(x, y + out * 0.03, floor_h * 0.48) for x in gx], (w / nx * 0.86, 0.06, floor_h * 0.8)), glass)
        stage.add(
            boxes([(x, y + out * 0.08, floor_h * 0.95) for x in gx], (w / nx * 0.9, 0.16, 0.5)),
            stage.mat("poster|plain|stripes", scale=2),
        )
    p = np.concatenate([at[:, :1], np.full((len(at), 1), y), at[:, 1:]], 1)
    if len(p):
        stage.add(boxes(p + np.array([0, out * 0.02, 0]), (ww, 0.06, wh)), glass)
        bars = np.concatenate([p + np.array([s * ww / 2, out * 0.04, 0]) for s in (-1, 0, 1)])
        stage.add(boxes(bars, (0.07, 0.1, wh + 0.08)), frame_m)
        rails = np.concatenate([p + np.array([0, out * 0.05, s * wh / 2]) for s in (-1, 1)])
        stage.add(boxes(rails, (ww + 0.1, 0.14, 0.08)), frame_m)
    door = stage.mat("wood|plain|metal", mean=rng.uniform(0.03, 0.5))
    stage.add(box((rng.choice(gx), y + out * 0.06, 1.05), (1.1, 0.14, 2.1)), door)
    if rng.random() < 0.3 and nz > 1:
        k = rng.random(len(p)) < 0.5
        if k.any():
            q = p[k]
            stage.add(boxes(q + np.array([0, out * 0.5, -wh / 2 - 0.1]), (ww * 1.4, 1.0, 0.12)), stage.mat("concrete"))
            front = boxes(q + np.array([0, out * 0.98, -wh / 2 + 0.4]), (ww * 1.4, 0.04, 0.9))
            stage.add(front, stage.mat("metal|corrugated|plain"))


def fence(stage: Stage, x0: float, x1: float, y: float) -> None:
    """A wall, paling, railing, mesh or guard rail along x."""
    rng = stage.rng
    kind = rng.choice(["wall", "paling", "rail", "guard", "mesh"])
    h = rng.uniform(0.7, 2.0)
    n = max(2, int((x1 - x0) / 2))
    xs = np.linspace(x0, x1, n)
    if kind == "wall":
        m = stage.mat("bricks|cobble|concrete|plaster", mean=rng.uniform(0.1, 0.6))
        mid = (xs[1:] + xs[:-1]) / 2
        stage.add(
            boxes(np.stack([mid, 0 * mid + y, 0 * mid + h / 2], -1), (mid[1] - mid[0] if n > 2 else x1 - x0, 0.25, h)),
            m,
        )
        stage.add(
            boxes(
                np.stack([mid, 0 * mid + y, 0 * mid + h + 0.04], -1),
                (mid[1] - mid[0] if n > 2 else x1 - x0, 0.34, 0.08),
            ),
            stage.mat("concrete"),
        )
        return
    post = stage.mat("wood|metal|plain|concrete", mean=rng.uniform(0.03, 0.6))
    stage.add(boxes(np.stack([xs, 0 * xs + y, 0 * xs + h / 2], -1), (0.08, 0.08, h)), post)
    if kind == "guard":
        rail = stage.mat("metal", mean=rng.uniform(0.25, 0.6), spec=0.3, rough=0.35)
        for z, dy in ((0.5, 0.04), (0.62, 0.08), (0.74, 0.04)):
            stage.add(tube(np.stack([xs, 0 * xs + y + dy * np.sign(-y or 1), 0 * xs + z], -1), 0.075, 6), rail)
        return
    zs = np.linspace(0.2, h - 0.05, 2 if kind == "paling" else int(rng.integers(2, 6)))
    for z in zs:
        stage.add(tube(np.stack([xs, 0 * xs + y, 0 * xs + z], -1), 0.025, 5), post)
    if kind in ("paling", "mesh"):
        step = 0.14 if kind == "paling" else 0.12
        q = np.arange(x0, min(x1, x0 + 50), step)
        width = 0.09 if kind == "paling" else 0.012
        stage.add(boxes(np.stack([q, 0 * q + y + 0.03, 0 * q + h / 2 + 0.05], -1), (width, 0.015, h - 0.08)), post)


def _traffic(
    stage: Stage,
    x0: float,
    x1: float,
    lane_ys: list[tuple[float, int]],
    parked_ys: list[tuple[float, int]],
    density: float,
) -> None:
    rng = stage.rng
    for y, way in parked_ys:
        x = x0 + rng.uniform(0, 8)
        while x < min(x1, x0 + 130):
            if rng.random() < density:
                stage.put(
                    "car", (x, y + rng.normal(0, 0.1)), (0 if way > 0 else np.pi) + rng.normal(0, 0.02), claim=0.6
                )
            x += rng.uniform(5.3, 7.5)
    for y, way in lane_ys:
        x = x0 + rng.uniform(5, 30)
        while x < min(x1, x0 + 220):
            if rng.random() < 0.55:
                stage.put("car", (x, y + rng.normal(0, 0.15)), 0 if way > 0 else np.pi, claim=0.75)
            x += rng.uniform(9, 50)


def _greens(stage: Stage, x0: float, x1: float, y0: float, y1: float, trees: int, bushes: int) -> None:
    """Trees and bushes in a rectangle, sharing few materials."""
    rng = stage.rng
    kinds = [dress(stage, "tree") for _ in range(3)]
    for kind, n in (("tree", trees), ("bush", bushes)):
        for _ in range(n):
            x, y = rng.uniform(x0, x1), rng.uniform(min(y0, y1), max(y0, y1))
            s = rng.uniform(0.6, 1.5)
            stage.put(
                kind,
                (x, y, -0.05),
                rng.uniform(0, 6.28),
                s,
                kinds[int(rng.integers(0, 3))],
                claim=0.12 if kind == "tree" else 0.9,
            )


def _side(stage: Stage, x0: float, x1: float, edge: float, out: float, walk: float) -> None:
    """What lines a street beyond its kerb at y = edge; `out` is +1 when the side lies towards +y."""
    rng = stage.rng
    y_walk = edge + out * walk
    at = x0
    pole = rng.choice([0, 1, 2])
    post = stage.mat("metal|concrete|wood", mean=rng.uniform(0.03, 0.4))
    for x in np.arange(x0 + rng.uniform(0, 20), x1, rng.uniform(18, 35)):
        if pole:
            h = rng.uniform(5, 10)
            y = edge + out * 0.5
            line = (
                [(x, y, 0), (x, y, h), (x, y - out * rng.uniform(0.5, 2), h + 0.3)]
                if pole == 1
                else [(x, y, 0), (x, y, h)]
            )
            stage.add(tube(line, 0.07 if pole == 1 else 0.13, 8), post)
            stage.taken.append((float(x), float(y), 0.3))
            if pole == 2:
                stage.add(box((x, y, h - 0.6), (0.12, 1.6, 0.12)), post)
    for _ in range(int(rng.integers(3, 16))):  # clutter of the pavement
        x = rng.uniform(x0, x0 + 90)
        kind = str(
            rng.choice(
                ["person", "sign", "bin", "bicycle", "bench", "plant", "pallet"],
                p=[0.34, 0.2, 0.14, 0.16, 0.06, 0.05, 0.05],
            )
        )
        y = edge + out * rng.uniform(0.3, max(walk - 0.2, 0.5))
        if stage.free(x, y, 0.3):
            yaw = {"sign": np.pi, "person": rng.choice([0, np.pi]) + rng.normal(0, 0.4)}.get(kind, rng.uniform(0, 6.28))
            stage.put(kind, (x, y, 0.12), yaw, claim=0.5)
    while at < x1:
        mode = str(rng.choice(["houses", "houses", "houses", "hedge", "trees", "fence", "field", "thicket", "thicket"]))
        span = min(rng.uniform(15, 90), x1 - at)
        if mode == "houses":
            x = at
            back = rng.choice([0.0, rng.uniform(1, 8)])
            while x < at + span:
                w = rng.uniform(6, 22)
                building(
                    stage, x, x + w, y_walk + out * back, -out, rng.uniform(3, 18), rng.uniform(8, 14), x < x0 + 110
                )
                for q in np.arange(x, x + w, 2.5):
                    stage.taken.append((float(q), float(y_walk + out * (back + 4)), 4.0))
                x += w + rng.choice([0.0, 0.0, rng.uniform(1, 6)])
            if back > 2 and rng.random() < 0.7:
                fence(stage, at, at + span, y_walk + out * 0.2)
        elif mode == "hedge":
            h, d = rng.uniform(0.8, 3.0), rng.uniform(0.6, 1.6)
            mats = dress(stage, "hedge")
            for x in np.arange(at, at + span, 4.0):
                near = x < x0 + 70
                stage.add(
                    hedge(rng, 4.1, h, d, 1500 if near else 400), mats, 0, (x + 2, y_walk + out * (d / 2 + 0.2), 0)
                )
                stage.taken.append((float(x + 2), float(y_walk + out * d), 2.2))
            _greens(stage, at, at + span, y_walk + out * 3, y_walk + out * 14, int(span / 12), 0)
        elif mode == "fence":
            fence(stage, at, at + span, y_walk + out * 0.2)
            _greens(stage, at, at + span, y_walk + out * 2, y_walk + out * 15, int(span / 10), int(span / 8))
        elif mode == "trees":
            tree_mats = dress(stage, "tree")
            for x in np.arange(at, at + span, rng.uniform(6, 12)):
                stage.put(
                    "tree",
                    (x, y_walk - out * 0.3 * rng.random(), 0),
                    rng.uniform(0, 6),
                    rng.uniform(0.8, 1.3),
                    tree_mats,
                    claim=0.1,
                )
            if rng.random() < 0.5:
                fence(stage, at, at + span, y_walk + out * 1.0)
        elif mode == "thicket":
            mats = [dress(stage, "tree") for _ in range(2)]
            for x in np.arange(at, at + span, 2.2):
                for row in range(2):
                    y = y_walk + out * (0.9 + row * 2.5 + rng.uniform(0, 1))
                    kind = "bush" if row == 0 or rng.random() < 0.5 else "tree"
                    s = rng.uniform(1.0, 2.6) if kind == "bush" else rng.uniform(0.5, 1.3)
                    stage.put(
                        kind,
                        (x, y, 0),
                        rng.uniform(0, 6),
                        s,
                        mats[int(rng.integers(0, 2))],
                        claim=0.6 if kind == "bush" else 0.1,
                    )
        else:
            _greens(stage, at, at + span, y_walk + out * 2, y_walk + out * 60, int(span / 14), int(span / 12))
        at += span + rng.uniform(0, 5)


def street(stage: Stage) -> None:
    """A road along x with what lines it; the camera drives on it or stands on the pavement."""
    rng = stage.rng
    stage.sky = make_sky(rng)
    x0, x1 = -25.0, rng.uniform(110, 260)
    lanes = int(rng.choice([1, 2, 2, 3, 4]))
    lane_w = rng.uniform(2.7, 3.7)
    half = lanes * lane_w / 2
    parking = [rng.random() < 0.5, rng.random() < 0.5]
    edge = [half + (2.1 if parking[0] else 0.4), half + (2.1 if parking[1] else 0.4)]
    walk = [rng.uniform(0.8, 4.5), rng.uniform(0.8, 4.5)]
    road = stage.mat(
        "asphalt|asphalt|asphalt|asphalt|cobble|paving|concrete|dirt", mean=rng.uniform(0.04, 0.28), macro=0.35
    )
    stage.add(strip(x0 - 20, x1 + 200, -edge[0], edge[1], 0.0), road)
    lawn = stage.mat("grass|grass|dirt|litter|gravel|paving", mean=rng.uniform(0.06, 0.3))
    pave = stage.mat("paving|paving|concrete|asphalt|bricks|gravel|grass", mean=rng.uniform(0.1, 0.5))
    stone = stage.mat("concrete", mean=rng.uniform(0.2, 0.6))
    for k, out in ((0, -1), (1, 1)):
        a, b = out * edge[k], out * (edge[k] + walk[k])
        stage.add(strip(x0 - 20, x1 + 200, min(a, b), max(a, b), 0.12), pave)
        far = out * 250
        stage.add(strip(x0 - 20, x1 + 200, min(b, far), max(b, far), 0.1), lawn)
        xs = np.arange(x0 - 20, x1 + 100, 4.0)
        stage.add(boxes(np.stack([xs, 0 * xs + a, 0 * xs + 0.045], -1), (4.0, 0.16, 0.16)), stone)
    _marks(stage, x0, x1, lanes, lane_w, half)
    for k, out in ((0, -1), (1, 1)):
        _side(stage, x0, x1, out * edge[k], out, walk[k])
        if rng.random() < 0.18:
            fence(stage, x0, x1, out * (edge[k] + 0.25))
    lane_ys = [(-half + (k + 0.5) * lane_w, 1 if k < (lanes + 1) // 2 else -1) for k in range(lanes)]
    parked = [(s * (half + 1.0), -s) for s, p in ((-1, parking[0]), (1, parking[1])) if p]
    _traffic(stage, x0, x1, lane_ys if rng.random() < 0.75 else [], parked, rng.uniform(0.3, 0.95))
    for _ in range(int(rng.integers(0, 3))):
        stage.put("person", (rng.uniform(5, 50), rng.uniform(-half, half)), rng.uniform(0, 6))
    _wires(stage, x0, x1, edge)
    _far_hills(stage, 190, 420)
    if rng.random() < 0.5:  # something across the end
        x = x1 + rng.uniform(5, 60)
        if rng.random() < 0.5:
            _greens(stage, x, x + 10, -60, 60, 14, 8)
        else:
            for y in np.arange(-60, 60, 18.0):
                stage.add(
                    box((x + 6, y, 5), (12, rng.uniform(10, 18), rng.uniform(5, 20))),
                    stage.mat("facade|bricks|plaster"),
                )
    curve, hill, phase = (
        rng.choice([0.0, rng.normal(0, 0.0009)]),
        rng.choice([0.0, rng.uniform(0, 2.0)]),
        rng.uniform(0, 6.28),
    )

    def warp(v: np.ndarray) -> np.ndarray:
        v = v.copy()
        x = v[:, 0]
        v[:, 1] += curve * x * np.abs(x)
        v[:, 2] += hill * (np.sin(x / 45 + phase) - np.sin(phase))
        return v

    stage.warp = warp
    side_walk = 0.12

    def view(r: Rng) -> tuple[np.ndarray, float]:
        fwd = r.random() < 0.8
        x = r.uniform(-8, 30) if fwd else r.uniform(30, 80)
        yaw = 0.0 if fwd else np.pi
        if r.random() < 0.7:
            y, height = r.uniform(-half, half), r.uniform(1.1, 2.1)
            yaw += r.choice([r.normal(0, 0.06), r.normal(0, 0.5)], p=[0.7, 0.3])
        else:
            s = int(r.choice([0, 1]))
            y = (-1, 1)[s] * (edge[s] + r.uniform(0.2, max(walk[s] - 0.1, 0.3)))
            height = side_walk + r.uniform(0.2, 1.8)
            yaw += r.choice([r.normal(0, 0.25), r.normal(0, 1.0)])
        return np.array([x, y, height]), float(yaw)

    stage.view = view


def _marks(stage: Stage, x0: float, x1: float, lanes: int, lane_w: float, half: float) -> None:
    rng = stage.rng
    if rng.random() < 0.15:
        return
    paint = stage.mat("plain|plaster", tint=np.ones(3), mean=rng.uniform(0.35, 0.8), macro=0.4)
    period, dash, width = rng.uniform(4, 12), rng.uniform(1.5, 4), rng.uniform(0.09, 0.18)
    for k in range(lanes + 1):
        y = -half + k * lane_w
        solid = k in (0, lanes) or rng.random() < 0.1
        if solid and rng.random() < 0.7:
            stage.add(strip(x0, x1 + 60, y - width / 2, y + width / 2, 0.006), paint)
        elif not solid:
            for x in np.arange(x0, x1, period):
                stage.add(strip(x, x + dash, y - width / 2, y + width / 2, 0.006, 2), paint)
    if rng.random() < 0.35:  # a crossing
        x = rng.uniform(5, 50)
        for y in np.arange(-half + 0.3, half - 0.3, 1.0):
            stage.add(strip(x, x + 3, y, y + 0.5, 0.007, 1.5), paint)
    if rng.random() < 0.3:  # tar patches and manholes
        tar = stage.mat("asphalt", mean=0.03)
        for _ in range(int(rng.integers(1, 8))):
            x, y = rng.uniform(-5, 60), rng.uniform(-half, half - 1)
            stage.add(strip(x, x + rng.uniform(0.5, 6), y, y + rng.uniform(0.2, 1.5), 0.004, 2), tar)


def _wires(stage: Stage, x0: float, x1: float, edge: list[float]) -> None:
    rng = stage.rng
    if rng.random() < 0.35:
        m = stage.shade(0.01, 0.05)
        for _ in range(int(rng.integers(1, 5))):
            y, z = rng.uniform(-edge[0] - 2, edge[1] + 2), rng.uniform(4.5, 9)
            xs = np.arange(x0, min(x1, x0 + 160), 4.0)
            stage.add(tube(np.stack([xs, 0 * xs + y, z - 0.5 * np.abs(np.sin(xs / 12))], -1), 0.015, 4, False), m)


def _far_hills(stage: Stage, near: float, far: float) -> None:
    """A ring of distant hills or forest edges, so that the horizon is not a knife cut."""
    rng = stage.rng
    if rng.random() < 0.2:
        return
    for _ in range(int(rng.integers(1, 3))):
        r = rng.uniform(near, far)
        n = 200
        az = np.linspace(-np.pi, np.pi, n)
        h = np.zeros(n)
        for k in (3, 5, 9, 17, 31):
            h += np.sin(k * az + rng.uniform(0, 6.28)) / k**0.8
        h = np.clip((h - h.min()) / (h.max() - h.min()), 0.05, 1) * rng.uniform(0.03, 0.16) * r
        h += rng.uniform(0, 0.01) * r * rng.random(n)
        bottom = np.stack([r * np.cos(az), r * np.sin(az), np.full(n, -8.0)], -1)
        top = np.stack([1.15 * r * np.cos(az), 1.15 * r * np.sin(az), h], -1)
        v = np.concatenate([bottom, top])
        uv = np.stack([np.tile(az * r, 2), v[:, 2]], -1)
        haze = np.array([0.8, 0.95, 1.15]) * rng.uniform(0.6, 1.2)
        stage.add(
            triangles(v, grid_faces(2, n)[:, ::-1], uv, None),
            stage.mat("foliage|grass|litter|concrete", tint=haze, mean=rng.uniform(0.06, 0.25), scale=25),
        )


def _height(rng: Rng, amplitude: float) -> Height:
    """A smooth random height function of x, y (metres), zero on average."""
    waves = [
        (rng.normal(size=2) / s, rng.uniform(0, 6.28), a)
        for s, a in ((30, 1.0), (14, 0.4), (6, 0.13), (2.5, 0.04), (1.0, 0.012))
    ]

    def height(x: ArrayLike, y: ArrayLike) -> np.ndarray:
        return amplitude * sum(a * np.sin(k[0] * np.asarray(x) + k[1] * np.asarray(y) + p) for k, p, a in waves)

    return height


def open_ground(stage: Stage) -> None:
    """A park, plaza, field, yard or forest path."""
    rng = stage.rng
    stage.sky = make_sky(rng)
    mode = str(rng.choice(["park", "plaza", "forest", "field", "yard"], p=[0.26, 0.22, 0.2, 0.12, 0.2]))
    flat = mode in ("plaza", "yard")
    height = _height(rng, 0.0 if flat else rng.choice([0.15, 0.5, 1.2]))
    ground = {
        "park": "grass|grass|grass|dirt|litter",
        "plaza": "paving|paving|cobble|bricks|tiles|concrete|asphalt",
        "forest": "litter|litter|dirt|grass",
        "field": "grass|dirt|gravel",
        "yard": "paving|gravel|asphalt|concrete|grass|paving",
    }[mode]
    line = np.sign(np.linspace(-1, 1, 161)) * np.abs(np.linspace(-1, 1, 161)) ** 2.2 * 240
    gx, gy = np.meshgrid(line, line)
    light = rng.uniform(0.07, 0.4 if flat else 0.22)
    earth = stage.mat(ground, mean=light, macro=0.3)
    stage.add(grid(line, line, height(gx, gy)), earth)
    if rng.random() < 0.65 and mode in ("park", "forest", "field", "yard"):
        _path(stage, height)
    trees = {"park": (8, 32), "plaza": (2, 14), "forest": (28, 60), "field": (3, 16), "yard": (2, 14)}[mode]
    bushes = {"park": (5, 24), "plaza": (1, 10), "forest": (8, 30), "field": (3, 16), "yard": (4, 20)}[mode]
    _scatter(stage, "tree", int(rng.integers(*trees)), 5, 55 if mode != "forest" else 35, height)
    _scatter(stage, "bush", int(rng.integers(*bushes)), 3, 35, height)
    _scatter(stage, "rock", int(rng.integers(0, 12)) if not flat else int(rng.integers(0, 3)), 2, 25, height)
    if mode in ("plaza", "yard") or rng.random() < 0.35:
        _around(stage, 10 if mode == "yard" else 20, 60)
    for kind, n, reach in (
        ("person", 6, 25),
        ("bench", 3, 18),
        ("bin", 3, 18),
        ("bicycle", 7, 16),
        ("sign", 3, 20),
        ("car", 4, 35),
        ("pallet", 3, 20),
        ("plant", 3, 12),
    ):
        if rng.random() < (0.6 if mode in ("plaza", "yard") or kind in ("person", "bench") else 0.15):
            _scatter(stage, kind, int(rng.integers(1, n + 1)), 2, reach, height)
    if rng.random() < 0.5:
        a = rng.uniform(4, 16) * rng.choice([-1, 1])
        x = rng.uniform(-30, 0)
        if flat:
            fence(stage, x, x + rng.uniform(10, 50), a)
    if mode in ("yard", "plaza") and rng.random() < 0.5:  # bicycles in a row, as at a stand
        y, x = rng.uniform(-9, 9), rng.uniform(3, 14)
        for k in range(int(rng.integers(3, 9))):
            if stage.free(x, y, 0.2):
                stage.put("bicycle", (x + 0.55 * k, y), 1.57 + rng.normal(0, 0.15), claim=0.5)
    if mode != "plaza":
        _tufts(stage, height, mode, light)
    if rng.random() < 0.3:
        mats = dress(stage, "hedge")
        y, h = rng.uniform(4, 14) * rng.choice([-1, 1]), rng.uniform(0.8, 2.4)
        for x in np.arange(rng.uniform(-20, 0), rng.uniform(10, 30), 4.0):
            stage.add(hedge(rng, 4.1, h, 1.0, 1600), mats, 0, (x, y, float(height(x, y)) - 0.05))
            stage.taken.append((float(x), float(y), 2.2))
    _far_hills(stage, 120, 230)

    def view(r: Rng) -> tuple[np.ndarray, float]:
        x, y = r.uniform(-12, 12, 2)
        near = r.choice([r.uniform(0.15, 0.7), r.uniform(0.7, 2.0)])
        yaw = np.arctan2(-y + r.normal(0, 6), -x + r.normal(0, 6))
        return np.array([x, y, float(height(x, y)) + near]), float(yaw)

    stage.view = view


def _scatter(stage: Stage, kind: str, n: int, near: float, far: float, height: Height) -> None:
    """n objects of a kind anywhere within `far` of the origin, denser near it."""
    rng = stage.rng
    mats = [dress(stage, kind) for _ in range(min(n, 4))]
    for _ in range(n):
        az, r = rng.uniform(-np.pi, np.pi), near + (far - near) * rng.random() ** 1.2
        x, y = r * np.cos(az), r * np.sin(az)
        if not stage.free(x, y, 0.4):
            continue
        scale = {"tree": rng.uniform(0.5, 1.5), "bush": rng.uniform(0.5, 2.0), "rock": rng.uniform(0.3, 2.5)}.get(
            kind, 1.0
        )
        z = float(height(x, y)) - (0.08 if kind in ("tree", "bush", "rock") else 0.0)
        stage.put(
            kind,
            (x, y, z),
            rng.uniform(0, 6.28),
            scale,
            mats[int(rng.integers(0, len(mats)))],
            claim=0.12 if kind == "tree" else 0.8,
        )


def _path(stage: Stage, height: Height) -> None:
    """A winding path along x laid just above the ground."""
    rng = stage.rng
    xs = np.arange(-60, 60, 0.8)
    a, p, w = rng.uniform(0, 3), rng.uniform(0, 6.28), rng.uniform(0.8, 3.5)
    mid = a * np.sin(xs / rng.uniform(8, 20) + p)
    across = np.linspace(-w / 2, w / 2, 7)
    v = np.stack([np.repeat(xs, 7), (mid[:, None] + across).ravel(), np.zeros(len(xs) * 7)], -1)
    v[:, 2] = height(v[:, 0], v[:, 1]) + 0.03
    m = triangles(v, grid_faces(len(xs), 7)[:, ::-1], v[:, :2].copy())
    stage.add(m, stage.mat("gravel|dirt|asphalt|paving|concrete|litter", mean=rng.uniform(0.1, 0.5)))


def _around(stage: Stage, near: float, far: float) -> None:
    """Buildings around a place, at any angle."""
    rng = stage.rng
    for _ in range(int(rng.integers(3, 12))):
        az = rng.uniform(-np.pi, np.pi)
        r = rng.uniform(near, far)
        sub = Stage(rng, stage.bank, stage.objects, stage.family, builder=type(stage.builder)())
        sub.builder.rows = stage.builder.rows
        w = rng.uniform(8, 35)
        building(sub, -w / 2, w / 2, 0.0, -1, rng.uniform(3, 22), rng.uniform(8, 15), True)
        rot = rot_z(az - np.pi / 2 + rng.choice([0, rng.normal(0, 0.3)]))
        for m in sub.builder.meshes:
            stage.builder.meshes.append(m.moved(rot, (r * np.cos(az), r * np.sin(az), 0)))
        stage.taken.append((float((r + 6) * np.cos(az)), float((r + 6) * np.sin(az)), w / 2 + 2))


def _tufts(stage: Stage, height: Height, mode: str, light: float) -> None:
    """Blades of grass, fallen leaves and pebbles about the middle, where the camera is near the ground."""
    rng = stage.rng
    n = int(rng.choice([0, 15000, 40000]))
    if n == 0:
        return
    p = rng.normal(0, 7, (n, 2))
    at = np.stack([p[:, 0], p[:, 1], height(p[:, 0], p[:, 1])], -1)
    if mode in ("park", "field"):
        own = [stage.mat("grass|foliage", mean=light * rng.uniform(0.6, 1.5)) for _ in range(3)]
        stage.add(blades(rng, at, rng.uniform(0.03, 0.13), (0, 1, 2)), own)
    else:
        some = at[: n // 8] + np.array([0, 0, 0.015])
        up = np.tile([0, 0, 1.0], (len(some), 1))
        fallen = [stage.mat("litter|foliage", mean=light * rng.uniform(0.4, 1.6)) for _ in range(3)]
        stage.add(leaves(rng, some, rng.uniform(0.04, 0.09), up, (0, 1, 2)), fallen)
    stones = stage.mat("concrete|dirt", mean=rng.uniform(0.1, 0.5))
    for _ in range(int(rng.integers(0, 25))):
        x, y = rng.normal(0, 6, 2)
        stage.add(lumpy(rng, rng.uniform(0.02, 0.12, 3), 0.12, 5, 8), stones, 0, (x, y, float(height(x, y))))
    if rng.random() < 0.3:
        clutter(stage, *rng.normal(0, 4, 2), 0.0, 4, 2.0)
