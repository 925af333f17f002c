"""How fast the data loader gives samples, beside how fast training takes them: whether data starves the device."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from trainer.data import Passes, passes_of
from trainer.recipe import Recipe
from trainer.step_process import OURS, Case, step_processes

# As many steps as nobody measures: the loader must not come to its end.
_STEPS = 100_000
# The loader fills this many passes ahead for each worker; those do not count.
_AHEAD = 4


def loading_table(
    name: str, recipe: Recipe, network: str, size: tuple[int, int], batch: int, data: Path, seconds: float
) -> str:
    """Samples per second by number of workers, and how many times what our step of the last stage takes, as Markdown.

    The step runs before, alone. data: the folder of the sources' folders. Raises `Unusable` where these are not there.
    """
    width, height = size
    stage = replace(
        recipe.stages[-1], steps=_STEPS, batch=batch, micro_batch=batch, sizes=((float(width), float(height), 1.0),)
    )
    passes = Passes(recipe, stage, 0, data)
    with step_processes([Case(OURS, recipe, network, size, batch)]) as (process,):
        # The fastest: the hardest to keep up with.
        taken = batch / min(process.step_s() for _ in range(3))
    lines = [
        f"{name} at {width}x{height}, batch {batch}: the step takes {taken:.3g} samples/s.\n",
        "| workers | samples/s | times what the step takes |",
        "|---|---|---|",
    ]
    for workers in worker_counts():
        given = samples_per_s(passes, workers, seconds)
        lines.append(f"| {workers} | {given:.1f} | {given / taken:.1f} |")
    return "\n".join([*lines, ""])


def worker_counts() -> list[int]:
    """None, and powers of two up to the number of cores."""
    cores = len(os.sched_getaffinity(0))
    return [0, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)]


def samples_per_s(passes: Passes, workers: int, seconds: float) -> float:
    """Samples that `workers` processes (0: this one) give in a second, measured for so many seconds."""
    batches = passes_of(passes, 0, 0, 1, workers)
    try:
        for _ in range(1 + _AHEAD * workers):
            next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds or not count:
            next(batches)
            count += 1
        return count * passes.stage.micro_batch / (time.perf_counter() - start)
    finally:
        batches.close()
