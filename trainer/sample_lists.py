"""Which samples a run was begun with: the order in which it trains on them and which weights are best rest on that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from marigold_ros.config import Unusable
from marigold_ros.files import written_beside
from trainer.recipe import Recipe
from trainer.samples import SampleFolder
from trainer.validation.held_out import held_out_split

_FILE = "samples.json"


def check_samples(run: Path, recipe: Recipe, data: Path, begun: bool, ended: bool) -> None:
    """Note the samples of a new run; of one that has `begun`, raise `Unusable` where they are not those of before.

    ended: the run has nothing left to train on; then samples that are gone do no harm.
    """
    path = run / _FILE
    try:
        now = _lists(recipe, data)
    except Unusable:
        if ended:
            return
        raise
    before = _read(path) if begun else None
    for folder in sorted({*now, *(before or {})}) if before else ():
        old, new = before.get(folder, {"samples": 0}), now.get(folder, {"samples": 0})
        if old != new:
            now_there_are = new["samples"] if old["samples"] != new["samples"] else "others"
            raise Unusable(
                f"samples {folder}: run {run} was begun with {old['samples']}, and now there are {now_there_are}; "
                "bring back those of before, or train on these in another --run (--set "
                f"start.checkpoint={run}/checkpoint goes on from what this one learnt)"
            )
    with written_beside(path) as beside:
        beside.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


def _lists(recipe: Recipe, data: Path) -> dict[str, dict[str, int | str]]:
    """By dataset and split: how many samples there are, and a checksum of their names."""
    found = {}
    for source in recipe.data:
        name = source.folder or source.name
        trained_on = SampleFolder(Path(data, name) / source.split)
        for samples in filter(None, (trained_on, held_out_split(source, data))):
            digest = hashlib.sha256("\n".join(samples.names).encode()).hexdigest()
            found[f"{name}/{samples.folder.name}"] = {"samples": len(samples), "sha256": digest}
    return found


def _read(path: Path) -> Mapping[str, dict[str, int | str]] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a run from before they were noted
        return None
