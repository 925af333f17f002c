"""Which uncertainty of the single-step path ranks its true errors, and how well: the study behind `model.confidence`.

Every frame is answered several times: as it is, and in the ways of `PASSES`. Candidates are the disagreements with
these further answers, the disagreement of the decoder's three channels before they are averaged, and what costs
nothing. Each is scored by its area under the sparsification error (`sparsification`), over pixels of known depth, after
the fit that `frames` calls 'best'.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from marigold_ros.checkpoints import CheckpointInfo, describe, load_network
from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.disagreement import SECOND_PASS, aligned_to, disagreement
from marigold_ros.estimator import Engine, Estimator, load_estimator
from marigold_ros.export import cache_folder, onnx_file
from marigold_ros.metric import log_slope, to_space
from marigold_ros.network import normalised
from trainer.frames import Frame, aligned, held_out_frames
from trainer.sparsification import Ranking, fractions

# Name of the error, and whether its mean is the root of a mean of squares.
MEASURES = {"AbsRel": False, "RMSE": True, "relative depth": False}
# A further answer: whether of the mirrored image, and its working size as a part of the first's.
PASSES = {"mirror": (True, 1.0), "mirror, 1/2": (True, 0.5), "mirror, 1/4": (True, 0.25), "1/2": (False, 0.5)}


@dataclass(frozen=True)
class Look:
    """What is known of a frame without its truth, all at the image's size.

    relative: (H, W) the first answer. further: (H, W) answers by the names of `PASSES`, turned back.
    channels: (H, W, 3) of the first answer, None where the engine averages them. depth_m: (H, W) metres.
    """

    relative: np.ndarray
    further: dict[str, np.ndarray]
    channels: np.ndarray | None
    depth_m: np.ndarray
    space: str


def gradient(values: np.ndarray) -> np.ndarray:
    """(H, W) magnitude of the slope, per pixel."""
    return np.hypot(*np.gradient(values.astype(np.float32)))


def candidates(look: Look) -> dict[str, np.ndarray]:
    """(H, W) uncertainty, larger is less sure, by the candidate's name.

    'of depth' is in shares of the depth, but for the fit's scale, which changes no ranking.
    """
    slope = log_slope(look.depth_m, look.space)
    found = {
        "random": np.random.default_rng(0).random(look.relative.shape),
        "predicted depth": look.relative,
        "gradient": gradient(look.relative),
        "gradient, of depth": gradient(np.log(look.depth_m)),
    }
    if look.channels is not None:
        found["channels, range"] = np.ptp(look.channels, axis=2)
        found["channels, std"] = look.channels.std(axis=2)
        found["channels, std, of depth"] = found["channels, std"] * slope
    found["mirror, not aligned"] = np.abs(look.relative - look.further["mirror"])
    for name, answer in look.further.items():
        found[name] = disagreement(look.relative, answer)
        found[f"{name}, of depth"] = found[name] * slope
    return found


def errors(depth_m: np.ndarray, truth_m: np.ndarray, space: str) -> dict[str, np.ndarray]:
    """(N,) errors by the names in `MEASURES`: of the depth's share, in metres, and in the space."""
    off_m = np.abs(depth_m - truth_m)
    off = np.abs(to_space(depth_m, space) - to_space(truth_m, space))
    return {"AbsRel": off_m / truth_m, "RMSE": off_m, "relative depth": off}


@dataclass(frozen=True)
class FrameCurves:
    """Sparsification curves (STEPS,) of one frame by [measure][candidate], 'constant' and 'oracle' among them.

    facts: errors with and without the mirrored pass, and percentiles of the disagreements over all pixels.
    """

    name: str
    curves: dict[str, dict[str, np.ndarray]]
    facts: dict[str, float]


def study_frame(frame: Frame, look: Look) -> FrameCurves:
    """Rank the errors of one frame by every candidate."""
    known = np.isfinite(frame.depth_m) & (frame.depth_m > 0)
    truth_m = frame.depth_m[known].astype(np.float64)
    found, curves = candidates(look), {}
    rankings = {name: Ranking(values[known]) for name, values in found.items()}
    rankings["constant"] = Ranking(np.zeros(len(truth_m)))
    for measure, error in errors(look.depth_m[known], truth_m, look.space).items():
        rankings["oracle"] = Ranking(error)
        curves[measure] = {name: ranking.curve(error, MEASURES[measure]) for name, ranking in rankings.items()}
    both = (look.relative + aligned_to(look.relative, look.further["mirror"])) / 2
    averaged_m = aligned(both, frame.depth_m, known, look.space, best=True)[known]
    facts = {
        "AbsRel": float(np.mean(np.abs(look.depth_m[known] / truth_m - 1))),
        "AbsRel of both passes' mean": float(np.mean(np.abs(averaged_m / truth_m - 1))),
    }
    for name in look.further:
        low, median, high = np.percentile(found[name], (10, 50, 90))
        facts |= {f"{name}, 10 %": float(low), f"{name}, median": float(median), f"{name}, 90 %": float(high)}
    return FrameCurves(frame.name, curves, facts)


class ChannelsEngine:
    """The network in torch with all three decoder channels kept: (h, w, 3) uint8 -> (h, w, 3) float32."""

    def __init__(self, info: CheckpointInfo) -> None:
        self._network = load_network(info)
        self._network.head = torch.eye(3) * (-1.0 if info.disparity else 1.0)
        self.description = f"torch {torch.__version__}, three channels"

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """In [0, 1] like relative depth, but not clamped: the mean of what was clamped would be another one."""
        with torch.inference_mode():
            image = normalised(torch.from_numpy(rgb)[None], torch.float32)
            return ((self._network.forward_normalised(image)[0] + 1) / 2).permute(1, 2, 0).contiguous().numpy()

    def close(self) -> None:
        """Free the network."""
        del self._network


class Looker:
    """Answers frames in all the ways that `Look` holds; `engine` 'torch' keeps the channels, 'openvino' does not."""

    def __init__(self, checkpoint: Path, engine: str = "torch") -> None:
        info = describe(Path(checkpoint))
        self.space = info.space
        engine_of = _engines(info, engine)
        self._estimators = {}
        for part in {1.0, *(part for _, part in PASSES.values())}:
            sides = (info.width, info.height)
            size = tuple(max(2, round(side * part / info.multiple)) * info.multiple for side in sides)
            self._estimators[part] = Estimator(info, engine_of(), "", *size, fixed=False)

    def __call__(self, frame: Frame) -> Look:
        """Raises `Unusable` where too little of the frame's depth is known to fit scale and shift."""
        known = np.isfinite(frame.depth_m) & (frame.depth_m > 0)
        if known.sum() < 10:
            raise Unusable(f"frame {frame.name}: depth is known at {known.sum()} pixels: too few to evaluate")
        answer = self._estimators[1.0](frame.rgb)
        relative = _depth(answer)
        return Look(
            relative=relative,
            further={name: self._further(frame.rgb, *way) for name, way in PASSES.items()},
            channels=answer if answer.ndim == 3 else None,
            depth_m=aligned(relative, frame.depth_m, known, self.space, best=True),
            space=self.space,
        )

    def _further(self, rgb: np.ndarray, mirrored: bool, part: float) -> np.ndarray:
        if not mirrored:
            return _depth(self._estimators[part](rgb))
        return _depth(self._estimators[part](rgb[:, ::-1]))[:, ::-1]


def _engines(info: CheckpointInfo, engine: str) -> Callable[[], Engine]:
    """A function that gives an engine for one more working size: OpenVINO's keep one at a time, torch's any number."""
    if engine == "torch":
        network = ChannelsEngine(info)
        return lambda: network
    from marigold_ros.engines.openvino_engine import OpenVinoEngine

    path = onnx_file(info, cache_folder(""))
    return lambda: OpenVinoEngine(path)


def _depth(answer: np.ndarray) -> np.ndarray:
    """(H, W) relative depth of an answer with or without its channels."""
    return answer if answer.ndim == 2 else answer.mean(axis=2).clip(0.0, 1.0)


def study(
    checkpoint: Path, scenes: Path | None, real: list[Frame], engine: str = "torch", limit: int | None = None
) -> dict[str, list[FrameCurves]]:
    """The curves of every frame, by set: 'held-out' where `scenes` are given, and those of the `real` frames."""
    look, results = Looker(checkpoint, engine), {}
    if scenes is not None:
        frames = tqdm(held_out_frames(scenes, limit), desc="held-out", mininterval=5)
        results["held-out"] = [study_frame(frame, look(frame)) for frame in frames]
    for frame in real:
        results.setdefault(frame.name.split()[0], []).append(study_frame(frame, look(frame)))
    if not results:
        raise Unusable("there are no frames to study; give --scenes, or --data")
    return results


def relative_ause(frames: list[FrameCurves], measure: str, candidate: str) -> float:
    """Mean over frames of the candidate's AUSE divided by the constant's: 0 is the oracle, 1 knows nothing."""

    def area(curves: dict[str, np.ndarray], name: str) -> float:
        return float(np.mean(curves[name] - curves["oracle"]))

    return float(np.mean([area(f.curves[measure], candidate) / area(f.curves[measure], "constant") for f in frames]))


def absolute_ause(frames: list[FrameCurves], measure: str, candidate: str) -> float:
    """Mean over frames of the candidate's AUSE in the measure's unit."""
    return float(np.mean([f.curves[measure][candidate] - f.curves[measure]["oracle"] for f in frames]))


def _names(results: dict[str, list[FrameCurves]]) -> list[str]:
    first = next(iter(results.values()))[0]
    return [name for name in first.curves["AbsRel"] if name not in ("constant", "oracle")]


def costs(checkpoint: str, engine: str, rounds: int, size: tuple[int, int] = (640, 480)) -> dict[str, list[float]]:
    """How many times as long an answer takes with its disagreement, by model.confidence: one ratio for each round.

    `size` is the image's width and height. The two take turns, so that a busy machine slows both.
    """
    rgb = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    found = {}
    for method in SECOND_PASS:
        estimator = load_estimator(ModelConfig(checkpoint=checkpoint, engine=engine, confidence=method))
        estimator.with_disagreement(rgb)  # compiles for the image's shape
        seconds = [(_seconds(estimator, rgb), _seconds(estimator.with_disagreement, rgb)) for _ in range(rounds)]
        found[method] = sorted(both / one for one, both in seconds)
        estimator.close()
    return found


def _seconds(work: Callable[[np.ndarray], object], rgb: np.ndarray) -> float:
    """The best of three: what else the machine does only ever adds."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        work(rgb)
        taken.append(time.perf_counter() - start)
    return min(taken)


def table(results: dict[str, list[FrameCurves]]) -> str:
    """AUSE divided by the constant's as a Markdown table: a row for each candidate, columns for sets and measures."""
    sets = [f"{name} ({len(frames)}), {measure}" for name, frames in results.items() for measure in MEASURES]
    lines = ["| uncertainty | " + " | ".join(sets) + " |", "|---" * (1 + len(sets)) + "|"]
    for candidate in _names(results):
        values = [relative_ause(frames, measure, candidate) for frames in results.values() for measure in MEASURES]
        lines.append(f"| {candidate} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    areas = [absolute_ause(frames, measure, "constant") for frames in results.values() for measure in MEASURES]
    lines.append("| *AUSE of a constant* | " + " | ".join(f"{area:.3g}" for area in areas) + " |")
    return "\n".join(lines)


def as_json(results: dict[str, list[FrameCurves]], info: CheckpointInfo) -> dict[str, Any]:
    """The results as plain values: AUSE by set, measure and candidate, means of the facts, and single frames."""
    out: dict[str, Any] = {"checkpoint": info.name, "digest": info.digest, "space": info.space, "sets": {}}
    for name, frames in results.items():
        measures = {
            measure: {
                candidate: {
                    "ause": absolute_ause(frames, measure, candidate),
                    "of_constant": relative_ause(frames, measure, candidate),
                    "of_constant_by_frame": [relative_ause([frame], measure, candidate) for frame in frames],
                }
                for candidate in (*_names(results), "constant")
            }
            for measure in MEASURES
        }
        facts = {fact: float(np.mean([frame.facts[fact] for frame in frames])) for fact in frames[0].facts}
        out["sets"][name] = {"frames": [frame.name for frame in frames], "means": facts, **measures}
    return out


def figure(results: dict[str, list[FrameCurves]], path: Path) -> None:
    """A PNG of the mean curves, each frame's divided by its error before anything is removed."""
    from matplotlib.figure import Figure

    styles = _styles(_names(results))
    sheet = Figure(figsize=(4.5 * len(results) + 2.5, 4 * len(MEASURES)), dpi=90, layout="constrained")
    grid = sheet.subplots(len(MEASURES), len(results), squeeze=False, sharex=True)
    for row, measure in zip(grid, MEASURES, strict=True):
        for axes, (name, frames) in zip(row, results.items(), strict=True):
            for candidate, (colour, line) in styles.items():
                means = [f.curves[measure][candidate] / f.curves[measure]["constant"] for f in frames]
                axes.plot(fractions(), np.mean(means, axis=0), color=colour, linestyle=line, label=candidate, lw=1.6)
            axes.set_title(f"{name} ({len(frames)}): {measure}")
            axes.set_ylim(0, 1.6)
            axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("share of the most uncertain pixels removed")
    for axes in grid[:, 0]:
        axes.set_ylabel("error of the rest / error of all")
    sheet.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    sheet.savefig(path)


def _styles(names: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and line of each curve: one colour for what belongs together, dashes for shares of the depth."""
    families = list(dict.fromkeys(_family(name) for name in names if name != "random"))
    styles = {"oracle": ("black", "-"), "constant": ("grey", "-")}
    for name in names:
        if name != "random":
            line = (
                "--"
                if name.endswith("of depth")
                else ":"
                if name in ("channels, range", "mirror, not aligned")
                else "-"
            )
            styles[name] = f"C{families.index(_family(name))}", line
    return styles


def _family(name: str) -> str:
    for ending in (", of depth", ", not aligned", ", range", ", std"):
        name = name.replace(ending, "")
    return name
