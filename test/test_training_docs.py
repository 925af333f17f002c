"""Every command of docs/training.md runs, in its order: on less data, for fewer steps, from a small checkpoint.

Those that do not are named in `ELSEWHERE`; a test fails for any other.

Two things cannot be had here: a reachable hub (a small checkpoint in Stable Diffusion 2's layout stands for one on it),
and, where LLVM is missing, the renderer (frames drawn by the test stand for rendered ones).
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
pytest.importorskip("onnx")

from test_datasets import write_hypersim, write_rows  # noqa: E402

from family_checkpoints import write_sd2  # noqa: E402
from marigold_ros import doctor, export, recordings  # noqa: E402
from marigold_ros.checkpoints import describe  # noqa: E402
from marigold_ros.geometry import Camera  # noqa: E402
from published_layouts import write_nyuv2  # noqa: E402
from trainer import card, frames  # noqa: E402
from trainer.__main__ import main as trainer  # noqa: E402
from training import scene, write_data  # noqa: E402

PROJECT = Path(__file__).resolve().parent.parent
# What does not run here, by its beginning.
ELSEWHERE = (
    *("pip ", "apt-get "),  # installs
    *("ros2 bag record", "ros2 launch "),  # wants ROS and a robot
    "accelerate launch ",  # many machines; test_training.py has it on one
    "tensorboard ",  # goes on until it is stopped
    "python -m trainer train RECIPE",  # names no recipe
)
PROGRAMS = ("accelerate ", "apt-get ", "hf ", "pip ", "python ", "ros2 ", "tensorboard ", "torchrun ")
SHORT = ["--set", "stages.0.steps=1", "--set", "stages.0.batch=4", "--set", "stages.0.micro_batch=2"]
SMALL = [*SHORT, "--set", "stages.0.sizes=[[64, 64, 1]]", "--set", "threads=1"]
# What is added to a command so that it ends soon; by the words that it begins with.
ADDED = {
    "record": ["--frames", "12", "--width", "128", "--height", "96", "--samples", "1"],
    "collect": ["--motion", "0", "--min-anchors", "3", "--gap", "0"],
    "generate": ["--count", "2", "--workers", "1", "--copies", "0.1"],
    "train robot": SMALL,
    "train e2e-depth": [*SMALL, "--set", "gradient_checkpointing=false", "--set", "size=[128, 96]"],
    "experiments": ["--count", "2", "--steps", "2"],
    "evaluate": ["--limit", "2", "--size", "checkpoint"],
}


def page():
    return (PROJECT / "docs" / "training.md").read_text(encoding="utf-8")


def commands():
    """The lines of the page's shell blocks that run here."""
    blocks = re.findall(r"```sh\n(.*?)```", page(), re.S)
    return [line for block in blocks for line in block.splitlines() if not line.startswith(ELSEWHERE)]


def draw_recording(folder):
    """A drive that takes six seconds; points straight ahead in a cross."""
    frames = []
    for number in range(12):
        sample = scene(number, (96, 128))
        depth_m = np.where(np.isfinite(sample.maps["depth_m"]), sample.maps["depth_m"], np.nan)
        rows, columns = np.nonzero(np.isfinite(depth_m))
        rows, columns = rows[::37], columns[::37]
        z = depth_m[rows, columns]
        points = np.stack([z, -(columns - 63.5) / 100 * z, -(rows - 47.5) / 100 * z], axis=1)
        stamp_ns = 1_700_000_000_000_000_000 + number * 500_000_000
        frames.append(recordings.Frame(stamp_ns, sample.rgb, depth_m.astype(np.float32), points.astype(np.float32)))
    camera_from_lidar = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    recordings.write_frames(folder, frames, Camera(128, 96, 100.0, 100.0, 63.5, 47.5), camera_from_lidar)


def run(words, start):
    """One command, in this process where it can be; those of the renderer are drawn where it is missing."""
    if words[0] == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", *words[1:], *SMALL]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return
    program, arguments = words[2], words[3:]
    if program != "trainer":
        assert {"marigold_ros.export": export, "marigold_ros.doctor": doctor}[program].main(arguments) in (None, 0)
        return
    added = next((more for name, more in ADDED.items() if " ".join(arguments).startswith(name)), [])
    if arguments[1] == "e2e-depth":
        added = [*added, "--set", f"start.checkpoint={start}"]
    status = trainer([*arguments, *added])
    if status == 2 and arguments[0] in ("record", "generate"):
        out = Path(arguments[arguments.index("--out") + 1])
        draw_recording(out) if arguments[0] == "record" else write_data(out.parent / "drawn", 3).rename(out)
        return
    assert status == 0, words


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The checkpoint to start from; the commands run in a folder in which downloads lie."""
    folder = tmp_path_factory.mktemp("docs")
    for number in range(2):
        write_hypersim(folder / "downloads" / "hypersim", number)
    rows = [("ai_001_001", "cam_00", number, "True", "train") for number in range(2)]
    write_rows(folder / "downloads" / "hypersim", *rows)
    ramp = np.tile(np.linspace(0, 1, 64), (48, 1))
    write_nyuv2(folder / "evaluation", [ramp] * 2, [1 + ramp] * 2)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("PYTHONPATH", str(PROJECT))  # for the processes that commands start
        patch.setattr(card, "real_frames", list)
        patch.setattr(frames, "real_frames", lambda folder: [])
        yield write_sd2(folder / "hub" / "stable-diffusion-2")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("line", commands(), ids=lambda line: " ".join(line.split()[2:5]))
def test_commands_run_one_after_the_other(line, start):
    run(shlex.split(line), start)


def test_what_they_have_made(start):
    assert describe(Path("runs/mine")).onnx
    assert "NYUv2" in Path("runs/robot/nyuv2/table.md").read_text()
    assert {path.name for path in Path("runs").iterdir()} >= {"robot", "robot-mixed", "robot-2", "e2e-depth"}


def test_every_kind_of_command_is_shown():
    shown = {line.split()[3] for line in commands() if line.startswith("python -m trainer")}
    wanted = {"record", "collect", "generate", "prepare", "train", "frames", "package", "experiments", "evaluate"}
    assert shown >= wanted


def test_no_command_stands_outside_of_what_runs_here_but_those_named_above():
    text = re.sub(r"```sh\n.*?```", "", page(), flags=re.S)
    indented, spans = re.findall(r"^ {4,}(.*)", text, re.M), re.findall(r"`([^`]+)`", text)
    found = [" ".join(words.split()) for words in (*indented, *spans) if words.strip().startswith(PROGRAMS)]
    assert found
    assert [command for command in found if not command.startswith(ELSEWHERE)] == []


def test_every_recipe_stands_in_the_table():
    text = page()
    for path in (PROJECT / "config" / "train").glob("*.yaml"):
        assert f"`{path.stem}`" in text, path.stem
