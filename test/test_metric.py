"""The fit from relative depth to metres: exact where it can be, robust, and honest where it cannot."""

import math
import re

import numpy as np
import pytest

from marigold_ros.anchors import Anchors
from marigold_ros.canonical import MetricScale
from marigold_ros.config import FitConfig, Unusable
from marigold_ros.metric import (
    SPACES,
    FittedDepth,
    MetricFit,
    Refusal,
    apply_corrected,
    apply_fit,
    fit_metric,
    from_space,
    sample,
    to_space,
)
from marigold_ros.unknown import Reach

CONFIG = FitConfig()
DEPTH_M = (2.0 + 18.0 * np.linspace(0, 1, 320) ** 2)[None].repeat(240, 0).astype(np.float32)


def relative_of(depth_m: np.ndarray, space: str) -> np.ndarray:
    """What a perfect network answers: the depth's place between the nearest and farthest, in the space."""
    y = to_space(depth_m.astype(np.float64), space)
    return ((y - y.min()) / np.ptp(y)).astype(np.float32)


def anchors_on(depth_m: np.ndarray, count: int = 500, seed: int = 0) -> Anchors:
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(0, [depth_m.shape[1] - 1, depth_m.shape[0] - 1], (count, 2)).astype(np.float32)
    return Anchors(pixels, sample(depth_m, pixels).astype(np.float32), np.ones(count, np.float32), count)


def with_depth(anchors: Anchors, depth_m: np.ndarray) -> Anchors:
    return Anchors(anchors.pixels, depth_m.astype(np.float32), anchors.weight, anchors.seen)


@pytest.mark.parametrize("space", SPACES)
def test_spaces_are_increasing_and_invert_exactly(space):
    depth_m = np.geomspace(0.1, 200, 100)
    y = to_space(depth_m, space)
    assert np.all(np.diff(y) > 0)
    np.testing.assert_allclose(from_space(y, space), depth_m, rtol=1e-12)


@pytest.mark.parametrize("space", SPACES)
def test_a_perfect_answer_is_scaled_to_metres(space):
    fit = fit_metric(relative_of(DEPTH_M, space), anchors_on(DEPTH_M), space, CONFIG)
    assert isinstance(fit, MetricFit)
    np.testing.assert_allclose(apply_fit(fit, relative_of(DEPTH_M, space), 120.0), DEPTH_M, rtol=0.005)
    assert fit.inliers == fit.anchors == 500


@pytest.mark.parametrize("space", SPACES)
def test_half_of_the_anchors_may_be_wrong(space):
    anchors = anchors_on(DEPTH_M, 1000)
    rng = np.random.default_rng(1)
    wrong = rng.random(1000) < 0.5
    factor = np.where(rng.random(1000) < 0.6, rng.uniform(0.15, 0.7, 1000), rng.uniform(1.4, 3.0, 1000))
    fit = fit_metric(
        relative_of(DEPTH_M, space), with_depth(anchors, np.where(wrong, factor, 1) * anchors.depth_m), space, CONFIG
    )
    np.testing.assert_allclose(apply_fit(fit, relative_of(DEPTH_M, space), 120.0), DEPTH_M, rtol=0.02)
    assert 450 <= fit.inliers <= 600


@pytest.mark.parametrize("space", SPACES)
def test_metres_do_not_depend_on_how_the_network_normalised(space):
    relative, anchors = relative_of(DEPTH_M, space), anchors_on(DEPTH_M)
    noisy = with_depth(anchors, anchors.depth_m * np.random.default_rng(2).normal(1, 0.05, 500))
    one = apply_fit(fit_metric(relative, noisy, space, CONFIG), relative, 120.0)
    other = relative * 0.4 + 0.3
    two = apply_fit(fit_metric(other, noisy, space, CONFIG), other, 120.0)
    np.testing.assert_allclose(one, two, rtol=5e-3)


def test_the_fit_is_the_same_every_time():
    relative, anchors = relative_of(DEPTH_M, "depth"), anchors_on(DEPTH_M)
    assert fit_metric(relative, anchors, "depth", CONFIG) == fit_metric(relative, anchors, "depth", CONFIG)


@pytest.mark.parametrize(
    ("relative", "anchors", "reason"),
    [
        (DEPTH_M, Anchors(np.empty((0, 2)), np.empty(0), np.empty(0), 0), "no anchor lies in the image"),
        (np.ones_like(DEPTH_M), anchors_on(DEPTH_M), "constant"),
        (np.full_like(DEPTH_M, np.nan), anchors_on(DEPTH_M), "not finite"),
        (-DEPTH_M, anchors_on(DEPTH_M), "positive scale|negative scale"),
        (
            DEPTH_M,
            with_depth(anchors_on(DEPTH_M), np.random.default_rng(0).uniform(1, 80, 500)),
            "agree|positive|negative",
        ),
    ],
)
def test_data_that_cannot_fix_scale_and_shift_are_refused_with_the_reason(relative, anchors, reason):
    refusal = fit_metric(relative.astype(np.float32), anchors, "depth", CONFIG)
    assert isinstance(refusal, Refusal)
    assert re.search(reason, refusal.reason), refusal.reason


@pytest.mark.parametrize("space", SPACES)
def test_beyond_the_limit_is_unknown_not_a_wall(space):
    relative = relative_of(DEPTH_M, space)
    fit = fit_metric(relative, anchors_on(DEPTH_M), space, CONFIG)
    depth_m = apply_fit(fit, relative * 2 - 0.5, 10.0)
    assert np.isnan(depth_m).any()
    assert np.nanmax(depth_m) <= 10.0
    assert np.nanmin(depth_m) > 0


def test_an_unknown_space_is_refused_by_name():
    for function in (to_space, from_space):
        with pytest.raises(Unusable, match="disparity"):
            function(np.ones(3), "disparity")


def test_samples_are_bilinear_and_clamped_at_the_border():
    image = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)
    np.testing.assert_allclose(sample(image, np.array([[0.5, 0.5], [1.0, 0.0], [-0.4, 1.4]])), [1.5, 1.0, 2.0])


# A metric checkpoint's own scale: what its network would answer if it saw DEPTH_M exactly
METRIC = MetricScale(d_min_m=0.1, d_max_m=80.0, canonical_focal_px=500.0)
OWN = METRIC.fit(400.0)
SEEN = METRIC.relative(DEPTH_M, 400.0).astype(np.float32)


def fitted(anchors: Anchors, config: FitConfig = CONFIG) -> MetricFit | Refusal:
    return fit_metric(SEEN, anchors, "log_depth", config, OWN)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.3, 2.5])
def test_anchors_correct_a_metric_checkpoint_by_a_common_factor(factor):
    anchors = anchors_on(DEPTH_M * np.float32(factor))
    fit = fitted(anchors)
    assert fit.source == "500 range points"
    np.testing.assert_allclose(apply_fit(fit, SEEN, 120.0), DEPTH_M * factor, rtol=0.005)


def wall_at_5_m(factor: float) -> Anchors:
    """Those anchors that lie at 5 m, of which they say that it is `factor` times as far."""
    everywhere = anchors_on(DEPTH_M)
    wall = np.abs(everywhere.depth_m - 5.0) < 0.2
    pixels, depth_m, weight = everywhere.pixels[wall], everywhere.depth_m[wall], everywhere.weight[wall]
    return Anchors(pixels, depth_m * np.float32(factor), weight, len(everywhere))


def test_anchors_at_one_depth_are_enough_for_the_factor_and_leave_the_scale():
    """As before a wall."""
    fit = fitted(wall_at_5_m(1.2))
    assert fit.scale == pytest.approx(OWN.scale, rel=0.01)
    np.testing.assert_allclose(apply_fit(fit, SEEN, 120.0), DEPTH_M * 1.2, rtol=0.02)


@pytest.mark.parametrize("space", SPACES)
def test_at_one_depth_the_shape_of_another_frame_serves_and_the_covariance_says_so(space):
    """The network sees it all half as far again as in the frame before."""
    relative = relative_of(DEPTH_M, space)
    before = fit_metric(relative, anchors_on(DEPTH_M), space, CONFIG)
    fit = fit_metric(relative, wall_at_5_m(1.5), space, CONFIG, shape=before)
    np.testing.assert_allclose(apply_fit(fit, relative, 120.0), DEPTH_M * 1.5, rtol=0.05)
    assert fit.covariance[0] > 100 * before.covariance[0]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_anchors_give_their_own_depth_and_great_doubt_elsewhere(space, count):
    relative, anchors = relative_of(DEPTH_M, space), anchors_on(DEPTH_M, 40)
    few = Anchors(anchors.pixels[:count], anchors.depth_m[:count], anchors.weight[:count], count)
    fit = fit_metric(relative, few, space, CONFIG)
    assert fit.scale > 0
    there = apply_fit(fit, sample(relative, few.pixels).astype(np.float32)[None], 120.0)[0]
    np.testing.assert_allclose(there, few.depth_m, rtol=0.1)
    assert math.sqrt(fit.covariance[0]) > 0.08 * fit.scale  # 500 anchors: 0.02


def test_many_anchors_at_many_depths_correct_the_scale_too():
    """A network that takes all depths nearer to 5 m than they are."""
    true_m = (5.0 * (DEPTH_M / 5.0) ** 1.4).astype(np.float32)
    fit = fitted(anchors_on(true_m))
    assert fit.scale == pytest.approx(1.4 * OWN.scale, rel=0.02)
    np.testing.assert_allclose(apply_fit(fit, SEEN, 120.0), true_m, rtol=0.02)


def test_the_prior_holds_the_scale_against_noise_on_anchors_at_nearly_one_depth():
    """40 anchors between 2.0 and 2.2 m that are 10 % wrong, five times."""
    near = anchors_on(DEPTH_M)
    near = Anchors(*(part[near.depth_m < 2.2] for part in (near.pixels, near.depth_m, near.weight)), seen=500)
    bends = []
    for seed in range(5):
        noisy = with_depth(near, near.depth_m * np.random.default_rng(seed).normal(1, 0.1, len(near)))
        fits = fitted(noisy), fit_metric(SEEN, noisy, "log_depth", CONFIG)
        bends.append([abs(math.log(fit.scale / OWN.scale)) for fit in fits])
    with_prior, without = np.array(bends).T
    assert with_prior.max() < 0.02
    assert np.median(without) > 0.25  # what it guards against


def test_half_of_the_anchors_may_be_wrong_for_a_metric_checkpoint_too():
    anchors, rng = anchors_on(DEPTH_M, 1000), np.random.default_rng(1)
    wrong = rng.random(1000) < 0.45
    factor = np.where(wrong, rng.uniform(0.15, 0.6, 1000), 1.25)
    fit = fitted(with_depth(anchors, factor * anchors.depth_m))
    np.testing.assert_allclose(apply_fit(fit, SEEN, 120.0), 1.25 * DEPTH_M, rtol=0.03)


@pytest.mark.parametrize(
    ("anchors", "reason"),
    [
        (anchors_on(DEPTH_M * np.float32(5)), r"ask for 5\.\d\d times .*check the range's unit"),
        (anchors_on(DEPTH_M * np.float32(3.281)), r"ask for 3\.28 times"),  # feet taken for metres
        (anchors_on(DEPTH_M * np.float32(0.2)), r"ask for 0\.20 times"),
        (anchors_on(DEPTH_M[:, ::-1]), "agree|positive|its scale"),
        (with_depth(anchors_on(DEPTH_M), np.random.default_rng(0).uniform(1, 80, 500)), "agree|positive|its scale"),
    ],
)
def test_anchors_that_contradict_a_metric_checkpoint_are_refused_with_the_reason(anchors, reason):
    refusal = fitted(anchors)
    assert isinstance(refusal, Refusal)
    assert re.search(reason, refusal.reason), refusal.reason


@pytest.mark.parametrize("space", SPACES)
def test_corrected_metres_are_those_of_the_fit_times_the_factor_resized_in_the_space(space):
    wall_m = np.float32([[2.0, 8.0], [4.0, 300.0]])
    factor = np.float32([[1.5, 0.5], [1.0, 1.0]])
    fit = MetricFit(space, 4.0, -0.5, 1, 1, 0.0)
    relative = ((to_space(wall_m, space) + 0.5) / 4.0).astype(np.float32)
    expected = np.float32([[3.0, 4.0], [4.0, np.nan]])  # the last is beyond the 120 m
    np.testing.assert_allclose(apply_corrected(fit, relative, factor, relative, 120.0), expected, rtol=1e-5)
    # Evidence to 1.8 m: nothing is known beyond 3.6 m.
    near = apply_corrected(fit, relative, factor, relative, 120.0, Reach(1.8))
    np.testing.assert_allclose(near, [[3.0, np.nan], [np.nan, np.nan]], rtol=1e-5)
    # Nothing is known where the fit has more than 5 m, though it is corrected to 4 m.
    behind = apply_corrected(fit, relative, factor, relative, 120.0, Reach(fitted_m=5.0))
    np.testing.assert_allclose(behind, [[3.0, np.nan], [4.0, np.nan]], rtol=1e-5)
    alike = np.full((1, 8), (to_space(5.0, space) + 0.5) / 4.0, np.float32)
    alike[0, 5] = np.nan  # which is unknown, and stays so
    wider = apply_corrected(fit, relative[:1], factor[:1], alike, 120.0)[0]
    assert np.flatnonzero(np.isnan(wider)) == [5]
    assert wider[[0, -1]] == pytest.approx([3.0, 4.0], rel=1e-5)
    ends = to_space(np.array([3.0, 4.0]), space)
    assert to_space(wider[3], space) == pytest.approx(ends @ [0.625, 0.375], rel=1e-4)  # bilinear, in the space


def test_fitted_depth_between_pixels_is_that_of_the_relative_depth_there():
    """As the fit sees its anchors: halfway between 2 and 8 m in inverse depth are 3.2 m, not 5."""
    relative = np.float32([[-0.5, -0.125], [-0.5, -0.125]])
    fitted = FittedDepth(MetricFit("inverse_depth", 1.0, 0.0, 2, 2, 0.0), relative, 100.0)
    np.testing.assert_allclose(fitted.at(np.float32([[0, 0], [0.5, 0.5], [1, 1]])), [2.0, 3.2, 8.0], rtol=1e-6)
    metres, small = fitted.every(2)
    assert (metres.shape, small.shape) == ((1, 1), (1, 1))
    np.testing.assert_allclose(metres, 8.0)
