"""KITTI's files (object benchmark): frames, the calibration of one and its Velodyne scan. No ROS needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera

_NEEDED = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}


@dataclass(frozen=True)
class KittiFrame:
    """One frame: image (H, W, 3) uint8 RGB, scan (N, 3) float32 in the LiDAR's frame, camera and extrinsic."""

    name: str
    rgb: np.ndarray
    points: np.ndarray
    camera: Camera
    camera_from_lidar: np.ndarray


def read_frames(folder: Path) -> Iterator[KittiFrame]:
    """The frames of `folder`/kitti in the order of their names; raises `Unusable` when there are none."""
    paths = [path.parent for path in sorted((folder / "kitti").glob("*/calib.txt"))]
    if not paths:
        raise Unusable(f"{folder / 'kitti'}: has no frames; each is a folder with image.png, velodyne.bin, calib.txt")
    for path in paths:
        bgr = cv2.imread(str(path / "image.png"))
        if bgr is None:
            raise Unusable(f"{path / 'image.png'}: is no image")
        k, camera_from_lidar = read_calibration(path / "calib.txt")
        camera = Camera(bgr.shape[1], bgr.shape[0], *map(float, (k[0, 0], k[1, 1], k[0, 2], k[1, 2])))
        points = read_scan(path / "velodyne.bin")
        yield KittiFrame(path.name, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), points, camera, camera_from_lidar)


def read_calibration(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) K of camera 2 in pixels and (4, 4) camera_from_lidar in metres, float64, out of the calib.txt `path`.

    P2 = K [I | t]: its fourth column is where camera 2 sits beside camera 0, so it belongs into the extrinsic.
    """
    entries = _entries(path)
    offset, rectified, moved = np.eye(4), np.eye(4), np.eye(4)
    k = entries["P2"][:, :3]
    offset[:3, 3] = np.linalg.solve(k, entries["P2"][:, 3])
    rectified[:3, :3] = entries["R0_rect"]
    moved[:3] = entries["Tr_velo_to_cam"]
    return k, offset @ rectified @ moved


def read_scan(path: Path) -> np.ndarray:
    """(N, 3) float32 points in metres, in the LiDAR's frame, out of the velodyne.bin `path`."""
    try:
        return np.fromfile(path, np.float32).reshape(-1, 4)[:, :3]  # the fourth is the reflectance
    except (OSError, ValueError) as problem:
        raise Unusable(f"{path}: is no Velodyne scan of KITTI, {problem}; download it again") from None


def _entries(path: Path) -> dict[str, np.ndarray]:
    try:
        lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
        texts = {name.strip(): values.split() for name, _, values in lines}
        return {name: np.array(texts[name], np.float64).reshape(shape) for name, shape in _NEEDED.items()}
    except (OSError, KeyError, ValueError) as problem:
        needed = ", ".join(f"{name} ({rows * columns} numbers)" for name, (rows, columns) in _NEEDED.items())
        raise Unusable(f"{path}: {problem}; {needed} are needed, as KITTI's object benchmark has them") from None
