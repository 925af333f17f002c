"""TartanAir: `<environment>/{Easy,Hard}/PNNN/{image_left/NNNNNN_left.png,depth_left/NNNNNN_left_depth.npy}`.

Checked against the documentation of castacks/tartanair_tools, not against the download. An archive that was unpacked
into a folder of its environment's name (`<environment>/<environment>/Easy/...`) is read as well. There is no
published split for depth: ours holds out the environments of `VAL_SCENES`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from trainer.datasets.reading import Frame, known, matches, read_npy, read_picture
from trainer.samples import Sample

VAL_SCENES = ("hospital", "oldtown", "westerndesert")

_SHAPE = (480, 640)
_K = np.array([[320.0, 0.0, 320.0], [0.0, 320.0, 240.0], [0.0, 0.0, 1.0]])
# The sky is a sphere at about 10 000 m; nothing else is nearly as far.
_SKY_M = 5000.0


def frames(raw: Path, split: str | None) -> list[Frame]:
    """The left camera's frames: a frame counts when its picture or its depth is there."""
    places = [place for depth in ("*", "*/*") for place in raw.glob(f"{depth}/[EH]a[sr][yd]/P*") if place.is_dir()]
    found = []
    for place in sorted(places):
        scene, level, drive = place.parts[-3:]
        if split and (scene in VAL_SCENES) != (split == "val"):
            continue
        numbers = {*matches(place / "image_left", r"(\d{6})_left\.png")}
        numbers |= {*matches(place / "depth_left", r"(\d{6})_left_depth\.npy")}
        root = place.parents[2]
        found += [Frame(root, (scene, level, drive, number), split or "") for number in sorted(numbers)]
    return found


def read(frame: Frame, maps: Collection[str]) -> Sample:
    """One frame with depth_m: metres, +inf the sky."""
    *place, number = frame.parts
    folder = frame.raw.joinpath(*place)
    rgb = read_picture(folder / "image_left" / f"{number}_left.png", _SHAPE)
    found = {}
    if "depth_m" in maps:
        path = folder / "depth_left" / f"{number}_left_depth.npy"
        metres = read_npy(path, _SHAPE)
        found["depth_m"] = known(path, np.where(metres >= _SKY_M, np.inf, metres), ~(metres <= 0))
    return Sample(frame.name, rgb, found, _K)
