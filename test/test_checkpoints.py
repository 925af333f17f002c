"""Checkpoint folders: found, described, and refused with a sentence when something is wrong."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from marigold_ros import export, places  # noqa: E402
from marigold_ros.canonical import MetricScale  # noqa: E402
from marigold_ros.checkpoints import describe, find_checkpoint, load_network, seal  # noqa: E402
from marigold_ros.config import ModelConfig, Unusable  # noqa: E402
from marigold_ros.counting import meta_network  # noqa: E402
from marigold_ros.estimator import load_estimator  # noqa: E402
from small_checkpoint import edit_json as edit  # noqa: E402
from small_checkpoint import make_metric, write_small_checkpoint  # noqa: E402

METRIC = {"d_min_m": 0.1, "d_max_m": 80.0, "canonical_focal_px": 500.0}
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_small_checkpoint(tmp_path_factory.mktemp("whole") / "small")


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "small"))


@pytest.fixture
def foreign(folder):
    """As a Marigold checkpoint of somebody else: nothing of our own in it."""
    (folder / "marigold_ros.json").unlink()
    (folder / "empty_prompt.safetensors").unlink()
    (folder / "text_encoder").mkdir()
    return folder


def test_description(folder):
    info = describe(folder)
    assert (info.name, info.space, info.width, info.height, info.multiple) == ("small", "inverse_depth", 128, 96, 32)
    assert (info.kind.task, info.kind.targets, info.kind.steps, info.disparity) == ("depth", ("depth",), 1, True)
    assert info.kind.single_step.timestep == 999
    assert info.scale_invariant
    assert info.shift_invariant
    assert info.onnx is None
    assert len(info.digest) == 64


def test_describing_needs_no_torch(folder):
    program = "import sys; sys.modules['torch'] = None; import marigold_ros.checkpoints as c; c.describe(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)


def test_digest_follows_the_weights_and_not_the_place(folder, tmp_path):
    before = describe(folder).digest
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert describe(moved).digest == before
    weights = moved / UNET
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    seal(moved)
    assert describe(moved).digest != before


def test_onnx_is_found_and_checked(folder):
    (folder / "model.onnx").write_bytes(b"onnx")
    seal(folder)
    assert describe(folder).onnx == folder / "model.onnx"
    (folder / "model.onnx").write_bytes(b"onny")
    with pytest.raises(Unusable, match=r"model\.onnx: is damaged"):
        describe(folder)


def test_folder_path_is_taken_as_it_is(folder):
    assert find_checkpoint(str(folder)) == folder


@pytest.mark.parametrize("name", ["", "micro", "a/b/c", "/nowhere/at/all"])
def test_unknown_checkpoints_are_refused_with_what_is_allowed(name):
    with pytest.raises(Unusable, match="'nano'"):
        find_checkpoint(name)


@pytest.mark.parametrize(
    "place",
    ["lib/python3.12/site-packages", "local/lib/python3.10/dist-packages", "lib/python3/dist-packages"],
)
def test_bundled_checkpoint_is_found_in_install_trees(folder, tmp_path, monkeypatch, place):
    package = tmp_path / "prefix" / place / "marigold_ros"
    package.mkdir(parents=True)
    bundled = tmp_path / "prefix" / "share" / "marigold_ros" / "checkpoints" / "nano"
    monkeypatch.setattr(places, "__file__", str(package / "places.py"))
    with pytest.raises(Unusable, match="nano"):
        find_checkpoint("nano")
    shutil.copytree(folder, bundled)
    assert find_checkpoint("nano") == bundled


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        UNET,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "empty_prompt.safetensors",
    ],
)
def test_missing_and_damaged_files_are_named(folder, name):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Unusable, match=path.name.replace(".", r"\.")):
        describe(folder)
    path.unlink()
    with pytest.raises(Unusable, match=rf"{path.name}.*missing".replace(".safe", r"\.safe")):
        describe(folder)


def test_one_changed_byte_is_damage(folder):
    content = bytearray((folder / UNET).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / UNET).write_bytes(content)
    with pytest.raises(Unusable, match="sha256"):
        describe(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": "metres"}, "space='metres'"),
        ({"width": 100}, "100x96"),
        ({"height": "tall"}, "height='tall'"),
        ({"manifest": ["unet"]}, "manifest in"),
    ],
)
def test_nonsense_in_our_own_file_is_refused(folder, changes, words):
    edit(folder / "marigold_ros.json", **changes)
    with pytest.raises(Unusable, match=words):
        describe(folder)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_empty_prompt_comes_from_the_text_encoder(foreign, variant):
    """Two tokens: begin and end of text, as Marigold and its fine-tunes are run."""
    pytest.importorskip("transformers")
    from family_checkpoints import write_text_encoder

    encoder = write_text_encoder(foreign, variant)
    with torch.inference_mode():
        expected = encoder.float()(torch.tensor([[0, 1]]))[0]
    prompt = load_network(describe(foreign)).prompt
    assert prompt.shape == (1, 2, 16)
    torch.testing.assert_close(prompt, expected)


def test_an_unknown_prediction_is_refused(folder):
    edit(folder / "model_index.json", prediction_type="normals")
    seal(folder)
    with pytest.raises(Unusable, match="prediction_type='normals'"):
        describe(folder)


def test_foreign_checkpoints_are_described_by_what_diffusers_stores(foreign):
    edit(foreign / "model_index.json", prediction_type="depth", default_processing_resolution=768)
    info = describe(foreign)
    assert (info.name, info.space, info.disparity, info.width, info.height) == ("small", "depth", False, 768, 576)


def test_fp16_variant_is_loaded(foreign):
    (foreign / UNET).rename(foreign / UNET.replace(".safe", ".fp16.safe"))
    assert describe(foreign).multiple == 32


def test_weights_that_are_no_weights_are_named_when_loaded(folder):
    (folder / UNET).write_bytes(b"x" * 1000)
    seal(folder)
    with pytest.raises(Unusable, match="diffusion_pytorch_model"):
        load_network(describe(folder))


def test_precision_and_place_are_as_asked(folder):
    network = load_network(describe(folder), "cpu", torch.bfloat16)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert not network.training
    assert network.prompt.shape == (1, 2, 16)


def test_digest_follows_what_our_own_file_says_the_weights_are(folder):
    before = describe(folder).digest
    edit(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    edit(folder / "marigold_ros.json", task="depth")
    seal(folder)
    depth = describe(folder).digest
    edit(folder / "marigold_ros.json", task="normals")
    assert len({before, depth, describe(folder).digest}) == 3


def test_what_starts_from_noise_is_refused_by_all_that_has_zeros_only(folder, capsys):
    before = describe(folder).digest
    edit(folder / "marigold_ros.json", target_input="gaussian")
    assert describe(folder).digest != before
    words = r"was trained with target_input='gaussian', but node and export have zeros only; train it again"
    with pytest.raises(Unusable, match=words):
        load_network(describe(folder))
    with pytest.raises(Unusable, match=words):
        load_estimator(ModelConfig(checkpoint=str(folder)))
    with pytest.raises(Unusable, match=words):
        meta_network(describe(folder))
    (folder / "model.onnx").write_bytes(b"of a network that starts from zeros")
    assert export.main(["--checkpoint", str(folder)]) == 1
    assert "have zeros only" in capsys.readouterr().err


def test_a_metric_checkpoint_says_what_its_answer_is_in_metres(folder):
    assert describe(folder).metric is None
    info = describe(make_metric(folder))
    assert (info.space, info.disparity, info.scale_invariant, info.shift_invariant) == ("log_depth", *[False] * 3)
    assert info.metric == MetricScale(d_min_m=0.1, d_max_m=80.0, canonical_focal_px=500.0)


def test_the_metric_scale_changes_no_network_and_so_no_cache_key(folder):
    digest = describe(make_metric(folder)).digest
    info = describe(make_metric(folder, canonical_focal_px=600.0, d_max_m=100.0))
    assert info.metric.canonical_focal_px == 600.0
    assert info.digest == digest


@pytest.mark.parametrize(
    ("own", "index", "words"),
    [
        ({"metric": 80.0}, {}, "metric=80.0 in .* must give d_min_m, d_max_m, canonical_focal_px"),
        ({"metric": {"d_min_m": 0.1, "d_max_m": 80.0}}, {}, "must give .*canonical_focal_px"),
        ({"metric": {**METRIC, "f_px": 1.0}}, {}, "and nothing else"),
        ({"metric": {**METRIC, "d_min_m": 0.0}}, {}, r"metric\.d_min_m=0\.0: must be a positive, finite number in"),
        ({"metric": {**METRIC, "d_max_m": float("inf")}}, {}, r"d_max_m=inf"),
        ({"metric": {**METRIC, "canonical_focal_px": float("nan")}}, {}, "canonical_focal_px=nan"),
        ({"metric": {**METRIC, "canonical_focal_px": "500"}}, {}, "canonical_focal_px='500'"),
        ({"metric": {**METRIC, "d_min_m": True}}, {}, "d_min_m=True"),
        ({"metric": {**METRIC, "d_min_m": 80.0}}, {}, r"d_min_m=80\.0: must be less than metric\.d_max_m=80\.0"),
        ({"space": "depth"}, {}, "is for depth in space 'log_depth', this is depth in space 'depth'"),
        ({}, {"prediction_type": "disparity"}, "this is disparity in space 'log_depth'"),
        ({"normals_x": "right"}, {"_class_name": "MarigoldNormalsPipeline"}, "this is no depth"),
        ({}, {"scale_invariant": True}, "scale_invariant=True .* contradicts metric"),
        ({}, {"shift_invariant": True}, "shift_invariant=True .* contradicts metric"),
    ],
)
def test_a_metric_scale_that_cannot_be_is_refused(folder, own, index, words):
    make_metric(folder)
    edit(folder / "model_index.json", **index)
    seal(folder)
    edit(folder / "marigold_ros.json", **own)
    with pytest.raises(Unusable, match=words):
        describe(folder)
