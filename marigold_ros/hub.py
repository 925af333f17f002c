"""Checkpoints by hub id: in huggingface_hub's local cache, or downloaded into it when asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from marigold_ros.config import Unusable, one_line

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ("*.json", "*.txt", "*.safetensors")
_HALF = ".fp16.safetensors"
_PATIENCE_S = 20.0


def is_hub_id(name: str) -> bool:
    """Whether `name` looks like OWNER/MODEL."""
    return _ID.fullmatch(name) is not None


def cached(name: str, what: str, options: str) -> Path:
    """The folder of hub id `name` in the local cache; the network is not asked.

    Errors call it `what`, for example 'checkpoint'; `options` are those with which the program export downloads it.
    """
    hub = _library(name, what)
    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:  # huggingface_hub's own errors are of these kinds
        raise Unusable(
            f"{what} {name!r}: is no folder, and not in the cache of the hub; download it with "
            f"'ros2 run marigold_ros export {options}' (or python -m marigold_ros.export)"
        ) from error


def download(name: str, what: str) -> Path:
    """The folder of hub id `name`, fetched into the local cache as far as it is not there; errors call it `what`.

    Of weights that are offered in both precisions the half one is taken: engines compute in it.
    """
    hub = _library(name, what)
    try:
        files = [file.rfilename for file in hub.HfApi().model_info(name, timeout=_PATIENCE_S).siblings]
        halves = {file.replace(_HALF, ".safetensors") for file in files if file.endswith(_HALF)}
        return Path(hub.snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=sorted(halves)))
    except Exception as error:  # its own kinds, and those of whatever it speaks HTTP with
        raise Unusable(
            f"{what} {name!r}: cannot be downloaded ({one_line(error)}); where the hub can be "
            f"reached, run 'hf download {name} --local-dir FOLDER', copy FOLDER here and give its path"
        ) from error


def name_of(folder: Path) -> str:
    """The model's name, for a folder in the hub's cache (models--OWNER--MODEL/snapshots/COMMIT) or any other."""
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _library(name: str, what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise Unusable(
            f"{what} {name!r}: is no folder, and hub ids need huggingface_hub (pip install huggingface_hub)"
        ) from None
    return huggingface_hub
