"""The calibration watch over a recording, as it is and with faults put in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from marigold_ros.anchors import Scan, anchors_of
from marigold_ros.calibration import Calibration, CalibrationMonitor
from marigold_ros.calibration_evidence import Evidence
from marigold_ros.config import RangeConfig, Unusable
from marigold_ros.geometry import Camera, turned
from marigold_ros.pairing import Contents, Nearest, Wanted, contents_of, read_wanted
from marigold_ros.picture_motion import PictureTrack
from marigold_ros.recordings import Recording
from marigold_ros.rig import Rig
from marigold_ros.seen_motion import SeenMotion
from marigold_ros.topics import Topics, choose_topics

# Images may come this much earlier than their rate says and still be taken, as part of their period.
_JITTER = 0.2


@dataclass(frozen=True)
class Fault:
    """What is put in: a turn of the LiDAR about the camera's x, y and z; how much older than its stamp a scan is."""

    name: str
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    delay_s: float = 0.0

    def applied(self, scan: Scan) -> Scan:
        """The scan with its extrinsic turned."""
        sweep = scan.sweep and replace(
            scan.sweep, camera_from_sensor=turned(scan.sweep.camera_from_sensor, self.turn_deg)
        )
        return replace(scan, camera_from_lidar=turned(scan.camera_from_lidar, self.turn_deg), sweep=sweep)


@dataclass(frozen=True)
class Moment:
    """After one frame: seconds since the first, the verdict so far, and of this frame alone how many degrees to the
    right of its edges brightness changes most, the motion of the picture in radians per second (2,), None where
    unknown, and the pitch and roll in degrees (2,) that the ground shows, None where nothing was compared.
    """

    time_s: float
    verdict: Calibration | None
    right_deg: float
    motion: np.ndarray | None
    ground_deg: np.ndarray | None


@dataclass
class Course:
    """What became of one fault over a recording. `picture` is the frame with the most jumps, for a drawing."""

    fault: Fault
    moments: list[Moment] = field(default_factory=list)
    camera: Camera | None = None
    picture: tuple[np.ndarray, Evidence] | None = None

    @property
    def alarm_s(self) -> float | None:
        """When it was told first."""
        return next((m.time_s for m in self.moments if m.verdict is not None and m.verdict.problem), None)

    @property
    def alarms(self) -> int:
        """How often it began to be told."""
        told = [m.verdict is not None and m.verdict.problem is not None for m in self.moments]
        return sum(now and not before for before, now in zip([False, *told], told, strict=False))

    @property
    def duration_s(self) -> float:
        """From the first frame to the last."""
        return self.moments[-1].time_s if self.moments else 0.0

    @property
    def verdict(self) -> Calibration | None:
        """The last one."""
        return self.moments[-1].verdict if self.moments else None


@dataclass(frozen=True)
class Source:
    """Which topics to read, and how: `rate_hz` is the most images per second, 0 for all."""

    topics: Topics = field(default_factory=lambda: Topics("", "", ""))
    range: RangeConfig = field(default_factory=RangeConfig)
    rectified: bool = False
    rate_hz: float = 0.0


def watch(recording: Recording, source: Source, faults: Sequence[Fault]) -> list[Course]:
    """Run the watch over the recording once for each fault; raises `Unusable` where no frame can be used."""
    topics = choose_topics(recording, source.topics)
    contents = contents_of(recording, topics, lambda messages, _: messages)
    track = PictureTrack()
    seen = SeenMotion(track)
    courses, monitors = [Course(fault) for fault in faults], [CalibrationMonitor(track) for _ in faults]
    why: Unusable | None = None
    began_ns: int | None = None
    rig = Rig(recording.topics[topics.image], recording.topics[topics.range], source.range, source.rectified,
              contents.transforms)  # fmt: skip
    for number, image, scans in _frames(recording, topics, contents, source, faults):
        stamp = contents.images[number]
        try:
            rgb, camera = rig.rectify(rig.image(image), contents.info_at(stamp.recorded_ns))
            began_ns = stamp.measured_ns if began_ns is None else began_ns
            seen.see(stamp.measured_ns, rgb, camera)
            for course, monitor, message in zip(courses, monitors, scans, strict=True):
                if message is None:
                    continue
                placed = course.fault.applied(rig.scan(image.header, message, round(course.fault.delay_s * 1e9)))
                scan = seen.in_time(placed)
                anchors = anchors_of([scan], camera, source.range, rig.unseen)
                origin_m = scan.camera_from_lidar[:3, 3]
                verdict = monitor.update(stamp.measured_ns, rgb, camera, anchors, origin_m, scan.age_s)
                _note(course, (stamp.measured_ns - began_ns) * 1e-9, verdict, monitor, rgb, camera)
        except Unusable as problem:
            why = why or problem
    if not any(course.moments for course in courses):
        raise why or Unusable(f"recording {recording.path}: has no image with a scan at its time")
    return courses


def _frames(
    recording: Recording, topics: Topics, contents: Contents, source: Source, faults: Sequence[Fault]
) -> Iterator[tuple[int, Any, list[Any]]]:
    """Number and message of each image, and for each fault the message of its scan, None where there is none."""
    nearest = Nearest(contents.scans)
    planned: dict[int, list[int | None]] = {}
    newest_ns = -(10**18)
    least_ns = (1.0 - _JITTER) / source.rate_hz * 1e9 if source.rate_hz else 1.0
    for number, stamp in enumerate(contents.images):
        if stamp.problem or stamp.measured_ns - newest_ns < least_ns:
            continue
        found = []
        for fault in faults:
            # What is to be late by so much has to have been measured then, to a fifth of it.
            most_s = 0.2 * abs(fault.delay_s) if fault.delay_s else source.range.max_age_s
            late_s = fault.delay_s + source.range.time_offset_s
            numbers, _ = nearest(stamp.measured_ns - round(late_s * 1e9), most_s, 0.0)
            found.append(numbers[0] if numbers else None)
        if any(scan is not None for scan in found):
            planned[number] = found
            newest_ns = stamp.measured_ns
    used = {image: dict.fromkeys(scan for scan in scans if scan is not None) for image, scans in planned.items()}
    wanted = [Wanted(image, tuple(scans)) for image, scans in used.items()]
    for one, image, messages, _ in read_wanted(recording, topics, wanted):
        yield one.image, image, [messages.get(scan) for scan in planned[one.image]]


def _note(
    course: Course, time_s: float, verdict: Calibration | None, monitor: CalibrationMonitor, rgb: np.ndarray,
    camera: Camera,
) -> None:  # fmt: skip
    evidence = monitor.evidence
    course.moments.append(Moment(time_s, verdict, evidence.right_deg, monitor.motion, monitor.ground_deg))
    course.camera = camera
    if course.picture is None or evidence.clear.sum() > course.picture[1].clear.sum():
        course.picture = rgb.copy(), evidence
