"""The torch engine: on the CPU as it is, and its way on a GPU with a CUDA that only pretends.

Nothing here runs on a GPU: streams, pinned memory and the graph are stand-ins, and the network runs on the CPU. What is
tested is our own logic: what is copied where, when something is recorded, and what happens when that fails. That real
CUDA graphs answer alike is what `python -m marigold_ros.benchmark --engine torch` shows on a machine that has one.
"""

import contextlib
import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from marigold_ros.checkpoints import describe  # noqa: E402
from marigold_ros.config import ModelConfig, Unusable  # noqa: E402
from marigold_ros.engines import torch_engine  # noqa: E402
from marigold_ros.engines.torch_engine import GpuFrame, Recorded, TorchEngine  # noqa: E402
from marigold_ros.estimator import load_estimator  # noqa: E402
from small_checkpoint import write_small_checkpoint  # noqa: E402

SIZE = (96, 128)


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    return describe(write_small_checkpoint(tmp_path_factory.mktemp("torch") / "small"))


@pytest.fixture
def engine(info):
    return TorchEngine(info)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


class PretendedCuda:
    """Stands in for torch.cuda: calls run at once on the CPU; a recorded call is repeated into the memory it had."""

    def __init__(self, monkeypatch):
        self.modes, self.replays, self.synchronised, self.problem = [], 0, 0, None
        cuda = self

        class Stream:
            def synchronize(self):
                cuda.synchronised += 1

        class CUDAGraph:
            def replay(self):
                cuda.replays += 1
                self.answer.copy_(self.work())

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self, stream):
                assert isinstance(stream, Stream)

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return 2.0

        @contextlib.contextmanager
        def graph(recording, stream, capture_error_mode):
            self.modes.append(capture_error_mode)
            if self.problem is not None:
                raise self.problem
            self.recording = recording
            yield

        for name, stand_in in (("Stream", Stream), ("CUDAGraph", CUDAGraph), ("Event", Event), ("graph", graph)):
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

        record = Recorded._record

        def watched(recorded, stream):
            found = record(recorded, stream)
            if found is not None:
                found.work, found.answer = lambda: recorded._work(recorded.data), recorded.answer
            return found

        monkeypatch.setattr(Recorded, "_record", watched)


@pytest.fixture
def cuda(monkeypatch):
    return PretendedCuda(monkeypatch)


def counted(network):
    """`network`, and how often it was called."""
    calls = []

    def work(data):
        calls.append(tuple(data.shape))
        return network(data)

    work.timestep = network.timestep
    return work, calls


def test_the_description_names_library_precision_and_device(engine):
    assert engine.description == f"torch {torch.__version__}, float32, cpu"


def test_a_recording_is_called_plainly_only_to_be_made(cuda, engine, image):
    """Three calls to warm up and one that is recorded; all that follow are replays, with the new image."""
    expected = engine(image).copy()
    work, calls = counted(engine._network)
    with torch.inference_mode():
        frame = GpuFrame(work, SIZE)
        assert len(calls) == 4
        assert frame.recorded
        assert cuda.modes == ["thread_local"]
        black = frame(np.zeros_like(image)).copy()
        found = frame(image)
    assert cuda.replays == 2
    assert cuda.synchronised >= 3
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(black - expected).max() > 1e-3
    assert found.dtype == np.float32


def test_what_cannot_be_recorded_is_called_plainly(cuda, engine, image, caplog):
    cuda.problem = RuntimeError("operation not permitted when stream is capturing\nCUDA error")
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        frame = GpuFrame(engine._network, SIZE)
        assert not frame.recorded
        found = frame(image)
    np.testing.assert_allclose(found, engine(image), atol=1e-6)
    assert "cannot be recorded" in caplog.text
    assert "operation not permitted when stream is capturing)" in caplog.text


def test_only_the_last_size_is_kept(cuda, engine, image):
    engine._cuda = True
    engine(image)
    first = engine._frame
    engine(255 - image)
    assert engine._frame is first
    engine(image[:64])
    assert engine._frame is not first
    assert engine._size == (64, 128)
    assert engine.description.endswith("cpu, CUDA graph")
    assert engine(image).shape == SIZE
    engine.close()
    assert engine._frame is None


def test_too_little_memory_names_the_size_and_the_way_out(cuda, engine, image, monkeypatch):
    engine._cuda = True

    def full(data):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(engine, "_network", torch.nn.Module())
    engine._network.timestep, engine._network.forward = torch.zeros(1), full
    with pytest.raises(Unusable, match=r"working size 128x96: does not fit .* 2 GiB\.\); set smaller model\.width"):
        engine(image)
    assert engine._size is None, "a size that failed is tried again"


def test_a_network_too_large_for_the_gpu_is_named(info, monkeypatch):
    def full(network, *device, **layout):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_engine.FoldedNetwork, "to", full)
    with pytest.raises(Unusable, match="checkpoint 'small': does not fit"):
        TorchEngine(info)


def test_on_a_gpu_the_network_is_in_half_precision_and_channels_last(info, monkeypatch):
    """As far as the CPU can do the same: only where it goes is pretended."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Pretended")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    move = torch_engine.FoldedNetwork.to
    monkeypatch.setattr(torch_engine.FoldedNetwork, "to", lambda network, device, **layout: move(network, **layout))
    engine = TorchEngine(info)
    assert torch.backends.cudnn.benchmark
    assert engine.description == f"torch {torch.__version__}, float16, NVIDIA Pretended"
    weights = [parameter for parameter in engine._network.parameters() if parameter.ndim == 4]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert {parameter.dtype for parameter in engine._network.parameters()} == {torch.float16}
    # Half precision on the CPU, too, with the folds made in it.
    image = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    monkeypatch.undo()
    with torch.inference_mode():
        half, whole = (e._network(torch.from_numpy(image)) for e in (engine, TorchEngine(info)))
    assert float((half - whole).abs().mean()) < 0.01


def test_the_parts_are_timed(engine, image):
    times = engine.part_times(image, 3)
    assert list(times) == ["encode", "step", "decode"]
    assert all(len(seconds) == 3 and min(seconds) > 0 for seconds in times.values())


def test_the_parts_are_timed_by_the_gpus_clock(cuda, engine, image):
    engine._cuda = True
    assert engine.part_times(image, 2) == {name: [0.002, 0.002] for name in ("encode", "step", "decode")}
    assert cuda.replays == 6


@torch.inference_mode()
def test_the_parts_are_the_network(engine, image):
    data = torch.from_numpy(image)[None]
    expected = engine._network(data)
    for part in torch_engine._parts(engine._network).values():
        data = part(data)
    torch.testing.assert_close(data, expected)


def test_an_estimator_tells_them_where_its_engine_can(info, monkeypatch):
    estimator = load_estimator(ModelConfig(checkpoint=str(info.folder), engine="torch"))
    photo = np.zeros((480, 640, 3), np.uint8)
    assert set(estimator.part_times(photo, 1)) == {"encode", "step", "decode"}
    monkeypatch.delattr(TorchEngine, "part_times")
    assert estimator.part_times(photo, 1) == {}
