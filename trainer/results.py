"""TEMPORARY adaptor."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from marigold_ros.checkpoints import OWN_FILE, PROMPT_FILE, PROMPT_KEY
from marigold_ros.files import folder_written_beside, locked
from trainer.assembly import TINY_FOLDER
from trainer.model import Model
from trainer.recipe import Recipe


def write_result(folder: Path, model: Model, recipe: Recipe) -> None:
    with locked(folder), folder_written_beside(folder) as beside:
        model.unet.save_pretrained(beside / "unet")
        model.vae.save_pretrained(beside / "vae")
        if model.tiny is not None:
            model.tiny.save_pretrained(beside / TINY_FOLDER)
        save_file({PROMPT_KEY: model.prompt.cpu().contiguous()}, beside / PROMPT_FILE)
        (beside / "scheduler").mkdir()
        (beside / "scheduler" / "scheduler_config.json").write_text(
            json.dumps({"_class_name": "DDIMScheduler", **model.scheduler})
        )
        (beside / "model_index.json").write_text(
            json.dumps(
                {
                    "_class_name": "MarigoldDepthPipeline",
                    "prediction_type": "disparity" if model.disparity else "depth",
                    "scheduler": ["diffusers", "DDIMScheduler"],
                    "text_encoder": [None, None],
                    "tokenizer": [None, None],
                    "unet": ["diffusers", "UNet2DConditionModel"],
                    "vae": ["diffusers", "AutoencoderKL"],
                }
            )
        )
        (beside / OWN_FILE).write_text(
            json.dumps({"name": "x", "space": recipe.space, "width": recipe.size[0], "height": recipe.size[1]})
        )
