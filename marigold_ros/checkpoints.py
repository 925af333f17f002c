"""Any Marigold-family checkpoint folder: where it is, what it says of itself, and its modules.

`find_checkpoint` and `describe` read names and JSON only (no torch), so that the node can run from an ONNX file
where torch is not installed. `load_network` builds the torch module.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from marigold_ros import hub
from marigold_ros.canonical import MetricScale, metric_scale
from marigold_ros.config import LARGEST_SIDE_PX, Unusable, one_line
from marigold_ros.family import (
    DEPTH,
    NORMALS,
    ZEROS,
    Kind,
    SingleStep,
    check_channels,
    kind_of,
    plain_name,
    refuse_strangers,
    task_of,
)
from marigold_ros.files import sha256_of, written_beside
from marigold_ros.metric import SPACES
from marigold_ros.normals_frame import draws_x_left
from marigold_ros.places import shared

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    from marigold_ros.network import SingleStepNetwork

BUNDLED = ("nano",)
OWN_FILE = "marigold_ros.json"
# Where a network's own tiny VAE lies, and what our own file calls that it was trained with it.
TINY_VAE_FOLDER = TINY_VAE_FIELD = "tiny_vae"
ONNX_FILE = "model.onnx"
PROMPT_FILE = "empty_prompt.safetensors"
PROMPT_KEY = "prompt"
MODULES = ("unet", "vae")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
_DOWNLOADS = "'ros2 run marigold_ros export {}' (or python -m marigold_ros.export)"
# The working size's long side where a checkpoint does not say it.
_FOREIGN_SIDE_PX = 768


@dataclass(frozen=True)
class TinyVae:
    """A tiny VAE (TAESD's kind) that decodes instead of the checkpoint's own, and `encodes` too if so."""

    folder: Path
    encodes: bool


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    kind: what it predicts and how (see `family`).
    space: relative depth is affine in 'depth' (z), 'inverse_depth' (-1/z) or 'log_depth' (ln z); '' if it gives none.
    disparity: the decoded map is largest for near things.
    width, height: working size in pixels; multiple: sizes must be multiples of this many pixels.
    scale_invariant, shift_invariant: what must come from elsewhere, as diffusers names it.
    onnx: the exported network, if the folder has one.
    digest: hex sha256 over everything the network's answer depends on, for cache keys; how relative depth becomes
        metres is none of it.
    tiny: the tiny VAE that stands for the checkpoint's VAE; None where it does not.
    metric: how relative depth becomes metres without anchors; None of a relative checkpoint.
    """

    name: str
    folder: Path
    kind: Kind
    space: str
    disparity: bool
    width: int
    height: int
    multiple: int
    scale_invariant: bool
    shift_invariant: bool
    onnx: Path | None
    digest: str
    tiny: TinyVae | None = None
    metric: MetricScale | None = None


def find_checkpoint(name: str, download: bool = False) -> Path:
    """The folder of checkpoint `name`: a bundled name, a path to a folder, or a hub id (OWNER/MODEL).

    Hub checkpoints are looked for in the local cache; `download` also fetches them.
    """
    if name in BUNDLED:
        return shared(f"checkpoints/{name}/model_index.json").parent
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    refuse_strangers(f"checkpoint {name!r}", name)
    if name and folder.is_file():
        raise Unusable(f"checkpoint {name!r}: is a file; give the folder, in diffusers' format, that it belongs to")
    if hub.is_hub_id(name):
        what = "checkpoint"
        return (
            hub.download(name, what) if download else hub.cached(name, what, _DOWNLOADS.format(f"--checkpoint {name}"))
        )
    allowed = ", ".join(map(repr, BUNDLED))
    raise Unusable(
        f"checkpoint {name!r}: no such folder; give {allowed} (bundled), a folder in diffusers' format, or a hub id "
        "such as 'GonzaloMG/marigold-e2e-ft-depth'"
    )


def describe(folder: Path) -> CheckpointInfo:
    """Read and check what `folder` says of itself.

    Raises `Unusable` for anything missing or damaged, and for what is not of the family or contradicts itself.
    """
    folder = Path(folder).resolve()
    where = f"checkpoint {folder}"
    index, own = read_json(folder / "model_index.json"), _read_own(folder)
    name = _name(where, folder, own)
    unet, vae = (read_json(folder / module / "config.json") for module in MODULES)
    refuse_strangers(where, name, unet)
    kind = kind_of(where, name, index, own, read_json(folder / "scheduler" / "scheduler_config.json"))
    check_channels(where, kind, unet, _latent_channels(where, vae))
    # Our own file is not among the weights, but may say what they are.
    said = f"{check_files(folder)} {kind}{' x left' if kind.x_left else ''}"
    if kind.target_input != ZEROS:
        said += f" from {kind.target_input}"
    digest = hashlib.sha256(said.encode()).hexdigest()
    space, disparity = _space(where, index, own) if kind.task == DEPTH else ("", False)
    multiple = _multiple(folder, (unet, vae))
    width, height = _working_size(where, index, own, multiple)
    info = CheckpointInfo(
        name=name,
        folder=folder,
        kind=kind,
        space=space,
        disparity=disparity,
        width=width,
        height=height,
        multiple=multiple,
        scale_invariant=bool(index.get("scale_invariant", True)),
        shift_invariant=bool(index.get("shift_invariant", True)),
        onnx=folder / ONNX_FILE if (folder / ONNX_FILE).is_file() else None,
        digest=digest,
        metric=metric_scale(where, index, own, space, disparity),
    )
    return _with_tiny(info, folder / TINY_VAE_FOLDER, "tiny") if _has_own_tiny(where, own) else info


def answers_x_left(folder: Path) -> bool:
    """Whether `folder` is a checkpoint that draws normals with x to the left; raises `Unusable` where nothing says it.

    Unlike `describe` it wants to know nothing else, so that it serves for what only a training starts from.
    """
    where = f"checkpoint {folder}"
    index, own = read_json(folder / "model_index.json"), _read_own(folder)
    name = _name(where, folder, own)
    if task_of(where, name, index, own) != NORMALS:
        return False
    return draws_x_left(where, name, index, own, read_json(folder / "scheduler" / "scheduler_config.json"))


def with_tiny_vae(info: CheckpointInfo, use: str, name: str, download: bool = False) -> CheckpointInfo:
    """`info` with the tiny VAE `name`, a folder or a hub id, in place of half or all of its own.

    use: 'full' leaves it as it is, 'tiny' replaces both halves, 'tiny-decoder' the decoder. Raises `Unusable` where the
    tiny VAE is not there or does not fit, and where the network was trained with another tiny one.
    """
    if use == "full":
        return info
    folder = Path(name).expanduser()
    if info.tiny is not None:
        if use == "tiny" and folder.resolve() == info.tiny.folder:
            return info
        raise Unusable(
            f"tiny VAE {name!r}: checkpoint {info.name!r} was trained with a tiny VAE of its own; set model.vae to "
            "'full', which runs that one"
        )
    if not name or not folder.is_dir():
        if not hub.is_hub_id(name):
            raise Unusable(f"tiny VAE {name!r}: no such folder; give one, or a hub id such as 'madebyollin/taesd'")
        what, options = "tiny VAE", f"--checkpoint {shlex.quote(str(info.folder))} --vae {use} --tiny-vae {name}"
        folder = hub.download(name, what) if download else hub.cached(name, what, _DOWNLOADS.format(options))
    # The exported network in the checkpoint's folder is of its own VAE.
    return replace(_with_tiny(info, folder, use), onnx=None)


def _with_tiny(info: CheckpointInfo, folder: Path, use: str) -> CheckpointInfo:
    config, own = read_json(folder / "config.json"), read_json(info.folder / "vae" / "config.json")
    if config.get("_class_name") != "AutoencoderTiny":
        raise Unusable(f"tiny VAE {folder}: _class_name={config.get('_class_name')!r}: must be AutoencoderTiny")
    if config.get("scaling_factor", 1.0) != 1.0:
        raise Unusable(f"tiny VAE {folder}: scaling_factor={config['scaling_factor']}: only 1.0 is known")
    channels = config.get("latent_channels", 4), own.get("latent_channels", 4)
    if channels[0] != channels[1]:
        raise Unusable(
            f"tiny VAE {folder}: has {channels[0]} latent channels, checkpoint {info.name!r} has {channels[1]}; "
            "set model.vae to 'full'"
        )
    digest = hashlib.sha256(f"{info.digest} {use} {sha256_of(_weights(folder, '.'))}".encode()).hexdigest()
    return replace(info, tiny=TinyVae(folder, encodes=use == "tiny"), digest=digest)


def _has_own_tiny(where: str, own: dict[str, Any]) -> bool:
    """Whether the network was trained with the tiny VAE in its folder."""
    said = own.get(TINY_VAE_FIELD, False)
    if type(said) is not bool:
        raise Unusable(f"{where}: {TINY_VAE_FIELD}={said!r} in {OWN_FILE}: must be true or false")
    return said


def load_tiny(tiny: TinyVae, dtype: torch.dtype) -> AutoencoderTiny:
    """The module of a tiny VAE on the CPU; raises `Unusable` where its files cannot be read."""
    from diffusers import AutoencoderTiny

    try:
        return AutoencoderTiny.from_pretrained(
            tiny.folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # as with the other modules
        raise Unusable(f"tiny VAE {tiny.folder}: cannot be loaded ({one_line(error)}); copy it again") from error


def require_single_step(info: CheckpointInfo, task: str = DEPTH) -> SingleStep:
    """The constants of the single step; raises `Unusable` where the checkpoint has none or does not do `task`."""
    if info.kind.task != task:
        serves = info.kind.task == NORMALS and info.kind.single_step is not None
        beside = "as model.normals_checkpoint it serves beside one for depth, and " if serves else ""
        raise Unusable(
            f"checkpoint {info.name!r}: gives {' and '.join(info.kind.targets)}, not {task}; {beside}"
            f"'ros2 run marigold_ros estimate --checkpoint {shlex.quote(str(info.folder))}' can run it"
        )
    if info.kind.target_input != ZEROS:
        raise Unusable(
            f"checkpoint {info.name!r}: was trained with target_input={info.kind.target_input!r}, but node and export "
            "have zeros only; train it again with target_input='zeros', or run it with 'python -m trainer evaluate' "
            "or 'ros2 run marigold_ros estimate'"
        )
    if info.kind.single_step is None:
        raise Unusable(
            f"checkpoint {info.name!r}: starts from noise and wants {info.kind.steps} steps ({info.kind.protocol}), so "
            "one step from zeros means nothing to it; give an end-to-end fine-tuned one, such as "
            f"'GonzaloMG/marigold-e2e-ft-{task}', or run it with 'ros2 run marigold_ros estimate'"
        )
    return info.kind.single_step


def _name(where: str, folder: Path, own: dict[str, Any]) -> str:
    return plain_name(f"{where}: name in {OWN_FILE}", own["name"]) if "name" in own else hub.name_of(folder)


def _space(where: str, index: dict[str, Any], own: dict[str, Any]) -> tuple[str, bool]:
    """The space in which depth is affine, and whether the decoded map is largest for near things."""
    prediction_type = index.get("prediction_type") or "depth"
    if prediction_type not in ("depth", "disparity"):
        raise Unusable(f"{where}: prediction_type={prediction_type!r} in model_index.json: must be depth or disparity")
    disparity = prediction_type == "disparity"
    space = own.get("space", "inverse_depth" if disparity else "depth")
    if space not in SPACES:
        raise Unusable(f"{where}: space={space!r} in {OWN_FILE}: must be one of {', '.join(map(repr, SPACES))}")
    return space, disparity


def _working_size(where: str, index: dict[str, Any], own: dict[str, Any], multiple: int) -> tuple[int, int]:
    """Width and height by our own file, else 4:3 with the long side that diffusers' pipeline would use."""
    side = index.get("default_processing_resolution") or _FOREIGN_SIDE_PX
    if type(side) is not int or not 0 < side <= LARGEST_SIDE_PX:
        raise Unusable(
            f"{where}: default_processing_resolution={side!r} in model_index.json: must be a whole number of pixels, "
            f"at most {LARGEST_SIDE_PX}"
        )
    foreign = (max(2, round(pixels / multiple)) * multiple for pixels in (side, 3 * side / 4))
    sizes = {key: own.get(key, default) for key, default in zip(("width", "height"), foreign, strict=True)}
    for key, value in sizes.items():
        if type(value) is not int or not 0 < value <= LARGEST_SIDE_PX:
            raise Unusable(
                f"{where}: {key}={value!r} in {OWN_FILE}: must be a positive whole number, at most {LARGEST_SIDE_PX}"
            )
    width, height = sizes.values()
    if width % multiple or height % multiple:
        raise Unusable(f"{where}: working size {width}x{height} in {OWN_FILE}: must be multiples of {multiple}")
    return width, height


def load_network(info: CheckpointInfo, device: str = "cpu", dtype: torch.dtype | None = None) -> SingleStepNetwork:
    """The single-step network of a depth or normals checkpoint on `device`, for inference, by default in float32.

    Raises `Unusable` where the checkpoint is no single-step one or its files cannot be read.
    """
    step = require_single_step(info, NORMALS if info.kind.task == NORMALS else DEPTH)
    modules = load_modules(info.folder, dtype)
    from marigold_ros.network import SingleStepNetwork, depth_head, normals_head

    head = normals_head(info.kind.x_left) if info.kind.task == NORMALS else depth_head(info.disparity)
    network = SingleStepNetwork(
        modules.vae,
        modules.unet,
        modules.prompt,
        step.x0_scale,
        head,
        step.timestep,
        tiny=None if info.tiny is None else load_tiny(info.tiny, modules.unet.dtype),
        tiny_encodes=info.tiny is not None and info.tiny.encodes,
    )
    return network.to(device=device, dtype=modules.unet.dtype).eval()


class Modules(NamedTuple):
    """A checkpoint's torch modules, and the (1, tokens, width) embedding of the empty prompt in float32."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    prompt: torch.Tensor


def load_modules(folder: Path, dtype: torch.dtype | None = None) -> Modules:
    """The modules in any checkpoint folder of the family on the CPU, by default in float32.

    Raises `Unusable` where files are missing or cannot be read.
    """
    torch, diffusers = _import_torch()
    dtype = torch.float32 if dtype is None else dtype
    modules = {}
    for name, kind in (("vae", diffusers.AutoencoderKL), ("unet", diffusers.UNet2DConditionModel)):
        weights = _weights(folder, name)
        variant = "fp16" if ".fp16." in weights.name else None
        try:
            modules[name] = kind.from_pretrained(
                folder / name,
                torch_dtype=dtype,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
            )
        except Exception as error:  # diffusers and safetensors raise many kinds for one damaged file
            raise Unusable(
                f"checkpoint file {weights}: cannot be loaded ({one_line(error)}); copy the checkpoint again"
            ) from error
    return Modules(prompt=_prompt(folder), **modules)


def _import_torch() -> tuple[Any, Any]:
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise Unusable(
            f"{error.name} is not installed: loading a checkpoint's weights needs torch and diffusers "
            "(pip install torch diffusers); a checkpoint with model.onnx runs without them on engine 'openvino'"
        ) from error
    return torch, diffusers


def _prompt(folder: Path) -> torch.Tensor:
    """(1, tokens, width) embedding of the empty prompt, from its file or from the folder's text encoder."""
    from safetensors.torch import load_file

    stored = folder / PROMPT_FILE
    if stored.is_file():
        try:
            return load_file(stored)[PROMPT_KEY].float()
        except Exception as error:
            raise Unusable(
                f"checkpoint file {stored}: cannot be read ({one_line(error)}); copy the checkpoint again"
            ) from error
    return _encode_empty_prompt(folder)


def _encode_empty_prompt(folder: Path) -> torch.Tensor:
    import torch

    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise Unusable(
            f"checkpoint {folder}: has no {PROMPT_FILE}, and computing it needs transformers (pip install transformers)"
        ) from error
    weights = folder / "text_encoder"
    full, half = (any(weights.glob(name)) for name in ("model.safetensors", "*.fp16.safetensors"))
    variant = "fp16" if half and not full else None
    try:
        tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)(
            "", padding="do_not_pad", return_tensors="pt"
        ).input_ids
        encoder = CLIPTextModel.from_pretrained(weights, local_files_only=True, variant=variant).float()
        # Not in inference mode: whoever trains with it could not save it for the backward pass.
        with torch.no_grad():
            return encoder(tokens)[0]
    except Exception as error:  # as many kinds as with the other modules
        raise Unusable(
            f"checkpoint {folder}: its tokenizer or text_encoder cannot be used ({one_line(error)}); copy it again"
        ) from error


def seal(folder: Path) -> None:
    """Write the manifest of `folder` (size and sha256 of its files) into its own file; the last step of packaging."""
    folder = Path(folder)
    own = read_json(folder / OWN_FILE)
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors", ".onnx", ".npz")
    )
    own["manifest"] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in files
        if path.name != OWN_FILE
    }
    with written_beside(folder / OWN_FILE) as beside:
        beside.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")


def check_files(folder: Path) -> str:
    """Check that the files are there and, by the manifest in our own file if there is one, whole.

    Returns a digest over those that decide the network's answer. Raises `Unusable` for the first that is not.
    """
    manifest = _read_own(folder).get("manifest")
    if manifest is not None and not (
        isinstance(manifest, dict) and all(isinstance(f, dict) for f in manifest.values())
    ):
        raise Unusable(
            f"checkpoint {folder}: manifest in {OWN_FILE}: must map files to their size and sha256; copy it again"
        )
    needed = [folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"]
    for name in MODULES:
        needed += [folder / name / "config.json", _weights(folder, name)]
    if (folder / PROMPT_FILE).is_file():
        needed.append(folder / PROMPT_FILE)
    elif manifest is not None or not (folder / "text_encoder").is_dir():
        raise Unusable(f"checkpoint file {folder / PROMPT_FILE}: is missing; copy the checkpoint again")
    else:
        needed += (folder / "text_encoder").glob("*.safetensors")
    listed = {folder / name: facts for name, facts in (manifest or {}).items()}
    digest = hashlib.sha256()
    for path in sorted({*needed, *listed}):
        if not path.is_file():
            raise Unusable(f"checkpoint file {path}: is missing; copy the checkpoint again")
        found = sha256_of(path)
        _check_listed(path, found, listed.get(path))
        if path in needed:
            digest.update(f"{path.relative_to(folder).as_posix()} {found}\n".encode())
    return digest.hexdigest()


def _check_listed(path: Path, found: str, facts: dict[str, Any] | None) -> None:
    if facts is None:
        return
    size = path.stat().st_size
    if size != facts.get("bytes"):
        raise Unusable(
            f"checkpoint file {path}: has {size} bytes instead of {facts.get('bytes')}; copy the checkpoint again"
        )
    if found != facts.get("sha256"):
        raise Unusable(f"checkpoint file {path}: is damaged (its sha256 differs); copy the checkpoint again")


def _weights(folder: Path, module: str) -> Path:
    for name in WEIGHTS:
        if (folder / module / name).is_file():
            return folder / module / name
    raise Unusable(
        f"checkpoint file {folder / module / WEIGHTS[0]}: is missing; copy the checkpoint again "
        "(weights must be safetensors)"
    )


def _latent_channels(where: str, vae: dict[str, Any]) -> int:
    """The number of them, after a look at their scale; diffusers' defaults where the file says nothing."""
    channels, scale = vae.get("latent_channels", 4), vae.get("scaling_factor", 0.18215)
    if type(channels) is not int:
        raise Unusable(f"{where}: latent_channels={channels!r} in vae/config.json: must be a whole number")
    if type(scale) not in (int, float) or not 0.0 < scale < float("inf"):
        raise Unusable(f"{where}: scaling_factor={scale!r} in vae/config.json: must be a positive number")
    return channels


def _multiple(folder: Path, configs: Iterable[dict[str, Any]]) -> int:
    """Pixels: the VAE's reduction times that of the U-Net's down-sampling levels."""
    levels = 0
    for module, config in zip(MODULES, configs, strict=True):
        channels = config.get("block_out_channels")
        if not isinstance(channels, list) or not channels:
            raise Unusable(
                f"checkpoint file {folder / module / 'config.json'}: block_out_channels={channels!r}: must be a list"
            )
        levels += len(channels) - 1
    return 2**levels


def _read_own(folder: Path) -> dict[str, Any]:
    """Our own file of a checkpoint folder; {} where there is none."""
    return read_json(folder / OWN_FILE) if (folder / OWN_FILE).is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's file; raises `Unusable` where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unusable(f"checkpoint file {path}: is missing; copy the checkpoint again") from None
    except (OSError, ValueError) as error:
        raise Unusable(
            f"checkpoint file {path}: cannot be read ({one_line(error)}); copy the checkpoint again"
        ) from error
    if not isinstance(value, dict):
        raise Unusable(f"checkpoint file {path}: must hold a JSON object; copy the checkpoint again")
    return value
