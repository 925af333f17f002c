"""Evaluation by the published protocols, on small folders in the published layouts: numbers worked out by hand."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from family_checkpoints import FAMILY, write_family_checkpoint
from marigold_ros.checkpoints import describe
from marigold_ros.config import Unusable
from published_layouts import (
    code,
    write_diode,
    write_eth3d,
    write_hypersim,
    write_image,
    write_interiorverse,
    write_kitti,
    write_list,
    write_normals,
    write_nyuv2,
    write_png16,
    write_scannet,
)
from small_checkpoint import edit_json, make_metric, write_small_checkpoint
from trainer.__main__ import main
from trainer.evaluation import run as evaluation
from trainer.evaluation.command import _parser
from trainer.evaluation.dataset import open_dataset
from trainer.evaluation.predictors import (
    EstimatorPredictor,
    How,
    PipelinePredictor,
    Prediction,
    fitted_size,
    load_predictor,
    rounded_size,
    usual_size,
)
from trainer.evaluation.protocols import DSINE, MARIGOLD, protocol_of
from trainer.evaluation.run import Options, Place, evaluate
from trainer.evaluation.scores import ScoreWriter, images_of, keep_settings, read_scores
from trainer.evaluation.tasks import DepthTask

PROJECT = Path(__file__).resolve().parent.parent
ROWS = {row.name: row for row in FAMILY}


class Reads:
    """Stands for a network that answers what the test wrote into the image, see `published_layouts.code`."""

    description = "stand-in"

    def __init__(self, task="depth", scale=1.0):
        self.task, self.scale = task, scale
        self.asked, self.focal_px = 0, None

    def __call__(self, rgb, resolution, seed, focal_px=None):
        self.asked += 1
        self.focal_px = focal_px
        values = rgb[..., 0] / np.float32(255) * np.float32(self.scale)
        if self.task == "normals":
            values = rgb / np.float32(127.5) - 1
        return Prediction({self.task: values}, (rgb.shape[1], rgb.shape[0]))

    def close(self):
        pass


def about(task="depth", space="depth", metric=None, targets=()):
    """What a checkpoint says of itself."""
    kind = SimpleNamespace(task=task, steps=1, targets=targets or (task,), single_step=None)
    return SimpleNamespace(name="stand-in", digest="0123456789abcdef", kind=kind, space=space, metric=metric)


def results(out, name):
    return json.loads((out / "results.json").read_text())["datasets"][name]


def measured(tmp_path, name, info=None, predictor=None, **options):
    """The results of a run on one dataset below tmp_path."""
    options = {"out": tmp_path / "out", "limit": 9, **options}
    predictor = predictor or Reads()
    text = evaluate(info or about(), Options(on=(name,), data=tmp_path, **options), lambda: predictor)
    return results(options["out"], name), text


# (0, 1, 3) / 3 and (0, 3, 3) / 3, exact in steps of 1/255; their best lines on depths (1, 2, 4) are these depths and
# (1, 3, 3): AbsRel 0 and (0 + 1/2 + 1/4) / 3 = 0.25, delta1 1 and 1/3.
STRAIGHT, BENT = np.array([[0.0, 1.0, 3.0]]) / 3, np.array([[0.0, 3.0, 3.0]]) / 3
DEPTHS = np.array([[1.0, 2.0, 4.0]])


# Depth, dataset by dataset


def test_nyuv2_by_hand(tmp_path):
    write_nyuv2(tmp_path, [STRAIGHT, BENT], [DEPTHS, DEPTHS])
    found, text = measured(tmp_path, "nyuv2")
    assert found["measures"]["abs_rel"] == pytest.approx((0 + 0.25) / 2, abs=1e-6)
    assert found["measures"]["delta1"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["measures"]["rmse_m"] == pytest.approx(np.sqrt(2 / 3) / 2, abs=1e-6)
    assert "| **stand-in (this run)** | 1 | 1 | 12.5 | 66.7 |" in text
    assert "NYUv2 (2 images only) AbsRel %" in text
    assert found["pictures"]["worst"]["image"] == "test/kitchen_0004/rgb_0002.png"
    assert (tmp_path / "out" / "nyuv2" / "worst.png").is_file()


def test_nyuv2_leaves_out_what_lies_outside_of_eigens_crop_or_of_the_range(tmp_path):
    write_nyuv2(tmp_path, [np.array([[0, 85, 255, 9, 9]]) / 255], [np.array([[1.0, 2.0, 4.0, 10.0, 0.001]])])
    folder = tmp_path / "nyuv2" / "nyu_labeled_extracted" / "test" / "kitchen_0004"
    depth_mm = np.zeros((480, 640))
    depth_mm[45, 41:46] = 1000, 2000, 4000, 10000, 1
    depth_mm[44, 41], depth_mm[471, 50], depth_mm[50, 40], depth_mm[50, 601] = 9000, 9000, 9000, 9000
    write_png16(folder / "depth_0001.png", depth_mm)
    found, _ = measured(tmp_path, "nyuv2")
    assert found["measures"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert read_scores(tmp_path / "out" / "nyuv2")[0]["scores"]["pixels"] == 3


def test_kitti_by_hand_is_cropped_then_masked(tmp_path):
    relative, depth_m = np.zeros((2, 375, 1242))
    relative[200, 100:103], depth_m[200, 100:103] = BENT, DEPTHS
    # The corners of what counts, in the whole image; one pixel farther out nothing counts.
    inside = [(140, 56), (140, 1184), (343, 56), (343, 1184)]
    outside = [(139, 56), (140, 55), (344, 1184), (343, 1185)]
    for row, column in inside:
        relative[row, column], depth_m[row, column] = 0.0, 1.0
    for row, column in outside:
        relative[row, column], depth_m[row, column] = 0.0, 40.0
    depth_m[250, 600] = 80.0  # not nearer than 80 m
    write_kitti(tmp_path, [relative], [depth_m])
    found, _ = measured(tmp_path, "kitti")
    scores = read_scores(tmp_path / "out" / "kitti")[0]["scores"]
    assert scores["pixels"] == 7
    assert found["images"] == found["of"] == 1  # the line without truth is no image
    # Least squares on five times 1 at 0, and 2 and 4 at 1: 1 at 0 and 3 at 1.
    assert found["measures"]["abs_rel"] == pytest.approx((1 / 2 + 1 / 4) / 7, abs=1e-6)
    assert found["working_sizes"] == {"1216x352": "1216x352"}


def test_eth3d_by_hand(tmp_path, monkeypatch):
    small = dataclasses.replace(protocol_of("depth", "eth3d"), size=(8, 6), alignment_px=4)
    monkeypatch.setattr(evaluation, "protocol_of", lambda *_: small)
    relative, depth_m = np.zeros((6, 8)), np.full((6, 8), np.inf)
    # Of eight columns the fit sees 0, 2, 4, 6.
    relative[2, 0:6:2], depth_m[2, 0:6:2] = STRAIGHT, DEPTHS
    relative[2, 1], depth_m[2, 1] = 1.0, 8.0  # predicted 4, not fitted but measured
    write_eth3d(tmp_path, [relative], [depth_m])
    found, _ = measured(tmp_path, "eth3d")
    assert found["measures"]["abs_rel"] == pytest.approx(0.5 / 4, abs=1e-6)
    assert found["resolution"] == 756


def test_eth3d_files_have_the_published_size(tmp_path):
    write_eth3d(tmp_path, [np.zeros((6, 8))], [np.ones((6, 8))])
    with pytest.raises(Unusable, match=r"DSC_0000\.JPG: has 192 bytes; 6048x4032 float32 values are 97542144"):
        measured(tmp_path, "eth3d")


def test_scannet_by_hand(tmp_path):
    write_scannet(tmp_path, [np.hstack([BENT, [[0.2]]])], [np.hstack([DEPTHS, [[10.0]]])])
    found, _ = measured(tmp_path, "scannet")
    assert found["measures"]["abs_rel"] == pytest.approx(0.25, abs=1e-6)


def test_diode_counts_what_its_mask_says_and_clips_to_its_range(tmp_path):
    depth_m = np.array([[0.3, 1.3, 2.3, 2.0]])  # the first is nearer than 0.6 m and counts all the same
    relative = np.array([[0.0, 0.5, 1.0, 0.0]]) * 254 / 255
    write_diode(tmp_path, [relative], [depth_m], [np.array([[1, 1, 1, 0]])])
    found, _ = measured(tmp_path, "diode")
    # The line is exact; its 0.3 m is clipped to 0.6 m.
    assert found["measures"]["abs_rel"] == pytest.approx((1 + 0 + 0) / 3, abs=1e-5)


def test_pooled_means_weigh_pixels(tmp_path):
    write_nyuv2(tmp_path, [np.hstack([STRAIGHT, STRAIGHT, STRAIGHT]), BENT], [np.hstack([DEPTHS] * 3), DEPTHS])
    found, text = measured(tmp_path, "nyuv2", mean="pooled")
    assert found["measures"]["abs_rel"] == pytest.approx(0.25 * 3 / 12, abs=1e-6)
    assert "published numbers are means over images" in text
    # Another mean needs no new scores.
    silent = Reads()
    found, _ = measured(tmp_path, "nyuv2", predictor=silent, mean="image")
    assert found["measures"]["abs_rel"] == pytest.approx(0.125, abs=1e-6)
    assert silent.asked == 0


def test_depth_is_aligned_in_the_checkpoints_own_space_or_as_asked(tmp_path):
    disparity = np.array([[255, 204, 51]]) / 255
    depth_m = 1 / (1.2 - disparity)  # affine in inverse depth: 5, 2.5, 1 m
    write_scannet(tmp_path, [disparity], [depth_m])
    found, text = measured(tmp_path, "scannet", about(space="inverse_depth"))
    assert found["alignment"] == "disparity"
    assert found["measures"]["abs_rel"] == pytest.approx(0, abs=1e-3)
    assert "This run: least squares in disparity; `--align depth` gives what the published rows show." in text
    with pytest.raises(Unusable, match="holds scores with alignment='disparity', asked for is 'depth'"):
        measured(tmp_path, "scannet", about(space="inverse_depth"), align="depth")
    found, text = measured(tmp_path, "scannet", about(space="inverse_depth"), align="depth", out=tmp_path / "depth")
    assert found["measures"]["abs_rel"] > 0.05
    assert "This run" not in text


def test_metric_checkpoints_are_measured_without_alignment(tmp_path):
    write_scannet(tmp_path, [np.array([[51, 102, 204]]) / 255], [np.array([[1.0, 2.0, 5.0]])])
    metric = Reads(scale=5.0)  # 1, 2 and 4 m
    found, text = measured(tmp_path, "scannet", about(metric=(0.1, 80.0)), metric)
    assert metric.focal_px == 577.87
    assert found["alignment"] == "none"
    assert found["measures"]["abs_rel"] == pytest.approx(0.2 / 3, abs=1e-6)
    assert "no alignment" in text
    with pytest.raises(Unusable, match=r"--align none: checkpoint 'stand-in' gives relative depth without a scale"):
        measured(tmp_path, "scannet", about(), align="none")


def test_a_metric_checkpoint_is_told_the_focal_length_of_each_image(tmp_path):
    write_kitti(tmp_path, [np.zeros((375, 1242))], [np.full((375, 1242), 5.0)])
    metric = Reads()
    measured(tmp_path, "kitti", about(metric=(0.1, 80.0)), metric)
    assert metric.focal_px == 721.5377
    with pytest.raises(Unusable, match="holds scores with focal_px=None, asked for is 600"):
        measured(tmp_path, "kitti", about(metric=(0.1, 80.0)), metric, focal_px=600.0)
    measured(tmp_path, "kitti", about(), metric, out=tmp_path / "relative")
    assert metric.focal_px is None  # aligned, it is asked for relative depth
    rgb = next((tmp_path / "kitti").rglob("*image_02/data/*.png")).relative_to(tmp_path / "kitti")
    write_list(tmp_path / "kitti" / "eigen_test_files_with_gt.txt", [f"{rgb} {rgb} far"])
    with pytest.raises(Unusable, match="focal length 'far' is no number"):
        measured(tmp_path, "kitti")
    write_list(tmp_path / "kitti" / "eigen_test_files_with_gt.txt", [f"{rgb} {rgb}"])
    dataset = open_dataset(protocol_of("depth", "kitti"), tmp_path, limit=1)
    with pytest.raises(Unusable, match="has no focal length; give --focal-px"):
        DepthTask(dataset, "none").focal_px(dataset.items[0])


def test_metres_come_from_the_estimator_with_the_focal_length(monkeypatch):
    class Metric:
        any_size, engine = True, "stand-in"
        size = None

        def use_size(self, *size):
            self.size = size

        def depth_m(self, rgb, focal_px):
            return np.full(rgb.shape[:2], focal_px, np.float32)

        def working_size(self, width, height, focal_px):
            return self.size or (width // 2, height // 2)

    monkeypatch.setattr("trainer.evaluation.predictors.load_estimator", lambda config: Metric())
    info = SimpleNamespace(
        name="metric", folder="metric", multiple=32, kind=SimpleNamespace(task="depth"), metric="any"
    )
    predictor = EstimatorPredictor(info, How(size="checkpoint"))
    answer = predictor(np.zeros((64, 96, 3), np.uint8), 0, 0, 500.0)
    assert answer.working_size == (48, 32)
    assert (answer.values["depth"] == 500).all()


# Normals


LEFT_WALL, FLOOR, FACING = (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0)  # in the optical frame


def surfaces(*normals):
    return np.array([normals], float)


def encoded(normals):
    return np.round((normals + 1) * 127.5).astype(np.uint8)


@pytest.mark.parametrize(
    ("protocol", "name"),
    [(DSINE, name) for name in ("nyuv2", "scannet", "ibims", "sintel")]
    + [(MARIGOLD, name) for name in ("nyuv2", "scannet", "ibims", "diode", "oasis")],
)
def test_normals_by_hand(tmp_path, protocol, name, monkeypatch):
    monkeypatch.setattr("trainer.evaluation.normals.stretched", lambda rgb: rgb)  # it would change what Reads reads
    unknown = (0.0, 0.0, 0.0)
    truth = [surfaces(LEFT_WALL, FLOOR, FACING, unknown), surfaces(FACING, unknown, unknown, unknown)]
    seen = [encoded(surfaces(LEFT_WALL, FLOOR, FACING, FLOOR)), encoded(surfaces(FLOOR, FLOOR, FLOOR, FLOOR))]
    write_normals(tmp_path, name, protocol, seen, truth)
    found, _ = measured(tmp_path, name, about("normals"), Reads("normals"), normals=protocol)
    # Angles 0, 0, 0 and 90: by pixels a mean of 22.5, by images of 45. 8 bits are good for half a degree.
    pooled = protocol == DSINE
    assert found["measures"]["mean"] == pytest.approx(22.5 if pooled else 45.0, abs=0.5)
    assert found["measures"]["a11.25"] == pytest.approx(75.0 if pooled else 50.0)
    assert found["mean"] == ("pooled" if pooled else "image")
    assert [entry["scores"]["pixels"] for entry in read_scores(tmp_path / "out" / name).values()] == [3, 1]


def test_both_protocols_can_be_averaged_the_other_way(tmp_path):
    truth, seen = [surfaces(FACING, FACING), surfaces(FACING)], [surfaces(FACING, FACING), surfaces(FLOOR)]
    write_normals(tmp_path, "ibims", MARIGOLD, [encoded(n) for n in seen], truth)
    options = {"normals": MARIGOLD, "info": about("normals"), "predictor": Reads("normals")}
    assert measured(tmp_path, "ibims", **options, mean="pooled")[0]["measures"]["mean"] == pytest.approx(30, abs=0.5)
    assert measured(tmp_path, "ibims", **options, mean="image")[0]["measures"]["mean"] == pytest.approx(45, abs=0.5)


# Intrinsic images


class Tells:
    """Stands for a network of intrinsic images that answers the same for every image."""

    description = "stand-in"

    def __init__(self, values):
        self.values = values

    def __call__(self, rgb, resolution, seed, focal_px=None):
        return Prediction(self.values, (rgb.shape[1], rgb.shape[0]))

    def close(self):
        pass


def flat(value):
    return np.full((16, 16, 3), value, np.float32)


def test_interiorverse_by_hand(tmp_path):
    material = np.stack([flat(0.5)[..., 0], flat(0.25)[..., 0], flat(0.9)[..., 0]], axis=2)  # blue means nothing
    write_interiorverse(tmp_path, [{"im": flat(0.25), "albedo": flat(0.5), "material": material}])
    predicted = np.stack([flat(0.6)[..., 0], flat(0.25)[..., 0], flat(0)[..., 0]], axis=2)
    tells = Tells({"albedo": flat(0.5) ** (1 / 2.2) + np.float32(0.01), "material": predicted ** (1 / 2.2)})
    found, text = measured(tmp_path, "interiorverse", about("intrinsics", targets=("albedo", "material")), tells)
    # Albedo is compared in sRGB, off by 0.01: 40 dB. Material in linear values, red off by 0.1: 0.01 / 3.
    assert found["measures"]["psnr_albedo"] == pytest.approx(40, abs=0.01)
    assert found["measures"]["psnr_material"] == pytest.approx(-10 * np.log10(0.01 / 3), abs=0.01)
    assert found["measures"]["lpips_albedo"] is None or found["measures"]["lpips_albedo"] >= 0
    if found["measures"]["lpips_albedo"] is None:
        assert "LPIPS is missing (" in text
    assert "| PSNR ALBEDO | SSIM ALBEDO |" in text


def test_hypersim_by_hand(tmp_path):
    albedo = flat(0.5)
    albedo[:4] = 0.0  # black all over: not known
    shading, residual = flat(1.0), flat(0.25)
    shading[:, :8] = 0.5
    shading[8, 8] = 50.0  # cut off at the 98th percentile, 1.0
    image = {"rgb": np.zeros((16, 16, 3), np.uint8), "albedo": albedo, "shading": shading, "residual": residual}
    write_hypersim(tmp_path, [image])
    seen = flat(0.2)  # of shading a fifth everywhere
    tells = Tells({"albedo": flat(0.5), "shading": seen, "residual": flat(0.7)})
    found, _ = measured(tmp_path, "hypersim", about("intrinsics", targets=("albedo", "shading", "residual")), tells)
    # Shading 1 and 0.5, half each, is fitted by 0.75; exposed by 0.8 both are off by 0.2.
    assert found["measures"]["psnr_shading"] == pytest.approx(-20 * np.log10(0.2), abs=0.01)
    assert found["measures"]["psnr_albedo"] == np.inf
    assert found["measures"]["psnr_residual"] > 100


def test_a_checkpoint_of_other_targets_is_refused(tmp_path):
    write_hypersim(
        tmp_path,
        [{"rgb": code(np.zeros((8, 8))), **{k: np.ones((8, 8, 3)) for k in ("albedo", "shading", "residual")}}],
    )
    with pytest.raises(
        Unusable,
        match="--on hypersim: has albedo and shading and residual, checkpoint 'stand-in' gives albedo and material",
    ):
        measured(tmp_path, "hypersim", about("intrinsics", targets=("albedo", "material")), Tells({}))


def test_normals_in_the_other_frame_are_noticed(tmp_path):
    walls = surfaces(LEFT_WALL, (-1.0, 0.0, 0.0), FACING)
    write_normals(tmp_path, "ibims", MARIGOLD, [encoded(walls * (-1, 1, 1))], [walls])
    options = {"normals": MARIGOLD, "info": about("normals"), "predictor": Reads("normals")}
    text = measured(tmp_path, "ibims", **options)[1]
    assert "with x negated the mean would be 0." in text
    assert "normals_x in its marigold_ros.json" in text


# Lists, counts, files


def test_kitti_has_652_images_of_697_lines(tmp_path):
    lines = [f"rgb/{n}.png {'None' if n < 45 else f'depth/{n}.png'} 721.5377" for n in range(697)]
    write_list(tmp_path / "kitti" / "eigen_test_files_with_gt.txt", lines)
    dataset = open_dataset(protocol_of("depth", "kitti"), tmp_path)
    assert len(dataset.items) == 652
    assert dataset.complete
    write_list(tmp_path / "kitti" / "eigen_test_files_with_gt.txt", lines[:600])
    with pytest.raises(
        Unusable, match="has 555 images, 45 more have no truth; the published numbers of KITTI Eigen rest on 652"
    ):
        open_dataset(protocol_of("depth", "kitti"), tmp_path)
    assert len(open_dataset(protocol_of("depth", "kitti"), tmp_path, limit=10).items) == 10


def test_a_run_on_too_few_images_is_refused_unless_limited(tmp_path):
    write_scannet(tmp_path, [STRAIGHT], [DEPTHS])
    with pytest.raises(Unusable, match="has 1 images; the published numbers of ScanNet rest on 800"):
        measured(tmp_path, "scannet", limit=None)
    with pytest.raises(Unusable, match="--limit 0: must be at least 1"):
        measured(tmp_path, "scannet", limit=0)
    assert measured(tmp_path, "scannet", limit=1)[0]["images"] == 1


def test_archives_are_read_as_they_are_published(tmp_path):
    write_nyuv2(tmp_path, [STRAIGHT, BENT], [DEPTHS, DEPTHS])
    folder = tmp_path / "nyuv2" / "nyu_labeled_extracted"
    with tarfile.open(tmp_path / "nyuv2" / "nyu_labeled_extracted.tar", "w") as tar:
        tar.add(folder, ".")
    unpacked, _ = measured(tmp_path, "nyuv2")
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "out").rename(tmp_path / "before")
    packed, _ = measured(tmp_path, "nyuv2")
    assert packed == unpacked
    tar = tmp_path / "nyuv2" / "nyu_labeled_extracted.tar"
    tar.write_bytes(tar.read_bytes()[:-20_000])
    (tmp_path / "out").rename(tmp_path / "again")
    with pytest.raises(Unusable, match=r"archive .*nyu_labeled_extracted\.tar: cannot be read|ends within it"):
        measured(tmp_path, "nyuv2")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(Unusable, match=r"dataset ScanNet in .*: there is none of scannet/scannet_val_sampled_800_1, "):
        measured(tmp_path, "scannet")
    (tmp_path / "scannet").mkdir()
    with pytest.raises(Unusable, match=r"list of ScanNet: there is neither .*scannet_val_sampled_list_800_1.txt nor "):
        measured(tmp_path, "scannet")
    write_scannet(tmp_path, [STRAIGHT, BENT], [DEPTHS, DEPTHS])
    (tmp_path / "scannet" / "scene0406_02" / "depth" / "000001.png").unlink()
    with pytest.raises(
        Unusable, match="1 of the files that its list names are missing, the first is scene0406_02/depth/000001"
    ):
        measured(tmp_path, "scannet")
    write_list(tmp_path / "scannet" / "scannet_val_sampled_list_800_1.txt", ["scene0406_02/color/000000.png"])
    with pytest.raises(Unusable, match="has 1 words; a line of ScanNet is 'rgb depth'"):
        measured(tmp_path, "scannet")


def test_another_list_can_be_given_for_one_dataset(tmp_path):
    write_scannet(tmp_path, [STRAIGHT, BENT], [DEPTHS, DEPTHS])
    mine = tmp_path / "mine.txt"
    mine.write_text("scene0406_02/color/000001.png scene0406_02/depth/000001.png\n")
    assert measured(tmp_path, "scannet", split_file=mine)[0]["measures"]["abs_rel"] == pytest.approx(0.25, abs=1e-6)
    two = Options(on=("scannet", "nyuv2"), data=tmp_path, out=tmp_path / "two", split_file=mine)
    with pytest.raises(Unusable, match="is of one dataset"):
        evaluate(about(), two, Reads)
    with pytest.raises(Unusable, match="holds scores with list="):
        measured(tmp_path, "scannet")


def spoil(folder, kind):
    depth = folder / "scene0406_02" / "depth" / "000001.png"
    if kind == "missing":
        depth.unlink()
    elif kind == "truncated":
        rgb = folder / "scene0406_02" / "color" / "000001.png"
        rgb.write_bytes(rgb.read_bytes()[:-30])
    elif kind == "mis-sized":
        write_png16(depth, np.ones((2, 3)))
    elif kind == "8 bits":
        write_image(depth, np.zeros((1, 3), np.uint8))
    else:
        write_png16(depth, np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "are missing, the first is scene0406_02/depth/000001.png"),
        ("truncated", "000001.png: is damaged"),
        ("mis-sized", r"its depth has shape \(2, 3\), the image \(1, 3\)"),
        ("8 bits", "must be one channel of 16 bits"),
        ("no truth", "image scene0406_02/color/000001.png of ScanNet: has no pixel of known depth that counts"),
    ],
)
def test_damaged_images_are_refused_or_counted_and_left_out(tmp_path, kind, says):
    write_scannet(tmp_path, [BENT, STRAIGHT], [DEPTHS, DEPTHS])
    spoil(tmp_path / "scannet", kind)
    with pytest.raises(Unusable, match=says) as refused:
        measured(tmp_path, "scannet")
    assert "--damaged skip" in str(refused.value)
    found, text = measured(tmp_path, "scannet", damaged="skip")
    assert found["images"] == 1
    assert list(found["damaged"]) == ["scene0406_02/color/000001.png"]
    assert "1 damaged images left out, the first is scene0406_02/color/000001.png" in text
    # Skipped is not forgiven: without the option it is refused as before, and once mended it is scored.
    with pytest.raises(Unusable, match=says):
        measured(tmp_path, "scannet")
    write_scannet(tmp_path, [BENT, STRAIGHT], [DEPTHS, DEPTHS])
    found, text = measured(tmp_path, "scannet")
    assert found["images"] == 2
    assert not found["damaged"]


def test_a_dataset_with_nothing_left_is_refused(tmp_path):
    write_scannet(tmp_path, [STRAIGHT], [np.zeros((1, 3))])
    with pytest.raises(Unusable, match="all of its 1 images are damaged"):
        measured(tmp_path, "scannet", damaged="skip")


def test_answers_that_are_not_finite_are_refused(tmp_path):
    write_scannet(tmp_path, [STRAIGHT], [DEPTHS])
    with pytest.raises(Unusable, match=r"the depth that stand-in gives has shape .* and 3 values that are not finite"):
        measured(tmp_path, "scannet", predictor=Reads(scale=np.nan))


# Going on, and several processes


def noisy_scannet(data, count=7):
    rng = np.random.default_rng(0)
    write_scannet(data, list(rng.random((count, 4, 5))), list(rng.uniform(1, 9, (count, 4, 5))))


class Dies(Reads):
    """Is killed while it works on an image."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def __call__(self, *arguments):
        if self.asked == self.after:
            raise KeyboardInterrupt
        return super().__call__(*arguments)


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path):
    noisy_scannet(tmp_path)
    whole, text = measured(tmp_path, "scannet")
    (tmp_path / "out").rename(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, "scannet", predictor=Dies(after=3))
    scores = tmp_path / "out" / "scannet" / "scores.0.jsonl"
    assert len(read_scores(scores.parent)) == 3
    with scores.open("ab") as file:
        file.write(b'{"index": 3, "image": "scene04')  # killed while it wrote
    predictor = Reads()
    resumed, again = measured(tmp_path, "scannet", predictor=predictor)
    assert (resumed, again) == (whole, text)
    assert predictor.asked == 4 + 3  # four images, and three pictures
    assert (tmp_path / "out" / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()
    for picture in ("best", "median", "worst"):
        path = Path("scannet") / f"{picture}.png"
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


def test_a_finished_run_asks_the_network_for_nothing(tmp_path):
    noisy_scannet(tmp_path)
    before, _ = measured(tmp_path, "scannet")
    predictor = Reads()
    assert measured(tmp_path, "scannet", predictor=predictor)[0] == before
    assert predictor.asked == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_several_processes_share_the_images_and_the_last_makes_the_tables(tmp_path, order):
    noisy_scannet(tmp_path)
    alone, _ = measured(tmp_path, "scannet")
    options = Options(on=("scannet",), data=tmp_path, out=tmp_path / "shared", limit=9)
    for number, rank in enumerate(order):
        text = evaluate(about(), options, Reads, Place(rank, 3))
        last = number == 2
        assert ("not all images are scored yet" in text) != last
        assert (tmp_path / "shared" / "table.md").is_file() == last
    assert results(tmp_path / "shared", "scannet") == alone
    assert len(list((tmp_path / "shared" / "scannet").glob("scores.*.jsonl"))) == 3
    assert [list(images_of(rank, 3, 7)) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_run_may_go_on_with_another_number_of_processes(tmp_path):
    noisy_scannet(tmp_path)
    alone, _ = measured(tmp_path, "scannet")
    options = Options(on=("scannet",), data=tmp_path, out=tmp_path / "shared", limit=9)
    evaluate(about(), options, Reads, Place(1, 2))
    predictor = Reads()
    evaluate(about(), options, lambda: predictor)
    assert predictor.asked == 4 + 3
    assert results(tmp_path / "shared", "scannet") == alone


def test_the_environment_says_which_process_this_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Place.of_this_process() == Place(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert Place.of_this_process() == Place(2, 5)


def test_scores_of_other_settings_are_refused(tmp_path):
    noisy_scannet(tmp_path)
    measured(tmp_path, "scannet")
    other = dataclasses.replace(Options(("scannet",), tmp_path, tmp_path / "out", limit=9), how=How(ensemble=3))
    with pytest.raises(Unusable, match="holds scores with ensemble=1, asked for is 3; give another --out"):
        evaluate(about(), other, Reads)
    (tmp_path / "out" / "settings.json").write_text("{")
    with pytest.raises(Unusable, match="cannot be read"):
        measured(tmp_path, "scannet")


def test_a_dataset_may_be_added_later(tmp_path):
    noisy_scannet(tmp_path)
    measured(tmp_path, "scannet")
    write_nyuv2(tmp_path, [BENT], [DEPTHS])
    _, text = measured(tmp_path, "nyuv2")
    assert "| NYUv2 | 1 of 654 |" in text
    assert "| ScanNet | 7 of 800 |" in text
    assert text.index("NYUv2") < text.index("ScanNet")


def test_a_full_disk_is_named(tmp_path):
    keep_settings(tmp_path / "scores", {})
    writer = ScoreWriter(tmp_path / "scores", 0)
    (tmp_path / "scores" / "scores.0.jsonl").mkdir()
    with pytest.raises(Unusable, match=r"scores\.0\.jsonl: cannot be written"):
        writer.write({"index": 0})


# Checkpoints on their engines


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_small_checkpoint(tmp_path_factory.mktemp("small") / "small", "depth")


def rooms(data, count=2, size=(100, 130)):
    rng = np.random.default_rng(1)
    relatives = [np.sort(rng.random(size), axis=0) for _ in range(count)]
    write_scannet(data, relatives, [1 + 5 * r for r in relatives])


def test_sizes_are_those_of_the_protocol_rounded_to_what_the_engine_takes():
    assert fitted_size(6048, 4032, 756) == (756, 504)
    assert fitted_size(1024, 768, 640) == (640, 480)
    assert fitted_size(1000, 333, 640) == (640, 213)  # 213.12
    assert fitted_size(1216, 352, 0) == (1216, 352)
    assert rounded_size((756, 504), 32) == (768, 512)
    assert rounded_size((1216, 352), 32) == (1216, 352)
    assert rounded_size((1216, 352), 64) == (1216, 384)
    assert rounded_size((10, 10), 64) == (64, 64)


def test_a_single_step_checkpoint_runs_at_the_protocols_size_and_says_so(tmp_path, small, capsys):
    rooms(tmp_path)
    arguments = ["evaluate", "--checkpoint", str(small), "--on", "scannet", "--data", str(tmp_path), "--limit", "2"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--engine", "torch"]) == 0
    text = capsys.readouterr().out
    assert "working size 128x96 for 130x100 (protocol: the image's own size)" in text
    assert results(tmp_path / "out", "scannet")["working_sizes"] == {"130x100": "128x96"}
    assert "torch" in results(tmp_path / "out", "scannet")["engines"][0]
    assert (tmp_path / "out" / "table.md").read_text() in text
    assert main([*arguments, "--out", str(tmp_path / "out"), "--engine", "torch", "--seed", "7"]) == 2
    assert "holds scores with seed=None, asked for is 7" in capsys.readouterr().err


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    """At 0.72 of an image's size the focal length of ScanNet's camera is its canonical one."""
    folder = write_small_checkpoint(tmp_path_factory.mktemp("metric") / "metric", "log_depth")
    return make_metric(folder, canonical_focal_px=0.72 * 577.87)


def test_metres_are_compared_near_the_canonical_focal_length_unless_the_protocols_size_is_asked_for(
    tmp_path, metric, capsys
):
    rooms(tmp_path)
    arguments = ["evaluate", "--checkpoint", str(metric), "--on", "scannet", "--data", str(tmp_path), "--limit", "2"]
    arguments += ["--engine", "torch"]
    assert main([*arguments, "--out", str(tmp_path / "robot")]) == 0
    text = capsys.readouterr().out
    # 0.72 of it, by multiples of 32.
    assert "working size 96x64 for 130x100 (protocol: the image's own size, not used: it ran at" in text
    assert "the checkpoint's own, as on the robot, near its canonical focal length" in text
    assert results(tmp_path / "robot", "scannet")["working_sizes"] == {"130x100": "96x64"}
    assert main([*arguments, "--out", str(tmp_path / "protocol"), "--size", "protocol"]) == 0
    text = capsys.readouterr().out
    assert "working size 128x96 for 130x100 (protocol: the image's own size, as asked for; the robot would" in text
    measures = [results(tmp_path / out, "scannet")["measures"]["abs_rel"] for out in ("robot", "protocol")]
    assert measures[0] != measures[1]


def test_relative_checkpoints_run_at_the_protocols_size_and_metric_ones_at_their_own(small, metric):
    assert usual_size(describe(small)) == "protocol"
    assert usual_size(describe(metric)) == "checkpoint"


def test_diffusers_pipeline_sees_metric_images_near_the_canonical_focal_length(tmp_path):
    folder = write_family_checkpoint(tmp_path, ROWS["marigold-depth-v1-1"], (128, 64))
    info = describe(make_metric(folder, canonical_focal_px=400.0))
    rgb = np.random.default_rng(5).integers(0, 255, (64, 104, 3), np.uint8)
    predictor = load_predictor(info, How(steps=1, size="checkpoint"))
    near, far = predictor(rgb, 0, 1, 400.0), predictor(rgb, 0, 1, 320.0)
    assert (near.working_size, far.working_size) == ((104, 64), (128, 80))  # once and 1.25 times its size
    assert predictor(rgb, 0, 1).working_size == (128, 80)
    protocol = load_predictor(info, How(steps=1))
    assert protocol(rgb, 0, 1, 320.0).working_size == (104, 64)


def test_working_sizes_of_several_cameras_are_all_named(tmp_path):
    noisy_scannet(tmp_path)

    class Zooming(Reads):
        def __call__(self, rgb, resolution, seed, focal_px=None):
            side = 32 * (1 + self.asked % 2)
            return dataclasses.replace(super().__call__(rgb, resolution, seed), working_size=(side, 32))

    found, text = measured(tmp_path, "scannet", predictor=Zooming())
    (size,) = found["working_sizes"]
    assert found["working_sizes"][size] == "32x32 or 64x32"
    assert f"working size 32x32 or 64x32 for {size}" in text


def test_one_loaded_network_serves_images_of_all_sizes(small):
    predictor = EstimatorPredictor(describe(small), How(engine="torch"))
    answers = [predictor(np.zeros((*size, 3), np.uint8), 0, 0) for size in ((64, 96), (100, 130), (64, 96))]
    assert [answer.working_size for answer in answers] == [(96, 64), (128, 96), (96, 64)]
    assert [answer.values["depth"].shape for answer in answers] == [(64, 96), (100, 130), (64, 96)]
    np.testing.assert_array_equal(answers[0].values["depth"], answers[2].values["depth"])
    predictor.close()
    own = EstimatorPredictor(describe(small), How(engine="torch", size="checkpoint"))
    assert own(np.zeros((300, 400, 3), np.uint8), 0, 0).working_size == (128, 96)
    own.close()


def test_an_engine_of_one_size_is_loaded_again_for_another(small, monkeypatch):
    monkeypatch.setattr("marigold_ros.engines.torch_engine.TorchEngine.any_size", False)
    predictor = EstimatorPredictor(describe(small), How(engine="torch"))
    assert predictor(np.zeros((64, 96, 3), np.uint8), 0, 0).working_size == (96, 64)
    first = predictor._estimator
    with pytest.raises(Unusable, match=r"working size 128x96: engine torch .* runs 96x64 only"):
        first.use_size(128, 96)
    assert predictor(np.zeros((96, 128, 3), np.uint8), 0, 0).working_size == (128, 96)
    assert predictor._estimator is not first
    predictor.close()


@pytest.mark.parametrize(
    ("name", "dataset", "protocol"),
    [("marigold-e2e-ft-normals", "ibims", DSINE), ("marigold-normals-v1-1", "oasis", MARIGOLD)],
)
def test_normals_checkpoints_run_by_both_protocols(tmp_path, name, dataset, protocol, capsys):
    folder = write_family_checkpoint(tmp_path, ROWS[name], (128, 64))
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(2, 64, 128, 3))
    truth /= np.linalg.norm(truth, axis=3, keepdims=True)
    write_normals(tmp_path, dataset, protocol, list(rng.integers(0, 255, (2, 64, 128, 3), np.uint8)), list(truth))
    arguments = ["evaluate", "--checkpoint", str(folder), "--on", dataset, "--data", str(tmp_path), "--limit", "2"]
    options = ["--protocol", protocol, "--engine", "torch", "--size", "checkpoint", "--steps", "1"]
    assert main([*arguments, *options, "--out", str(tmp_path / "out")]) == 0
    assert 20 < results(tmp_path / "out", dataset)["measures"]["mean"] < 160
    text = capsys.readouterr().out
    assert ("| Marigold + E2E | 1 | 1 | 15.8 | 69.9 |" in text) == (protocol == DSINE)


def test_several_steps_and_members_run_on_diffusers_pipeline(tmp_path):
    info = describe(write_family_checkpoint(tmp_path, ROWS["marigold-depth-v1-1"], (128, 64)))
    how = How(steps=2, ensemble=2)
    predictor = load_predictor(info, how)
    assert isinstance(predictor, PipelinePredictor)
    rgb = np.random.default_rng(3).integers(0, 255, (60, 100, 3), np.uint8)
    first = predictor(rgb, 76, 1234)
    assert first.working_size == (72, 48)  # 76 is no multiple of 8; 43 rows are padded to 48
    np.testing.assert_array_equal(first.values["depth"], predictor(rgb, 76, 1234).values["depth"])
    assert np.abs(first.values["depth"] - predictor(rgb, 76, 4321).values["depth"]).max() > 0
    assert predictor(rgb, 0, 1).working_size == (104, 64)
    with pytest.raises(Unusable, match=r"--engine openvino: runs the one step .* 2 steps and 2 members"):
        load_predictor(info, How(engine="openvino", steps=2, ensemble=2))


def test_a_checkpoint_that_was_trained_to_start_from_noise_is_evaluated_so(tmp_path, small, capsys):
    folder = Path(shutil.copytree(small, tmp_path / "noisy"))
    edit_json(folder / "marigold_ros.json", target_input="gaussian")
    rooms(tmp_path)
    arguments = ["evaluate", "--on", "scannet", "--data", str(tmp_path), "--limit", "2", "--checkpoint"]
    found = []
    for checkpoint, out in ((folder, "noisy"), (folder, "again"), (small, "zeros")):
        assert main([*arguments, str(checkpoint), "--out", str(tmp_path / "out" / out)]) == 0
        assert (", from gaussian noise; weights" in capsys.readouterr().out) == (checkpoint == folder)
        found.append(results(tmp_path / "out" / out, "scannet")["measures"])
    assert found[0] == found[1] != found[2]
    with pytest.raises(Unusable, match=r"--engine openvino: runs the one step from zeros .* from gaussian noise"):
        load_predictor(describe(folder), How(engine="openvino"))


def test_intrinsic_images_of_a_checkpoint(tmp_path):
    folder = write_family_checkpoint(tmp_path, ROWS["marigold-iid-appearance-v1-1"], (64, 64))
    rng = np.random.default_rng(4)
    write_interiorverse(tmp_path, [{kind: rng.random((48, 64, 3)) for kind in ("im", "albedo", "material")}])
    arguments = [
        "evaluate",
        "--checkpoint",
        str(folder),
        "--on",
        "interiorverse",
        "--data",
        str(tmp_path),
        "--limit",
        "1",
    ]
    arguments += ["--out", str(tmp_path / "out"), "--steps", "1", "--size", "checkpoint"]
    assert main(arguments) == 0
    found = results(tmp_path / "out", "interiorverse")
    assert 3 < found["measures"]["psnr_albedo"] < 30
    assert found["working_sizes"] == {"64x48": "64x48"}
    assert main([*arguments, "--mean", "pooled"]) == 2


# `Reads`, but slow, and without what this file imports beside.
SLOW = """
import sys, time
import numpy as np
from pathlib import Path
from types import SimpleNamespace as About
from trainer.evaluation.predictors import Prediction
from trainer.evaluation.run import Options, Place, evaluate

class Slow:
    description = "stand-in"

    def __call__(self, rgb, resolution, seed, focal_px=None):
        time.sleep(0.1)
        return Prediction({"depth": rgb[..., 0] / np.float32(255)}, (rgb.shape[1], rgb.shape[0]))

    def close(self):
        pass

kind = About(task="depth", steps=1, targets=("depth",), single_step=None)
info = About(name="stand-in", digest="0123456789abcdef", kind=kind, space="depth", metric=None)
data = Path(sys.argv[1])
evaluate(info, Options(("scannet",), data, data / "out", limit=30), Slow, Place(0, 2))
"""


def test_a_process_ended_by_a_signal_leaves_scores_that_the_others_go_on_with(tmp_path):
    noisy_scannet(tmp_path, count=30)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path)], cwd=PROJECT, env={**os.environ, "PYTHONPATH": "."}
    )
    deadline = time.monotonic() + 120
    while len(read_scores(tmp_path / "out" / "scannet")) < 3 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= len(read_scores(tmp_path / "out" / "scannet")) < 15
    resumed = [measured_by(rank, tmp_path) for rank in (1, 0)][1]
    (tmp_path / "out").rename(tmp_path / "shared")
    assert resumed == measured(tmp_path, "scannet", limit=30)[1]
    assert (tmp_path / "out" / "results.json").read_bytes() == (tmp_path / "shared" / "results.json").read_bytes()


def measured_by(rank, data):
    return evaluate(about(), Options(("scannet",), data, data / "out", limit=30), Reads, Place(rank, 2))


def test_the_commands_of_the_documentation_are_understood():
    text = (PROJECT / "docs" / "evaluation.md").read_text()
    commands = re.findall(r"-m (?:-- )?trainer evaluate (.+)$", text, re.M)
    assert len(commands) > 8
    for command in commands:
        arguments = _parser().parse_args(command.split())
        task = next(task for task, word in TASKS.items() if word in arguments.checkpoint)
        for name in arguments.on:
            protocol_of(task, name, arguments.protocol)


# By what the checkpoints of the documentation are called.
TASKS = {"normals": "normals", "intrinsics": "iid", "depth": ""}
