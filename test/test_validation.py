"""Held-out numbers while a network trains: which samples, what is measured, what is kept, what is shipped."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

from marigold_ros.checkpoints import describe  # noqa: E402
from marigold_ros.config import ModelConfig, Unusable  # noqa: E402
from marigold_ros.estimator import load_estimator, load_normals_estimator  # noqa: E402
from marigold_ros.multistep import MultiStep, Settings  # noqa: E402
from trainer import card, report  # noqa: E402
from trainer.frames import evaluate, evaluate_frame, held_out_frames  # noqa: E402
from trainer.loop import StageRun, train  # noqa: E402
from trainer.recipe import Source  # noqa: E402
from trainer.samples import SampleFolder, write_sample  # noqa: E402
from trainer.states import States  # noqa: E402
from trainer.validation.held_out import held_out  # noqa: E402
from trainer.validation.measures import DepthMeasures, IntrinsicsMeasures, NormalsMeasures  # noqa: E402
from trainer.validation.validation import Validation  # noqa: E402
from training import scene, small_recipe, write_data  # noqa: E402

HELD_OUT = 3


pytestmark = pytest.mark.usefixtures("threads_of_others")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), count=3, held_out=HELD_OUT)


def recipe_of(name, start, steps=1, **changes):
    return small_recipe(name, start, steps, **{"validate_samples": HELD_OUT, "save_steps": 99, **changes})


def lines(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def validated(run):
    return [(line["step"], line["validation"]) for line in lines(run) if "validation" in line]


def weights(run):
    files = sorted((run / "checkpoint").glob("*/diffusion_pytorch_model.safetensors"))
    return {f"{path.parent.name}.{name}": values for path in files for name, values in load_file(path).items()}


def assert_same_weights(one, two):
    assert weights(one).keys() == weights(two).keys()
    assert all(torch.equal(values, weights(two)[name]) for name, values in weights(one).items())


# The numbers are those of the checkpoint, measured by the programs that measure checkpoints


def of_frames(folder, data):
    scores = evaluate(folder, data / "hypersim", [])["held-out"]
    return {name: np.mean([getattr(frame.best, name) for frame in scores]) for name in ("abs_rel", "delta1")}


def of_pipeline(folder, data):
    """The noise of sample number n is that of seed n."""
    info, found = describe(folder), []
    for seed, frame in enumerate(held_out_frames(data / "hypersim")):
        depth = MultiStep(info, Settings(seed=seed))(frame.rgb)["depth"].values
        found.append(evaluate_frame(frame, depth, "depth").best)
    return {name: np.mean([getattr(scores, name) for scores in found]) for name in ("abs_rel", "delta1")}


def samples_of(data, *kinds):
    folder = SampleFolder(data / "hypersim" / "held_out")
    return [folder.read(number, kinds) for number in range(len(folder))]


def of_normals(folder, data):
    estimator = load_normals_estimator(ModelConfig(checkpoint=str(folder), engine="torch"))
    angles = []
    for sample in samples_of(data, "normals"):
        truth = sample.maps["normals"] / np.linalg.norm(sample.maps["normals"], axis=2, keepdims=True)
        cosine = np.clip((estimator(sample.rgb) * truth).sum(axis=2), -1, 1)
        angles.append(np.degrees(np.arccos(cosine)))
    near = [100 * np.mean(each < 11.25) for each in angles]
    return {"mean_deg": np.mean([each.mean() for each in angles]), "a11.25": np.mean(near)}


def of_metres(folder, data):
    """As they are: nothing is aligned."""
    estimator, found = load_estimator(ModelConfig(checkpoint=str(folder), engine="torch")), []
    for sample in samples_of(data, "depth_m"):
        true_m = sample.maps["depth_m"]
        known = np.isfinite(true_m) & (true_m > 0.1) & (true_m < 65)
        ratio = estimator.depth_m(sample.rgb, 50.0)[known] / true_m[known]
        found.append((np.abs(ratio - 1).mean(), np.mean(np.maximum(ratio, 1 / ratio) < 1.25)))
    return dict(zip(("abs_rel", "delta1"), np.mean(found, axis=0), strict=True))


def of_appearance(folder, data):
    """Albedo as screens show it, roughness and metallicity linear: mean squared errors in dB."""
    info, found = describe(folder), []
    for seed, sample in enumerate(samples_of(data, "albedo", "material")):
        drawn = MultiStep(info, Settings(seed=seed))(sample.rgb)
        albedo = drawn["albedo"].values - sample.maps["albedo"] ** (1 / 2.2)
        material = np.concatenate([sample.maps["material"], np.zeros((*sample.rgb.shape[:2], 1))], axis=2)
        material = drawn["material"].values ** 2.2 - material
        found.append([-10 * np.log10(np.mean(error**2)) for error in (albedo, material)])
    albedo, material = np.mean(found, axis=0)
    return {"psnr": (albedo + material) / 2, "psnr_albedo": albedo, "psnr_material": material}


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("robot", of_frames),
        ("tiny", of_frames),
        ("lcm", of_pipeline),
        ("e2e-normals", of_normals),
        ("metric-log", of_metres),
        ("marigold-iid-appearance", of_appearance),
    ],
)
def test_validation_says_what_the_checkpoint_will_be_measured_at(name, measured, tmp_path, data, start):
    recipe = recipe_of(name, start)
    limits = (0.1, 65.0) if name == "metric-log" else (0.0, float("inf"))
    recipe = replace(recipe, data=(replace(recipe.data[0], weight=1.0, valid_m=limits),), stages=recipe.stages[-1:])
    assert train(recipe, tmp_path, data)
    ((step, found),) = validated(tmp_path)
    assert step == 1
    wanted = measured(tmp_path / "checkpoint", data)
    assert found.keys() == wanted.keys()
    for measure, value in wanted.items():
        assert found[measure] == pytest.approx(value, rel=2e-3, abs=2e-3), measure


@pytest.mark.parametrize("kind", ["gaussian", "pyramid", "zeros"])
def test_validation_starts_from_what_the_network_is_trained_to_start_from_and_the_checkpoint_says_it(
    kind, tmp_path, start
):
    for seed, split in enumerate(("train", "train", "held_out", "held_out")):
        # As wide as high, like the working size: here nothing resizes.
        write_sample(tmp_path / "hypersim" / split, scene(seed, (64, 64)))
    recipe = recipe_of("e2e-depth", start)
    (stage,) = recipe.stages
    stage = replace(stage, objective=replace(stage.objective, target_input=kind))
    source = replace(recipe.data[0], weight=1.0, valid_m=(0.0, float("inf")))
    assert train(replace(recipe, data=(source,), stages=(stage,)), tmp_path / "run", tmp_path)
    own = json.loads((tmp_path / "run" / "checkpoint" / "marigold_ros.json").read_text())
    assert own.get("target_input", "zeros") == kind
    assert ("target_input" in own) == (kind != "zeros")
    ((_, found),) = validated(tmp_path / "run")
    for measure, value in of_pipeline(tmp_path / "run" / "checkpoint", tmp_path).items():
        assert found[measure] == pytest.approx(value, rel=2e-3, abs=2e-3), measure
    if kind != "zeros":
        with pytest.raises(Unusable, match=f"trained with target_input='{kind}', and package is for networks that"):
            card.package_run(tmp_path / "run", tmp_path / "packaged", None, None, onnx=False)


def test_a_vae_by_itself_is_measured_by_what_comes_back(tmp_path, data):
    recipe = recipe_of("nano", "", steps=4)
    assert train(replace(recipe, stages=recipe.stages[:1], validate_steps=2), tmp_path, data)
    (first, before), (last, after) = validated(tmp_path)
    assert (first, last) == (2, 4)
    assert after["mse_depth"] < before["mse_depth"]
    assert after["mse_image"] < before["mse_image"]


# Which samples


def test_samples_are_spread_over_a_split_and_shared_by_weight(tmp_path, start):
    for name, split, count in (("hypersim", "val", 20), ("vkitti2", "held_out", 4), ("vkitti2", "val", 2)):
        for seed in range(count):
            write_sample(tmp_path / name / split, scene(seed, (8, 8)))
    recipe = small_recipe("marigold-depth", start, validate_samples=10)
    picks, without = held_out(recipe, tmp_path)
    assert [pick.number for pick in picks] == [0, 2, 4, 6, 8, 11, 13, 15, 17, 0]
    assert picks[0].name == "hypersim/val/000000"
    assert (picks[-1].name, without) == ("vkitti2/held_out/000000", [])
    picks, _ = held_out(replace(recipe, validate_samples=1000), tmp_path)
    assert [pick.source.name for pick in picks] == ["hypersim"] * 20 + ["vkitti2"] * 4
    trained = replace(recipe, data=(Source("hypersim", ((32, 32, 1.0),), split="val"),))
    assert held_out(trained, tmp_path) == ([], ["hypersim"])


def test_without_a_held_out_split_a_run_says_so_and_trains(tmp_path, start, capsys):
    write_data(tmp_path / "data", count=2)
    recipe = replace(recipe_of("e2e-depth", start), result="best", patience=1, validate_steps=1)
    assert train(recipe, tmp_path / "run", tmp_path / "data")
    sentence = "data 'hypersim' and 'vkitti2': no samples are held out in held_out/ or val/: validation is left out\n"
    assert sentence in capsys.readouterr().err
    assert "the last; no validation says how good" in (tmp_path / "run" / "checkpoint" / "README.md").read_text()


def test_a_dataset_without_a_held_out_split_is_named(tmp_path, start, capsys):
    write_sample(tmp_path / "data" / "hypersim" / "train", scene(0))
    write_sample(tmp_path / "data" / "vkitti2-e2e" / "train", scene(0))
    write_sample(tmp_path / "data" / "vkitti2-e2e" / "val", scene(1))
    assert train(recipe_of("e2e-depth", start), tmp_path / "run", tmp_path / "data")
    assert "data 'hypersim': no samples are held out in held_out/ or val/: validation goes without\n" in (
        capsys.readouterr().err
    )
    assert len(validated(tmp_path / "run")) == 1


# Weights and resuming


class Killed(BaseException):
    """Nothing in the trainer catches this: after it, only what lies on the disk is left, as after SIGKILL."""


@pytest.fixture
def during_validation(monkeypatch):
    """A function that lets something happen when sample number 1 is read in a validation."""

    def happen(what):
        read, call, validating = Validation._read, Validation.__call__, []

        def reads(self, index):
            if validating and index == 1:
                what(self)
            return read(self, index)

        def calls(self, stopped):
            validating.append(True)
            try:
                return call(self, stopped)
            finally:
                validating.clear()

        monkeypatch.setattr(Validation, "_read", reads)
        monkeypatch.setattr(Validation, "__call__", calls)

    yield happen
    monkeypatch.undo()


@pytest.fixture(scope="module")
def broken(data, start):
    """A recipe of two steps that are both validated."""
    return recipe_of("robot", start, steps=2, validate_steps=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, broken):
    """Its run without a break."""
    run = tmp_path_factory.mktemp("whole")
    assert train(broken, run, data)
    return run


def assert_same_run(run, whole):
    assert validated(run) == validated(whole)
    assert_same_weights(run, whole)
    one, two = ((folder / "checkpoint" / "README.md").read_text().splitlines()[2] for folder in (run, whole))
    assert one == two


def test_killed_or_told_to_stop_while_it_validates_a_run_goes_on_as_if_nothing_had_been(
    tmp_path, data, broken, whole, during_validation, monkeypatch
):
    def kill(validation):
        raise Killed

    during_validation(kill)
    with pytest.raises(Killed):
        train(broken, tmp_path, data)
    monkeypatch.undo()
    left = [2]

    def stop(validation):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    during_validation(stop)
    assert not train(broken, tmp_path, data)
    monkeypatch.undo()
    place = States(tmp_path, 2).newest()[1]
    assert (place.step, place.validated) == (2, 1)
    assert train(broken, tmp_path, data)
    assert_same_run(tmp_path, whole)


# The best state


@pytest.fixture
def scripted(monkeypatch):
    """A function that lets validations find these values, one after the other, whatever they measure."""

    def script(*values):
        real, left = Validation._numbers, list(values)

        def numbers(self, rows, began_s):
            return replace(real(self, rows, began_s), value=left.pop(0))

        monkeypatch.setattr(Validation, "_numbers", numbers)

    return script


def average_of(state):
    """The moving average's weights in a state."""
    return torch.load(state / "custom_checkpoint_0.pkl", weights_only=True)


def test_the_best_state_is_kept_and_shipped_by_a_stage_that_ends_when_nothing_gets_better(
    tmp_path, data, start, scripted
):
    scripted(0.5, 0.3, 0.4, float("nan"), 0.6)
    recipe = recipe_of("robot", start, steps=9, validate_steps=1, keep=1, result="best", patience=3)
    assert not train(recipe, tmp_path, data, stop_after=4)
    names = sorted(path.name for path in (tmp_path / "states").iterdir())
    assert names == ["01-00000002", "01-00000004"]
    average = average_of(tmp_path / "states" / "01-00000002")
    assert train(recipe, tmp_path, data)
    shipped = weights(tmp_path)
    assert all(torch.equal(shipped[name], values) for name, values in average.items() if name.startswith("unet."))
    sentence = "The weights are those of step 2 of 9, the best, with abs_rel 0.3 on held-out samples."
    assert sentence in (tmp_path / "checkpoint" / "README.md").read_text()
    assert [line["best_step"] for line in lines(tmp_path) if "validation" in line] == [1, 2, 2, 2, 2]
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5]
    # The newest one, and still the best.
    assert {path.name for path in (tmp_path / "states").iterdir()} == {"01-00000002", "02-00000000"}


def test_validation_leaves_no_trace_in_the_weights_of_the_last_step_and_the_best_stay_beside(tmp_path, data, scripted):
    """Of a recipe that draws noise, and has a moving average."""
    scripted(0.3, 0.5)
    recipe = recipe_of("nano-diffusion", "", steps=2, validate_steps=1, save_steps=99)
    recipe = replace(recipe, stages=recipe.stages[1:])
    assert train(recipe, tmp_path / "with", data)
    assert train(replace(recipe, validate_steps=0), tmp_path / "without", data)
    assert_same_weights(tmp_path / "with", tmp_path / "without")
    with_, without = ([line["loss"] for line in lines(tmp_path / run) if "loss" in line] for run in ("with", "without"))
    assert with_ == without
    assert (len(validated(tmp_path / "with")), len(validated(tmp_path / "without"))) == (2, 0)
    text = (tmp_path / "with" / "checkpoint" / "README.md").read_text()
    assert "of step 2 of 2, the last; the best were those of step 1, with abs_rel 0.3 on held-out samples." in text
    assert (tmp_path / "with" / "states" / "01-00000001").is_dir()


@pytest.mark.parametrize(("high", "order"), [(False, (3.0, 2.0, 1.0)), (True, (1.0, 2.0, 3.0))])
def test_of_some_measures_the_larger_is_the_better(high, order):
    validation = Validation.__new__(Validation)
    validation._measures = SimpleNamespace(high=high)
    worse, value, better = order
    assert validation.better(value, None)
    assert validation.better(value, worse)
    assert not validation.better(value, value)
    assert not validation.better(value, better)
    assert not validation.better(float("nan"), None)
    assert IntrinsicsMeasures.high
    assert not DepthMeasures.high
    assert not NormalsMeasures.high


def test_an_answer_that_is_not_finite_is_never_the_best(tmp_path, data, start, monkeypatch):
    from trainer.validation.shipped import OneStep

    recipe = recipe_of("robot", start, result="best")
    monkeypatch.setattr(OneStep, "__call__", lambda self, sample, seed: {"depth": np.full((48, 64), np.nan)})
    assert train(recipe, tmp_path, data)
    ((_, found),) = validated(tmp_path)
    assert np.isnan(found["abs_rel"])
    assert "the last; no validation" in (tmp_path / "checkpoint" / "README.md").read_text()


def test_a_best_state_that_was_deleted_is_named(tmp_path, data, start, scripted):
    scripted(0.3, 0.5)
    recipe = recipe_of("robot", start, steps=2, validate_steps=1, save_steps=1)
    assert not train(recipe, tmp_path, data, stop_after=2)
    shutil.rmtree(tmp_path / "states" / "01-00000001")
    with pytest.raises(Unusable, match=r"01-00000001: is gone, and it was the best; set result: last"):
        train(recipe, tmp_path, data)


def test_the_run_remembers_for_its_package_which_weights_it_left(whole):
    place = States(whole, 1).newest()[1]
    assert place.left.startswith("the weights are those of step ")
    assert "loss" in card.last_line(whole)


# Where it is seen


def test_numbers_are_on_the_board_and_the_bar(tmp_path, data, start, monkeypatch, capsys):
    shown = {}

    class Board:
        def add_scalar(self, name, value, step):
            shown.setdefault(name, []).append(step)

        add_images = close = lambda self, *arguments: None

    monkeypatch.setattr(report, "_tensorboard", lambda run, step: Board())
    assert train(recipe_of("e2e-depth", start, steps=2, validate_steps=2), tmp_path, data)
    names = {name for name in shown if name.startswith("validation/")}
    measures = ("abs_rel", "delta1")
    by_source = {f"validation/{source}/{name}" for source in ("hypersim", "vkitti2") for name in measures}
    assert names == by_source | {f"validation/{name}" for name in measures}
    assert shown["validation/abs_rel"] == [2]
    text = capsys.readouterr().err
    assert "step 2: held-out abs_rel 0." in text
    assert ", held-out abs_rel 0." in text.rsplit("\r", 1)[-1]
    assert re.search(r"2/2 steps, 00:00 left", text)


# What goes wrong


def damage(data, count):
    for path in sorted((data / "hypersim" / "held_out" / "depth_m").glob("*.npy"))[:count]:
        path.write_bytes(b"half")


def test_a_damaged_held_out_sample_ends_a_run_at_its_start_or_is_skipped(tmp_path, start, capsys, monkeypatch):
    data = write_data(tmp_path / "data", count=2, held_out=HELD_OUT)
    damage(data, 1)
    recipe = recipe_of("robot", start)
    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "_step", lambda *arguments: pytest.fail("it has trained"))
        words = (
            r"held-out sample recordings/held_out/000002: .*cannot be read .* \(or set damaged: skip in the recipe\)"
        )
        with pytest.raises(Unusable, match=words):
            train(recipe, tmp_path / "refused", data)
    assert train(replace(recipe, damaged="skip"), tmp_path / "run", data)
    assert capsys.readouterr().err.count("skipped: held-out sample recordings/held_out/000002") == 1
    assert [line["samples"] for line in lines(tmp_path / "run") if "validation" in line] == [HELD_OUT - 1]


def test_a_split_of_which_nothing_can_be_used_is_refused(tmp_path, start):
    data = write_data(tmp_path / "data", count=2, held_out=HELD_OUT)
    damage(data, HELD_OUT)
    with pytest.raises(Unusable, match=r"held_out/000002, and all 3 others: cannot be used; .*validate_steps: 0"):
        train(recipe_of("robot", start, damaged="skip"), tmp_path / "run", data)


def test_a_sample_with_too_few_known_pixels_is_a_damaged_one(tmp_path, start):
    data = write_data(tmp_path / "data", count=2)
    sample = scene(9)
    sample.maps["depth_m"][:] = np.nan
    sample.maps["depth_m"][0, :5] = 2.0
    write_sample(data / "hypersim" / "held_out", sample)
    with pytest.raises(Unusable, match="depth_m is known at 5 pixels: too few to validate on"):
        train(recipe_of("robot", start), tmp_path / "run", data)


def test_a_state_that_is_saved_again_is_not_gone_meanwhile(tmp_path, data, start, scripted, monkeypatch):
    """Told to stop while it validates, and killed when that step, the best after all, is saved once more."""
    scripted(0.5, 0.3)
    recipe = recipe_of("robot", start, steps=3, validate_steps=1, keep=1, result="best")
    assert not train(recipe, tmp_path, data, stop_after=1)
    states = States(tmp_path, 1)
    folder, place = states.newest()
    rename, killed = Path.replace, []

    def dies(path, target):
        if path.suffix == ".part":
            killed.append(path)
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        states.save(
            SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, save_state=empty_state), place
        )
    monkeypatch.undo()
    assert killed
    assert not folder.exists()
    assert States(tmp_path, 1).newest() == (folder, place)
    # Killed a moment later, when the new one was there: what was put aside is in nobody's way.
    shutil.copytree(folder, folder.with_name(f"{folder.name}.before"))
    assert States(tmp_path, 1).newest() == (folder, place)
    states.save(SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, save_state=empty_state), place)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def empty_state(folder):
    """What accelerate would write, beside the place."""
    (Path(folder) / "model.safetensors").touch()


def test_held_out_numbers_of_other_samples_are_not_compared(tmp_path, data, start, scripted):
    scripted(0.5, 0.3)
    recipe = recipe_of("robot", start, steps=3, validate_steps=1)
    assert not train(recipe, tmp_path, data, stop_after=1)
    with pytest.raises(Unusable, match="validate_samples"):
        train(replace(recipe, validate_samples=1), tmp_path, data)


def test_the_card_names_the_measure_though_validation_was_left_out_later(tmp_path, data, start, scripted):
    scripted(0.5, 0.6)
    recipe = recipe_of("robot", start, steps=3, validate_steps=1, result="last")
    assert not train(recipe, tmp_path, data, stop_after=2)
    assert train(replace(recipe, validate_steps=0), tmp_path, data)
    assert "with abs_rel 0.5 on held-out samples" in (tmp_path / "checkpoint" / "README.md").read_text()
