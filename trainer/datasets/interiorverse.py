"""InteriorVerse: `scenes_85/<scene>/NNN_{im,albedo,material,normal,depth,mask}.exr`, OpenEXR.

Checked against the documentation (jingsenzhu/IndoorInverseRendering, interiorverse/README.md), not against the
download, which must be applied for. The picture is linear; albedo too. Depth is in millimetres. Normals are in OpenGL's
camera frame. The horizontal field of view is 85 degrees. `dataset_85`, or the raw folder itself, may be in the place
of `scenes_85`. The splits are lists of scenes, `train.txt`, `val.txt` and `test.txt`, in that folder or in the raw one.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from marigold_ros.config import Unusable
from trainer.datasets.reading import Frame, known, known_normals, matches, read_exr, sized, whole_normals
from trainer.samples import Sample

_FIELD_OF_VIEW_DEG = 85.0
_MM_PER_M = 1000.0
_GAMMA = 1 / 2.2


def frames(raw: Path, split: str | None) -> list[Frame]:
    """The frames of the scenes that the split's list names; without any list, all scenes are for training."""
    root = next((raw / name for name in ("scenes_85", "dataset_85") if (raw / name).is_dir()), raw)
    scenes = _listed(raw, root, split) if split else None
    if scenes is None:
        scenes = sorted(place.name for place in root.iterdir() if place.is_dir())
    # A scene that is listed and not there is asked for one frame, which is then missing by its name.
    return [
        Frame(root, (scene, number), split or "")
        for scene in scenes
        for number in matches(root / scene, r"(\d{3})_\w+\.exr") or ["000"]
    ]


def _listed(raw: Path, root: Path, split: str) -> list[str] | None:
    """The scenes of the split's list, or None where there are no lists and the split is that for training."""
    lists = [folder / f"{name}.txt" for folder in (root, raw) for name in (split, "train", "val", "test")]
    path = next((path for path in lists if path.is_file()), None)
    if path is None and split == "train":
        return None
    if path is None or path.stem != split:
        raise Unusable(
            f"file {root / f'{split}.txt'}: is missing, which names the scenes of split {split}; put it there, or "
            "choose frames with --list"
        )
    lines = path.read_text(encoding="utf-8").split("\n")
    named = (Path(line.split()[0]).parts for line in lines if line.strip())
    return sorted({parts[1] if parts[0] == root.name and len(parts) > 1 else parts[0] for parts in named})


def read(frame: Frame, maps: Collection[str]) -> Sample:
    """One frame with some of normals, albedo, material and depth_m; NaN outside of its mask.

    Normals that are wanted alone are for the training of normals: they are known everywhere, or the frame is left out.
    """
    scene, number = frame.parts

    def file(what: str) -> Path:
        return frame.raw / scene / f"{number}_{what}.exr"

    linear = _channels(file("im"), 3)
    shape = linear.shape[:2]
    known(file("im"), sized(file("im"), linear, (*shape, 3)))
    rgb = (np.clip(linear, 0, 1) ** _GAMMA * 255).astype(np.uint8)
    valid = (read_exr(file("mask")) != 0).all(-1)
    sized(file("mask"), valid, shape)
    found = {}
    for kind, channels in (("albedo", 3), ("material", 2)):
        if kind in maps:
            values = sized(file(kind), _channels(file(kind), channels), (*shape, channels))
            found[kind] = known(file(kind), np.clip(values, 0, 1), valid)
    if "normals" in maps:
        vectors = sized(file("normal"), _channels(file("normal"), 3), (*shape, 3))
        alone = set(maps) == {"normals"}
        found["normals"] = (
            whole_normals(file("normal"), vectors) if alone else known_normals(file("normal"), vectors, valid)
        )
    if "depth_m" in maps:
        millimetres = sized(file("depth"), _channels(file("depth"), 1)[..., 0], shape)
        found["depth_m"] = known(file("depth"), millimetres / _MM_PER_M, valid & ~np.isinf(millimetres))
    return Sample(frame.name, rgb, {kind: found[kind] for kind in maps}, _intrinsics(*shape))


def _channels(path: Path, count: int) -> np.ndarray:
    """(H, W, count): the first channels of an image; fewer where it has fewer."""
    return read_exr(path)[..., :count].astype(np.float32)


def _intrinsics(height: int, width: int) -> np.ndarray:
    """(3, 3) K of a camera that looks through the middle of the image."""
    focal_px = width / 2 / np.tan(np.radians(_FIELD_OF_VIEW_DEG / 2))
    return np.array([[focal_px, 0.0, (width - 1) / 2], [0.0, focal_px, (height - 1) / 2], [0.0, 0.0, 1.0]])
