"""Second stage, end to end: one U-Net step, decoded, against the true depth after a closed-form scale and shift."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from marigold_ros.config import Unusable
from marigold_ros.network import SingleStepDepth
from trainer.architecture import build_network, build_unet, constant_prompt
from trainer.data import Scenes
from trainer.loop import STATE_FILE, Training, autocast, pick_device, read_state
from trainer.losses import depth_loss, make_target
from trainer.recipe import Recipe, recipe_from
from trainer.vae import load_vae, new_vae


def train_nano(folder: Path, recipe: Recipe, scenes: Scenes, vae_run: Path | None, start_from: Path | None) -> bool:
    """Train, or go on training, into `folder`; returns whether the recipe's end was reached.

    A new run takes its VAE from `vae_run`, or all weights from the run `start_from`.
    """
    network = _first_network(folder, recipe, scenes, vae_run, start_from)
    network.requires_grad_(True)
    network.vae.encoder.requires_grad_(recipe.nano.train_encoder)
    network.vae.quant_conv.requires_grad_(recipe.nano.train_encoder)
    network.vae.decoder.requires_grad_(recipe.nano.train_decoder)
    network.vae.post_quant_conv.requires_grad_(recipe.nano.train_decoder)
    device = pick_device()

    def loss(rgb: Tensor, depth_m: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with autocast(device):
            prediction = network.forward_normalised(network.normalise(rgb).contiguous())
        return depth_loss(prediction, make_target(depth_m, recipe.space, recipe.nano), recipe.nano)

    return Training(folder, recipe, recipe.nano.phases, network, loss).run(scenes)


def _first_network(
    folder: Path, recipe: Recipe, scenes: Scenes, vae_run: Path | None, start_from: Path | None
) -> SingleStepDepth:
    torch.manual_seed(recipe.seed)
    if (Path(folder) / STATE_FILE).is_file():
        return _empty_network(recipe, read_state(folder)["network_config"])
    if start_from is not None:
        return load_run(start_from, averaged=False)[0]
    if vae_run is None:
        raise Unusable(f"training run {folder}: is new and has no VAE; give --vae RUN, made by 'python -m trainer vae'")
    vae = load_vae(vae_run, scenes)
    return _assemble(recipe, vae)


def _assemble(recipe: Recipe, vae: torch.nn.Module) -> SingleStepDepth:
    sizes = recipe.network
    unet = build_unet(sizes.unet_channels, sizes.latent_channels, sizes.prompt_width)
    return build_network(vae, unet, constant_prompt(sizes.prompt_width), recipe.space)


def _empty_network(recipe: Recipe, network_config: dict) -> SingleStepDepth:
    vae = new_vae(recipe)
    vae.register_to_config(**network_config)
    return _assemble(recipe, vae)


def load_run(folder: Path, averaged: bool = True) -> tuple[SingleStepDepth, Recipe, dict]:
    """(network, recipe, state) of the run in `folder`; the averaged weights are those that ship."""
    state = read_state(folder)
    if "unet.conv_in.weight" not in state["network"]:
        raise Unusable(f"training run {folder}: is not a run of 'python -m trainer nano'")
    recipe = recipe_from(state["recipe"], str(folder))
    network = _empty_network(recipe, state["network_config"])
    network.load_state_dict(state["average" if averaged else "network"])
    return network, recipe, state
