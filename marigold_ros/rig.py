"""Messages of a recorded camera and LiDAR -> a rectified image and anchors in it, as the node sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from marigold_ros.anchors import Scan, anchors_of, time_error_s
from marigold_ros.config import RangeConfig, Unusable
from marigold_ros.decoding import (
    camera_from_info,
    info_key,
    offsets_from_cloud,
    offsets_from_scan,
    points_from_cloud,
    points_from_scan,
    rgb_from_compressed,
    rgb_from_image,
    stamp_ns,
)
from marigold_ros.geometry import Camera, Rectifier, rectifier, transform_from_quaternion
from marigold_ros.sweep import sweep_through
from marigold_ros.topics import COMPRESSED, SCAN
from marigold_ros.transform_tree import TransformTree


class Rig:
    """One camera and one range sensor. What depends on the camera alone is made when the camera changes.

    `settings.extrinsic` 'static' takes the transform from `settings`, 'tf' from the `transforms`; with
    `settings.fixed_frame`, scans are moved to the image's time, each point from its own where it has one.
    """

    def __init__(
        self, image_type: str, range_type: str, settings: RangeConfig, rectified: bool, transforms: TransformTree
    ) -> None:
        self._decode_image = rgb_from_compressed if image_type == COMPRESSED else rgb_from_image
        self._points_from = points_from_scan if range_type == SCAN else points_from_cloud
        self._offsets_from = offsets_from_scan if range_type == SCAN else offsets_from_cloud
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

    @property
    def unseen(self) -> np.ndarray | None:
        """(H, W) bool: pixels of the last rectified image that the lens did not see; None where there are none."""
        return None if self._rectifier is None else self._rectifier.unseen

    def scan(self, image_header: Any, message: Any, delay_ns: int = 0) -> Scan:
        """The points of a range message, and where they lie for this image; raises `Unusable` where it cannot be said.

        delay_ns: how much later than it was stamped the message is taken to be.
        """
        settings, points = self._settings, self._points_from(message)
        offset_s = self._offsets_from(message) if settings.point_times else None
        late_ns = delay_ns + round(settings.time_offset_s * 1e9)
        image_ns, scan_ns = stamp_ns(image_header), stamp_ns(message.header) + late_ns

        def pose(time_s: float) -> np.ndarray:
            then_ns = scan_ns + round(time_s * 1e9)
            return self._camera_from_lidar(image_header.frame_id, image_ns, message.header.frame_id, then_ns)

        def known_pose(time_s: float) -> np.ndarray | None:
            try:
                return pose(time_s)
            except Unusable:
                return None

        if not settings.fixed_frame:
            return Scan(points, pose(0.0), age_s=(image_ns - scan_ns) * 1e-9, offset_s=offset_s)
        matrix, sweep = pose(0.0), sweep_through(known_pose, offset_s, time_error_s(offset_s, settings))
        return Scan(points, matrix, sweep=sweep, offset_s=None if sweep is None else offset_s)

    def anchors(self, image_header: Any, camera: Camera, scans: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (N, 2) float32 u, v and depths (N,) in metres of the scans' points; the suspect ones are left out.

        Raises `Unusable` where no scan can be read or placed.
        """
        placed = [self.scan(image_header, message) for message in scans]
        found = anchors_of(placed, camera, self._settings, self.unseen)
        sure = found.weight >= 1.0
        return found.pixels[sure], found.depth_m[sure]

    def _camera_from_lidar(self, camera: str, image_ns: int, lidar: str, scan_ns: int) -> np.ndarray:
        settings = self._settings
        if settings.extrinsic == "static":
            return transform_from_quaternion(settings.translation_m, settings.rotation_xyzw)
        if not settings.fixed_frame:
            return self._transforms.matrix(camera, lidar, scan_ns)
        fixed_from_lidar = self._transforms.matrix(settings.fixed_frame, lidar, scan_ns)
        return self._transforms.matrix(camera, settings.fixed_frame, image_ns) @ fixed_from_lidar
