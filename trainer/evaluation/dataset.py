"""The images of one dataset: its list, checked against the published count, and its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from marigold_ros.config import Unusable
from trainer.evaluation.protocols import DepthProtocol, NormalsProtocol, Protocol
from trainer.evaluation.source import Folder, Source, open_source

# Words of a line that name files which an evaluation does not read.
_UNREAD = ("filled", "focal", "stats")
_DATA_SPLIT = "data_split"


@dataclass(frozen=True)
class Item:
    """One image: its number in the list, its name, and its files by what they are (see `Protocol.columns`).

    focal_px: of its camera, in pixels of the image; None where nothing says it.
    """

    index: int
    name: str
    files: dict[str, str]
    focal_px: float | None = None


@dataclass(frozen=True)
class Dataset:
    """What a run goes through.

    items: the images. of: how many the complete list has. digest: sha256 over the lines of the complete list.
    """

    protocol: Protocol
    source: Source
    items: tuple[Item, ...]
    of: int
    digest: str

    @property
    def complete(self) -> bool:
        """Whether these are the images that the published numbers rest on, by their count."""
        return len(self.items) == self.protocol.images


def open_dataset(protocol: Protocol, data: Path, split_file: Path | None = None, limit: int | None = None) -> Dataset:
    """The dataset below the folder `data`, by its list or by `split_file`; only the first `limit` images of it.

    Raises `Unusable` where files or the list are missing, and where the images are not as many as published, unless
    `limit` says that they need not be.
    """
    if limit is not None and limit < 1:
        raise Unusable(f"--limit {limit}: must be at least 1")
    source = open_source(data, protocol.places, protocol.title)
    path = split_file or _find_list(protocol, source, data)
    lines = _read_lines(path)
    rows = [line for line in lines if "None" not in line]
    items = [_item(protocol, path, index, row) for index, row in enumerate(rows)]
    if limit is None and len(items) != protocol.images:
        without = f", {len(lines) - len(rows)} more have no truth" if len(rows) < len(lines) else ""
        raise Unusable(
            f"list {path}: has {len(items)} images{without}; the published numbers of {protocol.title} rest on "
            f"{protocol.images}: give the complete list, or --limit N for the first N images and numbers that cannot "
            "be compared with published ones"
        )
    digest = hashlib.sha256("\n".join(" ".join(row) for row in rows).encode()).hexdigest()
    return Dataset(protocol, source, tuple(items[:limit]), len(items), digest)


def missing_files(dataset: Dataset) -> list[str]:
    """The files that the list names and that are not there."""
    return [name for item in dataset.items for name in item.files.values() if not dataset.source.has(name)]


def _find_list(protocol: Protocol, source: Source, data: Path) -> Path:
    for path in _list_places(protocol, source, data):
        if path.is_file():
            return path
    raise Unusable(
        f"list of {protocol.title}: there is neither {data / _DATA_SPLIT / protocol.lists[-1]} nor "
        f"{source.place.parent / protocol.lists[0]}; copy it there (docs/evaluation.md says where from), or give "
        "--split-file"
    )


def _list_places(protocol: Protocol, source: Source, data: Path) -> Iterator[Path]:
    folders = [source.place] if isinstance(source, Folder) else []
    for folder in (*folders, source.place.parent, data, data / _DATA_SPLIT):
        for name in protocol.lists:
            yield folder / name


def _read_lines(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"list {path}: cannot be read ({error}); copy it again") from error
    return [line.split() for line in text.splitlines() if line.strip()]


def _item(protocol: Protocol, path: Path, index: int, row: Sequence[str]) -> Item:
    wanted = [column for column in protocol.columns if column not in _UNREAD]
    if len(row) < len(wanted):
        raise Unusable(
            f"list {path}: {' '.join(row)!r} has {len(row)} words; a line of {protocol.title} is "
            f"'{' '.join(protocol.columns)}'"
        )
    files = {column: word for column, word in zip(protocol.columns, row, strict=False) if column not in _UNREAD}
    if isinstance(protocol, NormalsProtocol) and "truth" not in files:
        files["truth"] = f"{row[0].rpartition('_img.')[0]}_normal.{protocol.truth}"
    return Item(index, row[0], files, _focal(protocol, path, row))


def _focal(protocol: Protocol, path: Path, row: Sequence[str]) -> float | None:
    if "focal" in protocol.columns[: len(row)]:
        word = row[protocol.columns.index("focal")]
        try:
            return float(word)
        except ValueError:
            raise Unusable(f"list {path}: focal length {word!r} is no number; copy the list again") from None
    return protocol.focal_px or None if isinstance(protocol, DepthProtocol) else None
