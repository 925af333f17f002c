"""The architecture of Stable Diffusion 2 as Marigold uses it: what the published networks of the family are made of.

Without weights it can be counted (`roofline`); with random ones it can be timed, because speed does not depend on them.

    python -m marigold_ros.sd2 FOLDER        writes a checkpoint of random weights (2 GB) into FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from marigold_ros.checkpoints import OWN_FILE, PROMPT_FILE, PROMPT_KEY
from marigold_ros.config import Unusable
from marigold_ros.files import folder_written_beside, locked

# As in the config.json files of the published checkpoints; what is not here is diffusers' default.
UNET: Mapping[str, Any] = {
    "sample_size": 96,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
VAE: Mapping[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}
# As in the published end-to-end fine-tuned checkpoints (reference/marigold.md §1.5).
SCHEDULER: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": False,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# Marigold's empty prompt: its start and its end.
PROMPT_TOKENS = 2
WIDTH, HEIGHT = 768, 576
NAME = "random-sd2-e2e"


def modules(unet: Mapping[str, Any] = UNET, vae: Mapping[str, Any] = VAE) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """U-Net and VAE of these configurations on the meta device: shapes without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(dict(unet)).eval(), AutoencoderKL.from_config(dict(vae)).eval()


def tiny_vae(**config: Any) -> AutoencoderTiny:
    """TAESD on the meta device; `config` changes its configuration."""
    with torch.device("meta"):
        return AutoencoderTiny(**config).eval()


def random_checkpoint(
    parent: Path, unet: Mapping[str, Any] = UNET, vae: Mapping[str, Any] = VAE, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Path:
    """A folder in `parent` with a depth checkpoint of random float16 weights, written where it is not there yet (2 GB).

    Its answers mean nothing. size: working width and height. Raises `Unusable` where the folder cannot be written.
    """
    return _written_once(parent / NAME, lambda folder: _write_checkpoint(folder, unet, vae, size))


def random_tiny_vae(parent: Path, **config: Any) -> Path:
    """A folder in `parent` with a TAESD of random float16 weights, as `random_checkpoint`."""
    return _written_once(parent / f"{NAME}-tiny", lambda folder: _write_tiny(folder, config))


def _written_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, which appears whole or not at all."""
    with locked(folder):
        if not folder.is_dir():
            with folder_written_beside(folder) as beside:
                write(beside)
    return folder


def _write_checkpoint(folder: Path, unet: Mapping[str, Any], vae: Mapping[str, Any], size: tuple[int, int]) -> None:
    for name, module in zip(("unet", "vae"), modules(unet, vae), strict=True):
        module = _randomised(module)
        if name == "vae":
            # Answers of random weights differ most between precisions where they are large.
            module.decoder.conv_out.weight.mul_(0.25)
        module.save_pretrained(folder / name)
        del module
    prompt = torch.randn(1, PROMPT_TOKENS, unet["cross_attention_dim"], generator=torch.Generator().manual_seed(0))
    save_file({PROMPT_KEY: prompt}, folder / PROMPT_FILE)
    index = {
        "_class_name": "MarigoldDepthPipeline",
        "prediction_type": "depth",
        "default_denoising_steps": 1,
        "default_processing_resolution": max(size),
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    own = {"name": NAME, "width": size[0], "height": size[1]}
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "DDIMScheduler", **SCHEDULER}
    for path, facts in (("scheduler/scheduler_config.json", scheduler), (OWN_FILE, own), ("model_index.json", index)):
        (folder / path).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _write_tiny(folder: Path, config: Mapping[str, Any]) -> None:
    module = _randomised(tiny_vae(**config))
    # It decodes to [0, 1]: in the middle, little is clamped.
    module.decoder.layers[-1].bias.fill_(0.5)
    module.save_pretrained(folder)


@torch.no_grad()
def _randomised(module: nn.Module) -> nn.Module:
    """`module`, from the meta device, with float16 weights on the CPU that keep activations at about their size."""
    module = module.half().to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            reach = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-reach, reach, generator=generator)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m marigold_ros.sd2", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for a checkpoint of random weights (2 GB)")
    try:
        print(random_checkpoint(parser.parse_args(argv).folder))
    except Unusable as problem:
        print(f"sd2: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
