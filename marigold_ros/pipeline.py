"""The way of a frame, without ROS: image, camera and scan in, relative and metric depth out.

The node, the offline tool and the benchmark all go through here. One object serves one camera; what depends on the
camera alone is made when the camera changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from marigold_ros.anchors import Anchors, find_anchors
from marigold_ros.calibration import Calibration, CalibrationMonitor
from marigold_ros.config import Config, Unusable
from marigold_ros.disagreement import confidence_of
from marigold_ros.field import corrected
from marigold_ros.geometry import Camera, Rectifier, rectifier
from marigold_ros.metric import FitHolder, MetricFit, Refusal, apply_fit, fit_metric

# Relative depth beyond this is 1 but for the rounding of a resize.
_SATURATED = 1.0 - 1e-5


class Estimator(Protocol):
    """What `estimator.load_estimator` returns, as far as a frame needs it."""

    space: str

    def __call__(self, rgb: np.ndarray, focal_px: float | None = None) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W) float32, increasing with distance, affine in `space`."""

    def with_disagreement(self, rgb: np.ndarray, focal_px: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As a call, and (H, W) float32 >= 0 in units of relative depth, larger is less sure."""

    def fit_of(self, camera: Camera) -> MetricFit | None:
        """What makes metres of its answer to this camera's images without anchors; None where nothing does."""


@dataclass(frozen=True)
class Scan:
    """Range points (N, 3) float32 in the LiDAR's frame, and (4, 4) `camera_from_lidar`.

    `age_s`: by how much the scan was stamped before the image, unless the transform makes up for it.
    """

    points: np.ndarray
    camera_from_lidar: np.ndarray
    age_s: float = 0.0


@dataclass(frozen=True)
class FrameDepth:
    """The answer to one image.

    `rgb` and `camera` are those of the rectified image, pixel on pixel with `relative` and `depth_m`, (H, W) float32.
    `confidence`, (H, W) float32 in [0, 1], is None unless it was asked for. `depth_m` is None without a `fit`; a metric
    checkpoint has one of its own for want of another. `problem` says why anchors gave no new one, where they should;
    `fit_age_s` is the age of one that they gave. `sigma_m`, (H, W) float32, is one standard deviation of `depth_m`.
    `calibration` is what many frames say of the extrinsic and the time offset; None while that is not known.
    """

    rgb: np.ndarray
    camera: Camera
    relative: np.ndarray
    depth_m: np.ndarray | None = None
    fit: MetricFit | None = None
    fit_age_s: float | None = None
    anchors: Anchors | None = None
    problem: str | None = None
    stage_s: dict[str, float] = field(default_factory=dict)
    confidence: np.ndarray | None = None
    sigma_m: np.ndarray | None = None
    calibration: Calibration | None = None


class Pipeline:
    """Runs the network, finds anchors, fits and applies; remembers the last fit for `fit.hold_s`.

    Of a metric checkpoint, its own scale and shift serve where no anchors give better ones.
    """

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self._fits = FitHolder()
        self._calibration = CalibrationMonitor()
        self._scan: Scan | None = None
        self._raw_camera: Camera | None = None
        self._rectifier: Rectifier | None = None
        # A metric checkpoint's scale and shift for this camera.
        self._own: MetricFit | None = None

    def __call__(
        self,
        rgb: np.ndarray,
        camera: Camera,
        stamp_ns: int,
        find_scan: Callable[[], Scan],
        config: Config,
        *,
        metric: bool = True,
        confidence: bool = False,
    ) -> FrameDepth:
        """Depth of one (H, W, 3) uint8 image.

        `find_scan` is called after the network, so that a scan that arrives meanwhile still counts; it raises
        `Unusable` where there is none. Without `metric` only the relative depth is computed.
        `confidence` asks for that of model.confidence, too.
        """
        stage_s: dict[str, float] = {}
        with _timed(stage_s, "rectify"):
            rgb, camera = self._rectified(rgb, camera)
        with _timed(stage_s, "network"):
            relative, sure = self._look(rgb, camera, config.model.confidence if confidence else "none")
        if not metric:
            return FrameDepth(rgb, camera, relative, stage_s=stage_s, confidence=sure)
        with _timed(stage_s, "anchors"):
            anchors, problem = self._anchors(find_scan, camera, config)
        with _timed(stage_s, "calibration"):
            calibration = self._watched(stamp_ns, rgb, camera, anchors, config)
        with _timed(stage_s, "fit"):
            new = None
            if anchors is not None:
                new = fit_metric(relative, anchors, self._estimator.space, config.fit, self._own)
            if isinstance(new, Refusal):
                new, problem = None, new.reason
            fit = self._fits.update(stamp_ns, new, config.fit.hold_s) or self._own
            depth_m = None if fit is None else apply_fit(fit, relative, config.fit.max_depth_m)
        with _timed(stage_s, "correct"):
            # By anchors that this image was fitted to alone: a fit that is held was refused the new ones.
            if new is not None and config.fit.correction_limit > 1.0:
                depth_m = corrected(depth_m, anchors, config.fit.correction_limit, config.fit.max_depth_m)
        if depth_m is not None:
            self._forget_unknown(depth_m, relative)
        age_s = self._fits.age_s()
        return FrameDepth(
            rgb, camera, relative, depth_m, fit, age_s, anchors, problem, stage_s, sure, calibration=calibration
        )

    def _watched(
        self, stamp_ns: int, rgb: np.ndarray, camera: Camera, anchors: Anchors | None, config: Config
    ) -> Calibration | None:
        """What this frame and those before say of the extrinsic and the time offset."""
        if not config.range.check_calibration:
            self._calibration.reset()
            return None
        if anchors is None or self._scan is None:
            return self._calibration.verdict
        origin_m = self._scan.camera_from_lidar[:3, 3]
        return self._calibration.update(stamp_ns, rgb, camera, anchors, origin_m, self._scan.age_s)

    def _forget_unknown(self, depth_m: np.ndarray, relative: np.ndarray) -> None:
        """Set to NaN what is no depth: the end of a metric checkpoint's range, which means that far or farther and is
        no wall, and what the lens did not see.
        """
        if self._own is not None:
            depth_m[relative > _SATURATED] = np.nan
        if self._unseen is not None:
            depth_m[self._unseen] = np.nan

    def _look(self, rgb: np.ndarray, camera: Camera, method: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Relative depth and, unless `method` is 'none', its confidence: 0 where the lens did not see."""
        if method == "none":
            return self._estimator(rgb, camera.focal_px), None
        relative, disagreement = self._estimator.with_disagreement(rgb, camera.focal_px)
        confidence = confidence_of(disagreement, method)
        if self._unseen is not None:
            confidence[self._unseen] = 0.0
        return relative, confidence

    def _rectified(self, rgb: np.ndarray, camera: Camera) -> tuple[np.ndarray, Camera]:
        """The image without lens distortion, and its camera."""
        if camera != self._raw_camera:
            self._rectifier = rectifier(camera)
            self._raw_camera = camera
            self._own = self._estimator.fit_of(camera if self._rectifier is None else self._rectifier.camera)
            if self._own is not None:
                self._fits = FitHolder()  # what was fitted belongs to another focal length
        if self._rectifier is None:
            return rgb, camera
        return self._rectifier(rgb), self._rectifier.camera

    @property
    def _unseen(self) -> np.ndarray | None:
        """(H, W) bool: pixels of the rectified image that the lens did not see; what the network says there is air."""
        return None if self._rectifier is None else self._rectifier.unseen

    def _anchors(
        self, find_scan: Callable[[], Scan], camera: Camera, config: Config
    ) -> tuple[Anchors | None, str | None]:
        """The anchors, or None and why there are none; no reason is needed where metres do not depend on them."""
        if config.range.type == "none" and self._own is not None:
            return None, None
        try:
            scan = find_scan()
        except Unusable as problem:
            return None, str(problem)
        self._scan = scan
        return find_anchors(scan.points, scan.camera_from_lidar, camera, config.range, self._unseen), None


@contextmanager
def _timed(stage_s: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long the block took."""
    start = time.perf_counter()
    yield
    stage_s[stage] = time.perf_counter() - start
