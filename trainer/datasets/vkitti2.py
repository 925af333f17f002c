"""Virtual KITTI 2: `SceneNN/<variant>/frames/{rgb,depth}/Camera_N/{rgb_NNNNN.jpg,depth_NNNNN.png}`.

Depth is in centimetres, 65535 the sky. The scenes lie in the raw folder itself, or in `rgb`, `depth` and `textgt` (or
`vkitti_2.0.3_rgb` and so on) inside of it. Not verified against the download; the numbers of frames agree with the
published lists (prs-eth/Marigold, data_split/vkitti_depth: 20 148 and 5 364; diffusion-e2e-ft: 21 260).
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from pathlib import Path

import numpy as np

from trainer.datasets.depth_normals import normals_from_depth
from trainer.datasets.reading import Frame, damaged, known, opened, read_depth_png, read_picture
from trainer.samples import Sample

FRAMES = {"Scene01": 447, "Scene02": 233, "Scene06": 270, "Scene18": 339, "Scene20": 837}
VARIANTS = ("clone", "sunset", "15-deg-left", "15-deg-right", "morning", "overcast")
E2E_VARIANTS = ("morning", "fog", "rain", "sunset", "overcast")
OTHER_VARIANTS = ("30-deg-left", "30-deg-right")
VAL_SCENE = "Scene01"

_SHAPE = (375, 1242)
_FOCAL_PX, _CX, _CY = 725.0087, 620.5, 187.0
_SKY = 65535
_CM_PER_M = 100.0


def frames(raw: Path, split: str | None) -> list[Frame]:
    """Marigold's set: Scene01 to validate, the other scenes to train, six variants, both cameras; None: there is."""
    if split is None:
        return _frames(raw, FRAMES, sorted({*VARIANTS, *E2E_VARIANTS, *OTHER_VARIANTS}), "")
    return _frames(raw, [scene for scene in FRAMES if (scene == VAL_SCENE) == (split == "val")], VARIANTS, split)


def frames_e2e(raw: Path, split: str | None) -> list[Frame]:
    """The set of the end-to-end fine-tuning: all scenes to train, five variants, both cameras."""
    return _frames(raw, FRAMES, E2E_VARIANTS, "train") if split else frames(raw, None)


def _frames(raw: Path, scenes: Collection[str], variants: Collection[str], split: str) -> list[Frame]:
    return [
        Frame(raw, (scene, variant, camera, f"{number:05d}"), split)
        for scene, variant, camera in product(scenes, variants, ("Camera_0", "Camera_1"))
        for number in range(FRAMES[scene])
    ]


def read(frame: Frame, maps: Collection[str]) -> Sample:
    """One frame with depth_m: metres, +inf the sky; normals: made of it, see depth_normals.py."""
    _, variant, camera, number = frame.parts
    pictures, depths = (_scene(frame, kind) / variant / "frames" / kind / camera for kind in ("rgb", "depth"))
    rgb = read_picture(pictures / f"rgb_{number}.jpg", _SHAPE)
    k, found = _intrinsics(frame), {}
    if maps:
        path = depths / f"depth_{number}.png"
        centimetres = read_depth_png(path, _SHAPE)
        metres = np.where(centimetres == _SKY, np.inf, centimetres / _CM_PER_M)
        found["depth_m"] = known(path, metres, centimetres > 0)
    if "normals" in maps:
        normals = normals_from_depth(found["depth_m"], k)
        found["normals"] = known(path, normals, np.isfinite(normals).all(axis=-1))
    return Sample(frame.name, rgb, {kind: found[kind] for kind in maps}, k)


def _scene(frame: Frame, kind: str) -> Path:
    """The folder of the frame's scene with the files of this kind."""
    places = [frame.raw / place / frame.scene for place in (kind, f"vkitti_2.0.3_{kind}", ".")]
    return next((place for place in places if place.is_dir()), places[-1])


def _intrinsics(frame: Frame) -> np.ndarray:
    """(3, 3) K from intrinsic.txt (frame camera fx fy cx cy, below a line of headings); the published one without."""
    _, variant, camera, number = frame.parts
    path = _scene(frame, "textgt") / variant / "intrinsic.txt"
    fx, fy, cx, cy = _FOCAL_PX, _FOCAL_PX, _CX, _CY
    if path.is_file():
        with opened(path):
            rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()[1:]]
            wanted = [row[2:] for row in rows if row[:2] == [str(int(number)), camera[-1]]]
            numbers = [float(value) for value in wanted[0]] if wanted else []
        if len(numbers) != 4:
            raise damaged(path, f"has no fx, fy, cx, cy of frame {int(number)}, {camera}")
        fx, fy, cx, cy = numbers
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
