"""A recipe's first model, and the folders that the stages of a run hand on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderTiny

from marigold_ros import hub
from marigold_ros.checkpoints import TINY_VAE_FOLDER, answers_x_left, describe
from marigold_ros.config import LARGEST_SIDE_PX, Unusable, one_line
from marigold_ros.family import DIFFUSION, E2E, INTRINSICS, LCM
from marigold_ros.sd2 import HEIGHT, WIDTH
from trainer.architecture import build_scheduler
from trainer.model import Model
from trainer.package import one_channel
from trainer.recipe import Consistency, Diffusion, EndToEnd, Recipe, Stage
from trainer.start import Start, from_scratch, load_start
from trainer.targets import TARGET_NAMES


def first_model(recipe: Recipe) -> Model:
    """What the first stage starts from; raises `Unusable` where it is not there or is another recipe's."""
    targets = len(TARGET_NAMES[recipe.task])
    wanted = recipe.start
    if wanted.checkpoint:
        start = load_start(wanted.checkpoint, targets, wanted.surgery, download=True)
        if start.of_family:
            _check_family(start, recipe)
    else:
        start = from_scratch(**vars(recipe.network), targets=targets)
    size = recipe.size if recipe.size[0] else _own_size(start)
    _check_size(size, start)
    return _model(start, recipe, recipe.stages[0], _tiny(wanted.tiny_vae or _own_tiny(start), recipe.task), size)


def _check_family(start: Start, recipe: Recipe) -> None:
    """Raises `Unusable` for a checkpoint that is of another task, or cannot be trained on as the recipe wants."""
    if recipe.task == "normals":
        _refuse_x_left(recipe.start.checkpoint, start.source)
    info = describe(start.source)
    task = INTRINSICS if recipe.task.startswith("iid") else recipe.task
    if info.kind.task != task:
        raise Unusable(
            f"start.checkpoint={recipe.start.checkpoint!r}: is of task {info.kind.task!r}, the recipe of {task!r}; "
            "give one that fits, or start from stabilityai/stable-diffusion-2"
        )
    losses = {getattr(stage.objective, "loss", "") for stage in recipe.stages}
    if losses & {"relative", "affine_metres"} and info.space != recipe.space:
        raise Unusable(
            f"checkpoint {info.name!r}: its depth is affine in {info.space!r}, the recipe's in {recipe.space!r}; set "
            f"space: {info.space}"
        )
    if info.tiny is not None and not all(isinstance(stage.objective, EndToEnd) for stage in recipe.stages):
        raise Unusable(
            f"checkpoint {info.name!r}: was trained with a tiny VAE, which is for objective end_to_end only; start "
            "from another one"
        )
    if isinstance(recipe.stages[0].objective, Consistency) and info.kind.protocol != DIFFUSION:
        raise Unusable(
            f"checkpoint {info.name!r}: is of protocol {info.kind.protocol!r}; only a network trained by diffusion can "
            "be distilled, such as prs-eth/marigold-depth-v1-1"
        )
    if isinstance(recipe.stages[0].objective, Consistency) and not start.scheduler.get("rescale_betas_zero_snr"):
        raise Unusable(
            f"checkpoint {info.name!r}: was not trained to zero SNR at its last timestep, which a single step starts "
            "from; distil one that was, such as prs-eth/marigold-depth-v1-1"
        )


def _check_size(size: tuple[int, int], start: Start) -> None:
    levels = sum(len(module.config.block_out_channels) - 1 for module in (start.vae, start.unet))
    if any(side <= 0 or side % 2**levels or side > LARGEST_SIDE_PX for side in size):
        raise Unusable(
            f"size={list(size)}: must be multiples of {2**levels} for this network, at most {LARGEST_SIDE_PX}"
        )


def _refuse_x_left(name: str, folder: Path) -> None:
    """Training would have to turn it round first: the pictures that it is taught have x to the right."""
    if answers_x_left(folder):
        raise Unusable(
            f"start.checkpoint={name!r}: draws normals with x to the left, and is to be trained with x to the right; "
            "start from 'stabilityai/stable-diffusion-2' or 'prs-eth/marigold-normals-v1-1'"
        )


def protocol_of(stage: Stage) -> str:
    """How a network is run that was trained so: see marigold_ros/family.py."""
    return {Diffusion: DIFFUSION, Consistency: LCM}.get(type(stage.objective), E2E)


def scheduler_of(stage: Stage, base: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler's configuration with which `stage` trains and its result is run, from that of its start.

    A distilled network is asked only for timesteps that it was distilled on: diffusers' scheduler takes its own from
    every (T / original_inference_steps)-th one, as `objectives.consistency` draws them.
    """
    knobs, distilled = stage.objective, {}
    if isinstance(knobs, Consistency):
        distilled = {"original_inference_steps": knobs.timesteps, "timestep_scaling": knobs.timestep_scaling}
    return dict(build_scheduler(protocol_of(stage), {**base, **distilled}).config)


def model_in(folder: Path, recipe: Recipe, stage: Stage) -> Model:
    """What the stage before wrote to `folder`, for `stage`."""
    start = load_start(str(folder), len(TARGET_NAMES[recipe.task]))
    size = recipe.size if recipe.size[0] else _own_size(start)
    return _model(start, recipe, stage, _tiny(_own_tiny(start), recipe.task), size)


def _own_size(start: Start) -> tuple[int, int]:
    """The working size that a checkpoint of the family names; Stable Diffusion's own where it is none."""
    if start.source is None:
        raise Unusable("size=[0, 0]: a network of random weights has no size of its own; give one in the recipe")
    if not start.of_family:
        return WIDTH, HEIGHT
    info = describe(start.source)
    return info.width, info.height


def _model(start: Start, recipe: Recipe, stage: Stage, tiny: AutoencoderTiny | None, size: tuple[int, int]) -> Model:
    # The schedule of the training is that of its result.
    scheduler = scheduler_of(stage, start.scheduler)
    if tiny is not None and tiny.config.latent_channels != start.latent_channels:
        raise Unusable(
            f"start.tiny_vae: has {tiny.config.latent_channels} latent channels, the checkpoint {start.latent_channels}"
        )
    return Model(start.unet, start.vae, start.prompt, scheduler, recipe.task, recipe.space, size, tiny, start.source)


def _own_tiny(start: Start) -> str:
    """The folder of the tiny VAE that a checkpoint of the trainer's was trained with; '' where it has none."""
    folder = Path() if start.source is None else start.source / TINY_VAE_FOLDER
    return str(folder) if start.of_family and folder.is_dir() else ""


def _tiny(name: str, task: str) -> AutoencoderTiny | None:
    if not name:
        return None
    tiny = AutoencoderTiny() if name == "random" else _load_tiny(name)
    # Where one map is wanted, two thirds of the last layers would learn the same thing once more.
    return one_channel(tiny) if task == "depth" else tiny


def _load_tiny(name: str) -> AutoencoderTiny:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not hub.is_hub_id(name):
            raise Unusable(
                f"start.tiny_vae={name!r}: no such folder; give one, or a hub id such as 'madebyollin/taesd'"
            )
        folder = hub.download(name, "tiny VAE")
    try:
        return AutoencoderTiny.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False).float()
    except Exception as error:  # diffusers and safetensors raise many kinds for one damaged file
        raise Unusable(f"tiny VAE {folder}: cannot be loaded ({one_line(error)}); copy it again") from error
