"""The diffusion that anchors guide, on a small real checkpoint; the guard, apart from it."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from diffusers import DDIMScheduler  # noqa: E402

from family_checkpoints import FAMILY, write_family_checkpoint  # noqa: E402
from marigold_ros import guided  # noqa: E402
from marigold_ros.anchors import Anchors  # noqa: E402
from marigold_ros.checkpoints import describe  # noqa: E402
from marigold_ros.config import FitConfig, Unusable  # noqa: E402
from marigold_ros.family import LCM  # noqa: E402
from marigold_ros.guidance import Guarded, Published, at, places  # noqa: E402
from marigold_ros.guided import Guided  # noqa: E402
from marigold_ros.metric import MetricFit, apply_fit, fit_metric, from_space, sample, to_space  # noqa: E402
from marigold_ros.multistep import MultiStep, Settings  # noqa: E402
from small_checkpoint import edit_json  # noqa: E402

ROWS = {row.name: row for row in FAMILY}
# Many steps from noise, and the same distilled to few.
KINDS = pytest.mark.parametrize("name", ["marigold-depth-v1-1", "marigold-depth-lcm-v1-0"])
QUICK = Settings(resolution=64, steps=5)
SIZE = 48, 64


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A checkpoint of the family by its name; each is written once."""
    parent, written = tmp_path_factory.mktemp("family"), {}

    def get(name="marigold-depth-v1-1"):
        if name not in written:
            written[name] = describe(write_family_checkpoint(parent, ROWS[name]))
        return written[name]

    return get


@pytest.fixture(scope="module")
def rgb():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


def ramp_anchors(count=200, factor=1.0, wild=0):
    """Of a plane from 2 m in one corner to 6 m in the other; the first `wild` of them 30 times too far."""
    pixels = np.random.default_rng(1).permutation(SIZE[0] * SIZE[1])[:count]
    u, v = pixels % SIZE[1], pixels // SIZE[1]
    depth_m = np.float32(factor) * (2 + 0.05 * u + 0.02 * v).astype(np.float32)
    depth_m[:wild] *= 30
    ones = np.ones(count, np.float32)
    return Anchors(np.stack([u, v], axis=1).astype(np.float32), depth_m, ones, count, 0.01 * depth_m, ones)


def error(depth_m, anchors):
    return float(np.abs(sample(depth_m, anchors.pixels) / anchors.depth_m - 1).mean())


@KINDS
def test_guidance_brings_depth_to_the_anchors(family, rgb, name):
    """A random network hardly follows, but further than one scale and shift can bring it, also where no anchor is."""
    info, anchors, everywhere = family(name), ramp_anchors(60), ramp_anchors(SIZE[0] * SIZE[1])
    own = {"steps": 1} if info.kind.protocol == LCM else {"steps": guided.STEPS, "spacing": "trailing"}
    relative = MultiStep(info, replace(QUICK, **own))(rgb)["depth"].values
    fit = fit_metric(relative, anchors, "depth", FitConfig(min_inliers=0.0))
    assert isinstance(fit, MetricFit)
    network = Guided(info, Settings(resolution=64))
    assert network.steps == 50
    answer = network(rgb, anchors)
    assert (answer.values.shape, answer.values.dtype, answer.uncertainty) == (SIZE, np.float32, None)
    unguided = apply_fit(fit, relative, 100.0)
    assert error(answer.values, anchors) < 0.85 * error(unguided, anchors)
    assert error(answer.values, everywhere) < 0.95 * error(unguided, everywhere)


def test_a_distilled_network_is_guided_by_its_own_clean_latents_without_fresh_noise(family, tmp_path):
    info = family("marigold-depth-lcm-v1-0")
    known = MultiStep(info, Settings(steps=50)).pipeline.scheduler
    scheduler = Guided(info, Settings())._diffusion.pipeline.scheduler
    assert isinstance(scheduler, DDIMScheduler)
    for one in (known, scheduler):
        one.set_timesteps(50)
    assert scheduler.timesteps.tolist() == known.timesteps.tolist()
    torch.testing.assert_close(scheduler.alphas_cumprod, known.alphas_cumprod)
    output, latent = torch.randn(2, 1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    for timestep in known.timesteps:
        clean = scheduler.step(output, timestep, latent).pred_original_sample
        torch.testing.assert_close(clean, known.step(output, timestep, latent).denoised, atol=1e-4, rtol=0)
    folder = write_family_checkpoint(tmp_path, ROWS["marigold-depth-lcm-v1-0"])
    path = folder / "scheduler" / "scheduler_config.json"
    edit_json(path, original_inference_steps=5)
    assert Guided(describe(folder), Settings()).steps == 50
    # What its config leaves open is an LCM scheduler's default, not DDIM's.
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "clip_sample"})
    )
    assert not Guided(describe(folder), Settings())._diffusion.pipeline.scheduler.config.clip_sample


@KINDS
def test_one_wild_anchor_changes_little_with_the_guard_and_all_without_it(family, rgb, name):
    clean, wild = ramp_anchors(), ramp_anchors(wild=1)
    changes = {}
    for guard in (True, False):
        network = Guided(family(name), QUICK, guard=guard)
        changes[guard] = np.median(np.abs(network(rgb, wild).values / network(rgb, clean).values - 1))
    assert changes[True] < 0.05
    assert changes[False] > 1


@KINDS
def test_the_seed_decides(family, rgb, name):
    first, again, other = (
        Guided(family(name), replace(QUICK, seed=seed))(rgb, ramp_anchors()).values for seed in (1, 1, 2)
    )
    # Not to the bit: where arrays lie in memory decides how the processor sums them up, and each step adds to that.
    by_seed = np.abs(first - other).max()
    assert by_seed > 1e-3
    assert np.abs(first - again).max() < 0.1 * by_seed


@pytest.mark.parametrize("space", ["depth", "inverse_depth", "log_depth"])
def test_metres_follow_the_unit_of_the_anchors(family, rgb, space):
    info = replace(family(), space=space)
    unit = 1.2**8  # eight of the steps of depth in which the fit counts independent anchors
    once, scaled = (Guided(info, QUICK)(rgb, ramp_anchors(factor=factor)).values for factor in (1, unit))
    known = np.isfinite(once)
    assert known.mean() > 0.5
    np.testing.assert_allclose(scaled[known], unit * once[known], rtol=5e-2)


def test_without_rates_it_is_the_plain_diffusion(family, rgb, monkeypatch):
    """Then only the start of scale and shift is left: the published one maps 0 and 1 to the outermost anchors."""
    monkeypatch.setattr(guided, "_LATENT_RATE", 0.0)
    monkeypatch.setattr(guided, "_LINE_RATE", 0.0)
    anchors = ramp_anchors()
    low, high = anchors.depth_m.min(), anchors.depth_m.max()
    relative = MultiStep(family("marigold-depth-v1-0"), replace(QUICK, spacing="trailing"))(rgb)["depth"].values
    found = Guided(family("marigold-depth-v1-0"), QUICK, guard=False)(rgb, anchors).values
    np.testing.assert_allclose(found, low + (high - low) * relative, rtol=1e-4)
    fit = fit_metric(relative, anchors, "depth", FitConfig(min_inliers=0.0))
    found = Guided(family("marigold-depth-v1-0"), QUICK)(rgb, anchors).values
    np.testing.assert_allclose(found, apply_fit(fit, relative, 1000.0), rtol=1e-3)


def test_an_ensemble_is_the_median_of_its_members_however_many_run_at_once(family, rgb):
    settings = replace(QUICK, ensemble=3)
    together, apart = (Guided(family(), replace(settings, batch=batch))(rgb, ramp_anchors()) for batch in (3, 1))
    # Adam's first step has the length of its rate wherever the gradient is not zero, down to rounding's.
    assert np.median(np.abs(together.values / apart.values - 1)) < 1e-3
    assert together.uncertainty.shape == SIZE
    assert 0 < together.uncertainty.mean() < 1
    first = Guided(family(), QUICK)(rgb, ramp_anchors()).values
    assert np.abs(first - apart.values).max() > 1e-3
    assert np.median(np.abs(first - apart.values)) < 3 * np.median(apart.uncertainty)


def test_half_precision_answers_alike(family, rgb):
    whole, half = (
        Guided(family(), QUICK, dtype=dtype)(rgb, ramp_anchors()).values for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == np.float32
    assert np.median(np.abs(half / whole - 1)) < 0.05


def test_the_weights_stay_as_they_are_and_disparity_is_turned_round(family, rgb, tmp_path):
    folder = write_family_checkpoint(tmp_path, ROWS["marigold-depth-v1-1"])
    edit_json(folder / "model_index.json", prediction_type="disparity")
    network = Guided(describe(folder), QUICK)
    pipe = network._diffusion.pipeline
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    found = network(rgb, ramp_anchors()).values
    assert np.isfinite(found).mean() > 0.5
    assert all(torch.equal(before[name], value) for name, value in pipe.unet.state_dict().items())
    assert all(p.grad is None for p in [*pipe.unet.parameters(), *pipe.vae.parameters()])
    # What the same network decodes, read the other way round, is fitted with the other sign.
    seen = MultiStep(describe(folder), replace(QUICK, spacing="trailing"))(rgb)["depth"].values
    plain = MultiStep(family(), replace(QUICK, spacing="trailing"))(rgb)["depth"].values
    np.testing.assert_allclose(seen, 1 - plain, atol=1e-5)
    latent = torch.zeros(1, 4, 6, 8)
    image = network._encoded(rgb)
    other = Guided(family(), QUICK)
    torch.testing.assert_close(
        network._decoded(latent, image, True), 1 - other._decoded(latent, image, True), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("marigold-e2e-ft-depth", {}, "takes one step from zeros.*marigold-depth-v1-0"),
        ("marigold-normals-v1-1", {}, "gives normals, which anchors say nothing of"),
        ("marigold-iid-lighting-v1-1", {}, "gives albedo and shading and residual, which"),
        ("marigold-depth-lcm-v1-0", {"steps": 1001}, "steps=1001.*knows 1000"),
        ("marigold-depth-lcm-v1-0", {"spacing": "leading"}, r"spacing='leading'.*\(lcm\)"),
        ("marigold-depth-v1-1", {"focal_px": 500.0}, "focal_px=500.0: with anchors"),
        ("marigold-depth-v1-1", {"diffusers_alignment": True}, "alignment 'diffusers'"),
        ("marigold-depth-v1-1", {"spacing": "leading"}, "zero-SNR"),
        ("marigold-depth-v1-1", {"ensemble": 0}, "ensemble=0"),
        ("marigold-depth-v1-1", {"steps": 1001}, "steps=1001.*knows 1000"),
    ],
)
def test_what_anchors_cannot_guide_is_refused(family, name, changes, words):
    with pytest.raises(Unusable, match=words):
        Guided(family(name), replace(Settings(resolution=64), **changes))


def test_anchors_that_cannot_guide_are_refused(family, rgb):
    network = Guided(family(), QUICK)
    with pytest.raises(Unusable, match="19 anchors: at least 20"):
        network(rgb, ramp_anchors(19))
    flat = ramp_anchors()
    with pytest.raises(Unusable, match=r"about one depth \(3.00 to 3.00 m\)"):
        network(rgb, replace(flat, depth_m=np.full(200, 3, np.float32)))
    with pytest.raises(Unusable, match="outside the image of 64x48"):
        network(rgb, replace(flat, pixels=flat.pixels * 2))
    with pytest.raises(Unusable, match=r"diffusers cannot run it guided on an image of 640x1"):
        network(rgb[:1].repeat(10, axis=1), replace(flat, pixels=flat.pixels * np.float32([1, 0])))


def given(space, depth_m=None, pixels=None):
    """A perfect map of a plane, the anchors on it with `depth_m` instead of its depth, and the map at the anchors."""
    anchors = ramp_anchors()
    truth_m = np.float32(2 + 0.05 * np.arange(SIZE[1])[None] + 0.02 * np.arange(SIZE[0])[:, None])
    y = to_space(truth_m.astype(np.float64), space)
    relative = torch.from_numpy((y - y.min()) / np.ptp(y)).float()[None, None]
    anchors = anchors if depth_m is None else replace(anchors, depth_m=depth_m)
    return anchors, relative, at(relative, places(anchors, SIZE, "cpu"))


@pytest.mark.parametrize("space", ["depth", "inverse_depth", "log_depth"])
def test_a_perfect_map_is_left_alone_though_a_third_of_the_anchors_is_wrong(space):
    clean, relative, found = given(space)
    wrong = clean.depth_m.copy()
    wrong[:30], wrong[30:60] = 0.4 * wrong[:30], 2.5 * wrong[30:60]
    for depth_m, most in ((clean.depth_m, 1e-4), (wrong, 0.02)):
        guidance = Guarded(replace(clean, depth_m=depth_m), space, SIZE, 1, "cpu")
        guidance.look_at(relative)
        asked = found.clone().requires_grad_()
        guidance.loss(asked).sum().backward()
        metres = from_space(guidance.y(found)[0].numpy(), space)
        np.testing.assert_allclose(metres, clean.depth_m, rtol=5 * most)
        pull = asked.grad[0].abs()
        unguarded = 0.1 * guidance._slope[:60] * guidance._scale[0] / 200  # Huber's slope is its limit, a mean of 200
        assert pull[:60].sum() < 1e-3 * unguarded.sum()
    published = Published(replace(clean, depth_m=wrong), space, SIZE, 1, "cpu")
    with torch.no_grad():
        assert float(published.loss(found)[0]) > 1


def test_what_neighbours_agree_on_pulls_and_what_contradicts_them_does_not():
    """Every anchor in one half of the image measures half the depth of the map: an error of the map's, in one place.
    One anchor in the other half does so alone."""
    clean, _, found = given("depth")
    depth_m = clean.depth_m.copy()
    left = clean.pixels[:, 0] < 20
    alone = int(np.argmax(clean.pixels[:, 0]))
    depth_m[left] *= 0.5
    depth_m[alone] *= 0.5
    guidance = Guarded(replace(clean, depth_m=depth_m), "depth", SIZE, 1, "cpu")
    guidance._scale[:], guidance._shift[:] = 0.05 * 63 + 0.02 * 47, 2.0  # the plane's own
    asked = found.clone().requires_grad_()
    guidance.loss(asked).sum().backward()
    pull = (asked.grad[0] / guidance._slope).numpy()
    inside = clean.pixels[:, 0] < 10
    assert pull[inside].min() > 20 * abs(pull[alone])
    np.testing.assert_allclose(pull[~left & (clean.pixels[:, 0] > 32)][:-1].max(), 0, atol=1e-4)


def test_the_map_at_the_anchors_is_that_of_the_resized_map():
    relative = torch.rand(2, 1, 12, 16, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(relative, SIZE, mode="bilinear", align_corners=False)[:, 0].numpy()
    anchors = ramp_anchors()
    found = at(relative, places(anchors, SIZE, "cpu")).numpy()
    for member in range(2):
        np.testing.assert_allclose(found[member], sample(whole[member], anchors.pixels), atol=1e-5)
