"""The noise schedule against diffusers' schedulers and hand-worked numbers, and the training noise."""

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler  # noqa: E402

from marigold_ros.config import Unusable  # noqa: E402
from marigold_ros.family import single_step  # noqa: E402
from marigold_ros.noise import gaussian_noise, multi_resolution_noise  # noqa: E402
from marigold_ros.sd2 import SCHEDULER  # noqa: E402
from trainer.noise import Schedule, annealed_strength  # noqa: E402

ZERO_SNR = {**SCHEDULER, "rescale_betas_zero_snr": True}
BOTH = pytest.mark.parametrize("config", [SCHEDULER, ZERO_SNR], ids=["trailing", "zero-snr"])
# sqrt(abar) without and with zero terminal signal, worked out apart from any library (six digits).
SIGNAL = {
    999: (0.068265, 0.0),
    998: (0.068678, 4.436e-4),
    979: (0.076895, 0.009262),
    749: (0.237957, 0.18213),
    499: (0.526944, 0.49230),
    249: (0.821847, 0.80882),
    0: (0.999575, 0.999575),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(images=4, seed=0):
    """x0 and noise of a batch."""
    noise = gaussian_noise((2 * images, 4, 6, 8), generator(seed))
    return noise[:images], noise[images:]


def by_hand(config):
    """sqrt(abar) in plain Python: betas, their product, and the rescaling to zero signal at the end."""
    low, high = math.sqrt(config["beta_start"]), math.sqrt(config["beta_end"])
    roots, product = [], 1.0
    for i in range(1000):
        product *= 1.0 - (low + (high - low) * i / 999) ** 2
        roots.append(math.sqrt(product))
    if config["rescale_betas_zero_snr"]:
        first, last = roots[0], roots[-1]
        roots = [(root - last) * first / (first - last) for root in roots]
    return torch.tensor(roots, dtype=torch.float64)


@BOTH
def test_the_schedule_is_the_product_of_the_betas(config):
    schedule = Schedule(config)
    assert len(schedule) == 1000
    assert schedule.alphas_cumprod.dtype == torch.float64
    torch.testing.assert_close(schedule.alphas_cumprod.sqrt(), by_hand(config), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize(("t", "expected"), SIGNAL.items())
def test_signal_at_the_timesteps_that_are_used(t, expected):
    for config, signal in zip((SCHEDULER, ZERO_SNR), expected, strict=True):
        found = Schedule(config).noisy(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([t]))
        assert found.item() == pytest.approx(signal, rel=1e-4, abs=1e-7)


def test_nothing_of_the_image_is_left_at_the_end_of_a_zero_snr_schedule():
    x0, noise = pair(1)
    schedule, last = Schedule(ZERO_SNR), torch.tensor([999])
    assert torch.equal(schedule.noisy(x0, noise, last), noise)
    assert torch.equal(schedule.velocity(x0, noise, last), -x0)
    assert torch.equal(schedule.denoised(noise, -x0, last), x0)


@BOTH
def test_noising_and_velocity_are_those_of_diffusers(config):
    x0, noise = pair()
    t = torch.tensor([999, 500, 1, 0])
    library, schedule = DDPMScheduler.from_config(config), Schedule(config)
    torch.testing.assert_close(schedule.noisy(x0, noise, t), library.add_noise(x0, noise, t), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        schedule.velocity(x0, noise, t), library.get_velocity(x0, noise, t), rtol=1e-5, atol=1e-6
    )


@BOTH
def test_image_and_noise_come_back_from_the_velocity(config):
    x0, noise = pair()
    t = torch.tensor([999, 700, 249, 0])
    schedule = Schedule(config)
    z, v = schedule.noisy(x0, noise, t), schedule.velocity(x0, noise, t)
    torch.testing.assert_close(schedule.denoised(z, v, t), x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(schedule.noise_of(z, v, t), noise, rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_ddim_steps_are_those_of_diffusers_to_the_last(config, steps):
    library, schedule = DDIMScheduler.from_config(config), Schedule(config)
    library.set_timesteps(steps)
    z = ours = pair(1)[0]
    for t in library.timesteps:
        v = torch.sin(3 * z)
        at = t.view(1)
        ours = schedule.ddim_step(ours, torch.sin(3 * ours), at, at - 1000 // steps)
        z = library.step(v, t, z).prev_sample
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-5)


def test_the_last_step_leaves_3_percent_of_the_noise_in_the_answer():
    """abar before timestep 0 is abar_0, not 1: one step of v1-1 gives -0.999575 v + 0.029155 noise."""
    x0, noise = pair(1)
    step = Schedule(ZERO_SNR).ddim_step(noise, -x0, torch.tensor([999]), torch.tensor([-1]))
    torch.testing.assert_close(step, 0.999575 * x0 + 0.029155 * noise, rtol=0, atol=3e-6)


def test_the_last_step_of_an_end_to_end_network_is_nearly_its_denoised_latent():
    v = pair(1)[0]
    schedule, zeros, last = Schedule(SCHEDULER), torch.zeros_like(v), torch.tensor([999])
    x0 = schedule.denoised(zeros, v, last)
    torch.testing.assert_close(x0, -0.997667 * v, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(x0, single_step(SCHEDULER, "").x0_scale * v, rtol=1e-6, atol=1e-7)
    step = schedule.ddim_step(zeros, v, last, torch.tensor([-1]))
    torch.testing.assert_close(step, 0.99758 * x0, rtol=1e-5, atol=1e-6)


def test_each_sample_of_a_batch_has_its_own_timesteps():
    x0, noise = pair(3)
    t, before = torch.tensor([999, 399, 199]), torch.tensor([799, 199, -1])
    schedule = Schedule(ZERO_SNR)
    together = schedule.ddim_step(x0, noise, t, before)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(together[one], schedule.ddim_step(x0[one], noise[one], t[one], before[one]))


def test_a_timestep_past_the_last_is_an_error_not_another_timestep():
    with pytest.raises(IndexError):
        Schedule(SCHEDULER).noisy(*pair(1), torch.tensor([1000]))


def test_coefficients_are_float32_whatever_the_tensors_are():
    x0, noise = (tensor.bfloat16() for tensor in pair())
    noisy = Schedule(SCHEDULER).noisy(x0, noise, torch.tensor([999, 1, 2, 3]))
    assert noisy.dtype == torch.float32
    assert Schedule(SCHEDULER).to("cpu").device.type == "cpu"


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, LCMScheduler])
def test_the_configuration_of_any_of_the_familys_schedulers_will_do(kind):
    shared = {key: value for key, value in ZERO_SNR.items() if key not in ("set_alpha_to_one", "steps_offset")}
    schedule = Schedule(kind(**shared, **({} if kind is DDPMScheduler else {"set_alpha_to_one": False})).config)
    assert torch.equal(schedule.alphas_cumprod, Schedule(ZERO_SNR).alphas_cumprod)
    assert schedule.final_alpha_cumprod == pytest.approx(0.99915, abs=1e-6)


def test_a_network_that_predicts_noise_is_refused():
    with pytest.raises(Unusable, match="prediction_type='epsilon': the trainer knows 'v_prediction' only"):
        Schedule({**SCHEDULER, "prediction_type": "epsilon"})


# Noise


def slow_pyramid(shape, strength, draws):
    """Multi-resolution noise by its description, one pixel at a time, from the same draws in the same order."""
    images, channels, height, width = shape
    total = torch.randn(shape, generator=draws)
    rows, columns = height, width
    for level in range(10):
        ratio = 2.0 + 2.0 * torch.rand(1, generator=draws).item()
        rows, columns = (max(1, int(side / ratio**level)) for side in (rows, columns))
        coarse = torch.randn((images, channels, rows, columns), generator=draws)
        for y in range(height):
            for x in range(width):
                value = between(coarse, (y + 0.5) * rows / height - 0.5, (x + 0.5) * columns / width - 0.5)
                total[:, :, y, x] += value * (strength**level)[:, None]
        if rows == 1 or columns == 1:
            break
    return total / total.std()


def between(field, y, x):
    """Bilinear value (N, C) of `field` at pixel (y, x), its border repeated."""
    y, x = (min(max(at, 0.0), side - 1.0) for at, side in zip((y, x), field.shape[2:], strict=True))
    top, left = int(y), int(x)
    bottom, right = min(top + 1, field.shape[2] - 1), min(left + 1, field.shape[3] - 1)
    upper = field[:, :, top, left] * (1 - x + left) + field[:, :, top, right] * (x - left)
    lower = field[:, :, bottom, left] * (1 - x + left) + field[:, :, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


@pytest.mark.parametrize("seed", range(3))
def test_multi_resolution_noise_is_what_its_description_says(seed):
    shape, strength = (2, 4, 12, 16), torch.tensor([0.9, 0.3])
    found = multi_resolution_noise(shape, strength, generator(seed))
    torch.testing.assert_close(found, slow_pyramid(shape, strength, generator(seed)), rtol=1e-4, atol=1e-5)


def test_strength_falls_with_the_noise():
    strength = annealed_strength(torch.tensor([0, 500, 999]))
    torch.testing.assert_close(strength, torch.tensor([0.0, 0.45, 0.8991]))


def test_without_strength_the_noise_is_white_and_with_it_neighbours_agree():
    def correlation(strength):
        noise = multi_resolution_noise((8, 4, 48, 64), torch.full((8,), strength), generator())
        return (noise[..., 1:] * noise[..., :-1]).mean().item()

    assert abs(correlation(0.0)) < 0.02
    assert correlation(0.9) > 0.2


def test_the_whole_tensor_is_scaled_not_each_sample():
    """As published: with one sample calm and one strong, only their average has variance 1."""
    noise = multi_resolution_noise((2, 4, 48, 64), torch.tensor([0.0, 0.9]), generator())
    assert noise.std().item() == pytest.approx(1.0, abs=1e-6)
    assert noise[0].std() < 0.95 < 1.03 < noise[1].std()


def test_the_same_generator_gives_the_same_noise_and_noise_moves_it_on():
    draws = generator(7)
    first = multi_resolution_noise((1, 4, 8, 8), torch.tensor([0.9]), draws)
    second = multi_resolution_noise((1, 4, 8, 8), torch.tensor([0.9]), draws)
    assert torch.equal(first, multi_resolution_noise((1, 4, 8, 8), torch.tensor([0.9]), generator(7)))
    assert not torch.equal(first, second)
    assert torch.equal(gaussian_noise((2, 3), generator(1)), torch.randn(2, 3, generator=generator(1)))
