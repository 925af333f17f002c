"""Puts the stand-ins of `fake_nvidia` in the place of TensorRT and CUDA, in this process or in others."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from tensorrt_signatures import NEWEST

FAKES = Path(__file__).resolve().parent / "fake_nvidia"
_MADE_ANEW = ("tensorrt", "cuda", "marigold_ros.engines.cuda", "marigold_ros.engines.tensorrt")


@contextmanager
def stand_ins(version: str = NEWEST) -> Iterator[SimpleNamespace]:
    """TensorRT `version` and CUDA for this process; gives their modules, and ours that use them."""
    _forget()
    sys.path.insert(0, str(FAKES))
    before = os.environ.get("FAKE_TENSORRT_VERSION")
    os.environ["FAKE_TENSORRT_VERSION"] = version
    try:
        yield SimpleNamespace(
            trt=importlib.import_module("tensorrt"),
            cuda=importlib.import_module("cuda.bindings.runtime"),
            build=importlib.import_module("marigold_ros.engines.tensorrt_build"),
            engine=importlib.import_module("marigold_ros.engines.tensorrt_engine"),
            ready=importlib.import_module("marigold_ros.engines.tensorrt_ready"),
            plans=importlib.import_module("marigold_ros.engines.tensorrt_plans"),
        )
    finally:
        sys.path.remove(str(FAKES))
        os.environ.pop("FAKE_TENSORRT_VERSION")
        if before is not None:
            os.environ["FAKE_TENSORRT_VERSION"] = before
        _forget()


def environment(version: str = NEWEST, **more: str) -> dict[str, str]:
    """The environment of a process that is to find the stand-ins."""
    path = os.pathsep.join([str(FAKES), str(FAKES.parent), str(FAKES.parent.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "FAKE_TENSORRT_VERSION": version, **more}


def _forget() -> None:
    for name in list(sys.modules):
        if name.startswith(_MADE_ANEW) and name.split(".")[0] in ("tensorrt", "cuda", "marigold_ros"):
            del sys.modules[name]
    importlib.invalidate_caches()
