"""What all objectives share: which parts learn, their moving average, and the constants."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from marigold_ros.network import SingleStepNetwork
from trainer.checkpointing import enable_checkpointing
from trainer.data import Batch
from trainer.frozen import FrozenPart, frozen_encoder
from trainer.latent_cache import LatentCache
from trainer.model import Model, frozen_copy
from trainer.recipe import Recipe, Stage

Losses = dict[str, Tensor]

# In what frozen parts compute, by a recipe's precision.
FROZEN_TYPES: Mapping[str, torch.dtype] = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What FSDP's version 2 gives the modules that it shards.
_FSDP_METHOD = "unshard"


class Objective(nn.Module, ABC):
    """The loss of a stage, as a module whose parameters are those that learn, and no others.

    The frozen modules are kept out of torch's sight (in a tuple), so that nobody saves, shards, averages or broadcasts
    them.
    """

    def __init__(self, model: Model, recipe: Recipe, stage: Stage) -> None:
        super().__init__()
        self.recipe, self.stage = recipe, stage
        self._hidden = (model,)
        for module in (model.unet, model.vae, model.tiny):
            if module is not None:
                module.requires_grad_(False)
        self.trained = nn.ModuleDict({name: model.part(name) for name in stage.train})
        self.trained.requires_grad_(True)
        if recipe.gradient_checkpointing:
            enable_checkpointing(model.unet)
        # Faster copies of what does not learn; in a dictionary torch does not take them for parts of this module.
        self.frozen: dict[str, FrozenPart] = {}
        if "encoder" not in stage.train and model.tiny is None:
            self.frozen["encoder"] = frozen_encoder(model.vae)
        self._cache: LatentCache | None = None
        # The robot's own network on the model's modules, for objectives that ask it; it has constants of its own.
        self._network: tuple[SingleStepNetwork, ...] = ()
        self._average = (frozen_copy(self.trained),) if self.average_decay(0) is not None else ()

    @property
    def model(self) -> Model:
        """All modules, those that learn among them."""
        return self._hidden[0]

    @property
    def average(self) -> nn.Module | None:
        """The moving average of what is trained, if the stage has one."""
        return self._average[0] if self._average else None

    def place(self, device: torch.device) -> None:
        """Move what learns and what is frozen to `device`, there laid out as convolutions are fastest."""
        self.model.to(device)
        for network in self._network:
            network.to(device)
        self._put_aside()  # after the network, which has the whole VAE
        for part in self.frozen.values():
            part.place(device, FROZEN_TYPES[self.recipe.precision])
        if self.recipe.latent_cache and "encoder" in self.frozen:
            self._cache = LatentCache(Path(self.recipe.latent_cache).expanduser(), self.frozen["encoder"])
        for module in (self.model.unet, *self._average, *self._teachers()):
            # On a CPU the gradients of weights take longer channels last.
            layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
            module.to(device, memory_format=layout)

    def _put_aside(self) -> None:
        for name in self.frozen.keys() & {"encoder", "decoder"}:
            # Only the faster copy is asked.
            getattr(self.model.vae, name).to("cpu")

    def _teachers(self) -> tuple[nn.Module, ...]:
        """Frozen networks beside the one that learns."""
        return ()

    def encode(self, picture: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to its scaled latent (N, C, H / 8, W / 8); no gradient unless the encoder learns."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "encoder" in self.stage.train):
            if "encoder" not in self.frozen:
                return self.model.encode(picture)
            latent = (self._cache or self.frozen["encoder"])(picture)
            # Laid out as the U-Net wants it, not as the encoder left it.
            return latent.contiguous() * self.model.vae.config.scaling_factor

    def average_decay(self, step: int) -> float | None:
        """Decay of the moving average after `step` steps; None where there is none."""
        ema = self.stage.optimiser.ema
        # Early on a long average would hold mostly the random start.
        return min(ema, (1 + step) / (10 + step)) if ema else None

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Take the weights of step number `step` into the moving average."""
        if self.average is not None:
            mine, theirs = list(self.average.parameters()), list(self.trained.parameters())
            torch._foreach_lerp_(mine, theirs, 1 - self.average_decay(step))

    @contextlib.contextmanager
    def as_shipped(self) -> Iterator[Model]:
        """The model with the weights that `finish` would leave, whole and on one device; then all is as it was.

        Neither copies weights nor draws random numbers.
        """
        with whole(self):
            self._swap_average()
            self.model.to(self.model.prompt.device)
            try:
                yield self.model
            finally:
                self._swap_average()
                self._put_aside()

    def _swap_average(self) -> None:
        if self.average is not None:
            for mine, average in zip(self.trained.parameters(), self.average.parameters(), strict=True):
                mine.data, average.data = average.data, mine.data

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """The losses of a pass; 'loss' is to be lowered. Whatever is drawn comes from `generator`, on the CPU."""

    def preview(self, batch: Batch) -> Tensor | None:
        """(N, 3, H, W) pictures in [-1, 1] of what the network says of a batch now; None: there is nothing to see."""
        return None

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """End the stage: the averaged weights are those that stay. `batches`: the stage's passes, from its start."""
        if self.average is not None:
            for mine, average in zip(self.trained.parameters(), self.average.parameters(), strict=True):
                mine.copy_(average)


@contextlib.contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """The weights gathered that FSDP (version 2) shards among the processes; others are whole anyway."""
    sharded = [part for part in module.modules() if hasattr(part, _FSDP_METHOD)]
    for part in sharded:
        part.unshard()
    try:
        yield
    finally:
        for part in sharded:
            part.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP's version 2 shards weights of `module` among the processes."""
    return any(hasattr(part, _FSDP_METHOD) for part in module.modules())


def image_of(batch: Batch) -> Tensor:
    """(N, 3, H, W) float32 in [-1, 1] of a batch's pictures."""
    return (batch.rgb.float() * (1.0 / 127.5) - 1.0).permute(0, 3, 1, 2).contiguous()
