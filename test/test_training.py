"""The training loop: every recipe, on one process and two, killed and resumed, and what goes wrong."""

import errno
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from diffusers import AutoencoderTiny, DiffusionPipeline  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import marigold_ros  # noqa: E402
from marigold_ros.checkpoints import describe, load_network  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from marigold_ros.multistep import MultiStep, Settings  # noqa: E402
from small_checkpoint import write_small_checkpoint  # noqa: E402
from trainer import card, loop  # noqa: E402
from trainer.__main__ import main as trainer  # noqa: E402
from trainer.assembly import first_model  # noqa: E402
from trainer.facts import commit  # noqa: E402
from trainer.loop import StageRun, learning_rate, train  # noqa: E402
from trainer.objectives import end_to_end  # noqa: E402
from trainer.objectives.end_to_end import EndToEndObjective  # noqa: E402
from trainer.recipe import EndToEnd, Optimiser  # noqa: E402
from trainer.recipe_files import plain  # noqa: E402
from trainer.states import States  # noqa: E402
from training import RECIPES, small_recipe, write_data  # noqa: E402

PROJECT = Path(__file__).resolve().parent.parent
UNET_FILE = "diffusion_pytorch_model.safetensors"


pytestmark = pytest.mark.usefixtures("threads_of_others")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), held_out=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data, start):
    """A function that gives the finished run of a recipe, trained once without a break."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name):
        if not (folder / name).is_dir():
            assert train(small_recipe(name, start), folder / name, data)
        return folder / name

    return run


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, data, start):
    """A folder with the finished runs of all recipes, trained by two processes that accelerate's launcher started."""
    out = tmp_path_factory.mktemp("two")
    options = [
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, PROJECT / "test" / "training.py"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, command), str(out), str(data), start, *RECIPES], check=True, env=environment)
    return out


def weights(run):
    """All weights of a run's result by name."""
    return {
        f"{path.parent.name}.{name}": values
        for path in sorted((run / "checkpoint").glob("*/diffusion_pytorch_model.safetensors"))
        for name, values in load_file(path).items()
    }


def logged(run, *names):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return np.array([[line[name] for name in names] for line in lines if "loss" in line])


def validations(run):
    """(step, measures) of each validation in the log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["validation"]) for line in lines if "validation" in line]


def pictures(run):
    """How often TensorBoard's files of a run have a picture, by what it shows; each picture can be read."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # TensorBoard sorts files of one second as text, 10 before 9; trainings take longer than these.
    files = sorted((run / "tensorboard").iterdir(), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(files):
            shutil.copy(path, Path(folder, f"events.out.tfevents.{number:05d}"))
        found = event_accumulator.EventAccumulator(folder, size_guidance={"images": 0}).Reload()
    shown = {tag: found.Images(tag) for tag in found.Tags()["images"]}
    for image in (image for images in shown.values() for image in images):
        decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert decoded.shape == (image.height, image.width, 3)
    return {tag: len(images) for tag, images in shown.items()}


def assert_same_training(one, two):
    assert weights(one).keys() == weights(two).keys()
    assert validations(one) == validations(two)
    for name, values in weights(one).items():
        assert torch.equal(values, weights(two)[name]), name
    np.testing.assert_array_equal(logged(one, "step", "loss", "norm"), logged(two, "step", "loss", "norm"))


class Killed(BaseException):
    """Nothing in the trainer catches this: after it, only what lies on the disk is left, as after SIGKILL."""


@pytest.fixture
def killed_after(monkeypatch):
    """A function that lets the training process die in the middle of its n-th step from now."""

    def kill(steps):
        real, left = StageRun._step, [steps]

        def step(self, batches, report):
            left[0] -= 1
            if left[0] == 0:
                next(batches)
                raise Killed
            return real(self, batches, report)

        monkeypatch.setattr(StageRun, "_step", step)

    yield kill
    monkeypatch.undo()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_and_our_loader_and_diffusers_run_its_result(name, runs):
    folder = runs(name) / "checkpoint"
    info = describe(folder)
    assert info.space in (("", "depth") if "normals" in name or "iid" in name else (info.space,))
    assert (info.metric is not None) == (name == "metric-log")
    losses = logged(runs(name), "loss", "norm")
    assert np.isfinite(losses).all()
    ends = np.cumsum([stage.steps for stage in small_recipe(name, "").stages])
    assert [step for step, _ in validations(runs(name))] == ends.tolist()
    assert pictures(runs(name)) == {"image": ends[-1], "answer": ends[-1]}
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    if info.kind.single_step is not None:
        with torch.inference_mode():
            assert torch.isfinite(load_network(info)(torch.from_numpy(rgb)[None])).all()
    answers = MultiStep(info, Settings(resolution=64))(rgb)
    assert set(answers) == set(info.kind.targets)
    # From random weights there is no text encoder.
    without = {} if (folder / "text_encoder").is_dir() else {"text_encoder": None, "tokenizer": None}
    if name == "tiny":  # as docs/training.md has it
        without["vae"] = AutoencoderTiny.from_pretrained(folder / "tiny_vae", local_files_only=True)
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **without)
    assert pipeline.unet.config.in_channels == 4 * (len(info.kind.targets) + 1)
    if name == "tiny":
        own = {"num_inference_steps": 1, "processing_resolution": 64, "latents": torch.zeros(1, 4, 8, 8)}
        theirs = pipeline(Image.fromarray(rgb), output_type="np", **own).prediction[0, ..., 0]
        np.testing.assert_allclose(answers["depth"].values, theirs, atol=1e-4)


def test_a_distilled_result_says_how_many_timesteps_it_knows(runs):
    info = describe(runs("lcm") / "checkpoint")
    scheduler = MultiStep(info, Settings(steps=5)).pipeline.scheduler
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]
    with pytest.raises(Unusable, match=r"steps=6: checkpoint .* knows 5 timesteps"):
        MultiStep(info, Settings(steps=6))


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_goes_on_as_if_nothing_had_been(name, tmp_path, runs, data, start, killed_after):
    """Killed in the second step of its last stage."""
    recipe = small_recipe(name, start)
    killed_after(sum(stage.steps for stage in recipe.stages))
    with pytest.raises(Killed):
        train(recipe, tmp_path, data)
    place = States(tmp_path, 2).newest()[1]
    assert (place.stage, place.step) == (len(recipe.stages) - 1, 1)
    assert train(recipe, tmp_path, data)
    assert_same_training(runs(name), tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_train_what_one_trains(name, runs, two_processes):
    """Gradients agree to float32's rounding; Adam then makes whole steps of what is nearly zero, so weights agree less.

    None may be off by more than a few learning rates, and hardly any by as much as one.
    """
    one, two = logged(runs(name), "loss", "norm"), logged(two_processes / name, "loss", "norm")
    first = one[: small_recipe(name, "").stages[0].steps]
    np.testing.assert_allclose(two[: len(first)], first, rtol=2e-4)
    np.testing.assert_allclose(two, one, rtol=2e-2)
    # The two validated every step.
    held_out = dict(validations(two_processes / name))
    assert list(held_out) == logged(two_processes / name, "step")[:, 0].tolist()
    for step, found in validations(runs(name)):
        assert held_out[step].keys() == found.keys()
        np.testing.assert_allclose(list(held_out[step].values()), list(found.values()), rtol=2e-2)
    assert json.loads((two_processes / name / "run.json").read_text())[0]["processes"] == 2
    rate, theirs = 1e-4, weights(two_processes / name)
    off = torch.cat([(values - theirs.pop(key)).abs().flatten() for key, values in weights(runs(name)).items()])
    assert not theirs
    assert float(off.max()) < 5 * rate
    assert float(off.mean()) < rate / 20


def test_sharded_processes_train_what_one_trains_and_resume_to_the_bit(tmp_path, data, start):
    assert train(small_recipe("e2e-depth", start, steps=3), tmp_path / "one", data)
    script = PROJECT / "test" / "sharded_training.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", script, tmp_path, data, start]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, command)], env=environment, check=True)
    one, two = (logged(tmp_path / run, "loss", "norm") for run in ("one", "whole"))
    np.testing.assert_allclose(two, one, rtol=2e-3)
    assert json.loads((tmp_path / "whole" / "run.json").read_text())[0]["processes"] == 2
    held_out = [list(validations(tmp_path / run)[0][1].values()) for run in ("one", "whole")]
    np.testing.assert_allclose(held_out[1], held_out[0], rtol=2e-3)
    assert_same_training(tmp_path / "whole", tmp_path / "resumed")
    assert pictures(tmp_path / "whole") == {"image": 3, "answer": 3}
    nano, lcm = ((tmp_path / f"refusal-{name}").read_text() for name in ("nano", "lcm"))
    assert "average (optimiser.ema) needs whole weights, which FSDP shards; set it to 0, or do without" in nano
    assert "average (objective.ema_target) needs whole weights, which FSDP shards; do without" in lcm


def test_the_launcher_of_accelerate_as_the_docs_have_it(tmp_path, data, start, runs):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(plain(small_recipe("marigold-depth", start))), encoding="utf-8")
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]
    docs = (PROJECT / "docs" / "training.md").read_text(encoding="utf-8")
    (options,) = re.findall(r"`accelerate (launch [^`]*?-m trainer\s+train)", docs)
    command = [*launcher, *options.split(), recipe, "--data", data, "--run", tmp_path / "run"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, command)], check=True, env=environment, cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "run.json").read_text())[0]["processes"] == 2
    np.testing.assert_allclose(logged(tmp_path / "run", "loss"), logged(runs("marigold-depth"), "loss"), rtol=1e-4)


def test_sigkill_of_a_real_process(tmp_path, data, start):
    """The command itself, killed when it has saved its third step; the result is that of an unbroken run."""
    recipe = small_recipe("marigold-depth", start, steps=5)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain(recipe)))
    command = [sys.executable, "-m", "trainer", "train", tmp_path / "recipe.yaml", "--data", data, "--run"]
    process = subprocess.Popen([*map(str, command), str(tmp_path / "run")], cwd=PROJECT)
    while process.poll() is None and not (tmp_path / "run" / "states" / "01-00000003").is_dir():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for run in ("run", "whole"):
        assert train(recipe, tmp_path / run, data)
    assert_same_training(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_a_run_saves_the_step_it_is_at(tmp_path, data, start, runs, number, monkeypatch, capsys):
    real = StageRun._step

    def step(self, batches, report):
        os.kill(os.getpid(), number)
        return real(self, batches, report)

    recipe = small_recipe("marigold-depth", start)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain(replace(recipe, save_steps=99))))
    command = ["train", str(tmp_path / "recipe.yaml"), "--data", str(data), "--run", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "_step", step)
        assert trainer(command) == 3
    assert "give the same command again to go on" in capsys.readouterr().out
    assert States(tmp_path / "run", 2).newest()[1].step == 1
    assert trainer(command) == 0
    assert_same_training(runs("marigold-depth"), tmp_path / "run")


def test_training_learns_one_picture(tmp_path, data):
    recipe = small_recipe("robot", str(write_small_checkpoint(tmp_path / "start")), steps=30)
    stage = recipe.stages[0]
    rates = Optimiser(lr=2e-3, final_lr=2e-3, warmup_steps=2)
    stage = replace(stage, sizes=((64, 32, 1.0),), optimiser=rates, objective=EndToEnd(loss="relative"))
    write_data(tmp_path / "one", count=1)
    assert train(replace(recipe, stages=(stage,), save_steps=99), tmp_path / "run", tmp_path / "one")
    losses = logged(tmp_path / "run", "loss")[:, 0]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_only_what_is_to_learn_learns(runs, start):
    before = load_file(Path(start) / "vae" / "diffusion_pytorch_model.safetensors")
    after = load_file(runs("e2e-depth") / "checkpoint" / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    unet = [load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")["mid_block.resnets.0.conv1.weight"]
            for folder in (Path(start), runs("e2e-depth") / "checkpoint")]  # fmt: skip
    assert not torch.equal(*unet)


def test_the_schedule_warms_up_and_falls_to_its_end():
    """reference/marigold.md §3.1: linear over 100 steps, then lr exp(ln(0.01) (n - 100) / (25000 - 100)), then 1 %."""
    knobs = Optimiser(lr=3e-5, final_lr=3e-7, decay_steps=25000, warmup_steps=100)
    assert learning_rate(knobs, 0, 30000) == pytest.approx(3e-7)
    assert learning_rate(knobs, 99, 30000) == learning_rate(knobs, 100, 30000) == 3e-5
    assert learning_rate(knobs, 12550, 30000) == pytest.approx(3e-6)
    assert learning_rate(knobs, 25000, 30000) == learning_rate(knobs, 29999, 30000) == pytest.approx(3e-7)


# What goes wrong


def test_a_step_without_a_finite_gradient_is_skipped_and_counted_and_many_end_the_run(
    tmp_path, data, start, monkeypatch
):
    recipe = small_recipe("marigold-depth", start, steps=6)
    real = loop.StageRun._step
    bad = {2, 3}

    def step(self, batches, report):
        if self.place.step in bad:
            with torch.no_grad():
                self.parameters[0].register_hook(lambda gradient: gradient * float("nan"))
            before = [p.detach().clone() for p in self.parameters]
            result = real(self, batches, report)
            assert all(torch.equal(a, b) for a, b in zip(before, self.parameters, strict=True))
            self.parameters[0]._backward_hooks.clear()
            return result
        return real(self, batches, report)

    monkeypatch.setattr(loop.StageRun, "_step", step)
    assert train(recipe, tmp_path / "two", data)
    assert logged(tmp_path / "two", "bad_steps")[-1, 0] == 2
    bad |= set(range(1, 6))
    for bad_steps in (2, 3):
        words = f"{bad_steps} steps in a row, to step {bad_steps + 1}, had no finite loss and gradient; the last state"
        with pytest.raises(Unusable, match=words):
            train(replace(recipe, bad_steps=bad_steps), tmp_path / "all", data)
        # What may have ruined the weights is not saved over what was good.
        assert States(tmp_path / "all", 2).newest()[1].step == 1


def test_a_loss_that_is_nan_is_a_bad_step_though_its_gradient_is_finite(tmp_path, data, start, monkeypatch):
    real = EndToEndObjective.forward

    def forward(self, batch, generator):
        losses = real(self, batch, generator)
        return losses | {"loss": losses["loss"] + float("nan")}

    monkeypatch.setattr(EndToEndObjective, "forward", forward)
    before = first_model(small_recipe("e2e-depth", start)).unet.state_dict()
    assert train(small_recipe("e2e-depth", start, steps=2), tmp_path / "run", data)
    assert logged(tmp_path / "run", "bad_steps")[-1, 0] == 2
    for name, values in load_file(tmp_path / "run" / "checkpoint" / "unet" / UNET_FILE).items():
        assert torch.equal(values, before[name]), name


def test_weights_that_are_not_finite_are_no_result(tmp_path, data, start, monkeypatch):
    real = StageRun.train

    def ruined(self, stop, stop_after):
        done = real(self, stop, stop_after)
        with torch.no_grad():
            self.parameters[0].fill_(float("nan"))
        return done

    monkeypatch.setattr(StageRun, "train", ruined)
    with pytest.raises(Unusable, match=r"are not finite in torch\.float32; write float32, or go back to a"):
        train(small_recipe("e2e-depth", start, steps=2), tmp_path / "run", data)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_network_that_draws_near_as_far_is_told(tmp_path, data, start, monkeypatch, capsys):
    monkeypatch.setattr(end_to_end, "fit_affine", lambda signed, depth_m, known: (-torch.ones(len(signed)), None))
    assert train(small_recipe("e2e-depth", start, steps=2), tmp_path / "run", data)
    assert logged(tmp_path / "run", "mirrored").tolist() == [[1.0], [1.0]]
    assert "warning: this network draws near as far" in capsys.readouterr().err


def test_without_room_for_tensorboard_a_run_goes_on(tmp_path, data, start, runs, monkeypatch, capsys):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")

    def full(self, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    for method in ("add_scalar", "add_images", "close"):
        monkeypatch.setattr(tensorboard.SummaryWriter, method, full)
    assert train(small_recipe("marigold-depth", start), tmp_path / "run", data)
    assert capsys.readouterr().err.count("TensorBoard's files cannot be written (No space left on device)") == 1
    assert_same_training(runs("marigold-depth"), tmp_path / "run")


def test_a_run_goes_on_with_its_own_samples_only(tmp_path, data, start, capsys):
    """Others would come in another order, and its best would be the best of other samples."""
    own = shutil.copytree(data, tmp_path / "data")
    recipe = small_recipe("marigold-depth", start, steps=2)
    assert not train(recipe, tmp_path / "run", own, stop_after=1)
    held_out = own / "hypersim" / "held_out" / "camera"
    added = shutil.copy(next(held_out.glob("*.json")), held_out / "added.json")
    words = r"it was begun with 2 samples in hypersim/held_out, and now there are 3; .*, bring back those of before"
    with pytest.raises(Unusable, match=words):
        train(recipe, tmp_path / "run", own)
    Path(added).unlink()
    assert train(recipe, tmp_path / "run", own)
    shutil.copy(next(held_out.glob("*.json")), held_out / "added.json")
    assert train(recipe, tmp_path / "run", own)
    assert "run has ended: it was begun with 2 samples" in capsys.readouterr().err
    # Nothing is left to train on them.
    shutil.rmtree(own)
    assert train(recipe, tmp_path / "run", own)


def test_a_full_disk_leaves_the_states_before(tmp_path, data, start, monkeypatch):
    """The device that is always full stands in for a disk that is."""
    from accelerate import Accelerator

    recipe = small_recipe("marigold-depth", start, steps=4)
    real = Accelerator.save_state

    def save_state(self, folder, **options):
        if "00000003" in folder:
            with open("/dev/full", "w") as full:
                full.write("x" * 100000)
        return real(self, folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", save_state)
        with pytest.raises(Unusable, match=r"01-00000003: cannot be written \(.*No space left.*\); make room"):
            train(recipe, tmp_path / "run", data)
    assert sorted(path.name for path in (tmp_path / "run" / "states").iterdir()) == ["01-00000001", "01-00000002"]
    assert train(recipe, tmp_path / "run", data)
    assert train(recipe, tmp_path / "whole", data)
    assert_same_training(tmp_path / "whole", tmp_path / "run")


def test_so_many_states_are_kept(tmp_path, data, start):
    assert not train(replace(small_recipe("marigold-depth", start, steps=6), keep=3), tmp_path, data, stop_after=5)
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == [f"01-0000000{n}" for n in (3, 4, 5)]


def test_a_run_goes_on_with_its_own_recipe_only(tmp_path, data, start, runs):
    run = shutil.copytree(runs("marigold-depth"), tmp_path / "run")
    recipe = small_recipe("marigold-depth", start)
    with pytest.raises(Unusable, match="was begun with seed=2024, not 7"):
        train(replace(recipe, seed=7), run, data)
    changed = replace(recipe.stages[0], objective=replace(recipe.stages[0].objective, strength=0.5))
    with pytest.raises(Unusable, match=r"stages\.0\.objective\.strength=0\.9, not 0\.5"):
        train(replace(recipe, stages=(changed,)), run, data)
    with pytest.raises(Unusable, match=r"was begun with .*; go on with the same recipe"):
        train(small_recipe("marigold-normals", start), run, data)
    two = replace(recipe, data=recipe.data[:1])
    with pytest.raises(Unusable, match=r"was begun with data\.1\."):
        train(two, run, data)
    more = replace(recipe, stages=(*recipe.stages, replace(recipe.stages[0], name="more")), log_steps=2)
    assert train(more, run, data)
    assert logged(run, "step")[-1, 0] == 4


def test_the_command_of_a_finished_run_given_again_changes_nothing(tmp_path, data, start, runs):
    run = shutil.copytree(runs("marigold-depth"), tmp_path / "run")
    assert train(small_recipe("marigold-depth", start), run, data)
    assert_same_training(runs("marigold-depth"), run)
    assert not list(run.glob("stage-*"))
    # It is noted all the same, with what it was made with.
    first, second = json.loads((run / "run.json").read_text())
    assert first["versions"] == second["versions"]
    assert first["versions"]["torch"] == importlib.metadata.version("torch")
    assert set(first["versions"]) == {
        "marigold_ros", "python", "torch", "diffusers", "accelerate", "numpy", "opencv",
    }  # fmt: skip
    assert first["versions"]["marigold_ros"] == marigold_ros.__version__
    assert first["versions"]["opencv"] == cv2.__version__
    assert bool(first["commit"]) == bool(commit(PROJECT))


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_run_notes_the_commit_where_there_is_one(tmp_path, monkeypatch):
    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        return subprocess.run(["git", "-C", tmp_path, *name, *words], check=True, capture_output=True, text=True).stdout

    assert commit(tmp_path) is None
    git("init", "-q")
    assert commit(tmp_path) is None  # of an empty repository
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    git("tag", "-a", "v1", "-m", "a tag is no commit")
    made = git("rev-parse", "HEAD").strip()
    assert commit(tmp_path) == made
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{made}-dirty"
    (tmp_path / "installed").mkdir()
    assert commit(tmp_path / "installed") is None
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path) is None


def test_skipped_samples_are_counted_in_the_log_and_named(tmp_path, start, capsys):
    folder = write_data(tmp_path / "data", count=4) / "hypersim" / "train"
    (folder / "depth_m" / "000001.npy").write_bytes(b"half")
    recipe = small_recipe("marigold-depth", start, damaged="skip", validate_steps=0)
    assert train(recipe, tmp_path / "run", tmp_path / "data")
    said = capsys.readouterr().err
    assert said.count("/000001 cannot be used") == logged(tmp_path / "run", "skipped_samples")[-1, 0] > 0


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path, data, start):
    hold = (
        "import fcntl, sys\nwith open(sys.argv[1], 'w') as file:\n    fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "    print(flush=True)\n    input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    recipe = small_recipe("marigold-depth", start, steps=1)
    with pytest.raises(Unusable, match="another process is training in it; wait until it has ended, or give another"):
        train(recipe, tmp_path, data)
    assert not list(tmp_path.glob("states"))
    holder.kill()
    holder.wait()
    assert train(recipe, tmp_path, data)


def test_passes_that_cannot_be_shared_are_refused(tmp_path, data, start, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(Unusable, match="batch=4 with micro_batch=2 makes 2 passes, which 3 processes cannot share"):
        train(small_recipe("marigold-depth", start), tmp_path, data)


def test_a_damaged_place_is_named(tmp_path, data, start, runs):
    run = shutil.copytree(runs("marigold-depth"), tmp_path / "run")
    state = max((run / "states").iterdir())
    (state / "place.json").write_text("{")
    with pytest.raises(Unusable, match=r"place\.json: cannot be read .*; delete"):
        train(small_recipe("marigold-depth", start), run, data)


def test_a_damaged_state_is_named(tmp_path, data, start):
    recipe = small_recipe("marigold-depth", start, steps=3)
    assert not train(recipe, tmp_path, data, stop_after=1)
    state = max((tmp_path / "states").iterdir())
    (state / "model.safetensors").write_bytes(b"half")
    with pytest.raises(Unusable, match=r"01-00000001: cannot be read .*; delete it to go on from the one before"):
        train(recipe, tmp_path, data)


def test_the_checkpoint_of_another_recipe_is_refused(tmp_path, data, runs):
    recipe = small_recipe("e2e-depth", str(runs("marigold-iid-lighting") / "checkpoint"))
    with pytest.raises(Unusable, match="is a checkpoint of another recipe: it draws 3 target"):
        train(recipe, tmp_path, data)


def test_fine_tuning_keeps_the_space_and_the_size_of_its_start(tmp_path, data):
    start = str(write_small_checkpoint(tmp_path / "start", space="depth"))
    recipe = replace(small_recipe("robot", start, steps=1), size=(0, 0))
    with pytest.raises(Unusable, match="affine in 'depth', the recipe's in 'inverse_depth'; set space: depth"):
        train(recipe, tmp_path / "run", data)
    inverse = str(write_small_checkpoint(tmp_path / "inverse", space="inverse_depth"))
    with pytest.raises(Unusable, match="affine in 'inverse_depth', the recipe's in 'depth'; set space: inverse_depth"):
        train(small_recipe("e2e-depth", inverse), tmp_path / "other", data)
    assert train(replace(recipe, space="depth"), tmp_path / "run", data)
    info = describe(tmp_path / "run" / "checkpoint")
    assert (info.space, info.width, info.height) == ("depth", 128, 96)


def test_what_was_trained_with_a_tiny_vae_goes_on_with_it_and_is_packaged_with_it(tmp_path, runs, monkeypatch):
    start = str(runs("tiny") / "checkpoint")
    assert first_model(small_recipe("e2e-depth", start)).tiny is not None
    with pytest.raises(Unusable, match="was trained with a tiny VAE, which is for objective end_to_end only"):
        first_model(small_recipe("marigold-depth", start))
    monkeypatch.setattr(card, "real_frames", list)
    card.package_run(runs("tiny"), tmp_path / "half", None, None, onnx=False)
    rgb = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        answers = [load_network(describe(folder))(rgb) for folder in (start, tmp_path / "half")]
    torch.testing.assert_close(*answers, atol=5e-3, rtol=0)


def test_starts_that_would_teach_nonsense_are_refused(tmp_path, data, runs):
    for name, start, words in (
        ("lcm", "e2e-depth", "is of protocol 'e2e'; only a network trained by diffusion can be distilled"),
        ("lcm", "marigold-normals", "is of task 'normals', the recipe of 'depth'"),
        ("robot", "e2e-normals", "is of task 'normals', the recipe of 'depth'"),
    ):
        with pytest.raises(Unusable, match=words):
            train(small_recipe(name, str(runs(start) / "checkpoint")), tmp_path, data)


def test_a_size_that_the_network_cannot_take_is_refused_at_once(tmp_path, data, start):
    with pytest.raises(Unusable, match=r"size=\[100, 64\]: must be multiples of 16"):
        train(replace(small_recipe("e2e-depth", start), size=(100, 64)), tmp_path, data)


def test_half_precision_needs_a_gpu(tmp_path, data, start):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(Unusable, match="precision='fp16': needs a GPU"):
        train(replace(small_recipe("e2e-depth", start), precision="fp16"), tmp_path, data)


def test_a_run_cannot_lie_in_a_file(tmp_path, data, start):
    (tmp_path / "run").write_text("")
    with pytest.raises(Unusable, match="cannot be made"):
        train(small_recipe("e2e-depth", start), tmp_path / "run", data)


def test_runs_of_other_precision_may_follow_in_one_process(tmp_path, data, start):
    for precision in ("bf16", "no"):
        assert train(
            replace(small_recipe("e2e-depth", start, steps=1), precision=precision), tmp_path / precision, data
        )
        assert pictures(tmp_path / precision) == {"image": 1, "answer": 1}


def test_pictures_that_fail_cost_no_step(tmp_path, data, start, monkeypatch):
    def fail(self, batch):
        raise Killed

    monkeypatch.setattr(EndToEndObjective, "preview", fail)
    with pytest.raises(Killed):
        train(small_recipe("e2e-depth", start), tmp_path, data)
    assert States(tmp_path, 2).newest()[1].step == 1


def test_killed_between_a_stages_result_and_its_state(tmp_path, data, runs, monkeypatch):
    """The result is written again, and a recipe that has grown trains no stage twice."""
    recipe = small_recipe("marigold-depth", "")
    recipe = replace(recipe, size=(64, 64), start=replace(recipe.start, checkpoint=""))
    longer = replace(recipe, stages=(*recipe.stages, replace(recipe.stages[0], name="more")))
    assert train(recipe, tmp_path / "run", data)
    real = StageRun.finish

    def finish(self):
        real(self)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "finish", finish)
        with pytest.raises(Killed):
            train(longer, tmp_path / "run", data)
    assert train(longer, tmp_path / "run", data)
    assert train(longer, tmp_path / "whole", data)
    assert all(
        torch.equal(values, weights(tmp_path / "whole")[name]) for name, values in weights(tmp_path / "run").items()
    )


def test_random_weights_need_a_size(tmp_path, data):
    with pytest.raises(Unusable, match="has no size of its own"):
        train(replace(small_recipe("nano", ""), size=(0, 0)), tmp_path, data)
