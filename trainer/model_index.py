"""What a checkpoint folder says of itself in model_index.json: the fields of the published checkpoints of each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers

from marigold_ros.family import DIFFUSION, E2E, LCM

PIPELINES: Mapping[str, str] = {
    "depth": "MarigoldDepthPipeline",
    "normals": "MarigoldNormalsPipeline",
    "iid-appearance": "MarigoldIntrinsicsPipeline",
    "iid-lighting": "MarigoldIntrinsicsPipeline",
}
# Denoising steps as published.
STEPS: Mapping[str, int] = {E2E: 1, DIFFUSION: 4, LCM: 1}
_LINEAR: Mapping[str, Any] = {"prediction_space": "linear", "up_to_scale": False}
_LIGHT: Mapping[str, Any] = {"prediction_space": "linear", "up_to_scale": True}
TARGET_PROPERTIES: Mapping[str, Mapping[str, Any]] = {
    "iid-appearance": {
        "target_names": ["albedo", "material"],
        "albedo": {"prediction_space": "srgb", "up_to_scale": False},
        "material": {"prediction_space": "stack", "sub_target_names": ["roughness", "metallicity", None]},
        "roughness": _LINEAR,
        "metallicity": _LINEAR,
    },
    "iid-lighting": {
        "target_names": ["albedo", "shading", "residual"],
        "albedo": _LINEAR,
        "shading": _LIGHT,
        "residual": _LIGHT,
    },
}


def model_index(
    task: str, space: str, metric: bool, steps: int, side_px: int, scheduler: str, text_encoder: bool
) -> dict[str, Any]:
    """The content of model_index.json.

    space: that in which depth is affine; metric: depth needs neither scale nor shift; side_px: long side of the working
    size; scheduler: its class; text_encoder: whether the folder has one, and a tokenizer.
    """
    prompt = (("transformers", "CLIPTextModel"), ("transformers", "CLIPTokenizer"))
    encoder, tokenizer = prompt if text_encoder else ((None, None),) * 2
    return {
        "_class_name": PIPELINES[task],
        "_diffusers_version": diffusers.__version__,
        "default_denoising_steps": steps,
        "default_processing_resolution": side_px,
        **_of_task(task, space, metric),
        "scheduler": ["diffusers", scheduler],
        "text_encoder": list(encoder),
        "tokenizer": list(tokenizer),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _of_task(task: str, space: str, metric: bool) -> dict[str, Any]:
    if task == "depth":
        drawn = "disparity" if space == "inverse_depth" else "depth"
        return {"prediction_type": drawn, "scale_invariant": not metric, "shift_invariant": not metric}
    if task == "normals":
        return {"prediction_type": "normals", "use_full_z_range": True}
    return {"prediction_type": "intrinsics", "target_properties": TARGET_PROPERTIES[task]}
