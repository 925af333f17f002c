"""What differs between depth, normals and intrinsic images, behind one face: read, measure, average, draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from marigold_ros.checkpoints import CheckpointInfo
from marigold_ros.config import Unusable
from marigold_ros.family import DEPTH, NORMALS
from trainer.evaluation import depth, intrinsics, normals
from trainer.evaluation.dataset import Dataset, Item
from trainer.evaluation.intrinsics import Perceptual, load_perceptual
from trainer.evaluation.pictures import depth_tiles, image_tiles, normals_tiles
from trainer.evaluation.predictors import Predictor, gives_metres
from trainer.evaluation.protocols import DepthProtocol, IntrinsicsProtocol, NormalsProtocol

OWN = "own"
_OWN_ALIGNMENT = {"depth": "depth", "inverse_depth": "disparity", "log_depth": "log_depth"}


class Frame(Protocol):
    """An image and its truth."""

    rgb: np.ndarray


class Task(Protocol):
    """One dataset's protocol, ready to be applied.

    headline: the measure that images are ranked by; better: 'low' or 'high'. facts: what it adds to the results.
    """

    headline: str
    better: str
    facts: Mapping[str, Any]

    def focal_px(self, item: Item) -> float | None:
        """The focal length with which the predictor is to give metres; None where it is not to."""
        ...

    def read(self, item: Item) -> Frame:
        """The image and its truth; raises `Unusable` for what is damaged."""
        ...

    def measure(self, frame: Any, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The measures of one prediction, by target as `Predictor` gives it."""
        ...

    def averaged(self, images: Sequence[Mapping[str, Any]], pooled: bool) -> dict[str, Any]:
        """The measures of the dataset."""
        ...

    def tiles(self, frame: Any, values: Mapping[str, np.ndarray]) -> list[list[np.ndarray]]:
        """Rows of pictures (H, W, 3) uint8 RGB: image, prediction, truth, error."""
        ...


def alignment_of(info: CheckpointInfo, asked: str) -> str:
    """How depth of the checkpoint is aligned: as `asked`, or ('own') in the space in which it is affine.

    Raises `Unusable` where metres are asked for that the checkpoint does not give.
    """
    metres = gives_metres(info)
    if asked == OWN:
        return "none" if metres else _OWN_ALIGNMENT[info.space]
    if asked == "none" and not metres:
        raise Unusable(
            f"--align none: checkpoint {info.name!r} gives relative depth without a scale, which cannot be compared "
            f"unaligned; give --align {OWN}, depth or disparity"
        )
    return asked


def task_of(info: CheckpointInfo, dataset: Dataset, alignment: str) -> Task:
    """The protocol of `dataset` for the checkpoint."""
    if info.kind.task == DEPTH:
        return DepthTask(dataset, alignment)
    if info.kind.task == NORMALS:
        return NormalsTask(dataset)
    return IntrinsicsTask(info, dataset)


@dataclass(frozen=True)
class DepthTask:
    """Depth; alignment: see `alignment.ALIGNMENTS`."""

    dataset: Dataset
    alignment: str
    headline = "abs_rel"
    better = "low"

    @property
    def facts(self) -> dict[str, Any]:
        """How predictions were aligned."""
        return {"alignment": self.alignment}

    @property
    def _protocol(self) -> DepthProtocol:
        return self.dataset.protocol

    def focal_px(self, item: Item) -> float | None:
        """See `Task`; raises `Unusable` where metres are asked for and nothing says the focal length."""
        if self.alignment != "none":
            return None
        if item.focal_px is None:
            raise Unusable(f"image {item.name} of {self._protocol.title}: has no focal length; give --focal-px")
        return item.focal_px

    def read(self, item: Item) -> depth.DepthFrame:
        """See `Task`."""
        return depth.read_frame(self.dataset.source, item, self._protocol)

    def measure(self, frame: depth.DepthFrame, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `Task`."""
        return depth.measure(self._metric(frame, values), frame)

    def averaged(self, images: Sequence[Mapping[str, Any]], pooled: bool) -> dict[str, Any]:
        """See `Task`."""
        return depth.averaged(images, pooled)

    def tiles(self, frame: depth.DepthFrame, values: Mapping[str, np.ndarray]) -> list[list[np.ndarray]]:
        """See `Task`."""
        return [depth_tiles(frame.rgb, self._metric(frame, values), frame.depth_m, frame.valid)]

    def _metric(self, frame: depth.DepthFrame, values: Mapping[str, np.ndarray]) -> np.ndarray:
        return depth.metric_depth(frame, values[DEPTH], self.alignment, self._protocol)


@dataclass(frozen=True)
class NormalsTask:
    """Surface normals."""

    dataset: Dataset
    headline = "mean"
    better = "low"

    @property
    def facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    @property
    def _protocol(self) -> NormalsProtocol:
        return self.dataset.protocol

    def focal_px(self, item: Item) -> None:
        """See `Task`."""

    def read(self, item: Item) -> normals.NormalsFrame:
        """See `Task`."""
        return normals.read_frame(self.dataset.source, item, self._protocol)

    def measure(self, frame: normals.NormalsFrame, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `Task`."""
        return normals.measure(values[NORMALS], frame)

    def averaged(self, images: Sequence[Mapping[str, Any]], pooled: bool) -> dict[str, Any]:
        """See `Task`."""
        return normals.averaged(images, pooled)

    def tiles(self, frame: normals.NormalsFrame, values: Mapping[str, np.ndarray]) -> list[list[np.ndarray]]:
        """See `Task`."""
        angles = np.full(frame.valid.shape, np.nan, np.float32)
        angles[frame.valid] = normals.angles_deg(values[NORMALS], frame)
        return [normals_tiles(frame.rgb, values[NORMALS], frame.normals, angles)]


class IntrinsicsTask:
    """Intrinsic images; raises `Unusable` where the checkpoint does not give what the dataset has."""

    better = "high"

    def __init__(self, info: CheckpointInfo, dataset: Dataset) -> None:
        self.dataset = dataset
        self._protocol: IntrinsicsProtocol = dataset.protocol
        if info.kind.targets != self._protocol.targets:
            raise Unusable(
                f"--on {self._protocol.name}: has {' and '.join(self._protocol.targets)}, checkpoint {info.name!r} "
                f"gives {' and '.join(info.kind.targets)}; give another dataset"
            )
        self.headline = f"psnr_{self._protocol.targets[0]}"
        perceptual = load_perceptual()
        self._perceptual: Perceptual | None = None if isinstance(perceptual, str) else perceptual
        self.facts = {"lpips_missing": perceptual} if isinstance(perceptual, str) else {}

    def focal_px(self, item: Item) -> None:
        """See `Task`."""

    def read(self, item: Item) -> intrinsics.IntrinsicsFrame:
        """See `Task`."""
        return intrinsics.read_frame(self.dataset.source, item, self._protocol)

    def measure(self, frame: intrinsics.IntrinsicsFrame, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `Task`."""
        return intrinsics.measure(values, frame, self._protocol, self._perceptual)

    def averaged(self, images: Sequence[Mapping[str, Any]], pooled: bool) -> dict[str, Any]:
        """See `Task`; raises `Unusable` for pooled means, which PSNR, SSIM and LPIPS have none of."""
        if pooled:
            raise Unusable("--mean pooled: PSNR, SSIM and LPIPS are measures of images; give --mean image")
        return intrinsics.averaged(images, self._protocol)

    def tiles(self, frame: intrinsics.IntrinsicsFrame, values: Mapping[str, np.ndarray]) -> list[list[np.ndarray]]:
        """See `Task`."""
        return [
            image_tiles(frame.rgb, *intrinsics.compared(values[name], frame, name, self._protocol))
            for name in self._protocol.targets
        ]


def checked(
    values: Mapping[str, np.ndarray], frame: Frame, predictor: Predictor, name: str
) -> Mapping[str, np.ndarray]:
    """`values`, if they are finite and as large as the image `name`; raises `Unusable` where they are not."""
    for target, array in values.items():
        if array.shape[:2] != frame.rgb.shape[:2] or not np.isfinite(array).all():
            raise Unusable(
                f"image {name}: the {target} that {predictor.description} gives has shape {array.shape} and "
                f"{np.count_nonzero(~np.isfinite(array))} values that are not finite; try another --engine"
            )
    return values
