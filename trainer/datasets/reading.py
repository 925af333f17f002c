"""Frames of raw datasets, and their files: read whole and checked, and named where something is wrong with them.

Every function that takes a path raises `Unusable` with that path where the file is missing, damaged, of another size
than it must be, NaN where it should be known, or without one valid pixel.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marigold_ros.config import Unusable, one_line

# A vector shorter than this stands for no normal, as in the published preparation.
_NO_NORMAL = 0.1
_DPT_TAG = 202021.25


@dataclass(frozen=True)
class Frame:
    """One frame of a raw dataset: the folder that its files are named from, what names them (scene first), its split.

    The split is "" where the frame was asked for whatever its split.
    """

    raw: Path
    parts: tuple[str, ...]
    split: str = ""

    @property
    def name(self) -> str:
        """The name of the sample, unique in the dataset; a plain file name."""
        return "_".join(self.parts)

    @property
    def scene(self) -> str:
        """What `--scenes` chooses by."""
        return self.parts[0]


class LeftOut(Exception):
    """A whole frame that the published training sets leave out by a rule of theirs; the text says which."""


def damaged(path: Path, what: str) -> Unusable:
    """The complaint about a raw file; `what` is wrong with it."""
    return Unusable(
        f"raw file {path}: {what}; download or unpack it again, leave its scene out with --scenes, or leave out all "
        "such frames with --damaged skip"
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[None]:
    """A block that reads `path`: what libraries say of a file that cannot be read becomes the complaint about it."""
    if not path.is_file():
        raise damaged(path, "is missing")
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SyntaxError) as error:
        raise damaged(path, f"cannot be read ({one_line(error)})") from error


def sized(path: Path, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`values`, which are those of `path`, if they have this shape."""
    if values.shape != tuple(shape):
        raise damaged(path, f"has shape {values.shape} instead of {tuple(shape)}")
    return values


def known(path: Path, values: np.ndarray, valid: np.ndarray | bool = True) -> np.ndarray:
    """(H, W[, C]) -> the same in float32, NaN outside of `valid` (H, W)."""
    valid = np.broadcast_to(valid, values.shape[:2])
    values = values.astype(np.float32)
    if wrong := int(np.isnan(values[valid]).sum()):
        raise damaged(path, f"is NaN in {wrong} places that should be known")
    values[~valid] = np.nan
    if not np.isfinite(values).any():
        raise damaged(path, "has not one valid pixel")
    return values


def known_normals(path: Path, vectors: np.ndarray, valid: np.ndarray | bool = True) -> np.ndarray:
    """(H, W, 3) in OpenGL's camera frame -> unit vectors in the optical frame, NaN outside of `valid` and where zero.

    OpenGL's frame is x right, y up, z backwards to the viewer; the optical one x right, y down, z forward.
    """
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        units = vectors * np.array([1.0, -1.0, -1.0]) / length
    return known(path, units, valid & ~(length[..., 0] < _NO_NORMAL))


def whole_normals(path: Path, vectors: np.ndarray) -> np.ndarray:
    """As `known_normals`, of a map that must be known everywhere, whatever masks say of it.

    Raises `LeftOut` where a vector is NaN or shorter than 0.1: published training of normals has no mask, so that a gap
    would be taught as a wall that faces the camera, and its sets leave such frames out. A map of gaps alone is damaged.
    """
    gaps = int((~(np.linalg.norm(vectors, axis=-1) >= _NO_NORMAL)).sum())
    if 0 < gaps < vectors[..., 0].size:
        raise LeftOut(f"{gaps} pixels have no normal")
    return known_normals(path, vectors)


def read_hdf5(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array "dataset" of an HDF5 file."""
    import h5py

    with opened(path), h5py.File(path, "r") as file:
        values = file["dataset"][()]
    return sized(path, values, shape)


def read_exr(path: Path) -> np.ndarray:
    """(H, W, channels) of an OpenEXR image: R, G, B where it has them, else all channels by their names."""
    import OpenEXR

    with opened(path), OpenEXR.File(str(path), separate_channels=True) as file:
        channels = {name: channel.pixels for name, channel in file.channels().items()}
        names = "RGB" if set("RGB") <= channels.keys() else sorted(channels)
        values = np.stack([channels[name] for name in names], axis=-1)
    return values


def read_picture(path: Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W, 3) uint8 of a PNG or JPEG file; a JPEG with any damage is refused."""
    with opened(path):
        if path.suffix == ".png":
            values = _decode_png(path, "RGB")
        else:
            import simplejpeg

            values = simplejpeg.decode_jpeg(path.read_bytes(), strict=True)
    return values if shape is None else sized(path, values, (*shape, 3))


def read_depth_png(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) of a PNG file with one channel of 16 bits."""
    with opened(path):
        values = _decode_png(path, None)
    return sized(path, values, shape)


def _decode_png(path: Path, mode: str | None) -> np.ndarray:
    # OpenCV tells of damage on the standard error stream alone, in words that name no file.
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image if mode is None else image.convert(mode))


def read_npy(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An array that numpy saved."""
    with opened(path):
        values = np.load(path, allow_pickle=False)
    return sized(path, values, shape)


def read_dpt(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 of Sintel's .dpt: float32 tag, int32 width and height, float32 rows; all little-endian."""
    with opened(path):
        data = path.read_bytes()
        tag, (width, height) = np.frombuffer(data, "<f4", 1)[0], np.frombuffer(data, "<i4", 2, 4)
        if tag != _DPT_TAG:
            raise OSError(f"starts with {tag} instead of {_DPT_TAG}")
        if len(data) != 12 + 4 * int(width) * int(height):
            raise OSError(f"{len(data)} bytes do not hold {width} x {height} pixels")
        values = np.frombuffer(data, "<f4", offset=12).reshape(height, width)
    return sized(path, values, shape)


def matches(folder: Path, pattern: str) -> list[str]:
    """The first groups of those names in `folder` that match `pattern` from end to end, sorted, each once."""
    found = (re.fullmatch(pattern, path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted({match.group(1) for match in found if match})
