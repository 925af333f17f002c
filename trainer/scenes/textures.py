"""A bank of procedural tileable textures, and materials made of them.

A texture is (256, 256, 4) uint8: colour stored with gamma 2 (linear = (v / 255)²) and a height map in the last
channel for bumps. All textures of a process lie in one array with smaller and smaller copies, so that every
material of every scene is a row of numbers and never new kernel code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import ArrayLike

SIZE = 256
LEVELS = 8  # 256, 128, ... 2
ROW = 28  # numbers in a material row (a multiple of four)

Rng = np.random.Generator
Image = tuple[np.ndarray, np.ndarray]  # linear RGB (SIZE, SIZE, 3) and height (SIZE, SIZE)


def noise(
    rng: Rng, beta: float = 1.8, stretch: tuple[float, float] = (1.0, 1.0), low: float = 0.0, size: int = SIZE
) -> np.ndarray:
    """Tileable noise (size, size) float32 in 0..1 with spectrum 1/f^beta; `low` cuts frequencies below it."""
    fy = np.fft.fftfreq(size)[:, None] * size * stretch[1]
    fx = np.fft.rfftfreq(size)[None] * size * stretch[0]
    f = np.hypot(fx, fy)
    amp = np.where((f > low) & (f > 0), np.maximum(f, 1e-6) ** (-beta), 0)
    spec = amp * np.exp(2j * np.pi * rng.random(f.shape))
    x = np.fft.irfft2(spec, (size, size))
    x = (x - x.mean()) / (x.std() + 1e-9)
    return np.clip(0.5 + x / 5, 0, 1).astype(np.float32)


def _cells(rng: Rng, count: int, jitter: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Tileable Worley cells: distance to the nearest point (SIZE, SIZE) in pixels, and a random value per cell."""
    side = max(2, int(np.sqrt(count)))
    g = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + 0.5) * SIZE / side
    pts = (g + rng.uniform(-0.5, 0.5, g.shape) * jitter * SIZE / side) % SIZE
    value = rng.random(len(pts)).astype(np.float32)
    pad = SIZE // 4
    img = np.ones((SIZE + 2 * pad, SIZE + 2 * pad), np.uint8)
    val = np.zeros(img.shape, np.float32)
    for dx in (-SIZE, 0, SIZE):
        for dy in (-SIZE, 0, SIZE):
            q = np.floor(pts + np.array([dx + pad, dy + pad])).astype(int)
            ok = ((q >= 0) & (q < SIZE + 2 * pad)).all(1)
            img[q[ok, 1], q[ok, 0]] = 0
            val[q[ok, 1], q[ok, 0]] = value[ok]
    dist, label = cv2.distanceTransformWithLabels(img, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    table = np.zeros(label.max() + 1, np.float32)
    table[label[img == 0]] = val[img == 0]
    cut = slice(pad, pad + SIZE)
    return dist[cut, cut], table[label[cut, cut]]


def _ramp(t: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Maps t (h, w) in 0..1 through evenly spaced linear colours (k, 3) to (h, w, 3)."""
    x = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(t, x, colours[:, c]) for c in range(3)], -1).astype(np.float32)


def hsv(h: float, s: float, v: float) -> np.ndarray:
    """Linear RGB (3,) of a colour given by hue, saturation and value in 0..1."""
    k = (np.array([5, 3, 1]) + (h % 1.0) * 6) % 6
    rgb = v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)
    return rgb**2.2


def any_colour(rng: Rng, sat: float = 0.6) -> np.ndarray:
    """A random linear RGB colour of a made thing: often grey, white or black, at times saturated."""
    if rng.random() < 0.45:
        return hsv(rng.random(), rng.uniform(0, 0.12), rng.choice([rng.uniform(0.08, 0.3), rng.uniform(0.5, 0.97)]))
    # purple and bright green are rare on made things
    hue = rng.choice([rng.uniform(0.0, 0.15), rng.uniform(0.52, 0.68), rng.random()], p=[0.45, 0.3, 0.25])
    return hsv(hue, rng.uniform(0.1, 1) * sat + 0.1, rng.uniform(0.25, 0.95))


def _earth(rng: Rng, v: tuple[float, float] = (0.2, 0.55)) -> np.ndarray:
    return hsv(rng.uniform(0.04, 0.12), rng.uniform(0.1, 0.5), rng.uniform(*v))


def _grey(rng: Rng, v: tuple[float, float] = (0.3, 0.7)) -> np.ndarray:
    return hsv(rng.choice([0.08, 0.12, 0.6]), rng.uniform(0, 0.12), rng.uniform(*v))


def _green(rng: Rng, v: tuple[float, float] = (0.18, 0.45)) -> np.ndarray:
    return hsv(rng.uniform(0.16, 0.29), rng.uniform(0.22, 0.6), rng.uniform(*v))


def _speckle(rng: Rng, base: np.ndarray, amount: float) -> np.ndarray:
    fine = noise(rng, 0.4)
    return base * (1 + amount * (fine - 0.5) * 2)[..., None]


def plain(rng: Rng) -> Image:
    """Paint: one colour with hardly any structure."""
    h = noise(rng, 1.5)
    return any_colour(rng)[None, None] * (1 + 0.06 * (h - 0.5))[..., None], h * 0.2


def plaster(rng: Rng) -> Image:
    """Wall paint or plaster, pale, with stains and grain."""
    h = noise(rng, rng.uniform(0.4, 1.2), low=4)
    stain = noise(rng, 1.9)
    col = hsv(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.65, 0.97))
    return col[None, None] * (1 - 0.25 * rng.random() * stain - 0.1 * h)[..., None], h * rng.uniform(0.1, 0.7)


def concrete(rng: Rng) -> Image:
    """Concrete with patches, pores and streaks."""
    a, b, streak = noise(rng, 1.6), noise(rng, 0.3), noise(rng, 1.6, (1.0, 0.08))
    t = 0.5 * a + 0.25 * b + 0.35 * streak * rng.random()
    return _ramp(t, np.stack([_grey(rng, (0.2, 0.45)), _grey(rng, (0.5, 0.85))])), 0.4 * b + 0.3 * a


def asphalt(rng: Rng) -> Image:
    """Asphalt: dark grain, patches, cracks."""
    grain, patch = noise(rng, 0.1), noise(rng, 1.8)
    base = rng.uniform(0.03, 0.2)
    t = base * (0.6 + 0.8 * patch) * (0.55 + 0.9 * grain)
    crack = np.abs(noise(rng, 1.5) - 0.5) < rng.uniform(0, 0.006)
    t = np.where(crack & (noise(rng, 2) > 0.5), t * 0.4, t)
    return _speckle(rng, t[..., None] * (1 + rng.normal(0, 0.03, 3)), 0.3), grain * 0.6


def gravel(rng: Rng) -> Image:
    """Pebbles."""
    d, v = _cells(rng, int(rng.integers(150, 1200)))
    e = np.clip(1 - d / (np.percentile(d, 98)), 0, 1)
    cols = np.stack([_earth(rng, (0.2, 0.4)), _grey(rng, (0.4, 0.7)), _earth(rng, (0.5, 0.85))])
    return _ramp(v, cols) * (0.25 + 0.85 * np.sqrt(e))[..., None], e


def grass(rng: Rng) -> Image:
    """Lawn: short blades, dry and bare patches."""
    blades = 0.5 * noise(rng, 0.35, (1, 0.4)) + 0.5 * noise(rng, 0.35, (0.4, 1))
    patch = noise(rng, 1.8)
    g0, g1, dry = (
        _green(rng, (0.1, 0.3)),
        _green(rng, (0.35, 0.7)),
        hsv(rng.uniform(0.1, 0.17), 0.5, rng.uniform(0.4, 0.7)),
    )
    t = np.clip((blades - 0.3) * 2.2, 0, 1)
    rgb = _ramp(t, np.stack([g0, g1]))
    k = np.clip((patch - rng.uniform(0.35, 0.8)) * 5, 0, 1)[..., None]
    return rgb * (1 - k) + _ramp(t, np.stack([dry * 0.4, dry])) * k, blades


def dirt(rng: Rng) -> Image:
    """Earth, sand or snow."""
    a, b = noise(rng, 1.5), noise(rng, 0.5)
    v = rng.choice([0.45, 0.7, 0.97])
    cols = np.stack([_earth(rng, (v * 0.5, v * 0.7)), _earth(rng, (v * 0.8, v))])
    return _speckle(rng, _ramp(0.5 * a + 0.5 * b, cols), 0.2), 0.6 * b + 0.4 * a


def litter(rng: Rng) -> Image:
    """Fallen leaves, mulch, ivy."""
    d, v = _cells(rng, int(rng.integers(300, 1500)))
    hue = rng.choice([0.06, 0.1, 0.25])
    cols = np.stack([hsv(hue + rng.normal(0, 0.03), rng.uniform(0.4, 0.8), x) for x in (0.1, 0.3, 0.55, 0.7)])
    e = np.clip(1.2 - d / d.max() * 1.4, 0, 1)
    return _ramp(v, cols) * e[..., None], e * (0.5 + 0.5 * v)


def foliage(rng: Rng) -> Image:
    """Leaf surface, used on leaves and hedges: greens, at times autumn colours."""
    hue = rng.choice([rng.uniform(0.16, 0.28), rng.uniform(0.04, 0.14)], p=[0.88, 0.12])
    cols = np.stack([hsv(hue + rng.normal(0, 0.02), rng.uniform(0.25, 0.62), x) for x in (0.15, 0.35, 0.6)])
    n = noise(rng, 0.7)
    return _ramp(np.clip(n * 2 - 0.5, 0, 1), cols), n


def bark(rng: Rng) -> Image:
    """Bark: streaks along v."""
    n = noise(rng, 0.9, (1.0, 0.25))
    cols = np.stack([_earth(rng, (0.08, 0.2)), _earth(rng, (0.3, 0.6))])
    return _ramp(np.clip(n * 1.8 - 0.4, 0, 1), cols), n


def _wood_colours(rng: Rng) -> np.ndarray:
    v = rng.uniform(0.3, 0.9)
    h, s = rng.uniform(0.05, 0.11), rng.uniform(0.3, 0.7)
    return np.stack([hsv(h, s, v * 0.62), hsv(h + 0.01, s * 0.9, v * 0.85), hsv(h + 0.02, s * 0.75, v)])


def wood(rng: Rng) -> Image:
    """A wooden surface with grain along v."""
    n = noise(rng, 1.1, (1.0, 0.06)) * 0.6 + noise(rng, 0.7, (1.0, 0.03)) * 0.4
    rings = 0.5 + 0.5 * np.sin((n + np.linspace(0, 1, SIZE)[None]) * 2 * np.pi * rng.integers(2, 8))
    return _ramp(0.55 * n + 0.45 * rings * rng.random(), _wood_colours(rng)), n * 0.15


def _brick_layout(
    rows: int, cols: int, shift: float, gap: float, rng: Rng
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints mask (True in the joint), value per brick, both (SIZE, SIZE), rows × cols with running bond `shift`."""
    y = (np.arange(SIZE) + 0.5) / SIZE * rows
    x = (np.arange(SIZE) + 0.5) / SIZE * cols
    iy = np.floor(y).astype(int)
    xx = x[None] + (iy * shift)[:, None]
    ix = np.floor(xx).astype(int) % cols
    fx, fy = xx % 1.0, np.broadcast_to((y % 1.0)[:, None], xx.shape)
    edge = np.minimum(np.minimum(fx, 1 - fx) / cols, np.minimum(fy, 1 - fy) / rows)
    value = rng.random((rows, cols)).astype(np.float32)[iy[:, None] % rows, ix]
    return edge < gap, value, np.clip(edge / max(gap * 2, 1e-6), 0, 1)


def planks(rng: Rng) -> Image:
    """Floor boards, parquet."""
    rows, cols = int(rng.integers(4, 14)), int(rng.integers(1, 4))
    joint, v, edge = _brick_layout(rows, cols, rng.choice([0.5, 0.37, 0.0]), rng.uniform(0.001, 0.004), rng)
    n = noise(rng, 1.0, (0.06, 1.0)) * 0.7 + noise(rng, 0.5, (0.04, 1.0)) * 0.3
    rgb = _ramp(np.clip(0.5 * n + rng.uniform(0.1, 0.6) * v, 0, 1), _wood_colours(rng))
    return np.where(joint[..., None], rgb * 0.35, rgb).transpose(1, 0, 2), (edge * 0.4 + n * 0.08).T


def bricks(rng: Rng) -> Image:
    """A brick or block wall."""
    rows = int(2 * rng.integers(3, 9))
    cols = max(1, int(rows / rng.uniform(1.5, 4)))
    joint, v, edge = _brick_layout(rows, cols, 0.5, rng.uniform(0.003, 0.01), rng)
    hue = rng.choice([rng.uniform(0.0, 0.06), rng.uniform(0.05, 0.12)])
    s = rng.choice([rng.uniform(0.3, 0.75), rng.uniform(0, 0.2)])
    cols3 = np.stack([hsv(hue, s, x) for x in (0.35, 0.55, 0.75)]) * rng.uniform(0.6, 1.2)
    n = noise(rng, 0.7)
    rgb = _speckle(rng, _ramp(np.clip(v * 0.7 + n * 0.5 - 0.1, 0, 1), cols3), 0.25)
    mortar = _grey(rng, (0.3, 0.85))
    return np.where(joint[..., None], mortar[None, None] * (0.8 + 0.4 * n)[..., None], rgb), edge * 0.8 + n * 0.2


def tiles(rng: Rng) -> Image:
    """Tiles: floor, bathroom, or coloured facade tiles of many shades."""
    rows = int(rng.integers(2, 20))
    joint, v, edge = _brick_layout(rows, rows, 0.0, rng.uniform(0.0015, 0.006), rng)
    base = any_colour(rng, 0.8)
    spread = rng.choice([0.05, 0.3, 0.9])
    n = noise(rng, 1.5)
    rgb = base[None, None] * (1 + spread * (v - 0.5) * 1.6 + 0.15 * (n - 0.5))[..., None]
    if rng.random() < 0.25:  # chequered
        other = any_colour(rng)
        i = (np.arange(SIZE) * rows // SIZE) % 2
        rgb = np.where((i[:, None] ^ i[None])[..., None] > 0, rgb, other[None, None] * (0.9 + 0.2 * n)[..., None])
    return np.where(joint[..., None], _grey(rng, (0.25, 0.9))[None, None], rgb), edge * 0.6


def paving(rng: Rng) -> Image:
    """Paving slabs, stone blocks."""
    rows = int(rng.integers(2, 9))
    joint, v, edge = _brick_layout(
        rows, max(1, int(rows * rng.choice([0.5, 1.0, 1.0]))), rng.choice([0, 0.5]), rng.uniform(0.002, 0.008), rng
    )
    n, m = noise(rng, 0.4), noise(rng, 1.7)
    t = np.clip(0.3 * v + 0.4 * n + 0.4 * m - 0.05, 0, 1)
    rgb = _ramp(t, np.stack([_grey(rng, (0.25, 0.5)), _earth(rng, (0.55, 0.85))]))
    return np.where(joint[..., None], rgb * rng.uniform(0.2, 0.6), rgb), edge * 0.7 + n * 0.2


def cobble(rng: Rng) -> Image:
    """Rounded stones, rubble walls."""
    d, v = _cells(rng, int(rng.integers(30, 250)), rng.uniform(0.4, 1.0))
    e = np.clip(1.15 - d / np.percentile(d, 97), 0, 1)
    rgb = _ramp(v, np.stack([_grey(rng, (0.25, 0.4)), _earth(rng, (0.4, 0.6)), _grey(rng, (0.5, 0.75))]))
    n = noise(rng, 0.5)
    return rgb * (np.clip(e * 3, 0.2, 1) * (0.75 + 0.5 * n))[..., None], np.clip(e * 2, 0, 1) + 0.2 * n


def carpet(rng: Rng) -> Image:
    """Pile carpet or felt: fine grain, at times a pattern."""
    n = noise(rng, 0.05)
    rgb = any_colour(rng, 0.7)[None, None] * (0.6 + 0.8 * n)[..., None]
    if rng.random() < 0.4:
        k = int(rng.integers(1, 5))
        x = np.arange(SIZE) / SIZE * 2 * np.pi * k
        pat = np.sin(x)[None] * np.sin(x)[:, None] + 0.6 * np.sin(2 * x + 1)[None] * np.cos(x)[:, None]
        rgb = np.where(
            (pat > rng.uniform(-0.2, 0.5))[..., None], rgb, any_colour(rng)[None, None] * (0.6 + 0.8 * n)[..., None]
        )
    return rgb, n * 0.6


def fabric(rng: Rng) -> Image:
    """Woven cloth."""
    k = int(rng.integers(24, 64))
    x = np.arange(SIZE) / SIZE * 2 * np.pi * k
    weave = 0.5 + 0.25 * (np.sin(x)[None] + np.sin(x)[:, None])
    n = noise(rng, 0.6)
    return any_colour(rng, 0.7)[None, None] * (0.7 + 0.2 * weave + 0.25 * n)[..., None], weave * 0.4


def stripes(rng: Rng) -> Image:
    """Stripes of several colours (cloth, awnings, wallpaper), or plaid."""
    k = int(rng.integers(3, 16))
    cols = np.stack([any_colour(rng) for _ in range(int(rng.integers(2, 5)))])
    seq = rng.integers(0, len(cols), k)
    row = cols[seq[(np.arange(SIZE) * k) // SIZE]]
    rgb = np.broadcast_to(row[None], (SIZE, SIZE, 3)).copy()
    if rng.random() < 0.35:
        rgb = (rgb + rgb.transpose(1, 0, 2)) / 2
    n = noise(rng, 0.5)
    return rgb * (0.85 + 0.3 * n)[..., None], n * 0.2


def wallpaper(rng: Rng) -> Image:
    """A repeated ornament."""
    k = int(rng.integers(2, 7))
    x = np.arange(SIZE) / SIZE * 2 * np.pi * k
    p = noise(rng, 1.6, low=1)
    pat = np.sin(x)[None] * np.sin(x)[:, None] + 0.8 * np.sin(x[None] + 3 * np.sin(x)[:, None]) + 2 * (p - 0.5)
    a, b = any_colour(rng, 0.4), any_colour(rng, 0.4)
    t = np.clip(pat * 3, 0, 1)[..., None] * rng.uniform(0.2, 1)
    return a * (1 - t) + b * t, t[..., 0] * 0.1


def marble(rng: Rng) -> Image:
    """Marble, or polished stone."""
    w = noise(rng, 1.8)
    vein = 1 - np.abs(2 * ((w * rng.uniform(2, 6)) % 1.0) - 1)
    t = np.clip(vein ** rng.uniform(1, 6), 0, 1)
    return _ramp(t, np.stack([any_colour(rng, 0.25), any_colour(rng, 0.25)])), w * 0.05


def metal(rng: Rng) -> Image:
    """Brushed or painted metal with rust and scratches."""
    n = noise(rng, 0.8, (0.05, 1.0))
    rust = np.clip((noise(rng, 1.5) - rng.uniform(0.5, 1.0)) * 6, 0, 1)[..., None]
    rgb = (any_colour(rng, 0.7) if rng.random() < 0.6 else _grey(rng))[None, None] * (0.85 + 0.3 * n)[..., None]
    return rgb * (1 - rust) + _ramp(
        noise(rng, 0.6), np.stack([hsv(0.04, 0.8, 0.25), hsv(0.07, 0.7, 0.55)])
    ) * rust, n * 0.1


def corrugated(rng: Rng) -> Image:
    """Sheet metal or blinds: shaded ribs across u."""
    k = int(rng.integers(6, 30))
    x = np.arange(SIZE) / SIZE * k
    rib = 0.5 + 0.5 * np.sin(2 * np.pi * x)
    if rng.random() < 0.5:
        rib = (rib > 0.3).astype(np.float32)
    n = noise(rng, 1.5)
    return any_colour(rng)[None, None] * (0.8 + 0.2 * rib[None] + 0.2 * (n - 0.5))[..., None], np.broadcast_to(
        rib[None], n.shape
    )


def speckled(rng: Rng) -> Image:
    """Terrazzo, granite, speckle."""
    d, v = _cells(rng, int(rng.integers(200, 1500)))
    spot = (d < rng.uniform(2, 6)) & (v > rng.uniform(0.2, 0.8))
    rgb = np.where(
        spot[..., None], _ramp(v, np.stack([any_colour(rng), any_colour(rng)])), any_colour(rng, 0.3)[None, None]
    )
    return _speckle(rng, rgb, 0.15), noise(rng, 1) * 0.1


def camo(rng: Rng) -> Image:
    """Large blotches of a few colours: camouflage, murals, graffiti, abstract art."""
    n = noise(rng, 1.7)
    cols = np.stack([any_colour(rng, rng.uniform(0.3, 1)) for _ in range(5)])
    q = np.clip(np.floor((n - 0.25) * 10), 0, 4).astype(int)
    return cols[q] * (0.85 + 0.3 * noise(rng, 0.5))[..., None], n * 0.1


def _write(img: np.ndarray, text: str, at: tuple[int, int], size: float, colour: np.ndarray) -> None:
    """Writes text into a float image, through a mask because OpenCV draws text on 8-bit images only."""
    mask = np.zeros(img.shape[:2], np.uint8)
    cv2.putText(mask, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, 255, max(1, int(size * 2.5)))
    img[mask > 127] = colour


def poster(rng: Rng) -> Image:
    """A poster, sign, package or screen: colour fields, shapes and lines of text."""
    img = np.broadcast_to(any_colour(rng), (SIZE, SIZE, 3)).astype(np.float32).copy()
    for _ in range(int(rng.integers(1, 6))):
        c = any_colour(rng, 0.9).tolist()
        x, y = rng.integers(0, SIZE, 2).tolist()
        w, h = rng.integers(20, 200, 2).tolist()
        if rng.random() < 0.6:
            cv2.rectangle(img, (x, y), (x + w, y + h), c, -1)
        else:
            cv2.circle(img, (x, y), w // 2, c, -1)
    for _ in range(int(rng.integers(0, 9))):
        word = "".join(chr(int(k)) for k in rng.integers(65, 91, int(rng.integers(2, 12))))
        at = (int(rng.integers(-20, 180)), int(rng.integers(20, 250)))
        size = float(rng.uniform(0.4, 3))
        _write(img, word, at, size, any_colour(rng))
    if rng.random() < 0.3:
        img = 0.5 * img + 0.5 * _ramp(noise(rng, 1.6), np.stack([any_colour(rng) for _ in range(4)]))
    return img[::-1], np.zeros((SIZE, SIZE), np.float32)


def facade(rng: Rng) -> Image:
    """Rows of windows on a wall, for far buildings; one tile is a few windows wide."""
    nx, ny = int(rng.integers(2, 7)), int(rng.integers(2, 6))
    base, _ = (bricks, plaster, concrete, tiles)[int(rng.integers(0, 4))](rng)
    img = np.ascontiguousarray(base, np.float32)
    frame = any_colour(rng, 0.2).tolist()
    wx, wy = rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.8)
    for i in range(nx):
        for j in range(ny):
            x0, x1 = int((i + 0.5 - wx / 2) * SIZE / nx), int((i + 0.5 + wx / 2) * SIZE / nx)
            y0, y1 = int((j + 0.5 - wy / 2) * SIZE / ny), int((j + 0.5 + wy / 2) * SIZE / ny)
            dark = rng.choice([0.02, 0.05, 0.3, 0.6], p=[0.4, 0.3, 0.2, 0.1])
            glass = (dark * (1 + rng.normal(0, 0.2, 3)) * np.array([0.9, 1, 1.15])).clip(0, 1)
            cv2.rectangle(img, (x0, y0), (x1, y1), glass.tolist(), -1)
            cv2.rectangle(img, (x0, y0), (x1, y1), frame, int(rng.integers(1, 4)))
            cv2.line(img, ((x0 + x1) // 2, y0), ((x0 + x1) // 2, y1), frame, 1)
    return img[::-1], np.zeros((SIZE, SIZE), np.float32)


def goods(rng: Rng) -> Image:
    """Book spines, boxes, bottles on a shelf seen from the front."""
    img = np.full((SIZE, SIZE, 3), 0.02, np.float32)
    rows = int(rng.integers(2, 5))
    for j in range(rows):
        x, y1 = 0, (j + 1) * SIZE // rows - 5
        while x < SIZE:
            w = int(rng.integers(5, 34))
            h = int(SIZE / rows * rng.uniform(0.5, 0.92))
            cv2.rectangle(img, (x, y1 - h), (x + w - 1, y1), any_colour(rng, 0.9).tolist(), -1)
            cv2.line(img, (x + w, y1 - h), (x + w, y1), (0.02, 0.02, 0.02), 1)
            if rng.random() < 0.5:
                cv2.rectangle(img, (x + 1, y1 - h * 2 // 3), (x + w - 2, y1 - h // 2), any_colour(rng).tolist(), -1)
            x += w + 1
        cv2.rectangle(img, (0, y1 + 1), (SIZE, y1 + 5), _wood_colours(rng)[1].tolist(), -1)
    return img[::-1], np.zeros((SIZE, SIZE), np.float32)


def cardboard(rng: Rng) -> Image:
    """Cardboard with tape and print."""
    n = noise(rng, 1.2, (0.3, 1))
    img = _ramp(n, np.stack([hsv(0.08, 0.45, 0.5), hsv(0.09, 0.4, 0.72)])) * rng.uniform(0.6, 1.2)
    y = int(rng.integers(90, 160))
    img[y : y + 18] *= rng.uniform(0.7, 1.3)
    if rng.random() < 0.7:
        _write(img, "".join(chr(int(k)) for k in rng.integers(65, 91, 5)), (20, 60), 1.6, np.full(3, 0.03))
    return img[::-1], n * 0.05


# category: (function, how many in the bank, width of a tile in metres, specular F0, roughness)
CATEGORIES = {
    "plain": (plain, 8, 1.0, 0.04, 0.4),
    "plaster": (plaster, 9, 1.5, 0.02, 0.9),
    "concrete": (concrete, 7, 2.5, 0.02, 0.8),
    "asphalt": (asphalt, 8, 2.2, 0.03, 0.7),
    "gravel": (gravel, 6, 1.0, 0.0, 0.9),
    "grass": (grass, 8, 1.3, 0.0, 0.9),
    "dirt": (dirt, 7, 2.0, 0.0, 0.9),
    "litter": (litter, 6, 1.5, 0.0, 0.9),
    "foliage": (foliage, 14, 0.6, 0.03, 0.5),
    "bark": (bark, 5, 0.7, 0.0, 0.9),
    "wood": (wood, 9, 0.7, 0.04, 0.35),
    "planks": (planks, 9, 1.3, 0.05, 0.25),
    "bricks": (bricks, 8, 1.1, 0.0, 0.9),
    "tiles": (tiles, 10, 1.2, 0.05, 0.2),
    "paving": (paving, 8, 1.8, 0.02, 0.7),
    "cobble": (cobble, 6, 1.3, 0.0, 0.8),
    "carpet": (carpet, 8, 1.0, 0.0, 1.0),
    "fabric": (fabric, 8, 0.5, 0.0, 1.0),
    "stripes": (stripes, 7, 0.7, 0.02, 0.7),
    "wallpaper": (wallpaper, 5, 0.8, 0.02, 0.8),
    "marble": (marble, 5, 1.2, 0.05, 0.12),
    "metal": (metal, 8, 0.9, 0.25, 0.3),
    "corrugated": (corrugated, 5, 1.6, 0.06, 0.5),
    "speckled": (speckled, 5, 0.9, 0.04, 0.3),
    "camo": (camo, 6, 1.6, 0.02, 0.6),
    "poster": (poster, 16, 0.6, 0.03, 0.4),
    "facade": (facade, 10, 9.0, 0.03, 0.4),
    "goods": (goods, 6, 1.2, 0.02, 0.6),
    "cardboard": (cardboard, 5, 0.5, 0.0, 0.9),
    "macro": (lambda rng: (np.repeat(noise(rng, 1.6)[..., None], 3, 2), noise(rng)), 4, 1.0, 0.0, 1.0),
}


DYED = {"plain", "plaster", "fabric", "carpet", "metal", "corrugated", "tiles", "speckled", "marble", "wallpaper"}


@dataclass
class Bank:
    """All textures of one process.

    packed: (words,) uint32 RGBA of every texture and level, texture-major; level k starts `level_offset[k]`
    words into a texture of `words_per_texture`. Which numbers a category has is in `members`.
    """

    packed: np.ndarray
    members: dict[str, list[int]]
    level_offset: np.ndarray
    words_per_texture: int
    mean: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))

    def material(
        self,
        rng: Rng,
        category: str,
        tint: ArrayLike | None = None,
        scale: float = 1.0,
        spec: float | None = None,
        rough: float | None = None,
        emission: ArrayLike = (0.0, 0.0, 0.0),
        macro: float | None = None,
        stretch: bool = False,
        mean: float | None = None,
        outside: bool = False,
    ) -> np.ndarray:
        """A material row of a random texture of the category (or one of several, separated by '|').

        tint: linear RGB factor (random if None); scale: size of the pattern against its natural size; spec:
        reflectance at normal incidence; rough: GGX alpha; macro: strength of slow variation over metres;
        stretch: texture covers 0..1 of the mesh's own uv instead of metres; mean: wished mean albedo;
        outside: lit by the sky even in a scene of a closed room (what is seen through its windows).
        """
        name = str(rng.choice(category.split("|")))
        _, _, metres, f0, alpha = CATEGORIES[name]
        tile = int(rng.choice(self.members[name]))
        contrast = rng.uniform(0.5, 1.25)
        saturation = rng.uniform(0.5, 1.1)
        if tint is None:
            tint = rng.uniform(0.75, 1.15) * (1 + rng.normal(0, 0.06, 3))
            if name in DYED and rng.random() < 0.7:  # a colour of its own, or a bank would have but a few
                colour = any_colour(rng, 0.35 if name in ("plaster", "wallpaper", "marble") else 0.6)
                colour = 0.15 * colour.mean() + 0.85 * colour
                tint = tint * colour / colour.mean()
                saturation *= rng.choice([0.0, 0.3])
                if mean is None:
                    mean = float(np.clip(colour.mean(), 0.03, 0.85))
        grey = np.full((3, 3), 1 / 3)
        m = saturation * np.eye(3) + (1 - saturation) * grey
        average = m @ self.mean[tile]
        if mean is not None:
            tint = np.asarray(tint) * mean / max(float(average.mean()), 1e-3)
        m = np.asarray(tint).reshape(-1, 1) * m * contrast
        offset = np.broadcast_to(tint, (3,)) * average * (1 - contrast)
        row = np.zeros(ROW, np.float32)
        row[0] = tile
        row[1:10] = m.reshape(-1)
        row[10:13] = offset
        row[13] = f0 if spec is None else spec
        row[14] = alpha if rough is None else rough
        row[15] = rng.uniform(0.2, 1.0)  # strength of bumps
        row[16:19] = emission
        row[19] = 1.0 if stretch else 1 / (metres * scale * rng.uniform(0.7, 1.5))
        row[20] = rng.uniform(0, 0.22) if macro is None else macro
        row[21] = rng.choice(self.members["macro"])
        row[22:24] = rng.random(2)  # shift of the pattern
        if stretch:
            row[22:24] = 0
        row[24] = outside
        return row


def _encode(rgb: np.ndarray, height: np.ndarray) -> np.ndarray:
    out = np.empty((SIZE, SIZE, 4), np.uint8)
    out[..., :3] = np.sqrt(np.clip(rgb, 0, 1)) * 255 + 0.5
    out[..., 3] = np.clip(height, 0, 1) * 255
    return out


def _pack(image: np.ndarray) -> np.ndarray:
    """All levels of a texture (SIZE, SIZE, 4) uint8 as words; means are taken in linear light."""
    words = []
    x = image.astype(np.float32) / 255
    x[..., :3] **= 2
    for _ in range(LEVELS):
        y = x.copy()
        y[..., :3] = np.sqrt(y[..., :3])
        q = (y * 255 + 0.5).astype(np.uint32)
        words.append((q[..., 0] | q[..., 1] << 8 | q[..., 2] << 16 | q[..., 3] << 24).ravel())
        x = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
    return np.concatenate(words).astype(np.uint32)


def make_bank(seed: int, copies: float = 1.0) -> Bank:
    """The bank of a seed; `copies` scales how many of each category are made (tests use few)."""
    rng = np.random.default_rng([seed, 77])
    packed, members, means = [], {}, []
    for name, (make, count, *_) in CATEGORIES.items():
        members[name] = []
        for _ in range(max(1, round(count * copies))):
            rgb, height = make(rng)
            image = _encode(rgb, height)
            members[name].append(len(packed))
            means.append(((image[..., :3] / 255.0) ** 2).mean((0, 1)))
            packed.append(_pack(image))
    offsets = np.cumsum([0] + [(SIZE >> k) ** 2 for k in range(LEVELS - 1)]).astype(np.uint32)
    return Bank(np.concatenate(packed), members, offsets, len(packed[0]), np.array(means, np.float32))
