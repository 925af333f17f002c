"""How well the node does on real street scenes: `ros2 run marigold_ros kitti` (or `python -m marigold_ros.kitti`).

KITTI frames go over DDS through the real node with some of the LiDAR's 64 beams as its scan; the other beams are the
test. Beside the node's errors stand those of what can be had without a network: linear interpolation of the same
anchors, and a plane in inverse depth that never looks at the image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rclpy.utilities import remove_ros_args

from marigold_ros import decoding, shots
from marigold_ros.anchors import Anchors, find_anchors
from marigold_ros.beams import beam_of_each_point, every_nth_beam, linear_depth, plane_depth
from marigold_ros.config import RangeConfig, Unusable
from marigold_ros.driver import Driver, driven_node
from marigold_ros.geometry import quaternion_from_rotation
from marigold_ros.kitti_files import KittiFrame, read_frames
from marigold_ros.pictures import Shot, draw
from marigold_ros.real_data import DATA_VARIABLE, KITTI, real_data
from marigold_ros.scores import Scores, score

_EVERY_POINT = RangeConfig(max_points=1_000_000)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    frame: str
    method: str
    scores: Scores


def split(frame: KittiFrame, beams: int) -> tuple[np.ndarray, Anchors, Anchors]:
    """The scan of `beams` beams, (N, 3), its anchors, and those of the beams left out."""
    kept = every_nth_beam(beam_of_each_point(frame.points), beams)
    anchors, held_out = (
        find_anchors(frame.points[chosen], frame.camera_from_lidar, frame.camera, _EVERY_POINT)
        for chosen in (kept, ~kept)
    )
    return frame.points[kept], anchors, held_out


def at_pixels(depth_m: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(N,) depth at the pixels nearest to the (N, 2) positions."""
    u, v = np.rint(pixels).astype(int).T
    return depth_m[np.clip(v, 0, depth_m.shape[0] - 1), np.clip(u, 0, depth_m.shape[1] - 1)]


def baselines(frame: str, anchors: Anchors, held_out: Anchors) -> list[Row]:
    """What the anchors give without a network."""
    methods = {"linear interpolation": linear_depth, "plane, image-blind": plane_depth}
    return [Row(frame, name, score(f(anchors, held_out.pixels), held_out.depth_m)) for name, f in methods.items()]


def evaluate(frame: KittiFrame, beams: int, checkpoint: str, picture: Path | None, log: Path) -> list[Row]:
    """The node's errors on `frame` and those of the baselines; the node is started for it, with its calibration."""
    scan, anchors, held_out = split(frame, beams)
    parameters = {
        "model.checkpoint": checkpoint,
        "range.extrinsic": "static",
        "range.translation_m": [float(v) for v in frame.camera_from_lidar[:3, 3]],
        "range.rotation_xyzw": list(quaternion_from_rotation(frame.camera_from_lidar[:3, :3])),
        "output.points_stride": 2,
    }
    with log.open("w") as file, driven_node(parameters, file, points=picture is not None) as (driver, _):
        depth_m = driver.ask(frame.rgb, frame.camera, scan)
        name = f"marigold_ros, {driver.facts.get('checkpoint')}"
        if picture is not None:
            _draw(frame, scan, held_out, depth_m, driver, picture, beams)
    own = Row(frame.name, name, score(at_pixels(depth_m, held_out.pixels), held_out.depth_m))
    return [own, *baselines(frame.name, anchors, held_out)]


def _draw(
    frame: KittiFrame, scan: np.ndarray, held_out: Anchors, depth_m: np.ndarray, driver: Driver, path: Path, beams: int
) -> None:
    truth_m = np.full(depth_m.shape, np.nan, np.float32)
    u, v = np.rint(held_out.pixels).astype(int).T
    truth_m[np.minimum(v, truth_m.shape[0] - 1), np.minimum(u, truth_m.shape[1] - 1)] = held_out.depth_m
    pixels, lidar = shots.in_image(scan, frame.camera_from_lidar, frame.camera)
    cloud = driver.cloud_of(decoding.stamp_ns(driver.depths[-1].header))
    points, colours = (
        (np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)) if cloud is None else shots.cloud_arrays(cloud)
    )
    shot = Shot(frame.rgb, depth_m, truth_m, pixels, lidar, points, colours)
    footnote = f"{driver.facts.get('checkpoint')} on {driver.facts.get('engine')}    error at the beams left out"
    draw(shot, f"KITTI {frame.name}: metric depth from {beams} of 64 beams", footnote, path)


def _evaluate_all(folder: Path, arguments: argparse.Namespace) -> list[Row]:
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for frame in read_frames(folder):
        picture = None if arguments.no_pictures else out / f"{frame.name}.png"
        rows += evaluate(frame, arguments.beams, arguments.checkpoint, picture, out / f"{frame.name}.log")
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'frame':<8} {'method':<24} {'AbsRel':>7} {'δ1':>7} {'RMSE':>8} {'points':>7} {'known':>7}"]
    for row in rows:
        s = row.scores
        lines.append(
            f"{row.frame:<8} {row.method:<24} {s.abs_rel:>7.3f} {s.delta1:>7.1%} {s.rmse_m:>6.2f} m {s.pixels:>7} "
            f"{s.coverage:>7.1%}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate every frame and print the table; exit status 0 also when there are no frames and none were named."""
    parser = argparse.ArgumentParser(prog="kitti", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=None, help=f"folder with kitti/ in it (default ${DATA_VARIABLE})")
    parser.add_argument("--beams", type=int, default=16, help="beams of 64 that the node gets (default 16)")
    parser.add_argument("--checkpoint", default="nano", help="another checkpoint (default nano)")
    parser.add_argument("--out", type=Path, default=Path("demo_output/kitti"), help="folder for pictures and logs")
    parser.add_argument("--no-pictures", action="store_true")
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(remove_ros_args(["", *argv])[1:])
    try:
        folder = real_data(arguments.data, [KITTI])
        if folder is None:
            print(f"kitti: skipped, no KITTI frames; name the folder that holds kitti/ by --data or ${DATA_VARIABLE}")
            return 0
        rows = _evaluate_all(folder, arguments)
    except (Unusable, ValueError) as problem:
        print(f"kitti: {problem}", file=sys.stderr)
        return 1
    print(f"{arguments.beams} of 64 beams given, errors on the others:")
    print(table(rows))
    if not arguments.no_pictures:
        print(f"pictures: {arguments.out}/*.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
