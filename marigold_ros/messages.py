"""numpy arrays -> ROS messages to be published; `decoding` is the way back."""

from __future__ import annotations

import sys

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from marigold_ros.compiled import Colours, Floats, Pixels, WrittenGrid, compiled
from marigold_ros.geometry import Camera, pixel_rays

_NATIVE_IS_BIG = sys.byteorder == "big"


def float_image(values: np.ndarray, header: Header) -> Image:
    """(H, W) float32 as 32FC1, or (H, W, 3) as 32FC3."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    return _image(np.ascontiguousarray(values, np.float32), f"32FC{channels}", header)


def millimetre_image(depth_m: np.ndarray, header: Header) -> Image:
    """(H, W) metres as 16UC1: rounded millimetres, 0 where unknown or beyond 65.535 m."""
    with np.errstate(invalid="ignore"):
        millimetres = depth_m * np.float32(1000.0) + np.float32(0.5)
        known = (millimetres >= 1.0) & (millimetres < 65536.0)
    return _image(np.where(known, millimetres, 0.0).astype(np.uint16), "16UC1", header)


def colour_image(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """(H, W, 3) uint8 as 'rgb8' or 'bgr8'."""
    return _image(np.ascontiguousarray(pixels, np.uint8), encoding, header)


def _image(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    height, width = pixels.shape[:2]
    step = pixels.strides[0]
    message = Image(
        header=header, height=height, width=width, encoding=encoding, is_bigendian=_NATIVE_IS_BIG, step=step
    )
    _append(message, pixels)
    return message


def _append(message: Image | PointCloud2, values: np.ndarray) -> None:
    """Add the bytes of a contiguous array to the message's data.

    Through the array that the message made itself: what is assigned to `data` is copied once more by Jazzy, and looked
    through byte by byte by Humble unless it is an array.array.
    """
    message.data.frombytes(values.reshape(-1).view(np.uint8))


def camera_info(camera: Camera, header: Header) -> CameraInfo:
    """Camera info of an undistorted image: D zero, P = K, no binning, no region of interest."""
    fx, fy, cx, cy = camera.fx, camera.fy, camera.cx, camera.cy
    return CameraInfo(
        header=header,
        width=camera.width,
        height=camera.height,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=[fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
    )


class CloudWriter:
    """Turns depth images of one camera into clouds with fields x, y, z, rgb of 4 bytes each (16 per point).

    The rays and the organized cloud are made once; what `organized` returns is overwritten by its next call.
    """

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        rays = pixel_rays(camera)
        self._x, self._y = rays[0, :, 0].copy(), rays[:, 0, 1].copy()
        shape = (camera.height, camera.width)
        self._organized = _cloud(Header(), *shape, np.zeros((*shape, 4), np.float32), is_dense=False)
        self._points = np.frombuffer(self._organized.data, np.float32).reshape(*shape, 4)

    def organized(self, depth_m: np.ndarray, rgb: np.ndarray, header: Header) -> PointCloud2:
        """Every pixel of the (H, W) metres and (H, W, 3) uint8 colours, in the image's order; NaN where unknown."""
        _fill(self._points, depth_m, np.ascontiguousarray(rgb), self._x, self._y)
        self._organized.header = header
        return self._organized

    def strided(self, depth_m: np.ndarray, rgb: np.ndarray, stride: int, header: Header) -> PointCloud2:
        """The known points of every `stride`-th row and column, as one row."""
        every = slice(stride // 2, None, stride)
        z, rgb = depth_m[every, every], np.ascontiguousarray(rgb[every, every])
        points = np.stack([z * self._x[every], z * self._y[every, None], z, _packed(rgb)], axis=-1)[np.isfinite(z)]
        return _cloud(header, 1, len(points), points, is_dense=True)


def _cloud(header: Header, height: int, width: int, points: np.ndarray, *, is_dense: bool) -> PointCloud2:
    """A cloud of (…, 4) float32 x, y, z, rgb."""
    message = PointCloud2(header=header, height=height, width=width, is_bigendian=_NATIVE_IS_BIG, is_dense=is_dense)
    message.fields = [
        PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, name in enumerate(("x", "y", "z", "rgb"))
    ]
    message.point_step, message.row_step = 16, 16 * width
    _append(message, points)
    return message


def _packed(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) of PCL's colours: the bytes B, G, R, 0 in the place of a float."""
    bgr0 = np.zeros((*rgb.shape[:2], 4), np.uint8)
    cv2.mixChannels([rgb], [bgr0], [0, 2, 1, 1, 2, 0])
    return bgr0.view(np.float32)[..., 0]


def _fill_by_numpy(points: np.ndarray, depth_m: np.ndarray, rgb: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Write x, y, z and colour of every pixel to (H, W, 4) float32 points; x, (W,), and y, (H,), are those of rays."""
    # One pass over the memory; four strided assignments take four times as long.
    cv2.merge([depth_m * x, depth_m * y[:, None], depth_m, _packed(rgb)], points)


@compiled(_fill_by_numpy)
def _fill(points: WrittenGrid, depth_m: Pixels, rgb: Colours, x: Floats, y: Floats) -> None:
    rows, columns = depth_m.shape
    packed = np.empty(4 * columns, np.uint8)
    colours = packed.view(np.float32)
    # All channels of a row, as they lie in memory: that is what makes vectors of loops.
    channels = rgb.reshape(rows, 3 * columns)
    for i in range(rows):
        depths, pixels, into, down = depth_m[i], channels[i], points[i], y[i]
        for j in range(columns):
            packed[4 * j], packed[4 * j + 1], packed[4 * j + 2] = pixels[3 * j + 2], pixels[3 * j + 1], pixels[3 * j]
            packed[4 * j + 3] = 0
        for j in range(columns):
            into[j, 0], into[j, 1], into[j, 2] = depths[j] * x[j], depths[j] * down, depths[j]
            into[j, 3] = colours[j]
