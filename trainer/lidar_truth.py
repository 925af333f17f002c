"""Messages of a camera and a LiDAR -> a rectified image with the LiDAR's depth in it, as the node sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from marigold_ros.anchors import find_anchors
from marigold_ros.config import RangeConfig, Unusable
from marigold_ros.decoding import (
    camera_from_info,
    depth_from_image,
    info_key,
    points_from_cloud,
    points_from_scan,
    rgb_from_compressed,
    rgb_from_image,
    stamp_ns,
)
from marigold_ros.geometry import Camera, Rectifier, rectifier, resize, transform_from_quaternion, transformed
from marigold_ros.recordings import TRUTH_STRIDE, truth_from_png
from trainer.topics import COMPRESSED, SCAN
from trainer.transform_tree import TransformTree


class Rig:
    """One camera and one range sensor. What depends on the camera alone is made when the camera changes.

    `settings.extrinsic` 'static' takes the transform from `settings`, 'tf' from the `transforms`; with
    `settings.fixed_frame`, each scan is moved from its own time to the image's.
    """

    def __init__(
        self, image_type: str, range_type: str, settings: RangeConfig, rectified: bool, transforms: TransformTree
    ) -> None:
        self._decode_image = rgb_from_compressed if image_type == COMPRESSED else rgb_from_image
        self._decode_scan = points_from_scan if range_type == SCAN else points_from_cloud
        self._settings = settings
        self._rectified = rectified
        self._transforms = transforms
        self._key: tuple | None = None
        self._raw: Camera | None = None
        self._rectifier: Rectifier | None = None

    @property
    def is_distorted(self) -> bool:
        """Whether the last image was rectified, and is no longer pixel on pixel with the raw one."""
        return self._rectifier is not None

    def image(self, message: Any) -> np.ndarray:
        """(H, W, 3) uint8 as recorded; raises `Unusable` for what the node would drop."""
        return np.ascontiguousarray(self._decode_image(message))

    def rectify(self, rgb: np.ndarray, info: Any) -> tuple[np.ndarray, Camera]:
        """The image without distortion, and its camera; raises `Unusable` where the camera info does not fit it."""
        height, width = rgb.shape[:2]
        key = (width, height, info_key(info))
        if key != self._key:
            camera = camera_from_info(info, width, height, rectified=self._rectified)
            self._raw, self._rectifier, self._key = camera, rectifier(camera), key
        if self._rectifier is None:
            return rgb, self._raw
        return self._rectifier(rgb), self._rectifier.camera

    def anchors(self, image_header: Any, camera: Camera, scans: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (N, 2) float32 u, v and depths (N,) in metres of the scans' points; the suspect ones are left out.

        Raises `Unusable` where no scan can be read or placed.
        """
        points = [self._in_camera(image_header, scan) for scan in scans]
        unseen = None if self._rectifier is None else self._rectifier.unseen
        found = find_anchors(np.concatenate(points), np.eye(4), camera, self._settings, unseen)
        sure = found.weight >= 1.0
        return found.pixels[sure], found.depth_m[sure]

    def _in_camera(self, image_header: Any, scan: Any) -> np.ndarray:
        """(N, 3) float32 points in the camera's optical frame at the image's time."""
        points = self._decode_scan(scan)
        known = np.any(points != 0, axis=1)  # exact zeros say "no return", and must not be moved away from there
        matrix = self._camera_from_lidar(image_header.frame_id, stamp_ns(image_header), scan.header)
        return transformed(points[known], matrix)

    def _camera_from_lidar(self, camera: str, image_ns: int, scan_header: Any) -> np.ndarray:
        settings, lidar, scan_ns = self._settings, scan_header.frame_id, stamp_ns(scan_header)
        if settings.extrinsic == "static":
            return transform_from_quaternion(settings.translation_m, settings.rotation_xyzw)
        if not settings.fixed_frame:
            return self._transforms.matrix(camera, lidar, scan_ns)
        fixed_from_lidar = self._transforms.matrix(settings.fixed_frame, lidar, scan_ns)
        return self._transforms.matrix(camera, settings.fixed_frame, image_ns) @ fixed_from_lidar


def stored_size(width: int, height: int, longest_px: int) -> tuple[int, int]:
    """Width and height shrunk so that the longer is at most `longest_px`; 0 leaves them."""
    scale = min(1.0, longest_px / max(width, height)) if longest_px else 1.0
    return max(1, round(width * scale)), max(1, round(height * scale))


def shrunk(rgb: np.ndarray, camera: Camera, longest_px: int) -> tuple[np.ndarray, Camera]:
    """The image and its camera at `stored_size`."""
    width, height = stored_size(camera.width, camera.height, longest_px)
    return resize(rgb, width, height), camera.resized(width, height)


def depth_map(pixels: np.ndarray, depth_m: np.ndarray, camera: Camera, stored: Camera) -> np.ndarray:
    """(H, W) float32 of the `stored` image: depths (N,) at pixels (N, 2) u, v of the `camera`'s, NaN elsewhere.

    Where several fall into one pixel, the nearest wins: the others may be what it hides.
    """
    scale = np.array([stored.width / camera.width, stored.height / camera.height])
    u, v = np.rint((pixels + 0.5) * scale - 0.5).astype(np.intp).T
    u, v = np.clip(u, 0, stored.width - 1), np.clip(v, 0, stored.height - 1)
    depths = np.full((stored.height, stored.width), np.inf, np.float32)
    np.minimum.at(depths, (v, u), depth_m)
    return np.where(np.isinf(depths), np.float32(np.nan), depths)


def true_depth(message: Any, type: str, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) and metres (N,) of a dense depth image of the same camera, of all or of every second pixel.

    Raises `Unusable` for other sizes and for what is no depth image.
    """
    depth_m = truth_from_png(message.data) if type == COMPRESSED else depth_from_image(message)
    rows, columns = depth_m.shape
    halves = ((camera.height + 1) // TRUTH_STRIDE, (camera.width + 1) // TRUTH_STRIDE)
    if (rows, columns) not in ((camera.height, camera.width), halves):
        raise Unusable(
            f"true depth of {columns}x{rows} for an image of {camera.width}x{camera.height}: must have its size, or "
            "every second of its pixels"
        )
    stride = 1 if (rows, columns) == (camera.height, camera.width) else TRUTH_STRIDE
    v, u = np.nonzero(np.isfinite(depth_m))
    return np.stack([u, v], axis=1).astype(np.float32) * stride, depth_m[v, u]
