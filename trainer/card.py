"""A finished run as a checkpoint folder with its model card: every number in it comes from a command of the trainer."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from pathlib import Path

import yaml

from marigold_ros.checkpoints import describe
from marigold_ros.config import Unusable
from marigold_ros.family import E2E, ZEROS
from trainer.assembly import model_in, protocol_of
from trainer.facts import read_facts
from trainer.frames import as_json, evaluate, real_frames, table
from trainer.loop import CHECKPOINT
from trainer.model import Model
from trainer.package import replace_folder, write_member
from trainer.recipe import Recipe, Stage, target_input_of
from trainer.recipe_files import plain
from trainer.report import LOG_FILE
from trainer.results import member_of
from trainer.states import Place, States, read_recipe

RESULTS_FILE = "evaluation.json"


def main(argv: list[str]) -> int:
    """Package one run; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer package", description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder; replaced")
    parser.add_argument("--notes", type=Path, help="Markdown that the model card ends with")
    parser.add_argument("--scenes", type=Path, help="also evaluate on its held-out scenes")
    parser.add_argument("--no-onnx", action="store_true", help="do not export model.onnx")
    arguments = parser.parse_args(argv)
    print(package_run(arguments.run, arguments.out, arguments.scenes, arguments.notes, onnx=not arguments.no_onnx))
    return 0


def package_run(run: Path, out: Path, scenes: Path | None, notes: Path | None, onnx: bool = True) -> str:
    """Write the result of `run`, a single-step depth network, to folder `out` in float16, with its errors and card.

    Returns the table of errors. Raises `Unusable` for a run that has not ended, and for any other network: its
    checkpoint folder can be used as it is.
    """
    # Everything that can fail is done before what lies in `out` is touched.
    if not (run / CHECKPOINT / "model_index.json").is_file():
        raise Unusable(f"run {run}: has not ended yet: there is no {CHECKPOINT}/; go on with 'python -m trainer train'")
    recipe, newest = read_recipe(run), States(run, 1).newest()
    place = Place() if newest is None else newest[1]
    stage = recipe.stages[-1]
    if recipe.task != "depth" or protocol_of(stage) != E2E:
        raise Unusable(f"run {run}: package is for single-step depth networks; use {run / CHECKPOINT} as it is")
    if target_input_of(stage) != ZEROS:
        raise Unusable(
            f"run {run}: was trained with target_input={target_input_of(stage)!r}, and package is for networks that "
            f"start from zeros, as on the robot; measure {run / CHECKPOINT} with 'python -m trainer evaluate'"
        )
    model = model_in(run / CHECKPOINT, recipe, stage)
    ending = "" if notes is None else "\n" + _read(notes)
    staging = out.with_name(f".{out.name}.staging")
    new = staging / out.name
    try:
        write_member(new, member_of(model, recipe, stage), "# being evaluated\n", onnx=onnx)
        results = evaluate(new, scenes, list(real_frames()))
        numbers = table(results)
        (new / RESULTS_FILE).write_text(json.dumps(as_json(results, describe(new)), indent=1) + "\n", encoding="utf-8")
        text = card(out.name, recipe, read_facts(run), place, last_line(run), model, numbers) + ending
        (new / "README.md").write_text(text, encoding="utf-8")
        replace_folder(new, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return numbers


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Unusable(f"file {path}: cannot be read ({error.strerror})") from error


def card(name: str, recipe: Recipe, sittings: list[dict], place: Place, last: dict, model: Model, numbers: str) -> str:
    """The model card's computed part, Markdown."""
    facts = sittings[-1]
    versions, minutes = facts["versions"], place.seconds / 60
    steps = sum(stage.steps for stage in recipe.stages)
    modules = (model.unet, model.vae if model.tiny is None else model.tiny)
    million = sum(parameter.numel() for module in modules for parameter in module.parameters()) / 1e6
    data = ", ".join(f"{source.name} ({source.weight:g})" for source in recipe.data)
    begun = f"from `{Path(recipe.start.checkpoint).name}`" if recipe.start.checkpoint else "from random weights"
    metric = "" if recipe.metric is None else " It gives metres of its own, given the camera's focal length."
    left = f" Of the last stage, {place.left}." if place.left else ""
    stages = "\n".join(_stage(stage) for stage in recipe.stages)
    return f"""# {name}

A single-step monocular depth network of the Marigold kind, in diffusers' folder format (`MarigoldDepthPipeline`),
trained {begun} on: {data}. It answers relative depth, affine in `{recipe.space}`: scale and shift come
from elsewhere (LiDAR points in `marigold_ros`).{metric} {million:.1f} million parameters; float16; working size
{model.size[0]}×{model.size[1]}.

## Results

{numbers}

AbsRel, δ1 and RMSE after the scale and shift in `{recipe.space}` that give the least AbsRel over all pixels of known
depth; 'near' is AbsRel below 5 m; 'plain' is after unweighted least squares in the same space. The image-blind baseline
is a plane of inverse depth over the image, fitted to the same pixels in the same two ways. Indoor: five PrimeSense
frames of a living room (test data of Open3D 0.10; `color_*.jpg`, `depth_*.png` in millimetres); kitti: frames 000000
and 000001 of the object benchmark's training set against the Velodyne. Both were used for evaluation only.

```
python -m trainer frames --checkpoint {name} --scenes DIR --data FOLDER      # FOLDER/indoor, FOLDER/kitti
```

## Training

{_command(facts)}
Seed {recipe.seed}; {steps} steps in {minutes:.0f} minutes on {facts["device"]}; last training loss
{last.get("loss", "?")}.{left} Python {versions["python"]}, torch {versions["torch"]}.

| stage | objective | trained | steps | batch | learning rate | sizes (width, height, chance) |
|---|---|---|---|---|---|---|
{stages}

The whole recipe:

```yaml
{yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)}```
"""


def _command(facts: dict) -> str:
    # Where the folders lay on the machine that trained is nobody's business.
    words = [Path(word).name if Path(word).is_absolute() else word for word in facts["command"][1:]]
    arguments = shlex.join(words)
    processes = facts["processes"]
    start = f"torchrun --nproc-per-node {processes} -m --" if processes > 1 else "python -m"
    return f"```\n{start} trainer {arguments}\n```\n"


def _stage(stage: Stage) -> str:
    sizes = ", ".join(f"{w}×{h} ({chance:g})" for w, h, chance in stage.sizes) or "the sources'"
    rates = f"{stage.optimiser.lr:g} → {stage.optimiser.final_lr:g}"
    what = [stage.name, stage.objective.KIND, ", ".join(stage.train), str(stage.steps), str(stage.batch), rates, sizes]
    return f"| {' | '.join(what)} |"


def last_line(run: Path) -> dict:
    """The last losses in the run's log."""
    log = Path(run) / LOG_FILE
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    steps = [line for line in map(json.loads, lines) if "loss" in line]
    return steps[-1] if steps else {}
