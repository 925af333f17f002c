"""A network as a checkpoint folder in diffusers' format, written beside its place and moved there whole."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

from marigold_ros.checkpoints import ONNX_FILE, OWN_FILE, PROMPT_FILE, PROMPT_KEY, describe, seal
from marigold_ros.config import Unusable
from marigold_ros.network import SingleStepNetwork
from trainer.architecture import build_scheduler

MAX_BYTES = 20_000_000


def write_checkpoint(
    folder: Path, network: SingleStepNetwork, space: str, size: tuple[int, int], card: str, onnx: bool = True
) -> None:
    """Write `network` to `folder`, replacing what is there.

    size: working size (width, height) in pixels; card: the text of README.md; onnx: also export model.onnx.
    """
    folder = Path(folder)
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    half = copy.deepcopy(network).to(device="cpu", dtype=torch.float16)
    for name, module in (("vae", half.vae), ("unet", half.unet)):
        module.save_pretrained(beside / name)
    build_scheduler().save_pretrained(beside / "scheduler")
    save_file({PROMPT_KEY: half.prompt.contiguous()}, beside / PROMPT_FILE)
    _write_json(beside / "model_index.json", _model_index(space, size))
    own = {"name": folder.name, "space": space, "width": size[0], "height": size[1]}
    _write_json(beside / OWN_FILE, own)
    (beside / "README.md").write_text(card, encoding="utf-8")
    seal(beside)
    if onnx:
        _export(beside)
        seal(beside)
    for path in beside.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes files that only their owner may read
    _check_size(beside)
    describe(beside)
    replace_folder(beside, folder)


def _export(folder: Path) -> None:
    """Write model.onnx; in a process of its own: exporting leaves torch's tracing state and half a gigabyte behind."""
    command = [sys.executable, "-m", "marigold_ros.export", "--checkpoint", str(folder)]
    done = subprocess.run([*command, "--output", str(folder / ONNX_FILE)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unusable(f"checkpoint {folder}: cannot be exported to ONNX: {done.stderr.strip()[-2000:]}")


def _model_index(space: str, size: tuple[int, int]) -> dict:
    return {
        "_class_name": "MarigoldDepthPipeline",
        "_diffusers_version": diffusers.__version__,
        "default_denoising_steps": 1,
        "default_processing_resolution": max(size),
        "prediction_type": "disparity" if space == "inverse_depth" else "depth",
        "scale_invariant": True,
        "shift_invariant": True,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _check_size(folder: Path) -> None:
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if weights > MAX_BYTES:
        raise Unusable(
            f"checkpoint {folder}: weights of {weights} bytes; at most {MAX_BYTES} may ship, make it smaller"
        )


def replace_folder(beside: Path, folder: Path) -> None:
    """Move `beside` to `folder`; a checkpoint that was there is gone only after the new one stands.

    Raises `Unusable` where something else is there.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
        raise Unusable(f"folder {folder}: is in the way and is no checkpoint; give another one")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
