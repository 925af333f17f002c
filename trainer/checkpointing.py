"""Gradient checkpointing of a U-Net that computes its attention once.

Checkpointing forgets what a block computed and computes it again on the way back. Attention is what takes longest to
compute and least to keep: its scores are not kept anyway, and the rest is one map and one number for each pixel.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_aten = torch.ops.aten
# All that scaled_dot_product_attention may become, by device and type.
_KEPT = (
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
)


def enable_checkpointing(unet: UNet2DConditionModel) -> None:
    """Let `unet` keep the input of each block and the results of attention only."""
    unet.enable_gradient_checkpointing(_checkpointed)


def _checkpointed(module: nn.Module, *inputs: Any) -> Any:
    return checkpoint(
        module.__call__,
        *inputs,
        use_reentrant=False,
        context_fn=partial(create_selective_checkpoint_contexts, _policy),
        # There is no dropout.
        preserve_rng_state=False,
    )


def _policy(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
