"""Camera geometry, checked by identities and against OpenCV."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from marigold_ros.config import Unusable
from marigold_ros.geometry import (
    Camera,
    Rectifier,
    backproject,
    pixel_rays,
    project,
    rectifier,
    resize,
    transform_from_quaternion,
    transformed,
)

CAMERA = Camera(64, 48, 50.0, 52.0, 31.2, 24.7)


def test_projecting_a_backprojected_depth_returns_the_same_pixels():
    depth_m = np.random.default_rng(0).uniform(0.5, 30, (48, 64)).astype(np.float32)
    pixels, depth = project(backproject(depth_m, pixel_rays(CAMERA)).reshape(-1, 3), CAMERA)
    v, u = np.mgrid[:48, :64]
    np.testing.assert_allclose(pixels, np.stack([u, v], -1).reshape(-1, 2), atol=1e-3)
    np.testing.assert_allclose(depth, depth_m.ravel())


def test_unknown_depth_gives_unknown_points():
    depth_m = np.full((48, 64), np.nan, np.float32)
    assert np.isnan(backproject(depth_m, pixel_rays(CAMERA))).all()


def test_points_behind_the_camera_have_no_pixel():
    pixels, _ = project(np.array([[0.1, 0.1, -1.0], [0.0, 0.0, 0.0]]), CAMERA)
    assert np.isnan(pixels).all()


def test_projection_agrees_with_opencv():
    points = np.random.default_rng(1).uniform([-2, -2, 1], [2, 2, 9], (100, 3))
    oracle, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), CAMERA.matrix, None)
    np.testing.assert_allclose(project(points, CAMERA)[0], oracle[:, 0], atol=1e-9)


@pytest.mark.parametrize(("width", "height"), [(32, 24), (128, 96), (96, 30)])
def test_a_resized_camera_sees_along_the_same_rays(width, height):
    small = CAMERA.resized(width, height)
    # The image's corners (half a pixel outside the outermost centres) look into the same directions.
    for near, far in (((-0.5, -0.5), (-0.5, -0.5)), ((63.5, 47.5), (width - 0.5, height - 0.5))):
        np.testing.assert_allclose((near[0] - CAMERA.cx) / CAMERA.fx, (far[0] - small.cx) / small.fx)
        np.testing.assert_allclose((near[1] - CAMERA.cy) / CAMERA.fy, (far[1] - small.cy) / small.fy)


def test_a_quaternion_turns_as_it_should():
    quarter_about_z = transform_from_quaternion((1, 2, 3), (0, 0, np.sqrt(0.5), np.sqrt(0.5)))
    np.testing.assert_allclose(transformed(np.array([[1.0, 0, 0]]), quarter_about_z), [[1, 3, 3]], atol=1e-12)


def test_shrinking_averages_and_growing_interpolates():
    checker = np.indices((8, 8)).sum(0).astype(np.float32) % 2
    np.testing.assert_allclose(resize(checker, 4, 4), 0.5)
    assert resize(checker, 8, 8) is checker
    ramp = np.arange(4, dtype=np.float32)[None].repeat(4, 0)
    assert np.all(np.diff(resize(ramp, 8, 8), axis=1) >= 0)


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [
        ("plumb_bob", (-0.3, 0.1, 0.001, -0.001, 0.0)),
        ("rational_polynomial", (-0.3, 0.1, 0.001, -0.001, 0.02, 0.01, 0.01, 0.0)),
        ("equidistant", (0.1, 0.02, -0.01, 0.002)),
        ("equidistant", (0.0, 0.0, 0.0, 0.0)),  # an ideal fisheye, which is no pinhole
    ],
)
def test_rectifying_moves_a_distorted_point_to_where_a_pinhole_sees_it(model, coefficients):
    camera = Camera(320, 240, 200.0, 200.0, 160.0, 120.0, model, coefficients)
    point = np.array([[[0.35, 0.25, 1.0]]])
    zero, lens = np.zeros(3), np.array(coefficients)
    if model == "equidistant":
        seen, _ = cv2.fisheye.projectPoints(point, zero, zero, camera.matrix, lens)
    else:
        seen, _ = cv2.projectPoints(point, zero, zero, camera.matrix, lens)
    image = np.zeros((240, 320, 3), np.uint8)
    cv2.circle(image, tuple(np.round(seen.ravel()).astype(int).tolist()), 4, (255, 255, 255), -1)
    rectify = rectifier(camera)
    v, u = np.nonzero(rectify(image)[..., 0] > 128)
    expected = project(point[0], rectify.camera)[0][0]
    np.testing.assert_allclose([u.mean(), v.mean()], expected, atol=1.0)
    assert not rectify.camera.is_distorted


def test_an_undistorted_camera_needs_no_rectifier():
    assert rectifier(CAMERA) is None
    assert rectifier(Camera(64, 48, 50, 50, 32, 24, "plumb_bob", (0.0,) * 5)) is None
    assert isinstance(rectifier(Camera(64, 48, 50, 50, 32, 24, "plumb_bob", (0.1, 0, 0, 0))), Rectifier)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 48, 50, 50, 32, 24), "0x48"),
        ((64, 48, 0.0, 50, 32, 24), "calibrate"),
        ((64, 48, float("nan"), 50, 32, 24), "fx=nan"),
        ((64, 48, 50, 50, 32, 24, "plumb_bob", (0.1, 0.2)), "4 or 5"),
        ((64, 48, 50, 50, 32, 24, "fov", (0.1,)), "'fov'"),
        ((64, 48, 50, 50, 32, 24, "plumb_bob", (float("nan"), 0, 0, 0)), "finite"),
    ],
)
def test_unusable_intrinsics_are_refused_by_name(arguments, named):
    with pytest.raises(Unusable, match=named):
        Camera(*arguments)


def test_pixels_that_the_lens_did_not_see_are_marked():
    """A pincushion's rim: the rectified image reaches beyond the sensor there. A barrel has none."""
    pincushion = Rectifier(replace(CAMERA, distortion=(0.3, 0.0, 0.0, 0.0, 0.0)))
    white = pincushion(np.full((CAMERA.height, CAMERA.width, 3), 255, np.uint8))
    assert 0.02 < pincushion.unseen.mean() < 0.4
    assert white[pincushion.unseen].max() < 128 <= white[~pincushion.unseen].min()
    assert pincushion.unseen[0, 0]
    assert not pincushion.unseen[CAMERA.height // 2, CAMERA.width // 2]
    assert Rectifier(replace(CAMERA, distortion=(-0.3, 0.0, 0.0, 0.0, 0.0))).unseen is None


def test_the_cone_of_a_camera_reaches_to_the_farthest_corner():
    camera = Camera(640, 480, 500.0, 400.0, 300.0, 250.0)
    corners = np.array([[u, v] for u in (-0.5, 639.5) for v in (-0.5, 479.5)])
    rays = np.column_stack([(corners - (300.0, 250.0)) / (500.0, 400.0), np.ones(4)])
    assert camera.cone_rad == pytest.approx(np.arccos(1 / np.linalg.norm(rays, axis=1)).max())


def test_a_camera_whose_calibration_is_refined_and_others():
    camera = Camera(640, 480, 500.0, 500.0, 319.5, 239.5)
    assert camera.resembles(Camera(640, 480, 503.0, 502.0, 321.0, 238.0))
    for other in ((640, 480, 520.0, 500.0, 319.5, 239.5), (640, 480, 500.0, 500.0, 100.0, 239.5),
                  (640, 480, 500.0, 500.0, 319.5, 280.0), (640, 400, 500.0, 500.0, 319.5, 239.5)):  # fmt: skip
        assert not camera.resembles(Camera(*other))


def brought_to(camera, pixels):
    """Where OpenCV's rectification looks up these pixels u, v."""
    coefficients, size = np.array(camera.distortion or (0.0,) * 5), (camera.width, camera.height)
    module = cv2.fisheye if camera.distortion_model == "equidistant" else cv2
    maps = module.initUndistortRectifyMap(camera.matrix, coefficients, np.eye(3), camera.matrix, size, cv2.CV_32FC1)
    return np.stack([each[pixels[:, 1], pixels[:, 0]] for each in maps], axis=1)


@pytest.mark.parametrize(
    ("model", "before", "after", "same"),
    [
        ("plumb_bob", (-0.3, 0.1, 0.0, 0.0, 0.0), (-0.304, 0.103, 0.0001, 0.0, 0.0), True),
        ("plumb_bob", (-0.3, 0.1, 0.0, 0.0, 0.0), (-0.34, 0.1, 0.0, 0.0, 0.0), False),
        # Coefficients that make up for each other.
        ("plumb_bob", (-0.3, 0.1, 0.0, 0.0, 0.0), (-0.27, 0.03, 0.0, 0.0, 0.03), True),
        ("plumb_bob", (-0.3, 0.1, 0.0, 0.0, 0.0), (), False),
        ("plumb_bob", (), (0.001, 0.0, 0.0, 0.0, 0.0), True),
        ("equidistant", (0.05, 0.01, 0.0, 0.0), (0.055, 0.008, 0.0, 0.0), True),
        ("equidistant", (0.05, 0.01, 0.0, 0.0), (0.15, 0.01, 0.0, 0.0), False),
    ],
)
def test_a_lens_that_bends_otherwise_is_another_camera(model, before, after, same):
    camera = Camera(640, 480, 500.0, 500.0, 319.5, 239.5, model, before)
    other = replace(camera, distortion=after)
    assert camera.resembles(other) == other.resembles(camera) == same
    v, u = np.mgrid[:480:40, :640:40]
    pixels = np.stack([u.ravel(), v.ravel()], axis=1)
    moved_px = np.linalg.norm(brought_to(camera, pixels) - brought_to(other, pixels), axis=1).max()
    assert (moved_px < 4.9) if same else (moved_px > 5.1)


def test_a_fisheye_is_no_pinhole():
    fisheye = Camera(640, 480, 500.0, 500.0, 319.5, 239.5, "equidistant", (0.0, 0.0, 0.0, 0.0))
    assert not fisheye.resembles(replace(fisheye, distortion=(), distortion_model="plumb_bob"))
