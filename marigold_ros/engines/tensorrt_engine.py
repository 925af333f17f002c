"""Three TensorRT engines, encode, step and decode, run as one CUDA graph. One code path for TensorRT 10.3 to 11.4."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorrt as trt

from marigold_ros.config import Unusable
from marigold_ros.engines.cuda import Gpu, Session
from marigold_ros.engines.tensorrt_log import TensorRtLog, nothing_on_this_machine
from marigold_ros.parts import PARTS, TENSORS, Parts

log = logging.getLogger(__name__)

_NUMPY = {trt.DataType.UINT8: np.uint8, trt.DataType.HALF: np.float16, trt.DataType.FLOAT: np.float32}
# TensorRT allocates and chooses on the first calls; a graph must not record that.
_WARM_UP = 3


class CannotLoad(Unusable):
    """A plan that TensorRT does not load: damaged, made for something else, or too large for the free memory."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"engine {path}: TensorRT {trt.__version__} cannot load it ({reason}); where memory is short, stop other "
            "programs, else export it again with --rebuild"
        )
        self.path = path
        self.for_want_of_memory = "memory" in reason.lower()


class TensorRtEngine:
    """Runs the compiled `plans` of `parts`, one for each part, at the one size they are made for.

    typing: how the plans were built; identity: all that may change the answer, for the self-check.
    """

    any_size = False

    def __init__(self, parts: Parts, plans: Mapping[str, Path], gpu: Gpu, typing: str, identity: str) -> None:
        self.identity = identity
        self.description = f"tensorrt {trt.__version__}, {typing} types, {gpu.name}"
        self._size = parts.height, parts.width
        # What TensorRT made is freed in the opposite order; a log that is gone would crash it.
        self._log = TensorRtLog()
        with nothing_on_this_machine():
            self._runtime = trt.Runtime(self._log)
        self._engines = [_load(self._runtime, plans[part], self._log) for part in PARTS]
        self._contexts: list[trt.IExecutionContext] = []
        self._session = Session()
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        """Give every tensor its memory, and record the way of a frame."""
        session = self._session
        # The engines run one after the other, so they share their scratch memory.
        scratch = max(1, *(engine.device_memory_size_v2 for engine in self._engines))
        scratch_memory = session.device_memory(scratch)
        shapes, addresses = [], []
        for number, name in enumerate(TENSORS):
            ends = [_tensor(engine, name) for engine in self._engines[max(0, number - 1) : number + 1]]
            if any(end != ends[0] for end in ends):
                raise Unusable(f"the engines disagree on {name}: {ends}; export them again")
            shapes.append(ends[0])
            addresses.append(session.device_memory(ends[0].nbytes))
        for number, engine in enumerate(self._engines):
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if context is None:
                raise Unusable(f"TensorRT cannot start {PARTS[number]}: {self._log.errors()}")
            context.set_device_memory(scratch_memory, scratch)
            for position in (number, number + 1):
                if not context.set_tensor_address(TENSORS[position], addresses[position]):
                    raise Unusable(f"TensorRT refuses the memory of {TENSORS[position]}: {self._log.errors()}")
            self._contexts.append(context)
        self._rgb, self._answer = (session.host_array(end.shape, end.dtype) for end in (shapes[0], shapes[-1]))
        self._ends = addresses[0], addresses[-1]
        self._rgb[:] = 0
        for _ in range(_WARM_UP):
            self._queue()
            session.wait()
        self._launch = session.launch if self._recorded() else self._queue

    def _recorded(self) -> bool:
        """Whether the way of a frame could be recorded, and answers as it does without."""
        plain = self._answer.copy()
        try:
            self._session.capture(self._queue)
            # A recording can be empty without an error.
            self._answer[:] = np.nan
            self._session.launch()
            self._session.wait()
        except Unusable as problem:
            log.warning("no CUDA graph, so every frame is queued anew: %s", problem)
            return False
        if not np.allclose(self._answer, plain, rtol=0.01, atol=0.01, equal_nan=True):
            log.warning("the CUDA graph answers otherwise than what was recorded, so every frame is queued anew")
            return False
        return True

    def _queue(self) -> None:
        self._session.to_device(self._ends[0], self._rgb)
        for part, context in zip(PARTS, self._contexts, strict=True):
            if not context.execute_async_v3(self._session.stream):
                raise Unusable(f"TensorRT fails in {part}: {self._log.errors()}; run 'ros2 run marigold_ros doctor'")
        self._session.to_host(self._answer, self._ends[1])

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 at the size of the plans -> the network's answer, which the next call overwrites."""
        if rgb.shape[:2] != self._size:
            size, own = (f"{columns}x{rows}" for rows, columns in (rgb.shape[:2], self._size))
            raise Unusable(f"image of {size}: the TensorRT engine is built for {own}; export it with --size {size}")
        self._rgb[0] = rgb
        self._launch()
        self._session.wait()
        return self._answer[0]

    def close(self) -> None:
        """Free engines and memory."""
        # What is under way, and the graph, still use them.
        self._session.stop()
        self._contexts = []
        self._engines = []
        self._session.free()


@dataclass(frozen=True)
class _Tensor:
    """An engine's input or output."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def _tensor(engine: trt.ICudaEngine, name: str) -> _Tensor:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    if name not in names:
        raise Unusable(f"an engine has the tensors {', '.join(names)}, but not {name}; export it again")
    return _Tensor(tuple(engine.get_tensor_shape(name)), np.dtype(_NUMPY[engine.get_tensor_dtype(name)]))


def _load(runtime: trt.Runtime, path: Path, logger: TensorRtLog) -> trt.ICudaEngine:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = runtime.deserialize_cuda_engine(plan)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CannotLoad(path, str(error)) from error
    if engine is None:
        raise CannotLoad(path, logger.errors())
    return engine
