"""Whether a line may be believed: right anchors of a weak network are, chance is not."""

import dataclasses

import numpy as np
import pytest

from marigold_ros.acceptance import why_not
from marigold_ros.anchors import Anchors
from marigold_ros.config import FitConfig
from marigold_ros.metric import MetricFit, Refusal, fit_metric, sample

CONFIG = FitConfig()
ROWS, COLUMNS = np.mgrid[0:240, 0:320]
# Most lies at about one depth; the floor comes nearer below, a thing stands on the left.
DEPTH_M = np.where(ROWS > 170, 8.0 - (ROWS - 170) / 12, 8.0)
DEPTH_M = np.where(COLUMNS < 80, 3.5, DEPTH_M).astype(np.float32)


def network(off: float) -> np.ndarray:
    """Relative depth in which a surface on the right, a quarter of the image, is `off` times as far as it is."""
    return (np.where(COLUMNS > 240, off, 1.0) * DEPTH_M / 12.0).astype(np.float32)


def anchors(wrong: float, count: int = 3000, seed: int = 0) -> Anchors:
    """Of a scan of which a share is `wrong`, 60 % nearer and 40 % farther."""
    random = np.random.default_rng(seed)
    pixels = random.uniform(0, [319, 239], (count, 2)).astype(np.float32)
    depth_m = sample(DEPTH_M, pixels) * random.normal(1.0, 0.01, count)
    spoilt = random.permutation(count)[: round(wrong * count)]
    near = round(0.6 * len(spoilt))
    depth_m[spoilt[:near]] *= random.uniform(0.15, 0.7, near)
    depth_m[spoilt[near:]] *= random.uniform(1.4, 3.0, len(spoilt) - near)
    return Anchors(pixels, depth_m.astype(np.float32), np.ones(count, np.float32), count)


def fitted(given: Anchors, relative: np.ndarray, config: FitConfig = CONFIG) -> MetricFit | Refusal:
    return fit_metric(relative, given, "depth", config)


@pytest.mark.parametrize("wrong", [0.0, 0.3, 0.5])
def test_a_surface_that_the_network_got_wrong_does_not_cost_the_metres(wrong):
    """Right anchors on it do not agree with the line, nor do wrong ones; but the neighbours of the right ones do."""
    fit = fitted(anchors(wrong), network(off=1.9))
    assert isinstance(fit, MetricFit)
    assert fit.scale * 0.5 + fit.shift == pytest.approx(6.0, rel=0.05)
    # By themselves they are too few, and hardly more than lie at one depth.
    assert (fit.inliers < 0.5 * fit.anchors) == (wrong == 0.5)


@pytest.mark.parametrize("wrong", [0.7, 0.8])
def test_most_anchors_wrong_give_no_metres(wrong):
    assert isinstance(fitted(anchors(wrong), network(off=1.9)), Refusal)


def test_depths_that_have_nothing_to_do_with_the_picture_give_no_metres():
    right = anchors(0.0)
    shuffled = dataclasses.replace(right, depth_m=np.random.default_rng(1).uniform(1, 40, 3000).astype(np.float32))
    refusal = fitted(shuffled, network(off=1.0))
    assert isinstance(refusal, Refusal)
    assert "agree with one scale and shift" in refusal.reason


def judged(given: Anchors, predicted_m: np.ndarray, cold: bool, config: FitConfig = CONFIG) -> str | None:
    error = np.abs(predicted_m - given.depth_m) / given.depth_m
    return why_not(given, DEPTH_M.shape, predicted_m, error, 0.2, 0.1, config, cold)


@pytest.mark.parametrize("wrong", [0.0, 0.5])
def test_a_flat_line_is_not_believed_for_the_anchors_at_one_depth(wrong):
    """Those on the wall confirm each other and agree with 8 m, but no others do; a frame before could vouch."""
    given = anchors(wrong)
    if wrong == 0.0:  # less than half of them on the wall
        kept = np.flatnonzero((given.depth_m < 7.0) | (np.arange(3000) % 2 == 0))
    else:  # three quarters of the right ones on the wall
        kept = np.flatnonzero((sample(DEPTH_M, given.pixels) > 7.0) | (np.arange(3000) % 2 == 0))
    given = Anchors(given.pixels[kept], given.depth_m[kept], given.weight[kept], len(kept))
    flat_m = np.full(len(kept), 8.0)
    assert 0.3 < np.mean(np.abs(flat_m - given.depth_m) <= 0.2 * given.depth_m) < 0.5
    assert "hardly more than lie at one depth" in judged(given, flat_m, cold=True)
    assert judged(given, flat_m, cold=False) is None


def test_min_inliers_is_asked_of_the_confirmed_ones_too():
    given = anchors(0.5)
    predicted_m = sample(DEPTH_M, given.pixels).astype(np.float64)
    assert judged(given, predicted_m, cold=False) is None
    strict = dataclasses.replace(CONFIG, min_inliers=0.7)
    assert "fit.min_inliers=0.7" in judged(given, predicted_m, cold=False, config=strict)


@pytest.mark.parametrize("predicted_m", [np.nan, 1e6])
def test_a_line_without_depth_anywhere_near_is_not_believed(predicted_m):
    for least in (0.0, 0.3):
        config = dataclasses.replace(CONFIG, min_inliers=least)
        assert judged(anchors(0.0), np.full(3000, predicted_m), cold=True, config=config) is not None
