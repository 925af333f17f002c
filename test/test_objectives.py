"""What the objectives compute, against the formulas of their papers."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import LCMScheduler  # noqa: E402

from marigold_ros.canonical import MetricScale  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from small_checkpoint import write_small_checkpoint  # noqa: E402
from trainer.assembly import first_model  # noqa: E402
from trainer.data import Passes  # noqa: E402
from trainer.objectives import build_objective  # noqa: E402
from trainer.objectives.base import image_of  # noqa: E402
from trainer.objectives.end_to_end import detail_loss  # noqa: E402
from training import small_recipe  # noqa: E402


def made(name, start, data, **changes):
    """The objective of a small recipe's last stage, its first batch, and a generator."""
    recipe = small_recipe(name, start, **changes)
    stage = recipe.stages[-1]
    batch = Passes(recipe, stage, 0, data)[0]
    return build_objective(first_model(recipe), recipe, stage), batch, torch.Generator().manual_seed(1)


def test_a_unet_that_says_the_true_velocity_has_no_loss(start, data, monkeypatch):
    objective, batch, generator = made("marigold-depth", start, data)
    seen = {}
    real = objective.schedule.velocity
    monkeypatch.setattr(objective.schedule, "velocity", lambda *a: seen.setdefault("v", real(*a)))
    with torch.no_grad():
        loss = objective(batch, generator)["loss"]
        monkeypatch.setattr(type(objective), "velocity", lambda self, *a: seen["v"])
        assert float(objective(batch, torch.Generator().manual_seed(1))["loss"]) == 0 < float(loss)


def test_the_unet_sees_the_image_and_then_the_noisy_target(start, data, monkeypatch):
    """reference/marigold.md §1.2: [RGB latent | target latents]; z = sqrt(abar) x0 + sqrt(1 - abar) noise."""
    objective, batch, generator = made("marigold-iid-lighting", start, data)
    seen = []
    handle = objective.model.unet.register_forward_pre_hook(lambda module, given: seen.append(given))
    with torch.no_grad():
        objective(batch, generator)
        rgb_latent, latent, mask = objective.latents(batch)
    handle.remove()
    inputs, timestep, prompt = seen[0]
    assert inputs.shape[1] == 4 * (1 + 3)
    torch.testing.assert_close(inputs[:, :4], rgb_latent)
    abar = objective.schedule.alphas_cumprod[timestep].float().view(-1, 1, 1, 1)
    noise = (inputs[:, 4:] - abar.sqrt() * latent) / (1 - abar).sqrt()
    assert abs(float(noise.std()) - 1) < 0.25
    assert mask.all()  # this recipe has no mask
    assert prompt.shape == (2, 2, 16)


def test_consistency_starts_from_the_sample_itself(start, data):
    """f(z, 0) = z, and at the last timestep f is nearly x0 (arXiv 2310.04378)."""
    objective, batch, _ = made("lcm", start, data)
    with torch.no_grad():
        rgb_latent, latent, _ = objective.latents(batch)
        zero = torch.zeros(len(latent), dtype=torch.long)
        torch.testing.assert_close(objective._clean(objective.model.unet, rgb_latent, latent, zero), latent)
        last = zero + 999
        x0 = objective.schedule.denoised(
            latent, objective.velocity(objective.model.unet, rgb_latent, latent, last), last
        )
        torch.testing.assert_close(
            objective._clean(objective.model.unet, rgb_latent, latent, last), x0, atol=1e-3, rtol=1e-3
        )


def test_the_learner_of_a_consistency_is_pulled_to_its_average_after_one_step_of_the_teacher(start, data):
    objective, batch, generator = made("lcm", start, data)
    with torch.no_grad():
        first = objective(batch, generator)["loss"]
        for parameter in objective.trained.parameters():
            parameter.add_(0.02)
        moved = objective(batch, torch.Generator().manual_seed(1))["loss"]
        objective.update_average(5)
    assert float(moved) > float(first)
    name, values = next(iter(objective.average.named_parameters()))
    moved_by = values - dict(objective._teacher[0].named_parameters())[name.removeprefix("unet.")]
    torch.testing.assert_close(moved_by, torch.full_like(moved_by, 0.05 * 0.02), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("timesteps", [5, 4, 50])
def test_a_distilled_network_is_run_at_timesteps_that_it_was_distilled_on(start, data, monkeypatch, timesteps):
    recipe = small_recipe("lcm", start)
    stage = replace(recipe.stages[0], objective=replace(recipe.stages[0].objective, timesteps=timesteps))
    objective = build_objective(first_model(replace(recipe, stages=(stage,))), recipe, stage)
    batch, generator, drawn = Passes(recipe, stage, 0, data)[0], torch.Generator().manual_seed(1), set()
    learner, latents = objective.model.unet, objective.latents(batch)

    def velocity(self, unet, rgb_latent, noisy, timestep):
        if unet is learner:
            drawn.update(timestep.tolist())
        return torch.zeros_like(noisy)

    monkeypatch.setattr(type(objective), "velocity", velocity)
    monkeypatch.setattr(type(objective), "latents", lambda self, batch: latents)
    for _ in range(10 * timesteps):
        objective(batch, generator)
    assert len(drawn) == timesteps
    scheduler = LCMScheduler.from_config(objective.model.scheduler)
    for steps in range(1, timesteps + 1):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[0] == 999
        assert set(scheduler.timesteps.tolist()) <= drawn
    with pytest.raises(ValueError, match="num_inference_steps"):
        scheduler.set_timesteps(timesteps + 1)


def test_timesteps_that_leave_the_last_one_out_are_refused(start):
    recipe = small_recipe("lcm", start)
    stage = replace(recipe.stages[0], objective=replace(recipe.stages[0].objective, timesteps=3))
    with pytest.raises(Unusable, match=r"objective\.timesteps=3: must divide the schedule's 1000"):
        build_objective(first_model(recipe), recipe, stage)


def test_metric_targets_are_those_of_the_canonical_camera(start, data):
    """The target of training and what the robot makes of the answer are inverse to each other."""
    metric = MetricScale(0.1, 80.0, 60.0)
    objective, batch, _ = made("metric-log", start, data, metric=metric)
    depth_m = batch.maps["depth_m"]
    signed = objective._canonical(depth_m, batch).numpy()
    known = np.isfinite(depth_m.numpy())
    for number, focal_px in enumerate(batch.focal_px.tolist()):
        again = metric.depth_m((signed[number] + 1) / 2, focal_px)
        inside = known[number] & (np.abs(signed[number]) < 1)
        assert inside.any()
        np.testing.assert_allclose(again[inside], depth_m[number].numpy()[inside], rtol=1e-3)


def test_metric_depth_learns_that_the_sky_is_at_the_far_end(start, data):
    objective, batch, _ = made("metric-log", start, data)
    depth_m = batch.maps["depth_m"]
    sky = depth_m.isposinf()
    assert 0 < sky.sum() < (~depth_m.isnan()).sum()
    right = objective._canonical(depth_m, batch).nan_to_num()
    assert float(objective._loss(right[:, None], batch)["loss"]) == 0
    sky_at_hand = torch.where(sky, -1.0, right)
    share = float(sky.sum() / (depth_m > 0).sum())
    assert float(objective._loss(sky_at_hand[:, None], batch)["loss"]) == pytest.approx(2 * share)


def test_a_prior_keeps_the_outlines_that_sparse_depth_says_nothing_of(tmp_path, data):
    """Fine-tuned on one pixel of twenty, the answer's edges stay nearer to what they were than without a prior."""
    start, off = str(write_small_checkpoint(tmp_path / "start")), []
    for weight in (0.0, 0.1, 1.0):
        objective, batch, generator = made("robot", start, data)
        objective.stage = replace(objective.stage, objective=replace(objective.stage.objective, prior=weight))
        with torch.no_grad():
            before = objective.decoded(batch, generator)[:, 0]
        depth_m = batch.maps["depth_m"]
        measured = torch.rand(depth_m.shape, generator=generator) < 0.05
        batch = replace(batch, maps={"depth_m": depth_m.where(measured, torch.nan), "prior": before})
        adam = torch.optim.Adam(objective.parameters(), lr=1e-4)
        for _ in range(8):
            adam.zero_grad()
            objective(batch, generator)["loss"].backward()
            adam.step()
        with torch.no_grad():
            off.append(float(detail_loss(objective.decoded(batch, generator)[:, 0], before, 4)))
    assert off[0] > off[1] > off[2]
    assert off[2] < 0.7 * off[0]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_what_a_faster_copy_stands_for_is_put_aside_after_all_else_was_moved(part, start, data, monkeypatch):
    objective, _, _ = made("e2e-depth", start, data)
    module, calls = getattr(objective.model.vae, part), []
    monkeypatch.setattr(module, "_apply", lambda *given, **options: calls.append("moved with the whole") or module)
    monkeypatch.setattr(module, "to", lambda device: calls.append(f"put aside: {device}"))
    objective.place(torch.device("cpu"))
    assert "moved with the whole" in calls
    assert calls[-1] == "put aside: cpu"


def test_depth_trains_a_tiny_decoder_of_one_channel(start, data):
    objective, batch, generator = made("tiny", start, data)
    assert objective.model.tiny.config.out_channels == 1
    assert objective.decoded(batch, generator).shape[1] == 1


def test_published_end_to_end_loss_by_diffusers_own_modules(start, data):
    """x0 = -sqrt(1 - abar_999) v, decoded, channel mean, clamped; then |s p + t - d| over the batch's known pixels."""
    objective, batch, generator = made("e2e-depth", start, data)
    model = objective.model
    with torch.no_grad():
        latent = model.vae.encode(image_of(batch)).latent_dist.mode() * 0.18215
        prompt = model.prompt.expand(2, -1, -1)
        inputs = torch.cat([latent, torch.zeros_like(latent)], dim=1)
        v = model.unet(inputs, torch.tensor([999, 999]), prompt).sample
        decoded = model.vae.decode(-0.997667 * v / 0.18215).sample.mean(dim=1).clamp(-1, 1).numpy()
        found = float(objective(batch, generator)["loss"])
    errors = []
    for p, d in zip(decoded, batch.maps["depth_m"].numpy(), strict=True):
        known = np.isfinite(d)
        d = np.clip(d[known], *np.quantile(d[known], (0.02, 0.98)))
        design = np.stack([p[known], np.ones(known.sum())], axis=1).astype(np.float64)
        errors.append(np.abs(design @ np.linalg.lstsq(design, d, rcond=None)[0] - d))
    assert found == pytest.approx(np.concatenate(errors).mean(), rel=1e-3)


def test_other_inputs_than_zeros_are_drawn_anew_and_denoised(start, data):
    recipe = small_recipe("e2e-depth", start)
    answers = []
    for kind in ("gaussian", "pyramid", "zeros"):
        stage = replace(recipe.stages[0], objective=replace(recipe.stages[0].objective, target_input=kind))
        objective = build_objective(first_model(recipe), recipe, stage)
        batch = Passes(recipe, stage, 0, data)[0]
        with torch.no_grad():
            one, two = (objective.decoded(batch, torch.Generator().manual_seed(seed)) for seed in (1, 2))
        assert torch.equal(one, two) == (kind == "zeros")
        answers.append(one)
    assert not torch.equal(answers[0], answers[1])
