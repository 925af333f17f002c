"""python -m trainer benchmark: samples per second and peak memory of a training step, against plain diffusers.

Our step and the plain one (trainer/plain_step.py) run on the same network and the same batch, each in a process of its
own, and take turns: others slow a shared machine down for seconds. Speed does not depend on what the weights are, so
recipes that start from published weights run here on random ones. A step is one pass and one step of the optimiser.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from marigold_ros.config import Unusable
from marigold_ros.roofline import size_of
from trainer.facts import cpu_name
from trainer.loading import loading_table
from trainer.recipe import Recipe, one_of
from trainer.recipe_files import load_recipe, shipped_recipes
from trainer.stand_ins import network_name
from trainer.step_process import OURS, PLAIN, PRECISIONS, Case, step_processes
from trainer.train import changes_in

# Without a given size; of the published networks' size, a GPU's.
_SIZE, _SIZE_SD2 = (256, 192), (640, 480)
_HEADS = (
    "recipe", "network", "size", "batch",
    "plain, samples/s", "ours, samples/s", "times as fast", "plain, peak MB", "ours, peak MB",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Seconds of steps in turns, (rounds, 2): ours and plain; peak memory in MB; how many samples a step takes."""

    seconds: np.ndarray
    peaks_mb: tuple[float, float]
    batch: int

    @property
    def samples_per_s(self) -> tuple[float, float]:
        """Medians of ours and plain."""
        ours, plain = self.batch / np.median(self.seconds, axis=0)
        return float(ours), float(plain)

    @property
    def ratio(self) -> str:
        """How many times as fast our step was: median of the rounds, smallest and largest."""
        ratios = self.seconds[:, 1] / self.seconds[:, 0]
        return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def main(argv: list[str]) -> int:
    """Measure what was asked for and print it as Markdown."""
    arguments = _parser().parse_args(argv)
    network = "sd2" if arguments.sd2 else arguments.checkpoint
    sizes = arguments.size or [_SIZE_SD2 if arguments.sd2 else _SIZE]
    recipes = {name: _recipe(name, arguments) for name in arguments.recipe or shipped_recipes()}
    print(f"{_machine(arguments.threads)}; {arguments.rounds} rounds\n")
    if arguments.data:
        for (name, recipe), size, batch in product(recipes.items(), sizes, arguments.batch):
            print(loading_table(name, recipe, network, size, batch, arguments.data, arguments.seconds), flush=True)
        return 0
    print(_row(_HEADS) + "\n" + "|---" * len(_HEADS) + "|", flush=True)
    for row in _rows(recipes, network, sizes, arguments.batch, arguments.rounds):
        print(_row(row), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer benchmark", description=__doc__.partition("\n")[2])
    parser.add_argument(
        "--recipe", nargs="+", help="recipes, by name or file (default: all that come with the package)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--checkpoint", default="mid", metavar="FOLDER", help="start from this (default: random networks of half width)"
    )
    which.add_argument("--sd2", action="store_true", help="random networks of Stable Diffusion 2's size: 20 GB")
    parser.add_argument("--size", type=size_of, nargs="+", metavar="WxH", help="of pictures, pixels (default 256x192)")
    parser.add_argument("--batch", type=int, nargs="+", default=[2], metavar="N", help="pictures in a step (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="turns (default 5)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU, of each process; 0 leaves it to torch")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="measure how fast the samples in DIR are loaded instead"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement with --data (default 10)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as for train: precision=bf16")
    return parser


def _recipe(name: str, arguments: argparse.Namespace) -> Recipe:
    for option, number in (("--rounds", arguments.rounds), *(("--batch", batch) for batch in arguments.batch)):
        if number < 1:
            raise Unusable(f"{option} {number}: must be at least 1")
    recipe = load_recipe(name, changes_in(arguments.set))
    one_of(f"recipe {name!r}: measured precision", recipe.precision, tuple(PRECISIONS))
    return replace(recipe, threads=arguments.threads)


def _machine(threads: int) -> str:
    load = f"load before {os.getloadavg()[0]:.1f}"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {load}"
    return f"{cpu_name()}, {threads or torch.get_num_threads()} threads, torch {torch.__version__}, {load}"


def _rows(
    recipes: dict[str, Recipe], network: str, sizes: list[tuple[int, int]], batches: list[int], rounds: int
) -> Iterator[Iterable[str]]:
    for (name, recipe), size, batch in product(recipes.items(), sizes, batches):
        case = (name, network_name(recipe, network), f"{size[0]}x{size[1]}", str(batch))
        try:
            found = compare(recipe, network, size, batch, rounds)
        except Unusable as problem:  # of a table, all but this row may be had
            print(f"{name}: {problem}", file=sys.stderr)
            yield *case, *"-----"
            continue
        ours, plain = (f"{rate:.3g}" for rate in found.samples_per_s)
        mine_mb, theirs_mb = (f"{peak:.0f}" for peak in found.peaks_mb)
        yield *case, plain, ours, found.ratio, theirs_mb, mine_mb


def compare(recipe: Recipe, network: str, size: tuple[int, int], batch: int, rounds: int) -> Comparison:
    """Both steps of the last stage of `recipe` in turns; raises `Unusable` where one of them cannot run."""
    cases = [Case(kind, recipe, network, size, batch) for kind in (OURS, PLAIN)]
    with step_processes(cases) as processes:
        seconds = np.array([[process.step_s() for process in processes] for _ in range(rounds)])
        mine_mb, theirs_mb = (process.peak_mb() for process in processes)
    return Comparison(seconds, (mine_mb, theirs_mb), batch)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
