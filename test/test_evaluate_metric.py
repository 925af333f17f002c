"""The evaluation of the fit on still frames: methods, cases and the program, on small scenes made by hand."""

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from marigold_ros import evaluate_metric, metric_baselines, metric_cases
from marigold_ros.anchors import Anchors
from marigold_ros.beams import linear_depth
from marigold_ros.config import Unusable
from marigold_ros.degraded_truth import degraded, filled
from marigold_ros.geometry import Camera, project, transformed
from marigold_ros.metric import to_space
from marigold_ros.metric_baselines import METHODS, Question, oracle_affine
from marigold_ros.metric_cases import CLEAN, FAULTS, TURNED_1_DEG, WRONG, Pattern, cases, patterns, with_wrong_depths
from marigold_ros.metric_frames import Frame, read_frames
from marigold_ros.metric_report import Row, case_tables, means, targets
from marigold_ros.real_data import DATA_VARIABLE, INDOOR, KITTI, real_data
from marigold_ros.scores import near_rates, score, shares_within

ROWS, COLUMNS = 96, 128
EVERY_PIXEL = np.stack(np.meshgrid(np.arange(COLUMNS), np.arange(ROWS)), axis=-1).reshape(-1, 2)


def plane_m(shape=(ROWS, COLUMNS)):
    """Metres that are a plane over the image, from 2 m in one corner to 5.8 m in the other."""
    v, u = np.indices(shape)
    return (2.0 + 0.02 * u * 128 / shape[1] + 0.013 * v * 96 / shape[0]).astype(np.float32)


def anchors_of(depth_m, count=300, seed=0):
    random = np.random.default_rng(seed)
    pixels = EVERY_PIXEL[random.permutation(len(EVERY_PIXEL))[:count]]
    return Anchors(pixels.astype(np.float32), depth_m[pixels[:, 1], pixels[:, 0]], np.ones(count, np.float32), count)


def spoilt(anchors, share=0.3):
    depth_m = anchors.depth_m.copy()
    depth_m[: round(share * len(depth_m))] *= 3
    return Anchors(anchors.pixels, depth_m, anchors.weight, anchors.seen)


def relative_of(depth_m, space):
    """A perfect network's answer: affine in the space, 0 nearest, 1 farthest."""
    y = to_space(depth_m.astype(np.float64), space)
    return ((y - y.min()) / np.ptp(y)).astype(np.float32)


def question(space="inverse_depth", anchors=None, depth_m=None):
    depth_m = plane_m() if depth_m is None else depth_m
    return Question(
        relative_of(depth_m, space), space, anchors_of(depth_m) if anchors is None else anchors, EVERY_PIXEL
    )


def error(answer, depth_m=None):
    return score(answer, (plane_m() if depth_m is None else depth_m).ravel())


@pytest.mark.parametrize("space", ["depth", "inverse_depth", "log_depth"])
@pytest.mark.parametrize("name", ["ours", "ours, no correction", "least squares", "Huber", "RANSAC", "nearest affine"])
def test_what_fits_in_the_checkpoints_space_is_exact_there(space, name):
    found = error(METHODS[name](question(space)))
    assert found.abs_rel < (0.02 if name == "Huber" else 1e-3)  # Huber's defaults shrink the slope a little
    assert found.coverage == 1


def test_least_squares_in_the_wrong_space_is_not():
    assert error(METHODS["least squares, wrong space"](question("inverse_depth"))).abs_rel > 0.02
    asked = question("depth")
    expected = np.polyfit(asked.at_anchors(), -1 / asked.anchors.depth_m.astype(np.float64), 1)
    np.testing.assert_allclose(
        METHODS["least squares, wrong space"](asked), -1 / np.polyval(expected, asked.at_pixels()), rtol=1e-4
    )


@pytest.mark.parametrize("name", ["ours", "RANSAC"])
def test_a_third_of_wrong_anchors_is_survived(name):
    wrong = question(anchors=spoilt(anchors_of(plane_m())))
    assert error(METHODS[name](wrong)).abs_rel < 0.005
    assert error(METHODS["least squares"](wrong)).abs_rel > 0.1


def test_median_scaling_is_exact_for_pure_scale():
    depth_m = plane_m()
    as_depth = Question(depth_m / 10, "depth", anchors_of(depth_m), EVERY_PIXEL)
    assert error(METHODS["median scaling"](as_depth)).abs_rel < 1e-6
    as_inverse = Question(1 - 0.5 / depth_m, "inverse_depth", anchors_of(depth_m), EVERY_PIXEL)
    assert error(METHODS["median scaling"](as_inverse)).abs_rel < 1e-4
    with_shift = question("inverse_depth")  # 1 nearest, but 0 at 5.8 m instead of at infinity
    assert error(METHODS["median scaling"](with_shift)).abs_rel > 0.3


def test_linear_interpolation_is_exact_on_a_plane_of_depth_and_as_the_other_implementation():
    depth_m = plane_m()
    corners = np.array([[0, 0], [COLUMNS - 1, 0], [0, ROWS - 1], [COLUMNS - 1, ROWS - 1]])
    around = Anchors(corners.astype(np.float32), depth_m[corners[:, 1], corners[:, 0]], np.ones(4, np.float32), 4)
    assert error(METHODS["linear interpolation"](question(anchors=around))).abs_rel < 1e-6
    rough = anchors_of(np.random.default_rng(1).uniform(1, 9, (ROWS, COLUMNS)).astype(np.float32), 60)
    found = METHODS["linear interpolation"](question(anchors=rough))
    same = np.isclose(found, linear_depth(rough, EVERY_PIXEL), rtol=1e-3)
    assert same.mean() > 0.998  # outside, some pixels are as near to two anchors


def test_linear_interpolation_of_one_line_takes_the_nearest_anchor():
    line = Anchors(np.float32([[10, 48], [60, 48], [110, 48]]), np.float32([1, 2, 3]), np.ones(3, np.float32), 3)
    found = METHODS["linear interpolation"](question(anchors=line)).reshape(ROWS, COLUMNS)
    np.testing.assert_array_equal(found[[0, 48, 95]][:, [0, 12, 50, 127]], np.float32([[1, 1, 2, 3]] * 3))


def test_morphological_completion_fills_and_lets_the_nearer_win():
    flat = anchors_of(np.full((ROWS, COLUMNS), 4, np.float32), 150)
    found = METHODS["morphological"](question(anchors=flat))
    np.testing.assert_allclose(found, 4, rtol=1e-5)  # everywhere: no hole is wider than the largest kernel
    two = Anchors(np.float32([[60, 48], [63, 48]]), np.float32([2, 8]), np.ones(2, np.float32), 2)
    found = METHODS["morphological"](question(anchors=two)).reshape(ROWS, COLUMNS)
    assert found[48, 62] < 5  # linear interpolation has 6 there
    assert np.isnan(found[90, 5])


def test_nearest_affine_follows_a_bend_that_one_line_cannot():
    depth_m = plane_m()
    bent = depth_m * np.where(np.arange(COLUMNS) < 64, 1.0, 1.5)[None].astype(np.float32)
    asked = Question(relative_of(depth_m, "inverse_depth"), "inverse_depth", anchors_of(bent, 600), EVERY_PIXEL)
    assert error(METHODS["nearest affine"](asked), bent).abs_rel < 0.03
    assert error(METHODS["least squares"](asked), bent).abs_rel > 0.05


@pytest.mark.parametrize("space", ["depth", "inverse_depth", "log_depth"])
def test_the_oracle_is_a_bound_to_every_line(space):
    depth_m = plane_m() * np.exp(0.2 * np.random.default_rng(0).standard_normal((ROWS, COLUMNS))).astype(np.float32)
    asked = Question(relative_of(plane_m(), space), space, anchors_of(depth_m, 2000), EVERY_PIXEL)
    best = error(oracle_affine(asked, depth_m.ravel()), depth_m)
    assert best.coverage == 1
    for name in ("ours, no correction", "least squares", "least squares, wrong space", "Huber", "RANSAC"):
        assert error(METHODS[name](asked), depth_m).abs_rel >= best.abs_rel - 1e-6
    # By brute force, around its own line.
    y = to_space(oracle_affine(asked, depth_m.ravel()).astype(np.float64), space)
    for scale in (0.97, 1.0, 1.03):
        for shift in (-0.02, 0.0, 0.02):
            other = metric_baselines._metres(scale * (y - y.mean()) + y.mean() * (1 + shift), space)
            assert error(other, depth_m).abs_rel >= best.abs_rel - 1e-6


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("name", list(METHODS))
def test_no_method_breaks_on_next_to_no_anchors(name, count):
    found = METHODS[name](question(anchors=anchors_of(plane_m(), count)))
    assert found.shape == (len(EVERY_PIXEL),)
    assert np.isnan(found).all() or (count and np.nanmin(found) > 0)


def test_a_missing_library_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(metric_baselines.importlib, "import_module", missing)
    with pytest.raises(Unusable, match=r"scikit-learn is not installed.*pip install scikit-learn"):
        METHODS["RANSAC"](question())
    with pytest.raises(Unusable, match=r"scipy is not installed"):
        METHODS["nearest affine"](question())


def street_frame():
    """A LiDAR of 64 beams, turned and shifted against the camera, over a road between two walls."""
    points = []
    for elevation in np.linspace(0.03, -0.4, 64):
        azimuth = np.linspace(-np.pi, np.pi, 720, endpoint=False) % (2 * np.pi)
        azimuth.sort()
        ray = np.stack([np.cos(azimuth), np.sin(azimuth), np.full(720, np.tan(elevation))], axis=1)
        road = 1.7 / np.maximum(-ray[:, 2], 1e-6)
        wall = 4 / np.maximum(np.abs(ray[:, 1]), 1e-6)
        points.append(ray * np.minimum(np.minimum(road, wall), 40)[:, None])
    camera_from_lidar = np.eye(4)
    camera_from_lidar[:3, :3] = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]
    camera_from_lidar[:3, 3] = 0.06, -0.08, -0.27
    camera = Camera(400, 192, 230.0, 230.0, 199.5, 80.0)
    return Frame(
        KITTI, "street", np.zeros((192, 400, 3), np.uint8), camera, np.concatenate(points).astype(np.float32),
        camera_from_lidar,
    )  # fmt: skip


def room_frame():
    """A slanted wall, a box before it, and a strip where the sensor sees nothing."""
    depth_m = plane_m((480, 640))
    depth_m[120:360, 200:400] = 1.2
    depth_m[:, 600:] = np.nan
    camera = Camera(640, 480, 520.0, 520.0, 319.5, 239.5)
    return Frame(INDOOR, "room", np.zeros((480, 640, 3), np.uint8), camera, depth_m=depth_m)


def pixel_mask(frame, pixels):
    mask = np.zeros((frame.camera.height, frame.camera.width), bool)
    u, v = np.rint(pixels).astype(int).T
    mask[np.clip(v, 0, mask.shape[0] - 1), np.clip(u, 0, mask.shape[1] - 1)] = True
    return mask


@pytest.mark.parametrize("frame", [street_frame(), room_frame()], ids=["street", "room"])
def test_anchors_and_truth_never_share_pixels(frame):
    names = []
    for pattern in patterns(frame):
        names.append(pattern.name)
        asked = np.isfinite(pattern.truth_m)
        assert asked.sum() > 100, pattern.name
        for case in cases(pattern, (CLEAN, *WRONG)):
            assert len(case.anchors) > 20, pattern.name
            assert not (asked & pixel_mask(frame, case.anchors.pixels)).any(), (pattern.name, case.fault)
            blocks = (np.indices(asked.shape) // 64).sum(axis=0) % 2 == 0
            if "points" in pattern.name:
                assert not (asked & blocks).any()
                assert not (~blocks & pixel_mask(frame, case.anchors.pixels)).any()
    expected = {
        KITTI: ["4 of 64 beams", "16 of 64 beams", "32 of 64 beams", "50 points", "200 points", "1000 points"],
        INDOOR: ["2D scan", "16 lines", "500 points"],
    }
    assert names == expected[frame.dataset]


def test_rows_near_a_line_are_not_asked_about():
    by_name = {pattern.name: pattern for pattern in patterns(room_frame())}
    asked = np.flatnonzero(np.isfinite(by_name["2D scan"].truth_m).any(axis=1))
    assert np.abs(asked - 240).min() == 8
    (case,) = cases(by_name["2D scan"], (CLEAN,))
    np.testing.assert_allclose(case.anchors.pixels[:, 1], 240, atol=1e-3)


def test_truth_and_anchors_are_the_scenes_own():
    frame = room_frame()
    for pattern in patterns(frame):
        asked = np.isfinite(pattern.truth_m)
        np.testing.assert_array_equal(pattern.truth_m[asked], frame.depth_m[asked])
        (case,) = cases(pattern, (CLEAN,))
        u, v = np.rint(case.anchors.pixels).astype(int).T
        np.testing.assert_allclose(case.anchors.depth_m, frame.depth_m[v, u], rtol=1e-5)


def test_of_two_held_out_points_in_a_pixel_the_nearer_counts():
    frame = street_frame()
    lidar_from_camera = np.linalg.inv(frame.camera_from_lidar)
    behind = np.array([[0.0, 0.2, 6.0], [0.0, 0.1, 3.0]])  # on one ray of the camera
    found = metric_cases._pattern(frame, "", frame.points[:0], transformed(behind, lidar_from_camera))
    assert np.nanmax(found.truth_m) == np.nanmin(found.truth_m) == pytest.approx(3.0)


def test_wrong_depths_keep_their_pixels_and_their_shares():
    frame = street_frame()
    points = frame.points[transformed(frame.points, frame.camera_from_lidar)[:, 2] > 1][:1000]
    moved = with_wrong_depths(points, frame.camera_from_lidar, 0.3, np.random.default_rng(0))
    (before, z), (after, z_moved) = (
        project(transformed(p.astype(np.float64), frame.camera_from_lidar), frame.camera) for p in (points, moved)
    )
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=0.05)
    ratio = z_moved / z
    near, far = ratio < 0.99, ratio > 1.01
    assert (near.sum(), far.sum()) == (180, 120)
    assert 0.15 <= ratio[near].min() < ratio[near].max() <= 0.7001
    assert 1.3999 <= ratio[far].min() < ratio[far].max() <= 3.0001


def test_a_turned_extrinsic_shifts_anchors_by_the_angle():
    pattern = next(p for p in patterns(room_frame()) if p.name == "2D scan")
    clean, yaw, up, down = cases(pattern, (CLEAN, *TURNED_1_DEG))
    middle = np.abs(clean.anchors.pixels[:, 0] - 319.5).argmin()
    shift = 520 * np.tan(np.radians(1))
    assert np.abs(yaw.anchors.pixels[:, 0] - clean.anchors.pixels[middle, 0] - shift).min() < 0.6
    assert np.ptp(yaw.anchors.pixels[:, 1]) < 0.5
    for case, sign in ((up, -1), (down, 1)):
        nearest = np.abs(case.anchors.pixels[:, 0] - 319.5).argmin()
        np.testing.assert_allclose(case.anchors.pixels[nearest, 1], 240 + sign * shift, atol=0.5)


def test_cases_are_the_same_every_time():
    pattern = next(patterns(room_frame()))
    for first, second in zip(cases(pattern), cases(pattern), strict=True):
        np.testing.assert_array_equal(first.anchors.depth_m, second.anchors.depth_m)
    assert len({fault.name for fault in FAULTS}) == 8


def test_only_what_a_recordings_truth_does_not_reach_is_far_away():
    """It knows every second pixel of every second row; between them nothing is far."""
    known = np.full((6, 8), np.nan, np.float32)
    known[::2, ::2] = 5.0
    known[0, :4] = np.nan
    np.testing.assert_array_equal(filled(evaluate_metric.with_sky(known))[::2, ::2], [[200, 200, 5, 5]] + [[5] * 4] * 2)
    assert np.isnan(evaluate_metric.with_sky(known)[1::2]).all()


@pytest.mark.parametrize("space", ["depth", "inverse_depth", "log_depth"])
def test_degraded_truth_is_deterministic_and_a_little_wrong(space):
    depth_m = room_frame().depth_m
    relative = degraded(depth_m, space, 3)
    np.testing.assert_array_equal(relative, degraded(depth_m, space, 3))
    assert not np.array_equal(relative, degraded(depth_m, space, 4))
    assert relative.dtype == np.float32
    assert 0 <= relative.min() < 0.1
    assert 0.9 < relative.max() <= 1
    v, u = np.nonzero(np.isfinite(depth_m))
    none = Anchors(np.empty((0, 2), np.float32), np.empty(0, np.float32), np.empty(0, np.float32), 0)
    asked = Question(relative, space, none, np.stack([u, v], axis=1))
    assert 0.02 < score(oracle_affine(asked, depth_m[v, u]), depth_m[v, u]).abs_rel < 0.09


def test_unknown_depth_is_filled_with_the_nearest():
    depth_m = np.full((5, 6), np.nan, np.float32)
    depth_m[2, 1], depth_m[2, 5] = 1, 3
    np.testing.assert_array_equal(np.delete(filled(depth_m)[2], 3), [1, 1, 1, 3, 3])  # one is as near to both
    assert np.isfinite(filled(depth_m)).all()


def test_misses_and_phantoms_are_those_of_the_definition():
    truth = np.array([1.0, 2.0, 4.0, 4.0, 4.9, 9.0, np.nan])
    found = near_rates(np.array([1.2, np.nan, 5.1, 2.9, 4.9, 90.0, 1.0]), truth)
    assert (found.miss, found.phantom, found.pixels) == (2 / 5, 1 / 5, 5)
    assert math.isnan(near_rates(truth, truth + 10).miss)
    assert score(np.array([1.0, 3.0]), np.array([2.0, 6.0])).mae_m == 2.0


def test_shares_within_sigma_by_hand():
    predicted_m, sigma_m = np.array([1.0, 2.0, 3.0, 4.0, np.nan]), np.array([0.1, 0.1, 0.5, 0.1, 0.1])
    truth_m = np.array([1.05, 2.15, 2.6, 5.0, 1.0])  # 0.5, 1.5, 0.8 and 10 standard deviations
    assert shares_within(predicted_m, sigma_m, truth_m) == (0.5, 0.75)
    assert math.isnan(shares_within(predicted_m, sigma_m, np.full(5, np.nan))[0])


def row(abs_rel, method, fault="clean", pattern="16 of 64 beams", frame="a", dataset=KITTI):
    return Row(dataset, frame, pattern, fault, method, 100, 10, abs_rel, 1.0, 1.0, 0.9, 0.1, 0.1, 7, 1.0, 2.0)


def test_targets_are_judged_by_the_worst_case():
    faults = ["clean", *(fault.name for fault in WRONG), "yaw 1°"]
    rows = [row(0.10, "oracle affine", fault) for fault in faults]
    errors = (0.11, 0.11, 0.13, math.nan, 0.13)
    for name, share in (("ours", 1.0), ("ours, no correction", 1.05)):
        rows += [row(share * error, name, fault) for fault, error in zip(faults, errors, strict=True)]
    rows += [row(0.12, "linear interpolation", fault) for fault in faults]
    rows += [
        row(0.11, name, pattern="200 points")
        for name in ("ours", "ours, no correction", "oracle affine", "linear interpolation")
    ]
    found = [
        (t.what.split(":")[0], pytest.approx(t.measured, nan_ok=True), pytest.approx(t.allowed), t.met)
        for t in targets(rows)
    ]
    assert found[:2] == [
        ("never worse than linear interpolation", 0.11, 0.12, True),
        ("at most 0.85 x linear interpolation", 0.11, 0.0935, False),
    ]
    assert found[2] == ("30 % wrong anchors", 0.13, 0.1265, False)
    # Refused: worse than any error.
    assert found[3] == ("global fit, up to 50 % wrong anchors", math.nan, 0.12, False)
    assert "3 of 5 cases" in targets(rows)[3].where
    assert found[4] == ("global fit, extrinsic off by 1°", 1.05 * 0.13, 0.13, False)
    assert found[5] == ("correction, 16 of 64 beams", 0.11, 0.8 * 1.05 * 0.11, False)
    rows += [row(0.10, "oracle affine", "pitch -1°"), row(0.14, "ours, no correction", "pitch -1°")]
    assert targets(rows)[4].where == "kitti: 0 of 2 cases; worst: a, 16 of 64 beams, pitch -1°"


def test_calibration_is_judged_by_the_worst_case_of_a_fault():
    shares = [("clean", 0.7), ("clean", 0.79), ("30 % wrong", 0.6), ("30 % wrong", 0.41), ("50 % wrong", math.nan)]
    rows = [replace(row(0.1, "ours", fault), within_1=share) for fault, share in shares]
    found = [t for t in targets(rows) if "standard deviation" in t.what]
    assert [(t.what.split(", ")[1], t.measured, t.allowed, t.met) for t in found] == [
        ("clean", 0.79, 0.8, True),
        ("30 % wrong", 0.41, 0.55, False),
    ]
    assert found[1].where == "kitti: 1 of 2 cases; worst: a, 16 of 64 beams"


def test_our_misses_and_phantoms_stand_beside_our_error():
    ours = replace(row(0.12, "ours"), miss=0.031, phantom=0.004, coverage=0.5)
    (table,) = case_tables([ours, row(0.2, "Huber")], "abs_rel")
    heads, _, cells = table.splitlines()[2:]
    assert heads == "| pattern | fault | anchors | ours | ours, miss < 5 m | ours, phantom < 5 m | Huber |"
    # What is unknown counts as missed, so the rates need no coverage beside them.
    assert cells == "| 16 of 64 beams | clean | 100 | 0.120 (50%) | 3.1% | 0.4% | 0.200 |"
    (table,) = case_tables([ours, row(0.2, "Huber")], "miss")
    assert "| 100 | 3.1% | 10.0% |" in table


def test_means_leave_out_what_is_unknown():
    (found,) = means([row(0.1, "ours"), row(0.3, "ours", frame="b"), row(math.nan, "ours", frame="c")])
    assert (found.abs_rel, found.frame) == (pytest.approx(0.2), "mean of 3")


def test_every_method_is_scored_in_every_case():
    frame = room_frame()
    truth_m = frame.depth_m.copy()
    truth_m[:, ::2] = np.nan
    pattern = Pattern(frame, "columns", next(patterns(frame)).points, truth_m)
    rows = list(
        evaluate_metric.pattern_rows(pattern, degraded(frame.depth_m, "depth", 0), "depth", None, (CLEAN, WRONG[1]))
    )
    assert len(rows) == 2 * (len(METHODS) + 1)
    ours = [r for r in rows if r.method == "ours, no correction"]
    assert all(r.fit_ms > 0 and r.abs_rel < 0.1 and r.pixels == np.isfinite(truth_m).sum() for r in ours)
    assert all(math.isnan(r.fit_ms) for r in rows if r.method != "ours, no correction")
    assert all(math.isnan(r.within_1) == (r.method != "ours") for r in rows)
    assert all(0.0 < r.within_1 < r.within_2 <= 1.0 for r in rows if r.method == "ours")
    oracle = {r.abs_rel for r in rows if r.method == "oracle affine"}
    assert len(oracle) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One RGB-D frame on disk."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "indoor").mkdir()
    frame = room_frame()
    cv2.imwrite(str(folder / "indoor" / "color_07.jpg"), frame.rgb)
    depth_mm = np.nan_to_num(frame.depth_m * 1000).round().astype(np.uint16)
    cv2.imwrite(str(folder / "indoor" / "depth_07.png"), depth_mm)
    return folder


def test_the_program_prints_its_tables_and_writes_the_numbers(folder, tmp_path, capsys):
    out = tmp_path / "scores.json"
    arguments = ["--data", str(folder), "--on", "indoor", "--relative", "degraded", "--json", str(out)]
    assert evaluate_metric.main([*arguments, "--scores", "abs_rel", "miss"]) == 0
    said = capsys.readouterr().out
    assert "## Targets" in said
    assert "| never worse than linear interpolation | indoor 07, 16 lines |" in said
    assert "### AbsRel, indoor 07" in said
    assert "### miss < 5 m, indoor 07" in said
    assert "| 2D scan | yaw 2° |" in said
    assert "### All scores, indoor, clean anchors" in said
    content = json.loads(out.read_text())
    assert len(content["rows"]) == 3 * len(FAULTS) * (len(METHODS) + 1)
    clean = [r for r in content["rows"] if r["method"] == "ours" and r["fault"] == "clean"]
    assert all(r["abs_rel"] < 0.1 for r in clean)
    assert list(tmp_path.iterdir()) == [out]


def test_marigold_dc_stands_beside_the_others_in_its_few_cases(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    from family_checkpoints import FAMILY, write_family_checkpoint
    from marigold_ros import metric_guided

    rows = {row.name: row for row in FAMILY}
    monkeypatch.setattr(metric_guided, "STEPS", 1)
    monkeypatch.setattr(evaluate_metric, "FAULTS", (CLEAN,))
    checkpoint = write_family_checkpoint(tmp_path, rows["marigold-depth-v1-1"], (64, 64))
    out = tmp_path / "scores.json"
    arguments = ["--data", str(folder), "--on", "indoor", "--relative", "degraded", "--json", str(out)]
    assert evaluate_metric.main([*arguments, "--marigold-dc", str(checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = next(line for line in lines if line.startswith("| pattern | fault")).split(" | ")
    column = heads.index("Marigold-DC, guarded")
    cells = {
        tuple(line.strip("| ").split(" | ")[:2]): line.split(" | ")[column] for line in lines if " | clean | " in line
    }
    assert float(cells["16 lines", "clean"]) > 0
    assert cells["2D scan", "clean"] == ""
    content = [r for r in json.loads(out.read_text())["rows"] if "arigold" in r["method"] or "its ch" in r["method"]]
    assert {(r["pattern"], r["fault"]) for r in content} == {
        (pattern, fault) for pattern in ("16 lines", "500 points") for fault in ("clean", "30 % wrong")
    }
    assert len(content) == 4 * 4

    nothing = ["--marigold-dc", str(write_family_checkpoint(tmp_path, rows["marigold-e2e-ft-depth"]))]
    assert evaluate_metric.main([*arguments, *nothing]) == 1
    assert "takes one step from zeros" in capsys.readouterr().err


def test_a_distilled_network_is_guided_in_50_steps_and_unguided_takes_its_own(tmp_path):
    pytest.importorskip("transformers")
    from family_checkpoints import FAMILY, write_family_checkpoint
    from marigold_ros.metric_guided import GuidedMethods

    row = next(row for row in FAMILY if row.name == "marigold-depth-lcm-v1-0")
    methods = GuidedMethods(str(write_family_checkpoint(tmp_path, row)))
    assert (methods._guarded.steps, methods._published.steps, methods._plain.steps) == (50, 50, 1)


def test_unguided_a_multi_step_network_is_fitted_and_corrected_as_the_node_does():
    pytest.importorskip("transformers")
    from marigold_ros import metric_guided

    u, v = EVERY_PIXEL.T
    bent = (plane_m().ravel() * np.exp(0.12 * np.sin(u / 20) + 0.1 * np.cos(v / 15))).astype(np.float32)
    asked = question(anchors=spoilt(anchors_of(bent.reshape(ROWS, COLUMNS), 600)))
    found = metric_guided._fitted(asked.relative, asked.anchors, asked.space)[v, u]
    expected = METHODS["ours"](asked)
    known = np.isfinite(expected)
    assert known.mean() > 0.9
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-5)


def test_frames_are_read_as_they_were_measured(folder):
    (frame,) = read_frames(folder)
    assert (frame.dataset, frame.name, frame.rgb.shape) == (INDOOR, "07", (480, 640, 3))
    np.testing.assert_allclose(frame.depth_m, room_frame().depth_m, atol=1e-3)
    assert frame.camera.fx == 525


def test_the_network_is_run_once_per_frame(folder, monkeypatch):
    calls = []
    (frame,) = read_frames(folder)
    relative = degraded(frame.depth_m, "depth", 0)

    def source(asked):
        calls.append(asked.name)
        return relative, None

    monkeypatch.setattr(evaluate_metric, "FAULTS", (CLEAN,))
    assert evaluate_metric.evaluate(iter([frame]), source, "depth")
    assert calls == ["07"]


def failure(capsys, *arguments):
    assert evaluate_metric.main([str(a) for a in arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("evaluate_metric: ") == 1
    return said.err


def test_missing_data_is_one_clear_error(tmp_path, capsys, monkeypatch):
    assert f"--data or {DATA_VARIABLE}" in failure(capsys, "--data", tmp_path)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "typo"))
    assert str(tmp_path / "typo") in failure(capsys)


def test_bad_input_is_named(folder, tmp_path, capsys):
    assert "is a folder" in failure(capsys, "--data", folder, "--json", tmp_path)
    assert "kitti: has no frames" in failure(capsys, "--data", folder, "--relative", "degraded", "--on", "kitti")
    assert "no_such" in failure(capsys, "--data", folder, "--relative", "no_such")
    (tmp_path / "indoor").mkdir()
    assert "indoor: has no frames" in failure(capsys, "--data", tmp_path, "--relative", "degraded")
    cv2.imwrite(str(tmp_path / "indoor" / "color_1.jpg"), np.zeros((480, 640, 3), np.uint8))
    assert "depth_1.png: is no depth image" in failure(capsys, "--data", tmp_path, "--relative", "degraded")
    cv2.imwrite(str(tmp_path / "indoor" / "depth_1.png"), np.zeros((480, 640), np.uint16))
    assert "depth is unknown everywhere" in failure(capsys, "--data", tmp_path, "--relative", "degraded")
    with pytest.raises(SystemExit):
        evaluate_metric.main(["--on", "nyu"])


def test_json_is_written_whole_or_not_at_all(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_metric, "FAULTS", (CLEAN,))
    monkeypatch.setattr(evaluate_metric, "_as_json", lambda *_: "\ud800")  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        evaluate_metric.main(
            ["--data", str(folder), "--on", "indoor", "--relative", "degraded", "--json", str(tmp_path / "a.json")]
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(real_data(None, [KITTI]) is None, reason=f"no KITTI frames; set {DATA_VARIABLE}")
def test_linear_interpolation_of_sixteen_beams_is_as_good_as_it_was_measured():
    frame = next(read_frames(real_data(None), [KITTI]))
    pattern = next(p for p in patterns(frame) if p.name == "16 of 64 beams")
    v, u = np.nonzero(np.isfinite(pattern.truth_m))
    (case,) = cases(pattern, (CLEAN,))
    asked = Question(np.zeros(pattern.truth_m.shape, np.float32), "depth", case.anchors, np.stack([u, v], axis=1))
    found = score(METHODS["linear interpolation"](asked), pattern.truth_m[v, u])
    assert found.abs_rel == pytest.approx(0.060, abs=0.004)
