"""What networks are trained to draw, against hand-worked numbers, numpy and the networks' own read-out."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import AutoencoderKL  # noqa: E402

from marigold_ros.canonical import MetricScale  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from marigold_ros.network import answer, depth_head, normals_head  # noqa: E402
from trainer.targets import (  # noqa: E402
    TARGET_NAMES,
    clamped_to_quantiles,
    latent_mask,
    lighting_cutoff,
    log_metric,
    picture_of,
    pictures_of,
    quantile_normalised,
    quantiles,
)

NAN, INF = math.nan, math.inf


def random_depth(shape=(3, 40, 50), seed=0):
    """Depth in metres with unknown pixels, sky and a mask that differs from image to image."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 90.0, shape).astype(np.float32)
    depth[rng.random(shape) < 0.2] = NAN
    depth[:, :3] = INF
    return torch.from_numpy(depth)


def known(depth, nearest_m, farthest_m):
    """As datasets tell what is known."""
    return (depth > nearest_m) & (depth < farthest_m)


def metres(values):
    """As a metric checkpoint makes them of the values that `log_metric` made."""
    return MetricScale(0.1, 80.0, 500.0).depth_m((values + 1) / 2, 500.0)


def read_out(picture, head):
    """What the network's last steps make of a decoded picture."""
    return answer(torch.einsum("oi,nihw->nohw", head.float(), picture))


# Depth


def test_quantiles_are_numpys_over_each_images_own_valid_pixels():
    depth = random_depth()
    valid = known(depth, 1e-5, torch.tensor([80.0, 20.0, 2.0]).view(3, 1, 1))
    found = quantiles(depth, valid, (0.0, 0.02, 0.5, 0.98, 1.0))
    for image, mask, row in zip(depth.numpy(), valid.numpy(), found.numpy(), strict=True):
        expected = np.quantile(image[mask].astype(np.float64), (0.0, 0.02, 0.5, 0.98, 1.0))
        np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_quantiles_are_torchs_and_have_no_limit_of_size():
    values = torch.arange(17_000_000, dtype=torch.float32).flip(0)[None]
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values, 0.98)
    found = quantiles(values, torch.ones_like(values, dtype=torch.bool), (0.02, 0.98))
    assert found[0].tolist() == pytest.approx([0.02 * 16_999_999, 0.98 * 16_999_999], abs=0.5)
    small = values[:, :1003]
    ours = quantiles(small, torch.ones_like(small, dtype=torch.bool), (0.02, 0.98))
    torch.testing.assert_close(ours[0], torch.quantile(small[0], torch.tensor([0.02, 0.98])), rtol=1e-6, atol=0)


def test_the_quantiles_become_the_ends_and_what_is_beyond_is_cut_off():
    depth = torch.arange(101.0).view(1, 1, 101)
    normalised = quantile_normalised(depth, torch.ones_like(depth, dtype=torch.bool))[0, 0]
    assert normalised[:3].tolist() == [-1.0, -1.0, -1.0]
    assert normalised[98:].tolist() == [1.0, 1.0, 1.0]
    assert normalised[50] == 0.0
    assert normalised[26] == pytest.approx(-0.5)


def test_depth_is_normalised_not_disparity():
    """Larger is farther, in proportion."""
    depth = torch.linspace(1.0, 100.0, 1000).view(1, 20, 50)
    normalised = quantile_normalised(depth, torch.ones_like(depth, dtype=torch.bool))
    inside = normalised[normalised.abs() < 1].diff()
    torch.testing.assert_close(inside, torch.full_like(inside, inside.mean().item()), rtol=1e-2, atol=0)
    assert inside.min() > 0


def test_invalid_pixels_are_mapped_by_the_same_rule():
    """As published, where unknown is 0 metres: nearest. What is known but too far, and the sky, is farthest."""
    depth = torch.tensor([[[1.0, 2.0, 3.0, 0.0, NAN, 500.0, INF]]])
    normalised = quantile_normalised(depth, known(depth, 1e-5, 65.0))
    torch.testing.assert_close(normalised[0, 0], torch.tensor([-1.0, 0.0, 1.0, -1.0, -1.0, 1.0, 1.0]))


@pytest.mark.parametrize("content", [NAN, 0.0, INF, 100.0])
def test_an_image_without_a_valid_pixel_gives_zeros_and_leaves_the_others_alone(content):
    depth = random_depth((2, 8, 8))
    depth[1] = content
    valid = known(depth, 1e-5, 65.0)
    assert torch.equal(quantile_normalised(depth, valid)[1], torch.zeros(8, 8))
    assert torch.equal(clamped_to_quantiles(depth, valid)[1], torch.zeros(8, 8))
    assert torch.equal(quantile_normalised(depth, valid)[:1], quantile_normalised(depth[:1], valid[:1]))


def test_a_bare_wall_gives_no_nan():
    depth = torch.full((1, 4, 4), 2.5)
    assert torch.equal(quantile_normalised(depth, depth > 0), torch.full((1, 4, 4), -1.0))
    assert torch.equal(clamped_to_quantiles(depth, depth > 0), depth)


def test_the_end_to_end_truth_is_clamped_and_its_gaps_are_far():
    depth = torch.arange(101.0).view(1, 1, 101)
    valid = depth < 101
    valid[0, 0, 40] = False
    depth[0, 0, 40] = NAN
    low, high = quantiles(depth, valid, (0.02, 0.98))[0]
    truth = clamped_to_quantiles(depth, valid)[0, 0]
    assert truth[40] == truth.max() == high
    assert truth.min() == low
    assert torch.equal(truth[10:40], depth[0, 0, 10:40])


# Metric depth


def test_log_depth_is_hand_worked():
    """Between 0.1 and 80 m: 800 times, half of which in logarithms is sqrt(800) = 28.28."""
    depth = torch.tensor([0.05, 0.1, 0.1 * math.sqrt(800), 80.0, 500.0, INF, 0.0, -1.0])
    expected = torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    torch.testing.assert_close(log_metric(depth, 0.1, 80.0), expected, rtol=0, atol=1e-6)
    assert log_metric(torch.tensor([NAN]), 0.1, 80.0).isnan()


def test_log_depth_comes_back_as_metres():
    depth = torch.logspace(math.log10(0.1), math.log10(80.0), 500)
    torch.testing.assert_close(metres(log_metric(depth, 0.1, 80.0)), depth, rtol=2e-6, atol=0)


def test_one_step_of_8_bits_is_2_6_percent_of_depth():
    ratio = metres(torch.tensor(1 / 128)) / metres(torch.tensor(0.0))
    assert ratio.item() == pytest.approx(1.0265, abs=5e-5)


@pytest.mark.parametrize("limits", [(0.0, 80.0), (80.0, 0.1), (1.0, 1.0), (0.1, INF), (NAN, 1.0)])
def test_a_range_that_does_not_grow_is_refused(limits):
    with pytest.raises(Unusable, match="must grow and start above 0"):
        log_metric(torch.ones(1), *limits)


# The latent mask


def test_a_cell_counts_only_if_all_64_pixels_do():
    valid = torch.ones(2, 16, 24, dtype=torch.bool)
    valid[0, 7, 8] = False
    mask = latent_mask(valid)
    assert mask.shape == (2, 1, 2, 3)
    assert mask.dtype == torch.bool
    assert mask[0, 0].tolist() == [[True, False, True], [True, True, True]]
    assert mask[1].all()
    corners = torch.ones(64, 8, 8, dtype=torch.bool)
    corners.view(64, 64).fill_diagonal_(False)
    assert not latent_mask(corners).any(), "one invalid pixel out of 64, wherever it is, is too many"


@pytest.mark.parametrize("size", [(20, 33), (16, 24), (15, 8)])
def test_the_mask_has_the_size_of_the_latent(size):
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    latent = vae.encode(torch.zeros(1, 3, *size)).latent_dist.mode()
    assert latent_mask(torch.ones(1, *size, dtype=torch.bool)).shape[2:] == latent.shape[2:]


# Pictures


def test_a_drawn_depth_map_is_read_back_by_the_network():
    values = quantile_normalised(random_depth(), known(random_depth(), 1e-5, 65.0))
    picture = picture_of("depth", values)
    assert picture.shape == (3, 3, 40, 50)
    torch.testing.assert_close(read_out(picture, depth_head(disparity=False)), (values + 1) / 2, rtol=0, atol=1e-6)
    assert picture_of("depth", torch.full((1, 2, 2), NAN)).eq(-1).all()


def test_drawn_normals_are_read_back_by_the_network():
    normals = torch.nn.functional.normalize(torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    found = read_out(picture_of("normals", normals), normals_head())
    torch.testing.assert_close(found.permute(0, 3, 1, 2), normals, rtol=0, atol=1e-6)


def test_a_floor_looks_up_and_a_wall_at_the_viewer():
    """Optical frame: y down, z forward. Marigold's: y up, z to the viewer."""
    floor, wall = (0.0, -1.0, 0.0), (0.0, 0.0, -1.0)
    normals = torch.tensor([floor, wall, (1.0, 0.0, 0.0), (NAN, 0.0, 1.0)]).T.reshape(1, 3, 1, 4)
    picture = picture_of("normals", normals)[0, :, 0].T
    assert picture.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]


def test_appearance_is_encoded_in_both_albedo_and_material():
    maps = {
        "albedo": torch.tensor([0.0, 0.5, 1.0, NAN]).view(1, 1, 1, 4).repeat(1, 3, 1, 1),
        "material": torch.tensor([[0.25, 1.0, 0.0, NAN], [0.5, 0.0, 2.0, 0.75]]).view(1, 2, 1, 4),
    }
    albedo, material = pictures_of("iid-appearance", maps)
    grey = 2 * 0.5 ** (1 / 2.2) - 1
    torch.testing.assert_close(albedo[0, :, 0], torch.tensor([-1.0, grey, 1.0, -1.0]).expand(3, 4))
    quarter, three_quarters = (2 * share ** (1 / 2.2) - 1 for share in (0.25, 0.75))
    expected = torch.tensor([[quarter, 1.0, -1.0, -1.0], [grey, -1.0, 1.0, three_quarters], [-1.0, -1.0, -1.0, -1.0]])
    torch.testing.assert_close(material[0, :, 0], expected)


def test_light_has_one_cut_off_for_shading_and_residual():
    albedo = torch.full((1, 3, 10, 10), 0.5)
    shading = torch.linspace(0.0, 4.0, 300).view(1, 3, 10, 10)
    residual = torch.linspace(0.0, 1.0, 300).view(1, 3, 10, 10)
    cutoff = float(np.quantile(shading.numpy(), 0.98))
    assert lighting_cutoff(shading, residual).item() == pytest.approx(cutoff, rel=1e-6)
    pictures = pictures_of("iid-lighting", {"albedo": albedo, "shading": shading, "residual": residual})
    assert pictures[0].eq(0.0).all(), "albedo of lighting is linear"
    torch.testing.assert_close((pictures[1] + 1) / 2, (shading / cutoff).clamp(0, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close((pictures[2] + 1) / 2, residual / cutoff, rtol=0, atol=1e-6)
    a, s, r = ((picture + 1) / 2 for picture in pictures)
    whole = shading < cutoff
    torch.testing.assert_close((a * s + r)[whole] * cutoff, (albedo * shading + residual)[whole], rtol=1e-5, atol=1e-5)


def test_dark_and_unknown_light_gives_no_nan():
    nothing, dark = torch.full((1, 3, 4, 4), NAN), torch.zeros(1, 3, 4, 4)
    for shading, residual in ((nothing, nothing), (nothing, dark), (dark, nothing), (dark, dark)):
        maps = {"albedo": dark, "shading": shading, "residual": residual}
        assert all(picture.eq(-1).all() for picture in pictures_of("iid-lighting", maps))
    known = torch.full((1, 3, 4, 4), 3.0)
    assert lighting_cutoff(nothing, known).item() == 3.0


def test_every_task_has_a_picture_for_every_target():
    maps = {kind: torch.rand(1, 3, 4, 4) for kind in ("albedo", "shading", "residual")}
    maps["material"] = torch.rand(1, 2, 4, 4)
    for task in ("iid-appearance", "iid-lighting"):
        assert len(pictures_of(task, maps)) == len(TARGET_NAMES[task])
    with pytest.raises(Unusable, match="task 'depth'"):
        pictures_of("depth", maps)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("depth", (1, 3, 4, 4)), ("normals", (1, 4, 4, 3)), ("material", (1, 3, 4, 4)), ("prior", (1, 3, 4, 4))],
)
def test_maps_of_another_shape_or_kind_are_refused_by_name(kind, shape):
    with pytest.raises(Unusable, match=f"map '{kind}'"):
        picture_of(kind, torch.zeros(shape))


def test_pictures_stay_in_the_range_of_the_vae():
    wild = torch.tensor([-9.0, 9.0, INF, -INF]).view(1, 1, 1, 4)
    for kind in ("albedo", "albedo-srgb", "shading", "residual", "normals"):
        picture = picture_of(kind, wild.repeat(1, 3, 1, 1))
        assert picture.abs().max() <= 1
    assert picture_of("depth", wild[:, 0]).abs().max() <= 1
