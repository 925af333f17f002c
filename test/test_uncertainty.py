"""The standard deviation is what its formulas say, and as many errors lie within it as should."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from marigold_ros import uncertainty
from marigold_ros.anchors import Anchors
from marigold_ros.correction import Correction
from marigold_ros.degraded_truth import degraded
from marigold_ros.field import FARTHEST, distances, evidence_of, fitted_field, node_distance
from marigold_ros.geometry import Camera, resize
from marigold_ros.metric import SPACES, FittedDepth, MetricFit
from marigold_ros.metric_baselines import Question, ours_with_sigma
from marigold_ros.metric_cases import CLEAN, TURNED, WRONG, cases, patterns
from marigold_ros.metric_frames import Frame
from marigold_ros.real_data import INDOOR
from marigold_ros.scores import shares_within
from marigold_ros.uncertainty import (
    USUAL,
    Errors,
    Law,
    Uncertainty,
    doubt_of,
    fit_variance,
    law_of,
    left_out,
    rated,
    smooth_variance,
    solid_part,
)

HEIGHT, WIDTH = 480, 640
CAMERA = Camera(WIDTH, HEIGHT, 460.0, 460.0, 319.5, 239.5)
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
FIT = MetricFit("depth", 10.0, 0.0, 100, 100, 0.01)
# Of the fit, as relative error.
SIGMA = 0.05
FLAT_M = np.full((HEIGHT, WIDTH), 5.0, np.float32)
FLAT = FittedDepth(FIT, FLAT_M / 10, 100.0)


def room(seed) -> Frame:
    """A floor, a far wall and boxes, (H, W) metres."""
    random = np.random.default_rng(seed)
    depth_m = np.minimum(460.0 * 1.2 / np.maximum(ROWS - 200.0, 1.0), random.uniform(6.0, 10.0) + COLUMNS / 300)
    for _ in range(8):
        left, top = random.integers(0, WIDTH - 80), random.integers(40, HEIGHT - 120)
        box = np.s_[top : top + random.integers(50, 200), left : left + random.integers(40, 160)]
        depth_m[box] = np.minimum(depth_m[box], random.uniform(1.2, 6.0))
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return Frame(INDOOR, f"room {seed}", rgb, CAMERA, depth_m=depth_m.astype(np.float32))


def anchors_at(pixels, depth_m) -> Anchors:
    pixels = np.asarray(pixels, np.float32)
    depth_m = np.broadcast_to(np.float32(depth_m), len(pixels)).copy()
    return Anchors(pixels, depth_m, np.ones(len(pixels), np.float32), len(pixels))


def grid_of_anchors(depth_m, step=20) -> Anchors:
    return anchors_at(np.stack([COLUMNS, ROWS], -1)[step // 2 :: step, step // 2 :: step].reshape(-1, 2), depth_m)


# By hand.


def test_the_law_by_hand():
    numbers = np.float32([0.02**2, (0.02 * 0.5) ** 2, 0.0, 0.0, 0.0])
    distance, beyond = np.float32([[0, 4, 0, 7, 1000]]), np.float32([[0, 0, 4, 0, 0]])
    anywhere = np.ones((1, 5), np.float32)
    variance = uncertainty._variance(distance, beyond, anywhere, anywhere, numbers, 0, False)
    # From seven nodes on depth rests on the fit alone.
    np.testing.assert_allclose(variance, [[0.0004, 0.002, 0.002, 0.0053, 0.0053]], rtol=1e-5)


def test_sigma_and_confidence_by_hand():
    depth_m = np.float32([[10.0, 2.0, np.nan, 1.0]])
    variance, doubt = np.full((1, 4), 0.0016, np.float32), np.float32([[0.06, 0, 0, 1.0]])
    sigma_m, confidence = rated(depth_m, variance, doubt, Law(0, 0, 0.5), sigma=True, confidence=True)
    np.testing.assert_allclose(sigma_m, [[0.5, 0.08, np.nan, np.hypot(0.04, 0.5)]], rtol=1e-5)
    np.testing.assert_allclose(confidence, [[0.9, 0.92, 0.0, 0.0]], atol=1e-5)


def test_doubt_and_variance_may_be_smaller_than_the_image():
    random = np.random.default_rng(0)
    depth_m = random.uniform(1, 20, (48, 64)).astype(np.float32)
    variance, doubt = (random.uniform(0, 1, shape).astype(np.float32) for shape in ((12, 16), (36, 48)))
    sigma_m, _ = rated(depth_m, variance, doubt, Law(0, 0, 0.5), sigma=True)
    whole = [cv2.resize(part, (64, 48), interpolation=cv2.INTER_LINEAR) for part in (variance, doubt)]
    np.testing.assert_allclose(sigma_m, depth_m * np.sqrt(whole[0] + 0.25 * whole[1] ** 2), rtol=1e-5)


@pytest.mark.parametrize(("space", "slope"), [("depth", 1 / 4), ("inverse_depth", 4.0), ("log_depth", 1.0)])
def test_what_scale_and_shift_may_be_wrong_by(space, slope):
    """Of scale 0.1, of shift 0.2, uncorrelated, at relative depth 0.5: the hypotenuse of 0.05 and 0.2 in the space."""
    fit = replace(FIT, space=space, covariance=(0.01, 0.0, 0.04))
    found = fit_variance(fit.covariance, np.float32([0.5]), np.float32([4.0]), space)
    np.testing.assert_allclose(found, slope**2 * (0.05**2 + 0.2**2), rtol=1e-5)
    # Fully against each other they cancel where both are 0.05 times 0.5.
    fit = replace(FIT, space=space, covariance=(0.01, -0.005, 0.0025))
    found = fit_variance(fit.covariance, np.float32([0.5]), np.float32([4.0]), space)
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_distance_to_the_anchors_by_hand():
    """Nodes are 640/61 pixels wide; the second anchor gives the grid its depth."""
    evidence = evidence_of(FLAT, anchors_at([[320, 240]], 5.0), SIGMA)
    distance = node_distance(evidence)
    column, row, step = (evidence.places[:, 0] + 0.5).astype(int)
    assert distance[row, column, step] == 0
    assert distance[row, column + 3, step] == pytest.approx(3.0, abs=0.1)
    assert distance[row + 4, column + 3, step] == pytest.approx(5.0, abs=0.15)
    # A ln of depth is thirty nodes; the grid around one depth is a tenth of a ln.
    assert distance[row, column, -1 - step] == pytest.approx(3.0, abs=0.01)
    across, beyond = distances(evidence, FLAT_M * np.float32(np.e))
    assert 27.0 < np.hypot(across, beyond)[240, 320] < 30.0


def test_doubt_is_an_edge_or_a_disagreement():
    depth_m = np.where(COLUMNS < 320, 2.0, 2.0 * np.exp(0.4)).astype(np.float32)
    np.testing.assert_allclose(doubt_of(depth_m, None, FIT, WIDTH)[0, [300, 319]], [0.0, 0.2], atol=1e-5)
    # 0.03 of relative depth at scale 10 is 0.3 m, 0.15 of 2 m.
    apart = np.full(depth_m.shape, 0.03, np.float32)
    np.testing.assert_allclose(doubt_of(depth_m, apart, FIT, WIDTH)[0, [300, 319]], [0.15, 0.25], atol=1e-5)


def test_doubt_of_a_slope_is_the_same_in_a_larger_image_and_a_larger_network():
    slope_m = np.broadcast_to(np.exp(np.linspace(0, 2, 640, dtype=np.float32)), (480, 640))
    whole = doubt_of(np.ascontiguousarray(slope_m), None, FIT, 640)
    coarse = doubt_of(cv2.resize(slope_m, (160, 120), interpolation=cv2.INTER_AREA), None, FIT, 640)
    np.testing.assert_allclose(resize(coarse, 640, 480)[50:-50, 50:-50], whole[50:-50, 50:-50], rtol=0.02)


# The law is found.


def simulated(near, growth, doubtful, wrong, count=1500, seed=0):
    random = np.random.default_rng(seed)
    distance = random.uniform(0, 7, count).astype(np.float32)
    doubt = np.where(random.random(count) < 0.3, 0.15, 0.002).astype(np.float32)
    deviation = np.sqrt(near**2 * (1 + (growth * distance) ** 2) + (doubtful * doubt) ** 2)
    error = random.standard_normal(count) * deviation
    spoilt = random.random(count) < wrong
    error[spoilt] = random.uniform(-0.95, 0.95, spoilt.sum())
    return Errors(error.astype(np.float32), distance, doubt), ~spoilt


@pytest.mark.parametrize("wrong", [0.0, 0.03])
@pytest.mark.parametrize("truth", [(0.01, 1.0, 0.5), (0.04, 0.3, 1.0)])
def test_the_law_is_found_though_a_few_anchors_are_wrong(truth, wrong):
    errors, right = simulated(*truth, wrong)
    law = law_of([errors])
    growing = 1.0 + (law.growth * np.minimum(errors.distance, FARTHEST)) ** 2
    variance = law.near**2 * growing + (law.doubtful * errors.doubt) ** 2
    within = np.abs(errors.error) <= np.sqrt(variance)
    for some in (right, right & (errors.distance < 2), right & (errors.distance > 5), right & (errors.doubt > 0.1)):
        assert 0.55 <= within[some].mean() <= (0.85 if wrong else 0.8)


def test_few_errors_move_what_is_usually_so_less_than_many():
    few, many = (law_of([Errors(*(np.full(n, 0.001, np.float32) for _ in range(3)))]).near for n in (3, 300))
    assert USUAL.near > few > 2 * many
    assert law_of([]) == USUAL


def test_what_is_left_out_does_not_help():
    """Beside the anchors that were left out, the depth is 20 % too near, and nothing tells the correction."""
    anchors = grid_of_anchors(5.0)
    anchors.depth_m[anchors.pixels[:, 0] > 320] = 6.0
    evidence = evidence_of(FLAT, anchors, SIGMA)
    chosen = evidence.pixels[:, 0] > 320
    errors = left_out(evidence, chosen, 2.0, np.zeros_like(FLAT_M))
    far = evidence.pixels[chosen][:, 0] > 550
    np.testing.assert_allclose(errors.error[far], np.log(1.2), atol=0.02)
    assert errors.distance[far].min() == pytest.approx(FARTHEST)
    wrong = replace(evidence, trust=np.where(np.arange(len(chosen)) % 2, evidence.trust, np.float32(0)))
    assert len(left_out(wrong, chosen, 2.0, np.zeros_like(FLAT_M)).error) == pytest.approx(len(far) / 2, abs=30)
    assert left_out(evidence, np.zeros_like(chosen), 2.0, np.zeros_like(FLAT_M)) is None


def test_the_first_frame_is_looked_at_whole_and_later_ones_by_turns(monkeypatch):
    asked = []
    monkeypatch.setattr(uncertainty, "left_out", lambda *a: asked.append(len(asked)) or left_out(*a))
    evidence, learner = evidence_of(FLAT, grid_of_anchors(5.5), SIGMA), Uncertainty()
    counts = []
    for _ in range(13):
        learner.learn(evidence, 2.0, lambda: np.zeros_like(FLAT_M))
        counts.append(len(asked))
    assert counts[0] == 6
    assert counts[-1] - counts[0] == 2
    assert learner.law != USUAL
    worse = evidence_of(FLAT, replace_depth(grid_of_anchors(5.5), 5.5 * np.exp(noise(0.1))), SIGMA)
    before = learner.law.near
    for _ in range(42):
        learner.learn(worse, 2.0, lambda: np.zeros_like(FLAT_M))
    assert learner.law.near > 5 * before


def noise(deviation):
    return (deviation * np.random.default_rng(0).standard_normal(len(grid_of_anchors(1.0)))).astype(np.float32)


def replace_depth(anchors, depth_m):
    return replace(anchors, depth_m=depth_m.astype(np.float32))


def test_away_from_the_anchors_depth_is_less_sure():
    left = anchors_at(np.stack([COLUMNS, ROWS], -1)[10::20, 10:200:20].reshape(-1, 2), 5.5)
    evidence = evidence_of(FLAT, left, SIGMA)
    law = Law(0.02, 0.5, 1.0)
    correction = Correction(evidence, fitted_field(evidence, 2.0), fresh=True)
    variance = smooth_variance(law, FLAT, correction)
    assert variance.shape == (120, 640)
    assert variance[60, 100] == pytest.approx(0.0004, rel=0.5)
    assert np.all(np.diff(variance[60, 200:400]) > -1e-7)
    nowhere = smooth_variance(law, FLAT, None)
    np.testing.assert_allclose(variance[60, 600:], nowhere[60, 600:], rtol=1e-4)
    covered = smooth_variance(law, replace(FLAT, fit=replace(FIT, covariance=(0.0, 0.0, 0.25))), None)
    np.testing.assert_allclose(covered - nowhere, 0.5**2 / 5.0**2, rtol=1e-3)


def test_old_anchors_are_as_far_away_as_they_are_old():
    """In fifths of seven nodes, the first one at once: just after the image, and with half of them left."""
    anchors, nothing = grid_of_anchors(5.5), np.zeros(len(grid_of_anchors(5.5)), np.float32)
    old = [replace(anchors, left=nothing + np.float32(left), said=nothing) for left in (0.999, 0.5)]
    distances = [node_distance(evidence_of(FLAT, some, SIGMA)).min() for some in (anchors, *old)]
    np.testing.assert_allclose(distances, [0.0, 1.4, 4.2], rtol=1e-5)
    fitted = replace(FLAT, fit=replace(FIT, covariance=(0.0, 0.0, 0.25)))

    def variance(some):
        evidence = evidence_of(FLAT, some, SIGMA)
        correction = Correction(evidence, fitted_field(evidence, 2.0), fresh=True)
        return np.median(smooth_variance(Law(0.001, 0.5, 1.0), fitted, correction))

    assert variance(anchors) < 0.0005
    assert variance(old[1]) == pytest.approx(0.5**2 / 5.0**2 * (4.2 / 7) ** 2, rel=0.1)


def test_the_law_is_learned_from_this_images_anchors():
    anchors = grid_of_anchors(5.5)
    old = replace(anchors, said=np.where(anchors.pixels[:, 0] < 320, np.nan, 0).astype(np.float32))
    evidence = evidence_of(FLAT, old, SIGMA)
    chosen = np.arange(len(evidence.residual)) % 3 == 0
    errors = left_out(evidence, chosen, 2.0, np.zeros_like(FLAT_M))
    assert len(errors.error) == np.count_nonzero(chosen & (evidence.pixels[:, 0] < 320))


def test_the_cloud_is_what_is_sure_and_does_not_float():
    depth_m = np.where(COLUMNS < 320, 2.0, 6.0).astype(np.float32)
    depth_m[:, 100:102] = 1.0  # a pole
    depth_m[:, 319] = 3.0  # in the air
    depth_m[:5] = np.nan
    variance = np.full(depth_m.shape, 0.01, np.float32)
    variance[:, 500:] = 0.17**2
    for min_confidence, last in ((0.7, 499), (0.6, 639)):
        found = solid_part(depth_m, variance, min_confidence)
        known = np.isfinite(found[240])
        assert known[100:102].all()
        assert not known[319]
        assert known[: last + 1].sum() == last
        assert not known[last + 1 :].any()
        np.testing.assert_array_equal(found[240][known], depth_m[240][known])
        assert np.isnan(found[:5]).all()


# Calibration, on held-out pixels of generated rooms.


@pytest.mark.parametrize("fault", [CLEAN, WRONG[1], TURNED[0]], ids=lambda fault: fault.name)
@pytest.mark.parametrize("space", SPACES)
def test_as_many_errors_lie_within_sigma_as_should(space, fault):
    found = []
    for seed in range(2):
        frame = room(seed)
        relative = degraded(frame.depth_m, space, seed)
        for pattern in list(patterns(frame))[1:]:  # lines and points
            v, u = np.nonzero(np.isfinite(pattern.truth_m))
            (case,) = cases(pattern, (fault,))
            question = Question(relative, space, case.anchors, np.stack([u, v], axis=1))
            found.append(shares_within(*ours_with_sigma(question), pattern.truth_m[v, u]))
    one, two = np.array(found).T
    assert 0.55 <= one.mean() <= (0.85 if fault.wrong else 0.8)
    assert one.min() > 0.45
    assert two.mean() > 0.85
