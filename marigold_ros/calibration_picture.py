"""The evidence of the calibration watch as a picture: shift and delay over time, shift over motion, and one frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from marigold_ros.calibration import ALARM, MATTERS
from marigold_ros.calibration_recording import Course, Moment

_COLOURS = {"pitch": "#d9480f", "yaw": "#1c7ed6", "roll": "#868e96", "delay": "#2b8a3e"}
# Offsets beyond this many pixels of the camera have the last colour.
_WORST_PX = 8.0
_WORST_MS = 150.0
_LEAST_TURNS_DEG = 1.5


def draw(course: Course, title: str, path: Path) -> None:
    """Write the picture of one course to the PNG `path`."""
    # Figure instead of pyplot: no display, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 9), dpi=100, layout="constrained")
    told = course.alarm_s
    verdict = "nothing wrong found" if told is None else f"told after {told:.1f} s"
    figure.suptitle(f"{title}: {verdict}")
    (turns, delay), (scatter, frame) = figure.subplots(2, 2)
    judged = [m for m in course.moments if m.verdict is not None]
    _draw_turns(turns, judged, told)
    _draw_ground(turns, course.moments)
    _draw_delay(delay, judged, told)
    _draw_scatter(scatter, course)
    _draw_frame(frame, course)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _band(axes: Any, times: list[float], values: np.ndarray, sigmas: np.ndarray, name: str) -> None:
    axes.plot(times, values, color=_COLOURS[name], label=name)
    axes.fill_between(times, values - ALARM * sigmas, values + ALARM * sigmas, color=_COLOURS[name], alpha=0.15)


def _finish(axes: Any, told: float | None, what: str) -> None:
    axes.axhline(0.0, color="black", linewidth=0.8)
    if told is not None:
        axes.axvline(told, color="red", linewidth=1.0, label="told")
    axes.set_xlabel("time (s)")
    axes.set_ylabel(what)
    axes.legend(loc="upper left")


def _draw_turns(axes: Any, judged: list[Moment], told: float | None) -> None:
    times = [m.time_s for m in judged]
    for i, name in enumerate(("pitch", "yaw", "roll")):
        values = np.array([m.verdict.turn_deg[i] for m in judged])
        sigmas = np.array([m.verdict.turn_sigma_deg[i] for m in judged])
        _band(axes, times, values, sigmas, name)
        for side in (-1, 1):
            axes.axhline(side * MATTERS[i], color=_COLOURS[name], linestyle=":", linewidth=0.8)
    axes.set_title(f"turn, ± {ALARM:g} standard deviations; dotted: what matters; dots: the ground")
    _finish(axes, told, "degrees")


def _draw_ground(axes: Any, moments: list[Moment]) -> None:
    compared = [m for m in moments if m.ground_deg is not None]
    limits = axes.get_ylim()
    for i, name in enumerate(("pitch", "roll")):
        values = [m.ground_deg[i] for m in compared]
        axes.scatter([m.time_s for m in compared], values, s=6, color=_COLOURS[name], alpha=0.5)
    # Single comparisons may lie far off.
    axes.set_ylim(min(limits[0], -_LEAST_TURNS_DEG), max(limits[1], _LEAST_TURNS_DEG))


def _draw_delay(axes: Any, judged: list[Moment], told: float | None) -> None:
    times = [m.time_s for m in judged]
    values = np.array([m.verdict.delay_s * 1e3 for m in judged])
    sigmas = np.array([m.verdict.delay_sigma_s * 1e3 for m in judged])
    _band(axes, times, values, sigmas, "delay")
    for side in (-1, 1):
        axes.axhline(side * MATTERS[3] * 1e3, color=_COLOURS["delay"], linestyle=":", linewidth=0.8)
    # Where nothing turned, nothing is known, to a second.
    axes.set_ylim(-_WORST_MS, _WORST_MS)
    axes.set_title("scans older than their stamps")
    _finish(axes, told, "ms")


def _draw_scatter(axes: Any, course: Course) -> None:
    moving = [m for m in course.moments if m.motion is not None]
    motion = np.degrees([m.motion[0] for m in moving])
    # Brightness lies to the right of anchors that lie to the left.
    shift = -course.camera.fx * np.radians([m.right_deg for m in moving])
    axes.scatter(motion, shift, s=6, color=_COLOURS["yaw"], alpha=0.5)
    verdict = course.verdict
    if verdict is not None and len(motion):
        ends = np.array([motion.min(), motion.max()])
        line = verdict.shift_px[0] - np.radians(ends) * verdict.delay_s * course.camera.fx
        axes.plot(ends, line, color="black", label=f"slope: {verdict.delay_s * 1e3:.0f} ms")
        axes.legend(loc="upper left")
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set_title("each frame: shift to the right over the picture's motion")
    axes.set_xlabel("motion to the right (degrees/s)")
    axes.set_ylabel("px")


def _draw_frame(axes: Any, course: Course) -> None:
    rgb, evidence = course.picture
    axes.imshow(rgb)
    trusted = evidence.clear > 0.1
    first = np.arange(len(trusted)) < evidence.rightwards
    focal = np.where(first, course.camera.fx, course.camera.fy)
    offset = np.where(trusted, np.radians(evidence.offset_deg) * focal, np.nan)
    for chosen, marker in ((first, "|"), (~first, "_")):
        chosen = chosen & trusted
        points = axes.scatter(
            *evidence.edges[chosen].T, c=offset[chosen], marker=marker, s=60, cmap="turbo", vmin=-_WORST_PX,
            vmax=_WORST_PX,
        )  # fmt: skip
    axes.figure.colorbar(points, ax=axes, label="brightness lies right of | or below _ (px)")
    axes.set_title("jumps of depth in one frame")
    axes.set_xticks([])
    axes.set_yticks([])
