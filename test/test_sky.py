"""What looks like the sky beside the sky is no depth, whatever the network makes of it; what anchors hit is."""

import numpy as np
import pytest

from marigold_ros.sky import forget_alike

# Of an image of 40 by 30 cells: a tree at the left, a blurred outline of 40 pixels, the sky; ground from row 360 on.
OUTLINE, BLURRED, GROUND = 200, 40, 360
SKY, TREE, ROAD = (200, 205, 215), (60, 80, 40), (110, 110, 115)
NOBODY = np.empty((0, 2), np.float32)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Depth as a network has it, NaN beyond reach, and the picture, both with noise."""
    rgb = np.empty((480, 640, 3))
    rgb[:, :OUTLINE], rgb[:, OUTLINE:], rgb[GROUND:] = TREE, SKY, ROAD
    rgb = np.uint8(rgb + np.random.default_rng(0).integers(-6, 7, rgb.shape))
    depth_m = np.full((480, 640), 15.0, np.float32)
    depth_m[:, OUTLINE : OUTLINE + BLURRED] = np.linspace(15.0, 60.0, BLURRED)
    depth_m[:GROUND, OUTLINE + BLURRED :] = np.nan
    return depth_m, rgb


def forgotten(depth_m: np.ndarray, rgb: np.ndarray, anchored: np.ndarray = NOBODY) -> np.ndarray:
    """(H, W) bool: what was known and is no more."""
    found = depth_m.copy()
    forget_alike(found, rgb, anchored)
    np.testing.assert_array_equal(found[np.isfinite(found)], depth_m[np.isfinite(found)])
    assert np.isnan(found[np.isnan(depth_m)]).all()
    return np.isnan(found) & np.isfinite(depth_m)


def hits(top: int, bottom: int, left: int, right: int, apart: tuple[int, int] = (12, 4)) -> np.ndarray:
    """(N, 2) float32 pixels of a LiDAR's points on a part of the image."""
    v, u = np.mgrid[top : bottom : apart[0], left : right : apart[1]]
    return np.float32([u.ravel(), v.ravel()]).T


@pytest.mark.parametrize("scale", [1, 2])
def test_a_slope_to_the_sky_becomes_unknown_up_to_the_outline_in_the_picture(scale):
    depth_m, rgb = (part[::scale, ::scale] for part in scene())
    expected = np.zeros((480, 640), bool)
    expected[:GROUND, OUTLINE : OUTLINE + BLURRED] = True
    found = forgotten(np.ascontiguousarray(depth_m), rgb)
    np.testing.assert_array_equal(found, expected[::scale, ::scale])


def test_what_is_seen_through_leaves_becomes_unknown_and_the_leaves_stay():
    depth_m, rgb = scene()
    leaves = np.random.default_rng(1).random((GROUND, 40)) < 0.6
    rgb[:GROUND, 160:OUTLINE][~leaves] = SKY
    np.testing.assert_array_equal(forgotten(depth_m, rgb)[:GROUND, 160:OUTLINE], ~leaves)


def test_a_pole_before_the_sky_stays():
    depth_m, rgb = scene()
    depth_m[:GROUND, 400:415] = 8.0  # blurred, so wider than it is
    rgb[:GROUND, 406:409] = 150, 150, 145
    found = forgotten(depth_m, rgb)[:GROUND, 400:415]
    assert not found[:, 6:9].any()
    assert found[:, :6].all()
    assert found[:, 9:].all()


def test_a_wall_that_looks_like_the_sky_stays_where_anchors_hit_it():
    depth_m, rgb = scene()
    rgb[:GROUND, :OUTLINE] = SKY
    assert forgotten(depth_m, rgb)[100:200, 190:OUTLINE].all()
    found = forgotten(depth_m, rgb, hits(150, 200, 0, OUTLINE))
    assert not found[80:270, 120:OUTLINE].any()
    # A few beside many on the tree are its outline, missed by a little.
    depth_m, rgb = scene()
    anchored = np.concatenate([hits(150, 200, 100, OUTLINE), hits(150, 200, 202, 206)])
    assert forgotten(depth_m, rgb, anchored)[:GROUND, OUTLINE : OUTLINE + BLURRED].all()


@pytest.mark.parametrize(("off", "stays"), [(15, False), (-40, True)])
def test_a_cloud_is_the_sky_and_a_grey_wall_is_not(off, stays):
    depth_m, rgb = scene()
    outline = np.s_[:GROUND, OUTLINE : OUTLINE + BLURRED]
    rgb[outline] = np.uint8(rgb[outline].astype(int) + off)
    assert forgotten(depth_m, rgb)[outline].all() != stays
    assert forgotten(depth_m, rgb)[outline].any() != stays


def test_a_white_house_beside_a_tree_stays_where_a_fifth_of_the_anchors_around_hit_it():
    """Its lower part; the tree is hit all over."""
    depth_m, rgb = scene()
    rgb[64:160, 184:OUTLINE] = SKY
    tree = hits(64, 160, 160, 184)
    assert forgotten(depth_m, rgb, tree)[64:160, 184:OUTLINE].all()
    assert not forgotten(depth_m, rgb, np.concatenate([tree, hits(124, 160, 184, OUTLINE)]))[64:160, 184:OUTLINE].any()


def test_a_pole_like_the_sky_stays_where_anchors_hit_it():
    """Beside a tree, on which there are many more; and one in four of those at the pole hits a branch."""
    depth_m, rgb = scene()
    depth_m[:GROUND, 240:252] = 12.0
    rgb[:GROUND, 252:256] = TREE
    tree, pole, branch = hits(0, 360, 160, OUTLINE, (6, 2)), hits(100, 200, 240, 252), hits(100, 200, 252, 256)
    assert not forgotten(depth_m, rgb, np.concatenate([tree, pole, branch]))[100:200, 240:252].any()
    assert forgotten(depth_m, rgb, tree)[:GROUND, 240:252].all()


def test_what_is_near_stays():
    """A gantry that looks like the sky, above what any sensor sees."""
    depth_m, rgb = scene()
    rgb[100:140] = SKY
    depth_m[100:140, :OUTLINE] = 7.9
    assert not forgotten(depth_m, rgb)[100:140, :OUTLINE].any()
    depth_m[100:140, :OUTLINE] = 8.1
    assert forgotten(depth_m, rgb)[100:140, 190:OUTLINE].all()


def test_what_is_as_bright_on_the_ground_stays():
    depth_m, rgb = scene()
    rgb[GROUND + 12 : GROUND + 44, 300:500] = SKY
    assert not forgotten(depth_m, rgb)[GROUND + 8 :].any()


@pytest.mark.parametrize("what", ["all is known", "uneven", "night"])
def test_only_what_is_plain_and_seen_tells_the_colour_of_the_sky(what):
    depth_m, rgb = scene()
    if what == "all is known":
        depth_m[np.isnan(depth_m)] = 60.0
    elif what == "uneven":  # far trees
        rgb[:, OUTLINE:] = np.random.default_rng(2).integers(150, 220, rgb[:, OUTLINE:].shape)
    else:
        rgb[:, OUTLINE:] = 20
    assert not forgotten(depth_m, rgb).any()


def test_at_dusk_the_sky_has_a_colour_still():
    depth_m, rgb = scene()
    rgb[:GROUND, OUTLINE:] = 60, 70, 110
    assert forgotten(depth_m, rgb)[:GROUND, OUTLINE : OUTLINE + BLURRED].all()


def test_images_of_any_size():
    for shape in ((375, 1242), (31, 47), (2, 300), (1, 1)):
        depth_m, rgb = np.full(shape, 9.0, np.float32), np.full((*shape, 3), 200, np.uint8)
        depth_m[:, shape[1] // 2 :] = np.nan
        forget_alike(depth_m, rgb, np.float32([[-0.4, -0.4], [shape[1] - 0.6, shape[0] - 0.6]]))
        if min(shape) > 30:
            assert np.isnan(depth_m[:, shape[1] * 45 // 100 :]).all()
