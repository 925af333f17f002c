"""Where compiled TensorRT plans are kept, and what each of them is good for.

A plan fits one version of TensorRT, one model of GPU and one ONNX file. All that is part of its name and of a sidecar,
a JSON file beside it, which is compared before the plan is loaded. A plan is executable content: it is loaded only from
a folder that nobody else can write to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from marigold_ros.config import Unusable
from marigold_ros.engines.cuda import Gpu
from marigold_ros.files import sha256_of, written_beside
from marigold_ros.parts import PARTS, Parts

# Part of the key: raise it when plans are built in another way.
_BUILD_VERSION = 1
# A plan takes about as much as its weights; beside it there may be an old one and the timing cache.
_DISK_FACTOR = 2.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanKey:
    """What a plan depends on. The ONNX file's checksum stands for names, types and shapes of inputs and outputs."""

    tensorrt: str
    gpu: Gpu
    system: str
    onnx: dict[str, str]
    typing: str
    build_version: int = _BUILD_VERSION

    @property
    def digest(self) -> str:
        """Hex sha256 over all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class PlanFolder:
    """The plans in `folder` for one version of TensorRT and one GPU.

    Raises `Unusable` where others can write to the folder, or it cannot be made.
    """

    def __init__(self, folder: Path, tensorrt: str, gpu: Gpu) -> None:
        self._folder = _own_folder(folder)
        self._tensorrt = tensorrt
        self._gpu = gpu

    @property
    def timing_cache(self) -> Path:
        """The file of TensorRT's timings, which hold for this version and GPU."""
        gpu = re.sub(r"\W+", "-", self._gpu.name)
        return self._folder / f"timing-trt{self._tensorrt}-{gpu}.cache"

    def key(self, parts: Parts, part: str, typing: str) -> PlanKey:
        """The key of a part's plan."""
        system = f"{platform.system()} {platform.machine()}"
        return PlanKey(self._tensorrt, self._gpu, system, parts.facts(part)["files"], typing)

    def path(self, parts: Parts, part: str, typing: str) -> Path:
        """Where the plan of a part is, or would be."""
        digest = self.key(parts, part, typing).digest
        size, precision = f"{parts.width}x{parts.height}", parts.facts(part)["precision"]
        gpu = f"sm{self._gpu.compute_capability.replace('.', '')}"
        name = f"{parts.manifest['checkpoint']}-{size}-{part}-{precision}-{gpu}-trt{self._tensorrt}-{digest[:12]}.plan"
        return self._folder / name

    def find(self, parts: Parts, part: str, typing: str, repair: bool = False) -> Path | None:
        """The plan of a part if it is there, whole and built for exactly this; its bytes are read for that.

        repair: a damaged one is put aside. Only for who holds its lock: to others it may look so while it is written.
        """
        path = self.path(parts, part, typing)
        sidecar = read_sidecar(path)
        if sidecar is None or not path.is_file():
            return None
        if sidecar.get("key") != _as_json(self.key(parts, part, typing)):
            log.warning("%s is for another engine; it is not used", path)
            return None
        if sidecar.get("sha256") != sha256_of(path):
            log.warning("%s is damaged, or just being written", path)
            if repair:
                self.quarantine(path)
            return None
        return path

    def clean(self, path: Path) -> None:
        """Remove what writers of a plan that were killed have left; only for who holds its lock."""
        for left in self._folder.glob(f"{path.stem}*.part{path.suffix}"):
            left.unlink(missing_ok=True)

    def keep(self, parts: Parts, part: str, typing: str, plan: Any, how: dict[str, Any]) -> Path:
        """Write a plan (any buffer) and its sidecar; `how` says with which settings it was built."""
        path = self.path(parts, part, typing)
        with written_beside(path) as beside:
            beside.write_bytes(plan)
            sha256 = sha256_of(beside)
        facts = {"key": asdict(self.key(parts, part, typing)), "sha256": sha256, "built": how}
        with written_beside(_sidecar(path)) as beside:
            beside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return path

    def last_export(self, parts: Parts, typing: str) -> float:
        """When all parts had been exported with this typing, in seconds of the file system's clock; 0.0: never."""
        try:
            return min(_sidecar(self.path(parts, part, typing)).stat().st_mtime for part in PARTS)
        except OSError:
            return 0.0

    @staticmethod
    def mark_exported(path: Path) -> None:
        """A plan that was there has been asked for again."""
        with contextlib.suppress(OSError):
            os.utime(_sidecar(path))

    def require_space(self, parts: Parts, part: str) -> None:
        """Raise `Unusable` where the disk is too full for the plan of `part`."""
        needed = _DISK_FACTOR * parts.facts(part)["bytes"]
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise Unusable(
                f"folder {self._folder}: {free / 1e9:.1f} GB are free, building {part} takes {needed / 1e9:.1f} GB; "
                "make room, or choose another folder with --cache-dir and model.cache_dir"
            )

    @staticmethod
    def quarantine(path: Path) -> None:
        """Put a damaged plan aside, so that it is built again."""
        bad = path.with_suffix(".bad")
        try:
            path.replace(bad)
        except OSError as error:
            log.warning("%s is damaged and cannot be renamed (%s)", path, error)
        else:
            log.warning("%s is damaged; kept as %s", path, bad.name)


def read_sidecar(plan: Path) -> dict[str, Any] | None:
    """What lies beside a plan, None where it cannot be read."""
    try:
        facts = json.loads(_sidecar(plan).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def _sidecar(plan: Path) -> Path:
    return plan.with_suffix(".json")


def _as_json(key: PlanKey) -> Any:
    return json.loads(json.dumps(asdict(key)))


def _own_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = folder.stat()
    except OSError as error:
        raise Unusable(
            f"folder {folder}: cannot be made ({error.strerror}); choose another one with --cache-dir and "
            "model.cache_dir"
        ) from error
    if facts.st_uid != os.getuid():
        raise Unusable(
            f"folder {folder}: belongs to user {facts.st_uid}, not to you ({os.getuid()}), and engines are executable; "
            "choose another one with --cache-dir and model.cache_dir"
        )
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unusable(f"folder {folder}: others can write to it, and engines are executable; chmod 700 {folder}")
    return folder
