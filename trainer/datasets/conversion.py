"""From raw frames to samples on disk, in several processes that can be stopped at any time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera
from trainer.datasets.catalogue import DATASETS
from trainer.datasets.reading import Frame, LeftOut
from trainer.samples import Sample, write_sample

# Maps that are intensities: these may be mixed when they are resized, depths and directions must not.
_INTENSITIES = {"albedo", "shading", "residual", "material"}


@dataclass(frozen=True)
class Plan:
    """What is made of every frame, and where it is put; size_px (width, height) or None as it is."""

    dataset: str
    folder: Path
    maps: tuple[str, ...]
    size_px: tuple[int, int] | None
    jpeg_quality: int


@dataclass(frozen=True)
class Outcome:
    """What became of a frame: "written", "damaged" or "left out", and why."""

    name: str
    state: str
    why: str = ""


def convert(plan: Plan, frame: Frame) -> Outcome:
    """Read one frame and write its sample; raises `Unusable` only where the sample cannot be written."""
    dataset = DATASETS[plan.dataset]
    try:
        sample = dataset.read(frame, plan.maps)
    except LeftOut as reason:
        return Outcome(frame.name, "left out", str(reason))
    except Unusable as problem:
        return Outcome(frame.name, "damaged", str(problem))
    if plan.size_px:
        sample = resized(sample, *plan.size_px)
    about = {"dataset": plan.dataset, "scene": frame.scene}
    if "depth_m" in plan.maps and dataset.depth_range_m:
        about["depth_range_m"] = dataset.depth_range_m
    write_sample(plan.folder, sample, about, plan.jpeg_quality)
    return Outcome(frame.name, "written")


def resized(sample: Sample, width: int, height: int) -> Sample:
    """The sample at another size: depth and normals by the nearest pixel, pictures by area or, enlarged, linearly."""
    rows, columns = sample.rgb.shape[:2]
    if (width, height) == (columns, rows):
        return sample
    mixing = cv2.INTER_AREA if width <= columns and height <= rows else cv2.INTER_LINEAR
    nearest = np.ix_(_nearest(rows, height), _nearest(columns, width))

    def mixed(values: np.ndarray) -> np.ndarray:
        return cv2.resize(values, (width, height), interpolation=mixing)

    maps = {kind: mixed(values) if kind in _INTENSITIES else values[nearest] for kind, values in sample.maps.items()}
    k = sample.k
    if k is not None:
        camera = Camera(columns, rows, k[0, 0], k[1, 1], k[0, 2], k[1, 2])
        k = camera.resized(width, height).matrix
    return replace(sample, rgb=mixed(sample.rgb), maps=maps, k=k)


def _nearest(old: int, new: int) -> np.ndarray:
    """(new,) index of the old pixel that holds the centre of each new one ("nearest-exact"), in whole numbers."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def outcomes(plan: Plan, frames: Iterable[Frame], workers: int, stop: threading.Event) -> Iterator[Outcome]:
    """Convert frames in `workers` processes; when `stop` is set, those under way are finished and no other is begun.

    Only for the main thread, for the sake of its signals. Raises `Unusable` where a sample cannot be written, or a
    worker dies.
    """
    waiting = iter(frames)
    context = multiprocessing.get_context("spawn")  # HDF5 and the threads of OpenCV do not survive a fork
    try:
        with ProcessPoolExecutor(workers, context, _start_worker) as pool:
            with _ignored(signal.SIGINT):  # by the workers, which begin here: Ctrl-C goes to all, the first one decides
                running = {pool.submit(convert, plan, frame) for frame in islice(waiting, 2 * workers)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                if not stop.is_set():
                    running |= {pool.submit(convert, plan, frame) for frame in islice(waiting, len(done))}
                yield from [future.result() for future in done]
    except BrokenProcessPool as error:
        if not stop.is_set():  # a signal for all processes ends the workers too
            raise Unusable(
                f"{plan.folder}: a worker process died, perhaps for want of memory; give fewer --workers"
            ) from error


@contextlib.contextmanager
def _ignored(number: int) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    # A worker whose parent was killed would wait for work for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """A block in which the first SIGINT or SIGTERM sets `stop`; the second one does what it always does."""
    before: dict[int, object] = {}

    def restore(*_: object) -> None:
        while before:
            signal.signal(*before.popitem())

    def on_signal(*_: object) -> None:
        stop.set()
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, on_signal)
    try:
        yield
    finally:
        restore()
