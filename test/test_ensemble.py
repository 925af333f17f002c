"""Ensembles: the closed form finds what was done to the members, at no more cost than diffusers' optimiser."""

from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from marigold_ros.config import Unusable  # noqa: E402
from marigold_ros.ensemble import align, disagreement, ensemble_depth, main, synthetic_members  # noqa: E402

SIZE = (48, 64)


def aligned(members, **options):
    scale, shift = align(members, **options)
    return members * scale.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 1)


def affine_copies(scales, shifts):
    scene = synthetic_members(1, SIZE)[0]
    return torch.stack([scale * scene + shift for scale, shift in zip(scales, shifts, strict=True)])


def test_affine_copies_become_one():
    members = affine_copies((0.3, 1.0, 0.7), (0.5, 0.0, 0.1))
    assert disagreement(aligned(members)) < 1e-5
    answer, uncertainty = ensemble_depth(members, output_uncertainty=True)
    torch.testing.assert_close(answer[0], (members[1] - members[1].min()) / (members[1].max() - members[1].min()))
    assert float(uncertainty.max()) < 1e-5


def test_scaled_copies_become_one_without_shift():
    members = affine_copies((0.3, 1.0, 0.7), (0.0, 0.0, 0.0))
    scale, shift = align(members, shift_invariant=False)
    assert not shift.any()
    np.testing.assert_allclose(scale[1] / scale[0], 0.3, rtol=1e-5)
    answer, _ = ensemble_depth(members, shift_invariant=False)
    torch.testing.assert_close(answer[0], members[1] / members[1].max())


def test_absolute_members_are_only_reduced():
    members = synthetic_members(3, SIZE)
    answer, _ = ensemble_depth(members, scale_invariant=False, shift_invariant=False)
    torch.testing.assert_close(answer, members.median(0, keepdim=True).values)


def test_of_an_even_number_the_lower_of_the_middle_two_is_the_median():
    """As published, by torch; numpy would take their mean."""
    members = torch.tensor([0.4, 0.1, 0.3, 0.2]).view(4, 1, 1, 1)
    options = {"scale_invariant": False, "shift_invariant": False, "output_uncertainty": True}
    answer, uncertainty = ensemble_depth(members, **options)
    assert answer.item() == pytest.approx(0.2)
    assert uncertainty.item() == pytest.approx(0.1), "of 0.0, 0.1, 0.1, 0.2"


@pytest.mark.parametrize("count", [3, 5, 8])
@pytest.mark.parametrize("seed", range(3))
def test_the_cost_is_at_most_that_of_diffusers(count, seed):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("scipy")
    members = synthetic_members(count, SIZE, seed)
    with mock.patch.object(torch, "median", wraps=torch.median) as median:
        diffusers.MarigoldDepthPipeline.ensemble_depth(members)
    theirs = disagreement(median.call_args.args[0])
    assert disagreement(aligned(members)) <= theirs
    assert theirs < disagreement(members), "nothing was aligned: compared in vain"


@pytest.mark.parametrize(("reduction", "count"), [("median", 4), ("median", 5), ("mean", 4)])
def test_reduction_and_uncertainty_are_diffusers_own(reduction, count):
    """On members that are aligned already, up to what its optimiser still does to them."""
    diffusers = pytest.importorskip("diffusers")
    members = aligned(synthetic_members(count, SIZE)).float()
    settings = {"output_uncertainty": True, "reduction": reduction}
    ours = ensemble_depth(members, **settings)
    theirs = diffusers.MarigoldDepthPipeline.ensemble_depth(members, max_iter=0, **settings)
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).abs().mean()) < 0.02
        assert mine.shape == other.shape == (1, 1, *SIZE)


def test_uncertainty_is_where_members_differ():
    members = affine_copies((1.0, 0.6, 0.8, 0.7), (0.0, 0.3, 0.1, 0.2))
    members[:, :, :8, :8] += 0.2 * torch.randn(4, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    _, uncertainty = ensemble_depth(members, output_uncertainty=True)
    assert float(uncertainty[..., :8, :8].mean()) > 5 * float(uncertainty[..., 16:, 16:].mean())


@pytest.mark.parametrize(
    "members",
    [torch.zeros(3, 1, *SIZE), torch.full((2, 1, *SIZE), 0.5), synthetic_members(1, SIZE)],
    ids=["black", "flat", "alone"],
)
def test_degenerate_members_give_numbers(members):
    answer, uncertainty = ensemble_depth(members, output_uncertainty=True)
    assert torch.isfinite(answer).all()
    assert torch.isfinite(uncertainty).all()


def test_a_member_that_contradicts_the_others_is_flattened_and_not_turned_over():
    members = affine_copies((1.0, 0.9, 0.8, -0.5), (0.0, 0.0, 0.1, 1.0))
    scale, _ = align(members)
    assert float(scale[3]) <= 1e-6
    assert float(scale[:3].min()) > 0.1


def test_members_that_all_contradict_each_other_are_not_flattened():
    first = synthetic_members(1, SIZE)
    answer, _ = ensemble_depth(torch.cat([first, 1 - first]))
    scale, _ = align(torch.cat([first, 1 - first]))
    assert float(scale.min()) > 0
    assert torch.isfinite(answer).all()


def test_members_that_are_no_numbers_are_refused():
    members = synthetic_members(3, SIZE)
    members[1, 0, 2, 2] = torch.nan
    with pytest.raises(Unusable, match="NaN"):
        ensemble_depth(members)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((3, 2, 4, 4), {}, "must be"),
        ((3, 1, 4, 4), {"reduction": "mode"}, "reduction='mode'"),
        ((3, 1, 4, 4), {"scale_invariant": False}, "shift alone"),
    ],
)
def test_nonsense_is_refused(shape, options, words):
    with pytest.raises(ValueError, match=words):
        ensemble_depth(torch.zeros(shape), **options)


def test_the_program_prints_the_comparison(capsys):
    pytest.importorskip("diffusers")
    assert main(["--size", "24", "32", "--members", "3"]) == 0
    assert "| 3 |" in capsys.readouterr().out
