"""What is evaluated: a checkpoint on the estimator and engine that the robot runs, or on diffusers' pipelines.

An end-to-end fine-tuned network in its one step from zeros runs on `marigold_ros.estimator`, everything else (several
steps, ensembles, networks that start from noise, intrinsic images) on `marigold_ros.multistep`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from marigold_ros.checkpoints import CheckpointInfo
from marigold_ros.config import SIZE_STEP_PX, ModelConfig, Unusable
from marigold_ros.estimator import Estimator, load_estimator, load_normals_estimator
from marigold_ros.family import DEPTH, NORMALS, ZEROS

# diffusers takes multiples of the VAE's reduction.
_PIPELINE_STEP_PX = 8


@dataclass(frozen=True)
class How:
    """How a checkpoint is run.

    engine: as in `ModelConfig`. steps, ensemble, spacing, batch: as in `multistep.Settings`. size: 'protocol' for the
    size that the protocol asks for, 'checkpoint' for the checkpoint's own, as on the robot; see `usual_size`. threads:
    of the processor; 0 leaves them to the engine.
    """

    engine: str = "auto"
    steps: int = 0
    ensemble: int = 1
    spacing: str = ""
    batch: int = 1
    size: str = "protocol"
    threads: int = 0


@dataclass(frozen=True)
class Prediction:
    """values: (H, W[, 3]) arrays by target, see `Predictor`; working_size: (width, height) at which the network ran."""

    values: Mapping[str, np.ndarray]
    working_size: tuple[int, int]


class Predictor(Protocol):
    """Runs a checkpoint on images.

    description: what ran it.
    """

    description: str

    def __call__(self, rgb: np.ndarray, resolution: int, seed: int, focal_px: float | None = None) -> Prediction:
        """Predict for (H, W, 3) uint8; resolution: pixels of the long side, 0 the image's own; seed: of the noise.

        Depth is relative, in [0, 1] and increasing with distance; in metres where a focal length is given, which only
        checkpoints that `gives_metres` take. Normals are in the optical frame, intrinsic images as
        `multistep.Prediction`.
        """
        ...

    def close(self) -> None:
        """Free the network."""
        ...


def gives_metres(info: CheckpointInfo) -> bool:
    """Whether the checkpoint's depth is in metres already."""
    return info.kind.task == DEPTH and bool(getattr(info, "metric", None))


def usual_size(info: CheckpointInfo) -> str:
    """`How.size` where nobody asks for one.

    A checkpoint that gives metres was trained near its canonical focal length, and the robot resizes images to it: at
    the protocols' sizes its metres would be those of cameras that it does not know.
    """
    return "checkpoint" if gives_metres(info) else "protocol"


def on_estimator(info: CheckpointInfo, how: How) -> bool:
    """Whether the checkpoint runs as on the robot: its one step on an engine."""
    return info.kind.single_step is not None and how.steps in (0, 1) and how.ensemble == 1 and not how.spacing


def load_predictor(info: CheckpointInfo, how: How) -> Predictor:
    """The checkpoint, ready to be asked; raises `Unusable` for what it cannot do."""
    _choose_gpu()
    if on_estimator(info, how):
        return EstimatorPredictor(info, how)
    if how.engine not in ("auto", "torch"):
        what = f"is to take {how.steps or info.kind.steps} steps and {how.ensemble} members"
        if info.kind.target_input != ZEROS:
            what = f"starts from {info.kind.target_input} noise"
        raise Unusable(
            f"--engine {how.engine}: runs the one step from zeros of end-to-end fine-tuned networks only, and "
            f"checkpoint {info.name!r} {what}; give --engine torch"
        )
    return PipelinePredictor(info, how)


def _choose_gpu() -> None:
    """Each process of a machine takes a GPU of its own, where there are enough."""
    import torch

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def fitted_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Width and height of an image whose long side becomes `resolution` (0: as it is); rounded down, as Marigold."""
    if resolution == 0:
        return width, height
    factor = min(resolution / width, resolution / height)
    return int(width * factor), int(height * factor)


def rounded_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The nearest multiples, halves up; at least one."""
    width, height = (max(1, int(side / multiple + 0.5)) * multiple for side in size)
    return width, height


class EstimatorPredictor:
    """The one step on the robot's estimator and engine."""

    def __init__(self, info: CheckpointInfo, how: How) -> None:
        self._task, self._how = info.kind.task, how
        self._load: Callable[[ModelConfig], Estimator] = (
            load_normals_estimator if info.kind.task == NORMALS else load_estimator
        )
        self._config = ModelConfig(checkpoint=str(info.folder), engine=how.engine, threads=how.threads)
        # torch takes every multiple of 32; the exported network those of all its reductions together.
        self._multiple = SIZE_STEP_PX if how.engine == "torch" else max(SIZE_STEP_PX, info.multiple)
        self._estimator: Estimator | None = None

    @property
    def description(self) -> str:
        """Library, version, precision and device of the engine."""
        return "not loaded" if self._estimator is None else self._estimator.engine

    def __call__(self, rgb: np.ndarray, resolution: int, seed: int, focal_px: float | None = None) -> Prediction:
        """See `Predictor`; the seed means nothing to a network without noise."""
        rows, columns = rgb.shape[:2]
        if self._how.size == "checkpoint":
            size = None
        else:
            size = rounded_size(fitted_size(columns, rows, resolution), self._multiple)
        estimator = self._at(size)
        if focal_px is not None:
            metres = estimator.depth_m(rgb, focal_px)
            return Prediction({self._task: metres}, estimator.working_size(columns, rows, focal_px))
        return Prediction({self._task: estimator(rgb)}, estimator.working_size(columns, rows))

    def _at(self, size: tuple[int, int] | None) -> Estimator:
        """The estimator at this working size; loaded anew only where the engine has one size."""
        if self._estimator is not None and size is not None:
            if self._estimator.any_size or (self._estimator.width, self._estimator.height) == size:
                self._estimator.use_size(*size)
            else:
                self.close()
        if self._estimator is None:
            width, height = size or (0, 0)
            self._estimator = self._load(replace(self._config, width=width, height=height))
        return self._estimator

    def close(self) -> None:
        """Free the engine."""
        if self._estimator is not None:
            self._estimator.close()
            self._estimator = None


class PipelinePredictor:
    """diffusers' pipelines: several steps from noise, ensembles."""

    def __init__(self, info: CheckpointInfo, how: How) -> None:
        import torch

        from marigold_ros.multistep import MultiStep, Settings, quiet

        quiet()
        if how.threads:
            torch.set_num_threads(how.threads)
        self._info, self._how = info, how
        device = "cuda" if torch.cuda.is_available() else "cpu"
        settings = Settings(steps=how.steps, ensemble=how.ensemble, spacing=how.spacing, batch=how.batch)
        self._network = MultiStep(info, settings, device)
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        start = "" if info.kind.target_input == ZEROS else f", from {info.kind.target_input} noise"
        self.description = f"diffusers' pipeline, torch {torch.__version__}, float32, {name}{start}"

    def __call__(self, rgb: np.ndarray, resolution: int, seed: int, focal_px: float | None = None) -> Prediction:
        """See `Predictor`."""
        rows, columns = rgb.shape[:2]
        side = self._side(columns, rows, resolution, focal_px)
        camera = {} if focal_px is None else {"focal_px": focal_px}
        self._network.settings = replace(self._network.settings, resolution=side or -1, seed=seed, **camera)
        values = {name: answer.values for name, answer in self._network(rgb).items()}
        if focal_px is not None:
            values = {DEPTH: values["depth_m"]}
        return Prediction(values, _padded(fitted_size(columns, rows, side)))

    def _side(self, width: int, height: int, resolution: int, focal_px: float | None) -> int:
        """Pixels of the long side at which the network sees an image of `width` x `height`; 0 is its own."""
        if self._how.size == "checkpoint":
            if focal_px is not None:
                return self._network.canonical_side(width, height, focal_px)
            resolution = max(self._info.width, self._info.height)
        # Marigold's own pipeline does not pad, so that its VAE drops what is beyond a multiple of 8: 756 runs as 752.
        return resolution // _PIPELINE_STEP_PX * _PIPELINE_STEP_PX

    def close(self) -> None:
        """Free the network."""
        self._network = None


def _padded(size: tuple[int, int]) -> tuple[int, int]:
    width, height = (-(-side // _PIPELINE_STEP_PX) * _PIPELINE_STEP_PX for side in size)
    return width, height
