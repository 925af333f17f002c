"""Checkpoint folders: found, described, and refused with a sentence when something is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from marigold_ros import places  # noqa: E402
from marigold_ros.checkpoints import describe, find_checkpoint, load_network, seal  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from small_checkpoint import write_small_checkpoint  # noqa: E402

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


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


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
