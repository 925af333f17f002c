"""Sparse depth images in files."""

import cv2
import numpy as np
import pytest

from marigold_ros.config import Unusable
from marigold_ros.sparse_depth import anchors_of, read_sparse_depth


def test_a_png_of_kitti_or_of_millimetres(tmp_path):
    image = np.zeros((3, 4), np.uint16)
    image[1, 2] = 2560
    cv2.imwrite(str(tmp_path / "a.png"), image)
    for per_metre, expected in ((256.0, 10.0), (1000.0, 2.56)):
        depth_m = read_sparse_depth(tmp_path / "a.png", per_metre)
        assert depth_m.dtype == np.float32
        assert depth_m[1, 2] == pytest.approx(expected)
        assert np.isnan(depth_m).sum() == 11


def test_unknown_is_nan_zero_or_infinite_in_an_array(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.5, 0.0], [np.nan, np.inf]]))
    np.testing.assert_array_equal(read_sparse_depth(tmp_path / "a.npy"), np.float32([[1.5, np.nan], [np.nan, np.nan]]))


def test_anchors_lie_at_their_pixels():
    depth_m = np.full((3, 4), np.nan, np.float32)
    depth_m[2, 1], depth_m[0, 3] = 5, 7
    anchors = anchors_of(depth_m)
    np.testing.assert_array_equal(anchors.pixels, [[3, 0], [1, 2]])
    np.testing.assert_array_equal(anchors.depth_m, [7, 5])
    np.testing.assert_allclose(anchors.noise_m, [0.07, 0.05])
    assert (len(anchors), anchors.seen) == (2, 2)


def test_of_a_dense_image_a_part_is_taken_and_always_the_same():
    depth_m = np.random.default_rng(0).uniform(1, 9, (120, 160)).astype(np.float32)
    anchors, again = anchors_of(depth_m), anchors_of(depth_m)
    assert (len(anchors), anchors.seen) == (8192, 120 * 160)
    np.testing.assert_array_equal(anchors.pixels, again.pixels)
    column, row = anchors.pixels.astype(int).T
    np.testing.assert_array_equal(anchors.depth_m, depth_m[row, column])
    assert len(np.unique(row * 160 + column)) == 8192


def test_what_is_no_array_is_refused(tmp_path):
    (tmp_path / "a.npy").write_text("not an array")
    np.savez(tmp_path / "b.npz", np.ones((2, 2)))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    for name, words in (("a", "cannot be read"), ("b", "several arrays"), ("c", "cannot be read")):
        with pytest.raises(Unusable, match=rf"^anchors .*{name}\.npy: .*{words}"):
            read_sparse_depth(tmp_path / f"{name}.npy")
