"""Recordings: what is written comes back, and the player and recorder carry it over DDS."""

import resource
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from marigold_ros import processes, recordings
from marigold_ros.config import Unusable
from marigold_ros.geometry import (
    Camera,
    project,
    quaternion_from_rotation,
    transform_from_quaternion,
    transformed,
)
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


def test_poses_come_back_where_they_were_written(recording, tmp_path):
    poses = [transform_from_quaternion((0.1 * i, 2.0, 0.7), tuple(np.array([-0.5, 0.5, -0.5, 0.5]))) for i in range(3)]
    moving = (replace(frame, odom_from_camera=pose) for frame, pose in zip(frames(3), poses, strict=True))
    recordings.write_frames(tmp_path / "moving", moving, CAMERA, POSE)
    with Recording(tmp_path / "moving") as opened:
        assert opened.counts[recordings.TF] == 3
        np.testing.assert_allclose(recordings.recorded_extrinsic(opened), POSE, atol=1e-9)
        for frame, pose in zip(recordings.read_frames(opened), poses, strict=True):
            np.testing.assert_allclose(frame.odom_from_camera, pose, atol=1e-12)
    with Recording(recording) as opened:
        assert recordings.TF not in opened.topics
        assert all(frame.odom_from_camera is None for frame in recordings.read_frames(opened))


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


def stamps(path):
    with Recording(path) as opened:
        return [frame.stamp_ns for frame in recordings.read_frames(opened)]


def contents(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_a_new_recording_replaces_an_old_one(tmp_path):
    (tmp_path / "r").mkdir()
    recordings.write_frames(tmp_path / "r", frames(2), CAMERA, POSE)
    recordings.write_frames(tmp_path / "r", frames(1), CAMERA, POSE)
    assert len(stamps(tmp_path / "r")) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["metadata.yaml", "r", "r.mcap"]


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["thesis.tex"], "thesis.tex"),
        (["output.mcap", "demo.png", "player.log"], "demo.png"),
        (["metadata.yaml", "a.mcap", "notes.txt"], "notes.txt"),
        (["metadata.yaml", "a.mcap", "b.mcap"], "b.mcap"),
        (["metadata.yaml", "a.mcap", "deeper/thesis.tex"], "deeper"),
        (["a.mcap"], "a.mcap"),
        (["metadata.yaml"], "metadata.yaml"),
    ],
)
def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path, names, named):
    for name in names:
        (tmp_path / "precious" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "precious" / name).write_text("years")
    before = contents(tmp_path)
    with pytest.raises(Unusable, match=rf"precious: exists and is no recording.* {named}.*give another folder"):
        RecordingWriter(tmp_path / "precious")
    assert contents(tmp_path) == before


def test_a_file_is_not_replaced_by_a_recording(tmp_path):
    (tmp_path / "precious").write_text("years")
    with pytest.raises(Unusable, match="precious: exists and is no recording but a file"):
        RecordingWriter(tmp_path / "precious")


def test_a_recording_that_fails_leaves_the_old_one_as_it_was(recording, tmp_path):
    def broken():
        yield from frames(3)
        raise ValueError("the robot fell over")

    recordings.write_frames(tmp_path / "r", frames(2), CAMERA, POSE)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="fell over"):
        recordings.write_frames(tmp_path / "r", broken(), CAMERA, POSE)
    assert contents(tmp_path) == before


@pytest.fixture
def full_disk():
    """No file can grow beyond a megabyte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_when_the_disk_is_full_nothing_is_lost(tmp_path, full_disk):
    """Neither the old recording nor what of the new one was written until then."""
    recordings.write_frames(tmp_path / "r", frames(2), CAMERA, POSE)
    with pytest.raises(Unusable, match=r"left in (.*/\.r\.part/r/r\.mcap), .*'mcap recover \1 -o FILE'"):
        recordings.write_frames(tmp_path / "r", frames(1000), CAMERA, POSE)
    assert len(stamps(tmp_path / "r")) == 2
    assert (tmp_path / ".r.part" / "r" / "r.mcap").stat().st_size > 900_000


def test_a_frame_that_cannot_be_read_is_no_full_disk(tmp_path):
    def broken():
        yield from frames(3)
        raise FileNotFoundError("scene.exr")

    with pytest.raises(FileNotFoundError):
        recordings.write_frames(tmp_path / "r", broken(), CAMERA, POSE)
    assert contents(tmp_path) == {}


def test_a_recording_without_messages_leaves_the_old_one_as_it_was(tmp_path):
    recordings.write_frames(tmp_path / "r", frames(2), CAMERA, POSE)
    before = contents(tmp_path)
    assert recordings.write_frames(tmp_path / "r", [], CAMERA, POSE) == 0
    assert contents(tmp_path) == before


def test_two_recordings_do_not_grow_in_the_same_place(tmp_path):
    """Nor is deleted what a recorder that was killed left behind: it can be recovered."""
    with RecordingWriter(tmp_path / "r"):
        with pytest.raises(Unusable, match=r"\.r\.part: is left .* or still grows; .* delete"):
            RecordingWriter(tmp_path / "r")
        assert (tmp_path / ".r.part" / "r" / "r.mcap").exists()


def test_what_came_in_the_meantime_is_not_deleted_and_the_recording_is_kept(tmp_path):
    def disturbed():
        yield from frames(2)
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "thesis.tex").write_text("years")

    with pytest.raises(Unusable, match=r"thesis\.tex.*the new recording is in .*\.r\.part"):
        recordings.write_frames(tmp_path / "r", disturbed(), CAMERA, POSE)
    assert (tmp_path / "r" / "thesis.tex").exists()
    assert len(stamps(tmp_path / ".r.part" / "r")) == 2


def test_only_types_that_can_be_described_are_written(tmp_path):
    with RecordingWriter(tmp_path / "r") as writer:
        assert writer.knows("sensor_msgs/msg/Image")
        assert not writer.knows("my_robot_msgs/msg/Gripper")


def test_a_drive_that_cannot_be_rendered_leaves_the_old_recording_as_it_was(tmp_path, monkeypatch):
    from trainer import record
    from trainer.scenes import sequence

    def cannot_start(*_, **__):
        raise Unusable("mitsuba is not installed")
        yield

    recordings.write_frames(tmp_path / "warehouse", frames(2), CAMERA, POSE)
    before = contents(tmp_path)
    monkeypatch.setattr(sequence, "render_sequence", cannot_start)
    with pytest.raises(Unusable, match="mitsuba"):
        record.main(["--out", str(tmp_path / "warehouse")])
    assert contents(tmp_path) == before


def test_a_kind_of_scene_that_there_is_not_is_named(tmp_path, capsys):
    pytest.importorskip("mitsuba")
    from trainer import record

    with pytest.raises(SystemExit):
        record.main(["--out", str(tmp_path / "drive"), "--family", "moon"])
    assert "--family 'moon': must be one of room, corridor, warehouse, street" in capsys.readouterr().err
    assert contents(tmp_path) == {}


def test_a_command_that_is_stopped_says_so(monkeypatch, capsys):
    from trainer import record
    from trainer.__main__ import main as trainer_main

    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "main", stopped)
    assert trainer_main(["record", "--out", "drive"]) == 130
    assert capsys.readouterr().err == "\ntrainer: record stopped\n"


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
    quaternion = quaternion_from_rotation(rotation)
    np.testing.assert_allclose(transform_from_quaternion((0, 0, 0), quaternion)[:3, :3], rotation, atol=1e-9)
    assert np.linalg.norm(quaternion) == pytest.approx(1.0)


@pytest.mark.parametrize("told_to_stop_by", [signal.SIGINT, signal.SIGTERM])
def test_player_and_recorder_carry_a_recording_over_dds(recording, tmp_path, told_to_stop_by):
    """Two processes: every message arrives unchanged but for its stamp, which is now."""
    topics = [recordings.IMAGE, recordings.CAMERA_INFO, recordings.RANGE, recordings.GROUND_TRUTH]
    environment = processes.private_environment(processes.free_domain())
    began_ns = time.time_ns()
    recorder = processes.start("marigold_ros.recorder", ["--out", str(tmp_path / "copy"), *topics], environment, None)
    try:
        arguments = [str(recording), "--wait", "20", "--wait-for", *topics]
        player = processes.start("marigold_ros.player", arguments, environment, None)
        assert player.wait(60) == 0
        recorder.send_signal(told_to_stop_by)
        assert recorder.wait(20) == 0
    finally:
        processes.stop(recorder)
    with Recording(recording) as before, Recording(tmp_path / "copy") as after:
        old, new = (list(recordings.read_frames(opened)) for opened in (before, after))
    assert len(new) == len(old) == 6
    assert all(began_ns < frame.stamp_ns < time.time_ns() for frame in new)
    for played, written in zip(new, old, strict=True):
        np.testing.assert_array_equal(played.rgb, written.rgb)
        np.testing.assert_array_equal(played.points, written.points)
        assert played.stamp_ns - new[0].stamp_ns == pytest.approx(written.stamp_ns - old[0].stamp_ns, abs=1000)


def test_the_player_says_what_is_wrong_with_its_arguments(tmp_path):
    for arguments, reason in (([str(tmp_path / "no")], "no such file"), (["x", "--rate", "nan"], "greater than 0")):
        environment = processes.private_environment(processes.free_domain())
        command = [processes.sys.executable, "-m", "marigold_ros.player", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert reason in done.stderr


def test_the_recorder_does_not_replace_the_users_pictures(tmp_path):
    (tmp_path / "demo_output").mkdir()
    (tmp_path / "demo_output" / "output.mcap").write_bytes(b"mcap")
    (tmp_path / "demo_output" / "demo.png").write_bytes(b"picture")
    before = contents(tmp_path)
    environment = processes.private_environment(processes.free_domain())
    command = [processes.sys.executable, "-m", "marigold_ros.recorder", "--out", "demo_output", "/depth"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "recorder: demo_output: exists and is no recording alone, it holds demo.png" in done.stderr
    assert contents(tmp_path) == before


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
