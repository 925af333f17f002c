"""A remembered map in terms of the next frame's relative depth."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from marigold_ros.geometry import Camera, backproject, pixel_rays
from marigold_ros.metric import SPACES, MetricFit, apply_fit, to_space
from marigold_ros.metric_map import Carried, MetricMap, glance, relative_sigma
from marigold_ros.uncertainty import fit_variance

CAMERA = Camera(320, 240, 300.0, 300.0, 159.5, 119.5)
ROWS, COLUMNS = np.mgrid[0:240, 0:320].astype(np.float32)
DEPTH_M = 3.0 + 6.0 * COLUMNS / 320 + 2.0 * np.sin(ROWS / 40)


def normalised(depth_m: np.ndarray, space: str, low_m: float, high_m: float):
    """Relative depth that is 0 at `low_m` and 1 at `high_m`, and its fit, known to 2 %."""
    low, high = to_space(np.array([low_m, high_m]), space)
    relative = ((to_space(depth_m.astype(np.float64), space) - low) / (high - low)).astype(np.float32)
    shift_variance = (0.02 * low) ** 2
    return relative, MetricFit(space, float(high - low), float(low), 100, 90, 0.02, (1e-6, 0.0, shift_variance))


@pytest.mark.parametrize("space", SPACES)
def test_metres_stay_when_the_network_normalises_anew(space):
    """As when a near object comes into view: scale and shift change by a third, the depth does not."""
    before, fit = normalised(DEPTH_M, space, 1.0, 12.0)
    after, right = normalised(DEPTH_M, space, 0.6, 9.0)
    carried, step = MetricMap.of(fit, before).carried_to(after, 0.1, 0.0, CAMERA)
    assert abs(fit.scale / right.scale - 1) > 0.05
    assert (carried.scale, carried.shift) == pytest.approx((right.scale, right.shift), rel=1e-3)
    assert step(fit).scale == carried.scale


def test_the_covariance_is_carried_as_scale_and_shift_are():
    of_scale, both, of_shift = 4e-4, -3e-4, 9e-4
    fit = MetricFit("depth", 8.0, 1.0, 100, 90, 0.02, (of_scale, both, of_shift))
    carried = np.array([[1.3, 0.0], [-0.4, 1.0]])
    found = carried @ [[of_scale, both], [both, of_shift]] @ carried.T
    assert Carried(1.3, -0.4)(fit).covariance == pytest.approx((found[0, 0], found[0, 1], found[1, 1]))


def test_an_object_that_crosses_does_not_bend_the_map():
    before, fit = normalised(DEPTH_M, "depth", 1.0, 12.0)
    crossed = DEPTH_M.copy()
    crossed[60:200, 100:180] = 1.5
    after, _ = normalised(crossed, "depth", 1.0, 12.0)
    carried, _ = MetricMap.of(fit, before).carried_to(after, 0.1, 0.0, CAMERA)
    known = apply_fit(carried, after, 120.0)[crossed == DEPTH_M]
    np.testing.assert_allclose(known, DEPTH_M[crossed == DEPTH_M], rtol=0.01)


def test_noise_of_the_network_does_not_flatten_the_map():
    """Regression would lose spread / (spread + noise) of the scale in every frame: 1 % here, a third after 40."""
    rng = np.random.default_rng(0)
    relative, first = normalised(DEPTH_M, "depth", 1.0, 12.0)
    noisy = [relative + 0.02 * rng.standard_normal(relative.shape).astype(np.float32) for _ in range(41)]
    fit = first
    for before, after in itertools.pairwise(noisy):
        fit, _ = MetricMap.of(fit, before).carried_to(after, 0.1, 0.0, CAMERA)
    assert fit.scale == pytest.approx(first.scale, rel=0.1)


def test_a_picture_that_moved_takes_the_map_along():
    """The camera turned left, things moved 60 pixels right, and the network normalised what it sees anew."""
    wide_m = np.concatenate([2.5 + 0 * DEPTH_M[:, :60], DEPTH_M], axis=1)
    before, fit = normalised(wide_m[:, 60:], "depth", 1.0, 12.0)
    after, right = normalised(wide_m[:, :320], "depth", 0.6, 9.0)
    remembered = MetricMap.of(fit, before)
    carried, _ = remembered.carried_to(after, 0.1, 0.0, CAMERA, shift_px=np.array([60.0, 0.0]))
    assert (carried.scale, carried.shift) == pytest.approx((right.scale, right.shift), rel=0.01)
    ignorant, wrong = (
        remembered.carried_to(after, 0.1, 0.0, CAMERA, shift_px=shift) for shift in (None, np.array([-60.0, 0.0]))
    )
    for found in (ignorant, wrong):
        assert found is None or abs(found[0].shift - right.shift) > 0.2


def test_another_scene_knows_nothing_of_the_map():
    before, fit = normalised(DEPTH_M, "depth", 1.0, 12.0)
    other = np.random.default_rng(0).random(DEPTH_M.shape).astype(np.float32)
    assert MetricMap.of(fit, before).carried_to(other, 0.1, 0.0, CAMERA) is None


def test_motion_that_is_known_moves_the_map():
    """A wall with a step, 1 m nearer: without the motion it would seem to be where it was."""
    before, fit = normalised(DEPTH_M, "depth", 1.0, 12.0)
    now_from_then = np.eye(4)
    now_from_then[2, 3] = -1.0
    after, right = normalised(_seen_from(now_from_then), "depth", 1.0, 10.0)
    carried, _ = MetricMap.of(fit, before).carried_to(after, 0.1, 0.0, CAMERA, now_from_then)
    unmoved, _ = MetricMap.of(fit, before).carried_to(after, 0.1, 0.0, CAMERA)
    right_m = apply_fit(right, after, 120.0)
    assert np.nanmedian(apply_fit(carried, after, 120.0) / right_m) == pytest.approx(1.0, abs=0.01)
    assert np.nanmedian(apply_fit(unmoved, after, 120.0) / right_m) > 1.1


def _seen_from(now_from_then: np.ndarray) -> np.ndarray:
    """DEPTH_M, a smooth surface, from where the camera is now: every pixel by a few steps of Newton's kind."""
    import cv2

    points = backproject(DEPTH_M, pixel_rays(CAMERA)) @ now_from_then[:3, :3].T + now_from_then[:3, 3]
    u = points[..., 0] / points[..., 2] * CAMERA.fx + CAMERA.cx
    v = points[..., 1] / points[..., 2] * CAMERA.fy + CAMERA.cy
    from_u, from_v = COLUMNS.copy(), ROWS.copy()
    for _ in range(30):
        from_u += COLUMNS - cv2.remap(u.astype(np.float32), from_u, from_v, cv2.INTER_LINEAR)
        from_v += ROWS - cv2.remap(v.astype(np.float32), from_u, from_v, cv2.INTER_LINEAR)
    return cv2.remap(points[..., 2].astype(np.float32), from_u, from_v, cv2.INTER_LINEAR)


def test_uncertainty_grows_with_time_and_with_the_way_that_may_have_been_driven():
    before, fit = normalised(DEPTH_M, "depth", 1.0, 12.0)
    sigma = []
    for elapsed_s, speed_m_s in ((0.1, 0.0), (1.0, 0.0), (0.1, 1.0), (1.0, 1.0)):
        carried, _ = MetricMap.of(fit, before).carried_to(before, elapsed_s, speed_m_s, CAMERA)
        sigma.append(relative_sigma(glance(before), carried))
    start = relative_sigma(glance(before), fit)
    assert start < sigma[0] < sigma[1] < sigma[3]
    assert sigma[0] < sigma[2] < sigma[3]
    # 0.1 m and 1 m of about 6 m
    assert sigma[2] - start == pytest.approx(0.1 / np.median(DEPTH_M), rel=0.5)
    assert sigma[3] - start == pytest.approx(1.0 / np.median(DEPTH_M), rel=0.5)


@pytest.mark.parametrize("space", SPACES)
def test_an_image_costs_a_percent_of_the_metres_and_time_costs_as_much_in_few_steps_as_in_many(space):
    relative, fit = normalised(DEPTH_M, space, 1.0, 12.0)
    fit = replace(fit, covariance=(1e-12, 0.0, 1e-12))

    def lost(elapsed_s: float) -> float:
        """Relative variance, on average over the map."""
        carried, _ = MetricMap.of(fit, relative).carried_to(relative, elapsed_s, 0.0, CAMERA)
        return fit_variance(carried.covariance, glance(relative), glance(DEPTH_M), space).mean()

    assert lost(0.0) == pytest.approx(0.01**2, rel=0.01)
    assert lost(1.0) - lost(0.0) == pytest.approx(10 * (lost(0.1) - lost(0.0)), rel=1e-3)


def test_sigma_is_the_covariances_median_over_the_image():
    relative, fit = normalised(DEPTH_M, "log_depth", 1.0, 12.0)
    known = MetricFit("log_depth", fit.scale, fit.shift, 1, 1, 0.0, (0.0, 0.0, 0.03**2))
    assert relative_sigma(glance(relative), known) == pytest.approx(0.03)


def test_who_comes_nearer_does_not_bend_the_map():
    """A wall at 8 m, and before a seventh of it somebody who comes by 7 cm an image from 4 m; the network is right."""

    def seen_from(step):
        depth_m = np.full((240, 320), 8.0, np.float32)
        depth_m[:, 270:] = 4.0 - 0.07 * step
        return (depth_m - 1.0) / 8.0, depth_m

    relative, depth_m = seen_from(0)
    fit = MetricFit("depth", 8.0, 1.0, 100, 90, 0.02, (1e-6, 0.0, 4e-4))
    for step in range(1, 25):
        before, (relative, depth_m) = relative, seen_from(step)
        fit, _ = MetricMap.of(fit, before).carried_to(relative, 0.1, 0.0, CAMERA)
    np.testing.assert_allclose((fit.scale * relative + fit.shift)[120, [100, 300]], depth_m[120, [100, 300]], rtol=0.05)
