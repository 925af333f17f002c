"""The few CUDA calls that running a TensorRT engine needs, by NVIDIA's own bindings (cuda-python), without torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from marigold_ros.config import Unusable, one_line
from marigold_ros.nvidia_driver import install_command

try:
    from cuda.bindings import runtime as cudart
except ImportError:  # cuda-python before 12.6
    from cuda import cudart
try:
    from cuda.bindings.utils import get_cuda_native_handle as _handle
except ImportError:  # before 12.9
    _handle = int

# cudaErrorMemoryAllocation and cudaErrorInsufficientDriver, in every version.
_OUT_OF_MEMORY, _OLD_DRIVER = 2, 35


@dataclass(frozen=True)
class Gpu:
    """The GPU that a process sees first, and its software, as far as compiled engines depend on them."""

    name: str
    compute_capability: str
    multiprocessors: int
    memory_gib: int
    driver: int
    runtime: int


def checked(result: tuple) -> Any:
    """What a CUDA call gave, without its status; raises `Unusable` where that is an error."""
    error, *values = result
    if int(error) == _OUT_OF_MEMORY:
        raise Unusable(
            "the GPU's memory is full: stop other programs that use it, or take a smaller model.width and "
            "model.height, or model.vae: tiny"
        )
    if int(error) == _OLD_DRIVER:
        raise Unusable(
            f"CUDA: the driver is too old for this cuda-python; {install_command('cuda-python')}, or a newer driver"
        )
    if int(error) != 0:
        _, text = cudart.cudaGetErrorString(error)
        raise Unusable(f"CUDA: {text.decode()} (error {int(error)}); run 'ros2 run marigold_ros doctor'")
    return values[0] if len(values) == 1 else None


def gpu() -> Gpu:
    """The GPU; raises `Unusable` where there is none or its driver does not fit."""
    try:
        driver = checked(cudart.cudaDriverGetVersion())
        runtime = checked(cudart.cudaRuntimeGetVersion())
        count = checked(cudart.cudaGetDeviceCount()) if driver // 1000 >= runtime // 1000 else 0
    except RuntimeError as error:  # cuda-python before 12.8, without a driver
        raise Unusable(f"CUDA: there is no NVIDIA driver ({one_line(error)})") from error
    if driver == 0:
        raise Unusable("CUDA: there is no NVIDIA driver, or this container does not see it (docker run --gpus all)")
    if driver // 1000 < runtime // 1000:
        raise Unusable(
            f"CUDA: the driver is of CUDA {driver // 1000}, cuda-python of {runtime // 1000}; "
            f"{install_command('cuda-python')}, or a newer driver"
        )
    if count == 0:
        raise Unusable("CUDA: no GPU is visible; see CUDA_VISIBLE_DEVICES and nvidia-smi")
    facts = checked(cudart.cudaGetDeviceProperties(0))
    return Gpu(
        name=facts.name.decode(),
        compute_capability=f"{facts.major}.{facts.minor}",
        multiprocessors=facts.multiProcessorCount,
        memory_gib=round(facts.totalGlobalMem / 2**30),
        driver=driver,
        runtime=runtime,
    )


class Session:
    """A stream, its memory and its graph; `stop` and then `free` end it."""

    def __init__(self) -> None:
        self._device: list[int] = []
        self._host: list[int] = []
        self._graph: Any = None
        # A stream of its own: TensorRT synchronises the whole device on the default one.
        self._stream = checked(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return _handle(self._stream)

    def device_memory(self, size: int) -> int:
        """Address of `size` bytes on the GPU."""
        address = int(checked(cudart.cudaMalloc(size)))
        self._device.append(address)
        return address

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array in pinned memory, which the GPU copies from and to by itself."""
        size = int(np.prod(shape)) * dtype.itemsize
        address = int(checked(cudart.cudaMallocHost(size)))
        self._host.append(address)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)

    def to_device(self, address: int, array: np.ndarray) -> None:
        """Queue a copy of a pinned array to the GPU."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(cudart.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._stream))

    def to_host(self, array: np.ndarray, address: int) -> None:
        """Queue a copy from the GPU into a pinned array."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(cudart.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self._stream))

    def capture(self, work: Callable[[], None]) -> None:
        """Record what `work` queues, to be run by `launch`; raises `Unusable` where it cannot be recorded."""
        # Only this thread's calls count: others may allocate memory meanwhile.
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(cudart.cudaStreamBeginCapture(self._stream, mode))
        try:
            work()
        except BaseException:
            # Unchecked: that the recording is void is clear, why is what `work` raised.
            _, graph = cudart.cudaStreamEndCapture(self._stream)
            if graph is not None:
                cudart.cudaGraphDestroy(graph)
            raise
        graph = checked(cudart.cudaStreamEndCapture(self._stream))
        try:
            self._graph = checked(cudart.cudaGraphInstantiateWithFlags(graph, 0))
        finally:
            checked(cudart.cudaGraphDestroy(graph))

    def launch(self) -> None:
        """Queue all that was recorded."""
        checked(cudart.cudaGraphLaunch(self._graph, self._stream))

    def wait(self) -> None:
        """Until everything queued is done."""
        checked(cudart.cudaStreamSynchronize(self._stream))

    def stop(self) -> None:
        """Wait for what is queued and drop the recording; whatever it used can be freed then."""
        # Nothing is checked from here on: after a lost device every call fails, and all is to be freed the same.
        if self._stream is not None:
            cudart.cudaStreamSynchronize(self._stream)
        if self._graph is not None:
            cudart.cudaGraphExecDestroy(self._graph)
        self._graph = None

    def free(self) -> None:
        """Free everything; arrays and addresses given out are void afterwards."""
        for address in self._device:
            cudart.cudaFree(address)
        for address in self._host:
            cudart.cudaFreeHost(address)
        if self._stream is not None:
            cudart.cudaStreamDestroy(self._stream)
        self._stream, self._device, self._host = None, [], []
