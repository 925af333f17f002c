"""The synthetic scene generator: depth, determinism, files, LiDAR. Needs Mitsuba and LLVM, no GPU."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest

pytest.importorskip("mitsuba", reason="mitsuba is not installed; the scene generator is not tested")
cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed; the scene generator is not tested")

from marigold_ros.config import Unusable  # noqa: E402
from marigold_ros.geometry import project  # noqa: E402
from trainer.record import mounting  # noqa: E402
from trainer.scenes import backend, dataset, lidar, main, sequence  # noqa: E402
from trainer.scenes.geometry import Builder, quad, sphere  # noqa: E402
from trainer.scenes.render import SKY_H, SKY_W, Camera, Lighting, World, look  # noqa: E402

SEED = 3
COPIES = 0.05  # one texture and one object of a kind: enough for what is tested here


@pytest.fixture(scope="module")
def studio():
    try:
        return dataset.Studio.open(SEED, "train", 0, COPIES)
    except Unusable as e:
        pytest.skip(str(e))


def small_world(studio, builder: Builder) -> World:
    light = Lighting(np.ones((SKY_H, SKY_W, 3), np.float32), np.array([3.0, 3.0, 3.0]), np.array([0.3, 0.2, 0.93]))
    return World(studio.mi, studio.device, builder, light)


def camera(width: int = 64, height: int = 48) -> Camera:
    k = np.array([[50.0, 0, 30.5], [0, 52.0, 25.0], [0, 0, 1]])
    return Camera(np.array([0.4, -0.3, 1.3]), look(0.4, -0.35, 0.1), k, width, height)


def rays(cam: Camera) -> np.ndarray:
    """Directions (H, W, 3) in the world through pixel centres, with z = 1 in the camera."""
    u, v = np.meshgrid(np.arange(cam.width) + 0.5, np.arange(cam.height) + 0.5)
    local = np.stack([(u - cam.k[0, 2]) / cam.k[0, 0], (v - cam.k[1, 2]) / cam.k[1, 1], np.ones_like(u)], -1)
    return local @ cam.rotation.T


def test_depth_is_along_the_optical_axis(studio):
    builder = Builder()
    mat = builder.material(studio.bank.material(np.random.default_rng(0), "plain"))
    builder.add(quad((-500, -500, 0), (1000, 0, 0), (0, 1000, 0)), mat)
    cam = camera()
    depth = small_world(studio, builder).depth(cam)
    down = rays(cam)[..., 2]
    with np.errstate(divide="ignore"):
        expected = np.where(down < -1e-3, -cam.position[2] / down, np.inf)
    inside = expected < 300
    assert inside.mean() > 0.5
    assert np.isinf(depth[down > 0]).all()
    np.testing.assert_allclose(depth[inside], expected[inside], rtol=2e-4)


def test_camera_frame_is_x_right_y_down(studio):
    builder = Builder()
    mat = builder.material(studio.bank.material(np.random.default_rng(0), "plain"))
    cam = camera()
    right_and_down = cam.position + cam.rotation @ np.array([0.5, 0.4, 3.0])
    builder.add(sphere(right_and_down, 0.1, 12, 16), mat)
    v, u = np.nonzero(np.isfinite(small_world(studio, builder).depth(cam)))
    assert abs(u.mean() + 0.5 - (50 * 0.5 / 3 + 30.5)) < 0.7
    assert abs(v.mean() + 0.5 - (52 * 0.4 / 3 + 25)) < 0.7


def test_lit_side_is_brighter_than_shadow(studio):
    builder = Builder()
    mat = builder.material(studio.bank.material(np.random.default_rng(0), "plain", mean=0.5))
    builder.add(quad((-50, -50, 0), (100, 0, 0), (0, 100, 0)), mat)
    builder.add(quad((4, -50, 2.5), (0, 100, 0), (100, 0, 0)), mat)  # a roof over the far part
    image, depth = small_world(studio, builder).image(camera(), 4, 1)
    x = camera().position[0] + (rays(camera()) * np.where(np.isfinite(depth), depth, 0)[..., None])[..., 0]
    floor = np.abs((rays(camera()) * depth[..., None])[..., 2] + camera().position[2]) < 0.01
    assert image[floor & (x < 3)].mean() > 2 * image[floor & (x > 4.5)].mean() > 0


def test_every_family_gives_acceptable_views(studio):
    for family in dataset.FAMILIES:
        for turn in range(3):
            stage = dataset.build_stage(studio, family, dataset.random_of(SEED, "train", 5, turn))
            world = World(studio.mi, studio.device, stage.builder, stage.lighting())
            found = dataset.find_view(stage, world, SEED, "train", 5, turn)
            if found is not None:
                break
        assert found is not None, family
        depth = world.depth(found[0])
        solid = depth[np.isfinite(depth)]
        assert solid.min() > 0, family
        assert dataset.acceptable(depth, stage.indoor), family
        assert depth.shape in ((192, 256), (128, 384))


def test_views_without_content_are_refused():
    rows = np.linspace(-0.5, 0.5, 192)[:, None] + np.zeros((192, 256))
    floor = np.where(rows > 0.02, 1.2 / np.maximum(rows, 1e-3), np.inf)
    assert not dataset.acceptable(np.full((192, 256), 3.0), False)  # a flat wall
    assert not dataset.acceptable(np.where(rows > 0.45, 4.0, np.inf), False)  # hardly anything but sky
    assert not dataset.acceptable(floor, False)  # bare ground
    assert not dataset.acceptable(np.where(rows < 0, 0.1, floor), False)  # against a thing
    thing = floor.copy()
    thing[40:140, 60:140] = 6.0
    thing[20:120, 180:230] = 9.0
    assert dataset.acceptable(thing, False)


def test_same_seed_same_image(studio):
    group = [dataset.render_group(studio, SEED, "train", [6], spp=2) for _ in range(2)]
    (i, rgb, depth, about), (_, rgb2, depth2, about2) = (next(iter(g)) for g in group)
    assert i == 6
    assert about == about2
    np.testing.assert_array_equal(rgb, rgb2)
    np.testing.assert_array_equal(depth, depth2)
    assert dataset.random_of(SEED, "train", 1).random() != dataset.random_of(SEED, "held_out", 1).random()


def run(out, capsys) -> str:
    argv = ["--out", out, "--count", "3", "--seed", SEED, "--workers", "1", "--spp", "2", "--copies", COPIES]
    assert main([str(a) for a in argv]) == 0
    return capsys.readouterr().out


def test_files_and_resume(tmp_path, capsys):
    try:
        assert "3 to render" in run(tmp_path, capsys)
    except Unusable as e:
        pytest.skip(str(e))
    for index in range(3):
        picture, distance, about_file = dataset.paths(tmp_path, "train", index)
        about = json.loads(about_file.read_text())
        depth, rgb = np.load(distance), cv2.imread(str(picture))
        assert depth.dtype == np.float16
        assert depth.shape == rgb.shape[:2] == (about["height"], about["width"])
        assert about["version"] == dataset.VERSION
        assert about["family"] in dataset.FAMILIES
        assert np.array(about["K"]).shape == (3, 3)
        assert 4 < rgb.mean() < 252
        assert (depth > 0).all()
        assert not np.isnan(depth).any()
    assert picture.name == "000002.jpg"
    before = {i: [p.read_bytes() for p in dataset.paths(tmp_path, "train", i)] for i in range(3)}
    times = [p.stat().st_mtime_ns for p in dataset.paths(tmp_path, "train", 0)]
    dataset.paths(tmp_path, "train", 1)[2].unlink()  # as if stopped before the last file was written
    dataset.paths(tmp_path, "train", 2)[1].write_bytes(b"")  # an empty file after a crash
    assert "2 to render" in run(tmp_path, capsys)
    assert before == {i: [p.read_bytes() for p in dataset.paths(tmp_path, "train", i)] for i in range(3)}
    assert times == [p.stat().st_mtime_ns for p in dataset.paths(tmp_path, "train", 0)]
    assert "0 to render" in run(tmp_path, capsys)
    assert not list(tmp_path.rglob(".*"))


def test_families_for_recordings_only_change_no_training_set():
    """What a seed draws is as it was before there was a mine."""
    drawn = [dataset.family_of(s, split, g) for s in (1, 2, 3) for split in dataset.SPLITS for g in range(200)]
    assert hashlib.sha256(" ".join(drawn).encode()).hexdigest()[:16] == "0b4af97a91d2200c"
    assert set(drawn) == set(dataset.FAMILIES) - {"mine"}


def test_a_headlight_goes_where_the_camera_goes(studio):
    builder = Builder()
    mat = builder.material(studio.bank.material(np.random.default_rng(0), "plain", mean=0.5, macro=0, spec=0))
    builder.add(quad((9, -50, -50), (0, 100, 0), (0, 0, 100)), mat)
    light = Lighting(
        np.zeros((SKY_H, SKY_W, 3), np.float32), np.full(3, 9.0), np.zeros(3), key_is_point=True, ambient=np.zeros(3),
        open_sky=False, carried_at=np.zeros(3),
    )  # fmt: skip
    world = World(studio.mi, studio.device, builder, light)
    k = np.array([[50.0, 0, 16], [0, 50, 12], [0, 0, 1]])
    middle = []
    for x in (7.0, 5.0):  # 2 and 4 m from the wall
        image, _ = world.image(Camera(np.array([x, 0.0, 0.0]), look(0, 0, 0), k, 32, 24), 16, 1)
        middle.append(image[10:14, 14:18].mean())
    assert middle[0] / middle[1] == pytest.approx(4, rel=0.15)


def test_a_drive_through_a_mine_stays_under_its_roof(studio):
    _, world, line = sequence._find_drive(studio, 21, "mine", 20.0)
    assert np.linalg.norm(np.diff(line, axis=0), axis=1).sum() > 19
    origins = np.concatenate([line, np.full((len(line), 1), 0.7)], 1)
    above = world.ranges(origins, np.tile([0.0, 0.0, 1.0], (len(line), 1)), 100.0)
    below = world.ranges(origins, np.tile([0.0, 0.0, -1.0], (len(line), 1)), 100.0)
    assert above.max() < 4
    assert 0.4 < below.min() <= below.max() < 0.8


def test_the_camera_of_recordings_is_that_of_their_pictures(studio):
    camera, _ = mounting(320, 240)
    at = np.array([[0.9, 0.6, 3.0]])
    builder = Builder()
    mat = builder.material(studio.bank.material(np.random.default_rng(0), "plain"))
    builder.add(sphere((3.0, -0.9, -0.6), 0.02, 12, 16), mat)  # the same place: the camera looks along x
    eye = Camera(np.zeros(3), look(0, 0, 0), sequence.intrinsics(320, 240), 320, 240)
    v, u = np.nonzero(np.isfinite(small_world(studio, builder).depth(eye)))
    np.testing.assert_allclose(project(at, camera)[0][0], [u.mean(), v.mean()], atol=0.2)


def test_samples_of_another_seed_or_generator_are_not_taken_for_these(tmp_path):
    camera = tmp_path / "train" / "camera"
    camera.mkdir(parents=True)
    for about, word in (
        ({"seed": 8, "version": dataset.VERSION}, "seed 8"),
        ({"seed": SEED, "version": 1}, "version 1"),
    ):
        (camera / "000000.json").write_text(json.dumps(about))
        with pytest.raises(Unusable, match=f"holds samples of {word}"):
            main(["--out", str(tmp_path), "--count", "3", "--seed", str(SEED)])


def test_without_llvm_or_gpu_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("DRJIT_LIBLLVM_PATH", raising=False)
    monkeypatch.setattr(backend, "find_llvm", lambda: None)
    monkeypatch.setattr(backend, "_has_gpu", lambda: False)
    with pytest.raises(Unusable, match="apt-get install libllvm"):
        main(["--out", str(tmp_path), "--count", "3", "--workers", "2"])


def test_kernels_are_compiled_once(studio):
    """Compiling takes longer than rendering: what differs between pictures must be data, wherever it lies in memory."""
    import drjit as dr

    group = [3, 4, 5]
    list(dataset.render_group(studio, SEED, "train", group, 2))
    with dr.scoped_set_flag(dr.JitFlag.KernelHistory, True):
        dr.kernel_history_clear()
        list(dataset.render_group(studio, SEED, "train", [6, 7, 8], 2))
        kernels = [kernel for kernel in dr.kernel_history() if kernel.get("operation_count", 0) > 1000]
    assert len(kernels) >= 6
    assert all(kernel["cache_hit"] for kernel in kernels)


def test_scan_pattern_and_noise(studio):
    d = lidar.scan_pattern(16, 900)
    assert d.shape == (14400, 3)
    np.testing.assert_allclose(np.linalg.norm(d, axis=1), 1, atol=1e-9)
    assert (lidar.scan_pattern(32, 900, front_deg=90)[:, 0] > 0).all()
    builder = Builder()
    mat = builder.material(studio.bank.material(np.random.default_rng(0), "plain"))
    builder.add(quad((4, -50, -50), (0, 100, 0), (0, 0, 100)), mat)
    world = small_world(studio, builder)
    clean = lidar.cast_lidar(world, np.eye(4), d, reach_m=20)
    hit = np.isfinite(clean)
    np.testing.assert_allclose(clean[hit] * d[hit, 0], 4, rtol=1e-4)
    assert clean[hit].max() <= 20
    assert not hit[d[:, 0] < 0].any()
    with pytest.raises(ValueError, match="random"):
        lidar.cast_lidar(world, np.eye(4), d, noise_m=0.02)
    noisy = lidar.cast_lidar(world, np.eye(4), d, 20, 0.02, 0.25, np.random.default_rng(1))
    kept = np.isfinite(noisy)
    assert abs(kept[hit].mean() - 0.75) < 0.03
    assert 0.015 < (noisy[kept] - clean[kept]).std() < 0.025


def test_a_camera_that_stands_sees_the_same_scene_with_other_noise(studio):
    course = sequence.Course(still=True, image_noise=2.0)
    frames = list(
        sequence.render_sequence(4, 3, 160, 120, spp=2, family="room", speed=1.0, studio=studio, course=course)
    )
    for rgb, depth, points, pose, _ in frames[1:]:
        np.testing.assert_array_equal(depth, frames[0][1])
        np.testing.assert_array_equal(pose, frames[0][3])
        assert 1.0 < np.std(rgb.astype(int) - frames[0][0]) < 15.0
        assert len(points) != len(frames[0][2]) or not np.array_equal(points, frames[0][2])


def test_movers_cross_the_view_and_are_in_truth_and_scan(studio):
    course = sequence.Course(still=True, movers=1)
    arguments = {"spp": 2, "family": "room", "speed": 1.0, "rate_hz": 2.0, "noise_m": 0, "dropout": 0, "studio": studio}
    frames = list(sequence.render_sequence(4, 9, 160, 120, course=course, **arguments))
    still = next(iter(sequence.render_sequence(4, 9, 160, 120, course=sequence.Course(still=True), **arguments)))
    k = sequence.intrinsics(160, 120)
    columns = []
    for _, depth, points, _, _ in frames:
        nearer = depth < still[1] - 0.2
        columns.append(float(np.nonzero(nearer)[1].mean()) if nearer.sum() > 50 else None)
        p = points @ sequence.CAMERA_FROM_LIDAR[:3, :3].T + sequence.CAMERA_FROM_LIDAR[:3, 3]
        p = p[p[:, 2] > 0.2]
        u, v = (p[:, :2] / p[:, 2:] * [k[0, 0], k[1, 1]] + k[:2, 2]).T
        inside = (u > 1) & (v > 1) & (u < 158) & (v < 118)
        u, v, z = u[inside].astype(int), v[inside].astype(int), p[inside, 2]
        assert np.median(np.abs(depth[v, u] / z - 1)) < 0.02
        if nearer.sum() > 500:
            on = nearer[v, u]
            assert on.sum() > 5
            assert np.median(np.abs(depth[v, u][on] / z[on] - 1)) < 0.05
    seen = [c for c in columns if c is not None]
    assert len(seen) >= 2
    steps = np.diff(seen)
    assert (steps > 0).all() or (steps < 0).all()  # it walks across, and never turns
    middle = min(range(len(columns)), key=lambda i: math.inf if columns[i] is None else abs(columns[i] - 80))
    assert abs(columns[middle] - 80) < 60


def test_a_turning_camera_is_as_fast_as_asked(studio):
    course = sequence.Course(turn_deg_s=60.0)
    frames = list(
        sequence.render_sequence(
            4, 13, 32, 24, spp=1, family="room", speed=0.5, rate_hz=20.0, beams=2, azimuths=36, studio=studio,
            course=course,
        )
    )  # fmt: skip
    yaw = np.unwrap([np.arctan2(pose[1, 2], pose[0, 2]) for _, _, _, pose, _ in frames])
    fastest = np.degrees(np.abs(np.diff(yaw)).max()) * 20
    assert 50 < fastest < 75


def test_sequence_scans_agree_with_depth(studio):
    frames = list(
        sequence.render_sequence(4, 3, 320, 240, spp=2, family="room", speed=3.0, noise_m=0, dropout=0, studio=studio)
    )
    k = sequence.intrinsics(320, 240)
    assert [f[4] for f in frames] == pytest.approx([0.0, 0.1, 0.2])
    for rgb, depth, points, pose, _ in frames:
        assert rgb.dtype == np.uint8
        assert rgb.shape == (240, 320, 3)
        assert depth.dtype == points.dtype == np.float32
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)
        assert pose[2, 1] < -0.9  # the camera's y axis points down
        p = points @ sequence.CAMERA_FROM_LIDAR[:3, :3].T + sequence.CAMERA_FROM_LIDAR[:3, 3]
        p = p[p[:, 2] > 0.2]
        u, v = (p[:, :2] / p[:, 2:] * [k[0, 0], k[1, 1]] + k[:2, 2]).T
        inside = (u > 1) & (v > 1) & (u < 318) & (v < 238)
        u, v, z = u[inside].astype(int), v[inside].astype(int), p[inside, 2]
        around = np.stack([depth[v + dy, u + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
        fits = (z > around.min(0) * 0.99 - 0.01) & (z < around.max(0) * 1.01 + 0.01)
        # the rest are points that the scanner, 10 cm higher, sees over an edge the camera does not see over
        assert len(z) > 300
        assert fits.mean() > 0.95
    moved = np.linalg.norm(frames[2][3][:3, 3] - frames[0][3][:3, 3])
    assert 0.3 < moved < 0.7
