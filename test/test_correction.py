"""The correction from frame to frame: made of the anchors, held and moved without any, and not thrown over by one scan.

The world is a picture on a wall 8 m away with a box before it at 4 m; the network sees both at 8 m.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from test_picture_motion import CAMERA, SECOND, seen

from marigold_ros.anchors import Anchors
from marigold_ros.correction import Corrector
from marigold_ros.field import factor_of
from marigold_ros.metric import FittedDepth, MetricFit
from marigold_ros.motion import Motion
from marigold_ros.picture_motion import PictureTrack
from marigold_ros.robust_fit import Belief, Evidence
from marigold_ros.tracker import HOLD, OK, RELATIVE, Metres

EVIDENCE = Evidence(1.0, 1.0, 0.5, 1.0, 1.0, Belief(1.0, 0.0, (1.0, 0.0, 0.0)), 100.0, 0.9, 0.05)
FIT = MetricFit("depth", 10.0, 0.0, 100, 100, 0.01, (1e-4, 0.0, 1e-4), EVIDENCE)
FRESH = Metres(OK, FIT, True, 0.01, 0.0, None, 0)
HELD = replace(FRESH, state=HOLD, fresh=False, age_s=0.1)
FITTED_M = np.full((240, 320), 8.0, np.float32)
FITTED = FittedDepth(FIT, FITTED_M / 10, 100.0)
TENTH = SECOND // 10


def truth(right=0):
    """(240, 320) metres, the camera looking so many pixels farther right."""
    depth_m = np.full((240, 500), 8.0, np.float32)
    depth_m[60:180, 120:220] = 4.0
    return depth_m[:, right : right + 320]


def anchors(depth_m):
    v, u = (axis[3::6, 3::6].ravel() for axis in np.indices(depth_m.shape))
    ones = np.ones(len(u), np.float32)
    return Anchors(np.stack([u, v], axis=1).astype(np.float32), depth_m[v, u], ones, len(u))


class Run:
    """Frames at 10 Hz."""

    def __init__(self):
        self.corrector, self.track, self.stamp_ns = Corrector(), PictureTrack(), SECOND

    def __call__(self, metres=FRESH, found=None, right=0, seed=0, motion=None, scan=None, fitted_m=FITTED_M):
        self.stamp_ns += TENTH
        self.track.see(self.stamp_ns, seen(right, seed=seed), CAMERA)
        shift = partial(self.track.shift_px, until_ns=self.stamp_ns)
        until_now = Motion(self.stamp_ns, CAMERA, lambda then_ns: motion, shift_since=shift)
        return self.corrector(FittedDepth.of_metres(fitted_m), metres, found, 3.0, until_now, scan)


def error(correction, truth_m, part=np.s_[:, :]):
    """Mean relative error."""
    depth_m = factor_of(correction.field, FITTED_M) * FITTED_M
    return float(np.abs(depth_m / truth_m - 1)[part].mean())


def test_without_anchors_those_from_before_move_with_the_picture():
    run = Run()
    assert error(run(found=anchors(truth())), truth()) < 0.05
    for number, right in enumerate((20, 40, 60), start=1):
        held = run(HELD, right=right)
        assert not held.fresh
        np.testing.assert_allclose(held.evidence.left, 1 / (1 + (0.1 * number) ** 2), rtol=1e-5)
        # What came into view at the right has no anchors.
        assert error(held, truth(right), np.s_[:, :250]) < 0.05
        assert error(held, truth(0), np.s_[:, :250]) > 0.0025 * right


def test_a_known_motion_of_the_camera_serves_before_that_of_the_picture():
    """The camera moves 1 m towards the box: it is at 3 m, and a third wider, whatever the picture says."""
    run, ahead = Run(), np.eye(4)
    ahead[2, 3] = -1.0
    run(found=anchors(truth()))
    held = run(HELD, right=20, motion=ahead)
    depth_m = factor_of(held.field, FITTED_M) * FITTED_M
    # From 107 to 240 instead of from 120 to 220.
    np.testing.assert_allclose(depth_m[120, [125, 160, 215]], 3.0, rtol=0.1)
    np.testing.assert_allclose(depth_m[120, [60, 280]], 7.0, rtol=0.08)
    assert held.evidence.left.min() > 0.99


def test_with_another_view_nothing_is_held():
    run = Run()
    run(found=anchors(truth()))
    assert run(HELD, seed=1) is None
    assert run(HELD, seed=1) is None
    assert run(found=anchors(truth())).fresh


def some_of(found, chosen):
    return Anchors(found.pixels[chosen], found.depth_m[chosen], found.weight[chosen], np.count_nonzero(chosen))


@pytest.mark.parametrize("count", [1, 3, 10])
def test_a_few_anchors_do_not_replace_many(count):
    run = Run()
    run(found=anchors(truth()))
    whole = anchors(truth())
    few = np.zeros(len(whole), bool)
    few[np.random.default_rng(0).permutation(len(whole))[:count]] = True
    for _ in range(3):
        found = run(found=some_of(whole, few))
        assert (found.fresh, found.problem) == (True, None)
        assert error(found, truth()) < 0.05
    assert np.count_nonzero(found.evidence.left == 1) == count


def test_where_there_are_new_anchors_the_old_ones_do_not_count():
    """The box is gone, and the left half of the new scan says so; of the right half nobody knows."""
    run, wall_m = Run(), np.full_like(FITTED_M, 8.0)
    for _ in range(2):
        run(found=anchors(truth()))
    left = anchors(wall_m).pixels[:, 0] < 170
    found = run(found=some_of(anchors(wall_m), left))
    depth_m = factor_of(found.field, FITTED_M) * FITTED_M
    np.testing.assert_allclose(depth_m[120, 100:150], 8.0, rtol=0.1)
    np.testing.assert_allclose(depth_m[120, 190:210], 4.0, rtol=0.15)


def test_what_comes_before_an_old_anchor_is_not_pushed_away():
    """Somebody steps in, 2 m before the camera, and the network sees them; the last scan saw the wall there."""
    run, stepped_in_m = Run(), FITTED_M.copy()
    run(found=anchors(truth()))
    stepped_in_m[40:200, 230:290] = 2.0
    held = run(HELD, fitted_m=stepped_in_m)
    depth_m = factor_of(held.field, stepped_in_m) * stepped_in_m
    np.testing.assert_allclose(depth_m[120, 240:280], 2.0, rtol=0.02)
    np.testing.assert_allclose(depth_m[120, 140:200], 4.0, rtol=0.1)


def test_a_few_anchors_are_no_scan_that_is_wrong_as_a_whole():
    run, whole = Run(), anchors(truth())
    chosen = np.arange(len(whole)) % 211 == 0
    for _ in range(2):
        run(found=some_of(whole, chosen))
    other = replace(some_of(whole, chosen), depth_m=some_of(whole, chosen).depth_m * np.float32(1.8))
    assert len(other) < 20
    assert run(found=other).fresh


def test_anchors_are_explained_by_what_remembered_ones_say_of_the_network():
    """The box' anchors alone are half of what the network says; that is known. Elsewhere they are news."""
    run = Run()
    run(found=anchors(truth()))
    box = anchors(truth()).depth_m == 4.0
    at_box, news = some_of(anchors(truth()), box), some_of(anchors(truth()), ~box)
    news = replace(news, depth_m=news.depth_m * np.float32(0.5))
    motion = Motion(run.stamp_ns, CAMERA)
    answers = [run.corrector.explains(FITTED, some, 3.0, motion) for some in (at_box, news)]
    assert answers == [True, False]
    assert not Corrector().explains(FITTED, at_box, 3.0, motion)  # without a memory nothing is


def test_old_anchors_are_forgotten_in_the_end():
    run = Run()
    run(found=anchors(truth()))
    held = [run(HELD) for _ in range(60)]
    assert held[20] is not None
    assert held[-1] is None


def test_a_scan_that_is_wrong_as_a_whole_is_held_off_once_and_then_believed():
    run, wrong_m = Run(), truth().copy()
    wrong_m[:, :192] *= 1.8
    first, second = run(found=anchors(truth())), run(found=anchors(truth()))
    assert first.fresh
    assert second.fresh
    held = run(found=anchors(wrong_m))
    assert not held.fresh
    assert "contradict the correction" in held.problem
    assert error(held, truth()) < 0.05
    again = run(found=anchors(truth()))
    assert (again.fresh, again.problem) == (True, None)
    run(found=anchors(truth()))
    assert not run(found=anchors(wrong_m)).fresh
    believed = run(found=anchors(wrong_m))
    assert believed.fresh
    assert error(believed, wrong_m) < 0.05


def test_one_scan_in_several_images_says_nothing_twice():
    run, wrong_m, fresh = Run(), truth().copy(), []
    wrong_m[:, :192] *= 1.8
    for scan in range(6):
        seen_m = wrong_m if scan == 3 else truth()
        fresh.append([run(found=anchors(seen_m), scan=scan).fresh for _ in range(3)])
    assert fresh == [[True] * 3] * 3 + [[False] * 3] + [[True] * 3] * 2
    believed = [run(found=anchors(wrong_m), scan=scan).fresh for scan in (6, 6, 7, 7)]
    assert believed == [False, False, True, True]


def test_a_scan_that_is_believed_for_want_of_others_is_not_held_off_in_its_next_image():
    run = Run()
    for scan in range(2):
        run(found=anchors(truth()), scan=scan)
    wrong_m = truth().copy()
    wrong_m[:, :192] *= 1.8
    found = [run(found=anchors(wrong_m), seed=1, scan=2) for _ in range(3)]  # another view: nothing can be held
    assert [(one.fresh, one.problem) for one in found] == [(True, None)] * 3


def test_anchors_that_say_nothing_leave_the_last_ones():
    run = Run()
    run(found=anchors(truth()))
    nonsense = anchors(np.full_like(FITTED_M, 80.0))
    held = run(found=nonsense)
    assert not held.fresh
    assert error(held, truth()) < 0.05
    assert error(run(HELD), truth()) < 0.05


def test_where_the_metres_jumped_the_new_scan_counts_at_once():
    run = Run()
    for _ in range(2):
        run(found=anchors(truth()))
    assert run(replace(FRESH, jumps=1), anchors(truth() * np.float32(1.8))).fresh


def test_nothing_is_left_without_metres():
    run = Run()
    run(found=anchors(truth()))
    assert run(replace(HELD, state=RELATIVE)) is None
    assert run(HELD) is None


def walking_nearer(step):
    """(240, 320) metres of fit: somebody before the wall comes nearer by 7 cm a frame."""
    fitted_m = FITTED_M.copy()
    fitted_m[40:200, 230:290] = 4.0 - 0.07 * step
    return fitted_m


def test_what_comes_nearer_slowly_is_not_pushed_away_either():
    """The change counts since the anchors were measured, not from frame to frame."""
    run = Run()
    run(found=anchors(np.where(walking_nearer(0) < 8, walking_nearer(0), truth())), fitted_m=walking_nearer(0))
    for step in range(1, 25):
        held = run(HELD, fitted_m=walking_nearer(step))
    depth_m = factor_of(held.field, walking_nearer(24)) * walking_nearer(24)
    np.testing.assert_allclose(depth_m[120, 245:275], 4.0 - 0.07 * 24, rtol=0.1)


def test_what_went_away_leaves_no_ghost():
    """Of what stood 2 m before the wall nobody measured that it is gone; the network sees it."""
    run, before_m = Run(), FITTED_M.copy()
    before_m[40:200, 230:290] = 2.0
    run(found=anchors(np.where(before_m < 8, before_m, truth())), fitted_m=before_m)
    held = run(HELD)
    np.testing.assert_allclose((factor_of(held.field, FITTED_M) * FITTED_M)[120, 245:275], 8.0, rtol=0.2)


def test_old_anchors_serve_beside_any_number_of_new_ones():
    """A dense sensor sees the left half; what was measured of the box's right side before goes on."""
    run = Run()
    run(found=anchors(truth()))
    v, u = (axis[::4, ::2].ravel() for axis in np.indices(truth().shape))
    left = u < 170
    many = Anchors(
        np.stack([u, v], 1)[left].astype(np.float32), truth()[v, u][left], np.ones(left.sum(), np.float32), 0
    )
    assert len(many) > 4096
    found = run(found=many)
    assert len(found.evidence.residual) == 4096
    assert error(found, truth(), np.s_[70:170, 185:215]) < 0.05
