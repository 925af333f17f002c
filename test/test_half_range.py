"""What would leave float16's range is seen before it does; the bundled network stays far inside on real frames."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import nn

from marigold_ros import onnx_export
from marigold_ros.checkpoints import describe, find_checkpoint, load_network
from marigold_ros.folds import folded
from marigold_ros.half_range import LIMIT, Largest, watched
from marigold_ros.network import normalised
from marigold_ros.parts import PARTS, all_parts
from small_checkpoint import write_small_checkpoint

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def test_the_largest_output_and_its_module_are_found():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.SiLU(), nn.Conv2d(1, 1, 1, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(-30_000.0)
        network[2].weight.fill_(1.0)
    with watched(network) as largest, torch.no_grad():
        network(torch.ones(1, 1, 2, 2))
    assert largest.value == 30_000.0
    assert largest.where == "0"
    assert not largest.fits
    assert not network[0]._forward_hooks


def test_scores_count_though_no_module_gives_them():
    torch.manual_seed(0)
    attention = Attention(32, heads=2, dim_head=16)
    with torch.no_grad():
        for part in (attention.to_q, attention.to_k):
            part.weight.mul_(300.0)
    x = torch.randn(1, 6, 32)
    with watched(attention) as largest, torch.no_grad():
        attention(x)
    with torch.no_grad():
        q, k = (part(x).view(6, 2, 16).transpose(0, 1) for part in (attention.to_q, attention.to_k))
        scores = float((q @ k.transpose(1, 2) * attention.scale).abs().max())
    assert largest.where == " (scores)"
    assert scores <= largest.value * (1 + 1e-6) < 3 * scores


@torch.no_grad()
def test_products_and_sums_between_modules_count_where_they_go_in():
    """Of a gated layer both factors are harmless; of a chain of residual blocks every summand is."""
    gated = FeedForward(4, activation_fn="geglu", mult=1)
    gated.net[0].proj.weight.fill_(100.0)
    with watched(gated) as largest:
        gated(torch.full((1, 1, 4), 8.0))
    assert largest.value > LIMIT
    assert largest.where == "net.2 (input)"

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(6))

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x)
            return x

    chain = Chain()
    for block in chain.blocks:
        block.weight.zero_()
        block.bias.fill_(18_000.0)
    with watched(chain) as largest:
        chain(torch.zeros(1, 1, 1, 1))
    assert not largest.fits


def test_nan_never_fits():
    largest = Largest()
    largest.see(float("nan"), "a")
    largest.see(1.0, "b")
    assert largest.where == "a"
    assert not largest.fits


def test_a_part_beyond_the_range_is_exported_in_float32_and_the_engine_still_answers(tmp_path, monkeypatch):
    from nvidia import stand_ins

    info = describe(write_small_checkpoint(tmp_path / "small"))
    load = onnx_export.load_network

    def loud(info):
        """The same function of the image, by way of huge numbers in the encoder."""
        network = load(info)
        with torch.no_grad():
            first, norm = network.vae.encoder.conv_in, network.vae.encoder.down_blocks[0].resnets[0]
            first.weight.mul_(1e5)
            first.bias.mul_(1e5)
            norm.conv2.weight.mul_(1e5)
            norm.conv2.bias.mul_(1e5)
        return network

    monkeypatch.setattr(onnx_export, "load_network", loud)
    parts = onnx_export.export_parts(info, 128, 96, tmp_path / "cache" / "parts" / "loud-v1")
    assert [parts.facts(part)["precision"] for part in ("encode", "step", "decode")] == [
        "float32",
        "float16",
        "float16",
    ]
    assert parts.facts("encode")["largest"] > LIMIT
    with stand_ins() as nvidia:
        engine, verdict = nvidia.ready.build_and_open(
            parts, tmp_path / "cache", nvidia.build.BuildSettings(), lambda part: lambda share, what: None
        )
        assert verdict.passed
        engine.close()


@pytest.mark.skipif(not DATA.is_dir(), reason="the real frames are not here")
def test_the_bundled_network_is_far_inside_on_real_frames():
    images = sorted(path for path in DATA.rglob("*") if path.suffix in (".png", ".jpg") and "depth" not in str(path))
    images = [image for path in images if (image := cv2.imread(str(path))) is not None and image.ndim == 3][:4]
    assert len(images) == 4
    network = folded(load_network(describe(find_checkpoint("nano"))))
    with watched(network.encoder) as encode, watched(network.unet) as step, watched(network.decoder) as decode:
        for image in images:
            rgb = torch.from_numpy(np.ascontiguousarray(cv2.resize(image, (384, 288))[None, ..., ::-1]))
            with torch.inference_mode():
                network.decode(network.predict(network.encode(normalised(rgb, torch.float32))))
    assert max(encode.value, step.value, decode.value) < LIMIT / 10


def test_the_manifest_says_how_large(small_parts):
    (parts,) = all_parts(small_parts[1])
    for part in PARTS:
        facts = parts.facts(part)
        assert 0 < facts["largest"] < LIMIT
        assert facts["in"]
