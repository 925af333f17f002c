"""Stands in for tf2_ros, which is not on PyPI: knows one transform, from 'lidar' to 'camera', and refuses the rest.

With a fixed frame the robot moves, as FAKE_TF2_MOTION says: 'turn speed', about the camera's y axis in rad/s and along
its z axis in m/s. While a file 'silent' lies in the folder FLAT_SCENE_SWITCHES, nobody publishes what moves.
"""

import math
import os
from pathlib import Path

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.time import Time

from marigold_ros.geometry import quaternion_from_rotation, transform_from_quaternion

CAMERA_FROM_LIDAR = (0.1, -0.2, 0.05), (0.5, -0.5, 0.5, 0.5)


def fixed_from_camera(time_s, turn_rad_s, speed_m_s):
    """(4, 4): a circle, run at constant speed."""
    angle = turn_rad_s * time_s
    pose = np.eye(4)
    pose[:3, :3] = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    if turn_rad_s:
        radius = speed_m_s / turn_rad_s
        pose[:3, 3] = radius * (1 - math.cos(angle)), 0.0, radius * math.sin(angle)
    else:
        pose[2, 3] = speed_m_s * time_s
    return pose


class TransformException(Exception):
    pass


class ExtrapolationException(TransformException):
    pass


class Buffer:
    def __init__(self, node=None):
        self.asked = []
        self.cleared = 0
        # The time of the last message on /tf; None while there is one of every time, -1 while there is none.
        self.newest_ns = self.last_ns = None
        self.motion = tuple(float(word) for word in os.environ.get("FAKE_TF2_MOTION", "0 0").split())

    def lookup_transform(self, target_frame, source_frame, time):
        self.asked.append((target_frame, source_frame, time.nanoseconds))
        self._require(time.nanoseconds)
        return self._find(target_frame, source_frame, np.eye(4))

    def lookup_transform_full(self, target_frame, target_time, source_frame, source_time, fixed_frame):
        times_ns = target_time.nanoseconds, source_time.nanoseconds
        self.asked.append((target_frame, times_ns[0], source_frame, times_ns[1], fixed_frame))
        self._require(max(times_ns))
        # From the time of the image on: sines of the nanoseconds since 1970 have no digits left.
        then = fixed_from_camera((times_ns[1] - times_ns[0]) * 1e-9, *self.motion)
        return self._find(target_frame, source_frame, then)

    def get_latest_common_time(self, target_frame, source_frame):
        if self.newest_ns == -1:
            raise TransformException("no message since the buffer was cleared")
        return Time(nanoseconds=self.newest_ns or 0)

    def clear(self):
        self.cleared += 1

    def _require(self, time_ns):
        """Raise where the last message on /tf is older."""
        folder = os.environ.get("FLAT_SCENE_SWITCHES")
        if folder is not None:
            silent = (Path(folder) / "silent").exists()
            self.newest_ns = self.last_ns if silent else None
            self.last_ns = self.last_ns if silent else time_ns
        if self.newest_ns is not None and time_ns > self.newest_ns:
            raise ExtrapolationException("Lookup would require extrapolation into the future")

    def _find(self, target_frame, source_frame, camera_from_camera):
        if (target_frame, source_frame) != ("camera", "lidar"):
            raise TransformException(f"{source_frame!r} is not connected to {target_frame!r}")
        matrix = camera_from_camera @ transform_from_quaternion(*CAMERA_FROM_LIDAR)
        found = TransformStamped()
        t, q = found.transform.translation, found.transform.rotation
        t.x, t.y, t.z = matrix[:3, 3].tolist()
        q.x, q.y, q.z, q.w = quaternion_from_rotation(matrix[:3, :3])
        return found


class TransformListener:
    def __init__(self, buffer, node):
        self.listening = True

    def unregister(self):
        self.listening = False
