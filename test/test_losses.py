"""The losses in a checkpoint's own space: scale and shift, targets, weights."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from trainer.losses import Target, depth_loss, fit_scale_shift, full_range, gradient_loss, make_target  # noqa: E402
from trainer.objectives.end_to_end import detail_loss  # noqa: E402
from trainer.recipe import RelativeLoss  # noqa: E402


def test_scale_and_shift_agree_with_lstsq():
    rng = np.random.default_rng(0)
    p, w = rng.normal(size=(2, 6, 5)), rng.uniform(0, 2, (2, 6, 5))
    y = 1.7 * p + 0.3 + 0.5 * rng.normal(size=p.shape)
    scale, shift = fit_scale_shift(torch.tensor(p), Target(torch.tensor(y), torch.tensor(w)))
    for index in range(2):
        root = np.sqrt(w[index].ravel())
        design = np.stack([p[index].ravel(), np.ones(30)], 1) * root[:, None]
        expected = np.linalg.lstsq(design, y[index].ravel() * root, rcond=None)[0]
        np.testing.assert_allclose([scale[index], shift[index]], expected, rtol=1e-4)


def test_scale_is_never_negative():
    p = torch.linspace(-1, 1, 12).view(1, 3, 4)
    scale, shift = fit_scale_shift(p, Target(5 - 2 * p, torch.ones_like(p)))
    assert float(scale) == 0
    assert float(shift) == pytest.approx(5)


@pytest.mark.parametrize("space", ["inverse_depth", "depth", "log_depth"])
def test_targets_increase_with_distance_and_leave_out_the_unknown(space):
    depth = torch.tensor([[[1.0, 2.0, 4.0, 8.0, torch.inf, torch.nan, 0.0]]])
    target = make_target(depth, space, RelativeLoss())
    assert (target.y[0, 0, :5].diff() > 0).all()
    assert (target.weight[0, 0, 5:] == 0).all()
    assert (target.weight[0, 0, :5] > 0).all()
    spread = full_range(target)[0, 0, :5]
    assert float(spread[0]) < -0.8
    assert float(spread.max()) <= 1


def test_loss_is_blind_to_scale_and_shift_but_for_the_range():
    recipe = replace(RelativeLoss(), anchor=0.0, outside=0.0)
    depth = 1 + 5 * torch.rand(2, 16, 16)
    target = make_target(depth, "log_depth", recipe)
    prediction = torch.rand(2, 16, 16)
    loss = depth_loss(prediction, target, recipe)[0]
    assert float(depth_loss(3 * prediction - 2, target, recipe)[0]) == pytest.approx(float(loss), rel=1e-3)
    assert float(depth_loss(0.2 * target.y + 0.1, target, recipe)[0]) < 1e-3


def test_image_without_known_depth_gives_a_finite_loss():
    recipe = RelativeLoss()
    prediction = torch.zeros(2, 16, 16, requires_grad=True)
    depth = torch.full((2, 16, 16), torch.nan)
    depth[1] = 1 + torch.rand(16, 16)
    loss, _ = depth_loss(prediction, make_target(depth, "inverse_depth", recipe), recipe)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(prediction.grad).all()


def test_sparse_depth_gives_every_anchor_its_say():
    values = torch.linspace(1, 10, 10)
    sparse, dense = torch.full((1, 40, 40), torch.nan), values.repeat_interleave(4).expand(1, 40, 40)
    sparse[0, 1, ::4] = values
    pictures = [full_range(make_target(depth, "log_depth", RelativeLoss())) for depth in (sparse, dense)]
    torch.testing.assert_close(pictures[0][0, 1, 8::4], pictures[1][0, 1, 8::4], atol=0.05, rtol=0)


def test_details_are_compared_after_scale_and_shift_and_slopes_do_not_count_where_the_prior_is_unknown():
    prior = torch.rand(2, 16, 16)
    assert float(detail_loss(3 * prior - 1, prior, 2)) < 1e-4
    assert float(detail_loss(torch.rand(2, 16, 16), prior, 2)) > 0.1
    prior[:, :, 8:] = torch.nan
    other = 3 * prior.nan_to_num(0.3) - 1
    other[:, :, 8:] += torch.rand(2, 16, 8)
    assert float(detail_loss(other, prior, 2)) < 1e-4


def test_gradients_of_a_side_of_one_pixel_are_none():
    """At the last scales of small pictures; the mean of nothing would be NaN."""
    residual = torch.rand(2, 64, 4, generator=torch.Generator().manual_seed(0))
    assert 0 < float(gradient_loss(residual, torch.ones_like(residual), 4)) < 1
