"""Which samples a run was begun with: the order in which it trains on them and which weights are best rest on that."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from marigold_ros.config import Unusable
from marigold_ros.files import written_beside
from trainer.recipe import Recipe
from trainer.samples import SampleFolder
from trainer.validation.held_out import held_out_split

_FILE = "samples.json"
_List = dict[str, Any]


def check_samples(run: Path, recipe: Recipe, data: Path, begun: bool, ended: bool) -> None:
    """Note the samples of a new run; of one that has `begun`, raise `Unusable` where they are not those of before.

    ended: the run has nothing left to train on; then that is only said.
    """
    path = run / _FILE
    before = _read(path) if begun else None
    try:
        now = _lists(recipe, data)
    except Unusable:
        if ended:
            return
        raise
    change = None if before is None else _change(before, now)
    if change is None:
        with written_beside(path) as beside:
            beside.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return
    text = f"{change}; to train on these, begin another --run with --set start.checkpoint={run}/checkpoint"
    if not ended:
        raise Unusable(f"run {run}: {text}; to go on with this one, bring back those of before")
    tqdm.write(f"run {run} has ended: {text}", file=sys.stderr)


def _change(before: Mapping[str, _List], now: Mapping[str, _List]) -> str | None:
    """What is not as it was, None where all is."""
    nothing: _List = {"samples": 0}
    for folder in sorted({*now, *before}):
        old, new = before.get(folder, nothing), now.get(folder, nothing)
        if old != new:
            there_are = new["samples"] if old["samples"] != new["samples"] else "others"
            return f"it was begun with {old['samples']} samples in {folder}, and now there are {there_are}"
    return None


def _lists(recipe: Recipe, data: Path) -> dict[str, _List]:
    """By dataset and split: how many samples there are, and a checksum of their names."""
    found = {}
    for source in recipe.data:
        name = source.folder or source.name
        trained_on = SampleFolder(Path(data, name) / source.split)
        for samples in filter(None, (trained_on, held_out_split(source, data))):
            digest = hashlib.sha256("\n".join(samples.names).encode()).hexdigest()
            found[f"{name}/{samples.folder.name}"] = {"samples": len(samples), "sha256": digest}
    return found


def _read(path: Path) -> Mapping[str, _List] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a run from before they were noted
        return None
