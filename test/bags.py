"""Writes rosbag2 recordings of a small robot: messages of rosbags' classes, in either storage, without ROS."""

from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import CompressionFormat, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
START_NS = 1_700_000_000_000_000_000
# camera_from_lidar of a LiDAR that looks ahead (x forward, y left, z up): its axes in the optical frame.
AHEAD = (0.5, -0.5, 0.5, 0.5)


def make(type, *values):
    return STORE.types[type](*values)


def header(t, frame):
    """The header of a message `t` seconds after the start; None: a stamp of 0."""
    stamp_ns = 0 if t is None else START_NS + round(t * 1e9)
    return make("std_msgs/msg/Header", make("builtin_interfaces/msg/Time", *divmod(stamp_ns, 10**9)), frame)


def image(t, rgb, encoding="rgb8", frame="camera"):
    pixels = {"rgb8": rgb, "bgr8": rgb[..., ::-1], "mono8": rgb[..., :1]}.get(encoding, rgb)
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
    step = len(data) // max(height, 1)
    return make("sensor_msgs/msg/Image", header(t, frame), height, width, encoding, 0, step, data)


def compressed(t, rgb, suffix=".png", frame="camera"):
    data = cv2.imencode(suffix, np.ascontiguousarray(rgb[..., ::-1]))[1].reshape(-1)
    return make("sensor_msgs/msg/CompressedImage", header(t, frame), f"rgb8; {suffix[1:]} compressed bgr8", data)


def camera_info(t, k, size, d=(0.0,) * 5, frame="camera"):
    """k: fx, fy, cx, cy; size: width, height."""
    fx, fy, cx, cy = map(float, k)
    matrix = np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1.0])
    projection = np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1.0, 0])
    roi = make("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
    values = (size[1], size[0], "plumb_bob", np.array(d, float), matrix, np.eye(3).reshape(-1), projection, 0, 0, roi)
    return make("sensor_msgs/msg/CameraInfo", header(t, frame), *values)


def cloud(t, points, frame="lidar"):
    points = np.ascontiguousarray(points, np.float32).reshape(-1, 3)
    fields = [make("sensor_msgs/msg/PointField", name, 4 * i, 7, 1) for i, name in enumerate("xyz")]
    data = points.reshape(-1).view(np.uint8)
    values = (1, len(points), fields, False, 12, 12 * len(points), data, True)
    return make("sensor_msgs/msg/PointCloud2", header(t, frame), *values)


def laser_scan(t, angles, ranges, frame="lidar"):
    """Readings at evenly spaced `angles`, radians to the left of ahead."""
    step = float(angles[1] - angles[0])
    values = (float(angles[0]), float(angles[-1]), step, 0.0, 0.1, 0.05, 30.0)
    return make(
        "sensor_msgs/msg/LaserScan", header(t, frame), *values, np.array(ranges, np.float32), np.zeros(0, np.float32)
    )


def transforms(*edges):
    """tf2_msgs/TFMessage of (t, parent, child, translation, quaternion)."""
    stamped = []
    for t, parent, child, translation, rotation in edges:
        moved = make(
            "geometry_msgs/msg/Transform",
            make("geometry_msgs/msg/Vector3", *map(float, translation)),
            make("geometry_msgs/msg/Quaternion", *map(float, rotation)),
        )
        stamped.append(make("geometry_msgs/msg/TransformStamped", header(t, parent), child, moved))
    return make("tf2_msgs/msg/TFMessage", stamped)


def text(words):
    return make("std_msgs/msg/String", words)


def write_bag(path: Path, messages, storage="mcap", compression=None) -> Path:
    """Write (topic, seconds after the start, message), in this order; a pair of type and bytes is written as it is."""
    writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3)
    if compression is not None:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    connections = {}
    with writer:
        for topic, t, message in messages:
            type, data = message if isinstance(message, tuple) else (message.__msgtype__, None)
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, type, typestore=STORE)
            data = STORE.serialize_cdr(message, type) if data is None else data
            writer.write(connections[topic], START_NS + round(t * 1e9), data)
    return path
