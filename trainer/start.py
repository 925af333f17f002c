"""What a training starts from: Stable Diffusion 2, a checkpoint of the family, or random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from marigold_ros import hub
from marigold_ros.checkpoints import OWN_FILE, check_files, find_checkpoint, load_modules, read_json
from marigold_ros.config import Unusable
from marigold_ros.family import refuse_strangers
from marigold_ros.sd2 import SCHEDULER
from trainer.architecture import build_unet, build_vae, constant_prompt
from trainer.noise import Schedule

MARIGOLD, E2E = "marigold", "e2e"
SURGERIES = (MARIGOLD, E2E)


@dataclass(frozen=True)
class Start:
    """Modules in float32 on the CPU.

    unet: takes [RGB latent | a latent for each target image], gives one for each; prompt: (1, 2, width) embedding of
    the empty text; scheduler: the configuration it was trained with; source: its folder, None for random weights;
    of_family: `source` draws already, it is no Stable Diffusion.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    prompt: Tensor
    scheduler: Mapping[str, Any]
    source: Path | None
    of_family: bool = False

    @property
    def latent_channels(self) -> int:
        """Channels of one image's latent."""
        return self.vae.config.latent_channels

    @property
    def targets(self) -> int:
        """Target images."""
        return self.unet.config.out_channels // self.latent_channels


def load_start(name: str, targets: int, surgery: str = MARIGOLD, download: bool = False) -> Start:
    """Start from `name`: a folder in diffusers' format, a bundled checkpoint or a hub id (cached, or downloaded).

    targets: how many target images the network is to have. Stable Diffusion's U-Net is widened to them by `surgery`,
    see `widen`; a checkpoint of the family must have as many already. Raises `Unusable` for any other, and for what
    cannot be read.
    """
    folder = _find(name, download)
    where = f"checkpoint {folder}"
    refuse_strangers(where, hub.name_of(folder), read_json(folder / "unet" / "config.json"))
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    Schedule(scheduler, where=where)
    if (folder / OWN_FILE).is_file():
        check_files(folder)
    modules = load_modules(folder)
    start = Start(modules.unet, modules.vae, modules.prompt, scheduler, folder)
    _check_prompt(where, start)
    if not _is_text_to_image(where, start, targets):
        return replace(start, of_family=True)
    widen(start.unet, targets, surgery)
    return start


def from_scratch(
    vae_channels: tuple[int, ...],
    latent_channels: int,
    vae_groups: int,
    unet_channels: tuple[int, ...],
    prompt_width: int,
    targets: int = 1,
    scheduler: Mapping[str, Any] = SCHEDULER,
) -> Start:
    """A small network of random weights, drawn from torch's global generator; arguments as in `architecture`."""
    vae = build_vae(tuple(vae_channels), latent_channels, vae_groups)
    unet = build_unet(tuple(unet_channels), latent_channels, prompt_width, targets)
    return Start(unet, vae, constant_prompt(prompt_width), dict(scheduler), None)


@torch.no_grad()
def widen(unet: UNet2DConditionModel, targets: int, surgery: str) -> None:
    """Give a text-to-image U-Net an image latent beside its own, and `targets` of these, as published.

    Input weights are repeated for each latent and divided by their number, so that activations keep their size; those
    of the output are repeated. 'marigold' (arXiv 2312.02145, 2505.09358) leaves the input's bias as it is, 'e2e'
    (arXiv 2409.11355) divides it as well.
    """
    if surgery not in SURGERIES:
        raise Unusable(f"surgery {surgery!r}: must be one of {', '.join(map(repr, SURGERIES))}")
    first, last, latents = unet.conv_in, unet.conv_out, targets + 1
    bias = first.bias / latents if surgery == E2E else first.bias
    unet.conv_in = _convolution(first.weight.repeat(1, latents, 1, 1) / latents, bias)
    unet.conv_out = _convolution(last.weight.repeat(targets, 1, 1, 1), last.bias.repeat(targets))
    unet.register_to_config(in_channels=unet.conv_in.in_channels, out_channels=unet.conv_out.out_channels)


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), padding=weight.shape[2] // 2)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def _find(name: str, download: bool) -> Path:
    if Path(name).expanduser().is_dir() or not hub.is_hub_id(name):
        return find_checkpoint(name)
    refuse_strangers(f"checkpoint {name!r}", name)
    if download:
        return hub.download(name, "checkpoint", half=False)
    return hub.cached(name, "checkpoint", f"\"hf download {name} --include '*.json' '*.txt' '*/*.safetensors'\"")


def _check_prompt(where: str, start: Start) -> None:
    width, shape = start.unet.config.cross_attention_dim, tuple(start.prompt.shape)
    if len(shape) != 3 or shape[0] != 1 or shape[2] != width:
        raise Unusable(
            f"{where}: its prompt's embedding has shape {shape}, its U-Net wants (1, tokens, {width}); "
            "its parts are of different models: copy it again"
        )


def _is_text_to_image(where: str, start: Start, targets: int) -> bool:
    """Whether the U-Net must be widened; raises `Unusable` unless it must, or has as many `targets` as are wanted."""
    channels, config = start.latent_channels, start.unet.config
    found = config.in_channels, config.out_channels
    if found == (channels, channels):
        return True
    if start.targets < 1 or found != ((start.targets + 1) * channels, start.targets * channels):
        raise Unusable(
            f"{where}: U-Net of {found[0]} channels in and {found[1]} out with latents of {channels}: is neither "
            "Stable Diffusion's nor one of the Marigold family; give one of these"
        )
    if start.targets != targets:
        raise Unusable(
            f"{where}: is a checkpoint of another recipe: it draws {start.targets} target image(s), this recipe wants "
            f"{targets}; give one that fits, or start from stabilityai/stable-diffusion-2"
        )
    return False
