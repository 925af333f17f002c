"""How good a checkpoint is, on held-out generated scenes and on real frames, beside a baseline that sees no image.

Predictions are aligned by scale and shift in the checkpoint's own space, over the pixels whose depth is known, in two
ways: 'best' minimises AbsRel itself (reweighted least squares), 'plain' is unweighted least squares in the space. The
baseline is the plane of inverse depth a u + b v + c fitted to the same pixels in the same two ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from marigold_ros.checkpoints import CheckpointInfo, describe
from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.estimator import load_estimator
from marigold_ros.geometry import transformed
from marigold_ros.kitti_files import read_calibration, read_scan
from marigold_ros.metric import from_space, log_slope, to_space
from marigold_ros.real_data import real_data
from marigold_ros.scores import Scores, score
from trainer.samples import SampleFolder

ITERATIONS = 15
FARTHEST_M = 120.0
NEAREST_M = 0.05
NEAR_M = 5.0

Predictor = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Frame:
    """rgb (H, W, 3) uint8; depth_m (H, W) float32 metres, NaN unknown, +inf sky."""

    name: str
    rgb: np.ndarray
    depth_m: np.ndarray


@dataclass(frozen=True)
class FrameScores:
    """Scores of one frame; near: AbsRel of pixels nearer than 5 m."""

    name: str
    best: Scores
    plain: Scores
    blind: Scores
    blind_plain: Scores
    near: float


def evaluate_frame(frame: Frame, relative: np.ndarray, space: str) -> FrameScores:
    """Score (H, W) `relative`, affine in `space` and increasing with distance, on `frame`."""
    known = np.isfinite(frame.depth_m) & (frame.depth_m > 0)
    if known.sum() < 10:
        raise Unusable(f"frame {frame.name}: depth is known at {known.sum()} pixels: too few to evaluate")
    best, plain = (aligned(relative, frame.depth_m, known, space, way) for way in (True, False))
    near = score(best, frame.depth_m, known & (frame.depth_m < NEAR_M))
    blind, blind_plain = (blind_depth(frame.depth_m, known, way) for way in (True, False))
    scores = (score(predicted, frame.depth_m, known) for predicted in (best, plain, blind, blind_plain))
    return FrameScores(frame.name, *scores, near=near.abs_rel)


def aligned(relative: np.ndarray, depth_m: np.ndarray, known: np.ndarray, space: str, best: bool) -> np.ndarray:
    """(H, W) metres: `relative` after scale and shift fitted to the `known` pixels.

    The scale is not negative: who takes near for far knows nothing, and no node would turn it round.
    """
    design = np.stack([relative[known].astype(np.float64), np.ones(np.count_nonzero(known))], axis=1)
    scale, shift = fit(design, depth_m[known].astype(np.float64), space, best)
    if scale < 0:
        scale, (shift,) = 0.0, fit(design[:, 1:], depth_m[known].astype(np.float64), space, best)
    return limited(scale * relative.astype(np.float64) + shift, space)


def blind_depth(depth_m: np.ndarray, known: np.ndarray, best: bool) -> np.ndarray:
    """(H, W) metres: the plane of inverse depth over the image fitted to the `known` pixels, without the image."""
    height, width = depth_m.shape
    rows, columns = np.nonzero(known)
    design = np.stack([columns / width, rows / height, np.ones(len(rows))], axis=1)
    plane = fit(design, depth_m[known].astype(np.float64), "inverse_depth", best)
    v, u = np.mgrid[:height, :width]
    return limited(u / width * plane[0] + v / height * plane[1] + plane[2], "inverse_depth")


def fit(design: np.ndarray, depth_m: np.ndarray, space: str, best: bool) -> np.ndarray:
    """(K,) coefficients c such that (N, K) design @ c is `depth_m` (N,) in `space`.

    By unweighted least squares, or, `best`, with the least AbsRel that reweighting finds. Weights come from the true
    error in metres, not from its linear part in the space: near y = 0 of inverse depth the two are far apart.
    """
    y, slope = to_space(depth_m, space), log_slope(depth_m, space)
    found, lowest = _weighted_solve(design, y, np.ones_like(y)), np.inf
    if not best:
        return found
    for weight in (np.ones_like(y), slope**2):
        for _ in range(ITERATIONS):
            candidate = _weighted_solve(design, y, weight)
            off = design @ candidate - y
            error = np.abs(limited(off + y, space) / depth_m - 1)
            if error.mean() < lowest:
                found, lowest = candidate, error.mean()
            weight = error / np.maximum(np.abs(off), 1e-3 / slope) ** 2
    return found


def _weighted_solve(design: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    weighted = design * weight[:, None]
    return np.linalg.lstsq(weighted.T @ design, weighted.T @ y, rcond=None)[0]


def limited(y: np.ndarray, space: str) -> np.ndarray:
    """Metres from `space`, between 0.05 and 120; beyond infinity or behind the camera counts as the limit, not as
    unknown: leaving pixels out would flatter."""
    if space == "inverse_depth":
        y = np.minimum(y, -1.0 / FARTHEST_M)
    if space == "depth":
        y = np.maximum(y, NEAREST_M)
    if space == "log_depth":
        y = np.clip(y, np.log(NEAREST_M), np.log(FARTHEST_M))
    return np.clip(from_space(y, space), NEAREST_M, FARTHEST_M)


def held_out_frames(scenes: Path, limit: int | None = None) -> Iterator[Frame]:
    """The samples of the folder `scenes`/held_out."""
    samples = SampleFolder(Path(scenes) / "held_out")
    for number in range(len(samples))[:limit]:
        sample = samples.read(number, ("depth_m",))
        yield Frame(sample.name, sample.rgb, sample.maps["depth_m"])


def real_frames(folder: Path | None = None) -> Iterator[Frame]:
    """The real frames in `folder`, by default $MARIGOLD_ROS_DATA or ../shared/data beside the checkout.

    Raises `Unusable` where a folder was named and holds none.
    """
    folder = real_data(folder)
    if folder is None:
        return
    for path in sorted((folder / "indoor").glob("color_*.jpg")):
        depth_mm = cv2.imread(str(path.with_name(path.stem.replace("color", "depth") + ".png")), cv2.IMREAD_UNCHANGED)
        depth_m = np.where(depth_mm > 0, depth_mm.astype(np.float32) / 1000, np.nan)
        yield Frame(f"indoor {path.stem[-1]}", _read_rgb(path), depth_m)
    for path in sorted((folder / "kitti").glob("*/image.png")):
        rgb = _read_rgb(path)
        yield Frame(f"kitti {path.parent.name}", rgb, kitti_depth(path.parent, rgb.shape[:2]))


def _read_rgb(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def kitti_depth(folder: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) metres along the optical axis of the Velodyne points of a KITTI object frame, NaN elsewhere."""
    k, camera_from_lidar = read_calibration(folder / "calib.txt")
    points = transformed(read_scan(folder / "velodyne.bin").astype(np.float64), camera_from_lidar)
    u, v, w = k @ points.T
    ahead = w > 0.5
    u, v, w = np.round(u[ahead] / w[ahead]).astype(int), np.round(v[ahead] / w[ahead]).astype(int), w[ahead]
    inside = (u >= 0) & (u < shape[1]) & (v >= 0) & (v < shape[0])
    u, v, w = u[inside], v[inside], w[inside]
    order = np.argsort(-w)  # the nearest point of a pixel is written last
    depth_m = np.full(shape, np.nan, np.float32)
    depth_m[v[order], u[order]] = w[order]
    return depth_m


def evaluate(
    checkpoint: Path,
    scenes: Path | None,
    real: list[Frame],
    engine: str = "torch",
    limit: int | None = None,
    size: tuple[int, int] = (0, 0),
) -> dict[str, list[FrameScores]]:
    """Scores of every frame, by set: 'held-out' where `scenes` are given, and those of the `real` frames."""
    info = describe(Path(checkpoint))
    config = ModelConfig(checkpoint=str(checkpoint), engine=engine, width=size[0], height=size[1])
    estimator = load_estimator(config)
    results: dict[str, list[FrameScores]] = {}
    if scenes is not None:
        frames = tqdm(held_out_frames(scenes, limit), desc="held-out", mininterval=5)
        results["held-out"] = [evaluate_frame(frame, estimator(frame.rgb), info.space) for frame in frames]
    for frame in real:
        results.setdefault(frame.name.split()[0], []).append(evaluate_frame(frame, estimator(frame.rgb), info.space))
    estimator.close()
    return results


def mean(scores: list[FrameScores], part: str, measure: str) -> float:
    """Mean over frames of e.g. part 'best', measure 'abs_rel'."""
    return float(np.mean([getattr(getattr(frame, part), measure) for frame in scores]))


def table(results: dict[str, list[FrameScores]]) -> str:
    """The results as a Markdown table: a row for the held-out set, one for each real frame."""
    lines = [
        "| frames | AbsRel | δ1 | RMSE m | image-blind AbsRel | near AbsRel | plain AbsRel | image-blind plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, scores in results.items():
        if name == "held-out":
            lines.append(_row(f"held-out ({len(scores)})", scores))
        else:
            lines += [_row(frame.name, [frame]) for frame in scores]
    return "\n".join(lines)


def _row(name: str, scores: list[FrameScores]) -> str:
    near = [frame.near for frame in scores if np.isfinite(frame.near)]
    values = [mean(scores, "best", measure) for measure in ("abs_rel", "delta1", "rmse_m")]
    values += [mean(scores, "blind", "abs_rel"), float(np.mean(near)) if near else np.nan]
    values += [mean(scores, "plain", "abs_rel"), mean(scores, "blind_plain", "abs_rel")]
    return f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |"


def as_json(results: dict[str, list[FrameScores]], info: CheckpointInfo) -> dict:
    """The results as plain values; the held-out set as means."""
    out: dict = {"checkpoint": info.name, "digest": info.digest, "space": info.space, "frames": []}
    for name, scores in results.items():
        if name != "held-out":
            out["frames"] += [asdict(frame) for frame in scores]
            continue
        parts = ("best", "plain", "blind", "blind_plain")
        measures = ("abs_rel", "delta1", "rmse_m")
        out["held_out"] = {part: {m: mean(scores, part, m) for m in measures} for part in parts}
        out["held_out"]["near_abs_rel"] = float(np.nanmean([frame.near for frame in scores]))
        out["held_out"]["count"] = len(scores)
    return out


def contact_sheet(checkpoint: Path, frames: list[Frame], path: Path, engine: str = "torch") -> None:
    """A PNG with one row per frame: image, prediction aligned to metres (inverse-depth colours), truth, error."""
    info = describe(Path(checkpoint))
    estimator = load_estimator(ModelConfig(checkpoint=str(checkpoint), engine=engine))
    rows = [_sheet_row(frame, estimator(frame.rgb), info.space) for frame in frames]
    width = max(row.shape[1] for row in rows)
    rows = [cv2.copyMakeBorder(row, 0, 4, 0, width - row.shape[1], cv2.BORDER_CONSTANT) for row in rows]
    cv2.imwrite(str(path), np.vstack(rows))


def _sheet_row(frame: Frame, relative: np.ndarray, space: str) -> np.ndarray:
    known = np.isfinite(frame.depth_m) & (frame.depth_m > 0)
    metres = aligned(relative, frame.depth_m, known, space, best=True)
    low, high = np.percentile(1 / frame.depth_m[known], (2, 98))

    def colours(depth_m: np.ndarray) -> np.ndarray:
        share = np.clip((1 / depth_m - low) / (high - low), 0, 1)
        picture = cv2.applyColorMap((np.nan_to_num(share) * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
        picture[np.isnan(depth_m)] = 0
        return picture

    truth = np.where(frame.depth_m > 0, frame.depth_m, np.nan)
    if known.mean() < 0.2:  # single LiDAR points would be invisible when shrunk
        nearest = cv2.dilate(np.nan_to_num(1 / truth, nan=0.0), np.ones((5, 5)))
        truth = np.where(nearest > 0, 1 / np.maximum(nearest, 1e-6), np.nan)
    error = np.clip(np.abs(metres / truth - 1) / 0.5, 0, 1)
    heat = cv2.applyColorMap((np.nan_to_num(error) * 255).astype(np.uint8), cv2.COLORMAP_HOT)
    raw = cv2.cvtColor((relative * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    tiles = [cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR), raw, colours(metres), colours(truth), heat]
    height = round(320 * frame.rgb.shape[0] / frame.rgb.shape[1])
    return np.hstack([cv2.resize(tile, (320, height), interpolation=cv2.INTER_AREA) for tile in tiles])
