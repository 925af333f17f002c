"""Checkpoints of every published layout of the family, in small: the same files and fields, random narrow weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DDPMScheduler, LCMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

# reference/marigold.md §1.5: what all published schedulers share.
BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
}
DDIM = {**BETAS, "set_alpha_to_one": False, "steps_offset": 1}
LEADING = DDIMScheduler(**DDIM, timestep_spacing="leading")
ZERO_SNR = DDIMScheduler(**DDIM, timestep_spacing="trailing", rescale_betas_zero_snr=True)
TRAILING = DDIMScheduler(**DDIM, timestep_spacing="trailing")
# The end-to-end trainer saves its training scheduler.
TRAINER = DDPMScheduler(**BETAS, timestep_spacing="trailing")
DISTILLED = LCMScheduler(**DDIM, timestep_spacing="leading", original_inference_steps=50)
APPEARANCE = {
    "target_names": ["albedo", "material"],
    "albedo": {"prediction_space": "srgb", "up_to_scale": False},
    "material": {"prediction_space": "stack", "sub_target_names": ["roughness", "metallicity", None]},
    "roughness": {"prediction_space": "linear", "up_to_scale": False},
    "metallicity": {"prediction_space": "linear", "up_to_scale": False},
}
LIGHTING = {
    "target_names": ["albedo", "shading", "residual"],
    "albedo": {"prediction_space": "linear", "up_to_scale": False},
    "shading": {"prediction_space": "linear", "up_to_scale": True},
    "residual": {"prediction_space": "linear", "up_to_scale": True},
}


@dataclass(frozen=True)
class Row:
    """One line of the table of published checkpoints (reference/marigold.md §1.1)."""

    name: str
    pipeline: str
    scheduler: Any
    steps: int | None
    task: str
    protocol: str
    targets: tuple[str, ...]
    index: dict[str, Any] = field(default_factory=dict)
    x_left: bool = False


DEPTH = {"scale_invariant": True, "shift_invariant": True, "prediction_type": "depth"}
FAMILY = [
    Row("marigold-depth-v1-0", "MarigoldDepthPipeline", LEADING, 10, "depth", "diffusion", ("depth",), DEPTH),
    Row("marigold-v1-0", "MarigoldPipeline", LEADING, None, "depth", "diffusion", ("depth",)),
    Row("marigold-depth-lcm-v1-0", "MarigoldDepthPipeline", DISTILLED, 1, "depth", "lcm", ("depth",), DEPTH),
    Row("marigold-depth-v1-1", "MarigoldDepthPipeline", ZERO_SNR, 4, "depth", "diffusion", ("depth",), DEPTH),
    Row("marigold-normals-v0-1", "MarigoldNormalsPipeline", LEADING, 10, "normals", "diffusion", ("normals",)),
    Row("marigold-normals-lcm-v0-1", "MarigoldNormalsPipeline", DISTILLED, 1, "normals", "lcm", ("normals",)),
    Row("marigold-normals-v1-1", "MarigoldNormalsPipeline", ZERO_SNR, 4, "normals", "diffusion", ("normals",)),
    Row(
        "marigold-iid-appearance-v1-1", "MarigoldIntrinsicsPipeline", ZERO_SNR, 4, "intrinsics", "diffusion",
        ("albedo", "material"), {"target_properties": APPEARANCE},
    ),
    Row(
        "marigold-iid-lighting-v1-1", "MarigoldIntrinsicsPipeline", ZERO_SNR, 4, "intrinsics", "diffusion",
        ("albedo", "shading", "residual"), {"target_properties": LIGHTING},
    ),
    Row("marigold-e2e-ft-depth", "MarigoldDepthPipeline", TRAILING, 1, "depth", "e2e", ("depth",), DEPTH),
    Row("marigold-e2e-ft-normals", "MarigoldNormalsPipeline", TRAILING, 1, "normals", "e2e", ("normals",), x_left=True),
    Row("stable-diffusion-e2e-ft-depth", "StableDiffusionPipeline", TRAINER, None, "depth", "e2e", ("depth",)),
    Row(
        "stable-diffusion-e2e-ft-normals", "StableDiffusionPipeline", TRAINER, None, "normals", "e2e", ("normals",),
        x_left=True,
    ),
    Row(
        "marigold-normals", "StableDiffusionPipeline", TRAINER, None, "normals", "diffusion", ("normals",), x_left=True
    ),
]  # fmt: skip


def write_family_checkpoint(
    parent: Path, row: Row, size: tuple[int, int] | None = None, drawn: tuple[float, float, float] | None = None
) -> Path:
    """Write the checkpoint `row` into a folder of its name in `parent`; a few hundred thousand parameters.

    size: a working size (width, height) in our own file beside the published ones, to export it in a test's time.
    drawn: the colour in [-1, 1] that it decodes every latent to.
    """
    torch.manual_seed(0)
    folder = parent / row.name
    images = len(row.targets)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=768,
        scaling_factor=0.18215,
    )
    with torch.no_grad():
        # Random weights lose far more in half precision than trained ones, and the self-check would refuse them.
        vae.decoder.conv_out.weight *= 0.25
        if row.task == "normals":
            # Trained networks decode vectors of about unit length; short ones would have noise for angles.
            vae.decoder.conv_out.bias.fill_(0.6)
        if drawn is not None:
            vae.decoder.conv_out.weight.zero_()
            vae.decoder.conv_out.bias.copy_(torch.tensor(drawn))
    unet = UNet2DConditionModel(
        sample_size=96,
        in_channels=4 * (images + 1),
        out_channels=4 * images,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        attention_head_dim=[1, 1, 2, 2],
        cross_attention_dim=16,
        use_linear_projection=True,
    )
    for name, module in (("vae", vae), ("unet", unet)):
        module.save_pretrained(folder / name)
    row.scheduler.save_pretrained(folder / "scheduler")
    write_text_encoder(folder)
    index = {
        "_class_name": row.pipeline,
        "_diffusers_version": diffusers.__version__,
        **({"default_denoising_steps": row.steps, "default_processing_resolution": 768} if row.steps else {}),
        **row.index,
        "scheduler": ["diffusers", type(row.scheduler).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    if size is not None:
        (folder / "marigold_ros.json").write_text(json.dumps({"width": size[0], "height": size[1]}))
    return folder


def write_text_encoder(folder: Path, variant: str | None = None) -> CLIPTextModel:
    """Write a tokenizer that knows the two marks of the empty prompt and a text encoder of one layer, which returns."""
    (folder / "tokenizer").mkdir()
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    facts = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(facts))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=2, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes))
    if variant:
        encoder.half()
    encoder.eval().save_pretrained(folder / "text_encoder", variant=variant)
    return encoder


def write_tiny_vae(folder: Path, latent_channels: int = 4) -> Path:
    """Write a tiny VAE of TAESD's layout, narrow, with random weights."""
    torch.manual_seed(1)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=latent_channels,
    ).save_pretrained(folder)
    return folder


def write_sd2(folder: Path, levels: int = 2) -> Path:
    """Write Stable Diffusion 2's layout, narrow, with a safety checker's empty place, as published.

    levels: of the U-Net; the published one has four.
    """
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=96,
        block_out_channels=(32,) * levels,
        down_block_types=(*("CrossAttnDownBlock2D",) * (levels - 1), "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * (levels - 1)),
        layers_per_block=1,
        attention_head_dim=[1] * levels,
        cross_attention_dim=16,
        use_linear_projection=True,
    )
    with torch.no_grad():
        unet.conv_in.bias.normal_()
        unet.conv_out.bias.normal_()
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    DDIMScheduler(**DDIM).save_pretrained(folder / "scheduler")
    write_text_encoder(folder)
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
