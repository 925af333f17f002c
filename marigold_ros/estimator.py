"""RGB image -> relative depth or surface normals, whatever runs the network."""

from __future__ import annotations

import importlib.util
import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from marigold_ros.canonical import check_focal, focal_after_resize
from marigold_ros.checkpoints import CheckpointInfo, describe, find_checkpoint, require_single_step, with_tiny_vae
from marigold_ros.config import ModelConfig, Unusable, one_line
from marigold_ros.disagreement import SECOND_PASS, disagreement
from marigold_ros.export import TENSORRT_PACKAGES, cache_folder, cached_file, onnx_file, ready_file
from marigold_ros.family import DEPTH, NORMALS
from marigold_ros.geometry import Camera, resize
from marigold_ros.metric import MetricFit
from marigold_ros.nvidia_driver import driver_is_here, install_command
from marigold_ros.parts import ready_parts
from marigold_ros.selfcheck import Verdict, kept_verdict

log = logging.getLogger(__name__)

# The modules that an engine needs and the packages that they come in; the engine to prefer comes first.
PACKAGES = {
    "tensorrt": TENSORRT_PACKAGES,
    "openvino": {"openvino": "openvino"},
    "torch": {name: name for name in ("torch", "diffusers", "safetensors")},
}


class Engine(Protocol):
    """Runs the network at a working size: (h, w, 3) uint8 -> (h, w) or (h, w, 3) float32, see `network.answer`.

    any_size: it takes every working size, and not only the one it was built for.
    """

    description: str
    any_size: bool

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """The network's answer; it may be overwritten by the next call."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


class Estimator:
    """Relative depth of camera images, affine in `space` and increasing with distance.

    `width` and `height` are the working size in pixels for images of the checkpoint's own shape; images of other
    shapes run at about the same number of pixels in their own shape, unless the size was `fixed` by the user. To a
    `metric` checkpoint, whose answer `depth_m` and `fit_of` turn into metres, the working size also depends on the
    camera: calls take its focal length, the geometric mean of fx and fy in pixels of the image; others ignore it.
    """

    def __init__(self, info: CheckpointInfo, engine: Engine, check: str, width: int, height: int, fixed: bool) -> None:
        self.checkpoint = info.name
        self._check = check
        self.space = info.space
        self.metric = info.metric
        self.width, self.height = width, height
        self._multiple = info.multiple
        self._fixed = fixed
        self._engine = engine
        # What makes the second, mirrored pass: this estimator itself, another one, or none.
        self._second: Estimator | None = None
        # The first call compiles: pay for it here, so that an estimator that exists answers at once.
        self(np.zeros((height, width, 3), np.uint8))

    @property
    def engine(self) -> str:
        """What runs the network: library, version, precision and device, and how near it comes to torch."""
        return f"{self._engine.description}{self._check}"

    def __call__(self, rgb: np.ndarray, focal_px: float | None = None) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W) float32 in [0, 1], 0 nearest.

        Raises `Unusable` for anything that is not an RGB image of bytes.
        """
        return resize(self.coarse(rgb, focal_px), rgb.shape[1], rgb.shape[0])

    def coarse(self, rgb: np.ndarray, focal_px: float | None = None) -> np.ndarray:
        """What a call resizes: (h, w) float32 at the working size, or at the image's where that is smaller."""
        return _at_most_size_of(rgb, self._answer(rgb, focal_px).copy())  # the next one overwrites it

    def depth_m(self, rgb: np.ndarray, focal_px: float) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W) float32 metres by the checkpoint's own scale; its farthest is that far or farther.

        Raises `Unusable` of a relative checkpoint, for what is no focal length, and as a call does.
        """
        if self.metric is None:
            raise Unusable(
                f"checkpoint {self.checkpoint!r}: gives relative depth, metres need range points; give a metric one"
            )
        check_focal(focal_px)
        relative = self(rgb, focal_px)
        return self.metric.depth_m(relative, self._working_focal(rgb.shape[1], rgb.shape[0], focal_px))

    def fit_of(self, camera: Camera) -> MetricFit | None:
        """What `depth_m` does to the relative depth of this camera's images, None of a relative checkpoint."""
        if self.metric is None:
            return None
        return self.metric.fit(self._working_focal(camera.width, camera.height, camera.focal_px))

    def with_disagreement(self, rgb: np.ndarray, focal_px: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 -> (h, w) float32 relative depth, exactly that of `coarse`, and (h, w) float32 disagreement.

        The disagreement with a second pass over the mirrored image is >= 0 and in units of relative depth; the larger,
        the less sure. Raises `Unusable` where model.confidence asks for none, and as a call does.
        """
        if self._second is None:
            raise Unusable("model.confidence='none': there is no disagreement; set it to 'mirror' or 'mirror_half'")
        first = self._answer(rgb, focal_px).copy()  # the second pass may overwrite it
        # At half the size, twice the focal length asks for the same resize.
        second_focal_px = None if focal_px is None else focal_px * self.width / self._second.width
        second = self._second._answer(rgb, second_focal_px, mirrored=True)
        second = resize(second, first.shape[1], first.shape[0])
        return _at_most_size_of(rgb, first), _at_most_size_of(rgb, disagreement(first, second))

    def use_second_pass(self, estimator: Estimator) -> None:
        """Let `estimator`, this one or another of the same network, make the second pass of `with_disagreement`.

        It is closed with this one.
        """
        self._second = estimator

    def _answer(self, rgb: np.ndarray, focal_px: float | None, mirrored: bool = False) -> np.ndarray:
        """The engine's answer at the working size, overwritten by the next; `mirrored`: to the mirrored image."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise Unusable(f"image of shape {rgb.shape} and type {rgb.dtype}: must be (H, W, 3) uint8")
        rows, columns = rgb.shape[:2]
        small = resize(rgb, *self.working_size(columns, rows, focal_px))
        if not mirrored:
            return self._engine(np.ascontiguousarray(small))
        return np.ascontiguousarray(self._engine(np.ascontiguousarray(small[:, ::-1]))[:, ::-1])

    def working_size(self, width: int, height: int, focal_px: float | None = None) -> tuple[int, int]:
        """Width and height at which the network sees an image of `width` x `height` pixels."""
        own = self.width / self.height
        by_focal = self.metric is not None and focal_px is not None
        if self._fixed or (not by_focal and 0.9 < (width / height) / own < 1.1):
            return self.width, self.height
        pixels = self.width * self.height
        scale = self.metric.zoom(width, height, focal_px, pixels) if by_focal else (pixels / (width * height)) ** 0.5
        return _rounded(width * scale, self._multiple), _rounded(height * scale, self._multiple)

    def _working_focal(self, width: int, height: int, focal_px: float) -> float:
        """The focal length at the working size of an image of `width` x `height` pixels taken with `focal_px`."""
        return focal_after_resize(focal_px, (width, height), self.working_size(width, height, focal_px))

    def part_times(self, rgb: np.ndarray, repeats: int, focal_px: float | None = None) -> dict[str, list[float]]:
        """Seconds of `repeats` runs of each of the network's parts on `rgb`; {} where the engine cannot tell them."""
        part_times = getattr(self._engine, "part_times", None)
        if part_times is None:
            return {}
        return part_times(resize(rgb, *self.working_size(rgb.shape[1], rgb.shape[0], focal_px)), repeats)

    def close(self) -> None:
        """Free the engine; the estimator cannot be called afterwards."""
        if self._second is not None and self._second._engine is not self._engine:
            self._second.close()
        self._engine.close()

    @property
    def any_size(self) -> bool:
        """Whether `use_size` takes sizes other than the one that the engine was built for."""
        return self._engine.any_size

    def use_size(self, width: int, height: int) -> None:
        """From now on let the network see images of every shape at this working size, as if the user had fixed it.

        Raises `Unusable` where the engine has one size only. It must be a multiple of what the engine needs.
        """
        if not self.any_size and (width, height) != (self.width, self.height):
            raise Unusable(
                f"working size {width}x{height}: engine {self.engine} runs {self.width}x{self.height} only; load "
                "another one"
            )
        self.width, self.height, self._fixed = width, height, True


class NormalsEstimator(Estimator):
    """Surface normals of camera images: unit vectors in the optical frame (x right, y down, z forward)."""

    def __call__(self, rgb: np.ndarray, focal_px: float | None = None) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W, 3) float32; raises `Unusable` for anything that is not an RGB image of bytes."""
        normals = super().__call__(rgb, focal_px)
        # Vectors that were averaged by the resize are shorter than one.
        normals /= np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-6)
        return normals


_Kind = TypeVar("_Kind", bound=Estimator)


def _at_most_size_of(rgb: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """`answer` resized to the image's size where that has fewer pixels."""
    rows, columns = rgb.shape[:2]
    return resize(answer, columns, rows) if answer.size > rows * columns else answer


def _rounded(pixels: float, multiple: int) -> int:
    return max(2, round(pixels / multiple)) * multiple


def load_estimator(config: ModelConfig, export: bool = True) -> Estimator:
    """A ready estimator of relative depth for `config`; raises `Unusable` with the reason and the way out.

    For OpenVINO a checkpoint without its exported network is exported first, which takes half a minute or more and
    needs torch; with `export` False it is refused instead. For TensorRT nothing is ever built here: that takes minutes.
    The engine "auto" goes on to the next engine then.
    """
    return _load(config, DEPTH, Estimator, export)


def load_normals_estimator(config: ModelConfig, export: bool = True) -> NormalsEstimator:
    """A ready estimator of surface normals, as `load_estimator`."""
    if config.confidence != "none":
        raise Unusable(f"model.confidence={config.confidence!r}: is of depth only; set it to 'none' for normals")
    return _load(config, NORMALS, NormalsEstimator, export)


def _load(config: ModelConfig, task: str, kind: type[_Kind], export: bool) -> _Kind:
    info = describe(find_checkpoint(config.checkpoint))
    require_single_step(info, task)
    info = with_tiny_vae(info, config.vae, config.tiny_vae)
    width, height = config.width or info.width, config.height or info.height
    engine, check = _open_engine(info, config, export, (width, height))
    try:
        estimator = kind(info, engine, check, width, height, fixed=bool(config.width) or not engine.any_size)
        part = SECOND_PASS.get(config.confidence)
        if part == 1.0:
            estimator.use_second_pass(estimator)
        elif part is not None:
            estimator.use_second_pass(_half_size(info, config, export, *(part * side for side in (width, height))))
    except BaseException:
        engine.close()
        raise
    return estimator


def _half_size(info: CheckpointInfo, config: ModelConfig, export: bool, width: float, height: float) -> Estimator:
    """What makes the second pass: an engine of its own, since most keep one size and would compile anew each time."""
    size = _rounded(width, info.multiple), _rounded(height, info.multiple)
    try:
        engine, _ = _open_engine(info, config, export, size)
    except Unusable as problem:
        raise Unusable(f"model.confidence={config.confidence!r}, its second pass: {problem}") from problem
    return Estimator(info, engine, "", *size, fixed=bool(config.width) or not engine.any_size)


def _open_engine(info: CheckpointInfo, config: ModelConfig, export: bool, size: tuple[int, int]) -> tuple[Engine, str]:
    """The engine, and what the self-check says of it; with 'auto' the first that can be had."""
    if config.engine != "auto":
        if config.int8 != "none" and config.engine != "tensorrt":
            raise Unusable(
                f"model.int8={config.int8!r}: is for TensorRT only; set it to 'none', or model.engine to 'tensorrt'"
            )
        return _open(config.engine, info, config, export, size)
    refused: Unusable | None = None
    for name in _preferred():
        if refused is not None:
            log.warning("%s (until then %s runs it, which may be several times slower)", refused, name)
        try:
            return _open(name, info, config, export, size)
        except Unusable as problem:
            refused = problem
    raise refused or Unusable("model.engine='auto': no engine is installed; pip install openvino")


def _open(
    name: str, info: CheckpointInfo, config: ModelConfig, export: bool, size: tuple[int, int]
) -> tuple[Engine, str]:
    if not _installed(name):
        missing = [package for module, package in PACKAGES[name].items() if importlib.util.find_spec(module) is None]
        ways = "; ".join(install_command(package) for package in missing)
        raise Unusable(f"model.engine={name!r}: is not installed; {ways}")
    if name == "tensorrt":
        return _open_tensorrt(info, config, size)
    if name == "openvino":
        return _open_openvino(info, config, export, size)
    return _open_torch(info, config, size)


def _preferred() -> Iterator[str]:
    """The engines installed here, the one to try first first; each is decided on when it is its turn."""
    if _installed("tensorrt"):
        yield "tensorrt"
    others = [name for name in ("openvino", "torch") if _installed(name)]
    # A large network is faster with torch on a GPU than with OpenVINO on the processor.
    if len(others) == 2 and _torch_sees_gpu():
        others.reverse()
    yield from others


def _torch_sees_gpu() -> bool:
    if not driver_is_here():
        return False
    try:
        import torch

        return torch.cuda.is_available()
    except Exception:  # a broken installation raises anything; doctor tells it
        return False


@contextmanager
def _loading(engine: str, library: str) -> Iterator[None]:
    """Turn what a broken installation of the library raises when it is imported into a sentence."""
    try:
        yield
    except Exception as error:  # ImportError, or anything else
        raise Unusable(
            f"model.engine={engine!r}: {library} cannot be loaded ({one_line(error)}); run 'ros2 run marigold_ros "
            "doctor'"
        ) from error


def _open_tensorrt(info: CheckpointInfo, config: ModelConfig, size: tuple[int, int]) -> tuple[Engine, str]:
    with _loading("tensorrt", "TensorRT"):
        from marigold_ros.engines.cuda import gpu
        from marigold_ros.engines.tensorrt_ready import open_built
    gpu()  # before advice that would not help without one
    cache = cache_folder(config.cache_dir)
    parts = ready_parts(info, *size, cache, config.int8)
    opened = None if parts is None else open_built(parts, cache)
    if opened is None:
        command = f"{_export_command(config, cache)} --engine tensorrt --size {size[0]}x{size[1]}"
        if config.int8 != "none":
            command += f" --int8 {config.int8} --calibration FOLDER"
        raise Unusable(
            f"checkpoint {info.name!r}: no TensorRT engine for {size[0]}x{size[1]} is built for this "
            f"GPU and TensorRT yet; run: {command}"
        )
    engine, found = opened
    return engine, f"; {found}"


def _open_torch(info: CheckpointInfo, config: ModelConfig, size: tuple[int, int]) -> tuple[Engine, str]:
    with _loading("torch", "torch"):
        from marigold_ros.engines.torch_engine import TorchEngine

    engine = TorchEngine(info, config.threads)
    # Who runs a smaller size than the checkpoint's own may have no memory for the check, which is made at that.
    if engine.identity is None or size[0] * size[1] < info.width * info.height:
        return engine, ""
    # In float16, on a GPU, it is not the reference, whose answers lie beside networks that are exported.
    cache = cache_folder(config.cache_dir)
    path = ready_file(info, cache)
    return engine, "" if path is None else f"; {_accepted(engine, engine.identity, path, cache, 'openvino')}"


def _open_openvino(
    info: CheckpointInfo, config: ModelConfig, export: bool, size: tuple[int, int]
) -> tuple[Engine, str]:
    if any(side % info.multiple for side in size):
        nearest = "x".join(str(_rounded(side, info.multiple)) for side in size)
        raise Unusable(
            f"model.width={size[0]}, model.height={size[1]}: with OpenVINO checkpoint {info.name!r} needs multiples of "
            f"{info.multiple}; the nearest is {nearest}"
        )
    with _loading("openvino", "OpenVINO"):  # before an export that takes half a minute
        from marigold_ros.engines.openvino_core import openvino_core
        from marigold_ros.engines.openvino_engine import OpenVinoEngine

        openvino_core()
    cache = cache_folder(config.cache_dir)
    path = onnx_file(info, cache) if export else ready_file(info, cache)
    if path is None:
        cached = cached_file(info, cache)
        why = f"its export {cached} is damaged" if cached.is_file() else "is not exported for OpenVINO yet"
        raise Unusable(f"checkpoint {info.name!r}: {why}; run: {_export_command(config, cache)}")
    engine = OpenVinoEngine(path, config.threads)
    return engine, f"; {_accepted(engine, engine.identity, path, cache, 'torch')}"


def _accepted(engine: Engine, identity: str, network: Path, cache: Path, instead: str) -> Verdict:
    """The self-check's verdict; where it has not passed or cannot be made, closes the engine and raises `Unusable`."""
    try:
        found = kept_verdict(engine, identity, network, cache)
        if not found.passed:
            raise Unusable(
                f"{identity}: {found}; at most {found.mean_limit} and {found.worst_limit} are allowed; set "
                f"model.engine to {instead!r}, and run 'ros2 run marigold_ros doctor'"
            )
    except BaseException:
        engine.close()
        raise
    return found


def _export_command(config: ModelConfig, cache: Path) -> str:
    command = f"ros2 run marigold_ros export --checkpoint {shlex.quote(config.checkpoint)}"
    if config.vae != "full":
        command += f" --vae {config.vae} --tiny-vae {shlex.quote(config.tiny_vae)}"
    if config.cache_dir:
        command += f" --cache-dir {shlex.quote(str(cache))}"
    return command


def _installed(engine: str) -> bool:
    """Whether all that the engine needs is there: Jetsons come with torch, but without diffusers."""
    return all(importlib.util.find_spec(package) is not None for package in PACKAGES[engine])
