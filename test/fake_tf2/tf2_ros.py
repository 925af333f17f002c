"""Stands in for tf2_ros, which is not on PyPI: knows one transform, from 'lidar' to 'camera', and refuses the rest."""

from geometry_msgs.msg import TransformStamped


class TransformException(Exception):
    pass


class Buffer:
    def __init__(self, node=None):
        self.asked = []
        self.cleared = 0

    def lookup_transform(self, target_frame, source_frame, time):
        self.asked.append((target_frame, source_frame, time.nanoseconds))
        return self._find(target_frame, source_frame)

    def lookup_transform_full(self, target_frame, target_time, source_frame, source_time, fixed_frame):
        self.asked.append((target_frame, target_time.nanoseconds, source_frame, source_time.nanoseconds, fixed_frame))
        return self._find(target_frame, source_frame)

    def clear(self):
        self.cleared += 1

    def _find(self, target_frame, source_frame):
        if (target_frame, source_frame) != ("camera", "lidar"):
            raise TransformException(f"{source_frame!r} is not connected to {target_frame!r}")
        found = TransformStamped()
        t, q = found.transform.translation, found.transform.rotation
        t.x, t.y, t.z = 0.1, -0.2, 0.05
        q.x, q.y, q.z, q.w = 0.5, -0.5, 0.5, 0.5
        return found


class TransformListener:
    def __init__(self, buffer, node):
        self.listening = True

    def unregister(self):
        self.listening = False
