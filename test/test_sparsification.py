"""The area under the sparsification error: of rankings whose area is known."""

import numpy as np
import pytest

from marigold_ros.config import Unusable
from trainer.sparsification import STEPS, Ranking, ause, fractions

# Evenly spread over [0, 1]: the oracle leaves a mean of (1 - f) / 2, no ranking leaves 1 / 2.
ERROR = np.random.default_rng(0).permutation((np.arange(20_000) + 0.5) / 20_000)


def test_the_oracle_has_no_area_and_the_known_curve():
    assert ause(ERROR, ERROR) == 0.0
    assert ause(ERROR, ERROR**3, root=True) == 0.0  # the order alone counts
    np.testing.assert_allclose(Ranking(ERROR).curve(ERROR), (1 - fractions()) / 2, atol=1e-4)


def test_a_ranking_that_knows_nothing_has_the_known_area():
    """The integral of f / 2 is 1 / 4; of RMSE, that of f / sqrt(3) is 1 / (2 sqrt(3))."""
    constant = np.zeros_like(ERROR)
    assert ause(ERROR, constant) == pytest.approx(0.25, abs=1e-3)
    assert ause(ERROR, constant, root=True) == pytest.approx(0.5 / 3**0.5, abs=1e-3)
    by_chance = np.random.default_rng(1).random(len(ERROR))
    assert ause(ERROR, by_chance) == pytest.approx(0.25, abs=0.01)


def test_reversed_is_worse_than_nothing():
    """What is left then has a mean of (1 + f) / 2."""
    assert ause(ERROR, -ERROR) == pytest.approx(0.5, abs=1e-3)


def test_ties_count_as_in_random_order():
    """Two groups, the surer one with the smaller errors; inside of them nothing is known, wherever the pixels lie."""
    coarse = ERROR > 0.5
    curve = Ranking(coarse).curve(ERROR)
    shuffled = np.random.default_rng(2).permutation(len(ERROR))
    np.testing.assert_allclose(Ranking(coarse[shuffled]).curve(ERROR[shuffled]), curve)
    np.testing.assert_allclose(curve[STEPS // 2 :], 0.25, atol=1e-4)  # the surer half
    assert np.all(np.diff(curve[: STEPS // 2]) < 0)
    np.testing.assert_allclose(Ranking(np.ones(5)).curve(np.arange(5.0)), 2.0)


@pytest.mark.parametrize(
    ("error", "uncertainty"), [([], []), ([1.0], [1.0, 2.0]), ([np.nan], [1.0]), ([1.0], [np.inf])]
)
def test_what_cannot_be_ranked_is_refused(error, uncertainty):
    with pytest.raises(Unusable, match="finite"):
        ause(np.array(error), np.array(uncertainty))
