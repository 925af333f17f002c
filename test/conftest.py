"""Fixtures of several files: real rclpy and real DDS with the shipped profile, in a domain of their own; an export."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marigold_ros.compiled import Loop


def pytest_sessionstart(session):
    """Give the memory back that runs before this one left, which ended halfway."""
    _free_segments_of_dead_processes(session)


def pytest_sessionfinish(session):
    """Give the memory back that nodes left which tests killed."""
    _free_segments_of_dead_processes(session)


def _free_segments_of_dead_processes(session):
    # Each participant that is killed leaves 70 MB in /dev/shm: a few dozen runs filled a machine's memory. Between runs
    # alone, when no worker is about to make segments.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    fastdds = shutil.which("fastdds", path=places)
    if fastdds and not hasattr(session.config, "workerinput"):
        subprocess.run([fastdds, "shm", "clean"], stdout=subprocess.DEVNULL, check=False)


@pytest.fixture(autouse=True)
def loops_answer_themselves(request, monkeypatch):
    """In every test: a robot gets numpy's answer where a loop fails, a developer is to know."""

    def complain(loop, problem):
        raise AssertionError(f"{loop.loop.__name__}: {problem}") from problem

    if request.node.get_closest_marker("loops_may_fail") is None:
        monkeypatch.setattr(Loop, "_complain", complain)


@pytest.fixture(scope="module")
def ros_domain():
    """A ROS domain that nobody else uses, on this machine only; node processes inherit it."""
    rclpy = pytest.importorskip("rclpy")
    from marigold_ros.processes import free_domain, private_environment

    os.environ.update(private_environment(free_domain()))
    humble = os.environ.get("ROS_DISTRO") == "humble"
    os.environ.update({"ROS_LOCALHOST_ONLY": "1"} if humble else {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"})
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture(scope="module")
def robot(ros_domain):
    """The rest of the robot: a camera, a LiDAR, and somebody who listens."""
    from ros_harness import Robot

    robot = Robot()
    yield robot
    robot.executor.shutdown()
    robot.node.destroy_node()


@pytest.fixture(scope="module")
def start_node(ros_domain, tmp_path_factory):
    """A function that starts a node process; whatever still runs at the end of the module is killed."""
    from ros_harness import NodeProcess

    started = []

    def start(*args, **kwargs):
        log = tmp_path_factory.mktemp("node") / "log"
        started.append(NodeProcess(log, *args, **kwargs))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """The path of a small Stable Diffusion 2 with random weights, for training to start from; not to be changed."""
    torch = pytest.importorskip("torch")
    from family_checkpoints import write_sd2

    torch.manual_seed(3)
    return str(write_sd2(tmp_path_factory.mktemp("start") / "stable-diffusion-2"))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of small datasets with maps of every kind; not to be changed."""
    from training import write_data

    return write_data(tmp_path_factory.mktemp("data"), count=3)


@pytest.fixture(scope="session")
def small_export(tmp_path_factory):
    """A small random checkpoint's folder, and a cache that holds its export; not to be changed."""
    pytest.importorskip("torch")
    from marigold_ros.checkpoints import describe
    from marigold_ros.export import onnx_file
    from small_checkpoint import write_small_checkpoint

    root = tmp_path_factory.mktemp("export")
    folder = write_small_checkpoint(root / "small")
    onnx_file(describe(folder), root / "cache")
    return folder, root / "cache"


@pytest.fixture(scope="session")
def small_parts(tmp_path_factory):
    """A small random checkpoint's folder, and a cache that holds its export for TensorRT; not to be changed."""
    pytest.importorskip("torch")
    from marigold_ros.checkpoints import describe
    from marigold_ros.export import parts_of
    from small_checkpoint import write_small_checkpoint

    root = tmp_path_factory.mktemp("parts")
    folder = write_small_checkpoint(root / "small")
    parts_of(describe(folder), 128, 96, root / "cache")
    return folder, root / "cache"


@pytest.fixture(scope="module")
def threads_of_others():
    """For recipes that ask for one thread; the tests of other modules get theirs back."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
