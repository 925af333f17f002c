"""Does the LiDAR lie where the extrinsic says, and when its stamps say? `ros2 run marigold_ros check_calibration`.

    python -m marigold_ros.check_calibration RECORDING...

reads rosbag2 recordings (folders, or .mcap or .db3 files) with a camera, its info, a range sensor and the transform
between them, watches them as the node does (fit.check_calibration), says what is wrong, and draws the evidence:
NAME_calibration.png. No network runs. To see what a fault looks like, put one in with --turn-deg or --delay-s. With
--evaluate every recording, taken to be right, is watched as it is and with a degree or 50 and 100 ms put in, and a
table says after how long each was told; a delay only where a scan was taken so long before an image.

Exit status: 0 where nothing wrong was found, 2 where something was, 1 where a recording could not be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from marigold_ros.calibration import UNKNOWNS, Calibration
from marigold_ros.calibration_recording import Course, Fault, Source, watch
from marigold_ros.config import RangeConfig, Unusable
from marigold_ros.recordings import Recording
from marigold_ros.rig_arguments import add_rig_arguments, range_settings
from marigold_ros.topics import Topics

AS_IT_IS = Fault("as it is")
FAULTS = (
    AS_IT_IS,
    Fault("pitch +1°", (1.0, 0.0, 0.0)),
    Fault("pitch -1°", (-1.0, 0.0, 0.0)),
    Fault("yaw +1°", (0.0, 1.0, 0.0)),
    Fault("yaw -1°", (0.0, -1.0, 0.0)),
    Fault("roll +1°", (0.0, 0.0, 1.0)),
    Fault("roll -1°", (0.0, 0.0, -1.0)),
    Fault("50 ms", delay_s=0.05),
    Fault("100 ms", delay_s=0.1),
)


# A standard deviation in degrees above which a turn is as good as unknown; and one that is no number, of degrees or ms.
_KNOWN_DEG, _UNKNOWN = 1.5, 500.0
_OR_FAR_OFF = "; where the extrinsic is wrong by more than 5°, nothing in the scan looks like the picture"


def sentence(course: Course) -> str:
    """The verdict on a recording, with its numbers."""
    verdict = course.verdict
    if verdict is None:
        return (
            f"no verdict after {course.duration_s:.0f} s: too few different views with jumps of depth in them; drive "
            f"on, past things that stand out{_OR_FAR_OFF}"
        )
    if course.alarm_s is None and min(verdict.turn_sigma_deg) > _KNOWN_DEG:
        return (
            f"no verdict after {course.duration_s:.0f} s: {verdict.looks} views tell no turn to {_KNOWN_DEG:g}°; drive "
            f"on, past things that stand out{_OR_FAR_OFF}"
        )
    (right, down), told = verdict.shift_px, course.alarm_s
    turns = zip(UNKNOWNS[:3], verdict.turn_deg, verdict.turn_sigma_deg, strict=True)
    numbers = (
        f"anchors {right:+.1f} px right and {down:+.1f} px down of their places, turned by "
        + ", ".join(f"{name} {_value(turn_deg, sigma_deg, 2, '°')}" for name, turn_deg, sigma_deg in turns)
        + f"; scans {_value(verdict.delay_s * 1e3, verdict.delay_sigma_s * 1e3, 0, ' ms')} older than their stamps "
        f"({verdict.looks} views in {course.duration_s:.0f} s)"
    )
    if told is None:
        return f"nothing wrong found: {numbers}"
    words = next(m.verdict.problem for m in course.moments if m.verdict is not None and m.verdict.problem)
    return f"after {told:.1f} s: {words}; at the end: {numbers}"


def _value(value: float, sigma: float, digits: int, unit: str) -> str:
    return "(unknown)" if sigma > _UNKNOWN else f"{value:+.{digits}f} ± {sigma:.{digits}f}{unit}"


def table(rows: Sequence[tuple[str, Sequence[Course]]]) -> str:
    """Markdown: for each recording and fault, after how many seconds it was told."""
    faults = [course.fault.name for course in rows[0][1]]
    lines = ["| recording | s | " + " | ".join(faults) + " |", "| --- " * (len(faults) + 2) + "|"]
    for name, courses in rows:
        cells = [_cell(course) for course in courses]
        lines.append(f"| {name} | {courses[0].duration_s:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdicts(courses: Iterable[Course]) -> Iterator[Calibration]:
    return (m.verdict for course in courses for m in course.moments if m.verdict is not None)


def _cell(course: Course) -> str:
    if not course.moments:
        return ""
    if course.verdict is None:
        return "?"
    return "–" if course.alarm_s is None else f"{course.alarm_s:.1f}"


def summary(rows: Sequence[tuple[str, Sequence[Course]]]) -> str:
    """False alarms, and how many faults were told in time."""
    clean = [courses[0] for _, courses in rows]
    total_s = sum(course.duration_s for course in clean)
    lines = [f"as it is: {sum(course.alarms for course in clean)} false alarms in {total_s / 60:.1f} minutes"]
    most = [max((abs(v.significance[i]) for v in _verdicts(clean)), default=0.0) for i in range(4)]
    names = zip(UNKNOWNS, most, strict=True)
    lines.append("most, in standard deviations: " + ", ".join(f"{name} {value:.1f}" for name, value in names))
    for number in range(1, len(rows[0][1])):
        told = [courses[number].alarm_s for _, courses in rows if courses[number].moments]
        in_time = sum(time_s is not None and time_s <= 30.0 for time_s in told)
        at_all = sum(time_s is not None for time_s in told)
        lines.append(
            f"{rows[0][1][number].fault.name}: told within 30 s in {in_time} of {len(told)} recordings, {at_all} in all"
        )
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> int:
    """Watch all recordings; exit status 2 where something is wrong."""
    source = _source(arguments)
    faults = (Fault("put in", tuple(arguments.turn_deg), arguments.delay_s),)
    rows, status = [], 0
    for path in arguments.recordings:
        Recording(path).close()  # a wrong name among many is told before hours are spent
    for path in arguments.recordings:
        name = path.resolve().name if path.is_dir() else path.stem
        with Recording(path) as recording:
            courses = watch(recording, source, FAULTS if arguments.evaluate else faults)
        rows.append((name, courses))
        if arguments.evaluate:
            print(f"{name} watched", file=sys.stderr)
            continue
        print(f"{name}: {sentence(courses[0])}")
        status = 2 if courses[0].alarm_s is not None else status
        if arguments.out is not None:
            from marigold_ros.calibration_picture import draw

            picture = arguments.out / f"{name}_calibration.png"
            draw(courses[0], name, picture)
            print(picture)
    if arguments.evaluate:
        print(f"Seconds until it was told, – never, ? no verdict\n\n{table(rows)}\n\n{summary(rows)}")
    return status


def _source(arguments: argparse.Namespace) -> Source:
    limits = range_settings(arguments)
    topics = Topics(arguments.image, arguments.camera_info, arguments.range)
    return Source(topics, limits, arguments.rectified, arguments.rate)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check_calibration", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recordings", type=Path, nargs="+", metavar="RECORDING", help="rosbag2 folder, or an .mcap or .db3 file")
    add("--out", type=Path, default=Path(), metavar="DIR", help="folder for the pictures (default: here)")
    add("--no-picture", dest="out", action="store_const", const=None, help="draw nothing")
    add("--turn-deg", type=float, nargs=3, default=(0.0, 0.0, 0.0), metavar=("X", "Y", "Z"),
        help="put in: turn the extrinsic about the camera's x (pitch), y (yaw), z (roll)")  # fmt: skip
    add("--delay-s", type=float, default=0.0, metavar="S", help="put in: scans are older than their stamps")
    add("--evaluate", action="store_true", help="a table of the recordings as they are and with faults put in")
    add("--rate", type=float, default=0.0, metavar="HZ",
        help="most images per second (default: all); scans stay, and --delay-s finds one of its time")  # fmt: skip
    add_rig_arguments(parser, RangeConfig.max_age_s)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return run(arguments)
    except Unusable as problem:
        print(f"check_calibration: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
