"""Stands in for CUDA's runtime: device memory is host memory, and a stream does nothing until somebody waits for it.

Not real: the GPU. Real: names and arguments, as a test finds by comparing them with NVIDIA's package. What is queued
runs at the next synchronisation, so that code which reads too early reads old data; what is queued during a capture
runs when the graph is launched. Memory that is never freed is counted.
"""

from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace

import numpy as np

_ALIGNMENT = 512


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


cudaStreamNonBlocking = 1
_OK = cudaError_t.cudaSuccess


class Trouble:
    """What is to go wrong; tests set it."""

    no_device = False
    memory_bytes = 0  # allocations beyond this fail; 0: none do
    capture = False
    empty_graph = False  # what is captured is lost without an error
    insufficient_driver = False
    driver = 12060
    gpu_name = "Fake GPU"


trouble = Trouble()
# Everything that is allocated and not freed, by address.
device: dict[int, ctypes.Array] = {}
host: dict[int, ctypes.Array] = {}
_streams: dict[int, _Stream] = {}


class _Stream:
    def __init__(self) -> None:
        self.queued: list = []
        self.recording: list | None = None

    def __int__(self) -> int:
        return id(self)


def queue(handle: int, work: object) -> bool:
    """For TensorRT's stand-in: `work` runs when the stream gets to it."""
    stream = _streams[handle]
    (stream.queued if stream.recording is None else stream.recording).append(work)
    return True


def memory(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """For TensorRT's stand-in: the array at `address` on the device."""
    count = int(np.prod(shape))
    assert on_device(address, count * np.dtype(dtype).itemsize)
    return np.frombuffer((ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(address), dtype).reshape(
        shape
    )


def on_device(address: int, size: int) -> bool:
    """Whether these bytes are allocated on the device."""
    return address in device and size + _ALIGNMENT <= len(device[address])


def _allocate(into: dict[int, ctypes.Array], size: int) -> tuple:
    if trouble.memory_bytes and sum(map(len, device.values())) + size > trouble.memory_bytes:
        return (cudaError_t.cudaErrorMemoryAllocation, None)
    block = (ctypes.c_uint8 * (size + _ALIGNMENT))()
    address = -(-ctypes.addressof(block) // _ALIGNMENT) * _ALIGNMENT
    into[address] = block
    return (_OK, address)


def cudaGetDeviceCount() -> tuple:
    if trouble.insufficient_driver:
        return (cudaError_t.cudaErrorInsufficientDriver, None)
    return (cudaError_t.cudaErrorNoDevice, None) if trouble.no_device else (_OK, 1)


def cudaGetDeviceProperties(device: int) -> tuple:
    facts = {"name": trouble.gpu_name.encode(), "major": 8, "minor": 7, "multiProcessorCount": 16}
    return (_OK, SimpleNamespace(**facts, totalGlobalMem=64 * 2**30))


def cudaDriverGetVersion() -> tuple:
    return (_OK, trouble.driver)


def cudaRuntimeGetVersion() -> tuple:
    return (_OK, 12060)


def cudaGetErrorString(error: cudaError_t) -> tuple:
    return (_OK, error.name.encode())


def cudaStreamCreateWithFlags(flags: int) -> tuple:
    stream = _Stream()
    _streams[int(stream)] = stream
    return (_OK, stream)


def cudaStreamSynchronize(stream: _Stream) -> tuple:
    queued, stream.queued = stream.queued, []
    for work in queued:
        work()
    return (_OK,)


def cudaStreamDestroy(stream: _Stream) -> tuple:
    del _streams[int(stream)]
    return (_OK,)


def cudaMalloc(size: int) -> tuple:
    return _allocate(device, size)


def cudaMallocHost(size: int) -> tuple:
    return _allocate(host, size)


def cudaFree(devPtr: int) -> tuple:
    del device[devPtr]
    return (_OK,)


def cudaFreeHost(ptr: int) -> tuple:
    del host[ptr]
    return (_OK,)


def cudaMemcpyAsync(dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: _Stream) -> tuple:
    to_device = kind is cudaMemcpyKind.cudaMemcpyHostToDevice
    if (dst if to_device else src) not in device or (src if to_device else dst) not in host:
        return (cudaError_t.cudaErrorInvalidValue,)
    queue(int(stream), lambda: ctypes.memmove(dst, src, count))
    return (_OK,)


def cudaStreamBeginCapture(stream: _Stream, mode: cudaStreamCaptureMode) -> tuple:
    if trouble.capture:
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    stream.recording = []
    return (_OK,)


def cudaStreamEndCapture(stream: _Stream) -> tuple:
    graph, stream.recording = stream.recording, None
    return (_OK, [] if trouble.empty_graph else graph)


def cudaGraphInstantiateWithFlags(graph: list, flags: int) -> tuple:
    return (_OK, list(graph))


def cudaGraphDestroy(graph: list) -> tuple:
    return (_OK,)


def cudaGraphLaunch(graphExec: list, stream: _Stream) -> tuple:
    stream.queued.extend(graphExec)
    return (_OK,)


def cudaGraphExecDestroy(graphExec: list) -> tuple:
    return (_OK,)
