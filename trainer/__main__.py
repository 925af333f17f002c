"""Command line of the trainer: `python -m trainer COMMAND ...`; each command has --help.

Every command that takes long can be stopped (Ctrl-C, SIGTERM, or killed) and goes on when given again. Several
processes share a training, one per GPU or, faster than threads, one per CPU core:

    torchrun --nproc-per-node 2 -m -- trainer train nano --data DIR --run DIR
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping

from marigold_ros.config import Unusable

# command: (module with a function main(arguments), what it does)
COMMANDS: Mapping[str, tuple[str, str]] = {
    "generate": ("trainer.scenes.__main__", "render scenes to train on"),
    "prepare": ("trainer.prepare", "turn a public dataset into samples"),
    "collect": ("trainer.collect", "turn the robot's recordings into samples"),
    "train": ("trainer.train", "train by a recipe, or go on"),
    "package": ("trainer.card", "write a finished run as a float16 checkpoint folder with model card"),
    "evaluate": ("trainer.evaluation.command", "score a checkpoint by the published protocols"),
    "frames": ("trainer.measure", "score it on held-out scenes and real frames"),
    "confidence": ("trainer.measure", "how well per-pixel uncertainties rank its errors"),
    "int8": ("trainer.measure", "what INT8 costs in accuracy and gains in time"),
    "experiments": ("trainer.experiments", "reconstruction, overfitting, leading against trailing timesteps"),
    "benchmark": ("trainer.benchmark", "samples per second and memory of a training step, against plain diffusers"),
    "record": ("trainer.record", "make a recording of a drive through a scene"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(__doc__)
        print("\n".join(f"  {command:12} {text}" for command, (_, text) in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        print(f"trainer: command {name!r}: must be one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[name][0])
    try:
        # Several commands share the module `measure`, which wants to know which one it is.
        return module.main(argv if module.__name__ == "trainer.measure" else argv[1:]) or 0
    except Unusable as problem:
        print(f"trainer: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ntrainer: {name} stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
