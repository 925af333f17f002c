"""How well relative depth and a few range points become metres: `python -m marigold_ros.evaluate_metric`.

On real still frames (KITTI's streets, an indoor RGB-D camera) the node's fit is given anchors in several patterns,
clean and with faults, and is held against depth that they do not give away, beside the best possible fit and what
others use. The network runs once per frame. With --relative degraded the relative depth is made from the truth of the
indoor frames instead, to judge the chain apart from a weak network. On sequences, generated recordings with exact
truth, the node's chain goes from frame to frame, through faults of the anchors and of time. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.degraded_truth import degraded
from marigold_ros.estimator import load_estimator
from marigold_ros.files import written_beside
from marigold_ros.geometry import resize
from marigold_ros.metric import SPACES, MetricFit
from marigold_ros.metric_baselines import (
    GLOBAL,
    METHODS,
    ORACLE,
    OURS,
    Question,
    oracle_affine,
    ours_with_sigma,
    own_fit,
)
from marigold_ros.metric_cases import FAULTS, SEED, Fault, Pattern, cases, patterns
from marigold_ros.metric_frames import SEQUENCES, Frame, read_frames
from marigold_ros.metric_over_time import SequenceRow, sequence_rows
from marigold_ros.metric_report import SCORES, Row, Target, case_tables, means, overview, targets, targets_table
from marigold_ros.metric_sequence_cases import GROUPS
from marigold_ros.metric_sequence_plots import write_plots
from marigold_ros.metric_sequence_report import (
    clean_tables,
    fault_tables,
    own_tables,
    sequence_targets,
    with_means,
)
from marigold_ros.metric_sequences import Source, read_sequence
from marigold_ros.places import shared
from marigold_ros.real_data import DATA_VARIABLE, DATASETS, real_data
from marigold_ros.recordings import TRUTH_STRIDE
from marigold_ros.scores import near_rates, score, shares_within
from marigold_ros.timing import measure, timing

if TYPE_CHECKING:
    from marigold_ros.metric_guided import GuidedMethods

DEGRADED = "degraded"
# What a sequence's truth has nothing within 65 m of is so far away.
_SKY_M = 200.0
_FIT_REPEATS = 5
_BUNDLED = "recordings/warehouse"


def pattern_rows(
    pattern: Pattern,
    coarse: np.ndarray,
    space: str,
    own: MetricFit | None,
    faults: tuple[Fault, ...],
) -> Iterator[Row]:
    """The scores of every method on the pattern with each fault; `coarse`: (h, w) relative depth of its frame."""
    v, u = np.nonzero(np.isfinite(pattern.truth_m))
    pixels, truth_m = np.stack([u, v], axis=1), pattern.truth_m[v, u]
    if len(truth_m) == 0:
        raise Unusable(f"frame {pattern.frame.name}, {pattern.name}: there is no held-out truth to compare with")
    relative = resize(coarse, *pattern.truth_m.shape[::-1])
    best: np.ndarray | None = None
    for case in cases(pattern, faults):
        question = Question(relative, space, case.anchors, pixels, own, coarse)
        best = oracle_affine(question, truth_m) if best is None else best  # rests on the truth alone
        fit_ms = timing(measure(lambda question=question: own_fit(question), _FIT_REPEATS)).p50_ms
        ours_m, sigma_m = ours_with_sigma(question)
        within = shares_within(ours_m, sigma_m, truth_m)
        answers = {OURS: ours_m, ORACLE: best}
        answers |= {name: method(question) for name, method in METHODS.items() if name != OURS}
        for method, predicted_m in answers.items():
            row = _row(case.pattern, case.fault, method, len(case.anchors), predicted_m, truth_m, fit_ms)
            yield replace(row, within_1=within[0], within_2=within[1]) if method == OURS else row


def _row(
    pattern: Pattern,
    fault: Fault,
    method: str,
    anchors: int,
    predicted_m: np.ndarray,
    truth_m: np.ndarray,
    fit_ms: float,
) -> Row:
    s, near = score(predicted_m, truth_m), near_rates(predicted_m, truth_m)
    return Row(
        pattern.frame.dataset, pattern.frame.name, pattern.name, fault.name, method, anchors, len(truth_m),
        s.abs_rel, s.rmse_m, s.mae_m, s.delta1, near.miss, near.phantom, near.pixels, s.coverage,
        fit_ms if method == GLOBAL else math.nan,
    )  # fmt: skip


def _source(arguments: argparse.Namespace) -> tuple[Source, str, str]:
    """What gives relative depth, its space, and what it is in words."""
    if arguments.relative == DEGRADED:
        space = arguments.space

        def degrade(frame: Frame) -> tuple[np.ndarray, MetricFit | None] | None:
            if frame.depth_m is None:
                return None
            # Of single frames a pixel without depth is a hole, of whatever is around it.
            depth_m = frame.depth_m if frame.number is None else with_sky(frame.depth_m)
            return degraded(depth_m, space, _seed_of(frame), frame.number), None

        return degrade, space, f"degraded truth, affine in {space}"
    estimator = load_estimator(ModelConfig(checkpoint=arguments.relative, engine=arguments.engine))

    def answer(frame: Frame) -> tuple[np.ndarray, MetricFit | None]:
        return estimator.coarse(frame.rgb, frame.camera.focal_px), estimator.fit_of(frame.camera)

    return answer, estimator.space, f"{estimator.checkpoint} on {estimator.engine}, affine in {estimator.space}"


def with_sky(depth_m: np.ndarray) -> np.ndarray:
    """A recording's (H, W) truth with what it does not reach far away; NaN still between the pixels that it knows."""
    known = (slice(None, None, TRUTH_STRIDE), slice(None, None, TRUTH_STRIDE))
    result = depth_m.copy()
    result[known] = np.where(np.isnan(depth_m[known]), np.float32(_SKY_M), depth_m[known])
    return result


def _seed_of(frame: Frame) -> int:
    return SEED + sum(frame.name.encode())


def evaluate(frames: Iterator[Frame], source: Source, space: str, needed: bool = True) -> list[Row]:
    """The scores on all frames that `source` has relative depth of; `Unusable` if `needed` and there are none."""
    rows: list[Row] = []
    left_out = []
    for frame in frames:
        found = source(frame)
        if found is None:
            left_out.append(f"{frame.dataset} {frame.name}")
            continue
        print(f"{frame.dataset} {frame.name} ...", file=sys.stderr)
        for pattern in patterns(frame):
            rows += pattern_rows(pattern, found[0], space, found[1], FAULTS)
    if not rows and needed:
        raise Unusable("--relative degraded: needs frames with dense depth, which only indoor/ has")
    if left_out:
        print(f"left out, no dense depth to degrade: {', '.join(left_out)}", file=sys.stderr)
    return rows


def _guided(checkpoint: str) -> GuidedMethods:
    try:
        from marigold_ros.metric_guided import GuidedMethods
    except ImportError as error:
        raise Unusable(f"--marigold-dc: {error.name} is not installed; pip install torch diffusers") from error
    return GuidedMethods(checkpoint)


def guided_rows(frames: Iterator[Frame], methods: GuidedMethods) -> Iterator[Row]:
    """The scores of Marigold-DC in a few cases of every frame."""
    for frame in frames:
        for found in methods.answers(frame):
            pattern = found.case.pattern
            asked = np.isfinite(pattern.truth_m)
            yield _row(
                pattern, found.case.fault, found.method, len(found.case.anchors),
                found.depth_m[asked], pattern.truth_m[asked], math.nan,
            )  # fmt: skip


def evaluate_sequences(
    paths: Sequence[Path], source: Source, space: str, arguments: argparse.Namespace
) -> list[SequenceRow]:
    """The scores on the recordings, one after the other; each is cut to from the one before."""
    rows: list[SequenceRow] = []
    before = None
    for path in paths:
        print(f"{path} ...", file=sys.stderr)
        sequence = read_sequence(path, source, space, arguments.frames)
        rows += sequence_rows(sequence, before, tuple(arguments.faults), lambda name: print(name, file=sys.stderr))
        before = sequence
    return rows


def _as_json(
    rows: Sequence[Row],
    answers: Sequence[Target],
    relative: str,
    over_time: Sequence[SequenceRow],
    answers_over_time: Sequence[Target],
) -> str:
    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, float) and not math.isfinite(value):
            return "never" if math.isinf(value) else None
        return value

    content = {
        "relative": relative,
        "seed": SEED,
        "rows": [plain(asdict(row)) for row in rows],
        "targets": [plain(asdict(answer)) for answer in answers],
        "sequences": [plain(asdict(row)) for row in over_time],
        "sequence_targets": [plain(asdict(answer)) for answer in answers_over_time],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate_metric", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help=f"holds kitti/, indoor/ or both (default ${DATA_VARIABLE})"
    )
    parser.add_argument(
        "--on", nargs="+", choices=(*DATASETS, SEQUENCES), help="these only (default: sequences, and what is there)"
    )
    parser.add_argument(
        "--sequences",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="recordings with true depth (default: the bundled one; `make sequences` makes more)",
    )
    parser.add_argument("--frames", type=int, metavar="N", help="of sequences the first N frames only")
    parser.add_argument(
        "--faults",
        nargs="+",
        choices=GROUPS,
        default=list(GROUPS),
        metavar="FAULT",
        help=f"of sequences these faults only: {', '.join(GROUPS)}",
    )
    parser.add_argument(
        "--relative", default="nano", metavar="nano|CHECKPOINT|degraded", help="what gives relative depth (nano)"
    )
    parser.add_argument(
        "--engine", default="auto", choices=("auto", "tensorrt", "openvino", "torch"), help="what runs it"
    )
    parser.add_argument("--space", default="inverse_depth", choices=SPACES, help="of the degraded truth")
    parser.add_argument(
        "--scores", nargs="+", default=["abs_rel"], choices=SCORES, help="a table by case for each of them (abs_rel)"
    )
    parser.add_argument("--mean", action="store_true", help="tables of the frames' means instead of every frame")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="also draw the sequences' errors, as PNG files")
    parser.add_argument(
        "--marigold-dc",
        metavar="CHECKPOINT",
        help="also the diffusion of this multi-step checkpoint, guided by the anchors, in a few cases (slow)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all scores of all cases")
    return parser


def _still_frames(arguments: argparse.Namespace) -> Iterator[Frame]:
    """The real frames that are asked for; without a word about them, those that are there."""
    chosen = None if arguments.on is None else [name for name in arguments.on if name in DATASETS]
    if chosen == []:
        return iter(())
    folder = real_data(arguments.data)
    if folder is not None:
        return read_frames(folder, chosen)
    problem = f"no real frames; name the folder that holds kitti/ or indoor/ by --data or {DATA_VARIABLE}"
    if chosen is not None:
        raise Unusable(problem)
    print(f"left out: {problem}", file=sys.stderr)
    return iter(())


def _recordings(arguments: argparse.Namespace) -> list[Path]:
    """The sequences that are asked for."""
    if arguments.on is not None and SEQUENCES not in arguments.on:
        return []
    return arguments.sequences or [shared(_BUNDLED)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the tables."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.frames is not None and arguments.frames < 1:
        parser.error("--frames must be at least 1")
    try:
        if arguments.json is not None and arguments.json.is_dir():
            raise Unusable(f"--json {arguments.json}: is a folder; give a file in it")
        frames, recordings = _still_frames(arguments), _recordings(arguments)
        guided = None if arguments.marigold_dc is None else _guided(arguments.marigold_dc)
        source, space, words = _source(arguments)
        rows = evaluate(frames, source, space, needed=not recordings)
        if guided is not None:
            rows += guided_rows(_still_frames(arguments), guided)
        answers = targets(rows)
        over_time = evaluate_sequences(recordings, source, space, arguments)
        answers_over_time = sequence_targets(over_time)
        if arguments.plots is not None:
            write_plots(over_time, arguments.plots)
        if arguments.json is not None:
            with written_beside(arguments.json) as beside:
                beside.write_text(_as_json(rows, answers, words, over_time, answers_over_time), encoding="utf-8")
    except Unusable as problem:
        print(f"evaluate_metric: {problem}", file=sys.stderr)
        return 1
    print(f"Relative depth: {words}. In brackets: for how much of the truth there is depth, where not for all;")
    print("– where the fit refused. The targets are those of KITTI's frames, indoors they are for comparison.")
    if rows:
        _print_still(rows, answers, arguments)
    if over_time:
        _print_over_time(over_time, answers_over_time, arguments.scores)
    return 0


def _print_still(rows: Sequence[Row], answers: Sequence[Target], arguments: argparse.Namespace) -> None:
    print(f"\n## Targets\n\n{targets_table(answers)}\n\n## Scores")
    for name in arguments.scores:
        for table in case_tables(means(rows) if arguments.mean else rows, name):
            print(f"\n{table}")
    for table in overview(rows):
        print(f"\n{table}")


def _print_over_time(rows: Sequence[SequenceRow], answers: Sequence[Target], scores: Sequence[str]) -> None:
    print(f"\n## Targets over time\n\n{targets_table(answers)}\n\n## Scores over time")
    rows = with_means(rows)
    for tables in (clean_tables(rows), own_tables(rows), *(fault_tables(rows, name) for name in scores)):
        for table in tables:
            print(f"\n{table}")


if __name__ == "__main__":
    sys.exit(main())
