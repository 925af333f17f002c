"""Recordings to training samples: real bags of either storage, numbers worked by hand, every bad input."""

import json
import signal

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import CompressionMode

from bags import (
    AHEAD,
    START_NS,
    camera_info,
    cloud,
    compressed,
    image,
    laser_scan,
    make,
    text,
    transforms,
    write_bag,
)
from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.estimator import load_estimator
from marigold_ros.places import shared
from marigold_ros.transform_tree import TransformTree
from trainer import collect, collector
from trainer.__main__ import main as trainer
from trainer.samples import SampleFolder, read_sample
from trainer.selection import Selection, TimeSplit, difference, miniature, sharpness

SIZE = 64, 48
K = 50.0, 50.0, 31.5, 23.25
# x = -1, y = -0.5, z = 4 in the camera: u = 31.5 - 50/4 = 19, v = 23.25 - 50/8 = 17.
POINT, PIXEL = (4.0, 1.0, 0.5), (17, 19)
EXTRINSIC = (0.0, "camera", "lidar", (0, 0, 0), AHEAD)
# Keeps whatever can be used.
ALL = ["--min-anchors", "1", "--motion", "0", "--sharpness", "0", "--held-out", "0"]


def picture(number, size=SIZE):
    """A picture like no other: (H, W, 3) uint8 blotches."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def drive(times, points=(POINT,), extrinsic=EXTRINSIC, make_image=image):
    """Messages of a robot that sees another picture, and the same points, at each of the times."""
    messages = [("/tf_static", 0.0, transforms(extrinsic))]
    for number, t in enumerate(times):
        messages += [
            ("/camera/camera_info", t, camera_info(t, K, SIZE)),
            ("/points", t, cloud(t, points)),
            ("/camera/image_raw", t, make_image(t, picture(number))),
        ]
    return messages


def collected(out, split="train", kinds=("depth_m",)):
    folder = SampleFolder(out / split)
    return [folder.read(i, kinds) for i in range(len(folder))], [folder.about(i) for i in range(len(folder))]


def run(*recordings, out, options=ALL):
    return collect.main([*map(str, recordings), "--out", str(out), *map(str, options)])


def only(samples):
    assert len(samples) == 1
    return samples[0]


def known(depth_m):
    """{(row, column): metres} of the known pixels."""
    return {(int(v), int(u)): float(depth_m[v, u]) for v, u in np.argwhere(np.isfinite(depth_m))}


@pytest.mark.parametrize("make_image", [image, compressed], ids=["raw", "compressed"])
@pytest.mark.parametrize(
    ("storage", "compression"),
    [
        ("mcap", None),
        ("mcap", CompressionMode.STORAGE),
        ("mcap", CompressionMode.MESSAGE),
        ("sqlite", None),
        ("sqlite", CompressionMode.FILE),
        ("sqlite", CompressionMode.MESSAGE),
    ],
)
def test_a_point_lands_on_its_pixel(tmp_path, storage, compression, make_image):
    behind_it = (4.4, 1.1, 0.55)  # in the same pixel, farther
    bag = write_bag(tmp_path / "bag", drive([0.0], [POINT, behind_it], make_image=make_image), storage, compression)
    assert run(bag, out=tmp_path / "out") == 0
    samples, abouts = collected(tmp_path / "out")
    sample, about = only(samples), only(abouts)
    assert known(sample.maps["depth_m"]) == {PIXEL: 4.0}
    assert sample.name == f"bag_{START_NS}"
    np.testing.assert_allclose(sample.k, [[50, 0, 31.5], [0, 50, 23.25], [0, 0, 1]])
    assert np.abs(sample.rgb.astype(int) - picture(0)).mean() < 4  # JPEG
    assert about["recording"] == "bag"
    assert about["stamp_ns"] == START_NS
    assert about["topics"] == {"image": "/camera/image_raw", "camera_info": "/camera/camera_info", "range": "/points"}
    assert about["anchors"] == 2
    assert about["sharpness"] > 0


def test_a_file_of_a_bag_alone_will_do(tmp_path):
    bag = write_bag(tmp_path / "bag", drive([0.0]), "sqlite")
    assert run(next(bag.glob("*.db3")), out=tmp_path / "out") == 0
    assert only(collected(tmp_path / "out")[0]).name == f"bag_{START_NS}"


def test_a_laser_scan_lies_in_its_plane(tmp_path):
    messages = [m for m in drive([0.0]) if m[0] != "/points"]
    scan = laser_scan(0.0, np.array([-0.25, 0.0, 0.25]), [40.0, np.inf, 3.0])  # 40 m: beyond the sensor's range
    bag = write_bag(tmp_path / "bag", [*messages, ("/scan", 0.0, scan)])
    run(bag, out=tmp_path / "out")
    sample = only(collected(tmp_path / "out")[0])
    # u = 31.5 - 50 tan(0.25) = 18.73, v = 23.25; z = 3 cos(0.25) = 2.9067
    assert known(sample.maps["depth_m"]) == {(23, 19): pytest.approx(2.9067, abs=2e-3)}


def test_points_lie_on_the_rectified_image(tmp_path):
    """A bright dot, put where the lens shows a point by OpenCV's own model, ends under the point's depth."""
    d = (-0.25, 0.06, 0.001, -0.002, 0.0)
    points = np.array([[4.0, 1.6, 0.9], [4.0, -1.5, -0.8], [5.0, 0.2, 1.4]])
    in_camera = np.stack([-points[:, 1], -points[:, 2], points[:, 0]], axis=1)
    k = np.array([[200, 0, 127.5], [0, 200, 95.5], [0, 0, 1]])
    raw = np.zeros((192, 256, 3), np.uint8)
    for u, v in cv2.projectPoints(in_camera, np.zeros(3), np.zeros(3), k, np.array(d))[0].reshape(-1, 2):
        cv2.circle(raw, (round(u * 16), round(v * 16)), 3 * 16, (255, 255, 255), -1, cv2.LINE_AA, 4)
    messages = [
        ("/tf_static", 0.0, transforms(EXTRINSIC)),
        ("/camera/camera_info", 0.0, camera_info(0.0, (200, 200, 127.5, 95.5), (256, 192), d)),
        ("/points", 0.0, cloud(0.0, points)),
        ("/camera/image_raw", 0.0, image(0.0, raw)),
    ]
    run(write_bag(tmp_path / "bag", messages), out=tmp_path / "out")
    sample = only(collected(tmp_path / "out")[0])
    found = known(sample.maps["depth_m"])
    assert sorted(found.values()) == [4.0, 4.0, 5.0]
    count, _, _, centres = cv2.connectedComponentsWithStats((sample.rgb[..., 0] > 128).astype(np.uint8))
    assert count == 4
    for v, u in found:
        assert np.hypot(*(centres[1:] - (u, v)).T).min() < 0.9
    # Without the rectification they would be far off.
    assert np.linalg.norm(cv2.projectPoints(in_camera, np.zeros(3), np.zeros(3), k, np.array(d))[0][0, 0]
                          - (127.5 - 200 * 0.4, 95.5 - 200 * 0.225)) > 3  # fmt: skip


def about_z(degrees):
    half = np.radians(degrees) / 2
    return 0.0, 0.0, np.sin(half), np.cos(half)


def test_a_moving_joint_is_taken_at_the_time_of_the_scan(tmp_path):
    """The LiDAR turns 4 degrees a second to the left on a mast 1 m above; /tf comes twice a second."""
    turning = [("/tf", t, transforms((t, "mast", "lidar", (0, 0, 0), about_z(40 * t)))) for t in (0.0, 0.5, 1.0)]
    messages = [
        ("/tf_static", 0.0, transforms((0.0, "base", "camera_link", (0, 0, 0), (0, 0, 0, 1)))),
        ("/tf_static", 0.0, transforms((0.0, "camera_link", "camera", (0, 0, 0), (-0.5, 0.5, -0.5, 0.5)))),
        ("/tf_static", 0.0, transforms((0.0, "base", "mast", (0, 0, 1.0), (0, 0, 0, 1)))),
        *turning,
        ("/camera/camera_info", 0.0, camera_info(0.0, K, SIZE)),
        ("/points", 0.25, cloud(0.25, [(5.0, 0.0, -1.0)])),
        ("/camera/image_raw", 0.26, image(0.26, picture(0))),
    ]
    run(write_bag(tmp_path / "bag", messages), out=tmp_path / "out")
    # 10 degrees to the left: u = 31.5 - 50 tan(10°) = 22.68, z = 5 cos(10°) = 4.924
    expected = {(23, 23): pytest.approx(4.924, abs=2e-3)}
    assert known(only(collected(tmp_path / "out")[0]).maps["depth_m"]) == expected


def odometry(*places):
    return [("/tf", t, transforms((t, "odom", "base", (x, 0, 0), (0, 0, 0, 1)))) for t, x in places]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {(23, 32): 6.0}),
        (["--fixed-frame", "odom"], {(23, 32): 5.5}),
        (["--fixed-frame", "odom", "--join", "0.3"], {(23, 32): 5.5, (23, 14): 5.0}),
    ],
)
def test_with_a_fixed_frame_what_was_driven_is_taken_out(tmp_path, options, expected):
    """The robot drives 10 m/s; the nearest scan is 0.05 s older than the image, another one 0.2 s."""
    messages = [
        ("/tf_static", 0.0, transforms((0.0, "base", "camera", (0, 0, 0), (-0.5, 0.5, -0.5, 0.5)))),
        ("/tf_static", 0.0, transforms((0.0, "base", "lidar", (0, 0, 0), (0, 0, 0, 1)))),
        *odometry((0.0, 0.0), (1.0, 10.0)),
        ("/camera/camera_info", 0.0, camera_info(0.0, K, SIZE)),
        ("/points", 0.3, cloud(0.3, [(7.0, 1.75, 0.0)])),  # 5 m ahead of where the image is taken
        ("/points", 0.45, cloud(0.45, [(6.0, 0.0, 0.0)])),
        ("/camera/image_raw", 0.5, image(0.5, picture(0))),
    ]
    run(write_bag(tmp_path / "bag", messages), out=tmp_path / "out", options=[*ALL, "--max-age", "0.06", *options])
    found = known(only(collected(tmp_path / "out")[0]).maps["depth_m"])
    assert found == {pixel: pytest.approx(z, abs=4e-3) for pixel, z in expected.items()}


@pytest.mark.parametrize(("options", "depth_m"), [([], 5.5), (["--no-point-times"], 5.0)])
def test_with_a_fixed_frame_each_point_counts_from_its_own_time(tmp_path, options, depth_m):
    """The robot drives 10 m/s; the scan is stamped 0.05 s before the image, and sees what is ahead 0.05 s later."""
    timed, point = cloud(0.45, [(5.5, 0.0, 0.0), (-3.0, 1.0, 0.0)]), np.dtype([("xyz", "3f4"), ("time", "f4")])
    data = np.array([((5.5, 0.0, 0.0), 0.05), ((-3.0, 1.0, 0.0), 0.0)], point)
    timed.fields.append(make("sensor_msgs/msg/PointField", "time", 12, 7, 1))
    timed.point_step, timed.row_step, timed.data = 16, 32, data.view(np.uint8)
    messages = [
        ("/tf_static", 0.0, transforms((0.0, "base", "camera", (0, 0, 0), (-0.5, 0.5, -0.5, 0.5)))),
        ("/tf_static", 0.0, transforms((0.0, "base", "lidar", (0, 0, 0), (0, 0, 0, 1)))),
        *odometry((0.0, 0.0), (1.0, 10.0)),
        ("/camera/camera_info", 0.0, camera_info(0.0, K, SIZE)),
        ("/points", 0.45, timed),
        ("/camera/image_raw", 0.5, image(0.5, picture(0))),
    ]
    chosen = [*ALL, "--max-age", "0.06", "--fixed-frame", "odom", *options]
    run(write_bag(tmp_path / "bag", messages), out=tmp_path / "out", options=chosen)
    found = known(only(collected(tmp_path / "out")[0]).maps["depth_m"])
    assert list(found.values()) == [pytest.approx(depth_m, abs=4e-3)]


def test_the_extrinsic_can_be_given(tmp_path):
    messages = [m for m in drive([0.0]) if not m[0].startswith("/tf")]
    where = ["--translation", "0.08", "0", "0", "--rotation", *AHEAD]
    run(write_bag(tmp_path / "bag", messages), out=tmp_path / "out", options=[*ALL, *where])
    # 0.08 m to the right: u = 19 + 50 * 0.08 / 4 = 20
    assert known(only(collected(tmp_path / "out")[0]).maps["depth_m"]) == {(17, 20): 4.0}


def test_the_nearest_scan_is_taken(tmp_path):
    messages = [m for m in drive([0.1]) if m[0] != "/points"]
    scans = [("/points", t + 0.02, cloud(t, [(z, 0, 0)])) for t, z in ((0.0, 3.0), (0.08, 5.0), (0.13, 7.0))]
    run(write_bag(tmp_path / "bag", sorted(messages + scans, key=lambda m: m[1])), out=tmp_path / "out")
    samples, abouts = collected(tmp_path / "out")
    assert list(known(only(samples).maps["depth_m"]).values()) == [5.0]
    assert only(abouts)["scan_age_s"] == 0.02


def test_points_that_the_camera_cannot_see_are_left_out(tmp_path):
    """A post at 2 m, and between its points the wall 8 m behind it, which a LiDAR above it sees."""
    post = [(2.0, y, z) for y in (-0.05, 0.0, 0.05) for z in (-0.05, 0.0, 0.05)]
    run(write_bag(tmp_path / "bag", drive([0.0], [*post, (10.0, 0.12, 0.1)])), out=tmp_path / "out")
    assert set(known(only(collected(tmp_path / "out")[0]).maps["depth_m"]).values()) == {2.0}


def test_images_are_stored_smaller_with_their_camera(tmp_path):
    run(write_bag(tmp_path / "bag", drive([0.0])), out=tmp_path / "out", options=[*ALL, "--size", "32"])
    sample = only(collected(tmp_path / "out")[0])
    assert sample.rgb.shape == (24, 32, 3)
    assert known(sample.maps["depth_m"]) == {(8, 9): 4.0}  # (19 + 0.5) / 2 - 0.5 = 9.25, (17 + 0.5) / 2 - 0.5 = 8.25
    np.testing.assert_allclose(sample.k, [[25, 0, 15.5], [0, 25, (23.25 + 0.5) / 2 - 0.5], [0, 0, 1]])


def test_frames_are_kept_by_motion_sharpness_and_points(tmp_path, capsys):
    messages = [("/tf_static", 0.0, transforms(EXTRINSIC))]
    fine = np.random.default_rng(0).integers(0, 2, (24, 400)).astype(np.uint8)
    world = cv2.cvtColor(cv2.resize(fine * 200, (800, 48), interpolation=cv2.INTER_NEAREST), cv2.COLOR_GRAY2RGB)
    views = []
    for number in range(12):
        view = world[:, 40 * number : 40 * number + 64]
        if number == 3:
            view = views[2]  # the robot stands
        if number == 5:
            view = cv2.GaussianBlur(view, (0, 0), 4)
        views.append(view)
    for number, view in enumerate(views):
        t = 0.2 * number
        messages += [
            ("/camera/camera_info", t, camera_info(t, K, SIZE)),
            ("/points", t, cloud(t, [POINT] * (19 if number == 8 else 20))),
            ("/camera/image_raw", t, image(t, view)),
        ]
    bag = write_bag(tmp_path / "bag", messages)
    assert run(bag, out=tmp_path / "out", options=["--held-out", "0"]) == 0
    _, abouts = collected(tmp_path / "out")
    kept = [round((about["stamp_ns"] - START_NS) * 1e-9 / 0.2) for about in abouts]
    assert kept == [0, 1, 2, 4, 6, 7, 9, 10, 11]
    said = capsys.readouterr().out
    assert "bag: 12 frames, 9 kept to train on, 0 held out" in said
    for words in ("1 like the last one kept", "1 blurred", "1 with too few LiDAR points in view", "19 of at least 20"):
        assert words in said


def test_measures_of_frames():
    sharp = np.repeat(np.random.default_rng(0).integers(0, 256, (48, 64, 1)).astype(np.uint8), 3, axis=2)
    assert sharpness(cv2.GaussianBlur(sharp, (0, 0), 2)) < 0.02 * sharpness(sharp)
    small, brighter = miniature(sharp // 2), miniature(sharp // 2 + 40)
    assert difference(small, small) == 0
    assert difference(small, brighter) < 0.01  # exposure is no motion
    assert difference(small, miniature(sharp[:, ::-1] // 2)) > 0.8
    grey = np.full((48, 64, 3), 90, np.uint8)
    noisy = (grey + np.random.default_rng(1).normal(0, 2, grey.shape)).astype(np.uint8)
    assert difference(miniature(cv2.resize(grey, (640, 480))), miniature(cv2.resize(noisy, (640, 480)))) < 2.0


def test_what_is_sharp_follows_the_surrounding():
    """A plain wall after rich texture is no blur once the robot has got used to it."""
    rich, plain = picture(1), cv2.GaussianBlur(picture(1), (0, 0), 4)
    selection = Selection(0.4)
    assert not any(selection.look(rich).blurred for _ in range(20))
    assert selection.look(plain).blurred
    looks = [selection.look(plain).blurred for _ in range(40)]
    assert looks[0]
    assert not looks[-1]


@pytest.mark.parametrize(
    ("time_s", "split"),
    [(0, "train"), (37.9, "train"), (38.1, None), (40, "held_out"), (49.9, "held_out"), (51.9, None), (52.1, "train")],
)
def test_a_fifth_of_the_time_is_held_out_in_stretches(time_s, split):
    assert TimeSplit(100.0, 0.2, 10.0, 2.0)(time_s) == split


@pytest.mark.parametrize("duration_s", [3.0, 8.0, 47.3, 60.0, 611.0])
@pytest.mark.parametrize("share", [0.1, 0.2, 1 / 3, 0.5])
def test_nothing_that_is_trained_on_is_near_what_is_held_out(duration_s, share):
    times = np.linspace(0, duration_s, 2000)
    gap_s = min(2.0, 0.1 * duration_s)
    found = np.array([str(TimeSplit(duration_s, share, 10.0, gap_s)(t)) for t in times])
    train, held_out = times[found == "train"], times[found == "held_out"]
    assert len(train)
    assert len(held_out) / len(times) == pytest.approx(share, abs=0.002)
    assert np.abs(train[:, None] - held_out).min() >= gap_s - 1e-9


def test_all_or_nothing_can_be_held_out():
    assert {TimeSplit(50, 0, 10, 2)(t) for t in range(50)} == {"train"}
    assert {TimeSplit(50, 1, 10, 2)(t) for t in range(50)} == {"held_out"}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


MORE = ["--min-anchors", "1", "--motion", "0", "--block", "1", "--gap", "0.5"]


@pytest.fixture(scope="module")
def long_bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp("bags") / "long", drive(np.arange(0, 12, 0.5)))


def test_splits_lie_in_folders_of_their_own(long_bag, tmp_path):
    run(long_bag, out=tmp_path / "out", options=MORE)
    seconds = {
        split: [round((about["stamp_ns"] - START_NS) * 1e-9, 6) for about in collected(tmp_path / "out", split)[1]]
        for split in ("train", "held_out")
    }
    # A fifth of 11.5 s in two stretches: from 4.6 to 5.75 and from 10.35 to 11.5 s.
    assert seconds["held_out"] == [5.0, 5.5, 10.5, 11.0, 11.5]
    assert seconds["train"] == [*np.arange(0, 4.1, 0.5), *np.arange(6.5, 9.6, 0.5)]


@pytest.mark.parametrize("how", ["signal", "crash"])
def test_stopped_anywhere_it_goes_on_as_if_it_had_not_been(long_bag, tmp_path, monkeypatch, how):
    run(long_bag, out=tmp_path / "whole", options=MORE)
    write, written = collector.write_sample, []

    def interrupted(folder, sample, about):
        written.append(sample.name)
        if len(written) == 5 and how == "crash":
            (folder / "rgb" / f"{sample.name}.jpg").write_bytes(b"half a pic")
            raise RuntimeError("power cut")
        write(folder, sample, about)
        if len(written) == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(collector, "write_sample", interrupted)
    if how == "crash":
        with pytest.raises(RuntimeError, match="power cut"):
            run(long_bag, out=tmp_path / "out", options=MORE)
    else:
        assert run(long_bag, out=tmp_path / "out", options=MORE) == collect.STOPPED
    assert len(list((tmp_path / "out").rglob("*.json"))) == (6 if how == "signal" else 5)
    assert run(long_bag, out=tmp_path / "out", options=MORE) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # What was whole was not written again.
    assert len(written) == len(set(written)) + (1 if how == "crash" else 0)


def test_ctrl_c_while_it_looks_through_leaves_nothing(long_bag, tmp_path, monkeypatch):
    def watched(self, messages, count):
        signal.raise_signal(signal.SIGINT)
        yield from original(self, messages, count)

    original = collector.Collector._watched
    monkeypatch.setattr(collector.Collector, "_watched", watched)
    assert run(long_bag, out=tmp_path / "out", options=MORE) == collect.STOPPED
    assert not (tmp_path / "out").exists()


def test_a_recording_that_is_done_is_not_read_again(long_bag, tmp_path, monkeypatch, capsys):
    run(long_bag, out=tmp_path / "out", options=MORE)
    said = capsys.readouterr().out
    monkeypatch.setattr(collector, "contents_of", None)
    assert run(long_bag, out=tmp_path / "out", options=MORE) == 0
    assert capsys.readouterr().out == said


def test_other_settings_want_another_folder(long_bag, tmp_path):
    run(long_bag, out=tmp_path / "out", options=MORE)
    with pytest.raises(Unusable, match=r"long\.json: .* begun with gap_s=0\.5, not 1\.0; .* another --out"):
        run(long_bag, out=tmp_path / "out", options=[*MORE, "--gap", "1"])


def test_a_setting_that_did_not_exist_then_was_as_it_is_by_default(long_bag, tmp_path):
    run(long_bag, out=tmp_path / "out", options=MORE)
    path = tmp_path / "out/recordings/long.json"
    begun = json.loads(path.read_text())
    del begun["settings"]["range"]["time_offset_s"]
    path.write_text(json.dumps(begun))
    assert run(long_bag, out=tmp_path / "out", options=MORE) == 0
    with pytest.raises(Unusable, match=r"begun with range\.time_offset_s=0\.0, not 0\.1"):
        run(long_bag, out=tmp_path / "out", options=[*MORE, "--time-offset", "0.1"])


def test_several_recordings_make_one_dataset(tmp_path, capsys):
    first = write_bag(tmp_path / "a", drive([0.0]))
    dark = write_bag(tmp_path / "b", drive([0.0], points=[(-4.0, 0, 0)]))  # the LiDAR looks back
    last = write_bag(tmp_path / "c", drive([0.0, 1.0]), "sqlite")
    assert run(first, dark, last, out=tmp_path / "out") == 2
    assert len(collected(tmp_path / "out")[0]) == 3
    said = capsys.readouterr()
    assert "a: 1 frames, 1 kept" in said.out
    assert "c: 2 frames, 2 kept" in said.out
    assert "nothing to keep" in said.err


def test_two_recordings_of_one_name_are_refused(tmp_path):
    paths = [write_bag(tmp_path / folder / "bag", drive([0.0])) for folder in "ab"]
    with pytest.raises(Unusable, match="samples of both are named bag; rename one"):
        run(*paths, out=tmp_path / "out")


def test_the_bundled_recording_agrees_with_its_true_depth(tmp_path):
    bag = shared("recordings") / "warehouse"
    truth = ["--truth", "/ground_truth/depth/compressed", "--held-out", "1"]
    assert trainer(["collect", str(bag), "--out", str(tmp_path / "lidar"), "--held-out", "1"]) == 0
    assert trainer(["collect", str(bag), "--out", str(tmp_path / "dense"), *truth]) == 0
    sparse, _ = collected(tmp_path / "lidar", "held_out")
    dense, abouts = collected(tmp_path / "dense", "held_out")
    assert [s.name for s in sparse] == [s.name for s in dense]
    assert {about["depth"] for about in abouts} == {"dense"}
    error = np.concatenate(
        [(s.maps["depth_m"] / d.maps["depth_m"] - 1).ravel() for s, d in zip(sparse, dense, strict=True)]
    )
    error = np.abs(error[np.isfinite(error)])
    assert len(error) > 500 * len(sparse)
    assert np.median(error) < 0.01
    assert np.isfinite(dense[0].maps["depth_m"]).mean() > 0.2
    assert np.isfinite(sparse[0].maps["depth_m"]).mean() < 0.02


def test_true_depth_may_be_an_image_of_metres(tmp_path):
    metres = np.full((48, 64), 3.5, np.float32)
    metres[0, 0] = np.nan
    truth = image(0.0, metres[..., None], "32FC1")
    bag = write_bag(tmp_path / "bag", [*drive([0.0]), ("/truth", 0.0, truth)])
    run(bag, out=tmp_path / "out", options=["--min-anchors", "1", "--held-out", "1", "--truth", "/truth"])
    found = only(collected(tmp_path / "out", "held_out")[0]).maps["depth_m"]
    np.testing.assert_array_equal(found, metres)


def test_the_prior_is_what_the_network_says(tmp_path):
    bag = write_bag(tmp_path / "bag", drive([0.0]))
    run(bag, out=tmp_path / "out", options=[*ALL, "--prior", "nano"])
    samples, abouts = collected(tmp_path / "out", kinds=("depth_m", "prior"))
    estimator = load_estimator(ModelConfig(checkpoint="nano"))
    np.testing.assert_allclose(only(samples).maps["prior"], estimator(picture(0)), atol=1e-3)
    assert only(abouts)["prior"]["space"] == "inverse_depth"
    assert len(only(abouts)["prior"]["digest"]) == 64
    stored = np.load(next((tmp_path / "out" / "train" / "prior").glob("*.npy")))
    assert stored.dtype == np.float16


def without(topic, messages):
    return [m for m in messages if m[0] != topic]


DRIVE = drive([0.0, 0.5])
IMAGE, INFO, POINTS = "/camera/image_raw", "/camera/camera_info", "/points"


def instead(topic, message, t=0.0):
    return [*without(topic, DRIVE), (topic, t, message)]


def with_truth(message, t=0.0):
    return [*drive([0.0]), ("/truth", t, message)]


TRUTH = ["--truth", "/truth", "--held-out", "1"]
SMALL = image(0.0, np.ones((10, 10, 1), np.float32), "32FC1")
BROKEN = drive([0.0], extrinsic=(0.0, "camera", "velodyne", (0, 0, 0), AHEAD))
# The messages, options, and what the sentence must say.
BAD = {
    "no LiDAR": (
        without(POINTS, DRIVE),
        [],
        r"no messages of .*PointCloud2 or .*LaserScan; without a LiDAR .*/image_raw",
    ),
    "no image": (without(IMAGE, DRIVE), [], r"no messages of sensor_msgs/msg/Image or .*CompressedImage; record"),
    "no camera info": (without(INFO, DRIVE), [], r"has no messages of sensor_msgs/msg/CameraInfo; record"),
    "wrong type": (
        [*DRIVE, ("/chatter", 0.0, text("hello"))],
        ["--range", "/chatter"],
        r"--range /chatter: is of std_msgs/msg/String, must be of .*PointCloud2 or .*LaserScan; there is /points",
    ),
    "wrong image type": (
        DRIVE,
        ["--image", POINTS],
        r"--image /points: is of sensor_msgs/msg/PointCloud2, must be of .*; there is /camera/image_raw",
    ),
    "no such topic": (DRIVE, ["--image", "/cam"], r"--image /cam: .* no messages of it, only .*/camera/image_raw"),
    "several LiDARs": ([*DRIVE, ("/rear", 0.0, cloud(0.0, [POINT]))], [], r"/points, /rear of .*; choose .* --range"),
    "no transform": (
        without("/tf_static", DRIVE),
        [],
        r"no transform from 'lidar' to 'camera' in /tf or /tf_static, which connect none at all; .*--translation",
    ),
    "broken chain": (BROKEN, [], r"no transform from 'lidar' to 'camera' .* connect camera, velodyne;"),
    "fixed frame unknown": (DRIVE, ["--fixed-frame", "odom"], r"no transform from 'camera' to 'odom'"),
    "no frame": (instead(POINTS, cloud(0.0, [POINT], "")), [], r"range header\.frame_id='': .*--translation"),
    "no stamps": (instead(POINTS, cloud(None, [POINT])), [], r"topic /points: its headers have no time \(stamp 0\)"),
    "scans of another time": (
        instead(POINTS, cloud(9.0, [POINT]), 9.0),
        [],
        r"nothing to keep .* 2 frames, 0 kept .* 2 without a scan .*nearest scan is 9\.000 s newer, --max-age 0\.05",
    ),
    "zero size": (
        instead(IMAGE, image(0.0, picture(0)[:0])),
        [],
        r"nothing to keep .* image of 64x0: must have pixels",
    ),
    "encoding": (
        instead(IMAGE, image(0.0, picture(0), "hsv8")),
        [],
        r"nothing to keep .* encoding='hsv8': must be one",
    ),
    "other size": (instead(INFO, camera_info(0.0, K, (640, 480))), [], r"nothing to keep .* camera info of 640x480"),
    "uncalibrated": (instead(INFO, camera_info(0.0, (0, 0, 0, 0), SIZE)), [], r"nothing to keep .* K has fx=0\.0"),
    "empty clouds": (instead(POINTS, cloud(0.0, [])), [], r"nothing to keep .* cloud of 0x1 points: is empty"),
    "too few points": (DRIVE, ["--min-anchors", "5"], r"nothing to keep .* 2 with too few LiDAR .*1 of at least 5"),
    "truth of no image": (DRIVE, ["--truth", POINTS], r"--truth /points: is of sensor_msgs/msg/PointCloud2"),
    "truth of another size": (with_truth(SMALL), TRUTH, r"true depth of 10x10 for an image of 64x48"),
    "truth of no depth": (with_truth(compressed(0.0, picture(0))), TRUTH, r"ground truth: is no 16-bit PNG"),
    "no truth then": (
        with_truth(compressed(0.1, picture(0)), 0.1),
        TRUTH,
        r"no message of /truth has the image's stamp",
    ),
    "impossible share": (DRIVE, ["--held-out", "1.5"], r"--held-out 1\.5: must lie between 0 and 1"),
    "impossible block": (DRIVE, ["--block", "0"], r"--block 0: must be more than 0"),
    "negative": (DRIVE, ["--motion", "-1"], r"motion -1\.0: must not be negative"),
    "join without motion": (DRIVE, ["--join", "0.2"], r"--join 0\.2: .* give --fixed-frame"),
    "no rotation": (DRIVE, ["--rotation", "0", "0", "0", "0"], r"rotation_xyzw=.*must have length 1"),
    "no checkpoint": (DRIVE, ["--prior", "/nowhere"], r"/nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(tmp_path, case):
    messages, options, sentence = BAD[case]
    bag = write_bag(tmp_path / "bag", messages)
    with pytest.raises(Unusable, match=sentence) as raised:
        run(bag, out=tmp_path / "out", options=[*ALL, *options])
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_single_bad_frame_costs_no_more_than_itself(tmp_path, capsys):
    messages = drive([0.0, 0.5, 1.0, 1.5])
    messages[3] = (IMAGE, 0.0, image(0.0, picture(0)[:, :-1]))  # of another size than its info
    messages[5] = (POINTS, 0.5, cloud(0.5, np.full((3, 3), np.nan)))
    messages.append((IMAGE, 2.0, ("sensor_msgs/msg/Image", b"\0\1\0\0 no image")))
    run(write_bag(tmp_path / "bag", messages), out=tmp_path / "out")
    assert len(collected(tmp_path / "out")[0]) == 2
    said = capsys.readouterr().out
    assert "1 that the camera info does not fit" in said
    assert "1 with too few LiDAR points in view" in said
    assert "1 with an image that cannot be used" in said
    assert "cannot be read as one" in said


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert trainer(["collect", "/nowhere", "--out", str(tmp_path)]) == 2
    assert "trainer: recording /nowhere: no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("storage", ["mcap", "sqlite"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_recording_that_was_cut_short_is_named(tmp_path, storage, share):
    bag = write_bag(tmp_path / "bag", drive(np.arange(0, 5, 0.5)), storage)
    file = next(path for path in bag.iterdir() if path.suffix in (".mcap", ".db3"))
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(Unusable, match=r"recording .*bag: is damaged or was cut short \(.*; copy it again"):
        run(bag, out=tmp_path / "out")


def test_a_recording_whose_recorder_was_killed_is_named(tmp_path):
    bag = write_bag(tmp_path / "bag", drive([0.0]))
    (bag / "metadata.yaml").unlink()
    with pytest.raises(Unusable, match=r"bag: has no metadata\.yaml; .*'ros2 bag reindex"):
        run(bag, out=tmp_path / "out")
    (tmp_path / "bag.zip").write_bytes(b"PK")
    with pytest.raises(Unusable, match=r"bag\.zip: is no \.mcap or \.db3 file"):
        run(tmp_path / "bag.zip", out=tmp_path / "out")


def test_depth_images_are_not_taken_for_the_camera(tmp_path):
    depth = image(0.0, np.ones((48, 64, 1), np.uint16), "16UC1")
    bag = write_bag(tmp_path / "bag", [*drive([0.0]), ("/camera/depth/image_raw", 0.0, depth)])
    run(bag, out=tmp_path / "out")
    assert only(collected(tmp_path / "out")[1])["topics"]["image"] == "/camera/image_raw"


def test_of_several_camera_infos_the_one_beside_the_image_is_taken(tmp_path):
    other = camera_info(0.0, (70, 70, 31.5, 23.25), SIZE)
    bag = write_bag(tmp_path / "bag", [("/a/camera_info", 0.0, other), *drive([0.0])])
    run(bag, out=tmp_path / "out")
    assert only(collected(tmp_path / "out")[0]).k[0, 0] == 50
    run(bag, out=tmp_path / "other", options=[*ALL, "--camera-info", "/a/camera_info"])
    assert only(collected(tmp_path / "other")[0]).k[0, 0] == 70


def tree(*edges, moves):
    found = TransformTree(patience_s=0.2)
    found.add(transforms(*edges), moves)
    return found


def test_transforms_between_two_times_are_interpolated():
    moving = tree((0.0, "a", "b", (0, 0, 0), about_z(0)), (1.0, "a", "b", (2, 0, 0), about_z(10)), moves=True)
    found = moving.matrix("a", "b", START_NS + 250_000_000)
    np.testing.assert_allclose(found[:3, 3], [0.5, 0, 0])
    assert np.degrees(np.arctan2(found[1, 0], found[0, 0])) == pytest.approx(2.5, abs=0.01)
    back = moving.matrix("b", "a", START_NS + 250_000_000)
    np.testing.assert_allclose(back @ found, np.eye(4), atol=1e-12)
    # Beyond the ends the nearest one, for a while.
    np.testing.assert_allclose(moving.matrix("a", "b", START_NS + 1_150_000_000)[:3, 3], [2, 0, 0])
    with pytest.raises(Unusable, match=r"no transform from 'b' to 'a' at .* begins later or ended before"):
        moving.matrix("a", "b", START_NS + 1_300_000_000)


def test_quaternions_of_either_sign_are_the_same_rotation():
    negative = tuple(-v for v in about_z(10))
    moving = tree((0.0, "a", "b", (0, 0, 0), about_z(0)), (1.0, "a", "b", (0, 0, 0), negative), moves=True)
    found = moving.matrix("a", "b", START_NS + 500_000_000)
    assert np.degrees(np.arctan2(found[1, 0], found[0, 0])) == pytest.approx(5, abs=1e-6)


def test_a_ring_of_transforms_ends():
    ring = tree((0.0, "a", "b", (0, 0, 0), about_z(0)), (0.0, "b", "a", (0, 0, 0), about_z(0)), moves=False)
    with pytest.raises(Unusable, match="no transform from 'c' to 'a'"):
        ring.require("a", "c")


def test_the_state_file_tells_what_happened(long_bag, tmp_path):
    run(long_bag, out=tmp_path / "out", options=MORE)
    facts = json.loads((tmp_path / "out" / "recordings" / "long.json").read_text())
    assert facts["summary"]["seen"] == 24
    assert facts["summary"]["kept"] == {"train": 16, "held_out": 5}
    assert facts["summary"]["dropped"] == {"between train and held_out": 3}
    sample = read_sample(tmp_path / "out" / "train", f"long_{START_NS}", ["depth_m"])
    assert known(sample.maps["depth_m"]) == {PIXEL: 4.0}
