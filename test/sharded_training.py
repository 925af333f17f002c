"""Run by torchrun: trains a small recipe with accelerate's FSDP plug-in, its weights shared out among the processes.

    torchrun --nproc-per-node 2 test/sharded_training.py RUN DATA START RECIPE [STOP_AFTER]

The sharding is torch's own, over gloo. accelerate takes the plug-in on GPUs only, so the kind of the processes is faked.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from trainer import loop
from training import small_recipe


def main(run: Path, data: Path, start: str, name: str, stop_after: int | None) -> None:
    """Train `stop_after` steps, or to the end."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}
    os.environ |= {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    loop._accelerator = lambda recipe: Accelerator(mixed_precision=recipe.precision)
    loop.train(small_recipe(name, start, steps=3), run, data, stop_after)
    assert Accelerator().distributed_type == DistributedType.FSDP


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:5], int(sys.argv[5]) if len(sys.argv) > 5 else None)
