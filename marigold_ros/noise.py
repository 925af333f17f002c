"""The kinds of noise that networks of the family are trained with, and that stand for a target latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from marigold_ros.family import GAUSSIAN, PYRAMID

PYRAMID_STRENGTH = 0.9
_PYRAMID_LEVELS = 10


def target_noise(kind: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """What stands for the target latents of `shape` (N, C, h, w) in one step: one of `family.TARGET_INPUTS`.

    float32 on the CPU. Zeros draw nothing from `generator`.
    """
    if kind == GAUSSIAN:
        return gaussian_noise(shape, generator)
    if kind == PYRAMID:
        return multi_resolution_noise(shape, torch.full((shape[0],), PYRAMID_STRENGTH), generator)
    return torch.zeros(tuple(shape))


def gaussian_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal noise, float32, drawn on the CPU so that every device trains with the same."""
    return torch.randn(tuple(shape), generator=generator)


def multi_resolution_noise(shape: Sequence[int], strength: Tensor, generator: torch.Generator) -> Tensor:
    """Pyramid noise of `shape` (N, C, h, w), float32 on the CPU, as Marigold trains with (arXiv 2312.02145).

    Level i = 0..9 adds strength^i times noise of a smaller size, bilinearly enlarged; the size is divided by r^i with r
    drawn anew from U(2, 4) at each level, so level 0 is a second field of full size with weight 1. The last level is
    the first with a side of one pixel. strength: (N,) from 0 to 1.

    As published, the sum is divided by the standard deviation of the whole tensor: of a batch with different strengths
    the average variance is 1, not that of each sample, and a sample's noise depends on which others it comes with.
    """
    images, channels, *size = shape
    weight = strength.cpu().float().view(-1, 1, 1, 1)
    noise = gaussian_noise(shape, generator)
    sides = list(size)
    for level in range(_PYRAMID_LEVELS):
        ratio = float(torch.rand(1, generator=generator)) * 2.0 + 2.0
        sides = [max(1, int(side / ratio**level)) for side in sides]
        coarse = gaussian_noise((images, channels, *sides), generator)
        noise += functional.interpolate(coarse, size=tuple(size), mode="bilinear") * weight**level
        if 1 in sides:
            break
    return noise / noise.std()
