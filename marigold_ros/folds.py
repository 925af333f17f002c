"""The single-step network for inference: everything that is constant in one step, worked into the weights.

Timestep, prompt and target latent never change, and neither do the scalings between the parts. Each fold is exact up to
rounding (reference/tensorrt.md (b)4; tests hold each to 1e-9 in float64), and the sums are made in float64.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from marigold_ros.config import Unusable
from marigold_ros.network import SingleStepNetwork, answer, normalised


class FoldedNetwork(nn.Module):
    """RGB bytes to relative depth or normals, as `SingleStepNetwork`, in three parts that hand unscaled latents on.

    prompt: (1, tokens, width), or None where the U-Net no longer looks at it.
    """

    def __init__(self, encoder: nn.Module, unet: nn.Module, prompt: Tensor | None, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.unet = unet
        self.decoder = decoder
        self.register_buffer("prompt", prompt)
        # The U-Net wants one, whatever it is: nothing depends on it any more.
        self.register_buffer("timestep", torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """(N, H, W, 3) uint8, H and W multiples of 32, to what `network.answer` gives."""
        return answer(self.decode(self.predict(self.encode(normalised(rgb, self.unet.dtype)))))

    def encode(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to the RGB latent (N, C, H / 8, W / 8)."""
        return self.encoder(image)

    def predict(self, rgb_latent: Tensor) -> Tensor:
        """RGB latent to the denoised target latent."""
        prompt = self.prompt
        if prompt is not None:
            prompt = prompt.expand(rgb_latent.shape[0], -1, -1)
        return self.unet(rgb_latent, self.timestep, prompt, return_dict=False)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Target latent to (N, 1 or 3, H, W): depth that increases with distance, or normals; not clamped."""
        return self.decoder(latent)


@torch.no_grad()
def folded(network: SingleStepNetwork, transposed_upsampling: bool = True) -> FoldedNetwork:
    """`network` for inference only. It is used up: a copy of a large one would cost gigabytes.

    Without `transposed_upsampling` pixels are doubled and then convolved, as in diffusers: more products, but no
    transposed convolutions.
    """
    network.eval().requires_grad_(False)
    fold_scales(network)
    fold_quant_conv(network.vae)
    fold_head(network)
    fold_zero_target(network)
    fold_timestep(network)
    prompt = fold_prompt(network)
    if transposed_upsampling:
        fold_upsampling(network)
    encoder, decoder = network.vae.encoder, nn.Sequential(network.vae.post_quant_conv, network.vae.decoder)
    if network.tiny is not None:
        encoder = network.tiny.encoder if network.tiny_encodes else encoder
        decoder = network.tiny.decoder
    return FoldedNetwork(encoder, network.unet, prompt, decoder)


def fold_scales(network: SingleStepNetwork) -> None:
    """x0_scale into the U-Net's last convolution, the latent's scale into the 1x1 convolutions around it."""
    quant, post, last = network.vae.quant_conv, network.vae.post_quant_conv, network.unet.conv_out
    if quant is None or post is None:
        raise Unusable("this VAE has no quant_conv: its latent's scale cannot be folded")
    _set(quant, quant.weight.double() * network.latent_scale, quant.bias.double() * network.latent_scale)
    _set(post, post.weight.double() / network.latent_scale, post.bias)
    _set(last, last.weight.double() * network.x0_scale, last.bias.double() * network.x0_scale)
    network.latent_scale = network.x0_scale = 1.0


def fold_quant_conv(vae: AutoencoderKL) -> None:
    """The encoder's last convolution and the 1x1 one after it, if any, become one, of the latent's mean only."""
    last, quant = vae.encoder.conv_out, vae.quant_conv
    channels = vae.config.latent_channels
    weight, bias = last.weight[:channels].double(), last.bias[:channels].double()
    if quant is not None:
        mean = quant.weight[:channels, :, 0, 0].double()
        weight = torch.einsum("om,mihw->oihw", mean, last.weight.double())
        bias = mean @ last.bias.double() + quant.bias[:channels].double()
    vae.encoder.conv_out = _convolution(last, weight, bias)
    vae.quant_conv = nn.Identity()


def fold_head(network: SingleStepNetwork) -> None:
    """What becomes of the decoder's three channels becomes its last convolution: of depth, only one is left."""
    head, tiny = network.head.double(), network.tiny
    last = network.vae.decoder.conv_out if tiny is None else tiny.decoder.layers[-1]
    weight = torch.einsum("om,mihw->oihw", head, last.weight.double())
    bias = head @ last.bias.double()
    if tiny is None:
        network.vae.decoder.conv_out = _convolution(last, weight, bias)
    else:
        # It ends with 2 x - 1, of which the head would take its part of the 1.
        tiny.decoder.layers[-1] = _convolution(last, weight, bias + (1.0 - head.sum(1)) / 2.0)
    network.head = torch.eye(head.shape[0]).to(network.head)


def fold_zero_target(network: SingleStepNetwork) -> None:
    """The zero target latent adds nothing to the U-Net's first convolution."""
    first = network.unet.conv_in
    network.unet.conv_in = _convolution(first, first.weight[:, : network.vae.config.latent_channels], first.bias)


def fold_timestep(network: SingleStepNetwork) -> None:
    """The embedding of the one timestep becomes part of the biases of the residual blocks."""
    unet = network.unet
    embedding = copy.deepcopy(unet.time_embedding).double()(unet.time_proj(network.timestep).double())
    for parent, name, block in children(unet, ResnetBlock2D):
        if block.time_embedding_norm != "default" or block.skip_time_act or block.time_emb_proj is None:
            raise Unusable(f"U-Net part {name!r}: a residual block of this kind cannot be folded")
        step = block.time_emb_proj.double()(block.nonlinearity(embedding))[0]
        _set(block.conv1, block.conv1.weight, block.conv1.bias.double() + step)
        setattr(parent, name, TimelessResidualBlock(block))
    unet.time_embedding = _Nothing()


def fold_prompt(network: SingleStepNetwork) -> Tensor | None:
    """Attention to the two constant tokens of the empty prompt becomes gates; returns the prompt if it is still needed.

    Longer prompts are left as they are.
    """
    if network.prompt.shape[1] != 2:
        return network.prompt
    for _, _, block in children(network.unet, BasicTransformerBlock):
        block.attn2 = PromptGates(block.attn2, network.prompt[0])
    return None


def fold_upsampling(part: nn.Module) -> None:
    """Doubling the pixels and then convolving becomes one transposed convolution, with 16 instead of 36 products."""
    for parent, name, block in children(part, Upsample2D):
        setattr(parent, name, UpsamplingConvolution(block))


class UpsamplingConvolution(nn.Module):
    """diffusers' Upsample2D: nearest neighbour, then a 3x3 convolution; together a 4x4 one of stride 2, transposed."""

    def __init__(self, block: Upsample2D) -> None:
        super().__init__()
        conv = block.conv if block.use_conv and block.interpolate and block.norm is None else None
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (3, 3) or conv.stride != (1, 1):
            raise Unusable("an up-sampling block of this kind cannot be folded")
        weight = conv.weight.double().transpose(0, 1)
        kernel = weight.new_zeros(*weight.shape[:2], 4, 4)
        # Output row 2 i + a, a in (0, 1), of the doubled image is row i; the convolution's tap dy takes it to output
        # row 2 i + a + 1 - dy, and tap t of the transposed convolution takes row i to 2 i + t - 1.
        for a in range(2):
            for b in range(2):
                kernel += nn.functional.pad(weight.flip(2, 3), (b, 1 - b, a, 1 - a))
        self.conv = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1).to(conv.weight)
        self.conv.requires_grad_(False)
        _set(self.conv, kernel, conv.bias)
        self.unfolded = block

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """(N, C, h, w) to (N, C', 2 h, 2 w), or to another size: of maps that had an odd number of pixels before."""
        if output_size is not None and tuple(output_size) != (2 * x.shape[2], 2 * x.shape[3]):
            return self.unfolded(x, output_size)
        return self.conv(x)


class TimelessResidualBlock(nn.Module):
    """diffusers' ResnetBlock2D whose time embedding is part of conv1's bias."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        if block.upsample is not None or block.downsample is not None or block.output_scale_factor != 1.0:
            raise Unusable("U-Net: a residual block that resamples or rescales cannot be folded")
        self.norm1, self.conv1 = block.norm1, block.conv1
        self.norm2, self.conv2 = block.norm2, block.conv2
        self.nonlinearity = block.nonlinearity
        self.conv_shortcut = block.conv_shortcut or nn.Identity()

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """(N, C, h, w) to (N, C', h, w)."""
        h = self.conv1(self.nonlinearity(self.norm1(x)))
        h = self.conv2(self.nonlinearity(self.norm2(h)))
        return self.conv_shortcut(x) + h


class PromptGates(nn.Module):
    """Cross-attention to two constant tokens (2, width): softmax over two scores is the sigmoid of their difference."""

    def __init__(self, attention: Attention, tokens: Tensor) -> None:
        super().__init__()
        if attention.norm_q is not None or attention.norm_k is not None or attention.norm_cross is not None:
            raise Unusable("U-Net: cross-attention that normalises its queries or keys cannot be folded")
        if attention.residual_connection or attention.rescale_output_factor != 1.0:
            raise Unusable("U-Net: cross-attention with a residual connection of its own cannot be folded")
        if any(part.bias is not None for part in (attention.to_q, attention.to_k, attention.to_v)):
            raise Unusable("U-Net: cross-attention with biases on queries, keys or values cannot be folded")
        heads, query, out = attention.heads, attention.to_q, attention.to_out[0]
        key, value = (part.weight.double() @ tokens.double().T for part in (attention.to_k, attention.to_v))
        key_step = (key[:, 1] - key[:, 0]).view(heads, -1) * attention.scale
        value_step = (value[:, 1] - value[:, 0]).view(heads, -1)
        per_head = query.weight.double().view(heads, -1, query.in_features)
        self.gates = nn.Linear(query.in_features, heads, bias=False).to(query.weight)
        self.gates.weight.copy_(torch.einsum("hd,hdc->hc", key_step, per_head))
        per_head = out.weight.double().view(out.out_features, heads, -1)
        self.out = nn.Linear(heads, out.out_features).to(query.weight)
        self.out.weight.copy_(torch.einsum("chd,hd->ch", per_head, value_step))
        self.out.bias.copy_(out.weight.double() @ value[:, 0] + out.bias.double())
        self.requires_grad_(False)

    def forward(self, hidden_states: Tensor, **unused: Any) -> Tensor:
        """(N, pixels, C) to (N, pixels, C)."""
        return self.out(torch.sigmoid(self.gates(hidden_states)))


def children(module: nn.Module, kind: type) -> list[tuple[nn.Module, str, Any]]:
    """(parent, name, child) of every part of `module` of a kind."""
    return [
        (parent, name, child)
        for parent in list(module.modules())
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]


class _Nothing(nn.Module):
    def forward(self, *unused: Any) -> None:
        return None


def _set(conv: nn.Module, weight: Tensor, bias: Tensor) -> None:
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)


def _convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """`like` with other weights; they say how many channels go in and out."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], like.kernel_size, like.stride, like.padding).to(like.weight)
    conv.requires_grad_(False)
    _set(conv, weight, bias)
    return conv
