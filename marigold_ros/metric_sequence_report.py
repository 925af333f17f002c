"""The tables of `evaluate_metric` on sequences, and whether their targets are met; Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from marigold_ros.metric_baselines import ORACLE, OURS
from marigold_ros.metric_cases import TURNED_1_DEG, WRONG
from marigold_ros.metric_chain import GLOBAL
from marigold_ros.metric_over_time import SequenceRow, known_mean
from marigold_ros.metric_report import NEAR, WHOLE, Target, columns, markdown, plain
from marigold_ros.metric_sequence_cases import AFTER_CLEAN, CLEAN, COHERENT, DEGENERATE, DROPOUT, GROUPS, JUMP

_HEADINGS = {
    "abs_rel": "AbsRel",
    "usual": "clean, same frames",
    "rmse_m": "RMSE, m",
    "mae_m": "MAE, m",
    "delta1": "δ1",
    "miss": "miss < 5 m",
    "phantom": "phantom < 5 m",
    "sky_depth": "depth in the sky",
    "sky_wall": "wall in the sky",
    "coverage": "coverage",
    "within_1": "within 1 σ",
    "within_2": "within 2 σ",
    "flicker_p95": "step, p95",
    "flicker_max": "step, max",
    "noise": "noise of ln z",
    "recovery_s": "recovery, s",
}
_SKY = ("sky_depth", "sky_wall")
_SHARES = ("delta1", *NEAR, *_SKY, "coverage", "within_1", "within_2")
_METRES = ("rmse_m", "mae_m")
_OF_OURS = (
    "abs_rel",
    "usual",
    *NEAR,
    *_SKY,
    "coverage",
    "within_1",
    "within_2",
    "flicker_p95",
    "recovery_s",
)
# With depth for less of the truth a target is not met: leaving frames out flatters. A cold start may cost some.
_ENOUGH = 0.9
_WRONG, _TURNED = [fault.name for fault in WRONG], [fault.name for fault in TURNED_1_DEG]
_AGAINST_ORACLE = ((_WRONG, "up to 50 % wrong anchors", 1.2), (_TURNED, "extrinsic off by 1°", 1.3))
_CORRECTION = (([CLEAN], "clean", 0.8), (_TURNED, "extrinsic off by 1°", 0.9))
_WALL_IN_SKY = 0.05
_STEP = 0.02
_SHORT_DROPOUT, _DROPOUT_FACTOR = "no scans for 0.3 s", 1.1
_COHERENT_MORE = 0.02
_SCANS_TO_RECOVER, _SCAN_S = 2, 0.1
_ONE_DEPTH, _ONE_DEPTH_REL, _ONE_DEPTH_WITHIN_2 = "one depth", 0.12, 0.93
# The same figures as parts of the best affine fit's 0.066.
_FEW_FACTOR, _ONE_DEPTH_FACTOR = 1.36, 1.82
_FEW_REL, _TOO_FEW = 0.09, ("1 anchor", "2 anchors")
_WITHIN_1 = (0.55, 0.80)
_TOGETHER_MS = 8.0


def with_means(rows: Sequence[SequenceRow]) -> list[SequenceRow]:
    """The rows, and before them their sequences' means where there are several; what is NaN is left out.

    Of methods that answered on all sequences; a fault that not all can have says how many do, and so does a score.
    """
    count = len({row.sequence for row in rows})
    if count < 2:
        return list(rows)
    partial = {row.method for row in rows if row.group == CLEAN and row.frames == 0}
    groups: dict[tuple[str, str], list[SequenceRow]] = {}
    for row in sorted(rows, key=lambda row: GROUPS.index(row.group)):
        if row.method not in partial:
            groups.setdefault((row.fault, row.method), []).append(row)
    return [*(_mean(group, count) for group in groups.values()), *rows]


def _mean(group: list[SequenceRow], count: int) -> SequenceRow:
    first, some = group[0], f" (on {len(group)} of {count})" if len(group) < count else ""
    stages = [stage for stage in first.stage_ms if all(stage in row.stage_ms for row in group)]
    states = dict.fromkeys(state for row in group for state in row.states)
    known_on = {name: sum(not math.isnan(getattr(row, name)) for row in group) for name in _HEADINGS}
    return SequenceRow(
        f"mean of {count}", first.group, first.fault + some, first.method, sum(row.frames for row in group),
        **{name: known_mean(getattr(row, name) for row in group) for name in _HEADINGS},
        states={state: statistics.fmean(row.states.get(state, 0.0) for row in group) for state in states},
        stage_ms={
            stage: tuple(statistics.fmean(times) for times in zip(*(row.stage_ms[stage] for row in group), strict=True))
            for stage in stages
        },
        known_on={name: known for name, known in known_on.items() if 0 < known < len(group)},
    )  # fmt: skip


def fault_tables(rows: Sequence[SequenceRow], name: str) -> Iterator[str]:
    """A table of the score `name` for every sequence: faults down, methods across."""
    for sequence in dict.fromkeys(row.sequence for row in rows):
        here = {(row.fault, row.method): row for row in rows if row.sequence == sequence}
        across = columns(dict.fromkeys(method for _, method in here), name)
        lines = []
        for fault in dict.fromkeys(fault for fault, _ in here):
            cells = [_cell(here[fault, method], what) for method, what in across.values()]
            lines.append([fault, str(here[fault, OURS].frames), *cells])
        yield f"### {_HEADINGS[name]}, {sequence}\n\n{markdown(['fault', 'frames', *across], lines)}"


def own_tables(rows: Sequence[SequenceRow]) -> Iterator[str]:
    """A table of what the node does in every case of a sequence: errors, calibration, recovery, states."""
    for sequence in dict.fromkeys(row.sequence for row in rows):
        here = [row for row in rows if row.sequence == sequence and row.method == OURS]
        lines = [[row.fault, *(_number(row, name) for name in _OF_OURS), _states(row)] for row in here]
        heads = ["fault", *(_HEADINGS[name] for name in _OF_OURS), "states"]
        yield f"### Ours over time, {sequence}\n\n{markdown(heads, lines)}"


def clean_tables(rows: Sequence[SequenceRow]) -> Iterator[str]:
    """All scores of all methods without faults, for every sequence, and the time of each stage."""
    clean = [row for row in rows if row.group == CLEAN]
    names = [name for name in _HEADINGS if name not in ("recovery_s", "usual")]
    heads = ["method", *(_HEADINGS[name] for name in names), "ms, p50"]
    for sequence in dict.fromkeys(row.sequence for row in clean):
        here = [row for row in clean if row.sequence == sequence]
        lines = [[row.method, *(_number(row, name) for name in names), _together(row)] for row in here]
        yield f"### All scores, clean, {sequence}\n\n{markdown(heads, lines)}"
    ours = [row for row in clean if row.method == OURS and row.stage_ms]
    stages = list(dict.fromkeys(stage for row in ours for stage in row.stage_ms))
    lines = [[row.sequence, *(_times(row, stage) for stage in stages)] for row in ours]
    yield f"### Milliseconds of each stage, p50 / p95\n\n{markdown(['sequence', *stages], lines)}"


def sequence_targets(rows: Sequence[SequenceRow]) -> list[Target]:
    """Every target for sequences that the rows can answer; of several cases that which comes off worst."""
    found = {(row.sequence, row.fault, row.method): row for row in rows}
    answers: list[Target | None] = []
    for faults, words, factor in _AGAINST_ORACLE:
        those = [row for row in rows if row.fault in faults and row.method == GLOBAL]
        what = f"global fit, {words}: at most {factor:g} x the best affine fit"
        answers.append(_worst(what, those, lambda row, f=factor: f * found[row.sequence, row.fault, ORACLE].abs_rel))
    for faults, words, factor in _CORRECTION:
        those = [row for row in rows if row.fault in faults and row.method == OURS]
        what = f"correction, {words}: at most {factor:g} x the global fit"
        answers.append(_worst(what, those, lambda row, f=factor: f * found[row.sequence, row.fault, GLOBAL].abs_rel))
    ours = [row for row in rows if row.method == OURS]
    clean = {row.sequence: row for row in ours if row.group == CLEAN}
    steady = [row for row in clean.values() if not math.isnan(row.noise)]
    what = "still scene: 95th percentile of the step of the median ln z"
    answers.append(_worst(what, steady, lambda row: _STEP, "flicker_p95"))
    sky = [row for row in ours if row.fault in (CLEAN, *_WRONG) and not math.isnan(row.sky_wall)]
    what = "up to 50 % wrong anchors: share of the sky with depth nearer than 30 m"
    answers.append(_worst(what, sky, lambda row: _WALL_IN_SKY, "sky_wall"))
    answers += _degenerate(ours, lambda row: found[row.sequence, row.fault, ORACLE].abs_rel)
    those = [row for row in ours if row.group == DROPOUT and row.fault == _SHORT_DROPOUT]
    what = f"{_SHORT_DROPOUT}: at most {_DROPOUT_FACTOR:g} x the clean AbsRel of these frames"
    answers.append(_worst(what, those, lambda row: _DROPOUT_FACTOR * row.usual))
    those = [row for row in ours if row.group == COHERENT]
    what = f"most anchors wrong by one factor in single frames: at most {_COHERENT_MORE:g} more than clean"
    answers.append(_worst(what, those, lambda row: _COHERENT_MORE + row.usual))
    those = [row for row in ours if row.group == JUMP]
    what = f"after a jump: as good as before after {_SCANS_TO_RECOVER} scans of a 10 Hz LiDAR, s"
    answers.append(_worst(what, those, lambda row: _SCANS_TO_RECOVER * _SCAN_S + 1e-6, "recovery_s"))
    answers += _calibration(list(clean.values()))
    timed = [row for row in clean.values() if "together" in row.stage_ms]
    what = "anchors, fit, correction and confidence together: p50, ms"
    answers.append(_worst(what, timed, lambda row: _TOGETHER_MS, measured=lambda row: row.stage_ms["together"][0]))
    return [answer for answer in answers if answer is not None]


def _degenerate(ours: list[SequenceRow], oracle: Callable[[SequenceRow], float]) -> list[Target | None]:
    """Once whole scans were seen: three anchors and more, and one depth; in figures, and against the best affine fit.

    The figures were found where that has an AbsRel of 0.066; a weak network's is larger.
    """
    those = [row for row in ours if row.group == DEGENERATE and row.fault.endswith(AFTER_CLEAN)]
    flat = [row for row in those if row.fault.startswith(_ONE_DEPTH)]
    few = [row for row in those if row not in flat and not row.fault.startswith(_TOO_FEW)]
    sure = [row for row in flat if not math.isnan(row.within_2)]
    return [
        _worst(f"degenerate anchors {AFTER_CLEAN}: AbsRel", few, lambda row: _FEW_REL),
        _worst(
            f"degenerate anchors {AFTER_CLEAN}: at most {_FEW_FACTOR:g} x the best affine fit", few,
            lambda row: _FEW_FACTOR * oracle(row),
        ),
        _worst(
            f"anchors at one depth {AFTER_CLEAN}: at most {_ONE_DEPTH_FACTOR:g} x the best affine fit", flat,
            lambda row: _ONE_DEPTH_FACTOR * oracle(row),
        ),
        _worst(f"anchors at one depth {AFTER_CLEAN}: AbsRel", flat, lambda row: _ONE_DEPTH_REL),
        _worst(
            f"anchors at one depth {AFTER_CLEAN}: errors beyond 2 σ", sure, lambda row: 1 - _ONE_DEPTH_WITHIN_2,
            measured=lambda row: 1 - row.within_2,
        ),
    ]  # fmt: skip


def _calibration(clean: list[SequenceRow]) -> list[Target | None]:
    """The share of errors within one sigma, from both sides."""
    known = [row for row in clean if not math.isnan(row.within_1)]
    low, high = _WITHIN_1
    return [
        _worst("clean: share of errors within 1 σ, at most", known, lambda row: high, "within_1"),
        _worst(
            "clean: share of errors beyond 1 σ, at most", known, lambda row: 1 - low,
            measured=lambda row: 1 - row.within_1,
        ),
    ]  # fmt: skip


def _worst(
    what: str,
    rows: Sequence[SequenceRow],
    allowed: Callable[[SequenceRow], float],
    name: str = "abs_rel",
    measured: Callable[[SequenceRow], float] | None = None,
) -> Target | None:
    """The target in the case that comes off worst, depth that is mostly unknown worst of all; None without any."""
    value = measured or (lambda row: getattr(row, name) if row.coverage >= _ENOUGH else math.nan)
    answers = [
        Target(what, f"{row.sequence}, {row.fault}{_partly(row)}", value(row), allowed(row), value(row) <= allowed(row))
        for row in rows
    ]
    if not answers:
        return None
    worst = max(answers, key=lambda t: math.inf if math.isnan(t.measured) else t.measured / t.allowed)
    where = f"{sum(t.met for t in answers)} of {len(answers)} cases; worst: {worst.where}"
    return Target(what, where, worst.measured, worst.allowed, worst.met)


def _partly(row: SequenceRow) -> str:
    return "" if row.coverage >= WHOLE else f" (for {row.coverage:.0%} of the truth)"


def _cell(row: SequenceRow, name: str) -> str:
    """The score, with the coverage where much is unknown."""
    value = getattr(row, name)
    if name in ("coverage", *NEAR) or row.coverage >= WHOLE or math.isnan(value):
        return _number(row, name)
    return _number(row, name, f"{row.coverage:.0%}")


def _number(row: SequenceRow, name: str, *notes: str) -> str:
    """The score, with notes in brackets: of a mean, on how many sequences, where fewer than the fault's have it."""
    value = getattr(row, name)
    if name in _SHARES and not math.isnan(value):
        number = f"{value:.1%}"
    else:
        number = plain(value, 2 if name in _METRES or name == "recovery_s" else 3)
    if name in row.known_on:
        notes = (*notes, f"on {row.known_on[name]}")
    return f"{number} ({', '.join(notes)})" if notes else number


def _states(row: SequenceRow) -> str:
    return ", ".join(f"{state} {share:.0%}" for state, share in row.states.items()) or "–"


def _together(row: SequenceRow) -> str:
    """Milliseconds of all stages after the network, where the node's are measured."""
    return f"{row.stage_ms['together'][0]:.1f}" if row.stage_ms else "–"


def _times(row: SequenceRow, stage: str) -> str:
    if stage not in row.stage_ms:
        return "–"
    return " / ".join(f"{value:.2f}" for value in row.stage_ms[stage])
