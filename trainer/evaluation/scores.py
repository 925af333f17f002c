"""The scores of single images on the disk: written as they come, so that a killed run goes on where it was.

A folder of scores holds settings.json, what the scores depend on, and scores.<rank>.jsonl, a line of JSON for each
image that process <rank> has finished. All processes read all files, so that a run may go on with another number of
processes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from marigold_ros.config import Unusable
from marigold_ros.files import locked, written_beside

SETTINGS_FILE = "settings.json"
DAMAGED = "damaged"


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down in `folder` what its scores depend on; raises `Unusable` where that is something else already."""
    path = folder / SETTINGS_FILE
    wanted = json.loads(json.dumps(settings))
    with locked(path):
        if not path.is_file():
            with written_beside(path) as beside:
                beside.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
            return
        found = read_json(path)
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise Unusable(
                f"folder {folder}: holds scores with {name}={found.get(name)!r}, asked for is {wanted.get(name)!r}; "
                "give another --out, or delete that folder"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that an evaluation wrote; raises `Unusable` where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"file {path}: cannot be read ({error}); delete it and evaluate again") from error
    if not isinstance(value, dict):
        raise Unusable(f"file {path}: must hold a JSON object; delete it and evaluate again")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value`, whole or not at all."""
    with written_beside(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_scores(folder: Path) -> dict[int, dict[str, Any]]:
    """The entries of all processes by the index of the image, in its order.

    An image that was damaged and later scored counts as scored; a last line that was cut off by a kill does not count.
    """
    entries: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("scores.*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if DAMAGED not in entry or entry["index"] not in entries:
                    entries[entry["index"]] = entry
    return dict(sorted(entries.items()))


class ScoreWriter:
    """Appends to the scores of process `rank` in `folder`."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"scores.{rank}.jsonl"
        _cut_unfinished_line(self._path)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line; it is on the disk when this returns. Raises `Unusable` where it cannot be written."""
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(entry).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Unusable(f"file {self._path}: cannot be written ({error.strerror}); make room and go on") from error


def _cut_unfinished_line(path: Path) -> None:
    """Remove what a kill left behind the last whole line: the next line would be glued to it."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def images_of(rank: int, count: int, total: int) -> Iterator[int]:
    """The images that process `rank` of `count` takes."""
    return iter(range(rank, total, count))
