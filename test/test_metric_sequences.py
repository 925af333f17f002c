"""The evaluation over time: faults, scores and targets by hand-worked numbers, and the program on the recording."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from marigold_ros import evaluate_metric, recordings
from marigold_ros.config import Unusable
from marigold_ros.degraded_truth import degraded
from marigold_ros.geometry import Camera, project, transformed
from marigold_ros.metric import MetricFit
from marigold_ros.metric_baselines import METHODS, OURS
from marigold_ros.metric_chain import GLOBAL, ODOMETRY, SEQUENCE_METHODS, Answer, Oracle, Smoothed, answers
from marigold_ros.metric_over_time import SequenceRow, Track, flicker, recovery_s, temporal_noise
from marigold_ros.metric_sequence_cases import (
    CLEAN,
    COHERENT,
    DEGENERATE,
    DELAY,
    DROPOUT,
    EXTRINSIC,
    JUMP,
    RESTART,
    WRONG,
    Case,
    Step,
    cases,
)
from marigold_ros.metric_sequence_report import clean_tables, fault_tables, own_tables, sequence_targets, with_means
from marigold_ros.metric_sequences import Sequence, read_sequence
from marigold_ros.places import shared

CAMERA = Camera(160, 120, 100.0, 100.0, 79.5, 59.5)
CAMERA_FROM_LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, -0.1], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
START_NS = 1_700_000_000_000_000_000


def corridor_m():
    """(H, W) metres of a floor 0.7 m below and a wall 8 m ahead."""
    v = np.arange(CAMERA.height, dtype=np.float32)[:, None] - CAMERA.cy
    floor = np.where(v > 0, 0.7 * CAMERA.fy / np.maximum(v, 1e-3), np.inf)
    return np.broadcast_to(np.minimum(floor, 8.0), (CAMERA.height, CAMERA.width)).astype(np.float32)


def scan_of(depth_m, number):
    """LiDAR points of 16 rows of the picture, a little farther with every frame so that scans can be told apart."""
    v, u = np.mgrid[4 : CAMERA.height : 7, 0 : CAMERA.width : 3]
    z = depth_m[v, u].ravel() * (1 + 1e-4 * number)
    rays = np.stack([(u.ravel() - CAMERA.cx) / CAMERA.fx, (v.ravel() - CAMERA.cy) / CAMERA.fy, np.ones(u.size)], -1)
    return transformed(rays * z[:, None], np.linalg.inv(CAMERA_FROM_LIDAR)).astype(np.float32)


def sequence(frames=40, name="corridor", rate_hz=10.0):
    depth_m = corridor_m()
    y = -1 / depth_m
    relative = ((y - y.min()) / np.ptp(y)).astype(np.float32)
    v, u = np.mgrid[0:120:8, 0:160:8]
    pixels = np.stack([u.ravel(), v.ravel()], axis=1)
    truth_m = np.tile(depth_m[pixels[:, 1], pixels[:, 0]], (frames, 1))
    stamps = [START_NS + round(i * 1e9 / rate_hz) for i in range(frames)]
    # The network's scale and shift change with every frame, as they do.
    answers_of = [relative * (1 - 0.005 * (i % 3)) + 0.004 * (i % 2) for i in range(frames)]
    rgb = [np.zeros((120, 160, 3), np.uint8)] * frames
    return Sequence(
        name, CAMERA, CAMERA_FROM_LIDAR, "inverse_depth", None, stamps, rgb, answers_of,
        [scan_of(depth_m, i) for i in range(frames)], pixels, truth_m, np.zeros(truth_m.shape, bool), True,
        [None] * frames,
    )  # fmt: skip


def by_name(of, *groups, before=None):
    return {case.name: case for case in cases(of, before, groups)}


def depths(of, points, camera_from_lidar=CAMERA_FROM_LIDAR):
    return project(transformed(points, camera_from_lidar), of.camera)


def test_flicker_is_the_step_of_the_median_over_what_both_frames_know():
    logs = [np.log([1.0, 2.0, 4.0]), np.log([1.1, 2.2, 4.4]), np.log([np.nan, 2.2, 4.4]), np.full(3, np.nan)]
    found = flicker(logs)
    # From the second to the third both know the two last alone, which did not change; the fourth knows nothing.
    assert found == pytest.approx([math.log(1.1), 0.0])
    assert flicker([np.log([1.0, 2.0]), np.log([2.0, 2.0])]) == pytest.approx([math.log(2) / 2])


def test_noise_is_of_pixels_that_are_known_in_every_frame():
    logs = [np.array([0.0, 1.0, 5.0]), np.array([0.2, 1.0, np.inf]), np.array([0.1, 1.6, 5.0])]
    # Standard deviations of 0, 0.2, 0.1 and of 1, 1, 1.6.
    assert temporal_noise(logs) == pytest.approx((np.std([0, 0.2, 0.1]) + np.std([1, 1, 1.6])) / 2)
    assert math.isnan(temporal_noise([np.array([np.nan]), np.array([1.0])]))


def test_recovery_takes_three_frames_in_a_row_within_a_tenth_of_the_usual_error():
    usual = [0.1] * 8
    assert recovery_s([0.1] * 8, usual, 0.1) == 0.0
    assert recovery_s([0.5, 0.1, 0.1, 0.5, 0.109, 0.11, 0.1, 0.9], usual, 0.1) == pytest.approx(0.4)
    assert recovery_s([math.nan, 0.1, 0.1, 0.1], usual[:4], 0.05) == pytest.approx(0.05)
    assert math.isinf(recovery_s([0.112] * 8, usual, 0.1))
    assert math.isinf(recovery_s([0.1, 0.1], usual[:2], 0.1))  # too short to say
    # Where the usual run knows nothing yet, what it knows next is asked for.
    assert recovery_s([math.nan, 0.1, 0.1, 0.1], [math.nan, 0.1, 0.1, 0.1], 0.1) == pytest.approx(0.1)


def test_smoothing_takes_three_tenths_of_the_new_and_holds_the_last():
    smoothed = Smoothed()
    assert smoothed(None) is None
    fit = lambda scale, shift: MetricFit("depth", scale, shift, 5, 5, 0.0)  # noqa: E731
    assert smoothed(fit(1.0, 0.0)).scale == 1.0
    found = smoothed(fit(2.0, 1.0))
    assert (found.scale, found.shift) == pytest.approx((1.3, 0.3))
    assert smoothed(None).scale == pytest.approx(1.3)


def test_wrong_points_and_extrinsics():
    of = sequence()
    found = by_name(of, WRONG, EXTRINSIC)
    assert list(found) == [
        "clean", "10 % wrong", "30 % wrong", "50 % wrong",
        "yaw 0.5°", "yaw 1°", "pitch 1°", "pitch -1°", "yaw 2°", "shifted 5 cm", "shifted 10 cm", "raised 10 cm",
    ]  # fmt: skip
    step = found["30 % wrong"].steps[7]
    pixels, depth_m = depths(of, step.points)
    usual, usual_m = depths(of, of.scans[7])
    np.testing.assert_allclose(pixels, usual, atol=0.01)
    assert (np.abs(depth_m / usual_m - 1) > 0.1).mean() == pytest.approx(0.3, abs=0.002)
    again = by_name(sequence(), WRONG)["30 % wrong"].steps[7]
    np.testing.assert_array_equal(step.points, again.points)
    assert not np.array_equal(step.points[:, 0] / of.scans[7][:, 0], found["30 % wrong"].steps[8].points[:, 0])
    shifted = found["shifted 10 cm"].steps[0]
    middle = np.abs(usual - 80).sum(axis=1).argmin()
    moved, _ = depths(of, of.scans[0], shifted.camera_from_lidar)
    assert moved[middle, 0] - usual[middle, 0] == pytest.approx(0.1 * 100 / usual_m[middle], rel=0.01)
    moved, _ = depths(of, of.scans[0], found["raised 10 cm"].steps[0].camera_from_lidar)
    assert moved[middle, 1] - usual[middle, 1] == pytest.approx(-0.1 * 100 / usual_m[middle], rel=0.01)
    assert moved[middle, 0] == pytest.approx(usual[middle, 0])
    for name, column, shift_deg in (("yaw 2°", 0, 2), ("pitch 1°", 1, -1), ("pitch -1°", 1, 1)):
        turned, _ = depths(of, of.scans[0], found[name].steps[0].camera_from_lidar)
        moved_px = turned[middle, column] - usual[middle, column]
        assert moved_px == pytest.approx(100 * math.tan(math.radians(shift_deg)), rel=0.1), name


def test_delays_are_whole_frames():
    assert list(by_name(sequence(), DELAY)) == ["clean"]  # nothing moves
    assert list(by_name(replace(sequence(), still=False), DELAY)) == ["clean", "100 ms late", "200 ms late"]
    fast = replace(sequence(rate_hz=20.0), still=False)
    found = by_name(fast, DELAY)
    assert list(found) == ["clean", "50 ms late", "100 ms late", "150 ms late", "200 ms late"]
    for step in found["150 ms late"].steps:
        np.testing.assert_array_equal(step.points, fast.scans[step.frame - 3])
        assert step.stamp_ns == fast.stamps_ns[step.frame]


def test_in_a_dropout_the_last_scan_serves_until_it_is_too_old():
    of = sequence(60)
    found = by_name(of, DROPOUT)
    assert list(found) == ["clean", "no scans for 0.3 s", "no scans for 2 s"]  # 5 s do not fit in
    case = found["no scans for 2 s"]
    have = [
        None if step.points is None else round(1e4 * (step.points[5, 0] / of.scans[0][5, 0] - 1)) for step in case.steps
    ]
    assert have[:18] == [*range(15), 14, 14, None]  # 0.1 and 0.2 s old; range.max_age_s is 0.2
    assert have[17:35] == [None] * 18
    assert have[35:] == list(range(35, 55))
    assert (case.scored, case.recovers_at) == (range(15, 35), 35)


def test_a_restarted_lidar_is_silent_and_begins_in_mid_turn_or_in_another_time():
    of = sequence(60)
    found = by_name(of, RESTART)
    assert list(found) == ["clean", "LiDAR restarts, 1 s", "LiDAR restarts, clock at zero"]
    case = found["LiDAR restarts, 1 s"]
    assert [step.points is None for step in case.steps] == [False] * 17 + [True] * 8 + [False] * 20
    assert [step.age_s for step in case.steps[14:18]] == pytest.approx(
        [0, 0.1, 0.2, 0.3]
    )  # the last one is kept so long
    pixels, _ = depths(of, case.steps[25].points)
    assert len(pixels) == pytest.approx(len(of.scans[25]) / 2, rel=0.02)
    assert pixels[:, 0].max() < CAMERA.cx + 1
    assert case.steps[26].points is of.scans[26]
    assert (case.scored, case.recovers_at) == (range(15, 45), 25)
    lost = found["LiDAR restarts, clock at zero"]
    assert [step.points is None for step in lost.steps] == [False] * 17 + [True] * 28
    assert (lost.scored, lost.recovers_at) == (range(15, 45), None)
    assert list(by_name(sequence(27), RESTART)) == ["clean"]  # too short to see what comes after


def test_time_and_scene_jump():
    of, other = sequence(), sequence(30, "elsewhere")
    found = by_name(of, JUMP, before=other)
    again = found["time starts again"]
    assert [step.frame for step in again.steps] == [*range(15), *range(20)]
    assert again.steps[15].stamp_ns == START_NS < again.steps[14].stamp_ns
    ahead = found["time jumps ahead 60 s"].steps
    assert ahead[15].stamp_ns - ahead[14].stamp_ns == 60_100_000_000
    cut = found["another scene"]
    assert [step.sequence.name for step in cut.steps] == ["elsewhere"] * 15 + ["corridor"] * 20
    assert set(np.diff([step.stamp_ns for step in cut.steps])) == {100_000_000}
    assert (cut.scored, cut.recovers_at) == (range(15, 35), 15)
    assert "another scene" not in by_name(of, JUMP)


def test_coherent_frames_are_single_and_wrong_by_one_factor():
    of = sequence()
    (case,) = [c for c in cases(of, None, (COHERENT,)) if c.group == COHERENT]
    assert list(case.scored) == [9, 19, 29, 39]
    ratio = depths(of, case.steps[9].points)[1] / depths(of, of.scans[9])[1]
    assert (ratio > 1.79).mean() == pytest.approx(0.65, abs=0.002)
    np.testing.assert_allclose(ratio[ratio > 1.1], 1.8, rtol=1e-3)
    assert case.steps[8].points is of.scans[8]


def test_degenerate_anchors_are_what_their_names_say():
    of = sequence()
    found = by_name(of, DEGENERATE)
    assert len(found) == 1 + 2 * 10
    for name, case in found.items():
        if name.endswith("clean frames"):
            assert [case.steps[i].points is of.scans[i] for i in range(4)] == [True, True, True, False]
            assert case.scored == range(3, 23)
    at = lambda name: depths(of, found[f"{name}, from a cold start"].steps[5].points)  # noqa: E731
    assert [len(at(name)[1]) for name in ("1 anchor", "2 anchors", "3 anchors", "50 anchors")] == [1, 2, 3, 50]
    _, usual_m = depths(of, of.scans[5])
    flat_m = at("one depth")[1]
    assert len(flat_m) > 20
    assert np.abs(flat_m / np.median(usual_m) - 1).max() <= 0.0201
    assert at("far half")[1].min() > np.median(usual_m) * 0.999
    corner = at("one corner")[0]
    assert corner[:, 0].max() < 40
    assert corner[:, 1].min() > 60
    beam = found["2D scan, from a cold start"].steps[5].points
    elevation = np.degrees(np.arctan2(beam[:, 2], np.hypot(beam[:, 0], beam[:, 1])))
    assert elevation.max() < 0
    assert np.ptp(elevation) < 0.25


def test_a_perfect_network_is_measured_without_error():
    of = sequence(6)
    case = next(cases(of, None, ()))
    found = list(answers(case, Oracle()))
    assert all(set(step) == set(SEQUENCE_METHODS) - {ODOMETRY} for step in found)  # it has no poses
    for method, allowed in (("oracle affine", 1e-4), (OURS, 0.01), (GLOBAL, 0.01), ("least squares", 0.01)):
        track = Track(case)
        for number, step in enumerate(found):
            track.add(number, step[method])
        row = track.row(method)
        assert row.abs_rel < allowed, method
        assert (row.frames, row.coverage, row.miss, row.phantom) == (6, 1.0, 0.0, 0.0)
        assert row.flicker_max < 2 * allowed
        assert row.noise < 2 * allowed


def test_all_other_methods_are_asked_in_every_frame_that_counts_or_in_some_of_a_fault():
    of = sequence()
    others = set(METHODS) - {OURS, GLOBAL}
    assert others < set(SEQUENCE_METHODS)
    asked = {}
    for case in cases(of, None, (DROPOUT, COHERENT)):
        if case.group != DROPOUT or case.name == "no scans for 0.3 s":
            found = list(answers(replace(case, steps=case.steps[:20]), Oracle()))
            asked[case.group] = [number for number, step in enumerate(found) if others <= set(step)]
            assert all(bool(others & set(step)) == (number in asked[case.group]) for number, step in enumerate(found))
    assert asked == {CLEAN: list(range(20)), DROPOUT: [16], COHERENT: [9, 19]}


def track_of(depth_m, sigma_m=None, states=None, beyond=None):
    """A track of the (n, M) answers to a truth of 2 m everywhere."""
    depth_m = np.asarray(depth_m, np.float32)
    of = replace(
        sequence(len(depth_m)), pixels=np.zeros((depth_m.shape[1], 2), np.intp), still=False,
        truth_m=np.full(depth_m.shape, 2.0, np.float32), beyond=np.zeros(depth_m.shape, bool),
    )  # fmt: skip
    if beyond is not None:
        of.beyond[:], of.truth_m[beyond] = beyond, np.nan
    case = Case(
        CLEAN, CLEAN, [Step(of, i, of.stamps_ns[i], None, CAMERA_FROM_LIDAR) for i in range(len(of))], range(len(of))
    )
    track = Track(case)
    for i, metres in enumerate(depth_m):
        track.add(
            i,
            Answer(metres, None if sigma_m is None else np.asarray(sigma_m[i], np.float32), (states or [None] * 9)[i]),
        )
    return track.row("ours")


def test_rates_and_calibration_by_hand():
    row = track_of(
        [[2.0, 2.2, 1.0, 4.0], [2.0, np.nan, np.nan, np.nan]],
        [[0.1, 0.15, 0.6, 0.5], [0.1, 0.1, 0.1, 0.1]],
        ["OK", "HOLD"],
    )
    assert row.abs_rel == pytest.approx(((0 + 0.1 + 0.5 + 1) / 4 + 0) / 2)
    assert row.miss == pytest.approx((1 + 3) / 8)  # unknown is missed, too
    assert row.phantom == pytest.approx(1 / 8)
    assert row.coverage == pytest.approx((1 + 0.25) / 2)
    # 0 / 0.1, 0.2 / 0.15, 1 / 0.6, 2 / 0.5 standard deviations, and 0.
    assert (row.within_1, row.within_2) == pytest.approx((2 / 5, 4 / 5))
    assert row.states == {"OK": 0.5, "HOLD": 0.5}


def test_a_wall_in_the_sky_is_counted():
    sky = np.array([[True, True, False, False]] * 2)
    row = track_of([[3.0, np.nan, 2.0, 2.0], [90.0, np.inf, 2.0, 2.0]], beyond=sky)
    assert row.sky_wall == pytest.approx(1 / 4)
    assert row.sky_depth == pytest.approx(2 / 4)  # that of 90 m, too: there is no surface
    assert row.abs_rel == 0
    assert math.isnan(track_of([[2.0, 2.0]]).sky_depth)  # no sky


def row(fault, group, method=OURS, abs_rel=0.1, **more):
    values = {
        "sequence": "a", "frames": 10, "rmse_m": 1.0, "mae_m": 1.0, "delta1": 0.9, "miss": 0.0, "phantom": 0.0,
        "coverage": 1.0, "sky_depth": math.nan, "sky_wall": math.nan,
    }  # fmt: skip
    return SequenceRow(group=group, fault=fault, method=method, abs_rel=abs_rel, **(values | more))


def test_targets_over_time_are_judged_by_the_worst_case():
    rows = [
        row("clean", CLEAN, noise=0.01, flicker_p95=0.021, within_1=0.5, stage_ms={"together": (7.0, 9.0)}),
        row("clean", CLEAN, GLOBAL, 0.12),
        row("pitch 1°", EXTRINSIC, GLOBAL, 0.14), row("pitch 1°", EXTRINSIC, "oracle affine", 0.1),
        row("pitch 1°", EXTRINSIC, abs_rel=0.12),
        row("50 % wrong", WRONG, sky_wall=0.06), row("10 % wrong", WRONG, sky_wall=0.04),
        row("30 % wrong", WRONG, GLOBAL, 0.12), row("30 % wrong", WRONG, "oracle affine", 0.11),
        row("50 % wrong", WRONG, GLOBAL, math.nan), row("50 % wrong", WRONG, "oracle affine", 0.11),
        row("no scans for 0.3 s", DROPOUT, abs_rel=0.111, usual=0.1),
        row("time starts again", JUMP, recovery_s=0.2), row("another scene", JUMP, recovery_s=math.inf),
        row("one depth, after 3 clean frames", DEGENERATE, abs_rel=0.11, within_2=0.94),
        row("2 anchors, after 3 clean frames", DEGENERATE, abs_rel=0.5),
        row("3 anchors, after 3 clean frames", DEGENERATE, abs_rel=0.08),
        row("3 anchors, after 3 clean frames", DEGENERATE, "oracle affine", abs_rel=0.05),
        row("one depth, after 3 clean frames", DEGENERATE, "oracle affine", abs_rel=0.066),
        row("2D scan, from a cold start", DEGENERATE, abs_rel=0.5),
    ]  # fmt: skip
    found = {t.what: t for t in sequence_targets(rows)}
    met = {what: t.met for what, t in found.items()}
    assert met == {
        "global fit, up to 50 % wrong anchors: at most 1.2 x the best affine fit": False,
        "global fit, extrinsic off by 1°: at most 1.3 x the best affine fit": False,
        "correction, extrinsic off by 1°: at most 0.9 x the global fit": True,
        "up to 50 % wrong anchors: share of the sky with depth nearer than 30 m": False,
        "correction, clean: at most 0.8 x the global fit": False,
        "still scene: 95th percentile of the step of the median ln z": False,
        "degenerate anchors after 3 clean frames: AbsRel": True,
        "degenerate anchors after 3 clean frames: at most 1.36 x the best affine fit": False,
        "anchors at one depth after 3 clean frames: at most 1.82 x the best affine fit": True,
        "anchors at one depth after 3 clean frames: AbsRel": True,
        "anchors at one depth after 3 clean frames: errors beyond 2 σ": True,
        "no scans for 0.3 s: at most 1.1 x the clean AbsRel of these frames": False,
        "after a jump: as good as before after 2 scans of a 10 Hz LiDAR, s": False,
        "clean: share of errors within 1 σ, at most": True,
        "clean: share of errors beyond 1 σ, at most": False,
        "anchors, fit, correction and confidence together: p50, ms": True,
    }
    wrong = found["global fit, up to 50 % wrong anchors: at most 1.2 x the best affine fit"]
    assert wrong.where == "1 of 2 cases; worst: a, 50 % wrong"
    assert "another scene" in found["after a jump: as good as before after 2 scans of a 10 Hz LiDAR, s"].where
    few = "degenerate anchors after 3 clean frames: AbsRel"
    partly = sequence_targets(
        [row("3 anchors, after 3 clean frames", DEGENERATE, coverage=0.6, abs_rel=0.01), *rows[-4:]]
    )
    (found,) = [t for t in partly if t.what == few]
    assert math.isnan(found.measured)  # little error where there is depth, but there is not enough of it
    assert not found.met
    assert "3 anchors, after 3 clean frames (for 60% of the truth)" in found.where


def test_sequences_are_averaged_by_fault_and_method():
    rows = [
        row("clean", CLEAN, abs_rel=0.1, sky_wall=0.02, states={"OK": 1}, stage_ms={"together": (3, 4), "fit": (1, 2)}),
        row("clean", CLEAN, ODOMETRY, math.nan, frames=0),
        row("clean", CLEAN, abs_rel=0.3, sequence="b", states={"OK": 0.5, "HOLD": 0.5}, stage_ms={"together": (5, 6)}),
        row("clean", CLEAN, ODOMETRY, sequence="b"),
        row("50 ms late", DELAY, sequence="b"),
    ]  # fmt: skip
    found = with_means(rows)
    clean, late = found[:2]
    assert found[2:] == rows
    assert (clean.sequence, clean.fault, clean.method, clean.frames) == ("mean of 2", "clean", OURS, 20)
    assert (clean.abs_rel, clean.sky_wall) == pytest.approx((0.2, 0.02))  # one of them has no sky
    assert clean.states == {"OK": 0.75, "HOLD": 0.25}
    assert clean.stage_ms == {"together": (4.0, 5.0)}
    assert late.fault == "50 ms late (on 1 of 2)"  # and odometry, which one of them has not, has no means
    assert with_means(rows[:2]) == rows[:2]


def test_a_mean_of_fewer_sequences_says_of_how_many():
    """Else columns, and lines, seem to compare the same sequences."""
    rows = [
        row("clean", CLEAN, abs_rel=0.1, sky_wall=0.02), row("clean", CLEAN, GLOBAL, 0.2),
        row("clean", CLEAN, abs_rel=0.3, sequence="b"), row("clean", CLEAN, GLOBAL, math.nan, sequence="b", coverage=0),
        row("50 ms late", DELAY, sequence="b"), row("50 ms late", DELAY, GLOBAL, sequence="b"),
    ]  # fmt: skip
    found = with_means(rows)
    table = next(fault_tables(found, "abs_rel"))
    assert "| clean | 20 | 0.200 | 0.0% | 0.0% | 0.200 (50%, on 1) |" in table
    assert "| 50 ms late (on 1 of 2) | 10 | 0.100 | 0.0% | 0.0% | 0.100 |" in table  # all that have the fault
    for tables in (own_tables(found), clean_tables(found)):
        assert "| 2.0% (on 1) |" in next(tables)


def test_degraded_truth_of_a_sequence_changes_little_from_frame_to_frame():
    depth_m = corridor_m()
    first, second, other = (degraded(depth_m, "log_depth", seed, n) for seed, n in ((1, 0), (1, 1), (2, 0)))
    np.testing.assert_array_equal(first, degraded(depth_m, "log_depth", 1, 0))
    assert 0 < np.std(second - first) < 0.6 * np.std(other - first)


def test_a_sequence_is_read_from_a_recording(tmp_path):
    def frames(sky_rows, columns=160):
        for i in range(3):
            rgb = np.full((120, 160, 3), 40 * i, np.uint8)
            depth_m = corridor_m().copy()
            depth_m[:sky_rows, :columns] = np.nan
            yield recordings.Frame(START_NS + i * 100_000_000, rgb, depth_m, scan_of(corridor_m(), 0), np.eye(4))

    recordings.write_frames(tmp_path / "short", frames(20), CAMERA, CAMERA_FROM_LIDAR)
    asked = []

    def source(frame):
        asked.append((frame.name, frame.number))
        return frame.rgb[..., 0].astype(np.float32), None

    of = read_sequence(tmp_path / "short", source, "depth", 2)
    assert asked == [("short", 0), ("short", 1)]
    assert (len(of), of.period_s, of.still, of.camera.fx) == (2, pytest.approx(0.1), True, CAMERA.fx)
    u, v = of.pixels.T
    np.testing.assert_array_equal(of.beyond[0], v < 20)
    points_at = {tuple(np.rint(p)) for p in depths(of, of.scans[0])[0]}
    anchored = np.array([tuple(p) in points_at for p in of.pixels.astype(float)])
    assert anchored.sum() > 5
    np.testing.assert_array_equal(np.isnan(of.truth_m[0]), anchored | (v < 20))
    known = np.isfinite(of.truth_m[0])
    np.testing.assert_allclose(of.truth_m[0, known], corridor_m()[v, u][known], atol=1e-3)
    recordings.write_frames(tmp_path / "windows", frames(5, 80), CAMERA, CAMERA_FROM_LIDAR)
    assert not read_sequence(tmp_path / "windows", source, "depth").beyond.any()  # too little to be a sky
    with pytest.raises(Unusable, match=r"short: frame 0 has no relative depth"):
        read_sequence(tmp_path / "short", lambda frame: None, "depth")


def test_the_program_measures_the_first_frames_of_the_bundled_recording(tmp_path, capsys):
    out = tmp_path / "scores.json"
    arguments = ["--on", "sequences", "--relative", "degraded", "--frames", "8", "--faults", "clean", "jump"]
    assert evaluate_metric.main([*arguments, "--json", str(out), "--plots", str(tmp_path / "plots")]) == 0
    said = capsys.readouterr().out
    assert "## Targets over time" in said
    assert "| correction, clean: at most 0.8 x the global fit | 1 of 1 cases; worst: warehouse, clean |" in said
    assert "### All scores, clean, warehouse" in said
    assert "### Ours over time, warehouse" in said
    assert "### AbsRel, warehouse\n\n| fault | frames | ours | ours, miss < 5 m | ours, phantom < 5 m | " in said
    content = json.loads(out.read_text())
    assert content["rows"] == []
    found = {(r["fault"], r["method"]): r for r in content["sequences"]}
    assert len(found) == 3 * len(SEQUENCE_METHODS)
    clean = found["clean", OURS]
    assert clean["frames"] == 8
    assert clean["abs_rel"] < 0.06
    assert clean["flicker_max"] < 0.1
    assert clean["stage_ms"]["together"][0] > 0
    assert len(found["time starts again", OURS]["over_time"]) == 8
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["error_over_time.png"]


def test_a_recording_without_truth_is_refused(tmp_path, capsys):
    path = tmp_path / "robot"
    with recordings.RecordingWriter(path) as writer, recordings.Recording(shared("recordings/warehouse")) as bundled:
        for recorded in bundled.messages([recordings.IMAGE]):
            writer.write(recorded.topic, recorded.type, recorded.stamp_ns, recorded.data)
            break
    assert evaluate_metric.main(["--on", "sequences", "--sequences", str(path), "--relative", "degraded"]) == 1
    assert "robot: has no /camera/camera_info; give recordings" in capsys.readouterr().err
