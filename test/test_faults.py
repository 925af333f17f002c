"""What can go wrong, each watched on the topics before, during and after it: what is published, what /diagnostics say.

One node per kind of range sensor lives through all of it; the network is a flat scene's stand-in. Frames are sent one
at a time, each when the node is done with the one before, so that every one of them is accounted for. What is wrong
with checkpoints and engines is in test_depth_node.py, one of several sensors in test_sources.py.
"""

import itertools
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from flat_scene_node import depth_m
from ros_harness import (
    FOCAL_PX,
    HEIGHT,
    OFTEN,
    STATIC,
    TEST,
    TOF_HEIGHT,
    TOF_WIDTH,
    TRANSLATION_M,
    WIDTH,
    cloud_of,
    compressed_image,
    good_cloud,
    good_image,
    good_info,
    good_scan,
    lidar_points,
    stamp,
    tof_image,
    tof_info,
)

OUTPUTS = {
    "depth": Image,
    "depth/camera_info": CameraInfo,
    "depth/sigma": Image,
    "depth/visual": Image,
    "points": PointCloud2,
    "relative_depth": Image,
    "depth/status": DiagnosticArray,
}
# What goes on without metres.
RELATIVE = ("relative_depth", "depth/status")
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
# Farther apart than range.max_age_s, so that a frame has its own scan or none.
STEP_S = 0.25
HOLD_S = 2 * STEP_S
WITH_METRES = ("OK", "DEGRADED", "HOLD")
TRUE_M = depth_m(WIDTH, HEIGHT)
ANSWERED, DROPPED, FAILED = "processed total", "messages unusable", "frames failed"


@dataclass(frozen=True)
class Rig:
    """A camera and a range sensor: what they send when all is well, how the node is told, how exact its metres are.

    `depth` is the name that the topic is remapped to.
    """

    name: str
    messages: dict[str, Callable[[], object]] = field(default_factory=dict)
    parameters: dict[str, object] = field(default_factory=dict)
    rtol: float = 1e-3
    depth: str = "depth"

    @property
    def node(self) -> str:
        return self.topic("depth_node")

    def topic(self, name) -> str:
        """Its full name."""
        return f"/{self.name}/{self.depth if name == 'depth' else name}"

    def good(self) -> dict[str, object]:
        """New messages of one time."""
        made = {"camera_info": good_info, "range": good_cloud, "image": good_image, **self.messages}
        return {topic: make() for topic, make in made.items()}


def picture(extension=".jpg") -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    return cv2.imencode(extension, noise)[1].tobytes()


RIGS = {
    "lidar": Rig("lidar"),
    "scanner": Rig(
        "scanner",
        {"image": lambda: compressed_image("jpeg", picture()), "range": good_scan},
        {**STATIC, "range.type": "laserscan", "image.transport": "compressed", "output.depth_encoding": "16UC1"},
        rtol=0.02,
        depth="depth/image_raw",
    ),
    "radar": Rig("radar", {}, {**STATIC, "range.type": "radar"}),
    "tof": Rig(
        "tof",
        {"range/camera_info": tof_info, "range": tof_image},
        {"range.type": "depth_image", "range.extrinsic": "static"},
    ),
}
SPACE, NODE = RIGS["lidar"].topic(""), RIGS["lidar"].node


@dataclass(frozen=True)
class Frame:
    """An image, and what the node said of itself when it was done with it."""

    stamp_ns: int
    level: bytes
    message: str
    facts: dict[str, str]

    @property
    def seconds(self) -> str:
        """Its time, as /diagnostics write it."""
        return f"{self.stamp_ns * 1e-9:.3f}"

    @property
    def state(self) -> str:
        return self.facts["metric state"]

    def number(self, key) -> float:
        return float(self.facts[key])


class Stream:
    """Frames at 4 Hz by their stamps; notes what of each must be on the topics, and compares in the end."""

    def __init__(self, robot, rig, node, switches):
        self.robot, self.rig, self.node, self.switches = robot, rig, node, switches
        self.expected = {topic: set() for topic in OUTPUTS}
        self.sent = set()

    def frame(self, counted=ANSWERED, **changed) -> Frame:
        """The next frame, as `send` makes it, once the node is done with it.

        `counted`: the number on /diagnostics that tells.
        """
        before, stamp_ns = self.count(counted), self.send(**changed)
        self.robot.spin_until(lambda: self.count(counted) > before, f"one more in {counted!r}")
        status = self.robot.statuses[self.rig.node]
        frame = Frame(stamp_ns, status.level, status.message, self.robot.values(self.rig.node))
        if counted == ANSWERED:
            self.expect([stamp_ns], OUTPUTS if frame.state in WITH_METRES else RELATIVE)
            (told,) = self.on("depth/status")[stamp_ns].status
            assert told.message.split(":")[0] == frame.state
        return frame

    def send(self, **changed) -> int:
        """The next camera info, scan and image, each by default the good one, None for none; returns their stamp."""
        stamp_ns = self.robot.next_stamp(STEP_S)
        self.sent.add(stamp_ns)
        messages = {**self.rig.good(), **changed}
        image = messages.pop("image")
        self._deliver(stamp_ns, messages)
        self._deliver(stamp_ns, {"image": image})
        return stamp_ns

    def _deliver(self, stamp_ns, messages):
        """Publish, and return when the node's executor has taken them: it answers a call of a service after that."""
        for topic, message in messages.items():
            if message is not None:
                if message.header.stamp.sec == 0:
                    message.header.stamp = stamp(stamp_ns)
                self.robot.send(self.rig.topic(topic), message)
        self.robot.call(GetState, f"{self.rig.node}/get_state", GetState.Request())

    def expect(self, stamps, topics):
        """Wait for messages of these stamps; `recovers` then sees that there are no others."""
        for stamp_ns, topic in itertools.product(stamps, topics):
            self.expected[topic].add(stamp_ns)
            self.robot.spin_until(lambda: stamp_ns in self.on(topic), f"{topic} of {stamp_ns}")  # noqa: B023

    def time_jumps(self, seconds):
        """To stamps that were never used before."""
        self.robot.stamp_ns += round(seconds * 1e9) + 7

    @contextmanager
    def switched(self, name):
        """While this lasts, the scene fails in this way."""
        (self.switches / name).touch()
        try:
            yield
        finally:
            (self.switches / name).unlink()

    def settles(self):
        """Good frames until all is good."""
        for _ in range(20):
            if (frame := self.frame()).state == "OK":
                return
        raise AssertionError(f"never OK: {frame}")

    def on(self, topic) -> dict:
        return self.robot.answers[self.rig.topic(topic)]

    def count(self, key) -> int:
        return int(self.robot.values(self.rig.node)[key])

    def metres(self, frame) -> np.ndarray:
        message, encoding = self.on("depth")[frame.stamp_ns], self.rig.parameters.get("output.depth_encoding", "32FC1")
        assert message.encoding == encoding
        kind, unit_m = {"32FC1": ("<f4", 1.0), "16UC1": ("<u2", 1e-3)}[encoding]
        return np.frombuffer(message.data, kind).reshape(HEIGHT, WIDTH) * np.float32(unit_m)

    def assert_true_metres(self, frame):
        np.testing.assert_allclose(self.metres(frame), TRUE_M, rtol=self.rig.rtol)

    def in_log(self, text) -> bool:
        """Whether the node said so, numbers aside: what differs in them alone is not said again."""
        return re.sub(r"\d+", "#", text) in re.sub(r"\d+", "#", self.node.log)

    def recovers(self, states=("OK",)) -> Frame:
        """Good frames bring these states, true metres and an end of complaints; only what is expected was published."""
        for wanted in states:
            frame = self.frame()
            assert frame.state == wanted
            self.assert_true_metres(frame)
            assert (frame.level, frame.message.endswith("frames per second")) == (OK, True), frame.message
            assert "metric off since (s)" not in frame.facts
        # Each topic's messages come in order: what is not there now will not come any more.
        for topic, stamps in self.expected.items():
            assert self.sent & set(self.on(topic)) == stamps, topic
        return frame


COLD_START = ("DEGRADED", "DEGRADED", "OK")


@pytest.fixture(scope="module")
def switches(tmp_path_factory):
    return tmp_path_factory.mktemp("switches")


@pytest.fixture(scope="module")
def node_of(robot, start_node, switches):
    """A function that gives the node of a rig, started when it is first asked for and warm."""

    @cache
    def start(name):
        rig = RIGS[name]
        robot.listen(**{rig.topic(topic).replace("/", "__"): kind for topic, kind in OUTPUTS.items()})
        node = start_node(
            parameters={**OFTEN, "image.reliability": "reliable", "fit.hold_s": HOLD_S, **rig.parameters},
            arguments=["-r", f"__ns:=/{rig.name}", "-r", f"depth:={rig.depth}"],
            environment={"PYTHONPATH": str(TEST / "fake_tf2"), "FLAT_SCENE_SWITCHES": str(switches)},
        )
        warm_up(robot, rig)
        return node

    return start


def warm_up(robot, rig):
    """Send frames until the last one was answered on every topic, and /diagnostics tell of it."""
    sent = []
    robot.send_until(
        lambda: sent.append(robot.send_frame(prefix=rig.topic(""), **rig.good())),
        lambda: sent and all(sent[-1] in robot.answers[rig.topic(topic)] for topic in OUTPUTS),
        "answers on all topics",
    )
    robot.fresh_diagnostics(rig.node)


@pytest.fixture
def stream_of(robot, node_of, switches):
    """A function that gives a stream of a rig's frames, in the middle of a good run."""

    def start(name):
        stream = Stream(robot, RIGS[name], node_of(name), switches)
        stream.settles()
        return stream

    return start


@pytest.fixture
def node(node_of):
    """That of the LiDAR."""
    return node_of("lidar")


@pytest.fixture
def stream(stream_of):
    """That of the LiDAR."""
    return stream_of("lidar")


# Range sensors that say nothing, or nothing that can be believed


def inverted_cloud():
    """What is near seems far, as with a LiDAR that is mounted the wrong way round."""
    points = lidar_points()
    return cloud_of(points * (12.0 / (points[:, :1] + TRANSLATION_M[2]) - 1.0))


def cloud_in(frame_id):
    cloud = good_cloud()
    cloud.header.frame_id = frame_id
    return cloud


def cloud_at(stamp_ns):
    cloud = good_cloud()
    cloud.header.stamp = stamp(stamp_ns)
    return cloud


LAPSES = {
    "no scans": (lambda image_ns: None, "RELATIVE", "s older than the image (range.max_age_s=0.2)"),
    "scans ten seconds late": (
        lambda image_ns: cloud_at(image_ns - 10 * 10**9), "RELATIVE", "the nearest scan is 10.000 s older",
    ),
    "a restarted sensor, stamps from its boot on": (
        lambda image_ns: cloud_at(image_ns % (60 * 10**9) + 5 * 10**9), "RELATIVE", "check the sensor's rate and that",
    ),
    "points behind the camera only": (
        lambda image_ns: cloud_of(lidar_points() * np.float32([-1, 1, 1])), "RELATIVE", "no anchor lies in the image",
    ),
    "no returns": (
        lambda image_ns: cloud_of(np.full_like(lidar_points(), np.nan)), "RELATIVE", "no anchor lies in the image",
    ),
    "no transform": (lambda image_ns: cloud_in("nowhere"), "FAULT", "no transform from 'nowhere' to 'camera'"),
    "near for far": (lambda image_ns: inverted_cloud(), "FAULT", "the anchors ask for a negative scale"),
}  # fmt: skip


@pytest.mark.parametrize("what", LAPSES)
def test_without_usable_scans_metres_are_held_in_growing_doubt_and_then_end(stream, what):
    make, end, reason = LAPSES[what]

    def lapse():
        return stream.frame(range=make(stream.robot.stamp_ns + round(STEP_S * 1e9)))

    doubt = [stream.frame().number("fit uncertainty (relative)")]
    for _ in range(round(HOLD_S / STEP_S)):
        held = lapse()
        doubt.append(held.number("fit uncertainty (relative)"))
        assert (held.state, held.level) == ("HOLD", WARN)
        assert held.message.startswith(f"metres held for {held.number('fit age (s)'):.2f} s: ")
        assert reason in held.message
        np.testing.assert_allclose(stream.metres(held), TRUE_M, rtol=1e-3)
    assert all(after > 1.2 * before for before, after in itertools.pairwise(doubt)), doubt
    off = [lapse(), lapse()]
    for frame in off:
        assert (frame.state, frame.level) == (end, ERROR if end == "FAULT" else WARN)
        assert frame.message.startswith(f"no metric depth since {off[0].seconds}: ")
        assert reason in frame.message
        assert frame.facts["metric off since (s)"] == off[0].seconds
        assert not {"scale", "fit age (s)", "metres from"} & frame.facts.keys()
    stream.recovers(COLD_START)


def test_a_transform_that_is_no_longer_published_is_a_fault_after_a_second(stream):
    """Metres are held for as long as always; what tf2 says when it is late is no fault yet."""
    with stream.switched("silent"):
        frames = [stream.frame() for _ in range(6)]
    assert [frame.state for frame in frames] == ["HOLD", "HOLD", "RELATIVE", "RELATIVE", "RELATIVE", "FAULT"]
    assert (frames[-2].level, frames[-1].level) == (WARN, ERROR)
    for number, frame in enumerate(frames, start=1):
        assert "no transform from 'lidar' to 'camera' at the time of the scan: the newest is " in frame.message
        assert f"{number * STEP_S:.3f} s older than the scan; is its publisher alive" in frame.message
    stream.recovers(COLD_START)


def changed(make, **fields):
    """A good message but for these fields."""
    message = make()
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def without(field):
    return cloud_of(lidar_points(), "xyz".replace(field, "w"))


CLOUDS = {
    "zero points": (lambda: cloud_of(np.empty((0, 3))), "cloud of 0x1 points"),
    "no x": (partial(without, "x"), "needs 'x' as FLOAT32"),
    "no y": (partial(without, "y"), "needs 'y' as FLOAT32"),
    "no z": (partial(without, "z"), "needs 'z' as FLOAT32"),
    "truncated data": (partial(changed, good_cloud, data=good_cloud().data[:-1]), "cloud data of 2303 bytes"),
    "step too small": (partial(changed, good_cloud, point_step=8), "outside of point_step=8"),
}
NO_READING = "none is within range_min=0.1, range_max=30; check the sensor"
SCANS = {
    "no returns": (partial(changed, good_scan, ranges=[np.inf] * 81), f"scan of 81 readings: {NO_READING}"),
    "NaN": (partial(changed, good_scan, ranges=[np.nan] * 81), f"scan of 81 readings: {NO_READING}"),
    "too near and too far": (partial(changed, good_scan, ranges=[0.05, 31.0]), f"scan of 2 readings: {NO_READING}"),
    "zero readings": (partial(changed, good_scan, ranges=[]), f"scan of 0 readings: {NO_READING}"),
    "no angles": (partial(changed, good_scan, angle_min=np.nan), "scan with angle_min=nan, angle_increment=0.01"),
}
# Of rgb8 as a colour camera sends it.
COLOURS = {"encoding": "rgb8", "step": 3 * TOF_WIDTH, "data": bytes(3 * TOF_WIDTH * TOF_HEIGHT)}
NO_DEPTH = bytes(2 * TOF_WIDTH * TOF_HEIGHT)
DEPTH_IMAGES = {
    "wrong encoding": (
        partial(changed, tof_image, **COLOURS), "encoding='rgb8': depth must be one of 16UC1, mono16, 32FC1; check"
    ),
    "truncated data": (
        partial(changed, tof_image, data=tof_image().data[:-1]), "image data of 383 bytes: 16x12 '16UC1' has 384; trunc"
    ),
    "step too small": (partial(changed, tof_image, step=7), "step=7: rows of 16 pixels"),
    "zero size": (partial(changed, tof_image, width=0, height=0, data=b""), "image of 0x0: must have pixels"),
    "no returns": (partial(changed, tof_image, data=NO_DEPTH), "depth image of 16x12: no pixel has a depth"),
    "another size": (partial(changed, tof_image, height=6), "camera info of 16x12"),
}  # fmt: skip
UNUSABLE_SCANS = {"lidar": CLOUDS, "scanner": SCANS, "radar": CLOUDS, "tof": DEPTH_IMAGES}


def assert_held(stream, frame, reason):
    """The last metres serve, and the range topic is named with the reason."""
    assert (frame.state, frame.level) == ("HOLD", WARN), reason
    assert f"{stream.rig.topic('range')}: " in frame.message
    assert reason in frame.message
    assert stream.in_log(reason)
    stream.assert_true_metres(frame)


@pytest.mark.parametrize("rig", UNUSABLE_SCANS)
def test_an_unusable_scan_is_named_and_the_last_metres_serve_for_a_while(stream_of, rig):
    stream = stream_of(rig)
    for make, reason in UNUSABLE_SCANS[rig].values():
        unusable = stream.count(DROPPED)
        frame = stream.frame(range=make())
        assert_held(stream, frame, reason)
        assert frame.number(DROPPED) == unusable + 1
        stream.recovers()
    frames = [stream.frame(range=make()) for _ in range(round(HOLD_S / STEP_S) + 2)]
    assert [frame.state for frame in frames] == ["HOLD", "HOLD", "RELATIVE", "RELATIVE"]
    for frame in frames[2:]:
        assert frame.level == WARN
        assert f"no metric depth since {frames[2].seconds}: " in frame.message
        assert reason in frame.message
    stream.recovers(COLD_START)
    assert stream.node.running()


@pytest.mark.parametrize("rig", ["scanner", "radar", "tof"])
def test_without_scans_of_any_kind_metres_are_held_and_then_end(stream_of, rig):
    """As with those of a LiDAR, above."""
    stream = stream_of(rig)
    frames = [stream.frame(range=None) for _ in range(round(HOLD_S / STEP_S) + 1)]
    assert [frame.state for frame in frames] == ["HOLD", "HOLD", "RELATIVE"]
    assert frames[-1].level == WARN
    assert frames[-1].message.startswith(f"no metric depth since {frames[-1].seconds}: the nearest scan is ")
    stream.recovers(COLD_START)


def test_a_depth_image_without_a_camera_info_that_can_be_used_is_no_scan(stream_of):
    stream, info = stream_of("tof"), "range/camera_info"
    for bad, reason in (
        (tof_info(0.0), "camera info: K has fx=0.0"),
        (changed(tof_info, p=[np.nan] * 12, k=[np.nan] * 9), "camera info: K has fx=nan"),
        (changed(tof_info, width=640), "camera info of 640x12"),
    ):
        assert_held(stream, stream.frame(**{info: bad}), reason)
        stream.recovers()
    robot, sent = stream.robot, []
    for transition in ("deactivate", "cleanup", "configure", "activate"):
        assert change(stream, transition)
    robot.send_until(
        lambda: sent.append(robot.send_frame(prefix=stream.rig.topic(""), **{**stream.rig.good(), info: None})),
        lambda: sent and sent[-1] in stream.on("relative_depth"),
        "relative depth",
    )
    facts = robot.fresh_diagnostics(stream.rig.node)
    assert (facts["metric state"], robot.statuses[stream.rig.node].level) == ("RELATIVE", WARN)
    assert f"no camera info on '{stream.rig.topic(info)}', which a depth image needs" in robot.status(stream.rig.node)
    warm_up(robot, stream.rig)
    stream.settles()
    stream.recovers()
    assert not set(sent) & (set(stream.on("depth")) | set(stream.on("points")))


def change(stream, transition) -> bool:
    """Whether the node takes this transition."""
    request = ChangeState.Request()
    request.transition.label = transition
    return stream.robot.call(ChangeState, f"{stream.rig.node}/change_state", request).success


def test_one_wild_scan_is_held_off_and_a_second_one_believed(stream):
    started_anew = stream.frame().number("metres started anew")
    wild = stream.frame(range=cloud_of(1.6 * lidar_points()))
    assert (wild.state, wild.level, wild.number("metres started anew")) == ("HOLD", WARN, started_anew)
    assert "the anchors contradict the frames before (chi-square " in wild.message
    assert wild.number("fit age (s)") == STEP_S
    np.testing.assert_allclose(stream.metres(wild), TRUE_M, rtol=1e-3)
    stream.recovers()

    stream.frame(range=cloud_of(1.6 * lidar_points()))
    believed = stream.frame(range=cloud_of(1.6 * lidar_points()))
    assert (believed.state, believed.level) == ("OK", OK)
    assert believed.number("metres started anew") == started_anew + 1
    np.testing.assert_allclose(stream.metres(believed), 1.6 * TRUE_M, rtol=0.06)  # about the LiDAR, not the camera
    back = stream.frame()
    assert back.state == "HOLD"
    np.testing.assert_allclose(stream.metres(back), stream.metres(believed), rtol=1e-2)
    assert stream.recovers().number("metres started anew") == started_anew + 2


def wall():
    """Points of one depth, the nearest in the image: what they say of the rest is little."""
    points = lidar_points(1)
    return cloud_of(points[points[:, 0] < 2.2])


@pytest.mark.parametrize("few", [lambda: cloud_of(lidar_points(1)[:3]), wall], ids=["three points", "one depth"])
def test_anchors_that_say_little_serve_beside_memory_and_not_alone(stream, few):
    doubt = stream.frame().number("fit uncertainty (relative)")
    some = stream.frame(range=few())
    assert (some.state, some.level) == ("DEGRADED", OK)
    assert some.number("fit uncertainty (relative)") > 1.2 * doubt
    np.testing.assert_allclose(stream.metres(some), TRUE_M, rtol=1e-2)
    stream.recovers(COLD_START)
    stream.time_jumps(-100.0)
    alone = stream.frame(range=few())
    assert (alone.state, alone.level) == ("RELATIVE", WARN)
    assert "the metres are uncertain by " in alone.message
    assert alone.facts["metric off since (s)"] == alone.seconds
    stream.recovers(COLD_START)


# Time


def test_a_recording_that_starts_again_leaves_no_stale_metres(stream, node):
    said = node.log.count("time went back by")
    off = [stream.frame(range=None) for _ in range(3)][-1]
    assert off.state == "RELATIVE"
    stream.time_jumps(-1000.0)
    first = stream.frame(range=None)
    assert (first.state, first.level) == ("RELATIVE", WARN)
    assert first.facts["metric off since (s)"] == first.seconds
    stream.recovers(COLD_START)
    stream.time_jumps(-1000.0)  # from good metres, and with scans of the future at hand
    first = stream.frame(range=None)
    assert (first.state, first.level) == ("RELATIVE", WARN)
    assert "no scan; check the topic" in first.message
    stream.recovers(COLD_START)
    assert node.log.count("time went back by") - said <= 2  # the second one may be too soon to be said again


def test_after_a_jump_ahead_metres_are_those_of_new_scans(stream):
    stream.time_jumps(+1000.0)
    frame = stream.frame(range=None)
    assert (frame.state, frame.level) == ("RELATIVE", WARN)
    assert "s older than the image" in frame.message
    stream.recovers(COLD_START)


def test_an_image_a_moment_late_is_dropped_and_three_in_order_are_time_that_went_back(stream, node):
    said, text = node.log.count("time went back by"), "s before that of an earlier image (dropped"
    stream.time_jumps(-2 * STEP_S)
    stream.frame(counted=DROPPED, camera_info=None, range=None)
    assert text in node.log
    stream.time_jumps(+2 * STEP_S)
    stream.recovers()  # without a cold start: nothing was forgotten
    assert node.log.count("time went back by") == said
    stream.time_jumps(-4 * STEP_S)
    stream.frame(counted=DROPPED)
    stream.frame(counted=DROPPED)
    assert stream.frame().state == "DEGRADED"
    stream.recovers(COLD_START[1:])


def test_messages_without_a_time_are_refused(stream, node):
    """Of two zeros the difference is always zero: metres of a LiDAR that died would never end."""
    for topic, message, state in (("image", good_image(), "FAULT"), ("range", good_cloud(), "OK")):
        unusable = stream.count(DROPPED)
        stream.robot.send(SPACE + topic, message)
        stream.robot.spin_until(lambda: stream.count(DROPPED) == unusable + 1, "a message to be dropped")  # noqa: B023
        status = stream.robot.statuses[NODE]
        assert (status.level, stream.robot.values(NODE)["metric state"]) == (WARN, state)
        assert f"{SPACE}{topic}: header.stamp=0: tells no time" in status.message
        assert f"{SPACE}{topic}: header.stamp=0: tells no time" in node.log
        stream.recovers()
    assert 0 not in stream.on("relative_depth")


# The camera


def squeezed(data, format="jpeg"):
    return partial(compressed_image, format, data)


JPEG, PNG = picture(), picture(".png")
HOLED = JPEG[: len(JPEG) // 3] + JPEG[len(JPEG) // 2 :]
IMAGES = {
    "wrong encoding": ("image", partial(changed, good_image, encoding="rgb9"), "encoding='rgb9': must be one of"),
    "zero size": ("image", partial(changed, good_image, width=0, height=0, data=b""), "image of 0x0"),
    "step too small": ("image", partial(changed, good_image, step=7), "step=7"),
    "truncated data": ("image", partial(changed, good_image, data=b"\1" * 100), "image data of 100 bytes"),
    "NaN intrinsics": ("camera_info", partial(changed, good_info, k=[np.nan] * 9), "K has fx=nan"),
    "no calibration": ("camera_info", partial(changed, good_info, k=[0.0] * 9), "K has fx=0.0"),
    "another size": ("camera_info", partial(changed, good_info, width=640, height=480), "camera info of 640x480"),
    "an unknown lens": (
        "camera_info", partial(changed, good_info, distortion_model="soup", d=[0.1]), "distortion_model='soup': must be"
    ),
}  # fmt: skip
COMPRESSED_IMAGES = {
    "truncated JPEG": ("image", squeezed(JPEG[: len(JPEG) // 2]), "is damaged or truncated (Premature end"),
    "JPEG with a hole": ("image", squeezed(HOLED), f"JPEG of {len(HOLED)} bytes: is damaged or truncated"),
    "truncated PNG": ("image", squeezed(PNG[:-100], "png"), f"PNG of {len(PNG) - 100} bytes: its end is missing"),
    "neither": ("image", squeezed(b"GIF89a"), "format='jpeg' of 6 bytes: is neither JPEG nor PNG"),
    "no data": ("image", squeezed(b""), "format='jpeg' of 0 bytes: is neither JPEG nor PNG"),
    "an unknown mosaic": ("image", squeezed(JPEG, "bayer_rggb9; jpeg compressed"), "a mosaic must be one of bayer_"),
    "another size": ("camera_info", partial(changed, good_info, width=640, height=480), "camera info of 640x480"),
}  # fmt: skip
UNUSABLE_IMAGES = {"lidar": IMAGES, "scanner": COMPRESSED_IMAGES}


@pytest.mark.parametrize("rig", UNUSABLE_IMAGES)
def test_an_unusable_image_or_camera_info_means_no_output_and_a_fault(stream_of, rig):
    stream = stream_of(rig)
    for what, (topic, make, reason) in UNUSABLE_IMAGES[rig].items():
        dropped = stream.frame(counted=DROPPED, **{topic: make()})
        assert (dropped.state, dropped.level) == ("FAULT", WARN), what
        assert dropped.message.startswith(f"{stream.rig.topic(topic)}: ")
        assert reason in dropped.message
        assert stream.in_log(reason)
        assert not {"scale", "fit age (s)", "metres from"} & dropped.facts.keys()
        stream.recovers()
    assert stream.node.running()


def test_a_camera_that_changes_its_size_starts_anew(stream):
    half = {"width": WIDTH // 2, "height": HEIGHT // 2}
    cx, cy, focal_px = (WIDTH / 2 - 1) / 2, (HEIGHT / 2 - 1) / 2, FOCAL_PX / 2
    info = changed(good_info, **half, k=[focal_px, 0.0, cx, 0.0, focal_px, cy, 0.0, 0.0, 1.0])
    image = changed(good_image, **half, step=3 * WIDTH // 2, data=good_image().data[: 3 * WIDTH * HEIGHT // 4])
    frame = stream.frame(camera_info=info, image=image)
    assert (frame.state, frame.level) == ("DEGRADED", OK)
    found = stream.on("depth")[frame.stamp_ns]
    assert (found.width, found.height) == (WIDTH // 2, HEIGHT // 2)
    np.testing.assert_allclose(np.frombuffer(found.data, "<f4")[[0, -1]], TRUE_M[0, [0, -1]], rtol=0.05)
    stream.recovers(COLD_START)


def test_a_camera_faster_than_the_network_gets_answers_to_its_newest_frames(stream, node):
    keys = ("image total", "images dropped", ANSWERED)
    before, looks = [stream.count(key) for key in keys], node.log.count("looking")
    with stream.switched("slow"):
        sent = [stream.send()]
        stream.robot.spin_until(lambda: node.log.count("looking") > looks, "a frame in work")
        sent += [stream.send() for _ in range(5)]
    stream.expect([sent[0], sent[-1]], OUTPUTS)
    stream.robot.spin_until(lambda: stream.count(ANSWERED) == before[-1] + 2, "both in the diagnostics")
    assert [stream.count(key) for key in keys] == [before[0] + 6, before[1] + 4, before[2] + 2]
    assert node.log.count("looking") == looks + 2  # that in work, and the newest: nobody waits longer than two looks
    stream.recovers()


# The settings


def test_a_setting_that_cannot_be_used_is_refused_and_changes_nothing(stream):
    parameter = Parameter(name="range.min_depth_m", value=ParameterValue(type=3, double_value=100.0))
    request = SetParameters.Request(parameters=[parameter])
    (refused,) = stream.robot.call(SetParameters, f"{NODE}/set_parameters", request).results
    assert not refused.successful
    assert refused.reason.startswith("range.min_depth_m=100.0: must be less than range.max_depth_m=100.0")
    stream.recovers()


# The network and its device


@pytest.mark.parametrize(
    ("switch", "reason"),
    [
        ("lost", "the frame failed with RuntimeError: CUDA error: the device is lost"),
        ("nan", "the network's answer is constant or not finite: its engine or checkpoint is broken"),
    ],
)
def test_a_frame_that_the_network_fails_on_is_no_output_and_the_next_one_is_good(stream, node, switch, reason):
    failed = stream.count(FAILED)
    with stream.switched(switch):
        frame = stream.frame(counted=FAILED)
    assert (frame.state, frame.level, frame.number(FAILED)) == ("FAULT", ERROR, failed + 1)
    assert reason in frame.message
    assert reason in node.log
    assert not {"scale", "fit age (s)", "metres from"} & frame.facts.keys()
    stream.recovers()


def test_a_network_that_sees_nothing_gives_no_metres(stream):
    with stream.switched("constant"):
        frames = [stream.frame(), stream.frame()]
    for frame in frames:
        assert (frame.state, frame.level) == ("FAULT", ERROR)
        assert "the network's answer is constant or not finite" in frame.message
        assert frame.facts["metric off since (s)"] == frames[0].seconds
    stream.recovers(COLD_START)


def test_a_device_without_memory_leaves_nothing_half_loaded_and_no_camera_info_no_output(stream, node):
    robot = stream.robot

    def told(text, level):
        robot.spin_until(lambda: robot.status(NODE).startswith(text) and robot.statuses[NODE].level == level, text)

    assert change(stream, "deactivate")
    assert change(stream, "cleanup")
    with stream.switched("unloadable"):
        assert not change(stream, "configure")
    told("cannot become inactive: CUDA error: out of memory", ERROR)
    assert robot.values(NODE)["lifecycle state"] == "unconfigured"
    assert all(robot.node.count_publishers(SPACE + topic) == 0 for topic in OUTPUTS)
    assert change(stream, "configure")
    told("inactive", OK)
    assert change(stream, "activate")
    # Not `frame`: the node must find its listeners first.
    robot.send_until(lambda: stream.send(camera_info=None), lambda: stream.count(DROPPED) > 0, "an image to be dropped")
    told(f"{SPACE}camera_info: no camera info yet; nothing is published without it", WARN)
    assert robot.values(NODE)["metric state"] == "FAULT"
    assert node.running()
    warm_up(robot, stream.rig)
    stream.settles()
    stream.recovers()
