"""Each fold against the diffusers modules it replaces, in float64, and the U-Net of Stable Diffusion 2 in float32."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.models.upsampling import Upsample2D  # noqa: E402

from marigold_ros import folds, sd2  # noqa: E402
from marigold_ros.checkpoints import describe, load_network  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from marigold_ros.network import SingleStepNetwork, depth_head, normals_head  # noqa: E402
from small_checkpoint import write_small_checkpoint  # noqa: E402

LIMIT = 1e-9


@pytest.fixture(scope="module", params=["inverse_depth", "depth"])
def folder(request, tmp_path_factory):
    return write_small_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", request.param)


@pytest.fixture
def network(folder):
    torch.manual_seed(2)
    network = load_network(describe(folder), dtype=torch.float64)
    network.requires_grad_(False)
    network.latent_scale = 0.18215
    for name, parameter in network.named_parameters():
        if name.endswith("bias") or "norm" in name:  # zeros and ones would hide what is forgotten
            parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.fixture
def image():
    return torch.rand(2, 3, 96, 128, dtype=torch.float64) * 2 - 1


@pytest.fixture
def latent():
    return torch.randn(2, 4, 12, 16, dtype=torch.float64)


def worst(a, b):
    assert a.shape == b.shape
    assert float(b.abs().max()) > 1e-3
    return float((a - b).abs().max())


@torch.no_grad()
def test_scales(network, image):
    expected = network.forward_normalised(image)
    folds.fold_scales(network)
    assert network.latent_scale == network.x0_scale == 1.0
    assert worst(network.forward_normalised(image), expected) < LIMIT


@torch.no_grad()
def test_quant_conv(network, image):
    expected = network.vae.encode(image).latent_dist.mode()
    folds.fold_quant_conv(network.vae)
    assert worst(network.vae.encoder(image), expected) < LIMIT


@torch.no_grad()
@pytest.mark.parametrize("head", [depth_head(True), depth_head(False), normals_head(), normals_head(x_left=True)])
def test_head(network, latent, head):
    network.head = head
    expected = network.decode(latent * network.latent_scale)
    folds.fold_head(network)
    assert worst(network.vae.decode(latent).sample, expected) < LIMIT
    assert worst(network.decode(latent * network.latent_scale), expected) < LIMIT


@torch.no_grad()
def test_zero_target(network, latent):
    prompt = network.prompt.expand(2, -1, -1)
    expected = network.unet(torch.cat([latent, torch.zeros_like(latent)], 1), 999, prompt).sample
    folds.fold_zero_target(network)
    assert worst(network.unet(latent, 999, prompt).sample, expected) < LIMIT


@torch.no_grad()
def test_timestep(network, latent):
    both, prompt = torch.cat([latent, latent], 1), network.prompt.expand(2, -1, -1)
    expected = network.unet(both, 999, prompt).sample
    assert worst(network.unet(both, 1, prompt).sample, expected) > 1e-3, "the timestep has no effect: test in vain"
    folds.fold_timestep(network)
    assert worst(network.unet(both, 1, prompt).sample, expected) < LIMIT


@torch.no_grad()
def test_prompt_of_two_tokens(network, latent):
    both, prompt = torch.cat([latent, latent], 1), network.prompt.expand(2, -1, -1)
    expected = network.unet(both, 999, prompt).sample
    assert worst(network.unet(both, 999, -prompt).sample, expected) > 1e-6, "the prompt has no effect: test in vain"
    assert folds.fold_prompt(network) is None
    assert worst(network.unet(both, 999, None).sample, expected) < LIMIT


@torch.no_grad()
def test_upsampling(network, latent):
    """Borders included: the doubled image and the small one are padded with the same zeros."""
    both, prompt = torch.cat([latent, latent], 1), network.prompt.expand(2, -1, -1)
    expected = network.unet(both, 999, prompt).sample, network.vae.decode(latent).sample
    folds.fold_upsampling(network)
    left = [name for name, part in network.named_modules() if isinstance(part, Upsample2D)]
    assert all(name.endswith(".unfolded") for name in left)  # for odd sizes
    assert worst(network.unet(both, 999, prompt).sample, expected[0]) < LIMIT
    assert worst(network.vae.decode(latent).sample, expected[1]) < LIMIT


@torch.no_grad()
@pytest.mark.parametrize("tokens", [2, 77])
def test_all_of_them(network, image, tokens):
    """77 tokens: what the authors of the end-to-end fine-tunes trained with; attention stays then."""
    network.prompt = torch.randn(1, tokens, network.prompt.shape[2], dtype=torch.float64)
    expected = network.forward_normalised(image)
    lean = folds.folded(network)
    assert (lean.prompt is None) == (tokens == 2)
    assert worst(lean.decode(lean.predict(lean.encode(image))), expected) < LIMIT


@torch.no_grad()
def test_maps_with_an_odd_number_of_pixels(network):
    """As of Stable Diffusion's U-Net at 640x480, whose smallest map is 10 x 8 and the next 20 x 15."""
    image = torch.rand(1, 3, 72, 104, dtype=torch.float64) * 2 - 1
    expected = network.forward_normalised(image)
    lean = folds.folded(network)
    assert worst(lean.decode(lean.predict(lean.encode(image))), expected) < LIMIT


@torch.no_grad()
def test_bytes_in_relative_depth_out(folder):
    rgb = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8)
    expected = load_network(describe(folder))(rgb)
    lean = folds.folded(load_network(describe(folder)))
    torch.testing.assert_close(lean(rgb), expected, atol=1e-5, rtol=0)
    assert lean.encoder.conv_out.weight.shape[0] == 4
    assert lean.unet.conv_in.weight.shape[1] == 4
    assert lean.decoder[1].conv_out.weight.shape[0] == 1


def test_what_cannot_be_folded_is_refused(network):
    network.vae.quant_conv = None
    with pytest.raises(Unusable, match="quant_conv"):
        folds.folded(network)


@torch.no_grad()
def test_unet_of_stable_diffusion_2():
    """The real architecture, 866 million parameters, with random weights, in float32."""
    unet, _ = sd2.modules()
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(865.9e6, rel=1e-3)
    unet.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if parameter.ndim > 1:
            reach = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-reach, reach, generator=generator)
        else:
            parameter.uniform_(-0.1, 0.1, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    vae = torch.nn.Module()
    vae.decoder = torch.nn.Module()
    vae.config = type("Config", (), {"scaling_factor": 0.18215, "latent_channels": 4})
    prompt = torch.randn(1, 2, 1024, generator=generator)
    network = SingleStepNetwork(vae, unet, prompt, x0_scale=-1.0, head=depth_head(disparity=False))
    latent = torch.randn(1, 4, 8, 8, generator=generator)
    expected = network.predict(latent)
    for fold in (folds.fold_zero_target, folds.fold_timestep, folds.fold_prompt, folds.fold_upsampling):
        fold(network)
    found = -unet(latent, 0, None).sample
    assert float(expected.abs().mean()) > 0.1
    assert float((found - expected).abs().max() / expected.abs().mean()) < 1e-4
