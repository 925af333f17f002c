"""Commands that measure a checkpoint on held-out generated scenes and on real frames: frames, confidence, int8."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from marigold_ros.config import Unusable


def main(argv: list[str]) -> int:
    """Run the command that `argv` begins with; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_frames(commands)
    _add_confidence(commands)
    _add_int8(commands)
    arguments = parser.parse_args(argv)
    return arguments.command(arguments)


def _add_measured(sub: argparse.ArgumentParser) -> None:
    """What is measured, on which frames, and where the numbers go."""
    sub.add_argument("--checkpoint", default="nano", help="'nano' or a checkpoint folder")
    sub.add_argument("--scenes", type=Path, help="folder of scenes, with held_out/")
    sub.add_argument("--data", type=Path, help="folder of real frames, with indoor/ and kitti/ (see the model card)")
    sub.add_argument("--limit", type=int, help="only so many held-out scenes")
    sub.add_argument("--json", type=Path, help="also write the numbers here")


def _add_frames(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("frames", help="AbsRel, delta1, RMSE on held-out scenes and real frames")
    sub.set_defaults(command=_frames)
    _add_measured(sub)
    sub.add_argument("--engine", default="torch", help="torch or openvino")
    sub.add_argument("--size", type=int, nargs=2, default=(0, 0), metavar=("W", "H"), help="fixed working size")
    sub.add_argument("--sheet", type=Path, help="also write a PNG of predictions on real frames")


def _add_confidence(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("confidence", help="how well per-pixel uncertainties rank the true errors")
    sub.set_defaults(command=_confidence)
    _add_measured(sub)
    sub.add_argument("--engine", default="torch", choices=("torch", "openvino"), help="openvino: no channels")
    sub.add_argument("--figure", type=Path, help="also write a PNG of the sparsification curves")
    sub.add_argument("--cost", type=int, default=0, metavar="ROUNDS", help="measure only what confidence costs in time")


def _add_int8(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("int8", help="what INT8 costs in accuracy, on real frames, and gains in time")
    sub.set_defaults(command=_int8)
    sub.add_argument("--checkpoint", default="nano", help="'nano' or a checkpoint folder")
    sub.add_argument("--data", type=Path, help="folder of real frames, with indoor/ and kitti/ (see the model card)")
    sub.add_argument("--calibration", type=Path, required=True, help="folder of images, other ones")


def _frames(arguments: argparse.Namespace) -> int:
    from marigold_ros.checkpoints import describe, find_checkpoint
    from trainer.frames import as_json, contact_sheet, evaluate, real_frames, table

    folder = find_checkpoint(arguments.checkpoint)
    frames = list(real_frames(arguments.data))
    if not frames:
        print("real frames: skipped, there is no folder of them; give --data or set MARIGOLD_ROS_DATA")
    results = evaluate(folder, arguments.scenes, frames, arguments.engine, arguments.limit, tuple(arguments.size))
    print(table(results))
    if arguments.json:
        text = json.dumps(as_json(results, describe(folder)), indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    if arguments.sheet and frames:
        contact_sheet(folder, frames, arguments.sheet, arguments.engine)
    return 0


def _confidence(arguments: argparse.Namespace) -> int:
    from marigold_ros.checkpoints import describe, find_checkpoint
    from trainer.confidence import as_json, costs, figure, study, table
    from trainer.frames import real_frames

    if arguments.cost:
        for method, ratios in costs(arguments.checkpoint, arguments.engine, arguments.cost).items():
            middle, last = ratios[len(ratios) // 2], ratios[-1]
            print(f"{method}: {middle:.2f} times as long as an answer alone ({ratios[0]:.2f} to {last:.2f})")
        return 0
    folder = find_checkpoint(arguments.checkpoint)
    frames = list(real_frames(arguments.data))
    if not frames:
        print("real frames: skipped, there is no folder of them; give --data or set MARIGOLD_ROS_DATA")
    results = study(folder, arguments.scenes, frames, arguments.engine, arguments.limit)
    print(table(results))
    if arguments.json:
        text = json.dumps(as_json(results, describe(folder)), indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    if arguments.figure:
        figure(results, arguments.figure)
    return 0


def _int8(arguments: argparse.Namespace) -> int:
    from marigold_ros.export import images_in
    from trainer.frames import real_frames
    from trainer.int8 import study

    frames = list(real_frames(arguments.data))
    if not frames:
        raise Unusable("real frames: there is no folder of them; give --data or set MARIGOLD_ROS_DATA")
    print(study(arguments.checkpoint, frames, images_in(arguments.calibration)))
    return 0
