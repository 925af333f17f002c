"""A recipe: every knob of training, read from YAML and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from marigold_ros.config import Unusable
from marigold_ros.metric import SPACES
from marigold_ros.places import shared

TARGETS = ("depth", "latent")
DEFAULT = "config/train/nano.yaml"


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one resolution.

    It lasts `steps`, or `minutes` of training time; lr goes geometrically from the first to the second value.
    sizes: (width, height, chance) of the shapes batches have, pixels.
    target: 'depth', end to end through the decoder, or 'latent', the VAE's latent of the normalised depth map, which
    costs no decoder and teaches a new U-Net the decoder's language several times faster (stage 'nano' only).
    """

    name: str
    batch: int
    lr: tuple[float, float]
    sizes: tuple[tuple[int, int, float], ...]
    steps: int | None = None
    minutes: float | None = None
    target: str = "depth"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise Unusable(f"phase {self.name!r}: target={self.target!r}: must be one of {', '.join(TARGETS)}")
        object.__setattr__(self, "lr", tuple(float(v) for v in self.lr))
        object.__setattr__(self, "sizes", tuple((int(w), int(h), float(c)) for w, h, c in self.sizes))
        if (self.steps is None) == (self.minutes is None):
            raise Unusable(f"phase {self.name!r}: give either steps or minutes")
        for width, height, _ in self.sizes:
            if width % 32 or height % 32 or width <= 0 or height <= 0:
                raise Unusable(f"phase {self.name!r}: size {width}x{height}: must be multiples of 32")

    @property
    def pixels(self) -> float:
        """Mean number of pixels of one image."""
        total = sum(chance for _, _, chance in self.sizes)
        return sum(width * height * chance for width, height, chance in self.sizes) / total


@dataclass(frozen=True)
class NetworkRecipe:
    """Sizes of the network; see trainer/architecture.py."""

    vae_channels: tuple[int, ...] = (8, 24, 48, 64)
    latent_channels: int = 8
    vae_groups: int = 8
    unet_channels: tuple[int, ...] = (64, 128, 160)
    prompt_width: int = 64


@dataclass(frozen=True)
class OptimiserRecipe:
    """AdamW, warm-up, gradient clipping, averaging."""

    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    warmup_steps: int = 150
    ema: float = 0.995


@dataclass(frozen=True)
class VaeRecipe:
    """First stage: the VAE learns images and depth maps."""

    phases: tuple[Phase, ...] = ()
    image_share: float = 0.5
    l1: float = 1.0
    l2: float = 1.0
    kl: float = 1e-5


@dataclass(frozen=True)
class NanoRecipe:
    """Second stage, end to end: decoded depth against the truth."""

    phases: tuple[Phase, ...] = ()
    train_encoder: bool = True
    train_decoder: bool = True
    far_m: float = 150.0
    sky_weight: float = 0.3
    relative_power: float = 0.75
    weight_spread: float = 8.0
    gradient: float = 0.2
    gradient_scales: int = 4
    anchor: float = 0.3
    outside: float = 1.0


@dataclass(frozen=True)
class AugmentRecipe:
    """How samples are varied; chances unless the recipe file says otherwise."""

    zoom: tuple[float, float] = (0.8, 1.0)
    aspect: float = 0.1
    flip: float = 0.5
    other_shape: float = 0.1
    colour: float = 0.5
    grey: float = 0.03
    haze: float = 0.06
    shadow: float = 0.1
    glare: float = 0.05
    vignette: float = 0.1
    blur: float = 0.15
    noise: float = 0.25
    jpeg: float = 0.2


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, the scenes aside."""

    seed: int = 0
    space: str = "inverse_depth"
    size: tuple[int, int] = (384, 288)
    threads: int = 0
    rescan_steps: int = 200
    save_minutes: float = 3.0
    log_steps: int = 20
    network: NetworkRecipe = NetworkRecipe()
    optimiser: OptimiserRecipe = OptimiserRecipe()
    vae: VaeRecipe = VaeRecipe()
    nano: NanoRecipe = NanoRecipe()
    augment: AugmentRecipe = AugmentRecipe()

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise Unusable(f"recipe: space={self.space!r}: must be one of {', '.join(map(repr, SPACES))}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for YAML, JSON and comparison."""
        return _plain(dataclasses.asdict(self))


def load_recipe(path: Path | None = None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in YAML file `path`, by default the package's own, with {'section.name': value} applied."""
    path = path or shared(DEFAULT)
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise Unusable(f"recipe {path}: cannot be read ({error})") from error
    for name, value in (changes or {}).items():
        *sections, key = name.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[key] = value
    return recipe_from(tree, str(path))


def recipe_from(tree: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from nested plain values; unknown names are refused with the name of `source`."""
    return _section(Recipe, tree, source)


def _section(kind: type, tree: Any, where: str) -> Any:
    if not isinstance(tree, Mapping):
        raise Unusable(f"recipe {where}: {tree!r}: must be a mapping of names to values")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for name, value in tree.items():
        if name not in fields:
            raise Unusable(f"recipe {where}: {name!r}: no such setting; known: {', '.join(fields)}")
        default = fields[name].default
        if name == "phases":
            value = tuple(_section(Phase, phase, f"{where}: {name}") for phase in value)
        elif dataclasses.is_dataclass(default):
            value = _section(type(default), value, f"{where}: {name}")
        elif isinstance(value, list) and name not in ("sizes", "lr"):
            value = tuple(value)
        elif isinstance(default, float):
            value = _number(where, name, value)
        values[name] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise Unusable(f"recipe {where}: {error}") from error


def _number(where: str, name: str, value: Any) -> float:
    # YAML 1.1 reads 1e-5 (no dot) as a string.
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Unusable(f"recipe {where}: {name}={value!r}: must be a number") from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
