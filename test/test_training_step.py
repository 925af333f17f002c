"""The training step: the numbers of a plain step on diffusers' modules, and `python -m trainer benchmark`."""

import copy
from dataclasses import replace
from functools import partial

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import AutoencoderKL  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from marigold_ros.checkpoints import describe, load_network  # noqa: E402
from small_checkpoint import write_small_checkpoint  # noqa: E402
from trainer import frozen  # noqa: E402
from trainer.__main__ import main  # noqa: E402
from trainer.assembly import first_model  # noqa: E402
from trainer.checkpointing import enable_checkpointing  # noqa: E402
from trainer.data import Passes  # noqa: E402
from trainer.frozen import frozen_decoder, frozen_encoder  # noqa: E402
from trainer.objectives import build_objective  # noqa: E402
from trainer.plain_step import PlainStep  # noqa: E402
from training import RECIPES, small_recipe  # noqa: E402


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(2)
    network = load_network(describe(write_small_checkpoint(tmp_path / "small", "depth")), dtype=torch.float64)
    network.requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name.endswith("bias") or "norm" in name:  # zeros and ones would hide what is forgotten
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def gradients(loss, model, parts):
    loss.backward()
    trained = [parameter for name in parts for parameter in model.part(name).parameters()]
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])


@pytest.mark.parametrize("name", RECIPES)
def test_our_step_computes_what_the_plain_one_does(name, start, data):
    recipe = small_recipe(name, start, gradient_checkpointing=True)
    stage = recipe.stages[-1]
    torch.manual_seed(0)  # a tiny VAE of other random weights may see near as far, where the best scale is 0
    model = first_model(recipe)
    with torch.no_grad():  # an untrained U-Net ends in small numbers that would hide a difference
        for parameter in model.unet.conv_out.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    batch = Passes(recipe, stage, 0, data)[0]
    plain = PlainStep(copy.deepcopy(model), recipe, stage, torch.device("cpu"))
    ours = build_objective(model, recipe, stage)
    ours.place(torch.device("cpu"))
    expected = plain.loss(batch, torch.Generator().manual_seed(1))
    found = ours(batch, torch.Generator().manual_seed(1))["loss"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    wanted = gradients(expected, plain.model, stage.train)
    assert float(wanted.norm()) > 0
    # In float64 they agree to a millionth; in float32 a few pixels' absolute errors are of the other sign.
    assert float((gradients(found, model, stage.train) - wanted).norm()) < 0.05 * float(wanted.norm())


@torch.no_grad()
def test_frozen_encoder(network):
    image = torch.rand(2, 3, 32, 64, dtype=torch.float64) * 2 - 1
    expected = network.vae.encode(image).latent_dist.mode()
    assert float((frozen_encoder(network.vae)(image) - expected).abs().max()) < 1e-9
    assert float(expected.abs().max()) > 1e-3


def test_frozen_decoder_and_the_gradient_through_it(network):
    latent = torch.randn(2, 4, 4, 8, dtype=torch.float64)
    weight = torch.randn(2, 1, 32, 64, dtype=torch.float64)
    part, found = frozen_decoder(network), []
    for decode in (lambda x: network.decode(x * network.latent_scale), part):
        x = latent.clone().requires_grad_()
        decoded = decode(x)
        (decoded * weight).sum().backward()
        found.append((decoded.detach(), x.grad))
    for plain, ours in zip(*found, strict=True):
        assert float((plain - ours).abs().max()) < 1e-9 * max(1.0, float(plain.abs().max()))
    assert all(parameter.grad is None for parameter in part.parameters())


def test_frozen_encoder_without_quant_conv(network):
    vae = AutoencoderKL.from_config({**network.vae.config, "use_quant_conv": False}).double()
    image = torch.rand(1, 3, 32, 64, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        assert float((frozen_encoder(vae)(image) - vae.encode(image).latent_dist.mode()).abs().max()) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_normalisation_of_gpus(dtype):
    """By what torch allows there: the CPU's operator takes maps channels last, a GPU's refuses them."""
    norm = torch.nn.GroupNorm(4, 16).to(dtype)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    x = (3 + torch.randn(2, 16, 8, 6)).to(dtype, memory_format=torch.channels_last)
    found, expected = (f(x, norm)[0] for f in (frozen._norm_silu_in_layout, frozen._norm_silu))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0.03 if dtype == torch.bfloat16 else 1e-7, atol=0.03)


def test_the_gradient_of_a_normalisation_far_from_zero_in_half_precision():
    """Where the mean is large beside the deviation, statistics in bfloat16 would spoil it."""
    norm = torch.nn.GroupNorm(4, 16).requires_grad_(False)
    x = (20 + torch.randn(2, 16, 8, 6)).to(torch.bfloat16, memory_format=torch.channels_last)
    gradient = torch.randn(x.shape).bfloat16()
    exact = x.double().requires_grad_()
    torch.nn.functional.silu(norm.double()(exact)).backward(gradient.double())
    norm.float()
    _, mean, rstd = frozen._norm_silu(x, norm)
    found = frozen._norm_silu_back(gradient, x, mean, rstd, norm).double()
    assert float((found - exact.grad).norm() / exact.grad.norm()) < 0.01


def test_the_gradient_through_a_frozen_decoder_in_half_precision(network):
    """Not much farther from the exact one than autocast's, which adds up in float32 now and then."""
    latent, weight = torch.randn(1, 4, 4, 8), torch.randn(1, 1, 32, 64)
    exact, rounded, ours = [], [], []
    for found, dtype in ((exact, torch.float64), (rounded, None), (ours, torch.bfloat16)):
        x = latent.double().requires_grad_() if dtype == torch.float64 else latent.clone().requires_grad_()
        decode = frozen_decoder(network.double() if dtype == torch.float64 else network.float())
        if dtype is None:
            decode = lambda x: network.decode(x * network.latent_scale)  # noqa: E731
        elif dtype == torch.bfloat16:
            decode.place(torch.device("cpu"), dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float64):
            decoded = decode(x)
        (decoded.double() * weight).sum().backward()
        found.append(x.grad.double())
    errors = [float((found[0] - exact[0]).norm() / exact[0].norm()) for found in (rounded, ours)]
    assert errors[1] < 2 * errors[0]


def test_frozen_parts_leave_the_modules_they_copy_alone(network):
    before = copy.deepcopy(network.vae.state_dict())
    frozen_encoder(network.vae), frozen_decoder(network)
    after = network.vae.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_frozen_part_answers_in_half_precision_as_under_autocast(network):
    """Bounded by what rounding to bfloat16 costs anyhow."""
    image = torch.rand(2, 3, 32, 64) * 2 - 1
    vae = network.vae.float()
    with torch.no_grad():
        exact = vae.encode(image).latent_dist.mode()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = vae.encode(image).latent_dist.mode()
            part = frozen_encoder(vae)
            part.place(torch.device("cpu"), torch.bfloat16)
            found = part(image)
    assert found.dtype == torch.bfloat16
    assert float((found - exact).norm()) < 3 * float((rounded - exact).norm())


def noted(sizes, tensor):
    sizes.append(tensor.numel())
    return tensor


class Attentions(TorchDispatchMode):
    """How often attention was computed forwards."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = str(function)
        self.count += "scaled_dot_product" in name and "backward" not in name
        return function(*arguments, **(options or {}))


def test_checkpointing_computes_all_but_attention_again(network):
    """And keeps less than all: what a block computed is no longer there."""
    unet = network.unet.requires_grad_(True).train()
    given = torch.randn(1, 8, 16, 16, dtype=torch.float64), torch.tensor([999]), network.prompt.double()
    counts, kept = [], []
    for enable in (lambda: None, lambda: enable_checkpointing(unet), unet.enable_gradient_checkpointing):
        enable()
        saved = []
        note = partial(noted, saved)
        with Attentions() as attentions:
            with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
                loss = unet(*given).sample.square().sum()
            loss.backward()
        counts.append(attentions.count)
        kept.append(sum(saved))
    plain, ours, whole = counts
    assert plain == ours < whole
    assert kept[1] < 0.7 * kept[0]


def test_checkpointing_gives_the_same_gradient(network):
    unet = network.unet.requires_grad_(True).train()
    given = torch.randn(1, 8, 16, 16, dtype=torch.float64), torch.tensor([999]), network.prompt.double()
    found = []
    for again in (False, True):
        if again:
            enable_checkpointing(unet)
        unet.zero_grad()
        unet(*given).sample.square().sum().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in unet.parameters()]))
    torch.testing.assert_close(found[0], found[1])


def told(capsys, *arguments):
    status = main(["benchmark", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_benchmark_compares_both_steps_in_turns(capsys):
    arguments = ("--recipe", "robot", "--size", "64x64", "--batch", "1", "2", "--rounds", "2", "--threads", "1")
    status, out, err = told(capsys, *arguments)
    assert status == 0, err
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
    assert [row[:4] for row in table[2:]] == [["robot", "its own", "64x64", batch] for batch in "12"]
    for _, _, _, _, plain, ours, ratio, plain_mb, ours_mb in table[2:]:
        assert float(plain) > 0
        assert float(ours) > 0
        assert " to " in ratio
        assert 50 < float(plain_mb) < 20_000
        assert 50 < float(ours_mb) < 20_000


def test_benchmark_of_the_loader(capsys, data):
    status, out, err = told(
        capsys, "--recipe", "robot", "--size", "64x64", "--threads", "1", "--data", str(data), "--seconds", "0.2"
    )
    assert status == 0, err
    rows = [line for line in out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 2
    assert all(float(row.split("|")[2]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--batch", "1", "0"), "--batch 0"),
        (("--recipe", "nothing"), "recipe 'nothing': no such file"),
        (("--recipe", "robot", "--size", "64x64", "--set", "precision=fp16"), "precision='fp16': must be"),
    ],
)
def test_what_cannot_be_measured(capsys, arguments, complaint):
    status, _, err = told(capsys, *arguments, "--threads", "1")
    assert status == 2
    assert complaint in err
    assert "Traceback" not in err


def test_a_stage_that_nobody_published(start):
    recipe = small_recipe("nano", start)
    with pytest.raises(Exception, match="no published script"):
        PlainStep(first_model(recipe), recipe, replace(recipe.stages[0]), torch.device("cpu"))
