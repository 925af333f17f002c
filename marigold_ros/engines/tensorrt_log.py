"""What TensorRT says, and how it says that there is no GPU."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator

import tensorrt as trt

from marigold_ros.config import Unusable

log = logging.getLogger(__name__)


class TensorRtLog(trt.ILogger):
    """Hands TensorRT's messages on, and keeps its last errors: its calls tell that they failed, but not why."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)  # the binding demands this very call
        self._errors: deque[str] = deque(maxlen=3)
        self.short_of_memory = 0  # kernels that a build could not try

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any of its threads."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self._errors.append(msg.strip())
            log.debug("%s", msg)
        elif severity == trt.ILogger.WARNING:
            self.short_of_memory += "insufficient" in msg and "memory" in msg
            log.debug("%s", msg)

    def errors(self) -> str:
        """The last errors."""
        return "; ".join(self._errors) or "it gives no reason"


def require_gpu() -> None:
    """Raise `Unusable` where this TensorRT, which may be made for another CUDA, does not start on this machine."""
    with nothing_on_this_machine():
        trt.Runtime(TensorRtLog())


@contextlib.contextmanager
def nothing_on_this_machine() -> Iterator[None]:
    """Turns what the bindings raise without a usable GPU or driver, a TypeError, into `Unusable`."""
    try:
        yield
    except TypeError as error:
        raise Unusable(
            f"TensorRT {trt.__version__} finds no GPU that it can use ({error}); run 'ros2 run marigold_ros doctor'"
        ) from error
