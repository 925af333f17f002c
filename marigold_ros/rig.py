"""Messages of a recorded camera and LiDAR -> a rectified image and anchors in it, as the node sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from marigold_ros.anchors import find_anchors
from marigold_ros.config import RangeConfig
from marigold_ros.decoding import (
    camera_from_info,
    info_key,
    points_from_cloud,
    points_from_scan,
    rgb_from_compressed,
    rgb_from_image,
    stamp_ns,
)
from marigold_ros.geometry import Camera, Rectifier, rectifier, transform_from_quaternion, transformed
from marigold_ros.pipeline import Scan
from marigold_ros.topics import COMPRESSED, SCAN
from marigold_ros.transform_tree import TransformTree


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

    @property
    def unseen(self) -> np.ndarray | None:
        """(H, W) bool: pixels of the last rectified image that the lens did not see; None where there are none."""
        return None if self._rectifier is None else self._rectifier.unseen

    def scan(self, image_header: Any, message: Any, delay_ns: int = 0) -> Scan:
        """The points of a range message, and where they lie for this image; raises `Unusable` where it cannot be said.

        delay_ns: how much later than it was stamped the message is taken to be.
        """
        points = self._decode_scan(message)
        points = points[
            np.any(points != 0, axis=1)
        ]  # exact zeros say "no return", and must not be moved away from there
        late_ns = delay_ns + round(self._settings.time_offset_s * 1e9)
        image_ns, scan_ns = stamp_ns(image_header), stamp_ns(message.header) + late_ns
        matrix = self._camera_from_lidar(image_header.frame_id, image_ns, message.header.frame_id, scan_ns)
        age_s = 0.0 if self._settings.fixed_frame else (image_ns - scan_ns) * 1e-9
        return Scan(points, matrix, age_s=age_s)

    def anchors(self, image_header: Any, camera: Camera, scans: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (N, 2) float32 u, v and depths (N,) in metres of the scans' points; the suspect ones are left out.

        Raises `Unusable` where no scan can be read or placed.
        """
        placed = [self.scan(image_header, message) for message in scans]
        points = np.concatenate([transformed(scan.points, scan.camera_from_lidar) for scan in placed])
        found = find_anchors(points, np.eye(4), camera, self._settings, self.unseen)
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
