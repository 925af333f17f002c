"""Messages <-> arrays, against oracles of their own: bytes written by hand, numpy structured types, OpenCV."""

import array
from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2, PointField
from std_msgs.msg import Header

from marigold_ros import decoding, messages
from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera, backproject, pixel_rays

WIDTH, HEIGHT = 18, 12
HEADER = Header(frame_id="camera")
HEADER.stamp.sec, HEADER.stamp.nanosec = 7, 11
RED, GREEN, BLUE = (220, 20, 30), (20, 200, 40), (30, 40, 210)


def picture() -> np.ndarray:
    """(H, W, 3) uint8 with a smooth gradient in every channel."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([u * 14, v * 20, (u + v) * 8], axis=-1).astype(np.uint8)


def image_of(pixels: np.ndarray, encoding: str, padding: int = 0, big: bool = False) -> Image:
    """An Image with `padding` junk bytes behind every row."""
    rows = pixels.reshape(pixels.shape[0], -1).view(np.uint8)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=173)
    height, width = pixels.shape[:2]
    message = Image(height=height, width=width, encoding=encoding, step=padded.shape[1], is_bigendian=big)
    message.data = padded.tobytes()
    return message


@pytest.mark.parametrize("padding", [0, 5, 64])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("encoding", "channels"),
    [("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0]), ("rgba8", [0, 1, 2, 0]), ("bgra8", [2, 1, 0, 0])],
)
def test_colour_images_with_any_padding_and_byte_order(encoding, channels, padding, big):
    message = image_of(np.ascontiguousarray(picture()[..., channels]), encoding, padding, big)
    np.testing.assert_array_equal(decoding.rgb_from_image(message), picture())


@pytest.mark.parametrize("padding", [0, 7])
def test_grey_images_have_three_equal_channels(padding):
    grey = picture()[..., 0]
    rgb = decoding.rgb_from_image(image_of(np.ascontiguousarray(grey), "mono8", padding))
    np.testing.assert_array_equal(rgb, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 6])
def test_16_bit_grey_is_scaled_to_bytes_in_both_byte_orders(big, padding):
    grey = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    stored = grey.astype(">u2" if big else "<u2")
    rgb = decoding.rgb_from_image(image_of(stored, "mono16", padding, big))
    np.testing.assert_allclose(rgb[..., 1], grey * 255 / 65535, atol=1.0)


BAYER_PATTERNS = ["rggb", "bggr", "gbrg", "grbg"]
ALL_RED = np.broadcast_to(np.uint8(RED), (HEIGHT, WIDTH, 3))


def mosaic_of_red(pattern: str) -> np.ndarray:
    mosaic = np.empty((HEIGHT, WIDTH), np.uint8)
    for index, letter in enumerate(pattern):
        mosaic[index // 2 :: 2, index % 2 :: 2] = RED["rgb".index(letter)]
    return mosaic


@pytest.mark.parametrize("pattern", BAYER_PATTERNS)
@pytest.mark.parametrize("padding", [0, 3])
def test_bayer_patterns_give_the_colours_that_were_mosaicked(pattern, padding):
    rgb = decoding.rgb_from_image(image_of(mosaic_of_red(pattern), f"bayer_{pattern}8", padding))
    np.testing.assert_array_equal(rgb, ALL_RED)


@pytest.mark.parametrize(
    ("encoding", "order"), [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")]
)
@pytest.mark.parametrize("colour", [RED, GREEN, BLUE, (128, 128, 128)])
def test_yuv422_gives_the_colours_that_were_encoded(encoding, order, colour):
    r, g, b = (float(c) for c in colour)
    # BT.601 with video range, as cameras send it.
    values = {
        "y": 16 + 0.257 * r + 0.504 * g + 0.098 * b,
        "u": 128 - 0.148 * r - 0.291 * g + 0.439 * b,
        "v": 128 + 0.439 * r - 0.368 * g - 0.071 * b,
    }
    pair = np.round([values[letter] for letter in order]).astype(np.uint8).reshape(1, 2, 2)
    stored = np.tile(pair, (HEIGHT, WIDTH // 2, 1))
    rgb = decoding.rgb_from_image(image_of(stored, encoding, padding=4))
    np.testing.assert_allclose(rgb, np.broadcast_to(colour, rgb.shape), atol=4)


def test_an_rgb8_image_is_neither_copied_nor_writable():
    message = image_of(picture(), "rgb8", padding=2)
    rgb = decoding.rgb_from_image(message)
    assert np.shares_memory(rgb, np.frombuffer(message.data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        rgb[0, 0] = 0


@pytest.mark.parametrize("encoding", ["bgr8", "mono8", "mono16", "bayer_rggb8"])
def test_the_message_is_left_as_it_came(encoding):
    pixels = picture() if encoding == "bgr8" else np.ascontiguousarray(picture()[..., 0])
    message = image_of(pixels.astype(np.uint16) if encoding == "mono16" else pixels, encoding)
    before = bytes(message.data)
    decoding.rgb_from_image(message)
    assert bytes(message.data) == before


def test_the_last_row_may_come_without_its_padding():
    message = image_of(picture(), "rgb8", padding=10)
    message.data = message.data[:-10]
    np.testing.assert_array_equal(decoding.rgb_from_image(message), picture())


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"width": 0}, "image of 0x12"),
        ({"height": 0}, "image of 18x0"),
        ({"step": 53}, "step=53"),
        ({"data": b"\0" * 600}, "image data of 600 bytes.*check the camera driver"),
        ({"encoding": "32FC1"}, "encoding='32FC1'"),
        ({"encoding": ""}, "encoding=''"),
        ({"encoding": "yuv422", "width": 17}, "odd width"),
    ],
)
def test_unusable_images_are_named(changed, text):
    message = image_of(picture(), "rgb8")
    for name, value in changed.items():
        setattr(message, name, value)
    with pytest.raises(Unusable, match=text):
        decoding.rgb_from_image(message)


@pytest.mark.parametrize(("extension", "tolerance"), [(".png", 0), (".jpg", 6)])
def test_compressed_images_have_the_right_colours(extension, tolerance):
    data = cv2.imencode(extension, picture()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    rgb = decoding.rgb_from_compressed(CompressedImage(format="jpeg", data=data))
    assert rgb.shape == picture().shape
    assert np.abs(rgb.astype(int) - picture()).mean() <= tolerance


def compressed(pixels: np.ndarray, extension: str, format: str) -> CompressedImage:
    data = cv2.imencode(extension, pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    return CompressedImage(format=format, data=data)


@pytest.mark.parametrize("pattern", BAYER_PATTERNS)
@pytest.mark.parametrize(("extension", "kind", "tolerance"), [(".png", "png", 0), (".jpg", "jpeg", 4)])
def test_compressed_bayer_mosaics_give_the_colours_that_were_mosaicked(pattern, extension, kind, tolerance):
    """As compressed_image_transport writes them: one channel, the encoding before the semicolon."""
    message = compressed(mosaic_of_red(pattern), extension, f"bayer_{pattern}8; {kind} compressed ")
    np.testing.assert_allclose(decoding.rgb_from_compressed(message).astype(int), ALL_RED, atol=tolerance)


def test_of_compressed_bayer_images_those_with_colours_stay_and_those_of_other_depths_are_refused():
    message = compressed(picture()[..., ::-1], ".png", "bayer_rggb8; png compressed bgr8")
    np.testing.assert_array_equal(decoding.rgb_from_compressed(message), picture())
    message.format = "bayer_rggb16; png compressed "
    with pytest.raises(Unusable, match=r"format='bayer_rggb16; png .*': a mosaic must be one of bayer_rggb8, "):
        decoding.rgb_from_compressed(message)


@pytest.mark.parametrize("padding", [100, 5000])
def test_cameras_may_pad_their_jpegs(padding):
    data = cv2.imencode(".jpg", picture())[1].tobytes() + b"\0" * padding
    assert decoding.rgb_from_compressed(CompressedImage(format="jpeg", data=data)).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_compressed_images_are_refused(extension, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = cv2.imencode(extension, noise)[1].tobytes()
    told = r"(missing|truncated).*check the camera's driver and link|neither.*set what compresses"
    with pytest.raises(Unusable, match=told):
        decoding.rgb_from_compressed(CompressedImage(format="jpeg", data=data[: int(len(data) * share)]))


def test_a_png_that_is_corrupt_within_is_refused():
    data = b"\x89PNG\r\n\x1a\n" + b"?" * 500 + b"IEND\xaeB`\x82"
    with pytest.raises(Unusable, match=r"PNG of 516 bytes: cannot be decoded; check the camera's driver and link"):
        decoding.rgb_from_compressed(CompressedImage(format="png", data=data))


def noisy_jpeg():
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


@pytest.mark.parametrize(("start", "length"), [(0.5, 1400), (0.3, 20000), (0.9, 300)])
@pytest.mark.parametrize("filled", [True, False], ids=["zeroed", "missing"])
def test_a_jpeg_with_a_hole_is_refused(start, length, filled):
    """OpenCV would answer with grey or shifted rows, and the node with metres of them."""
    data = noisy_jpeg()
    first = int(len(data) * start)
    data = data[:first] + bytes(length if filled else 0) + data[first + length :]
    with pytest.raises(Unusable, match="damaged"):
        decoding.rgb_from_compressed(CompressedImage(format="jpeg", data=data))


def test_a_few_bytes_after_the_last_pixel_are_forgiven():
    """As cheap cameras send them with every frame."""
    whole = noisy_jpeg()
    data = whole[:-2] + b"\x12\x34\x56" + whole[-2:]
    expected = decoding.rgb_from_compressed(CompressedImage(format="jpeg", data=whole))
    np.testing.assert_array_equal(decoding.rgb_from_compressed(CompressedImage(format="jpeg", data=data)), expected)


def test_a_jpeg_that_is_only_start_and_end_is_refused():
    with pytest.raises(Unusable, match="damaged"):
        decoding.rgb_from_compressed(CompressedImage(format="jpeg", data=b"\xff\xd8\xff" + b"?" * 500 + b"\xff\xd9"))


# Camera info


def info(**changed) -> CameraInfo:
    message = CameraInfo(width=640, height=480, distortion_model="plumb_bob", d=[0.1, -0.2, 0.0, 0.0, 0.0])
    message.k = [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
    message.p = [450.0, 0.0, 310.0, 0.0, 0.0, 460.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    for name, value in changed.items():
        if name.startswith("roi_"):
            setattr(message.roi, name[4:], value)
        else:
            setattr(message, name, value)
    return message


def test_camera_info_gives_k_and_d():
    camera = decoding.camera_from_info(info(), 640, 480)
    assert camera == Camera(640, 480, 500.0, 510.0, 320.0, 240.0, "plumb_bob", (0.1, -0.2, 0.0, 0.0, 0.0))


def test_a_rectified_image_has_p_and_no_distortion():
    camera = decoding.camera_from_info(info(), 640, 480, rectified=True)
    assert camera == Camera(640, 480, 450.0, 460.0, 310.0, 230.0)


def test_region_of_interest_then_binning_as_image_geometry_does():
    message = info(binning_x=2, binning_y=4, roi_x_offset=100, roi_y_offset=40, roi_width=320, roi_height=240)
    camera = decoding.camera_from_info(message, 160, 60)
    assert (camera.fx, camera.fy) == (250.0, 127.5)
    assert (camera.cx, camera.cy) == ((320 - 100) / 2, (240 - 40) / 4)


@pytest.mark.parametrize("size", [(320, 240), (640, 360), (0, 0), (641, 480)])
def test_a_camera_info_of_another_size_is_refused(size):
    with pytest.raises(Unusable, match="camera info of 640x480"):
        decoding.camera_from_info(info(), *size)


@pytest.mark.parametrize("changed", [{"k": [0.0] * 9}, {"k": [float("nan")] * 9}, {"d": [float("nan")] * 5}])
def test_an_uncalibrated_camera_is_refused_with_the_way_out(changed):
    with pytest.raises(Unusable, match="calibrate the camera"):
        decoding.camera_from_info(info(**changed), 640, 480)


@pytest.mark.parametrize(("model", "count"), [("rational_polynomial", 8), ("equidistant", 4)])
def test_other_lens_models_pass_through(model, count):
    camera = decoding.camera_from_info(info(distortion_model=model, d=[0.01] * count), 640, 480)
    assert (camera.distortion_model, len(camera.distortion)) == (model, count)


def test_camera_info_comes_back_from_a_camera():
    camera = Camera(640, 480, 500.0, 510.0, 320.0, 240.0, distortion=(0.0,) * 5)
    message = messages.camera_info(camera, HEADER)
    assert message.header == HEADER
    assert decoding.camera_from_info(message, 640, 480) == camera
    assert decoding.camera_from_info(message, 640, 480, rectified=True) == replace(camera, distortion=())
    assert list(message.d) == [0.0] * 5
    assert (message.binning_x, message.roi.width, message.p[3]) == (0, 0, 0.0)


# Clouds and scans


def points() -> np.ndarray:
    values = np.random.default_rng(1).normal(0, 10, (24, 3)).astype(np.float32)
    values[3], values[5] = np.nan, 0.0
    return values


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("height", "row_padding"), [(1, 0), (4, 0), (4, 9)])
@pytest.mark.parametrize(
    ("kinds", "offsets", "step"),
    [
        (("f4", "f4", "f4"), (0, 4, 8), 12),
        (("f4", "f4", "f4"), (0, 4, 8), 32),
        (("f8", "f8", "f8"), (0, 8, 16), 26),
        (("f4", "f8", "f4"), (21, 3, 13), 30),  # odd places, mixed types, another order
    ],
)
def test_clouds_of_any_layout(big, height, row_padding, kinds, offsets, step):
    order = ">" if big else "<"
    layout = np.dtype(
        {"names": list("xyz"), "formats": [order + k for k in kinds], "offsets": offsets, "itemsize": step}
    )
    stored = np.zeros(24, layout)
    for axis, name in enumerate("xyz"):
        stored[name] = points()[:, axis]
    rows = np.frombuffer(stored.tobytes(), np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, row_padding)), constant_values=99)
    cloud = PointCloud2(height=height, width=24 // height, point_step=step, row_step=rows.shape[1], is_bigendian=big)
    types = {"f4": PointField.FLOAT32, "f8": PointField.FLOAT64}
    named = [("intensity", 0, "f4"), *zip("xyz", offsets, kinds, strict=True)]
    cloud.fields = [PointField(name=n, offset=o, datatype=types[k], count=1) for n, o, k in named]
    cloud.data = rows.tobytes()
    found = decoding.points_from_cloud(cloud)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, points(), rtol=1e-6)


def small_cloud(**changed) -> PointCloud2:
    cloud = PointCloud2(height=1, width=2, point_step=12, row_step=24, data=b"\0" * 24)
    cloud.fields = [PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, n in enumerate("xyz")]
    for name, value in changed.items():
        setattr(cloud, name, value)
    return cloud


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"width": 0, "data": b""}, "cloud of 0x1"),
        ({"data": b"\0" * 23}, "cloud data of 23 bytes.*check the sensor"),
        ({"fields": []}, "fields none: needs 'x'"),
        ({"fields": small_cloud().fields[:2]}, "needs 'z'"),
        ({"point_step": 8, "data": b"\0" * 24}, "outside of point_step=8"),
        ({"height": 2, "row_step": 3, "data": b"\0" * 48}, "row_step=3"),
        ({"fields": [PointField(name=n, datatype=PointField.INT16, count=1) for n in "xyz"]}, "as FLOAT32 or FLOAT64"),
    ],
)
def test_unusable_clouds_are_named(changed, text):
    with pytest.raises(Unusable, match=text):
        decoding.points_from_cloud(small_cloud(**changed))


def test_single_rows_may_have_a_wrong_row_step():
    assert decoding.points_from_cloud(small_cloud(row_step=0)).shape == (2, 3)


def test_a_planar_scan_becomes_points_in_its_plane():
    scan = LaserScan(angle_min=-np.pi / 2, angle_increment=np.pi / 2, range_min=0.5, range_max=10.0)
    scan.ranges = [1.0, 2.0, 3.0, float("inf"), float("nan"), 0.1, 11.0]
    np.testing.assert_allclose(decoding.points_from_scan(scan), [[0, -1, 0], [2, 0, 0], [0, 3, 0]], atol=1e-6)


def test_a_scan_without_readings_is_unusable():
    with pytest.raises(Unusable, match="none is within"):
        decoding.points_from_scan(LaserScan(ranges=[float("inf")] * 5, range_max=10.0))


# Outputs


def depth() -> np.ndarray:
    values = np.random.default_rng(2).uniform(0.5, 40.0, (HEIGHT, WIDTH)).astype(np.float32)
    values[2, 3] = np.nan
    return values


def test_metres_are_32fc1_with_nan():
    message = messages.float_image(depth(), HEADER)
    assert (message.encoding, message.step, message.header) == ("32FC1", 4 * WIDTH, HEADER)
    np.testing.assert_array_equal(np.frombuffer(message.data, "<f4").reshape(HEIGHT, WIDTH), depth())


def test_vectors_are_32fc3():
    vectors = np.stack([depth(), -depth(), 2 * depth()], axis=-1)
    message = messages.float_image(vectors, HEADER)
    assert (message.encoding, message.step, message.height) == ("32FC3", 12 * WIDTH, HEIGHT)
    np.testing.assert_array_equal(np.frombuffer(message.data, "<f4").reshape(HEIGHT, WIDTH, 3), vectors)


def test_millimetres_are_rounded_and_unknown_is_zero():
    metres = np.float32([[1.0004, 1.0006, np.nan, 65.535, 65.54, 0.0, -1.0, np.inf, 0.0004, 0.0006]])
    message = messages.millimetre_image(metres, HEADER)
    assert message.encoding == "16UC1"
    assert np.frombuffer(message.data, "<u2").tolist() == [1000, 1001, 0, 65535, 0, 0, 0, 0, 0, 1]


def test_big_data_is_a_byte_array_and_the_organized_cloud_reuses_its_own():
    writer = messages.CloudWriter(CAMERA)
    assert isinstance(messages.float_image(depth(), HEADER).data, array.array)
    first, second = (writer.organized(depth(), picture(), HEADER) for _ in range(2))
    assert first.data is second.data


CAMERA = Camera(WIDTH, HEIGHT, 20.0, 21.0, 8.0, 5.0)
# PCL's layout of a point, with colours as bytes.
POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("b", "u1"), ("g", "u1"), ("r", "u1"), ("a", "u1")])


def test_an_organized_cloud_is_the_back_projected_image_with_its_colours():
    cloud = messages.CloudWriter(CAMERA).organized(depth(), picture(), HEADER)
    assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (HEIGHT, WIDTH, 16, 16 * WIDTH)
    assert [(f.name, f.offset, f.datatype, f.count) for f in cloud.fields] == [
        (name, 4 * i, PointField.FLOAT32, 1) for i, name in enumerate(["x", "y", "z", "rgb"])
    ]
    assert not cloud.is_dense
    stored = np.frombuffer(cloud.data, POINT).reshape(HEIGHT, WIDTH)
    expected = backproject(depth(), pixel_rays(CAMERA))
    np.testing.assert_allclose(np.stack([stored[n] for n in "xyz"], -1), expected, rtol=1e-6)
    assert np.isnan([stored[n][2, 3] for n in "xyz"]).all()
    np.testing.assert_array_equal(np.stack([stored[n] for n in "rgb"], -1), picture())
    assert not stored["a"].any()


@pytest.mark.parametrize("stride", [2, 3, 5])
def test_a_strided_cloud_has_only_known_points(stride):
    cloud = messages.CloudWriter(CAMERA).strided(depth(), picture(), stride, HEADER)
    stored = np.frombuffer(cloud.data, POINT)
    every = slice(stride // 2, None, stride)
    known = np.isfinite(depth()[every, every])
    expected = backproject(depth(), pixel_rays(CAMERA))[every, every][known]
    assert (cloud.height, cloud.width, cloud.is_dense) == (1, known.sum(), True)
    np.testing.assert_allclose(np.stack([stored[n] for n in "xyz"], -1), expected, rtol=1e-6)
    np.testing.assert_array_equal(np.stack([stored[n] for n in "rgb"], -1), picture()[every, every][known])


def test_our_own_clouds_can_be_read_again():
    cloud = messages.CloudWriter(CAMERA).organized(depth(), picture(), HEADER)
    np.testing.assert_allclose(
        decoding.points_from_cloud(cloud), backproject(depth(), pixel_rays(CAMERA)).reshape(-1, 3), rtol=1e-6
    )


def test_a_cloud_of_nothing_known_is_empty():
    nothing = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    cloud = messages.CloudWriter(CAMERA).strided(nothing, picture(), 2, HEADER)
    assert (cloud.width, len(cloud.data)) == (0, 0)


def test_colours_travel_as_they_are():
    message = messages.colour_image(picture(), "bgr8", HEADER)
    np.testing.assert_array_equal(decoding.rgb_from_image(message), picture()[..., ::-1])
