"""A network as a checkpoint folder in diffusers' format, written beside its place and moved there whole."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from marigold_ros.canonical import MetricScale
from marigold_ros.checkpoints import (
    ONNX_FILE,
    OWN_FILE,
    PROMPT_FILE,
    PROMPT_KEY,
    TINY_VAE_FIELD,
    TINY_VAE_FOLDER,
    describe,
    seal,
)
from marigold_ros.config import Unusable, one_line
from marigold_ros.family import DIFFUSION, E2E, LCM, TARGET_INPUTS, ZEROS
from marigold_ros.files import flush
from marigold_ros.metric import SPACES
from marigold_ros.normals_frame import FIELD, RIGHT
from marigold_ros.sd2 import SCHEDULER
from trainer.architecture import build_scheduler
from trainer.model_index import PIPELINES, STEPS, model_index

_TEXT_ENCODER = ("text_encoder", "tokenizer")
_HALF = ".fp16.safetensors"


@dataclass(frozen=True)
class Member:
    """A network of the family, to be written as a checkpoint.

    prompt: (1, 2, width). task: 'depth', 'normals', 'iid-appearance' or 'iid-lighting'; protocol: 'e2e', 'diffusion' or
    'lcm'. size: working size (width, height) in pixels. space: in which depth is affine. scheduler: the configuration
    that the training started from, see `architecture.build_scheduler`. steps: denoising steps, 0 for the published
    ones. source: a folder whose text encoder and tokenizer are copied, if it has them. metric: of depth in metres.
    tiny_vae: a VAE of TAESD's kind, trained to do the work of `vae`, which it does wherever the checkpoint runs.
    target_input: what the one step of protocol 'e2e' starts from, one of `family.TARGET_INPUTS`.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    prompt: Tensor
    task: str
    protocol: str
    size: tuple[int, int]
    space: str = "depth"
    scheduler: Mapping[str, Any] | None = None
    steps: int = 0
    source: Path | None = None
    metric: MetricScale | None = None
    tiny_vae: AutoencoderTiny | None = None
    target_input: str = ZEROS

    def __post_init__(self) -> None:
        allowed = {"task": PIPELINES, "protocol": (E2E, DIFFUSION, LCM), "space": SPACES, "target_input": TARGET_INPUTS}
        for name, known in allowed.items():
            if getattr(self, name) not in known:
                raise Unusable(f"{name} {getattr(self, name)!r}: must be one of {', '.join(map(repr, known))}")
        if self.metric is not None and (self.task, self.space) != ("depth", "log_depth"):
            raise Unusable(f"metric range of a network for {self.task} in {self.space!r}: is for depth in 'log_depth'")


def write_member(
    folder: Path,
    member: Member,
    card: str,
    dtype: torch.dtype = torch.float16,
    onnx: bool = False,
) -> None:
    """Write `member` to `folder`, replacing the checkpoint that is there, for our loader and for diffusers'.

    card: the text of README.md; dtype: of the weights; onnx: also export model.onnx (single
    step depth and normals only). Raises `Unusable` for what cannot be written or does not fit together; then
    what was there still is.
    """
    folder = Path(folder)
    with _beside(folder) as beside:
        for name, module in (("vae", member.vae), ("unet", member.unet)):
            converted(module, dtype).save_pretrained(beside / name)
        if member.tiny_vae is not None:
            converted(three_channels(member.tiny_vae), dtype).save_pretrained(beside / TINY_VAE_FOLDER)
        save_file({PROMPT_KEY: member.prompt.detach().to("cpu", dtype).contiguous()}, beside / PROMPT_FILE)
        text_encoder = _copy_text_encoder(member.source, beside)
        scheduler = build_scheduler(member.protocol, member.scheduler or SCHEDULER)
        scheduler.save_pretrained(beside / "scheduler")
        steps, kind = member.steps or STEPS[member.protocol], type(scheduler).__name__
        index = model_index(
            member.task, member.space, member.metric is not None, steps, max(member.size), kind, text_encoder
        )
        _write_json(beside / "model_index.json", index)
        _write_json(beside / OWN_FILE, _own(folder.name, member))
        (beside / "README.md").write_text(card, encoding="utf-8")
        seal(beside)
        if onnx:
            _export(beside)
            seal(beside)
        describe(beside)
        replace_folder(beside, folder)


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write in; what is left of it at the end is removed."""
    beside = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
    except (OSError, SafetensorError) as error:  # a full disk is either
        raise Unusable(
            f"checkpoint {folder}: cannot be written ({one_line(error)}); make room, or give another folder"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def converted(module: ModelMixin, dtype: torch.dtype) -> ModelMixin:
    """A copy of `module` on the CPU in `dtype`, made weight by weight; its configuration does not say where it lay.

    Raises `Unusable` where weights are not finite, or no longer.
    """
    state = {}
    for name, values in module.state_dict().items():
        state[name] = values.detach().to("cpu", dtype if values.is_floating_point() else None).contiguous()
        if not state[name].isfinite().all():
            raise Unusable(
                f"weights {name} of {type(module).__name__}: are not finite in {dtype}; write float32, or go back to a "
                "checkpoint from before the training diverged"
            )
    with torch.device("meta"):
        copy = type(module).from_config(_own_config(module))
    copy.load_state_dict(state, assign=True)
    return copy


def _own_config(module: ModelMixin) -> dict[str, Any]:
    """Without diffusers' notes on it, such as which values are defaults, which would replace others."""
    return {name: value for name, value in module.config.items() if not name.startswith("_")}


def three_channels(tiny: AutoencoderTiny) -> AutoencoderTiny:
    """`tiny`, or if it decodes to one channel a copy that decodes to three equal ones, as all readers expect."""
    if tiny.config.out_channels != 1:
        return tiny
    return _with_output(tiny, 3, lambda values: values.repeat_interleave(3, dim=0))


def one_channel(tiny: AutoencoderTiny) -> AutoencoderTiny:
    """A copy of `tiny` that decodes to the mean of its channels alone, which is all that depth needs."""
    return _with_output(tiny, 1, lambda values: values.mean(dim=0, keepdim=True))


def _with_output(tiny: AutoencoderTiny, channels: int, convert: Callable[[Tensor], Tensor]) -> AutoencoderTiny:
    copy = type(tiny).from_config(_own_config(tiny) | {"out_channels": channels})
    last = f"decoder.layers.{len(tiny.decoder.layers) - 1}."
    state = tiny.state_dict()
    copy.load_state_dict({name: convert(v) if name.startswith(last) else v for name, v in state.items()})
    return copy


def _copy_text_encoder(source: Path | None, folder: Path) -> bool:
    """Copy text encoder and tokenizer of `source`; whether it has them."""
    if source is None or not all((source / name).is_dir() for name in _TEXT_ENCODER):
        return False
    weights = [path.name for path in (source / "text_encoder").glob("*.safetensors")]
    full = [name for name in weights if not name.endswith(_HALF)]
    if not weights:
        return False
    for name in _TEXT_ENCODER:
        (folder / name).mkdir()
        for path in (source / name).iterdir():
            unwanted = path.suffix == ".safetensors" and full and path.name not in full
            if path.suffix in (".json", ".txt", ".safetensors") and not unwanted:
                # Without a name of its precision diffusers finds it unasked.
                shutil.copyfile(path, folder / name / path.name.replace(_HALF, ".safetensors"))
    return True


def _own(name: str, member: Member) -> dict[str, Any]:
    """Our own file: what model_index.json has no field for."""
    facts: dict[str, Any] = {"name": name, "protocol": member.protocol}
    if member.task == "depth":
        facts["space"] = member.space
    if member.task == "normals":
        # As `targets.picture_of` draws them.
        facts[FIELD] = RIGHT
    if member.tiny_vae is not None:
        facts[TINY_VAE_FIELD] = True
    if member.target_input != ZEROS:
        facts["target_input"] = member.target_input
    facts |= {"width": member.size[0], "height": member.size[1]}
    return facts if member.metric is None else {**facts, "metric": asdict(member.metric)}


def _export(folder: Path) -> None:
    """Write model.onnx; in a process of its own: exporting leaves torch's tracing state and half a gigabyte behind."""
    command = [sys.executable, "-m", "marigold_ros.export", "--checkpoint", str(folder)]
    done = subprocess.run([*command, "--output", str(folder / ONNX_FILE)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unusable(f"checkpoint {folder}: cannot be exported to ONNX: {done.stderr.strip()[-2000:]}")


def replace_folder(beside: Path, folder: Path) -> None:
    """Move `beside` to `folder`; a checkpoint that was there is gone only after the new one stands.

    Raises `Unusable` where something else is there.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
        raise Unusable(f"folder {folder}: is in the way and is no checkpoint; give another one")
    for path in beside.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes files that only their owner may read
        flush(path)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
