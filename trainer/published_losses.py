"""The losses of the published recipes: end-to-end fine-tuning, diffusion, consistency distillation, metric depth.

All compute in float32 (or float64 if given), also under autocast. A mask of nothing, or a target that is known nowhere,
gives zero with a live graph, so that every process of a training goes through the same backward pass. Where the mask is
not set, neither prediction nor target may do harm, be they NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

# As published: shorter predicted normals stay shorter than 1.
_SHORTEST = 1e-5
# A prediction whose deviation is below this many roundings of its size is constant.
_ROUNDINGS = 32


def affine_metres_loss(prediction: Tensor, depth_m: Tensor, mask: Tensor) -> Tensor:
    """Mean |s p + t - depth| in metres, with each image's own least-squares scale s and shift t (arXiv 2409.11355).

    prediction (N, H, W) in any unit; depth_m (N, H, W); mask (N, H, W) bool. As published the mean is over all pixels
    of the batch, so that images with more valid pixels, and farther ones, weigh more, and the gradient goes through s
    and t as well.
    """
    mask = mask & depth_m.isfinite()
    prediction, depth_m = _kept(prediction, mask), _kept(depth_m, mask)
    scale, shift = fit_affine(prediction, depth_m, mask)
    residual = scale[:, None, None] * prediction + shift[:, None, None] - depth_m
    return _mean(_kept(residual, mask).abs(), mask)


def fit_affine(prediction: Tensor, depth_m: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Per image, the (N,) scale and shift that minimise sum over the mask of (s p + t - depth)^2, in closed form.

    Both are 0 where the prediction is constant (the determinant of the normal equations is 0). They are computed about
    the means: the published sums of raw products lose half of float32's digits.
    """
    mask, p, d = mask.flatten(1), _kept(prediction, mask).flatten(1), _kept(depth_m, mask).flatten(1)
    count = mask.sum(dim=1).clamp(min=1)
    p_mean, d_mean = p.sum(dim=1) / count, d.sum(dim=1) / count
    p_off, d_off = _kept(p - p_mean[:, None], mask), _kept(d - d_mean[:, None], mask)
    variance = p_off.square().sum(dim=1)
    rounding = _ROUNDINGS * torch.finfo(p.dtype).eps
    solvable = variance > rounding**2 * p.square().sum(dim=1)
    # Divided by 1 where there is nothing to divide by: torch.where would pass the NaN of 0 / 0 on to the gradient.
    scale = (p_off * d_off).sum(dim=1) / variance.where(solvable, torch.ones_like(variance))
    zero = torch.zeros_like(scale)
    scale = scale.where(solvable, zero)
    return scale, (d_mean - scale * p_mean).where(solvable, zero)


def angular_loss(prediction: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """Mean angle in radians between (N, 3, H, W) vectors in one frame over mask (N, H, W) bool.

    Neither needs unit length. The published arccos of the scalar product has infinite slope at agreement: there its
    gradient is NaN, or zero behind a clamp, and float32 resolves no angle below 0.02 degrees. So the angle between
    unit vectors a and b is computed as 2 atan2(|a - b|, |a + b|) (W. Kahan), whose gradient has a length of about 1
    everywhere, and is 0 at agreement and at opposite vectors, where no direction is better. A prediction of zero
    length is at a right angle to everything.
    """
    mask = (mask & normals.isfinite().all(dim=1))[:, None]
    a, b = _unit(_kept(prediction, mask)), _unit(_kept(normals, mask))
    difference, total = (torch.linalg.vector_norm(side, dim=1, keepdim=True) for side in (a - b, a + b))
    return _mean(_kept(2.0 * torch.atan2(difference, total.where(mask, torch.ones_like(total))), mask), mask)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp(min=_SHORTEST)


def velocity_loss(v: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of latents (N, C, h, w) over the elements that `mask`, (N, 1, h, w) bool, keeps; None: all."""
    mask = _everywhere(v) if mask is None else mask
    return _mean(_kept(_precise(v) - _precise(target), mask).square(), mask)


def pseudo_huber(a: Tensor, b: Tensor, c: float = 0.001, mask: Tensor | None = None) -> Tensor:
    """Mean sqrt((a - b)^2 + c^2) - c of latents (N, C, h, w) over `mask` as in `velocity_loss` (arXiv 2310.14189)."""
    mask = _everywhere(a) if mask is None else mask
    square = _kept(_precise(a) - _precise(b), mask).square()
    # The same as the difference of the root and c, which would lose its digits where a and b agree.
    return _mean(square / ((square + c**2).sqrt() + c), mask)


def log_metric_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of (N, H, W) maps of normalised log depth (`targets.log_metric`) over mask (N, H, W) bool."""
    mask = mask & target.isfinite()
    return _mean(_kept(_precise(prediction) - _precise(target), mask).abs(), mask)


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _kept(values: Tensor, mask: Tensor) -> Tensor:
    """`values` in full precision where `mask` is set, else 0, with no gradient."""
    values = _precise(values)
    return values.where(mask, torch.zeros_like(values))


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values that are 0 outside of `mask`, which is expanded to their shape; 0 for a mask of nothing."""
    return values.sum() / mask.expand_as(values).sum().clamp(min=1)


def _everywhere(values: Tensor) -> Tensor:
    return torch.ones((), dtype=torch.bool, device=values.device)
