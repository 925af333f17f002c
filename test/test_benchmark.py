"""The benchmark: its scene gives every stage real work, and its numbers come out, in a table and as JSON."""

import json
import os
from collections import deque

import numpy as np
import pytest

from marigold_ros import benchmark, driver, messages
from marigold_ros.anchors import find_anchors
from marigold_ros.config import FitConfig, RangeConfig, Unusable
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


def test_the_benchmark_measures_every_stage_and_the_real_node(tmp_path, capsys):
    assert benchmark.main(["--frames", "3", "--no-diffusers", "--json", str(tmp_path / "b.json")]) == 0
    facts = json.loads((tmp_path / "b.json").read_text())
    for size in ("640x480", "1280x720"):
        stages = facts["stages (ms)"][size]
        assert {benchmark.NETWORK, benchmark.REST, "fit", "anchors", "rectify"} <= stages.keys()
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


def test_the_nodes_memory_is_watched(capsys):
    assert benchmark.main(["--memory", "12"]) == 0
    assert "memory of the node over 12 frames" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_is_named(capsys):
    assert benchmark.main(["--checkpoint", "nowhere", "--no-node"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_diffusers_runs_the_same_weights_for_comparison(monkeypatch, capsys):
    pytest.importorskip("diffusers")
    pytest.importorskip("torch")
    monkeypatch.setattr(benchmark, "_ROUNDS", 1)
    monkeypatch.setattr(benchmark, "SIZES", ((320, 240), (640, 480)))
    assert benchmark.main(["--frames", "2", "--no-node"]) == 0
    assert "times as fast" in capsys.readouterr().out
