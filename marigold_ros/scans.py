"""The last few scans, to find the one nearest in time to an image."""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.decoding import LATE_S, RangePoints, require_stamp, stamp_ns

# At 10 to 20 Hz this reaches a second back, with the largest clouds a fraction of one: memory stays bounded whatever
# the sensor does. A network that takes longer gets its scan nevertheless: see `expect`.
_KEPT = 20
_KEPT_BYTES = 40_000_000
_KEPT_AT_LEAST = 3


@dataclass(frozen=True)
class StampedPoints:
    """(N, 3) float32 points in `frame` at `stamp_ns`, or each `offset_s` (N,) float32 seconds from it on."""

    points: np.ndarray
    frame: str
    stamp_ns: int
    offset_s: np.ndarray | None = None


class ScanBuffer:
    """Keeps range messages as they came and turns the one that is needed into points, once.

    `section` is that of the sensor's settings, for what is said of them; `offset_s` is added to all stamps.
    """

    def __init__(
        self,
        decode: Callable[[Any], RangePoints],
        on_unusable: Callable[[Unusable], None],
        section: str = "range",
        offset_s: float = 0.0,
    ) -> None:
        self._decode = decode
        self._on_unusable = on_unusable
        self._section = section
        self._offset_ns = round(offset_s * 1e9)
        # In the order of their times.
        self._messages: list[Any] = []
        self._decoded: tuple[Any, StampedPoints] | None = None
        self._expected_ns: int | None = None
        self._held: Any | None = None
        # What is wrong with the stamp of the newest message.
        self._unstamped: Unusable | None = None
        self._lock = threading.Lock()

    def add(self, message: Any) -> None:
        """Take a message; one that is late by a second or more means that time started again, and the others go.

        One without a time is reported to `on_unusable` and not kept.
        """
        try:
            require_stamp(message.header)
            self._unstamped = None
        except Unusable as problem:
            self._unstamped = problem
            self._on_unusable(problem)
            return
        with self._lock:
            if self._messages and self._stamp(self._messages[-1]) - self._stamp(message) >= LATE_S * 1e9:
                self._messages.clear()
                self._held = None
            insort(self._messages, message, key=self._stamp)
            self._hold_nearest()  # before the oldest goes, which may be this one
            while self._too_many():
                del self._messages[0]

    def expect(self, image_ns: int) -> None:
        """An image of this time is in work: of all scans that come meanwhile, the nearest to it is kept."""
        with self._lock:
            self._expected_ns = image_ns
            self._hold_nearest()

    def forget_after(self, newest_ns: int) -> None:
        """Drop scans from later than `newest_ns`: they belong to a time that has been left."""
        with self._lock:
            self._keep(lambda m: self._stamp(m) <= newest_ns)

    def nearest(self, image_ns: int, max_age_s: float) -> StampedPoints:
        """The readable scan nearest in time to the image; raises `Unusable` when there is none or it is too far away.

        Scans that cannot be read are reported to `on_unusable`, once, and dropped.
        """
        nothing = self._unstamped or Unusable(
            f"no scan; check the topic, its type ({self._section}.type) and its QoS (image.reliability)"
        )
        while True:
            with self._lock:
                message = min(self._all(), key=lambda m: abs(self._stamp(m) - image_ns), default=None)
            if message is None:
                raise nothing
            age_s = (image_ns - self._stamp(message)) * 1e-9
            if abs(age_s) > max_age_s:
                when = "older" if age_s > 0 else "newer"
                raise Unusable(
                    f"the nearest scan is {abs(age_s):.3f} s {when} than the image "
                    f"({self._section}.max_age_s={max_age_s:g}); check the sensor's rate and that both clocks agree"
                )
            try:
                return self._points(message)
            except Unusable as problem:
                nothing = problem
                self._on_unusable(problem)
                self._drop(message)

    def _too_many(self) -> bool:
        kept = len(self._messages)
        return kept > _KEPT or (kept > _KEPT_AT_LEAST and sum(map(_size, self._messages)) > _KEPT_BYTES)

    def _points(self, message: Any) -> StampedPoints:
        if self._decoded is None or self._decoded[0] is not message:
            frame, found = message.header.frame_id, self._decode(message)
            self._decoded = message, StampedPoints(found.points, frame, self._stamp(message), found.offset_s)
        return self._decoded[1]

    def _stamp(self, message: Any) -> int:
        """When it was measured."""
        return stamp_ns(message.header) + self._offset_ns

    def _drop(self, message: Any) -> None:
        with self._lock:
            self._keep(lambda m: m is not message)

    def _keep(self, wanted: Callable[[Any], bool]) -> None:
        self._messages = list(filter(wanted, self._messages))
        if self._held is not None and not wanted(self._held):
            self._held = None
            self._hold_nearest()

    def _hold_nearest(self) -> None:
        if self._expected_ns is not None:
            self._held = min(self._all(), key=lambda m: abs(self._stamp(m) - self._expected_ns), default=None)

    def _all(self) -> list[Any]:
        return [*self._messages] if self._held is None else [self._held, *self._messages]


def _size(message: Any) -> int:
    """Bytes of a cloud; a laser scan's few count as none."""
    return len(getattr(message, "data", ()))
