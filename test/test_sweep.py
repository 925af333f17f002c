"""Points moved from their own times, against a robot whose motion is known at every time."""

import math

import numpy as np
import pytest

from marigold_ros.geometry import transformed
from marigold_ros.sweep import Sweep, may_be_seen, moved, poses_at

CAMERA_FROM_SENSOR = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, 0.05], [0, 0, 0, 1.0]])


def world_from_camera(time_s: float, turn_rad_s: float, speed_m_s: float) -> np.ndarray:
    """A robot that drives along a circle; the camera's y axis points down."""
    c, s, radius = math.cos(turn_rad_s * time_s), math.sin(turn_rad_s * time_s), speed_m_s / turn_rad_s
    return np.array([[c, 0, s, radius * (1 - c)], [0, 1, 0, 0], [-s, 0, c, radius * s], [0, 0, 0, 1.0]])


def sweep_of(times_s, turn_rad_s=1.0, speed_m_s=1.5, error_s=0.005) -> Sweep:
    """The image was taken at time 0."""
    poses = [world_from_camera(t, turn_rad_s, speed_m_s) @ CAMERA_FROM_SENSOR for t in times_s]
    return Sweep(np.array(times_s), np.stack(poses), error_s)


def room(count: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Points of the world, (N, 3) in the camera's frame at time 0, and when each was measured."""
    rng = np.random.default_rng(0)
    world = rng.uniform(-1, 1, (count, 3)) * (20, 3, 20) + (0, 0, 22)
    return world, np.sort(rng.uniform(-0.1, 0.0, count)).astype(np.float32)


def measured(world: np.ndarray, offset_s: np.ndarray, turn_rad_s=1.0, speed_m_s=1.5) -> np.ndarray:
    """What the moving sensor saw, each point in its frame at its time; one by one, with whole matrices."""
    points = [
        np.linalg.inv(world_from_camera(float(t), turn_rad_s, speed_m_s) @ CAMERA_FROM_SENSOR) @ (*point, 1.0)
        for point, t in zip(world, offset_s, strict=True)
    ]
    return np.array(points)[:, :3].astype(np.float32)


@pytest.mark.parametrize("turn_rad_s", [0.1, 1.0, 3.0])
def test_points_come_to_lie_where_they_were_at_the_image_s_time(turn_rad_s):
    world, offset_s = room()
    points = measured(world, offset_s, turn_rad_s)
    sweep = sweep_of(np.linspace(-0.1, 0.0, 5), turn_rad_s)
    error_m = np.linalg.norm(moved(points, offset_s, sweep) - world, axis=1)
    # Half a step of 0.4 ms at 40 m is what is left, and the bow of the path between two knots.
    assert error_m.max() < 40 * turn_rad_s * 0.0003 + 0.004
    at_once_m = np.linalg.norm(transformed(points, sweep.camera_from_sensor[-1]) - world, axis=1)
    assert np.median(at_once_m) > 10 * np.median(error_m)


def test_beyond_the_known_times_motion_goes_on_as_it_was():
    world, offset_s = room()
    sweep = sweep_of([-0.1, -0.075, -0.05])
    error_m = np.linalg.norm(moved(measured(world, offset_s), offset_s, sweep) - world, axis=1)
    assert error_m.max() < 0.03


def test_poses_are_rigid_and_hit_the_known_ones():
    sweep = sweep_of([-0.1, -0.02, 0.0])
    poses = poses_at(np.linspace(-0.1, 0.0, 51), sweep)
    np.testing.assert_allclose(poses[[0, 40, 50]], sweep.camera_from_sensor[:, :3], atol=1e-9)
    np.testing.assert_allclose(poses[:, :, :3] @ poses[:, :, :3].transpose(0, 2, 1), [np.eye(3)] * 51, atol=1e-9)


def test_a_turn_halfway_is_half_the_turn():
    poses = poses_at(np.array([-0.05]), sweep_of([-0.1, 0.0], turn_rad_s=2.0))
    expected = (world_from_camera(-0.05, 2.0, 1.5) @ CAMERA_FROM_SENSOR)[:3, :3]
    np.testing.assert_allclose(poses[0, :, :3], expected, atol=1e-9)


def test_one_time_for_all_points_needs_no_scan_that_lasts():
    world, offset_s = room(50)
    offset_s[:] = -0.03
    sweep = sweep_of([-0.08, -0.03])
    np.testing.assert_allclose(moved(measured(world, offset_s), offset_s, sweep), world, atol=1e-3)


def test_a_robot_that_stands_is_known_to_stand():
    assert sweep_of([-0.1, 0.0], turn_rad_s=1e-5, speed_m_s=1e-5).still
    assert not sweep_of([-0.1, 0.0], turn_rad_s=1e-5, speed_m_s=0.1).still
    assert not sweep_of([-0.1, 0.0], turn_rad_s=0.01, speed_m_s=0.0).still


def test_what_is_not_known_of_the_time_is_pixels_of_motion():
    sweep = Sweep(np.array([0.0, 0.1]), np.stack([np.eye(4), np.eye(4)]), 0.02)
    assert sweep.pixel_variance(np.array([4.0]), 500.0) == 0.0
    sweep.camera_from_sensor[1, 0, 3] = 0.2  # 2 m/s sideways: 0.04 m in 0.02 s, which are 5 px of 500 at 4 m
    driving = Sweep(sweep.times_s, sweep.camera_from_sensor, 0.02)
    np.testing.assert_allclose(driving.pixel_variance(np.array([4.0, 40.0]), 500.0), [25.0, 0.25], rtol=1e-6)
    turning = sweep_of([0.0, 0.1], turn_rad_s=0.5, speed_m_s=0.0, error_s=0.02)
    far = turning.pixel_variance(np.array([1e6]), 500.0)  # 0.01 rad
    np.testing.assert_allclose(far, [25.0], rtol=1e-3)


@pytest.mark.parametrize("known_s", [(-0.1, -0.05, 0.0), (-0.1, -0.08), (-0.02, 0.0)])
@pytest.mark.parametrize(("turn_rad_s", "speed_m_s"), [(3.0, 10.0), (0.01, 0.01)])
def test_no_point_is_overlooked_that_the_camera_sees(known_s, turn_rad_s, speed_m_s):
    """Points all around, many of them near, before a robot that turns and drives, fast and next to not at all."""
    rng = np.random.default_rng(1)
    world = rng.normal(size=(20000, 3)) * rng.choice([0.3, 2.0, 20.0], (20000, 1))
    offset_s = rng.uniform(-0.1, 0.0, 20000).astype(np.float32)
    points = measured(world, offset_s, turn_rad_s, speed_m_s)
    sweep = sweep_of(known_s, turn_rad_s, speed_m_s)
    cone_rad = 0.7
    then = moved(points, offset_s, sweep)
    seen = then[:, 2] > np.linalg.norm(then, axis=1) * math.cos(cone_rad)
    share, slack_m = may_be_seen(offset_s, sweep, cone_rad)
    first = transformed(points, sweep.camera_from_sensor[0])
    kept = first[:, 2] >= share * np.linalg.norm(first, axis=1) - slack_m
    assert kept[seen].all()
    assert seen.mean() < kept.mean() < 0.75


def test_a_robot_that_shakes_moves_though_it_ends_where_it_began():
    poses = np.stack([world_from_camera(t, 1.0, 1.0) for t in (0.0, 0.05, 0.0)])
    sweep = Sweep(np.array([0.0, 0.05, 0.1]), poses, 0.005)
    assert sweep.turned_rad == pytest.approx(0.1, rel=1e-3)
    assert sweep.moved_m == pytest.approx(0.1, rel=1e-2)
