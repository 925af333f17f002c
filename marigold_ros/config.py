"""Every setting of the node, once: name, default, description, range.

The dataclasses here are the only source of settings. ROS parameters, `config/depth.yaml` and the command-line
programs are derived from them; an instance that exists has been checked.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Working sizes are multiples of this many pixels, and at most so large.
SIZE_STEP_PX, LARGEST_SIDE_PX = 32, 2048
RANGE_TYPES = ("pointcloud2", "laserscan", "depth_image", "radar", "none")


class Unusable(ValueError):
    """A setting, checkpoint or message that cannot be used; the text names it, its value and the way out."""


class Fault(Unusable):
    """Something that will not pass by itself: it is wrong in how the robot is set up."""


def one_line(error: Exception) -> str:
    """What an error of another library says, shortened to one line; its kind where it says nothing."""
    return textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__


def setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    read_only: bool = False,
    length: int | None = None,
) -> Any:
    """A dataclass field that carries what a ROS parameter descriptor needs.

    `low` and `high` are inclusive; `length` is the number of elements of a tuple of floats; `read_only` settings
    are fixed when the node's process starts: to configure it anew does not read them again.
    """
    facts = {"doc": doc, "low": low, "high": high, "choices": choices, "read_only": read_only, "length": length}
    return dataclasses.field(default=default, metadata=facts)


def check(section: Any) -> None:
    """Raise `Unusable` for the first field of `section` whose value lies outside what its `setting` allows."""
    for field in dataclasses.fields(section):
        value, facts = getattr(section, field.name), field.metadata
        name = f"{section.SECTION}.{field.name}"
        low, high = facts["low"], facts["high"]
        expected = type(field.default)
        if expected is float and type(value) is int:
            value = float(value)
            object.__setattr__(section, field.name, value)
        if expected is tuple:
            _check_floats(name, value, facts["length"])
            object.__setattr__(section, field.name, tuple(float(v) for v in value))
        elif type(value) is not expected:
            raise Unusable(f"{name}={value!r}: must be of type {expected.__name__}, e.g. {field.default!r}")
        if expected is float and value != value:
            raise Unusable(f"{name}=nan: must be a number, e.g. {field.default!r}")
        if facts["choices"] is not None and value not in facts["choices"]:
            raise Unusable(f"{name}={value!r}: must be one of {', '.join(map(repr, facts['choices']))}")
        if expected in (int, float) and ((low is not None and value < low) or (high is not None and value > high)):
            raise Unusable(f"{name}={value!r}: must lie between {low} and {high}")


def _check_floats(name: str, value: Any, length: int | None) -> None:
    try:
        numbers = [float(v) for v in value]
    except (TypeError, ValueError):
        raise Unusable(f"{name}={value!r}: must be a list of numbers") from None
    if len(numbers) != length or any(v != v or abs(v) == float("inf") for v in numbers):
        raise Unusable(f"{name}={list(value)!r}: must be {length} finite numbers")


@dataclass(frozen=True)
class ModelConfig:
    """Which network runs, on what, at which size."""

    SECTION = "model"

    checkpoint: str = setting(
        "nano", "Checkpoint: 'nano' (bundled), a folder in diffusers' format, or a downloaded hub id.", read_only=True
    )
    engine: str = setting(
        "auto",
        "What runs the network: 'tensorrt' (NVIDIA), 'openvino' (CPU), 'torch' (the reference) or 'auto' (the first of "
        "them that is installed and for which the checkpoint is exported).",
        choices=("auto", "tensorrt", "openvino", "torch"),
        read_only=True,
    )
    width: int = setting(
        0,
        "Working width in pixels; 0 leaves it to the checkpoint, a metric one takes the camera's focal length into "
        "account.",
        low=0,
        high=LARGEST_SIDE_PX,
        read_only=True,
    )
    height: int = setting(0, "Working height in pixels, as width.", low=0, high=LARGEST_SIDE_PX, read_only=True)
    threads: int = setting(0, "CPU threads of the network; 0 leaves it to the engine.", low=0, high=256, read_only=True)
    vae: str = setting(
        "full",
        "The VAE: 'full' is the checkpoint's own, 'tiny' replaces it (most of the work of a large network), "
        "'tiny-decoder' its decoder only.",
        choices=("full", "tiny", "tiny-decoder"),
        read_only=True,
    )
    tiny_vae: str = setting(
        "madebyollin/taesd", "The tiny VAE: a folder or a downloaded hub id; used unless vae is 'full'.", read_only=True
    )
    confidence: str = setting(
        "none",
        "A second pass over the mirrored image, at the working size ('mirror') or at half of it ('mirror_half', "
        "cheaper), while somebody listens to confidence or depth/sigma: where the two passes disagree depth is less "
        "sure, and without metric depth confidence rests on that alone; or 'none'.",
        choices=("none", "mirror", "mirror_half"),
        read_only=True,
    )
    int8: str = setting(
        "none",
        "Parts of the network that compute in INT8, on TensorRT only: 'none', 'step' (the U-Net) or 'all'; exported "
        "with the same --int8.",
        choices=("none", "step", "all"),
        read_only=True,
    )
    cache_dir: str = setting(
        "", "Folder for exported networks; '' means ~/.cache/marigold_ros (or $XDG_CACHE_HOME).", read_only=True
    )
    normals_checkpoint: str = setting(
        "",
        "A second checkpoint, for surface normals, that runs while somebody listens to normals; '' for none. The other "
        "settings of the model hold for it too, but for confidence.",
        read_only=True,
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("width", "height"):
            size = getattr(self, name)
            if size % SIZE_STEP_PX:
                nearest = max(1, round(size / SIZE_STEP_PX)) * SIZE_STEP_PX
                raise Unusable(f"model.{name}={size}: must be a multiple of {SIZE_STEP_PX} (nearest: {nearest})")
        if (self.width == 0) != (self.height == 0):
            raise Unusable(
                f"model.width={self.width}, model.height={self.height}: give both, or 0 for both to let the "
                "checkpoint choose"
            )


@dataclass(frozen=True)
class ImageConfig:
    """The camera."""

    SECTION = "image"

    transport: str = setting(
        "raw", "Type of the image topic: 'raw' (sensor_msgs/Image) or 'compressed' (sensor_msgs/CompressedImage).",
        choices=("raw", "compressed"), read_only=True,
    )  # fmt: skip
    reliability: str = setting(
        "best_effort", "QoS reliability of the image, camera_info and range subscriptions.",
        choices=("best_effort", "reliable"), read_only=True,
    )  # fmt: skip
    rectified: bool = setting(
        False, "The image is rectified already (image_rect): the camera info's P counts, its D does not.",
        read_only=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class RangeConfig:
    """A range sensor, and where it sits."""

    SECTION = "range"

    type: str = setting(
        "pointcloud2",
        "Type of the range topic: 'pointcloud2', 'laserscan', 'depth_image' (sensor_msgs/Image 16UC1 or 32FC1 with its "
        "camera info: ToF, stereo), 'radar' (a PointCloud2 with a radar's noise), or 'none' (metres from metric "
        "checkpoints, of others relative depth only).",
        choices=RANGE_TYPES, read_only=True,
    )  # fmt: skip
    max_age_s: float = setting(
        0.2,
        "A scan is used for an image when their stamps are at most this far apart, in seconds.",
        low=0.0,
        high=10.0,
    )
    time_offset_s: float = setting(
        0.0,
        "Added to the stamps of the scans, in seconds: negative where they were measured earlier than they say. "
        "check_calibration tells.",
        low=-10.0, high=10.0, read_only=True,
    )  # fmt: skip
    min_depth_m: float = setting(
        0.3, "Points nearer than this along the optical axis are not used.", low=0.0, high=100.0
    )
    max_depth_m: float = setting(100.0, "Points farther than this are not used.", low=0.1, high=1000.0)
    max_points: int = setting(
        8192,
        "Anchors kept per frame, evenly over the image; more are thinned out. Fit and correction take 4096 of them at "
        "random. That of section range holds for all sensors together, who share it; those of the further ones limit "
        "their share.",
        low=16, high=1000000,
    )  # fmt: skip
    min_range_m: float = setting(
        0.0, "Points nearer to the sensor than this are not used: its own housing.", low=0.0, high=100.0
    )
    self_box_m: tuple = setting(
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        "Points within this box are the robot's own body and not used: least x y z, then greatest x y z, in the "
        "sensor's frame, in metres; a box without volume is none.",
        length=6,
    )  # fmt: skip
    noise_m: float = setting(
        0.0,
        "One standard deviation of a measured depth in metres; 0 leaves it and noise_growth to the type: LiDAR 0.03, "
        "depth image 0.02 and 0.002 per metre, radar 0.25.",
        low=0.0, high=10.0,
    )  # fmt: skip
    noise_growth: float = setting(
        0.0,
        "Grows noise_m by this times the squared depth, 1/m: of a stereo camera, the disparity's error in pixels over "
        "focal length (px) times baseline (m). Counts where noise_m is given.",
        low=0.0, high=1.0,
    )  # fmt: skip
    noise_px: float = setting(
        0.0,
        "One standard deviation of a point's place in the image, in pixels: what is left of extrinsic and timing; 0 "
        "leaves it to the type: 1.5, radar 8. Motion during the time error is added where fixed_frame tells of it, or "
        "the points have times of their own.",
        low=0.0, high=100.0,
    )  # fmt: skip
    extrinsic: str = setting(
        "tf", "Where the LiDAR-to-camera transform comes from: 'tf' (tf2) or 'static' (the two parameters below).",
        choices=("tf", "static"), read_only=True,
    )  # fmt: skip
    translation_m: tuple = setting(
        (0.0, 0.0, 0.0), "Origin of the LiDAR in the camera's optical frame, x y z in metres (extrinsic 'static').",
        length=3, read_only=True,
    )  # fmt: skip
    rotation_xyzw: tuple = setting(
        (0.0, 0.0, 0.0, 1.0),
        "Rotation of the LiDAR frame into the camera's optical frame, quaternion x y z w (extrinsic 'static').",
        length=4, read_only=True,
    )  # fmt: skip
    fixed_frame: str = setting(
        "",
        "Frame in which the world stands still (e.g. 'odom'): tf2 moves scans to the image's time; '' for none: what "
        "the camera sees of its motion does. Each point from its own time where the scan has such times.",
        read_only=True,
    )  # fmt: skip
    point_times: bool = setting(
        True, "Points' own times count; false for clouds that were corrected for motion already.",
        read_only=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        name = self.SECTION
        if any(low > high for low, high in zip(self.self_box_m[:3], self.self_box_m[3:], strict=True)):
            raise Unusable(
                f"{name}.self_box_m={list(self.self_box_m)}: must be the least x y z, then the greatest x y z"
            )
        if self.min_depth_m >= self.max_depth_m:
            raise Unusable(
                f"{name}.min_depth_m={self.min_depth_m}: must be less than {name}.max_depth_m={self.max_depth_m}"
            )
        if self.fixed_frame and self.extrinsic == "static":
            raise Unusable(
                f"{name}.fixed_frame={self.fixed_frame!r} with {name}.extrinsic='static': moving scans to the image's "
                f"time needs tf2; set {name}.extrinsic to 'tf', or {name}.fixed_frame to ''"
            )
        norm = sum(v * v for v in self.rotation_xyzw) ** 0.5
        if abs(norm - 1.0) > 1e-3:
            raise Unusable(
                f"{name}.rotation_xyzw={list(self.rotation_xyzw)}: must have length 1 (has {norm:.4f}); "
                "no rotation is [0.0, 0.0, 0.0, 1.0]"
            )


@dataclass(frozen=True)
class Range2Config(RangeConfig):
    """A second range sensor."""

    SECTION = "range2"
    LIKE = "range"

    type: str = setting("none", "As range.type, of topic range2.", choices=RANGE_TYPES, read_only=True)


@dataclass(frozen=True)
class Range3Config(RangeConfig):
    """A third range sensor."""

    SECTION = "range3"
    LIKE = "range"

    type: str = setting("none", "As range.type, of topic range3.", choices=RANGE_TYPES, read_only=True)


@dataclass(frozen=True)
class FitConfig:
    """From relative depth to metres."""

    SECTION = "fit"

    min_inliers: float = setting(
        0.3,
        "Share of the anchors that must agree with a fit for it to be used. Where fewer do: so many must agree with "
        "those around them, and two thirds of these with the fit.",
        low=0.0,
        high=1.0,
    )
    inlier_error: float = setting(
        0.2,
        "An anchor agrees with a fit when its relative depth error is at most this, or 1.5 times the network's own "
        "where that is more.",
        low=0.01,
        high=0.9,
    )
    max_sigma: float = setting(
        0.2,
        "Metric output stops when the fit alone leaves depth uncertain by more than this, relative, one standard "
        "deviation, the median over the image.",
        low=0.01, high=1.0,
    )  # fmt: skip
    hold_s: float = setting(
        1.0,
        "How long metres go on without new anchors, in seconds; then metric output stops, or a metric checkpoint's "
        "own scale serves.",
        low=0.0, high=60.0,
    )  # fmt: skip
    speed_m_s: float = setting(
        1.0,
        "How fast the camera may move, in metres per second: by so much depth may have changed since anchors were "
        "last seen.",
        low=0.0, high=100.0,
    )  # fmt: skip
    correction_limit: float = setting(
        3.0,
        "Where anchors contradict the one scale and shift of the image, depth is brought to them smoothly, by at most "
        "this factor; 1 leaves it as it is.",
        low=1.0, high=3.5,
    )  # fmt: skip
    check_calibration: bool = setting(
        True,
        "Watch over many frames whether extrinsic and stamps of the first range sensor fit the images; diagnostics "
        "warn if not.",
    )
    max_depth_m: float = setting(120.0, "Farther than this is unknown (NaN), never a wall.", low=1.0, high=10000.0)
    seed: int = setting(0, "Seed of the random hypotheses of the robust fit.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class OutputConfig:
    """What is published, and how."""

    SECTION = "output"

    depth_encoding: str = setting(
        "32FC1", "Encoding of the depth image: '32FC1' (metres, NaN unknown) or '16UC1' (millimetres, 0 unknown).",
        choices=("32FC1", "16UC1"), read_only=True,
    )  # fmt: skip
    points_stride: int = setting(
        1, "1: organized cloud of every pixel; n > 1: every n-th row and column, valid points only (for costmaps).",
        low=1, high=64,
    )  # fmt: skip
    points_min_confidence: float = setting(
        0.2,
        "Points of less confidence are left out of the cloud, and so are those that float in the air at edges of "
        "depth; 0 leaves all in.",
        low=0.0, high=1.0,
    )  # fmt: skip
    depth_solid: bool = setting(
        False, "What points_min_confidence leaves out of the cloud is unknown in depth, too; depth/sigma stays whole."
    )
    reliability: str = setting(
        "reliable", "QoS reliability of the outputs.", choices=("best_effort", "reliable"), read_only=True
    )
    visual_max_m: float = setting(
        0.0, "Depth at the far end of depth/visual's colours; 0 follows each frame's 98th percentile.",
        low=0.0, high=1000.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class NodeConfig:
    """The node itself."""

    SECTION = "node"

    autostart: bool = setting(
        True, "Configure and activate at start; false waits for a lifecycle manager.", read_only=True
    )
    diagnostics_period_s: float = setting(
        1.0, "Seconds between two /diagnostics messages.", low=0.1, high=60.0, read_only=True
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Config:
    """All sections; `parameters.py` turns `config.range.max_age_s` into the ROS parameter `range.max_age_s`."""

    model: ModelConfig = ModelConfig()
    image: ImageConfig = ImageConfig()
    range: RangeConfig = RangeConfig()
    range2: Range2Config = Range2Config()
    range3: Range3Config = Range3Config()
    fit: FitConfig = FitConfig()
    output: OutputConfig = OutputConfig()
    node: NodeConfig = NodeConfig()

    @property
    def ranges(self) -> tuple[RangeConfig, ...]:
        """The sections of the range sensors that there are; a section's SECTION is its topic's name, too."""
        return tuple(section for section in (self.range, self.range2, self.range3) if section.type != "none")


def settings(config: Config) -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Yield ('section.name', field, value) for every setting of `config`."""
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for field in dataclasses.fields(values):
            yield f"{section.name}.{field.name}", field, getattr(values, field.name)


def with_settings(config: Config, changes: Mapping[str, Any]) -> Config:
    """`config` with {'section.name': value} applied; raises `Unusable` as the sections' own checks do."""
    known = {name for name, _, _ in settings(config)}
    grouped: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        if name not in known:
            raise Unusable(f"{name}={value!r}: no such setting; config/depth.yaml lists them all")
        section, key = name.split(".", 1)
        grouped.setdefault(section, {})[key] = value
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **keys) for name, keys in grouped.items()}
    )
