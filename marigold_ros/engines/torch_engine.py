"""The network in torch: the reference that every other engine is tested against, and the plain way onto a CUDA GPU.

There it runs in float16 in the layout of the tensor cores (channels last), recorded as a CUDA graph: a call is one
launch instead of a thousand, which a robot's processor would spend longer on than its GPU on the work.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from marigold_ros.checkpoints import CheckpointInfo, load_network
from marigold_ros.config import Unusable
from marigold_ros.folds import FoldedNetwork, folded
from marigold_ros.network import answer, normalised

# Plain calls before the recording: cuDNN chooses its kernels in them, and nothing may be allocated outside it later.
_WARM_UP = 3

log = logging.getLogger(__name__)


class TorchEngine:
    """Runs the checkpoint `info` with torch: float32 on the CPU, float16 on a CUDA GPU where torch sees one.

    Raises `Unusable` where the GPU's memory is too small, for the network or for a working size. Only the last size is
    kept ready on the GPU: cameras have one.
    """

    any_size = True

    def __init__(self, info: CheckpointInfo, threads: int = 0) -> None:
        self._cuda = torch.cuda.is_available()
        if threads:
            torch.set_num_threads(threads)
        dtype = torch.float16 if self._cuda else torch.float32
        # Folded in the host's memory: the sums are made in float64, for which the GPU's may not suffice.
        self._network = folded(load_network(info, "cpu", dtype))
        if self._cuda:
            torch.backends.cudnn.benchmark = True
            with _memory(f"checkpoint {info.name!r}", "free some, or set model.engine to 'openvino'"):
                self._network.to("cuda", memory_format=torch.channels_last)
        self._size: tuple[int, int] | None = None
        self._frame: GpuFrame | None = None
        name = torch.cuda.get_device_name() if self._cuda else "cpu"
        self._name = f"torch {torch.__version__}, {str(dtype).removeprefix('torch.')}, {name}"

    @property
    def identity(self) -> str | None:
        """All that may change the answer, for the self-check; None where this is the reference itself."""
        return self._name if self._cuda else None

    @property
    def description(self) -> str:
        """Library, version, precision, device, and on a GPU whether the network is recorded."""
        recorded = self._frame is not None and self._frame.recorded
        return f"{self._name}, CUDA graph" if recorded else self._name

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 at a working size -> what the network gives; the next call may overwrite it."""
        with torch.inference_mode():
            if not self._cuda:
                return self._network(torch.from_numpy(rgb)[None])[0].numpy()
            size = rgb.shape[:2]
            with _memory_at(size):
                if size != self._size:
                    # The old one's memory first.
                    self._size = self._frame = None
                    self._frame = GpuFrame(self._network, size)
                    self._size = size
                return self._frame(rgb)

    def part_times(self, rgb: np.ndarray, repeats: int) -> dict[str, list[float]]:
        """Seconds of `repeats` runs of each part by itself, at the size of `rgb` (h, w, 3) uint8.

        On a GPU by its own clock, each part recorded for itself; so these add up to a little more than a call takes.
        """
        times, timed = {}, _timed_on_gpu if self._cuda else _timed
        with torch.inference_mode(), _memory_at(rgb.shape[:2]):
            data = torch.from_numpy(rgb)[None].to(self._network.timestep.device)
            for name, part in _parts(self._network).items():
                data, times[name] = timed(part, data, repeats)
        return times

    def close(self) -> None:
        """Free the network."""
        self._size = self._frame = self._network = None
        if self._cuda:
            torch.cuda.empty_cache()


class Recorded:
    """`work` on one static input as a CUDA graph; called plainly where it cannot be recorded.

    data: the input; what is written into it is what the next call works on.
    """

    def __init__(self, work: Callable[[Tensor], Tensor], data: Tensor, stream: torch.cuda.Stream) -> None:
        self.data, self._work = data, work
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self.answer = work(data)
        stream.synchronize()
        self._graph = self._record(stream)

    def _record(self, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of a node may allocate meanwhile, which the default mode takes for an error.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                recorded = self._work(self.data)
        except RuntimeError as error:
            log.warning("the network cannot be recorded as a CUDA graph and runs without (%s)", _first_line(error))
            return None
        self.answer = recorded
        return graph

    @property
    def recorded(self) -> bool:
        """Whether it is a graph."""
        return self._graph is not None

    def __call__(self) -> Tensor:
        """The answer to what is in `data`; the next call overwrites it."""
        if self._graph is None:
            self.answer = self._work(self.data)
        else:
            self._graph.replay()
        return self.answer


class GpuFrame:
    """The network for one working size (h, w): pinned host memory, static device memory, and the recording."""

    def __init__(self, network: FoldedNetwork, size: tuple[int, int]) -> None:
        self._stream = torch.cuda.Stream()
        self._image = _pinned((1, *size, 3), torch.uint8)
        with torch.cuda.stream(self._stream):
            data = torch.zeros_like(self._image, device=network.timestep.device)
        self._network = Recorded(network, data, self._stream)
        self._answer = _pinned(self._network.answer.shape, self._network.answer.dtype)

    @property
    def recorded(self) -> bool:
        """Whether the network is a graph."""
        return self._network.recorded

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 -> what the network gives; the next call overwrites it."""
        self._image.copy_(torch.from_numpy(rgb)[None])
        with torch.cuda.stream(self._stream):
            self._network.data.copy_(self._image, non_blocking=True)
            self._answer.copy_(self._network(), non_blocking=True)
        self._stream.synchronize()
        return self._answer[0].numpy()


def _parts(network: FoldedNetwork) -> dict[str, Callable[[Tensor], Tensor]]:
    """One after the other they are the network; bytes go in, and what `network.answer` gives comes out."""
    return {
        "encode": lambda rgb: network.encode(normalised(rgb, network.unet.dtype)),
        "step": network.predict,
        "decode": lambda latent: answer(network.decode(latent)),
    }


def _timed(part: Callable[[Tensor], Tensor], data: Tensor, repeats: int) -> tuple[Tensor, list[float]]:
    """What `part` makes of `data`, and the seconds of each of `repeats` calls after one that does not count."""
    part(data)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = part(data)
        seconds.append(time.perf_counter() - start)
    return result, seconds


def _timed_on_gpu(part: Callable[[Tensor], Tensor], data: Tensor, repeats: int) -> tuple[Tensor, list[float]]:
    """As `_timed`, recorded and by the GPU's clock."""
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    run, seconds = Recorded(part, data, stream), []
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):
        for _ in range(repeats):
            start.record(stream)
            run()
            end.record(stream)
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        # The recording's memory goes with it.
        result = run.answer.clone()
    stream.synchronize()
    return result, seconds


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Host memory that the GPU reads and writes itself."""
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())


def _memory_at(size: tuple[int, int]) -> contextlib.AbstractContextManager[None]:
    return _memory(
        f"working size {size[1]}x{size[0]}", "set smaller model.width and model.height, or model.vae to 'tiny'"
    )


@contextlib.contextmanager
def _memory(what: str, way_out: str) -> Iterator[None]:
    """Raises `Unusable` for `what`, with the way out, where the GPU's memory does not suffice."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise Unusable(f"{what}: does not fit into the GPU's memory ({_first_line(error)}); {way_out}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no reason given")
