"""The demo as a user starts it: three processes, a table, a picture, a recording, and an honest exit status."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from marigold_ros import demo, recordings
from marigold_ros.places import shared
from marigold_ros.recordings import Recording
from marigold_ros.scores import Scores

PROJECT = Path(__file__).resolve().parent.parent


def run_demo(*arguments):
    command = [sys.executable, "-m", "marigold_ros.demo", *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The demo on the first frames of the bundled recording."""
    folder = tmp_path_factory.mktemp("demo")
    with Recording(shared("recordings/warehouse")) as opened:
        camera, pose = recordings.recorded_camera(opened), recordings.recorded_extrinsic(opened)
        frames = [frame for _, frame in zip(range(25), recordings.read_frames(opened), strict=False)]
    recordings.write_frames(folder / "short", frames, camera, pose)
    return run_demo("--recording", folder / "short", "--out", folder / "out"), folder / "out"


def test_the_demo_succeeds_and_says_how_good_it_was(outcome):
    done, _ = outcome
    assert done.returncode == 0, done.stderr
    for word in ("AbsRel", "latency", "LiDAR points", "Picture:", "Foxglove"):
        assert word in done.stdout


def test_the_picture_shows_something(outcome):
    picture = cv2.imread(str(outcome[1] / "demo.png"))
    assert picture.shape[1] > 1000
    assert picture.std() > 20


def test_the_output_recording_holds_what_the_node_published(outcome):
    with Recording(outcome[1] / "output.mcap") as opened:
        counts = dict.fromkeys(opened.topics, 0)
        depth = None
        for recorded in opened.messages():
            counts[recorded.topic] += 1
            depth = opened.decoded(recorded) if recorded.topic == demo.DEPTH else depth
    assert min(counts[topic] for topic in (demo.DEPTH, demo.DEPTH_INFO, demo.POINTS, recordings.IMAGE)) >= 3
    assert (depth.width, depth.height, depth.encoding) == (640, 480, "32FC1")
    depth_m = depth.data.view(np.float32)
    assert np.isfinite(depth_m).mean() > 0.5
    assert 0.3 < np.nanmedian(depth_m) < 60


def test_no_depth_is_a_failure_that_shows_the_nodes_own_words(tmp_path):
    done = run_demo("--checkpoint", tmp_path / "nothing", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "did not become active" in done.stderr
    assert "no such folder" in done.stderr


def test_a_dead_recorder_is_a_failure_that_shows_its_own_words(tmp_path):
    (tmp_path / "out" / "recording").mkdir(parents=True)
    (tmp_path / "out" / "recording" / "thesis.tex").write_text("years")
    done = run_demo("--out", tmp_path / "out")
    assert done.returncode == 1
    assert "demo: the recorder ended too early, with status 1" in done.stderr
    assert str(tmp_path / "out" / "recorder.log") in done.stderr
    assert "holds thesis.tex" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "recording" / "thesis.tex").exists()


@pytest.mark.parametrize("rate", ["0", "-1", "nan"])
def test_a_rate_that_is_none_is_refused(rate, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        demo.main(["--rate", rate, "--out", str(tmp_path / "out")])
    assert refused.value.code == 2
    assert "must be greater than 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_rich_a_terminal_gets_lines_of_text(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich.live", None)  # as if it were not installed
    with demo.Display("title") as display:
        display.show({"rate": "10 Hz"})
    assert capsys.readouterr().out == "rate: 10 Hz\n"


def test_frames_without_a_known_truth_do_not_spoil_the_mean():
    nothing = Scores(np.nan, np.nan, np.nan, 0, 0.0)
    found = demo.mean_scores([Scores(0.1, 0.9, 1.0, 10, 1.0), nothing, Scores(0.3, 0.7, 3.0, 10, 1.0)])
    assert (found.abs_rel, found.delta1, found.rmse_m, found.pixels) == pytest.approx((0.2, 0.8, 2.0, 20))
    assert np.isnan(demo.mean_scores([nothing]).abs_rel)
