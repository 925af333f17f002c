"""Received ROS messages -> numpy arrays, whoever deserialised them: rclpy's message classes and rosbags' will do.

Messages are never changed; arrays made from them may be read-only views of their data. Whatever cannot be used raises
`Unusable`, and the caller, who knows the topic, says so. OpenCV does the conversions rather than cv_bridge: the
cv_bridge of PyPI ignores row padding and fails on numpy 2, and the compiled one of Humble cannot be loaded beside
numpy 2 at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera, transform_from_quaternion

# Objects with the fields of the ROS message of this name, from rclpy's classes or from rosbags'.
Header = Any
Image = Any
CompressedImage = Any
CameraInfo = Any
PointCloud2 = Any
PointField = Any
LaserScan = Any
TransformStamped = Any

# A message that is older than one before it by less than this, in seconds, came out of order; else time started again.
LATE_S = 1.0
# Encoding -> bytes per pixel and OpenCV's conversion to RGB. OpenCV names a Bayer pattern by its second row, second
# column: ROS' rggb is OpenCV's BG.
_TO_RGB: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "mono16": (2, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUYV),
}
# Where two pixels have a colour together.
_PAIRED = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")
_JPEG, _PNG, _PNG_END = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"IEND"
_CHECK_LINK = "check the camera's driver and link, and DDS' profile (ros2 run marigold_ros doctor)"
# Cheap cameras leave a few bytes after the last pixel, and decoders complain of every frame.
_LEFT_OVER = re.compile(r"\b[0-9] extraneous bytes before marker 0xd9")
# sensor_msgs/PointField's numbers of the types that coordinates come in, and of those of times.
_FLOATS = {7: "f4", 8: "f8"}
_TIMES = {5: "i4", 6: "u4", **_FLOATS}
# What drivers call a point's own time: Ouster t, Velodyne time, Hesai, RoboSense and Livox timestamp, Autoware
# time_stamp, Livox offset_time.
_TIME_FIELDS = ("t", "time", "timestamp", "time_stamp", "offset_time")
# A point's time farther from its scan's stamp than this is of another clock, or of no return.
_LONGEST_SWEEP_S = 1.0
# Points taken of a depth image: more would be thinned out anyway.
_DEPTH_IMAGE_POINTS = 20_000


@dataclass(frozen=True)
class RangePoints:
    """(N, 3) float32 metres in the sensor's frame, and (N,) float32 seconds from the stamp to the points' own times."""

    points: np.ndarray
    offset_s: np.ndarray | None = None


def stamp_ns(header: Header) -> int:
    """The header's time in nanoseconds."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def require_stamp(header: Header) -> int:
    """The header's time in nanoseconds; raises `Unusable` where it has none: with equal zeros nothing grows old."""
    time_ns = stamp_ns(header)
    if time_ns == 0:
        raise Unusable("header.stamp=0: tells no time, by which image and scan find each other; set it in the driver")
    return time_ns


def rgb_from_image(message: Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image in any of the usual encodings; of an rgb8 image a read-only view, not a copy."""
    known = _TO_RGB.get(message.encoding)
    if known is None:
        raise Unusable(
            f"encoding={message.encoding!r}: must be one of {', '.join(_TO_RGB)}; set the camera driver's encoding"
        )
    pixel_bytes, conversion = known
    pixels = _pixels(message, pixel_bytes)
    if conversion is None:
        return pixels
    if message.encoding == "mono16":
        # The more significant byte of each pixel, as cv_bridge scales: 65535 is white.
        pixels = np.ascontiguousarray(pixels[..., 0 if message.is_bigendian else 1])
    return _converted(pixels, message.encoding)


def _converted(pixels: np.ndarray, encoding: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of pixels in an encoding other than rgb8."""
    height, width = pixels.shape[:2]
    try:
        if encoding in _PAIRED and width % 2:  # OpenCV 4.5 makes up a colour for the last column
            raise cv2.error
        return cv2.cvtColor(pixels, _TO_RGB[encoding][1])
    except cv2.error:
        raise Unusable(f"image of {width}x{height}: too small or of odd width for encoding={encoding!r}") from None


def _pixels(message: Image, pixel_bytes: int) -> np.ndarray:
    """(H, W, pixel_bytes) uint8 read-only view of the image's data without its row padding."""
    height, width, step, size = message.height, message.width, message.step, len(message.data)
    if height == 0 or width == 0:
        raise Unusable(f"image of {width}x{height}: must have pixels; check the camera driver")
    if step < width * pixel_bytes:
        raise Unusable(
            f"step={step}: rows of {width} pixels in {message.encoding!r} need at least {width * pixel_bytes} bytes; "
            "check the camera driver"
        )
    needed = step * (height - 1) + width * pixel_bytes  # the last row may come without padding
    if size < needed:
        raise Unusable(
            f"image data of {size} bytes: {width}x{height} {message.encoding!r} has {needed}; truncated, check the "
            "camera driver"
        )
    pixels = np.ndarray((height, width, pixel_bytes), np.uint8, message.data, strides=(step, pixel_bytes, 1))
    pixels.flags.writeable = False
    return pixels


def depth_from_image(message: Image) -> np.ndarray:
    """(H, W) float32 metres, NaN unknown, of a depth image: 16UC1 in millimetres or 32FC1 in metres (REP 118)."""
    values, unit_m = _depth_values(message)
    values = values.astype(np.float32)
    known = np.isfinite(values) & (values > 0)
    return np.where(known, values * unit_m, np.nan).astype(np.float32)


def _depth_values(message: Image) -> tuple[np.ndarray, float]:
    """(H, W) numbers of a depth image as they came, and how many metres one of them is."""
    kinds = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}
    if message.encoding not in kinds:
        raise Unusable(
            f"encoding={message.encoding!r}: depth must be one of {', '.join(kinds)}; check that the topic is that of "
            "depth, or set the driver's encoding"
        )
    kind = np.dtype((">" if message.is_bigendian else "<") + kinds[message.encoding])
    values = np.ascontiguousarray(_pixels(message, kind.itemsize)).view(kind)[..., 0]
    return values, (1.0 if kind.kind == "f" else 1e-3)


def rgb_from_compressed(message: CompressedImage) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a JPEG or PNG image; those that the decoder finds damaged are refused.

    A Bayer mosaic, which compressed_image_transport compresses as if it were a grey image, gets its colours.
    """
    data = memoryview(message.data)
    encoding = message.format.partition(";")[0].strip()
    if encoding.startswith("bayer_") and encoding not in _TO_RGB:
        known = ", ".join(name for name in _TO_RGB if name.startswith("bayer_"))
        raise Unusable(f"format={message.format!r}: a mosaic must be one of {known}; set the camera driver's encoding")
    if bytes(data[: len(_JPEG)]) == _JPEG:
        rgb = _rgb_from_jpeg(data)
    elif bytes(data[: len(_PNG)]) == _PNG:
        rgb = _rgb_from_png(data)
    else:
        raise Unusable(
            f"format={message.format!r} of {len(data)} bytes: is neither JPEG nor PNG; set what compresses the images "
            "to jpeg or png, or image.transport to 'raw'"
        )
    grey = rgb[..., 0]
    if encoding.startswith("bayer_") and (rgb == grey[..., None]).all():  # else something gave it its colours before
        return _converted(np.ascontiguousarray(grey), encoding)
    return rgb


def _rgb_from_png(data: memoryview) -> np.ndarray:
    # OpenCV fills what is missing of a PNG with black and says nothing.
    if _PNG_END not in bytes(data[-1024:]):
        raise Unusable(f"PNG of {len(data)} bytes: its end is missing; {_CHECK_LINK}")
    # The camera info belongs to the pixels as the sensor sent them, so an orientation tag must not turn the image.
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise Unusable(f"PNG of {len(data)} bytes: cannot be decoded; {_CHECK_LINK}")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _rgb_from_jpeg(data: memoryview) -> np.ndarray:
    """By simplejpeg: OpenCV answers a JPEG with a piece missing as if nothing were wrong, rows shifted or grey."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        raise Unusable("JPEG images need simplejpeg, which tells damaged ones; pip install simplejpeg") from None
    try:
        return decode_jpeg(data, "RGB", strict=True)
    except ValueError as problem:
        if not _LEFT_OVER.search(str(problem)):
            raise Unusable(f"JPEG of {len(data)} bytes: is damaged or truncated ({problem}); {_CHECK_LINK}") from None
    return decode_jpeg(data, "RGB", strict=False)


def camera_from_info(info: CameraInfo, width: int, height: int, *, rectified: bool = False) -> Camera:
    """The camera of an image of `width` x `height` pixels.

    K and D describe the raw image at full resolution; the region of interest is cut out first and then binned, as
    image_geometry does. With `rectified`, the image is an image_rect already: P counts, D does not.
    """
    roi = info.roi
    columns, rows = roi.width or info.width, roi.height or info.height
    binning_x, binning_y = max(info.binning_x, 1), max(info.binning_y, 1)
    if (columns // binning_x, rows // binning_y) != (width, height):
        raise Unusable(
            f"camera info of {info.width}x{info.height} (region {columns}x{rows}, binning {binning_x}x{binning_y}) "
            f"with an image of {width}x{height}: must describe the same image; check what resizes the image"
        )
    k = (info.p[0], info.p[5], info.p[2], info.p[6]) if rectified else (info.k[0], info.k[4], info.k[2], info.k[5])
    fx, fy, cx, cy = k
    if not (fx > 0 and fy > 0):
        name = "P (image.rectified is true)" if rectified else "K"
        raise Unusable(
            f"camera info: {name} has fx={fx}, fy={fy}: must be positive; calibrate the camera (camera_calibration)"
        )
    return Camera(
        width,
        height,
        fx=fx / binning_x,
        fy=fy / binning_y,
        cx=(cx - roi.x_offset) / binning_x,
        cy=(cy - roi.y_offset) / binning_y,
        distortion_model="plumb_bob" if rectified else info.distortion_model,
        distortion=() if rectified else tuple(info.d),
    )


def info_key(info: CameraInfo) -> tuple:
    """What `camera_from_info` depends on; two infos with the same key describe the same camera."""
    roi, numbers = info.roi, (tuple(info.k), tuple(info.d), tuple(info.p))
    window = (roi.x_offset, roi.y_offset, roi.width, roi.height, info.binning_x, info.binning_y)
    return info.width, info.height, info.distortion_model, window, numbers


def points_from_cloud(message: PointCloud2) -> np.ndarray:
    """(N, 3) float32 x, y, z in metres in the cloud's own frame, row by row; NaN stays NaN."""
    rows, columns, step = message.height, message.width, message.point_step
    if rows * columns == 0:
        raise Unusable(f"cloud of {columns}x{rows} points: is empty; check the sensor")
    row_step = step * columns if rows == 1 else message.row_step  # single rows often come with a wrong row_step
    needed = row_step * (rows - 1) + step * columns
    if row_step < step * columns or len(message.data) < needed:
        raise Unusable(
            f"cloud data of {len(message.data)} bytes, row_step={message.row_step}: {columns}x{rows} points of "
            f"{step} bytes need {needed}; truncated, check the sensor's driver"
        )
    points = np.empty((rows, columns, 3), np.float32)
    fields = {field.name: field for field in message.fields}
    with np.errstate(over="ignore", invalid="ignore"):
        for axis, name in enumerate("xyz"):
            offset, kind = _float_field(fields.get(name), name, message)
            points[..., axis] = np.ndarray((rows, columns), kind, message.data, offset, (row_step, step))
    return points.reshape(-1, 3)


def offsets_from_cloud(message: PointCloud2) -> np.ndarray | None:
    """(N,) float32 seconds from the cloud's stamp to each point's own time; None where it has no usable ones.

    Drivers differ: integers are nanoseconds from the stamp on (Ouster, Livox, Autoware); floats are seconds from the
    stamp on (Velodyne), or a time of day in seconds (Hesai, RoboSense) or nanoseconds (Livox). Which it is, shows in
    the numbers, since no scan takes a second. Times of another clock than the stamp's are not usable. Points without a
    plausible time, such as those that did not return, get 0. Call `points_from_cloud` first, which checks the cloud.
    """
    field = next((f for name in _TIME_FIELDS for f in message.fields if f.name == name), None)
    if field is None or field.datatype not in _TIMES:
        return None
    kind = np.dtype((">" if message.is_bigendian else "<") + _TIMES[field.datatype])
    if field.offset + kind.itemsize > message.point_step:
        return None
    rows, columns, step = message.height, message.width, message.point_step
    strides = (step * columns if rows == 1 else message.row_step, step)
    values = np.ndarray((rows, columns), kind, message.data, field.offset, strides).reshape(-1)
    to_offset = _time_rule(values, kind, stamp_ns(message.header))
    if to_offset is None:
        return None
    with np.errstate(invalid="ignore"):
        offset_s = to_offset(values)
        plausible = np.abs(offset_s) <= _LONGEST_SWEEP_S
    offset_s = np.where(plausible, offset_s, 0.0).astype(np.float32)
    return offset_s if offset_s.any() else None


def _time_rule(values: np.ndarray, kind: np.dtype, begin_ns: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """What turns the numbers of a time field into seconds from the stamp on; None where no rule fits."""
    if kind.kind != "f":
        return lambda v: v * 1e-9
    largest = float(np.nan_to_num(np.abs(values), nan=0.0).max(initial=0.0))  # numpy 1.21 has no nanmax with initial
    if largest <= _LONGEST_SWEEP_S:
        return lambda v: v
    for unit_ns in (1e9, 1.0) if kind.itemsize == 8 else ():
        if abs(largest * unit_ns - begin_ns) <= _LONGEST_SWEEP_S * 1e9:
            # The stamp in the field's unit first: a double has not the digits for nanoseconds of today and a product.
            return lambda v: (v - begin_ns / unit_ns) * (unit_ns * 1e-9)
    return (lambda v: v * 1e-9) if largest <= _LONGEST_SWEEP_S * 1e9 else None


def _float_field(field: PointField | None, name: str, message: PointCloud2) -> tuple[int, np.dtype]:
    """Offset in bytes and numpy type of one coordinate."""
    if field is None or field.datatype not in _FLOATS:
        fields = ", ".join(f"{f.name} (datatype {f.datatype})" for f in message.fields) or "none"
        raise Unusable(f"cloud with fields {fields}: needs {name!r} as FLOAT32 or FLOAT64")
    kind = np.dtype((">" if message.is_bigendian else "<") + _FLOATS[field.datatype])
    if field.offset + kind.itemsize > message.point_step:
        raise Unusable(f"cloud field {name!r} at offset {field.offset}: outside of point_step={message.point_step}")
    return field.offset, kind


def points_from_scan(message: LaserScan) -> np.ndarray:
    """(N, 3) float32 x, y, 0 in metres in the scan's own frame; readings outside of the sensor's range are left out."""
    ranges, valid = _readings(message)
    angles = (message.angle_min + np.arange(len(ranges)) * message.angle_increment)[valid]
    ranges = ranges[valid]
    x, y = ranges * np.cos(angles), ranges * np.sin(angles)
    return np.stack([x, y, np.zeros_like(x)], axis=1).astype(np.float32)


def offsets_from_scan(message: LaserScan) -> np.ndarray | None:
    """(N,) float32 seconds from the scan's stamp, its first reading, to those of `points_from_scan`; None without."""
    ranges, valid = _readings(message)
    each_s = message.time_increment
    if not (math.isfinite(each_s) and 0 < abs(each_s) * len(ranges) <= _LONGEST_SWEEP_S):
        return None
    return (np.flatnonzero(valid) * each_s).astype(np.float32)


def _readings(message: LaserScan) -> tuple[np.ndarray, np.ndarray]:
    """(N,) float32 ranges and which of them are measurements; raises `Unusable` where none is."""
    if not (math.isfinite(message.angle_min) and math.isfinite(message.angle_increment)):
        raise Unusable(
            f"scan with angle_min={message.angle_min:g}, angle_increment={message.angle_increment:g}: must be finite; "
            "check the sensor's driver"
        )
    ranges = np.asarray(message.ranges, np.float32)
    # As floats of 32 bits both: a reading at the limit must not fall out by the 9th digit.
    least, greatest = np.float32(message.range_min), np.float32(message.range_max)
    with np.errstate(invalid="ignore"):
        valid = np.isfinite(ranges) & (ranges >= least) & (ranges <= greatest)
    if not valid.any():
        limits = f"range_min={message.range_min:g}, range_max={message.range_max:g}"
        raise Unusable(f"scan of {len(ranges)} readings: none is within {limits}; check the sensor")
    return ranges, valid


def points_from_depth(message: Image, info: CameraInfo | None) -> np.ndarray:
    """(N, 3) float32 points in the optical frame of a depth image, 16UC1 in millimetres or 32FC1 in metres (REP 118).

    Pixels without depth are left out; of images with many, an even subset is taken. As for depth_image_proc, the image
    is rectified and the info's P counts; where P is zero, K does.
    """
    if info is None:
        raise Unusable("depth image without camera info; check its topic and its QoS (image.reliability)")
    values, unit_m = _depth_values(message)
    camera = camera_from_info(info, message.width, message.height, rectified=info.p[0] > 0)
    with np.errstate(invalid="ignore"):
        known = values > 0
        known &= values < np.inf
    count = np.count_nonzero(known)
    if count == 0:
        raise Unusable(f"depth image of {message.width}x{message.height}: no pixel has a depth; check the sensor")
    # Of a sparse image the points themselves are counted: its pattern may have a step of its own.
    stride = math.ceil(math.sqrt(count / _DEPTH_IMAGE_POINTS)) if count > values.size / 2 else 1
    rows, columns = np.divmod(np.flatnonzero(known[::stride, ::stride]), -(-message.width // stride))
    if len(rows) > _DEPTH_IMAGE_POINTS:
        kept = np.linspace(0, len(rows) - 1, _DEPTH_IMAGE_POINTS).astype(np.intp)
        rows, columns = rows[kept], columns[kept]
    rows, columns = rows * stride, columns * stride
    z = values[rows, columns] * np.float32(unit_m)
    x, y = (columns - camera.cx) / camera.fx * z, (rows - camera.cy) / camera.fy * z
    return np.stack([x, y, z], axis=1).astype(np.float32)


def matrix_from_transform(message: TransformStamped) -> np.ndarray:
    """(4, 4) float64 parent_from_child."""
    t, q = message.transform.translation, message.transform.rotation
    return transform_from_quaternion((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
