"""The published losses against hand-worked numbers, numpy's least squares and numerical gradients."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck  # noqa: E402

from trainer.published_losses import (  # noqa: E402
    affine_metres_loss,
    angular_loss,
    fit_affine,
    log_metric_loss,
    pseudo_huber,
    velocity_loss,
)

NAN, INF = math.nan, math.inf


def random_maps(seed=0, shape=(2, 5, 6), dtype=torch.float64):
    """prediction, depth in metres, mask."""
    draws = torch.Generator().manual_seed(seed)
    prediction = torch.rand(shape, generator=draws, dtype=dtype) * 2 - 1
    depth_m = 3 + 2 * prediction + torch.rand(shape, generator=draws, dtype=dtype)
    return prediction, depth_m, torch.rand(shape, generator=draws) < 0.7


def ones(*shape):
    return torch.ones(shape, dtype=torch.bool)


# Affine depth


def test_scale_and_shift_are_numpys_least_squares():
    prediction, depth_m, mask = random_maps(shape=(3, 20, 30), dtype=torch.float32)
    scale, shift = fit_affine(prediction, depth_m, mask)
    for i in range(3):
        p, d = (values[i][mask[i]].double().numpy() for values in (prediction, depth_m))
        expected = np.linalg.lstsq(np.stack([p, np.ones_like(p)], axis=1), d, rcond=None)[0]
        np.testing.assert_allclose([scale[i].item(), shift[i].item()], expected, rtol=1e-5)


def test_the_affine_loss_is_the_published_formula():
    prediction, depth_m, mask = random_maps()
    residuals = []
    for p, g, m in zip(prediction, depth_m, mask, strict=True):
        p, g = p[m], g[m]
        a00, a01, a11, b0, b1 = p.dot(p), p.sum(), len(p), p.dot(g), g.sum()
        determinant = a00 * a11 - a01 * a01
        s, t = (a11 * b0 - a01 * b1) / determinant, (a00 * b1 - a01 * b0) / determinant
        residuals.append((s * p + t - g).abs())
    expected = torch.cat(residuals).mean()
    torch.testing.assert_close(affine_metres_loss(prediction, depth_m, mask), expected)


def test_the_mean_is_over_the_pixels_of_the_batch_not_over_images():
    """By hand: of 4 pixels (0, 1, 0, 1) for (0, 2, 0, 4) m the fit is 3 p, residuals 0, 1, 0, 1; of 2 pixels it is
    exact. Over pixels 2 / 6, over images (1/2 + 0) / 2."""
    prediction = torch.tensor([[[0.0, 1.0, 0.0, 1.0]], [[0.0, 1.0, 0.3, 0.7]]])
    depth_m = torch.tensor([[[0.0, 2.0, 0.0, 4.0]], [[5.0, 9.0, NAN, INF]]])
    assert affine_metres_loss(prediction, depth_m, ones(2, 1, 4)).item() == pytest.approx(2 / 6)


def test_the_affine_loss_does_not_see_scale_and_shift_of_the_prediction():
    prediction, depth_m, mask = random_maps(dtype=torch.float32)
    expected = affine_metres_loss(prediction, depth_m, mask)
    moved = affine_metres_loss(-7.0 * prediction + 40.0, depth_m, mask)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_affine_loss_goes_through_the_fit():
    prediction, depth_m, mask = random_maps()
    prediction.requires_grad_(True)
    assert gradcheck(lambda p: affine_metres_loss(p, depth_m, mask), prediction)
    gradient = torch.autograd.grad(affine_metres_loss(prediction, depth_m, mask), prediction)[0]
    # With detached s and t the loss would change when the whole prediction is scaled or shifted.
    assert gradient.sum(dim=(1, 2)).abs().max() < 1e-9
    assert (gradient * prediction).sum(dim=(1, 2)).abs().max() < 1e-9
    assert gradient[~mask].eq(0).all()
    assert gradient[mask].ne(0).any()


@pytest.mark.parametrize("value", [0.0, 0.1, -0.7, 1e4])
def test_a_constant_prediction_gets_neither_scale_nor_shift(value):
    """det <= 0: s = t = 0, so the loss is the mean depth, without a gradient, and no NaN."""
    prediction = torch.full((1, 480, 640), value, requires_grad=True)
    depth_m = torch.full((1, 480, 640), 2.0)
    depth_m[:, ::2] = 6.0
    loss = affine_metres_loss(prediction, depth_m, depth_m > 0)
    loss.backward()
    assert loss.item() == pytest.approx(4.0)
    assert prediction.grad.eq(0).all()


def test_a_single_pixel_cannot_fix_scale_and_shift():
    loss = affine_metres_loss(torch.tensor([[[0.4, 0.2]]]), torch.tensor([[[3.0, NAN]]]), ones(1, 1, 2))
    assert loss.item() == 3.0


def test_large_pictures_with_little_contrast_keep_their_digits():
    """The published sums cannot tell 0.9 +- 0.0005 from a constant in float32; about the means they can."""
    wave = torch.sin(torch.arange(480 * 640, dtype=torch.float64)).view(1, 480, 640)
    depth_m = (5 + wave).float()
    scale, shift = fit_affine((0.9 + 5e-4 * wave).float(), depth_m, ones(1, 480, 640))
    assert scale.item() == pytest.approx(2000, rel=1e-3)
    assert shift.item() == pytest.approx(5 - 0.9 * 2000, rel=1e-3)


# Normals


def vectors(*rows):
    """(1, 3, 1, N) from N vectors."""
    return torch.tensor(rows, dtype=torch.float64).T.reshape(1, 3, 1, len(rows))


def angle(a, b):
    return angular_loss(vectors(a), vectors(b), ones(1, 1, 1)).item()


def test_angles_are_in_radians_between_vectors_of_any_length():
    assert angle((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)) == pytest.approx(math.pi / 2)
    assert angle((0.3, 0.3, 0.0), (1.0, 0.0, 0.0)) == pytest.approx(math.pi / 4)
    assert angle((0.0, 0.0, 2.0), (0.0, 0.0, 0.5)) == 0.0
    assert angle((0.0, 0.0, 2.0), (0.0, 0.0, -1.0)) == pytest.approx(math.pi)
    assert angle((1.0, 0.0, 0.0), (math.cos(1e-4), math.sin(1e-4), 0.0)) == pytest.approx(1e-4, rel=1e-9)


def test_angles_are_the_published_arccos_where_that_has_digits():
    draws = torch.Generator().manual_seed(0)
    prediction, normals = (torch.randn((2, 3, 8, 9), generator=draws) for _ in range(2))
    mask = torch.rand((2, 8, 9), generator=draws) < 0.6
    a, b = (torch.nn.functional.normalize(side, dim=1) for side in (prediction, normals))
    expected = torch.arccos((a * b).sum(dim=1).clamp(-1, 1))[mask].mean()
    torch.testing.assert_close(angular_loss(prediction, normals, mask), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_the_angle_is_finite_everywhere(dtype):
    """At perfect agreement, at opposite vectors, at a prediction of no length, at nearly all of these."""
    up = (0.0, 0.6, 0.8)
    tilted = [(0.6 * e, 0.6, 0.8 - e) for e in (1e-9, 1e-7, 1e-5)]
    rows = [up, (0.0, -0.6, -0.8), (0.0, 0.0, 0.0), (1e-12, 0.0, 0.0), (0.0, 1.2, 1.6), *tilted]
    rows += [tuple(-value for value in row) for row in tilted]
    prediction = vectors(*rows).to(dtype).requires_grad_(True)
    normals = vectors(*[up] * len(rows)).to(dtype)
    loss = angular_loss(prediction, normals, ones(1, 1, len(rows)))
    loss.backward()
    lengths = torch.linalg.vector_norm(prediction.grad, dim=1)[0, 0] * len(rows)
    assert loss.isfinite()
    assert lengths.isfinite().all()
    long = prediction.detach().norm(dim=1)[0, 0] > 0.5
    assert lengths[long].max() < 1.1
    assert lengths[4] == 0.0, "twice the truth is perfect agreement"


def test_agreement_that_is_not_perfect_still_has_a_full_gradient():
    """arccos behind a clamp has none here, in float32: 1e-4 rad is a scalar product of 1."""
    prediction = torch.tensor([1e-4, 0.0, 1.0]).view(1, 3, 1, 1).requires_grad_(True)
    angular_loss(prediction, torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1), ones(1, 1, 1)).backward()
    torch.testing.assert_close(prediction.grad.flatten(), torch.tensor([1.0, 0.0, -1e-4]), rtol=1e-3, atol=1e-6)


def test_the_gradient_of_the_angle_is_the_numerical_one():
    draws = torch.Generator().manual_seed(1)
    prediction, normals = (torch.randn((1, 3, 3, 4), generator=draws, dtype=torch.float64) for _ in range(2))
    prediction.requires_grad_(True)
    assert gradcheck(lambda p: angular_loss(p, normals, ones(1, 3, 4)), prediction)


# Latents


def test_velocity_loss_is_the_mean_square_over_kept_elements():
    v, target = torch.zeros(2, 4, 1, 2), torch.ones(2, 4, 1, 2)
    target[0, :, 0, 0], target[1] = 3.0, NAN
    mask = ones(2, 1, 1, 2)
    mask[1] = False
    assert velocity_loss(v, target, mask).item() == pytest.approx((9 + 1) / 2)
    assert velocity_loss(v[:1], target[:1]).item() == pytest.approx((9 + 1) / 2)
    draws = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.mse_loss(draws, draws.flip(0))
    torch.testing.assert_close(velocity_loss(draws, draws.flip(0)), expected)


def test_pseudo_huber_is_hand_worked():
    """sqrt(0.003^2 + 0.004^2) = 0.005; far away it is |a - b| - c, close by (a - b)^2 / 2c."""
    difference = torch.tensor([0.003, 5.0, 1e-5]).view(3, 1, 1, 1)
    each = [pseudo_huber(row, torch.zeros_like(row), 0.004).item() for row in difference.split(1)]
    assert each == pytest.approx([0.001, 5.0 - 0.004, 1e-10 / 0.008], rel=1e-3)
    mask = torch.tensor([True, False, False]).view(3, 1, 1, 1)
    assert pseudo_huber(difference, torch.zeros(3, 1, 1, 1), 0.004, mask).item() == pytest.approx(0.001)
    alike = torch.zeros(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda a: pseudo_huber(a, torch.zeros_like(a)), alike, eps=1e-8)


# Metric depth


def test_log_metric_loss_is_the_mean_absolute_error_of_known_pixels():
    prediction, target = torch.tensor([[[0.0, 0.5, 1.0, NAN]]]), torch.tensor([[[0.5, 0.5, NAN, 0.0]]])
    mask = torch.tensor([[[True, True, True, False]]])
    assert log_metric_loss(prediction, target, mask).item() == pytest.approx(0.25)


# All


def losses():
    """By name: the loss as a function of a prediction of its shape and of the mask."""
    draws = torch.Generator().manual_seed(0)
    depth_m, normals = torch.rand((2, 4, 4), generator=draws), torch.randn((2, 3, 4, 4), generator=draws)
    return {
        "affine": (lambda p, m: affine_metres_loss(p[:, 0], depth_m, m[:, 0]), (2, 1, 4, 4)),
        "angular": (lambda p, m: angular_loss(p, normals, m[:, 0]), (2, 3, 4, 4)),
        "velocity": (lambda p, m: velocity_loss(p, normals, m), (2, 3, 4, 4)),
        "huber": (lambda p, m: pseudo_huber(p, normals, mask=m), (2, 3, 4, 4)),
        "log": (lambda p, m: log_metric_loss(p[:, 0], depth_m, m[:, 0]), (2, 1, 4, 4)),
    }


EACH = pytest.mark.parametrize("name", ["affine", "angular", "velocity", "huber", "log"])


@EACH
def test_an_empty_mask_gives_zero_with_a_live_graph(name):
    loss, shape = losses()[name]
    prediction = torch.full(shape, NAN, requires_grad=True)
    value = loss(prediction, torch.zeros(2, 1, 4, 4, dtype=torch.bool))
    assert value.item() == 0.0
    value.backward()
    assert prediction.grad.eq(0).all()


@EACH
def test_what_is_masked_out_does_no_harm(name):
    """NaN in the prediction outside of the mask changes neither the loss nor any gradient."""
    loss, shape = losses()[name]
    draws = torch.Generator().manual_seed(3)
    mask = torch.rand((2, 1, 4, 4), generator=draws) < 0.5
    clean = torch.randn(shape, generator=draws).requires_grad_(True)
    dirty = clean.detach().where(mask, torch.tensor(NAN)).requires_grad_(True)
    values = [loss(prediction, mask) for prediction in (clean, dirty)]
    assert torch.equal(*values)
    for value in values:
        value.backward()
    assert torch.equal(clean.grad, dirty.grad)
    assert clean.grad.where(mask, torch.zeros(())).ne(0).any()


@EACH
def test_half_precision_is_computed_in_full(name):
    loss, shape = losses()[name]
    prediction = torch.randn(shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    value = loss(prediction, ones(2, 1, 4, 4))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(prediction.float(), ones(2, 1, 4, 4)), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(prediction, ones(2, 1, 4, 4)), value, rtol=0, atol=0)
