"""Two answers to one image: what is left between them once scale and shift are gone."""

import numpy as np
import pytest

from marigold_ros.config import Config, ModelConfig, settings
from marigold_ros.disagreement import SECOND_PASS, TYPICAL, aligned_to, confidence_of, disagreement

RANDOM = np.random.default_rng(0)
ANSWER = RANDOM.random((48, 64), dtype=np.float32)


def test_scale_and_shift_are_no_disagreement():
    np.testing.assert_allclose(disagreement(ANSWER, 0.3 * ANSWER + 0.2), 0.0, atol=1e-6)
    assert disagreement(ANSWER, 0.3 * ANSWER + 0.2).dtype == np.float32


def test_the_alignment_is_that_of_least_squares():
    other = (0.5 * ANSWER + 0.1 * RANDOM.random(ANSWER.shape)).astype(np.float32)
    design = np.stack([other.ravel(), np.ones(other.size)], axis=1)
    scale, shift = np.linalg.lstsq(design, ANSWER.ravel(), rcond=None)[0]
    np.testing.assert_allclose(aligned_to(ANSWER, other), scale * other + shift, atol=1e-5)


def test_a_local_difference_shows_where_it_is():
    other = ANSWER.copy()
    other[10:14, 20:24] += 0.5
    found = disagreement(ANSWER, other)
    assert found[10:14, 20:24].min() > 0.4
    assert np.median(found) < 0.02


@pytest.mark.parametrize("other", [1.0 - ANSWER, np.full_like(ANSWER, 0.7)])
def test_an_answer_that_contradicts_or_says_nothing_is_flattened(other):
    np.testing.assert_allclose(disagreement(ANSWER, other), np.abs(ANSWER - ANSWER.mean()), atol=1e-5)


@pytest.mark.parametrize("method", SECOND_PASS)
def test_confidence_falls_from_one_through_a_half_at_the_typical_disagreement(method):
    found = confidence_of(np.float32([0.0, TYPICAL[method], 1.0, np.inf]), method)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:2], [1.0, 0.5])
    assert 0.0 == found[3] < found[2] < 0.1


def test_every_choice_of_the_setting_is_known():
    (field,) = (field for name, field, _ in settings(Config()) if name == "model.confidence")
    assert {"none", *SECOND_PASS} == {"none", *TYPICAL} == set(field.metadata["choices"])
    assert ModelConfig().confidence == "none"
