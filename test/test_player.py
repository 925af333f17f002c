"""The player moves all headers by the same time; when a message is sent follows the time of its recording."""

import copy
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy")

from geometry_msgs.msg import PointStamped, TransformStamped
from std_msgs.msg import Header

from marigold_ros import player
from marigold_ros.recordings import TF_STATIC, Recorded

START_NS = 1_700_000_000_000_000_000
NOW_NS = 1_800_000_000_000_000_000
MS = 1_000_000


def header(stamp_ns):
    header = Header(frame_id="map")
    header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
    return header


def point(stamp_ns):
    return PointStamped(header=header(stamp_ns))


def transforms(*stamps_ns):
    """What tf2_msgs/TFMessage is, which not every installation has."""
    return SimpleNamespace(transforms=[TransformStamped(header=header(stamp_ns)) for stamp_ns in stamps_ns])


class Scripted:
    """Stands in for a recording: of messages that need no decoding."""

    def __init__(self, messages):
        self._messages = [Recorded(topic, "std_msgs/msg/Empty", *rest) for topic, *rest in messages]
        self.topics = {recorded.topic: recorded.type for recorded in self._messages}

    def messages(self, topics=None):
        return (recorded for recorded in self._messages if topics is None or recorded.topic in topics)


class Clock:
    """Stands in for the module `time`: passes only while somebody sleeps."""

    def __init__(self):
        self.now_ns = NOW_NS

    def time_ns(self):
        return self.now_ns

    def sleep(self, seconds):
        self.now_ns += round(seconds * 1e9)


class Publisher:
    """Keeps (when, message) of what is published."""

    def __init__(self, clock):
        self._clock, self.sent = clock, []

    def publish(self, message):
        self.sent.append((self._clock.now_ns, copy.deepcopy(message)))


@pytest.fixture
def played(ros_domain, monkeypatch):
    """A function that plays (topic, log time, message) from NOW_NS on and returns what was sent, by topic.

    A message without a header comes before all others, at START_NS.
    """
    clock = Clock()
    monkeypatch.setattr(player, "time", clock)
    monkeypatch.setattr(player, "deserialize_message", lambda data, kind: copy.deepcopy(data))
    monkeypatch.setattr(player.Player, "create_publisher", lambda *_: Publisher(clock))

    def play(messages, rate=1.0, times=1):
        clock.now_ns = NOW_NS
        node = player.Player(Scripted([("/first", START_NS, SimpleNamespace()), *messages]), raw=False)
        for _ in range(times):
            node.play(rate)
        sent = {topic: node._publishers_of[topic].sent for topic in node.topics}
        node.destroy_node()
        return sent

    return play


def stamps_ns(message):
    headers = [message.header] if hasattr(message, "header") else [t.header for t in message.transforms]
    return [h.stamp.sec * 1_000_000_000 + h.stamp.nanosec for h in headers]


def headers_ms(sent):
    """Milliseconds from NOW_NS to each header."""
    return [(stamp_ns - NOW_NS) / MS for _, message in sent for stamp_ns in stamps_ns(message)]


@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_headers_are_shifted_and_not_replaced_by_the_time_of_recording(played, rate):
    """An image and a scan of one instant, written at different times, still are of one instant."""
    messages = [
        ("/scan", START_NS + 30 * MS, point(START_NS + 10 * MS)),
        ("/image", START_NS + 80 * MS, point(START_NS + 10 * MS)),
        ("/scan", START_NS + 130 * MS, point(START_NS + 110 * MS)),
    ]
    sent = played(messages, rate)
    assert headers_ms(sent["/image"]) == [10 / rate]
    assert headers_ms(sent["/scan"]) == [10 / rate, 110 / rate]
    assert [when_ns - NOW_NS for when_ns, _ in sent["/scan"]] == [30 * MS / rate, 130 * MS / rate]


def test_each_transform_keeps_its_own_time(played):
    sent = played([("/tf", START_NS + 40 * MS, transforms(START_NS + 10 * MS, START_NS - 20 * MS))])
    assert headers_ms(sent["/tf"]) == [10, -20]


def test_a_time_that_was_not_set_stays_unset(played):
    sent = played([(TF_STATIC, START_NS, transforms(0, START_NS))])
    assert stamps_ns(sent[TF_STATIC][0][1]) == [0, NOW_NS]


@pytest.mark.parametrize("clock_ns", [5_000 * MS, START_NS - 365 * 24 * 3600 * 1000 * MS])
def test_headers_of_another_clock_are_moved_to_now(played, clock_ns):
    """A simulation counts from its own start, and what was recorded of a replay is older than the recording."""
    scans = [("/scan", START_NS + i * MS, point(clock_ns + i * MS)) for i in (0, 10, 20)]
    sent = played([(TF_STATIC, START_NS, transforms(clock_ns)), *scans], rate=0.5)
    assert headers_ms(sent["/scan"]) == [0, 20, 40]
    assert headers_ms(sent[TF_STATIC]) == [0]


def test_a_second_round_is_as_the_first(played):
    sent = played([("/scan", START_NS + 30 * MS, point(START_NS + 20 * MS))], times=2)
    assert headers_ms(sent["/scan"]) == [20, 30 + 20]
