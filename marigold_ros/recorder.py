"""Records topics into an MCAP that Foxglove opens: `ros2 run marigold_ros recorder --out FOLDER TOPIC ...`.

Messages are written as they arrive, without being decoded. For where there is no `ros2 bag`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from marigold_ros.config import Unusable
from marigold_ros.player import message_class
from marigold_ros.recordings import RecordingWriter

_DISCOVERY_PERIOD_S = 0.2
# How long it may take until a signal is noticed.
_PATIENCE_S = 0.1


class Recorder(Node):
    """Subscribes to each of `topics` as soon as somebody publishes it, and writes what comes."""

    def __init__(self, topics: Sequence[str], writer: RecordingWriter) -> None:
        super().__init__("recorder")
        self.counts = {self.resolve_topic_name(topic): 0 for topic in topics}
        self._waiting = set(self.counts)
        self._writer = writer
        self._timer = self.create_timer(_DISCOVERY_PERIOD_S, self._look_for_topics)

    def _look_for_topics(self) -> None:
        types = dict(self.get_topic_names_and_types())
        for topic in sorted(self._waiting & types.keys()):
            publishers = self.get_publishers_info_by_topic(topic)
            if publishers:
                self._subscribe(topic, types[topic][0], publishers[0].qos_profile)

    def _subscribe(self, topic: str, type: str, offered: QoSProfile) -> None:
        self._waiting.discard(topic)
        found = message_class(type)
        if found is None or not self._writer.knows(type):
            missing = "is not installed" if found is None else "is none of ROS' own message types"
            self.get_logger().warning(f"{topic} is not recorded: {type} {missing}")
            return
        # As reliable as the publisher allows: a recording should miss nothing that could be had.
        reliable = offered.reliability == ReliabilityPolicy.RELIABLE
        latched = offered.durability == DurabilityPolicy.TRANSIENT_LOCAL
        qos = QoSProfile(
            depth=20,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        self.create_subscription(found, topic, self._writing(topic, type), qos, raw=True)
        self.get_logger().info(f"recording {topic}")

    def _writing(self, topic: str, type: str) -> Callable[[bytes], None]:
        def write(data: bytes) -> None:
            self._writer.write(topic, type, time.time_ns(), data)
            self.counts[topic] += 1

        return write


def main(argv: Sequence[str] | None = None) -> int:
    """Record until Ctrl-C or SIGTERM; exit status 1 when nothing came, and then nothing is written or replaced."""
    parser = argparse.ArgumentParser(prog="recorder", description=__doc__.split("\n")[0])
    parser.add_argument("topics", nargs="+", metavar="TOPIC")
    text = "folder of the recording; an old one is replaced when the new one ends"
    parser.add_argument("--out", type=Path, required=True, help=text)
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(remove_ros_args(["", *argv])[1:])
    told_to_stop = threading.Event()
    # Not rclpy's handlers: they interrupt whatever runs, be it in the middle of a message or of closing the file.
    rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told_to_stop.set())
    try:
        counts = record(arguments.topics, arguments.out, told_to_stop)
    except Unusable as problem:
        print(f"recorder: {problem}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    for topic, count in counts.items():
        print(f"{topic}: {count} messages")
    return 0 if any(counts.values()) else 1


def record(topics: Sequence[str], out: Path, told_to_stop: threading.Event) -> dict[str, int]:
    """Record `topics` into the folder `out` until `told_to_stop`; returns how many messages of each came."""
    with RecordingWriter(out) as writer:
        recorder = Recorder(topics, writer)
        executor = SingleThreadedExecutor()
        executor.add_node(recorder)
        while not told_to_stop.is_set():
            executor.spin_once(timeout_sec=_PATIENCE_S)
        return recorder.counts


if __name__ == "__main__":
    sys.exit(main())
