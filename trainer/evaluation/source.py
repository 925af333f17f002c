"""The files of a dataset as published: a folder, or a .tar that is read without unpacking it."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from marigold_ros.config import Unusable


class Source(Protocol):
    """Files by their path relative to the dataset, as the published lists name them."""

    place: Path

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        ...

    def read(self, name: str) -> bytes:
        """The file's bytes; raises `Unusable` where it is missing or cannot be read."""
        ...


class Folder:
    """The files below `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.place / name).is_file()

    def read(self, name: str) -> bytes:
        """The file's bytes."""
        try:
            return (self.place / name).read_bytes()
        except OSError as error:
            raise Unusable(f"{_file(self.place / name)}: cannot be read ({error.strerror})") from error


class Tar:
    """The files in the archive `place`, with or without './' before their names."""

    def __init__(self, place: Path) -> None:
        self.place = place
        try:
            self._tar = tarfile.open(place)  # noqa: SIM115  it stays open as long as the dataset is read
            members = self._tar.getmembers()
        except (OSError, tarfile.TarError) as error:
            raise Unusable(f"archive {place}: cannot be read ({error}); download it again") from error
        self._members = {member.name.removeprefix("./"): member for member in members if member.isfile()}

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return name in self._members

    def read(self, name: str) -> bytes:
        """The file's bytes."""
        if name not in self._members:
            raise Unusable(f"{_file(self.place / name)}: is not in the archive")
        try:
            file = self._tar.extractfile(self._members[name])
            data = b"" if file is None else file.read()
        except (OSError, tarfile.TarError) as error:
            raise Unusable(f"{_file(self.place / name)}: cannot be read ({error})") from error
        if len(data) != self._members[name].size:
            raise Unusable(f"{_file(self.place / name)}: the archive ends within it; download it again")
        return data


def open_source(data: Path, places: Sequence[str], what: str) -> Source:
    """The first of `places` below the folder `data` that exists; raises `Unusable`, which calls it `what`."""
    for place in places:
        path = data / place
        if path.is_dir():
            return Folder(path)
        if path.is_file():
            return Tar(path)
    raise Unusable(
        f"dataset {what} in {data}: there is none of {', '.join(places)}; docs/evaluation.md says where to get it"
    )


def _file(path: Path) -> str:
    return f"dataset file {path}"
