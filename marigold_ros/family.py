"""The Marigold family: what a checkpoint of it may be, read from its JSON files alone.

Marigold's own diffusion networks (depth, normals, intrinsic images), their LCM distillations and the end-to-end
fine-tunes differ in little but what their files say; run by the rules of another, each gives plausible nonsense. So the
rules are checked here (reference: arXiv 2505.09358, arXiv 2409.11355 and the configurations as published).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from marigold_ros.config import Unusable
from marigold_ros.normals_frame import E2E_LAYOUT, draws_x_left

DEPTH, NORMALS, INTRINSICS = "depth", "normals", "intrinsics"
# E2E: one step from zeros, trained so. DIFFUSION: several steps from noise. LCM: few steps from noise, distilled.
E2E, DIFFUSION, LCM = "e2e", "diffusion", "lcm"
# What an end-to-end fine-tuned network was trained to find in the target latent's place; the fast path has zeros only.
ZEROS, GAUSSIAN, PYRAMID = TARGET_INPUTS = "zeros", "gaussian", "pyramid"

_TASKS = {
    "MarigoldDepthPipeline": DEPTH,
    "MarigoldPipeline": DEPTH,  # its name before diffusers took the pipeline in
    "MarigoldNormalsPipeline": NORMALS,
    "MarigoldIntrinsicsPipeline": INTRINSICS,
}
# Published networks by their names, where neither files nor name say it: protocol and steps.
_PUBLISHED = {"marigold-normals": (DIFFUSION, 10)}
_GEOWIZARD = (
    "a GeoWizard network: it sees the image through a CLIP encoder as well and computes depth and normals in one batch "
    "that shares its attention, so neither the fast path nor diffusers' pipelines can run it; use one of "
    "prs-eth/marigold-* or GonzaloMG/*-e2e-ft-depth or -normals"
)
_DEPTHFM = (
    "a DepthFM network: it is integrated by flow matching from the noised image latent, not denoised by a Marigold "
    "scheduler; use one of prs-eth/marigold-* or GonzaloMG/*-e2e-ft-depth"
)
# What may become part of a file's name.
_PLAIN = re.compile(r"[\w .-]{1,100}", re.ASCII)
_PREDICTIONS = ("v_prediction", "epsilon", "sample")
# diffusers' default, and a limit far above what anybody trains with.
_TRAIN_STEPS, _MOST_TRAIN_STEPS = 1000, 100_000


class SingleStep(NamedTuple):
    """One step from a zero target latent: denoised latent = `x0_scale` * the U-Net's output at `timestep`."""

    x0_scale: float
    timestep: int


@dataclass(frozen=True)
class Kind:
    """What a checkpoint predicts, and how it was trained to.

    targets: the images that its latents stand for, in their order, for example ('albedo', 'material').
    steps: denoising steps that it asks for.
    single_step: the constants of the one step from zeros of an end-to-end fine-tuned network; None for the others.
    x_left: its normals are drawn with x to the left instead of to the right (see `normals_frame`).
    target_input: what its one step starts from, one of `TARGET_INPUTS`; means nothing to networks of other protocols.
    """

    task: str
    targets: tuple[str, ...]
    protocol: str
    steps: int
    single_step: SingleStep | None
    # Not in the repr, which is in the digests of all: only those of the networks that have them had to change.
    x_left: bool = dataclasses.field(default=False, repr=False)
    target_input: str = dataclasses.field(default=ZEROS, repr=False)


def kind_of(
    where: str, name: str, index: Mapping[str, Any], own: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> Kind:
    """The kind of checkpoint `name`, by model_index.json, marigold_ros.json (or {}) and scheduler_config.json.

    where: names the checkpoint in errors. Raises `Unusable` for what is not of the family and for a scheduler that
    contradicts the rest.
    """
    task = task_of(where, name, index, own)
    steps = index.get("default_denoising_steps")
    if steps is not None and (type(steps) is not int or steps < 1):
        raise Unusable(f"{where}: default_denoising_steps={steps!r} in model_index.json: must be a positive number")
    known_protocol, known_steps = _PUBLISHED.get(name, (None, None))
    steps = steps or known_steps
    protocol = own.get("protocol") or known_protocol or _protocol(name, steps, scheduler)
    if protocol is None:
        raise Unusable(
            f"{where}: nothing says whether it takes one step from zeros or several from noise; write "
            f'{{"protocol": "{E2E}"}} or {{"protocol": "{DIFFUSION}"}} into its marigold_ros.json'
        )
    if protocol not in (E2E, DIFFUSION, LCM):
        raise Unusable(
            f"{where}: protocol={protocol!r} in marigold_ros.json: must be '{E2E}', '{DIFFUSION}' or '{LCM}'"
        )
    _check_scheduler(where, protocol, scheduler)
    target_input = _target_input(where, protocol, own)
    return Kind(
        task=task,
        targets=_targets(where, task, index),
        protocol=protocol,
        steps=1 if protocol == E2E else steps or {DIFFUSION: 4, LCM: 1}[protocol],
        single_step=single_step(scheduler, where) if protocol == E2E and target_input == ZEROS else None,
        x_left=task == NORMALS and draws_x_left(where, name, index, own, scheduler),
        target_input=target_input,
    )


def refuse_strangers(where: str, name: str, unet: Mapping[str, Any] | None = None) -> None:
    """Refuse, with the reason, a checkpoint of a neighbouring family, by its name or its U-Net's configuration."""
    plain = name.lower().replace("-", "").replace("_", "")
    if "depthfm" in plain:
        raise Unusable(f"{where}: is {_DEPTHFM}")
    if unet is not None and unet.get("class_embed_type") is not None:
        raise Unusable(f"{where}: is {_GEOWIZARD}")


def check_channels(where: str, kind: Kind, unet: Mapping[str, Any], latent_channels: int) -> None:
    """The U-Net takes the image's latent and one for each target, and gives one for each target."""
    images = len(kind.targets)
    expected = (images + 1) * latent_channels, images * latent_channels
    found = unet.get("in_channels"), unet.get("out_channels")
    if found != expected:
        raise Unusable(
            f"{where}: U-Net of {found[0]} channels in and {found[1]} out: for {' and '.join(kind.targets)} it must be "
            f"{expected[0]} and {expected[1]}"
        )


def task_of(where: str, name: str, index: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """'depth', 'normals' or 'intrinsics'; arguments and errors as of `kind_of`."""
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str):
        raise Unusable(f"{where}: _class_name={pipeline!r} in model_index.json: must be the name of a pipeline")
    if pipeline in ("DepthNormalEstimationPipeline", "DepthNormalPipeline"):
        raise Unusable(f"{where}: is {_GEOWIZARD}")
    if pipeline in _TASKS:
        return _TASKS[pipeline]
    if pipeline == E2E_LAYOUT:
        named = [task for task in (DEPTH, NORMALS) if task in name.lower()]
        if own.get("task") in (DEPTH, NORMALS):
            named = [own["task"]]
        if len(named) == 1:
            return named[0]
        raise Unusable(
            f"{where}: _class_name='{E2E_LAYOUT}' in model_index.json does not say what it predicts; write "
            f'{{"task": "depth"}} or {{"task": "normals"}} into its marigold_ros.json'
        )
    known = ", ".join([*_TASKS, E2E_LAYOUT])
    raise Unusable(f"{where}: _class_name={pipeline!r} in model_index.json: only {known} are known")


def _targets(where: str, task: str, index: Mapping[str, Any]) -> tuple[str, ...]:
    if task != INTRINSICS:
        return (task,)
    properties = index.get("target_properties")
    names = properties.get("target_names") if isinstance(properties, dict) else None
    if not isinstance(names, list) or not names:
        raise Unusable(f"{where}: target_properties in model_index.json: must list target_names")
    return tuple(plain_name(f"{where}: target name", name) for name in names)


def plain_name(what: str, name: Any) -> str:
    """`name`, which becomes part of file names; raises `Unusable`, which calls it `what`, where it must not."""
    if not isinstance(name, str) or _PLAIN.fullmatch(name) is None:
        raise Unusable(f"{what} {name!r}: must be 1 to 100 letters, digits, blanks, '.', '_' or '-'")
    return name


def _protocol(name: str, steps: int | None, scheduler: Mapping[str, Any]) -> str | None:
    """How the network was trained; None where nothing says it."""
    if scheduler.get("_class_name") == "LCMScheduler":
        return LCM
    if "e2e" in name.lower() or steps == 1:
        return E2E
    if steps is not None:
        return DIFFUSION
    # Trailing without zero-SNR are the end-to-end fine-tunes, but also a diffusion network of the same authors.
    trailing = scheduler.get("timestep_spacing") == "trailing"
    return None if trailing and not scheduler.get("rescale_betas_zero_snr") else DIFFUSION


def _target_input(where: str, protocol: str, own: Mapping[str, Any]) -> str:
    said = own.get("target_input", ZEROS)
    if said not in TARGET_INPUTS:
        raise Unusable(
            f"{where}: target_input={said!r} in marigold_ros.json: must be one of {', '.join(map(repr, TARGET_INPUTS))}"
        )
    if said != ZEROS and protocol != E2E:
        raise Unusable(
            f"{where}: target_input={said!r} in marigold_ros.json: is of end-to-end fine-tuned networks, this is "
            f"{protocol}; take it out"
        )
    return said


def _check_scheduler(where: str, protocol: str, scheduler: Mapping[str, Any]) -> None:
    """Refuse a scheduler that the network was not trained with: the answer would be wrong and look right."""
    refuse = partial(_refused, where, scheduler)
    steps = scheduler.get("num_train_timesteps", _TRAIN_STEPS)
    if type(steps) is not int or not 2 <= steps <= _MOST_TRAIN_STEPS:
        raise refuse("num_train_timesteps", f"must be a whole number from 2 to {_MOST_TRAIN_STEPS}")
    for field in ("beta_start", "beta_end"):
        beta = scheduler.get(field)
        if type(beta) not in (int, float) or not 0.0 < beta < 1.0:
            raise refuse(field, "must be a positive number below 1")
    if scheduler.get("prediction_type") not in _PREDICTIONS:
        raise refuse("prediction_type", f"must be one of {', '.join(_PREDICTIONS)}")
    name, spacing = scheduler.get("_class_name"), scheduler.get("timestep_spacing")
    zero_snr = bool(scheduler.get("rescale_betas_zero_snr"))
    if protocol == LCM:
        if name != "LCMScheduler":
            raise refuse("_class_name", "a distilled (LCM) network needs LCMScheduler")
        return
    if name not in ("DDIMScheduler", "DDPMScheduler"):
        raise refuse("_class_name", "must be DDIMScheduler, DDPMScheduler or, for a distilled network, LCMScheduler")
    if protocol == E2E and spacing != "trailing":
        raise refuse("timestep_spacing", "one step must start at the last timestep, which only 'trailing' does")
    if protocol == E2E and zero_snr:
        raise refuse("rescale_betas_zero_snr", "an end-to-end fine-tuned network starts from zeros, without zero-SNR")
    if protocol == DIFFUSION and spacing not in ("trailing", "leading"):
        raise refuse("timestep_spacing", "must be 'trailing' or 'leading'")
    if protocol == DIFFUSION and zero_snr and spacing != "trailing":
        raise refuse("timestep_spacing", "a zero-SNR schedule must start at the last timestep, which 'trailing' does")


def _refused(where: str, scheduler: Mapping[str, Any], field: str, why: str) -> Unusable:
    return Unusable(f"{where}: {field}={scheduler.get(field)!r} in scheduler/scheduler_config.json: {why}")


def single_step(scheduler: Mapping[str, Any], where: str) -> SingleStep:
    """One step from a zero target latent, by the scheduler's configuration.

    With z = 0 the denoised latent is a constant times the network's output: -sqrt(1 - abar) for v-prediction
    (reference/marigold.md §1.5). Its numbers are taken as they are; raises `Unusable` for a schedule that is not known.
    """
    refuse = partial(_refused, where, scheduler)
    if scheduler.get("beta_schedule") != "scaled_linear":
        raise refuse("beta_schedule", "only 'scaled_linear' is known")
    if scheduler.get("trained_betas") is not None:
        raise refuse("trained_betas", "must be null: beta_start and beta_end say all that is known")
    steps = scheduler.get("num_train_timesteps", _TRAIN_STEPS)
    low, high = math.sqrt(scheduler["beta_start"]), math.sqrt(scheduler["beta_end"])
    abar = math.prod(1.0 - (low + (high - low) * i / (steps - 1)) ** 2 for i in range(steps))
    if abar == 0.0:
        raise refuse("beta_end", "is so large that nothing of the image is left at the last timestep")
    scales = {
        "v_prediction": -math.sqrt(1.0 - abar),
        "epsilon": -math.sqrt(1.0 - abar) / math.sqrt(abar),
        "sample": 1.0,
    }
    return SingleStep(scales[scheduler["prediction_type"]], steps - 1)
