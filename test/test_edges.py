"""What floats between two surfaces goes; surfaces stay, however thin or slanted they are."""

import cv2
import numpy as np
import pytest

from marigold_ros.edges import edge_ln, floating

HEIGHT, WIDTH, FOCAL_PX = 480, 640, 460.0
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)


def blurred(depth_m, sigma_px):
    """As networks of inverse depth blur."""
    return 1.0 / cv2.GaussianBlur((1.0 / depth_m).astype(np.float32), (0, 0), sigma_px)


def test_an_edge_by_hand():
    depth_m = np.full((5, 7), 2.0, np.float32)
    depth_m[:, 4:] = 2.0 * np.e
    expected = np.zeros((5, 7))
    expected[:, 3:5] = 0.5
    np.testing.assert_allclose(edge_ln(depth_m), expected, atol=1e-6)
    depth_m[:, 4:] = np.nan  # what is unknown is no edge
    np.testing.assert_allclose(edge_ln(depth_m), 0, atol=1e-6)


@pytest.mark.parametrize("camera_height_m", [0.2, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("behind_m", [np.nan, 12.0])
def test_a_floor_at_a_grazing_angle_stays_up_to_the_horizon(camera_height_m, behind_m):
    floor_m = FOCAL_PX * camera_height_m / np.maximum(ROWS - 240.0, 0.5)
    limit_m = 100.0 if np.isnan(behind_m) else behind_m
    depth_m = np.where((ROWS > 240) & (floor_m < limit_m), floor_m, behind_m).astype(np.float32)
    last_row = 241 + int(FOCAL_PX * camera_height_m / limit_m)
    assert not floating(depth_m)[last_row + 2 :].any()
    assert floating(depth_m).mean() < 0.003  # a row at the horizon


@pytest.mark.parametrize("tilt", [0.0, 0.7, 1.6])
def test_walls_along_the_line_of_sight_stay(tilt):
    """A corridor's walls, of which the camera sees depths from 0.7 to 30 m, upright or turned about the axis."""
    across = np.abs((COLUMNS - 319.5) * np.cos(tilt) + (ROWS - 239.5) * np.sin(tilt))
    assert floating(np.minimum(FOCAL_PX * 0.5 / np.maximum(across, 1.0), 30.0).astype(np.float32)).mean() < 0.001


@pytest.mark.parametrize("width_px", [1, 2, 3, 8])
def test_thin_poles_stay(width_px):
    depth_m = np.full((HEIGHT, WIDTH), 6.0, np.float32)
    depth_m[:, 300 : 300 + width_px] = 2.0
    assert not floating(depth_m).any()
    found = floating(blurred(depth_m, 1.0))
    nearest = blurred(depth_m, 1.0)[0].argmin()
    assert not found[:, nearest].any()


@pytest.mark.parametrize("blur_px", [0.8, 1.0, 1.5, 2.0])
def test_what_a_blurred_edge_leaves_in_the_air_goes(blur_px):
    depth_m = np.where(COLUMNS < 320, 2.0, 6.0).astype(np.float32)
    found = blurred(depth_m, blur_px)
    in_the_air = (found > 2.0 * 1.25) & (found < 6.0 / 1.25)
    assert in_the_air[0].sum() >= 1
    gone = floating(found)
    assert gone[in_the_air].mean() >= 0.5
    assert not gone[(found < 2.0 * 1.05) | (found > 6.0 / 1.02)].any()


def test_what_is_blurred_into_the_sky_goes_and_the_outline_before_it_stays():
    depth_m = np.where(COLUMNS < 320, 4.0, 1e4).astype(np.float32)
    found = blurred(depth_m, 1.0)
    found[found > 50.0] = np.nan
    gone = floating(found)
    assert gone.any()
    assert not gone[found < 4.2].any()


def test_a_surface_that_ends_at_the_border_of_the_image_stays():
    steep_m = np.broadcast_to(np.linspace(2.0, 10.0, 64, dtype=np.float32), (48, 64))
    assert not floating(steep_m).any()
    assert not floating(np.ascontiguousarray(steep_m.T)).any()
    assert not floating(steep_m[:4, :4]).any()


def test_nothing_known():
    assert not floating(np.full((20, 30), np.nan, np.float32)).any()
    assert (edge_ln(np.full((20, 30), np.nan, np.float32)) == 0).all()
