"""Still frames of real sensors on which the fit of metres is measured: KITTI's streets, and an indoor RGB-D camera.

The folder has `kitti/NAME/{image.png,velodyne.bin,calib.txt}` (object benchmark) and `indoor/color_NAME.jpg` with
`indoor/depth_NAME.png` (uint16 millimetres registered to the colour image, 0 unknown); either may be missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from marigold_ros import kitti_files
from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera
from marigold_ros.real_data import DATASETS, INDOOR, KITTI

SEQUENCES = "sequences"
# PrimeSense cameras as Open3D has them, at 640x480.
_INDOOR_CAMERA = {"fx": 525.0, "fy": 525.0, "cx": 319.5, "cy": 239.5}
_INDOOR_SIZE = (480, 640)


@dataclass(frozen=True)
class Frame:
    """One image and what a range sensor measured.

    rgb: (H, W, 3) uint8; camera: undistorted. Of KITTI `points`, (N, 3) float32 metres in the LiDAR's frame, and
    `camera_from_lidar` (4, 4); indoors `depth_m`, (H, W) float32 metres, NaN unknown. Frames of sequences have both,
    the name of the sequence and their `number` in it.
    """

    dataset: str
    name: str
    rgb: np.ndarray
    camera: Camera
    points: np.ndarray | None = None
    camera_from_lidar: np.ndarray = field(default_factory=lambda: np.eye(4))
    depth_m: np.ndarray | None = None
    number: int | None = None


def read_frames(folder: Path, datasets: Sequence[str] | None = None) -> Iterator[Frame]:
    """The frames of `datasets` in `folder`, or of those that are there; raises `Unusable` for missing ones."""
    for name in datasets or [name for name in DATASETS if (folder / name).is_dir()]:
        yield from {KITTI: _kitti, INDOOR: _indoor}[name](folder)


def _kitti(folder: Path) -> Iterator[Frame]:
    for frame in kitti_files.read_frames(folder):
        yield Frame(KITTI, frame.name, frame.rgb, frame.camera, frame.points, frame.camera_from_lidar)


def _indoor(folder: Path) -> Iterator[Frame]:
    paths = sorted((folder / INDOOR).glob("color_*.jpg"))
    if not paths:
        raise Unusable(f"{folder / INDOOR}: has no frames; each is color_NAME.jpg with depth_NAME.png")
    for path in paths:
        depth_path = path.with_name(f"{path.stem.replace('color', 'depth', 1)}.png")
        bgr, depth_mm = cv2.imread(str(path)), cv2.imread(str(depth_path), cv2.IMREAD_UNCHANGED)
        if bgr is None:
            raise Unusable(f"{path}: is no image")
        if depth_mm is None or depth_mm.dtype != np.uint16 or depth_mm.shape != bgr.shape[:2]:
            raise Unusable(f"{depth_path}: is no depth image, uint16 millimetres of the size of {path.name}")
        if depth_mm.shape != _INDOOR_SIZE:
            raise Unusable(f"{depth_path}: is {depth_mm.shape[1]}x{depth_mm.shape[0]}; the camera is that of 640x480")
        if not depth_mm.any():
            raise Unusable(f"{depth_path}: depth is unknown everywhere")
        camera = Camera(depth_mm.shape[1], depth_mm.shape[0], **_INDOOR_CAMERA)
        depth_m = np.where(depth_mm > 0, depth_mm.astype(np.float32) / 1000, np.float32(np.nan))
        name = path.stem.removeprefix("color_")
        yield Frame(INDOOR, name, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), camera, depth_m=depth_m)
