"""The benchmark: its scene gives every stage real work, and its numbers come out, in a table and as JSON."""

import json
import os

import numpy as np
import pytest

from marigold_ros import benchmark
from marigold_ros.anchors import find_anchors
from marigold_ros.config import FitConfig, RangeConfig
from marigold_ros.metric import MetricFit, fit_metric


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


def test_the_benchmark_measures_every_stage_and_the_real_node(tmp_path, capsys):
    assert benchmark.main(["--frames", "3", "--no-diffusers", "--json", str(tmp_path / "b.json")]) == 0
    facts = json.loads((tmp_path / "b.json").read_text())
    for size in ("640x480", "1280x720"):
        stages = facts["stages (ms)"][size]
        assert {benchmark.NETWORK, benchmark.REST, "fit", "anchors", "rectify"} <= stages.keys()
        assert stages["stamp to publish (node, over DDS)"]["p50_ms"] > 0
        assert all(0 <= t["p50_ms"] <= t["p95_ms"] for t in stages.values())
    assert int(facts["hardware"]["cores"]) == len(os.sched_getaffinity(0))
    printed = capsys.readouterr().out
    assert "1280x720 p50" in printed
    assert "CPU:" in printed


def test_the_nodes_memory_is_watched(capsys):
    assert benchmark.main(["--memory", "12"]) == 0
    assert "memory of the node over 12 frames" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_is_named(capsys):
    assert benchmark.main(["--checkpoint", "nowhere", "--no-node"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_diffusers_runs_the_same_weights_for_comparison():
    pytest.importorskip("diffusers")
    pytest.importorskip("torch")
    found = benchmark.measure_diffusers(benchmark.ModelConfig(), benchmark.picture_of_a_hall(640, 480), 1)
    assert found.p50_ms > 0
