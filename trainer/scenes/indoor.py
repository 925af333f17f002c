"""Rooms, corridors and warehouses."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .geometry import box, boxes, lathe, quad, rot_z, sheet, tube
from .lighting import Sky, make_sky
from .stage import Opening, Stage, along, clutter, dress, frame, rect_corners, wall

Rng = np.random.Generator
Plan = list[tuple[str, Opening]]  # the openings of one wall, with their kinds
Side = tuple[ArrayLike, ArrayLike, list[tuple[float, float]]]  # ends of a wall, and spans that are not free

WALLS = "plaster|plaster|plaster|plain|wallpaper|bricks|concrete|wood|tiles"
FLOORS = "planks|planks|planks|carpet|tiles|marble|concrete|speckled|wood"


def _wall_material(stage: Stage, white: float = 0.5, else_of: str = WALLS) -> int:
    """White or nearly white paint with the given probability, else anything walls are made of."""
    if stage.rng.random() < white:
        tint = 1 + stage.rng.normal(0, 0.015, 3)
        return stage.mat("plaster", tint=tint, mean=stage.rng.uniform(0.6, 0.92), macro=0.05)
    return stage.mat(else_of, mean=stage.rng.uniform(0.25, 0.85))


def _window(
    stage: Stage, p0: ArrayLike, p1: ArrayLike, opening: Opening, sky: Sky, thick: float, curtains: bool
) -> None:
    """Frame, bars, sill, curtains of a window, and the light that comes in through it."""
    rng = stage.rng
    a, b, z0, z1 = opening
    w, h = b - a, z1 - z0
    mid = along(p0, p1, (a + b) / 2, -thick / 2, z0)
    yaw = float(np.arctan2(p1[1] - p0[1], p1[0] - p0[0]))
    bar = stage.mat("plain|wood|metal", mean=float(rng.choice([0.7, 0.85, 0.05, 0.2])))
    fw = rng.uniform(0.04, 0.1)
    stage.add(frame((w, h), fw, 0.07), bar, yaw, mid)
    n = int(rng.integers(1, max(2, round(w / 0.6)) + 1))
    for k in range(1, n):
        stage.add(box((k / n * w - w / 2, 0, h / 2), (fw * 1.3, 0.06, h)), bar, yaw, mid)
    for k in range(1, int(rng.integers(1, 4))):
        if rng.random() < 0.4:
            stage.add(box((0, 0, k * h / 3), (w, 0.05, fw * 0.8)), bar, yaw, mid)
    if z0 > 0.3:
        stage.add(box((0, thick * 0.5 + 0.08, -0.02), (w + 0.1, 0.22, 0.04)), bar, yaw, mid)
        if rng.random() < 0.5:  # radiator
            ribs = int(w / 0.08)
            stage.add(
                boxes(
                    np.stack(
                        [np.linspace(-w / 2, w / 2, ribs), np.full(ribs, thick / 2 + 0.08), np.full(ribs, -z0 + 0.4)],
                        -1,
                    ),
                    (0.06, 0.09, min(0.55, z0 - 0.15)),
                ),
                bar,
                yaw,
                mid,
            )
    inward = along(p0, p1, 0, 1) - along(p0, p1, 0, 0)
    d = along(p0, p1, 1) - along(p0, p1, 0)
    up = np.array([0, 0, 1.0])
    corner = along(p0, p1, a, -0.01, z0)
    lobe = sky.mean * rng.uniform(0.5, 0.9)
    stage.lamp(corner, up * h, d * w, lobe)
    del inward
    if not curtains:
        return
    cloth = stage.mat("fabric|fabric|stripes|plain|wallpaper", mean=rng.uniform(0.1, 0.85), scale=rng.uniform(0.6, 1.6))
    bottom = rng.choice([0.02, z0 - 0.1]) if z0 > 0.2 else 0.02
    top = min(z1 + 0.15, 2.6)
    for side in (-1, 1):
        cw = rng.uniform(0.2, 0.45) * min(w, 2)
        m = sheet(cw, top - bottom, rng.uniform(5, 12) * 0.6, rng.uniform(0.02, 0.05), rng)
        at = along(p0, p1, (a + b) / 2 + side * (w / 2 + 0.05 - rng.uniform(0, 0.3) * w / 2), 0.1, bottom)
        stage.add(m, cloth, yaw, at)
    rod = tube([along(p0, p1, a - 0.3, 0.1, top), along(p0, p1, b + 0.3, 0.1, top)], 0.013, 7)
    stage.add(rod, stage.mat("metal|wood"))


def _door(stage: Stage, p0: ArrayLike, p1: ArrayLike, opening: Opening, thick: float, leaf: str) -> None:
    """A door in its opening: shut, ajar, or none; with a frame."""
    rng = stage.rng
    a, b, _, h = opening
    w = b - a
    yaw = float(np.arctan2(p1[1] - p0[1], p1[0] - p0[0]))
    mid = along(p0, p1, (a + b) / 2, -thick / 2)
    paint = stage.mat("plain|wood|wood", mean=rng.uniform(0.1, 0.85))
    stage.add(
        boxes(
            [(-w / 2, 0, h / 2), (w / 2, 0, h / 2), (0, 0, h)],
            [(0.07, thick + 0.04, h), (0.07, thick + 0.04, h), (w + 0.07, thick + 0.04, 0.07)],
        ),
        paint,
        yaw,
        mid,
    )
    if leaf == "none":
        return
    if leaf == "shut":  # no light through the gap
        stage.add(box((0, -thick, h / 2), (w + 0.3, 0.05, h + 0.2)), paint, yaw, mid)
    turn = 0.0 if leaf == "shut" else rng.uniform(0.3, 1.7) * rng.choice([1, -1])
    slab = [
        box((w / 2, 0, h / 2), (w - 0.06, 0.04, h - 0.05)),
        box((w - 0.1, 0.05, 1.0), (0.12, 0.03, 0.03)),
        box((w - 0.1, -0.05, 1.0), (0.12, 0.03, 0.03)),
    ]
    hinge = along(p0, p1, a + 0.03, -thick / 2)
    door = stage.mat("plain|wood|wood", mean=rng.uniform(0.1, 0.85))
    for m, k in zip(slab, (door, stage.mat("metal", spec=0.5), paint), strict=False):
        stage.add(m, k, yaw + turn, hinge)
    if rng.random() < 0.5:
        for z in (0.5, 1.45):
            stage.add(box((w / 2, 0, z), (w * 0.6, 0.055, 0.6)), paint, yaw + turn, hinge)


def _exterior(stage: Stage, span: float) -> None:
    """What is seen through windows: ground, walls, trees, lit by the sky."""
    rng = stage.rng
    ground = stage.mat("grass|paving|gravel|asphalt|bricks", outside=True)
    z = -0.15 if rng.random() < 0.6 else -rng.uniform(1, 9)
    # a ring of four pieces: the floor of the room has its own
    s = span + 60.0
    for x0, x1, y0, y1 in ((-s, s, span, s), (-s, s, -s, -span), (span, s, -span, span), (-s, -span, -span, span)):
        stage.add(quad((x0, y0, z), (x1 - x0, 0, 0), (0, y1 - y0, 0)), ground)
    for _ in range(int(rng.integers(3, 9))):
        az, r = rng.uniform(-np.pi, np.pi), span + rng.uniform(2, 25)
        at = (r * np.cos(az), r * np.sin(az), z)
        roll = rng.random()
        if roll < 0.45:
            leaf = [stage.mat("foliage", mean=m, outside=True) for m in (0.04, 0.1, 0.16)]
            stage.put(rng.choice(["tree", "bush"]), at, az, rng.uniform(0.7, 1.3), leaf, claim=0)
        else:
            size = np.array([rng.uniform(0.3, 8), rng.uniform(3, 14), rng.uniform(0.8, 9)])
            m = stage.mat("bricks|plaster|facade|concrete", outside=True)
            stage.add(box((0, 0, size[2] / 2), size), m, az + rng.normal(0, 0.4), at)


def _pictures(
    stage: Stage, p0: ArrayLike, p1: ArrayLike, length: float, free: list[tuple[float, float]], height: float
) -> None:
    rng = stage.rng
    yaw = float(np.arctan2(p1[1] - p0[1], p1[0] - p0[0]))
    for _ in range(int(rng.integers(0, 5))):
        w, h = rng.uniform(0.2, 1.1), rng.uniform(0.2, 0.9)
        s = rng.uniform(w / 2 + 0.1, max(length - w / 2 - 0.1, w / 2 + 0.11))
        if any(a - w / 2 < s < b + w / 2 for a, b in free):
            continue
        z = rng.uniform(1.2, min(1.9, height - 0.6))
        art = stage.mat("poster|camo|wallpaper|marble|plain", scale=rng.uniform(0.6, 1.6))
        at = along(p0, p1, s, 0.012, z)
        stage.add(box((0, 0, 0), (w, 0.02, h)), art, yaw, at)
        stage.add(
            frame((w + 0.05, h + 0.05), 0.035, 0.035), stage.mat("wood|metal|plain"), yaw, at - [0, 0, h / 2 + 0.025]
        )


def _openings(rng: Rng, length: float, height: float, windows: bool, door: bool) -> list[tuple[str, Opening]]:
    """Random windows and doors along a wall that do not overlap."""
    out: list[tuple[str, Opening]] = []
    spans: list[tuple[float, float]] = []

    def place(w: float) -> tuple[float, float] | None:
        for _ in range(8):
            if length - w < 0.5:
                return None
            a = rng.uniform(0.2, length - w - 0.2)
            if all(a > e + 0.2 or a + w < s - 0.2 for s, e in spans):
                spans.append((a, a + w))
                return a, a + w
        return None

    if windows:
        low = rng.choice([0.04, rng.uniform(0.5, 1.05)], p=[0.35, 0.65])
        top = min(height - 0.1, rng.uniform(1.9, 2.5))
        for _ in range(int(rng.integers(1, 4))):
            s = place(rng.uniform(0.7, 2.4))
            if s:
                out.append(("window", (*s, low, top)))
    if door:
        s = place(rng.uniform(0.75, 1.1))
        if s:
            out.append(("door", (*s, 0.0, 2.05)))
    return out


def _shell(
    stage: Stage,
    x0: float,
    x1: float,
    y0: float,
    y1: float,
    height: float,
    sky: Sky,
    day: bool,
    wall_mats: list[int],
    floor: int,
    ceiling: int,
    plans: list[Plan],
) -> list:
    """Floor, ceiling and four walls with openings. `plans`: list of four lists of (kind, opening).

    Returns for each wall (p0, p1, spans that are not free).
    """
    rng = stage.rng
    thick = 0.16
    c = rect_corners(x0, x1, y0, y1)
    # the floor goes on under the walls, or doors would stand over a gap
    stage.add(quad((x0 - 0.2, y0 - 0.2, 0), (x1 - x0 + 0.4, 0, 0), (0, y1 - y0 + 0.4, 0)), floor)
    stage.add(box(((x0 + x1) / 2, (y0 + y1) / 2, height + 0.1), (x1 - x0 + 0.6, y1 - y0 + 0.6, 0.2)), ceiling)
    skirting = stage.mat("plain|wood", mean=rng.uniform(0.1, 0.85)) if rng.random() < 0.7 else None
    sides = []
    for k in range(4):
        p0, p1 = c[k], c[(k + 1) % 4]
        plan = plans[k]
        stage.add(wall(p0, p1, height, thick, [o for _, o in plan]), wall_mats[k])
        yaw = float(np.arctan2(p1[1] - p0[1], p1[0] - p0[0]))
        if skirting is not None:
            length = float(np.hypot(p1[0] - p0[0], p1[1] - p0[1]))
            at = 0.0
            for a, b in [*sorted((o[0], o[1]) for _, o in plan if o[2] < 0.1), (length, length)]:
                if a - at > 0.1:
                    stage.add(box(((a + at) / 2, 0.008, 0.05), (a - at, 0.016, 0.1)), skirting, yaw, (*p0, 0))
                at = b
        for kind, o in plan:
            if kind == "window":
                if day:
                    _window(stage, p0, p1, o, sky, thick, rng.random() < 0.55)
                else:
                    _window(stage, p0, p1, o, sky, thick, True)
            elif kind in ("door", "open", "ajar"):
                _door(stage, p0, p1, o, thick, {"door": "shut", "open": "none", "ajar": "ajar"}[kind])
        sides.append((p0, p1, [(o[0], o[1]) for _, o in plan]))
    return sides


def _against_walls(
    stage: Stage,
    sides: list[Side],
    inside: tuple[float, float, float, float],
    kinds: list[str],
    weights: list[float],
    height: float,
) -> None:
    """Furniture with its back to the walls, away from doors."""
    rng = stage.rng
    for p0, p1, spans in sides:
        length = float(np.hypot(p1[0] - p0[0], p1[1] - p0[1]))
        yaw = float(np.arctan2(p1[1] - p0[1], p1[0] - p0[0])) + np.pi / 2
        at = rng.uniform(0.1, 0.6)
        while at < length - 0.5:
            kind = str(rng.choice(kinds, p=weights))
            mesh = stage.objects.pick(rng, kind)
            half = np.abs(mesh.v[:, :2]).max(0)
            w = 2 * half[1]
            if at + w > length - 0.05:
                at += 0.4
                continue
            low = mesh.v[:, 2].max() < 0.8
            clash = any(at < e and at + w > s for s, e in spans)
            if rng.random() < 0.85 and (not clash or (low and rng.random() < 0.3)):
                pos = along(p0, p1, at + w / 2, half[0] + rng.uniform(0.01, 0.06))
                if stage.free(pos[0], pos[1], min(half) * 0.8):
                    stage.add(mesh, dress(stage, kind), yaw + rng.normal(0, 0.02), pos)
                    for f in np.linspace(-1, 1, max(1, int(w / (2 * half[0])) + 1)) if w > 2 * half[0] else (0.0,):
                        q = along(p0, p1, at + w / 2 + f * max(half[1] - half[0], 0), half[0])
                        stage.taken.append((q[0], q[1], float(half[0]) * 1.1))
                    top = float(mesh.v[:, 2].max())
                    if kind in ("cabinet",) and top < 1.2 and rng.random() < 0.8:
                        clutter(stage, pos[0], pos[1], top, int(rng.integers(1, 6)), 0.13)
                    if kind == "cabinet" and top < 1.2 and rng.random() < 0.3:
                        up = along(p0, p1, at + w / 2, 0.17, 1.75)
                        stage.add(box((0, 0, 0), (0.33, w, 0.6)), dress(stage, "cabinet")[1], yaw, up)
            at += w + rng.choice([0.02, rng.uniform(0.05, 1.2)])


def _ceiling_lights(stage: Stage, x0: float, x1: float, y0: float, y1: float, h: float, strength: float) -> None:
    """Ceiling lights or pendants, lit."""
    rng = stage.rng
    colour = np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.5, 1.05)])
    nx, ny = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    pendant = rng.random() < 0.4
    sx, sy = rng.uniform(0.15, 0.7), rng.uniform(0.15, 0.7)
    for i in range(nx):
        for j in range(ny):
            x, y = x0 + (i + 0.5) / nx * (x1 - x0), y0 + (j + 0.5) / ny * (y1 - y0)
            area = sx * sy
            rgb = colour * strength / area / (nx * ny) ** 0.5
            if pendant:
                z = h - rng.uniform(0.4, 0.9)
                r = rng.uniform(0.12, 0.3)
                shade = stage.mat("plain|fabric|metal", emission=colour * 1.5, mean=0.6)
                stage.add(lathe([(r, z), (r * 0.75, z + 0.12), (0.03, z + 0.22)], 16), shade, at=(x, y, 0))
                stage.add(tube([(x, y, z + 0.2), (x, y, h)], 0.005, 5), stage.shade(0.02, 0.1))
                stage.lamp(
                    (x - r * 0.7, y + r * 0.7, z - 0.01),
                    (r * 1.4, 0, 0),
                    (0, -r * 1.4, 0),
                    colour * strength / (2 * r * r) / (nx * ny) ** 0.5,
                )
            else:
                glow = stage.mat("plain", emission=np.minimum(rgb, 12), mean=0.8)
                stage.add(box((x, y, h - 0.02), (sx, sy, 0.05)), glow)
                stage.lamp((x - sx / 2, y + sy / 2, h - 0.055), (sx, 0, 0), (0, -sy, 0), rgb)


def _lit_scene(stage: Stage, volume_area: float, day: bool) -> None:
    """Sets the ambient light of a closed room from what its lights send out, so that deep corners are not black."""
    flux = np.zeros(3)
    for lamp in stage.lights:
        flux = flux + lamp[9:12] * np.linalg.norm(np.cross(lamp[3:6], lamp[6:9]))
    if day and stage.sky is not None:
        flux = flux + stage.sky.sun_rgb * 0.25
    stage.interior_ambient = np.asarray(flux) / volume_area * 0.9 + 1e-3


def room(stage: Stage) -> None:
    """A living room, office, bedroom or kitchen."""
    rng = stage.rng
    stage.indoor = True
    w, d = rng.uniform(2.8, 6.5), rng.uniform(3.0, 8.0)
    h = rng.uniform(2.3, 3.2)
    x0, x1, y0, y1 = -w / 2, w / 2, -d / 2, d / 2
    style = rng.choice(["living", "office", "bed", "kitchen", "store"], p=[0.38, 0.22, 0.12, 0.16, 0.12])
    light = rng.choice(["day", "day_sun", "lamps", "mixed", "dark"], p=[0.25, 0.33, 0.2, 0.13, 0.09])
    day = light in ("day", "day_sun", "mixed")
    stage.sky = sky = make_sky(
        rng,
        "night"
        if not day
        else str(
            rng.choice(["clear", "broken"])
            if light == "day_sun"
            else rng.choice(["overcast", "haze", "broken", "dusk"])
        ),
    )
    win = [rng.random() < 0.45 for _ in range(4)]
    if day and not any(win):
        win[int(rng.integers(0, 4))] = True
    first_door = int(rng.integers(0, 4))
    lengths = (w, d, w, d)
    plans = [_openings(rng, lengths[k], h, win[k], k == first_door or rng.random() < 0.25) for k in range(4)]
    if light == "day_sun":  # turn the sun so that it shines in
        k = int(rng.choice([i for i in range(4) if win[i]]))
        inward = (np.pi / 2, np.pi, -np.pi / 2, 0.0)[k]
        az, el = inward + np.pi + rng.uniform(-1.0, 1.0), np.radians(rng.uniform(12, 50))
        turn = az - np.arctan2(sky.sun[1], sky.sun[0])
        sky.radiance = np.roll(sky.radiance, round(float(turn) / (2 * np.pi) * sky.radiance.shape[1]), 1)
        sky.sun = np.array([np.cos(az) * np.cos(el), np.sin(az) * np.cos(el), np.sin(el)])
        sky.sun_rgb = np.maximum(sky.sun_rgb, 8.0 * np.array([1, 0.93, 0.82]))
    plans = [
        [(("door", "open", "ajar")[int(rng.integers(0, 3))] if kind == "door" else kind, o) for kind, o in p]
        for p in plans
    ]
    base = _wall_material(stage)
    accent = stage.mat(WALLS, mean=rng.uniform(0.1, 0.8))
    mats = [accent if rng.random() < 0.25 else base for _ in range(4)]
    floor = stage.mat(FLOORS, mean=rng.uniform(0.08, 0.55), macro=0.15)
    ceiling = _wall_material(stage, 0.8, "plaster|wood|tiles")
    sides = _shell(stage, x0, x1, y0, y1, h, sky, day, mats, floor, ceiling, plans)
    _neighbours(stage, sides, plans, h, base, floor)
    for p0, p1, spans in sides:
        _pictures(stage, p0, p1, float(np.hypot(p1[0] - p0[0], p1[1] - p0[1])), spans, h)
    kinds = {
        "living": (
            ["sofa", "cabinet", "shelf", "plant", "chair", "floor_lamp", "table"],
            [0.26, 0.2, 0.16, 0.12, 0.12, 0.08, 0.06],
        ),
        "office": (["table", "cabinet", "shelf", "plant", "chair", "bin"], [0.3, 0.22, 0.22, 0.06, 0.14, 0.06]),
        "bed": (["bed", "cabinet", "shelf", "chair", "floor_lamp", "plant"], [0.25, 0.35, 0.12, 0.12, 0.08, 0.08]),
        "kitchen": (["cabinet", "table", "chair", "bin", "shelf"], [0.65, 0.1, 0.1, 0.05, 0.1]),
        "store": (["shelf", "pallet", "cabinet", "bin", "thing"], [0.4, 0.25, 0.15, 0.1, 0.1]),
    }[str(style)]
    if rng.random() < 0.9:
        _against_walls(stage, sides, (x0, x1, y0, y1), *kinds, h)
    if rng.random() < 0.45:
        rw, rd = rng.uniform(0.3, 0.7) * w, rng.uniform(0.3, 0.6) * d
        rug = stage.mat("carpet|stripes|wallpaper|fabric", mean=rng.uniform(0.05, 0.6), scale=rng.uniform(0.8, 2))
        stage.box(
            (rng.uniform(-0.3, 0.3), rng.uniform(-0.5, 0.5), 0.006),
            (rw, rd, 0.012),
            rug,
            rng.choice([0.0, rng.normal(0, 0.2)]),
        )
    for _ in range(int(rng.integers(1, 8))):  # groups in the middle
        x, y = rng.uniform(x0 + 0.7, x1 - 0.7), rng.uniform(y0 + 0.7, y1 - 0.7)
        kind = str(
            rng.choice(["table", "chair", "sofa", "plant", "thing", "person"], p=[0.36, 0.28, 0.1, 0.07, 0.11, 0.08])
        )
        if not stage.free(x, y, 0.55):
            continue
        yaw = rng.choice([0, 1, 2, 3]) * np.pi / 2 + rng.normal(0, 0.1)
        stage.put(kind, (x, y), yaw)
        if kind == "table":
            legs = dress(stage, "chair")
            which = stage.objects.pick(rng, "chair")
            for a in np.arange(4) * np.pi / 2 + yaw:
                r = rng.uniform(0.65, 1.1)
                q = (x + r * np.cos(a), y + r * np.sin(a))
                if rng.random() < 0.6 and x0 + 0.35 < q[0] < x1 - 0.35 and y0 + 0.35 < q[1] < y1 - 0.35:
                    stage.add(which, legs, a + np.pi + rng.normal(0, 0.3), (*q, 0))
                    stage.taken.append((*q, 0.3))
    for _ in range(int(rng.integers(0, 6))):
        clutter(
            stage, rng.uniform(x0 + 0.3, x1 - 0.3), rng.uniform(y0 + 0.3, y1 - 0.3), 0, int(rng.integers(1, 3)), 0.15
        )
    if day:
        _exterior(stage, max(w, d) / 2 + 4.5)
    if light in ("lamps", "mixed") or rng.random() < 0.1:
        _ceiling_lights(stage, x0, x1, y0, y1, h, rng.uniform(0.6, 2.0) * (1 if light == "lamps" else 0.6))
    elif rng.random() < 0.6:
        r = rng.uniform(0.12, 0.25)
        stage.add(lathe([(0.01, h - 0.12), (r, h - 0.1), (r, h)], 14), stage.mat("plain|fabric", mean=0.7))
    area = 2 * (w * d + w * h + d * h)
    _lit_scene(stage, area, day)
    if light == "dark":
        _lone_lamp(stage, x0, x1, y0, y1)

    def view(r: Rng) -> tuple[np.ndarray, float]:
        x, y = r.uniform(x0 + 0.3, x1 - 0.3), r.uniform(y0 + 0.3, y1 - 0.3)
        # towards a far part of the room rather than the next wall
        tx, ty = -np.sign(x) * r.uniform(0, w / 2), -np.sign(y) * r.uniform(0, d / 2)
        height = r.choice([r.uniform(0.15, 0.6), r.uniform(0.6, 1.3), r.uniform(1.2, 1.8)])
        return np.array([x, y, height]), float(np.arctan2(ty - y, tx - x) + r.normal(0, 0.35))

    stage.view = view


def _lone_lamp(stage: Stage, x0: float, x1: float, y0: float, y1: float) -> None:
    """One lamp as key light in a dark room."""
    rng = stage.rng
    at = np.array([rng.uniform(x0 + 0.5, x1 - 0.5), rng.uniform(y0 + 0.5, y1 - 0.5), rng.uniform(0.7, 2.0)])
    stage.lamps.append(at)
    stage.interior_ambient = np.array([0.03, 0.025, 0.02]) * rng.uniform(0.5, 2)
    stage.add(lathe([(0.16, 0.16), (0.1, 0.38)], 14), stage.mat("fabric|plain", emission=(2.0, 1.5, 0.9)), at=at)
    stage.add(tube([at * [1, 1, 0], at - [0, 0, 0.1]], 0.012, 6), stage.shade(0.02, 0.3))


def _neighbours(stage: Stage, sides: list[Side], plans: list[Plan], h: float, wall_mat: int, floor: int) -> None:
    """A further room behind every open door, with its own light."""
    rng = stage.rng
    for (p0, p1, _), plan in zip(sides, plans, strict=True):
        for kind, o in plan:
            if kind not in ("open", "ajar"):
                continue
            mid = along(p0, p1, (o[0] + o[1]) / 2, -0.16)
            yaw = float(np.arctan2(p1[1] - p0[1], p1[0] - p0[0]))
            depth, width = rng.uniform(1.5, 4), rng.uniform(1.6, 3.5)
            rot = rot_z(yaw)
            m = wall_mat if rng.random() < 0.5 else stage.mat(WALLS)
            fl = floor if rng.random() < 0.6 else stage.mat(FLOORS)
            b = stage.builder
            b.add(box((0, -depth / 2, -0.051), (width, depth, 0.1)), fl, rot, mid)
            b.add(
                boxes(
                    [(-width / 2, -depth / 2, h / 2), (width / 2, -depth / 2, h / 2), (0, -depth, h / 2)],
                    [(0.1, depth, h), (0.1, depth, h), (width, 0.1, h)],
                ),
                m,
                rot,
                mid,
            )
            b.add(box((0, -depth / 2, h + 0.05), (width, depth, 0.1)), m, rot, mid)
            # threshold: the floor goes on under the door
            b.add(box((0, 0.08, -0.051), (o[1] - o[0] + 0.05, 0.3, 0.1)), fl, rot, mid)
            for _ in range(int(rng.integers(1, 4))):
                kind2 = str(rng.choice(["cabinet", "chair", "shelf", "table", "plant"]))
                q = rot @ np.array([rng.uniform(-0.35, 0.35) * width, -depth * rng.uniform(0.6, 0.9), 0]) + mid
                stage.put(kind2, q, yaw + np.pi / 2, claim=0)
            if rng.random() < 0.8:
                c = rot @ np.array([-0.25, -depth / 2 + 0.25, h - 0.02]) + mid
                e = np.array([1.0, 0.9, 0.75]) * rng.uniform(1, 12)
                stage.lamp(c, rot @ np.array([0.5, 0, 0]), rot @ np.array([0, -0.5, 0]), e)


def corridor(stage: Stage) -> None:
    """A corridor along x with doors, lights, things at the walls, people."""
    rng = stage.rng
    stage.indoor = True
    w, length, h = rng.uniform(1.5, 3.4), rng.uniform(9, 32), rng.uniform(2.3, 3.4)
    x0, x1, y0, y1 = 0.0, length, -w / 2, w / 2
    day = rng.random() < 0.45
    stage.sky = sky = make_sky(rng, None if day else "night")
    plans: list[list] = [[], [], [], []]
    glazed = int(rng.choice([0, 2])) if day else -1
    for k in (0, 2):
        s = rng.uniform(0.5, 2)
        while s < length - 1.5:
            if k == glazed:
                ww = rng.uniform(1.0, 2.2)
                plans[k].append(("window", (s, s + ww, rng.choice([0.05, 0.9]), min(h - 0.15, 2.4))))
                s += ww + rng.uniform(0.15, 0.8)
            else:
                plans[k].append((str(rng.choice(["door", "door", "ajar", "open"])), (s, s + 0.95, 0.0, 2.05)))
                s += rng.uniform(1.6, 5)
    for k in (1, 3):
        roll = rng.random()
        if roll < 0.4:
            plans[k].append(("door", (w / 2 - 0.5, w / 2 + 0.5, 0, 2.1)))
        elif roll < 0.75 and day:
            plans[k].append(("window", (0.2, w - 0.2, 0.1, min(2.4, h - 0.1))))
        elif roll < 0.9:
            plans[k].append(("open", (w / 2 - 0.6, w / 2 + 0.6, 0, 2.1)))
    base = _wall_material(stage)
    floor = stage.mat(
        "tiles|tiles|speckled|marble|concrete|planks|carpet",
        mean=rng.uniform(0.08, 0.6),
        spec=float(rng.choice([0.02, 0.06])),
        rough=rng.uniform(0.05, 0.4),
    )
    ceiling = stage.mat("plaster|tiles|concrete", mean=rng.uniform(0.4, 0.9))
    sides = _shell(stage, x0, x1, y0, y1, h, sky, day, [base] * 4, floor, ceiling, plans)
    _neighbours(stage, sides, plans, h, base, floor)
    if rng.random() < 0.4:  # a lower band of the walls in another colour
        band = stage.mat("plain|tiles|wood|bricks", mean=rng.uniform(0.1, 0.6))
        for p0, p1, spans in sides[::2]:
            yaw = float(np.arctan2(p1[1] - p0[1], p1[0] - p0[0]))
            at = 0.0
            for a, b in [*sorted(spans), (length, length)]:
                if a - at > 0.1:
                    stage.add(box(((a + at) / 2, 0.006, 0.5), (a - at, 0.012, 1.0)), band, yaw, (*p0, 0))
                at = b
    for p0, p1, spans in sides[::2]:
        _pictures(stage, p0, p1, length, spans, h)
        for _ in range(int(rng.integers(0, 7))):
            s = rng.uniform(0.5, length - 0.5)
            if any(a - 0.5 < s < b + 0.5 for a, b in spans):
                continue
            kind = str(rng.choice(["chair", "cabinet", "bin", "plant", "bench", "pallet", "shelf"]))
            mesh = stage.objects.pick(rng, kind)
            half = np.abs(mesh.v[:, :2]).max(0)
            if half[0] * 2 > w * 0.5:
                continue
            q = along(p0, p1, s, half[0] + 0.03)
            if stage.free(q[0], q[1], 0.3):
                yaw = float(np.arctan2(p1[1] - p0[1], p1[0] - p0[0])) + np.pi / 2
                stage.add(mesh, dress(stage, kind), yaw, q)
                stage.taken.append((q[0], q[1], float(half.max())))
    for _ in range(int(rng.integers(0, 5))):
        x, y = rng.uniform(1, length - 1), rng.uniform(-0.3, 0.3) * w
        if stage.free(x, y, 0.35):
            stage.put("person", (x, y), rng.uniform(-3.1, 3.1))
    step = rng.uniform(1.8, 4.5)
    n = int(length / step)
    lit = rng.random() < 0.85 or not day
    colour = np.array([1.0, rng.uniform(0.85, 1.0), rng.uniform(0.65, 1.05)])
    sx, sy = rng.choice([(1.2, 0.15), (0.6, 0.6), (0.25, 0.25), (0.15, 1.0)])
    for k in range(n):
        x = (k + 0.5) * length / n
        on = lit and rng.random() < 0.9
        rgb = colour * rng.uniform(0.8, 1.2) / (sx * sy) * 0.7
        stage.add(
            box((x, 0, h - 0.015), (sx, sy, 0.04)),
            stage.mat("plain", mean=0.8, emission=np.minimum(rgb, 10) if on else (0, 0, 0)),
        )
        if on:
            stage.lamp((x - sx / 2, sy / 2, h - 0.04), (sx, 0, 0), (0, -sy, 0), rgb)
    if day:
        _exterior(stage, length + 3)
    _lit_scene(stage, 2 * (w * h + w * length + h * length), day)
    if stage.sky.kind == "night" and not stage.lights:
        _lone_lamp(stage, x0, x1, y0, y1)

    def view(r: Rng) -> tuple[np.ndarray, float]:
        fwd = r.random() < 0.5
        x = r.uniform(0.3, length * 0.6) if fwd else r.uniform(length * 0.4, length - 0.3)
        yaw = (0.0 if fwd else np.pi) + r.choice([r.normal(0, 0.12), r.normal(0, 0.5)])
        return (
            np.array([x, r.uniform(-0.32, 0.32) * w, r.choice([r.uniform(0.15, 0.6), r.uniform(0.6, 1.7)])]),
            float(yaw),
        )

    stage.view = view


def warehouse(stage: Stage) -> None:
    """A hall with racks, goods, pallets, columns, people."""
    rng = stage.rng
    stage.indoor = True
    length, w, h = rng.uniform(14, 42), rng.uniform(10, 28), rng.uniform(4.5, 9)
    x0, x1, y0, y1 = 0.0, length, -w / 2, w / 2
    day = rng.random() < 0.5
    stage.sky = sky = make_sky(rng, None if day else "night")
    plans: list[list] = [[], [], [], []]
    if day:
        for k in range(4):
            total = (length, w, length, w)[k]
            if rng.random() < 0.6:
                s = rng.uniform(0.5, 3)
                while s < total - 4:
                    plans[k].append(("window", (s, s + 3, h * 0.6, h * 0.85)))
                    s += rng.uniform(3.5, 6)
            elif rng.random() < 0.6:
                s = rng.uniform(1, total - 5)
                plans[k].append(("gate", (s, s + 4, 0.0, min(4, h - 0.5))))
    base = stage.mat("corrugated|concrete|bricks|plain|plaster", mean=rng.uniform(0.2, 0.75))
    floor = stage.mat(
        "concrete|concrete|asphalt|paving|plain", mean=rng.uniform(0.12, 0.5), spec=0.04, rough=rng.uniform(0.12, 0.6)
    )
    ceiling = stage.mat("corrugated|metal|concrete", mean=rng.uniform(0.15, 0.7))
    _shell(stage, x0, x1, y0, y1, h, sky, day, [base] * 4, floor, ceiling, plans)
    c = rect_corners(x0, x1, y0, y1)
    for k in range(4):
        for kind, o in plans[k]:
            if kind == "gate":
                p0, p1 = c[k], c[(k + 1) % 4]
                d = along(p0, p1, 1) - along(p0, p1, 0)
                stage.lamp(along(p0, p1, o[0], -0.02), np.array([0, 0, o[3]]), d * (o[1] - o[0]), sky.mean * 0.7)
    aisle = rng.uniform(1.8, 4.0)
    depth = rng.uniform(0.7, 1.2)
    post = stage.mat(
        "metal|plain",
        tint=np.array([0.15, 0.3, 0.9]) if rng.random() < 0.5 else np.array([1.0, 0.4, 0.1]),
        mean=rng.uniform(0.08, 0.3),
    )
    beam = stage.mat("metal|plain", tint=np.array([1.0, 0.45, 0.1]), mean=rng.uniform(0.15, 0.4))
    boards = stage.mat("wood|metal|planks", mean=rng.uniform(0.1, 0.4))
    goods = [
        stage.mat("cardboard|cardboard|plain|poster|goods|corrugated|wood", mean=rng.uniform(0.05, 0.65))
        for _ in range(12)
    ]
    y = y0 + rng.choice([0.1, aisle])
    dense = rng.random() < 0.75
    while y + depth < y1 and dense:
        double = rng.random() < 0.6
        for _ in range(2 if double and y + 2 * depth < y1 else 1):
            _rack(
                stage, rng.uniform(1, 4), length - rng.uniform(1, 6), y + depth / 2, depth, h, post, beam, boards, goods
            )
            y += depth + 0.02
        y += aisle
        if rng.random() < 0.15:
            y += aisle
    for _ in range(int(rng.integers(4, 26))):
        x, yy = rng.uniform(1, length - 1), rng.uniform(y0 + 0.7, y1 - 0.7)
        kind = str(
            rng.choice(
                ["pallet", "person", "bin", "thing", "shelf", "cabinet", "table"],
                p=[0.45, 0.14, 0.12, 0.12, 0.05, 0.06, 0.06],
            )
        )
        if stage.free(x, yy, 0.7):
            stage.put(kind, (x, yy), rng.choice([0, 1.571, 3.1416, rng.uniform(0, 6.28)]))
    if rng.random() < 0.6:
        n = int(length / rng.uniform(4, 8))
        cols = stage.mat("metal|concrete|plain", mean=rng.uniform(0.1, 0.6))
        for k in range(1, n):
            for yy in (y0 + 0.2, y1 - 0.2, 0.0) if rng.random() < 0.5 else (y0 + 0.2, y1 - 0.2):
                if stage.free(k * length / n, yy, 0.2):
                    stage.box((k * length / n, yy, h / 2), (0.22, 0.22, h), cols)
        stage.add(
            boxes([(k * length / n, 0, h - 0.25) for k in range(1, n)] or [(length / 2, 0, h - 0.3)], (0.2, w, 0.4)),
            cols,
        )
    paint = stage.mat(
        "plain", tint=np.array([1.0, 0.8, 0.1]) if rng.random() < 0.6 else np.ones(3), mean=0.5, spec=0.03
    )
    for _ in range(int(rng.integers(0, 5))):
        yy = rng.uniform(y0 + 1, y1 - 1)
        stage.add(quad((1, yy, 0.003), (length - 2, 0, 0), (0, 0.1, 0)), paint)
    nx, ny = max(1, int(length / rng.uniform(5, 9))), max(1, int(w / rng.uniform(5, 9)))
    colour = np.array([1.0, rng.uniform(0.85, 1.0), rng.uniform(0.6, 1.1)])
    lit = not day or rng.random() < 0.7
    for i in range(nx):
        for j in range(ny):
            x, yy = (i + 0.5) / nx * length, y0 + (j + 0.5) / ny * w
            rgb = colour * rng.uniform(8, 14)
            stage.add(
                box((x, yy, h - 0.6), (1.2, 0.3, 0.08)),
                stage.mat("plain", mean=0.8, emission=rgb if lit else (0, 0, 0)),
            )
            if lit:
                stage.lamp((x - 0.6, yy + 0.15, h - 0.65), (1.2, 0, 0), (0, -0.3, 0), rgb * 2)
    if day:
        _exterior(stage, length + 3)
    _lit_scene(stage, 2 * (w * h + w * length + h * length), day)
    if not stage.lights:
        _lone_lamp(stage, x0, x1, y0, y1)

    def view(r: Rng) -> tuple[np.ndarray, float]:
        fwd = r.random() < 0.5
        x = r.uniform(0.5, length * 0.5) if fwd else r.uniform(length * 0.5, length - 0.5)
        yaw = (0.0 if fwd else np.pi) + r.choice([r.normal(0, 0.15), r.normal(0, 0.6)])
        return (
            np.array([x, r.uniform(y0 + 0.5, y1 - 0.5), r.choice([r.uniform(0.2, 0.7), r.uniform(0.7, 2.2)])]),
            float(yaw),
        )

    stage.view = view


def _rack(
    stage: Stage,
    x0: float,
    x1: float,
    y: float,
    depth: float,
    h: float,
    post: int,
    beam: int,
    boards: int,
    goods: list[int],
) -> None:
    """One row of pallet racking along x with goods on it."""
    rng = stage.rng
    bay = rng.uniform(1.8, 2.8)
    n = max(1, int((x1 - x0) / bay))
    levels = np.arange(0, min(h - 1.2, rng.uniform(2, 7)), rng.uniform(0.7, 1.8))
    top = levels[-1] + 0.9
    px = x0 + np.arange(n + 1) * bay
    posts = [(x, y + s * depth / 2, top / 2) for x in px for s in (-1, 1)]
    stage.add(boxes(posts, (0.09, 0.07, top)), post)
    # bracing between the two posts of a frame
    for x in px:
        for z in np.arange(0.3, top - 0.6, 1.2):
            stage.add(tube([(x, y - depth / 2, z), (x, y + depth / 2, z + 0.6)], 0.02, 4, False), post)
    mid = x0 + (np.arange(n) + 0.5) * bay
    bars = [(x, y + s * depth / 2, z) for x in mid for s in (-1, 1) for z in levels[1:]]
    if bars:
        stage.add(boxes(bars, (bay, 0.05, 0.12)), beam)
        stage.add(boxes([(x, y, z + 0.05) for x in mid for z in levels[1:]], (bay, depth, 0.02)), boards)
    at, size, part = [], [], []
    gap = levels[1] - levels[0] if len(levels) > 1 else 1.2
    for x in mid:
        for z in levels:
            q = x - bay / 2 + 0.08
            while q < x + bay / 2 - 0.3:
                wid = rng.uniform(0.25, 1.1)
                if rng.random() < 0.25 or q + wid > x + bay / 2 - 0.05:
                    q += 0.3
                    continue
                s = np.array([wid, depth * rng.uniform(0.5, 0.98), (gap - 0.2) * rng.uniform(0.3, 0.95)])
                floor_z = z + (0.06 if z > 0 else 0.0)
                at.append((q + wid / 2, y, floor_z + s[2] / 2))
                size.append(s)
                part.append(int(rng.integers(0, len(goods))))
                q += wid + rng.uniform(0.01, 0.2)
    if at:
        stage.add(boxes(at, np.array(size), rng.normal(0, 0.02, len(at)), part), goods)
    for x in np.arange(x0, x1, 1.0):
        stage.taken.append((float(x), float(y), depth * 0.75))
