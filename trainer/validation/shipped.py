"""The network being trained, run on whole pictures by the code that will run its checkpoint.

That is the robot's own estimator for networks of one step, and diffusers' pipelines for those that start from noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import torch

from marigold_ros.checkpoints import CheckpointInfo
from marigold_ros.config import Unusable
from marigold_ros.estimator import Estimator, NormalsEstimator
from marigold_ros.family import E2E, Kind
from marigold_ros.network import answer, normalised
from marigold_ros.normals_frame import optical_factors
from trainer.architecture import build_scheduler
from trainer.assembly import protocol_of
from trainer.model import Model
from trainer.model_index import STEPS, model_index
from trainer.noise import Schedule
from trainer.objectives.end_to_end import denoised
from trainer.recipe import Recipe, Stage, target_input_of
from trainer.samples import Sample
from trainer.targets import TARGET_NAMES

NAME = "the network being trained"
# A sample and the seed of the noise to the arrays that the network answers, by target: (H, W) relative depth or metres,
# (H, W, 3) unit normals in the optical frame, or intrinsic images (H, W, 3) in [0, 1].
Shipped = Callable[[Sample, int], dict[str, np.ndarray]]


def shipped(model: Model, recipe: Recipe, stage: Stage) -> Shipped:
    """`model`, at the working size and with the steps that its checkpoint will ask for, on the device it lies on."""
    return OneStep(model, recipe, stage) if protocol_of(stage) == E2E else FromNoise(model, stage)


class OneStep:
    """A single-step network on the robot's estimator, from zeros or, for the ablation, from noise."""

    def __init__(self, model: Model, recipe: Recipe, stage: Stage) -> None:
        self._model, self._metric = model, recipe.metric
        kind = NormalsEstimator if model.task == "normals" else Estimator
        self._engine = _Engine(model, target_input_of(stage))
        self._estimator: Estimator = kind(_info(model, recipe), self._engine, "", *model.size, fixed=False)

    def __call__(self, sample: Sample, seed: int) -> dict[str, np.ndarray]:
        """See `Shipped`; the seed means nothing to a network that starts from zeros."""
        self._engine.seed = seed
        if self._metric is not None:
            if sample.k is None:
                raise Unusable(f"sample {sample.name}: does not know its camera, which metric depth needs")
            return {"depth": self._estimator.depth_m(sample.rgb, math.sqrt(sample.k[0, 0] * sample.k[1, 1]))}
        return {self._model.task: self._estimator(sample.rgb)}


class _Engine:
    """The module itself as an engine of the estimator: float32, at any size.

    seed: of the noise that a network with another `target_input` than zeros starts from.
    """

    description = NAME
    any_size = True
    seed = 0

    def __init__(self, model: Model, target_input: str) -> None:
        self._network = model.network().to(model.prompt.device)
        self._schedule = Schedule(model.scheduler, model.prompt.device)
        self._target_input = target_input

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """See `estimator.Engine`."""
        network, generator = self._network, torch.Generator().manual_seed(self.seed)
        picture = torch.from_numpy(rgb)[None].to(network.timestep.device)
        rgb_latent = network.encode(normalised(picture, network.unet.dtype))
        latent = denoised(network, self._schedule, rgb_latent, self._target_input, generator)
        return answer(network.decode(latent))[0].float().cpu().numpy()

    def close(self) -> None:
        """Nothing is held."""


def _info(model: Model, recipe: Recipe) -> CheckpointInfo:
    """What the checkpoint will say of itself."""
    levels = sum(len(module.config.block_out_channels) - 1 for module in (model.vae, model.unet))
    affine = recipe.metric is None
    return CheckpointInfo(
        name=NAME,
        folder=Path(),
        kind=Kind(model.task, TARGET_NAMES[model.task], E2E, 1, None),
        space=model.space,
        disparity=model.disparity,
        width=model.size[0],
        height=model.size[1],
        multiple=2**levels,
        scale_invariant=affine,
        shift_invariant=affine,
        onnx=None,
        digest="",
        metric=recipe.metric,
    )


class FromNoise:
    """A network that starts from noise, on diffusers' pipeline, with as many steps as its checkpoint will ask for."""

    def __init__(self, model: Model, stage: Stage) -> None:
        self._model, protocol = model, protocol_of(stage)
        scheduler = build_scheduler(protocol, model.scheduler)
        kind = type(scheduler).__name__
        index = model_index(model.task, model.space, False, STEPS[protocol], max(model.size), kind, False)
        # What the pipeline takes of the file, the modules apart.
        settings = {name: value for name, value in index.items() if name[0] != "_" and not isinstance(value, list)}
        modules = {"unet": model.unet, "vae": model.vae, "text_encoder": None, "tokenizer": None}
        self._pipeline = getattr(diffusers, index["_class_name"])(scheduler=scheduler, **modules, **settings)
        self._pipeline.set_progress_bar_config(disable=True)

    def __call__(self, sample: Sample, seed: int) -> dict[str, np.ndarray]:
        """See `Shipped`; the noise is the same on every device."""
        self._pipeline.empty_text_embedding = self._model.prompt
        image = torch.from_numpy(np.ascontiguousarray(sample.rgb)).permute(2, 0, 1).float() / 255.0
        drawn = self._pipeline(image, output_type="np", generator=torch.Generator().manual_seed(seed)).prediction
        if self._model.task == "depth":
            return {"depth": drawn[0, ..., 0]}
        if self._model.task == "normals":
            return {"normals": drawn[0] * np.float32(optical_factors(False))}
        return dict(zip(TARGET_NAMES[self._model.task], drawn, strict=True))
