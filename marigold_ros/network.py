"""The single-step network as one module: bytes in, relative depth or surface normals out.

Training runs this module; engines run its folded copy (`folds`), so that what is trained is what runs. The arithmetic
is that of an end-to-end fine-tuned Marigold: one U-Net evaluation at the last timestep with a zero target latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from marigold_ros.normals_frame import optical_factors

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel


class SingleStepNetwork(nn.Module):
    """RGB bytes to relative depth in [0, 1] that increases with distance, or to unit normals in the optical frame.

    vae: maps (N, 3, H, W) in [-1, 1] to latents of H / 8, W / 8 and back.
    unet: takes [RGB latent | target latent] on the channel axis, gives the target latent's velocity.
    prompt: (1, tokens, width) constant embedding of the empty prompt.
    x0_scale: denoised latent = x0_scale * the U-Net's output, because the target latent is zero
        (-sqrt(1 - abar) for v-prediction; see `family.single_step`).
    head: (1 or 3, 3) what becomes of the decoder's three channels, `depth_head` or `normals_head`.
    timestep: the constant timestep.
    tiny: a tiny VAE (TAESD's kind) that decodes instead of `vae`, and encodes as well if `tiny_encodes`; its latents
        are scaled already.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        prompt: Tensor,
        x0_scale: float,
        head: Tensor,
        timestep: int = 999,
        tiny: AutoencoderTiny | None = None,
        tiny_encodes: bool = False,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.tiny = tiny
        self.tiny_encodes = tiny is not None and tiny_encodes
        self.unet = unet
        self.x0_scale = float(x0_scale)
        self.latent_scale = float(vae.config.scaling_factor)
        self.register_buffer("prompt", prompt)
        self.register_buffer("head", head, persistent=False)
        self.register_buffer("timestep", torch.tensor([timestep]), persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """(N, H, W, 3) uint8, H and W multiples of 32, to what `answer` gives."""
        return answer(self.forward_normalised(normalised(rgb, self.unet.dtype)))

    def forward_normalised(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to (N, 1 or 3, H, W); [-1, 1] is meant but not enforced.

        The clamp is left to `forward`: it would take the gradient from everything that leaves the range.
        """
        return self.decode(self.predict(self.encode(image)))

    def encode(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to the scaled RGB latent (N, C, H / 8, W / 8): the mean, never a sample."""
        if self.tiny_encodes:
            return self.tiny.encoder(image)
        return self.vae.encode(image).latent_dist.mode() * self.latent_scale

    def predict(self, rgb_latent: Tensor) -> Tensor:
        """Scaled RGB latent to the scaled, denoised target latent."""
        inputs = torch.cat([rgb_latent, torch.zeros_like(rgb_latent)], dim=1)
        prompt = self.prompt.to(rgb_latent.dtype).expand(rgb_latent.shape[0], -1, -1)
        output = self.unet(inputs, self.timestep, prompt, return_dict=False)[0]
        return output * self.x0_scale

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled target latent to (N, 1 or 3, H, W): depth that increases with distance, or normals; not clamped."""
        if self.tiny is not None:
            decoded = self.tiny.decoder(latent)
        else:
            decoded = self.vae.decode(latent / self.latent_scale, return_dict=False)[0]
        return torch.einsum("oi,nihw->nohw", self.head.to(decoded.dtype), decoded)


def depth_head(disparity: bool) -> Tensor:
    """Depth is the mean of the decoded channels; of a `disparity` network, whose map is largest near, the negative."""
    return torch.full((1, 3), -1 / 3 if disparity else 1 / 3, dtype=torch.float64)


def normals_head(x_left: bool = False) -> Tensor:
    """From the frame that is drawn (y up, z to the viewer, x right or left) to the optical one, see `normals_frame`."""
    return torch.diag(torch.tensor(optical_factors(x_left), dtype=torch.float64))


def normalised(rgb: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) in [-1, 1]."""
    return (rgb.float() * (1.0 / 127.5) - 1.0).to(dtype).permute(0, 3, 1, 2)


def answer(signed: Tensor) -> Tensor:
    """What the network gives for its decoded maps, by their number.

    (N, 1, H, W) to relative depth (N, H, W) float32 in [0, 1], 0 nearest; (N, 3, H, W) to unit normals (N, H, W, 3)
    float32 in the optical frame.
    """
    signed = signed.float().clamp(-1.0, 1.0)
    if signed.shape[1] == 1:
        return (signed.squeeze(1) + 1.0) * 0.5
    # As diffusers' pipeline: a vector shorter than this stays short.
    length = torch.linalg.vector_norm(signed, dim=1, keepdim=True).clamp(min=1e-6)
    return (signed / length).permute(0, 2, 3, 1)
