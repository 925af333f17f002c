"""Latents that are kept on disk are those that the encoder would give, and none but those."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from marigold_ros.config import Unusable  # noqa: E402
from trainer.assembly import first_model  # noqa: E402
from trainer.data import Passes  # noqa: E402
from trainer.loop import train  # noqa: E402
from trainer.objectives import build_objective  # noqa: E402
from trainer.recipe import Augment  # noqa: E402
from training import small_recipe, write_data  # noqa: E402

CPU = torch.device("cpu")


class Counted:
    """An objective of a small recipe, and how often its frozen encoder was asked."""

    def __init__(self, name, start, **changes):
        self.recipe = small_recipe(name, start, augment=Augment(), **changes)
        self.stage = self.recipe.stages[-1]
        self.objective = build_objective(first_model(self.recipe), self.recipe, self.stage)
        self.calls = 0
        self.objective.frozen["encoder"].register_forward_hook(self._count)

    def _count(self, *_):
        self.calls += 1

    def losses(self, data):
        self.objective.place(CPU)
        passes = Passes(self.recipe, self.stage, 0, data)
        with torch.no_grad():
            return [
                float(self.objective(passes[n], torch.Generator().manual_seed(n))["loss"]) for n in range(len(passes))
            ]


@pytest.mark.parametrize(("name", "pictures"), [("marigold-depth", 2), ("e2e-depth", 1), ("marigold-iid-lighting", 4)])
def test_the_second_time_nothing_is_encoded(tmp_path, start, data, name, pictures):
    plain = Counted(name, start)
    expected = plain.losses(data)
    folder = tmp_path / "latents"
    first, second = (Counted(name, start, latent_cache=str(folder)) for _ in range(2))
    assert first.losses(data) == pytest.approx(expected, rel=1e-5)
    assert 0 < first.calls <= plain.calls == 4 * pictures
    assert second.losses(data) == first.losses(data)
    assert second.calls == 0
    assert not list(folder.rglob("*.part*"))


def test_another_encoder_and_another_picture_are_encoded(tmp_path, start, data):
    folder = str(tmp_path / "latents")
    Counted("e2e-depth", start, latent_cache=folder).losses(data)
    other = Counted("e2e-depth", start, latent_cache=folder)
    with torch.no_grad():
        next(other.objective.frozen["encoder"].parameters()).add_(0.1)
    other.losses(data)
    assert other.calls > 0
    changed = Counted("e2e-depth", start, latent_cache=folder, seed=5)
    changed.losses(write_data(tmp_path / "other", count=4))
    assert changed.calls > 0


def test_a_file_cut_short_is_written_again(tmp_path, start, data):
    folder = tmp_path / "latents"
    expected = Counted("e2e-depth", start, latent_cache=str(folder)).losses(data)
    path = next(folder.rglob("*.npy"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = Counted("e2e-depth", start, latent_cache=str(folder))
    assert again.losses(data) == pytest.approx(expected, rel=1e-5)
    assert again.calls == 1
    assert len(path.read_bytes()) == len(whole)


def test_a_run_that_is_resumed_sees_what_it_saw(tmp_path, start, data):
    """Bit for bit, though the latents were encoded in other company."""
    weights = []
    for name, pauses in (("whole", (None,)), ("resumed", (1, None))):
        recipe = small_recipe("marigold-depth", start, steps=3, augment=Augment(), latent_cache=str(tmp_path / name))
        for stop_after in pauses:
            train(recipe, tmp_path / f"run-{name}", data, stop_after)
        weights.append((tmp_path / f"run-{name}/checkpoint/unet/diffusion_pytorch_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_pictures_that_never_come_twice_are_not_kept(start):
    recipe = small_recipe("e2e-depth", start)
    with pytest.raises(Unusable, match=r"latent_cache='latents': with .*augment.* no picture comes twice"):
        replace(recipe, latent_cache="latents", augment=Augment(colour=0.5))
    for name, reason in (("metric-log", "the zoom of metric depth"), ("tiny", "no stage has a frozen encoder")):
        with pytest.raises(Unusable, match=reason):
            small_recipe(name, start, latent_cache="latents", augment=Augment())


def test_a_folder_that_cannot_be_written(tmp_path, start, data):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unusable, match="latent_cache: folder"):
        Counted("e2e-depth", start, latent_cache=str(tmp_path / "file")).losses(data)
