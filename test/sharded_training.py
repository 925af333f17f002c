"""Run by torchrun: trains small recipes with accelerate's FSDP plug-in, their weights shared out among the processes.

    torchrun --nproc-per-node 2 test/sharded_training.py OUT DATA START

leaves the runs `whole` and `resumed` of one recipe in OUT, and in `refusal-*` why others cannot be sharded. The
sharding is torch's own, over gloo. accelerate takes the plug-in on GPUs only, so the kind of the processes is faked.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from marigold_ros.config import Unusable
from trainer import loop
from trainer.recipe import Recipe
from training import small_recipe


def sharding(recipe: Recipe) -> Accelerator:
    """An accelerator that shards; each stage makes one."""
    return Accelerator(mixed_precision=recipe.precision)


def main(out: Path, data: Path, start: str) -> None:
    """Train."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}
    os.environ |= {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    loop._accelerator = sharding
    for run, stops in (("whole", (None,)), ("resumed", (2, None))):
        for stop_after in stops:
            loop.train(small_recipe("e2e-depth", start, steps=3), out / run, data, stop_after)
    assert Accelerator().distributed_type == DistributedType.FSDP
    for name in ("nano", "lcm"):
        try:
            loop.train(small_recipe(name, start), out / name, data)
        except Unusable as problem:
            (out / f"refusal-{name}").write_text(str(problem))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
