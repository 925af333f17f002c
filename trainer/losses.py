"""Affine-invariant losses on decoded maps, in the space in which the network predicts. All in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.recipe import RelativeLoss

EPSILON = 1e-6


@dataclass(frozen=True)
class Target:
    """y (N, H, W) increasing with distance, in the space; weight (N, H, W), 0 where unknown."""

    y: Tensor
    weight: Tensor


def make_target(depth_m: Tensor, space: str, recipe: RelativeLoss) -> Target:
    """What the network should predict up to scale and shift, and how much each pixel counts.

    depth_m: (N, H, W) metres, +inf sky, NaN unknown.
    """
    known, sky = ~torch.isnan(depth_m) & (depth_m > 0), torch.isposinf(depth_m)
    z = depth_m.nan_to_num(nan=1.0, posinf=recipe.far_m).clamp(0.05, recipe.far_m)
    y, relative = _in_space(z, space)
    if space == "inverse_depth":
        y = torch.where(sky, torch.zeros_like(y), y)
    weight = _tempered(relative, known, recipe)
    weight = torch.where(sky, weight * recipe.sky_weight, weight) * known
    return Target(y, weight / weight.mean(dim=(1, 2), keepdim=True).clamp_min(EPSILON))


def _in_space(z: Tensor, space: str) -> tuple[Tensor, Tensor]:
    """(y, |d ln z / dy|)."""
    if space == "inverse_depth":
        return -1.0 / z, z
    if space == "log_depth":
        return z.log(), torch.ones_like(z)
    return z, 1.0 / z


def _tempered(relative: Tensor, known: Tensor, recipe: RelativeLoss) -> Tensor:
    """Weights |d ln z / dy| within a factor of their median, to a power: full relative weighting would let the
    farthest pixels of inverse depth (the nearest of depth) decide everything."""
    median = relative.masked_fill(~known, torch.nan).flatten(1).nanmedian(dim=1).values.nan_to_num(1.0)
    share = relative / median[:, None, None].clamp_min(EPSILON)
    return share.clamp(1.0 / recipe.weight_spread, recipe.weight_spread) ** recipe.relative_power


def fit_scale_shift(prediction: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Per image, the (N,) scale and shift that minimise sum w (s p + t - y)^2, in closed form; s >= 0."""
    w = target.weight.flatten(1)
    w = w / w.sum(dim=1, keepdim=True).clamp_min(EPSILON)
    p, y = prediction.flatten(1), target.y.flatten(1)
    p_mean, y_mean = (w * p).sum(1), (w * y).sum(1)
    p_off, y_off = p - p_mean[:, None], y - y_mean[:, None]
    variance = (w * p_off * p_off).sum(1)
    # A negative scale would teach the mirror image; at 0 the prediction still gets its gradient from the anchor.
    scale = ((w * p_off * y_off).sum(1) / (variance + EPSILON)).clamp_min(0.0)
    return scale, y_mean - scale * p_mean


def depth_loss(prediction: Tensor, target: Target, recipe: RelativeLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of (N, H, W) predictions (not clamped), and its parts for the log."""
    prediction = prediction.float()
    scale, shift = fit_scale_shift(prediction, target)
    residual = scale[:, None, None] * prediction + shift[:, None, None] - target.y
    # Per image in units of its own spread, so that a room and a street weigh alike.
    size = spread(target)
    residual = residual / size[:, None, None]
    parts = {"affine": (target.weight * residual.abs()).mean()}
    parts["gradient"] = gradient_loss(residual, target.weight, recipe.gradient_scales)
    parts["anchor"] = (target.weight * (prediction - full_range(target)).abs()).mean()
    parts["outside"] = (prediction.abs() - 1.0).clamp_min(0.0).square().mean()
    total = parts["affine"] + recipe.gradient * parts["gradient"]
    total = total + recipe.anchor * parts["anchor"] + recipe.outside * parts["outside"]
    return total, {name: part.detach() for name, part in parts.items()}


def spread(target: Target) -> Tensor:
    """(N,) weighted mean |y - mean y|; not below 3 % of the largest |y|, or a bare wall's noise would be learnt."""
    w = target.weight / target.weight.sum(dim=(1, 2), keepdim=True).clamp_min(EPSILON)
    mean = (w * target.y).sum(dim=(1, 2), keepdim=True)
    size = (w * (target.y - mean).abs()).sum(dim=(1, 2))
    floor = 0.03 * (w * target.y.abs()).sum(dim=(1, 2))
    return torch.maximum(size, floor).clamp_min(EPSILON)


def full_range(target: Target) -> Tensor:
    """(N, H, W) y moved affinely so that its 2nd and 98th percentiles are -0.9 and 0.9, and cut off at -1 and 1."""
    y = target.y.masked_fill(target.weight <= 0, torch.nan).flatten(1)
    # Every 7th pixel is plenty for a percentile and avoids sorting everything; of sparse depth all are needed.
    thinned = y[:, ::7] if float(y.isnan().float().mean()) < 0.5 else y
    low, high = torch.nanquantile(thinned, y.new_tensor((0.02, 0.98)), dim=1).nan_to_num(0.0)
    share = (target.y - low[:, None, None]) / (high - low).clamp_min(EPSILON)[:, None, None]
    return (share * 1.8 - 0.9).clamp(-1.0, 1.0)


def gradient_loss(residual: Tensor, weight: Tensor, scales: int) -> Tensor:
    """Mean |difference of neighbouring residuals|, at several scales; (N, H, W) each."""
    total = residual.new_zeros(())
    for _ in range(scales):
        for axis in (1, 2):
            difference = residual.diff(dim=axis).abs()
            length = residual.shape[axis] - 1
            if not length:
                continue  # a side of one pixel has no neighbours; the mean of nothing is NaN
            both = torch.minimum(weight.narrow(axis, 0, length), weight.narrow(axis, 1, length))
            total = total + (both * difference).mean()
        residual, weight = residual[:, ::2, ::2], weight[:, ::2, ::2]
    return total / scales
