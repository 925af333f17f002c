"""Readers of raw datasets against hand-worked numbers on small folders in their layouts, and the command `prepare`."""

import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

h5py = pytest.importorskip("h5py")
OpenEXR = pytest.importorskip("OpenEXR")

from marigold_ros.config import Unusable  # noqa: E402
from trainer import prepare  # noqa: E402
from trainer.__main__ import main as trainer_main  # noqa: E402
from trainer.datasets import hypersim, interiorverse, vkitti2  # noqa: E402
from trainer.datasets.catalogue import DATASETS  # noqa: E402
from trainer.datasets.conversion import resized  # noqa: E402
from trainer.datasets.depth_normals import normals_from_depth  # noqa: E402
from trainer.datasets.reading import LeftOut  # noqa: E402
from trainer.samples import Sample, SampleFolder, read_sample  # noqa: E402

PROJECT = Path(__file__).resolve().parent.parent
HEADINGS = "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name\n"


# Small folders in the published layouts


def write_hypersim(raw, number=0, light=False, **changes):
    """A frame without a fault: grey, flat at a ray distance of 2 m, facing the camera; `changes` replace its files."""
    files = {
        "color": np.full((768, 1024, 3), 0.25),
        "render_entity_id": np.ones((768, 1024), np.int32),
        "depth_meters": np.full((768, 1024), 2.0),
        "normal_cam": np.full((768, 1024, 3), (0.0, 0.0, 1.0)),
    }
    if light:
        for what, value in (("diffuse_reflectance", 0.5), ("diffuse_illumination", 0.4), ("residual", 0.05)):
            files[what] = np.full((768, 1024, 3), value)
    geometry = {"render_entity_id", "depth_meters", "normal_cam"}
    for what, values in {**files, **changes}.items():
        folder = raw / "ai_001_001/images" / f"scene_cam_00_{'geometry' if what in geometry else 'final'}_hdf5"
        folder.mkdir(parents=True, exist_ok=True)
        values = values if values.dtype == np.int32 else values.astype(np.float32)
        with h5py.File(folder / f"frame.{number:04d}.{what}.hdf5", "w") as file:
            file.create_dataset("dataset", data=values, compression="gzip", compression_opts=1)


def write_rows(raw, *rows):
    text = "".join(f"{scene},{camera},{number},{given},,{split}\n" for scene, camera, number, given, split in rows)
    (raw / hypersim.SPLITS_FILE).write_text(HEADINGS + text)


def write_vkitti2(root, scene="Scene02", variant="clone", number=0, depth=None, rgb="", depths=""):
    pictures = root / rgb / scene / variant / "frames" / "rgb" / "Camera_0"
    maps = root / depths / scene / variant / "frames" / "depth" / "Camera_0"
    for folder in (pictures, maps):
        folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(pictures / f"rgb_{number:05d}.jpg"), np.full((375, 1242, 3), (200, 100, 50), np.uint8))
    depth = np.full((375, 1242), 1234, np.uint16) if depth is None else depth
    cv2.imwrite(str(maps / f"depth_{number:05d}.png"), depth)


def write_tartanair(raw, number=0, depth=None, place="soulcity/Easy/P000"):
    folder = raw / place
    for part in ("image_left", "depth_left"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "image_left" / f"{number:06d}_left.png"), np.full((480, 640, 3), (3, 2, 1), np.uint8))
    depth = np.full((480, 640), 7.5, np.float32) if depth is None else depth
    np.save(folder / "depth_left" / f"{number:06d}_left_depth.npy", depth)


def write_exr(path, values):
    channels = {"RGB": values} if values.ndim == 3 else {"Y": values}
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def write_interiorverse(folder, number=0, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "im": np.full((48, 64, 3), 0.5),
        "albedo": np.full((48, 64, 3), (0.2, 0.4, 0.6)),
        "material": np.full((48, 64, 3), (0.3, 0.7, 0.9)),
        "normal": np.full((48, 64, 3), (0.6, 0.0, 0.8)),
        "depth": np.full((48, 64), 2500.0),
        "mask": np.ones((48, 64)),
    }
    for what, values in {**files, **changes}.items():
        write_exr(folder / f"{number:03d}_{what}.exr", np.ascontiguousarray(values, np.float32))


def write_scene(raw):
    write_interiorverse(raw / "scenes_85" / "a")


def write_sintel(raw, number=1, normals=None):
    folder = raw / "alley_2"
    folder.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((436, 1024, 3), np.uint8)
    picture[..., 0] = np.arange(1024) % 256  # blue
    picture[..., 2] = np.arange(1024) // 256  # red
    cv2.imwrite(str(folder / f"frame_{number:04d}_img.png"), picture)
    normals = np.full((436, 1024, 3), (0.0, 0.6, 0.8), np.float32) if normals is None else normals
    np.save(folder / f"frame_{number:04d}_normal.npy", normals)


def write_sintel_depth(raw, depth):
    for part in ("final", "depth", "camdata_left"):
        (raw / "training" / part / "cave_2").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(raw / "training/final/cave_2/frame_0001.png"), np.zeros((436, 1024, 3), np.uint8))
    data = np.float32(202021.25).tobytes() + np.array([1024, 436], np.int32).tobytes() + depth.tobytes()
    (raw / "training/depth/cave_2/frame_0001.dpt").write_bytes(data)
    k = np.array([[1120, 0, 511.5], [0, 1120, 217.5], [0, 0, 1.0]])
    (raw / "training/camdata_left/cave_2/frame_0001.cam").write_bytes(
        np.float32(202021.25).tobytes() + k.tobytes() + np.zeros((3, 4)).tobytes()
    )


def read_first(name, raw, maps, split="train"):
    dataset = DATASETS[name]
    return dataset.read(dataset.frames(raw, split)[0], maps)


@pytest.fixture
def indoors(tmp_path):
    """Two good Hypersim frames of one scene."""
    raw = tmp_path / "raw"
    for number in (0, 5):
        write_hypersim(raw, number=number)
    write_rows(raw, *[("ai_001_001", "cam_00", number, True, "train") for number in (0, 5)])
    return raw


@pytest.fixture
def flights(tmp_path):
    """Four good TartanAir frames."""
    for number in range(4):
        write_tartanair(tmp_path / "raw", number)
    return tmp_path / "raw"


def run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


# Hypersim


def test_hypersims_ray_distance_becomes_planar_depth(indoors):
    sample = read_first("hypersim", indoors, ["depth_m"])
    # 2 m * 886.81 / sqrt(511.5^2 + 383.5^2 + 886.81^2) in the corner, 2 m in the middle
    assert sample.name == "ai_001_001_cam_00_fr0000"
    assert sample.maps["depth_m"][[0, 0, -1, -1], [0, -1, 0, -1]] == pytest.approx([1.62237] * 4, abs=1e-5)
    assert sample.maps["depth_m"][383:385, 511:513] == pytest.approx(2, abs=1e-5)
    assert sample.k.tolist() == [[886.81, 0, 511.5], [0, 886.81, 383.5], [0, 0, 1]]


def test_hypersims_pictures_are_exposed_by_the_valid_pixels_alone(tmp_path):
    color = np.full((768, 1024, 3), 0.25)
    color[:, :512] = 0.125
    color[0, 0] = 1.0
    entity = np.ones((768, 1024), np.int32)
    color[600:], entity[600:] = 50.0, -1  # a fifth of the image, so that they would set the exposure
    write_hypersim(tmp_path, color=color, render_entity_id=entity)
    write_rows(tmp_path, ("ai_001_001", "cam_00", 0, True, "train"))
    sample = read_first("hypersim", tmp_path, ["depth_m"])
    # The 90th percentile goes to 0.8 * 255 = 204 (203 when 204 comes out a bit less, which truncation shows), half of
    # it to 0.8 * 0.5^(1/2.2) * 255 = 148.87, four times of it over the top.
    assert sample.rgb[300, 700].tolist() in ([204] * 3, [203] * 3)
    assert sample.rgb[300, 100].tolist() == [148] * 3
    assert sample.rgb[0, 0].tolist() == [255] * 3
    assert np.isnan(sample.maps["depth_m"][600:]).all()
    assert np.isfinite(sample.maps["depth_m"][:600]).all()


def test_a_black_picture_stays_black(tmp_path):
    assert hypersim.exposure(np.full((4, 3), 0.5e-4)) == 0
    assert not hypersim.developed(np.full((2, 2, 3), np.inf), 0.0).any()


def test_hypersims_normals_agree_with_its_depth(tmp_path):
    """A slanted plane, its normal in the dataset's frame (y up, z backwards), half of it facing the wrong way."""
    normal = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8])  # optical: right, up, towards the camera
    v, u = np.mgrid[:768, :1024]
    rays = np.stack([(u - 511.5) / 886.81, (v - 383.5) / 886.81, np.ones(u.shape)], -1)
    depth_m = -2.0 / (rays @ normal)
    theirs = np.broadcast_to(normal * (1, -1, -1), (768, 1024, 3)).copy()
    theirs[:384] *= -3  # wrong way round, and not of unit length
    write_hypersim(tmp_path, normal_cam=theirs, depth_meters=depth_m * np.linalg.norm(rays, axis=-1))
    write_rows(tmp_path, ("ai_001_001", "cam_00", 0, True, "train"))
    sample = read_first("hypersim", tmp_path, ["normals", "depth_m"])
    assert list(sample.maps) == ["normals", "depth_m"]
    points = sample.maps["depth_m"][..., None].astype(np.float64) * rays
    crossed = np.cross(points[8:, :-8] - points[:-8, :-8], points[:-8, 8:] - points[:-8, :-8])
    crossed /= np.linalg.norm(crossed, axis=-1, keepdims=True)
    assert np.abs(crossed - normal).max() < 1e-3
    assert np.abs(sample.maps["normals"] - normal).max() < 1e-5


@pytest.mark.parametrize("gap", [np.nan, 0.0])
def test_a_hypersim_frame_without_some_normal_is_left_out(tmp_path, gap):
    normals = np.full((768, 1024, 3), (0.0, 0.0, 1.0))
    normals[2, 3:5] = gap
    write_hypersim(tmp_path, normal_cam=normals)
    write_rows(tmp_path, ("ai_001_001", "cam_00", 0, True, "train"))
    with pytest.raises(LeftOut, match="2 pixels have no normal"):
        read_first("hypersim", tmp_path, ["normals"])
    assert np.isfinite(read_first("hypersim", tmp_path, ["depth_m"]).maps["depth_m"]).all()


def test_the_normals_of_a_frame_that_is_taken_are_known_everywhere(tmp_path):
    """The published preparation asks neither what a pixel shows nor for InteriorVerse's mask."""
    entity, mask = np.ones((768, 1024), np.int32), np.ones((48, 64))
    entity[:9], mask[:9] = -1, 0
    write_hypersim(tmp_path, render_entity_id=entity)
    write_rows(tmp_path, ("ai_001_001", "cam_00", 0, True, "train"))
    write_interiorverse(tmp_path / "scenes_85" / "a", mask=mask)
    for name, normal in (("hypersim", (0, 0, -1)), ("interiorverse", (0.6, 0, -0.8))):
        assert np.abs(read_first(name, tmp_path, ["normals"]).maps["normals"] - normal).max() < 1e-6, name


def test_hypersims_light_makes_the_exposed_picture(tmp_path):
    write_hypersim(tmp_path, light=True)
    write_rows(tmp_path, ("ai_001_001", "cam_00", 0, True, "train"))
    sample = read_first("hypersim", tmp_path, ["shading", "albedo", "residual"])
    remade = sample.maps["albedo"] * sample.maps["shading"] + sample.maps["residual"]
    assert np.abs(remade ** (1 / 2.2) * 255 - sample.rgb).max() <= 1
    assert np.abs(sample.maps["albedo"] - 0.5).max() < 1e-6
    assert np.abs(sample.maps["shading"] / (0.4 * 0.8**2.2 / 0.25) - 1).max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"residual": np.full((768, 1024, 3), np.nan)}, "not finite"),
        ({"diffuse_reflectance": np.full((768, 1024, 3), 1.5)}, "out of range"),
        ({"diffuse_illumination": np.full((768, 1024, 3), -0.4)}, "out of range"),
        # Everything is lit but one hundredth, which alone is bright: cut off at the 98th percentile it becomes dark.
        ({"color": np.where(np.arange(1024)[:, None] < 10, 2.0, 0.25) * np.ones((768, 1, 3)),
          "diffuse_illumination": np.where(np.arange(1024)[:, None] < 10, 3.9, 0.4) * np.ones((768, 1, 3))}, "dB only"),
    ],
)  # fmt: skip
def test_frames_whose_light_the_published_set_lacks_are_left_out_of_training_only(tmp_path, changes, why):
    write_hypersim(tmp_path, light=True, **changes)
    for split in ("train", "test"):
        write_rows(tmp_path, ("ai_001_001", "cam_00", 0, True, split))
        if split == "train":
            with pytest.raises(LeftOut, match=why):
                read_first("hypersim", tmp_path, ["albedo"], split)
        elif "residual" not in changes:
            assert read_first("hypersim", tmp_path, ["albedo"], split).maps["albedo"].max() <= 1


def test_light_needs_every_pixel_to_show_an_object(tmp_path):
    entity = np.ones((768, 1024), np.int32)
    entity[:2, :3] = -1
    write_hypersim(tmp_path, light=True, render_entity_id=entity)
    write_rows(tmp_path, ("ai_001_001", "cam_00", 0, True, "test"))
    with pytest.raises(LeftOut, match="6 pixels"):
        read_first("hypersim", tmp_path, ["residual"], "test")


def test_hypersims_splits_are_those_of_its_list(tmp_path):
    write_rows(
        tmp_path,
        ("ai_001_001", "cam_00", 0, True, "train"),
        ("ai_001_001", "cam_01", 17, True, "train"),
        ("ai_001_001", "cam_01", 18, False, "train"),
        ("ai_003_010", "cam_00", 3, True, "val"),
        ("ai_004_001", "cam_00", 3, True, ""),
    )
    names = {
        split: [frame.name for frame in hypersim.frames(tmp_path, split)] for split in ("train", "val", "test", None)
    }
    assert names["train"] == ["ai_001_001_cam_00_fr0000", "ai_001_001_cam_01_fr0017"]
    assert names["val"] == ["ai_003_010_cam_00_fr0003"]
    assert names["test"] == []
    assert names[None] == names["train"] + names["val"]
    (tmp_path / hypersim.SPLITS_FILE).write_text("scene,camera\nx,y\n")
    with pytest.raises(Unusable, match=f"{hypersim.SPLITS_FILE}: cannot be used"):
        hypersim.frames(tmp_path, "train")


# Virtual KITTI 2, TartanAir, InteriorVerse, Sintel


@pytest.mark.parametrize(
    "places", [("", "", ""), ("rgb", "depth", "textgt"), ("vkitti_2.0.3_rgb", "vkitti_2.0.3_depth", "")]
)
def test_virtual_kittis_centimetres_and_sky(tmp_path, places):
    depth = np.full((375, 1242), 1234, np.uint16)
    depth[0], depth[1] = 65535, 0
    write_vkitti2(tmp_path, depth=depth, rgb=places[0], depths=places[1])
    sample = read_first("vkitti2", tmp_path, ["depth_m"])
    assert sample.name == "Scene02_clone_Camera_0_00000"
    assert np.isposinf(sample.maps["depth_m"][0]).all()
    assert np.isnan(sample.maps["depth_m"][1]).all()
    assert sample.maps["depth_m"][2:] == pytest.approx(12.34)
    assert np.abs(sample.rgb[100, 100].astype(int) - (50, 100, 200)).max() < 4
    assert sample.k.tolist() == [[725.0087, 0, 620.5], [0, 725.0087, 187], [0, 0, 1]]
    intrinsics = tmp_path / places[2] / "Scene02/clone/intrinsic.txt"
    intrinsics.parent.mkdir(parents=True, exist_ok=True)
    intrinsics.write_text("frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]\n0 0 700 701 600 180\n0 1 1 1 1 1\n")
    assert read_first("vkitti2", tmp_path, []).k.tolist() == [[700, 0, 600], [0, 701, 180], [0, 0, 1]]
    intrinsics.write_text("frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]\n5 0 700 701 600 180\n")
    with pytest.raises(Unusable, match=r"intrinsic\.txt: has no fx, fy, cx, cy of frame 0, Camera_0"):
        read_first("vkitti2", tmp_path, [])


def planes(shape, k, *planes):
    """(depth_m, normals) of planes (normal, distance_m) that hide each other."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    rays = np.stack([(columns - k[0, 2]) / k[0, 0], (rows - k[1, 2]) / k[1, 1], np.ones(shape)], axis=-1)
    units = [np.array(normal, float) / np.linalg.norm(normal) for normal, _ in planes]
    with np.errstate(divide="ignore"):
        depths = np.stack([-d / (rays @ n) for n, (_, d) in zip(units, planes, strict=True)])
    depths[~(depths > 0)] = np.inf
    return depths.min(axis=0), np.stack(units)[depths.argmin(axis=0)]


K = np.array([[180.0, 0, 81.5], [0, 190.0, 30.0], [0, 0, 1]])
STREET = (((0, -1, 0), 1.5), ((-1, 0, -0.1), 6.0), ((1, 0, -0.2), 4.0))


def test_normals_of_depth_are_those_of_the_planes_to_their_edges():
    depth_m, normals = planes((90, 160), K, *STREET, ((0, 0.1, -1), 20.0))
    front = np.s_[40:60, 50:80]  # a box before them, with steps of depth all around
    depth_m[front], normals[front] = 3.0, (0, 0, -1)
    found = normals_from_depth(depth_m, K)
    assert np.isfinite(found).mean() > 0.99
    angles_deg = np.degrees(np.arccos(np.clip((found * normals).sum(axis=-1), -1, 1)))
    assert np.nanquantile(angles_deg, 0.98) < 0.1
    # As Virtual KITTI 2 stores it, to a centimetre.
    rounded = normals_from_depth(np.round(depth_m, 2), K)
    angles_deg = np.degrees(np.arccos(np.clip((rounded * normals).sum(axis=-1), -1, 1)))
    assert np.nanmedian(angles_deg) < 1
    assert np.nanmean(angles_deg) < 3


def test_normals_of_depth_are_unknown_where_no_surface_is():
    depth_m, _ = planes((90, 160), K, *STREET)
    depth_m[:20] = np.inf
    depth_m[60, 100] = np.nan
    found = normals_from_depth(depth_m, K)
    assert np.isnan(found[:20]).all()
    assert np.isnan(found[60, 100]).all()
    assert np.isfinite(found[62, 104]).all()
    noisy = normals_from_depth(np.random.default_rng(0).uniform(1, 9, (30, 40)), K)
    assert np.isnan(noisy).all()


def test_virtual_kittis_normals(tmp_path):
    k = np.array([[725.0087, 0, 620.5], [0, 725.0087, 187], [0, 0, 1]])
    depth_m, normals = planes((375, 1242), k, *STREET)
    stored = np.where(depth_m < 600, np.round(depth_m * 100), 65535).astype(np.uint16)
    write_vkitti2(tmp_path, depth=stored)
    sample = read_first("vkitti2", tmp_path, ["normals"])
    assert set(sample.maps) == {"normals"}
    near = depth_m < 30
    cosines = (sample.maps["normals"] * normals).sum(axis=-1)[near]
    assert np.nanmedian(np.degrees(np.arccos(np.clip(cosines, -1, 1)))) < 2
    assert np.isfinite(cosines).mean() > 0.95


def test_virtual_kittis_sets_have_the_published_sizes(tmp_path):
    train, val = (vkitti2.frames(tmp_path, split) for split in ("train", "val"))
    counts = {scene: sum(frame.scene == scene for frame in train) for scene in vkitti2.FRAMES}
    assert counts == {"Scene01": 0, "Scene02": 2796, "Scene06": 3240, "Scene18": 4068, "Scene20": 10044}
    assert (len(train), len(val), {frame.scene for frame in val}) == (20148, 5364, {"Scene01"})
    assert {frame.parts[1] for frame in train} == {*vkitti2.VARIANTS}
    ends = vkitti2.frames_e2e(tmp_path, "train")
    assert (len(ends), {frame.parts[1] for frame in ends}) == (21260, {*vkitti2.E2E_VARIANTS})
    assert len({frame.name for frame in train + val}) == 20148 + 5364


def test_tartanairs_sky_and_held_out_worlds(tmp_path):
    depth = np.full((480, 640), 7.5, np.float32)
    depth[0], depth[1] = 10000, 0
    write_tartanair(tmp_path, 3, depth)
    write_tartanair(tmp_path, 4, place="gascola/gascola/Hard/P010")
    write_tartanair(tmp_path, 5, place="hospital/Easy/P001")
    (tmp_path / "soulcity/Easy/P000/depth_left/000009_left_depth.npy").write_bytes(b"")  # its picture is missing
    dataset = DATASETS["tartanair"]
    names = [frame.name for frame in dataset.frames(tmp_path, "train")]
    assert sorted(names) == ["gascola_Hard_P010_000004", "soulcity_Easy_P000_000003", "soulcity_Easy_P000_000009"]
    assert [frame.name for frame in dataset.frames(tmp_path, "val")] == ["hospital_Easy_P001_000005"]
    frames = {frame.name: frame for frame in dataset.frames(tmp_path, "train")}
    sample = dataset.read(frames["soulcity_Easy_P000_000003"], ["depth_m"])
    assert np.isposinf(sample.maps["depth_m"][0]).all()
    assert np.isnan(sample.maps["depth_m"][1]).all()
    assert (sample.maps["depth_m"][2:] == 7.5).all()
    assert sample.rgb[5, 5].tolist() == [1, 2, 3]
    assert sample.k.tolist() == [[320, 0, 320], [0, 320, 240], [0, 0, 1]]
    dataset.read(frames["gascola_Hard_P010_000004"], ["depth_m"])
    with pytest.raises(Unusable, match=r"000009_left\.png: is missing"):
        dataset.read(frames["soulcity_Easy_P000_000009"], ["depth_m"])


def test_interiorverses_maps(tmp_path):
    mask, depth = np.ones((48, 64)), np.full((48, 64), 2500.0)
    mask[0], depth[1] = 0, np.inf
    im = np.full((48, 64, 3), (0.5, 0.25, 2.0))
    write_interiorverse(tmp_path / "scenes_85" / "L3D1", 7, mask=mask, depth=depth, im=im)
    sample = read_first("interiorverse", tmp_path, ["normals", "albedo", "material", "depth_m"])
    assert sample.name == "L3D1_007"
    assert sample.rgb[9, 9].tolist() == [int(255 * 0.5 ** (1 / 2.2)), int(255 * 0.25 ** (1 / 2.2)), 255]
    expected = {"normals": (0.6, 0, -0.8), "albedo": (0.2, 0.4, 0.6), "material": (0.3, 0.7), "depth_m": 2.5}
    for kind, value in expected.items():
        assert np.isnan(sample.maps[kind][0]).all(), kind
        assert np.abs(sample.maps[kind][2:] - np.array(value)).max() < 1e-6, kind
    assert np.isnan(sample.maps["depth_m"][1]).all()  # a window is not the sky
    # 85 degrees across 64 pixels: 32 / tan(42.5 degrees)
    assert sample.k[0, 0] == pytest.approx(34.922, abs=1e-3)
    assert sample.k[:2, 2].tolist() == [31.5, 23.5]


@pytest.mark.parametrize("gap", [np.nan, 0.0, 0.05])
def test_interiorverse_frames_without_some_normal_are_for_intrinsic_images_alone(tmp_path, gap):
    normals = np.full((48, 64, 3), (0.6, 0.0, 0.8))
    normals[20:22, 5] = gap
    write_interiorverse(tmp_path / "scenes_85" / "a", normal=normals, mask=np.isfinite(normals[..., 0]))
    with pytest.raises(LeftOut, match="2 pixels have no normal"):
        read_first("interiorverse", tmp_path, ["normals"])
    sample = read_first("interiorverse", tmp_path, ["albedo", "normals"])
    assert np.argwhere(np.isnan(sample.maps["normals"][..., 0])).tolist() == [[20, 5], [21, 5]]


def test_interiorverses_splits_are_its_lists(tmp_path):
    for scene in ("a", "b", "c"):
        (tmp_path / "dataset_85" / scene).mkdir(parents=True)
        (tmp_path / "dataset_85" / scene / "000_im.exr").touch()

    def names(split):
        return [frame.name for frame in interiorverse.frames(tmp_path, split)]

    assert names("train") == names(None) == ["a_000", "b_000", "c_000"]
    with pytest.raises(Unusable, match=r"val\.txt: is missing"):
        names("val")
    (tmp_path / "dataset_85" / "train.txt").write_text("b\nnowhere\n")
    (tmp_path / "dataset_85" / "val.txt").write_text("dataset_85/c/000_im.exr\na/000_im.exr\n")
    assert names("train") == ["b_000", "nowhere_000"]  # named as missing when it is read
    assert names("val") == ["a_000", "c_000"]
    with pytest.raises(Unusable, match=r"test\.txt: is missing"):
        names("test")


def test_sintels_normals_are_cropped_and_turned(tmp_path):
    normals = np.full((436, 1024, 3), (0.0, 0.6, 0.8), np.float32)
    normals[0] = 0
    write_sintel(tmp_path, 12, normals)
    sample = read_first("sintel", tmp_path, ["normals"])
    assert sample.name == "alley_2_frame_0012"
    assert sample.rgb.shape == (436, 582, 3)
    assert sample.rgb[0, [0, -1]].tolist() == [[0, 0, 221], [3, 0, 802 - 768]]
    assert np.isnan(sample.maps["normals"][0]).all()
    assert np.abs(sample.maps["normals"][1:] - (0, -0.6, -0.8)).max() < 1e-6
    assert sample.k is None


def test_sintels_depth_and_camera(tmp_path):
    depth = np.full((436, 1024), 3.0, np.float32)
    depth[:, 5], depth[0] = 4.5, 1e10
    write_sintel_depth(tmp_path, depth)
    sample = read_first("sintel-depth", tmp_path, ["depth_m"])
    assert np.isposinf(sample.maps["depth_m"][0]).all()
    assert sample.maps["depth_m"][1, 4:7].tolist() == [3, 4.5, 3]
    assert sample.k.tolist() == [[1120, 0, 511.5], [0, 1120, 217.5], [0, 0, 1]]


# Damage, in every kind of file


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("file", "harm", "what"),
    [
        ("color", cut, "cannot be read"),
        ("color", Path.unlink, "is missing"),
        ("depth_meters", lambda path: path.write_bytes(b""), "cannot be read"),
        ("depth_meters", {"depth_meters": np.full((384, 1024), 2.0)}, r"has shape \(384, 1024\) instead of"),
        ("depth_meters", {"depth_meters": np.full((768, 1024), np.nan)}, "is NaN in 786432 places"),
        ("color", {"color": np.full((768, 1024, 3), np.nan)}, "is NaN"),
        ("render_entity_id", {"render_entity_id": np.full((768, 1024), -1, np.int32)}, "has not one valid pixel"),
        ("normal_cam", {"normal_cam": np.full((768, 1024, 3), np.nan)}, "is NaN"),
        ("normal_cam", {"normal_cam": np.zeros((768, 1024, 3))}, "has not one valid pixel"),
    ],
)  # fmt: skip
def test_damage_in_hdf5_files_is_named(tmp_path, file, harm, what):
    write_hypersim(tmp_path, **(harm if isinstance(harm, dict) else {}))
    write_rows(tmp_path, ("ai_001_001", "cam_00", 0, True, "train"))
    if not isinstance(harm, dict):
        harm(next(tmp_path.rglob(f"frame.0000.{file}.hdf5")))
    with pytest.raises(Unusable, match=rf"frame\.0000\.{file}\.hdf5: {what}.*--damaged skip"):
        read_first("hypersim", tmp_path, ["depth_m", "normals"])


@pytest.mark.parametrize(
    ("name", "write", "file", "harm", "what"),
    [
        ("tartanair", write_tartanair, "000000_left.png", cut, "cannot be read"),
        ("tartanair", write_tartanair, "000000_left_depth.npy", cut, "cannot be read"),
        ("tartanair", write_tartanair, "000000_left_depth.npy", Path.unlink, "is missing"),
        ("tartanair", write_tartanair, "000000_left_depth.npy", lambda path: np.save(path, np.ones((48, 64))),
         "has shape"),
        ("tartanair", write_tartanair, "000000_left_depth.npy", lambda path: np.save(path, np.full((480, 640), np.nan)),
         "is NaN"),
        ("tartanair", write_tartanair, "000000_left_depth.npy", lambda path: np.save(path, np.full((480, 640), 1e4)),
         "has not one valid pixel"),
        ("vkitti2", write_vkitti2, "rgb_00000.jpg", cut, "cannot be read"),
        ("vkitti2", write_vkitti2, "depth_00000.png", lambda path: cut(path, 0.9), "cannot be read"),
        ("vkitti2", write_vkitti2, "depth_00000.png",
         lambda path: cv2.imwrite(str(path), np.ones((375, 1242, 3))), r"has shape \(375, 1242, 3\)"),
        ("interiorverse", write_scene, "000_normal.exr", cut, "cannot be read"),
        ("interiorverse", write_scene, "000_mask.exr", Path.unlink, "is missing"),
        ("interiorverse", write_scene, "000_albedo.exr",
         lambda path: write_exr(path, np.ones((48, 32, 3), np.float32)), r"has shape \(48, 32, 3\) instead of"),
        ("interiorverse", write_scene, "000_im.exr",
         lambda path: write_exr(path, np.full((48, 64, 3), np.nan, np.float32)), "is NaN"),
        ("sintel", write_sintel, "frame_0001_normal.npy", lambda path: np.save(path, np.zeros((436, 1024, 3))),
         "has not one valid pixel"),
        ("sintel-depth", lambda raw: write_sintel_depth(raw, np.ones((436, 1024), np.float32)), "frame_0001.dpt", cut,
         "bytes do not hold 1024 x 436 pixels"),
        ("sintel-depth", lambda raw: write_sintel_depth(raw, np.ones((436, 1024), np.float32)), "frame_0001.dpt",
         lambda path: path.write_bytes(bytes(36)), "instead of 202021.25"),
    ],
)  # fmt: skip
def test_damage_in_other_files_is_named(tmp_path, name, write, file, harm, what):
    write(tmp_path)
    harm(next(tmp_path.rglob(file)))
    with pytest.raises(Unusable, match=rf"{re.escape(file)}: .*{what}"):
        read_first(name, tmp_path, DATASETS[name].default_maps)


# The command


def test_prepare_writes_the_published_size(indoors, tmp_path, capfd):
    distance = 1 + np.arange(768 * 1024).reshape(768, 1024) % 977 / 100
    write_hypersim(indoors, depth_meters=distance)
    assert run("hypersim", "--raw", indoors, "--out", tmp_path / "out", "--workers", 1) == 0
    assert "train: 2 written, 0 already there, 0 skipped as damaged" in capfd.readouterr().out
    samples = SampleFolder(tmp_path / "out" / "train")
    assert samples.names == ["ai_001_001_cam_00_fr0000", "ai_001_001_cam_00_fr0005"]
    sample = samples.read(0, ["depth_m"])
    assert sample.rgb.shape == (480, 640, 3)
    # Row 100 of 480 has its centre in (100.5 * 1.6) = 160.8, that is in row 160 of 768; column 333 in column 533.
    planar = hypersim.planar(distance)
    assert sample.maps["depth_m"][100, 333] == np.float16(planar[160, 533])
    assert sample.maps["depth_m"][479, 639] == np.float16(planar[767, 1023])
    assert sample.k == pytest.approx(np.array([[554.25625, 0, 319.5], [0, 554.25625, 239.5], [0, 0, 1]]))
    about = samples.about(0)
    assert (about["dataset"], about["scene"], about["depth_range_m"]) == ("hypersim", "ai_001_001", [1e-5, 65])


def test_resizing_mixes_intensities_and_nothing_else():
    values = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 6, 6], [4, 4, 6, 7]], np.float32)
    maps = {
        "depth_m": values,
        "albedo": np.repeat(values[..., None], 3, 2),
        "normals": np.repeat(values[..., None], 3, 2),
    }
    sample = Sample("x", np.zeros((4, 4, 3), np.uint8), maps, None)
    small = resized(sample, 2, 2)
    assert small.maps["depth_m"].tolist() == [[0, 2], [4, 7]]  # the pixel that holds the centre, the lower right one
    assert small.maps["albedo"][..., 1].tolist() == [[0, 2], [4, 6.25]]
    assert small.maps["normals"].shape == (2, 2, 3)
    assert resized(sample, 4, 4) is sample
    assert resized(sample, 8, 6).maps["depth_m"].shape == (6, 8)


def test_prepare_resumes_and_reads_nothing_twice(flights, tmp_path, capfd):
    command = ("tartanair", "--raw", flights, "--out", tmp_path / "out", "--workers", 2)
    assert run(*command, "--limit", 3) == 0
    cut(flights / "soulcity/Easy/P000/depth_left/000001_left_depth.npy")  # would be found if it were read again
    assert run(*command) == 0
    assert "1 written, 3 already there" in capfd.readouterr().out
    assert len(SampleFolder(tmp_path / "out" / "train")) == 4
    with pytest.raises(Unusable, match=r"holds samples of size_px None, not \[320, 240\]; give another --out"):
        run(*command, "--size", 320, 240)


def test_prepare_refuses_at_the_first_damage_in_one_sentence(flights, tmp_path, capfd):
    cut(bad := flights / "soulcity/Easy/P000/image_left/000002_left.png")
    command = ["prepare", "tartanair", "--raw", str(flights), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert trainer_main(command) == 2
    complaints = [line for line in capfd.readouterr().err.splitlines() if line.startswith("trainer:")]
    assert len(complaints) == 1
    assert f"raw file {bad}: cannot be read" in complaints[0]
    assert not (tmp_path / "out/train/damaged.txt").exists()


def test_prepare_skips_names_and_counts_what_is_damaged_and_tries_it_again(flights, tmp_path, capfd):
    bad = flights / "soulcity/Easy/P000/depth_left/000002_left_depth.npy"
    whole = bad.read_bytes()
    cut(bad)
    command = ("tartanair", "--raw", flights, "--out", tmp_path / "out", "--workers", 2, "--damaged", "skip")
    listed = tmp_path / "out/train/damaged.txt"
    for _ in range(2):
        assert run(*command) == 0
        said = capfd.readouterr()
        assert "1 skipped as damaged" in said.out
        assert said.err.count(f"skipped soulcity_Easy_P000_000002: raw file {bad}: cannot be read") == 1
        assert listed.read_text().startswith(f"soulcity_Easy_P000_000002: raw file {bad}: cannot be read")
        assert len(listed.read_text().splitlines()) == 1
    bad.write_bytes(whole)
    assert run(*command) == 0
    assert not listed.exists()
    assert "1 written, 3 already there" in capfd.readouterr().out


def test_prepare_does_not_read_again_what_the_published_set_leaves_out(indoors, tmp_path, capfd):
    write_hypersim(indoors, light=True, diffuse_reflectance=np.full((768, 1024, 3), 1.5))
    write_hypersim(indoors, 5, light=True)
    command = ("hypersim", "--raw", indoors, "--out", tmp_path / "out", "--maps", "albedo", "--workers", 1)
    for written in (1, 0):
        assert run(*command) == 0
        assert (
            f"{written} written, {1 - written} already there, 0 skipped as damaged, 1 left out"
            in capfd.readouterr().out
        )
        shutil.rmtree(indoors / "ai_001_001", ignore_errors=True)
    assert (tmp_path / "out/train/left_out.txt").read_text().startswith("ai_001_001_cam_00_fr0000: albedo, shading or")


def test_prepare_says_when_nothing_comes_out_and_when_the_disk_is_full(flights, tmp_path):
    for path in flights.rglob("*.npy"):
        cut(path)
    command = ("tartanair", "--raw", flights, "--workers", 1, "--damaged", "skip", "--limit", 2)
    with pytest.raises(Unusable, match="not one sample came out"):
        run(*command, "--out", tmp_path / "nothing")
    write_tartanair(flights, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a map has 600 kB: no room for it
    try:
        with pytest.raises(Unusable, match=r"full/train/depth_m/.*npy: cannot be written"):
            run(*command, "--out", tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "full/train").glob("camera/*")) + list((tmp_path / "full/train").glob("*/.*"))


def test_prepare_takes_published_lists(flights, tmp_path):
    for name, line, expected in (
        ("hypersim", "val/ai_052_003/rgb_cam_01_fr0031.png val/ai_052_003/normal_cam_cam_01_fr0031.npy",
         "ai_052_003_cam_01_fr0031"),
        ("vkitti2", "rgb/Scene02/15-deg-left/frames/rgb/Camera_0/rgb_00012.jpg depth/Scene02/15-deg-left/frames/depth",
         "Scene02_15-deg-left_Camera_0_00012"),
        ("interiorverse", "scenes_85/L3D124S21/003_im.exr scenes_85/L3D124S21/003_albedo.exr", "L3D124S21_003"),
        ("interiorverse", "L3D124S21/009_img.png L3D124S21/009_depth.npy", "L3D124S21_009"),
        ("sintel", "alley_2/frame_0001_img.png alley_2/frame_0001_normal.npy", "alley_2_frame_0001"),
        ("tartanair", "soulcity/Easy/P000/image_left/000003_left.png", "soulcity_Easy_P000_000003"),
    ):  # fmt: skip
        (tmp_path / "list.txt").write_text(line + "\n")
        assert prepare.listed_names(tmp_path / "list.txt", DATASETS[name].listed) == {expected}
    command = ("tartanair", "--raw", flights, "--out", tmp_path / "out", "--split", "test", "--workers", 1)
    assert run(*command, "--list", tmp_path / "list.txt") == 0
    assert SampleFolder(tmp_path / "out" / "test").names == ["soulcity_Easy_P000_000003"]
    (tmp_path / "list.txt").write_text("something else\n")
    with pytest.raises(Unusable, match="'something else' names no frame"):
        run(*command, "--list", tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--maps", "depth_m", "prior"), "--maps prior: tartanair has none"),
        (("--split", "test"), "--split test: tartanair has train and val only"),
        (("--workers", "0"), "--workers 0: must be at least 1"),
        (("--size", "0", "5"), "--size 0 5: must be positive"),
        (("--scenes", "office*"), r"has no frames of tartanair for split train in scenes 'office\*'"),
        (("--raw", "nowhere"), "--raw nowhere: is no folder"),
    ],
)
def test_prepare_names_what_it_cannot_use(flights, tmp_path, arguments, what):
    with pytest.raises(Unusable, match=what):
        run("tartanair", "--raw", flights, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_prepare_leaves_samples_of_another_origin_alone(flights, tmp_path):
    (tmp_path / "out/train/camera").mkdir(parents=True)
    with pytest.raises(Unusable, match="holds samples of version None"):
        run("tartanair", "--raw", flights, "--out", tmp_path / "out")


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_that_is_stopped_or_killed_leaves_only_whole_samples_and_goes_on(tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "out" / "train"
    noise = np.random.default_rng(0)
    write_tartanair(raw, 0, noise.uniform(1, 9, (480, 640)).astype(np.float32))
    for part, name in (("image_left", "{:06d}_left.png"), ("depth_left", "{:06d}_left_depth.npy")):
        place = raw / "soulcity/Easy/P000" / part
        for number in range(1, 160):
            os.link(place / name.format(0), place / name.format(number))
    command = [sys.executable, "-m", "trainer", "prepare", "tartanair", "--raw", raw, "--out", tmp_path / "out"]

    def there():
        return len(list((folder / "camera").glob("*.json")))

    for number, status in ((signal.SIGTERM, prepare.STOPPED), (signal.SIGKILL, -signal.SIGKILL)):
        before = there()
        process = subprocess.Popen([*command, "--workers", "2"], cwd=PROJECT, stderr=subprocess.DEVNULL)
        wait_for(lambda before=before: there() > before + 3)
        process.send_signal(number)
        assert process.wait(30) == status
        if number == signal.SIGTERM:
            assert not list(folder.glob("*/.*"))
        wait_for(lambda seen=[]: seen.append(there()) or (len(seen) > 10 and seen[-10] == seen[-1]))  # workers are gone
        assert there() < 160
        for path in (folder / "camera").glob("*.json"):
            read_sample(folder, path.stem, ["depth_m"])
    (folder / "depth_m" / ".left.npy.1").touch()  # what a writer leaves behind that is killed in the act
    assert run("tartanair", "--raw", raw, "--out", tmp_path / "out", "--workers", 2) == 0
    assert there() == 160
    assert not list(folder.glob("*/.*"))


# Documentation


def test_the_documentation_names_every_dataset_and_its_commands_are_understood():
    text = (PROJECT / "docs" / "datasets.md").read_text()
    for name, dataset in DATASETS.items():
        for fact in (f"`{name}`", dataset.source, dataset.licence, dataset.size):
            assert fact in text, (name, fact)
    commands = re.findall(r"^python -m trainer prepare (.*)$", text, re.M)
    assert {shlex.split(command)[0] for command in commands} == set(DATASETS)
    for command in commands:
        arguments = prepare._parser().parse_args(shlex.split(command))
        assert set(arguments.maps or ()) <= set(DATASETS[arguments.dataset].maps)
        assert arguments.list or arguments.split in DATASETS[arguments.dataset].splits
