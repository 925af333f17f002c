"""Intrinsic images by Marigold's protocol: PSNR, SSIM and LPIPS of each target, averaged over images.

Reference: Marigold's script/iid/eval.py and src/util/metric.py. Truth of InteriorVerse (EXR, linear) is turned into
sRGB as the network answers it, material back into linear values for the comparison; albedo of Hypersim (linear) is
compared in sRGB.
Shading and residual are known up to scale: the prediction's is fitted by least squares, then both are exposed so that
the 90th percentile of the truth's brightness becomes 0.8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch

from marigold_ros.config import Unusable, one_line
from trainer.evaluation.dataset import Item
from trainer.evaluation.protocols import IntrinsicsProtocol
from trainer.evaluation.readers import read_exr, read_npy, read_rgb
from trainer.evaluation.source import Source

MEASURES = ("psnr", "ssim", "lpips")
_BRIGHTNESS = (0.3, 0.59, 0.11)
_PERCENTILE, _EXPOSED, _DARKEST = 90.0, 0.8, 1e-4
# Shading and residual beyond this percentile of the brighter of the two are cut off.
_CUT_PERCENTILE = 98.0

Perceptual = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class IntrinsicsFrame:
    """rgb (H, W, 3) uint8; by target truth (H, W, 3) float32 in [0, 1], and valid (H, W, 3) bool unless all count."""

    rgb: np.ndarray
    truth: Mapping[str, np.ndarray]
    valid: Mapping[str, np.ndarray] = field(default_factory=dict)


def read_frame(source: Source, item: Item, protocol: IntrinsicsProtocol) -> IntrinsicsFrame:
    """The image and its targets; raises `Unusable` for damaged files and where no pixel counts."""
    rgb = read_rgb(source, item.files["rgb"])
    read = _read_appearance if "material" in protocol.targets else _read_lighting
    truth, valid = read(source, item)
    for name in protocol.targets:
        where = f"image {item.name} of {protocol.title}: its {name}"
        if truth[name].shape != rgb.shape:
            raise Unusable(f"{where} has shape {truth[name].shape}, the image {rgb.shape}; they must be the same")
        if protocol.masked and not valid[name].any():
            raise Unusable(f"{where} has no pixel that counts")
    return IntrinsicsFrame(rgb, truth, valid if protocol.masked else {})


def _read_appearance(source: Source, item: Item) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    truth = {}
    for name in ("albedo", "material"):
        truth[name] = np.clip(read_exr(source, item.files[name]), 0.0, 1.0) ** np.float32(1 / 2.2)
    truth["material"][..., 2] = 0.0
    return truth, {}


def _read_lighting(source: Source, item: Item) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    raw = {name: read_npy(source, item.files[name]).astype(np.float32) for name in ("albedo", "shading", "residual")}
    cut = max(float(np.percentile(raw[name], _CUT_PERCENTILE)) for name in ("shading", "residual"))
    if not cut > 0:
        raise Unusable(f"image {item.name} of Hypersim: its shading and residual are black, or not finite")
    truth = {name: np.clip(raw[name], 0.0, cut) / np.float32(cut) for name in ("shading", "residual")}
    truth["albedo"] = raw["albedo"]
    valid = {name: np.isfinite(values) for name, values in truth.items()}
    valid["albedo"] &= (raw["albedo"] != 0).any(axis=2, keepdims=True)
    return truth, valid


def measure(
    predicted: Mapping[str, np.ndarray],
    frame: IntrinsicsFrame,
    protocol: IntrinsicsProtocol,
    perceptual: Perceptual | None = None,
) -> dict[str, float | None]:
    """psnr_TARGET, ssim_TARGET and lpips_TARGET for each target; None for LPIPS where it cannot be had."""
    out: dict[str, float | None] = {}
    for name in protocol.targets:
        p, g = compared(predicted[name], frame, name, protocol)
        valid = frame.valid.get(name)
        counted = (p, g) if valid is None else (p[valid], g[valid])
        out[f"psnr_{name}"] = psnr(*counted)
        if valid is not None:
            p, g = np.where(valid, p, 0.0), np.where(valid, g, 0.0)
        out[f"ssim_{name}"] = ssim(p, g)
        out[f"lpips_{name}"] = None if perceptual is None else perceptual(p, g)
    return out


def compared(
    predicted: np.ndarray, frame: IntrinsicsFrame, name: str, protocol: IntrinsicsProtocol
) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) prediction and truth of target `name` as they are compared: same colour space, scale and exposure."""
    gamma = dict(protocol.gamma).get(name, 1.0)
    p, g = (np.asarray(values, np.float64) ** gamma for values in (predicted, frame.truth[name]))
    if name in protocol.up_to_scale:
        p, g = exposed(p, g, frame.valid.get(name))
    return p, g


def exposed(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Both (H, W, 3): the prediction scaled to fit the truth, then both exposed alike and cut to [0, 1]."""
    p, g = (predicted, truth) if valid is None else (predicted[valid], truth[valid])
    squared = float((p * p).sum())
    predicted = predicted * (float((p * g).sum()) / squared if squared > 0 else 0.0)
    brightness = truth @ np.array(_BRIGHTNESS)
    level = float(np.percentile(brightness if valid is None else brightness[valid[..., 0]], _PERCENTILE))
    exposure = 0.0 if level < _DARKEST else _EXPOSED / level
    return np.clip(exposure * predicted, 0.0, 1.0), np.clip(exposure * truth, 0.0, 1.0)


def psnr(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal to noise ratio in dB of values in [0, 1]; infinite where both are the same."""
    squared = float(np.mean((predicted - truth) ** 2))
    return float("inf") if squared == 0 else -10.0 * float(np.log10(squared))


def ssim(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of (H, W, 3) images in [0, 1], with torchmetrics' Gaussian window, as published."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds to import

    return float(structural_similarity_index_measure(_batch(predicted), _batch(truth), data_range=1.0))


def averaged(images: Sequence[Mapping[str, float | None]], protocol: IntrinsicsProtocol) -> dict[str, float | None]:
    """Means over images; None for what one of them lacks."""
    names = [f"{measure}_{target}" for target in protocol.targets for measure in MEASURES]
    table = {name: [image[name] for image in images] for name in names}
    return {
        name: None if any(value is None for value in values) else float(np.mean(np.array(values, float)))
        for name, values in table.items()
    }


@cache
def load_perceptual() -> Perceptual | str:
    """LPIPS on AlexNet by torchmetrics, or the reason why it cannot be had: its weights are a download of their own."""
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).eval()
    except Exception as error:  # torchvision is not installed, or its weights are not there and cannot be downloaded
        return one_line(error)

    def perceptual(predicted: np.ndarray, truth: np.ndarray) -> float:
        with torch.inference_mode():
            return float(network(_batch(predicted).float(), _batch(truth).float()))

    return perceptual


def _batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
