"""Pictures of a small world of textured boards that face the camera, from wherever the camera is, and their depth."""

from __future__ import annotations

import cv2
import numpy as np

from marigold_ros.geometry import Camera

CAMERA = Camera(320, 240, 280.0, 280.0, 159.5, 119.5)
# Distance, and left, right, top, bottom edge, all in metres of the world; a wall, a box and a post before it.
BOARDS = ((8.0, -12.0, 12.0, -8.0, 8.0), (4.0, -0.9, 0.6, -0.7, 1.2), (2.5, 0.8, 1.1, -1.2, 1.0))
_PX_PER_M = 60


def moved(right_m: float = 0.0, ahead_m: float = 0.0, yaw_deg: float = 0.0) -> np.ndarray:
    """(4, 4) camera_from_world of a camera that went right and ahead and turned right."""
    yaw = np.deg2rad(yaw_deg)
    world_from_camera = np.eye(4)
    world_from_camera[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    world_from_camera[:3, 3] = right_m, 0.0, ahead_m
    return np.linalg.inv(world_from_camera)


def picture(camera_from_world: np.ndarray | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(240, 320, 3) uint8 and (240, 320) float32 metres along the axis, from where the camera is."""
    pose = np.eye(4) if camera_from_world is None else camera_from_world
    rgb, depth_m = np.zeros((240, 320, 3), np.uint8), np.full((240, 320), np.nan, np.float32)
    v, u = np.mgrid[0:240, 0:320]
    rays = np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones_like(u, float)], -1)
    for number, (z, left, right, top, bottom) in enumerate(BOARDS):
        size = round((right - left) * _PX_PER_M), round((bottom - top) * _PX_PER_M)
        texture = np.random.default_rng([seed, number]).integers(20, 235, size[::-1], dtype=np.uint8)
        texture = cv2.normalize(cv2.GaussianBlur(texture, (0, 0), 2.5), None, 20, 235, cv2.NORM_MINMAX)
        metres = np.array([[1 / _PX_PER_M, 0, left], [0, 1 / _PX_PER_M, top], [0, 0, 1]])
        place = np.column_stack([pose[:3, 0], pose[:3, 1], pose[:3, 2] * z + pose[:3, 3]])
        there = CAMERA.matrix @ place @ metres
        shown = cv2.warpPerspective(texture, there, (320, 240))
        covered = cv2.warpPerspective(np.full_like(texture, 255), there, (320, 240)) > 127
        normal = pose[:3, 2]
        distance = normal @ (pose[:3, 2] * z + pose[:3, 3])
        rgb[covered], depth_m[covered] = shown[covered][:, None], (distance / (rays @ normal))[covered]
    return rgb, depth_m


def points(depth_m: np.ndarray, step: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) pixels and (N,) metres on a grid."""
    v, u = (axis[step // 2 :: step, step // 2 :: step].ravel() for axis in np.indices(depth_m.shape))
    return np.stack([u, v], axis=1).astype(np.float32), depth_m[v, u]
