"""The network as three ONNX files for TensorRT: encode, step and decode, each of one static size.

Three files rather than one: a swapped VAE rebuilds its halves only, and building takes less memory. They lie in one
folder of the cache, with a manifest of their checksums and with torch's answers for the self-check.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marigold_ros.checkpoints import CheckpointInfo
from marigold_ros.config import Unusable
from marigold_ros.files import sha256_of
from marigold_ros.selfcheck import reference_of

PARTS = ("encode", "step", "decode")
# Names of the tensors between the parts; the first goes into the first part, the last comes out of the last.
TENSORS = ("rgb", "rgb_latent", "target_latent", "answer")
MANIFEST = "network.json"
# Which parts compute in INT8, by the values of model.int8.
INT8_PARTS = {"none": (), "step": ("step",), "all": PARTS}
# Of the quantised files: float16 scales came with it, all else is as in 18. TensorRT 10.0 reads up to 20.
INT8_OPSET = 19
# Part of the folders' names: raise it when the exported graphs change.
_PARTS_VERSION = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """A folder with the three parts of one network at one size.

    manifest: what network.json says: per part the checksums of its files, its float type, and what that rests on.
    """

    folder: Path
    width: int
    height: int
    manifest: dict[str, Any]

    @property
    def network(self) -> Path:
        """The manifest, which stands for the whole network: the self-check's reference lies beside it."""
        return self.folder / MANIFEST

    def onnx(self, part: str) -> Path:
        """The ONNX file of `part`."""
        return self.folder / f"{part}.onnx"

    def facts(self, part: str) -> dict[str, Any]:
        """Checksums, bytes and float type of `part`."""
        return self.manifest["parts"][part]

    def require_whole(self) -> None:
        """Raise `Unusable` where a file is missing or damaged. Reads them all: gigabytes for a large network."""
        for part in PARTS:
            for name, sha256 in self.facts(part)["files"].items():
                path = self.folder / name
                if not path.is_file() or sha256_of(path) != sha256:
                    raise Unusable(
                        f"exported network {path}: is missing or damaged; remove {self.folder} and export again"
                    )


def parts_folder(info: CheckpointInfo, width: int, height: int, cache: Path, int8: str = "none") -> Path:
    """Where `cache` keeps the parts of a checkpoint at a working size in pixels; int8: as `model.int8`."""
    suffix = "" if int8 == "none" else f"-int8-{int8}"
    return cache / "parts" / f"{info.name}-{info.digest[:16]}-{width}x{height}{suffix}-v{_PARTS_VERSION}"


def ready_parts(info: CheckpointInfo, width: int, height: int, cache: Path, int8: str = "none") -> Parts | None:
    """The checkpoint's parts in `cache`, or None where they are not there, or not all."""
    return read_parts(parts_folder(info, width, height, cache, int8))


def read_parts(folder: Path) -> Parts | None:
    """The parts in `folder`, if its manifest can be read and names files that are there; their content is not read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        parts = Parts(folder, int(manifest["width"]), int(manifest["height"]), manifest)
        names = [name for part in PARTS for name in parts.facts(part)["files"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged (%s)", folder / MANIFEST, error)
        return None
    whole = all((folder / name).is_file() for name in names) and reference_of(parts.network).is_file()
    return parts if whole else None


def all_parts(cache: Path) -> list[Parts]:
    """Every network in `cache` that is exported for TensorRT."""
    folders = sorted((cache / "parts").glob(f"*-v{_PARTS_VERSION}"))
    return [parts for folder in folders if (parts := read_parts(folder)) is not None]
