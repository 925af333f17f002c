"""The evaluation on real street scenes: its parts on made-up data, and the whole on the real frames where they are."""

import numpy as np
import pytest

from marigold_ros import kitti, kitti_files
from marigold_ros import real_data as real_data_module
from marigold_ros.anchors import Anchors
from marigold_ros.beams import beam_of_each_point, every_nth_beam, linear_depth, plane_depth
from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera, project, transformed
from marigold_ros.real_data import DATA_VARIABLE, KITTI, real_data
from marigold_ros.scores import score

DATA = real_data(None, [KITTI])
needs_data = pytest.mark.skipif(DATA is None, reason=f"no KITTI frames; set {DATA_VARIABLE}")


def sweep(beams, per_beam, start):
    """Points of a spinning LiDAR, beam after beam; each sweep starts at the azimuth `start` and misses some returns."""
    random = np.random.default_rng(3)
    points = []
    for elevation in np.linspace(0.05, -0.4, beams):
        azimuth = np.sort(random.choice(4 * per_beam, per_beam, replace=False)) / (4 * per_beam) * 2 * np.pi + start
        points.append(np.stack([np.cos(azimuth), np.sin(azimuth), np.full(per_beam, np.tan(elevation))], axis=1))
    return np.concatenate(points).astype(np.float32) * 8


def anchors_on(depth_of, count=400, seed=0):
    pixels = np.random.default_rng(seed).uniform((0, 0), (600, 200), (count, 2)).astype(np.float32)
    depth_m = depth_of(pixels).astype(np.float32)
    return Anchors(pixels, depth_m, np.ones(count, np.float32), count)


def road(pixels):
    return 1.0 / (0.01 + 0.0004 * pixels[:, 1] + 0.00002 * pixels[:, 0])


def test_beams_are_told_apart_by_their_sweeps():
    np.testing.assert_array_equal(beam_of_each_point(sweep(8, 50, start=0.0)), np.repeat(np.arange(8), 50))


def test_kept_beams_are_spread_evenly():
    beams = np.repeat(np.arange(64), 3)
    assert sorted(set(beams[every_nth_beam(beams, 16)])) == list(range(0, 64, 4))
    assert every_nth_beam(beams, 64).all()
    with pytest.raises(ValueError, match="65 beams of 64"):
        every_nth_beam(beams, 65)


def test_linear_interpolation_is_exact_on_a_plane():
    depth_of = lambda p: 5 + 0.01 * p[:, 0] + 0.02 * p[:, 1]  # noqa: E731
    inside = np.random.default_rng(1).uniform((100, 50), (500, 150), (200, 2))
    np.testing.assert_allclose(linear_depth(anchors_on(depth_of), inside), depth_of(inside), rtol=1e-4)


def test_linear_interpolation_takes_the_nearest_anchor_outside():
    anchors = Anchors(np.float32([[0, 0], [10, 0], [0, 10]]), np.float32([1, 2, 3]), np.ones(3, np.float32), 3)
    np.testing.assert_allclose(linear_depth(anchors, np.array([[50.0, 0.0], [0.0, 50.0]])), [2, 3])


def test_the_image_blind_plane_finds_the_road_under_clutter():
    anchors = anchors_on(road)
    depth_m = anchors.depth_m.copy()
    depth_m[::4] *= 0.5  # a quarter of the points stands on the road
    pixels = anchors_on(road, seed=1).pixels
    found = plane_depth(Anchors(anchors.pixels, depth_m, anchors.weight, anchors.seen), pixels)
    np.testing.assert_allclose(found, road(pixels), rtol=0.02)


def test_scores_are_those_of_the_definition():
    truth = np.array([1.0, 2.0, 4.0, np.nan, 5.0])
    found = score(np.array([1.1, 2.0, 6.0, 1.0, np.nan]), truth)
    assert found.abs_rel == pytest.approx((0.1 + 0.0 + 0.5) / 3)
    assert found.delta1 == pytest.approx(2 / 3)
    assert found.rmse_m == pytest.approx(np.sqrt((0.01 + 4.0) / 3))
    assert (found.pixels, found.coverage) == (3, 0.75)
    assert np.isnan(score(np.array([np.nan]), np.array([1.0])).abs_rel)


CALIBRATION = """P2: 700 0 600 45 0 710 180 -0.3 0 0 1 0.005
R0_rect: 0.9999 0.01 -0.0085 -0.0101 0.9999 -0.004 0.0085 0.0041 0.9999
Tr_velo_to_cam: 0.007 -0.9999 -0.003 -0.025 -0.001 0.003 -0.9999 -0.06 0.9999 0.007 -0.001 -0.33
"""


def test_the_calibration_projects_as_the_full_matrices_do(tmp_path):
    (tmp_path / "calib.txt").write_text("calib_time: 09-Jan-2012 13:57:47\n" + CALIBRATION)
    k, camera_from_lidar = kitti_files.read_calibration(tmp_path / "calib.txt")
    camera = Camera(1242, 375, k[0, 0], k[1, 1], k[0, 2], k[1, 2])
    points = np.random.default_rng(0).uniform((5, -4, -1), (40, 4, 1), (50, 3))
    pixels, _ = project(transformed(points, camera_from_lidar), camera)
    numbers = [np.array(line.split(":")[1].split(), float) for line in CALIBRATION.splitlines()]
    p2, rectify, velodyne = numbers[0].reshape(3, 4), np.eye(4), np.eye(4)
    rectify[:3, :3], velodyne[:3] = numbers[1].reshape(3, 3), numbers[2].reshape(3, 4)
    whole = np.c_[points, np.ones(50)] @ (p2 @ rectify @ velodyne).T
    np.testing.assert_allclose(pixels, whole[:, :2] / whole[:, 2:], atol=1e-6)


@pytest.mark.parametrize("text", [None, "R0_rect: 1 0 0 0 1 0 0 0 1", CALIBRATION.replace("700 0 600", "700 0")])
def test_a_calibration_without_p2_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "calib.txt").write_text(text)
    with pytest.raises(Unusable, match=r"calib\.txt: .*P2 \(12 numbers\)"):
        kitti_files.read_calibration(tmp_path / "calib.txt")


def test_a_scan_is_read_without_its_reflectance(tmp_path):
    np.arange(8, dtype=np.float32).tofile(tmp_path / "velodyne.bin")
    np.testing.assert_array_equal(kitti_files.read_scan(tmp_path / "velodyne.bin"), [[0, 1, 2], [4, 5, 6]])
    (tmp_path / "velodyne.bin").write_bytes(b"cut off")
    for name in ("velodyne.bin", "absent.bin"):
        with pytest.raises(Unusable, match=f"{name}: is no Velodyne scan"):
            kitti_files.read_scan(tmp_path / name)


def test_without_data_the_program_says_so_and_succeeds(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setattr(real_data_module, "__file__", str(tmp_path / "checkout" / "marigold_ros" / "real_data.py"))
    assert kitti.main([]) == 0
    assert "skipped" in capsys.readouterr().out


def test_a_folder_that_the_environment_names_wrongly_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "typo"))
    assert kitti.main([]) == 1
    assert f"real frames {tmp_path / 'typo'}: there is no kitti/ in it" in capsys.readouterr().err


@pytest.mark.parametrize("folders", ["", "kitti"])
def test_a_named_folder_without_frames_is_an_error(tmp_path, capsys, monkeypatch, folders):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    (tmp_path / "typo" / folders).mkdir(parents=True)
    assert kitti.main(["--data", str(tmp_path / "typo"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert str(tmp_path / "typo") in said.err
    assert "skipped" not in said.out


@needs_data
@pytest.mark.parametrize(("name", "linear", "plane"), [("000000", 0.060, 0.150), ("000001", 0.045, 0.212)])
def test_the_baselines_on_real_scans(name, linear, plane):
    frame = next(f for f in kitti.read_frames(DATA) if f.name == name)
    assert beam_of_each_point(frame.points).max() == 63
    _, anchors, held_out = kitti.split(frame, 16)
    rows = kitti.baselines(name, anchors, held_out)
    assert rows[0].scores.abs_rel == pytest.approx(linear, abs=0.004)
    assert rows[1].scores.abs_rel == pytest.approx(plane, abs=0.01)


@needs_data
@pytest.mark.parametrize("name", ["000000", "000001"])
def test_the_real_node_beats_what_never_looks_at_the_image(name, tmp_path):
    """KITTI in over DDS, depth out over DDS, in the image's size and nearly everywhere, and a picture of it."""
    frame = next(f for f in kitti.read_frames(DATA) if f.name == name)
    rows = kitti.evaluate(frame, 16, "nano", tmp_path / "picture.png", tmp_path / "log")
    own, _, plane = rows
    assert plane.method == "plane, image-blind"
    assert own.scores.coverage > 0.95
    assert own.scores.abs_rel < plane.scores.abs_rel
    assert own.scores.delta1 > plane.scores.delta1
    assert own.scores.rmse_m < plane.scores.rmse_m
    assert (tmp_path / "picture.png").stat().st_size > 100_000
    assert "linear interpolation" in kitti.table(rows)
