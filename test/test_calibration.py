"""The watch over extrinsic and time offset, before scenes of boxes whose picture and scan are worked out exactly."""

import itertools
from dataclasses import dataclass, field, replace
from functools import partial

import cv2
import numpy as np
import pytest

from marigold_ros import calibration
from marigold_ros.anchors import Anchors, find_anchors
from marigold_ros.calibration import Calibration, CalibrationMonitor
from marigold_ros.calibration_evidence import OFFSETS_DEG, Evidence, frame_evidence
from marigold_ros.calibration_fit import Found, Group, explained
from marigold_ros.config import RangeConfig
from marigold_ros.geometry import Camera, pixel_rays, project
from marigold_ros.picture_motion import likeness, thumbnail, working_picture

CAMERA = Camera(320, 240, 197.0, 197.0, 159.5, 119.5)
RAYS = pixel_rays(CAMERA).reshape(-1, 3)
LIDAR_M = np.array([0.02, -0.12, 0.03])
LIMITS = RangeConfig()
SECOND = 1_000_000_000


@dataclass
class Boxes:
    """Boards that face the camera before a wall 12 m away, drawn by `seed`."""

    seed: int
    boards: list[tuple[float, np.ndarray, float]] = field(default_factory=list)

    def __post_init__(self):
        random = np.random.default_rng(self.seed)
        for depth_m in sorted(random.uniform(2.0, 6.0, 14)):
            middle = random.uniform((-0.9, -0.6), (0.9, 0.6)) * depth_m
            half = random.uniform(0.08, 0.25, 2) * depth_m
            self.boards.append((depth_m, np.stack([middle - half, middle + half]), random.uniform(30, 220)))

    def hit(self, origin_m: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Depth (N,) where rays (N, 3) from `origin_m` end."""
        depth = np.full(len(directions), 12.0)
        slopes = directions[:, :2] / directions[:, 2:]
        for depth_m, corners, _ in self.boards[::-1]:  # the nearest last
            low, high = (corners - origin_m[:2]) / (depth_m - origin_m[2])
            inside = (
                (slopes[:, 0] > low[0]) & (slopes[:, 0] < high[0]) & (slopes[:, 1] > low[1]) & (slopes[:, 1] < high[1])
            )
            depth[inside] = depth_m
        return depth

    def picture(self, heading: float = 0.0, noise: float = 1.0) -> np.ndarray:
        """(240, 320, 3) uint8 by a camera turned to the right by `heading` radians."""
        grey = np.full((240, 320), 128.0, np.float32)
        for depth_m, ((left, top), (right, bottom)), brightness in self.boards[::-1]:
            corners = np.array(
                [[left, top, depth_m], [right, top, depth_m], [right, bottom, depth_m], [left, bottom, depth_m]]
            )
            pixels, _ = project(corners @ turned(0, heading, 0), CAMERA)
            # In 1/16 pixels, the brightness of a pixel's centre counts.
            cv2.fillConvexPoly(grey, np.rint(pixels * 16).astype(np.int32), float(brightness), cv2.LINE_8, 4)
        cv2.randn(speckle := np.empty_like(grey), 0.0, noise)
        return cv2.cvtColor(cv2.add(grey, speckle, dtype=cv2.CV_8U), cv2.COLOR_GRAY2RGB)

    def scan(self, heading: float = 0.0) -> np.ndarray:
        """(N, 3) points of a LiDAR of 40 beams at LIDAR_M, in the turned camera's directions."""
        across, down = np.meshgrid(np.radians(np.arange(-42, 42, 0.4)), np.radians(np.arange(-30, 30, 1.5)))
        directions = np.stack([np.sin(across), np.tan(down), np.cos(across)], axis=-1).reshape(-1, 3)
        directions = directions @ turned(0, heading, 0).T
        depth_m = self.hit(LIDAR_M, directions)
        points = directions / directions[:, 2:] * (depth_m - LIDAR_M[2])[:, None]
        return (points @ turned(0, heading, 0)).astype(np.float32)


def turned(*degrees_or_radians: float, degrees: bool = False) -> np.ndarray:
    angles = np.array(degrees_or_radians, np.float64)
    return cv2.Rodrigues(np.radians(angles) if degrees else angles)[0]


def extrinsic(turn_deg=(0.0, 0.0, 0.0)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turned(*turn_deg, degrees=True), LIDAR_M
    return matrix


def anchors_of(points: np.ndarray, turn_deg=(0.0, 0.0, 0.0)):
    return find_anchors(points, extrinsic(turn_deg), CAMERA, LIMITS)


def estimated(turn_deg, seeds=range(6)) -> Found:
    """What some scenes together say."""
    views = []
    for seed in seeds:
        scene = Boxes(seed)
        grey = working_picture(scene.picture(), CAMERA)
        evidence = frame_evidence(grey, CAMERA, anchors_of(scene.scan(), turn_deg), LIDAR_M)
        views.append({(0, 0): Group(evidence.sums, np.zeros(2))})
    return explained(views, 0.5 * np.array(calibration.MATTERS))


@pytest.mark.parametrize(
    "turn_deg",
    [
        (0, 0, 0),
        (1, 0, 0),
        (-1, 0, 0),
        (0, 1, 0),
        (0, -1, 0),
        (0, 0, 1),
        (0, 0, -1),
        (0.5, -0.7, 0),
        (0, 3, 0),
        (-2, 0, 1),
    ],
)
def test_a_turn_shows_with_its_sign_and_its_size(turn_deg):
    found = estimated(turn_deg)
    np.testing.assert_allclose(found.estimate[:3], turn_deg, atol=0.2)
    assert (np.abs(found.estimate[:3] - turn_deg) < 4 * np.hypot(found.sigma[:3], 0.05)).all()
    assert found.surer > 4 or max(map(abs, turn_deg)) == 0


def test_textures_and_shadows_beside_edges_are_no_turn():
    """Beside the same side of each thing, almost as dark as these."""
    views = []
    for seed in range(6):
        scene = Boxes(seed)
        picture = scene.picture()
        shadow = np.roll(picture, 9, axis=1)
        picture = np.where((picture == 128) & (abs(shadow.astype(int) - 128) > 20), 90, picture).astype(np.uint8)
        grey = working_picture(picture, CAMERA)
        evidence = frame_evidence(grey, CAMERA, anchors_of(scene.scan()), LIDAR_M)
        views.append({(0, 0): Group(evidence.sums, np.zeros(2))})
    found = explained(views, 0.5 * np.array(calibration.MATTERS))
    assert abs(found.estimate[1]) < 0.15


def test_an_end_of_a_wall_between_two_beams_is_known_no_better_than_between_which():
    """Driving along it, every view has it at the same place between them, and their middle is wrong by 0.3 degrees."""
    top_m, wall_m, beams_deg = -0.5, 5.0, np.arange(-15.0, 16.0, 2.0)
    across, down = np.meshgrid(np.radians(np.arange(-10, 10, 0.4)), np.radians(beams_deg))
    directions = np.stack([np.tan(across), np.tan(down) / np.cos(across), np.ones_like(across)], axis=-1).reshape(-1, 3)
    depth_m = np.where(directions[:, 1] * wall_m > top_m, wall_m, 30.0)
    anchors = find_anchors((directions * depth_m[:, None]).astype(np.float32), np.eye(4), CAMERA, LIMITS)
    grey = np.full((240, 320), 200.0, np.float32)
    grey[int(CAMERA.cy + CAMERA.fy * top_m / wall_m) + 1 :] = 80.0
    evidence = frame_evidence(
        working_picture(np.repeat(grey[..., None], 3, 2).astype(np.uint8), CAMERA), CAMERA, anchors, np.zeros(3)
    )
    jumps = evidence.changes[evidence.rightwards :]
    assert len(jumps) >= 20
    there = np.abs(OFFSETS_DEG) <= 0.5
    assert (jumps[:, there] > 0.3).all()
    np.testing.assert_allclose(jumps[:, there].mean(), 0.5, atol=0.1)  # all of the change, spread over two degrees


def test_what_the_lidar_sees_over_an_edge_is_no_shift():
    """Two metres of background behind each board's upper edge are hidden from the camera below the LiDAR."""
    assert np.abs(estimated((0, 0, 0), range(20, 26)).estimate[:3]).max() < 0.2


def test_a_floor_and_a_wall_seen_at_a_slant_have_no_edges():
    directions = RAYS[::7]
    directions = directions[directions[:, 1] > 0.05]
    floor = (directions / directions[:, 1:2] * 0.8).astype(np.float32)
    anchors = find_anchors(floor, np.eye(4), CAMERA, LIMITS)
    grey = np.random.default_rng(0).uniform(0, 255, (240, 320)).astype(np.float32)
    assert len(frame_evidence(grey, CAMERA, anchors, np.zeros(3)).edges) == 0


def corner_anchors() -> Anchors:
    """Of a wall 5 m away and the floor 1 m below, by beams 2 degrees apart."""
    across, down = np.meshgrid(np.radians(np.arange(-30, 30, 0.4)), np.radians(np.arange(-20.3, 31.0, 2.0)))
    directions = np.stack([np.tan(across), np.tan(down) / np.cos(across), np.ones_like(across)], axis=-1).reshape(-1, 3)
    depth_m = np.minimum(5.0, 1.0 / np.maximum(directions[:, 1], 1e-6))
    return find_anchors((directions * depth_m[:, None]).astype(np.float32), np.eye(4), CAMERA, LIMITS)


def test_a_floor_and_a_wall_meet_in_an_edge_wherever_between_two_beams():
    evidence = frame_evidence(np.zeros((240, 320), np.float32), CAMERA, corner_anchors(), np.zeros(3))
    assert len(evidence.edges) > 50
    assert evidence.rightwards == 0
    np.testing.assert_allclose(evidence.edges[:, 1], CAMERA.cy + CAMERA.fy / 5.0, atol=0.01)


def test_what_changes_by_less_than_noise_says_nothing():
    grey = np.random.default_rng(0).normal(120.0, 0.2, (240, 320)).astype(np.float32)
    evidence = frame_evidence(grey, CAMERA, corner_anchors(), np.zeros(3))
    assert evidence.clear.max() < 0.05


def test_what_lies_beside_or_behind_a_lidar_before_the_camera_is_no_evidence():
    """Its own mast, seen by both."""
    scene, origin_m = Boxes(3), np.array([0.0, -0.1, 1.0])
    before, grey = anchors_of(scene.scan()), working_picture(scene.picture(), CAMERA)
    u, v = (axis.ravel() for axis in np.meshgrid(np.arange(100.0, 220.0, 2.0), np.arange(60.0, 180.0, 5.0)))
    mast_m = np.where(u < 160, 0.5, 0.9)
    pixels = np.concatenate([before.pixels, np.stack([u, v], axis=1).astype(np.float32)])
    depth_m = np.concatenate([before.depth_m, mast_m.astype(np.float32)])
    both = Anchors(pixels, depth_m, np.ones(len(depth_m), np.float32), len(depth_m))
    with_mast, without = (frame_evidence(grey, CAMERA, anchors, origin_m) for anchors in (both, before))
    np.testing.assert_allclose(with_mast.edges, without.edges)


def test_a_small_turn_of_the_anchors_moves_each_edge_as_it_says():
    scene = Boxes(3)
    evidence = frame_evidence(working_picture(scene.picture(), CAMERA), CAMERA, anchors_of(scene.scan()), LIDAR_M)
    rays = np.column_stack([(evidence.edges - (CAMERA.cx, CAMERA.cy)) / CAMERA.fx, np.ones(len(evidence.edges))])
    assert np.abs(rays[:, :2]).max(axis=0).min() > 0.5  # to the corners of the picture
    down = (np.arange(len(rays)) >= evidence.rightwards).astype(int)
    for axis in range(3):
        after = rays @ turned(*(0.01 * np.eye(3)[axis]), degrees=True).T
        moved_deg = np.degrees(after[:, :2] / after[:, 2:] - rays[:, :2]) / 0.01
        np.testing.assert_allclose(evidence.turns[:, axis], -moved_deg[np.arange(len(rays)), down], atol=1e-3)


def test_no_anchors_are_no_evidence():
    empty = find_anchors(np.zeros((0, 3), np.float32), np.eye(4), CAMERA, LIMITS)
    found = frame_evidence(np.zeros((240, 320), np.float32), CAMERA, empty, np.zeros(3))
    assert not found.sums.changes.any()
    assert found.edges.shape == (0, 2)


def test_views_without_an_edge_say_nothing():
    empty = find_anchors(np.zeros((0, 3), np.float32), np.eye(4), CAMERA, LIMITS)
    views = [
        {(0, 0): Group(frame_evidence(np.zeros((240, 320), np.float32), CAMERA, empty, np.zeros(3)).sums, np.ones(2))}
    ]
    found = explained(views * 8, np.ones(4))
    assert not found.estimate.any()
    assert found.sigma.min() > 100
    assert found.surer == found.motion_deg == 0
    assert not found.weight.any()


def test_what_one_part_of_the_picture_says_alone_is_not_sure():
    """All views have the same there: by them alone it would be."""
    one = clear_edges(0.0)
    changes = one.changes.copy()
    changes[20] = 40.0 * np.exp(-0.5 * ((OFFSETS_DEG - 0.7) / 0.3) ** 2)
    views = [{(0, 0): Group(replace(one, changes=changes).sums, np.zeros(2))}] * 20
    found = explained(views, 0.5 * np.array(calibration.MATTERS))
    assert found.estimate[0] > 0.2
    assert found.sigma[0] > 0.2
    assert explained([{(0, 0): Group(one.sums, np.zeros(2))}] * 20, np.ones(4)).sigma[0] < 0.15


def test_what_hardly_an_edge_says_is_not_known():
    """A degree of yaw, and so little of it that nothing scatters."""
    few = Group(clear_edges(1.0).sums.scaled(0.01), np.zeros(2))
    found = explained([{(0, 0): few}] * 10, np.ones(4))
    assert abs(found.estimate[1]) < 0.6
    assert found.sigma[1] > 1.0


def test_what_a_single_view_says_is_not_sure_however_clear_it_is():
    """Nine others say that there is no yaw."""
    views = [{(0, 0): Group(clear_edges(0.0).sums, np.zeros(2))}] * 9
    found = explained([*views, {(0, 0): Group(clear_edges(1.0).sums.scaled(30.0), np.zeros(2))}], np.ones(4))
    assert found.estimate[1] > 0.9
    assert found.sigma[1] > 100


@pytest.mark.parametrize("count", [10, 40])
def test_sigma_is_the_standard_error_of_the_views(count):
    views = [{(0, 0): Group(clear_edges(deg).sums, np.zeros(2))} for deg in scattered(0.5, 0.18, count)]
    found = explained(views, np.ones(4))
    assert found.sigma[1] == pytest.approx(0.18 / np.sqrt(count - 1), rel=0.3)


def delayed(delay_s: float, yaw_deg: float, motions_deg) -> Found:
    """What views say before which the picture moves by these, (2,) degrees per second rightwards and downwards.

    Anchors of a scan that is older lie where things were: brightness lies farther the way that the picture moves.
    """
    views, down = [], (np.arange(30) >= 15).astype(int)
    for motion in np.array(motions_deg, float):
        still = clear_edges(0.0)
        offset_deg = still.turns[:, 1] * yaw_deg + motion[down] * delay_s
        changes = np.exp(-0.5 * ((OFFSETS_DEG - offset_deg[:, None]) / 0.3) ** 2).astype(np.float32)
        views.append({tuple(np.sign(motion).astype(int)): Group(replace(still, changes=changes).sums, motion)})
    return explained(views, 0.5 * np.array(calibration.MATTERS))


@pytest.mark.parametrize("to", [(20, 0), (0, 20), (-15, 15)])
def test_a_delay_shows_with_its_sign_and_its_size_whichever_way_the_picture_moves(to):
    found = delayed(0.03, 0.0, [np.multiply(to, side) for side in (1, -1) * 10])
    assert found.estimate[3] == pytest.approx(0.03, rel=0.15)
    assert np.abs(found.estimate[:3]).max() < 0.05
    assert found.motion_deg == pytest.approx(np.linalg.norm(to), rel=0.3)


def test_where_the_picture_has_one_motion_alone_neither_a_yaw_nor_a_delay_is_known():
    """A robot that goes round in circles: a degree of yaw may as well be 50 ms."""
    random = np.random.default_rng(0)
    motions_deg = [(random.uniform(19.6, 20.4), 0.0) for _ in range(20)]
    for yaw_deg, delay_s in ((1.0, 0.0), (0.0, 0.05)):
        found = delayed(delay_s, yaw_deg, motions_deg)
        apart = np.abs(found.estimate - (0.0, yaw_deg, 0.0, delay_s))
        assert (apart < 1.5 * found.sigma).all()
        assert (np.abs(found.estimate)[[1, 3]] < 1.5 * found.sigma[[1, 3]]).all()
        assert found.motion_deg < 1.0


@pytest.mark.parametrize("narrower", [0.5, 1.33, 2.0])
def test_pixels_need_not_be_square(narrower):
    """Of a picture that was squeezed."""
    views, camera = [], replace(CAMERA, height=round(240 * narrower), fy=CAMERA.fy * narrower, cy=CAMERA.cy * narrower)
    for seed in range(6):
        scene = Boxes(seed)
        picture = cv2.resize(scene.picture(), (camera.width, camera.height), interpolation=cv2.INTER_AREA)
        anchors = find_anchors(scene.scan(), extrinsic((1, 0, 1)), camera, LIMITS)
        evidence = frame_evidence(working_picture(picture, camera), camera, anchors, LIDAR_M)
        views.append({(0, 0): Group(evidence.sums, np.zeros(2))})
    np.testing.assert_allclose(explained(views, np.ones(4)).estimate[:3], (1, 0, 1), atol=0.2)


def test_a_camera_that_shakes_has_as_many_motions_as_can_be_looked_at():
    scene, random = Boxes(5), np.random.default_rng(0)
    anchors, track = anchors_of(scene.scan()), Views([0] * 30, random.normal(0.0, 20.0, 30))
    monitor = CalibrationMonitor(track)
    for i in range(30):
        monitor.update(SECOND + i, scene.picture(), CAMERA, anchors, LIDAR_M)
    assert len(monitor._look.groups) == 4
    assert sum(group.frames for group in monitor._look.groups.values()) == 30


def test_noise_is_no_other_picture():
    blank = partial(np.random.default_rng(0).normal, 0.0, 1.5, (60, 80))
    assert likeness(blank().astype(np.float32), blank().astype(np.float32)) > 0.9
    a, b = (thumbnail(working_picture(Boxes(i).picture(), CAMERA)) for i in (1, 2))
    assert likeness(a, b) < 0.3 < 0.99 < likeness(a, a)


def drive(seconds: float, turn_deg=(0.0, 0.0, 0.0), delay_s: float = 0.0, known_age_s: float = 0.0):
    """The verdicts at 10 Hz over a drive past another scene every second, the camera swaying by 20 degrees a second."""
    monitor, heading = CalibrationMonitor(), lambda t: 0.1 * np.sin(t * 3.5)
    verdicts = []
    for i in range(int(seconds * 10)):
        time_s, scene = i / 10, Boxes(100 + i // 10)
        then_s = time_s - delay_s - known_age_s
        # Where the scan was taken the camera looked elsewhere; the points are in that camera's directions.
        anchors = anchors_of(scene.scan(heading(then_s)), turn_deg)
        picture = scene.picture(heading(time_s))
        verdicts.append(monitor.update(SECOND + int(time_s * 1e9), picture, CAMERA, anchors, LIDAR_M, known_age_s))
    return verdicts


def problems(verdicts) -> set[str]:
    """What was told, without its numbers."""
    return {v.problem.split(" looks")[0] for v in verdicts if v is not None and v.problem}


def test_a_drive_with_nothing_wrong_raises_no_alarm():
    verdicts = drive(20)
    assert problems(verdicts) == set()
    assert verdicts[-1].looks >= 18
    assert max(map(abs, verdicts[-1].significance)) < 2.5


def test_a_degree_of_yaw_is_told_with_its_side():
    last = drive(12, (0, 1, 0))[-1]
    assert last.problem.startswith("the extrinsic looks wrong: anchors lie ")
    assert "px to the right" in last.problem
    assert "° of yaw" in last.problem
    # One degree is 3.4 px.
    assert 3.0 < last.shift_px[0] < 3.9
    assert abs(last.delay_s) < 0.025


def test_a_degree_of_pitch_is_told_with_its_side():
    last = drive(12, (1, 0, 0))[-1]  # nose up: what the LiDAR sees is taken to lie higher
    assert "px too high" in last.problem
    assert -3.9 < last.shift_px[1] < -3.0


def test_a_delay_is_told_apart_from_a_turn():
    last = drive(14, delay_s=0.1)[-1]
    assert last.problem.startswith("the time offset looks wrong: scans are ")
    assert "older than their stamps" in last.problem
    assert 0.08 < last.delay_s < 0.12
    assert abs(last.turn_deg[1]) < 0.2
    assert -0.12 < drive(12, delay_s=-0.1)[-1].delay_s < -0.08


def test_an_age_that_is_known_is_no_delay():
    last = drive(14, known_age_s=0.1)[-1]
    assert last.problem is None
    assert abs(last.delay_s) < 0.025


def test_a_robot_that_stands_still_raises_no_alarm():
    """However wrong what it sees may be, it is one look."""
    monitor, scene = CalibrationMonitor(), Boxes(5)
    anchors = anchors_of(scene.scan(), (0, 1, 0))
    for i in range(150):
        picture = scene.picture(noise=4.0)
        assert monitor.update(SECOND + i * SECOND // 10, picture, CAMERA, anchors, LIDAR_M) is None


def test_time_that_goes_back_and_another_camera_start_anew():
    monitor = CalibrationMonitor()
    for i in range(100):
        scene = Boxes(i // 8)
        verdict = monitor.update(SECOND + i * SECOND // 10, scene.picture(), CAMERA, anchors_of(scene.scan()), LIDAR_M)
    assert verdict is not None
    scene = Boxes(0)
    again = partial(monitor.update, rgb=scene.picture(), anchors=anchors_of(scene.scan()), origin_m=LIDAR_M)
    assert again(stamp_ns=100 * SECOND, camera=CAMERA) is not None
    assert again(stamp_ns=99 * SECOND, camera=CAMERA) is None
    monitor.verdict = verdict
    assert again(stamp_ns=101 * SECOND, camera=CAMERA) is verdict
    assert again(stamp_ns=102 * SECOND, camera=Camera(320, 240, 190.0, 190.0, 159.5, 119.5)) is None


def clear_edges(yaw_deg: float) -> Evidence:
    """An edge to the right and one down in 15 places of the picture, beside which brightness changes by a yaw."""
    x, y = (values.ravel() for values in np.meshgrid((-0.4, -0.2, 0.0, 0.2, 0.4), (-0.2, 0.0, 0.2)))
    turns = np.concatenate([np.stack([x * y, -1 - x * x, y], 1), np.stack([1 + y * y, -x * y, -x], 1)])
    changes = np.exp(-0.5 * ((OFFSETS_DEG - turns[:, 1:2] * yaw_deg) / 0.3) ** 2).astype(np.float32)
    return Evidence(np.zeros((30, 2)), 15, changes, turns, np.r_[:15, 45:60])


class Views:
    """A track that shows one of 200 views in each frame, no two of which are alike, and moves by (deg/s) rightwards."""

    shift_px = staticmethod(lambda since_ns, until_ns: None)

    def __init__(self, views, motions_deg):
        self.grey, self._each = np.zeros((240, 320), np.float32), zip(views, motions_deg, strict=False)

    def see(self, *_):
        view, motion_deg = next(self._each)
        self.thumb = np.zeros((8, 25), np.float32)
        self.thumb.flat[view] = 1e3
        self.motion = np.array([np.radians(motion_deg), 0.0])


@pytest.fixture
def verdict_of(monkeypatch):
    """The first verdict that tells something, else the last one, when each frame has clear edges that say one yaw.

    Each is of the next view, or of the `views` that are given; the picture moves to the right and to the left, or by
    `motions_deg`.
    """

    def watched(
        yaw_deg, delay_s=0.0, motion_deg_s=20.0, views=None, motions_deg=None, camera=CAMERA
    ) -> Calibration | None:
        views = range(len(yaw_deg)) if views is None else views
        to_and_fro = itertools.cycle([motion_deg_s, -motion_deg_s])
        # A view is over when the next one begins.
        track = Views([*views, 199], to_and_fro if motions_deg is None else itertools.chain(motions_deg, [0.0]))
        monitor = CalibrationMonitor(track)

        def evidence(*_):
            return clear_edges(next(each_deg, 0.0) - delay_s * np.degrees(track.motion[0]))

        monkeypatch.setattr(calibration, "frame_evidence", evidence)
        each_deg, nothing = iter(yaw_deg), anchors_of(np.zeros((0, 3), np.float32))
        for i in range(len(yaw_deg) + 1):
            verdict = monitor.update(i * SECOND, None, camera, nothing, LIDAR_M)
            if verdict is not None and verdict.problem:
                return verdict
        return verdict

    return watched


@pytest.fixture
def told_after(verdict_of):
    """After how many such views it is told, None never."""

    def views(*args, **options) -> int | None:
        verdict = verdict_of(*args, **options)
        return verdict.looks if verdict.problem else None

    return views


def scattered(mean_deg: float, by_deg: float, views: int) -> list[float]:
    """Not in time with the motion, which turns back with every view."""
    return [mean_deg + by_deg * (1 if i % 4 < 2 else -1) for i in range(views)]


def test_a_camera_that_shakes_has_its_delay_told(verdict_of):
    """Each look has more motions than it keeps apart; each goes to one like it."""
    motions_deg = np.random.default_rng(0).normal(0.0, 20.0, 15 * 12)
    verdict = verdict_of([0.0] * 180, delay_s=0.04, views=np.repeat(range(15), 12), motions_deg=motions_deg)
    assert verdict.problem.startswith("the time offset looks wrong")
    assert verdict.delay_s == pytest.approx(0.04, rel=0.15)


def test_going_to_and_fro_shows_nothing_new(verdict_of):
    assert verdict_of([0.5] * 40, views=[*range(7), *range(7)[::-1]] * 3) is None
    assert verdict_of([0.5] * 8).looks == 8


def test_what_is_looked_at_for_long_counts_once(verdict_of):
    verdict = verdict_of([0.4] * 200 + [0.0] * 19, views=[19] * 200 + [*range(19)])
    assert verdict.looks == 20
    assert verdict.turn_deg[1] == pytest.approx(0.4 / 20, abs=0.01)


def test_what_slips_is_told_where_all_was_seen_before_however_long(verdict_of):
    """Ten views, each looked at for 60 frames, that say 0 degrees; then again for a few."""
    first = [view for view in range(10) for _ in range(60)]
    verdict = verdict_of([0.0] * 600 + [0.4] * 30, views=[*first, *np.repeat(range(10), 3)])
    assert verdict.turn_deg[1] == pytest.approx(0.2, abs=0.03)  # then and now count alike
    verdict = verdict_of([0.0] * 600 + [1.0] * 50, views=[*first, *list(range(10)) * 5])
    assert "of yaw" in verdict.problem
    assert verdict.turn_deg[1] == pytest.approx(1.0, abs=0.1)


def test_pixels_of_a_shift_are_those_of_their_own_direction(verdict_of, monkeypatch):
    monkeypatch.setattr(calibration, "explained", lambda *_: replace(SURE, estimate=np.array([1.0, 1.0, 0.0, 0.0])))
    narrow = replace(CAMERA, fy=2 * CAMERA.fy)
    assert verdict_of([0.0] * 10, camera=narrow).shift_px == pytest.approx(np.radians([narrow.fx, -narrow.fy]))


def test_a_delay_that_is_hardly_known_is_not_told(told_after):
    """At a degree a second what scenes have about them is as good as 30 ms, a fifth of this delay."""
    assert told_after([0.0] * 40, delay_s=0.15, motion_deg_s=1.0) is None
    assert told_after([0.0] * 40, delay_s=0.15, motion_deg_s=4.0) == 10  # three verdicts, the first one after 8 views


def test_few_views_are_less_sure_of_a_turn_but_not_of_a_delay(told_after, verdict_of):
    assert told_after(scattered(0.5, 0.05, 10)) == 10
    assert told_after(scattered(0.5, 0.18, 10)) is None
    assert told_after(scattered(0.5, 0.18, 40)) is not None
    assert told_after(scattered(0.0, 0.16, 10), delay_s=0.033) == 10
    floor_deg = 0.06
    few, many = (verdict_of(scattered(0.0, 0.2, views)).turn_sigma_deg[1] ** 2 - floor_deg**2 for views in (10, 90))
    assert few > 3.5**2 * many  # by the number alone, three times


def test_what_half_of_the_views_say_is_not_told_though_it_would_be_alone(told_after):
    assert told_after([0.4] * 60) is not None
    assert told_after([0.0] * 60 + [0.4] * 60) is None


def test_edges_to_the_right_contradict_what_edges_down_alone_say():
    """A shelf's edges on the one side, all wrong by as much, are a pitch and a roll; what stands upright has none."""

    def against(upright: float) -> float:
        every, down = clear_edges(0.0), np.arange(30) >= 15
        offset_deg = every.turns @ (-0.7, 0.0, -1.4) * np.where(down, 1.0, upright)
        changes = np.exp(-0.5 * ((OFFSETS_DEG - offset_deg[:, None]) / 0.3) ** 2) * np.where(down, 10, 1)[:, None]
        right = ~down | (every.turns[:, 2] < -0.1)
        changes = changes[right].astype(np.float32)
        evidence = Evidence(every.edges[right], 15, changes, every.turns[right], every.parts[right])
        found = explained([{(0, 0): Group(evidence.sums, np.zeros(2))}] * 9, 0.5 * np.array(calibration.MATTERS))
        assert found.estimate[2] < -0.6
        return found.against

    assert against(0.0) > 0.05
    assert against(1.0) < -0.05


SURE = Found(
    np.array([0.0, 0.0, 1.0, 0.0]), np.full(4, 0.01), np.zeros(4), np.full(4, 100.0), 10.0, surer=5.0, against=0.0
)


@pytest.mark.parametrize(
    ("but", "told"),
    [({}, True), ({"surer": 2.0}, False), ({"against": 0.2}, False), ({"weight": np.full(4, 4.0)}, False),
     ({"scatter": np.full(4, 0.5)}, False), ({"held_back": np.full(4, 0.5)}, False),
     ({"estimate": np.array([0.0, 0.0, 0.3, 0.0])}, False),
     ({"against": 0.2, "estimate": np.array([1.0, 0.0, 0.0, 0.0])}, False),
     ({"against": 0.2, "estimate": np.array([0.0, 1.0, 0.0, 0.0])}, True)],  # which what stands upright tells itself
)  # fmt: skip
def test_what_is_told_is_sure_in_every_way(told_after, monkeypatch, but, told):
    monkeypatch.setattr(calibration, "explained", lambda *_: replace(SURE, **but))
    assert (told_after([0.0] * 20) is not None) == told


def test_a_small_yaw_does_not_matter(told_after):
    """It is sure enough: three standard deviations of 0.06 degrees."""
    assert told_after([0.2] * 40) is None
    assert told_after([0.3] * 40) is not None
