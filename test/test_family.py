"""Every published layout is read for what it is; what contradicts itself, or is no Marigold, is refused."""

import json
import re
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from family_checkpoints import FAMILY, write_family_checkpoint
from marigold_ros.checkpoints import describe, find_checkpoint, require_single_step
from marigold_ros.config import Unusable
from marigold_ros.family import kind_of, single_step

E2E = {"_class_name": "MarigoldDepthPipeline", "default_denoising_steps": 1}
MANY = {"_class_name": "MarigoldDepthPipeline", "default_denoising_steps": 4}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


@pytest.fixture(scope="module", params=FAMILY, ids=lambda row: row.name)
def row(request):
    return request.param


@pytest.fixture(scope="module")
def folder(row, tmp_path_factory):
    return write_family_checkpoint(tmp_path_factory.mktemp("family"), row)


def test_what_it_says_of_itself(row, folder):
    info = describe(folder)
    assert (info.name, info.kind.task, info.kind.protocol) == (row.name, row.task, row.protocol)
    assert info.kind.targets == row.targets
    assert info.kind.steps == (row.steps or {"e2e": 1, "diffusion": info.kind.steps}[row.protocol])
    assert (info.width, info.height) == (768, 576)
    assert info.space == ("depth" if row.task == "depth" else "")
    assert info.kind.x_left == row.x_left


def test_only_end_to_end_fine_tuned_ones_take_the_fast_path(row, folder):
    info = describe(folder)
    if row.protocol == "e2e":
        assert require_single_step(info, row.task).x0_scale == pytest.approx(-0.997667, abs=1e-6)
    else:
        with pytest.raises(Unusable, match="estimate"):
            require_single_step(info, row.task)


@pytest.mark.parametrize(
    ("index", "changes", "words"),
    [
        (E2E, {"timestep_spacing": "leading"}, "timestep_spacing='leading'"),
        (E2E, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True.*zeros"),
        (E2E, {"prediction_type": "noise"}, "prediction_type='noise'"),
        (E2E, {"beta_schedule": "linear"}, "beta_schedule='linear'"),
        (E2E, {"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
        (MANY, {"rescale_betas_zero_snr": True, "timestep_spacing": "leading"}, "zero-SNR"),
        (MANY, {"timestep_spacing": "linspace"}, "timestep_spacing='linspace'"),
        ({**E2E, "default_denoising_steps": 0}, {}, "default_denoising_steps=0"),
        (E2E, {"beta_start": None}, "beta_start=None"),
        (E2E, {"num_train_timesteps": "many"}, "num_train_timesteps='many'"),
        (MANY, {"num_train_timesteps": 1}, "num_train_timesteps=1 .*: must be a whole number from 2"),
        (MANY, {"beta_end": 1.0}, r"beta_end=1\.0"),
        (E2E, {"beta_end": float("inf")}, "beta_end=inf"),
        (E2E, {"beta_start": float("nan")}, "beta_start=nan"),
        (E2E, {"beta_start": 0.99, "beta_end": 0.99, "prediction_type": "epsilon"}, r"beta_end=0\.99 .*: is so large"),
        (E2E, {"trained_betas": [0.1, 0.2]}, "trained_betas="),
        ({**E2E, "_class_name": ["x"]}, {}, r"_class_name=\['x'\]"),
    ],
)
def test_contradictions_are_refused(index, changes, words):
    with pytest.raises(Unusable, match=words):
        kind_of("checkpoint /x", "x", index, {}, {**SCHEDULER, **changes})


def test_where_nothing_says_how_it_was_trained_the_user_is_asked():
    """A copy of GonzaloMG/marigold-normals under another name looks like an end-to-end fine-tune, and is none."""
    nameless = {"_class_name": "StableDiffusionPipeline"}
    with pytest.raises(Unusable, match=r'\{"protocol": "e2e"\}'):
        kind_of("checkpoint /x", "my-normals", nameless, {}, SCHEDULER)
    assert kind_of("checkpoint /x", "my-normals", nameless, {"protocol": "e2e"}, SCHEDULER).single_step is not None


def test_our_own_file_counts_more_than_the_name():
    nameless = {"_class_name": "StableDiffusionPipeline", "default_denoising_steps": 1}
    assert kind_of("checkpoint /x", "my-normals", nameless, {"task": "depth"}, SCHEDULER).task == "depth"


def test_a_network_that_was_trained_to_start_from_noise_has_no_step_from_zeros():
    assert kind_of("checkpoint /x", "x", E2E, {"target_input": "zeros"}, SCHEDULER).single_step is not None
    kind = kind_of("checkpoint /x", "x", E2E, {"target_input": "pyramid"}, SCHEDULER)
    assert (kind.protocol, kind.steps, kind.target_input, kind.single_step) == ("e2e", 1, "pyramid", None)
    with pytest.raises(Unusable, match=r"target_input='noise' in .*: must be one of 'zeros', 'gaussian', 'pyramid'"):
        kind_of("checkpoint /x", "x", E2E, {"target_input": "noise"}, SCHEDULER)
    with pytest.raises(Unusable, match=r"target_input='gaussian' in .*: is of end-to-end .*, this is diffusion"):
        kind_of("checkpoint /x", "x", MANY, {"target_input": "gaussian"}, SCHEDULER)


def test_a_distilled_network_needs_its_own_scheduler():
    with pytest.raises(Unusable, match="LCMScheduler"):
        kind_of("checkpoint /x", "x", MANY, {"protocol": "lcm"}, SCHEDULER)


def test_our_own_file_may_say_what_the_others_do_not():
    nameless = {"_class_name": "StableDiffusionPipeline"}
    with pytest.raises(Unusable, match=r'\{"task": "normals"\}'):
        kind_of("checkpoint /x", "mine", nameless, {}, SCHEDULER)
    kind = kind_of("checkpoint /x", "mine", nameless, {"task": "normals", "protocol": "diffusion"}, SCHEDULER)
    assert (kind.task, kind.protocol, kind.single_step) == ("normals", "diffusion", None)
    with pytest.raises(Unusable, match="protocol='magic'"):
        kind_of("checkpoint /x", "mine", E2E, {"protocol": "magic"}, SCHEDULER)


@pytest.mark.parametrize(("kind", "scale"), [("v_prediction", -0.997667), ("epsilon", -14.6145), ("sample", 1.0)])
def test_x0_scale(kind, scale):
    found, timestep = single_step({**SCHEDULER, "prediction_type": kind}, "x")
    assert found == pytest.approx(scale, rel=1e-4)
    assert timestep == 999


@pytest.mark.parametrize("pipeline", ["DepthNormalEstimationPipeline", "DepthNormalPipeline"])
def test_geowizard_is_refused_with_the_reason(pipeline):
    with pytest.raises(Unusable, match=r"GeoWizard.*CLIP"):
        kind_of("checkpoint /x", "x", {**E2E, "_class_name": pipeline}, {}, SCHEDULER)


def edited(parent, module, **changes):
    folder = write_family_checkpoint(parent, FAMILY[0])
    path = folder / module / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def refusal(folder):
    try:
        return describe(folder) and None
    except Unusable as problem:
        return str(problem)


def test_no_odd_value_in_a_checkpoints_files_ends_in_a_traceback(tmp_path):
    """Every value of every file that is read is replaced in turn: it does not matter, or is refused in one line."""
    (row,) = (row for row in FAMILY if row.name == "marigold-e2e-ft-depth")
    folder = write_family_checkpoint(tmp_path, row, (64, 64))
    own = {"name": "x", "task": row.task, "protocol": row.protocol, "space": "depth", "manifest": None}
    path = folder / "marigold_ros.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    files = ("marigold_ros.json", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
             "vae/config.json")  # fmt: skip
    refusals = []
    for path in map(folder.joinpath, files):
        content = json.loads(path.read_text())
        for key, odd in product(content, (None, "x", -1, 0, 2.5, 1e400, 10**400, ["x"], {}, True)):
            path.write_text(json.dumps({**content, key: odd}))
            refusals.append(refusal(folder))
        path.write_text(json.dumps(content))
    texts = [text for text in refusals if text is not None]
    assert 100 < len(texts) < len(refusals)
    assert not any("\n" in text for text in texts)


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "x\0", 7, None, "x" * 200])
def test_names_that_are_no_names_of_files_are_refused(tmp_path, name):
    folder = write_family_checkpoint(tmp_path, FAMILY[0])
    (folder / "marigold_ros.json").write_text(json.dumps({"name": name}))
    with pytest.raises(Unusable, match=re.escape(f"name in marigold_ros.json {name!r}")):
        describe(folder)
    index = {**MANY, "_class_name": "MarigoldIntrinsicsPipeline", "target_properties": {"target_names": [name]}}
    with pytest.raises(Unusable, match=re.escape(f"target name {name!r}")):
        kind_of("checkpoint /x", "x", index, {}, SCHEDULER)


def test_geowizard_is_known_by_its_unet_as_well(tmp_path):
    folder = edited(tmp_path, "unet", class_embed_type="projection", projection_class_embeddings_input_dim=10)
    with pytest.raises(Unusable, match="GeoWizard"):
        describe(folder)


def test_a_unet_of_other_channels_is_refused(tmp_path):
    with pytest.raises(Unusable, match="4 channels in and 4 out: for depth it must be 8 and 4"):
        describe(edited(tmp_path, "unet", in_channels=4))


@pytest.mark.parametrize(
    ("field", "value"), [("latent_channels", None), ("scaling_factor", "x"), ("scaling_factor", 0)]
)
def test_a_vae_of_odd_numbers_is_refused(tmp_path, field, value):
    with pytest.raises(Unusable, match=f"{field}={value!r} in vae/config.json"):
        describe(edited(tmp_path, "vae", **{field: value}))


@pytest.mark.parametrize("name", ["CompVis/depth-fm", "depthfm-v1.ckpt"])
def test_depthfm_is_refused_with_the_reason(name):
    with pytest.raises(Unusable, match="flow matching"):
        find_checkpoint(name)


def test_a_single_file_is_refused_with_the_way_out(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(Unusable, match="is a file; give the folder"):
        find_checkpoint(str(file))


@pytest.mark.parametrize(
    ("kind", "words"),
    [("StableDiffusionXLPipeline", "only MarigoldDepthPipeline"), (None, "_class_name=None")],
)
def test_other_pipelines_are_refused(kind, words):
    with pytest.raises(Unusable, match=words):
        kind_of("checkpoint /x", "x", {**E2E, "_class_name": kind}, {}, SCHEDULER)


def test_intrinsic_images_must_say_which():
    with pytest.raises(Unusable, match="target_names"):
        kind_of("checkpoint /x", "x", {**MANY, "_class_name": "MarigoldIntrinsicsPipeline"}, {}, SCHEDULER)


def test_the_documentation_lists_the_whole_family():
    table = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    for row in FAMILY:
        (found,) = [line for line in cells if f"/{row.name}`" in line[0] or f"`{row.name}`" in line[0]]
        assert found[1] == ", ".join(row.targets)
        fast = "beside depth ¹" if row.task == "normals" else "yes"
        assert (found[4] == fast) == (row.protocol == "e2e")
        assert found[5].startswith("yes")
        assert found[6] == (("left" if row.x_left else "right") if row.task == "normals" else "")
