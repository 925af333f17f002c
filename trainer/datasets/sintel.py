"""MPI Sintel, in two layouts.

For normals, the archive of Marigold's authors: `<sequence>/frame_NNNN_{img.png,normal.npy}`; left and right 221 pixels
are cut off, as published. Normals are in OpenGL's camera frame, zero where there are none (the sky). Checked against
the published reader (prs-eth/Marigold, src/dataset/sintel_dataset.py), not against the download.

For depth, the original: `training/final/<sequence>/frame_NNNN.png` (`clean` where there is no `final`),
`training/depth/<sequence>/frame_NNNN.dpt`, `training/camdata_left/<sequence>/frame_NNNN.cam`. From memory of its
software kit, not verified against the download. The film has no scale: its depth is in its own units.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from trainer.datasets.reading import (
    Frame,
    damaged,
    known,
    known_normals,
    matches,
    opened,
    read_dpt,
    read_npy,
    read_picture,
)
from trainer.samples import Sample

CROP_PX = 221

_SHAPE = (436, 1024)
_CAM_TAG = 202021.25
_LARGEST_FLOAT16 = 65504.0


def frames(raw: Path, split: str | None) -> list[Frame]:
    """The frames of the archive with normals; all are for training."""
    return _frames(raw, sorted(raw.iterdir()), r"(frame_\d{4})_(?:img\.png|normal\.npy)", split)


def frames_depth(raw: Path, split: str | None) -> list[Frame]:
    """The frames of the original that have depth; all are for training."""
    folder = raw / "training" / "depth"
    return _frames(raw, sorted(folder.iterdir()) if folder.is_dir() else [], r"(frame_\d{4})\.dpt", split)


def _frames(raw: Path, sequences: list[Path], pattern: str, split: str | None) -> list[Frame]:
    return [Frame(raw, (place.name, name), split or "") for place in sequences for name in matches(place, pattern)]


def read(frame: Frame, maps: Collection[str]) -> Sample:
    """One frame of the archive, cropped, with normals; the camera is not known."""
    sequence, name = frame.parts
    folder, cut = frame.raw / sequence, slice(CROP_PX, _SHAPE[1] - CROP_PX)
    rgb = read_picture(folder / f"{name}_img.png", _SHAPE)[:, cut]
    found = {}
    if "normals" in maps:
        path = folder / f"{name}_normal.npy"
        found["normals"] = known_normals(path, read_npy(path, (*_SHAPE, 3))[:, cut])
    return Sample(frame.name, rgb, found)


def read_depth(frame: Frame, maps: Collection[str]) -> Sample:
    """One frame of the original with depth_m, in the film's units; what is too far to be stored is the sky."""
    sequence, name = frame.parts
    training = frame.raw / "training"
    kind = "final" if (training / "final").is_dir() else "clean"
    rgb = read_picture(training / kind / sequence / f"{name}.png", _SHAPE)
    found = {}
    if "depth_m" in maps:
        path = training / "depth" / sequence / f"{name}.dpt"
        depth_m = read_dpt(path, _SHAPE)
        found["depth_m"] = known(path, np.where(depth_m > _LARGEST_FLOAT16, np.inf, depth_m), ~(depth_m <= 0))
    return Sample(frame.name, rgb, found, _intrinsics(training / "camdata_left" / sequence / f"{name}.cam"))


def _intrinsics(path: Path) -> np.ndarray | None:
    """(3, 3) K of a .cam file (float32 tag, 9 float64 of K, 12 of the pose), or None where there is no such file."""
    if not path.is_file():
        return None
    with opened(path):
        data = path.read_bytes()
        tag, k = np.frombuffer(data, "<f4", 1)[0], np.frombuffer(data, "<f8", 9, 4)
    if tag != _CAM_TAG:
        raise damaged(path, f"starts with {tag} instead of {_CAM_TAG}")
    return k.reshape(3, 3).copy()
