"""python -m trainer train RECIPE --run DIR --data DIR: train by a recipe, or go on."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import yaml

from marigold_ros.config import Unusable
from trainer.recipe_files import load_recipe


def main(argv: list[str]) -> int:
    """Train; exit status 0 when the recipe's end is reached, 3 when stopped before."""
    parser = argparse.ArgumentParser(prog="python -m trainer train", description=__doc__)
    parser.add_argument("recipe", help="a YAML file, or the name of one in config/train: e2e-depth, nano, ...")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of this run: states, log, result; is gone on with"
    )
    parser.add_argument(
        "--data", type=Path, default=Path(), help="folder that holds the datasets' folders (default: .)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. stages.0.steps=500")
    arguments = parser.parse_args(argv)
    recipe = load_recipe(arguments.recipe, changes_in(arguments.set))
    from trainer.loop import CHECKPOINT, train

    if not train(recipe, arguments.run, arguments.data):
        print(f"stopped; give the same command again to go on: python -m trainer train {shlex.join(argv)}")
        return 3
    print(arguments.run / CHECKPOINT)
    return 0


def changes_in(settings: list[str]) -> dict[str, Any]:
    """{'section.name': value} from NAME=VALUE with values in YAML; raises `Unusable` for anything else."""
    changes = {}
    for change in settings:
        name, equals, value = change.partition("=")
        if not equals:
            raise Unusable(f"--set {change!r}: must be NAME=VALUE, e.g. stages.0.steps=500")
        try:
            changes[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise Unusable(f"--set {change!r}: its value is no YAML") from None
    return changes
