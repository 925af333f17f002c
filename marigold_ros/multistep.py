"""diffusers' own pipelines on any checkpoint of the family: several steps, ensembles, normals, intrinsic images.

The slow, exact way: what researchers compare with. The network's answers come back as arrays by the name of what they
show.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    LCMScheduler,
    MarigoldDepthPipeline,
    MarigoldIntrinsicsPipeline,
    MarigoldNormalsPipeline,
)
from diffusers.utils import logging as diffusers_logging

from marigold_ros.canonical import check_focal, focal_after_resize
from marigold_ros.checkpoints import CheckpointInfo, load_modules, load_tiny, read_json
from marigold_ros.config import Unusable, one_line
from marigold_ros.ensemble import ensemble_depth
from marigold_ros.family import DEPTH, DIFFUSION, E2E, INTRINSICS, LCM, NORMALS, ZEROS
from marigold_ros.noise import target_noise
from marigold_ros.normals_frame import optical_factors

_LARGEST_SIDE_PX = 8192


@dataclass(frozen=True)
class Settings:
    """How to run a checkpoint; zeros and empty texts leave it to the checkpoint.

    steps: denoising steps. ensemble: members, each from other noise. resolution: pixels of the long side, a multiple of
    8; -1 is the image's own. focal_px: of the camera, in pixels of the image, for which a metric checkpoint gives
    metres; it also decides a resolution that is left open. spacing: 'leading' or 'trailing' timesteps instead of the
    checkpoint's. batch: members that run at once. diffusers_alignment: align an ensemble's depth as diffusers does.
    """

    steps: int = 0
    ensemble: int = 1
    resolution: int = 0
    focal_px: float = 0.0
    spacing: str = ""
    seed: int = 0
    batch: int = 1
    diffusers_alignment: bool = False


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    values: (H, W) float32 relative depth in [0, 1] increasing with distance, or metres; (H, W, 3) unit normals in the
    optical frame (x right, y down, z forward), or an intrinsic image (H, W, 3) in [0, 1], linear or sRGB as the
    checkpoint says. uncertainty: of the same size in the same units (normals: mean angle to the mean, of pi); None
    without an ensemble of three or more, and of metres.
    """

    values: np.ndarray
    uncertainty: np.ndarray | None


class MultiStep:
    """A checkpoint on diffusers' pipeline of its task.

    Raises `Unusable` for settings that mean nothing to the checkpoint.
    """

    def __init__(
        self, info: CheckpointInfo, settings: Settings, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.info = info
        self.settings = settings
        self.steps = settings.steps or info.kind.steps
        self._check()
        scheduler = self._scheduler()
        index = read_json(info.folder / "model_index.json")
        modules = load_modules(info.folder, dtype)
        vae = modules.vae if info.tiny is None or not info.tiny.encodes else load_tiny(info.tiny, dtype)
        kind, extra = {
            DEPTH: (
                MarigoldDepthPipeline,
                {"scale_invariant": info.scale_invariant, "shift_invariant": info.shift_invariant},
            ),
            NORMALS: (MarigoldNormalsPipeline, {"use_full_z_range": index.get("use_full_z_range", True)}),
            INTRINSICS: (MarigoldIntrinsicsPipeline, {"target_properties": index.get("target_properties")}),
        }[info.kind.task]
        prediction = index.get("prediction_type") or info.kind.task
        with self.refusing_what_diffusers_does():
            self.pipeline: DiffusionPipeline = kind(
                modules.unet,
                vae,
                scheduler,
                text_encoder=None,
                tokenizer=None,
                prediction_type=prediction,
                default_denoising_steps=self.steps,
                default_processing_resolution=max(info.width, info.height),
                **extra,
            ).to(device)
        self.pipeline.empty_text_embedding = modules.prompt.to(device=device, dtype=dtype)
        if info.kind.task == DEPTH and not settings.diffusers_alignment:
            self.pipeline.ensemble_depth = ensemble_depth

    def __call__(self, rgb: np.ndarray, progress: bool = False) -> dict[str, Prediction]:
        """(H, W, 3) uint8 -> what the checkpoint says of it, by name: 'depth', 'depth_m', 'normals', 'albedo', ...

        Raises `Unusable` where diffusers cannot run it: odd values in the checkpoint's files, too little memory.
        """
        self.pipeline.set_progress_bar_config(disable=not progress, leave=False)
        settings = self.settings
        image = _floats(rgb)
        resolution = self._resolution(rgb.shape[1], rgb.shape[0])
        with self.refusing_what_diffusers_does(f" on an image of {rgb.shape[1]}x{rgb.shape[0]}"):
            result = self.pipeline(
                image,
                num_inference_steps=self.steps,
                ensemble_size=settings.ensemble,
                processing_resolution=resolution,
                batch_size=settings.batch,
                output_uncertainty=settings.ensemble > 2,
                output_type="np",
                **self._start(image, resolution),
            )
            named = self._named(result.prediction, result.uncertainty)
        if settings.focal_px:
            named["depth_m"] = Prediction(self._depth_m(named[DEPTH].values, resolution), None)
        return named

    def preprocessed(self, rgb: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        """(H, W, 3) uint8 to (1, 3, h, w) in [-1, 1] as the network sees it, and the rows and columns padded to it."""
        return self._padded(_floats(rgb)[None], self._resolution(rgb.shape[1], rgb.shape[0]))

    def _padded(self, image: torch.Tensor, resolution: int | None) -> tuple[torch.Tensor, tuple[int, int]]:
        pipe = self.pipeline
        return pipe.image_processor.preprocess(image, self._side(resolution), "bilinear", pipe.device, pipe.dtype)[:2]

    def _resolution(self, width: int, height: int) -> int | None:
        """Pixels of the long side at which the network sees an image; 0 is the image's own, None the checkpoint's."""
        given = self.settings.resolution
        if given or not self.settings.focal_px:
            return {0: None, -1: 0}.get(given, given)
        return self.canonical_side(width, height, self.settings.focal_px)

    def canonical_side(self, width: int, height: int, focal_px: float) -> int:
        """Pixels of the long side at which a metric checkpoint sees an image of `width` x `height` taken with
        `focal_px`, so that the focal length comes near its canonical one.
        """
        zoom = self.info.metric.zoom(width, height, focal_px, self.info.width * self.info.height)
        return 8 * max(1, round(max(width, height) * zoom / 8))

    def _depth_m(self, relative: np.ndarray, resolution: int | None) -> np.ndarray:
        rows, columns = relative.shape
        side = self._side(resolution) or max(rows, columns)
        # As diffusers resizes; what it pads after that changes no focal length.
        seen = columns * side // max(rows, columns), rows * side // max(rows, columns)
        focal_px = focal_after_resize(self.settings.focal_px, (columns, rows), seen)
        return self.info.metric.depth_m(relative, focal_px)

    def _side(self, resolution: int | None) -> int:
        return self.pipeline.default_processing_resolution if resolution is None else resolution

    @contextlib.contextmanager
    def refusing_what_diffusers_does(self, on: str = "") -> Iterator[None]:
        """One sentence for whatever it raises: of many kinds, for odd values that only it reads, and for memory."""
        try:
            yield
        except Unusable:
            raise
        except Exception as error:
            raise Unusable(
                f"checkpoint {self.info.name!r}: diffusers cannot run it{on} ({one_line(error)}); give a smaller "
                "resolution if memory is short, else copy the checkpoint again"
            ) from error

    def _check(self) -> None:
        kind, settings = self.info.kind, self.settings
        where = f"checkpoint {self.info.name!r}"
        if settings.ensemble < 1 or settings.steps < 0 or settings.batch < 1:
            raise Unusable(
                f"steps={settings.steps}, ensemble={settings.ensemble}, batch={settings.batch}: must be at least 1"
            )
        if settings.resolution != -1 and (settings.resolution % 8 or not 0 <= settings.resolution <= _LARGEST_SIDE_PX):
            raise Unusable(
                f"resolution={settings.resolution}: must be a multiple of 8, at most {_LARGEST_SIDE_PX}, or -1 for the "
                "image's own"
            )
        if settings.focal_px:
            check_focal(settings.focal_px)
            if self.info.metric is None:
                raise Unusable(
                    f"{where}: focal_px={settings.focal_px} means nothing to it, it gives no metres; leave it out"
                )
        if not 0 <= settings.seed < 2**63:
            raise Unusable(f"seed={settings.seed}: must lie between 0 and {2**63 - 1}")
        if kind.protocol == E2E and (self.steps > 1 or settings.ensemble > 1):
            what = "is deterministic and has one step" if kind.target_input == ZEROS else "has one step and one member"
            raise Unusable(f"{where}: {what}; steps={self.steps} and ensemble={settings.ensemble} mean nothing to it")
        if settings.ensemble > 1 and importlib.util.find_spec("scipy") is None:
            raise Unusable(f"ensemble={settings.ensemble}: diffusers wants scipy for it; pip install scipy")
        if settings.spacing not in ("", "leading", "trailing"):
            raise Unusable(f"spacing={settings.spacing!r}: must be 'leading' or 'trailing'")
        if settings.spacing and kind.protocol != DIFFUSION:
            raise Unusable(
                f"{where}: spacing={settings.spacing!r} is for networks of many steps, this is {kind.protocol}"
            )

    def _scheduler(self) -> DDIMScheduler | LCMScheduler:
        with self.refusing_what_diffusers_does():
            scheduler = self._made_scheduler()
            # An LCM's steps are chosen among the fewer ones that it was distilled from.
            field = "original_inference_steps" if self.info.kind.protocol == LCM else "num_train_timesteps"
            most = scheduler.config[field]
            if self.steps > most:
                raise Unusable(
                    f"steps={self.steps}: checkpoint {self.info.name!r} knows {most} timesteps; give no more steps"
                )
            return scheduler

    def _made_scheduler(self) -> DDIMScheduler | LCMScheduler:
        config = read_json(self.info.folder / "scheduler" / "scheduler_config.json")
        protocol, spacing = self.info.kind.protocol, self.settings.spacing
        if protocol == LCM:
            return LCMScheduler.from_config(config)
        if protocol == E2E:
            # The end-to-end trainer decodes the denoised latent itself; with this its last step gives just that.
            return DDIMScheduler.from_config(config, set_alpha_to_one=True)
        if spacing == "leading" and config.get("rescale_betas_zero_snr"):
            raise Unusable(
                f"checkpoint {self.info.name!r}: spacing='leading' contradicts its zero-SNR schedule, which must start "
                "at the last timestep"
            )
        if self.steps == 1 and not spacing and config["timestep_spacing"] == "leading":
            raise Unusable(
                f"checkpoint {self.info.name!r}: one step with 'leading' timesteps starts at t = 1, as if its noise "
                "were almost the answer; give more steps, or spacing 'trailing' (or 'leading', to see what comes of it)"
            )
        # An LCM's scheduler, which DDIM may stand in for, clips only where it is told to; DDIM does by default.
        clip = config.get("clip_sample", config.get("_class_name") != "LCMScheduler")
        spacing = spacing or config["timestep_spacing"]
        return DDIMScheduler.from_config(config, timestep_spacing=spacing, clip_sample=clip)

    def _start(self, image: torch.Tensor, resolution: int | None) -> dict[str, Any]:
        """What an end-to-end fine-tuned network was trained to start from, else noise from the seed.

        What is drawn for the former comes from the seed anew for each image, and on the CPU: the same on every device.
        """
        pipe = self.pipeline
        if self.info.kind.protocol != E2E:
            return {"generator": torch.Generator(pipe.device).manual_seed(self.settings.seed)}
        padded, _ = self._padded(image, resolution)
        rows, columns = (pixels // pipe.vae_scale_factor for pixels in padded.shape[2:])
        channels = pipe.unet.config.out_channels
        generator = torch.Generator().manual_seed(self.settings.seed)
        start = target_noise(self.info.kind.target_input, (1, channels, rows, columns), generator)
        return {"latents": start.to(device=pipe.device, dtype=pipe.dtype)}

    def _named(self, values: np.ndarray, uncertainty: np.ndarray | None) -> dict[str, Prediction]:
        values = values.astype(np.float32)
        doubts: list[np.ndarray | None] = [None] * len(values)
        if uncertainty is not None:
            doubts = [np.squeeze(doubt.astype(np.float32)) for doubt in uncertainty]
        task = self.info.kind.task
        if task == DEPTH:
            depth = values[0, ..., 0]
            return {DEPTH: Prediction(1.0 - depth if self.info.disparity else depth, doubts[0])}
        if task == NORMALS:
            factors = np.float32(optical_factors(self.info.kind.x_left))
            return {NORMALS: Prediction(values[0] * factors, doubts[0])}
        return {
            name: Prediction(value, doubt)
            for name, value, doubt in zip(self.info.kind.targets, values, doubts, strict=True)
        }


def _floats(rgb: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1).float() / 255.0


def quiet() -> None:
    """Keep diffusers' loading messages to itself."""
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
