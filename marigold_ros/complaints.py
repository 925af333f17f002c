"""Says what is wrong once, not thirty times a second."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

# Numbers change from frame to frame while the complaint stays the same.
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


class Complaints:
    """Passes a sentence on to `say` unless it said the same one, numbers aside, less than `period_s` ago."""

    def __init__(
        self, say: Callable[[str], object], period_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._period_s = period_s
        self._clock = clock
        self._last: dict[tuple[str, str, str], float] = {}
        self._silent: dict[tuple[str, str, str], int] = {}

    def __call__(self, thing: str, problem: str, consequence: str) -> None:
        """Say '`thing`: `problem` (`consequence`)', with the number of times it was kept back since."""
        key, now = (thing, _NUMBER.sub("#", problem), consequence), self._clock()
        if now - self._last.get(key, -self._period_s) < self._period_s:
            self._silent[key] += 1
            return
        again = f", {self._silent[key]} more since the last time" if self._silent.get(key) else ""
        self._last[key], self._silent[key] = now, 0
        self._say(f"{thing}: {problem} ({consequence}{again})")
