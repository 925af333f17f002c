"""RGB image -> relative depth or surface normals, whatever runs the network."""

from __future__ import annotations

import importlib.util
import logging
import shlex
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from marigold_ros.checkpoints import CheckpointInfo, describe, find_checkpoint, require_single_step, with_tiny_vae
from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.export import cache_folder, onnx_file, ready_file
from marigold_ros.family import DEPTH, NORMALS
from marigold_ros.geometry import resize
from marigold_ros.selfcheck import kept_verdict

log = logging.getLogger(__name__)

# What to install for an engine, the one to prefer first.
PACKAGES = {"openvino": ("openvino",), "torch": ("torch", "diffusers", "safetensors")}


class Engine(Protocol):
    """Runs the network at a working size: (h, w, 3) uint8 -> (h, w) or (h, w, 3) float32, see `network.answer`."""

    description: str

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """The network's answer; it may be overwritten by the next call."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


class Estimator:
    """Relative depth of camera images, affine in `space` and increasing with distance.

    `width` and `height` are the working size in pixels for images of the checkpoint's own shape; images of other
    shapes run at about the same number of pixels in their own shape, unless the size was `fixed` by the user.
    """

    def __init__(self, info: CheckpointInfo, engine: Engine, check: str, width: int, height: int, fixed: bool) -> None:
        self.checkpoint = info.name
        self._check = check
        self.space = info.space
        self.width, self.height = width, height
        self._multiple = info.multiple
        self._fixed = fixed
        self._engine = engine
        # The first call compiles: pay for it here, so that an estimator that exists answers at once.
        self(np.zeros((height, width, 3), np.uint8))

    @property
    def engine(self) -> str:
        """What runs the network: library, version, precision and device, and how near it comes to torch."""
        return f"{self._engine.description}{self._check}"

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W) float32 in [0, 1], 0 nearest.

        Raises `Unusable` for anything that is not an RGB image of bytes.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise Unusable(f"image of shape {rgb.shape} and type {rgb.dtype}: must be (H, W, 3) uint8")
        rows, columns = rgb.shape[:2]
        small = resize(rgb, *self.working_size(columns, rows))
        answer = self._engine(np.ascontiguousarray(small))
        full = resize(answer, columns, rows)
        return full.copy() if full is answer else full

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height at which the network sees an image of `width` x `height` pixels."""
        own = self.width / self.height
        if self._fixed or 0.9 < (width / height) / own < 1.1:
            return self.width, self.height
        scale = (self.width * self.height / (width * height)) ** 0.5
        return _rounded(width * scale, self._multiple), _rounded(height * scale, self._multiple)

    def part_times(self, rgb: np.ndarray, repeats: int) -> dict[str, list[float]]:
        """Seconds of `repeats` runs of each of the network's parts on `rgb`; {} where the engine cannot tell them."""
        part_times = getattr(self._engine, "part_times", None)
        if part_times is None:
            return {}
        return part_times(resize(rgb, *self.working_size(rgb.shape[1], rgb.shape[0])), repeats)

    def close(self) -> None:
        """Free the engine; the estimator cannot be called afterwards."""
        self._engine.close()


class NormalsEstimator(Estimator):
    """Surface normals of camera images: unit vectors in the optical frame (x right, y down, z forward)."""

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W, 3) float32; raises `Unusable` for anything that is not an RGB image of bytes."""
        normals = super().__call__(rgb)
        # Vectors that were averaged by the resize are shorter than one.
        normals /= np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-6)
        return normals


_Kind = TypeVar("_Kind", bound=Estimator)


def _rounded(pixels: float, multiple: int) -> int:
    return max(2, round(pixels / multiple)) * multiple


def load_estimator(config: ModelConfig, export: bool = True) -> Estimator:
    """A ready estimator of relative depth for `config`; raises `Unusable` with the reason and the way out.

    A checkpoint without its exported network is exported first, which takes half a minute or more and needs torch. With
    `export` False it is not: then the engine "auto" falls back to torch, and "openvino" is refused.
    """
    return _load(config, DEPTH, Estimator, export)


def load_normals_estimator(config: ModelConfig, export: bool = True) -> NormalsEstimator:
    """A ready estimator of surface normals, as `load_estimator`."""
    return _load(config, NORMALS, NormalsEstimator, export)


def _load(config: ModelConfig, task: str, kind: type[_Kind], export: bool) -> _Kind:
    info = describe(find_checkpoint(config.checkpoint))
    require_single_step(info, task)
    info = with_tiny_vae(info, config.vae, config.tiny_vae)
    width, height = config.width or info.width, config.height or info.height
    if width % info.multiple or height % info.multiple:
        raise Unusable(
            f"model.width={width}, model.height={height}: checkpoint {info.name!r} needs multiples of {info.multiple}"
        )
    return kind(info, *_open_engine(info, config, export), width, height, fixed=bool(config.width))


def _open_engine(info: CheckpointInfo, config: ModelConfig, export: bool) -> tuple[Engine, str]:
    """The engine, and what the self-check says of it."""
    engine = config.engine
    if engine == "auto":
        engine = next((name for name in PACKAGES if _installed(name)), None)
        if engine is None:
            raise Unusable("model.engine='auto': no engine is installed; pip install openvino")
    if not _installed(engine):
        raise Unusable(f"model.engine={engine!r}: is not installed; pip install {' '.join(PACKAGES[engine])}")
    if engine == "openvino":
        cache = cache_folder(config.cache_dir)
        path = onnx_file(info, cache) if export else ready_file(info, cache)
        if path is None:
            _not_exported(config, cache)
        else:
            from marigold_ros.engines.openvino_engine import OpenVinoEngine

            opened = OpenVinoEngine(path, config.threads)
            found = kept_verdict(opened, opened.identity, path, cache)
            if found.passed:
                return opened, f"; {found}"
            opened.close()
            _failed(
                config, f"{opened.identity}: {found}; at most {found.mean_limit} and {found.worst_limit} are allowed"
            )
    from marigold_ros.engines.torch_engine import TorchEngine

    return TorchEngine(info, config.threads), ""


def _failed(config: ModelConfig, reason: str) -> None:
    """An engine that answers wrongly is refused, or replaced by torch where the user left the choice."""
    if config.engine != "auto" or not _installed("torch"):
        raise Unusable(f"{reason}; set model.engine to 'torch', and run 'ros2 run marigold_ros doctor'")
    log.warning("%s; torch runs the network instead, several times slower", reason)


def _not_exported(config: ModelConfig, cache: Path) -> None:
    """Say how to export the network: as an error, or as a warning where torch can run it meanwhile."""
    command = f"ros2 run marigold_ros export --checkpoint {shlex.quote(config.checkpoint)}"
    if config.vae != "full":
        command += f" --vae {config.vae} --tiny-vae {shlex.quote(config.tiny_vae)}"
    if config.cache_dir:
        command += f" --cache-dir {shlex.quote(str(cache))}"
    reason = f"model.checkpoint={config.checkpoint!r}: is not exported for OpenVINO yet; run: {command}"
    if config.engine != "auto" or not _installed("torch"):
        raise Unusable(reason)
    log.warning("%s (until then torch runs it, several times slower)", reason)


def _installed(engine: str) -> bool:
    """Whether all that the engine needs is there: Jetsons come with torch, but without diffusers."""
    return all(importlib.util.find_spec(package) is not None for package in PACKAGES[engine])
