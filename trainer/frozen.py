"""The halves of a VAE that do not learn: the same function, for less time and memory.

Nothing of them needs a gradient but, of the decoder, the latent that goes in. So an activation is kept only where the
next one cannot be had from it again, up-sampling and the convolution after it become one (`marigold_ros.folds`), and
maps lie channels last, as the libraries' convolutions want them: they would turn every map around and back again.
"""

from __future__ import annotations

import copy

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from marigold_ros.folds import UpsamplingConvolution, children, fold_head, fold_quant_conv, fold_upsampling
from marigold_ros.network import SingleStepNetwork

_aten = torch.ops.aten


class FrozenPart(nn.Module):
    """Modules one after the other, in the type of their weights whatever the precision around them.

    (N, C, H, W) of any type to the last module's answer in theirs.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.modules_in_order = nn.Sequential(*modules)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move to `device` and `dtype`; the blocks below compute the statistics of their normalisations in float32."""
        self.to(device, dtype)
        for block in self.modules():
            for norm in block.norms if isinstance(block, (FrozenResidualBlock, FrozenOutput)) else ():
                norm.to(torch.promote_types(dtype, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        dtype = next(self.parameters()).dtype
        with torch.autocast(x.device.type, enabled=False):
            return self.modules_in_order(x.to(dtype, memory_format=torch.channels_last))


def frozen_encoder(vae: AutoencoderKL) -> FrozenPart:
    """A copy of the encoder: (N, 3, H, W) in [-1, 1] to the latent's mean (N, C, H / 8, W / 8), without its scale."""
    vae = copy.deepcopy(vae)
    with torch.no_grad():
        fold_quant_conv(vae)
    _lean(vae.encoder)
    return FrozenPart(vae.encoder)


def frozen_decoder(network: SingleStepNetwork) -> FrozenPart:
    """A copy of the decoder with its head: latents without their scale to what `SingleStepNetwork.decode` gives."""
    vae = copy.deepcopy(network.vae)
    copied = SingleStepNetwork(vae, network.unet, network.prompt, network.x0_scale, network.head)
    with torch.no_grad():
        fold_head(copied)
        fold_upsampling(vae.decoder)
    _lean(vae.decoder)
    return FrozenPart(*(part for part in (vae.post_quant_conv, vae.decoder) if part is not None))


def _lean(part: nn.Module) -> None:
    """Put the blocks below in the place of diffusers' in an encoder or a decoder; those of other kinds stay."""
    for parent, name, block in children(part, ResnetBlock2D):
        if _is_plain(block):
            setattr(parent, name, FrozenResidualBlock(block))
    for parent, name, block in children(part, UpsamplingConvolution):
        setattr(parent, name, FrozenUpsampling(block.conv))
    if _is_norm_and_silu(part.conv_norm_out, part.conv_act):
        part.conv_out = FrozenOutput(part.conv_norm_out, part.conv_out)
        part.conv_norm_out, part.conv_act = nn.Identity(), nn.Identity()


def _is_plain(block: ResnetBlock2D) -> bool:
    return (
        block.time_emb_proj is None
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1.0
        and all(_is_norm_and_silu(norm, block.nonlinearity) for norm in (block.norm1, block.norm2))
    )


def _is_norm_and_silu(norm: nn.Module, activation: nn.Module) -> bool:
    return isinstance(norm, nn.GroupNorm) and norm.affine and isinstance(activation, nn.SiLU)


class FrozenResidualBlock(nn.Module):
    """diffusers' ResnetBlock2D without time embedding; keeps two maps for the way back instead of six."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.norm1, self.conv1 = block.norm1, block.conv1
        self.norm2, self.conv2 = block.norm2, block.conv2
        self.conv_shortcut = block.conv_shortcut

    @property
    def norms(self) -> tuple[nn.GroupNorm, ...]:
        """Its normalisations."""
        return self.norm1, self.norm2

    def forward(self, x: Tensor, temb: None = None) -> Tensor:
        """(N, C, h, w) to (N, C', h, w)."""
        return _Residual.apply(x, self)


class FrozenOutput(nn.Module):
    """Normalisation, SiLU and the last convolution."""

    def __init__(self, norm: nn.GroupNorm, conv: nn.Conv2d) -> None:
        super().__init__()
        self.norm, self.conv = norm, conv

    @property
    def norms(self) -> tuple[nn.GroupNorm, ...]:
        """Its normalisation."""
        return (self.norm,)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C', h, w)."""
        return _Output.apply(x, self)


class FrozenUpsampling(nn.Module):
    """`folds.UpsamplingConvolution` that keeps nothing for the way back."""

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, output_size: None = None) -> Tensor:
        """(N, C, h, w) to (N, C', 2 h, 2 w)."""
        return _Upsampling.apply(x, self.conv)


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, block: FrozenResidualBlock) -> Tensor:
        activated, *first = _norm_silu(x, block.norm1)
        middle = _convolved(activated, block.conv1)
        activated, *second = _norm_silu(middle, block.norm2)
        ctx.block = block
        ctx.save_for_backward(x, middle, *first, *second)
        shortcut = x if block.conv_shortcut is None else _convolved(x, block.conv_shortcut)
        return _convolved(activated, block.conv2).add_(shortcut)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        block = ctx.block
        x, middle, mean1, rstd1, mean2, rstd2 = ctx.saved_tensors
        inner = _convolved_back(gradient, middle, block.conv2)
        inner = _norm_silu_back(inner, middle, mean2, rstd2, block.norm2)
        inner = _convolved_back(inner, x, block.conv1)
        inner = _norm_silu_back(inner, x, mean1, rstd1, block.norm1)
        around = gradient if block.conv_shortcut is None else _convolved_back(gradient, x, block.conv_shortcut)
        return inner.add_(around), None


class _Output(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, output: FrozenOutput) -> Tensor:
        activated, mean, rstd = _norm_silu(x, output.norm)
        ctx.output = output
        ctx.save_for_backward(x, mean, rstd)
        return _convolved(activated, output.conv)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        x, mean, rstd = ctx.saved_tensors
        inner = _convolved_back(gradient, x, ctx.output.conv)
        return _norm_silu_back(inner, x, mean, rstd, ctx.output.norm), None


class _Upsampling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
        ctx.conv = conv
        return functional.conv_transpose2d(x, conv.weight, conv.bias, conv.stride, conv.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        conv = ctx.conv
        return functional.conv2d(gradient, conv.weight, None, conv.stride, conv.padding), None


def _convolved(x: Tensor, conv: nn.Conv2d) -> Tensor:
    if conv.kernel_size == (1, 1):
        # Channels last, that is a product of matrices, which on one thread torch's convolution makes a detour to.
        return functional.linear(x.permute(0, 2, 3, 1), conv.weight[:, :, 0, 0], conv.bias).permute(0, 3, 1, 2)
    return functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)


def _convolved_back(gradient: Tensor, like: Tensor, conv: nn.Conv2d) -> Tensor:
    """The gradient of what went into `conv`, of which `like` has the size and type."""
    if conv.kernel_size == (1, 1):
        return (gradient.permute(0, 2, 3, 1) @ conv.weight[:, :, 0, 0]).permute(0, 3, 1, 2)
    only_input = (True, False, False)
    return _aten.convolution_backward(
        gradient, like, conv.weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0), 1, only_input
    )[0]


def _norm_silu(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor, Tensor]:
    """(SiLU of the normalised map, mean and 1 / deviation (N, groups))."""
    if not x.is_cpu:
        return _norm_silu_in_layout(x, norm)
    images, channels, height, width = x.shape
    normalised, mean, rstd = _aten.native_group_norm(
        x, norm.weight, norm.bias, images, channels, height * width, norm.num_groups, norm.eps
    )
    return functional.silu(normalised, inplace=True), mean, rstd


def _norm_silu_in_layout(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor, Tensor]:
    """The same where torch's operator refuses maps that lie channels last, as it does on GPUs."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(precise.unflatten(1, (norm.num_groups, -1)), dim=(2, 3, 4), correction=0)
    rstd = torch.rsqrt(variance + norm.eps)
    factor, offset = _factor_offset(norm, mean, rstd)
    return functional.silu(torch.addcmul(offset, precise, factor), inplace=True).to(x.dtype), mean, rstd


def _factor_offset(norm: nn.GroupNorm, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, 1, 1) each: the normalisation as factor * x + offset."""
    each = norm.num_channels // norm.num_groups
    factor = rstd.repeat_interleave(each, dim=1) * norm.weight.to(rstd)
    offset = norm.bias.to(rstd) - factor * mean.repeat_interleave(each, dim=1)
    return factor[..., None, None], offset[..., None, None]


def _norm_silu_back(gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, norm: nn.GroupNorm) -> Tensor:
    """The gradient of `x` (N, C, h, w) from that of `_norm_silu`.

    With y = (x - mean) / deviation, z = w y + b, SiLU's gradient d of z, and over the n numbers of a group the sums
    S = sum w d and T = sum w d y, it is (w d - (S + T y) / n) / deviation.
    torch's own backward pass is several times slower on maps that lie channels last, and needs z to be kept. All is
    computed in the type of the statistics: where the mean is large, what it cancels in half precision is gone.
    """
    images, channels, height, width = x.shape
    size = channels // norm.num_groups
    weight, given = norm.weight.to(rstd), x.dtype
    x = x.to(rstd.dtype)

    def each(values: Tensor) -> Tensor:
        return values.repeat_interleave(size, dim=1).view(images, channels, 1, 1)

    def summed(values: Tensor) -> Tensor:
        return (values.sum(dim=(2, 3)) * weight).view(images, -1, size).sum(dim=2)

    factor, offset = _factor_offset(norm, mean, rstd)
    scaled = torch.addcmul(offset, x, factor)
    inner = _aten.silu_backward.grad_input(gradient.to(rstd.dtype), scaled, grad_input=scaled)
    count = size * height * width
    plain = summed(inner)
    along = (summed(inner * x) - mean * plain) * rstd
    slope = -rstd.square() * along / count
    constant = -rstd * plain / count - slope * mean
    return torch.addcmul(each(constant), x, each(slope)).addcmul_(inner, factor).to(given)
