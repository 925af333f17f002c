"""A recording of the node's output -> one frame of it, ready to be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera, project, transformed
from marigold_ros.pictures import Shot
from marigold_ros.recordings import (
    GROUND_TRUTH,
    IMAGE,
    RANGE,
    Recording,
    header_stamp_ns,
    recorded_camera,
    truth_from_png,
)

_DEPTH, _POINTS = "/depth", "/points"
# Where in the recording the picture is taken.
_MOMENT = 0.4


def from_recording(path: Path, camera_from_lidar: np.ndarray) -> Shot:
    """The frame at two fifths of the recording at `path` for which all of the node's outputs were recorded."""
    topics = (IMAGE, RANGE, GROUND_TRUTH, _DEPTH, _POINTS)
    with Recording(path) as recording:
        stamps: dict[int, set[str]] = {}
        for recorded in recording.messages(topics):
            stamps.setdefault(header_stamp_ns(recording.decoded(recorded)), set()).add(recorded.topic)
        complete = sorted(stamp for stamp, seen in stamps.items() if len(seen) == len(topics))
        if not complete:
            raise Unusable(f"{path}: no frame with all of {', '.join(topics)}; the node published too little")
        wanted = complete[int(_MOMENT * (len(complete) - 1))]
        parts: dict[str, Any] = {}
        for recorded in recording.messages(topics):
            message = recording.decoded(recorded)
            if header_stamp_ns(message) == wanted:
                parts[recorded.topic] = message
        return _shot(parts, recorded_camera(recording), camera_from_lidar)


def _shot(parts: dict[str, Any], camera: Camera, camera_from_lidar: np.ndarray) -> Shot:
    rgb = cv2.cvtColor(cv2.imdecode(parts[IMAGE].data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    depth = parts[_DEPTH]
    pixels, lidar = in_image(parts[RANGE].data.view(np.float32).reshape(-1, 3), camera_from_lidar, camera)
    cloud, colours = cloud_arrays(parts[_POINTS])
    return Shot(
        rgb=rgb,
        depth_m=depth.data.view(np.float32).reshape(depth.height, depth.width),
        truth_m=truth_from_png(parts[GROUND_TRUTH].data),
        pixels=pixels,
        lidar=lidar,
        cloud=cloud,
        colours=colours,
    )


def in_image(points: np.ndarray, camera_from_lidar: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """The (N, 2) pixels and (N, 3) camera coordinates of those of the LiDAR `points` that fall into the image."""
    moved = transformed(points, camera_from_lidar)
    pixels, depth_m = project(moved, camera)
    with np.errstate(invalid="ignore"):
        seen = (depth_m > 0) & (pixels >= 0).all(axis=1) & (pixels <= (camera.width - 1, camera.height - 1)).all(axis=1)
    return pixels[seen], moved[seen]


def cloud_arrays(message: Any) -> tuple[np.ndarray, np.ndarray]:
    """(M, 3) float32 known points and (M, 3) uint8 RGB of a cloud that the node published (x, y, z, rgb, 16 bytes)."""
    data = np.frombuffer(message.data, np.uint8).reshape(-1, 16)
    points = np.ascontiguousarray(data[:, :12]).view(np.float32)
    known = np.isfinite(points).all(axis=1)
    return points[known], data[known][:, 14:11:-1]
