"""Several processes that train one network together, each on its share of every batch (started by `torchrun`)."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """rank: number of this process, from 0; count: how many there are."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def join() -> Ranks:
        """This process's place among those that torchrun started; one alone where it did not."""
        if "WORLD_SIZE" not in os.environ:
            return Ranks()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return Ranks(dist.get_rank(), dist.get_world_size())

    def average_(self, gradients: list[Tensor], facts: Tensor) -> Tensor:
        """Replace `gradients` by their means over the processes; returns the mean of the small vector `facts`.

        One message for all of it: a network like `nano` has hundreds of tensors, most of them tiny.
        """
        if self.count == 1:
            return facts
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), facts.to(gradients[0])])
        dist.all_reduce(flat)
        flat /= self.count
        sizes = [gradient.numel() for gradient in gradients]
        *means, facts = flat.split([*sizes, facts.numel()])
        torch._foreach_copy_(gradients, [m.view_as(g) for m, g in zip(means, gradients, strict=True)])
        return facts.cpu()


ALONE = Ranks()
