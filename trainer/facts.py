"""What a run was made with: the command, versions and machine, in run.json beside its recipe."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import torch
from accelerate import Accelerator

import marigold_ros
from marigold_ros.files import written_beside

FACTS_FILE = "run.json"
_PACKAGES = ("torch", "diffusers", "accelerate", "numpy")
_GIT_PATIENCE_S = 10.0


def write_facts(run: Path, accelerator: Accelerator) -> None:
    """Add this sitting to those in `run`/run.json."""
    path = run / FACTS_FILE
    sittings = read_facts(run)
    sittings.append(
        {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "versions": versions(),
            "commit": commit(Path(__file__).resolve().parents[1]),
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


def versions() -> dict[str, str]:
    """What a training depends on, each by its name."""
    # OpenCV comes as one of several packages, or from the system without any.
    own = {"marigold_ros": marigold_ros.__version__, "python": platform.python_version(), "opencv": cv2.__version__}
    return own | {name: _version(name) for name in _PACKAGES}


def commit(root: Path) -> str | None:
    """The git commit of the checkout at `root`, `-dirty` where files differ from it; None without git or a checkout."""
    # What is installed below somebody else's checkout is not of their commit.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_PATIENCE_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


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
