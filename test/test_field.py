"""The correction brings depth to the anchors, smoothly, within its bound, and nowhere without them."""

import cv2
import numpy as np
import pytest

from marigold_ros import field
from marigold_ros.anchors import Anchors
from marigold_ros.field import corrected, evidence_of, factor_of, fitted_field, node_distance
from marigold_ros.metric import FittedDepth

SHAPE = (480, 640)
# What a fit to a network that is bent as below has for its error.
SIGMA = 0.08
ROWS, COLUMNS = np.mgrid[: SHAPE[0], : SHAPE[1]]
FLOOR_M = (300.0 / (ROWS + 40.0)).astype(np.float32)  # from 7.5 m at the top to 0.6 m
BEND = (0.12 * np.sin(COLUMNS / 120.0) + 0.1 * np.cos(ROWS / 90.0)).astype(np.float32)  # ln of the network's error


def said_of(depth_m, anchors, sigma):
    """What anchors say of metres."""
    return evidence_of(FittedDepth.of_metres(depth_m), anchors, sigma)


def anchors_on(truth_m, rows=slice(15, None, 30), columns=slice(4, None, 8), wrong=0.0):
    v, u = (axis[rows, columns].ravel() for axis in (ROWS, COLUMNS))
    depth_m = truth_m[v, u].astype(np.float32)
    random = np.random.default_rng(0)
    spoilt = random.random(len(depth_m)) < wrong
    depth_m[spoilt] *= np.where(random.random(spoilt.sum()) < 0.6, 0.4, 2.2)
    return Anchors(
        np.stack([u, v], axis=1).astype(np.float32), depth_m, np.ones(len(depth_m), np.float32), len(depth_m)
    )


def error(depth_m, truth_m):
    return float(np.nanmean(np.abs(depth_m / truth_m - 1)))


@pytest.mark.parametrize("wrong", [0.0, 0.3, 0.5])
def test_a_bent_floor_is_brought_to_the_anchors(wrong):
    fitted_m = FLOOR_M * np.exp(BEND)
    found = corrected(fitted_m, anchors_on(FLOOR_M, wrong=wrong), SIGMA, 2.0, 120.0)
    assert error(found, FLOOR_M) < (0.2 if wrong < 0.5 else 0.4) * error(fitted_m, FLOOR_M)


@pytest.mark.parametrize(("noise_m", "noise_px", "most"), [(5.0, 1.5, 0.01), (0.03, 60.0, 0.04), (0.03, 1.5, None)])
def test_a_sensor_counts_by_its_noise(noise_m, noise_px, most):
    """Beside exact anchors, three times as many of another sensor, which are 10 % too far."""
    exact, other = anchors_on(FLOOR_M, rows=slice(15, None, 60)), anchors_on(FLOOR_M * 1.1, rows=slice(5, None, 20))
    count = len(exact), len(other)
    noises = (np.repeat(np.float32(pair), count) for pair in ((0.03, noise_m), (1.5, noise_px)))
    both = (np.concatenate([getattr(a, name) for a in (exact, other)]) for name in ("pixels", "depth_m", "weight"))
    off = error(corrected(FLOOR_M, Anchors(*both, sum(count), *noises), SIGMA, 2.0, 120.0), FLOOR_M)
    assert off < most if most is not None else off > 0.06


def test_positions_that_are_less_sure_than_a_lidar_s_count_less_by_what_their_variance_has_more():
    """On a slope of 2 % per pixel: at 2.5 px 4 px² more, which are 4 % of depth."""
    slope_m = (5.0 * np.exp(0.02 * COLUMNS)).astype(np.float32)[:, :100]
    pixels, depth_m, ones = np.float32([[50, 99]] * 2), np.repeat(slope_m[99, 50], 2), np.ones(2, np.float32)
    both = Anchors(pixels, depth_m, ones, 2, 0.0 * ones, np.float32([1.5, 2.5]))
    weight = said_of(slope_m, both, SIGMA).weight
    assert weight.max() == 1.0
    assert weight.min() == pytest.approx(0.02**2 / (0.02**2 + 0.04**2), rel=0.05)


def test_wrong_anchors_are_no_evidence_of_reach():
    found = anchors_on(FLOOR_M)
    far = Anchors(found.pixels, found.depth_m.copy(), found.weight, found.seen)
    random = np.random.default_rng(0)
    far.depth_m[random.random(len(far)) < 0.3] *= np.float32(3.0)
    fitted = FittedDepth.of_metres(FLOOR_M)
    reaches = [evidence_of(fitted, anchors, SIGMA).reach(fitted).depth_m for anchors in (found, far)]
    assert reaches[1] == pytest.approx(reaches[0], rel=0.02)


def test_an_edge_stays_where_it_is_and_each_side_gets_its_own_correction():
    truth_m, fitted_m = np.full(SHAPE, 8.0, np.float32), np.full(SHAPE, 8.8, np.float32)
    box = np.s_[150:330, 200:440]
    truth_m[box], fitted_m[box] = 2.0, 1.85
    found = corrected(fitted_m, anchors_on(truth_m), SIGMA, 2.0, 120.0)
    errors = np.abs(np.log(found / truth_m))
    assert errors.max() < 0.04
    assert errors.mean() < 0.003


def test_nothing_changes_without_anchors_and_nothing_jumps_beside_them():
    fitted_m = np.full(SHAPE, 5.0, np.float32)
    left = said_of(fitted_m, anchors_on(fitted_m * 1.2, columns=slice(0, 160, 8)), SIGMA)
    factor = np.log(factor_of(fitted_field(left, 2.0), fitted_m))
    assert factor[:, :100] == pytest.approx(np.log(1.2), abs=0.02)
    steps = np.abs(np.diff(factor, axis=1))
    assert steps.max() < 0.01  # 1 % from pixel to pixel
    assert np.all(np.diff(factor[:, 160:], axis=1) < 1e-4)  # and it fades
    far = said_of(fitted_m, anchors_on(fitted_m * 1.2, slice(0, 30, 8), slice(0, 40, 8)), SIGMA)
    assert np.abs(np.log(factor_of(fitted_field(far, 2.0), fitted_m)))[300:, 500:].max() < 0.01


def test_what_lies_above_the_sensors_view_is_corrected_as_well_ever_less():
    fitted_m = np.full(SHAPE, 5.0, np.float32)
    lower = said_of(fitted_m, anchors_on(fitted_m * 1.2, rows=slice(240, None, 10)), SIGMA)
    share = np.log(factor_of(fitted_field(lower, 2.0), fitted_m))[:240, 320] / np.log(1.2)
    assert share[90] > 0.85
    assert share[10] < 0.2
    assert np.all(np.diff(share) > -1e-4)


@pytest.mark.parametrize("passes", [3, 16, 100])
def test_what_anchors_say_spreads_as_by_so_many_passes_of_a_small_filter_up_to_the_borders(passes):
    sums = np.zeros((46, 61, 2, 6), np.float32)
    sums[0, 58, 0], sums[30, 20, 1] = 1.0, 5.0
    expected, small = sums.reshape(46, 61, 12), np.float32([0.25, 0.5, 0.25])
    for _ in range(passes):
        expected = cv2.sepFilter2D(expected, cv2.CV_32F, small, small, borderType=cv2.BORDER_REFLECT)
    found = field._spread(sums, passes)
    np.testing.assert_allclose(found, expected.reshape(sums.shape), atol=0.01 * expected.max())


def test_depths_that_no_anchor_has_are_left_alone():
    """Anchors on the near half alone; the far half begins at the next pixel."""
    fitted_m = np.full(SHAPE, 2.0, np.float32)
    fitted_m[:, 320:] = 20.0
    near = anchors_on(np.full(SHAPE, 3.0), columns=slice(0, 320, 8))
    found = corrected(fitted_m, near, SIGMA, 2.0, 120.0)
    assert found[:, :310] == pytest.approx(3.0, rel=0.02)
    np.testing.assert_array_equal(found[:, 320:], 20.0)
    one = Anchors(np.array([[600, 10]], np.float32), np.array([20.0], np.float32), np.ones(1, np.float32), 1)
    both = Anchors(*(np.concatenate([getattr(a, k) for a in (near, one)]) for k in ("pixels", "depth_m", "weight")), 1)
    found = corrected(fitted_m, both, SIGMA, 2.0, 120.0)
    assert np.abs(np.log(found[:, 320:] / 20.0)).mean() < 0.12


def test_a_very_tall_image():
    fitted_m = np.full((9000, 8), 5.0, np.float32)
    v = np.arange(0, 9000, 10, dtype=np.float32)
    anchors = Anchors(np.stack([np.full_like(v, 4), v], axis=1), np.full_like(v, 6), np.ones_like(v), len(v))
    np.testing.assert_allclose(corrected(fitted_m, anchors, SIGMA, 2.0, 120.0)[:, 4], 6.0, rtol=0.01)


def test_its_bound():
    fitted_m = np.full(SHAPE, 5.0, np.float32)
    anchors = anchors_on(fitted_m * 1.5)
    assert error(corrected(fitted_m, anchors, SIGMA, 2.0, 120.0), fitted_m * 1.5) < 0.01
    np.testing.assert_allclose(corrected(fitted_m, anchors, SIGMA, 1.25, 120.0), 6.25, rtol=1e-5)


def test_what_is_unknown_or_too_far_is_so_afterwards():
    fitted_m = np.full(SHAPE, 5.0, np.float32)
    fitted_m[:100] = np.nan
    found = corrected(fitted_m, anchors_on(np.full(SHAPE, 6.0)), SIGMA, 2.0, 120.0)
    assert np.isnan(found[:100]).all()
    np.testing.assert_allclose(found[110:], 6.0, rtol=0.01)
    assert np.isnan(corrected(fitted_m, anchors_on(np.full(SHAPE, 6.0)), SIGMA, 2.0, 5.5)).all()


def test_where_no_anchor_lies_on_known_depth_it_is_left_alone():
    unknown = np.full(SHAPE, np.nan, np.float32)
    assert said_of(unknown, anchors_on(FLOOR_M), SIGMA) is None
    nobody = Anchors(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32), 0)
    assert corrected(FLOOR_M, nobody, SIGMA, 2.0, 120.0) is FLOOR_M
    far_off = anchors_on(FLOOR_M * 10)
    assert corrected(FLOOR_M, far_off, SIGMA, 2.0, 120.0) is FLOOR_M


def test_a_single_anchor_and_a_small_image():
    fitted_m = np.full((48, 64), 5.0, np.float32)
    one = Anchors(np.array([[10, 20]], np.float32), np.array([5.5], np.float32), np.ones(1, np.float32), 1)
    found = corrected(fitted_m, one, SIGMA, 2.0, 120.0)
    assert found[20, 10] > 5.2
    assert found[40, 60] == pytest.approx(5.0, abs=0.05)


def test_a_surface_that_the_network_got_wrong_is_believed_and_brought_to_its_anchors():
    """A cupboard of a quarter of the image that the network has at half its depth; a third of the anchors are wrong."""
    truth_m, fitted_m = np.full(SHAPE, 8.0, np.float32), np.full(SHAPE, 8.0, np.float32)
    cupboard = np.s_[:240, 200:520]
    truth_m[cupboard], fitted_m[cupboard] = 5.0, 2.5
    anchors = anchors_on(truth_m, wrong=0.33)
    evidence = said_of(fitted_m, anchors, sigma=0.04)
    found = factor_of(fitted_field(evidence, 3.0), fitted_m) * fitted_m
    inside = np.s_[30:210, 230:490]
    assert error(found[inside], truth_m[inside]) < 0.02
    assert error(found[270:], truth_m[270:]) < 0.01
    u, v = evidence.pixels.astype(int).T
    measured_m = fitted_m[v, u] * np.exp(evidence.residual)
    right = np.abs(measured_m / truth_m[v, u] - 1) < 1e-3
    assert evidence.trust[right].mean() > 0.9
    assert evidence.trust[~right].mean() < 0.05


def test_a_few_anchors_that_are_far_off_are_not_believed_among_many_that_are_not():
    fitted_m = np.full(SHAPE, 5.0, np.float32)
    right = anchors_on(fitted_m, slice(0, 120, 10), slice(0, 160, 10))
    wrong = np.float32([[70, 50], [75, 50], [70, 55]])
    pixels, depth_m = np.concatenate([right.pixels, wrong]), np.append(right.depth_m, np.full(3, 2.0, np.float32))
    evidence = said_of(fitted_m, Anchors(pixels, depth_m, np.ones(len(pixels), np.float32), len(pixels)), 0.05)
    far_off = np.abs(evidence.residual) > 0.3
    assert np.count_nonzero(far_off) == 3
    assert not evidence.trust[far_off].any()
    np.testing.assert_array_equal(evidence.trust[~far_off], 1.0)


def test_one_anchor_is_believed_as_far_as_the_fit_lets_expect_its_error():
    fitted_m = np.full(SHAPE, 5.0, np.float32)
    for sigma, trust in ((0.05, 0.0), (0.5, 1.0)):
        evidence = said_of(fitted_m, anchors_on(np.full(SHAPE, 2.0), slice(100, 101), slice(100, 101)), sigma)
        assert evidence.trust == pytest.approx(trust)
        assert node_distance(evidence).min() == 0.0  # it is asked nevertheless, where nothing is believed


def test_depth_goes_to_a_lone_anchor_as_far_as_the_fit_lets_expect_its_error():
    fitted_m = np.full(SHAPE, 5.0, np.float32)
    lone = anchors_on(np.full(SHAPE, 3.0), slice(100, 101), slice(100, 101))
    near_it = [corrected(fitted_m, lone, sigma, 3.0, 120.0)[100, 100] for sigma in (0.05, 0.5)]
    assert near_it[0] == pytest.approx(5.0)
    assert near_it[1] < 3.5
