"""Range messages -> points and their times: each driver's convention, depth images, planar scans."""

import numpy as np
import pytest

pytest.importorskip("rclpy")
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2, PointField

from marigold_ros.config import Unusable
from marigold_ros.decoding import (
    offsets_from_cloud,
    offsets_from_scan,
    points_from_cloud,
    points_from_depth,
    points_from_scan,
)

STAMP_NS = 1_763_750_000_123_456_789
OFFSETS_S = np.linspace(0.0, 0.0999, 64)
KINDS = {"i4": PointField.INT32, "u4": PointField.UINT32, "f4": PointField.FLOAT32, "f8": PointField.FLOAT64}


def cloud_with(name: str, kind: str, values: np.ndarray, big: bool = False, height: int = 1) -> PointCloud2:
    """A cloud of points at 1 m whose field `name` holds `values`, at an odd place."""
    order = ">" if big else "<"
    layout = np.dtype({
        "names": ["x", "y", "z", name], "formats": [order + k for k in ("f4", "f4", "f4", kind)],
        "offsets": [0, 4, 8, 13], "itemsize": 24,
    })  # fmt: skip
    stored = np.zeros(len(values), layout)
    stored["x"], stored[name] = 1.0, values
    rows = np.pad(np.frombuffer(stored.tobytes(), np.uint8).reshape(height, -1), ((0, 0), (0, 7 if height > 1 else 0)))
    width = len(values) // height
    cloud = PointCloud2(height=height, width=width, point_step=24, row_step=rows.shape[1], is_bigendian=big)
    named = [("x", 0, "f4"), ("y", 4, "f4"), ("z", 8, "f4"), (name, 13, kind)]
    cloud.fields = [PointField(name=n, offset=o, datatype=KINDS[k], count=1) for n, o, k in named]
    cloud.data = rows.tobytes()
    cloud.header.stamp.sec, cloud.header.stamp.nanosec = divmod(STAMP_NS, 10**9)
    return cloud


CONVENTIONS = {
    "ouster": ("t", "u4", OFFSETS_S * 1e9, 1e-6),
    "velodyne": ("time", "f4", OFFSETS_S, 1e-6),
    "velodyne, stamped at the end": ("time", "f4", OFFSETS_S - 0.1, 1e-6),
    "livox": ("offset_time", "u4", OFFSETS_S * 1e9, 1e-6),
    "livox, doubles from the stamp on": ("offset_time", "f8", OFFSETS_S * 1e9, 1e-6),
    "livox, time of day": ("timestamp", "f8", STAMP_NS + OFFSETS_S * 1e9, 1e-6),
    "hesai, robosense": ("timestamp", "f8", STAMP_NS * 1e-9 + OFFSETS_S, 1e-6),
    "hesai, stamped at the end": ("timestamp", "f8", STAMP_NS * 1e-9 + OFFSETS_S - 0.1, 1e-6),
    "autoware": ("time_stamp", "u4", OFFSETS_S * 1e9, 1e-6),
    "signed": ("t", "i4", (OFFSETS_S - 0.1) * 1e9, 1e-6),
}


@pytest.mark.parametrize(("big", "height"), [(False, 1), (True, 4)])
@pytest.mark.parametrize("who", CONVENTIONS)
def test_times_of_points_come_in_each_driver_s_way(who, big, height):
    name, kind, values, accuracy_s = CONVENTIONS[who]
    cloud = cloud_with(name, kind, values, big, height)
    offset_s = offsets_from_cloud(cloud)
    assert offset_s.dtype == np.float32
    before_s = 0.1 if "end" in who or who == "signed" else 0.0
    np.testing.assert_allclose(offset_s, OFFSETS_S - before_s, atol=accuracy_s)
    assert len(points_from_cloud(cloud)) == len(offset_s)


NO_TIMES = {
    "no such field": ("intensity", "f4", OFFSETS_S),
    "all at once": ("t", "u4", OFFSETS_S * 0),
    "another clock, seconds": ("timestamp", "f8", 500.0 + OFFSETS_S),
    "another clock, time of day": ("timestamp", "f8", STAMP_NS * 1e-9 + 37.0 + OFFSETS_S),
    "a time of day without the digits": ("timestamp", "f4", STAMP_NS * 1e-9 + OFFSETS_S),
    "not a number": ("time", "f4", OFFSETS_S * np.nan),
    "a counter that wraps": ("t", "u4", 4_000_000_000 + OFFSETS_S * 1e6),
}


@pytest.mark.parametrize("what", NO_TIMES)
def test_times_that_say_nothing_are_left_alone(what):
    offset_s = offsets_from_cloud(cloud_with(*NO_TIMES[what]))
    assert offset_s is None or np.abs(offset_s).max() < 1e-3


def test_points_that_did_not_return_have_no_time_of_their_own():
    values = STAMP_NS * 1e-9 + OFFSETS_S
    values[::3] = 0.0
    values[1] = np.nan
    offset_s = offsets_from_cloud(cloud_with("timestamp", "f8", values))
    assert not offset_s[::3].any()
    assert offset_s[1] == 0
    np.testing.assert_allclose(offset_s[2::3], OFFSETS_S[2::3], atol=1e-6)


def test_a_time_field_beyond_the_point_is_left_alone():
    cloud = cloud_with("t", "u4", OFFSETS_S * 1e9)
    cloud.fields[3].offset = 22
    assert offsets_from_cloud(cloud) is None


# LaserScan


def scan(**changed) -> LaserScan:
    made = LaserScan(angle_min=0.0, angle_increment=0.5, range_min=0.5, range_max=10.0, time_increment=0.001)
    made.ranges = [1.0, float("inf"), 3.0, float("nan"), 0.1, 11.0, 0.5, 10.0]
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def test_readings_have_the_times_of_their_beams():
    np.testing.assert_allclose(offsets_from_scan(scan()), [0.0, 0.002, 0.006, 0.007], rtol=1e-6)
    assert len(points_from_scan(scan())) == 4


@pytest.mark.parametrize("each_s", [0.0, float("nan"), 0.5])
def test_beams_without_usable_times(each_s):
    assert offsets_from_scan(scan(time_increment=each_s)) is None


def test_readings_at_the_very_limits_count():
    """0.1 as a double is less than 0.1 as the message's float."""
    made = scan(range_min=float(np.float32(0.1)), range_max=float(np.float32(30.1)), ranges=[0.1, 30.1, 0.099, 30.11])
    np.testing.assert_allclose(np.hypot(*points_from_scan(made)[:, :2].T), [0.1, 30.1], rtol=1e-6)


def test_a_scanner_that_turns_the_other_way():
    made = scan(angle_min=0.3, angle_increment=-0.1, ranges=[2.0, 2.0])
    np.testing.assert_allclose(np.arctan2(*points_from_scan(made)[:, 1::-1].T), [0.3, 0.2], rtol=1e-5)


@pytest.mark.parametrize("angles", [{"angle_min": float("nan")}, {"angle_increment": float("inf")}])
def test_a_scan_without_angles_is_unusable(angles):
    with pytest.raises(Unusable, match="must be finite; check the sensor's driver"):
        points_from_scan(scan(**angles))


# Depth images


def info(width: int, height: int, focal_px: float, with_p: bool = True) -> CameraInfo:
    made = CameraInfo(width=width, height=height, d=[0.1, 0.0, 0.0, 0.0, 0.0], distortion_model="plumb_bob")
    cx, cy = (width - 1) / 2, (height - 1) / 2
    made.k = [focal_px, 0.0, cx, 0.0, focal_px, cy, 0.0, 0.0, 1.0]
    if with_p:  # of the rectified image: another focal length
        made.k[0] = made.k[4] = 1.1 * focal_px
        made.p = [focal_px, 0.0, cx, 0.0, 0.0, focal_px, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return made


def depth_image(depth: np.ndarray, encoding: str, big: bool = False) -> Image:
    kind = np.dtype((">" if big else "<") + ("f4" if encoding == "32FC1" else "u2"))
    data = depth.astype(kind)
    height, width = depth.shape
    return Image(
        width=width, height=height, encoding=encoding, step=data.strides[0], data=data.tobytes(), is_bigendian=big
    )


@pytest.mark.parametrize("with_p", [True, False])
@pytest.mark.parametrize(("encoding", "unit"), [("32FC1", 1.0), ("16UC1", 1000.0), ("mono16", 1000.0)])
def test_pixels_of_a_depth_image_become_points(encoding, unit, with_p):
    depth_m = np.zeros((6, 8))
    depth_m[2, 5], depth_m[4, 1] = 2.0, 3.5
    points = points_from_depth(depth_image(depth_m * unit, encoding), info(8, 6, 10.0, with_p))
    # By hand: (u - 3.5) / 10 z, (v - 2.5) / 10 z, z.
    np.testing.assert_allclose(points, [[0.3, -0.1, 2.0], [-0.875, 0.525, 3.5]], rtol=1e-5)


def test_unknown_depth_is_no_point():
    depth_m = np.full((6, 8), 2.0)
    depth_m[0, :4] = np.nan, np.inf, 0.0, -1.0
    points = points_from_depth(depth_image(depth_m, "32FC1", big=True), info(8, 6, 10.0))
    assert len(points) == 44
    np.testing.assert_allclose(points[:, 2], 2.0)


def test_of_a_dense_depth_image_an_even_subset_serves():
    points = points_from_depth(depth_image(np.full((480, 640), 4.0), "32FC1"), info(640, 480, 500.0))
    assert 15_000 < len(points) <= 20_000
    rows, columns = np.unique(points[:, 1]), np.unique(points[:, 0])
    assert len(rows) * len(columns) == len(points)
    np.testing.assert_allclose(np.diff(columns), np.diff(columns)[0], rtol=1e-3)


def test_of_a_sparse_depth_image_no_pattern_is_lost():
    """Scan lines in odd rows, which every second row would miss."""
    depth_m = np.zeros((480, 640))
    depth_m[1::8] = 4.0
    points = points_from_depth(depth_image(depth_m, "32FC1"), info(640, 480, 500.0))
    assert len(points) == 20_000
    assert len(np.unique(points[:, 1])) == 60


@pytest.mark.parametrize(
    ("image", "camera_info", "text"),
    [
        (depth_image(np.ones((6, 8)), "32FC1"), None, "depth image without camera info"),
        (depth_image(np.ones((6, 8)), "32FC1"), info(16, 12, 10.0), "camera info of 16x12"),
        (depth_image(np.zeros((6, 8)), "16UC1"), info(8, 6, 10.0), "no pixel has a depth"),
        (Image(width=8, height=6, encoding="rgb8", step=24), info(16, 12, 10.0), "'rgb8': depth must be one of 16UC1"),
        (Image(encoding="32FC1"), info(8, 6, 10.0), "image of 0x0: must have pixels"),
        (Image(width=8, height=6, encoding="32FC1", step=32), info(16, 12, 10.0), "has 192; truncated, check the"),
    ],
)
def test_unusable_depth_images_are_named(image, camera_info, text):
    with pytest.raises(Unusable, match=text):
        points_from_depth(image, camera_info)
