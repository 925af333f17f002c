"""The one OpenVINO core of the process."""

from __future__ import annotations

import functools

import openvino


@functools.cache
def openvino_core() -> openvino.Core:
    """The core that all networks of this process share; it is never freed.

    Each core of OpenVINO (2026.4, on Linux) gives the thread that makes it a stack for signals of the core's own,
    and gives back the former one when it is freed. Of two cores, freeing the older first leaves the thread with a stack
    that is gone, and the next signal with a handler in Python, be it Ctrl-C, ends the process with SIGSEGV.
    """
    return openvino.Core()
