"""How the picture moves: told from textured pictures that were moved by a known amount."""

import cv2
import numpy as np
import pytest

from marigold_ros.geometry import Camera
from marigold_ros.picture_motion import PictureTrack, shift_between, thumbnail, working_picture

CAMERA = Camera(320, 240, 200.0, 200.0, 159.5, 119.5)
SECOND = 1_000_000_000


def world(seed=0):
    """(400, 600, 3) uint8: blobs of all sizes."""
    random = np.random.default_rng(seed)
    grey = sum(cv2.resize(random.random((400 // s, 600 // s)).astype(np.float32), (600, 400)) for s in (8, 20, 50))
    return np.repeat((85 * grey).astype(np.uint8)[..., None], 3, axis=2)


def seen(right=0, down=0, seed=0):
    """What a camera sees that looks so many pixels farther right and down."""
    return np.ascontiguousarray(world(seed)[60 + down : 300 + down, 100 + right : 420 + right])


def thumb(rgb):
    return thumbnail(working_picture(rgb, CAMERA))


def test_a_shift_is_found_and_another_picture_has_none():
    found = shift_between(thumb(seen()), thumb(seen(-24, 12)))
    np.testing.assert_allclose(found, [6.0, -3.0], atol=0.3)
    assert shift_between(thumb(seen()), thumb(seen(seed=1))) is None


def test_what_crosses_a_picture_that_stays_moves_nothing():
    before, now = seen(), seen()
    someone = world(7)[:200, :110]
    before[20:220, 60:170] = someone
    now[20:220, 90:200] = someone
    np.testing.assert_array_equal(shift_between(thumb(before), thumb(now)), [0, 0])


def test_a_track_sums_up_and_reaches_a_little_beyond_its_images():
    track = PictureTrack()
    track.see(SECOND, seen(), CAMERA)
    assert track.motion is None
    assert track.shift_px(SECOND, SECOND) is None  # of one image nobody knows
    for i, right in enumerate((10, 30, 60), start=1):
        track.see(SECOND + i * SECOND // 10, seen(right), CAMERA)
    track.see(SECOND + 3 * SECOND // 10, seen(200), CAMERA)  # once more the same stamp: nothing new
    # To the right looks the camera, to the left goes the picture: 30 pixels in a tenth of a second.
    np.testing.assert_allclose(track.motion, [-300.0 / 200.0, 0.0], atol=0.05)
    at = {0: 0, 5: 5, 10: 10, 20: 30, 30: 60, 40: 90}
    for since, until in ((0, 30), (5, 20), (30, 10), (20, 40)):
        found = track.shift_px(*(SECOND + k * SECOND // 100 for k in (since, until)))
        np.testing.assert_allclose(found, [at[since] - at[until], 0], atol=2.0)
    assert track.shift_px(SECOND, 3 * SECOND) is None
    assert track.shift_px(SECOND - 1, SECOND) is None  # before it was seen


def test_a_track_is_lost_with_the_view_the_time_or_the_camera():
    def with_two():
        track = PictureTrack()
        track.see(SECOND, seen(), CAMERA)
        track.see(SECOND + SECOND // 10, seen(8), CAMERA)
        assert track.shift_px(SECOND, SECOND + SECOND // 10) is not None
        return track

    for stamp_ns, rgb, camera in (
        (SECOND + SECOND // 5, seen(seed=1), CAMERA),
        (SECOND // 2, seen(8), CAMERA),
        (3 * SECOND, seen(8), CAMERA),
        (SECOND + SECOND // 5, seen(8), Camera(320, 240, 210.0, 210.0, 159.5, 119.5)),
    ):
        track = with_two()
        track.see(stamp_ns, rgb, camera)
        assert track.motion is None
        assert track.shift_px(SECOND, stamp_ns) is None


def test_slow_pans_are_not_rounded_off():
    """A pixel per image is an eighth of a thumbnail's at most."""
    track = PictureTrack()
    for i in range(31):
        track.see(SECOND + i * SECOND // 30, seen(i), CAMERA)
    found = track.shift_px(SECOND, SECOND + 30 * SECOND // 30)
    np.testing.assert_allclose(found, [-30, 0], atol=3)
    np.testing.assert_allclose(track.shift_px(SECOND, SECOND + SECOND // 3), [-10, 0], atol=2)


def test_a_blank_sky_does_not_hide_the_motion_below_it():
    track = PictureTrack()
    for i in range(5):
        rgb = seen(8 * i)
        rgb[:170] = 255
        track.see(SECOND + i * SECOND // 10, rgb, CAMERA)
    np.testing.assert_allclose(track.shift_px(SECOND, SECOND + 4 * SECOND // 10), [-32, 0], atol=4)


def test_a_calibration_that_is_refined_is_no_other_camera():
    track = PictureTrack()
    for i in range(3):
        camera = Camera(320, 240, 200.0 + 0.1 * i, 200.0, 159.5, 119.5)
        track.see(SECOND + i * SECOND // 10, seen(8 * i), camera)
    np.testing.assert_allclose(track.shift_px(SECOND, SECOND + SECOND // 5), [-16, 0], atol=2)


def test_a_refined_focal_length_that_changes_the_working_size_is_no_error():
    """At 1224x1024 the grey picture is a pixel smaller from 1655 px on, and its thumbnail, too."""
    track, rgb = PictureTrack(), cv2.resize(seen(), (1224, 1024))
    sizes = set()
    for i, focal_px in enumerate((1654.0, 1654.0, 1657.0, 1657.0, 1657.0)):
        camera = Camera(1224, 1024, focal_px, focal_px, 611.5, 511.5)
        track.see(SECOND + i * SECOND // 10, rgb, camera)
        sizes.add(track.thumb.shape)
    assert len(sizes) == 2
    np.testing.assert_array_equal(track.shift_px(SECOND + 3 * SECOND // 10, SECOND + 4 * SECOND // 10), [0, 0])


@pytest.mark.parametrize(("rows", "columns"), [(64, 320), (240, 40)])
def test_a_wide_and_a_tall_picture(rows, columns):
    camera, track = Camera(columns, rows, 200.0, 200.0, (columns - 1) / 2, (rows - 1) / 2), PictureTrack()
    for i in range(3):
        rgb = np.ascontiguousarray(world()[60 + 4 * i : 60 + 4 * i + rows, 100 : 100 + columns])
        track.see(SECOND + i * SECOND // 10, rgb, camera)
    assert max(track.thumb.shape) == 80
    np.testing.assert_allclose(track.shift_px(SECOND, SECOND + SECOND // 5), [0, -8], atol=2.5)


def test_places_are_kept_for_as_long_as_metres_may_be_held():
    track, rgb = PictureTrack(), seen()
    stamps_ns = [i * 9 * SECOND // 10 for i in range(200)]
    for stamp_ns in stamps_ns:
        track.see(stamp_ns, rgb, CAMERA)
    np.testing.assert_array_equal(track.shift_px(stamps_ns[-1] - 60 * SECOND, stamps_ns[-1]), [0, 0])
    assert track.shift_px(stamps_ns[0], stamps_ns[-1]) is None


@pytest.mark.parametrize("grey", [0, 128])
def test_a_bland_picture_stays_where_it_is(grey):
    track, random = PictureTrack(), np.random.default_rng(0)
    for i in range(3):
        noisy = random.normal(grey, 2.0, (240, 320, 3)).clip(0, 255).astype(np.uint8)
        track.see(SECOND + i * SECOND // 10, noisy, CAMERA)
    np.testing.assert_allclose(track.shift_px(SECOND, SECOND + SECOND // 5), [0, 0], atol=0.5)
