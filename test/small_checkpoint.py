"""A real checkpoint on disk that is made in seconds: the bundled network's kind with random weights."""

from pathlib import Path

import torch

from trainer.architecture import build_network, build_unet, build_vae, constant_prompt
from trainer.package import write_checkpoint


def write_small_checkpoint(folder: Path, space: str = "inverse_depth", onnx: bool = False) -> Path:
    """Write a checkpoint of a few thousand parameters, working size 128x96, into `folder` and return it."""
    torch.manual_seed(0)
    network = build_network(
        build_vae((8, 8, 16, 16), 4, groups=4), build_unet((32, 32, 64), 4, prompt_width=16), constant_prompt(16), space
    )
    write_checkpoint(folder, network, space, (128, 96), "# A small checkpoint with random weights\n", onnx=onnx)
    return folder
