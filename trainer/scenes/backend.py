"""Chooses the Mitsuba variant once per process: CUDA where a GPU is, else LLVM on the processor."""

from __future__ import annotations

import ctypes.util
import functools
import glob
import importlib.util
import os
import re
from typing import Any

import numpy as np

from marigold_ros.config import Unusable


def find_llvm() -> str | None:
    """Path or name of the newest LLVM shared library that Dr.Jit can use, or None."""
    found = []
    for folder in ("/usr/lib/*-linux-gnu", "/usr/lib/llvm-*/lib", "/usr/lib64", "/usr/local/lib"):
        for path in glob.glob(f"{folder}/libLLVM*.so*"):
            match = re.search(r"libLLVM(?:-|\.so\.)(\d+)", path)
            if match:
                found.append((int(match.group(1)), path))
    if not found:
        return ctypes.util.find_library("LLVM")
    # Up to 16, Dr.Jit's kernels crash; versions later than those it knows have broken its code generator before.
    usable = [item for item in found if item[0] >= 17]
    known = [item for item in usable if item[0] <= 20] or usable
    return max(known)[1] if known else None


def _has_gpu() -> bool:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


def check_backend() -> None:
    """Raise `Unusable` where Mitsuba, or what it computes with, is missing; nothing is loaded for the answer."""
    if importlib.util.find_spec("mitsuba") is None:
        raise Unusable("mitsuba is not installed: the scene generator needs it (pip install mitsuba)")
    if not _has_gpu() and "DRJIT_LIBLLVM_PATH" not in os.environ and find_llvm() is None:
        raise Unusable(
            "the scene generator needs the LLVM shared library (Debian 12: apt-get install libllvm19, Ubuntu 24.04: "
            "libllvm18; 17 or later) or an NVIDIA GPU; set DRJIT_LIBLLVM_PATH if it lies in an unusual place"
        )


@functools.cache
def mitsuba(threads: int = 0) -> Any:
    """The mitsuba module with a variant set; `threads` 0 leaves the number to Dr.Jit.

    The renderer here is vectorised (a million rays a call), so it needs LLVM or CUDA; the scalar variant of
    Mitsuba traces one ray per Python call and is not offered.
    """
    if "DRJIT_LIBLLVM_PATH" not in os.environ:
        llvm = find_llvm()
        if llvm is not None:
            os.environ["DRJIT_LIBLLVM_PATH"] = llvm
    check_backend()
    import drjit as dr
    import mitsuba as mi

    if _has_gpu():
        mi.set_variant("cuda_ad_rgb")
        return mi
    mi.set_variant("llvm_ad_rgb")
    if threads:
        dr.set_thread_count(threads)
    return mi


def upload(kind: Any, values: np.ndarray) -> Any:
    """`values`, flattened, as a Dr.Jit array of type `kind`, e.g. mi.Float, in Dr.Jit's own memory.

    Taken from numpy as it lies, an array has the alignment that numpy happened to give it; Dr.Jit compiles for that,
    so nearly every picture would compile its kernels anew, which takes longer than to render it.
    """
    import drjit as dr

    dtype = np.uint32 if kind.__name__ == "UInt" else np.float32
    own = kind(np.ascontiguousarray(values, dtype).ravel()) + dr.opaque(kind, 0)
    dr.eval(own)
    dr.sync_thread()  # until then it reads numpy's memory, which ends with this call
    return own
