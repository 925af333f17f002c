"""The package as others get it: recognised and installed by colcon, installed by pip, complete and consistent."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import marigold_ros
from marigold_ros.places import shared
from marigold_ros.processes import free_domain, private_environment

PROJECT = Path(__file__).resolve().parent.parent
PROGRAMS = (
    "depth_node",
    "benchmark",
    "roofline",
    "demo",
    "player",
    "recorder",
    "kitti",
    "evaluate_metric",
    "check_calibration",
    "export",
    "estimate",
    "doctor",
)
SHARED = (
    "package.xml",
    "launch/depth.launch.py",
    "launch/demo.launch.py",
    "config/depth.yaml",
    "config/fastdds.xml",
    "checkpoints/nano/model_index.json",
    "checkpoints/nano/model.onnx",
    "checkpoints/nano/unet/config.json",
    "checkpoints/nano/vae/config.json",
    "recordings/warehouse/metadata.yaml",
)
# The names of rosdep; what is not here has the name it is imported by.
ROSDEP = {
    "cv2": "python3-opencv",
    "matplotlib": "python3-matplotlib",
    "numpy": "python3-numpy",
    "psutil": "python3-psutil",
    "tf2_ros": "tf2_ros_py",
    "tqdm": "python3-tqdm",
    "yaml": "python3-yaml",
}
# Has no rosdep key: comes by pip, as the README says.
FROM_PIP = {
    "simplejpeg",
    "PIL",
    "cuda",
    "diffusers",
    "huggingface_hub",
    "numba",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "rich",
    "rosbags",
    "safetensors",
    "tensorrt",
    "torch",
    "transformers",
}

needs_colcon = pytest.mark.skipif(find_spec("colcon_core") is None, reason="colcon is not installed")


def colcon(*arguments):
    command = [sys.executable, "-m", "colcon", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def install(tmp_path_factory):
    """The install tree of `colcon build`."""
    folder = tmp_path_factory.mktemp("colcon")
    colcon(
        "--log-base", folder / "log", "build", "--base-paths", PROJECT,
        "--build-base", folder / "build", "--install-base", folder / "install",
    )  # fmt: skip
    return folder / "install"


def in_install(install, log, program, *arguments):
    """Start an installed program in a shell that has sourced the install tree, from a folder without our sources."""
    script = f'. "{install}/local_setup.sh" && exec "{install}/marigold_ros/lib/marigold_ros/{program}" "$@"'
    environment = private_environment(free_domain()) | {"PYTHONPATH": "", "COLCON_CURRENT_PREFIX": str(install)}
    command = ["sh", "-c", script, program, *arguments]
    with log.open("w") as output:
        return subprocess.Popen(command, cwd=install, env=environment, stdout=output, stderr=subprocess.STDOUT)


@needs_colcon
def test_colcon_takes_the_project_for_a_ros_python_package():
    assert "marigold_ros\t" in (listed := colcon("list", "--base-paths", PROJECT))
    assert "(ros.ament_python)" in listed


@needs_colcon
def test_colcon_installs_everything_where_ros_looks_for_it(install):
    prefix = install / "marigold_ros"
    assert (prefix / "share/ament_index/resource_index/packages/marigold_ros").is_file()
    assert [name for name in SHARED if not (prefix / "share/marigold_ros" / name).is_file()] == []
    for program in PROGRAMS:
        assert os.access(prefix / "lib/marigold_ros" / program, os.X_OK), program
    assert not list(prefix.rglob("__pycache__/*.launch*"))


@needs_colcon
@pytest.mark.parametrize("program", ["player", "export"])
def test_installed_programs_run_from_the_install_tree(install, tmp_path, program):
    process = in_install(install, tmp_path / "log", program, "--help")
    assert process.wait(60) == 0
    assert "usage:" in (tmp_path / "log").read_text()


@needs_colcon
def test_the_installed_node_runs_with_the_installed_checkpoint(install, tmp_path):
    log = tmp_path / "log"
    process = in_install(install, log, "depth_node", "--ros-args", "-p", "range.type:=none")
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not re.search(r"ready after|cannot become", log.read_text()):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
    assert re.search(r"nano on .*ready after", log.read_text()), log.read_text()


@needs_colcon
def test_colcon_runs_the_tests_by_pytest(install):
    folder = install.parent
    colcon(
        "--log-base", folder / "log", "test", "--base-paths", PROJECT, "--build-base", folder / "build",
        "--install-base", install, "--pytest-args", "test/test_complaints.py", "-p", "no:xdist",
    )  # fmt: skip
    report = ElementTree.parse(folder / "build" / "marigold_ros" / "pytest.xml").getroot()
    names = {case.get("classname") for case in report.iter("testcase")}
    assert {name.removeprefix("marigold_ros.") for name in names} == {"test.test_complaints"}


def test_pip_installs_everything_too(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    data = f"marigold_ros-{marigold_ros.__version__}.data/data/share/marigold_ros/"
    assert [name for name in SHARED if data + name not in names] == []
    assert "marigold_ros/engines/openvino_engine.py" in names
    assert "trainer/__main__.py" in names


def test_the_version_is_the_same_everywhere():
    manifest = ElementTree.parse(PROJECT / "package.xml").getroot()
    setup = re.search(r'version="([^"]+)"', (PROJECT / "setup.py").read_text()).group(1)
    assert manifest.findtext("version") == setup == marigold_ros.__version__


def imported_packages(folder):
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.module.split(".")[0]


def test_every_import_is_declared_and_every_declaration_used():
    manifest = ElementTree.parse(PROJECT / "package.xml").getroot()
    declared = {element.text for element in manifest.findall("exec_depend")}
    imported = set(imported_packages(PROJECT / "marigold_ros")) | set(imported_packages(PROJECT / "launch"))
    imported -= set(sys.stdlib_module_names) | {"marigold_ros"} | FROM_PIP
    started = {"rviz2"}
    launch_files = "".join(path.read_text() for path in (PROJECT / "launch").glob("*.py"))
    assert all(f'package="{name}"' in launch_files for name in started)
    assert {ROSDEP.get(name, name) for name in imported} | started == declared
    tests_alone = {element.text for element in manifest.findall("test_depend")} - {"python3-pytest"}
    assert {name for name in imported_packages(PROJECT / "test") if name.endswith("_msgs")} - declared == tests_alone


def test_every_program_has_its_main():
    setup = (PROJECT / "setup.py").read_text()
    for program in PROGRAMS:
        assert f'f"{program} = {{NAME}}.{program}:main"' in setup
        tree = ast.parse((PROJECT / "marigold_ros" / f"{program}.py").read_text())
        assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_files_of_the_package_are_found_and_missing_ones_named():
    assert shared("config/fastdds.xml").is_file()
    with pytest.raises(ValueError, match=r"config/nothing\.yaml: belongs to marigold_ros"):
        shared("config/nothing.yaml")


def test_readme_names_only_commands_and_files_that_exist():
    text = (PROJECT / "README.md").read_text()
    targets = re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"(?:^|`)make (\w+)", text, re.M)) <= set(targets)
    for module in re.findall(r"python -m (marigold_ros\.[a-z_]+|trainer)\b", text):
        assert find_spec(module) is not None
    for program in re.findall(r"ros2 run marigold_ros (\w+)", text):
        assert program in PROGRAMS
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (PROJECT / link).exists(), link
    # A promise is no documentation: what is not there yet is said to be so, or left out.
    assert not re.search(r"TODO|TBD|PLACEHOLDER|XXX", text)


def test_what_ships_is_small():
    """Weights and exported network 20 MB each, the recording 10 MB."""
    limits_mb = {"checkpoints/**/*.safetensors": 20, "checkpoints/**/*.onnx": 20, "recordings/**/*.mcap": 10}
    for of_one_kind, limit_mb in limits_mb.items():
        sizes = [path.stat().st_size for path in PROJECT.glob(of_one_kind)]
        assert 0 < sum(sizes) <= limit_mb * 1e6, of_one_kind
