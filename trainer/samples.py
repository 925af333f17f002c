"""Training samples on disk: one layout for generated scenes, prepared datasets and the robot's own recordings.

A folder holds one split:

    rgb/<name>.jpg or .png    colour image, 8 bits
    <kind>/<name>.npy         one map of each kind that is known, see `KINDS`; float16 or float32
    camera/<name>.json        the camera, and where the sample comes from; written last: it makes the sample exist

All arrays of a sample have one height and width.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from marigold_ros.config import Unusable
from trainer.datasets.reading import read_picture

# Kinds of maps and their numbers of channels (1: no channel axis). Everywhere NaN is unknown.
#   depth_m    metres along the optical axis; +inf is the sky
#   normals    unit vectors in the optical frame: x right, y down, z forward
#   prior      relative depth in [0, 1], increasing with distance, that a network predicted
#   albedo, shading, residual   linear intensity; material: roughness and metallicity in [0, 1]
KINDS: Mapping[str, int] = {
    "depth_m": 1,
    "normals": 3,
    "prior": 1,
    "albedo": 3,
    "shading": 3,
    "residual": 3,
    "material": 2,
}
# Maps that a whole dataset may be without: it is known nowhere then.
OPTIONAL = ("prior",)
_PICTURES = (".jpg", ".png")


@dataclass(frozen=True)
class Sample:
    """rgb (H, W, 3) uint8; maps by kind, (H, W) or (H, W, channels), see `KINDS`.

    k: (3, 3) camera matrix, pixels, counted from the centre of the first one; None where it is not known.
    """

    name: str
    rgb: np.ndarray
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    k: np.ndarray | None = None


class SampleFolder:
    """The samples of the folder of one split, read from the disk each time one is asked for.

    Raises `Unusable` where there are none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        cameras = self.folder / "camera"
        self.names = sorted(path.relative_to(cameras).with_suffix("").as_posix() for path in cameras.rglob("*.json"))
        if not self.names:
            raise Unusable(
                f"samples {self.folder}: there are none; make some with 'python -m trainer generate', 'prepare' or "
                "'collect', or give another folder"
            )

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int, kinds: Sequence[str]) -> Sample:
        """Sample number `index` with the maps of these kinds."""
        return read_sample(self.folder, self.names[index], kinds)

    def about(self, index: int) -> dict[str, Any]:
        """What the camera file of sample number `index` says."""
        return _read_camera(self.folder, self.names[index])


def read_sample(folder: Path, name: str, kinds: Sequence[str]) -> Sample:
    """One sample with the maps of these kinds; raises `Unusable` that names a file which is missing or damaged.

    Of a dataset without an optional kind, see `OPTIONAL`, it is NaN everywhere.
    """
    rgb = _read_rgb(folder, name)
    maps = {kind: _read_map(folder, name, kind, rgb.shape[:2]) for kind in kinds}
    return Sample(name, rgb, maps, _read_k(folder, name))


def write_sample(folder: Path, sample: Sample, about: Mapping[str, Any] | None = None, jpeg_quality: int = 95) -> None:
    """Write `sample` into `folder`, its camera file last; `about` goes into that file as well.

    jpeg_quality: 0 writes PNG. Maps are stored as float16. Raises `Unusable` where the disk is full or not writable.
    """
    height, width = sample.rgb.shape[:2]
    suffix, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]) if jpeg_quality else (".png", [])
    picture = cv2.imencode(suffix, np.ascontiguousarray(sample.rgb[..., ::-1]), options)[1].tobytes()
    _write(folder / "rgb" / f"{sample.name}{suffix}", picture)
    for kind, values in sample.maps.items():
        buffer = io.BytesIO()
        np.save(buffer, values.astype(np.float16))
        _write(folder / kind / f"{sample.name}.npy", buffer.getvalue())
    facts = {"width": width, "height": height, **(about or {})}
    if sample.k is not None:
        facts["K"] = np.asarray(sample.k, float).tolist()
    _write(folder / "camera" / f"{sample.name}.json", json.dumps(facts).encode())


def is_sample(folder: Path, name: str) -> bool:
    """Whether the sample was written to its end."""
    return (folder / "camera" / f"{name}.json").is_file()


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise Unusable(f"file {path}: cannot be written ({error.strerror or error})") from error


def _read_rgb(folder: Path, name: str) -> np.ndarray:
    for suffix in _PICTURES:
        path = folder / "rgb" / f"{name}{suffix}"
        if path.is_file():
            try:
                return read_picture(path)
            except Unusable as problem:
                raise Unusable(f"{problem}; write the sample again, or delete its camera file") from problem
    raise Unusable(f"sample file {path}: is missing; write the sample again, or delete its camera file")


def _read_map(folder: Path, name: str, kind: str, shape: tuple[int, int]) -> np.ndarray:
    path = folder / kind / f"{name}.npy"
    if kind in OPTIONAL and not path.parent.is_dir():
        return np.full(shape, np.nan, np.float32)
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise Unusable(
            f"sample file {path}: is missing: the sample has no {kind}; give another dataset, or delete its camera file"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise Unusable(
            f"sample file {path}: cannot be read ({error}); write the sample again, or delete its camera file"
        ) from error
    wanted = shape if KINDS[kind] == 1 else (*shape, KINDS[kind])
    if values.shape != wanted:
        raise Unusable(f"sample file {path}: has shape {values.shape} instead of {wanted}; write the sample again")
    return values.astype(np.float32)


def _read_k(folder: Path, name: str) -> np.ndarray | None:
    k = _read_camera(folder, name).get("K")
    try:
        return None if k is None else np.asarray(k, np.float64).reshape(3, 3)
    except (TypeError, ValueError):
        raise Unusable(
            f"sample file {folder / 'camera' / name}.json: K={str(k)[:80]}: must be 3 rows of 3 numbers; delete it"
        ) from None


def _read_camera(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "camera" / f"{name}.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"sample file {path}: cannot be read ({error}); delete it") from error
    if not isinstance(facts, dict):
        raise Unusable(f"sample file {path}: must hold a JSON object; delete it")
    return facts
