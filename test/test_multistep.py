"""Every published checkpoint's layout on diffusers' pipelines, and the fast path against them."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from family_checkpoints import FAMILY, write_family_checkpoint  # noqa: E402
from marigold_ros.checkpoints import describe, load_network  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from marigold_ros.multistep import MultiStep, Settings  # noqa: E402
from marigold_ros.network import answer  # noqa: E402
from marigold_ros.noise import target_noise  # noqa: E402

ROWS = {row.name: row for row in FAMILY}
QUICK = Settings(resolution=64)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A checkpoint of the family by its name; each is written once."""
    parent, written = tmp_path_factory.mktemp("family"), {}

    def get(name):
        if name not in written:
            written[name] = describe(write_family_checkpoint(parent, ROWS[name]))
        return written[name]

    return get


@pytest.fixture(scope="module")
def rgb():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize("row", FAMILY, ids=lambda row: row.name)
def test_every_checkpoint_runs_as_it_asks_to_be_run(family, rgb, row):
    network = MultiStep(family(row.name), QUICK if row.steps != 1 else replace(QUICK, steps=1))
    assert network.steps == family(row.name).kind.steps
    answers = network(rgb)
    assert tuple(answers) == row.targets
    for name, prediction in answers.items():
        assert prediction.uncertainty is None
        assert prediction.values.shape == ((48, 64) if name == "depth" else (48, 64, 3))
        assert prediction.values.dtype == np.float32
        assert np.isfinite(prediction.values).all()
        assert np.ptp(prediction.values) > 0
    if row.task == "normals":
        np.testing.assert_allclose(np.linalg.norm(answers["normals"].values, axis=2), 1.0, atol=1e-3)


@pytest.mark.parametrize("name", [row.name for row in FAMILY if row.protocol == "e2e"])
def test_the_fast_path_answers_like_diffusers(family, rgb, name):
    """At the image's own size, in float32, from the same floats: random weights give normals so short that bytes
    divided in another order show."""
    info = family(name)
    theirs = MultiStep(info, Settings(resolution=-1))(rgb)[info.kind.task].values
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255.0
    with torch.inference_mode():
        ours = answer(load_network(info).forward_normalised(image * 2.0 - 1.0))[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("marigold-depth-v1-1", ["depth"]),
        ("marigold-normals-v1-1", ["normals"]),
        ("marigold-iid-lighting-v1-1", ["albedo", "shading", "residual"]),
    ],
)
def test_ensembles_come_with_uncertainty(family, rgb, name, targets):
    answers = MultiStep(family(name), replace(QUICK, ensemble=3, steps=1, batch=2))(rgb)
    assert list(answers) == targets
    for prediction in answers.values():
        assert prediction.uncertainty.shape[:2] == (48, 64)
        assert float(prediction.uncertainty.mean()) > 0


def test_sides_that_are_no_multiple_of_8_are_padded_with_the_edge_which_is_cut_off_again(family):
    network = MultiStep(family("marigold-e2e-ft-depth"), Settings(resolution=-1))
    rgb = np.random.default_rng(0).integers(0, 256, (43, 70, 3), np.uint8)
    padded = np.pad(rgb, ((0, 5), (0, 2), (0, 0)), mode="edge")
    seen, padding = network.preprocessed(rgb)
    assert padding == (5, 2)
    np.testing.assert_allclose(seen[0].permute(1, 2, 0).numpy(), padded / 127.5 - 1, atol=1e-6)
    cut = network(padded)["depth"].values[:43, :70]
    np.testing.assert_allclose(network(rgb)["depth"].values, cut, atol=1e-6)


def test_the_seed_decides(family, rgb):
    info = family("marigold-depth-v1-1")
    first, again, other = (
        MultiStep(info, replace(QUICK, steps=1, seed=seed))(rgb)["depth"].values for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


@pytest.mark.parametrize("kind", ["gaussian", "pyramid"])
def test_a_network_trained_to_start_from_noise_starts_from_the_seeds(family, rgb, tmp_path, kind):
    """By hand: x0 = sqrt(abar) z - sqrt(1 - abar) v at the last timestep, as it was trained."""
    zeros = family("marigold-e2e-ft-depth")
    folder = write_family_checkpoint(tmp_path, ROWS["marigold-e2e-ft-depth"])
    (folder / "marigold_ros.json").write_text(json.dumps({"target_input": kind}))
    network = MultiStep(describe(folder), Settings(resolution=-1, seed=7))
    found = network(rgb)["depth"].values
    np.testing.assert_array_equal(found, network(rgb)["depth"].values)  # anew for each image
    with torch.inference_mode():
        own = load_network(zeros)
        latent = own.encode(torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 127.5 - 1.0)
        z = target_noise(kind, latent.shape, torch.Generator().manual_seed(7))
        v = own.unet(torch.cat([latent, z], dim=1), 999, own.prompt).sample
        expected = answer(own.decode(0.068265 * z - 0.997667 * v))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - MultiStep(zeros, Settings(resolution=-1))(rgb)["depth"].values).max() > 1e-3
    other = MultiStep(describe(folder), Settings(resolution=-1, seed=8))
    assert np.abs(found - other(rgb)["depth"].values).max() > 1e-3
    with pytest.raises(Unusable, match="has one step and one member; steps=1 and ensemble=3 mean nothing"):
        MultiStep(describe(folder), Settings(ensemble=3))


def test_both_timestep_spacings_of_the_first_release(family, rgb):
    """Its own is 'leading'; the ablation of arXiv 2409.11355 needs both, down to one step."""
    info = family("marigold-depth-v1-0")
    starts = {}
    for spacing in ("leading", "trailing"):
        network = MultiStep(info, replace(QUICK, steps=1, spacing=spacing))
        network(rgb)
        starts[spacing] = network.pipeline.scheduler.timesteps.tolist()
    assert starts == {"leading": [1], "trailing": [999]}


def test_depth_increases_with_distance_whatever_the_map(family, rgb, tmp_path):
    row = ROWS["marigold-e2e-ft-depth"]
    folder = write_family_checkpoint(tmp_path, replace(row, index={**row.index, "prediction_type": "disparity"}))
    disparity, depth = (MultiStep(info, QUICK)(rgb)["depth"].values for info in (describe(folder), family(row.name)))
    np.testing.assert_allclose(disparity, 1 - depth, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("marigold-e2e-ft-depth", {"ensemble": 5}, "deterministic"),
        ("marigold-e2e-ft-depth", {"steps": 4}, "has one step"),
        ("marigold-e2e-ft-depth", {"spacing": "leading"}, "spacing='leading'"),
        ("marigold-depth-lcm-v1-0", {"spacing": "trailing"}, "lcm"),
        ("marigold-depth-v1-1", {"spacing": "leading"}, "zero-SNR"),
        ("marigold-depth-v1-1", {"spacing": "sideways"}, "sideways"),
        ("marigold-depth-v1-0", {"steps": 1}, "one step with 'leading'"),
        ("marigold-depth-v1-1", {"resolution": 100}, "resolution=100"),
        ("marigold-depth-v1-1", {"resolution": -8}, "resolution=-8"),
        ("marigold-depth-v1-1", {"resolution": 80000}, "resolution=80000"),
        ("marigold-depth-v1-1", {"ensemble": 0}, "ensemble=0"),
        ("marigold-depth-v1-1", {"seed": -1}, "seed=-1"),
        ("marigold-depth-v1-1", {"seed": 2**63}, "seed=9223372036854775808"),
        ("marigold-depth-v1-1", {"steps": 1001}, "steps=1001.*knows 1000"),
        ("marigold-depth-lcm-v1-0", {"steps": 51}, "steps=51.*knows 50"),
    ],
)
def test_settings_that_mean_nothing_to_the_checkpoint_are_refused(family, name, changes, words):
    with pytest.raises(Unusable, match=words):
        MultiStep(family(name), replace(QUICK, **changes))


def test_what_only_diffusers_finds_out_is_one_sentence(family, rgb, tmp_path):
    folder = write_family_checkpoint(tmp_path, ROWS["marigold-depth-v1-1"])
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "flip_sin_to_cos": True, "freq_shift": "x"}))
    with pytest.raises(Unusable, match=r"^checkpoint .*: diffusers cannot run it on an image of 64x48 \("):
        MultiStep(describe(folder), replace(QUICK, steps=1))(rgb)
    with pytest.raises(Unusable, match=r"on an image of 640x1 .*Extreme aspect ratio"):
        MultiStep(family("marigold-depth-v1-1"), replace(QUICK, steps=1))(rgb[:1].repeat(10, axis=1))
