"""The watch over extrinsic and time offset, before scenes of boxes whose picture and scan are worked out exactly."""

from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
import pytest

from marigold_ros import calibration
from marigold_ros.anchors import find_anchors
from marigold_ros.calibration import CalibrationMonitor
from marigold_ros.calibration_evidence import Evidence, frame_evidence
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


def estimated_deg(turn_deg, seeds=range(6)) -> np.ndarray:
    """(3,) the turn that some scenes together ask for."""
    matrix, vector = np.zeros((3, 3)), np.zeros(3)
    for seed in seeds:
        scene = Boxes(seed)
        grey = working_picture(scene.picture(), CAMERA)
        found = frame_evidence(grey, CAMERA, anchors_of(scene.scan(), turn_deg), LIDAR_M)
        matrix, vector = matrix + found.matrix, vector + found.vector
    return np.degrees(np.linalg.solve(matrix, vector))


@pytest.mark.parametrize(
    "turn_deg", [(0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0.5, -0.7, 0)]
)
def test_a_turn_shows_with_its_sign_and_most_of_its_size(turn_deg):
    found = estimated_deg(turn_deg)
    np.testing.assert_allclose(found, turn_deg, atol=0.45)
    for value, true in zip(found, turn_deg, strict=True):
        assert abs(value) < 0.2 if true == 0 and turn_deg[2] == 0 else value * true >= 0.4 * true**2


def test_what_the_lidar_sees_over_an_edge_is_no_shift():
    """Two metres of background behind each board's upper edge are hidden from the camera below the LiDAR."""
    assert np.abs(estimated_deg((0, 0, 0), range(20, 26))).max() < 0.2


def test_a_floor_and_a_wall_seen_at_a_slant_have_no_edges():
    directions = RAYS[::7]
    directions = directions[directions[:, 1] > 0.05]
    floor = (directions / directions[:, 1:2] * 0.8).astype(np.float32)
    anchors = find_anchors(floor, np.eye(4), CAMERA, LIMITS)
    grey = np.random.default_rng(0).uniform(0, 255, (240, 320)).astype(np.float32)
    assert len(frame_evidence(grey, CAMERA, anchors, np.zeros(3)).edges) == 0


def test_no_anchors_are_no_evidence():
    empty = find_anchors(np.zeros((0, 3), np.float32), np.eye(4), CAMERA, LIMITS)
    found = frame_evidence(np.zeros((240, 320), np.float32), CAMERA, empty, np.zeros(3))
    assert not found.matrix.any()
    assert found.edges.shape == (0, 2)


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
    assert last.problem.startswith("the extrinsic looks wrong: anchors lie at least")
    assert "px to the right" in last.problem
    assert "° of yaw" in last.problem
    # One degree is 3.4 px.
    assert 1.5 < last.shift_px[0] < 4.5
    assert abs(last.delay_s) < 0.025


def test_a_degree_of_pitch_is_told_with_its_side():
    last = drive(12, (1, 0, 0))[-1]  # nose up: what the LiDAR sees is taken to lie higher
    assert "px too high" in last.problem
    assert last.shift_px[1] < -1.5


def test_a_delay_is_told_apart_from_a_turn():
    last = drive(14, delay_s=0.1)[-1]
    assert last.problem.startswith("the time offset looks wrong: scans are at least")
    assert "older than their stamps" in last.problem
    assert 0.05 < last.delay_s < 0.13
    assert abs(last.turn_deg[1]) < 0.2
    assert drive(12, delay_s=-0.1)[-1].delay_s < -0.05


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


class Views:
    """A track whose picture becomes another one with every frame, and moves by (rad/s) to the right and to the left."""

    def __init__(self, rad_s: float):
        self.grey, self._rad_s, self._frames = np.zeros((240, 320), np.float32), rad_s, 0

    def see(self, *_):
        self._frames += 1
        # Among 200 of them no two are alike.
        self.thumb = np.zeros((8, 25), np.float32)
        self.thumb.flat[self._frames] = 1e3
        self.motion = np.array([self._rad_s * (-1) ** self._frames, 0.0])


@pytest.fixture
def told_after(monkeypatch):
    """After how many views it is told, None never, when each view is of 50 clear edges and says one yaw, in degrees."""

    def views(yaw_deg, delay_s=0.0, motion_deg_s=20.0) -> int | None:
        track = Views(np.radians(motion_deg_s))
        monitor = CalibrationMonitor(track)
        weight = 50.0 * CAMERA.fx**2

        def evidence(*_):
            seen_deg = next(each_deg, 0.0)
            turn = np.array([0.0, np.radians(seen_deg) - delay_s * track.motion[0], 0.0])
            return Evidence(weight * np.eye(3), weight * turn, np.zeros((0, 2)), np.zeros(0), np.zeros(0), 0)

        monkeypatch.setattr(calibration, "frame_evidence", evidence)
        each_deg = iter(yaw_deg)
        for i in range(len(yaw_deg) + 1):  # a view is over when the next one begins
            verdict = monitor.update(i * SECOND, None, CAMERA, (), LIDAR_M)
            if verdict is not None and verdict.problem:
                return verdict.looks
        return None

    return views


def scattered(mean_deg: float, by_deg: float, views: int) -> list[float]:
    """Not in time with the motion, which turns back with every view."""
    return [mean_deg + by_deg * (1 if i % 4 < 2 else -1) for i in range(views)]


def test_a_delay_that_is_hardly_known_is_not_told(told_after):
    """At a degree a second what scenes have about them is as good as 30 ms, a fifth of this delay."""
    assert told_after([0.0] * 40, delay_s=0.15, motion_deg_s=1.0) is None
    assert told_after([0.0] * 40, delay_s=0.15, motion_deg_s=4.0) == 11  # four verdicts, the first one after 8 views


def test_few_views_are_less_sure_of_a_turn_but_not_of_a_delay(told_after):
    assert told_after(scattered(0.5, 0.05, 11)) == 11
    assert told_after(scattered(0.5, 0.19, 11)) is None  # it would be told after 11, were they as sure as many
    assert told_after(scattered(0.5, 0.19, 40)) is not None
    assert told_after(scattered(0.0, 0.25, 11), delay_s=0.033) == 11


def test_what_half_of_the_views_say_is_not_told_though_it_would_be_alone(told_after):
    assert told_after([0.4] * 60) is not None
    assert told_after([0.0] * 60 + [0.4] * 60) is None


def test_a_small_yaw_does_not_matter(told_after):
    """It is sure enough: three standard deviations of 0.06 degrees."""
    assert told_after([0.2] * 40) is None
    assert told_after([0.3] * 40) is not None
