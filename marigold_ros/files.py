"""Files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from marigold_ros.config import Unusable

_LOCK_POLL_S = 0.2

log = logging.getLogger(__name__)


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
        flush(beside)
        beside.replace(path)
    except OSError as error:
        raise Unusable(f"file {path}: cannot be written ({error.strerror or error})") from error
    finally:
        beside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have a file on the disk before it is renamed: after a power cut it would be whole in name only."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def folder_written_beside(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that becomes it when the block ends well, and disappears when not.

    What is in `folder` already is replaced. Left-overs of writers that were killed are removed, so `folder` must be
    `locked`. Raises `Unusable` as `written_beside` does.
    """
    beside = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        for path in beside.rglob("*"):
            flush(path)
        if folder.exists():
            shutil.rmtree(folder)
        beside.replace(folder)
    except OSError as error:
        raise Unusable(f"folder {folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time is in the block for `path`; the others wait, which a signal ends.

    The lock is a file of its own beside `path` and goes with the process that holds it, however that ends. Raises
    `Unusable` where it cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise Unusable(f"file {lock}: cannot be written ({error.strerror or error})") from error
    with file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    log.info("another process is at work on %s; waiting for it", path)
                waiting = True
                time.sleep(_LOCK_POLL_S)
        yield
