"""How fast the node is, stage by stage, on this machine: `ros2 run marigold_ros benchmark`.

Every stage is timed by itself with the node's own functions; then the real node, in a process of its own, is timed from
image stamp to publish over DDS. Where torch and diffusers are installed, diffusers' MarigoldDepthPipeline runs on the
same weights and the same image in the same run. `--memory 10000` watches the node's memory instead.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from rclpy.utilities import remove_ros_args
from std_msgs.msg import Header

from marigold_ros import messages
from marigold_ros.anchors import find_anchors
from marigold_ros.config import FitConfig, ModelConfig, RangeConfig, Unusable
from marigold_ros.driver import Driver, cloud_message, driven_node
from marigold_ros.estimator import load_estimator
from marigold_ros.geometry import Camera, Rectifier, backproject, pixel_rays, resize
from marigold_ros.metric import MetricFit, apply_fit, fit_metric, from_space, to_space

SIZES = ((640, 480), (1280, 720))
POINTS = 20_000
NETWORK = "network"
REST = "all but the network, publishing left out"
# By the node's own clock, in which the network includes its resizes. p95 is the sum of the stages', an upper bound.
NODE_REST = "all but the network, publishing included (node)"
# The node takes its time when the last output is out; the subscriber has the depth image, the first one, before that.
ALL_PUBLISHED = "stamp to all outputs published (node, over DDS)"
DEPTH_ARRIVED = "stamp to depth image alone (subscriber), sent first"
_NEAR_M, _FAR_M = 2.0, 20.0
_WARM_UP = 5
_SETTLED_FRAMES = 200
# Other guests of a shared machine slow the one or the other down for seconds.
_ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one stage at one image size."""

    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Scene:
    """One image and a scan that agrees with what the network says of it, so that every stage has real work."""

    rgb: np.ndarray
    camera: Camera
    points: np.ndarray


def timing(seconds: Sequence[float]) -> Timing:
    """p50 and p95 of durations in seconds."""
    p50, p95 = np.percentile(np.asarray(seconds) * 1e3, (50, 95))
    return Timing(round(float(p50), 2), round(float(p95), 2))


def measure(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after some that do not count."""
    for _ in range(min(_WARM_UP, repeats)):
        work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def hardware() -> dict[str, str]:
    """What the numbers were measured on; the load says whether the machine had other things to do."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "CPU": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "numpy": np.__version__,
        "OpenCV": cv2.__version__,
    }


def picture_of_a_hall(width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: floor, walls and boxes, with texture; no file, no random state."""
    v, u = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    depth = 1.0 / (0.08 + np.abs(v - 0.45) + 0.4 * np.abs(u - 0.5))
    texture = 20.0 * np.sin(40 * u * depth) * np.sin(9 * depth)
    image = np.clip(
        np.stack([60 + 90 * v, 80 + 60 * v, 110 - 40 * v], axis=-1) + texture[..., None] + 8 * depth[..., None], 0, 255
    )
    image = image.astype(np.uint8)
    for left, top, right, bottom, colour in (
        (0.1, 0.4, 0.3, 0.9, (150, 90, 50)),
        (0.6, 0.35, 0.75, 0.7, (50, 90, 140)),
    ):
        corners = (int(left * width), int(top * height)), (int(right * width), int(bottom * height))
        cv2.rectangle(image, *corners, colour, cv2.FILLED)
    return image


def make_scene(estimator: Callable[[np.ndarray], np.ndarray], space: str, width: int, height: int) -> Scene:
    """A hall at `width` x `height` and `POINTS` LiDAR points, in the camera's frame, on what the network sees."""
    rgb = picture_of_a_hall(width, height)
    camera = Camera(width, height, 0.75 * width, 0.75 * width, (width - 1) / 2, (height - 1) / 2)
    relative = estimator(rgb)
    relative = (relative - relative.min()) / max(float(np.ptp(relative)), 1e-6)
    near, far = (to_space(np.float64(limit), space) for limit in (_NEAR_M, _FAR_M))
    depth_m = from_space(near + (far - near) * relative, space).astype(np.float32)
    random = np.random.default_rng(0)
    chosen = random.choice(width * height, POINTS, replace=False)
    points = backproject(depth_m, pixel_rays(camera)).reshape(-1, 3)[chosen]
    return Scene(rgb, camera, points * random.normal(1.0, 0.01, (POINTS, 1)).astype(np.float32))


def measure_stages(estimator: Any, scene: Scene, repeats: int) -> dict[str, Timing]:
    """Each stage of a frame by itself, with the functions that the node calls."""
    rgb, camera = scene.rgb, scene.camera
    header = Header(frame_id="camera_optical")
    image = messages.colour_image(rgb[..., ::-1], "bgr8", header)
    cloud = cloud_message(scene.points, header)
    distorted = Camera(**{**asdict(camera), "distortion": (-0.2, 0.05, 0.0, 0.0, 0.0)})
    rectify = Rectifier(distorted)
    small_size = estimator.working_size(camera.width, camera.height)
    small = resize(rgb, *small_size)
    answer, relative = estimator(small), estimator(rgb)
    limits, fitting, pose = RangeConfig(), FitConfig(), np.eye(4)
    anchors = find_anchors(scene.points, pose, camera, limits)
    fit = fit_metric(relative, anchors, estimator.space, fitting)
    if not isinstance(fit, MetricFit):
        raise Unusable(f"the benchmark's own scene gives no fit: {fit.reason}")
    depth_m = apply_fit(fit, relative, fitting.max_depth_m)
    writer = messages.CloudWriter(camera)

    def out() -> None:
        messages.camera_info(camera, header)
        messages.float_image(depth_m, header)
        writer.organized(depth_m, rgb, header)

    stages: dict[str, Callable[[], object]] = {
        "decode image message (bgr8)": lambda: messages.rgb_from_image(image),
        "rectify": lambda: rectify(rgb),
        "resize to working size": lambda: resize(rgb, *small_size),
        NETWORK: lambda: estimator(small),
        "resize back": lambda: resize(answer, camera.width, camera.height),
        "decode cloud message": lambda: messages.points_from_cloud(cloud),
        "anchors": lambda: find_anchors(scene.points, pose, camera, limits),
        "fit": lambda: fit_metric(relative, anchors, estimator.space, fitting),
        "apply": lambda: apply_fit(fit, relative, fitting.max_depth_m),
        "messages out (depth, info, cloud)": out,
    }
    samples = {name: measure(work, repeats) for name, work in stages.items()}
    rest = np.sum([seconds for name, seconds in samples.items() if name != NETWORK], axis=0)
    return {name: timing(seconds) for name, seconds in samples.items()} | {REST: timing(rest)}


@contextmanager
def measured_node(model: ModelConfig) -> Iterator[tuple[Driver, Any]]:
    """The real node with the benchmark's settings, everything that costs time subscribed to."""
    parameters = {f"model.{name}": value for name, value in asdict(model).items() if value != ""}
    parameters["range.extrinsic"] = "static"
    with _log() as log:
        try:
            with driven_node(parameters, log, points=True) as (driver, process):
                yield driver, process
        except Unusable:
            log.seek(0)
            sys.stderr.write(log.read())
            raise


@contextmanager
def _log() -> Iterator[IO]:
    with tempfile.TemporaryFile("w+") as log:
        yield log


def measure_node(model: ModelConfig, scene: Scene, frames: int) -> dict[str, Timing]:
    """Stamp to all outputs published, and to the depth image in another process, of frames sent one by one."""
    with measured_node(model) as (driver, _):
        _send_frames(driver, scene, _WARM_UP + frames)
        arrivals = list(driver.arrivals_s.values())[_WARM_UP:]
        # The node's window is ten seconds long: its next message speaks of these frames.
        before = driver.facts
        driver.spin_until(lambda: driver.facts is not before, 3.0)
        own = [float(driver.facts[f"latency stamp to publish {p} (ms)"]) for p in ("p50", "p95")]
        rest = [
            sum(
                float(ms)
                for name, ms in driver.facts.items()
                if name.endswith(f" time {p} (ms)") and "network" not in name
            )
            for p in ("p50", "p95")
        ]
    return {NODE_REST: Timing(*rest), ALL_PUBLISHED: Timing(*own), DEPTH_ARRIVED: timing(arrivals)}


def _send_frames(driver: Driver, scene: Scene, frames: int) -> None:
    for _ in range(frames):
        driver.ask(scene.rgb, scene.camera, scene.points)


def measure_diffusers(model: ModelConfig, rgb: np.ndarray, repeats: int) -> Timing:
    """diffusers' own pipeline on the same weights: one step from zero latents, at the same working size."""
    import torch
    from diffusers import MarigoldDepthPipeline
    from diffusers.utils import logging
    from PIL import Image
    from safetensors.torch import load_file

    from marigold_ros.checkpoints import PROMPT_FILE, PROMPT_KEY, describe, find_checkpoint

    info = describe(find_checkpoint(model.checkpoint))
    logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pipe = MarigoldDepthPipeline.from_pretrained(info.folder, text_encoder=None, tokenizer=None)
    pipe.empty_text_embedding = load_file(info.folder / PROMPT_FILE)[PROMPT_KEY].float()
    pipe.set_progress_bar_config(disable=True)
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    latents = torch.zeros(1, pipe.vae.config.latent_channels, info.height // factor, info.width // factor)
    image = Image.fromarray(rgb)

    def work() -> object:
        return pipe(
            image, num_inference_steps=1, ensemble_size=1, latents=latents, output_type="np",
            processing_resolution=max(info.width, info.height),
        )  # fmt: skip

    return timing(measure(work, repeats))


def watch_memory(model: ModelConfig, scene: Scene, frames: int) -> dict[str, float]:
    """Resident memory of the node's process in MB: after it settled, at the end, the largest, and the growth."""
    import psutil

    with measured_node(model) as (driver, process):
        node = psutil.Process(process.pid)
        sizes = []
        for number in range(1, frames + 1):
            _send_frames(driver, scene, 1)
            driver.arrivals_s.clear()
            if number >= min(_SETTLED_FRAMES, frames // 2):
                sizes.append(node.memory_info().rss / 1e6)
            if number % 500 == 0:
                print(f"{number} of {frames} frames, {sizes[-1]:.0f} MB", file=sys.stderr)
    tail = max(1, len(sizes) // 20)
    start, end = float(np.median(sizes[:tail])), float(np.median(sizes[-tail:]))
    found = {"settled": start, "end": end, "largest": max(sizes), "growth": end - start}
    return {name: round(size, 1) for name, size in found.items()}


def table(columns: Mapping[str, Mapping[str, Timing]], working_sizes: Mapping[str, str]) -> str:
    """Stages down, image sizes across, p50 and p95 in milliseconds; above, the size at which the network ran."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    title = "working size"
    width = max(map(len, [title, *names])) + 2
    sizes = f"{title:<{width}}" + "".join(f"{working_sizes[size]:>16}{'':>9}" for size in columns)
    head = f"{'ms':<{width}}" + "".join(f"{size + ' p50':>16}{'p95':>9}" for size in columns)
    lines = [head, sizes.rstrip(), "-" * len(head)]
    for name in names:
        cells = [column.get(name) for column in columns.values()]
        lines.append(
            f"{name:<{width}}"
            + "".join(f"{'':>25}" if c is None else f"{c.p50_ms:>16.1f}{c.p95_ms:>9.1f}" for c in cells)
        )
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for and print it; the same facts as a JSON-ready dictionary."""
    model = ModelConfig(checkpoint=arguments.checkpoint, engine=arguments.engine, threads=arguments.threads)
    facts: dict[str, Any] = {"hardware": hardware()}
    estimator = load_estimator(model)
    facts |= {"checkpoint": estimator.checkpoint, "engine": estimator.engine, "points": POINTS}
    for name, value in (facts["hardware"] | {k: v for k, v in facts.items() if k != "hardware"}).items():
        print(f"{name}: {value}")
    print(flush=True)
    working = {_size(*size): _size(*estimator.working_size(*size)) for size in SIZES}
    facts["working sizes"] = working
    scenes = [make_scene(estimator, estimator.space, *size) for size in SIZES]
    if arguments.memory:
        estimator.close()
        facts["node memory (MB)"] = {}
        # Growth shows at one size; the others only show how much larger images take.
        for scene, frames in zip(scenes, (arguments.memory, min(arguments.memory, _SETTLED_FRAMES)), strict=True):
            size = _size(scene.camera.width, scene.camera.height)
            facts["node memory (MB)"][size] = found = watch_memory(model, scene, frames)
            print(f"memory of the node over {frames} frames at {size} (working size {working[size]}), MB: {found}")
        return facts
    columns: dict[str, dict[str, Timing]] = {}
    for scene in scenes:
        columns[_size(scene.camera.width, scene.camera.height)] = measure_stages(estimator, scene, arguments.frames)
    estimator.close()
    gc.collect()
    if not arguments.no_node:
        for column, scene in zip(columns.values(), scenes, strict=True):
            column.update(measure_node(model, scene, arguments.frames))
    print(table(columns, working), flush=True)
    facts["stages (ms)"] = {size: {k: asdict(t) for k, t in column.items()} for size, column in columns.items()}
    facts |= _compare(model, scenes[0].rgb, arguments)
    return facts


def _size(width: int, height: int) -> str:
    return f"{width}x{height}"


def _compare(model: ModelConfig, rgb: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the comparison with diffusers, image in, relative depth out, at 640x480."""
    if arguments.no_diffusers:
        return {}
    if not all(importlib.util.find_spec(name) for name in ("torch", "diffusers", "transformers")):
        print("\ndiffusers: not compared, torch, diffusers and transformers are not all installed")
        return {}
    pairs = []
    for _ in range(_ROUNDS):
        own = _alone(measure_estimator, model, rgb, arguments.frames)
        theirs = _alone(measure_diffusers, model, rgb, max(3, arguments.frames // 5))
        pairs.append((own.p50_ms, theirs.p50_ms))
    ratios = sorted(round(theirs / own, 1) for own, theirs in pairs)
    own_ms, their_ms = (round(float(np.median(times)), 1) for times in zip(*pairs, strict=True))
    print(
        f"\nimage to relative depth at 640x480, median of {_ROUNDS} rounds: marigold_ros {own_ms} ms, diffusers' "
        f"MarigoldDepthPipeline {their_ms} ms; {ratios[_ROUNDS // 2]} times as fast ({ratios[0]} to {ratios[-1]})"
    )
    return {"marigold_ros and diffusers (ms)": pairs, "times as fast": ratios}


def measure_estimator(model: ModelConfig, rgb: np.ndarray, repeats: int) -> Timing:
    """Image in, relative depth out."""
    estimator = load_estimator(model)
    return timing(measure(lambda: estimator(rgb), repeats))


def _alone(measurement: Callable[..., Timing], *arguments: object) -> Timing:
    """Run a measurement in a process of its own: threads and memory of one library slow the other down."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measurement, *arguments).result()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON where asked to."""
    parser = argparse.ArgumentParser(prog="benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="nano", help="another checkpoint (default nano)")
    parser.add_argument("--engine", default="auto", help="auto, openvino or torch")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the network; 0 leaves it to the engine")
    parser.add_argument("--frames", type=int, default=50, help="repetitions of every measurement (default 50)")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="watch the node's memory over N frames")
    parser.add_argument("--no-node", action="store_true", help="do not start the node")
    parser.add_argument("--no-diffusers", action="store_true", help="do not compare with diffusers")
    parser.add_argument("--json", type=Path, default=None, help="write the numbers here as well")
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(remove_ros_args(["", *argv])[1:])
    if arguments.frames < 2 or arguments.memory < 0:
        parser.error("--frames must be at least 2, --memory not negative")
    try:
        facts = run(arguments)
    except Unusable as problem:
        print(f"benchmark: {problem}", file=sys.stderr)
        return 1
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
