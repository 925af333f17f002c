"""The training step as the published scripts write it, on diffusers' own modules: what ours is measured against.

Not to train with. It is straightforward on purpose: the VAE as it comes (its weights frozen, as published), diffusers'
schedulers and gradient checkpointing, torch's AdamW as it comes. Targets, multi-resolution noise and losses are the
trainer's own functions, so that both steps compute the same numbers.
"""

from __future__ import annotations

import copy

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from marigold_ros.config import Unusable
from marigold_ros.noise import PYRAMID_STRENGTH, multi_resolution_noise
from trainer.data import Batch
from trainer.losses import depth_loss, make_target
from trainer.model import Model
from trainer.noise import annealed_strength
from trainer.objectives.base import FROZEN_TYPES, image_of
from trainer.objectives.diffusion import targets
from trainer.objectives.end_to_end import detail_loss
from trainer.published_losses import affine_metres_loss, angular_loss, log_metric_loss, pseudo_huber, velocity_loss
from trainer.recipe import Consistency, Diffusion, EndToEnd, Recipe, Stage
from trainer.targets import clamped_to_quantiles, latent_mask, log_metric

KINDS = (Consistency, Diffusion, EndToEnd)


class PlainStep:
    """One step of the optimiser after one pass.

    Raises `Unusable` for a stage that nobody has published a script for.
    """

    def __init__(self, model: Model, recipe: Recipe, stage: Stage, device: torch.device) -> None:
        if not isinstance(stage.objective, KINDS):
            raise Unusable(
                f"stage {stage.name!r}: objective {stage.objective.KIND!r} has no published script to compare with; "
                f"those that have: {', '.join(kind.KIND for kind in KINDS)}"
            )
        self.model, self.recipe, self.stage = model, recipe, stage
        model.to(device)
        for module in (model.unet, model.vae, model.tiny):
            if module is not None:
                module.requires_grad_(False)
        if stage.train == ("unet",):
            model.vae.to(FROZEN_TYPES[recipe.precision])  # as the published scripts do in mixed precision
        self.trained = nn.ModuleList(model.part(name) for name in stage.train).requires_grad_(True).train()
        if recipe.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        self.scheduler = DDPMScheduler.from_config(dict(model.scheduler))
        self.alphas = self.scheduler.alphas_cumprod.to(device)
        if isinstance(stage.objective, Consistency):
            self.teacher, self.target = (copy.deepcopy(model.unet).requires_grad_(False) for _ in range(2))
        knobs = stage.optimiser
        self.adam = torch.optim.AdamW(
            self.trained.parameters(), lr=knobs.lr, betas=knobs.betas, weight_decay=knobs.weight_decay
        )

    def learn(self, loss: Tensor) -> None:
        """What follows from the loss."""
        loss.backward()
        if self.stage.optimiser.clip_norm:
            nn.utils.clip_grad_norm_(self.trained.parameters(), self.stage.optimiser.clip_norm)
        self.adam.step()
        self.adam.zero_grad()
        if isinstance(self.stage.objective, Consistency):
            self._update_target()

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of a batch. Whatever is drawn comes from `generator`."""
        if isinstance(self.stage.objective, EndToEnd):
            return self._end_to_end(batch, generator)
        if isinstance(self.stage.objective, Consistency):
            return self._consistency(batch, generator)
        return self._diffusion(batch, generator)

    # End to end (arXiv 2409.11355)

    def _end_to_end(self, batch: Batch, generator: torch.Generator) -> Tensor:
        rgb_latent = self._encode(image_of(batch))
        noisy = self._target_input(rgb_latent, generator)
        timesteps = torch.full((len(noisy),), self.scheduler.config.num_train_timesteps - 1, device=noisy.device)
        velocity = self._unet(self.model.unet, rgb_latent, noisy, timesteps)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        decoded = self._decode(alpha**0.5 * noisy - (1 - alpha) ** 0.5 * velocity)
        return self._loss(decoded.float(), batch)

    def _target_input(self, like: Tensor, generator: torch.Generator) -> Tensor:
        kind = self.stage.objective.target_input
        if kind == "zeros":
            return torch.zeros_like(like)
        if kind == "gaussian":
            return torch.randn(like.shape, generator=generator).to(like)
        return multi_resolution_noise(like.shape, torch.full((len(like),), PYRAMID_STRENGTH), generator).to(like)

    def _loss(self, decoded: Tensor, batch: Batch) -> Tensor:
        knobs = self.stage.objective
        if knobs.loss == "angular":
            normals = batch.maps["normals"] * decoded.new_tensor((1.0, -1.0, -1.0)).view(3, 1, 1)
            return angular_loss(decoded, normals.nan_to_num(0.0), normals.isfinite().all(dim=1))
        depth_m, drawn = batch.maps["depth_m"], decoded.mean(dim=1)
        known = torch.isfinite(depth_m) & (depth_m > 0)
        # Networks that are affine in inverse depth draw near things bright.
        signed = -drawn if self.model.disparity else drawn
        if knobs.loss == "affine_metres":
            return affine_metres_loss(signed.clamp(-1, 1), clamped_to_quantiles(depth_m, known), known)
        if knobs.loss == "log_metric":
            metric = self.recipe.metric
            canonical_m = depth_m * (metric.canonical_focal_px / batch.focal_px)[:, None, None]
            return log_metric_loss(signed, log_metric(canonical_m, metric.d_min_m, metric.d_max_m), depth_m > 0)
        total = depth_loss(signed, make_target(depth_m, self.recipe.space, knobs.relative), knobs.relative)[0]
        if knobs.prior:
            total = total + knobs.prior * detail_loss(signed, batch.maps["prior"], knobs.relative.gradient_scales)
        return total

    # Diffusion (arXiv 2312.02145) and its distillation (arXiv 2310.04378)

    def _diffusion(self, batch: Batch, generator: torch.Generator) -> Tensor:
        rgb_latent, latent, mask = self._latents(batch)
        steps = self.scheduler.config.num_train_timesteps
        timesteps = torch.randint(steps, (len(latent),), generator=generator).to(latent.device)
        noise = self._noise(latent, timesteps, generator)
        noisy = self.scheduler.add_noise(latent, noise, timesteps)
        velocity = self._unet(self.model.unet, rgb_latent, noisy, timesteps)
        return velocity_loss(velocity, self.scheduler.get_velocity(latent, noise, timesteps), mask)

    def _noise(self, latent: Tensor, timesteps: Tensor, generator: torch.Generator) -> Tensor:
        knobs = self.stage.objective
        if knobs.noise == "gaussian":
            return torch.randn(latent.shape, generator=generator).to(latent)
        strength = torch.full((len(latent),), knobs.strength)
        if knobs.noise == "annealed":
            strength = annealed_strength(timesteps, self.scheduler.config.num_train_timesteps, knobs.strength)
        return multi_resolution_noise(latent.shape, strength, generator).to(latent)

    def _latents(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        pictures, known = targets(self.recipe.task, batch)
        rgb_latent = self._encode(image_of(batch)).float()
        latent = torch.cat([self._encode(picture).float() for picture in pictures], dim=1)
        factor = known.shape[-1] // latent.shape[-1]
        mask = latent_mask(known if self.stage.objective.mask else torch.ones_like(known), factor)
        return rgb_latent, latent, mask

    def _consistency(self, batch: Batch, generator: torch.Generator) -> Tensor:
        knobs = self.stage.objective
        rgb_latent, latent, mask = self._latents(batch)
        stride = self.scheduler.config.num_train_timesteps // knobs.timesteps
        index = torch.randint(1, knobs.timesteps + 1, (len(latent),), generator=generator).to(latent.device)
        timesteps = index * stride - 1
        before = (timesteps - stride).clamp(min=0)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        noisy = self.scheduler.add_noise(latent, noise, timesteps)
        found = self._consistent(self.model.unet, rgb_latent, noisy, timesteps)
        with torch.no_grad():
            velocity = self._unet(self.teacher, rgb_latent, noisy, timesteps)
            alpha, alpha_before = (self.alphas[t].view(-1, 1, 1, 1) for t in (timesteps, before))
            x0 = alpha**0.5 * noisy - (1 - alpha) ** 0.5 * velocity
            epsilon = alpha**0.5 * velocity + (1 - alpha) ** 0.5 * noisy
            earlier = alpha_before**0.5 * x0 + (1 - alpha_before) ** 0.5 * epsilon
            wanted = self._consistent(self.target, rgb_latent, earlier, before)
        return pseudo_huber(found, wanted, knobs.huber, mask)

    def _consistent(self, unet: nn.Module, rgb_latent: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        knobs = self.stage.objective
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        x0 = alpha**0.5 * noisy - (1 - alpha) ** 0.5 * self._unet(unet, rgb_latent, noisy, timesteps)
        scaled = timesteps.view(-1, 1, 1, 1) * knobs.timestep_scaling
        skip = knobs.sigma_data**2 / (scaled**2 + knobs.sigma_data**2)
        return skip * noisy + scaled / (scaled**2 + knobs.sigma_data**2) ** 0.5 * x0

    @torch.no_grad()
    def _update_target(self) -> None:
        decay = self.stage.objective.ema_target
        for target, online in zip(self.target.parameters(), self.model.unet.parameters(), strict=True):
            target.mul_(decay).add_(online, alpha=1 - decay)

    # The modules

    def _encode(self, picture: Tensor) -> Tensor:
        if self.model.tiny is not None:
            return self.model.tiny.encode(picture.to(self.model.tiny.dtype)).latents
        return (
            self.model.vae.encode(picture.to(self.model.vae.dtype)).latent_dist.mode()
            * self.model.vae.config.scaling_factor
        )

    def _decode(self, latent: Tensor) -> Tensor:
        if self.model.tiny is not None:
            return self.model.tiny.decode(latent).sample
        return self.model.vae.decode((latent / self.model.vae.config.scaling_factor).to(self.model.vae.dtype)).sample

    def _unet(self, unet: nn.Module, rgb_latent: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        prompt = self.model.prompt.to(noisy.dtype).repeat(len(noisy), 1, 1)
        return unet(torch.cat([rgb_latent, noisy], dim=1), timesteps, prompt).sample.float()
