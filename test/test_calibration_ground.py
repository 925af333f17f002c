"""Pitch and roll by how the ground passes, before a textured ground and a wall whose pictures and scans are exact."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from marigold_ros.anchors import find_anchors
from marigold_ros.calibration import CalibrationMonitor
from marigold_ros.calibration_evidence import OFFSETS_DEG, Evidence
from marigold_ros.calibration_fit import Group, Prior, explained
from marigold_ros.calibration_ground import GroundWatch
from marigold_ros.config import RangeConfig
from marigold_ros.geometry import Camera
from marigold_ros.picture_motion import PictureTrack

CAMERA = Camera(320, 240, 197.0, 197.0, 159.5, 119.5)
LIMITS = RangeConfig()
SECOND = 1_000_000_000
HEIGHT_M, WALL_M, PX_PER_M, WALL_PX_PER_M = 0.7, 24.0, 40, 10
BEAMS_DEG = np.arange(-15.0, 16.0, 2.0)


def texture(seed: int, rows: int, columns: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (rows, columns), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 30, 225, cv2.NORM_MINMAX)


GROUND, WALL = texture(1, 30 * PX_PER_M, 24 * PX_PER_M), texture(2, 8 * WALL_PX_PER_M, 24 * WALL_PX_PER_M)


# What a flat scan that is tilted sees of the ground.
LINE = np.stack([np.linspace(-3, 3, 400), np.full(400, HEIGHT_M), np.full(400, 5.0)], axis=1).astype(np.float32)


def tilted(pitch_deg: float, roll_deg: float) -> np.ndarray:
    return cv2.Rodrigues(np.radians([pitch_deg, 0.0, roll_deg]))[0]


def picture(ahead_m: float, camera: Camera = CAMERA, level: np.ndarray | None = None, contrast: float = 1.0):
    """(H, W, 3) uint8 so far ahead; `level` (3, 3) turns what a level camera sees into what this one does."""
    shown, size = np.full((camera.height, camera.width), 200, np.uint8), (camera.width, camera.height)
    # From pixels of a texture to places before a level camera: the ground from 30 m ahead of the start towards it.
    ground = np.array([[1, 0, -12 * PX_PER_M], [0, 0, HEIGHT_M * PX_PER_M], [0, -1, (30.0 - ahead_m) * PX_PER_M]])
    wall = np.diag([1.0, 1.0, (WALL_M - ahead_m) * WALL_PX_PER_M])
    wall[:2, 2] = -12 * WALL_PX_PER_M, (HEIGHT_M - 8.0) * WALL_PX_PER_M
    # What lies behind the camera would come out before it: only what is ahead is drawn.
    ahead = GROUND[: int((30.0 - ahead_m - 0.3) * PX_PER_M)]
    for image, place in ((ahead, ground), (WALL, wall)):
        there = camera.matrix @ (np.eye(3) if level is None else level) @ place
        warped = cv2.warpPerspective(image, there, size)
        covered = cv2.warpPerspective(np.full_like(image, 255), there, size) > 127
        shown[covered] = warped[covered]
    cv2.randn(speckle := np.empty(shown.shape, np.float32), 0.0, 1.5)
    return cv2.cvtColor(cv2.addWeighted(shown.astype(np.float32), contrast, speckle, 1.0, 0.0, dtype=cv2.CV_8U),
                        cv2.COLOR_GRAY2RGB)  # fmt: skip


def scan(ahead_m: float, beams_deg=BEAMS_DEG, level: np.ndarray | None = None) -> np.ndarray:
    """(N, 3) points of a LiDAR at the camera's place, in the camera's frame."""
    level = np.eye(3) if level is None else level
    across, down = np.meshgrid(np.radians(np.arange(-38, 38, 0.4)), np.radians(beams_deg))
    rays = np.stack([np.sin(across) * np.cos(down), np.sin(down), np.cos(across) * np.cos(down)], -1).reshape(-1, 3)
    rays = rays @ level  # the beams turn with the robot: these are directions of the level world
    with np.errstate(divide="ignore"):
        ground = np.where(rays[:, 1] > 1e-6, HEIGHT_M / rays[:, 1], np.inf)
        wall = (WALL_M - ahead_m) / rays[:, 2]
    range_m = np.minimum(ground, wall) + np.random.default_rng(int(ahead_m * 1e3)).normal(0, 0.01, len(rays))
    return ((range_m[:, None] * rays) @ level.T).astype(np.float32)


def driven(turn_deg=(0.0, 0.0, 0.0), frames=130, camera=CAMERA, level=None, speed_m_s=1.0, rate_hz=5.0, **changed):
    """The watch after a drive ahead, the anchors turned by `turn_deg`."""
    watch, track = GroundWatch(), PictureTrack()
    show, measure = changed.get("show", picture), changed.get("measure", scan)
    extrinsic = np.eye(4)
    extrinsic[:3, :3] = cv2.Rodrigues(np.radians(turn_deg))[0]
    for i in range(frames):
        # To and fro, for the ground is not endless; a scan like this one is the same both ways.
        ahead_m = abs((i / rate_hz * speed_m_s + 14.0) % 28.0 - 14.0)
        stamp_ns = SECOND + round(i / rate_hz * SECOND)
        track.see(stamp_ns, show(ahead_m, camera, level), camera)
        anchors = find_anchors(measure(ahead_m, level=level), extrinsic, camera, LIMITS)
        watch.see(stamp_ns, track, camera, anchors)
    return watch


@pytest.mark.parametrize(
    "turn_deg", [(0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 0, 1), (0, 0, -1), (0.5, 0, -0.7), (2, 0, 2)]
)
def test_a_turn_shows_with_its_sign_and_its_size(turn_deg):
    found = driven(turn_deg).turn()
    expected = np.array(turn_deg)[[0, 2]]
    np.testing.assert_allclose(found.turn_deg, expected, atol=0.1 + 0.05 * np.abs(expected).max())
    assert (found.sigma_deg < 0.1).all()


def test_the_ground_looks_the_same_after_a_yaw():
    np.testing.assert_allclose(driven((0, 1, 0)).turn().turn_deg, 0.0, atol=0.1)


def test_a_camera_that_looks_down_and_leans_sees_the_same():
    """What is told is the turn about the camera's own axes."""
    found = driven((1, 0, 0), level=tilted(12.0, 8.0)).turn()
    np.testing.assert_allclose(found.turn_deg, (1.0, 0.0), atol=0.2)


def test_a_camera_that_hangs_upside_down_sees_the_same():
    found = driven((1, 0, -1), level=tilted(0.0, 180.0)).turn()
    np.testing.assert_allclose(found.turn_deg, (1.0, -1.0), atol=0.2)


def test_pixels_need_not_be_square_nor_as_large_as_those_looked_at():
    camera = replace(CAMERA, width=640, fx=394.0, cx=319.5, height=320, fy=262.7, cy=159.5)
    np.testing.assert_allclose(driven((1, 0, -1), camera=camera).turn().turn_deg, (1.0, -1.0), atol=0.2)


def test_light_that_changes_is_no_turn():
    def flickering(ahead_m, camera, level):
        return picture(ahead_m, camera, level, contrast=0.7 + 0.3 * (round(ahead_m * 5) % 2))

    np.testing.assert_allclose(driven((1, 0, 0), show=flickering).turn().turn_deg, (1.0, 0.0), atol=0.15)


def test_what_drives_beside_the_robot_is_outvoted():
    """A car in a corner of the picture, which the LiDAR misses, stays where it is as the ground passes."""
    car = texture(5, 70, 110)

    def beside(ahead_m, camera, level):
        shown = picture(ahead_m, camera, level)
        shown[-70:, :110] = car[..., None]
        return shown

    np.testing.assert_allclose(driven((0, 0, 1), show=beside).turn().turn_deg, (0.0, 1.0), atol=0.25)


@pytest.mark.parametrize(
    "changed",
    [
        {"speed_m_s": 0.0},
        {"show": lambda ahead_m, camera, level: np.full((240, 320, 3), 90, np.uint8)},
        {
            "show": lambda ahead_m, camera, level: np.random.default_rng(int(ahead_m * 1e3)).integers(
                0, 255, (240, 320, 3), dtype=np.uint8
            )
        },
        {"measure": lambda ahead_m, level: scan(ahead_m, [-8.0])},  # only the wall
        {"measure": lambda *_, level: LINE},
        {"measure": lambda ahead_m, level: np.zeros((0, 3), np.float32)},
        {"frames": 30},
    ],
    ids=["standing", "blank", "noise", "nothing below", "a line", "no points", "a few seconds"],
)
def test_without_a_ground_that_passes_nothing_is_said(changed):
    assert driven((1, 0, 0), **changed).turn() is None


def test_comparisons_half_a_second_apart_are_enough():
    watch = driven(frames=60, rate_hz=20.0)
    assert 4 <= len(watch._found) <= 7


def test_the_watch_tells_a_pitch_over_ground_that_has_no_edges():
    def told(turn_deg):
        monitor, extrinsic = CalibrationMonitor(), np.eye(4)
        extrinsic[:3, :3] = cv2.Rodrigues(np.radians(turn_deg))[0]
        for i in range(150):
            ahead_m = abs((i / 5 + 14.0) % 28.0 - 14.0)
            anchors = find_anchors(scan(ahead_m), extrinsic, CAMERA, LIMITS)
            verdict = monitor.update(SECOND + i * SECOND // 5, picture(ahead_m), CAMERA, anchors, np.zeros(3))
        return verdict

    assert told((0, 0, 0)).problem is None
    pitch, roll = told((1, 0, 0)).problem, told((0, 0, -1)).problem
    assert "px too high, 1.0° of pitch" in pitch
    assert "comparisons of the ground)" in pitch
    assert "turned by 1.0° about the optical axis" in roll


def test_what_the_ground_says_of_roll_tells_a_yaw_from_it():
    """Edges that stand upright, in the upper part of the picture alone, move alike by both."""
    x, y = np.linspace(-0.4, 0.4, 12), np.full(12, -0.3)
    turns = np.stack([x * y, -1 - x * x, y], axis=1)
    offset_deg = turns @ (0.0, 0.0, 1.5)
    changes = np.exp(-0.5 * ((OFFSETS_DEG - offset_deg[:, None]) / 0.3) ** 2).astype(np.float32)
    edges = Evidence(np.zeros((12, 2)), 12, changes, turns, np.arange(12))
    views = [{(0, 0): Group(edges.sums, np.zeros(2))}] * 10
    alone = explained(views, np.ones(4))
    prior = Prior(mean=np.array([0.0, 0.0, 1.5, 0.0]))
    prior.weight[[0, 2]], prior.off[[0, 2]] = 30.0, 0.2
    found = explained(views, np.ones(4), prior)
    assert alone.estimate[1] > 0.3
    assert alone.sigma[1] > 0.4
    np.testing.assert_allclose(found.estimate[[1, 2]], (0.0, 1.5), atol=0.05)
    assert found.sigma[1] < 0.6 * alone.sigma[1]
