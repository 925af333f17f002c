"""The `nano` network: the same modules as the large Marigold checkpoints, in small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, UNet2DConditionModel

from marigold_ros.config import Unusable
from marigold_ros.family import DIFFUSION, E2E, LCM
from marigold_ros.sd2 import PROMPT_TOKENS, SCHEDULER

CHANNELS_PER_HEAD = 32


# Timesteps that a distilled network knows, and the factor of its boundary condition, where nothing else is said: those
# of the published networks.
LCM_SETTINGS: Mapping[str, Any] = {"original_inference_steps": 50, "timestep_scaling": 10.0}


def build_scheduler(protocol: str = E2E, base: Mapping[str, Any] = SCHEDULER) -> DDIMScheduler | LCMScheduler:
    """The scheduler that a network of `protocol` is trained with and its checkpoint folder carries.

    base: the configuration that the network starts from; its betas and prediction type stay, and what it says of a
    distillation (`LCM_SETTINGS`). Timesteps are trailing; networks that start from noise are trained to a signal of
    zero, end-to-end fine-tuned ones are not.
    """
    if protocol not in (E2E, DIFFUSION, LCM):
        raise Unusable(f"protocol {protocol!r}: must be {E2E!r}, {DIFFUSION!r} or {LCM!r}")
    settings = {key: base[key] for key in SCHEDULER if key in base} | {
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": protocol != E2E,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }
    if protocol == LCM:
        return LCMScheduler(**settings, **{key: base.get(key, value) for key, value in LCM_SETTINGS.items()})
    return DDIMScheduler(**settings)


def build_vae(channels: tuple[int, ...] = (8, 24, 48, 64), latent_channels: int = 8, groups: int = 8) -> AutoencoderKL:
    """A small convolutional VAE; it halves the size len(channels) - 1 times."""
    levels = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=groups,
        # Attention over all latent pixels grows with the fourth power of the image's side; robots cannot pay that.
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=1.0,
    )


def build_unet(
    channels: tuple[int, ...] = (64, 128, 160), latent_channels: int = 8, prompt_width: int = 64, targets: int = 1
) -> UNet2DConditionModel:
    """A small U-Net of Marigold's kind: [RGB latent | target latents] in, the targets' velocity out."""
    attention_levels = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=48,
        in_channels=(targets + 1) * latent_channels,
        out_channels=targets * latent_channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * attention_levels),
        up_block_types=(*("CrossAttnUpBlock2D",) * attention_levels, "UpBlock2D"),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        attention_head_dim=[c // CHANNELS_PER_HEAD for c in channels],
        cross_attention_dim=prompt_width,
        use_linear_projection=True,
        norm_num_groups=32,
    )


def constant_prompt(width: int = 64) -> torch.Tensor:
    """(1, 2, width) the prompt embedding: constant, so any fixed numbers of unit size serve."""
    return torch.randn(1, PROMPT_TOKENS, width, generator=torch.Generator().manual_seed(0))
