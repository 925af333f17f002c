"""The files of the evaluation sets, from bytes to arrays; each raises `Unusable` that names a damaged file.

Images are decoded by Pillow, which refuses truncated ones where OpenCV fills them up, and does not turn photographs by
what their EXIF data say, like the published evaluations.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import OpenEXR
from PIL import Image

from marigold_ros.config import Unusable, one_line
from trainer.evaluation.source import Source


def read_rgb(source: Source, name: str) -> np.ndarray:
    """(H, W, 3) uint8 of a PNG or JPEG; of an EXR as its values in [0, 1] to the power 1 / 2.2, cut to 8 bits."""
    if name.endswith(".exr"):
        linear = np.clip(read_exr(source, name), 0.0, 1.0)
        return (linear ** np.float32(1 / 2.2) * 255.0).astype(np.uint8)
    return read_png8(source, name)


def read_png8(source: Source, name: str) -> np.ndarray:
    """(H, W, 3) uint8 red, green, blue as stored; grey becomes all three."""
    return _decoded(source, name, lambda data: np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def read_png16(source: Source, name: str, unit_m: float) -> np.ndarray:
    """(H, W) float32 metres of a PNG of 16 bits whose steps are `unit_m`."""
    values = _decoded(source, name, lambda data: np.asarray(Image.open(io.BytesIO(data))))
    if values.ndim != 2 or values.dtype not in (np.uint16, np.int32):
        raise Unusable(
            f"dataset file {source.place / name}: has {values.dtype} values of shape {values.shape}; must be one "
            "channel of 16 bits"
        )
    return (values * unit_m).astype(np.float32)


def read_raw(source: Source, name: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 metres of a file without header; infinite ones, which mean unknown, become 0."""
    data = source.read(name)
    width, height = size
    if len(data) != 4 * width * height:
        raise Unusable(
            f"dataset file {source.place / name}: has {len(data)} bytes; {width}x{height} float32 values are "
            f"{4 * width * height}"
        )
    values = np.frombuffer(data, np.float32).reshape(height, width).copy()
    values[np.isinf(values)] = 0.0
    return values


def read_npy(source: Source, name: str) -> np.ndarray:
    """The array as it lies in the file."""
    return _decoded(source, name, lambda data: np.load(io.BytesIO(data), allow_pickle=False))


def read_exr(source: Source, name: str) -> np.ndarray:
    """(H, W, 3) float32 red, green, blue."""

    def decode(data: bytes) -> np.ndarray:
        # A thread of its own would outlive the file where several processes read.
        channels = OpenEXR.File(io.BytesIO(data), separate_channels=True, num_threads=0).channels()
        return np.stack([np.asarray(channels[c].pixels, np.float32) for c in "RGB"], axis=2)

    return _decoded(source, name, decode)


def _decoded(source: Source, name: str, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
    data = source.read(name)
    try:
        return decode(data)
    except Exception as error:  # the libraries raise many kinds for damaged files
        raise Unusable(f"dataset file {source.place / name}: is damaged ({one_line(error)}); get it again") from error
