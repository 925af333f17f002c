"""The scan nearest in time, read once, and what happens to those that cannot be read."""

import numpy as np
import pytest

pytest.importorskip("rclpy")
from std_msgs.msg import Header

from marigold_ros.config import Unusable
from marigold_ros.decoding import RangePoints
from marigold_ros.scans import ScanBuffer

MS = 1_000_000


class Message:
    def __init__(self, at_ms, readable=True):
        self.header = Header(frame_id="lidar")
        self.header.stamp.sec, self.header.stamp.nanosec = divmod(at_ms * MS, 1000 * MS)
        self.at_ms, self.readable = at_ms, readable


class Buffer:
    """A ScanBuffer whose points are the message's time, with a list of what was decoded and what was complained of."""

    def __init__(self, offset_s=0.0):
        self.decoded, self.complaints = [], []
        self.scans = ScanBuffer(self.decode, self.complaints.append, offset_s=offset_s)

    def decode(self, message):
        self.decoded.append(message.at_ms)
        if not message.readable:
            raise Unusable("cannot be read")
        return RangePoints(np.full((1, 3), message.at_ms, np.float32))

    def nearest_ms(self, at_ms, max_age_s=0.2):
        return round(self.scans.nearest(at_ms * MS, max_age_s).stamp_ns / MS)


@pytest.fixture
def buffer():
    return Buffer()


def test_the_nearest_in_time_is_found_before_and_after(buffer):
    for at_ms in range(1000, 2000, 100):
        buffer.scans.add(Message(at_ms))
    assert buffer.nearest_ms(1449) == 1400
    assert buffer.nearest_ms(1451) == 1500


def test_stamps_that_are_known_to_be_wrong_are_put_right():
    """Scans that were measured 80 ms before they say: of an image at 1.4 s, the nearest is the one stamped 1.5 s."""
    buffer = Buffer(offset_s=-0.08)
    for at_ms in range(1000, 2000, 100):
        buffer.scans.add(Message(at_ms))
    assert buffer.nearest_ms(1400) == 1420
    assert buffer.decoded == [1500]
    with pytest.raises(Unusable, match=r"0\.120 s newer"):
        buffer.nearest_ms(800, max_age_s=0.1)
    buffer.scans.forget_after(1400 * MS)
    assert buffer.nearest_ms(1500) == 1320


def test_a_scan_is_read_once(buffer):
    buffer.scans.add(Message(1000))
    for at_ms in (1000, 1030, 1060):
        buffer.nearest_ms(at_ms)
    assert buffer.decoded == [1000]


def test_scans_that_nobody_needs_are_never_read(buffer):
    for at_ms in range(1000, 5000, 100):
        buffer.scans.add(Message(at_ms))
    buffer.nearest_ms(4900)
    assert buffer.decoded == [4900]


@pytest.mark.parametrize(("at_ms", "word"), [(1300, "older"), (700, "newer")])
def test_too_far_in_time_is_refused(buffer, at_ms, word):
    buffer.scans.add(Message(1000))
    with pytest.raises(Unusable, match=f"0.300 s {word} than the image"):
        buffer.nearest_ms(at_ms)


def test_an_empty_buffer_says_what_to_check(buffer):
    with pytest.raises(Unusable, match="no scan; check the topic"):
        buffer.nearest_ms(0)


def test_a_scan_without_a_time_is_refused_and_leaves_the_others(buffer):
    """With an image of stamp 0 it would never grow old."""
    buffer.scans.add(Message(0))
    with pytest.raises(Unusable, match=r"header\.stamp=0: .* set it in the driver"):
        buffer.nearest_ms(0)
    buffer.scans.add(Message(1000))
    buffer.scans.add(Message(0))
    assert buffer.nearest_ms(1100) == 1000
    assert [str(problem)[:14] for problem in buffer.complaints] == ["header.stamp=0"] * 2


def test_an_unreadable_scan_is_reported_once_and_the_next_nearest_serves(buffer):
    buffer.scans.add(Message(950))
    buffer.scans.add(Message(1000, readable=False))
    assert buffer.nearest_ms(1000) == 950
    assert buffer.nearest_ms(1000) == 950
    assert list(map(str, buffer.complaints)) == ["cannot be read"]


def test_when_none_can_be_read_the_reason_is_the_reading(buffer):
    buffer.scans.add(Message(1000, readable=False))
    with pytest.raises(Unusable, match="cannot be read"):
        buffer.nearest_ms(1000)


def test_a_scan_from_the_past_means_that_time_started_again(buffer):
    buffer.scans.add(Message(5000))
    buffer.scans.add(Message(1000))
    with pytest.raises(Unusable, match=r"4\.000 s older"):
        buffer.nearest_ms(5000)


def test_a_scan_that_is_late_by_less_than_a_second_takes_its_place_among_the_others(buffer):
    """As those of two LiDARs on one topic are."""
    for at_ms in (5000, 5100, 5200, 5199, 4300, 5300):
        buffer.scans.add(Message(at_ms))
    assert [buffer.nearest_ms(at_ms) for at_ms in (5000, 5110, 5199, 5201, 4310, 5300)] == [
        5000, 5100, 5199, 5200, 4300, 5300,
    ]  # fmt: skip
    buffer.scans.add(Message(4300))
    with pytest.raises(Unusable, match="older"):
        buffer.nearest_ms(5300)


def test_of_more_scans_than_are_kept_the_oldest_goes_though_it_came_last(buffer):
    for at_ms in range(1000, 1400, 20):
        buffer.scans.add(Message(at_ms))
    buffer.scans.add(Message(990))
    buffer.scans.add(Message(1005))
    assert [buffer.nearest_ms(at_ms) for at_ms in (980, 1004, 1020)] == [1005, 1005, 1020]
    assert buffer.nearest_ms(1380) == 1380


def test_a_late_scan_that_is_the_nearest_to_the_image_in_work_is_held_however_full_the_buffer_is(buffer):
    buffer.scans.expect(500 * MS)
    for at_ms in range(1000, 1400, 20):
        buffer.scans.add(Message(at_ms))
    buffer.scans.add(Message(600))
    buffer.scans.add(Message(1400))
    assert buffer.nearest_ms(500) == 600


def test_scans_of_a_future_that_was_left_are_forgotten(buffer):
    buffer.scans.add(Message(1000))
    buffer.scans.add(Message(5000))
    buffer.scans.forget_after(1500 * MS)
    with pytest.raises(Unusable, match="older"):
        buffer.nearest_ms(5000)
    assert buffer.nearest_ms(1000) == 1000


def test_a_network_that_takes_seconds_still_gets_the_scan_of_its_image(buffer):
    """Of 100 scans a second, 500 come while the network works; the buffer holds far fewer."""
    for at_ms in range(0, 1000, 10):
        buffer.scans.add(Message(at_ms))
    buffer.scans.expect(1004 * MS)
    for at_ms in range(1000, 6000, 10):
        buffer.scans.add(Message(at_ms))
    assert buffer.nearest_ms(1004) == 1000


def test_a_held_scan_that_cannot_be_read_makes_way_for_the_next(buffer):
    buffer.scans.add(Message(990))
    buffer.scans.add(Message(1000, readable=False))
    buffer.scans.expect(1000 * MS)
    assert buffer.nearest_ms(1000) == 990
    assert len(buffer.complaints) == 1


def test_time_that_starts_again_takes_the_held_scan_with_it(buffer):
    buffer.scans.add(Message(5000))
    buffer.scans.expect(5000 * MS)
    buffer.scans.add(Message(1000))
    with pytest.raises(Unusable, match="older"):
        buffer.nearest_ms(5000)


def test_large_clouds_do_not_fill_the_memory(buffer):
    """A LiDAR of 128 x 2048 points of 48 bytes: twenty of its clouds would take 250 MB."""
    for at_ms in range(1000, 3000, 100):
        message = Message(at_ms)
        message.data = bytes(12_500_000)
        buffer.scans.add(message)
    assert buffer.nearest_ms(2900) == 2900
    assert buffer.nearest_ms(2700) == 2700
    with pytest.raises(Unusable, match="newer"):
        buffer.nearest_ms(2200)
