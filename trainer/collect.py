"""Makes a training dataset of the robot's own recordings: images, and in them the depth that the LiDAR measured.

    python -m trainer collect RECORDING... --out DIR

DIR/train and DIR/held_out hold samples (see trainer/samples.py) with the map depth_m, known where a LiDAR point fell.
Frames are kept that differ from the last one kept, are sharp and have enough points. Run again, it goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from marigold_ros.config import Unusable
from marigold_ros.recordings import Recording
from marigold_ros.rig_arguments import add_rig_arguments, range_settings
from marigold_ros.topics import Topics, choose_topics
from trainer.collection import Settings, Stopped
from trainer.collector import Collector, name_of

STOPPED = 3  # exit status: told to stop, run again to go on


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, within the block and in the main thread."""
    told_to_stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield told_to_stop
        return
    before = {number: signal.signal(number, lambda *_: told_to_stop.set()) for number in numbers}
    try:
        yield told_to_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Collect recordings; 0 when all are done, 2 when one could not be used, 3 when told to stop."""
    arguments = _parser().parse_args(argv)
    settings = _settings(arguments)
    with contextlib.ExitStack() as stack:
        recordings = [stack.enter_context(Recording(path)) for path in arguments.recordings]
        _require_names(recordings)
        # What is wrong with the last recording is said before the hours that the first one takes.
        topics = [choose_topics(recording, settings.topics) for recording in recordings]
        told_to_stop = stack.enter_context(interruptible())
        collector = Collector(arguments.out, settings, told_to_stop)
        status = 0
        for recording, chosen in zip(recordings, topics, strict=True):
            try:
                summary = collector.collect(recording, chosen)
            except Stopped:
                print("stopped; give the same command again to go on", file=sys.stderr)
                return STOPPED
            except Unusable as problem:
                if len(recordings) == 1:
                    raise
                print(f"trainer: {problem}", file=sys.stderr)
                status = 2
                continue
            print(f"{name_of(recording)}: {summary}")
    return status


def _require_names(recordings: Sequence[Recording]) -> None:
    found: dict[str, Path] = {}
    for recording in recordings:
        name = name_of(recording)
        if name in found:
            raise Unusable(
                f"recordings {found[name]} and {recording.path}: samples of both are named {name}; rename one"
            )
        found[name] = recording.path


def _settings(arguments: argparse.Namespace) -> Settings:
    near, far = arguments.depth
    limits = range_settings(arguments, min_depth_m=near, max_depth_m=far, max_points=1_000_000)
    return Settings(
        topics=Topics(arguments.image, arguments.camera_info, arguments.range, arguments.truth or None),
        range=limits,
        join_s=arguments.join,
        rectified=arguments.rectified,
        min_anchors=arguments.min_anchors,
        motion=arguments.motion,
        sharpness=arguments.sharpness,
        held_out=arguments.held_out,
        block_s=arguments.block,
        gap_s=arguments.gap,
        size_px=arguments.size,
        prior=arguments.prior,
    )


def _parser() -> argparse.ArgumentParser:
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m trainer collect", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("recordings", type=Path, nargs="+", metavar="RECORDING", help="rosbag2 folder, or an .mcap or .db3 file")
    add("--out", type=Path, required=True, help="folder of the dataset; what is in it already stays")
    add_rig_arguments(parser, defaults.range.max_age_s)
    add("--join", type=float, default=0.0, metavar="S", help="with --fixed-frame: use all scans within so many seconds")
    add("--depth", type=float, nargs=2, default=(defaults.range.min_depth_m, defaults.range.max_depth_m),
        metavar=("NEAR", "FAR"), help="metres between which points count (default %(default)s)")  # fmt: skip
    add("--min-anchors", type=int, default=defaults.min_anchors, metavar="N",
        help="least LiDAR points in view of a frame (default %(default)d)")  # fmt: skip
    add("--motion", type=float, default=defaults.motion,
        help="least difference from the last kept frame, a share of contrast (default %(default)g)")  # fmt: skip
    add("--sharpness", type=float, default=defaults.sharpness,
        help="least sharpness, a share of that of the frames before (default %(default)g)")  # fmt: skip
    add("--held-out", type=float, default=defaults.held_out, metavar="SHARE",
        help="share of the time that is kept apart to measure with (default %(default)g)")  # fmt: skip
    add("--block", type=float, default=defaults.block_s, metavar="S",
        help="in stretches of about so many seconds (default %(default)g)")  # fmt: skip
    add("--gap", type=float, default=defaults.gap_s, metavar="S",
        help="seconds about them that are not trained on (default %(default)g)")  # fmt: skip
    add("--size", type=int, default=defaults.size_px, metavar="PX",
        help="longest side of the stored images (default %(default)d; 0: the camera's)")  # fmt: skip
    add("--prior", default="", metavar="CHECKPOINT", help="also store what this network predicts, as map 'prior'")
    add("--truth", default="", metavar="TOPIC",
        help="dense true depth: held_out samples get it instead of the LiDAR's, to measure with")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
