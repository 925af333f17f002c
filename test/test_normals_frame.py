"""Normals come out in the optical frame, wherever the network was trained to let x point: worked by hand."""

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from family_checkpoints import FAMILY, write_family_checkpoint  # noqa: E402
from marigold_ros import export  # noqa: E402
from marigold_ros.checkpoints import ONNX_FILE, answers_x_left, describe, load_network  # noqa: E402
from marigold_ros.config import ModelConfig, Unusable  # noqa: E402
from marigold_ros.doctor import checkpoint  # noqa: E402
from marigold_ros.estimator import load_normals_estimator  # noqa: E402
from marigold_ros.multistep import MultiStep, Settings  # noqa: E402
from marigold_ros.network import answer, normals_head  # noqa: E402
from marigold_ros.normals_frame import draws_x_left, optical_factors  # noqa: E402
from marigold_ros.parts import parts_folder  # noqa: E402
from marigold_ros.selfcheck import reference_of, write_reference  # noqa: E402
from small_checkpoint import edit_json, write_small_checkpoint  # noqa: E402

ROWS = {row.name: row for row in FAMILY if row.task == "normals"}
# What every network here draws: |(2, 1, 2)| = 3. Read with x to the right, and to the left; y up, z to the viewer.
DRAWN = (2 / 3, 1 / 3, 2 / 3)
RIGHT, LEFT = (2 / 3, -1 / 3, -2 / 3), (-2 / 3, -1 / 3, -2 / 3)
OPTICAL = {
    "marigold-normals-v0-1": RIGHT,
    "marigold-normals-lcm-v0-1": RIGHT,
    "marigold-normals-v1-1": RIGHT,
    "marigold-normals": LEFT,
    "marigold-e2e-ft-normals": LEFT,
    "stable-diffusion-e2e-ft-normals": LEFT,
}
E2E = [name for name in OPTICAL if "e2e" in name]
TRAILING = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}
PIPELINE, LAYOUT = {"_class_name": "MarigoldNormalsPipeline"}, {"_class_name": "StableDiffusionPipeline"}
OWN = "marigold_ros.json"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder by published name, written once and only read."""
    parent, written = tmp_path_factory.mktemp("published"), {}

    def get(name):
        if name not in written:
            written[name] = write_family_checkpoint(parent, ROWS[name], (128, 128), DRAWN)
        return written[name]

    return get


@pytest.fixture(scope="module")
def rgb():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def saying(folder, parent, **own):
    """A copy of `folder`, of the same name, whose own file says this as well."""
    copy = shutil.copytree(folder, parent / folder.name)
    edit_json(copy / OWN, **own)
    return copy


def assert_all(found, vector, atol=1e-4):
    np.testing.assert_allclose(found.reshape(-1, 3), np.tile(np.float32(vector), (found.size // 3, 1)), atol=atol)


def fast(folder, rgb):
    with torch.inference_mode():
        return load_network(describe(folder))(torch.from_numpy(rgb)[None])[0].numpy()


def test_every_published_network_is_here():
    assert set(OPTICAL) == set(ROWS)


@pytest.mark.parametrize("name", OPTICAL)
def test_on_diffusers_pipeline(published, rgb, name):
    network = MultiStep(describe(published(name)), Settings(resolution=64))
    assert_all(network(rgb)["normals"].values, OPTICAL[name])


@pytest.mark.parametrize("name", E2E)
def test_on_the_fast_path(published, rgb, name):
    assert_all(fast(published(name), rgb), OPTICAL[name])


@pytest.mark.parametrize("name", E2E)
def test_the_estimators_engine_of_torch(published, rgb, name):
    estimate = load_normals_estimator(ModelConfig(checkpoint=str(published(name)), engine="torch"))
    assert_all(estimate(rgb), OPTICAL[name])


def test_an_ensemble_s_mean_is_turned_as_well(published, rgb):
    network = MultiStep(describe(published("marigold-normals")), Settings(resolution=64, steps=1, ensemble=3))
    found = network(rgb)["normals"]
    assert_all(found.values, LEFT)
    assert float(found.uncertainty.max()) < 1e-3


@pytest.mark.parametrize(("name", "x", "vector"), [(E2E[0], "right", RIGHT), (E2E[1], "left", LEFT)])
def test_our_own_file_counts_more_than_the_name(published, rgb, tmp_path, name, x, vector):
    folder = saying(published(name), tmp_path, normals_x=x)
    assert_all(fast(folder, rgb), vector)
    assert_all(MultiStep(describe(folder), Settings(resolution=64))(rgb)["normals"].values, vector)


def test_and_turns_a_network_of_marigolds_authors(published, rgb, tmp_path):
    folder = saying(published("marigold-normals-v1-1"), tmp_path, normals_x="left")
    assert_all(MultiStep(describe(folder), Settings(resolution=64, steps=1))(rgb)["normals"].values, LEFT)


def test_heads():
    drawn = torch.tensor(DRAWN).view(1, 3, 1, 1)
    for x_left, vector in ((False, RIGHT), (True, LEFT)):
        assert optical_factors(x_left) == (vector[0] / DRAWN[0], -1.0, -1.0)
        turned = torch.einsum("oi,nihw->nohw", normals_head(x_left).float(), drawn)
        assert_all(answer(turned).numpy(), vector, atol=1e-6)


# Exports (that a real one answers so is tested with the engines, in test_estimator.py)


@pytest.fixture
def both(published, tmp_path):
    """A checkpoint whose x points left, and a copy that says right."""
    left = published(E2E[0])
    return left, saying(left, tmp_path, normals_x="right")


def test_no_export_in_the_cache_serves_the_other_frame(both, tmp_path):
    left, right = map(describe, both)
    assert left.digest != right.digest
    assert export.cached_file(left, tmp_path) != export.cached_file(right, tmp_path)
    assert parts_folder(left, 128, 128, tmp_path) != parts_folder(right, 128, 128, tmp_path)


def test_the_digests_of_networks_whose_x_points_right_stay_what_they_were(published, tmp_path):
    """So that no engine is built anew in vain."""
    name = "marigold-normals-v1-1"
    info = describe(published(name))
    assert "x_left" not in repr(info.kind)
    assert describe(saying(published(name), tmp_path, normals_x="right")).digest == info.digest
    assert describe(saying(published(name), tmp_path / "left", normals_x="left")).digest != info.digest


def with_export(folder, parent, **said):
    """A copy of `folder` with an exported network and its self-check in it, which says this of itself."""
    copy = shutil.copytree(folder, parent / folder.name)
    (copy / ONNX_FILE).write_bytes(b"onnx")
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    write_reference(copy / ONNX_FILE, frames, frames, **said)
    return copy


def test_an_exported_network_in_the_folder_serves_its_own_frame_only(both, tmp_path, caplog):
    for folder, x_left in zip(both, (True, False), strict=True):
        own = with_export(folder, tmp_path / f"own {x_left}", x_left=x_left)
        assert export.ready_file(describe(own), tmp_path) == own / ONNX_FILE
        assert not caplog.text
        other = with_export(folder, tmp_path / f"other {x_left}", x_left=not x_left)
        assert export.ready_file(describe(other), tmp_path) is None
        assert "takes x of normals to point to the other side" in caplog.text
        caplog.clear()


def test_one_from_before_frames_were_told_apart_has_x_right(both, tmp_path):
    for folder, used in zip(both, (False, True), strict=True):
        copy = with_export(folder, tmp_path / str(used))
        with np.load(reference_of(copy / ONNX_FILE)) as stored:
            kept = {name: stored[name] for name in ("rgb", "answers")}
        np.savez(reference_of(copy / ONNX_FILE), **kept)
        assert (export.ready_file(describe(copy), tmp_path) is not None) == used


def test_a_damaged_self_check_of_the_folders_own_is_one_sentence(both, tmp_path):
    copy = with_export(both[0], tmp_path / "damaged")
    reference_of(copy / ONNX_FILE).write_bytes(b"PK")
    with pytest.raises(Unusable, match=r"self-check file .* cannot be read"):
        export.ready_file(describe(copy), tmp_path)
    assert "cannot be read" in checkpoint(str(copy), tmp_path).text


# What decides


@pytest.mark.parametrize(
    ("name", "index", "scheduler", "x_left"),
    [
        ("marigold-normals-v1-1", PIPELINE, {"rescale_betas_zero_snr": True}, False),
        # The first ones are often run with trailing timesteps, which their authors found to be right later.
        ("marigold-normals-v0-1", PIPELINE, {}, False),
        ("renamed", PIPELINE, {"rescale_betas_zero_snr": True}, False),
        ("renamed", PIPELINE, {"timestep_spacing": "leading"}, False),
        ("renamed", PIPELINE, {"_class_name": "LCMScheduler"}, False),
        ("renamed", LAYOUT, {}, True),
        ("renamed", LAYOUT, {"timestep_spacing": "leading"}, True),
        ("marigold-normals", PIPELINE, {}, True),
        # Marigold's own v1-1 in a folder that is called like the other authors' network.
        ("marigold-normals", PIPELINE, {"rescale_betas_zero_snr": True}, False),
        ("marigold-e2e-ft-normals", PIPELINE, {}, True),
    ],
)
def test_name_layout_and_schedule(name, index, scheduler, x_left):
    assert draws_x_left("checkpoint /x", name, index, {}, {**TRAILING, **scheduler}) is x_left


@pytest.mark.parametrize("name", ["renamed", "my-e2e-normals"])
def test_where_nothing_says_it_the_user_is_asked(name):
    with pytest.raises(
        Unusable, match=r'^checkpoint /x: .*write \{"normals_x": "left"\} .* or \{"normals_x": "right"\}'
    ):
        draws_x_left("checkpoint /x", name, PIPELINE, {}, TRAILING)
    assert draws_x_left("checkpoint /x", name, PIPELINE, {"normals_x": "left"}, TRAILING)
    assert not draws_x_left("checkpoint /x", name, PIPELINE, {"normals_x": "right"}, TRAILING)


@pytest.mark.parametrize("value", ["up", "Left", "", None, True, -1, ["left"], {}])
def test_nonsense_is_refused(published, tmp_path, value):
    folder = saying(published("marigold-normals-v1-1"), tmp_path, normals_x=value)
    with pytest.raises(Unusable, match=r"normals_x=.* in marigold_ros\.json: must be 'right' or 'left'"):
        describe(folder)


def test_depth_has_no_x(tmp_path):
    folder = write_small_checkpoint(tmp_path / "small")
    digest = describe(folder).digest
    edit_json(folder / OWN, normals_x="left")
    assert describe(folder).digest == digest
    assert not answers_x_left(folder)
