"""Recordings: what is written comes back, and the player and recorder carry it over DDS."""

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from marigold_ros import processes, recordings
from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera, project, transform_from_quaternion, transformed
from marigold_ros.places import shared
from marigold_ros.recordings import Frame, Recording, RecordingWriter

CAMERA = Camera(64, 48, 50.0, 51.0, 31.5, 23.5)
POSE = transform_from_quaternion((0.1, -0.2, 0.05), (0.5, -0.5, 0.5, 0.5))
START_NS = 1_700_000_000_123_456_789


def frames(count):
    v, u = np.mgrid[0:48, 0:64].astype(np.float32)
    for i in range(count):
        rgb = np.stack([u * 3, v * 4, np.full_like(u, 20 * i)], axis=-1).astype(np.uint8)
        points = np.random.default_rng(i).uniform(-5, 5, (200, 3)).astype(np.float32)
        yield Frame(START_NS + i * 100_000_000, rgb, 1.0 + u / 10 + i, points)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings") / "short"
    assert recordings.write_frames(path, frames(6), CAMERA, POSE) == 6
    return path


def test_frames_come_back_as_they_were_written(recording):
    with Recording(recording) as opened:
        found = list(recordings.read_frames(opened))
    assert [f.stamp_ns for f in found] == [f.stamp_ns for f in frames(6)]
    for read, written in zip(found, frames(6), strict=True):
        assert np.abs(read.rgb.astype(int) - written.rgb).mean() < 3
        np.testing.assert_array_equal(read.points, written.points)
        np.testing.assert_allclose(read.depth_m[::2, ::2], written.depth_m[::2, ::2], atol=6e-4)
        assert np.isnan(read.depth_m[1::2]).all()


def test_camera_and_extrinsic_come_back(recording):
    with Recording(recording) as opened:
        camera = recordings.recorded_camera(opened)
        np.testing.assert_allclose(recordings.recorded_extrinsic(opened), POSE, atol=1e-9)
    assert (camera.width, camera.height) == (64, 48)
    np.testing.assert_allclose(camera.matrix, CAMERA.matrix)
    assert not camera.is_distorted


def test_the_mcap_alone_can_be_opened(recording):
    with Recording(recording / "short.mcap") as opened:
        assert opened.topics[recordings.RANGE] == "sensor_msgs/msg/PointCloud2"
        assert opened.duration_s == pytest.approx(0.5)


def test_a_new_recording_replaces_an_old_one_but_nothing_else(tmp_path):
    recordings.write_frames(tmp_path / "r", frames(2), CAMERA, POSE)
    recordings.write_frames(tmp_path / "r", frames(1), CAMERA, POSE)
    with Recording(tmp_path / "r") as opened:
        assert len(list(recordings.read_frames(opened))) == 1
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years")
    with pytest.raises(Unusable, match="precious: exists and is no recording"):
        RecordingWriter(tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.tex").exists()


def test_a_missing_or_damaged_recording_is_named(tmp_path):
    with pytest.raises(Unusable, match="nowhere: no such file or folder"):
        Recording(tmp_path / "nowhere")
    (tmp_path / "broken.mcap").write_bytes(b"not an mcap at all")
    with pytest.raises(Unusable, match=r"broken\.mcap"):
        Recording(tmp_path / "broken.mcap")


def test_the_truth_keeps_what_is_unknown_unknown():
    depth_m = np.full((4, 4), 3.25, np.float32)
    depth_m[0, 0], depth_m[0, 2], depth_m[2, 0] = np.nan, np.inf, 70.0
    found = recordings.truth_from_png(recordings.truth_png(depth_m))
    assert np.isnan(found[[0, 0, 1], [0, 1, 0]]).all()
    assert found[1, 1] == pytest.approx(3.25)


@pytest.mark.parametrize("turn", [0.0, 1e-4, 1.0, np.pi / 2, 3.0, np.pi])
def test_quaternions_give_their_rotation_back(turn):
    axis = np.array([1.0, 2.0, -0.5]) / np.linalg.norm([1.0, 2.0, -0.5])
    rotation = transform_from_quaternion((0, 0, 0), (*(axis * np.sin(turn / 2)), np.cos(turn / 2)))[:3, :3]
    quaternion = recordings.quaternion_from_rotation(rotation)
    np.testing.assert_allclose(transform_from_quaternion((0, 0, 0), quaternion)[:3, :3], rotation, atol=1e-9)
    assert np.linalg.norm(quaternion) == pytest.approx(1.0)


def test_player_and_recorder_carry_a_recording_over_dds(recording, tmp_path):
    """Two processes: every message arrives unchanged but for its stamp, which is now."""
    topics = [recordings.IMAGE, recordings.CAMERA_INFO, recordings.RANGE, recordings.GROUND_TRUTH]
    environment = processes.private_environment(processes.free_domain())
    began_ns = time.time_ns()
    recorder = processes.start("marigold_ros.recorder", ["--out", str(tmp_path / "copy"), *topics], environment, None)
    try:
        arguments = [str(recording), "--wait", "20", "--wait-for", *topics]
        player = processes.start("marigold_ros.player", arguments, environment, None)
        assert player.wait(60) == 0
    finally:
        status = processes.stop(recorder)
    assert status == 0
    with Recording(recording) as before, Recording(tmp_path / "copy") as after:
        old, new = (list(recordings.read_frames(opened)) for opened in (before, after))
    assert len(new) == len(old) == 6
    assert all(began_ns < frame.stamp_ns < time.time_ns() for frame in new)
    for played, written in zip(new, old, strict=True):
        np.testing.assert_array_equal(played.rgb, written.rgb)
        np.testing.assert_array_equal(played.points, written.points)
        assert played.stamp_ns - new[0].stamp_ns == pytest.approx(written.stamp_ns - old[0].stamp_ns, abs=1000)


def test_the_player_says_what_is_wrong_with_its_arguments(tmp_path):
    for arguments, reason in (([str(tmp_path / "no")], "no such file"), (["x", "--rate", "0"], "greater than 0")):
        environment = processes.private_environment(processes.free_domain())
        command = [processes.sys.executable, "-m", "marigold_ros.player", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert reason in done.stderr


@pytest.fixture(scope="module")
def bundled():
    return shared("recordings/warehouse")


def test_the_bundled_recording_is_small_and_complete(bundled: Path):
    assert sum(path.stat().st_size for path in bundled.iterdir()) <= 10_000_000
    with Recording(bundled) as opened:
        assert 6.0 <= opened.duration_s <= 10.0
        stamps = {topic: [] for topic in (recordings.IMAGE, recordings.RANGE, recordings.GROUND_TRUTH)}
        for recorded in opened.messages(stamps):
            stamps[recorded.topic].append(recorded.stamp_ns)
    assert stamps[recordings.IMAGE] == stamps[recordings.RANGE] == stamps[recordings.GROUND_TRUTH]
    np.testing.assert_allclose(np.diff(stamps[recordings.IMAGE]), 1e8, rtol=1e-3)


def test_lidar_and_truth_of_the_bundled_recording_agree(bundled: Path):
    """Extrinsic, intrinsics and depth come from different places; one wrong and these depths differ."""
    with Recording(bundled) as opened:
        camera, pose = recordings.recorded_camera(opened), recordings.recorded_extrinsic(opened)
        frame = next(recordings.read_frames(opened))
    pixels, depth_m = project(transformed(frame.points, pose), camera)
    whole = np.rint(pixels[depth_m > 0] / 2).astype(int)
    depth_m = depth_m[depth_m > 0]
    rows, columns = camera.height // 2, camera.width // 2
    inside = ((whole >= 0) & (whole < (columns, rows))).all(axis=1)
    truth_m = frame.depth_m[::2, ::2][whole[inside, 1], whole[inside, 0]]
    error = np.abs(truth_m / depth_m[inside] - 1)
    assert inside.sum() > 1000
    assert np.nanmedian(error) < 0.02
    assert np.nanpercentile(error, 85) < 0.1
