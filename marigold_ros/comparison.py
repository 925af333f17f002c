"""What the benchmark measures in processes of their own: the start, diffusers on the same weights, and the folds."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marigold_ros.checkpoints import CheckpointInfo, describe, find_checkpoint, load_network, with_tiny_vae
from marigold_ros.config import ModelConfig
from marigold_ros.estimator import load_estimator
from marigold_ros.geometry import resize
from marigold_ros.onnx_export import onnx_program
from marigold_ros.timing import Timing, measure, timing

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny


def measure_estimator(model: ModelConfig, rgb: np.ndarray, repeats: int) -> Timing:
    """Image in, relative depth out."""
    estimator = load_estimator(model)
    return timing(measure(lambda: estimator(rgb), repeats))


def first_depth_s(model: ModelConfig, rgb: np.ndarray) -> float:
    """Seconds from nothing loaded to the first answer; in a fresh process, its libraries' imports included."""
    start = time.perf_counter()
    load_estimator(model)(rgb)
    return time.perf_counter() - start


def diffusers_installed() -> bool:
    """Whether there is something to compare with."""
    return all(importlib.util.find_spec(name) for name in ("torch", "diffusers", "transformers"))


def cuda_name() -> tuple[str, int] | None:
    """The GPU that torch sees, by its driver's name, and its streaming multiprocessors."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).multi_processor_count


def measure_diffusers(model: ModelConfig, rgb: np.ndarray, repeats: int, recipe: bool = False) -> Timing:
    """diffusers' own pipeline on the same weights and device: one step from zero latents, at the same working size.

    On a GPU in float16. recipe: as diffusers' documentation has it fastest, with the tiny VAE (of random weights where
    none is chosen) and a compiled U-Net.
    """
    import torch
    from PIL import Image

    from marigold_ros.multistep import MultiStep, Settings, quiet

    quiet()
    info = _info(model)
    cuda = torch.cuda.is_available()
    torch.set_num_threads(model.threads or len(os.sched_getaffinity(0)))
    device, dtype = ("cuda", torch.float16) if cuda else ("cpu", torch.float32)
    pipe = MultiStep(info, Settings(), device, dtype).pipeline
    pipe.set_progress_bar_config(disable=True)
    if recipe or model.vae == "tiny":
        pipe.vae = _tiny_vae(info, pipe.vae.config.latent_channels).to(device=device, dtype=dtype).eval()
    if recipe:
        pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)
    width, height = model.width or info.width, model.height or info.height
    if width * rgb.shape[0] != height * rgb.shape[1]:
        # The pipeline keeps an image's shape.
        rgb = resize(rgb, width, height)
    rows, columns = (pixels // pipe.vae_scale_factor for pixels in (height, width))
    latents = torch.zeros(1, pipe.vae.config.latent_channels, rows, columns, device=device, dtype=dtype)
    image = Image.fromarray(rgb)

    def work() -> object:
        return pipe(
            image, num_inference_steps=1, ensemble_size=1, latents=latents, output_type="np",
            processing_resolution=max(width, height),
        )  # fmt: skip

    # The answer is an array in the host's memory, so a call ends when the GPU is done.
    return timing(measure(work, repeats))


def _tiny_vae(info: CheckpointInfo, channels: int) -> AutoencoderTiny:
    from diffusers import AutoencoderTiny

    if info.tiny is None:
        return AutoencoderTiny(latent_channels=channels)
    return AutoencoderTiny.from_pretrained(info.tiny.folder, local_files_only=True)


def export_as_it_is(model: ModelConfig, path: Path, fold: bool) -> None:
    """The network as ONNX at its working size, folded or as it was trained; all else the same."""
    import torch

    from marigold_ros.folds import folded

    info = _info(model)
    network: Any = load_network(info)
    if fold:
        network = folded(network)
    example = torch.zeros(1, model.height or info.height, model.width or info.width, 3, dtype=torch.uint8)
    onnx_program(network, example, "rgb", "relative").save(path)


def measure_openvino(path: Path, threads: int, rgb: np.ndarray, repeats: int) -> Timing:
    """The ONNX file at `path` on OpenVINO; rgb: (h, w, 3) uint8 at its size."""
    from marigold_ros.engines.openvino_engine import OpenVinoEngine

    engine = OpenVinoEngine(path, threads)
    return timing(measure(lambda: engine(rgb), repeats))


def _info(model: ModelConfig) -> CheckpointInfo:
    return with_tiny_vae(describe(find_checkpoint(model.checkpoint)), model.vae, model.tiny_vae)
