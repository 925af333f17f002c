"""What is measured on one held-out sample, by task: the measures of `trainer frames` and `trainer evaluate`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import cv2
import numpy as np
import torch
from torch import Tensor

from marigold_ros.config import Unusable
from marigold_ros.geometry import resize
from marigold_ros.network import normalised
from marigold_ros.scores import score
from trainer.evaluation import intrinsics, normals
from trainer.evaluation.protocols import protocol_of
from trainer.frames import aligned
from trainer.model import Model
from trainer.objectives.autoencoder import depth_picture
from trainer.recipe import TASKS, Autoencoder, Recipe, Source, Stage
from trainer.samples import Sample
from trainer.targets import TARGET_NAMES, pictures_of
from trainer.validation.shipped import shipped

# Fewer say nothing after a scale and a shift.
_FEWEST_PIXELS = 10
# Whose protocol the intrinsic images are compared by.
_INTRINSICS: Mapping[str, str] = {"iid-appearance": "interiorverse", "iid-lighting": "hypersim"}


class Measures(ABC):
    """Measures one sample; an answer that is not finite makes them NaN.

    names: of the measures; the first one decides which weights are best, the larger the better where `high`. maps: that
    a sample must have.
    """

    names: tuple[str, ...]
    high = False
    maps: tuple[str, ...]

    def __init__(self, model: Model, recipe: Recipe, stage: Stage) -> None:
        self._model, self._recipe, self._stage = model, recipe, stage
        self.maps = TASKS[recipe.task]

    def check(self, sample: Sample, source: Source) -> None:
        """Raises `Unusable` for a sample of `source` that cannot be measured."""
        for kind in self.maps:
            known = self._known(sample, kind, source)
            if np.count_nonzero(known) < _FEWEST_PIXELS:
                raise Unusable(f"its {kind} is known at {np.count_nonzero(known)} pixels: too few to validate on")
        if self._recipe.metric is not None and sample.k is None:
            raise Unusable("does not know its camera, which metric depth needs")

    @staticmethod
    def _known(sample: Sample, kind: str, source: Source) -> np.ndarray:
        """(H, W) bool."""
        values = sample.maps[kind]
        if kind == "depth_m":
            return (values > max(0.0, source.valid_m[0])) & (values < source.valid_m[1])
        return np.isfinite(values).all(axis=2)

    @abstractmethod
    def __call__(self, sample: Sample, source: Source, seed: int) -> tuple[float, ...]:
        """The measures in the order of `names`; seed: of the noise that the network starts from."""


class _OfAnswers(Measures):
    """On what the network answers as it would ship."""

    def __init__(self, model: Model, recipe: Recipe, stage: Stage) -> None:
        super().__init__(model, recipe, stage)
        self._network = shipped(model, recipe, stage)

    def __call__(self, sample: Sample, source: Source, seed: int) -> tuple[float, ...]:
        """See `Measures`."""
        answers = self._network(sample, seed)
        if not all(np.isfinite(values).all() for values in answers.values()):
            return (np.nan,) * len(self.names)
        return self._measured(answers, sample, source)

    @abstractmethod
    def _measured(self, answers: dict[str, np.ndarray], sample: Sample, source: Source) -> tuple[float, ...]: ...


class DepthMeasures(_OfAnswers):
    """After the scale and shift of the network's own space that give the least AbsRel; metres as they are."""

    names = ("abs_rel", "delta1")

    def _measured(self, answers: dict[str, np.ndarray], sample: Sample, source: Source) -> tuple[float, ...]:
        depth_m, known = sample.maps["depth_m"], self._known(sample, "depth_m", source)
        predicted_m = answers["depth"]
        if self._recipe.metric is None:
            predicted_m = aligned(predicted_m, depth_m, known, self._model.space, best=True)
        found = score(predicted_m, depth_m, known)
        return found.abs_rel, found.delta1


class NormalsMeasures(_OfAnswers):
    """Mean angle to the truth in degrees, and per cent of the angles below 11.25 degrees."""

    names = ("mean_deg", "a11.25")

    def _measured(self, answers: dict[str, np.ndarray], sample: Sample, source: Source) -> tuple[float, ...]:
        valid = self._known(sample, "normals", source)
        frame = normals.NormalsFrame(sample.rgb, sample.maps["normals"], valid)
        angles = normals.angles_deg(answers["normals"], frame)
        return float(angles.mean()), 100.0 * float(np.mean(angles < 11.25))


class IntrinsicsMeasures(_OfAnswers):
    """PSNR in dB: the mean over the targets, and each one's, as their published protocol compares them."""

    high = True

    def __init__(self, model: Model, recipe: Recipe, stage: Stage) -> None:
        super().__init__(model, recipe, stage)
        self._targets = TARGET_NAMES[recipe.task]
        self._protocol = protocol_of("intrinsics", _INTRINSICS[recipe.task])
        self.names = ("psnr", *(f"psnr_{target}" for target in self._targets))

    def _measured(self, answers: dict[str, np.ndarray], sample: Sample, source: Source) -> tuple[float, ...]:
        truth = pictures_of(self._recipe.task, {kind: _channels_first(sample.maps[kind]) for kind in self.maps})
        known = {name: self._known(sample, name, source)[..., None].repeat(3, axis=2) for name in self._targets}
        pictures = {
            name: (picture[0].permute(1, 2, 0).numpy() + 1) / 2
            for name, picture in zip(self._targets, truth, strict=True)
        }
        frame = intrinsics.IntrinsicsFrame(sample.rgb, pictures, known)
        found = []
        for name in self._targets:
            p, g = intrinsics.compared(answers[name], frame, name, self._protocol)
            found.append(intrinsics.psnr(p[known[name]], g[known[name]]))
        return float(np.mean(found)), *found


class ReconstructionMeasures(Measures):
    """Mean squared error in [-1, 1] of what comes back from the VAE: of the depth map, and of the image.

    A VAE alone answers no depth yet.
    """

    names = ("mse_depth", "mse_image")

    def __call__(self, sample: Sample, source: Source, seed: int) -> tuple[float, ...]:
        """See `Measures`."""
        width, height = self._model.size
        device = self._model.prompt.device
        rgb = np.ascontiguousarray(resize(sample.rgb, width, height))
        depth_m = cv2.resize(sample.maps["depth_m"], (width, height), interpolation=cv2.INTER_NEAREST)
        image = normalised(torch.from_numpy(rgb)[None].to(device), torch.float32)
        known = torch.from_numpy(depth_m)[None].to(device)
        drawn = depth_picture(known, self._recipe.space, self._stage.objective.relative)
        error = (self._reconstructed(torch.cat([drawn, image])) - torch.cat([drawn, image])).square()
        return float(error[0, :, ~known[0].isnan()].mean()), float(error[1].mean())

    def _reconstructed(self, pictures: Tensor) -> Tensor:
        vae = self._model.vae
        return vae.decode(vae.encode(pictures).latent_dist.mode(), return_dict=False)[0].float()


def _channels_first(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).movedim(-1, 0)[None]


def measures_of(model: Model, recipe: Recipe, stage: Stage) -> Measures:
    """Those of the recipe's task; of a stage that trains the VAE alone, those of the VAE."""
    if isinstance(stage.objective, Autoencoder):
        return ReconstructionMeasures(model, recipe, stage)
    kinds = {"depth": DepthMeasures, "normals": NormalsMeasures}
    return kinds.get(recipe.task, IntrinsicsMeasures)(model, recipe, stage)
