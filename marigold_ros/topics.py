"""Which topics of a recording hold the camera, its info and the range sensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from marigold_ros.config import Unusable
from marigold_ros.recordings import Recording

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
CLOUD = "sensor_msgs/msg/PointCloud2"
SCAN = "sensor_msgs/msg/LaserScan"
_DEPTH_ENCODINGS = ("16UC1", "32FC1")


@dataclass(frozen=True)
class Topics:
    """Names of topics; `truth` is None where no dense depth is asked for."""

    image: str
    camera_info: str
    range: str
    truth: str | None = None


def choose_topics(recording: Recording, wanted: Topics) -> Topics:
    """The topics to read: those that `wanted` names, and where it has '' the only one of the type.

    Raises `Unusable` that lists the candidates where there is none, more than one, or one of another type.
    """
    truth = wanted.truth or None
    if truth is not None:
        truth = _named(recording, truth, (IMAGE, COMPRESSED), "--truth")
    image = wanted.image or _only(recording, _colour_images(recording, truth), (IMAGE, COMPRESSED), "--image")
    image = _named(recording, image, (IMAGE, COMPRESSED), "--image")
    sibling = _sibling(image)
    info = wanted.camera_info or (sibling if recording.topics.get(sibling) == CAMERA_INFO else "")
    info = info or _only(recording, _of_type(recording, (CAMERA_INFO,)), (CAMERA_INFO,), "--camera-info")
    ranges = wanted.range or _only(recording, _of_type(recording, (CLOUD, SCAN)), (CLOUD, SCAN), "--range")
    return Topics(
        image,
        _named(recording, info, (CAMERA_INFO,), "--camera-info"),
        _named(recording, ranges, (CLOUD, SCAN), "--range"),
        truth,
    )


def _of_type(recording: Recording, types: Sequence[str]) -> list[str]:
    return sorted(t for t, type in recording.topics.items() if type in types and recording.counts[t])


def _colour_images(recording: Recording, truth: str | None) -> list[str]:
    """Topics of images; where there are several, without those of depth images."""
    found = [topic for topic in _of_type(recording, (IMAGE, COMPRESSED)) if topic != truth]
    return found if len(found) < 2 else [topic for topic in found if not _is_depth(recording, topic)]


def _is_depth(recording: Recording, topic: str) -> bool:
    """Whether the first message says that it is a depth image, e.g. '16UC1; png compressed'."""
    message = recording.decoded(next(recording.messages([topic])))
    return (getattr(message, "encoding", None) or message.format).startswith(_DEPTH_ENCODINGS)


def _sibling(image: str) -> str:
    """The camera info that belongs to an image topic by image_transport's convention."""
    base = image.removesuffix("/compressed")
    return f"{base.rpartition('/')[0]}/camera_info"


def _only(recording: Recording, found: Sequence[str], types: Sequence[str], option: str) -> str:
    if len(found) == 1:
        return found[0]
    kind = " or ".join(types)
    if found:
        raise Unusable(f"recording {recording.path}: has {', '.join(found)} of {kind}; choose one with {option}")
    missing = "without a LiDAR there is nothing to learn from; " if option == "--range" else ""
    there = _all(recording)
    raise Unusable(
        f"recording {recording.path}: has no messages of {kind}; {missing}record that too (there is {there})"
    )


def _named(recording: Recording, topic: str, types: Sequence[str], option: str) -> str:
    type = recording.topics.get(topic)
    if type is None or not recording.counts[topic]:
        raise Unusable(f"{option} {topic}: recording {recording.path} has no messages of it, only {_all(recording)}")
    if type not in types:
        candidates = ", ".join(_of_type(recording, types)) or "no topic of that"
        raise Unusable(f"{option} {topic}: is of {type}, must be of {' or '.join(types)}; there is {candidates}")
    return topic


def _all(recording: Recording) -> str:
    listed = (f"{topic} ({type})" for topic, type in sorted(recording.topics.items()) if recording.counts[topic])
    return ", ".join(listed) or "nothing"
