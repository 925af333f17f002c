"""A new U-Net learns the language of its VAE: the latent that the encoder gives of the true depth map, in one step."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.data import Batch
from trainer.frozen import frozen_encoder
from trainer.model import Model
from trainer.objectives.autoencoder import depth_picture
from trainer.objectives.base import Losses, Objective, image_of
from trainer.recipe import Recipe, Stage


class LatentsObjective(Objective):
    """L1 + L2 between the predicted latent and that of the depth map, by the encoder as it was before the stage.

    The encoder being trained would not do as a teacher: it learns to see images.
    """

    def __init__(self, model: Model, recipe: Recipe, stage: Stage) -> None:
        super().__init__(model, recipe, stage)
        self._network = (model.network(),)
        self.frozen["teacher"] = self.frozen.get("encoder") or frozen_encoder(model.vae)

    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """See `Objective`."""
        network = self._network[0]
        latent = network.predict(self.encode(image_of(batch)))
        with torch.no_grad():
            wanted = self._wanted(
                depth_picture(batch.maps["depth_m"], self.recipe.space, self.stage.objective.relative)
            )
        error = latent.float() - wanted.float()
        losses = {"latent_l1": error.abs().mean(), "latent_l2": error.square().mean()}
        losses["loss"] = losses["latent_l1"] + losses["latent_l2"]
        return losses

    def _wanted(self, picture: Tensor) -> Tensor:
        return self.frozen["teacher"](picture) * self.model.vae.config.scaling_factor

    @torch.no_grad()
    def preview(self, batch: Batch) -> Tensor:
        """What the decoder draws of the predicted latents."""
        network = self._network[0]
        return network.decode(network.predict(self.encode(image_of(batch)))).float().expand(-1, 3, -1, -1)
