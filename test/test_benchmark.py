"""The benchmark: its scene gives every stage real work, and its numbers come out, in a table and as JSON."""

import json
import os
from collections import deque

import numpy as np
import pytest

from marigold_ros import benchmark, driver, messages
from marigold_ros.anchors import find_anchors
from marigold_ros.config import FitConfig, ModelConfig, RangeConfig, Unusable
from marigold_ros.metric import MetricFit, fit_metric
from marigold_ros.roofline import DEVICES, Operator


@pytest.mark.parametrize("space", ["depth", "inverse_depth", "log_depth"])
def test_the_scene_can_be_fitted_whatever_the_network_says(space):
    relative = np.tile(np.linspace(0.2, 0.7, 480, dtype=np.float32)[:, None], (1, 640))
    scene = benchmark.make_scene(lambda rgb: relative, space, 640, 480)
    anchors = find_anchors(scene.points, np.eye(4), scene.camera, RangeConfig())
    fit = fit_metric(relative, anchors, space, FitConfig())
    assert isinstance(fit, MetricFit)
    assert fit.residual < 0.03


def test_timing_counts_in_milliseconds():
    found = benchmark.timing(np.linspace(0.0, 0.1, 101))
    assert (found.p50_ms, found.p95_ms) == (50.0, 95.0)


def test_work_is_done_as_often_as_it_is_counted():
    calls = []
    assert len(benchmark.measure(lambda: calls.append(0), 10)) == 10
    assert len(calls) == 10 + 5


def test_each_column_says_at_which_size_the_network_ran():
    columns = {"640x480": {"fit": benchmark.Timing(1.0, 2.0)}, "1280x720": {"fit": benchmark.Timing(3.0, 4.0)}}
    head, sizes, _, fit = benchmark.table(columns, {"640x480": "384x288", "1280x720": "448x256"}).splitlines()
    for size, working, p50 in (("640x480 p50", "384x288", "1.0"), ("1280x720 p50", "448x256", "3.0")):
        end = head.index(size) + len(size)
        assert sizes[:end].endswith(working)
        assert fit[:end].endswith(p50)


class SlowNode(driver.Driver):
    """A driver whose node answers a frame only while the driver waits for the answer to the third one after it."""

    def __init__(self):
        self.depths, self.arrivals_s, self.facts, self._sent = deque(maxlen=10), {}, {}, []

    def send(self, rgb, camera, points):
        self._sent.append(1_700_000_000_000_000_000 + len(self._sent))
        return self._sent[-1]

    def spin_until(self, done, timeout_s):
        if len(self._sent) > 3:
            depth_m = np.full((2, 3), len(self._sent), np.float32)
            self._on_depth(messages.float_image(depth_m, self._header(self._sent[-4], "camera")))
        return done()


def test_a_network_slower_than_the_patience_for_one_frame_is_waited_for():
    slow = SlowNode()
    for _ in range(2):
        assert slow.ask(None, None, None, timeout_s=0.5).shape == (2, 3)


def test_a_node_that_never_answers_is_named():
    slow = SlowNode()
    slow.facts, slow._on_depth = {"status": "no LiDAR"}, lambda message: None
    with pytest.raises(Unusable, match="no depth within 0 s: no LiDAR"):
        slow.ask(None, None, None, timeout_s=0.05)


def test_the_benchmark_measures_every_stage_and_the_real_node(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "_LOADS", 1)
    assert benchmark.main(["--frames", "3", "--no-diffusers", "--json", str(tmp_path / "b.json")]) == 0
    facts = json.loads((tmp_path / "b.json").read_text())
    for size in ("640x480", "1280x720"):
        stages = facts["stages (ms)"][size]
        assert {benchmark.NETWORK, benchmark.REST, benchmark.BESIDE, "fit", "rectify"} <= stages.keys()
        assert stages[benchmark.ALL_PUBLISHED]["p50_ms"] > stages[benchmark.NODE_REST]["p50_ms"] > 0
        assert stages[benchmark.DEPTH_ARRIVED]["p50_ms"] > 0
        assert all(0 <= t["p50_ms"] <= t["p95_ms"] for t in stages.values())
    assert int(facts["hardware"]["cores"]) == len(os.sched_getaffinity(0))
    printed = capsys.readouterr().out
    assert "1280x720 p50" in printed
    sizes = facts["working sizes"]
    assert sizes["640x480"] != sizes["1280x720"]
    assert next(line for line in printed.splitlines() if "working size" in line).split()[2:] == list(sizes.values())
    assert "CPU:" in printed
    assert len(facts["load to first depth (s)"]) == 1
    assert facts["load to first depth (s)"][0] > 0.05
    assert "load to first depth, in a fresh process:" in printed


def test_the_nodes_memory_is_watched(capsys):
    assert benchmark.main(["--memory", "12"]) == 0
    assert "memory of the node over 12 frames" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_is_named(capsys):
    assert benchmark.main(["--checkpoint", "nowhere", "--no-node"]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "gpu"], "invalid choice: 'gpu' (choose from"),
        (["--vae", "small"], "invalid choice: 'small'"),
        (["--size", "big"], "must be WIDTHxHEIGHT"),
        (["--random-sd2", "--checkpoint", "nano"], "not allowed with"),
        (["--rounds", "0"], "--rounds at least 1"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert words in capsys.readouterr().err


def test_engines_are_those_of_the_settings(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    assert f"--engine {{{','.join(benchmark._choices('engine'))}}}" in capsys.readouterr().out


def test_a_working_size_that_does_not_fit_is_named(capsys):
    assert benchmark.main(["--size", "100x96"]) == 1
    assert capsys.readouterr().err == "benchmark: model.width=100: must be a multiple of 32 (nearest: 96)\n"


def test_the_network_of_random_weights_comes_from_the_cache(monkeypatch, tmp_path):
    pytest.importorskip("diffusers")
    from marigold_ros import sd2

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sd2, "random_checkpoint", lambda cache: cache / "large")
    monkeypatch.setattr(sd2, "random_tiny_vae", lambda cache: cache / "tiny")
    seen = []

    def load(model):
        seen.append(model)
        raise Unusable("seen enough")

    monkeypatch.setattr(benchmark, "load_estimator", load)
    for vae in ("full", "tiny-decoder"):
        assert benchmark.main(["--random-sd2", "--size", "768x576", "--vae", vae, "--engine", "torch"]) == 1
    cache = tmp_path / "marigold_ros"
    full = ModelConfig(checkpoint=str(cache / "large"), engine="torch", width=768, height=576)
    assert seen == [full, benchmark.replace(full, vae="tiny-decoder", tiny_vae=str(cache / "tiny"))]


WORK = {"encode": 10**12, "step": 2 * 10**12, "decode": 10**12}
COUNTS = {part: [Operator("convolution", flop, 1)] for part, flop in WORK.items()}


def test_the_parts_times_are_set_against_arithmetic_and_peak():
    parts = {"encode": benchmark.Timing(10.0, 11.0), benchmark.NETWORK: benchmark.Timing(40.0, 41.0)}
    h200 = next(device for device in DEVICES if device.name == "H200")
    head, _, encode, step, _, whole = benchmark.parts_table(parts, COUNTS, h200).splitlines()
    assert head.split("  ")[-1].strip() == "at least"
    assert encode.split() == ["encode", "10.00", "1000.0", "100.000", "10.1%", "1.01"]
    assert step.split() == ["step", "2000.0"], "a part that the engine cannot time"
    assert whole.split()[1:3] == ["40.00", "4000.0"]
    unknown = benchmark.parts_table(parts, COUNTS, None)
    assert "peak" not in unknown
    assert "100.000" in unknown


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        (None, "network at 384x288\n"),
        (("NVIDIA H200", 132), "H200: 989 TFLOP/s of dense float16"),
        (("NVIDIA GeForce GTX 1080", 20), "NVIDIA GeForce GTX 1080: unknown peak"),
    ],
)
def test_the_peak_is_that_of_a_known_gpu(gpu, words, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(benchmark.comparison, "cuda_name", lambda: gpu)
    parts = {benchmark.NETWORK: benchmark.Timing(1.0, 1.0)}
    found = benchmark._arithmetic(ModelConfig(), (384, 288), parts, gpu_used=True)
    assert sum(found["GFLOP"].values()) == pytest.approx(12.7, abs=0.1)
    assert words in capsys.readouterr().out


def test_arithmetic_that_cannot_be_counted_is_no_reason_to_stop(monkeypatch, capsys):
    def fail(*arguments):
        raise Unusable("torch is not installed")

    monkeypatch.setattr(benchmark, "subject", fail)
    assert benchmark._arithmetic(ModelConfig(), (384, 288), {}, gpu_used=False) == {}
    assert "not counted (torch is not installed)" in capsys.readouterr().out


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Arguments for a checkpoint made in seconds, all in this process, with a GPU's name and without compiling."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from small_checkpoint import write_small_checkpoint

    monkeypatch.setattr(benchmark, "SIZES", ((320, 240), (640, 480)))
    monkeypatch.setattr(benchmark, "_LOADS", 1)
    monkeypatch.setattr(benchmark, "alone", lambda measurement, *arguments: measurement(*arguments))
    monkeypatch.setattr(benchmark.comparison, "cuda_name", lambda: ("NVIDIA H200", 132))
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **how: compiled.append(how) or module)
    folder = write_small_checkpoint(tmp_path / "small")
    return ["--checkpoint", str(folder), "--engine", "torch", "--frames", "2", "--rounds", "1", "--no-node"], compiled


def test_diffusers_and_its_fastest_recipe_run_for_comparison(small, capsys, tmp_path):
    arguments, compiled = small
    assert benchmark.main([*arguments, "--json", str(tmp_path / "b.json")]) == 0
    printed = capsys.readouterr().out
    assert "diffusers' MarigoldDepthPipeline " in printed
    assert "diffusers' MarigoldDepthPipeline, tiny VAE and compiled U-Net " in printed
    assert compiled == [{"mode": "reduce-overhead", "fullgraph": True}]
    facts = json.loads((tmp_path / "b.json").read_text())
    assert set(facts["parts (ms)"]) == {*benchmark.PARTS, benchmark.NETWORK}
    assert all(pairs[0][0] > 0 for pairs in facts["marigold_ros and diffusers (ms)"].values())


def test_the_folds_are_measured_at_a_size_of_ones_own(small, capsys, monkeypatch):
    """On two exports of one network, which answer alike."""
    arguments, _ = small
    answers = {}
    measure = benchmark.comparison.measure_openvino

    def watched(path, threads, rgb, repeats):
        from marigold_ros.engines.openvino_engine import OpenVinoEngine

        answers[path.stem] = OpenVinoEngine(path)(rgb).copy()
        return measure(path, threads, rgb, repeats)

    monkeypatch.setattr(benchmark.comparison, "measure_openvino", watched)
    assert benchmark.main([*arguments, "--no-diffusers", "--folds", "--size", "64x64"]) == 0
    printed = capsys.readouterr().out
    assert "network on OpenVINO at 64x64, median of 1 rounds: folded " in printed
    assert "network at 64x64, H200" in printed
    assert np.abs(answers["folded"] - answers["unfolded"]).mean() < 0.01


def test_diffusers_runs_the_same_weights_in_a_process_of_its_own(monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.setattr(benchmark, "_LOADS", 1)
    monkeypatch.setattr(benchmark, "SIZES", ((320, 240), (640, 480)))
    assert benchmark.main(["--frames", "2", "--rounds", "1", "--no-node"]) == 0
    assert "times as fast" in capsys.readouterr().out
