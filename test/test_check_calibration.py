"""The program that looks for a wrong extrinsic or time offset in recordings, on the bundled one."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from marigold_ros.anchors import anchors_of
from marigold_ros.calibration import CalibrationMonitor
from marigold_ros.calibration_recording import Course, Fault, Source, watch
from marigold_ros.check_calibration import AS_IT_IS, main, sentence, summary, table
from marigold_ros.config import RangeConfig, Unusable
from marigold_ros.geometry import Camera, transformed
from marigold_ros.recordings import Frame, Recording, write_frames
from marigold_ros.rig import Rig

BUNDLED = Path(__file__).resolve().parent.parent / "recordings/warehouse"
FAULTS = (
    AS_IT_IS,
    Fault("pitch +2°", (2.0, 0.0, 0.0)),
    Fault("yaw -2°", (0.0, -2.0, 0.0)),
    Fault("20 ms", delay_s=0.02),
)


@pytest.fixture(scope="module")
def courses():
    with Recording(BUNDLED) as recording:
        return watch(recording, Source(), FAULTS)


def test_the_bundled_recording_is_right_and_two_degrees_are_told(courses):
    clean, pitch, yaw, _ = courses
    assert clean.alarm_s is None
    assert clean.verdict.looks >= 6
    assert pitch.alarm_s is not None
    assert yaw.alarm_s is not None
    assert "too high" in pitch.verdict.problem
    assert "to the left" in yaw.verdict.problem
    assert pitch.verdict.shift_px[1] < -2
    assert yaw.verdict.shift_px[0] < -2


def test_a_delay_that_no_scan_shows_is_left_out(courses):
    """At 10 Hz there is no scan of 20 ms before an image."""
    assert courses[3].moments == []
    rows = [("warehouse", courses)]
    assert table(rows).splitlines()[-1].endswith("|  |")
    assert "as it is: 0 false alarms in 0.1 minutes" in summary(rows)


@pytest.mark.parametrize("fixed_frame", ["", "odom"])
def test_a_time_offset_that_is_known_is_made_up_for(fixed_frame):
    """A scan that says it was measured at 1.1 s and was at 1.0 s, for an image of 1.12 s."""
    pytest.importorskip("rclpy")
    from std_msgs.msg import Header

    from ros_harness import cloud_of

    asked = []
    transforms = SimpleNamespace(matrix=lambda target, source, time_ns: asked.append((source, time_ns)) or np.eye(4))
    settings = RangeConfig(time_offset_s=-0.1, fixed_frame=fixed_frame)
    rig = Rig("sensor_msgs/msg/Image", "sensor_msgs/msg/PointCloud2", settings, True, transforms)
    cloud = cloud_of(np.ones((4, 3)))
    cloud.header.stamp.sec, cloud.header.stamp.nanosec = 1, 100_000_000
    image = Header(frame_id="camera")
    image.stamp.sec, image.stamp.nanosec = 1, 120_000_000
    assert rig.scan(image, cloud).age_s == pytest.approx(0.0 if fixed_frame else 0.12)
    assert asked[0] == ("lidar", 1_000_000_000)
    assert asked[1:2] == ([("odom", 1_120_000_000)] if fixed_frame else [])


def test_a_scan_lies_where_the_node_has_it_each_point_moved_from_its_own_time():
    """A robot that turns left by 60 degrees a second; the front is seen 40 to 60 ms after the stamp, the image's."""
    pytest.importorskip("rclpy")
    from sensor_msgs.msg import PointField
    from std_msgs.msg import Header

    from ros_harness import cloud_of

    def camera_from_odom(time_ns):
        turned = np.eye(4)
        turned[:3, :3] = cv2.Rodrigues(np.array([0.0, np.radians(60) * (time_ns * 1e-9 - 1.0), 0.0]))[0]
        return turned

    def matrix(target, source, time_ns):
        if time_ns > 1_060_000_000:
            raise Unusable("not recorded")
        return camera_from_odom(time_ns) if target == "camera" else np.linalg.inv(camera_from_odom(time_ns))

    offset_s = np.linspace(0.04, 0.07, 4)
    there = np.array([[-1.0, 0.1, 8.0], [0.0, 0.5, 6.0], [1.0, 0.1, 8.0], [2.0, -0.5, 7.0]])
    then = [transformed(there[i : i + 1], camera_from_odom(1e9 * (1 + offset_s[i]))) for i in range(len(there))]
    rows = np.column_stack([np.concatenate(then), offset_s]).astype(np.float32)
    cloud = cloud_of(rows[:, :3])
    cloud.fields.append(PointField(name="time", offset=12, datatype=PointField.FLOAT32, count=1))
    cloud.point_step, cloud.row_step, cloud.data = 16, 16 * len(rows), rows.tobytes()
    image = Header(frame_id="camera")
    image.stamp.sec = cloud.header.stamp.sec = 1
    camera, expected = Camera(640, 480, 460.0, 460.0, 319.5, 239.5), there[:, :2] / there[:, 2:] * 460 + (319.5, 239.5)

    def pixels(fault=AS_IT_IS, **settings):
        rig = Rig("sensor_msgs/msg/Image", "sensor_msgs/msg/PointCloud2", RangeConfig(**settings), True,
                  SimpleNamespace(matrix=matrix))  # fmt: skip
        return anchors_of([fault.applied(rig.scan(image, cloud))], camera, RangeConfig(**settings)).pixels

    np.testing.assert_allclose(pixels(fixed_frame="odom"), expected, atol=0.5)
    assert np.abs(pixels(fixed_frame="odom", point_times=False) - expected).max() > 20
    turned = pixels(Fault("yaw", (0.0, 1.0, 0.0)), fixed_frame="odom")
    np.testing.assert_allclose(turned - expected, [[460 * np.radians(1), 0]] * 4, atol=2.0)


def test_without_a_fixed_frame_scans_are_moved_with_the_picture_as_in_the_node(monkeypatch):
    ages_s, update = [], CalibrationMonitor.update
    monkeypatch.setattr(
        CalibrationMonitor, "update", lambda self, *frame: ages_s.append(frame[-1]) or update(self, *frame)
    )
    with Recording(BUNDLED) as recording:
        watch(recording, Source(range=RangeConfig(time_offset_s=-0.03, max_age_s=0.05), rate_hz=2.0), FAULTS[:1])
    assert ages_s[0] != 0
    assert not any(ages_s[1:])


def test_scans_are_looked_for_by_the_time_at_which_they_were_measured():
    """At 10 Hz, and 100 ms off: the scan of the next image is this one's, and for the last image there is none."""
    with Recording(BUNDLED) as recording:
        source = Source(range=RangeConfig(max_age_s=0.02, time_offset_s=-0.1))
        late, as_usual = (watch(recording, of, FAULTS[:1])[0] for of in (source, Source()))
    assert len(late.moments) == len(as_usual.moments) - 1


def test_the_verdict_in_a_sentence(courses):
    assert sentence(courses[0]).startswith("nothing wrong found: anchors ")
    told = sentence(courses[1])
    assert told.startswith(f"after {courses[1].alarm_s:.1f} s: the extrinsic looks wrong: anchors lie ")
    assert "; at the end: anchors " in told
    short = replace(courses[0], moments=courses[0].moments[:20])
    assert sentence(short).startswith("no verdict after 2 s: too few different views")


def test_an_alarm_that_comes_twice_counts_twice(courses):
    told = courses[1].moments[-1]
    quiet = replace(told, verdict=replace(told.verdict, problem=None))
    course = Course(AS_IT_IS, [quiet, told, told, quiet, replace(told, verdict=None), told])
    assert course.alarms == 2


def test_the_picture_and_the_exit_status(tmp_path, capsys):
    command = [str(BUNDLED), "--out", str(tmp_path / "pictures")]
    assert main([*command, "--turn-deg", "2", "0", "0"]) == 2
    assert "the extrinsic looks wrong" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "pictures/warehouse_calibration.png")).std() > 10
    assert main([str(BUNDLED), "--rate", "5", "--no-picture"]) == 0
    assert "nothing wrong found" in capsys.readouterr().out


def test_what_cannot_be_used_is_said(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    camera = Camera(64, 48, 50.0, 50.0, 31.5, 23.5)
    frame = Frame(10**18, np.zeros((48, 64, 3), np.uint8), np.ones((48, 64), np.float32), np.ones((4, 3), np.float32))
    write_frames(tmp_path / "short", [frame], camera, np.eye(4))
    assert main([str(tmp_path / "short"), "--out", str(tmp_path)]) == 0
    assert "no verdict after 0 s" in capsys.readouterr().out
    assert (tmp_path / "short_calibration.png").is_file()
    assert main([str(tmp_path / "short"), "--range", "/no/topic"]) == 1
    assert "--range /no/topic" in capsys.readouterr().err


def test_a_wrong_name_among_many_is_told_before_the_first_is_watched(capsys, tmp_path):
    assert main([str(BUNDLED), str(tmp_path / "elsewhere"), "--no-picture"]) == 1
    out, err = capsys.readouterr()
    assert "elsewhere: no such file or folder" in err
    assert out == ""


@pytest.mark.parametrize("wrong", [["--translation", "0", "0", "0"], ["--turn-deg", "0", "0", "90"]])
def test_an_extrinsic_that_is_altogether_wrong_is_not_called_right(capsys, wrong):
    """Nothing in the scan then looks like the picture; as with a rotation that was forgotten."""
    main([str(BUNDLED), "--rate", "5", "--no-picture", *wrong])
    out = capsys.readouterr().out
    assert "no verdict after" in out
    assert "wrong by more than 5°" in out


def test_a_transform_that_is_missing_is_named(capsys):
    assert main([str(BUNDLED), "--rate", "5", "--fixed-frame", "odom"]) == 1
    assert "no transform from 'lidar' to 'odom'" in capsys.readouterr().err
