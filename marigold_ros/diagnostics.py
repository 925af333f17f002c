"""What the node says of itself on /diagnostics: rates, latencies, counts, the fit, and what is wrong (REP 107)."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from marigold_ros.pipeline import FrameDepth
from marigold_ros.tracker import FAULT, HOLD, RELATIVE

# Rates and percentiles cover this much of the past.
_WINDOW_S = 10.0
# While one of these problems stands no image is answered, whatever the last one that was answered says.
_NO_ANSWER = ("image", "camera_info", "frame")
# Latencies beyond this say that stamps and node live by different clocks, not that the node is slow.
_SANE_LATENCY_S = 3600.0

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class _Window:
    """Numbers of the last `_WINDOW_S` seconds with the times at which they came."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float = 0.0) -> None:
        """Take a number."""
        self._forget_before(now)
        self._kept.append((now, value))

    def times(self, now: float) -> list[float]:
        """When they came, the oldest first."""
        self._forget_before(now)
        return [time_s for time_s, _ in self._kept]

    def values(self, now: float) -> list[float]:
        """The numbers, the oldest first."""
        self._forget_before(now)
        return [value for _, value in self._kept]

    def _forget_before(self, now: float) -> None:
        while self._kept and now - self._kept[0][0] > _WINDOW_S:
            self._kept.popleft()


class Diagnostics:
    """Collects what happens, from any thread, and turns it into a status message.

    A problem has a key, and stands until `solved` is called with that key; the worst standing problem is the status.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._facts: dict[str, str] = {}
        self._problems: dict[str, tuple[bytes, str]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget counts, windows and standing problems: a new configuration starts."""
        with self._lock:
            self._counts: Counter[str] = Counter()
            self._events: dict[str, _Window] = {}
            self._latencies_s = _Window()
            self._stages_s: dict[str, _Window] = {}
            self._problems.clear()
            self._facts.clear()
            self._frame: FrameDepth | None = None
            self._metric_off_since_ns: int | None = None

    def describe(self, **facts: str) -> None:
        """Set facts that change with the configuration only, such as engine and checkpoint."""
        with self._lock:
            self._facts.update(facts)

    def count(self, event: str) -> None:
        """Note that `event` ('image', 'scan', 'unusable', 'failed', …) happened now."""
        with self._lock:
            self._counts[event] += 1
            self._events.setdefault(event, _Window()).add(self._clock())

    def problem(self, key: str, text: str, level: bytes = WARN) -> None:
        """Something is wrong, until `solved(key)`."""
        with self._lock:
            self._problems[key] = (level, text)

    def solved(self, *keys: str) -> None:
        """The problems of these keys, if they stood, are gone."""
        with self._lock:
            for key in keys:
                self._problems.pop(key, None)

    def rest(self) -> None:
        """Nothing is asked for now: what was wrong with frames may have passed since, and nobody would notice."""
        with self._lock:
            self._problems = {key: value for key, value in self._problems.items() if key == "transition"}
            self._metric_off_since_ns = None
            self._frame = None

    def frame(self, frame: FrameDepth, stamp_ns: int, latency_s: float, metric: bool) -> None:
        """Note an answered image; `metric` says whether metres were asked for."""
        with self._lock:
            now = self._clock()
            self._latencies_s.add(now, latency_s)
            for stage, seconds in frame.stage_s.items():
                self._stages_s.setdefault(stage, _Window()).add(now, seconds)
            self._frame = frame
            off = metric and frame.depth_m is None
            if not off:
                self._metric_off_since_ns = None
            elif self._metric_off_since_ns is None or stamp_ns < self._metric_off_since_ns:
                self._metric_off_since_ns = stamp_ns  # or time went back: not since a time to come
            since_ns = self._metric_off_since_ns
        wrong = None if frame.calibration is None else frame.calibration.problem
        if wrong is None:
            self.solved("calibration")
        else:
            self.problem("calibration", wrong)
        if off:
            level = ERROR if frame.state == FAULT else WARN
            self.problem("metric", f"no metric depth since {since_ns * 1e-9:.3f}: {frame.problem}", level)
        elif metric and frame.problem is not None:
            held = frame.fit_age_s is not None
            instead = f"metres held for {frame.fit_age_s:.2f} s" if held else f"metres from {frame.fit.source}"
            if held and frame.metres.fresh:
                instead = "the last correction serves"
            self.problem("metric", f"{instead}: {frame.problem}")
        else:
            self.solved("metric")
        self.count("processed")  # last: what is counted has been said

    def normals(self, seconds: float, latency_s: float | None) -> None:
        """Note surface normals that took so long; `latency_s` to their publication, if nothing else was asked for."""
        with self._lock:
            now = self._clock()
            self._stages_s.setdefault("normals", _Window()).add(now, seconds)
            if latency_s is not None:
                self._latencies_s.add(now, latency_s)
                self._frame = self._metric_off_since_ns = None
        if latency_s is not None:
            self.solved("frame", "calibration")
            self.count("processed")

    def message(self, state: str, listened: bool, dropped: int) -> DiagnosticArray:
        """The status now, without its stamp; `state` is the lifecycle state, `dropped` the overwritten images."""
        with self._lock:
            level, text = self._verdict(state, listened)
            values = {"lifecycle state": state, **self._facts, **self._numbers(dropped, state)}
            hardware = self._facts.get("engine", "none")
        pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
        status = DiagnosticStatus(level=level, name=self._name, message=text, hardware_id=hardware, values=pairs)
        return DiagnosticArray(status=[status])

    def _verdict(self, state: str, listened: bool) -> tuple[bytes, str]:
        problems = list(self._problems.values())
        if state == "active" and self._rate("image") == 0.0:
            text = "no images; check the topic, its type (image.transport) and its QoS (image.reliability)"
            problems.insert(0, (WARN, text))
        if problems:
            ranked = sorted(problems, key=lambda problem: problem[0], reverse=True)
            return ranked[0][0], "; ".join(text for _, text in ranked)
        if state != "active":
            return OK, state
        if not listened:
            return OK, "nobody listens; the network rests"
        return OK, f"{self._rate('published'):.1f} frames per second"

    def _numbers(self, dropped: int, state: str) -> dict[str, str]:
        """The measured key-values."""
        events = ("image", *self._scan_events(), "published")
        numbers = {f"{event} rate (Hz)": f"{self._rate(event):.2f}" for event in events}
        numbers |= {f"{event} total": str(self._counts[event]) for event in ("image", "processed", "published")}
        numbers["images dropped"] = str(dropped)
        numbers["messages unusable"] = str(self._counts["unusable"])
        numbers["frames failed"] = str(self._counts["failed"])
        numbers |= self._latency_numbers()
        for stage, seconds in self._stages_s.items():
            numbers |= _percentiles(f"{stage} time", seconds.values(self._clock()))
        return numbers | self._fit_numbers(state) | self._calibration_numbers()

    def _scan_events(self) -> list[str]:
        """'scan', and those of further range sensors: 'range2 scan'."""
        return ["scan", *sorted(event for event in self._events if event.endswith(" scan"))]

    def _latency_numbers(self) -> dict[str, str]:
        latencies_s = self._latencies_s.values(self._clock())
        if latencies_s and abs(latencies_s[-1]) > _SANE_LATENCY_S:
            note = "stamps and node clock differ; set use_sim_time, or synchronise the clocks"
            return {"latency": f"{latencies_s[-1]:.0f} s ({note})"}
        return _percentiles("latency stamp to publish", latencies_s)

    def _fit_numbers(self, state: str) -> dict[str, str]:
        if state != "active":
            return {}
        gone = self._counts["image"] > 0 and self._rate("image") == 0.0
        if gone or any(key in self._problems for key in _NO_ANSWER):
            return {"metric state": FAULT}
        numbers = {} if self._frame is None else metric_numbers(self._frame)
        if self._metric_off_since_ns is not None:
            numbers["metric off since (s)"] = f"{self._metric_off_since_ns * 1e-9:.3f}"
        return numbers

    def _calibration_numbers(self) -> dict[str, str]:
        found = None if self._frame is None else self._frame.calibration
        if found is None:
            return {}
        right, down = found.shift_px
        return {
            "calibration shift (px)": f"{right:+.1f} right, {down:+.1f} down",
            "time offset (ms)": f"{found.delay_s * 1e3:+.0f} ± {found.delay_sigma_s * 1e3:.0f}",
        }

    def _rate(self, event: str) -> float:
        """Events per second over the window."""
        now = self._clock()
        recent = self._events[event].times(now) if event in self._events else []
        if len(recent) < 2:
            return len(recent) / _WINDOW_S
        # From the first event to now, so that a topic that stops fades out instead of keeping its rate.
        return (len(recent) - 1) / max(now - recent[0], 1e-3)


def metric_numbers(frame: FrameDepth) -> dict[str, str]:
    """What a frame's metres rest on, as key-values."""
    numbers = {}
    if frame.metres is not None:
        numbers = {"metric state": frame.state, "metres started anew": str(frame.metres.jumps)}
    used = 0 if frame.anchors is None else len(frame.anchors)
    if frame.anchors is not None:
        numbers |= {"anchors used": str(used), "anchors rejected": str(frame.anchors.seen - used)}
    fit = frame.fit
    if fit is None:
        return numbers
    numbers |= {
        "metres from": fit.source,
        "scale": f"{fit.scale:.6g}",
        "shift": f"{fit.shift:.6g}",
        "space": fit.space,
    }
    if frame.fit_age_s is None:
        return numbers
    if used:
        numbers |= {"anchors that agree": f"{fit.inliers} of {used}", "residual (relative)": f"{fit.residual:.4f}"}
    return numbers | {
        "independent anchors": f"{fit.evidence.effective:.0f}",
        "fit age (s)": f"{frame.fit_age_s:.3f}",
        "fit uncertainty (relative)": f"{frame.metres.sigma:.4f}",
    }


def metric_status(frame: FrameDepth, header: Header, name: str) -> DiagnosticArray:
    """The state of one frame's metres under the image's header: OK, WARN while they are held or missing, or ERROR."""
    level = {FAULT: ERROR, HOLD: WARN, RELATIVE: WARN}.get(frame.state, OK if frame.problem is None else WARN)
    pairs = [KeyValue(key=key, value=value) for key, value in metric_numbers(frame).items()]
    text = frame.state if frame.problem is None else f"{frame.state}: {frame.problem}"
    return DiagnosticArray(header=header, status=[DiagnosticStatus(level=level, name=name, message=text, values=pairs)])


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, str]:
    """p50 and p95 in milliseconds; nothing of none."""
    if not seconds:
        return {}
    p50, p95 = np.percentile(seconds, (50, 95)) * 1e3
    return {f"{name} p50 (ms)": f"{p50:.1f}", f"{name} p95 (ms)": f"{p95:.1f}"}
