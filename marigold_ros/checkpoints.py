"""Any Marigold-family checkpoint folder: where it is, what it says of itself, and its modules.

`find_checkpoint` and `describe` read names and JSON only (no torch), so that the node can run from an ONNX file
where torch is not installed. `load_network` builds the torch module.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marigold_ros import hub
from marigold_ros.config import Unusable
from marigold_ros.metric import SPACES
from marigold_ros.places import shared

if TYPE_CHECKING:
    import torch

    from marigold_ros.network import SingleStepDepth

BUNDLED = ("nano",)
OWN_FILE = "marigold_ros.json"
ONNX_FILE = "model.onnx"
PROMPT_FILE = "empty_prompt.safetensors"
PROMPT_KEY = "prompt"
MODULES = ("unet", "vae")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
# The second is the name from before diffusers took the pipeline in.
DEPTH_PIPELINES = ("MarigoldDepthPipeline", "MarigoldPipeline")
OTHER_PIPELINES = {
    "MarigoldNormalsPipeline": "it gives surface normals, not depth",
    "MarigoldIntrinsicsPipeline": "it gives albedo and shading, not depth",
    "DepthNormalEstimationPipeline": "a GeoWizard network sees the image through a CLIP encoder as well and computes "
    "depth and normals in one batch that shares its attention; it is no Marigold network",
}
# What a Marigold folder without our own file is run at: 768 on the long side of a 4:3 image.
FOREIGN_SIZE = (768, 576)


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    space: relative depth is affine in 'depth' (z), 'inverse_depth' (-1/z) or 'log_depth' (ln z).
    width, height: working size in pixels; multiple: sizes must be multiples of this many pixels.
    prediction_type: 'depth' or 'disparity', as diffusers names it; flip: the decoded map is largest for near things.
    x0_scale, timestep: the constants of the single step (see `single_step`).
    onnx: the exported network at the working size, if the folder has one.
    digest: hex sha256 over everything the network's answer depends on, for cache keys.
    """

    name: str
    folder: Path
    space: str
    width: int
    height: int
    multiple: int
    prediction_type: str
    flip: bool
    x0_scale: float
    timestep: int
    steps: int
    scale_invariant: bool
    shift_invariant: bool
    onnx: Path | None
    digest: str


def find_checkpoint(name: str, download: bool = False) -> Path:
    """The folder of checkpoint `name`: a bundled name, a path to a folder, or a hub id (OWNER/MODEL).

    Hub checkpoints are looked for in the local cache; `download` also fetches them.
    """
    if name in BUNDLED:
        return shared(f"checkpoints/{name}/model_index.json").parent
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if hub.is_hub_id(name):
        return hub.download(name) if download else hub.cached(name)
    allowed = ", ".join(map(repr, BUNDLED))
    raise Unusable(
        f"checkpoint {name!r}: no such folder; give {allowed} (bundled), a folder in diffusers' format, or a hub id "
        "such as 'GonzaloMG/marigold-e2e-ft-depth'"
    )


def describe(folder: Path) -> CheckpointInfo:
    """Read and check what `folder` says of itself.

    Raises `Unusable` for anything missing, damaged or not meant for a single step.
    """
    folder = Path(folder).resolve()
    index = _read_json(folder / "model_index.json")
    _check_kind(folder, index)
    own = _read_json(folder / OWN_FILE) if (folder / OWN_FILE).is_file() else {}
    x0_scale, timestep = single_step(_read_json(folder / "scheduler" / "scheduler_config.json"), folder)
    digest = _check_files(folder, own.get("manifest"))
    prediction_type = index.get("prediction_type") or "depth"
    if prediction_type not in ("depth", "disparity"):
        raise Unusable(
            f"checkpoint {folder}: prediction_type={prediction_type!r} in model_index.json: only 'depth' and "
            "'disparity' checkpoints give depth"
        )
    space = own.get("space", "inverse_depth" if prediction_type == "disparity" else "depth")
    if space not in SPACES:
        raise Unusable(
            f"checkpoint {folder}: space={space!r} in {OWN_FILE}: must be one of {', '.join(map(repr, SPACES))}"
        )
    multiple = _multiple(folder)
    width, height = (
        _size(folder, own, key, default) for key, default in zip(("width", "height"), FOREIGN_SIZE, strict=True)
    )
    if width % multiple or height % multiple:
        raise Unusable(
            f"checkpoint {folder}: working size {width}x{height} in {OWN_FILE}: must be multiples of {multiple}"
        )
    return CheckpointInfo(
        name=str(own.get("name", hub.name_of(folder))),
        folder=folder,
        space=space,
        width=width,
        height=height,
        multiple=multiple,
        prediction_type=prediction_type,
        flip=prediction_type == "disparity",
        x0_scale=x0_scale,
        timestep=timestep,
        steps=int(index.get("default_denoising_steps") or 1),
        scale_invariant=bool(index.get("scale_invariant", True)),
        shift_invariant=bool(index.get("shift_invariant", True)),
        onnx=folder / ONNX_FILE if (folder / ONNX_FILE).is_file() else None,
        digest=digest,
    )


def _check_kind(folder: Path, index: dict[str, Any]) -> None:
    """Refuse what is no depth network of this family, with the reason."""
    kind = index.get("_class_name")
    if kind in DEPTH_PIPELINES:
        return
    why = OTHER_PIPELINES.get(kind, f"only {' and '.join(DEPTH_PIPELINES)} are known")
    raise Unusable(f"checkpoint {folder}: _class_name={kind!r} in model_index.json: {why}")


def single_step(scheduler: dict[str, Any], folder: Path) -> tuple[float, int]:
    """(x0_scale, timestep) of one step from a zero target latent, by the scheduler's configuration.

    With z = 0 the denoised latent is a constant times the network's output: -sqrt(1 - abar) for v-prediction.
    Schedules with which one step is meaningless or which were trained on noise, not on zeros, are refused.
    """

    def refuse(field: str, why: str) -> Unusable:
        value = scheduler.get(field)
        return Unusable(
            f"checkpoint {folder}: {field}={value!r} in scheduler/scheduler_config.json: {why}; "
            "use an end-to-end fine-tuned (single-step) checkpoint"
        )

    if scheduler.get("_class_name") not in ("DDIMScheduler", "DDPMScheduler"):
        raise refuse("_class_name", "only DDIMScheduler and DDPMScheduler describe a single step from zeros")
    if scheduler.get("timestep_spacing") != "trailing":
        raise refuse("timestep_spacing", "one step must start at the last timestep, which only 'trailing' does")
    if scheduler.get("rescale_betas_zero_snr"):
        raise refuse("rescale_betas_zero_snr", "a zero-SNR schedule belongs to a network that starts from noise")
    if scheduler.get("beta_schedule") != "scaled_linear":
        raise refuse("beta_schedule", "only 'scaled_linear' is known")
    steps = int(scheduler.get("num_train_timesteps", 1000))
    low, high = math.sqrt(scheduler["beta_start"]), math.sqrt(scheduler["beta_end"])
    abar = math.prod(1.0 - (low + (high - low) * i / (steps - 1)) ** 2 for i in range(steps))
    scales = {
        "v_prediction": -math.sqrt(1.0 - abar),
        "epsilon": -math.sqrt(1.0 - abar) / math.sqrt(abar),
        "sample": 1.0,
    }
    if scheduler.get("prediction_type") not in scales:
        raise refuse("prediction_type", f"must be one of {', '.join(scales)}")
    return scales[scheduler["prediction_type"]], steps - 1


def load_network(info: CheckpointInfo, device: str = "cpu", dtype: torch.dtype | None = None) -> SingleStepDepth:
    """The checkpoint's modules as one network on `device`, in evaluation mode, by default in float32."""
    torch, diffusers = _import_torch()
    from marigold_ros.network import SingleStepDepth

    dtype = torch.float32 if dtype is None else dtype
    modules = {}
    for name, kind in (("vae", diffusers.AutoencoderKL), ("unet", diffusers.UNet2DConditionModel)):
        weights = _weights(info.folder, name)
        variant = "fp16" if ".fp16." in weights.name else None
        try:
            modules[name] = kind.from_pretrained(
                info.folder / name,
                torch_dtype=dtype,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
            )
        except Exception as error:  # diffusers and safetensors raise many kinds for one damaged file
            raise Unusable(
                f"checkpoint file {weights}: cannot be loaded ({error}); copy the checkpoint again"
            ) from error
    network = SingleStepDepth(
        modules["vae"], modules["unet"], _prompt(info), info.x0_scale, info.timestep, flip=info.flip
    )
    return network.to(device=device, dtype=dtype).eval()


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


def _prompt(info: CheckpointInfo) -> torch.Tensor:
    """(1, tokens, width) embedding of the empty prompt, from its file or from the folder's text encoder."""
    from safetensors.torch import load_file

    stored = info.folder / PROMPT_FILE
    if stored.is_file():
        try:
            return load_file(stored)[PROMPT_KEY].float()
        except Exception as error:
            raise Unusable(f"checkpoint file {stored}: cannot be read ({error}); copy the checkpoint again") from error
    return _encode_empty_prompt(info.folder)


def _encode_empty_prompt(folder: Path) -> torch.Tensor:
    import torch

    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise Unusable(
            f"checkpoint {folder}: has no {PROMPT_FILE}, and computing it needs transformers (pip install transformers)"
        ) from error
    tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)(
        "", padding="do_not_pad", return_tensors="pt"
    ).input_ids
    weights = folder / "text_encoder"
    variant = "fp16" if any(weights.glob("*.fp16.safetensors")) else None
    encoder = CLIPTextModel.from_pretrained(weights, local_files_only=True, variant=variant).float()
    with torch.inference_mode():
        return encoder(tokens)[0].clone()


def seal(folder: Path) -> None:
    """Write the manifest of `folder` (size and sha256 of its files) into its own file; the last step of packaging."""
    folder = Path(folder)
    own = _read_json(folder / OWN_FILE)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors", ".onnx"))
    own["manifest"] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in files
        if path.name != OWN_FILE
    }
    beside = folder / f"{OWN_FILE}.part"
    beside.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
    beside.replace(folder / OWN_FILE)


def _check_files(folder: Path, manifest: dict[str, dict[str, Any]] | None) -> str:
    """Check that the files are there and whole; returns a digest over those that decide the network's answer."""
    needed = [folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"]
    for name in MODULES:
        needed += [folder / name / "config.json", _weights(folder, name)]
    if (folder / PROMPT_FILE).is_file():
        needed.append(folder / PROMPT_FILE)
    elif manifest is not None or not (folder / "text_encoder").is_dir():
        raise Unusable(f"checkpoint file {folder / PROMPT_FILE}: is missing; copy the checkpoint again")
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


def _multiple(folder: Path) -> int:
    """Pixels: the VAE's reduction times that of the U-Net's down-sampling levels."""
    levels = 0
    for name in MODULES:
        config = _read_json(folder / name / "config.json")
        channels = config.get("block_out_channels")
        if not isinstance(channels, list) or not channels:
            raise Unusable(
                f"checkpoint file {folder / name / 'config.json'}: block_out_channels={channels!r}: must be a list"
            )
        levels += len(channels) - 1
    return 2**levels


def _size(folder: Path, own: dict[str, Any], key: str, default: int) -> int:
    value = own.get(key, default)
    if type(value) is not int or value <= 0:
        raise Unusable(f"checkpoint {folder}: {key}={value!r} in {OWN_FILE}: must be a positive whole number")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unusable(f"checkpoint file {path}: is missing; copy the checkpoint again") from None
    except (OSError, ValueError) as error:
        raise Unusable(f"checkpoint file {path}: cannot be read ({error}); copy the checkpoint again") from error
    if not isinstance(value, dict):
        raise Unusable(f"checkpoint file {path}: must hold a JSON object; copy the checkpoint again")
    return value


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
