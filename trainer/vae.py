"""First stage: the VAE learns to reconstruct images and depth maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from marigold_ros.metric import SPACES
from trainer.architecture import build_vae
from trainer.augment import Cut, cut
from trainer.data import Scenes
from trainer.loop import Training, autocast, pick_device, read_state
from trainer.losses import full_range, make_target
from trainer.recipe import Phase, Recipe, recipe_from


def train_vae(folder: Path, recipe: Recipe, scenes: Scenes) -> bool:
    """Train, or go on training, into `folder`; returns whether the recipe's end was reached."""
    torch.manual_seed(recipe.seed)
    vae = new_vae(recipe)
    device = pick_device()

    def loss(rgb: Tensor, depth_m: Tensor, phase: Phase) -> tuple[Tensor, dict[str, Tensor]]:
        picture = _mixed(rgb, depth_m, recipe)
        with autocast(device):
            posterior = vae.encode(picture).latent_dist
            latent = posterior.mode() + posterior.std * torch.randn_like(posterior.mean)
            decoded = vae.decode(latent, return_dict=False)[0]
        error = decoded.float() - picture
        parts = {"l1": error.abs().mean(), "l2": error.square().mean(), "kl": posterior.kl().float().mean()}
        # KL is a sum over a latent; per latent value it does not depend on the image's size.
        parts["kl"] = parts["kl"] / posterior.mean[0].numel()
        total = recipe.vae.l1 * parts["l1"] + recipe.vae.l2 * parts["l2"] + recipe.vae.kl * parts["kl"]
        return total, {name: part.detach() for name, part in parts.items()}

    return Training(folder, recipe, recipe.vae.phases, vae, loss).run(scenes)


def new_vae(recipe: Recipe) -> AutoencoderKL:
    """An untrained VAE."""
    sizes = recipe.network
    return build_vae(sizes.vae_channels, sizes.latent_channels, sizes.vae_groups)


def load_vae(folder: Path, scenes: Scenes) -> AutoencoderKL:
    """The trained VAE of the run in `folder`, scaled so that latents of `scenes` have unit standard deviation."""
    vae = load_weights(folder)
    deviation = latent_deviation(vae, scenes, recipe_from(read_state(folder)["recipe"], str(folder)))
    vae.register_to_config(scaling_factor=round(1.0 / deviation, 5))
    return vae


def load_weights(folder: Path) -> AutoencoderKL:
    """The trained VAE of the run in `folder`, not scaled."""
    state = read_state(folder)
    vae = new_vae(recipe_from(state["recipe"], str(folder)))
    vae.load_state_dict(state["average"])
    return vae.requires_grad_(False)


@torch.inference_mode()
def latent_deviation(vae: AutoencoderKL, scenes: Scenes, recipe: Recipe, count: int = 64) -> float:
    """Standard deviation of the latent's mean over images and depth maps."""
    latents = [
        vae.encode(picture).latent_dist.mode().flatten()
        for sample in scenes.samples[:count]
        for picture in _pictures(sample.rgb, sample.depth_m, recipe)
    ]
    return float(torch.cat(latents).std())


@torch.inference_mode()
def evaluate_vae(folder: Path, scenes: Scenes, count: int = 64) -> dict[str, float]:
    """Reconstruction of whole pictures in [-1, 1]: mean squared error of depth maps, PSNR in dB of images."""
    recipe = recipe_from(read_state(folder)["recipe"], str(folder))
    vae = load_vae(folder, scenes)
    errors = []
    for sample in scenes.samples[:count]:
        pictures = _pictures(sample.rgb, sample.depth_m, recipe)
        decoded = [vae.decode(vae.encode(p).latent_dist.mode(), return_dict=False)[0].clamp(-1, 1) for p in pictures]
        errors.append([float((d - p).square().mean()) for d, p in zip(decoded, pictures, strict=True)])
    image, depth = torch.tensor(errors).mean(dim=0)
    # The range is 2, so the peak is 4 in squared units.
    psnr = float(10 * torch.log10(4 / image))
    return {"depth_mse": float(depth), "image_psnr_db": psnr, "scaling_factor": vae.config.scaling_factor}


def _pictures(rgb: np.ndarray, depth_m: np.ndarray, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """A sample's image and depth map as (1, 3, H, W) in [-1, 1], cut to multiples of 32."""
    height, width = (side // 32 * 32 for side in depth_m.shape)
    rgb, depth_m = cut(rgb, depth_m, Cut(0, 0, width, height, (width, height), flip=False))
    image = _image(torch.from_numpy(np.ascontiguousarray(rgb))[None])
    return image, _depth_map(torch.from_numpy(depth_m)[None], recipe, recipe.space)


def _mixed(rgb: Tensor, depth_m: Tensor, recipe: Recipe) -> Tensor:
    """Some of the batch as images, the others as depth maps, in every space: one VAE serves them all."""
    images = round(len(rgb) * recipe.vae.image_share)
    groups = [depth_m[images + offset :: len(SPACES)] for offset in range(len(SPACES))]
    maps = [_depth_map(group, recipe, space) for group, space in zip(groups, SPACES, strict=True) if len(group)]
    return torch.cat([_image(rgb[:images]), *maps])


def _image(rgb: Tensor) -> Tensor:
    return (rgb.permute(0, 3, 1, 2).float() / 127.5 - 1.0).contiguous()


def _depth_map(depth_m: Tensor, recipe: Recipe, space: str) -> Tensor:
    """(N, H, W) metres to (N, 3, H, W): as the decoder is to draw it, three equal channels."""
    picture = full_range(make_target(depth_m, space, recipe.nano))
    sign = -1.0 if space == "inverse_depth" else 1.0
    return (sign * picture)[:, None].expand(-1, 3, -1, -1).contiguous()
