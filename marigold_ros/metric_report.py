"""The tables of `evaluate_metric`: scores by case and method, and whether its targets are met; Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from marigold_ros.metric_baselines import GLOBAL, LINEAR, ORACLE, OURS
from marigold_ros.metric_cases import CLEAN, TURNED_1_DEG, WRONG
from marigold_ros.real_data import INDOOR, KITTI

# Below this coverage a table says how much is known, since leaving pixels out flatters.
WHOLE = 0.995
_HEADINGS = {
    "abs_rel": "AbsRel",
    "rmse_m": "RMSE, m",
    "mae_m": "MAE, m",
    "delta1": "δ1",
    "miss": "miss < 5 m",
    "phantom": "phantom < 5 m",
    "near_pixels": "pixels < 5 m",
    "coverage": "coverage",
    "fit_ms": "fit, ms",
    "within_1": "within σ",
    "within_2": "within 2 σ",
}
# Rates that count what is unknown, too.
NEAR = ("miss", "phantom")
_COUNTS = ("anchors", "pixels", "near_pixels")
_SHARES = ("delta1", "miss", "phantom", "coverage", "within_1", "within_2")
SCORES = [name for name in _HEADINGS if name not in ("near_pixels", "fit_ms")]
# Our AbsRel is to be at most this many times that of linear interpolation, with clean anchors.
_AGAINST_LINEAR = (
    (KITTI, "16 of 64 beams", 1.0),
    (KITTI, "4 of 64 beams", 0.85),
    (KITTI, "200 points", 0.85),
    (INDOOR, "16 lines", 1.0),
    (INDOOR, "2D scan", 0.85),
    (INDOOR, "500 points", 0.85),
)
_AGAINST_CLEAN = 1.15
_CALIBRATED = (0.55, 0.8)
_AGAINST_GLOBAL, _CORRECTED = 0.8, ("16 of 64 beams", "16 lines")
_AGAINST_ORACLE = (((CLEAN, *WRONG), "up to 50 % wrong anchors", 1.2), (TURNED_1_DEG, "extrinsic off by 1°", 1.3))


@dataclass(frozen=True)
class Row:
    """One method's scores in one case; errors are NaN where it gave nothing.

    near_pixels: of the held-out truth nearer than 5 m, on which `miss` and `phantom` rest. fit_ms: of our fit alone.
    within_1, within_2: share of our errors that one and two of our standard deviations cover.
    """

    dataset: str
    frame: str
    pattern: str
    fault: str
    method: str
    anchors: int
    pixels: int
    abs_rel: float
    rmse_m: float
    mae_m: float
    delta1: float
    miss: float
    phantom: float
    near_pixels: int
    coverage: float
    fit_ms: float = math.nan
    within_1: float = math.nan
    within_2: float = math.nan


@dataclass(frozen=True)
class Target:
    """A target and what was measured: AbsRel of our fit in `where`, and the most that is allowed; NaN: refused.

    Of calibration: the share of errors within one standard deviation, and the end of what is allowed that is nearer.
    """

    what: str
    where: str
    measured: float
    allowed: float
    met: bool


def means(rows: Iterable[Row]) -> list[Row]:
    """The rows with their frames' scores averaged, each dataset for itself; what is NaN is left out."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.pattern, row.fault, row.method), []).append(row)
    return [_mean(group) for group in groups.values()]


def _mean(group: list[Row]) -> Row:
    def mean(name: str) -> float:
        values = [getattr(row, name) for row in group if not math.isnan(getattr(row, name))]
        return float(np.mean(values)) if values else math.nan

    first = group[0]
    return Row(
        first.dataset, f"mean of {len(group)}", first.pattern, first.fault, first.method,
        **{name: mean(name) for name in _HEADINGS if name not in _COUNTS},
        **{name: round(mean(name)) for name in _COUNTS},
    )  # fmt: skip


def case_tables(rows: Sequence[Row], name: str) -> Iterator[str]:
    """A table of the score `name` for every frame: cases down, methods across."""
    for dataset, frame in dict.fromkeys((row.dataset, row.frame) for row in rows):
        here = [row for row in rows if (row.dataset, row.frame) == (dataset, frame)]
        found = {(row.pattern, row.fault, row.method): row for row in here}
        across = columns(dict.fromkeys(row.method for row in here), name)
        lines = []
        for pattern, fault in dict.fromkeys((row.pattern, row.fault) for row in here):
            asked = [(found.get((pattern, fault, method)), what) for method, what in across.values()]
            anchors = next(row.anchors for row, _ in asked if row is not None)
            cells = ["" if row is None else _cell(row, what) for row, what in asked]  # slow methods run in few cases
            lines.append([pattern, fault, str(anchors), *cells])
        heads = ["pattern", "fault", "anchors", *across]
        yield f"### {_HEADINGS[name]}, {dataset} {frame}\n\n{markdown(heads, lines)}"


def columns(methods: Iterable[str], name: str) -> dict[str, tuple[str, str]]:
    """The columns of a table of the score `name`: method and score by head; misses and phantoms beside our AbsRel."""
    found = {}
    for method in methods:
        found[method] = method, name
        if (method, name) == (OURS, "abs_rel"):
            found |= {f"{method}, {_HEADINGS[rate]}": (method, rate) for rate in NEAR}
    return found


def overview(rows: Sequence[Row]) -> Iterator[str]:
    """A table for every dataset: all scores with clean anchors, means over the frames."""
    averaged = [row for row in means(rows) if row.fault == CLEAN.name]
    for dataset in dict.fromkeys(row.dataset for row in averaged):
        here = [row for row in averaged if row.dataset == dataset]
        lines = [[row.pattern, row.method, *(_number(row, name) for name in _HEADINGS)] for row in here]
        title = f"### All scores, {dataset}, clean anchors, {here[0].frame} frames"
        yield f"{title}\n\n{markdown(['pattern', 'method', *_HEADINGS.values()], lines)}"


def targets(rows: Sequence[Row]) -> list[Target]:
    """Every target for still frames that the rows can answer."""
    found = {(row.dataset, row.frame, row.pattern, row.fault, row.method): row.abs_rel for row in rows}
    frames = list(dict.fromkeys((row.dataset, row.frame) for row in rows))
    answers: list[Target] = []
    for dataset, pattern, factor in _AGAINST_LINEAR:
        what = "never worse than linear interpolation" if factor == 1 else f"at most {factor:g} x linear interpolation"
        for frame in (frame for at, frame in frames if at == dataset):
            ours, linear = (found.get((dataset, frame, pattern, CLEAN.name, method)) for method in (OURS, LINEAR))
            if ours is not None and linear is not None:
                answers.append(_target(what, f"{dataset} {frame}, {pattern}", ours, factor * linear))
    for dataset in dict.fromkeys(at for at, _ in frames):
        clean = lambda key: (*key[:3], CLEAN.name, OURS)  # noqa: E731
        what = f"30 % wrong anchors: at most {_AGAINST_CLEAN:g} x its own clean error"
        answers += _worst(found, dataset, OURS, [WRONG[1].name], what, _AGAINST_CLEAN, clean)
        for faults, words, factor in _AGAINST_ORACLE:
            oracle = lambda key: (*key[:4], ORACLE)  # noqa: E731
            what = f"global fit, {words}: at most {factor:g} x the best affine fit"
            answers += _worst(found, dataset, GLOBAL, [fault.name for fault in faults], what, factor, oracle)
        for pattern in _CORRECTED:
            alone = lambda key: (*key[:4], GLOBAL)  # noqa: E731
            those = {key: value for key, value in found.items() if key[2] == pattern}
            what = f"correction, {pattern}: at most {_AGAINST_GLOBAL:g} x the global fit"
            answers += _worst(those, dataset, OURS, [CLEAN.name], what, _AGAINST_GLOBAL, alone)
        answers += _calibration([row for row in rows if row.dataset == dataset and row.method == OURS])
    return answers


def _calibration(rows: Sequence[Row]) -> Iterator[Target]:
    """For every fault: whether as many errors as there should be lie within one standard deviation; the worst case."""
    low, high = _CALIBRATED
    for fault in dict.fromkeys(row.fault for row in rows):
        here = [row for row in rows if row.fault == fault and not math.isnan(row.within_1)]
        if not here:
            continue
        worst = max(here, key=lambda row: abs(row.within_1 - (low + high) / 2))
        met = sum(low <= row.within_1 <= high for row in here)
        where = f"{worst.dataset}: {met} of {len(here)} cases; worst: {worst.frame}, {worst.pattern}"
        allowed = low if worst.within_1 < (low + high) / 2 else high
        what = f"{low:.0%} to {high:.0%} of errors within one standard deviation, {fault}"
        yield Target(what, where, worst.within_1, allowed, low <= worst.within_1 <= high)


def _target(what: str, where: str, measured: float, allowed: float) -> Target:
    return Target(what, where, measured, allowed, measured <= allowed)


def _worst(
    found: dict[tuple, float],
    dataset: str,
    method: str,
    faults: Sequence[str],
    what: str,
    factor: float,
    reference: Callable[[tuple], tuple],
) -> list[Target]:
    """The target in the case where `method` comes off worst; of refusals the first."""
    answers = [
        _target(what, f"{key[1]}, {key[2]}, {key[3]}", measured, factor * found.get(reference(key), math.nan))
        for key, measured in found.items()
        if key[0] == dataset and key[3] in faults and key[4] == method
    ]
    if not answers:
        return []
    worst = max(answers, key=lambda t: math.inf if math.isnan(t.measured) else t.measured / t.allowed)
    met = sum(answer.met for answer in answers)
    where = f"{dataset}: {met} of {len(answers)} cases; worst: {worst.where}"
    return [Target(what, where, worst.measured, worst.allowed, worst.met)]


def targets_table(answers: Sequence[Target]) -> str:
    """The targets as a table."""
    lines = [[t.what, t.where, plain(t.measured), plain(t.allowed), "yes" if t.met else "**no**"] for t in answers]
    return markdown(["target", "where", "measured", "allowed", "met"], lines)


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *lines))


def _cell(row: Row, name: str) -> str:
    """The score, with the coverage where much is unknown."""
    if name in ("coverage", *NEAR) or row.coverage >= WHOLE or math.isnan(getattr(row, name)):
        return _number(row, name)
    return f"{_number(row, name)} ({row.coverage:.0%})"


def _number(row: Row, name: str) -> str:
    value = getattr(row, name)
    if name in _COUNTS:
        return str(value)
    if name in _SHARES and not math.isnan(value):
        return f"{value:.1%}"
    return plain(value, 2 if name in ("rmse_m", "mae_m", "fit_ms") else 3)


def plain(value: float, digits: int = 3) -> str:
    """A number for a table: – is unknown, infinite is never."""
    if math.isnan(value):
        return "–"
    return "never" if math.isinf(value) else f"{value:.{digits}f}"
