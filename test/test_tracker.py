"""Metres over time: steady, held, refused, started anew."""

import itertools

import numpy as np
import pytest

from marigold_ros.anchors import Anchors
from marigold_ros.config import FitConfig
from marigold_ros.geometry import Camera
from marigold_ros.metric import SPACES, MetricFit, apply_fit, sample, to_space
from marigold_ros.metric_map import glance, relative_sigma
from marigold_ros.motion import Motion, unknown_motion
from marigold_ros.tracker import DEGRADED, FAULT, HOLD, OK, RELATIVE, MetricTracker

CAMERA = Camera(320, 240, 300.0, 300.0, 159.5, 119.5)
CONFIG = FitConfig(speed_m_s=0.0)
ROWS, COLUMNS = np.mgrid[0:240, 0:320].astype(np.float32)
DEPTH_M = 3.0 + 6.0 * COLUMNS / 320 + 2.0 * np.sin(ROWS / 40)
FRAME_NS = 100_000_000


def seen(space: str = "depth", low_m: float = 0.9, high_m: float = 12.0, noise: float = 0.0, seed: int = 0):
    """What a network answers that is 0 at `low_m` and 1 at `high_m`."""
    y, ends = to_space(DEPTH_M.astype(np.float64), space), to_space(np.array([low_m, high_m]), space)
    relative = (y - ends[0]) / (ends[1] - ends[0])
    return (relative + noise * np.random.default_rng(seed).standard_normal(relative.shape)).astype(np.float32)


def anchors(count: int = 500, factor: float = 1.0, seed: int = 0, noise: float = 0.01) -> Anchors:
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(0, [319, 239], (count, 2)).astype(np.float32)
    depth_m = sample(DEPTH_M, pixels) * factor * rng.normal(1.0, noise, count)
    return Anchors(pixels, depth_m.astype(np.float32), np.ones(count, np.float32), count)


class Run:
    """Frames at 10 Hz through one tracker."""

    def __init__(self, space: str = "depth", config: FitConfig = CONFIG) -> None:
        self.tracker, self.space, self.config = MetricTracker(space), space, config
        self.stamp_ns = 10**18

    def __call__(self, given: Anchors | None, relative: np.ndarray | None = None, **options):
        self.stamp_ns += FRAME_NS
        self.relative = seen(self.space) if relative is None else relative
        why = None if given is not None else "no scan today"
        motion = Motion(self.stamp_ns, CAMERA, options.pop("find_motion", unknown_motion))
        options.setdefault("problem", why)
        return self.tracker.update(self.relative, given, self.config, motion, **options)

    def started(self):
        for seed in range(3):
            last = self(anchors(seed=seed))
        assert last.state == OK
        return last


def error(metres, relative, factor: float = 1.0) -> float:
    return float(np.nanmedian(np.abs(apply_fit(metres.fit, relative, 120.0) / (DEPTH_M * factor) - 1)))


@pytest.mark.parametrize("space", SPACES)
def test_three_frames_in_agreement_make_it_good(space):
    run = Run(space)
    metres = [run(anchors(seed=seed)) for seed in range(4)]
    assert [m.state for m in metres] == [DEGRADED, DEGRADED, OK, OK]
    assert all(m.fresh and m.problem is None and m.age_s == 0.0 and m.jumps == 0 for m in metres)
    assert error(metres[-1], run.relative) < 0.01
    assert metres[-1].sigma == pytest.approx(relative_sigma(glance(run.relative), metres[-1].fit))


@pytest.mark.parametrize("space", SPACES)
def test_metres_survive_new_normalisation_without_anchors(space):
    """Without memory in metres the held scale would be wrong by a third."""
    run = Run(space)
    last = run.started()
    other = seen(space, 0.5, 9.0)
    held = run(None, other)
    assert held.state == HOLD
    assert error(held, other) < 0.02
    stale = MetricFit(space, last.fit.scale, last.fit.shift, 1, 1, 0.0)
    assert float(np.nanmedian(np.abs(apply_fit(stale, other, 120.0) / DEPTH_M - 1))) > 0.1


def test_a_gap_is_bridged_with_growing_doubt_and_then_given_up():
    run = Run()
    run.started()
    gap = [run(None, seen(noise=0.01, seed=seed)) for seed in range(12)]
    assert [m.state for m in gap] == [HOLD] * 10 + [RELATIVE] * 2
    sigma = [m.sigma for m in gap[:10]]
    assert all(after > before for before, after in itertools.pairwise(sigma))
    assert gap[2].age_s == pytest.approx(0.3)
    assert max(error(m, run.relative) for m in gap[:10]) < 0.03
    assert {(m.fit, m.problem) for m in gap[10:]} == {(None, "no scan today")}
    assert run(anchors()).state == DEGRADED  # a cold start


def test_a_fast_robot_gives_up_sooner():
    states = []
    for speed_m_s in (0.5, 5.0):
        run = Run(config=FitConfig(speed_m_s=speed_m_s))
        run.started()
        gap = [run(None) for _ in range(8)]
        states.append([m.state for m in gap].count(HOLD))
    assert states[0] == 8
    assert states[1] < 5
    assert "uncertain by 2" in gap[states[1]].problem
    assert "fit.max_sigma=0.2" in gap[states[1]].problem


def test_metres_that_became_too_unsure_start_anew_with_the_anchors_of_the_same_frame():
    """Anchors at one depth do not mend what a gap left of the scale; a typical scene's scale is known better."""
    many = anchors(4000, noise=0.005)
    here = np.abs(many.depth_m / 4.0 - 1.0) < 0.05
    flat = Anchors(many.pixels[here], many.depth_m[here], many.weight[here], int(here.sum()))
    config = FitConfig(speed_m_s=8.0, max_sigma=0.15)
    run = Run(config=config)
    run.started()
    assert run(None).state == HOLD
    found, cold = run(flat), Run(config=config)(flat)
    assert (found.state, found.fresh, found.problem) == (DEGRADED, True, None)
    assert (found.fit.scale, found.fit.shift) == (cold.fit.scale, cold.fit.shift)
    assert 0.1 < found.sigma < 0.15


def test_one_wild_frame_is_held_off():
    run = Run()
    run.started()
    wild = run(anchors(factor=1.6))
    assert (wild.state, wild.fresh) == (HOLD, False)
    assert "contradict the frames before" in wild.problem
    assert error(wild, run.relative) < 0.02
    assert run(anchors()).state == OK


def test_what_is_said_twice_is_believed_at_once():
    run = Run()
    run.started()
    run(anchors(factor=1.6))
    new = run(anchors(factor=1.6, seed=1))
    assert (new.state, new.jumps) == (OK, 1)
    assert error(new, run.relative, 1.6) < 0.01


def test_one_scan_in_two_images_says_a_thing_once():
    """A LiDAR of 10 Hz and a camera of 30 Hz."""
    run = Run()
    states = [run(anchors(), scan=1).state for _ in range(4)]
    assert states == [DEGRADED] * 4
    assert [run(anchors(seed=scan), scan=scan).state for scan in (2, 3)] == [DEGRADED, OK]
    wild = [run(anchors(factor=1.6), scan=4) for _ in range(3)]
    assert {(m.state, m.jumps) for m in wild} == {(HOLD, 0)}
    second = run(anchors(factor=1.6, seed=1), scan=5)
    assert (second.state, second.jumps) == (OK, 1)


@pytest.mark.parametrize("space", SPACES)
def test_what_is_said_of_the_agreement_is_that_of_this_frames_anchors_with_the_published_fit(space):
    run = Run(space)
    run.started()
    weak = at_one_depth(1.2)
    frames = [(given, run(given)) for given in (anchors(300, noise=0.1), anchors(700, factor=1.6), weak)]
    assert [metres.state for _, metres in frames] == [OK, HOLD, HOLD]
    for given, metres in frames:
        depth_m = apply_fit(metres.fit, sample(run.relative, given.pixels), 1e6)
        off = np.abs(depth_m / given.depth_m - 1)
        assert metres.fit.residual == pytest.approx(np.median(off), rel=1e-4)
        assert metres.fit.inliers == np.count_nonzero(off <= 0.2)
    assert frames[1][1].fit.residual == pytest.approx(1 - 1 / 1.6, abs=0.01)
    nothing = run(None).fit
    assert (nothing.inliers, np.isnan(nothing.residual)) == (0, True)


def test_two_wild_frames_that_differ_are_both_held_off():
    run = Run()
    run.started()
    states = [run(anchors(factor=factor)).state for factor in (1.6, 0.6)]
    assert states == [HOLD, HOLD]


def test_few_anchors_correct_but_do_not_shake():
    """Three anchors a frame of a network that is 10 % wrong at every pixel."""
    run = Run()
    run.started()
    noisy = [seen(noise=0.03, seed=seed) for seed in range(30)]
    with_memory, alone = [], []
    for seed, relative in enumerate(noisy):
        few = anchors(3, 1.05, seed, noise=0.1)
        with_memory.append(error(run(few, relative), relative, 1.05))
        fresh = Run(config=FitConfig(speed_m_s=0.0, max_sigma=1.0))(few, relative)
        alone.append(error(fresh, relative, 1.05) if fresh.fit else np.nan)
    assert np.percentile(with_memory, 90) < 0.6 * np.nanpercentile(alone, 90)
    assert max(with_memory) < 0.15


def test_anchors_at_one_depth_move_the_metres_there_and_leave_the_rest_in_doubt():
    run = Run()
    run.started()
    everywhere = anchors(2000)
    wall = np.abs(everywhere.depth_m - 5.0) < 0.2
    at_one = Anchors(everywhere.pixels[wall], everywhere.depth_m[wall], everywhere.weight[wall], 2000)
    for _ in range(5):
        metres = run(at_one, seen(noise=0.01))
        assert metres.state in (DEGRADED, OK)
    assert error(metres, run.relative) < 0.03


def test_a_cold_start_at_one_depth_gives_no_metres():
    """A relative network before a wall and nothing else: the rest of the image may be anywhere."""
    everywhere = anchors(2000)
    wall = np.abs(everywhere.depth_m - 3.0) < 0.1
    at_one = Anchors(everywhere.pixels[wall], everywhere.depth_m[wall], everywhere.weight[wall], 2000)
    metres = Run(config=FitConfig(max_sigma=0.1))(at_one)
    assert (metres.state, metres.fit) == (RELATIVE, None)
    assert "uncertain by" in metres.problem


def test_what_fails_does_not_make_the_memory_younger(monkeypatch):
    run, asked = Run(), []
    run.started()
    remembered_ns = run.stamp_ns
    monkeypatch.setattr("marigold_ros.tracker.fit_metric", lambda *_, **__: 1 / 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            run(anchors())
    monkeypatch.undo()
    run(None, find_motion=asked.append)
    assert asked == [remembered_ns]


def at_one_depth(factor):
    """30 anchors that cannot fix scale and shift by themselves."""
    given = anchors(2000, factor)
    chosen = np.flatnonzero(np.abs(given.depth_m / (7.0 * factor) - 1) < 0.03)[:30]
    return Anchors(given.pixels[chosen], given.depth_m[chosen], given.weight[chosen], 30)


def test_weak_anchors_that_the_correction_explains_confirm_the_metres_that_they_contradict():
    run = Run(config=FitConfig(speed_m_s=0.0, hold_s=0.3))
    before, asked = run.started(), []

    def explained(fit):
        asked.append(fit)
        return True

    for _ in range(6):
        metres = run(at_one_depth(1.5), explained=explained)
        assert (metres.state, metres.fresh, metres.age_s, metres.problem) == (DEGRADED, True, 0.0, None)
        assert error(metres, run.relative) < 0.01
        assert metres.sigma > before.sigma  # nothing new was learnt of the scale
    assert len(asked) == 6
    assert (asked[-1].scale, asked[-1].shift) == (metres.fit.scale, metres.fit.shift)
    run(anchors(), explained=asked.append)
    assert len(asked) == 6  # nothing to explain


def test_strong_anchors_need_no_explanation():
    """Dense ones that contradict the metres twice are right, whatever was remembered."""
    run = Run()
    run.started()
    found = [run(anchors(factor=1.5, seed=seed), explained=lambda fit: True) for seed in range(2)]
    assert [metres.state for metres in found] == [HOLD, OK]
    assert error(found[1], run.relative, 1.5) < 0.01


def test_another_scene_starts_anew_with_its_own_anchors():
    """As when a recording is cut: what was before says nothing, and nothing contradicts it."""
    run = Run()
    run.started()
    other = np.random.default_rng(0).random(DEPTH_M.shape).astype(np.float32)
    assert run(None, other).state == RELATIVE
    metres = run(anchors(factor=3.0))
    assert (metres.state, metres.jumps) == (DEGRADED, 0)
    assert error(metres, run.relative, 3.0) < 0.01


def test_what_is_set_up_wrong_is_a_fault_when_the_metres_run_out():
    run = Run(config=FitConfig(hold_s=0.2))
    assert run(None, problem="no transform", fault=True).state == FAULT
    run.started()
    states = [run(None, problem="no transform", fault=True).state for _ in range(3)]
    assert states == [HOLD, HOLD, FAULT]
    assert run(anchors(), np.full_like(DEPTH_M, 0.5)).state == FAULT


def test_known_motion_is_asked_for_since_the_frame_before():
    run, asked = Run(config=FitConfig(speed_m_s=20.0)), []

    def find_motion(then_ns):
        asked.append(then_ns)
        return np.eye(4)

    first = run.stamp_ns + FRAME_NS
    for seed in range(3):
        run(anchors(seed=seed), find_motion=find_motion)
    assert asked == [first, first + FRAME_NS]
    assert run(None, find_motion=find_motion).state == HOLD  # at 20 m/s it would be 2 m off already
