"""The VAE alone: it learns to reconstruct images and depth maps, and what scale its latents have."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from marigold_ros.metric import SPACES
from trainer.data import Batch
from trainer.losses import full_range, make_target
from trainer.objectives.base import Losses, Objective, image_of
from trainer.recipe import RelativeLoss

# Batches from which the scale of the latents is measured.
_MEASURED = 8


class AutoencoderObjective(Objective):
    """L1 and L2 of the reconstruction, and a little of the divergence from a standard normal distribution."""

    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """See `Objective`."""
        knobs = self.stage.objective
        picture = mixed(batch, knobs.image_share, knobs.relative)
        posterior = self.model.vae.encode(picture).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        decoded = self.model.vae.decode(posterior.mode() + posterior.std * noise, return_dict=False)[0]
        error = decoded.float() - picture
        losses = {"l1": error.abs().mean(), "l2": error.square().mean()}
        # A sum over a latent; per value it does not depend on the image's size.
        losses["kl"] = posterior.kl().float().mean() / posterior.mean[0].numel()
        losses["loss"] = knobs.l1 * losses["l1"] + knobs.l2 * losses["l2"] + knobs.kl * losses["kl"]
        return losses

    @torch.no_grad()
    def preview(self, batch: Batch) -> Tensor:
        """The pictures as they come back."""
        knobs = self.stage.objective
        vae = self.model.vae
        picture = mixed(batch, knobs.image_share, knobs.relative)
        return vae.decode(vae.encode(picture).latent_dist.mode(), return_dict=False)[0].float()

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """Also scale the latents to a standard deviation of one, as the family's latents have."""
        super().finish(batches)
        knobs = self.stage.objective
        latents = [
            self.model.vae.encode(mixed(batch, knobs.image_share, knobs.relative)).latent_dist.mode().float().flatten()
            for batch in itertools.islice(batches, _MEASURED)
        ]
        self.model.vae.register_to_config(scaling_factor=round(1.0 / float(torch.cat(latents).std()), 5))


def mixed(batch: Batch, image_share: float, knobs: RelativeLoss) -> Tensor:
    """(N, 3, H, W) some of the batch as images, the others as depth maps in every space: one VAE serves them all."""
    depth_m = batch.maps["depth_m"]
    images = round(len(depth_m) * image_share)
    groups = [depth_m[images + offset :: len(SPACES)] for offset in range(len(SPACES))]
    maps = [depth_picture(group, space, knobs) for group, space in zip(groups, SPACES, strict=True) if len(group)]
    return torch.cat([image_of(batch)[:images], *maps])


def depth_picture(depth_m: Tensor, space: str, knobs: RelativeLoss) -> Tensor:
    """(N, 3, H, W) in [-1, 1] of depth (N, H, W) in metres in `space`; of inverse depth, near is bright."""
    picture = full_range(make_target(depth_m, space, knobs))
    return (-picture if space == "inverse_depth" else picture)[:, None].expand(-1, 3, -1, -1).contiguous()
