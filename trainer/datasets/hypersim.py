"""Hypersim: `<scene>/images/scene_<camera>_{final,geometry}_hdf5/frame.NNNN.<what>.hdf5`, and the list of its splits.

Checked against the documentation of apple/ml-hypersim and the published preparation (prs-eth/Marigold,
script/{depth,normals,iid}/dataset_preprocess), not against the download itself. All scenes are taken for one pinhole
camera, as published, although some were rendered with a tilted or shifted lens.

Normals come in the camera's frame: x right, y up, z backwards, away from where the camera looks.
"""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera, pixel_rays
from trainer.datasets.reading import Frame, LeftOut, damaged, known, read_hdf5, whole_normals
from trainer.samples import Sample

CAMERA = Camera(1024, 768, 886.81, 886.81, 511.5, 383.5)
SPLITS_FILE = "metadata_images_split_scene_v1.csv"
LIGHT = {"albedo": "diffuse_reflectance", "shading": "diffuse_illumination", "residual": "residual"}

_SHAPE = (CAMERA.height, CAMERA.width)
_GAMMA = 1 / 2.2
_LUMA = np.array([0.3, 0.59, 0.11])
_BRIGHT, _BRIGHT_PERCENTILE, _DARK = 0.8, 90, 1e-4
# Cosine between normal and view from which on a normal faces away.
_FACES_AWAY = 1e-3
_LEAST_PSNR_DB = 40.0
_LARGEST_FLOAT16 = 65504.0


def frames(raw: Path, split: str | None) -> list[Frame]:
    """The frames of the public release that belong to `split`, in the order of the list; all of them for None."""
    path = raw / SPLITS_FILE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [
            Frame(raw, (row["scene_name"], row["camera_name"], f"fr{int(row['frame_id']):04d}"), own)
            for row in rows
            if row["included_in_public_release"].strip().lower() == "true"
            and (own := row["split_partition_name"]) in ((split,) if split else ("train", "val", "test"))
        ]
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise Unusable(
            f"file {path}: cannot be used ({error!r}); take it from evermotion_dataset/analysis of "
            "https://github.com/apple/ml-hypersim"
        ) from error


def read(frame: Frame, maps: Collection[str]) -> Sample:
    """One frame with some of depth_m, normals, albedo, shading and residual."""
    color_file = _file(frame, "final", "color")
    color = read_hdf5(color_file, (*_SHAPE, 3)).astype(np.float64)
    entity_file = _file(frame, "geometry", "render_entity_id")
    valid = read_hdf5(entity_file, _SHAPE) != -1
    if not valid.any():
        raise damaged(entity_file, "has not one valid pixel")
    known(color_file, color, valid)
    scale = exposure(color[valid])
    found = {}
    if "depth_m" in maps:
        path = _file(frame, "geometry", "depth_meters")
        found["depth_m"] = known(path, planar(read_hdf5(path, _SHAPE)), valid)
    if "normals" in maps:
        path = _file(frame, "geometry", "normal_cam")
        found["normals"] = facing(whole_normals(path, read_hdf5(path, (*_SHAPE, 3)).astype(np.float64)))
    if LIGHT.keys() & maps:
        found |= _light(frame, color, valid, scale)
    return Sample(frame.name, developed(color, scale), {kind: found[kind] for kind in maps}, CAMERA.matrix)


def planar(distance_m: np.ndarray) -> np.ndarray:
    """(H, W) metres from the camera's centre -> metres along the optical axis: d f / sqrt(x^2 + y^2 + f^2)."""
    return distance_m / np.linalg.norm(pixel_rays(CAMERA), axis=-1)


def facing(normals: np.ndarray) -> np.ndarray:
    """(H, W, 3) optical unit vectors, turned round where they face away from the camera."""
    rays = pixel_rays(CAMERA)
    cosine = (normals * rays).sum(-1, keepdims=True) / np.linalg.norm(rays, axis=-1, keepdims=True)
    return np.where(cosine > _FACES_AWAY, -normals, normals)


def exposure(linear: np.ndarray) -> float:
    """The factor that brings the 90th percentile of the brightness of (..., 3) linear colours to 0.8 in the picture.

    0 for a picture that is black.
    """
    bright = float(np.percentile(linear @ _LUMA, _BRIGHT_PERCENTILE))
    return 0.0 if bright < _DARK else _BRIGHT ** (1 / _GAMMA) / bright


def developed(linear: np.ndarray, scale: float) -> np.ndarray:
    """(H, W, 3) linear colours -> uint8, as published: exposure, gamma 2.2, truncation."""
    with np.errstate(invalid="ignore"):  # an infinite light in a black picture
        exposed = np.nan_to_num(np.maximum(linear * scale, 0.0), posinf=1.0)
    return (np.minimum(exposed**_GAMMA, 1.0) * 255).astype(np.uint8)


def _file(frame: Frame, group: str, what: str) -> Path:
    scene, camera, number = frame.parts
    return frame.raw / scene / "images" / f"scene_{camera}_{group}_hdf5" / f"frame.{number[2:]}.{what}.hdf5"


def _light(frame: Frame, color: np.ndarray, valid: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    """Albedo, shading and residual, so that albedo * shading + residual is the exposed picture."""
    paths = {kind: _file(frame, "final", what) for kind, what in LIGHT.items()}
    light = {kind: read_hdf5(path, (*_SHAPE, 3)).astype(np.float64) for kind, path in paths.items()}
    if not valid.all():
        raise LeftOut(f"{(~valid).sum()} pixels show no object")
    if frame.split != "test":
        refuse_light(color, **light)
    if scale == 0:
        raise LeftOut("the picture is black")
    light["albedo"] = np.clip(light["albedo"], 0, 1)
    for kind in ("shading", "residual"):
        light[kind] = np.minimum(light[kind] * scale, _LARGEST_FLOAT16)
    return {kind: known(paths[kind], values, ~np.isnan(values).any(-1)) for kind, values in light.items()}


def refuse_light(color: np.ndarray, albedo: np.ndarray, shading: np.ndarray, residual: np.ndarray) -> None:
    """Raise `LeftOut` where the published training set for lighting has no such frame.

    That is: values that are not finite or out of range, or, with shading and residual cut off at the 98th percentile
    of the shading, less than 40 dB between the picture that they make and the true one, each exposed for itself.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if not np.isfinite(albedo * shading + residual).all():
            raise LeftOut("albedo * shading + residual is not finite everywhere")
    if min(albedo.min(), shading.min(), residual.min()) < 0 or albedo.max() > 1:
        raise LeftOut("albedo, shading or residual are out of range")
    limit = np.percentile(shading, 98)
    remade = albedo * np.minimum(shading, limit) + np.minimum(residual, limit)
    difference = developed(color, exposure(color)).astype(np.float64) - developed(remade, exposure(remade))
    error = np.mean(difference**2)
    if error > 255.0**2 / 10 ** (_LEAST_PSNR_DB / 10):
        psnr_db = 10 * np.log10(255.0**2 / error)
        raise LeftOut(f"albedo, shading and residual make the picture with {psnr_db:.1f} dB only")
