"""Arithmetic and lower bounds: the reference's tables of Stable Diffusion 2, torch's own counter, and the program."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from marigold_ros import counting, roofline, sd2  # noqa: E402
from marigold_ros.checkpoints import describe, find_checkpoint  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from marigold_ros.roofline import DEVICES, Device, Operator, bound_ms, everything, flop  # noqa: E402

PERFORMANCE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
SIZES = ((768, 576), (640, 480), (512, 384), (384, 288))
# reference/tensorrt.md (f), of the network before it is folded: TFLOP of U-Net, KL and tiny encoder and decoder.
TFLOP = {
    (768, 576): (1.487, 1.924, 4.283, 0.206, 0.239),
    (640, 480): (0.962, 1.316, 2.954, 0.143, 0.166),
    (512, 384): (0.575, 0.831, 1.879, 0.092, 0.106),
    (384, 288): (0.308, 0.463, 1.052, 0.052, 0.060),
}
# The same parts' lower bounds in ms, float16; the RTX 4090's and the H100's of the tiny VAE have one digit only.
BOUNDS = {
    "Jetson AGX Orin 64GB": {
        (768, 576): (39.2, 50.1, 110, 5.3, 5.9),
        (640, 480): (26.6, 34.3, 75.9, 3.7, 4.1),
        (512, 384): (18.1, 21.7, 48.3, 2.4, 2.6),
        (384, 288): (13.0, 12.1, 27.1, 1.3, 1.5),
    },
    "Jetson Orin NX 16GB": {
        (768, 576): (105, 138, 303, 14.4, 16.4),
        (640, 480): (70.4, 94.2, 209, 10.0, 11.4),
        (512, 384): (45.1, 59.6, 133, 6.4, 7.3),
        (384, 288): (29.7, 33.2, 74.5, 3.6, 4.1),
    },
    "RTX 4090": {
        (768, 576): (9.7, 12.6, 27.7, 1.3, 1.5),
        (640, 480): (6.5, 8.6, 19.1, 0.9, 1.0),
        (512, 384): (4.2, 5.5, 12.2, 0.6, 0.7),
        (384, 288): (2.9, 3.0, 6.8, 0.3, 0.4),
    },
    "H100 SXM": {
        (768, 576): (1.8, 2.3, 4.9, 0.2, 0.3),
        (640, 480): (1.3, 1.5, 3.4, 0.2, 0.2),
        (512, 384): (1.0, 1.0, 2.2, 0.1, 0.1),
        (384, 288): (0.7, 0.5, 1.2, 0.1, 0.1),
    },
}
BY_NAME = {device.name: device for device in DEVICES}


@pytest.fixture(scope="module")
def unfolded():
    """{size: operators of U-Net, KL encoder, KL decoder, tiny encoder, tiny decoder} of Stable Diffusion 2."""
    networks = [counting.sd2_network(vae) for vae in ("full", "tiny")]
    found = {}
    for size in SIZES:
        full, tiny = (counting.count(network, *size, fold=False) for network in networks)
        found[size] = full["step"], full["encode"], full["decode"], tiny["encode"], tiny["decode"]
    return found


def test_the_architecture_is_stable_diffusion_2s():
    unet, vae = sd2.modules()
    tiny = sd2.tiny_vae()
    sizes = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (unet, vae.encoder, vae.decoder, tiny.encoder)]
    assert sizes == pytest.approx([865.9, 34.2, 49.5, 1.22], rel=3e-3)
    assert all(parameter.is_meta for parameter in unet.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_the_arithmetic_is_the_references(unfolded, size):
    assert [flop(part) / 1e12 for part in unfolded[size]] == pytest.approx(TFLOP[size], rel=0.02)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_lower_bounds_are_the_references(unfolded, name, size):
    """To a tenth, or to what the reference's last digit hides."""
    found = [bound_ms(part, BY_NAME[name]) for part in unfolded[size]]
    assert found == pytest.approx(BOUNDS[name][size], rel=0.1, abs=0.05)


def test_eight_bits_take_half_the_time_on_orin(unfolded):
    """reference/tensorrt.md (f): 19.6 ms of the U-Net and 55.0 ms of the decoder."""
    unet, _, decoder, *_ = unfolded[768, 576]
    orin = BY_NAME["Jetson AGX Orin 64GB"]
    assert [bound_ms(part, orin, "int8") for part in (unet, decoder)] == pytest.approx([19.6, 55.0], rel=0.03)


@pytest.mark.parametrize(("vae", "fold"), [("full", False), ("full", True), ("tiny", True)])
def test_nothing_is_forgotten(vae, fold):
    """torch counts the same, with attention and convolutions taken apart."""
    counts = counting.count(counting.sd2_network(vae), 128, 64, fold)
    network = counting.sd2_network(vae)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as torchs:
        parts = counting.folded(network) if fold else network
        folding = torchs.get_total_flops()
        parts.decode(parts.predict(parts.encode(torch.empty(1, 3, 64, 128))))
    # The unfolded network takes the mean of the decoded channels as a product, which is not worth an operator.
    assert flop(everything(counts)) == pytest.approx(torchs.get_total_flops() - folding, rel=1e-4)


def test_the_folds_save_arithmetic():
    whole, lean = (counting.count(counting.sd2_network(), 768, 576, fold) for fold in (False, True))
    for part, least in (("encode", 0.99), ("step", 0.90), ("decode", 0.80)):
        assert least < flop(lean[part]) / flop(whole[part]) < 1.0
    kinds = {operator.kind for operator in lean["step"]}
    assert kinds == {*roofline.KINDS, roofline.NORM}
    # One attention of two less in each of the 16 blocks.
    assert [sum(o.kind == "attention" for o in counts["step"]) for counts in (whole, lean)] == [32, 16]


def test_a_prompt_of_77_tokens_stays():
    short, long = (counting.count(counting.sd2_network(tokens=tokens), 384, 320) for tokens in (2, 77))
    assert flop(short["step"]) < flop(long["step"])


def test_a_transposed_convolution_counts_what_it_does():
    """16 products for 4 pixels and each pair of channels, where 36 were before."""
    conv = torch.nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1, device="meta")
    with torch.inference_mode(), counting.Counter() as counter:
        conv(torch.empty(1, 3, 7, 9, device="meta"))
    (operator,) = counter.operators
    assert operator.flop == 2 * 16 * 3 * 5 * 7 * 9
    assert operator.numbers == 3 * 7 * 9 + 3 * 5 * 4 * 4 + 5 * 14 * 18


def test_the_longer_of_arithmetic_and_memory_counts():
    device = Device("slow", 1.0, 2.0, 1.0, "slow", 1)
    assert bound_ms([Operator("linear", 10**10, 1), Operator("linear", 1, 10**7)], device) == pytest.approx(10 + 20)
    assert bound_ms([Operator("linear", 10**10, 1)], device, "int8") == pytest.approx(5)


def test_devices_are_known_by_the_drivers_name():
    assert roofline.device_named("NVIDIA H200", 132).name == "H200"
    assert roofline.device_named("Orin", 8).name == "Jetson Orin NX 16GB"
    assert roofline.device_named("Orin", 16).name == "Jetson AGX Orin 64GB"
    # The laptop's is another chip.
    assert roofline.device_named("NVIDIA GeForce RTX 4090 Laptop GPU", 76) is None


def test_a_checkpoint_is_counted_from_its_configuration():
    info = describe(find_checkpoint("nano"))
    network = counting.meta_network(info)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert counting.subject("nano", None, "full", "").counts() == counting.count(network, 384, 288)


def test_the_program_prints_both_tables(capsys):
    assert roofline.main(["--checkpoint", "nano", "--size", "64x96", "--precision", "int8"]) == 0
    printed = capsys.readouterr().out
    assert "nano, vae: full, working size: 64x96" in printed
    assert "int8" in printed
    assert all(device.name in printed for device in DEVICES)
    assert "the folded network" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "nowhere"], "checkpoint 'nowhere': no such folder"),
        (["--size", "100x100"], "must be multiples of 32 pixels"),
        (["--checkpoint", "nano", "--vae", "tiny", "--tiny-vae", "/nowhere/at all"], "tiny VAE"),
    ],
)
def test_what_cannot_be_counted_is_named(arguments, words, capsys):
    assert roofline.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("roofline: ")
    assert words in error
    assert error.count("\n") == 1


def test_an_unusable_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"block_out_channels": "many"}')
    with pytest.raises(Unusable, match=r"config\.json: cannot be used"):
        counting._from_config(counting.AutoencoderKL, tmp_path)


def test_a_size_must_be_one(capsys):
    with pytest.raises(SystemExit):
        roofline.main(["--size", "768"])
    assert "must be WIDTHxHEIGHT" in capsys.readouterr().err


def test_without_torch_the_program_says_so(monkeypatch, capsys):
    monkeypatch.delattr("marigold_ros.counting")
    monkeypatch.setitem(sys.modules, "marigold_ros.counting", None)
    assert roofline.main([]) == 1
    assert "needs torch and diffusers" in capsys.readouterr().err


def test_the_tables_of_the_documentation_are_the_programs(capsys):
    """Every command in the text, with the table under it."""
    text = PERFORMANCE.read_text(encoding="utf-8")
    blocks = re.findall(r"`python -m marigold_ros\.roofline([^`]*)`\n\n```\n(.*?)```", text, re.S)
    assert len(blocks) >= 2
    for arguments, table in blocks:
        assert roofline.main(arguments.split()) == 0
        assert capsys.readouterr().out == table


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_a_checkpoint_of_random_weights_is_one_of_the_family(tmp_path):
    """In small; written once, and whole."""
    small = {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 16, "layers_per_block": 1}
    unet = {**sd2.UNET, **small, "attention_head_dim": [1, 1, 2, 2]}
    vae = {**sd2.VAE, "block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
    folder = sd2.random_checkpoint(tmp_path / "cache", unet, vae, (128, 64))
    info = describe(folder)
    assert (info.width, info.height, info.kind.protocol, info.multiple) == (128, 64, "e2e", 64)
    from marigold_ros.checkpoints import load_network, with_tiny_vae

    narrow = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    tiny = sd2.random_tiny_vae(tmp_path / "cache", **narrow)
    rgb = torch.randint(0, 256, (1, 64, 128, 3), dtype=torch.uint8)
    for found in (info, with_tiny_vae(info, "tiny", str(tiny))):
        with torch.inference_mode():
            answer = load_network(found)(rgb)
        assert answer.shape == (1, 64, 128)
        assert 0.01 < float(answer.std()) < 1.0
    before = (folder / "model_index.json").stat().st_mtime_ns
    assert sd2.random_checkpoint(tmp_path / "cache", unet, vae) == folder
    assert (folder / "model_index.json").stat().st_mtime_ns == before
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Unusable, match="cannot be written"):
        sd2.random_tiny_vae(tmp_path / "file")
