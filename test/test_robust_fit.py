"""Straight lines through samples of which half may be wrong, and what is known of them."""

import numpy as np
import pytest

from marigold_ros.robust_fit import Base, Belief, Evidence, NoLine, Samples, gather, weigh

BASE = Base(1.0, 0.08, additive=False, looseness=0.2)
TRUE = (20.0, 2.0)  # depth = 20 p + 2


def samples(p, scale=TRUE[0], shift=TRUE[1], error=0.0, groups=None, seed=0, noise=0.0) -> Samples:
    """Depths that are off by `error`, relative, and seen in space 'depth'."""
    p = np.asarray(p, float)
    y = (scale * p + shift) * (1.0 + error * np.random.default_rng(seed).standard_normal(len(p)))
    same = np.empty((0, len(p)), np.intp) if groups is None else groups
    return Samples(p, y, 1.0 / y, np.ones_like(p), np.full_like(p, noise), np.zeros_like(p), same)


SPREAD = np.random.default_rng(1).uniform(0, 1, 400)


def fitted(given: Samples, belief: Belief | None = None, base: Base = BASE):
    return weigh(gather(given, base, 0.2, seed=0), belief)


def test_exact_samples_give_their_line():
    line = fitted(samples(SPREAD))
    assert (line.scale, line.shift) == pytest.approx(TRUE, rel=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_wrong_samples_do_not_matter(share):
    given, rng = samples(SPREAD, error=0.03), np.random.default_rng(2)
    wrong = rng.random(400) < share
    y = np.where(wrong, given.y * np.where(rng.random(400) < 0.6, 0.4, 2.2), given.y)
    line = fitted(Samples(given.p, y, 1.0 / y, given.weight, given.noise, given.blur, given.groups))
    np.testing.assert_allclose(line.scale * SPREAD + line.shift, TRUE[0] * SPREAD + TRUE[1], rtol=0.05)


def test_the_covariance_is_that_of_repeated_fits():
    lines = [fitted(samples(SPREAD, error=0.08, seed=seed)) for seed in range(60)]
    found = np.cov([[line.scale, line.shift] for line in lines], rowvar=False)
    said = np.mean([line.covariance for line in lines], axis=0)
    # Of the line in the middle of the samples, and of its scale.
    for direction in (np.array([0.5, 1.0]), np.array([1.0, 0.0])):
        matrix = np.array([[said[0], said[1]], [said[1], said[2]]])
        assert 0.5 < direction @ matrix @ direction / (direction @ found @ direction) < 2.0


def test_samples_that_err_alike_count_as_few():
    free = fitted(samples(SPREAD, error=0.08))
    alike = fitted(samples(SPREAD, error=0.08, groups=np.zeros((1, 400), np.intp)))
    assert (alike.scale, alike.shift) == pytest.approx((free.scale, free.shift), rel=0.01)
    assert alike.covariance[0] > 20 * free.covariance[0]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_one_depth_moves_the_base_by_a_factor(count):
    """What a network sees of a wall differs by its own errors alone: nothing can be learned of the scale."""
    p = 0.3 + 0.001 * np.random.default_rng(0).standard_normal(count)
    evidence = gather(samples(p, 0.0, 5.0), BASE, 0.2, seed=0)
    line = weigh(evidence)
    assert evidence.reliability < 0.2
    assert line.scale * 0.3 + line.shift == pytest.approx(5.0, rel=0.01)
    assert line.shift / line.scale == pytest.approx(0.08, abs=0.005)
    assert np.sqrt(line.covariance[0]) / line.scale == pytest.approx(0.2 / (0.3 + 0.08), rel=0.05)


def test_one_depth_leaves_the_scale_to_a_belief():
    evidence = gather(samples(np.full(40, 0.3), 0.0, 9.0), BASE, 0.2, seed=0)
    # Believed: 8 m there, with the true scale known to 1 %, and the shift not at all.
    line = weigh(evidence, Belief(20.0, 2.0, (1.0 / 0.2**2, 0.0, 1e-6)))
    assert line.scale == pytest.approx(20.0, rel=1e-3)
    assert line.scale * 0.3 + line.shift == pytest.approx(9.0, rel=0.01)


def test_a_belief_and_samples_are_weighed_by_their_information():
    """Worked by hand: the mean 10 +- 1 and the belief 12 +- 2 of the same number, the scale known."""
    evidence = Evidence(
        scale=2.0, scale_information=1e12, mean_p=0.0, mean_y=10.0, mean_information=1.0,
        base=Belief(2.0, 0.0, (1.0, 0.0, 0.0)), effective=1.0, reliability=1.0, sigma=0.1,
    )  # fmt: skip
    line = weigh(evidence, Belief(2.0, 12.0, (0.0, 0.0, 0.25)))
    assert line.shift == pytest.approx(10.4)
    assert line.covariance[2] == pytest.approx(0.8)
    assert line.contradiction == pytest.approx((12.0 - 10.0) ** 2 / (1.0 + 4.0))


def test_noise_of_the_sensor_makes_a_sample_count_less():
    given = samples(SPREAD, error=0.03)
    noise = np.where(SPREAD < 0.5, 0.0, 0.4)
    y = np.where(SPREAD < 0.5, given.y, given.y * 1.15)
    trusting = fitted(Samples(given.p, y, 1 / y, given.weight, 0 * noise, given.blur, given.groups))
    knowing = fitted(Samples(given.p, y, 1 / y, given.weight, noise, given.blur, given.groups))
    error = [abs(line.scale * 0.25 + line.shift - 7.0) for line in (knowing, trusting)]
    assert error[0] < 0.6 * error[1]


def test_a_negative_scale_is_refused():
    with pytest.raises(NoLine, match="negative scale"):
        fitted(samples(SPREAD, -15.0, 20.0))


def test_few_samples_cannot_ask_for_a_negative_scale():
    line = fitted(samples([0.4, 0.5], -2.0, 6.0))
    assert line.scale > 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_samples_where_the_base_has_no_depth_still_move_it(count):
    """As a point in the sky: beyond the base's infinity in inverse depth."""
    beyond = Base(1.0, -0.9, additive=False, looseness=0.2)
    p = np.linspace(0.95, 0.99, count)
    y = np.full(count, -1.0 / 30.0)
    given = Samples(p, y, -1.0 / y, np.ones(count), np.zeros(count), np.zeros(count), np.empty((0, count), np.intp))
    line = fitted(given, base=beyond)
    assert line.scale > 0
    np.testing.assert_allclose(line.scale * p.mean() + line.shift, y[0], rtol=0.3)
