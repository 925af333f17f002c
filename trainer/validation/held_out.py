"""Which samples a run is validated on: the same ones each time, of the split that each dataset holds out itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marigold_ros.config import Unusable
from trainer.recipe import Recipe, Source
from trainer.samples import SampleFolder

# As `collect` and `generate` name it, and `prepare`; the datasets' 'test' is for the end.
SPLITS = ("held_out", "val")


@dataclass(frozen=True)
class Pick:
    """Sample `number` of the `samples` that dataset `source` holds out."""

    source: Source
    samples: SampleFolder
    number: int

    @property
    def name(self) -> str:
        """Dataset, split and sample."""
        folder = self.samples.folder
        return f"{folder.parent.name}/{folder.name}/{self.samples.names[self.number]}"


def held_out(recipe: Recipe, data: Path) -> tuple[list[Pick], list[str]]:
    """About `validate_samples` samples, shared out by the datasets' weights and spread evenly over each one's split.

    Also the names of the datasets that hold nothing out. Every dataset that does has one sample at least.
    """
    splits = {source.name: held_out_split(source, data) for source in recipe.data}
    total = sum(source.weight for source in recipe.data if splits[source.name] is not None)
    picks = []
    for source in recipe.data:
        samples = splits[source.name]
        if samples is not None:
            count = min(len(samples), max(1, round(recipe.validate_samples * source.weight / total)))
            picks += [Pick(source, samples, int(number)) for number in np.arange(count) * len(samples) // count]
    return picks, [name for name, samples in splits.items() if samples is None]


def held_out_split(source: Source, data: Path) -> SampleFolder | None:
    """The samples that `source` holds out; None where there are none."""
    for split in SPLITS:
        folder = Path(data, source.folder or source.name) / split
        # What is trained on shows nothing.
        if split != source.split and folder.is_dir():
            try:
                return SampleFolder(folder)
            except Unusable:  # it is empty
                continue
    return None
