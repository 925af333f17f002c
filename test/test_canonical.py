"""The canonical camera of metric checkpoints: hand-worked metres and working sizes, and an exact inverse."""

import math

import numpy as np
import pytest

from marigold_ros.canonical import MetricScale, check_focal, focal_after_resize
from marigold_ros.config import Unusable
from marigold_ros.metric import apply_fit

SCALE = MetricScale(d_min_m=0.1, d_max_m=80.0, canonical_focal_px=500.0)
# The bundled network's working size.
PIXELS = 384 * 288


@pytest.mark.parametrize(
    ("relative", "focal_px", "metres"),
    [
        (0.0, 500.0, 0.1),
        (0.5, 500.0, math.sqrt(8.0)),  # the geometric mean of 0.1 and 80
        (1.0, 500.0, 80.0),
        (0.5, 250.0, math.sqrt(2.0)),  # half the focal length: the same picture is half as far
        (1.0, 1000.0, 160.0),
    ],
)
def test_metres_by_hand(relative, focal_px, metres):
    found = SCALE.depth_m(np.array([relative], np.float32), focal_px)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [metres], rtol=1e-6)


def test_the_decoded_map_is_metricgolds_log_depth():
    """x = 2 ln(d / d_min) / ln(d_max / d_min) - 1 in [-1, 1], relative depth is (x + 1) / 2."""
    depth_m = np.geomspace(0.1, 80.0, 7)
    x = 2.0 * np.log(depth_m / 0.1) / np.log(800.0) - 1.0
    np.testing.assert_allclose(SCALE.relative(depth_m, 500.0), (x + 1.0) / 2.0, atol=1e-15)


def test_the_inverse_is_exact_and_ends_at_the_limits():
    relative = np.linspace(0.0, 1.0, 1001)
    np.testing.assert_allclose(SCALE.relative(SCALE.depth_m(relative, 333.0), 333.0), relative, atol=1e-14)
    np.testing.assert_array_equal(SCALE.relative(np.array([0.01, 0.1, 80.0, 200.0, np.inf]), 500.0), [0, 0, 1, 1, 1])
    assert np.isnan(SCALE.relative(np.array([np.nan]), 500.0)).all()


def test_the_canonical_camera_sees_a_thing_as_large_as_the_real_one():
    """A metre at 6 m fills f / 6 pixels; the canonical depth is where it fills as many with the canonical focal."""
    focal_px, depth_m = 320.0, 6.0
    canonical_m = SCALE.depth_m(SCALE.relative(np.array([depth_m]), focal_px), 500.0)
    np.testing.assert_allclose(500.0 / canonical_m, focal_px / depth_m)


def test_a_fit_of_its_own_gives_the_same_metres_and_rests_on_no_anchors():
    relative = np.linspace(0.01, 1.0, 50, dtype=np.float32)[None]
    fit = SCALE.fit(420.0)
    np.testing.assert_allclose(apply_fit(fit, relative, 1000.0), SCALE.depth_m(relative, 420.0), rtol=1e-5)
    assert (fit.space, fit.anchors, fit.inliers, fit.source) == ("log_depth", 0, 0, "the checkpoint")


@pytest.mark.parametrize(
    ("size", "focal_px", "zoom"),
    [
        ((640, 480), 625.0, 0.8),  # 512 x 384 pixels, 1.78 times as many as its own
        ((640, 480), 800.0, 0.625),
        ((640, 480), 5000.0, 0.6 / math.sqrt(2)),  # no fewer than half of its pixels
        ((640, 480), 300.0, 0.6 * math.sqrt(2)),  # no more than twice as many
        ((4000, 100), 50.0, 2048 / 4000),  # a strip: no side above the largest
    ],
)
def test_images_are_resized_to_the_canonical_focal_length_within_bounds(size, focal_px, zoom):
    assert SCALE.zoom(*size, focal_px, PIXELS) == pytest.approx(zoom, rel=1e-12)


def test_the_focal_length_after_a_resize_is_the_geometric_mean():
    assert focal_after_resize(600.0, (640, 480), (384, 288)) == pytest.approx(360.0)
    # fx = 700 becomes 350, fy = 500 becomes 400.
    mean = focal_after_resize(math.sqrt(700 * 500), (1280, 400), (640, 320))
    assert mean == pytest.approx(math.sqrt(350 * 400))


@pytest.mark.parametrize("focal_px", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_focal_length_is_refused(focal_px):
    with pytest.raises(Unusable, match=r"focal_px=.*: must be a positive number"):
        check_focal(focal_px)
