"""The measures and alignments of the published protocols: by hand, and against other people's implementations."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.image import PeakSignalNoiseRatio

from marigold_ros.config import Unusable
from trainer.evaluation import depth, intrinsics, normals
from trainer.evaluation.alignment import align, fitted_columns
from trainer.evaluation.depth import DepthFrame, evaluated_area, kitti_crop
from trainer.evaluation.intrinsics import IntrinsicsFrame
from trainer.evaluation.normals import NormalsFrame
from trainer.evaluation.protocols import DSINE, MARIGOLD, protocol_of, protocols
from trainer.evaluation.published import published


def frame_of(depth_m, valid=None):
    depth_m = np.atleast_2d(np.asarray(depth_m, np.float32))
    return DepthFrame(
        np.zeros((*depth_m.shape, 3), np.uint8), depth_m, np.ones(depth_m.shape, bool) if valid is None else valid
    )


def normals_frame(truth, valid=None):
    truth = np.asarray(truth, np.float32)
    return NormalsFrame(
        np.zeros(truth.shape, np.uint8), truth, np.ones(truth.shape[:2], bool) if valid is None else valid
    )


# Depth


def test_depth_measures_of_a_hand_worked_case():
    found = depth.measure(np.array([[2.0, 2.0, 8.0]]), frame_of([1.0, 2.0, 4.0]))
    assert found["abs_rel"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["sq_rel"] == pytest.approx((1 + 0 + 4) / 3)
    assert found["rmse_m"] == pytest.approx(np.sqrt((1 + 0 + 16) / 3))
    assert found["rmse_log"] == pytest.approx(np.log(2) * np.sqrt(2 / 3))
    assert found["log10"] == pytest.approx(np.log10(2) * 2 / 3)
    assert found["irmse"] == pytest.approx(np.sqrt((1 / 4 + 0 + 1 / 64) / 3))
    # ln ratios ln 2, 0, ln 2: mean 2/3 ln 2, mean square 2/3 ln^2 2.
    assert found["silog"] == pytest.approx(100 * np.log(2) * np.sqrt(2 / 3 - 4 / 9))
    assert [found[f"delta{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    # 1.25, 1.25^2 and 1.25^3 themselves do not count, what is just below does.
    limits = depth.measure(np.array([[1.25, 1.24, 1.5625, 1.95, 2.0]]), frame_of([1.0] * 5))
    assert [limits[f"delta{k}"] for k in (1, 2, 3)] == pytest.approx([0.2, 0.4, 0.8])


def test_depth_measures_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.uniform(1, 9, (2, 30, 40)).astype(np.float32)
    valid = rng.random((30, 40)) < 0.6
    found = depth.measure(predicted, frame_of(truth, valid))
    g, p = truth[valid].astype(float), predicted[valid].astype(float)
    skl = sklearn.metrics
    assert found["abs_rel"] == pytest.approx(skl.mean_absolute_percentage_error(g, p))
    assert found["sq_rel"] == pytest.approx(skl.mean_squared_error(g, p, sample_weight=1 / g) * np.mean(1 / g))
    assert found["rmse_m"] == pytest.approx(skl.root_mean_squared_error(g, p))
    assert found["rmse_log"] == pytest.approx(skl.root_mean_squared_error(np.log(g), np.log(p)))
    assert found["log10"] == pytest.approx(skl.mean_absolute_error(np.log10(g), np.log10(p)))
    assert found["irmse"] == pytest.approx(skl.root_mean_squared_error(1 / g, 1 / p))
    assert found["silog"] == pytest.approx(
        100 * np.sqrt(1 - skl.explained_variance_score(g_log := np.log(g), np.log(p))) * g_log.std()
    )
    assert found["pixels"] == valid.sum()


def test_pooled_depth_is_what_all_pixels_together_give():
    rng = np.random.default_rng(1)
    truth, predicted = rng.uniform(1, 9, (2, 20, 30)).astype(np.float32)
    parts = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    parts[0][:2], parts[1][2:] = True, True
    images = [depth.measure(predicted, frame_of(truth, part)) for part in parts]
    together = depth.measure(predicted, frame_of(truth))
    pooled = depth.averaged(images, pooled=True)
    assert pooled == pytest.approx({name: together[name] for name in depth.MEASURES})
    by_image = depth.averaged(images, pooled=False)
    assert by_image["abs_rel"] == pytest.approx((images[0]["abs_rel"] + images[1]["abs_rel"]) / 2)
    assert by_image["abs_rel"] != pytest.approx(pooled["abs_rel"], rel=1e-3)


def test_least_squares_in_depth_by_hand():
    # On (0, 1, 3) depths 1, 2, 4 are 1 + p; on (0, 3, 3) the best line is 1, 3, 3.
    valid = np.ones((1, 3), bool)
    exact = align(np.array([[0.0, 1.0, 3.0]]), np.array([[1.0, 2.0, 4.0]]), valid, "depth")
    assert (exact.scale, exact.shift) == pytest.approx((1.0, 1.0))
    rough = align(np.array([[0.0, 3.0, 3.0]]), np.array([[1.0, 2.0, 4.0]]), valid, "depth")
    np.testing.assert_allclose(rough.depth_m, [[1.0, 3.0, 3.0]], atol=1e-6)
    # The fit sees valid pixels only, and is applied to all.
    some = align(np.array([[0.0, 1.0, 5.0]]), np.array([[1.0, 2.0, 99.0]]), np.array([[True, True, False]]), "depth")
    np.testing.assert_allclose(some.depth_m, [[1.0, 2.0, 6.0]], atol=1e-5)


def test_least_squares_in_disparity_by_hand():
    depth_m = np.array([[1.0, 2.0, 4.0, 8.0]])
    relative = (1.1 - 1 / depth_m) / 2  # increases with distance: the scale comes out negative
    found = align(relative, depth_m, np.ones((1, 4), bool), "disparity")
    assert (found.scale, found.shift) == pytest.approx((-2.0, 1.1))
    np.testing.assert_allclose(found.depth_m, depth_m, rtol=1e-6)
    # Where the predicted disparity is 0, farthest away, it is not fitted; disparities below 0.001 1/m become 1000 m.
    odd = align(np.array([[1.0, 0.75, 0.5, 0.0]]), np.array([[0.1, 4.0, 2.0, 1.0]]), np.ones((1, 4), bool), "disparity")
    assert (odd.scale, odd.shift) == pytest.approx((-1.0, 1.0))
    np.testing.assert_allclose(odd.depth_m, [[1000.0, 4.0, 2.0, 1.0]], rtol=1e-5)
    with pytest.raises(Unusable, match="no valid pixel"):
        align(np.ones((1, 4)), depth_m, np.ones((1, 4), bool), "disparity")


def test_least_squares_in_log_depth_by_hand():
    depth_m = np.exp(np.array([[0.0, 1.0, 2.0]]))
    found = align(np.array([[0.0, 0.5, 1.0]]), depth_m, np.ones((1, 3), bool), "log_depth")
    np.testing.assert_allclose(found.depth_m, depth_m, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4032, 6048), (60, 40), (7, 30), (10, 10)])
def test_the_fit_of_large_maps_leaves_out_the_columns_that_the_published_code_does(shape):
    factor = float(np.min(12 / np.array(shape)))
    columns = torch.arange(float(shape[1])).expand(1, 2, -1)
    expected = torch.nn.Upsample(scale_factor=factor, mode="nearest")(columns)[0, 0] if factor < 1 else columns[0, 0]
    np.testing.assert_array_equal(fitted_columns(shape, 12), expected.numpy().astype(int))
    assert len(fitted_columns(shape, 0)) == shape[1]


def test_predictions_are_clipped_to_the_range_of_the_dataset_after_the_alignment():
    frame = frame_of([2.0, 4.0, 6.0, 12.0], np.array([[True, True, True, False]]))
    relative = np.array([[0.0, 0.25, 0.5, 2.0]])
    nyu, diode = protocol_of("depth", "nyuv2"), protocol_of("depth", "diode")
    np.testing.assert_allclose(depth.metric_depth(frame, relative, "depth", nyu), [[2, 4, 6, 10]], rtol=1e-5)
    metres = np.array([[-1.0, 0.0, 0.5, 400.0]], np.float32)
    np.testing.assert_allclose(depth.metric_depth(frame, metres, "none", nyu), [[1e-3, 1e-3, 0.5, 10]])
    np.testing.assert_allclose(depth.metric_depth(frame, metres, "none", diode), [[0.6, 0.6, 0.6, 350]])


def test_kitti_is_cropped_first_and_masked_then():
    # Of 375x1242: 375 - 352 = 23 rows above, (1242 - 1216) / 2 = 13 columns left. Of the crop count rows
    # int(.3324324 * 352) = 117 to int(.91351351 * 352) = 321 and columns int(.0359477 * 1216) = 43 to 1172.
    rows, columns = np.mgrid[:375, :1242]
    cropped = kitti_crop(np.stack([rows, columns], axis=2))
    assert cropped.shape[:2] == (352, 1216)
    assert tuple(cropped[0, 0]) == (23, 13)
    area = evaluated_area(cropped.shape[:2], "eigen_kitti")
    kept = cropped[area]
    assert (kept[:, 0].min(), kept[:, 0].max() + 1) == (23 + 117, 23 + 321)
    assert (kept[:, 1].min(), kept[:, 1].max() + 1) == (13 + 43, 13 + 1172)
    assert kitti_crop(np.zeros((370, 1224))).shape == (352, 1216)
    with pytest.raises(Unusable, match="which is less than KITTI's benchmark"):
        kitti_crop(np.zeros((375, 1000)))


def test_nyuv2_is_measured_in_eigens_crop():
    area = evaluated_area((480, 640), "eigen_nyu")
    assert area.sum() == 426 * 560
    assert area[45, 41]
    assert area[470, 600]
    assert not area[44, 41]
    assert not area[471, 600]
    assert not area[45, 40]
    assert not area[470, 601]


# Normals


def turned(degrees):
    """Unit vectors that stand at these angles to (0, 0, -1)."""
    angle = np.radians(np.atleast_1d(degrees))
    return np.stack([np.sin(angle), np.zeros_like(angle), -np.cos(angle)], axis=1)[None]


def test_normals_measures_of_a_hand_worked_case():
    found = normals.measure(turned([0.0, 6.0, 10.0, 20.0, 90.0]), normals_frame(turned([0.0] * 5) * 3))
    assert found["mean"] == pytest.approx(25.2)
    assert found["median"] == pytest.approx(10.0)
    assert found["rmse"] == pytest.approx(np.sqrt((36 + 100 + 400 + 8100) / 5))
    assert [found[f"a{limit}"] for limit in ("5", "7.5", "11.25", "22.5", "30")] == pytest.approx([20, 40, 60, 80, 80])


def test_angles_agree_with_scikit_learn():
    rng = np.random.default_rng(2)
    p, g = rng.normal(size=(2, 12, 20, 3))
    valid = rng.random((12, 20)) < 0.5
    angles = normals.angles_deg(p, normals_frame(g, valid))
    cosine = 1 - sklearn.metrics.pairwise.paired_cosine_distances(p[valid], g.astype(np.float32)[valid])
    np.testing.assert_allclose(angles, np.degrees(np.arccos(cosine)), atol=1e-4)


def test_dsine_pools_pixels_and_marigold_averages_images():
    rng = np.random.default_rng(3)
    few, many = rng.uniform(0, 20, 10), rng.uniform(10, 80, 1000)
    images = [normals.measure(turned(part), normals_frame(turned(np.zeros_like(part)))) for part in (few, many)]
    by_image, pooled = (normals.averaged(images, way) for way in (False, True))
    both = np.concatenate([few, many])
    assert by_image["mean"] == pytest.approx((few.mean() + many.mean()) / 2, abs=1e-4)
    assert by_image["median"] == pytest.approx((np.median(few) + np.median(many)) / 2, abs=1e-4)
    assert pooled["mean"] == pytest.approx(both.mean(), abs=1e-4)
    assert pooled["median"] == pytest.approx(np.median(both), abs=0.1)  # between two of 1010 angles
    assert pooled["rmse"] == pytest.approx(np.sqrt((both**2).mean()), abs=1e-4)
    assert pooled["a22.5"] == pytest.approx(100 * (both < 22.5).mean())


def test_the_pooled_median_is_exact_to_a_hundredth_of_a_degree():
    angles = np.random.default_rng(4).gamma(2.0, 8.0, (4, 50_000)).clip(0, 179)
    images = [normals.measure(turned(part), normals_frame(turned(np.zeros_like(part)))) for part in angles]
    assert normals.averaged(images, True)["median"] == pytest.approx(np.median(angles), abs=0.01)


def test_opposite_normals_are_180_degrees_and_no_prediction_is_90():
    truth = normals_frame(turned([0.0, 0.0]))
    found = normals.angles_deg(np.array([[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]]), truth)
    np.testing.assert_allclose(found, [180.0, 90.0])
    assert normals.averaged([normals.measure(turned([180.0]), normals_frame(turned([0.0])))], True)["median"] > 179.9


def test_colours_are_stretched_as_dsines_loader_and_the_evaluation_do():
    rgb = np.array([[[10, 20, 30], [200, 100, 50]]], np.uint8)
    x = (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = ((x - x.min()) / (x.max() - x.min()) * 255).astype(np.uint8)
    np.testing.assert_allclose(normals.stretched(rgb).astype(int), expected, atol=1)
    np.testing.assert_array_equal(normals.stretched(np.zeros((2, 2, 3), np.uint8)).shape, (2, 2, 3))


# Intrinsic images


def test_psnr_and_ssim_agree_with_scikit_image_and_torchmetrics():
    rng = np.random.default_rng(5)
    g = rng.random((40, 50, 3))
    p = np.clip(g + rng.normal(0, 0.1, g.shape), 0, 1)
    assert intrinsics.psnr(p, g) == pytest.approx(peak_signal_noise_ratio(g, p, data_range=1.0))
    as_torchmetrics = PeakSignalNoiseRatio(data_range=1.0)(torch.from_numpy(p), torch.from_numpy(g))
    assert intrinsics.psnr(p, g) == pytest.approx(float(as_torchmetrics), abs=1e-4)
    reference = structural_similarity(
        g, p, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert intrinsics.ssim(p, g) == pytest.approx(reference, abs=5e-3)  # they differ in what they do at the border
    assert intrinsics.ssim(g, g) == pytest.approx(1.0)
    assert intrinsics.psnr(np.full((2, 2), 0.5), np.full((2, 2), 0.4)) == pytest.approx(20.0)  # 10 log10(1 / 0.01)


def test_up_to_scale_targets_are_fitted_and_exposed():
    # Prediction (1, 2) to truth (2, 6): scale (2 + 12) / (1 + 4) = 2.8.
    predicted, truth = (np.array(pair, float).reshape(1, 2, 1).repeat(3, axis=2) for pair in ((1, 2), (2, 6)))
    p, g = intrinsics.exposed(predicted, truth, None)
    exposure = 0.8 / (2 + 0.9 * 4)  # the 90th percentile of brightness 2 and 6 is 5.6
    np.testing.assert_allclose(g[0, :, 0], [2 * exposure, 6 * exposure])
    np.testing.assert_allclose(p[0, :, 0], [2.8 * exposure, 5.6 * exposure])
    # What does not count has no say; a black truth stays black.
    valid = np.array([[True, False]])[..., None].repeat(3, axis=2)
    p, g = intrinsics.exposed(predicted, truth, valid)
    np.testing.assert_allclose(g[0, :, 0], [0.8, 1.0])
    np.testing.assert_allclose(p[0, :, 0], [0.8, 1.0])
    assert not intrinsics.exposed(predicted, np.zeros_like(truth), None)[1].any()


def test_the_scale_of_shading_does_not_matter_and_that_of_albedo_does():
    rng = np.random.default_rng(6)
    images = {name: rng.uniform(0.1, 1, (16, 16, 3)) for name in ("albedo", "shading", "residual")}
    frame = IntrinsicsFrame(
        np.zeros((16, 16, 3), np.uint8), images, {name: np.ones((16, 16, 3), bool) for name in images}
    )
    protocol = protocol_of("intrinsics", "hypersim")
    noisy = {name: np.clip(image + rng.normal(0, 0.05, image.shape), 0, 1) for name, image in images.items()}
    found = intrinsics.measure(noisy, frame, protocol)
    darker = intrinsics.measure({name: image / 2 for name, image in noisy.items()}, frame, protocol)
    for measure in ("psnr", "ssim"):
        assert darker[f"{measure}_shading"] == pytest.approx(found[f"{measure}_shading"])
    assert darker["psnr_albedo"] < found["psnr_albedo"] - 1
    # Albedo is linear in the files, and compared in sRGB.
    expected = intrinsics.psnr(noisy["albedo"] ** (1 / 2.2), images["albedo"] ** (1 / 2.2))
    assert found["psnr_albedo"] == pytest.approx(expected)
    assert found["lpips_albedo"] is None


def test_pixels_without_truth_do_not_count_for_psnr_and_are_black_for_ssim():
    rng = np.random.default_rng(7)
    truth = rng.uniform(0.2, 1, (16, 16, 3))
    valid = np.ones((16, 16, 3), bool)
    valid[:8] = False
    images = {"albedo": truth, "shading": truth, "residual": truth}
    frame = IntrinsicsFrame(np.zeros((16, 16, 3), np.uint8), images, {name: valid for name in images})
    predicted = {name: np.where(valid, np.clip(truth + 0.01, 0, 1), 0.9) for name in images}
    protocol = protocol_of("intrinsics", "hypersim")
    found = intrinsics.measure(predicted, frame, protocol)
    p, g = (image ** (1 / 2.2) for image in (predicted["albedo"], truth))
    assert found["psnr_albedo"] == pytest.approx(intrinsics.psnr(p[8:], g[8:]))
    black = np.zeros((8, 16, 3))
    assert found["ssim_albedo"] == pytest.approx(
        intrinsics.ssim(np.concatenate([black, p[8:]]), np.concatenate([black, g[8:]]))
    )


def test_lpips_is_used_where_it_can_be_had_and_missing_where_not():
    images = {"albedo": np.full((16, 16, 3), 0.5), "material": np.full((16, 16, 3), 0.5)}
    frame = IntrinsicsFrame(np.zeros((16, 16, 3), np.uint8), images)
    protocol = protocol_of("intrinsics", "interiorverse")
    found = intrinsics.measure(images, frame, protocol, lambda p, g: float(np.abs(p - g).mean()) + 0.25)
    assert found["lpips_albedo"] == 0.25
    without = intrinsics.measure(images, frame, protocol)
    averaged = intrinsics.averaged([found, without], protocol)
    assert averaged["lpips_albedo"] is None
    assert averaged["ssim_albedo"] == pytest.approx(1.0)


# The table of protocols


def test_the_counts_are_the_published_ones():
    def counts(*which):
        return {name: protocol.images for name, protocol in protocols(*which).items()}

    assert counts("depth") == {"nyuv2": 654, "kitti": 652, "eth3d": 454, "scannet": 800, "diode": 771}
    assert counts("normals", DSINE) == {"nyuv2": 654, "scannet": 300, "ibims": 100, "sintel": 1064}
    expected = {"nyuv2": 654, "scannet": 300, "ibims": 100, "diode": 771, "oasis": 9999}
    assert counts("normals", MARIGOLD) == expected
    assert counts("intrinsics") == {"interiorverse": 2672, "hypersim": 5238}


def test_unknown_datasets_are_named_with_those_that_are_known():
    with pytest.raises(Unusable, match="--on kitty: no such dataset for depth; give some of nyuv2, kitti, eth3d"):
        protocol_of("depth", "kitty")
    with pytest.raises(Unusable, match=r"oasis.*--protocol marigold has it"):
        protocol_of("normals", "oasis")


def test_published_rows_are_those_of_the_paper():
    rows = {(row.method, row.steps, row.ensemble): row.values for row in published("depth")}
    e2e = {
        "nyuv2": (5.2, 96.6),
        "kitti": (9.6, 91.9),
        "eth3d": (6.2, 95.9),
        "scannet": (5.8, 96.2),
        "diode": (30.2, 77.9),
    }
    assert rows["Marigold + E2E", "1", "1"] == e2e
    assert rows["Marigold v1-0", "50", "10"]["kitti"] == (9.9, 91.6)
    assert "scannet" not in rows["Depth Anything", "", ""]
    rows = {row.method: row.values for row in published("normals")}
    assert rows["SD2 + E2E"] == {
        "nyuv2": (16.5, 60.4),
        "scannet": (14.7, 66.1),
        "ibims": (16.1, 69.7),
        "sintel": (33.5, 22.3),
    }
    assert published("intrinsics") == ()
