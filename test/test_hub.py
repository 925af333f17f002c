"""Hub ids against the real huggingface_hub, with a cache made by hand and a hub that cannot be reached."""

import re
import shlex
import shutil
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("huggingface_hub")
pytest.importorskip("torch")
pytest.importorskip("diffusers")

from marigold_ros import export, hub
from marigold_ros.checkpoints import describe, find_checkpoint, with_tiny_vae
from marigold_ros.config import Unusable
from small_checkpoint import write_small_checkpoint

NAME = "somebody/small-depth"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and a hub that nobody answers at."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_small_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small")


def put_into(cache, small):
    """The cache's documented layout: refs/main holds the commit, snapshots/COMMIT the files."""
    repository = cache / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(small, repository / "snapshots" / COMMIT)
    return repository / "snapshots" / COMMIT


def test_a_cached_checkpoint_is_found_without_the_hub_and_keeps_its_name(cache, small):
    folder = put_into(cache, small)
    (folder / "marigold_ros.json").unlink()
    assert find_checkpoint(NAME) == folder
    assert describe(folder).name == "small-depth"


def test_what_is_not_there_is_not_fetched_but_named_with_the_command(cache):
    with pytest.raises(Unusable, match=f"export --checkpoint {NAME}"):
        find_checkpoint(NAME)


def test_a_tiny_vae_that_is_not_there_is_named_with_the_command_that_downloads_it(small, monkeypatch):
    asked = []
    with pytest.raises(Unusable, match=r"^tiny VAE 'somebody/tiny': .*'ros2 run marigold_ros export ") as problem:
        with_tiny_vae(describe(small), "tiny-decoder", "somebody/tiny")
    monkeypatch.setattr(hub, "download", lambda name, what: asked.append(name) or small)
    command = re.search("'ros2 run marigold_ros export (.*?)'", str(problem.value))[1]
    assert export.main(shlex.split(command)) == 1, "the folder given for the tiny VAE is none"
    assert asked == ["somebody/tiny"]


def test_a_hub_that_cannot_be_reached_leaves_the_offline_way(cache, capsys):
    with pytest.raises(Unusable, match=f"hf download {NAME} --local-dir FOLDER"):
        find_checkpoint(NAME, download=True)
    assert export.main(["--checkpoint", NAME]) == 1
    assert "cannot be downloaded" in capsys.readouterr().err


def test_a_folder_of_that_name_wins(tmp_path, monkeypatch, small):
    shutil.copytree(small, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(NAME).resolve() == tmp_path / NAME


def test_without_the_library_its_name_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Unusable, match="pip install huggingface_hub"):
        find_checkpoint(NAME)


class Api:
    """A hub's listing; the download itself cannot be had here."""

    def model_info(self, name, timeout):
        module = "diffusion_pytorch_model"
        files = [f"unet/{module}.safetensors", f"unet/{module}.fp16.safetensors", f"vae/{module}.safetensors", "x.bin"]
        files += ["768-v-ema.safetensors", "empty_prompt.safetensors", f"{module}.safetensors"]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])


@pytest.mark.parametrize(("half", "left"), [(True, ""), (False, ".fp16")])
def test_one_precision_is_fetched_and_nothing_twice(monkeypatch, tmp_path, half, left):
    """Half precision to run, full to train from; not Stable Diffusion's single file beside its folders."""
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.update(how) or str(tmp_path))
    hub.download(NAME, "checkpoint", half)
    assert asked["ignore_patterns"] == ["768-v-ema.safetensors", f"unet/diffusion_pytorch_model{left}.safetensors"]
    assert "*.bin" not in asked["allow_patterns"]
