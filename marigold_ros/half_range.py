"""Does a network fit into float16? Its largest finite number is 65504, and what is beyond is infinite.

A float32 network is watched while it answers real frames: what goes into every convolution, linear layer and
normalisation and what comes out, and a bound of the scores of every attention before their softmax.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

# A third of what float16 holds: other frames than those watched reach farther.
LIMIT = 20_000.0
_WATCHED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)


@dataclass
class Largest:
    """The largest magnitude seen, and the module that gave it."""

    value: float = 0.0
    where: str = ""

    @property
    def fits(self) -> bool:
        """Whether float16 is safe; never with NaN."""
        return self.value <= LIMIT

    def see(self, value: float, where: str) -> None:
        """Take note of a magnitude; NaN stays."""
        if not value <= self.value and self.value == self.value:
            self.value, self.where = value, where


@contextlib.contextmanager
def watched(module: nn.Module) -> Iterator[Largest]:
    """Watch `module` while the block runs it.

    Attention scores are bounded by the product of the longest query and the longest key (Cauchy-Schwarz): the true
    largest score would take as long as the attention itself.
    """
    largest = Largest()
    handles = []

    def watch(name: str, part: nn.Module) -> None:
        def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            # What goes in are sums, products and concatenations, which no module of their own gives.
            largest.see(float(given[0].abs().max()), f"{name} (input)")
            largest.see(float(output.abs().max()), name)

        handles.append(part.register_forward_hook(hook))

    def watch_scores(name: str, attention: Attention) -> None:
        longest = {}

        def measure(which: str) -> None:
            def hook(_: nn.Module, __: object, output: Tensor) -> None:
                heads = output.unflatten(-1, (attention.heads, -1))
                longest[which] = float(torch.linalg.vector_norm(heads, dim=-1).max())

            handles.append(getattr(attention, f"to_{which}").register_forward_hook(hook))

        def scores(*_: object) -> None:
            largest.see(longest["q"] * longest["k"] * attention.scale, f"{name} (scores)")

        measure("q")
        measure("k")
        handles.append(attention.register_forward_hook(scores))

    for name, part in module.named_modules():
        if isinstance(part, _WATCHED):
            watch(name, part)
        if isinstance(part, Attention):
            watch_scores(name, part)
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()
