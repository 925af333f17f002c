"""What a stage leaves: a checkpoint folder in float32, that the next stage, the node and diffusers all load."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from trainer.assembly import protocol_of
from trainer.model import Model
from trainer.package import Member, write_member
from trainer.recipe import LAST, Recipe, Stage, target_input_of
from trainer.recipe_files import plain
from trainer.states import Place


def left_by(place: Place, stage: Stage, result: str) -> tuple[int, str]:
    """The step whose weights `stage`, at its end `place`, leaves, and a sentence about them without its full stop.

    result: as in the recipe.
    """
    last = f"the weights are those of step {place.step} of {stage.steps}, the last"
    if place.best is None:
        return place.step, f"{last}; no validation says how good they are"
    found = f"with {place.measure} {place.best:.4g} on held-out samples"
    if place.best_step == place.step:
        return place.step, f"{last} and the best, {found}"
    if result == LAST:
        return place.step, f"{last}; the best were those of step {place.best_step}, {found}"
    return place.best_step, f"the weights are those of step {place.best_step} of {stage.steps}, the best, {found}"


def write_result(folder: Path, model: Model, recipe: Recipe, stage: Stage, which: str) -> None:
    """Write `model` as `stage` of `recipe` left it; raises `Unusable` where the disk is full.

    which: a sentence for its card, without its full stop, that says which step's weights they are.
    """
    member = member_of(model, recipe, stage)
    write_member(folder, member, _card(folder.resolve().parent.name, recipe, stage, which), dtype=torch.float32)


def member_of(model: Model, recipe: Recipe, stage: Stage) -> Member:
    """`model` as `stage` of `recipe` left it, to be written."""
    return Member(
        unet=model.unet,
        vae=model.vae,
        prompt=model.prompt,
        task=recipe.task,
        protocol=protocol_of(stage),
        size=model.size,
        space=recipe.space,
        scheduler=model.scheduler,
        source=model.source,
        metric=recipe.metric,
        tiny_vae=model.tiny,
        target_input=target_input_of(stage),
    )


def _card(run: str, recipe: Recipe, stage: Stage, which: str) -> str:
    text = yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)
    return (
        f"# {run}, stage {stage.name!r}\n\n{which[0].upper()}{which[1:]}.\n\nWritten by `python -m trainer train` with "
        f"this recipe; its run folder has the command, versions and curves.\n\n```yaml\n{text}```\n"
    )
