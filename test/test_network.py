"""The single-step network against the arithmetic it claims and against diffusers' own pipeline."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, MarigoldDepthPipeline  # noqa: E402

from marigold_ros.checkpoints import describe, load_network  # noqa: E402
from marigold_ros.network import normalised  # noqa: E402
from small_checkpoint import write_small_checkpoint  # noqa: E402
from trainer.architecture import build_scheduler  # noqa: E402


@pytest.fixture(scope="module", params=["inverse_depth", "depth"])
def folder(request, tmp_path_factory):
    return write_small_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", request.param)


@pytest.fixture
def network(folder):
    return load_network(describe(folder))


@pytest.fixture
def disparity(folder):
    """The decoded map is largest for near things."""
    return describe(folder).disparity


@pytest.fixture(scope="module")
def rgb():
    return torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_constants_are_those_of_one_trailing_step(folder):
    step = describe(folder).kind.single_step
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [step.timestep] == [999]
    assert step.x0_scale == pytest.approx(-0.997667, abs=1e-6)
    assert step.x0_scale == pytest.approx(-float((1 - scheduler.alphas_cumprod[999]).sqrt()), abs=1e-6)


@torch.inference_mode()
def test_x0_is_what_the_scheduler_says(network):
    scheduler = build_scheduler()
    scheduler.set_timesteps(1)
    latent = network.encode(torch.rand(1, 3, 96, 128) * 2 - 1)
    zero = torch.zeros_like(latent)
    velocity = network.unet(torch.cat([latent, zero], 1), 999, network.prompt, return_dict=False)[0]
    expected = scheduler.step(velocity, 999, zero).pred_original_sample
    torch.testing.assert_close(network.predict(latent), expected, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_rgb_latent_comes_first_and_the_target_latent_is_zero(network):
    seen = []
    network.unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    latent = torch.randn(2, 4, 12, 16)
    network.predict(latent)
    sample, timestep, prompt = seen[0]
    torch.testing.assert_close(sample[:, :4], latent)
    assert not sample[:, 4:].any()
    assert timestep.tolist() == [999]
    torch.testing.assert_close(prompt, network.prompt.expand(2, -1, -1))


@torch.inference_mode()
def test_latent_is_the_scaled_mean(network, disparity):
    image = torch.rand(1, 3, 96, 128) * 2 - 1
    network.latent_scale = 0.25
    moments = network.vae.quant_conv(network.vae.encoder(image))
    torch.testing.assert_close(network.encode(image), moments[:, :4] * 0.25)
    torch.testing.assert_close(network.encode(image), network.encode(image))
    latent = torch.randn(1, 4, 12, 16)
    decoded = network.vae.decode(latent / 0.25).sample.mean(1, keepdim=True)
    torch.testing.assert_close(network.decode(latent), -decoded if disparity else decoded)


@torch.inference_mode()
def test_answer_has_the_image_s_size_and_range(network, rgb):
    relative = network(rgb)
    assert relative.shape == (2, 96, 128)
    assert relative.dtype == torch.float32
    assert 0 <= float(relative.min()) <= float(relative.max()) <= 1
    signed = network.forward_normalised(normalised(rgb, torch.float32))
    torch.testing.assert_close(relative, (signed[:, 0].clamp(-1, 1) + 1) / 2)


@torch.inference_mode()
def test_images_of_a_batch_do_not_see_each_other(network, rgb):
    torch.testing.assert_close(network(rgb)[1:], network(rgb[1:]), atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_part(network):
    network.requires_grad_(True)
    network.forward_normalised(torch.rand(1, 3, 96, 128) * 2 - 1).square().mean().backward()
    for part in (
        network.vae.encoder.conv_in,
        network.unet.conv_in,
        network.unet.conv_out,
        network.vae.decoder.conv_out,
    ):
        assert float(part.weight.grad.abs().sum()) > 0


def test_diffusers_own_pipeline_agrees(folder, network, disparity, rgb):
    """Up to 0.99758: the pipeline decodes the scheduler's previous sample, which is 0.24 % smaller than x0."""
    pipeline = MarigoldDepthPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    pipeline.empty_text_embedding = network.prompt
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.default_denoising_steps == 1
    theirs = pipeline(
        rgb[0].permute(2, 0, 1).float() / 255,
        latents=torch.zeros(1, 4, 12, 16),
        processing_resolution=0,
        ensemble_size=1,
    ).prediction[0, ..., 0]
    theirs = 1 - theirs if disparity else theirs
    network.x0_scale *= 0.99758
    with torch.inference_mode():
        ours = network(rgb[:1])[0].numpy()
    np.testing.assert_allclose(theirs, ours, atol=2e-4)
