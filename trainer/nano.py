"""Second stage, end to end: one U-Net step, decoded, against the true depth after a closed-form scale and shift."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from marigold_ros.config import Unusable
from marigold_ros.network import SingleStepNetwork, normalised
from trainer.architecture import build_network, build_unet, constant_prompt
from trainer.data import Scenes
from trainer.loop import STATE_FILE, Training, autocast, pick_device, read_state
from trainer.losses import Target, depth_loss, full_range, make_target
from trainer.recipe import Phase, Recipe, recipe_from
from trainer.vae import load_vae, load_weights, new_vae


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
    teacher = _teacher(recipe, network, vae_run, device)
    disparity = recipe.space == "inverse_depth"

    def loss(rgb: Tensor, depth_m: Tensor, phase: Phase) -> tuple[Tensor, dict[str, Tensor]]:
        target = make_target(depth_m, recipe.space, recipe.nano)
        image = normalised(rgb, torch.float32).contiguous()
        if phase.target == "latent":
            with autocast(device):
                latent = network.predict(network.encode(image))
                with torch.no_grad():
                    wanted = teacher.encode(_picture(target, disparity))
            return latent_loss(latent, wanted)
        with autocast(device):
            prediction = network.forward_normalised(image)[:, 0]
        return depth_loss(prediction, target, recipe.nano)

    return Training(folder, recipe, recipe.nano.phases, network, loss).run(scenes)


def _teacher(
    recipe: Recipe, network: SingleStepNetwork, vae_run: Path | None, device: torch.device
) -> SingleStepNetwork | None:
    """A network with the first stage's encoder, which says what latent a depth map has; None where none is asked for.

    The run's own encoder would not do: it is being trained to see images.
    """
    if all(phase.target != "latent" for phase in recipe.nano.phases):
        return None
    if vae_run is None:
        raise Unusable("recipe: a phase has target 'latent', which needs the run of the first stage; give --vae RUN")
    vae = load_weights(vae_run)
    vae.register_to_config(scaling_factor=network.vae.config.scaling_factor)
    return build_network(vae, network.unet, network.prompt, recipe.space).to(device)


def _picture(target: Target, disparity: bool) -> Tensor:
    """(N, 3, H, W) the map that the decoder is to draw."""
    picture = full_range(target)
    return (-picture if disparity else picture)[:, None].expand(-1, 3, -1, -1).contiguous()


def latent_loss(latent: Tensor, wanted: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L1 + L2 of latents (N, C, h, w), and its parts for the log."""
    error = latent.float() - wanted.float()
    parts = {"latent_l1": error.abs().mean(), "latent_l2": error.square().mean()}
    return parts["latent_l1"] + parts["latent_l2"], {name: part.detach() for name, part in parts.items()}


def _first_network(
    folder: Path, recipe: Recipe, scenes: Scenes, vae_run: Path | None, start_from: Path | None
) -> SingleStepNetwork:
    torch.manual_seed(recipe.seed)
    if (Path(folder) / STATE_FILE).is_file():
        return _empty_network(recipe, read_state(folder)["network_config"])
    if start_from is not None:
        network = load_run(start_from)[0]
        return build_network(network.vae, network.unet, network.prompt, recipe.space)
    if vae_run is None:
        raise Unusable(f"training run {folder}: is new and has no VAE; give --vae RUN, made by 'python -m trainer vae'")
    vae = load_vae(vae_run, scenes)
    return _assemble(recipe, vae)


def _assemble(recipe: Recipe, vae: torch.nn.Module) -> SingleStepNetwork:
    sizes = recipe.network
    unet = build_unet(sizes.unet_channels, sizes.latent_channels, sizes.prompt_width)
    return build_network(vae, unet, constant_prompt(sizes.prompt_width), recipe.space)


def _empty_network(recipe: Recipe, network_config: dict) -> SingleStepNetwork:
    vae = new_vae(recipe)
    vae.register_to_config(**network_config)
    return _assemble(recipe, vae)


def load_run(folder: Path, averaged: bool = True) -> tuple[SingleStepNetwork, Recipe, dict]:
    """(network, recipe, state) of the run in `folder`; the averaged weights are those that ship."""
    state = read_state(folder)
    if "unet.conv_in.weight" not in state["network"]:
        raise Unusable(f"training run {folder}: is not a run of 'python -m trainer nano'")
    recipe = recipe_from(state["recipe"], str(folder))
    network = _empty_network(recipe, state["network_config"])
    network.load_state_dict(state["average" if averaged else "network"])
    return network, recipe, state
