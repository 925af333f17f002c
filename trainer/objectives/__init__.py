"""What the stages of a recipe teach: one module per objective."""

from __future__ import annotations

from trainer.model import Model
from trainer.objectives.autoencoder import AutoencoderObjective
from trainer.objectives.base import Objective
from trainer.objectives.consistency import ConsistencyObjective
from trainer.objectives.diffusion import DiffusionObjective
from trainer.objectives.end_to_end import EndToEndObjective
from trainer.objectives.latents import LatentsObjective
from trainer.recipe import Autoencoder, Consistency, Diffusion, EndToEnd, Latents, Recipe, Stage

OBJECTIVES = {
    Autoencoder: AutoencoderObjective,
    Consistency: ConsistencyObjective,
    Diffusion: DiffusionObjective,
    EndToEnd: EndToEndObjective,
    Latents: LatentsObjective,
}


def build_objective(model: Model, recipe: Recipe, stage: Stage) -> Objective:
    """The objective of a stage on `model`, whose trained parts it changes."""
    return OBJECTIVES[type(stage.objective)](model, recipe, stage)
