"""How fast the node is, stage by stage, on this machine: `ros2 run marigold_ros benchmark`.

The stages of a frame are timed in the node's own pipeline, messages by themselves; then the real node, in a process of
its own, is timed from image stamp to publish over DDS. Where torch and diffusers are installed, the network's
arithmetic is set against its time, part by part where the engine can tell, and diffusers' MarigoldDepthPipeline runs on
the same weights and the same image in the same run. `--folds` measures what the folds save; `--memory 10000` watches
the node's memory instead.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from rclpy.utilities import remove_ros_args
from std_msgs.msg import Header

from marigold_ros import comparison, compiled, decoding, messages
from marigold_ros.anchors import Scan, find_anchors
from marigold_ros.config import Config, ModelConfig, Unusable
from marigold_ros.driver import Driver, cloud_message, driven_node
from marigold_ros.estimator import load_estimator
from marigold_ros.export import cache_folder
from marigold_ros.geometry import Camera, Rectifier, backproject, pixel_rays, resize
from marigold_ros.metric import from_space, to_space
from marigold_ros.pipeline import FrameDepth, Pipeline
from marigold_ros.roofline import (
    FP16,
    PARTS,
    Counts,
    Device,
    bound_ms,
    device_named,
    everything,
    flop,
    size_of,
    subject,
)
from marigold_ros.timing import WARM_UP, Timing, alone, measure, timing

SIZES = ((640, 480), (1280, 720))
POINTS = 20_000
NETWORK = "network"
# What the pipeline does while the network works, before it waits for what of that is left: in no sum.
BESIDE = "anchors, beside the network"
# What the table calls the pipeline's stages.
STAGES = {
    "wait for motion, anchors, calibration, law": "beside",
    "see whether a nearer scan has come": "anchors",
    "fit": "fit",
    "correct": "correct",
    "sigma, confidence, gate of the cloud": "sigma",
}
REST = "all but the network, publishing left out"
# By the node's own clock, in which the network includes its resizes. p95 is the sum of the stages', an upper bound.
NODE_REST = "all but the network, publishing included (node)"
# The node takes its time when the last output is out; the subscriber has the depth image, the first one, before that.
ALL_PUBLISHED = "stamp to all outputs published (node, over DDS)"
DEPTH_ARRIVED = "stamp to depth image alone (subscriber), sent first"
_NEAR_M, _FAR_M = 2.0, 20.0
_SETTLED_FRAMES = 200
# Processes that load the network to see how long it takes.
_LOADS = 3


@dataclass(frozen=True)
class Scene:
    """One image and a scan that agrees with what the network says of it, so that every stage has real work."""

    rgb: np.ndarray
    camera: Camera
    points: np.ndarray


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
        "loops": compiled.description(),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "none"),
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


def camera_of(width: int, height: int) -> Camera:
    """The camera of all scenes of a size."""
    return Camera(width, height, 0.75 * width, 0.75 * width, (width - 1) / 2, (height - 1) / 2)


def make_scene(
    estimator: Callable[[np.ndarray], np.ndarray], space: str, width: int, height: int, turned_px: int = 0
) -> Scene:
    """A hall at `width` x `height` and `POINTS` LiDAR points, in the camera's frame, on what the network sees."""
    rgb = np.roll(picture_of_a_hall(width, height), turned_px, axis=1)
    camera = camera_of(width, height)
    relative = estimator(rgb)
    relative = (relative - relative.min()) / max(float(np.ptp(relative)), 1e-6)
    near, far = (to_space(np.float64(limit), space) for limit in (_NEAR_M, _FAR_M))
    depth_m = from_space(near + (far - near) * relative, space).astype(np.float32)
    random = np.random.default_rng(0)
    chosen = random.choice(width * height, POINTS, replace=False)
    points = backproject(depth_m, pixel_rays(camera)).reshape(-1, 3)[chosen]
    return Scene(rgb, camera, points * random.normal(1.0, 0.01, (POINTS, 1)).astype(np.float32))


def measure_stages(estimator: Any, scenes: Sequence[Scene], repeats: int) -> dict[str, Timing]:
    """Each stage of a frame: what messages cost by itself, the rest as the node's own pipeline times it.

    scenes: images of one camera between which it turns to and fro, so that its motion has to be told.
    """
    rgb, camera = scenes[0].rgb, scenes[0].camera
    header = Header(frame_id="camera_optical")
    image = messages.colour_image(rgb[..., ::-1], "bgr8", header)
    cloud = cloud_message(scenes[0].points, header)
    rectify = Rectifier(Camera(**{**asdict(camera), "distortion": (-0.2, 0.05, 0.0, 0.0, 0.0)}))
    small_size = estimator.working_size(camera.width, camera.height, camera.focal_px)
    small, small_focal_px = resize(rgb, *small_size), camera.resized(*small_size).focal_px
    coarse = estimator.coarse(rgb, camera.focal_px)
    # Frames are not kept, as the node does not: their memory is the next one's.
    stages = []
    for frame in itertools.islice(_answered(estimator, scenes), WARM_UP + repeats):
        stages.append(frame.stage_s)
        depth_m, problem = frame.depth_m, frame.problem
    if depth_m is None:
        raise Unusable(f"the benchmark's own scene gives no depth: {problem}")
    writer = messages.CloudWriter(camera)

    def out() -> None:
        messages.camera_info(camera, header)
        messages.float_image(depth_m, header)
        writer.organized(depth_m, rgb, header)

    before: dict[str, Callable[[], object]] = {
        "decode image message (bgr8)": lambda: decoding.rgb_from_image(image),
        "rectify": lambda: rectify(rgb),
        "resize to working size": lambda: resize(rgb, *small_size),
        NETWORK: lambda: estimator(small, small_focal_px),
        "resize back": lambda: resize(coarse, camera.width, camera.height),
        "decode cloud message": lambda: decoding.points_from_cloud(cloud),
        BESIDE: lambda: find_anchors(scenes[0].points, np.eye(4), camera, Config().range),
    }
    samples = {name: measure(work, repeats) for name, work in before.items()}
    samples |= {name: [seconds[stage] for seconds in stages[WARM_UP:]] for name, stage in STAGES.items()}
    samples["messages out (depth, info, cloud)"] = measure(out, repeats)
    rest = np.sum([seconds for name, seconds in samples.items() if name not in (NETWORK, BESIDE)], axis=0)
    return {name: timing(seconds) for name, seconds in samples.items()} | {REST: timing(rest)}


def _answered(estimator: Any, scenes: Sequence[Scene]) -> Iterator[FrameDepth]:
    """Frames without end, with all that can be asked for."""
    pipeline, config = Pipeline(estimator), Config()
    for number, scene in enumerate(itertools.cycle(scenes)):
        stamp_ns = number * 100_000_000
        find_scan = partial(Scan, scene.points, np.eye(4), stamp_ns=stamp_ns)
        yield pipeline(
            scene.rgb, scene.camera, stamp_ns, find_scan, config, confidence=True, sigma=True, solid=True,
            peek_scan=find_scan,
        )  # fmt: skip


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
        _send_frames(driver, scene, WARM_UP + frames)
        arrivals = list(driver.arrivals_s.values())[WARM_UP:]
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
    model = chosen_model(arguments)
    facts: dict[str, Any] = {"hardware": hardware()}
    estimator = load_estimator(model)
    facts |= {"checkpoint": estimator.checkpoint, "engine": estimator.engine, "points": POINTS}
    for name, value in (facts["hardware"] | {k: v for k, v in facts.items() if k != "hardware"}).items():
        print(f"{name}: {value}")
    print(flush=True)
    working = {_size(*size): _size(*estimator.working_size(*size, camera_of(*size).focal_px)) for size in SIZES}
    facts["working sizes"] = working
    turning = [[make_scene(estimator, estimator.space, *size, turned_px) for turned_px in (0, 4)] for size in SIZES]
    scenes = [first for first, _ in turning]
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
    for pair in turning:
        size = _size(pair[0].camera.width, pair[0].camera.height)
        columns[size] = measure_stages(estimator, pair, arguments.frames)
    rgb, focal_px = scenes[0].rgb, scenes[0].camera.focal_px
    size = estimator.working_size(*SIZES[0], focal_px)
    parts = {name: timing(seconds) for name, seconds in estimator.part_times(rgb, arguments.frames, focal_px).items()}
    estimator.close()
    gc.collect()
    if not arguments.no_node:
        for column, scene in zip(columns.values(), scenes, strict=True):
            column.update(measure_node(model, scene, arguments.frames))
    print(table(columns, working), flush=True)
    facts["stages (ms)"] = {size: {k: asdict(t) for k, t in column.items()} for size, column in columns.items()}
    parts[NETWORK] = next(iter(columns.values()))[NETWORK]
    facts |= _arithmetic(model, size, parts, "openvino" not in facts["engine"])
    facts |= _first_depth(model, rgb)
    if arguments.folds:
        facts |= _folds(model, resize(rgb, *size), arguments)
    return facts | _compare(model, rgb, arguments)


def chosen_model(arguments: argparse.Namespace) -> ModelConfig:
    """The settings of the network by the command line; raises `Unusable` for what cannot be used."""
    width, height = arguments.size or (0, 0)
    checkpoint, tiny_vae = arguments.checkpoint, arguments.tiny_vae
    if arguments.random_sd2:
        checkpoint, tiny_vae = _random_sd2(arguments.vae, tiny_vae)
    return ModelConfig(
        checkpoint=checkpoint,
        engine=arguments.engine,
        width=width,
        height=height,
        threads=arguments.threads,
        vae=arguments.vae,
        tiny_vae=tiny_vae,
    )


def _random_sd2(vae: str, tiny_vae: str) -> tuple[str, str]:
    """A checkpoint and a tiny VAE of random weights and the published networks' size, kept in the cache."""
    try:
        from marigold_ros import sd2
    except ImportError as error:
        raise Unusable(f"{error.name} is not installed: --random-sd2 needs torch and diffusers") from error
    cache = cache_folder("")
    checkpoint = sd2.random_checkpoint(cache)
    return str(checkpoint), tiny_vae if vae == "full" else str(sd2.random_tiny_vae(cache))


def _size(width: int, height: int) -> str:
    return f"{width}x{height}"


def _arithmetic(
    model: ModelConfig, size: tuple[int, int], parts: Mapping[str, Timing], gpu_used: bool
) -> dict[str, Any]:
    """Print and return the network's arithmetic at a working size, and what its times make of it.

    parts: times of what was timed, of the whole network at least.
    """
    try:
        counts = subject(model.checkpoint, size, model.vae, model.tiny_vae).counts()
    except Unusable as problem:
        print(f"\narithmetic: not counted ({problem})")
        return {}
    gpu = comparison.cuda_name() if gpu_used else None
    device = device_named(*gpu) if gpu else None
    peak = "" if gpu is None else f", {gpu[0]}: unknown peak"
    if device is not None:
        peak = f", {device.name}: {device.fp16_tflops:g} TFLOP/s of dense float16"
    print(f"\nnetwork at {_size(*size)}{peak}\n{parts_table(parts, counts, device)}", flush=True)
    return {
        "parts (ms)": {name: asdict(found) for name, found in parts.items()},
        "GFLOP": {part: flop(counts[part]) / 1e9 for part in PARTS},
    }


def parts_table(parts: Mapping[str, Timing], counts: Counts, device: Device | None) -> str:
    """Parts down; time, arithmetic, rate, and of a known device its share of the peak and the time's lower bound."""
    head = f"{'part':<22}{'ms p50':>10}{'GFLOP':>10}{'TFLOP/s':>10}"
    if device is not None:
        head += f"{'of peak':>10}{'at least':>10}"
    lines = [head, "-" * len(head)]
    for name, operators in [*counts.items(), (NETWORK, everything(counts))]:
        line = f"{name:<22}"
        work = flop(operators)
        if name not in parts:
            lines.append(f"{line}{'':>10}{work / 1e9:>10.1f}")
            continue
        # A clock's tick is the least that can be told.
        rate = work / max(parts[name].p50_ms, 0.01) / 1e9
        line += f"{parts[name].p50_ms:>10.2f}{work / 1e9:>10.1f}{rate:>10.3f}"
        if device is not None:
            line += f"{rate / device.fp16_tflops:>10.1%}{bound_ms(operators, device, FP16):>10.2f}"
        lines.append(line)
    return "\n".join(lines)


def _first_depth(model: ModelConfig, rgb: np.ndarray) -> dict[str, Any]:
    """Print and return how long a fresh process takes from nothing loaded to the first answer."""
    seconds = sorted(alone(comparison.first_depth_s, model, rgb) for _ in range(_LOADS))
    median = seconds[len(seconds) // 2]
    print(
        f"\nload to first depth, in a fresh process: {median:.1f} s ({seconds[0]:.1f} to {seconds[-1]:.1f})", flush=True
    )
    return {"load to first depth (s)": [round(each, 2) for each in seconds]}


def _folds(model: ModelConfig, rgb: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return what the folds save on OpenVINO: two exports that differ in nothing else, by turns.

    rgb: at the working size.
    """
    model = replace(model, height=rgb.shape[0], width=rgb.shape[1])
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.onnx" for name in ("folded", "unfolded")]
        for path in paths:
            alone(comparison.export_as_it_is, model, path, path.stem == "folded")
        pairs = [
            [alone(comparison.measure_openvino, path, model.threads, rgb, arguments.frames).p50_ms for path in paths]
            for _ in range(arguments.rounds)
        ]
    lean_ms, whole_ms, ratios = _by_turns(pairs)
    print(
        f"\nnetwork on OpenVINO at {_size(model.width, model.height)}, median of {len(pairs)} rounds: "
        f"folded {lean_ms} ms, unfolded {whole_ms} ms; {ratios}",
        flush=True,
    )
    return {"folded and unfolded (ms)": pairs}


def _compare(model: ModelConfig, rgb: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the comparison with diffusers, image in, relative depth out, at 640x480."""
    if arguments.no_diffusers:
        return {}
    if not comparison.diffusers_installed():
        print("\ndiffusers: not compared, torch, diffusers and transformers are not all installed")
        return {}
    theirs = {"MarigoldDepthPipeline": False}
    if comparison.cuda_name() is not None:
        theirs["MarigoldDepthPipeline, tiny VAE and compiled U-Net"] = True
    few = max(3, arguments.frames // 5)
    rounds: dict[str, list[list[float]]] = {name: [] for name in theirs}
    for _ in range(arguments.rounds):
        own = alone(comparison.measure_estimator, model, rgb, arguments.frames).p50_ms
        for name, recipe in theirs.items():
            rounds[name].append([own, alone(comparison.measure_diffusers, model, rgb, few, recipe).p50_ms])
    for name, pairs in rounds.items():
        own_ms, their_ms, ratios = _by_turns(pairs)
        print(
            f"\nimage to relative depth at {_size(*SIZES[0])}, median of {len(pairs)} rounds: "
            f"marigold_ros {own_ms} ms, diffusers' {name} {their_ms} ms; {ratios}"
        )
    return {"marigold_ros and diffusers (ms)": rounds}


def _by_turns(pairs: Sequence[Sequence[float]]) -> tuple[float, float, str]:
    """Medians of the first and second of pairs in milliseconds, and how much slower the second was, in words."""
    ratios = sorted(round(second / first, 2) for first, second in pairs)
    first_ms, second_ms = (round(float(np.median(times)), 1) for times in zip(*pairs, strict=True))
    return first_ms, second_ms, f"{ratios[len(ratios) // 2]} times as fast ({ratios[0]} to {ratios[-1]})"


def _choices(name: str) -> tuple[str, ...]:
    """What a setting of the model may be."""
    return next(field.metadata["choices"] for field in fields(ModelConfig) if field.name == name)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON where asked to."""
    parser = argparse.ArgumentParser(prog="benchmark", description=__doc__.split("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", default="nano", help="another checkpoint (default nano)")
    which.add_argument(
        "--random-sd2", action="store_true", help="the published networks' size with random weights: for speed alone"
    )
    parser.add_argument("--engine", default="auto", choices=_choices("engine"), help="as model.engine (default auto)")
    parser.add_argument("--size", type=size_of, metavar="WxH", help="working size (default: the checkpoint's own)")
    parser.add_argument("--vae", default="full", choices=_choices("vae"), help="as model.vae (default full)")
    parser.add_argument("--tiny-vae", default=ModelConfig.tiny_vae, help="as model.tiny_vae")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the network; 0 leaves it to the engine")
    parser.add_argument("--frames", type=int, default=50, help="repetitions of every measurement (default 50)")
    # Other guests of a shared machine slow the one or the other down for seconds.
    parser.add_argument("--rounds", type=int, default=5, help="turns of a comparison (default 5)")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="watch the node's memory over N frames")
    parser.add_argument("--folds", action="store_true", help="also measure what the folds save, on OpenVINO")
    parser.add_argument("--no-node", action="store_true", help="do not start the node")
    parser.add_argument("--no-diffusers", action="store_true", help="do not compare with diffusers")
    parser.add_argument("--json", type=Path, default=None, help="write the numbers here as well")
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(remove_ros_args(["", *argv])[1:])
    if arguments.frames < 2 or arguments.rounds < 1 or arguments.memory < 0:
        parser.error("--frames must be at least 2, --rounds at least 1, --memory not negative")
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
