"""ONNX part -> TensorRT plan for this GPU, with progress, cancellable. One code path for TensorRT 10.3 to 11.4."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt

from marigold_ros.config import Unusable
from marigold_ros.engines.tensorrt_log import TensorRtLog, nothing_on_this_machine
from marigold_ros.files import locked, written_beside

STRONG, WEAK = "strong", "weak"

# Share of the work done in [0, 1], and what is being done.
Progress = Callable[[float, str], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildSettings:
    """How hard TensorRT searches (level 0 to 5, 3 is its default), and how much GPU memory that may take, in GiB.

    workspace_gib 0: all there is.
    """

    level: int = 3
    workspace_gib: float = 0.0


class CannotBuild(Unusable):
    """TensorRT finds no way to build a network."""


class Cancelled(Exception):
    """The build was stopped from outside."""


def typings() -> tuple[str, ...]:
    """How networks can be typed here, the one to prefer first.

    Strong: every tensor has the type that the ONNX file says. Weak: TensorRT chooses among float16 and float32; it is
    how 10.x was driven for years, and gone in 11.
    """
    return (STRONG, WEAK) if hasattr(trt.BuilderFlag, "FP16") else (STRONG,)


def build_plan(
    onnx: Path, precision: str, typing: str, settings: BuildSettings, timing_cache: Path, progress: Progress
) -> trt.IHostMemory:
    """The plan of the ONNX file; raises `Unusable` with TensorRT's reason, `KeyboardInterrupt` soon after Ctrl-C.

    precision: in what the file computes, 'float16', 'float32' or 'int8'.
    """
    monitor = _Monitor(progress)

    def work() -> trt.IHostMemory:
        return _build(onnx, precision, typing, settings, timing_cache, monitor)

    # In a thread: a signal reaches Python code only, and this thread would be inside TensorRT for minutes.
    with ThreadPoolExecutor(1, "tensorrt build") as pool:
        building = pool.submit(work)
        try:
            return building.result()
        except BaseException:
            monitor.cancel()
            raise


def _build(
    onnx: Path, precision: str, typing: str, settings: BuildSettings, timing_cache: Path, monitor: _Monitor
) -> trt.IHostMemory:
    logger = TensorRtLog()
    with nothing_on_this_machine():
        builder = trt.Builder(logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typing == STRONG else 0
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)
        # The parser also finds what strong types do not allow.
        raise CannotBuild(f"network {onnx}: TensorRT {trt.__version__} cannot read it ({reasons or logger.errors()})")
    config = builder.create_builder_config()
    config.builder_optimization_level = settings.level
    config.progress_monitor = monitor
    if settings.workspace_gib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings.workspace_gib * 2**30))
    if typing == WEAK and precision != "float32":
        config.set_flag(trt.BuilderFlag.FP16)
    if typing == WEAK and precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    timings = _load_timings(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if monitor.cancelled:
        raise Cancelled
    if plan is None:
        raise CannotBuild(
            f"network {onnx}: TensorRT {trt.__version__} cannot build it with {typing} types ({logger.errors()}); "
            "where memory is short, stop other programs, or take a smaller --size, --vae tiny or --workspace"
        )
    if logger.short_of_memory:
        log.warning(
            "%s: %d faster ways to compute it were left out for want of GPU memory; stop other programs and build it "
            "again with --rebuild",
            onnx.name,
            logger.short_of_memory,
        )
    _keep_timings(config, timings, timing_cache)
    return plan


class _Monitor(trt.IProgressMonitor):
    """Adds up TensorRT's nested phases; its methods are called from TensorRT's threads."""

    def __init__(self, progress: Progress) -> None:
        trt.IProgressMonitor.__init__(self)  # the binding demands this very call
        self._progress = progress
        self._phases: dict[str, list] = {}  # name: parent, steps, steps done
        self._lock = threading.Lock()
        self.cancelled = False

    def cancel(self) -> None:
        """Have TensorRT give up at its next step."""
        self.cancelled = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        with self._lock:
            self._phases[phase_name] = [parent_phase, max(1, num_steps), 0]

    def step_complete(self, phase_name: str, step: int) -> bool:
        with self._lock:
            if phase_name in self._phases:
                self._phases[phase_name][2] = step + 1
            done = sum(self._share(name) * steps_done for name, (_, _, steps_done) in self._phases.items())
        self._progress(min(done, 1.0), phase_name)
        return not self.cancelled

    def phase_finish(self, phase_name: str) -> None:
        with self._lock:
            parent = self._phases.pop(phase_name, [None])[0]
        if parent is None and not self.cancelled:
            self._progress(1.0, phase_name)

    def _share(self, name: str) -> float:
        """What one step of a phase is of the whole."""
        share, parent = 1.0, name
        while parent in self._phases:
            parent, steps, _ = self._phases[parent]
            share /= steps
        return share


def _load_timings(config: trt.IBuilderConfig, path: Path) -> trt.ITimingCache | None:
    """What earlier builds measured goes into `config`, which must not outlive the returned cache."""
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    for content in (stored, b""):
        timings = config.create_timing_cache(content)
        # False: of another GPU or version, or damaged.
        if timings is not None and config.set_timing_cache(timings, False):
            break
    return timings


def _keep_timings(config: trt.IBuilderConfig, timings: trt.ITimingCache | None, path: Path) -> None:
    """Write the timings with those another build has written meanwhile. They only save time: failing is no harm."""
    if timings is None:
        return
    try:
        with locked(path), written_beside(path) as beside:
            if path.is_file():
                others = config.create_timing_cache(path.read_bytes())
                if others is not None:
                    timings.combine(others, False)
            beside.write_bytes(timings.serialize())
    except Exception as problem:  # whatever TensorRT or the disk has: the plan of half an hour is not lost for it
        log.info("timings are not kept: %s", problem)
