"""Networks and batches of random numbers, for measurements: neither speed nor memory depend on what was learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from marigold_ros import sd2
from trainer.architecture import constant_prompt
from trainer.assembly import first_model, scheduler_of
from trainer.data import Batch
from trainer.model import Model
from trainer.package import one_channel
from trainer.recipe import Recipe
from trainer.samples import KINDS
from trainer.start import load_start
from trainer.targets import TARGET_NAMES

MID, SD2 = "mid", "sd2"
# Of Stable Diffusion 2's kind, so small that a CPU trains it: the VAE half as wide, the U-Net a level less.
_MID_UNET: Mapping[str, Any] = {
    **sd2.UNET,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (128, 256, 384),
    "attention_head_dim": [2, 4, 6],
}
_MID_VAE: Mapping[str, Any] = {**sd2.VAE, "block_out_channels": (64, 128, 256, 256)}
_NETWORKS = {MID: (_MID_UNET, _MID_VAE), SD2: (sd2.UNET, sd2.VAE)}


def stand_in(recipe: Recipe, network: str) -> Model:
    """What `recipe` would start from, for measurements.

    network: 'mid', 'sd2' or a checkpoint's folder, for recipes that start from published weights; the others start from
    what they name. Raises `Unusable` for a folder that does not fit.
    """
    if _is_own(recipe):
        return first_model(recipe)
    targets = len(TARGET_NAMES[recipe.task])
    scheduler: Mapping[str, Any] = sd2.SCHEDULER
    if network in _NETWORKS:
        unet, vae, prompt = _random(network, targets)
    else:
        start = load_start(network, targets, recipe.start.surgery)
        unet, vae, prompt, scheduler = start.unet, start.vae, start.prompt, start.scheduler
    scheduler = scheduler_of(recipe.stages[-1], scheduler)
    tiny = one_channel(AutoencoderTiny(latent_channels=vae.config.latent_channels)) if recipe.start.tiny_vae else None
    return Model(unet, vae, prompt, scheduler, recipe.task, recipe.space, recipe.size, tiny)


def network_name(recipe: Recipe, network: str) -> str:
    """What `stand_in` gives, in a word."""
    return "its own" if _is_own(recipe) else network


def _is_own(recipe: Recipe) -> bool:
    return recipe.start.checkpoint in ("", "nano")


def _random(network: str, targets: int) -> tuple[UNet2DConditionModel, AutoencoderKL, torch.Tensor]:
    torch.manual_seed(0)
    unet, vae = _NETWORKS[network]
    channels = vae["latent_channels"]
    unet = {**unet, "in_channels": (targets + 1) * channels, "out_channels": targets * channels}
    modules = UNet2DConditionModel.from_config(unet), AutoencoderKL.from_config(dict(vae))
    return *(module.eval() for module in modules), constant_prompt(unet["cross_attention_dim"])


def random_batch(recipe: Recipe, size: tuple[int, int], count: int) -> Batch:
    """`count` pictures of `size` (width, height) with all maps that `recipe` needs, known everywhere."""
    width, height = size
    generator = torch.Generator().manual_seed(0)

    def numbers(kind: str) -> torch.Tensor:
        channels = () if KINDS[kind] == 1 else (KINDS[kind],)
        values = torch.rand(count, *channels, height, width, generator=generator)
        if kind == "depth_m":
            return 1.0 + 19.0 * values
        return torch.nn.functional.normalize(values - 0.5, dim=1) if kind == "normals" else values

    rgb = torch.randint(256, (count, height, width, 3), generator=generator, dtype=torch.uint8)
    return Batch(rgb, {kind: numbers(kind) for kind in recipe.maps}, torch.full((count,), 500.0), "random")
