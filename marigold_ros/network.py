"""The single-step network as one module: bytes in, relative depth out.

Training runs this module; engines run its folded copy (`folds`), so that what is trained is what runs. The arithmetic
is that of an end-to-end fine-tuned Marigold: one U-Net evaluation at the last timestep with a zero target latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


class SingleStepDepth(nn.Module):
    """RGB bytes to relative depth in [0, 1] that increases with distance.

    vae: maps (N, 3, H, W) in [-1, 1] to latents of H / 8, W / 8 and back.
    unet: takes [RGB latent | target latent] on the channel axis, gives the target latent's velocity.
    prompt: (1, tokens, width) constant embedding of the empty prompt.
    x0_scale: denoised latent = x0_scale * the U-Net's output, because the target latent is zero
        (-sqrt(1 - abar) for v-prediction; see `checkpoints.single_step`).
    timestep: the constant timestep.
    flip: the decoded map is largest where things are near (disparity-like).
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        prompt: Tensor,
        x0_scale: float,
        timestep: int = 999,
        flip: bool = False,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.unet = unet
        self.x0_scale = float(x0_scale)
        self.latent_scale = float(vae.config.scaling_factor)
        self.flip = bool(flip)
        self.register_buffer("prompt", prompt)
        self.register_buffer("timestep", torch.tensor([timestep]), persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, H, W) float32 in [0, 1], 0 nearest; H and W multiples of 32."""
        return to_relative(self.forward_normalised(normalised(rgb, self.unet.dtype)))

    def forward_normalised(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to (N, H, W), increasing with distance; [-1, 1] is meant but not enforced.

        The clamp is left to `forward`: it would take the gradient from everything that leaves the range.
        """
        return self.decode(self.predict(self.encode(image)))

    def encode(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to the scaled RGB latent (N, C, H / 8, W / 8): the mean, never a sample."""
        return self.vae.encode(image).latent_dist.mode() * self.latent_scale

    def predict(self, rgb_latent: Tensor) -> Tensor:
        """Scaled RGB latent to the scaled, denoised target latent."""
        inputs = torch.cat([rgb_latent, torch.zeros_like(rgb_latent)], dim=1)
        prompt = self.prompt.to(rgb_latent.dtype).expand(rgb_latent.shape[0], -1, -1)
        output = self.unet(inputs, self.timestep, prompt, return_dict=False)[0]
        return output * self.x0_scale

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled target latent to the map (N, H, W), increasing with distance, not clamped."""
        decoded = self.vae.decode(latent / self.latent_scale, return_dict=False)[0].mean(dim=1)
        return -decoded if self.flip else decoded


def normalised(rgb: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) in [-1, 1]."""
    return (rgb.float() * (1.0 / 127.5) - 1.0).to(dtype).permute(0, 3, 1, 2)


def to_relative(signed: Tensor) -> Tensor:
    """Maps meant for [-1, 1] to float32 in [0, 1]."""
    return (signed.float().clamp(-1.0, 1.0) + 1.0) * 0.5
