"""Metric checkpoints: what makes metres of their answer without a range sensor, given the camera's focal length.

A metric checkpoint's relative depth r is log depth between two limits, as MetricGold has it (arXiv 2411.10886):

    d_c = d_min (d_max / d_min)^r

d_c belongs to a canonical camera. To a network, which sees pixels, a thing twice as near and one seen with twice the
focal length are the same, so one focal length f_c is agreed on, and true depth is d = d_c f_w / f_c, where f_w is the
focal length at the size at which the network saw the image. This is the canonical camera transformation of Metric3D
(arXiv 2307.10984) in both its forms: images are resized so that f_w comes near f_c (CSTM_image), and the exact factor
corrects what is left (CSTM_label). All focal lengths are in pixels, the geometric mean of fx and fy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from marigold_ros.config import LARGEST_SIDE_PX, Unusable
from marigold_ros.metric import OWN_SIGMA, MetricFit

# How far the number of pixels may depart from the checkpoint's own for the sake of the focal length: as a factor.
_PIXELS_FACTOR = 2.0


@dataclass(frozen=True)
class MetricScale:
    """The limits of a metric checkpoint's canonical depth in metres, and the canonical camera's focal length.

    Raises `Unusable` where a value is not positive and finite, or the limits are no interval.
    """

    d_min_m: float
    d_max_m: float
    canonical_focal_px: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) not in (int, float) or not 0.0 < value < math.inf:
                raise Unusable(f"metric.{field.name}={value!r}: must be a positive, finite number")
        if self.d_min_m >= self.d_max_m:
            raise Unusable(f"metric.d_min_m={self.d_min_m}: must be less than metric.d_max_m={self.d_max_m}")

    def depth_m(self, relative: np.ndarray, focal_px: float) -> np.ndarray:
        """Metres of `relative` in [0, 1] of an image that the network saw with `focal_px`; 1 is that far or farther."""
        return self.d_min_m * (self.d_max_m / self.d_min_m) ** relative * (focal_px / self.canonical_focal_px)

    def relative(self, depth_m: np.ndarray, focal_px: float) -> np.ndarray:
        """The inverse of `depth_m`, 0 and 1 beyond the limits: what the network is to answer."""
        canonical_m = depth_m * (self.canonical_focal_px / focal_px)
        return np.clip(np.log(canonical_m / self.d_min_m) / math.log(self.d_max_m / self.d_min_m), 0.0, 1.0)

    def fit(self, focal_px: float) -> MetricFit:
        """`depth_m` at `focal_px` in the form of a fit, on which no anchor had any influence."""
        shift = math.log(self.d_min_m * focal_px / self.canonical_focal_px)
        covariance = (0.0, 0.0, OWN_SIGMA**2)  # of all metres by one factor
        return MetricFit("log_depth", math.log(self.d_max_m / self.d_min_m), shift, 0, 0, math.nan, covariance)

    def zoom(self, width: int, height: int, focal_px: float, pixels: int) -> float:
        """The factor by which to resize images of `width` x `height` taken with `focal_px` for the network.

        It takes the focal length to the canonical one, or as near to it as is possible with half to twice `pixels`
        pixels and no side larger than a working size may be.
        """
        own = math.sqrt(pixels / (width * height))
        bound = math.sqrt(_PIXELS_FACTOR)
        zoom = min(max(self.canonical_focal_px / focal_px, own / bound), own * bound)
        return min(zoom, LARGEST_SIDE_PX / max(width, height))


def metric_scale(
    where: str, index: Mapping[str, Any], own: Mapping[str, Any], space: str, disparity: bool
) -> MetricScale | None:
    """What marigold_ros.json (`own`) says of metres, None where it says nothing: a relative checkpoint.

    where: names the checkpoint in errors; index: model_index.json; space and disparity: of the checkpoint's depth.
    Raises `Unusable` for values that mean nothing and for what contradicts them.
    """
    facts = own.get("metric")
    if facts is None:
        return None
    names = [field.name for field in fields(MetricScale)]
    if not isinstance(facts, dict) or sorted(facts) != sorted(names):
        raise Unusable(f"{where}: metric={facts!r} in marigold_ros.json: must give {', '.join(names)} and nothing else")
    if space != "log_depth" or disparity:
        raise Unusable(
            f"{where}: metric in marigold_ros.json is for depth in space 'log_depth', this is "
            f"{'disparity' if disparity else 'depth' if space else 'no depth'} in space {space!r}; take it out"
        )
    for name in ("scale_invariant", "shift_invariant"):
        if index.get(name, True):
            raise Unusable(
                f"{where}: {name}={index.get(name, True)} in model_index.json contradicts metric in marigold_ros.json: "
                "must be false for a metric checkpoint"
            )
    try:
        return MetricScale(**facts)
    except Unusable as problem:
        raise Unusable(f"{where}: {problem} in marigold_ros.json") from problem


def check_focal(focal_px: float) -> None:
    """Raise `Unusable` for what is no focal length."""
    if not 0.0 < focal_px < math.inf:
        raise Unusable(f"focal_px={focal_px}: must be a positive number of pixels, the geometric mean of fx and fy")


def focal_after_resize(focal_px: float, size: tuple[int, int], resized: tuple[int, int]) -> float:
    """The focal length after a resize from width, height `size` to `resized`, which need not keep the shape.

    sqrt(fx sx fy sy) = sqrt(fx fy) sqrt(sx sy): the mean alone is enough.
    """
    return focal_px * math.sqrt(resized[0] * resized[1] / (size[0] * size[1]))
