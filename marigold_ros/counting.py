"""The operators of a single-step network, counted on torch's meta device.

There the network runs in shapes alone: 866 million parameters need neither memory nor files of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from marigold_ros import sd2
from marigold_ros.checkpoints import (
    PROMPT_FILE,
    PROMPT_KEY,
    CheckpointInfo,
    describe,
    find_checkpoint,
    require_single_step,
    with_tiny_vae,
)
from marigold_ros.config import SIZE_STEP_PX, Unusable
from marigold_ros.family import NORMALS
from marigold_ros.folds import folded
from marigold_ros.network import SingleStepNetwork, depth_head, normals_head
from marigold_ros.roofline import KINDS, NORM, PARTS, Counts, Operator

_SD2 = "sd2"


@dataclass(frozen=True)
class Subject:
    """What is counted: its name, its working size in pixels, and a function that makes it anew, on the meta device."""

    name: str
    width: int
    height: int
    make: Callable[[], SingleStepNetwork]

    def counts(self, fold: bool = True) -> Counts:
        """See `count`."""
        return count(self.make(), self.width, self.height, fold)


def subject(checkpoint: str, size: tuple[int, int] | None, vae: str, tiny_vae: str) -> Subject:
    """The checkpoint at `size`, or its own; 'sd2' needs no files. Raises `Unusable` for what is not there or no fit."""
    if checkpoint == _SD2:
        found = Subject(_SD2, sd2.WIDTH, sd2.HEIGHT, lambda: sd2_network(vae))
    else:
        info = with_tiny_vae(describe(find_checkpoint(checkpoint)), vae, tiny_vae)
        found = Subject(info.name, info.width, info.height, lambda: meta_network(info))
    width, height = size or (found.width, found.height)
    if width % SIZE_STEP_PX or height % SIZE_STEP_PX:
        raise Unusable(f"size {width}x{height}: must be multiples of {SIZE_STEP_PX} pixels")
    return replace(found, width=width, height=height)


def count(network: SingleStepNetwork, width: int, height: int, fold: bool = True) -> Counts:
    """The operators of each of `PARTS` at a working size in pixels; `network`, on the meta device, is used up."""
    with torch.device("meta"), torch.inference_mode():
        parts = folded(network) if fold else network
        counts, data = {}, torch.empty(1, 3, height, width)
        for name, part in zip(PARTS, (parts.encode, parts.predict, parts.decode), strict=True):
            with Counter() as counter:
                data = part(data)
            counts[name] = counter.operators
    return counts


def sd2_network(vae: str = "full", tokens: int = sd2.PROMPT_TOKENS) -> SingleStepNetwork:
    """Stable Diffusion 2's single-step network on the meta device; vae: as `model.vae`, with TAESD as the tiny one."""
    unet, own = sd2.modules()
    return _assembled(unet, own, tokens, depth_head(False), None if vae == "full" else sd2.tiny_vae(), vae == "tiny")


def meta_network(info: CheckpointInfo) -> SingleStepNetwork:
    """The checkpoint's single-step network on the meta device, from its configuration files.

    Raises `Unusable` where it is no single-step one or a configuration is unusable.
    """
    require_single_step(info, info.kind.task)
    unet = _from_config(UNet2DConditionModel, info.folder / "unet")
    vae = _from_config(AutoencoderKL, info.folder / "vae")
    head = normals_head(info.kind.x_left) if info.kind.task == NORMALS else depth_head(info.disparity)
    if info.tiny is None:
        return _assembled(unet, vae, _tokens(info), head)
    tiny = _from_config(AutoencoderTiny, info.tiny.folder)
    return _assembled(unet, vae, _tokens(info), head, tiny, info.tiny.encodes)


def _from_config(kind: Any, folder: Any) -> Any:
    try:
        with torch.device("meta"):
            return kind.from_config(kind.load_config(folder))
    except Exception as error:  # diffusers raises many kinds for one unusable file
        raise Unusable(f"{folder / 'config.json'}: cannot be used ({error}); copy the checkpoint again") from error


def _assembled(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    tokens: int,
    head: Tensor,
    tiny: AutoencoderTiny | None = None,
    encodes: bool = False,
) -> SingleStepNetwork:
    with torch.device("meta"):
        prompt = torch.empty(1, tokens, unet.config.cross_attention_dim)
        # A number like any other: it does not change what is counted.
        x0_scale = -1.0
        return SingleStepNetwork(vae, unet, prompt, x0_scale, head, tiny=tiny, tiny_encodes=encodes).to("meta").eval()


def _tokens(info: CheckpointInfo) -> int:
    """Length of the empty prompt; without a stored one, it is Marigold's."""
    stored = info.folder / PROMPT_FILE
    if not stored.is_file():
        return sd2.PROMPT_TOKENS
    with safe_open(stored, "pt") as tensors:
        return tensors.get_slice(PROMPT_KEY).get_shape()[1]


class Counter(TorchDispatchMode):
    """Collects, while it is active under `torch.inference_mode`, the operators that do or move much."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []

    def __torch_dispatch__(self, call: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        """Run the call as it is, and count it."""
        result = call(*args, **(kwargs or {}))
        name = call.overloadpacket.__name__
        if name in _COUNTED:
            kind, work = _COUNTED[name]
            self.operators.append(Operator(kind, *work(args, result[0] if isinstance(result, tuple) else result)))
        return result


def _convolution(args: tuple, out: Tensor) -> tuple[int, int]:
    """(N, C, h, w) with weights (C', C, kh, kw): each output is a sum over C, kh and kw."""
    image, weight = args[:2]
    return _product(out.numel() * prod(weight.shape[1:]), image, weight, out)


def _transposed(args: tuple, out: Tensor) -> tuple[int, int]:
    """(N, C, h, w) with weights (C, C', kh, kw): each input goes into C', kh and kw sums."""
    image, weight = args[:2]
    return _product(image.numel() * prod(weight.shape[1:]), image, weight, out)


def _linear(args: tuple, out: Tensor) -> tuple[int, int]:
    """(..., C) with weights (C', C), or a product of matrices."""
    values, weight = args[:2]
    return _product(out.numel() * values.shape[-1], values, weight, out)


def _attention(args: tuple, out: Tensor) -> tuple[int, int]:
    """(..., pixels, channels) queries; keys and values of another length."""
    query, key, value = args[:3]
    products = out[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    return _product(products, query, key, value, out)


def _norm(args: tuple, out: Tensor) -> tuple[int, int]:
    return 0, args[0].numel()


def _product(multiply_adds: int, *moved: Tensor) -> tuple[int, int]:
    """FLOP, and the numbers moved."""
    return 2 * multiply_adds, sum(tensor.numel() for tensor in moved)


# By torch's names; in inference mode it takes none of these apart.
_COUNTED: Mapping[str, tuple[str, Callable[[tuple, Tensor], tuple[int, int]]]] = {
    "conv2d": (KINDS[0], _convolution),
    "conv_transpose2d": (KINDS[0], _transposed),
    "linear": (KINDS[1], _linear),
    "bmm": (KINDS[1], _linear),
    "scaled_dot_product_attention": (KINDS[2], _attention),
    "group_norm": (NORM, _norm),
    "layer_norm": (NORM, _norm),
}
