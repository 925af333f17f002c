"""The transforms of a recording (/tf, /tf_static), to be asked for any time of it; what tf2 is for a running robot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.decoding import stamp_ns
from marigold_ros.geometry import transform_from_quaternion


@dataclass
class _Edge:
    """Where a frame sits in its parent: for ever (one row), or at each of several times."""

    parent: str
    moves: bool
    times_ns: list[int] = field(default_factory=list)
    # Rows of x, y, z and of the quaternion x, y, z, w.
    rows: list[tuple[float, ...]] = field(default_factory=list)
    sorted: bool = False

    def matrix(self, time_ns: int, patience_ns: int) -> np.ndarray | None:
        """(4, 4) parent_from_child: between two times interpolated, beyond the ends the nearest within patience."""
        if not self.moves:
            return _matrix(np.array(self.rows[-1]))
        if not self.sorted:
            order = np.argsort(self.times_ns, kind="stable")
            self.times_ns = [self.times_ns[i] for i in order]
            self.rows = [self.rows[i] for i in order]
            self.sorted = True
        after = int(np.searchsorted(self.times_ns, time_ns))
        if 0 < after < len(self.rows):
            return self._between(after, time_ns)
        nearest = min(after, len(self.rows) - 1)
        if abs(self.times_ns[nearest] - time_ns) > patience_ns:
            return None
        return _matrix(np.array(self.rows[nearest]))

    def _between(self, after: int, time_ns: int) -> np.ndarray:
        begin, end = self.times_ns[after - 1], self.times_ns[after]
        share = 1.0 if end == begin else (time_ns - begin) / (end - begin)
        a, b = np.array(self.rows[after - 1]), np.array(self.rows[after])
        if a[3:] @ b[3:] < 0:  # the same rotation, and the short way to it
            b[3:] = -b[3:]
        # For the small turns between two messages, the straight line is the arc.
        return _matrix((1 - share) * a + share * b)


def _matrix(row: np.ndarray) -> np.ndarray:
    return transform_from_quaternion(tuple(row[:3]), tuple(row[3:] / np.linalg.norm(row[3:])))


class TransformTree:
    """Transforms between frames, from the messages that were added.

    `patience_s`: how far before the first or after the last transform of a moving joint it may still serve.
    """

    def __init__(self, patience_s: float) -> None:
        self._edges: dict[str, _Edge] = {}
        self._patience_ns = round(patience_s * 1e9)

    def add(self, message: Any, moves: bool) -> None:
        """Take a tf2_msgs/TFMessage of /tf (`moves`) or /tf_static."""
        for stamped in message.transforms:
            t, q = stamped.transform.translation, stamped.transform.rotation
            row = (t.x, t.y, t.z, q.x, q.y, q.z, q.w)
            if not np.all(np.isfinite(row)) or not any(row[3:]):
                continue  # as tf2 does
            child, parent = _name(stamped.child_frame_id), _name(stamped.header.frame_id)
            edge = self._edges.get(child)
            if edge is None or edge.parent != parent or edge.moves != moves:
                edge = self._edges[child] = _Edge(parent, moves)
            edge.times_ns.append(stamp_ns(stamped.header))
            edge.rows.append(row)

    def require(self, target: str, source: str) -> None:
        """Raise `Unusable` unless there is a way from frame `source` to frame `target`, whatever the time."""
        target, source = _name(target), _name(source)
        if target != source and not set(self._ancestors(target)) & set(self._ancestors(source)):
            known = sorted({*self._edges, *(edge.parent for edge in self._edges.values())})
            listed = ", ".join(known) if known else "none at all"
            raise Unusable(
                f"no transform from {source!r} to {target!r} in /tf or /tf_static, which connect {listed}; record "
                "them, or give --translation and --rotation"
            )

    def matrix(self, target: str, source: str, time_ns: int) -> np.ndarray:
        """(4, 4) target_from_source at a time; raises `Unusable` where it is not known then."""
        self.require(target, source)
        target, source = _name(target), _name(source)
        up, down = self._ancestors(target), self._ancestors(source)
        common = next(frame for frame in up if frame in down)
        common_from_target = self._up(up[: up.index(common)], time_ns)
        common_from_source = self._up(down[: down.index(common)], time_ns)
        return np.linalg.inv(common_from_target) @ common_from_source

    def _ancestors(self, frame: str) -> list[str]:
        line = [frame]
        while (edge := self._edges.get(line[-1])) is not None and edge.parent not in line:
            line.append(edge.parent)
        return line

    def _up(self, frames: list[str], time_ns: int) -> np.ndarray:
        """(4, 4) from the first of `frames` to the parent of the last."""
        total = np.eye(4)
        for frame in frames:
            step = self._edges[frame].matrix(time_ns, self._patience_ns)
            if step is None:
                parent = self._edges[frame].parent
                raise Unusable(
                    f"no transform from {frame!r} to {parent!r} at {time_ns * 1e-9:.3f} s: /tf begins later or ended "
                    "before; record it all the time"
                )
            total = step @ total
        return total


def _name(frame: str) -> str:
    return frame.lstrip("/")
