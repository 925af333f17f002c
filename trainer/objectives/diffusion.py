"""Marigold's own training: the velocity of a noisy target latent at a random timestep (arXiv 2312.02145)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marigold_ros.noise import gaussian_noise, multi_resolution_noise
from trainer.data import Batch
from trainer.model import Model
from trainer.noise import Schedule, annealed_strength
from trainer.objectives.base import Losses, Objective, image_of
from trainer.published_losses import velocity_loss
from trainer.recipe import Recipe, Stage
from trainer.targets import latent_mask, picture_of, pictures_of, quantile_normalised


class DiffusionObjective(Objective):
    """Mean squared error of the velocity, over the latent cells all of whose pixels are known."""

    def __init__(self, model: Model, recipe: Recipe, stage: Stage) -> None:
        super().__init__(model, recipe, stage)
        self.schedule = Schedule(model.scheduler)

    def place(self, device: torch.device) -> None:
        """See `Objective`."""
        super().place(device)
        self.schedule.to(device)

    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """See `Objective`."""
        rgb_latent, latent, mask = self.latents(batch)
        timestep = torch.randint(len(self.schedule), (len(latent),), generator=generator)
        noise = self._noise(latent, timestep, generator)
        timestep = timestep.to(latent.device)
        noisy = self.schedule.noisy(latent, noise, timestep)
        velocity = self.velocity(self.model.unet, rgb_latent, noisy, timestep)
        return {"loss": velocity_loss(velocity, self.schedule.velocity(latent, noise, timestep), mask)}

    @torch.no_grad()
    def latents(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The image's latent (N, C, h, w), those of the targets (N, P C, h, w), and which cells count (N, 1, h, w)."""
        pictures, known = targets(self.recipe.task, batch)
        rgb_latent = self.encode(image_of(batch)).float()
        latent = torch.cat([self.encode(picture).float() for picture in pictures], dim=1)
        factor = known.shape[-1] // latent.shape[-1]
        mask = latent_mask(known if self.stage.objective.mask else torch.ones_like(known), factor)
        return rgb_latent, latent, mask

    def velocity(self, unet: nn.Module, rgb_latent: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        """What `unet` says of noisy target latents (N, P C, h, w) at timesteps (N,)."""
        prompt = self.model.prompt.expand(len(noisy), -1, -1)
        return unet(torch.cat([rgb_latent, noisy], dim=1), timestep, prompt, return_dict=False)[0].float()

    def _noise(self, latent: Tensor, timestep: Tensor, generator: torch.Generator) -> Tensor:
        knobs = self.stage.objective
        if knobs.noise == "gaussian":
            noise = gaussian_noise(latent.shape, generator)
        else:
            strength = torch.full((len(latent),), knobs.strength)
            if knobs.noise == "annealed":
                strength = annealed_strength(timestep, len(self.schedule), knobs.strength)
            noise = multi_resolution_noise(latent.shape, strength, generator)
        return noise.to(latent.device)

    @torch.no_grad()
    def preview(self, batch: Batch) -> Tensor:
        """The decoded answer of one step from pure noise."""
        rgb_latent, latent, _ = self.latents(batch)
        noise = gaussian_noise(latent.shape, torch.Generator().manual_seed(0)).to(latent.device)
        last = torch.full((len(latent),), len(self.schedule) - 1, device=latent.device)
        found = self.schedule.denoised(noise, self.velocity(self.model.unet, rgb_latent, noise, last), last)
        first = found[:, : self.model.latent_channels] / self.model.vae.config.scaling_factor
        return self.model.vae.decode(first, return_dict=False)[0].float()


def targets(task: str, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
    """The pictures (N, 3, H, W) in [-1, 1] that the network is to draw, and where all of them are known (N, H, W)."""
    if task == "depth":
        depth_m = batch.maps["depth_m"]
        known = torch.isfinite(depth_m) & (depth_m > 0)
        return (picture_of("depth", quantile_normalised(depth_m, known)),), known
    if task == "normals":
        return (picture_of("normals", batch.maps["normals"]),), torch.isfinite(batch.maps["normals"]).all(dim=1)
    known = torch.stack([torch.isfinite(values).all(dim=1) for values in batch.maps.values()]).all(dim=0)
    return pictures_of(task, batch.maps), known
