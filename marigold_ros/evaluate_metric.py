"""How well relative depth and a few range points become metres: `python -m marigold_ros.evaluate_metric`.

On real still frames (KITTI's streets, an indoor RGB-D camera) the node's fit is given anchors in several patterns,
clean and with faults, and is held against depth that they do not give away, beside the best possible fit and what
others use. The network runs once per frame. With --relative degraded the relative depth is made from the truth of the
indoor frames instead, to judge the chain apart from a weak network. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.degraded_truth import degraded
from marigold_ros.estimator import load_estimator
from marigold_ros.files import written_beside
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
from marigold_ros.metric_frames import DATA_VARIABLE, DATASETS, Frame, data_folder, read_frames
from marigold_ros.metric_report import SCORES, Row, Target, case_tables, means, overview, targets, targets_table
from marigold_ros.scores import near_rates, score, shares_within
from marigold_ros.timing import measure, timing

DEGRADED = "degraded"
_FIT_REPEATS = 5

# What gives relative depth of a frame, and a metric checkpoint's own fit; None where it has none.
Source = Callable[[Frame], "tuple[np.ndarray, MetricFit | None] | None"]


def pattern_rows(
    pattern: Pattern,
    relative: np.ndarray,
    space: str,
    own: MetricFit | None,
    faults: tuple[Fault, ...],
) -> Iterator[Row]:
    """The scores of every method on the pattern with each fault; `relative`: (H, W) of the pattern's frame."""
    v, u = np.nonzero(np.isfinite(pattern.truth_m))
    pixels, truth_m = np.stack([u, v], axis=1), pattern.truth_m[v, u]
    if len(truth_m) == 0:
        raise Unusable(f"frame {pattern.frame.name}, {pattern.name}: there is no held-out truth to compare with")
    best: np.ndarray | None = None
    for case in cases(pattern, faults):
        question = Question(relative, space, case.anchors, pixels, own)
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
            return degraded(frame.depth_m, space, _seed_of(frame)), None

        return degrade, space, f"degraded truth, affine in {space}"
    estimator = load_estimator(ModelConfig(checkpoint=arguments.relative, engine=arguments.engine))

    def answer(frame: Frame) -> tuple[np.ndarray, MetricFit | None]:
        return estimator(frame.rgb, frame.camera.focal_px), estimator.fit_of(frame.camera)

    return answer, estimator.space, f"{estimator.checkpoint} on {estimator.engine}, affine in {estimator.space}"


def _seed_of(frame: Frame) -> int:
    return SEED + sum(frame.name.encode())


def evaluate(frames: Iterator[Frame], source: Source, space: str) -> list[Row]:
    """The scores on all frames that `source` has relative depth of; raises `Unusable` where it has none."""
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
    if not rows:
        raise Unusable("--relative degraded: needs frames with dense depth, which only indoor/ has")
    if left_out:
        print(f"left out, no dense depth to degrade: {', '.join(left_out)}", file=sys.stderr)
    return rows


def _as_json(rows: Sequence[Row], answers: Sequence[Target], relative: str) -> str:
    def plain(values: dict) -> dict:
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}

    content = {
        "relative": relative,
        "seed": SEED,
        "rows": [plain(asdict(row)) for row in rows],
        "targets": [plain(asdict(answer)) for answer in answers],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate_metric", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help=f"holds kitti/, indoor/ or both (default ${DATA_VARIABLE})"
    )
    parser.add_argument("--on", nargs="+", choices=DATASETS, help="these datasets only (default: what is there)")
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all scores of all cases")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the tables."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.json is not None and arguments.json.is_dir():
            raise Unusable(f"--json {arguments.json}: is a folder; give a file in it")
        folder = data_folder(arguments.data)
        source, space, words = _source(arguments)
        rows = evaluate(read_frames(folder, arguments.on), source, space)
        answers = targets(rows)
        if arguments.json is not None:
            with written_beside(arguments.json) as beside:
                beside.write_text(_as_json(rows, answers, words), encoding="utf-8")
    except Unusable as problem:
        print(f"evaluate_metric: {problem}", file=sys.stderr)
        return 1
    print(f"Relative depth: {words}. In brackets: for how much of the truth there is depth, where not for all;")
    print("– where the fit refused. The targets are those of KITTI's frames, indoors they are for comparison.")
    print(f"\n## Targets\n\n{targets_table(answers)}\n\n## Scores")
    for name in arguments.scores:
        for table in case_tables(means(rows) if arguments.mean else rows, name):
            print(f"\n{table}")
    for table in overview(rows):
        print(f"\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
