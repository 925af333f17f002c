"""Plays a recording over DDS, shifted to the present: `ros2 run marigold_ros player RECORDING`.

Unlike `ros2 bag play`, header stamps are moved as well, so that latencies can be measured and tf2 is content: all by
the same time, so that what was measured together stays together. And it runs where there is nothing of ROS but rclpy.
"""

from __future__ import annotations

import argparse
import array
import importlib
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.utilities import remove_ros_args

from marigold_ros.config import Unusable
from marigold_ros.recordings import Recorded, Recording

_STREAM = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_COMPRESSED = "/compressed"
# Stamps further than this from the time of recording are of another clock, such as a simulation's.
_OTHER_CLOCK_NS = 24 * 3600 * 1_000_000_000


@dataclass(frozen=True)
class _Item:
    """One message, when it was recorded, and the times in its headers, 0 where unset."""

    topic: str
    logged_ns: int
    message: Any
    stamps_ns: tuple[int, ...]


def message_class(type: str) -> Any | None:
    """The Python class of 'package/msg/Name', None where the package is not installed."""
    package, _, name = type.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except ImportError:
        return None


class Player(Node):
    """Publishes the messages of a recording at their times."""

    def __init__(self, recording: Recording, raw: bool) -> None:
        super().__init__("player")
        self._raw = raw
        self._publishers_of: dict[str, Publisher] = {}
        # All messages are read first: playing must not wait for the disk.
        self._items = self._read(recording)
        self._first_ns = self._items[0].logged_ns
        # Headers are counted from here: all are moved by the same time, what was measured together stays together.
        self._origin_ns = self._first_ns - _clock_behind_ns(self._items)

    def _read(self, recording: Recording) -> list[_Item]:
        classes = {topic: message_class(type) for topic, type in recording.topics.items()}
        for topic in sorted(topic for topic, found in classes.items() if found is None):
            self.get_logger().warning(f"{topic} is not played: {recording.topics[topic]} is not installed")
        played = recording.messages([topic for topic, found in classes.items() if found is not None])
        items = [
            self._item(recorded, deserialize_message(recorded.data, classes[recorded.topic])) for recorded in played
        ]
        if not items:
            raise Unusable("the recording holds no message of an installed type")
        return items

    def _item(self, recorded: Recorded, message: Any) -> _Item:
        topic = recorded.topic
        if self._raw and topic.endswith(_COMPRESSED) and "jpeg" in message.format:
            topic, message = topic.removesuffix(_COMPRESSED), decoded_image(message)
        if topic not in self._publishers_of:
            qos = _LATCHED if _is_latched(topic) else _STREAM
            self._publishers_of[topic] = self.create_publisher(type(message), topic, qos)
        stamps = (h.stamp.sec * 1_000_000_000 + h.stamp.nanosec for h in _headers(message))
        return _Item(topic, recorded.stamp_ns, message, tuple(stamps))

    def wait_for_listeners(self, topics: Sequence[str], count: int, patience_s: float) -> bool:
        """Wait until each of `topics` (those that are played) has `count` subscribers; False if not in time."""
        publishers = [self._publishers_of[topic] for topic in topics if topic in self._publishers_of]
        deadline = time.monotonic() + patience_s
        while any(publisher.get_subscription_count() < count for publisher in publishers):
            if time.monotonic() > deadline or not rclpy.ok():
                return False
            time.sleep(0.05)
        return True

    @property
    def topics(self) -> list[str]:
        """What is played."""
        return sorted(self._publishers_of)

    def play(self, rate: float) -> int:
        """Play everything once, `rate` times as fast as recorded; returns how many messages were sent."""
        start_ns = time.time_ns()
        for sent, item in enumerate(self._items):
            due_ns = start_ns + int((item.logged_ns - self._first_ns) / rate)
            while (wait_s := (due_ns - time.time_ns()) * 1e-9) > 0:
                if not rclpy.ok():
                    return sent
                time.sleep(min(wait_s, 0.1))
            _move_stamps(item, self._origin_ns, start_ns, rate)
            self._publishers_of[item.topic].publish(item.message)
        return len(self._items)


def decoded_image(message: Any) -> Any:
    """sensor_msgs/CompressedImage (JPEG) -> sensor_msgs/Image (rgb8)."""
    from sensor_msgs.msg import Image

    rgb = cv2.cvtColor(cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    height, width = rgb.shape[:2]
    data = array.array("B")
    data.frombytes(rgb)
    return Image(header=message.header, height=height, width=width, encoding="rgb8", step=3 * width, data=data)


def _is_latched(topic: str) -> bool:
    return topic.endswith("tf_static")


def _headers(message: Any) -> list[Any]:
    """The message's header, or those of its transforms."""
    return [message.header] if hasattr(message, "header") else [t.header for t in getattr(message, "transforms", ())]


def _clock_behind_ns(items: Sequence[_Item]) -> int:
    """How far the headers' clock is behind the recording's, 0 unless it is another one: a simulation's, or a replay's.

    What is a little behind is the way of a message from its sensor into the recording, and is kept.
    """
    streams = (item for item in items if not _is_latched(item.topic))
    behind = [item.logged_ns - stamp_ns for item in streams for stamp_ns in item.stamps_ns if stamp_ns]
    middle = statistics.median_low(behind) if behind else 0
    return middle if abs(middle) > _OTHER_CLOCK_NS else 0


def _move_stamps(item: _Item, origin_ns: int, start_ns: int, rate: float) -> None:
    """Write into the message's headers when they are if `origin_ns` becomes `start_ns`, `rate` times as fast."""
    for header, stamp_ns in zip(_headers(item.message), item.stamps_ns, strict=True):
        if stamp_ns:  # zero says 'no time' (tf2: at all times) and is left alone
            moved_ns = max(0, start_ns + int((stamp_ns - origin_ns) / rate))  # ROS has no time before 1970
            header.stamp.sec, header.stamp.nanosec = divmod(moved_ns, 1_000_000_000)


def main(argv: Sequence[str] | None = None) -> int:
    """Play a recording; exit status 1 when it cannot be read."""
    parser = argparse.ArgumentParser(prog="player", description=__doc__.split("\n")[0])
    parser.add_argument("recording", type=Path, help="rosbag2 folder or .mcap file")
    parser.add_argument("--rate", type=float, default=1.0, help="times the recorded speed (default 1)")
    parser.add_argument("--loop", action="store_true", help="start again at the end, until Ctrl-C")
    parser.add_argument("--raw", action="store_true", help="publish JPEG images decoded, as sensor_msgs/Image")
    parser.add_argument("--wait", type=float, default=5.0, metavar="S", help="seconds to wait for --wait-for")
    parser.add_argument("--wait-for", nargs="*", default=None, metavar="TOPIC",
                        help="start when somebody listens to these topics (default: the image)")  # fmt: skip
    parser.add_argument("--listeners", type=int, default=1, help="how many must listen to each of them (default 1)")
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(remove_ros_args(["", *argv])[1:])
    if not arguments.rate > 0:  # nan as well
        parser.error(f"--rate {arguments.rate}: must be greater than 0")
    rclpy.init(args=argv)
    try:
        with Recording(arguments.recording) as recording:
            player = Player(recording, arguments.raw)
        wanted = [t for t in player.topics if "image" in t] if arguments.wait_for is None else arguments.wait_for
        if not player.wait_for_listeners(wanted, arguments.listeners, arguments.wait):
            missing = f"fewer than {arguments.listeners} listen to {', '.join(wanted)}"
            player.get_logger().warning(f"{missing} after {arguments.wait:.0f} s; playing all the same")
        sent = player.play(arguments.rate)
        while arguments.loop and rclpy.ok():
            sent += player.play(arguments.rate)
        player.get_logger().info(f"{sent} messages played")
        # A reliable writer that goes takes its unsent messages with it.
        for publisher in player.publishers:
            publisher.wait_for_all_acked(rclpy.duration.Duration(seconds=1))
    except Unusable as problem:
        print(f"player: {problem}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
