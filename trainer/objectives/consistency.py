"""Consistency distillation of a diffusion network (LCM, arXiv 2310.04378): few steps instead of many.

The network learns to give the same clean latent at both ends of one step of its teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marigold_ros.config import Unusable
from marigold_ros.noise import gaussian_noise
from trainer.data import Batch
from trainer.model import Model, frozen_copy
from trainer.objectives.base import Losses
from trainer.objectives.diffusion import DiffusionObjective
from trainer.published_losses import pseudo_huber
from trainer.recipe import Recipe, Stage


class ConsistencyObjective(DiffusionObjective):
    """Pseudo-Huber distance between the learner at t and its moving average at t - k, one DDIM step of the teacher on.

    The teacher is the network as it was before the stage.
    """

    def __init__(self, model: Model, recipe: Recipe, stage: Stage) -> None:
        super().__init__(model, recipe, stage)
        if len(self.schedule) % stage.objective.timesteps:
            raise Unusable(
                f"stage {stage.name!r}: objective.timesteps={stage.objective.timesteps}: must divide the schedule's "
                f"{len(self.schedule)}, or its last timestep, which one step starts from, is never trained"
            )
        self._teacher = (frozen_copy(model.unet),)

    def _teachers(self) -> tuple[nn.Module, ...]:
        """See `Objective`."""
        return self._teacher

    def average_decay(self, step: int) -> float:
        """Decay of the network that is to be agreed with, and which ships."""
        return self.stage.objective.ema_target

    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """See `Objective`."""
        knobs = self.stage.objective
        rgb_latent, latent, mask = self.latents(batch)
        stride = len(self.schedule) // knobs.timesteps
        chosen = torch.randint(1, knobs.timesteps + 1, (len(latent),), generator=generator)
        timestep = (chosen * stride - 1).to(latent.device)
        earlier = (timestep - stride).clamp_min(0)
        noisy = self.schedule.noisy(latent, gaussian_noise(latent.shape, generator).to(latent.device), timestep)
        found = self._clean(self.model.unet, rgb_latent, noisy, timestep)
        with torch.no_grad():
            velocity = self.velocity(self._teacher[0], rgb_latent, noisy, timestep)
            before = self.schedule.ddim_step(noisy, velocity, timestep, earlier)
            wanted = self._clean(self.average["unet"], rgb_latent, before, earlier)
        return {"loss": pseudo_huber(found, wanted, knobs.huber, mask)}

    def _clean(self, unet: nn.Module, rgb_latent: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        """f(z, t) = c_skip z + c_out x0, which is z itself at t = 0."""
        knobs = self.stage.objective
        x0 = self.schedule.denoised(noisy, self.velocity(unet, rgb_latent, noisy, timestep), timestep)
        scaled = timestep.float().view(-1, 1, 1, 1) * knobs.timestep_scaling
        variance = scaled.square() + knobs.sigma_data**2
        return noisy * (knobs.sigma_data**2 / variance) + x0 * (scaled / variance.sqrt())
