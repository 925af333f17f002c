"""The pinhole camera: rays, projection, back-projection, resizing, rectification.

Pixel centres lie on integers (u right, v down). The camera frame is ROS' optical frame: x right, y down,
z forward; depth is z in metres, NaN where unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from marigold_ros.config import Unusable

# Number of coefficients that each of ROS' distortion models may have (sensor_msgs/distortion_models.hpp).
DISTORTION_MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}

# A focal length that changes by no more than this, and a principal point and a distortion that move pixels by no more
# than this share of it, are those of the same camera.
_REFINED = 0.01
# The rays that tell what a distortion does, across the image and down.
_RAYS = 5


@dataclass(frozen=True)
class Camera:
    """Intrinsics of one image size, in pixels, with an optional lens distortion."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion_model: str = "plumb_bob"
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if self.width <= 0 or self.height <= 0:
            raise Unusable(f"camera size {self.width}x{self.height}: must be positive")
        if not np.all(np.isfinite(numbers)) or self.fx <= 0 or self.fy <= 0:
            raise Unusable(
                f"camera intrinsics fx={self.fx}, fy={self.fy}, cx={self.cx}, cy={self.cy}, D={list(self.distortion)}: "
                "must be finite with positive fx and fy; calibrate the camera (camera_calibration)"
            )
        if self.is_distorted:
            counts = DISTORTION_MODELS.get(self.distortion_model)
            if counts is None:
                known = ", ".join(DISTORTION_MODELS)
                raise Unusable(f"distortion_model={self.distortion_model!r}: must be one of {known}")
            if len(self.distortion) not in counts:
                raise Unusable(
                    f"distortion_model={self.distortion_model!r} with {len(self.distortion)} coefficients: "
                    f"must have {' or '.join(map(str, counts))}"
                )

    @property
    def is_distorted(self) -> bool:
        """Whether the image differs from a pinhole's; a fisheye's (equidistant) does even if all coefficients are 0."""
        return any(self.distortion) or self.distortion_model == "equidistant"

    @property
    def focal_px(self) -> float:
        """One focal length, the geometric mean of fx and fy."""
        return (self.fx * self.fy) ** 0.5

    @property
    def cone_rad(self) -> float:
        """The angle between the optical axis and the farthest corner of the image."""
        x = max(self.cx + 0.5, self.width - 0.5 - self.cx) / self.fx
        y = max(self.cy + 0.5, self.height - 0.5 - self.cy) / self.fy
        return math.atan(math.hypot(x, y))

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) float64 camera matrix K."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def resembles(self, other: Camera) -> bool:
        """Whether it is the same camera, though its calibration may be refined while it runs.

        Ask of the camera at the start: small steps, such as those of a slow zoom, add up.
        """
        ratios = self.fx / other.fx, self.fy / other.fy
        same_size = (self.width, self.height) == (other.width, other.height)
        moved = abs(self.cx - other.cx) / other.fx, abs(self.cy - other.cy) / other.fy
        same_pinhole = all(change <= _REFINED for change in (*moved, *(abs(ratio - 1.0) for ratio in ratios)))
        return same_size and same_pinhole and self._bends_as(other)

    def _bends_as(self, other: Camera) -> bool:
        """Whether the two lenses put the rays of this camera's rectified image to about the same places."""
        if (self.distortion_model, self.distortion) == (other.distortion_model, other.distortion):
            return True
        v, u = np.meshgrid(*(np.linspace(-0.5, side - 0.5, _RAYS) for side in (self.height, self.width)), indexing="ij")
        rays = np.stack([(u.ravel() - self.cx) / self.fx, (v.ravel() - self.cy) / self.fy], axis=1)
        apart = np.linalg.norm(self._distorted(rays) - other._distorted(rays), axis=1)
        return bool(apart.max() <= _REFINED)

    def _distorted(self, rays: np.ndarray) -> np.ndarray:
        """(N, 2) x / z and y / z of rays as the lens bends them."""
        if not self.is_distorted:
            return rays
        coefficients = np.array(self.distortion, np.float64)
        if self.distortion_model == "equidistant":
            return cv2.fisheye.distortPoints(rays[:, None], np.eye(3), coefficients)[:, 0]
        points = np.column_stack([rays, np.ones(len(rays))])
        return cv2.projectPoints(points, np.zeros(3), np.zeros(3), np.eye(3), coefficients)[0][:, 0]

    def contains(self, pixels: np.ndarray) -> np.ndarray:
        """(N,) bool: which of the (N, 2) pixels u, v lie in the image, see `in_image`."""
        return in_image(pixels, self.width, self.height)

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the same image resized to `width` x `height` pixels (pixel centres on integers)."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
        )


def in_image(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """(N,) bool: which of the (N, 2) pixels u, v lie in an image; its first one reaches from -0.5 to below 0.5."""
    # Not `all(axis=1)`, which takes ten times as long.
    u, v = pixels.T
    with np.errstate(invalid="ignore"):
        return (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5)


def pixel_rays(camera: Camera) -> np.ndarray:
    """(H, W, 3) float32 rays through the pixel centres with z = 1; depends on the camera alone. Ignores distortion."""
    x = (np.arange(camera.width, dtype=np.float32) - camera.cx) / camera.fx
    y = (np.arange(camera.height, dtype=np.float32) - camera.cy) / camera.fy
    rays = np.ones((camera.height, camera.width, 3), np.float32)
    rays[..., 0] = x[None, :]
    rays[..., 1] = y[:, None]
    return rays


def backproject(depth_m: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """(H, W) metres and (H, W, 3) rays -> (H, W, 3) points in metres; NaN depth gives NaN points."""
    return depth_m[..., None] * rays


def project(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) points in the camera frame, metres -> (N, 2) pixels u, v and (N,) depths; points behind give NaN pixels.

    Ignores distortion: images are rectified before anything is projected into them.
    """
    depth_m = points[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(depth_m > 0, 1.0 / depth_m, np.nan)
        u = points[:, 0] * inverse * camera.fx + camera.cx
        v = points[:, 1] * inverse * camera.fy + camera.cy
    return np.stack([u, v], axis=1), depth_m


def seen_from(
    pixels: np.ndarray, depth_m: np.ndarray, camera: Camera, now_from_then: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where pixels (N, 2) of (N,) depth are in the camera that moved: pixels, depth, and (N,) bool whether in sight."""
    across, down = (pixels[:, 0] - camera.cx) / camera.fx, (pixels[:, 1] - camera.cy) / camera.fy
    points = depth_m[:, None] * np.stack([across, down, np.ones_like(across)], axis=1)
    places, depth_m = project(transformed(points, now_from_then), camera)
    with np.errstate(invalid="ignore"):
        return places, depth_m, (depth_m > 0) & camera.contains(places)


def transformed(points: np.ndarray, target_from_source: np.ndarray) -> np.ndarray:
    """(N, 3) float points moved by the (4, 4) homogeneous transform."""
    if len(points) == 0:
        return points.copy()
    # Not `@`, which wakes BLAS' threads for large clouds, in the middle of what the network's threads do.
    return cv2.transform(np.ascontiguousarray(points)[:, None], target_from_source[:3])[:, 0]


def turned(camera_from_lidar: np.ndarray, turn_deg: tuple[float, float, float]) -> np.ndarray:
    """(..., 4, 4) extrinsics with the LiDAR turned in its place, about the camera's x (pitch), y (yaw) and z (roll)."""
    wrong = camera_from_lidar.copy()
    wrong[..., :3, :3] = cv2.Rodrigues(np.radians(turn_deg))[0] @ camera_from_lidar[..., :3, :3]
    return wrong


def transform_from_quaternion(translation_m: tuple[float, ...], rotation_xyzw: tuple[float, ...]) -> np.ndarray:
    """(4, 4) float64 transform from a translation in metres and a unit quaternion x, y, z, w."""
    x, y, z, w = rotation_xyzw
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = translation_m
    return matrix


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H, W[, C]) resized: area-averaged when shrinking (no aliasing), bilinear when growing."""
    rows, columns = image.shape[:2]
    if (columns, rows) == (width, height):
        return image
    shrinks = width * height < columns * rows
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def stretched(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(h, w) float32 to (height, width), bilinear along both, whether that shrinks it or not."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def widened(image: np.ndarray, width: int) -> np.ndarray:
    """(h, w) float32 to (h, width): for loops that work out with `between_rows` what lies between its rows, which
    spares the memory of the whole.
    """
    return image if image.shape[1] == width else stretched(image, width, len(image))


def between_rows(line: np.ndarray, image: np.ndarray, row: int, rows: int) -> None:
    """For loops: set `line`, (W,), to a row of (h, W) `image` that is `stretched` to so many rows."""
    count = len(image)
    place = min(max((row + 0.5) * count / rows - 0.5, 0.0), count - 1.0)
    above = max(min(int(place), count - 2), 0)
    share, first, second = np.float32(place - above), image[above], image[min(above + 1, count - 1)]
    for j in range(len(line)):
        line[j] = first[j] + (second[j] - first[j]) * share


class Rectifier:
    """Removes one camera's lens distortion; the look-up maps are made once.

    `camera` is the undistorted pinhole camera of the images it returns: the same K and size, so that depth lies
    pixel on pixel with what `image_proc` publishes for a K-preserving P. `unseen`, (H, W) bool, marks the pixels that
    the lens did not see (a pincushion's rim); None where there are none.
    """

    def __init__(self, distorted: Camera) -> None:
        self.camera = replace(distorted, distortion=(), distortion_model="plumb_bob")
        size, matrix = (distorted.width, distorted.height), distorted.matrix
        coefficients = np.array(distorted.distortion, np.float64)
        # 16-bit fixed-point maps remap about three times faster than float ones, at 1/32 pixel.
        if distorted.distortion_model == "equidistant":
            self._maps = cv2.fisheye.initUndistortRectifyMap(
                matrix, coefficients, np.eye(3), matrix, size, cv2.CV_16SC2
            )
        else:
            self._maps = cv2.initUndistortRectifyMap(matrix, coefficients, None, matrix, size, cv2.CV_16SC2)
        unseen = self(np.full((distorted.height, distorted.width), 255, np.uint8)) < 128
        self.unseen = unseen if unseen.any() else None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W[, 3]) uint8 distorted -> rectified; black where the lens did not see."""
        return cv2.remap(image, *self._maps, interpolation=cv2.INTER_LINEAR)


def rectifier(camera: Camera) -> Rectifier | None:
    """A `Rectifier` for a distorted camera, None where there is nothing to remove."""
    return Rectifier(camera) if camera.is_distorted else None


def quaternion_from_rotation(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """(3, 3) rotation matrix -> unit quaternion x, y, z, w with w >= 0."""
    # The eigenvector of the largest eigenvalue of this matrix: one formula for every angle (Bar-Itzhack).
    r = np.asarray(rotation, np.float64)
    k = np.array([
        [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
        [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
        [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], 0],
        [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
    ])  # fmt: skip
    x, y, z, w = np.linalg.eigh(k)[1][:, -1]
    sign = -1.0 if w < 0 else 1.0
    return sign * float(x), sign * float(y), sign * float(z), sign * float(w)
