"""Held-out samples through the weights as they would ship, on every process some, with one answer for all of them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from marigold_ros.config import Unusable
from marigold_ros.multistep import quiet
from trainer.objectives.base import Objective, is_sharded
from trainer.recipe import Recipe, Stage
from trainer.samples import Sample
from trainer.validation.held_out import SPLITS, Pick, held_out
from trainer.validation.measures import Measures, measures_of


@dataclass(frozen=True)
class Numbers:
    """What a validation found.

    value: the measure that decides; means: of all measures over all samples, and, by 'dataset/measure', over those of
    each dataset where there are several. samples: how many were measured; seconds: how long it took.
    """

    value: float
    means: Mapping[str, float]
    samples: int
    seconds: float


class Validation:
    """The held-out samples `picks` and how a stage's weights do on them.

    Every sample is read once here, so that a run that cannot be validated says so at its start: raises `Unusable` for
    one that cannot be used, where the recipe refuses damaged samples; else it is left out, and said.
    """

    def __init__(
        self, objective: Objective, recipe: Recipe, stage: Stage, picks: list[Pick], accelerator: Accelerator
    ) -> None:
        self._objective, self._recipe, self._stage = objective, recipe, stage
        self._picks, self._accelerator = picks, accelerator
        # Sharded networks talk to each other in the middle, so that all processes must run them equally often.
        self._sharded = is_sharded(objective)
        self._told: set[int] = set()
        quiet()
        with torch.no_grad(), objective.as_shipped() as model:
            self._measures: Measures = measures_of(model, recipe, stage)
        for index in self._mine:
            self._read(index)

    @property
    def measure(self) -> str:
        """The measure that decides."""
        return self._measures.names[0]

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than `best`; None: there was none yet. NaN is better than nothing."""
        if not np.isfinite(value):
            return False
        return best is None or (value > best if self._measures.high else value < best)

    @property
    def _mine(self) -> range:
        if self._sharded:
            return range(len(self._picks))
        return range(self._accelerator.process_index, len(self._picks), self._accelerator.num_processes)

    @torch.no_grad()
    def __call__(self, stopped: Callable[[], bool]) -> Numbers | None:
        """Measure; all processes of a run call this together and get the same. None where one of them was `stopped`.

        Raises `Unusable` where no sample can be used, or where the recipe refuses damaged ones and one is.
        """
        began_s = time.monotonic()
        # A row for each sample: whether it was measured, and its measures.
        rows = np.zeros((len(self._picks), 1 + len(self._measures.names)))
        interrupted = False
        # Shards come together in the precision that they are computed in.
        precision = self._accelerator.autocast() if self._sharded else contextlib.nullcontext()
        with self._objective.as_shipped(), precision:
            for index in self._mine:
                interrupted = not self._sharded and stopped()
                if interrupted:
                    break
                sample = self._read(index)
                if sample is not None:
                    rows[index] = 1.0, *self._measures(sample, self._picks[index].source, index)
        if self._sum(np.array([float(interrupted)]))[0]:
            return None
        if self._sharded and not self._accelerator.is_main_process:
            rows[:] = 0.0
        return self._numbers(self._sum(rows), began_s)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Over all processes."""
        if self._accelerator.num_processes == 1:
            return values
        return self._accelerator.reduce(torch.from_numpy(values).to(self._accelerator.device), "sum").cpu().numpy()

    def _numbers(self, rows: np.ndarray, began_s: float) -> Numbers:
        measured = rows[:, 0] > 0
        if not measured.any():
            raise Unusable(
                f"held-out sample {self._picks[0].name}, and all {len(rows)} others: cannot be used; prepare them "
                "again, or set validate_steps: 0"
            )
        means = self._means(rows[measured])
        sources = [pick.source.name for pick in self._picks]
        for source in dict.fromkeys(sources) if len(set(sources)) > 1 else ():
            own = measured & (np.array(sources) == source)
            if own.any():
                means |= {f"{source}/{name}": value for name, value in self._means(rows[own]).items()}
        return Numbers(means[self.measure], means, int(measured.sum()), time.monotonic() - began_s)

    def _means(self, rows: np.ndarray) -> dict[str, float]:
        return dict(zip(self._measures.names, rows[:, 1:].mean(axis=0).tolist(), strict=True))

    def _read(self, index: int) -> Sample | None:
        """The sample; None where it cannot be used and the recipe allows that."""
        pick = self._picks[index]
        try:
            try:
                sample = pick.samples.read(pick.number, self._measures.maps)
                self._measures.check(sample, pick.source)
                return sample
            except Unusable as problem:
                raise Unusable(f"held-out sample {pick.name}: {problem}") from None
        except Unusable as problem:
            if self._recipe.damaged == "refuse":
                raise Unusable(f"{problem} (or set damaged: skip in the recipe)") from None
            if index not in self._told:
                self._told.add(index)
                tqdm.write(f"skipped: {problem}", file=sys.stderr)
            return None


def validation_of(
    objective: Objective, recipe: Recipe, stage: Stage, data: Path, accelerator: Accelerator
) -> Validation | None:
    """The validation of a stage; None, and a sentence that says so, where no dataset holds anything out."""
    if not recipe.validate_steps:
        return None
    kind = accelerator.distributed_type
    if kind in ("FSDP", "DEEPSPEED") and not is_sharded(objective):
        _say(accelerator, f"{kind.value} keeps the weights to itself (only FSDP's version 2 does not)", "is left out")
        return None
    picks, without = held_out(recipe, data)
    if without:
        names, splits = " and ".join(map(repr, without)), " or ".join(f"{split}/" for split in SPLITS)
        what = "is left out" if not picks else "goes without"
        _say(accelerator, f"data {names}: no samples are held out in {splits}", what)
    return Validation(objective, recipe, stage, picks, accelerator) if picks else None


def _say(accelerator: Accelerator, why: str, what: str) -> None:
    if accelerator.is_main_process:
        tqdm.write(f"{why}: validation {what}", file=sys.stderr)
