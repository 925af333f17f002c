"""Surface normals by Marigold's protocol (means over images) and DSINE's (all pixels of a dataset together).

Everything here is in the optical frame (x right, y down, z forward), in which our estimators answer; truth is turned
into it when it is read. The measures are those of both published evaluations, from angles in double precision.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from marigold_ros.config import Unusable
from trainer.evaluation.dataset import Item
from trainer.evaluation.protocols import NormalsProtocol
from trainer.evaluation.readers import read_exr, read_npy, read_png8, read_rgb
from trainer.evaluation.source import Source

MEASURES = ("mean", "median", "rmse", "a5", "a7.5", "a11.25", "a22.5", "a30")
_LIMITS_DEG = {"a5": 5.0, "a7.5": 7.5, "a11.25": 11.25, "a22.5": 22.5, "a30": 30.0}
# The pooled median comes from counts of angles in bins of this width.
_BIN_DEG = 0.01
_BINS = 18001
# The mean angle where x is negated: far below 'mean', it tells of a network that answers in another frame.
MIRRORED = "mirrored_mean"
# ImageNet's, with which DSINE's loader normalises.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class NormalsFrame:
    """rgb (H, W, 3) uint8; normals (H, W, 3) float32, of any length; valid (H, W) bool: the pixels that count."""

    rgb: np.ndarray
    normals: np.ndarray
    valid: np.ndarray


def read_frame(source: Source, item: Item, protocol: NormalsProtocol) -> NormalsFrame:
    """The image and its truth; raises `Unusable` for damaged files and where no pixel counts."""
    rgb = read_rgb(source, item.files["rgb"])
    normals, valid = _read_truth(source, item.files["truth"], protocol.truth)
    where = f"image {item.name} of {protocol.title}"
    if normals.shape != rgb.shape:
        raise Unusable(f"{where}: its normals have shape {normals.shape}, the image {rgb.shape}; they must be the same")
    if not valid.any():
        raise Unusable(f"{where}: has no pixel with a normal")
    if protocol.stretch:
        rgb = stretched(rgb)
    return NormalsFrame(rgb, normals * np.float32(protocol.optical), valid)


def _read_truth(source: Source, name: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) normals in the file's own frame, and (H, W) bool where the published readers have one."""
    if kind == "png":
        coded = read_png8(source, name)
        return coded.astype(np.float32) / 255.0 * 2.0 - 1.0, coded.any(axis=2)
    normals = (read_exr if kind == "exr" else read_npy)(source, name).astype(np.float32)
    if normals.ndim != 3 or normals.shape[2] != 3:
        raise Unusable(f"dataset file {source.place / name}: has shape {normals.shape}; must be (H, W, 3)")
    with np.errstate(invalid="ignore"):
        return normals, np.linalg.norm(normals, axis=2) > (0.5 if kind == "exr" else 0.0)


def stretched(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> uint8, the image as the evaluation of end-to-end fine-tuning hands it to the network.

    DSINE's loader normalises the colours by ImageNet's mean and deviation; the evaluation stretches the result to
    0..255.
    """
    colours = (rgb.astype(np.float32) / 255.0 - np.float32(_MEAN)) / np.float32(_DEVIATION)
    low, high = colours.min(), colours.max()
    if high <= low:
        return rgb
    return ((colours - low) / (high - low) * 255.0).astype(np.uint8)


def angles_deg(predicted: np.ndarray, frame: NormalsFrame) -> np.ndarray:
    """(N,) angles in degrees between (H, W, 3) `predicted` and the truth at the valid pixels."""
    p, g = (normals[frame.valid].astype(np.float64) for normals in (predicted, frame.normals))
    lengths = np.maximum(np.linalg.norm(p, axis=1), 1e-8) * np.maximum(np.linalg.norm(g, axis=1), 1e-8)
    return np.degrees(np.arccos(np.clip((p * g).sum(axis=1) / lengths, -1.0, 1.0)))


def measure(predicted: np.ndarray, frame: NormalsFrame) -> dict[str, Any]:
    """Mean, median and root mean square of the angles in degrees, and per cent of them below 5, 7.5, 11.25, 22.5, 30.

    Beside them 'pixels', the mean with x negated, and 'angles': how many there are in each bin of 0.01 degrees, packed.
    """
    angles = angles_deg(predicted, frame)
    mirrored = angles_deg(predicted * np.float32((-1.0, 1.0, 1.0)), frame)
    return {
        "mean": float(np.mean(angles)),
        "median": float(np.median(angles)),
        "rmse": float(np.sqrt(np.mean(angles**2))),
        **{name: 100.0 * float(np.mean(angles < limit)) for name, limit in _LIMITS_DEG.items()},
        MIRRORED: float(np.mean(mirrored)),
        "pixels": len(angles),
        "angles": _packed(np.bincount((angles / _BIN_DEG).astype(np.int64), minlength=_BINS)),
    }


def averaged(images: Sequence[Mapping[str, Any]], pooled: bool) -> dict[str, float]:
    """The measures of a dataset: means over images, or over all their pixels together (the median to 0.01 degrees)."""
    table = {name: np.array([image[name] for image in images]) for name in (*MEASURES, MIRRORED, "pixels")}
    if not pooled:
        return {name: float(np.mean(table[name])) for name in (*MEASURES, MIRRORED)}
    weight = table["pixels"] / table["pixels"].sum()
    out = {name: float(weight @ table[name]) for name in (*MEASURES, MIRRORED)}
    out["rmse"] = float(np.sqrt(weight @ table["rmse"] ** 2))
    out["median"] = _median(sum(_unpacked(image["angles"]) for image in images))
    return out


def _median(counts: np.ndarray) -> float:
    """The angle in degrees that halves the counts, as if those of a bin lay evenly in it."""
    total = np.cumsum(counts)
    middle = total[-1] / 2.0
    index = int(np.searchsorted(total, middle))
    before = total[index] - counts[index]
    return float((index + (middle - before) / counts[index]) * _BIN_DEG)


def _packed(counts: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(counts.astype("<u4").tobytes(), 9)).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").astype(np.int64)
