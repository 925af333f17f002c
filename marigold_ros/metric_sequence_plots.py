"""Pictures of the errors on sequences: over time through a fault, and against the share of wrong anchors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marigold_ros.config import Unusable
from marigold_ros.files import written_beside
from marigold_ros.metric_baselines import LINEAR, ORACLE, OURS
from marigold_ros.metric_chain import GLOBAL, PER_FRAME, SMOOTHED
from marigold_ros.metric_over_time import SequenceRow
from marigold_ros.metric_sequence_cases import CLEAN, DROPOUT, JUMP, SHARES, WRONG

_OVER_TIME, _WRONG = "error_over_time.png", "error_against_wrong_anchors.png"
_STYLES = {
    OURS: "#1b6ca8",
    GLOBAL: "#7fb6dd",
    PER_FRAME: "#999999",
    SMOOTHED: "#d1703c",
    ORACLE: "#222222",
    LINEAR: "#3d8b4f",
}
_AT_ONCE = 6


def write_plots(rows: Sequence[SequenceRow], folder: Path) -> None:
    """Write both pictures into the folder; raises `Unusable` where matplotlib or the folder cannot be had."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unusable("--plots: matplotlib is not installed; pip install matplotlib") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise Unusable(f"--plots {folder}: cannot be made ({problem.strerror}); give another folder") from problem
    for name, draw in ((_OVER_TIME, _over_time), (_WRONG, _against_wrong)):
        figure = draw(rows, Figure)
        if figure is None:
            continue
        with written_beside(folder / name) as beside:
            figure.savefig(beside, format="png", dpi=120)


def _over_time(rows: Sequence[SequenceRow], figure_class: Any) -> Any:
    """AbsRel of every step of the drop-outs and jumps, the fault shaded."""
    cases = list(dict.fromkeys((r.sequence, r.fault) for r in rows if r.group in (DROPOUT, JUMP) and r.over_time))
    cases = _varied(cases)
    if not cases:
        return None
    figure = figure_class(figsize=(9, 1.9 * len(cases)), layout="constrained")
    for axes, (sequence, fault) in zip(figure.subplots(len(cases), squeeze=False)[:, 0], cases, strict=True):
        here = [r for r in rows if (r.sequence, r.fault) == (sequence, fault) and r.over_time and r.method in _STYLES]
        for row in here:
            axes.plot(row.over_time, color=_STYLES[row.method], label=row.method, lw=1.8 if row.method == OURS else 1)
        first, count = here[0].scored_from, here[0].frames
        axes.axvspan(first - 0.5, first + (count if here[0].group == DROPOUT else 0.5) - 0.5, color="#f3d9c9", lw=0)
        bounds = [v for row in here if row.method in (OURS, ORACLE) for v in row.over_time if v == v]
        axes.set(title=f"{sequence}: {fault}", ylabel="AbsRel", ylim=(0, 1.3 * max(bounds, default=0.1)))
    axes.set_xlabel("frame")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _varied(cases: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """At most so many of the cases, one of each fault first."""
    first = {fault: (sequence, fault) for sequence, fault in reversed(cases)}
    chosen = [first[fault] for fault in dict.fromkeys(fault for _, fault in cases)]
    return chosen[:_AT_ONCE]


def _against_wrong(rows: Sequence[SequenceRow], figure_class: Any) -> Any:
    """AbsRel against the share of wrong anchors, a picture for each sequence."""
    sequences = list(dict.fromkeys(r.sequence for r in rows if r.group == WRONG))
    if not sequences:
        return None
    figure = figure_class(figsize=(3.4 * len(sequences), 3.6), layout="constrained")
    for axes, sequence in zip(figure.subplots(1, len(sequences), squeeze=False)[0], sequences, strict=True):
        for method, colour in _STYLES.items():
            here = [r for r in rows if (r.sequence, r.method) == (sequence, method) and r.group in (CLEAN, WRONG)]
            axes.plot([0, *SHARES], [r.abs_rel for r in here], "o-", color=colour, label=method, ms=3)
        axes.set(title=sequence, xlabel="share of wrong anchors", ylabel="AbsRel", ylim=(0, None))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure
