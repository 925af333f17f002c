"""The images of a recording with what was measured at the same time: scans, camera info, transforms, true depth.

A recording is read twice. The first time only to know what there is: stamps, camera infos, transforms. The second time
each image comes with its scans, in the recording's order, and no more is held in memory than one image waits for.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.decoding import info_key, stamp_ns
from marigold_ros.recordings import TF_STATIC, Recorded, Recording
from marigold_ros.topics import Topics
from marigold_ros.transform_tree import TransformTree

TF = "/tf"
_TRANSFORMS = "tf2_msgs/msg/TFMessage"

# How far beyond the ends of /tf its nearest transform still serves.
_TF_PATIENCE_S = 0.2


@dataclass(frozen=True)
class Stamp:
    """Of one message: when it was measured, when it was recorded, in which frame. None of it where it is damaged."""

    measured_ns: int = 0
    recorded_ns: int = 0
    frame: str = ""
    problem: str = ""


@dataclass
class Contents:
    """What the first reading found; the lists are in the recording's order."""

    images: list[Stamp] = field(default_factory=list)
    scans: list[Stamp] = field(default_factory=list)
    truths: list[Stamp] = field(default_factory=list)
    # When each camera info began to hold, and the message.
    infos: list[tuple[int, Any]] = field(default_factory=list)
    transforms: TransformTree = field(default_factory=lambda: TransformTree(0.0))

    def info_at(self, recorded_ns: int) -> Any:
        """The camera info that a node would have had: the last one before, else the first one after."""
        before = [info for began_ns, info in self.infos if began_ns <= recorded_ns]
        return before[-1] if before else self.infos[0][1]


def contents_of(
    recording: Recording,
    topics: Topics,
    watch: Callable[[Iterator[Recorded], int], Iterable[Recorded]],
) -> Contents:
    """Read a recording for the first time.

    `watch` is given the messages and their number, and hands them on: for a progress bar.
    """
    found = Contents(transforms=TransformTree(_TF_PATIENCE_S))
    lists = {topics.image: found.images, topics.range: found.scans, topics.truth: found.truths}
    tf = [t for t, type in recording.topics.items() if type == _TRANSFORMS and t.endswith((TF, TF_STATIC))]
    wanted = [topic for topic in (*lists, topics.camera_info, *tf) if topic is not None]
    for recorded in watch(recording.messages(wanted), sum(recording.counts[topic] for topic in wanted)):
        try:
            message = recording.decoded(recorded)
        except Unusable as problem:
            if recorded.topic in lists:
                lists[recorded.topic].append(Stamp(problem=str(problem)))
            continue
        if recorded.topic in lists:
            header = message.header
            lists[recorded.topic].append(Stamp(stamp_ns(header), recorded.stamp_ns, header.frame_id))
        elif recorded.topic in tf:
            found.transforms.add(message, moves=not recorded.topic.endswith(TF_STATIC))
        elif not found.infos or info_key(message) != info_key(found.infos[-1][1]):
            found.infos.append((recorded.stamp_ns, message))
    _require_stamps(topics.image, found.images)
    _require_stamps(topics.range, found.scans)
    if not found.infos:
        raise Unusable(f"topic {topics.camera_info}: none of its messages can be read; record it again")
    return found


def _require_stamps(topic: str, stamps: Sequence[Stamp]) -> None:
    whole = [stamp for stamp in stamps if not stamp.problem]
    if whole and not any(stamp.measured_ns for stamp in whole):
        raise Unusable(f"topic {topic}: its headers have no time (stamp 0); set it in the driver and record again")


class Nearest:
    """The scans about a time, by their numbers in the recording."""

    def __init__(self, scans: Sequence[Stamp]) -> None:
        whole = np.array([number for number, scan in enumerate(scans) if not scan.problem], np.intp)
        times = np.array([scans[number].measured_ns for number in whole], np.int64)
        order = np.argsort(times, kind="stable")
        self._numbers, self._times = whole[order], times[order]

    def __call__(self, time_ns: int, max_age_s: float, join_s: float) -> tuple[list[int], float]:
        """Numbers of the scans to use, the nearest first, and how many seconds that one is older than the time.

        The nearest, if it is at most `max_age_s` away, and with it all that are within `join_s`.
        """
        if not len(self._times):
            return [], np.inf
        after = int(np.searchsorted(self._times, time_ns))
        about = (max(after - 1, 0), min(after, len(self._times) - 1))
        nearest = min(about, key=lambda i: abs(self._times[i] - time_ns))
        age_s = float(time_ns - self._times[nearest]) * 1e-9
        if abs(age_s) > max_age_s:
            return [], age_s
        reach_ns = round(join_s * 1e9)
        first = np.searchsorted(self._times, time_ns - reach_ns)
        end = np.searchsorted(self._times, time_ns + reach_ns, side="right")
        others = [i for i in range(first, end) if i != nearest] if join_s else []
        return [int(self._numbers[i]) for i in (nearest, *others)], age_s


@dataclass(frozen=True)
class Wanted:
    """An image that is to be looked at: its number and those of its scans and of its true depth, if any."""

    image: int
    scans: tuple[int, ...]
    truth: int | None = None


def read_wanted(
    recording: Recording, topics: Topics, wanted: Sequence[Wanted]
) -> Iterator[tuple[Wanted, Any, dict[int, Any], Any]]:
    """Read a recording for the second time: each of `wanted`, ordered by image, as soon as all of it has come.

    Yields what was wanted, the image message, scan messages by number, and the truth message or None.
    """
    uses = {topics.image: Counter(w.image for w in wanted)}
    uses[topics.range] = Counter(number for w in wanted for number in w.scans)
    if topics.truth is not None:
        uses[topics.truth] = Counter(w.truth for w in wanted if w.truth is not None)
    seen: Counter[str] = Counter()
    held: dict[str, dict[int, Recorded]] = {topic: {} for topic in uses}
    waiting = deque(wanted)
    for recorded in recording.messages(list(uses)):
        topic, number = recorded.topic, seen[recorded.topic]
        seen[topic] += 1
        if uses[topic][number]:
            held[topic][number] = recorded
        while waiting and _is_there(waiting[0], topics, held):
            first = waiting.popleft()
            scans = {number: recording.decoded(held[topics.range][number]) for number in first.scans}
            truth = None if first.truth is None else recording.decoded(held[topics.truth][first.truth])
            yield first, recording.decoded(held[topics.image][first.image]), scans, truth
            _let_go(first, topics, held, uses)


def _parts(wanted: Wanted, topics: Topics) -> Iterator[tuple[str, int]]:
    yield topics.image, wanted.image
    yield from ((topics.range, number) for number in wanted.scans)
    if wanted.truth is not None and topics.truth is not None:
        yield topics.truth, wanted.truth


def _is_there(wanted: Wanted, topics: Topics, held: dict[str, dict[int, Recorded]]) -> bool:
    return all(number in held[topic] for topic, number in _parts(wanted, topics))


def _let_go(wanted: Wanted, topics: Topics, held: dict[str, dict[int, Recorded]], uses: dict[str, Counter]) -> None:
    for topic, number in _parts(wanted, topics):
        uses[topic][number] -= 1
        if not uses[topic][number]:
            del held[topic][number]
