"""What a run was made with: the command, versions and machine, in run.json beside its recipe."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from marigold_ros.files import written_beside

FACTS_FILE = "run.json"
_PACKAGES = ("torch", "diffusers", "accelerate", "numpy")


def write_facts(run: Path, accelerator: Accelerator) -> None:
    """Add this sitting to those in `run`/run.json."""
    path = run / FACTS_FILE
    sittings = read_facts(run)
    sittings.append(
        {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
            "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else cpu_name(),
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "distributed": str(accelerator.distributed_type).rsplit(".", 1)[-1],
        }
    )
    with written_beside(path) as beside:
        beside.write_text(json.dumps(sittings, indent=1) + "\n", encoding="utf-8")


def read_facts(run: Path) -> list[dict[str, Any]]:
    """The sittings of a run, the first first; none of a new run."""
    try:
        found = json.loads((run / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nothing of it decides anything
        return []
    return found if isinstance(found, list) else []


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    """The processor's name and number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'}, {len(names) or 1} cores"
