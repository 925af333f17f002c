"""Draws scenes and cameras from seeds, renders them, and keeps them as files.

A group of `VIEWS` consecutive samples shares its geometry; the camera, and outdoors the light, differ. Every
choice follows from (seed, split, index), so a set can be continued or repeated anywhere.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from marigold_ros.config import Unusable

from . import indoor, outdoor, underground
from .backend import mitsuba
from .lighting import develop, draw_response, make_sky, meter
from .objects import ObjectBank
from .render import Camera, DeviceBank, World, look
from .stage import Stage
from .textures import Bank, make_bank

VERSION = 3  # goes into the camera files; raise it when the pictures of a seed change
VIEWS = 3
SPLITS = {"train": 0, "held_out": 1}
# family: (function, weight, share of wide images). Those of weight 0 are for recordings only: what a network that was
# trained on the others has not seen.
FAMILIES = {
    "room": (indoor.room, 0.34, 0.0),
    "corridor": (indoor.corridor, 0.06, 0.0),
    "warehouse": (indoor.warehouse, 0.09, 0.0),
    "street": (outdoor.street, 0.31, 0.55),
    "open_ground": (outdoor.open_ground, 0.20, 0.5),
    "mine": (underground.mine, 0.0, 0.0),
}
SIZES = {"normal": (256, 192), "wide": (384, 128)}


@dataclass
class Studio:
    """What a process makes once: variant, textures, objects."""

    mi: object
    bank: Bank
    device: DeviceBank
    objects: ObjectBank

    @staticmethod
    def open(seed: int, split: str, threads: int = 0, copies: float = 1.0) -> Studio:
        """The studio of a set; each split has textures and objects of its own."""
        mi = mitsuba(threads)
        own = seed * 2 + SPLITS[split]
        bank = make_bank(own, copies)
        return Studio(mi, bank, DeviceBank(mi, bank), ObjectBank(own, copies))


def random_of(seed: int, split: str, *numbers: int) -> np.random.Generator:
    """The generator of random numbers for a purpose."""
    return np.random.default_rng([seed, SPLITS[split], *numbers])


def build_stage(studio: Studio, family: str, rng: np.random.Generator) -> Stage:
    """A stage of the family, finished and bent if it wants to be."""
    stage = Stage(rng, studio.bank, studio.objects, family)
    FAMILIES[family][0](stage)
    if stage.warp is not None:
        for m in stage.builder.meshes:
            m.v = stage.warp(m.v)
    return stage


def draw_camera(stage: Stage, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Camera, dict]:
    """A camera somewhere sensible on the stage, and a description of it."""
    width, height = size
    position, yaw = stage.view(rng)
    wide = width / height > 2
    if wide:
        fov = np.clip(rng.normal(80, 9), 58, 100)
    else:
        fov = np.clip(rng.choice([rng.normal(63, 6), rng.uniform(45, 100)]), 45, 100)
    above, place = float(position[2]), (float(position[0]), float(position[1]))
    mean = -2.0 if wide else (-5.0 if above > 0.6 else 0.0)
    pitch = np.clip(rng.normal(mean, 3.0 if wide else 8.5), -30, 15)
    roll = rng.normal(0, 1.2) if rng.random() < 0.9 else rng.uniform(-6, 6)
    if stage.warp is not None:
        position = stage.warp(position[None])[0]
    f = width / 2 / np.tan(np.radians(fov) / 2)
    cx, cy = width / 2 + rng.normal(0, 0.01) * width, height / 2 + rng.normal(0, 0.015) * height
    k = np.array([[f, 0, cx], [0, f, cy], [0, 0, 1.0]])
    cam = Camera(position, look(yaw, np.radians(pitch), np.radians(roll)), k, width, height)
    # The renderer counts from the image's corner, cameras from the centre of the first pixel.
    from_first_pixel = k - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    about = {
        "camera_height_m": round(above, 3),
        "pitch_deg": round(float(pitch), 2),
        "roll_deg": round(float(roll), 2),
        "yaw_deg": round(float(np.degrees(yaw)), 2),
        "fov_deg": round(float(fov), 2),
        "K": from_first_pixel.tolist(),
        "width": width,
        "place": place,
        "height": height,
        "position_m": [round(float(x), 4) for x in position],
    }
    return cam, about


def acceptable(depth: np.ndarray, indoors: bool) -> bool:
    """Whether a view is worth keeping: not inside or against a thing, not only sky, not a bare flat surface."""
    solid = np.isfinite(depth)
    if (depth < 0.25).mean() > 0.3 or (~solid).mean() > (0.4 if indoors else 0.85):
        return False
    lo, hi = np.percentile(depth[solid], [3, 97])
    near = np.percentile(depth[solid], 60) if indoors else np.percentile(depth[solid], 75)
    if hi / max(lo, 1e-3) < 1.5 or near < (0.7 if indoors else 1.2):
        return False
    return structure(depth) > 0.12


def structure(depth: np.ndarray) -> float:
    """Share of solid pixels that do not lie on the main plane of the view (inverse depth is linear on a plane)."""
    small = depth[::4, ::4]
    y, x = np.nonzero(np.isfinite(small))
    inverse = 1 / np.maximum(small[y, x], 0.05)
    a = np.stack([x, y, np.ones_like(x)], -1).astype(np.float64)
    keep = np.ones(len(x), bool)
    off = keep
    for _ in range(4):
        fit = np.linalg.lstsq(a[keep], inverse[keep], rcond=None)[0]
        off = np.abs(a @ fit - inverse) > 0.06 * inverse + 0.002
        if (~off).sum() < 10:
            break
        keep = ~off
    return float(off.mean())


def family_of(seed: int, split: str, group: int) -> str:
    """The family of a group of samples."""
    names = list(FAMILIES)
    weights = np.array([FAMILIES[n][1] for n in names])
    return names[int(random_of(seed, split, group, 0).choice(len(names), p=weights / weights.sum()))]


def find_view(
    stage: Stage, world: World, seed: int, split: str, index: int, turn: int
) -> tuple[Camera, dict, np.random.Generator] | None:
    """A camera whose view passes, with the generator that drew it, or None after a number of tries."""
    for attempt in range(18):
        rng = random_of(seed, split, index, 2, turn, attempt)
        wide = rng.random() < FAMILIES[stage.family][2]
        cam, about = draw_camera(stage, rng, SIZES["wide" if wide else "normal"])
        x, y = about.pop("place")
        if attempt < 11 and not stage.free(x, y, 0.12 if stage.indoor else 0.35):
            continue
        if acceptable(world.depth(cam), stage.indoor):
            return cam, about, rng
    return None


def render_group(
    studio: Studio, seed: int, split: str, indices: list[int], spp: int = 6
) -> Iterator[tuple[int, np.ndarray, np.ndarray, dict]]:
    """Yields (index, rgb uint8 (H, W, 3), depth (H, W), about) of the wanted samples of one group."""
    group = indices[0] // VIEWS
    family = family_of(seed, split, group)
    pending = list(indices)
    for turn in range(8):
        stage = build_stage(studio, family, random_of(seed, split, group, 1, turn))
        world = World(studio.mi, studio.device, stage.builder, stage.lighting())
        left = []
        for index in pending:
            found = find_view(stage, world, seed, split, index, turn)
            if found is None:
                left.append(index)
                continue
            cam, about, rng = found
            sky = stage.sky
            if not stage.indoor:
                sky = make_sky(rng)
                world.set_light(stage.lighting(sky))
            radiance, depth = world.image(cam, spp, index * 2654435761 % 2**31)
            response = draw_response(rng, stage.indoor)
            rgb = develop(radiance, meter(radiance, depth, response), response)
            about.update(version=VERSION, family=family, seed=seed, split=split, index=index, group=group, turn=turn)
            about.update(sky=sky.kind if sky else "", spp=spp)
            yield index, rgb, depth, about
        pending = left
        if not pending:
            return
    raise RuntimeError(f"no acceptable view for samples {pending} of seed {seed}")


def paths(root: Path, split: str, index: int) -> tuple[Path, Path, Path]:
    """Where picture, depth and camera of a sample lie."""
    base = root / split
    name = f"{index:06d}"
    return base / "rgb" / f"{name}.jpg", base / "depth_m" / f"{name}.npy", base / "camera" / f"{name}.json"


def check_origin(root: Path, split: str, seed: int) -> None:
    """Raises `Unusable` where the split holds samples of another seed or generator: they would pass for these."""
    wanted = {"seed": seed, "version": VERSION}
    for camera in sorted((root / split / "camera").glob("*.json"))[:1]:
        about = json.loads(camera.read_text(encoding="utf-8"))
        for name, value in wanted.items():
            if about.get(name) != value:
                raise Unusable(
                    f"folder {root / split}: holds samples of {name} {about.get(name)}, not {value}; give another --out"
                )


def complete(root: Path, split: str, index: int) -> bool:
    """Whether a sample is there whole."""
    return all(p.is_file() and p.stat().st_size > 0 for p in paths(root, split, index))


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(data)
    os.replace(beside, path)


def save(root: Path, split: str, index: int, rgb: np.ndarray, depth: np.ndarray, about: dict) -> None:
    """Writes a sample beside its place and renames it; the camera file last, as a sign that all is there."""
    picture, distance, camera = paths(root, split, index)
    for p in (picture, distance, camera):
        p.parent.mkdir(parents=True, exist_ok=True)
    ok, jpg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not ok:
        raise OSError(f"cannot encode {picture}")
    _replace(picture, jpg.tobytes())
    buffer = io.BytesIO()
    np.save(buffer, depth.astype(np.float16))
    _replace(distance, buffer.getvalue())
    _replace(camera, json.dumps(about).encode())


_studio: Studio | None = None


def start_worker(seed: int, split: str, threads: int, copies: float = 1.0) -> None:
    """Makes the studio of a worker process."""
    global _studio
    cv2.setNumThreads(1)
    _studio = Studio.open(seed, split, threads, copies)


def work(task: tuple[str, int, str, list[int], int]) -> tuple[int, str]:
    """Renders and saves the missing samples of one group; returns their number and what went wrong, or ''."""
    root, seed, split, indices, spp = task
    done, error = 0, ""
    try:
        for index, rgb, depth, about in render_group(_studio, seed, split, indices, spp):
            save(Path(root), split, index, rgb, depth, about)
            done += 1
    except Exception as e:  # one scene that cannot be built must not end a run of hours; it is named at its end
        error = f"samples {indices}: {type(e).__name__}: {e}"
    return done, error
