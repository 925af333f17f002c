"""A real checkpoint on disk that is made in seconds: the bundled network's kind with random weights."""

import json
from pathlib import Path

import torch

from marigold_ros.checkpoints import OWN_FILE, seal
from trainer.architecture import build_unet, build_vae, constant_prompt
from trainer.package import Member, write_member


def write_small_checkpoint(folder: Path, space: str = "inverse_depth", onnx: bool = False, task: str = "depth") -> Path:
    """Write a checkpoint of a few thousand parameters, working size 128x96, into `folder` and return it."""
    torch.manual_seed(0)
    vae, unet = build_vae((8, 8, 16, 16), 4, groups=4), build_unet((32, 32, 64), 4, prompt_width=16)
    member = Member(unet, vae, constant_prompt(16), task, "e2e", (128, 96), space)
    write_member(folder, member, "# A small checkpoint with random weights\n", onnx=onnx)
    return folder


def make_metric(folder: Path, canonical_focal_px: float = 500.0, d_min_m: float = 0.1, d_max_m: float = 80.0) -> Path:
    """Let the depth checkpoint in `folder` say that its answer is log depth between two limits; returns it."""
    changes = {"scale_invariant": False, "shift_invariant": False, "prediction_type": "depth"}
    metric = {"d_min_m": d_min_m, "d_max_m": d_max_m, "canonical_focal_px": canonical_focal_px}
    edit_json(folder / "model_index.json", **changes)
    edit_json(folder / OWN_FILE, space="log_depth", metric=metric)
    if "manifest" in json.loads((folder / OWN_FILE).read_text()):
        seal(folder)
    return folder


def edit_json(path: Path, **changes: object) -> None:
    """Change entries of a JSON object, which may not be there yet."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}))
