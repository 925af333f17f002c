"""The tiny VAE in place of half or all of a checkpoint's own: folds, diffusers, engines, and what does not fit."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from family_checkpoints import FAMILY, write_family_checkpoint, write_tiny_vae  # noqa: E402
from marigold_ros.checkpoints import describe, find_checkpoint, load_network, with_tiny_vae  # noqa: E402
from marigold_ros.config import ModelConfig, Unusable  # noqa: E402
from marigold_ros.estimator import load_estimator  # noqa: E402
from marigold_ros.export import ready_file  # noqa: E402
from marigold_ros.folds import folded  # noqa: E402
from marigold_ros.multistep import MultiStep, Settings  # noqa: E402
from marigold_ros.network import answer, depth_head, normals_head  # noqa: E402

ROWS = {row.name: row for row in FAMILY}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A checkpoint and a tiny VAE on disk."""
    root = tmp_path_factory.mktemp("tiny")
    return write_family_checkpoint(root, ROWS["marigold-e2e-ft-depth"], (128, 128)), write_tiny_vae(root / "taesd")


@pytest.mark.parametrize("use", ["tiny", "tiny-decoder"])
@pytest.mark.parametrize("head", [depth_head(True), depth_head(False), normals_head(), normals_head(x_left=True)])
@torch.no_grad()
def test_the_folds_are_exact(places, use, head):
    checkpoint, tiny = places
    network = load_network(with_tiny_vae(describe(checkpoint), use, str(tiny)), dtype=torch.float64)
    network.head = head
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64) * 2 - 1
    expected = network.forward_normalised(image)
    assert float(expected.std()) > 1e-3
    lean = folded(network)
    found = lean.decode(lean.predict(lean.encode(image)))
    assert float((found - expected).abs().max()) < 1e-9


def test_diffusers_with_the_tiny_vae_answers_alike(places):
    checkpoint, tiny = places
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    info = with_tiny_vae(describe(checkpoint), "tiny", str(tiny))
    network = load_network(info)
    theirs = MultiStep(describe(checkpoint), Settings(resolution=-1))
    theirs.pipeline.vae = network.tiny
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255.0
    with torch.inference_mode():
        ours = answer(network.forward_normalised(image * 2.0 - 1.0))[0].numpy()
    np.testing.assert_allclose(ours, theirs(rgb)["depth"].values, atol=1e-4)


def test_engines_agree_and_an_export_belongs_to_its_vae(places, tmp_path):
    checkpoint, tiny = places
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    settings = {"checkpoint": str(checkpoint), "cache_dir": str(tmp_path), "tiny_vae": str(tiny)}
    full, reference, fast = (
        load_estimator(ModelConfig(engine=engine, vae=vae, **settings))
        for engine, vae in (("torch", "full"), ("torch", "tiny-decoder"), ("openvino", "tiny-decoder"))
    )
    assert np.abs(fast(image) - reference(image)).mean() < 0.01
    assert np.abs(full(image) - reference(image)).mean() > 0.01
    assert ready_file(describe(checkpoint), tmp_path) is None, "exported with another VAE"


def test_the_export_command_names_the_tiny_vae(places, tmp_path):
    checkpoint, tiny = places
    settings = ModelConfig(
        checkpoint=str(checkpoint), engine="openvino", vae="tiny", tiny_vae=str(tiny), cache_dir=str(tmp_path)
    )
    with pytest.raises(Unusable, match=f"--vae tiny --tiny-vae {tiny}"):
        load_estimator(settings, export=False)


def edited(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: write_tiny_vae(folder, latent_channels=16), "has 16 latent channels"),
        (lambda folder: edited(write_tiny_vae(folder), _class_name="AutoencoderKL"), "must be AutoencoderTiny"),
        (lambda folder: edited(write_tiny_vae(folder), scaling_factor=0.5), "scaling_factor=0.5"),
        (lambda folder: folder / "nowhere" / "at all", "no such folder"),
    ],
)
def test_what_does_not_fit_is_refused(places, tmp_path, make, words):
    with pytest.raises(Unusable, match=words):
        with_tiny_vae(describe(places[0]), "tiny", str(make(tmp_path / "other")))


def test_damaged_weights_are_named(places, tmp_path):
    tiny = write_tiny_vae(tmp_path / "other")
    next(tiny.glob("*.safetensors")).write_bytes(b"not tensors")
    with pytest.raises(Unusable, match="other: cannot be loaded"):
        load_network(with_tiny_vae(describe(places[0]), "tiny", str(tiny)))


def test_the_bundled_network_keeps_its_own(places):
    with pytest.raises(Unusable, match="'nano' has 8"):
        with_tiny_vae(describe(find_checkpoint("nano")), "tiny", str(places[1]))
