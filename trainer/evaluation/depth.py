"""Depth by the published protocol: what is read, which pixels count, in which order things are done, the measures.

The order (reference: Marigold's src/dataset and script/depth/eval.py): crop; run the network on the crop; fit scale and
shift over the valid pixels; apply them to the whole map; clip to the dataset's range, then to at least 1e-6 m; measure
over the valid pixels; average over images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from marigold_ros.config import Unusable
from trainer.evaluation.alignment import align
from trainer.evaluation.dataset import Item
from trainer.evaluation.protocols import DepthProtocol
from trainer.evaluation.readers import read_npy, read_png16, read_raw, read_rgb
from trainer.evaluation.source import Source

# KITTI's benchmark images.
_KITTI_SIZE = (1216, 352)
_LEAST_M = 1e-6
# Rows and columns of an image of 480x640 that count (Eigen's crop), and their shares of a KITTI image.
_EIGEN_NYU = ((45, 471), (41, 601))
_EIGEN_KITTI = ((0.3324324, 0.91351351), (0.0359477, 0.96405229))
# What a pooled mean needs beside the measures themselves.
_POOLED = "mean_log_ratio"
MEASURES = (
    "abs_rel",
    "sq_rel",
    "rmse_m",
    "rmse_log",
    "log10",
    "delta1",
    "delta2",
    "delta3",
    "irmse",
    "silog",
)


@dataclass(frozen=True)
class DepthFrame:
    """rgb (H, W, 3) uint8, as the network sees it; depth_m (H, W) float32; valid (H, W) bool: the pixels that count."""

    rgb: np.ndarray
    depth_m: np.ndarray
    valid: np.ndarray


def read_frame(source: Source, item: Item, protocol: DepthProtocol) -> DepthFrame:
    """The image and its truth, cropped; raises `Unusable` for damaged files and where no pixel counts."""
    rgb = read_rgb(source, item.files["rgb"])
    depth_m = _read_depth(source, item.files["depth"], protocol)
    where = f"image {item.name} of {protocol.title}"
    if protocol.size != (0, 0) and (rgb.shape[1], rgb.shape[0]) != protocol.size:
        raise Unusable(f"{where}: is {rgb.shape[1]}x{rgb.shape[0]} instead of {protocol.size[0]}x{protocol.size[1]}")
    _same_size(where, "depth", rgb, depth_m)
    if protocol.mask == "file":
        listed = _one_channel(read_npy(source, item.files["mask"]))
        _same_size(where, "mask", rgb, listed)
        # Where the file counts a pixel without a depth nothing could be measured.
        valid = listed.astype(bool) & np.isfinite(depth_m) & (depth_m > 0)
    else:
        valid = (depth_m > protocol.min_m) & (depth_m < protocol.max_m)
    if protocol.crop == "kitti":
        rgb, depth_m, valid = (kitti_crop(array, where) for array in (rgb, depth_m, valid))
    valid = valid & evaluated_area(depth_m.shape, protocol.mask)
    if not valid.any():
        raise Unusable(f"{where}: has no pixel of known depth that counts")
    return DepthFrame(rgb, depth_m, valid)


def _read_depth(source: Source, name: str, protocol: DepthProtocol) -> np.ndarray:
    if protocol.depth == "raw":
        return read_raw(source, name, protocol.size)
    if protocol.depth == "npy":
        return _one_channel(read_npy(source, name)).astype(np.float32)
    return read_png16(source, name, {"png_mm": 1 / 1000.0, "png_256": 1 / 256.0}[protocol.depth])


def _one_channel(values: np.ndarray) -> np.ndarray:
    """(H, W) of (H, W) or (H, W, 1), as DIODE has its masks and its depth."""
    return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values


def _same_size(where: str, what: str, rgb: np.ndarray, other: np.ndarray) -> None:
    if other.shape != rgb.shape[:2]:
        raise Unusable(
            f"{where}: its {what} has shape {other.shape}, the image {rgb.shape[:2]}; they must be of one size"
        )


def kitti_crop(image: np.ndarray, where: str = "image") -> np.ndarray:
    """The 1216x352 pixels of KITTI's benchmark: of the height the lowest rows, of the width the middle."""
    (height, width), (columns, rows) = image.shape[:2], _KITTI_SIZE
    if height < rows or width < columns:
        raise Unusable(f"{where}: is {width}x{height}, which is less than KITTI's benchmark of {columns}x{rows}")
    top, left = height - rows, (width - columns) // 2
    return image[top : top + rows, left : left + columns]


def evaluated_area(shape: tuple[int, int], mask: str) -> np.ndarray:
    """(H, W) bool: the pixels of a map of this shape in which a protocol measures, see `DepthProtocol.mask`."""
    if mask not in ("eigen_nyu", "eigen_kitti"):
        return np.ones(shape, bool)
    area = np.zeros(shape, bool)
    if mask == "eigen_nyu":
        rows, columns = _EIGEN_NYU
    else:
        rows, columns = ((int(a * side), int(b * side)) for (a, b), side in zip(_EIGEN_KITTI, shape, strict=True))
    area[slice(*rows), slice(*columns)] = True
    return area


def metric_depth(frame: DepthFrame, prediction: np.ndarray, alignment: str, protocol: DepthProtocol) -> np.ndarray:
    """(H, W) float32 metres that are measured: `prediction` aligned ('none': metres already) and clipped."""
    depth_m = prediction
    if alignment != "none":
        depth_m = align(prediction, frame.depth_m, frame.valid, alignment, protocol.alignment_px).depth_m
    return np.maximum(np.clip(depth_m, protocol.min_m, protocol.max_m), np.float32(_LEAST_M))


def measure(predicted_m: np.ndarray, frame: DepthFrame) -> dict[str, float]:
    """The measures of one image over its valid pixels; p predicted, g true:

    abs_rel |p - g| / g; sq_rel (p - g)^2 / g; rmse_m; rmse_log of ln p - ln g; log10 |log10 p - log10 g|; delta1 to 3:
    share of max(p / g, g / p) < 1.25, 1.25^2, 1.25^3; irmse of 1 / p - 1 / g; silog 100 times the standard deviation
    of ln p - ln g. Beside them 'pixels', and what `pooled` needs.
    """
    p, g = (values[frame.valid].astype(np.float64) for values in (predicted_m, frame.depth_m))
    log_ratio = np.log(p) - np.log(g)
    ratio = np.maximum(p / g, g / p)
    return {
        "abs_rel": _mean(np.abs(p - g) / g),
        "sq_rel": _mean((p - g) ** 2 / g),
        "rmse_m": _root(_mean((p - g) ** 2)),
        "rmse_log": _root(_mean(log_ratio**2)),
        "log10": _mean(np.abs(log_ratio)) / np.log(10.0),
        "delta1": _mean(ratio < 1.25),
        "delta2": _mean(ratio < 1.25**2),
        "delta3": _mean(ratio < 1.25**3),
        "irmse": _root(_mean((1.0 / p - 1.0 / g) ** 2)),
        "silog": 100.0 * float(np.std(log_ratio)),
        _POOLED: _mean(log_ratio),
        "pixels": len(p),
    }


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _root(value: float) -> float:
    return float(np.sqrt(value))


def averaged(images: Sequence[Mapping[str, float]], pooled: bool) -> dict[str, float]:
    """The measures of a dataset: means over images, or over all their pixels together."""
    table = {name: np.array([image[name] for image in images]) for name in (*MEASURES, _POOLED, "pixels")}
    if not pooled:
        return {name: _mean(table[name]) for name in MEASURES}
    weight = table["pixels"] / table["pixels"].sum()
    out = {name: float(weight @ table[name]) for name in MEASURES}
    for name in ("rmse_m", "rmse_log", "irmse"):
        out[name] = _root(float(weight @ table[name] ** 2))
    out["silog"] = 100.0 * _root(max(0.0, out["rmse_log"] ** 2 - float(weight @ table[_POOLED]) ** 2))
    return out
