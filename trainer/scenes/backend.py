"""Chooses the Mitsuba variant once per process: CUDA where a GPU is, else LLVM on the processor."""

from __future__ import annotations

import ctypes.util
import functools
import glob
import os
import re
from typing import Any


def find_llvm() -> str | None:
    """Path or name of the newest LLVM shared library that can be found, or None."""
    found = []
    for folder in ("/usr/lib/*-linux-gnu", "/usr/lib/llvm-*/lib", "/usr/lib64", "/usr/local/lib"):
        for path in glob.glob(f"{folder}/libLLVM*.so*"):
            match = re.search(r"libLLVM(?:-|\.so\.)(\d+)", path)
            if match:
                found.append((int(match.group(1)), path))
    if found:
        # versions later than those Dr.Jit knows have broken its code generator before, hence the bound
        known = [item for item in found if item[0] <= 20] or found
        return max(known)[1]
    return ctypes.util.find_library("LLVM")


def _has_gpu() -> bool:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


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
    import drjit as dr
    import mitsuba as mi

    if _has_gpu():
        mi.set_variant("cuda_ad_rgb")
        return mi
    if "DRJIT_LIBLLVM_PATH" not in os.environ:
        raise RuntimeError(
            "the scene generator needs the LLVM shared library (Debian, Ubuntu: apt-get install libllvm19 or "
            "another libllvm) or an NVIDIA GPU; set DRJIT_LIBLLVM_PATH if it lies in an unusual place"
        )
    mi.set_variant("llvm_ad_rgb")
    if threads:
        dr.set_thread_count(threads)
    return mi
