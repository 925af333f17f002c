"""Cheap changes to generated pictures, towards what real cameras deliver. Depth follows the geometric ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from marigold_ros.config import Unusable
from trainer.recipe import Augment

# Only pictures as high as this are blurred with the published kernels.
_TALL_PX = 768
# Depth known at a smaller share of the pixels is that of a range sensor.
_SPARSE_SHARE = 0.25


@dataclass(frozen=True)
class Cut:
    """A window of a sample, pixels, that becomes an image of `size` (width, height)."""

    left: int
    top: int
    width: int
    height: int
    size: tuple[int, int]
    flip: bool

    @staticmethod
    def draw(rng: np.random.Generator, shape: tuple[int, int], size: tuple[int, int], augment: Augment) -> Cut:
        """A random window of an image of `shape` (H, W), near the aspect ratio of `size`."""
        full_height, full_width = shape
        stretch = np.exp(rng.uniform(-1, 1) * np.log1p(augment.aspect))
        aspect = size[0] / size[1] * stretch
        zoom = rng.uniform(*augment.zoom)
        width = min(full_width, full_height * aspect) * zoom
        height = width / aspect
        width, height = max(8, round(width)), max(8, round(height))
        left = int(rng.integers(full_width - width + 1))
        top = int(rng.integers(full_height - height + 1))
        return Cut(left, top, width, height, size, bool(rng.random() < augment.flip))

    @staticmethod
    def kitti(shape: tuple[int, int], size: tuple[int, int], rng: np.random.Generator, augment: Augment) -> Cut:
        """KITTI's benchmark crop, unscaled: at the bottom, in the middle. Raises `Unusable` for a smaller image."""
        height, width = shape
        if width < size[0] or height < size[1]:
            raise Unusable(
                f"image of {width}x{height}: is smaller than the crop of {size[0]}x{size[1]}; set crop: random"
            )
        flip = bool(rng.random() < augment.flip)
        return Cut((width - size[0]) // 2, height - size[1], *size, size, flip)

    def focal_px(self, k: np.ndarray) -> float:
        """Focal length of the cut image of a camera with matrix `k`: the geometric mean of both axes."""
        across, down = self.size[0] / self.width, self.size[1] / self.height
        return float(np.sqrt(k[0, 0] * across * k[1, 1] * down))


def cut(rgb: np.ndarray, maps: Mapping[str, np.ndarray], window: Cut) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """rgb (H, W, 3) uint8 and maps of the window, resized; maps by nearest neighbour: edges stay edges."""
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    way = cv2.INTER_AREA if window.width > window.size[0] else cv2.INTER_LINEAR
    same = (window.width, window.height) == window.size
    rgb = rgb[rows, columns] if same else cv2.resize(rgb[rows, columns], window.size, interpolation=way)
    out = {}
    for kind, values in maps.items():
        values = values[rows, columns].astype(np.float32)
        out[kind] = values if same else _resized(kind, values, window.size)
    if window.flip:
        rgb = rgb[:, ::-1]
        out = {kind: values[:, ::-1] for kind, values in out.items()}
        if "normals" in out:
            out["normals"] = out["normals"] * np.float32((-1, 1, 1))
    return rgb, out


def _resized(kind: str, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    known = ~np.isnan(values) if kind == "depth_m" else None
    if known is None or known.mean() > _SPARSE_SHARE:
        # Not INTER_NEAREST, which takes the pixel to the upper left of the middle: maps would lag behind the picture.
        return cv2.resize(values, size, interpolation=cv2.INTER_NEAREST_EXACT)
    # Single LiDAR points would fall between the pixels looked at: each goes where it belongs, the nearest last.
    height, width = values.shape
    rows, columns = np.nonzero(known)
    depth_m = values[rows, columns]
    order = np.argsort(-depth_m)
    out = np.full((size[1], size[0]), np.nan, np.float32)
    out[(rows * size[1] // height)[order], (columns * size[0] // width)[order]] = depth_m[order]
    return out


_Change = Callable[[np.ndarray, np.ndarray | None, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Changes:
    """What happens to one picture, as another camera in other weather might have seen it.

    The published blurs are of so many pixels of the sample, `whole`; the others are of what was cut out of it.
    """

    whole: tuple[_Change, ...]
    cut: tuple[_Change, ...]
    compressed: bool

    @staticmethod
    def draw(rng: np.random.Generator, height_px: int, augment: Augment) -> Changes:
        """The changes of a sample that is `height_px` high."""
        tall = height_px >= _TALL_PX
        # In the order light takes: air, light and shadow, lens, sensor, processing.
        chances = [
            (_haze, augment.haze),
            (_shadow, augment.shadow),
            (_glare, augment.glare),
            (_vignette, augment.vignette),
            (_blur, augment.blur),
            (_gaussian_blur, augment.gaussian_blur if tall else 0.0),
            (_motion_blur, augment.motion_blur if tall else 0.0),
            (_colour, augment.colour),
            (_jitter, augment.jitter),
            (_grey, augment.grey),
            (_noise, augment.noise),
        ]
        drawn = [change for change, chance in chances if rng.random() < chance]
        whole = tuple(change for change in drawn if change in (_gaussian_blur, _motion_blur))
        cut = tuple(change for change in drawn if change not in whole)
        return Changes(whole, cut, bool(rng.random() < augment.jpeg))

    def of_sample(self, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """rgb (H, W, 3) uint8 of the sample at its own size, changed; itself where nothing was drawn."""
        return _changed(rgb, self.whole, None, rng)

    def of_cut(self, rgb: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
        """rgb (H, W, 3) uint8 of the batch's size, changed; itself where nothing was drawn.

        depth_m: (H, W) metres, for haze; without it haze is a veil in front of everything.
        """
        rgb = _changed(rgb, self.cut, depth_m, rng)
        return _jpeg(rgb, rng) if self.compressed else rgb


def _changed(
    rgb: np.ndarray, changes: Sequence[_Change], depth_m: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    if not changes:
        return rgb
    image = rgb.astype(np.float32) * (1.0 / 255.0)
    for change in changes:
        image = change(image, depth_m, rng)
    return np.clip(image * 255.0 + 0.5, 0, 255).astype(np.uint8)


def _haze(image: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    air = rng.uniform(0.4, 1.0) * rng.uniform(0.9, 1.0, 3).astype(np.float32)
    if depth_m is None or rng.random() < 0.4:  # a veil in front of everything: dirty lens, low contrast
        through = np.float32(rng.uniform(0.4, 0.9))
    else:
        finite = np.where(np.isfinite(depth_m), depth_m, 300.0)
        reach = np.exp(rng.uniform(np.log(20.0), np.log(200.0)))
        through = np.exp(-finite / reach)[..., None].astype(np.float32)
    return image * through + air * (1 - through)


def _shadow(image: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    corners = int(rng.integers(3, 6))
    points = rng.uniform(-0.3, 1.3, (corners, 2)) * (width, height)
    mask = np.zeros((height, width), np.float32)
    cv2.fillPoly(mask, [points.astype(np.int32)], 1.0)
    mask = cv2.GaussianBlur(mask, (0, 0), float(rng.uniform(0.3, 0.03 * width)))
    dark = rng.uniform(0.2, 0.75) if rng.random() < 0.7 else rng.uniform(1.2, 2.0)  # or a patch of sunlight
    return image * (1 + (np.float32(dark) - 1) * mask)[..., None]


def _glare(image: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    distance = _distance(image.shape, rng.uniform(0, 1), rng.uniform(-0.1, 0.8))
    blob = np.exp(-((distance / rng.uniform(0.1, 0.6)) ** 2)) * rng.uniform(0.2, 0.9)
    return image + blob[..., None] * rng.uniform(0.85, 1.0, 3).astype(np.float32)


def _vignette(image: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    fall = 1 - rng.uniform(0.2, 0.8) * _distance(image.shape, 0.5, 0.5) ** 2
    return image * fall[..., None]


def _distance(shape: tuple[int, ...], x: float, y: float) -> np.ndarray:
    """(H, W) distance to the point (x, y), given as shares of the sides, in units of the longer side."""
    height, width = shape[:2]
    columns = (np.arange(width, dtype=np.float32) - x * width) / max(shape[:2])
    rows = (np.arange(height, dtype=np.float32) - y * height) / max(shape[:2])
    return np.sqrt(columns[None] ** 2 + rows[:, None] ** 2)


def _blur(image: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    scale = max(0.5, image.shape[1] / 256)
    if rng.random() < 0.6:
        return cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 1.2) * scale))
    length = int(rng.integers(1, 1 + max(2, round(2 * scale)))) * 2 + 1
    return _smear(image, length, rng.uniform(0, np.pi))


def _smear(image: np.ndarray, length: int, angle: float) -> np.ndarray:
    """`image` averaged along a line of `length` pixels."""
    kernel = np.zeros((length, length), np.float32)
    centre = length // 2
    reach = np.array([np.cos(angle), np.sin(angle)]) * centre
    start, end = (np.round(centre - reach).astype(int), np.round(centre + reach).astype(int))
    cv2.line(kernel, tuple(map(int, start)), tuple(map(int, end)), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def _gaussian_blur(image: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    # As published for normals, as are the next two.
    return cv2.GaussianBlur(image, (33, 33), max(1e-3, float(rng.uniform(0, 4))))


def _motion_blur(image: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    return _smear(image, int(rng.integers(1, 6)) * 2 + 1, rng.uniform(0, 2 * np.pi))


def _jitter(image: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    brightness, contrast, saturation = rng.uniform(0.5, 1.5, 3).astype(np.float32)
    image = np.clip(image * brightness, 0, 1)
    middle = image.mean()
    image = np.clip((image - middle) * contrast + middle, 0, 1)
    hls = cv2.cvtColor(image, cv2.COLOR_RGB2HLS)
    hls[..., 0] = (hls[..., 0] + 360 * rng.uniform(-0.2, 0.2)) % 360
    hls[..., 2] = np.clip(hls[..., 2] * saturation, 0, 1)
    return cv2.cvtColor(hls, cv2.COLOR_HLS2RGB)


def _colour(image: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    gain = np.exp(rng.normal(0, 0.25)) * np.exp(rng.normal(0, 0.07, 3))
    image = np.clip(image * gain.astype(np.float32), 0, 1)  # over-exposure clips before anything else
    image = image ** np.float32(np.exp(rng.normal(0, 0.2)))
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * np.float32(rng.uniform(0.3, 1.6))
    contrast = np.float32(np.exp(rng.normal(0.03, 0.15)))
    middle = image.mean() * np.float32(rng.uniform(0.7, 1.3))
    return (image - middle) * contrast + middle


def _grey(image: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    share = rng.dirichlet((4.0, 8.0, 3.0)).astype(np.float32)
    return np.repeat((image @ share)[..., None], 3, axis=2)


def _noise(image: np.ndarray, depth_m: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    size = np.float32(np.exp(rng.uniform(np.log(0.004), np.log(0.03))))
    one = rng.standard_normal(image.shape[:2], dtype=np.float32)[..., None]
    if rng.random() < 0.5:
        one = 0.6 * one + 0.8 * rng.standard_normal(image.shape, dtype=np.float32)
    return image + size * one


def _jpeg(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    quality = int(rng.integers(20, 90))
    bytes_ = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(bytes_, cv2.IMREAD_COLOR)
