"""Skies, suns and the camera's way from radiance to an 8-bit picture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .render import SKY_H, SKY_W
from .textures import noise

Rng = np.random.Generator


@dataclass
class Sky:
    """radiance (SKY_H, SKY_W, 3), sun: unit direction (3,), sun_rgb: its irradiance (3,) (zero when hidden)."""

    radiance: np.ndarray
    sun: np.ndarray
    sun_rgb: np.ndarray
    kind: str

    @property
    def mean(self) -> np.ndarray:
        """Mean radiance (3,) of the upper half."""
        weight = (
            np.cos(np.linspace(0, np.pi / 2, SKY_H // 2))[:, None, None]
            * np.sin(np.linspace(0.01, np.pi / 2, SKY_H // 2))[:, None, None]
        )
        return (self.radiance[: SKY_H // 2] * weight).sum((0, 1)) / (weight.sum() * SKY_W)


def directions() -> np.ndarray:
    """Unit direction (SKY_H, SKY_W, 3) of each pixel of a sky."""
    th = (np.arange(SKY_H) + 0.5) / SKY_H * np.pi
    ph = ((np.arange(SKY_W) + 0.5) / SKY_W - 0.5) * 2 * np.pi
    return np.stack(
        np.broadcast_arrays(
            np.sin(th)[:, None] * np.cos(ph)[None], np.sin(th)[:, None] * np.sin(ph)[None], np.cos(th)[:, None]
        ),
        -1,
    ).astype(np.float32)


def make_sky(rng: Rng, kind: str | None = None) -> Sky:
    """A sky: clear, broken clouds, overcast, bright haze, dusk, or night."""
    kind = kind or str(rng.choice(["clear", "broken", "overcast", "haze", "dusk"], p=[0.25, 0.3, 0.2, 0.17, 0.08]))
    d = directions()
    elevation = {"dusk": rng.uniform(2, 9), "haze": rng.uniform(8, 60)}.get(
        kind, rng.choice([rng.uniform(6, 25), rng.uniform(20, 70)])
    )
    az, el = rng.uniform(-np.pi, np.pi), np.radians(elevation)
    sun = np.array([np.cos(az) * np.cos(el), np.sin(az) * np.cos(el), np.sin(el)])
    warm = np.exp(-np.array([0.03, 0.09, 0.2]) / max(np.sin(el), 0.06))
    up = np.clip(d[..., 2], 0, 1)[..., None]
    toward = np.clip(d @ sun, -1, 1)[..., None]
    blue = np.array([0.22, 0.45, 0.95]) * rng.uniform(0.6, 1.1)
    pale = np.array([0.85, 0.95, 1.05]) * rng.uniform(0.8, 1.6)
    t = np.exp(-up * rng.uniform(2.5, 7))
    clear = (
        blue * (1 - t) + pale * t + (pale * warm) * (0.6 * np.exp((toward - 1) * 6) + 1.6 * np.exp((toward - 1) * 40))
    )
    clouds = cv2.resize(noise(rng, 1.7, (1.0, 2.0)), (SKY_W, SKY_H), interpolation=cv2.INTER_LINEAR)[..., None]
    fine = cv2.resize(noise(rng, 1.2, (1.0, 2.0)), (SKY_W, SKY_H), interpolation=cv2.INTER_LINEAR)[..., None]
    key = 14.0 * warm * rng.uniform(0.7, 1.3)
    if kind == "broken":
        cover = np.clip((clouds + 0.25 * (fine - 0.5) - rng.uniform(0.35, 0.65)) * rng.uniform(3, 9), 0, 1)
        shade = 1.9 - 1.4 * np.clip(clouds + 0.3 * fine - 0.3, 0, 1)
        radiance = clear * (1 - cover) + np.array([1.0, 1.0, 1.02]) * shade * cover * (1 + np.exp((toward - 1) * 5))
        key = key * rng.choice([1.0, 1.0, 0.15])
    elif kind == "overcast":
        base = np.array([1.0, 1.02, 1.06]) * rng.uniform(0.8, 1.6)
        radiance = base * (0.55 + 0.5 * up) * (0.75 + 0.3 * clouds + 0.2 * fine) + 0.3 * np.exp((toward - 1) * 3)
        key = key * 0.0
    elif kind == "haze":
        base = np.array([1.0, 1.0, 0.99]) * rng.uniform(1.5, 3.5)
        radiance = base * (0.5 + 0.6 * np.exp(-up * 1.5)) + warm * (
            2.5 * np.exp((toward - 1) * 4) + 6 * np.exp((toward - 1) * 30)
        )
        key = key * rng.uniform(0.1, 0.8)
    elif kind == "dusk":
        glow = np.array([1.0, 0.55, 0.3]) * np.exp((toward - 1) * 2.5) * np.exp(-up * 4)
        radiance = (np.array([0.25, 0.3, 0.5]) * (0.3 + 0.5 * t) + 0.9 * glow) * (0.8 + 0.5 * (clouds - 0.5))
        key = key * rng.uniform(0.05, 0.5)
    elif kind == "night":
        radiance = np.array([0.002, 0.0024, 0.004]) * (1 + t) * rng.uniform(0.3, 2)
        key = key * 0.0
    else:
        radiance = clear
    # below the horizon: dull ground, so that reflections and far gaps are not of sky
    below = d[..., 2:] < -0.02
    ground = radiance[SKY_H // 2 - 3].mean(0) * rng.uniform(0.2, 0.5)
    radiance = np.where(below, ground, radiance)
    return Sky(np.ascontiguousarray(np.broadcast_to(radiance, d.shape), np.float32), sun, key, kind)


@dataclass
class Response:
    """How a camera turns radiance into a picture: target level, white balance, tone curve."""

    target: float
    balance: np.ndarray
    curve: int
    gain: float
    contrast: float
    black: float
    saturation: float
    whole_frame: bool


def draw_response(rng: Rng, indoor: bool) -> Response:
    """A random response: filmic, soft, or hard clipping with more or less contrast."""
    return Response(
        target=float(np.exp(rng.normal(np.log(0.22 if indoor else 0.2), 0.4))),
        balance=np.exp(rng.normal(0, 0.05, 3)),
        curve=int(rng.integers(0, 4)),
        gain=float(rng.uniform(0.9, 1.3)),
        contrast=float(rng.uniform(0, 0.6)),
        black=float(rng.choice([0.0, rng.uniform(0, 0.05)])),
        saturation=float(rng.uniform(0.7, 1.2)),
        whole_frame=bool(rng.random() < 0.35),
    )


def meter(radiance: np.ndarray, depth: np.ndarray, response: Response) -> float:
    """The level the camera exposes for. It mostly follows what is not sky, so skies and windows often clip."""
    lum = radiance @ np.array([0.2126, 0.7152, 0.0722])
    solid = np.isfinite(depth)
    use = solid if solid.mean() > 0.15 and not response.whole_frame else np.ones_like(solid)
    level = np.exp(np.log(np.maximum(lum[use], 1e-4)).mean())
    return max(float(0.5 * level + 0.5 * np.percentile(lum[use], 70)), 1e-5)


def develop(radiance: np.ndarray, level: float, response: Response) -> np.ndarray:
    """8-bit sRGB (H, W, 3) of linear radiance (H, W, 3), exposed for `level`."""
    x = radiance * (response.target / level) * response.balance
    if response.curve == 0:  # filmic: soft shoulder, deep shadows
        x = x * response.gain
        x = x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)
    elif response.curve == 1:  # soft shoulder only
        x = 1 - np.exp(-x * 1.3)
    x = np.clip(x, 0, 1)
    y = np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.power(np.maximum(x, 1e-8), 1 / 2.4) - 0.055)
    if response.curve >= 2:
        y = y * (1 - response.contrast) + response.contrast * (3 * y**2 - 2 * y**3)
    grey = y.mean(-1, keepdims=True)
    y = grey + (y - grey) * response.saturation
    return (np.clip(response.black + y * (1 - response.black), 0, 1) * 255 + 0.5).astype(np.uint8)
