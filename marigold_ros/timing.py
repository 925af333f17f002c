"""How long things take: in milliseconds, and each in a process of its own where they would slow each other down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

import numpy as np

WARM_UP = 5

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one stage at one image size."""

    p50_ms: float
    p95_ms: float


def timing(seconds: Sequence[float]) -> Timing:
    """p50 and p95 of durations in seconds."""
    p50, p95 = np.percentile(np.asarray(seconds) * 1e3, (50, 95))
    return Timing(round(float(p50), 2), round(float(p95), 2))


def measure(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after some that do not count."""
    for _ in range(min(WARM_UP, repeats)):
        work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def alone(measurement: Callable[..., _Found], *arguments: object) -> _Found:
    """Run a measurement in a process of its own: threads and memory of one library slow the other down."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measurement, *arguments).result()
