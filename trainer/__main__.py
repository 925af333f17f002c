"""Command line of the trainer.

    python -m trainer generate ...                      make scenes (see --help of that command)
    python -m trainer record ...                        make a recording of a drive (see --help of that command)
    python -m trainer collect RECORDING... --out DIR    make a dataset of the robot's recordings (see --help)
    python -m trainer vae --scenes DIR --run DIR        first stage
    python -m trainer nano --scenes DIR --run DIR --vae RUN   second stage, end to end
    python -m trainer package --run RUN --out FOLDER    checkpoint folder with model card
    python -m trainer evaluate --checkpoint FOLDER [--scenes DIR]
    python -m trainer confidence --checkpoint FOLDER [--scenes DIR]   how well uncertainties rank the errors

Every training command can be stopped (Ctrl-C, SIGTERM, or killed) and goes on when given again. Several processes
share a training, one per GPU or, faster than threads, one per CPU core:

    torchrun --nproc-per-node 2 -m -- trainer nano --scenes DIR --run DIR --vae RUN
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

from marigold_ros.config import Unusable
from trainer.recipe import DEFAULT, Recipe, load_recipe


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["generate"]:
            from trainer.scenes.__main__ import main as generate

            return generate(argv[1:])
        if argv[:1] == ["record"]:
            from trainer.record import main as record

            return record(argv[1:]) or 0
        if argv[:1] == ["collect"]:
            from trainer.collect import main as collect

            return collect(argv[1:])
        arguments = _parser().parse_args(argv)
        return arguments.command(arguments)
    except Unusable as problem:
        print(f"trainer: {problem}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser("generate", help="make scenes")
    commands.add_parser("record", help="make a recording of a drive through a scene")
    commands.add_parser("collect", help="make a dataset of the robot's recordings")
    for name, command, text in (("vae", _vae, "train the VAE"), ("nano", _nano, "train the network end to end")):
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(command=command)
        sub.add_argument("--scenes", type=Path, required=True, help="folder of scenes, with train/ and held_out/")
        sub.add_argument("--run", type=Path, required=True, help="folder of this run: state, log; is resumed")
        sub.add_argument("--recipe", type=Path, help=f"YAML with every knob (default: {DEFAULT})")
        sub.add_argument("--seed", type=int, help="instead of the recipe's")
        sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. nano.gradient=0.3")
    sub.add_argument("--vae", type=Path, help="run of the first stage (new runs)")
    sub.add_argument("--start-from", type=Path, help="run whose weights a new run starts with")
    sub.add_argument("--space", help="instead of the recipe's: inverse_depth, depth, log_depth")
    _add_package(commands)
    _add_evaluate(commands)
    _add_confidence(commands)
    _add_int8(commands)
    return parser


def _add_package(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("package", help="write a run's averaged weights as a checkpoint folder")
    sub.set_defaults(command=_package)
    sub.add_argument("--run", type=Path, required=True)
    sub.add_argument("--out", type=Path, required=True, help="checkpoint folder; replaced")
    sub.add_argument("--notes", type=Path, help="Markdown that the model card ends with")
    sub.add_argument("--scenes", type=Path, help="also evaluate on its held-out scenes")
    sub.add_argument("--no-onnx", action="store_true", help="do not export model.onnx")


def _add_frames(sub: argparse.ArgumentParser) -> None:
    """What is measured, on which frames, and where the numbers go."""
    sub.add_argument("--checkpoint", default="nano", help="'nano' or a checkpoint folder")
    sub.add_argument("--scenes", type=Path, help="folder of scenes, with held_out/")
    sub.add_argument("--data", type=Path, help="folder of real frames, with indoor/ and kitti/ (see the model card)")
    sub.add_argument("--limit", type=int, help="only so many held-out scenes")
    sub.add_argument("--json", type=Path, help="also write the numbers here")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("evaluate", help="AbsRel, delta1, RMSE on held-out scenes and real frames")
    sub.set_defaults(command=_evaluate)
    _add_frames(sub)
    sub.add_argument("--engine", default="torch", help="torch or openvino")
    sub.add_argument("--size", type=int, nargs=2, default=(0, 0), metavar=("W", "H"), help="fixed working size")
    sub.add_argument("--sheet", type=Path, help="also write a PNG of predictions on real frames")


def _add_confidence(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("confidence", help="how well per-pixel uncertainties rank the true errors")
    sub.set_defaults(command=_confidence)
    _add_frames(sub)
    sub.add_argument("--engine", default="torch", choices=("torch", "openvino"), help="openvino: no channels")
    sub.add_argument("--figure", type=Path, help="also write a PNG of the sparsification curves")
    sub.add_argument("--cost", type=int, default=0, metavar="ROUNDS", help="measure only what confidence costs in time")


def _add_int8(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("int8", help="what INT8 costs in accuracy, on real frames, and gains in time")
    sub.set_defaults(command=_int8)
    sub.add_argument("--checkpoint", default="nano", help="'nano' or a checkpoint folder")
    sub.add_argument("--data", type=Path, help="folder of real frames, with indoor/ and kitti/ (see the model card)")
    sub.add_argument("--calibration", type=Path, required=True, help="folder of images, other ones")


def _recipe(arguments: argparse.Namespace) -> Recipe:
    changes = {}
    for change in arguments.set:
        name, equals, value = change.partition("=")
        if not equals:
            raise Unusable(f"--set {change!r}: must be NAME=VALUE, e.g. nano.gradient=0.3")
        changes[name] = yaml.safe_load(value)
    for name in ("seed", "space"):
        if getattr(arguments, name, None) is not None:
            changes[name] = getattr(arguments, name)
    return load_recipe(arguments.recipe, changes)


def _vae(arguments: argparse.Namespace) -> int:
    from trainer.data import Scenes
    from trainer.ranks import Ranks
    from trainer.vae import evaluate_vae, train_vae

    recipe = _prepared(arguments)
    finished = train_vae(arguments.run, recipe, Scenes(arguments.scenes / "train"))
    if Ranks.join().rank > 0:
        return 0
    if finished:
        scores = evaluate_vae(arguments.run, Scenes(arguments.scenes / "held_out"))
        (arguments.run / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        print(" ".join(f"{name} {value:.5f}" for name, value in scores.items()))
    return 0 if finished else 3


def _nano(arguments: argparse.Namespace) -> int:
    from trainer.data import Scenes
    from trainer.nano import train_nano

    recipe = _prepared(arguments)
    scenes = Scenes(arguments.scenes / "train")
    return 0 if train_nano(arguments.run, recipe, scenes, arguments.vae, arguments.start_from) else 3


def _prepared(arguments: argparse.Namespace) -> Recipe:
    import torch

    recipe = _recipe(arguments)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    return recipe


def _package(arguments: argparse.Namespace) -> int:
    from trainer.card import package_run

    print(package_run(arguments.run, arguments.out, arguments.scenes, arguments.notes, onnx=not arguments.no_onnx))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from marigold_ros.checkpoints import describe, find_checkpoint
    from trainer.evaluate import as_json, contact_sheet, evaluate, real_frames, table

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
    from trainer.evaluate import real_frames

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
    from trainer.evaluate import real_frames
    from trainer.int8 import study

    frames = list(real_frames(arguments.data))
    if not frames:
        raise Unusable("real frames: there is no folder of them; give --data or set MARIGOLD_ROS_DATA")
    print(study(arguments.checkpoint, frames, images_in(arguments.calibration)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
