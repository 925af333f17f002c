"""Checkpoints by hub id: in huggingface_hub's local cache, or downloaded into it when asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from marigold_ros.config import Unusable, one_line

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ("*.json", "*.txt", "*.safetensors")
_HALF = ".fp16.safetensors"
# Of the files outside of folders; others repeat in one file what the folders hold.
_WANTED_AT_TOP = ("diffusion_pytorch_model", "empty_prompt")
_PATIENCE_S = 20.0


def is_hub_id(name: str) -> bool:
    """Whether `name` looks like OWNER/MODEL."""
    return _ID.fullmatch(name) is not None


def cached(name: str, what: str, downloads: str) -> Path:
    """The folder of hub id `name` in the local cache; the network is not asked.

    Errors call it `what`, for example 'checkpoint', and say what `downloads` it.
    """
    hub = _library(name, what)
    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:  # huggingface_hub's own errors are of these kinds
        raise Unusable(
            f"{what} {name!r}: is no folder, and not in the cache of the hub; download it with {downloads}"
        ) from error


def download(name: str, what: str, half: bool = True) -> Path:
    """The folder of hub id `name`, fetched into the local cache as far as it is not there; errors call it `what`.

    Of weights that are offered in both precisions the half one is taken, because engines compute in it, or the full
    one, to train from.
    """
    hub = _library(name, what)
    try:
        files = [file.rfilename for file in hub.HfApi().model_info(name, timeout=_PATIENCE_S).siblings]
        return Path(hub.snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_unwanted(files, half)))
    except Exception as error:  # its own kinds, and those of whatever it speaks HTTP with
        raise Unusable(
            f"{what} {name!r}: cannot be downloaded ({one_line(error)}); where the hub can be "
            f"reached, run 'hf download {name} --local-dir FOLDER', copy FOLDER here and give its path"
        ) from error


def _unwanted(files: list[str], half: bool) -> list[str]:
    """Weights that are there twice: in another precision, or outside of their folder."""
    pairs = {file: file.replace(_HALF, ".safetensors") for file in files if file.endswith(_HALF)}
    other = {full if half else small for small, full in pairs.items() if full in files}
    weights = (file for file in files if file.endswith(".safetensors") and "/" not in file)
    return sorted(other | {file for file in weights if not file.startswith(_WANTED_AT_TOP)})


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
