"""What a stage leaves: a checkpoint folder in float32, that the next stage, the node and diffusers all load."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from trainer.assembly import protocol_of
from trainer.model import Model
from trainer.package import Member, write_member
from trainer.recipe import Recipe, Stage
from trainer.recipe_files import plain


def write_result(folder: Path, model: Model, recipe: Recipe, stage: Stage) -> None:
    """Write `model` as `stage` of `recipe` left it; raises `Unusable` where the disk is full."""
    member = member_of(model, recipe, stage)
    write_member(folder, member, _card(folder.resolve().parent.name, recipe, stage), dtype=torch.float32)


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
    )


def _card(run: str, recipe: Recipe, stage: Stage) -> str:
    text = yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)
    return (
        f"# {run}, stage {stage.name!r}\n\nWritten by `python -m trainer train` with this recipe; its run folder has "
        f"the command, versions and curves.\n\n```yaml\n{text}```\n"
    )
