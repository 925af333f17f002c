"""Installs marigold_ros: with `colcon build` as a ROS 2 package, with `pip install .` into any Python environment."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = "marigold_ros"
SHARED_FOLDERS = ("launch", "config", "checkpoints", "recordings")
ROOT = Path(__file__).resolve().parent


def shared_files() -> list[tuple[str, list[str]]]:
    """(target folder, source files) for everything that belongs under share/marigold_ros, subfolders kept."""
    files = [("share/ament_index/resource_index/packages", [f"resource/{NAME}"]), (f"share/{NAME}", ["package.xml"])]
    for top in SHARED_FOLDERS:
        folders: dict[str, list[str]] = {}
        for path in sorted((ROOT / top).rglob("*")):
            hidden = any(part.startswith((".", "__")) for part in path.relative_to(ROOT).parts)
            if path.is_file() and not hidden:
                source = path.relative_to(ROOT)
                folders.setdefault(f"share/{NAME}/{source.parent.as_posix()}", []).append(source.as_posix())
        files += folders.items()
    return files


OPENVINO = ["openvino>=2025.0"]
# What the node does beside the network, compiled.
FAST = ["numba>=0.55"]
TORCH = ["torch>=2.4", "diffusers>=0.33", "safetensors"]
ONNX = ["onnx>=1.17", "onnxscript>=0.2"]
# For a driver of CUDA 13; docs/performance.md has the others.
TENSORRT = ["tensorrt>=10.3", "cuda-python>=12"]
DATASETS = ["h5py>=3.8", "openexr>=3.5", "pillow>=10", "tqdm"]
TRAINING = ["accelerate>=1.2", "tensorboard", "torchmetrics>=1.4", "pyyaml"]
RECORDINGS = ["rosbags>=0.11", "matplotlib>=3.8", "rich>=13"]

setup(
    name=NAME,
    version="0.1.0",
    description="Dense metric depth from one camera and a sparse LiDAR, with Marigold-family networks",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    maintainer="marigold_ros maintainers",
    maintainer_email="maintainers@marigold-ros.example",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*", "trainer", "trainer.*"]),
    data_files=shared_files(),
    zip_safe=False,
    # ROS' own Python packages (rclpy, messages) come from the ROS installation, or from the wheels of 'ros' below.
    install_requires=["setuptools", "numpy", "opencv-python-headless", "simplejpeg>=1.7"],
    extras_require={
        "openvino": OPENVINO,
        "torch": TORCH,
        "export": TORCH + ONNX,
        "tensorrt": TENSORRT,
        "trainer": [*TORCH, *ONNX, *DATASETS, *TRAINING, "mitsuba>=3.6", "matplotlib>=3.8", "rosbags>=0.11"],
        "fast": FAST,
        "demo": [*OPENVINO, *FAST, *RECORDINGS, "psutil"],
        "ros": ["ros-rclpy[fastrtps]==7.1.6", "ros-common-interfaces==5.3.6"],
        # By this name `colcon test` learns that pytest is to be used.
        "test": ["pytest"],
        "dev": ["pytest", "pytest-xdist", "ruff", "colcon-common-extensions"],
    },
    entry_points={
        "console_scripts": [
            f"depth_node = {NAME}.depth_node:main",
            f"benchmark = {NAME}.benchmark:main",
            f"roofline = {NAME}.roofline:main",
            f"doctor = {NAME}.doctor:main",
            f"estimate = {NAME}.estimate:main",
            f"demo = {NAME}.demo:main",
            f"player = {NAME}.player:main",
            f"recorder = {NAME}.recorder:main",
            f"kitti = {NAME}.kitti:main",
            f"evaluate_metric = {NAME}.evaluate_metric:main",
            f"check_calibration = {NAME}.check_calibration:main",
            f"export = {NAME}.export:main",
        ]
    },
)
