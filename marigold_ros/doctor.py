"""What this machine has, which exported networks pass their self-check, and the command that mends what is wrong.

    ros2 run marigold_ros doctor        (or python -m marigold_ros.doctor)

Exit status 1 where something must be mended before the node can run. Checkpoints that are exported already are found in
the cache; `--checkpoint` looks at one more, a folder or a hub id.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marigold_ros import compiled
from marigold_ros.checkpoints import BUNDLED, describe, find_checkpoint
from marigold_ros.config import Unusable, one_line
from marigold_ros.export import TENSORRT_PACKAGES, cache_folder, cached_files, intact, ready_file
from marigold_ros.nvidia_driver import driver_is_here, install_command, on_jetson
from marigold_ros.parts import Parts, all_parts
from marigold_ros.places import shared
from marigold_ros.processes import PROFILE_VARIABLES
from marigold_ros.selfcheck import verdict

OK, NOTE, WRONG = "ok", "note", "WRONG"
# Shared-memory segments of the DDS profile, for the node and a few others.
_SHARED_MEMORY_BYTES, _SEGMENT_BYTES = 256_000_000, 71_000_000
# An organized cloud of a 1280x720 image, in one burst of UDP between machines.
_SOCKET_BUFFER_BYTES = 16_000_000
_FREE_DISK_BYTES = 2_000_000_000
# Distributions whose Fast DDS reads FASTDDS_DEFAULT_PROFILES_FILE alone.
_FAST_DDS_3 = ("kilted", "lyrical", "rolling")


@dataclass(frozen=True)
class Finding:
    """One line of the report; `mend` is the command or setting that helps, '' where nothing is to be done."""

    level: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        return f"[{self.level:^5}] {self.text}" + (f"\n        -> {self.mend}" if self.mend else "")


def machine() -> Iterator[Finding]:
    """Processor, memory, GPU and its driver."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in _lines(info) if line.startswith("model name")]
    memory_kb = next((int(line.split()[1]) for line in _lines(Path("/proc/meminfo")) if line.startswith("MemTotal")), 0)
    processor = names[0] if names else platform.machine()
    yield Finding(OK, f"{processor}, {len(os.sched_getaffinity(0))} cores, {memory_kb / 1e6:.0f} GB of memory")
    yield Finding(OK, f"Python {platform.python_version()}, {platform.platform()}")
    jetson = _lines(Path("/etc/nv_tegra_release"))
    if on_jetson():
        yield Finding(OK, f"Jetson: {jetson[0].strip('# ') if jetson else 'its release is not known here'}")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    if shutil.which("nvidia-smi") is None:
        if not driver_is_here():
            yield Finding(NOTE, "no NVIDIA GPU (nvidia-smi is not there): networks run on the processor")
        return
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    if answer.returncode:
        yield Finding(WRONG, f"nvidia-smi fails: {answer.stdout.strip()}", "install the driver again, then restart")
    for line in answer.stdout.splitlines() if answer.returncode == 0 else ():
        yield Finding(OK, f"NVIDIA GPU: {line}")


def libraries() -> Iterator[Finding]:
    """What can run, export and read; and whether torch sees the GPU."""
    runs = [name for name in ("openvino", "torch", "tensorrt") if _version(name)]
    if not runs:
        yield Finding(
            WRONG, "none of OpenVINO, torch and TensorRT is installed: nothing can run a network", _pip("openvino")
        )
    for name, use in (
        ("openvino", "runs networks on the processor, several times as fast as torch"),
        ("simplejpeg", "reads JPEGs (image.transport: compressed)"),
        ("torch", "runs networks, exports and trains them"),
        ("diffusers", "loads checkpoints, together with torch"),
        ("onnxscript", "exports checkpoints for OpenVINO"),
    ):
        version = _version(name)
        if version:
            yield Finding(OK, f"{name} {version}")
        else:
            yield Finding(NOTE, f"{name} is not installed: it {use}", _pip(name))
    yield numba()
    if driver_is_here():
        yield from torch_on_gpu()
        yield tensorrt()


def numba() -> Finding:
    """Whether what the node does beside the network is compiled."""
    problem = compiled.why_not()
    if problem is None:
        compiled.compile_all(["marigold_ros.pipeline"])
        failing = [loop.loop.__name__ for loop in compiled.LOOPS if not loop.inner and loop.compile() is loop.instead]
        if not failing:
            return Finding(OK, compiled.description())
        problem = f"{compiled.description()} cannot compile {', '.join(failing)}"
    text = f"{problem}: what the node does beside the network takes about 1.6 times as long"
    # PyPI's numba would bring another numpy than that of Ubuntu 22.04, which ROS was compiled with.
    old = tuple(map(int, np.__version__.split(".")[:2])) < (1, 22)
    return Finding(NOTE, text, "sudo apt-get install python3-numba" if old else _pip("--upgrade numba"))


def torch_on_gpu() -> Iterator[Finding]:
    """Whether torch, where it is installed, sees the GPU."""
    if not _version("torch"):
        return
    mend = "install the build for your CUDA (pytorch.org; on a Jetson NVIDIA's own)"
    try:
        import torch
    except Exception as error:  # a broken installation can raise anything
        yield Finding(WRONG, f"torch cannot be loaded: {error}", mend)
        return
    if not torch.cuda.is_available():
        yield Finding(NOTE, f"torch {torch.__version__} does not see the GPU", mend)


def tensorrt() -> Finding:
    """Whether TensorRT and CUDA's Python bindings are installed, load, and see the GPU."""
    for module, package in TENSORRT_PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            text = f"{package} is not installed: TensorRT runs networks fastest on a GPU"
            return Finding(NOTE, text, install_command(package, _pip()))
    try:
        from marigold_ros.engines import tensorrt_log, tensorrt_ready
        from marigold_ros.engines.cuda import gpu

        device = gpu()
        version = tensorrt_ready.trt.__version__
    except Unusable as problem:
        return Finding(WRONG, f"TensorRT: {problem}")
    except Exception as error:  # ImportError of a library, or whatever a broken installation raises
        return Finding(WRONG, f"TensorRT cannot be loaded: {error}", install_command("tensorrt", _pip()))
    try:
        tensorrt_log.require_gpu()
    except Unusable as problem:  # CUDA works: this TensorRT is for another one
        return Finding(WRONG, str(problem), install_command("tensorrt", _pip()))
    return Finding(
        OK,
        f"TensorRT {version} on {device.name} (sm {device.compute_capability}, {device.multiprocessors} "
        f"multiprocessors, {device.memory_gib} GiB), CUDA driver {device.driver}, runtime {device.runtime}",
    )


def ros() -> Iterator[Finding]:
    """ROS, and what DDS needs to carry images."""
    if importlib.util.find_spec("rclpy") is None:
        mend = "source /opt/ros/DISTRO/setup.bash, or pip install 'ros-rclpy[fastrtps]' ros-common-interfaces"
        yield Finding(WRONG, "rclpy cannot be imported: the node cannot start", mend)
        return
    distribution = os.environ.get("ROS_DISTRO", "of no sourced installation")
    yield Finding(OK, f"ROS 2 {distribution}, domain {os.environ.get('ROS_DOMAIN_ID', '0')}")
    rmw = os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    variables = PROFILE_VARIABLES[1:] if distribution in _FAST_DDS_3 else PROFILE_VARIABLES
    profile = next(filter(None, map(os.environ.get, variables)), None)
    mend = f"export {variables[0]}={shared('config/fastdds.xml')}"
    if "fastrtps" not in rmw:
        yield Finding(NOTE, f"{rmw}: the DDS profile is for Fast DDS; see that images of 1 MB and more arrive")
    elif profile is None:
        text = "no Fast DDS profile in this shell: most images between processes get lost; the launch files set it"
        yield Finding(NOTE, text, mend)
    elif not Path(profile).is_file():
        yield Finding(WRONG, f"Fast DDS profile {profile}: no such file", mend)
    else:
        yield Finding(OK, f"Fast DDS profile {profile}")
    if importlib.util.find_spec("tf2_ros") is None:
        text = "tf2_ros is not installed: the LiDAR's place must be given (range.extrinsic: static)"
        yield Finding(NOTE, text, "sudo apt install ros-$ROS_DISTRO-tf2-ros-py")
    usage = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    yield from shared_memory(usage.total if usage else 0, usage.free if usage else 0)
    buffer = _lines(Path("/proc/sys/net/core/rmem_max"))
    if buffer:
        yield from socket_buffer(int(buffer[0]))


def shared_memory(total_bytes: int, free_bytes: int) -> Iterator[Finding]:
    """Whether /dev/shm holds the DDS profile's segments: of this node, and of those that it talks to."""
    text = f"/dev/shm: {free_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB free"
    if total_bytes < _SHARED_MEMORY_BYTES:
        mend = "docker run --shm-size=512m ..., or sudo mount -o remount,size=512m /dev/shm"
        yield Finding(WRONG, f"{text}, too little for the DDS profile's segments of 64 MB", mend)
    elif free_bytes < _SHARED_MEMORY_BYTES:
        text = f"{text}; each running process with the DDS profile takes 70 MB, each that was killed leaves them there"
        yield Finding(WRONG if free_bytes < _SEGMENT_BYTES else NOTE, text, "fastdds shm clean")
    else:
        yield Finding(OK, text)


def socket_buffer(bytes_: int) -> Iterator[Finding]:
    """Whether large messages pass between machines."""
    text = f"socket buffers up to {bytes_ / 1e6:.1f} MB"
    if bytes_ < _SOCKET_BUFFER_BYTES:
        mend = f"sudo sysctl -w net.core.rmem_max={2 * _SOCKET_BUFFER_BYTES}"
        yield Finding(NOTE, f"{text}: clouds and images to other machines get lost", mend)
    else:
        yield Finding(OK, text)


def cache(folder: Path) -> Iterator[Finding]:
    """The folder of exported networks, and each network in it."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        mend = f"sudo chown -R $USER {existing}, or set model.cache_dir"
        yield Finding(WRONG, f"cache {folder}: cannot be written", mend)
        return
    free = shutil.disk_usage(existing).free
    text = f"cache {folder}: {free / 1e9:.1f} GB free on its disk"
    if free < _FREE_DISK_BYTES:
        yield Finding(
            NOTE, f"{text}, too little to export a large checkpoint", f"rm -r {folder}, or set model.cache_dir"
        )
    else:
        yield Finding(OK, text)
    for path in cached_files(folder):
        yield exported(path) if intact(path) else Finding(WRONG, f"{path}: is damaged", f"rm {path}; export it again")
    damaged = sorted((folder / "tensorrt").glob("*.bad"))
    if damaged:
        size = sum(path.stat().st_size for path in damaged) / 1e9
        mend = f"rm {folder / 'tensorrt'}/*.bad"
        yield Finding(NOTE, f"{len(damaged)} damaged TensorRT engines were put aside, {size:.1f} GB", mend)
    for parts in all_parts(folder):
        yield exported_parts(parts, folder)


def checkpoint(name: str, folder: Path) -> Finding:
    """One checkpoint: whole, and with its network exported, in its own folder or in the cache `folder`, or not."""
    try:
        info = describe(find_checkpoint(name))
        ready = ready_file(info, folder)
    except Unusable as problem:
        return Finding(WRONG, str(problem))
    if ready is not None and ready == info.onnx:
        return exported(ready)
    what = f"{info.kind.protocol}, gives {' and '.join(info.kind.targets)}"
    if info.metric is not None:
        metric = info.metric
        what += f" in metres, {metric.d_min_m:g} to {metric.d_max_m:g} m at {metric.canonical_focal_px:g} px"
    if info.kind.single_step is None:
        return Finding(OK, f"checkpoint {name}: whole ({what}); for 'estimate', not for the node")
    if ready is not None:
        return Finding(OK, f"checkpoint {name}: whole ({what}), exported to {ready}")
    return Finding(OK, f"checkpoint {name}: whole ({what})", f"ros2 run marigold_ros export --checkpoint {name}")


def exported_parts(parts: Parts, folder: Path) -> Finding:
    """A network that is exported for TensorRT: built for this GPU, and its self-check, made anew."""
    try:
        parts.require_whole()
    except Unusable as problem:
        return Finding(WRONG, str(problem))
    if not driver_is_here() or any(importlib.util.find_spec(module) is None for module in TENSORRT_PACKAGES):
        return Finding(NOTE, f"{parts.folder}: not checked, there is no GPU here, or no TensorRT")
    options = ["--engine", "tensorrt", *parts.manifest.get("options", []), "--cache-dir", str(folder)]
    command = f"ros2 run marigold_ros export {shlex.join(options)}"
    try:
        from marigold_ros.engines.tensorrt_ready import Refused, open_built
    except Exception:  # told above, with the libraries
        return Finding(WRONG, f"{parts.folder}: not checked, TensorRT cannot be loaded")
    try:
        opened = open_built(parts, folder, check_anew=True)
    except Refused as problem:
        return Finding(WRONG, f"{parts.folder}: {problem}", f"{command} --rebuild")
    except Unusable as problem:
        return Finding(WRONG, f"{parts.folder}: {problem}")
    if opened is None:
        return Finding(NOTE, f"{parts.folder}: no engine for this GPU and TensorRT is built", command)
    engine, found = opened
    engine.close()
    return Finding(OK, f"{parts.folder}: on {engine.description}, {found}")


def exported(path: Path) -> Finding:
    """The self-check of an exported network, made anew."""
    if not _version("openvino"):
        return Finding(NOTE, f"{path}: not checked, OpenVINO is not installed", _pip("openvino"))
    try:
        from marigold_ros.engines.openvino_engine import OpenVinoEngine
    except Exception as error:  # ImportError, or whatever else a broken installation raises
        return Finding(WRONG, f"OpenVINO cannot be loaded ({one_line(error)})", _pip("--force-reinstall openvino"))
    try:
        engine = OpenVinoEngine(path)
        found = verdict(engine, path)
    except Unusable as problem:
        return Finding(WRONG, str(problem))
    text = f"{path}: on {engine.description}, {found}"
    if found.passed:
        return Finding(OK, text)
    return Finding(WRONG, f"{text}; too far", "set model.engine to 'torch', or install another version of openvino")


def _version(package: str) -> str:
    """The version of an installed package, '' where it is not installed."""
    if importlib.util.find_spec(package) is None:
        return ""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _pip(package: str = "") -> str:
    # Debian and Ubuntu 24.04 refuse to install beside what apt installed, unless told.
    managed = sys.prefix == sys.base_prefix and (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").is_file()
    option = "--break-system-packages " if managed else ""
    return f"{Path(sys.executable).name} -m pip install {option}{package}".rstrip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def report(findings: Iterable[Finding], title: str) -> list[Finding]:
    """Print findings as they come; returns them."""
    print(f"\n{title}")
    made = []
    for finding in findings:
        print(finding, flush=True)
        made.append(finding)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; exit status 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NAME", help="look at this one as well")
    parser.add_argument("--cache-dir", default="", help="the cache, default ~/.cache/marigold_ros")
    arguments = parser.parse_args(argv)
    folder = cache_folder(arguments.cache_dir)
    findings = [
        *report(machine(), "Machine"),
        *report(libraries(), "Libraries"),
        *report(ros(), "ROS and DDS"),
        *report((checkpoint(name, folder) for name in [*BUNDLED, *arguments.checkpoint]), "Checkpoints"),
        *report(cache(folder), "Exported networks"),
    ]
    wrong = sum(finding.level == WRONG for finding in findings)
    notes = sum(finding.level == NOTE for finding in findings)
    print(f"\n{wrong} wrong, {notes} to note, {len(findings) - wrong - notes} ok")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
