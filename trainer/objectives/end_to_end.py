"""End-to-end fine-tuning: one step from the last timestep, decoded, against the truth (arXiv 2409.11355)."""

from __future__ import annotations

import torch
from torch import Tensor

from marigold_ros.family import ZEROS
from marigold_ros.network import SingleStepNetwork
from marigold_ros.noise import target_noise
from trainer.data import Batch
from trainer.frozen import frozen_decoder
from trainer.losses import Target, depth_loss, fit_scale_shift, gradient_loss, make_target, spread
from trainer.model import Model
from trainer.noise import Schedule
from trainer.objectives.base import Losses, Objective, image_of
from trainer.published_losses import affine_metres_loss, angular_loss, fit_affine, log_metric_loss
from trainer.recipe import Recipe, Stage
from trainer.targets import clamped_to_quantiles, log_metric


class EndToEndObjective(Objective):
    """The loss is that of the decoded map; the gradient flows through the decoder, which may be frozen."""

    def __init__(self, model: Model, recipe: Recipe, stage: Stage) -> None:
        super().__init__(model, recipe, stage)
        self._network = (model.network(),)
        self._schedule = Schedule(model.scheduler)
        if "decoder" not in stage.train and model.tiny is None:
            self.frozen["decoder"] = frozen_decoder(model.network())

    def place(self, device: torch.device) -> None:
        """See `Objective`."""
        super().place(device)
        self._schedule.to(device)

    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """See `Objective`."""
        decoded = self.decoded(batch, generator).float()
        return self._loss(decoded, batch)

    def decoded(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The decoded map (N, 1 or 3, H, W) of a batch's pictures, depth increasing with distance; not clamped."""
        network = self._network[0]
        rgb_latent = self.encode(image_of(batch))
        latent = denoised(network, self._schedule, rgb_latent, self.stage.objective.target_input, generator)
        if "decoder" in self.frozen:
            return self.frozen["decoder"](latent / network.latent_scale)
        return network.decode(latent)

    def _loss(self, decoded: Tensor, batch: Batch) -> Losses:
        kind = self.stage.objective.loss
        if kind == "angular":
            normals = batch.maps["normals"]
            known = torch.isfinite(normals).all(dim=1)
            return {"loss": angular_loss(decoded, normals.nan_to_num(0.0), known)}
        depth_m, signed = batch.maps["depth_m"], decoded[:, 0]
        known = torch.isfinite(depth_m) & (depth_m > 0)
        if kind == "affine_metres":
            return self._affine_metres(signed.clamp(-1, 1), clamped_to_quantiles(depth_m, known), known)
        if kind == "log_metric":
            # The sky and what is too far to be told are known to lie at the far end, and nothing else would teach it.
            return {"loss": log_metric_loss(signed, self._canonical(depth_m, batch), depth_m > 0)}
        return self._relative(signed, batch)

    def _affine_metres(self, signed: Tensor, depth_m: Tensor, known: Tensor) -> Losses:
        """The published loss does not mind which way round a network draws depth; `mirrored` tells it.

        It is the share of images in which far would be near: about 1 in a network that no node can use.
        """
        with torch.no_grad():
            scale, _ = fit_affine(signed, depth_m, known)
        return {"loss": affine_metres_loss(signed, depth_m, known), "mirrored": (scale < 0).float().mean()}

    def _canonical(self, depth_m: Tensor, batch: Batch) -> Tensor:
        """(N, H, W) in [-1, 1]: ln of the depth that a camera of the canonical focal length would have to see.

        d_c = d f_c / f: the label transform of Metric3D (arXiv 2307.10984).
        """
        metric = self.recipe.metric
        scale = metric.canonical_focal_px / batch.focal_px
        return log_metric(depth_m * scale[:, None, None], metric.d_min_m, metric.d_max_m)

    def _relative(self, signed: Tensor, batch: Batch) -> Losses:
        knobs = self.stage.objective
        target = make_target(batch.maps["depth_m"], self.recipe.space, knobs.relative)
        total, parts = depth_loss(signed, target, knobs.relative)
        if knobs.prior:
            parts["prior"] = detail_loss(signed, batch.maps["prior"], knobs.relative.gradient_scales)
            total = total + knobs.prior * parts["prior"]
        return {"loss": total, **parts}

    @torch.no_grad()
    def preview(self, batch: Batch) -> Tensor:
        """The decoded maps."""
        decoded = self.decoded(batch, torch.Generator().manual_seed(0)).float()
        return decoded.expand(-1, 3, -1, -1)


def denoised(
    network: SingleStepNetwork, schedule: Schedule, rgb_latent: Tensor, target_input: str, generator: torch.Generator
) -> Tensor:
    """Scaled RGB latent (N, C, h, w) to the scaled, denoised target latent, from what `target_input` (see
    `recipe.EndToEnd`) draws in its place from `generator`.
    """
    if target_input == ZEROS:
        return network.predict(rgb_latent)
    noise = target_noise(target_input, rgb_latent.shape, generator).to(rgb_latent)
    timestep = network.timestep.expand(len(rgb_latent))
    prompt = network.prompt.to(rgb_latent.dtype).expand(len(rgb_latent), -1, -1)
    velocity = network.unet(torch.cat([rgb_latent, noise], dim=1), timestep, prompt, return_dict=False)[0]
    return schedule.denoised(noise, velocity, timestep)


def detail_loss(signed: Tensor, prior: Tensor, scales: int) -> Tensor:
    """How far the edges of `signed` (N, H, W) are from those of `prior` (N, H, W), after scale and shift.

    Only differences between neighbours count: what a network has learnt of outlines is kept, its wrong slopes are not.
    """
    known = torch.isfinite(prior)
    target = Target(prior.nan_to_num(0.0), known.float())
    scale, shift = fit_scale_shift(signed, target)
    residual = (scale[:, None, None] * signed + shift[:, None, None] - target.y) / spread(target)[:, None, None]
    return gradient_loss(residual, target.weight, scales)
