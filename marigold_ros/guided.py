"""Depth completion by a diffusion that anchors guide: Marigold-DC (arXiv 2412.13389) on any multi-step checkpoint.

In each denoising step the clean latent that the network expects is decoded, compared with the anchors, and the noisy
latent moved along the gradient through decoder and U-Net before it is denoised by that step. The weights stay as they
are. Slow: 50 times forward and backward through both. What it adds to the published method is in `guidance.Guarded`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from marigold_ros.anchors import Anchors
from marigold_ros.checkpoints import CheckpointInfo
from marigold_ros.config import Unusable
from marigold_ros.family import DEPTH, DIFFUSION, E2E, LCM
from marigold_ros.guidance import Guarded, Published, at, check_anchors, places
from marigold_ros.metric import from_space
from marigold_ros.multistep import MultiStep, Prediction, Settings

STEPS = 50
# Adam's, as published: of the latent, and of scale and shift.
_LATENT_RATE, _LINE_RATE = 0.05, 0.005


@dataclass(frozen=True)
class _Image:
    """An image as the network sees it: its latent, its size in pixels without padding, and its own (H, W) size."""

    latent: Tensor
    seen: tuple[int, int]
    size: tuple[int, int]


class Guided:
    """A multi-step depth checkpoint, guided by anchors to metres.

    settings: as of `MultiStep`; steps are 50 and spacing is 'trailing' where it leaves them open, as published, of a
    distilled (LCM) checkpoint too: fewer guide it less. An ensemble's answer is the median of its members. guard:
    False for the published method without the guard.
    Raises `Unusable` for settings and checkpoints for which this means nothing.
    """

    def __init__(
        self,
        info: CheckpointInfo,
        settings: Settings,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        guard: bool = True,
    ) -> None:
        _check(info, settings)
        self.ensemble, self._batch, self._seed = settings.ensemble, settings.batch, settings.seed
        # Members are not aligned, so diffusers' ensembles, and scipy for them, are not needed.
        alone = replace(
            settings,
            steps=settings.steps or STEPS,
            spacing=settings.spacing or "trailing",
            ensemble=min(settings.ensemble, 1),
        )
        self._guidance = Guarded if guard else Published
        self._diffusion = MultiStep(_undistilled(info), alone, device, dtype)
        self.info, self.steps = info, self._diffusion.steps
        for module in (self._diffusion.pipeline.unet, self._diffusion.pipeline.vae):
            module.requires_grad_(False)

    def __call__(self, rgb: np.ndarray, anchors: Anchors, progress: bool = False) -> Prediction:
        """(H, W, 3) uint8 and anchors in it -> (H, W) float32 metres, NaN where no positive depth answers.

        uncertainty: of three or more members the median deviation from their median, in metres. Raises `Unusable` for
        anchors that cannot guide it, and for too little memory.
        """
        size = rgb.shape[:2]
        check_anchors(anchors, size)
        with self._diffusion.refusing_what_diffusers_does(f" guided on an image of {size[1]}x{size[0]}"):
            image = self._encoded(rgb)
            noise = self._noise(image.latent)
            with self._bar(progress, -(-len(noise) // self._batch) * self.steps) as bar:
                maps = [self._members(image, anchors, some, bar.update) for some in noise.split(self._batch)]
        # y increases with depth in every space and, unlike metres, has no end.
        y = torch.cat(maps).cpu().numpy()
        depth_m = from_space(np.median(y, axis=0), self.info.space).astype(np.float32)
        if len(y) < 3:
            return Prediction(depth_m, None)
        away_m = np.abs(from_space(y, self.info.space) - depth_m)
        return Prediction(depth_m, np.median(away_m, axis=0).astype(np.float32))

    def _encoded(self, rgb: np.ndarray) -> _Image:
        pipe = self._diffusion.pipeline
        image, padding = self._diffusion.preprocessed(rgb)
        with torch.no_grad():
            latent = pipe.vae.encode(image).latent_dist.mode() * pipe.vae.config.scaling_factor
        rows, columns = image.shape[2:]
        return _Image(latent, (rows - padding[0], columns - padding[1]), rgb.shape[:2])

    def _noise(self, latent: Tensor) -> Tensor:
        """(E, C, h, w) float32 where each member starts; drawn on the CPU, so that it is the same on every device."""
        random = torch.Generator().manual_seed(self._seed)
        shape = (self._diffusion.pipeline.unet.config.out_channels, *latent.shape[2:])
        return torch.stack([torch.randn(shape, generator=random) for _ in range(self.ensemble)]).to(latent.device)

    def _bar(self, progress: bool, total: int) -> AbstractContextManager[Any]:
        self._diffusion.pipeline.set_progress_bar_config(disable=not progress, leave=False)
        return self._diffusion.pipeline.progress_bar(total=total)

    def _members(self, image: _Image, anchors: Anchors, noise: Tensor, done: Callable[[], object]) -> Tensor:
        """(B, H, W) y in the checkpoint's space of the members that start from (B, C, h, w) noise."""
        pipe = self._diffusion.pipeline
        scheduler, device = pipe.scheduler, noise.device
        guidance = self._guidance(anchors, self.info.space, image.size, len(noise), device)
        where = places(anchors, image.size, device)
        latent = noise.clone().requires_grad_()
        optimiser = torch.optim.Adam(
            [{"params": [latent], "lr": _LATENT_RATE}, {"params": list(guidance.learnt), "lr": _LINE_RATE}]
        )
        scheduler.set_timesteps(self.steps, device=device)
        with torch.enable_grad():
            for timestep in scheduler.timesteps:
                output = self._output(image, latent, timestep)
                clean = scheduler.step(output, timestep, latent).pred_original_sample
                relative = self._decoded(clean, image, guidance.clip)
                guidance.look_at(relative)
                optimiser.zero_grad()
                guidance.loss(at(relative, where)).sum().backward()
                with torch.no_grad():
                    latent.grad *= _factor(latent, clean, latent.grad, float(scheduler.alphas_cumprod[timestep]))
                    optimiser.step()
                    latent.copy_(scheduler.step(output, timestep, latent).prev_sample)
                done()
        with torch.no_grad():
            relative = self._decoded(latent, image, guidance.clip)
            guidance.look_at(relative)
            whole = functional.interpolate(relative, image.size, mode="bilinear", align_corners=False)
            return guidance.y(whole.flatten(1)).reshape(-1, *image.size)

    def _output(self, image: _Image, latent: Tensor, timestep: Tensor) -> Tensor:
        """(B, C, h, w) float32 what the U-Net says of the noisy latent."""
        pipe = self._diffusion.pipeline
        members = len(latent)
        given = torch.cat([image.latent.expand(members, -1, -1, -1), latent.to(image.latent.dtype)], dim=1)
        prompt = pipe.empty_text_embedding.expand(members, -1, -1)
        return pipe.unet(given, timestep, prompt, return_dict=False)[0].float()

    def _decoded(self, latent: Tensor, image: _Image, clip: bool) -> Tensor:
        """(B, 1, rows, columns) float32 maps that increase with distance; beyond [0, 1] too, unless `clip`."""
        vae = self._diffusion.pipeline.vae
        scaled = (latent / vae.config.scaling_factor).to(image.latent.dtype)
        signed = vae.decode(scaled, return_dict=False)[0].float().mean(dim=1, keepdim=True)
        signed = signed[..., : image.seen[0], : image.seen[1]]
        if clip:
            signed = signed.clamp(-1.0, 1.0)
        return (1.0 - signed if self.info.disparity else 1.0 + signed) * 0.5


def _factor(latent: Tensor, clean: Tensor, gradient: Tensor, abar: float) -> Tensor:
    """(B, 1, 1, 1) what gives the gradient the length of the noise that the network sees in the latent."""
    noise = (latent - abar**0.5 * clean) / max(1.0 - abar, 1e-8) ** 0.5
    length, own = (values.flatten(1).norm(dim=1) for values in (noise, gradient))
    return (length / own.clamp(min=1e-8))[:, None, None, None]


def _undistilled(info: CheckpointInfo) -> CheckpointInfo:
    """A distilled (LCM) checkpoint as the diffusion network that it came from, for DDIM to step through.

    Its own scheduler draws fresh noise between steps, which throws away what anchors did to the latent; DDIM, between
    the same clean latents, keeps it. 50 trailing steps are the timesteps 19, 39, ..., 999 that published ones know; one
    that was distilled on fewer is guided between them too.
    """
    # A consistency model's boundary condition would add c_skip = 0.25 / ((10 t)^2 + 0.25) of the noisy latent to the
    # clean one: 7e-6 at t = 19, and much at t = 0 alone, where the two differ by 3 % and only a thousand steps lead.
    return replace(info, kind=replace(info.kind, protocol=DIFFUSION))


def _check(info: CheckpointInfo, settings: Settings) -> None:
    where = f"checkpoint {info.name!r}"
    if info.kind.task != DEPTH:
        raise Unusable(
            f"{where}: gives {' and '.join(info.kind.targets)}, which anchors say nothing of; leave them out, or give "
            "a depth checkpoint"
        )
    if info.kind.protocol == E2E:
        fit = ", or let the node fit this one to the anchors" if info.kind.single_step is not None else ""
        raise Unusable(
            f"{where}: takes one step from {info.kind.target_input}, in which anchors could guide nothing; give one of "
            f"several steps, such as 'prs-eth/marigold-depth-v1-0'{fit}"
        )
    if info.kind.protocol == LCM and settings.spacing == "leading":
        raise Unusable(
            f"{where}: spacing='leading' takes none of the timesteps that it was distilled (lcm) on; leave it out"
        )
    if settings.focal_px:
        raise Unusable(f"focal_px={settings.focal_px}: with anchors, metres come from these; leave one of them out")
    if settings.diffusers_alignment:
        raise Unusable("alignment 'diffusers': members that anchors guide are in metres, and not aligned; leave it out")
