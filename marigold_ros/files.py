"""Files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from marigold_ros.config import Unusable


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A temporary file in `path`'s folder that replaces `path` when the block ends well, and disappears when not.

    Raises `Unusable` where the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=path.stem, suffix=f".part{path.suffix}", dir=path.parent)
    except OSError as error:
        raise Unusable(
            f"folder {path.parent}: cannot be written ({error.strerror}); make it writable, or give another one "
            "(that of exported networks is model.cache_dir)"
        ) from error
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        os.chmod(beside, 0o644)
        beside.replace(path)
    except OSError as error:
        raise Unusable(f"file {path}: cannot be written ({error.strerror or error})") from error
    finally:
        beside.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
