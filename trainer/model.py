"""What is trained: the modules of one checkpoint, and the constants around them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn

from marigold_ros.family import single_step
from marigold_ros.network import SingleStepNetwork, depth_head, normals_head


@dataclass
class Model:
    """unet, vae, prompt (1, tokens, width), scheduler: as in the checkpoint's folder; tiny: a tiny VAE instead of the
    own one; task, space: see recipe.py; size: working size (width, height), pixels; source: the folder that tokenizer
    and text encoder can be copied from.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    prompt: Tensor
    scheduler: Mapping[str, Any]
    task: str
    space: str
    size: tuple[int, int]
    tiny: AutoencoderTiny | None = None
    source: Path | None = None

    def part(self, name: str) -> nn.Module:
        """'unet', 'encoder' or 'decoder': what a recipe's stage can train."""
        if name == "unet":
            return self.unet
        if self.tiny is not None:
            return getattr(self.tiny, name)
        last = self.vae.quant_conv if name == "encoder" else self.vae.post_quant_conv
        return nn.ModuleList([getattr(self.vae, name), last])

    def to(self, device: torch.device) -> None:
        """Move all modules."""
        for module in (self.unet, self.vae, self.tiny):
            if module is not None:
                module.to(device)
        self.prompt = self.prompt.to(device)

    @property
    def latent_channels(self) -> int:
        """Channels of one image's latent."""
        return self.vae.config.latent_channels

    def encode(self, picture: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to its scaled latent (N, C, H / 8, W / 8): the mean, never a sample."""
        if self.tiny is not None:
            return self.tiny.encoder(picture)
        return self.vae.encode(picture).latent_dist.mode() * self.vae.config.scaling_factor

    def network(self) -> SingleStepNetwork:
        """The single-step network that the robot runs, on these very modules."""
        x0_scale, timestep = single_step(dict(self.scheduler), "the network being trained")
        head = normals_head() if self.task == "normals" else depth_head(self.disparity)
        return SingleStepNetwork(
            self.vae,
            self.unet,
            self.prompt,
            x0_scale,
            head.to(self.prompt.device),
            timestep,
            self.tiny,
            self.tiny is not None,
        )

    @property
    def disparity(self) -> bool:
        """Whether the decoded map is largest for near things."""
        return self.space == "inverse_depth"


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy that never learns."""
    return copy.deepcopy(module).requires_grad_(False)
