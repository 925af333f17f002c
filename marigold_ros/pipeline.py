"""The way of a frame, without ROS: image, camera and scan in, relative and metric depth out.

The node, the benchmark and `evaluate_metric` all go through here. One object serves one camera; what depends on the
camera alone is made when the camera changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Protocol

import numpy as np

from marigold_ros.anchors import Anchors, Scan, anchors_of
from marigold_ros.calibration import Calibration, CalibrationMonitor
from marigold_ros.config import Config, Fault, Unusable
from marigold_ros.correction import Correction, Corrector
from marigold_ros.disagreement import confidence_of
from marigold_ros.field import apply_field
from marigold_ros.geometry import Camera, Rectifier, rectifier, resize
from marigold_ros.metric import FittedDepth, MetricFit, apply_fit
from marigold_ros.motion import FindMotion, unknown_motion
from marigold_ros.picture_motion import PictureTrack
from marigold_ros.seen_motion import SeenMotion
from marigold_ros.sky import forget_alike
from marigold_ros.tracker import DEGRADED, RELATIVE, Metres, MetricTracker
from marigold_ros.uncertainty import USUAL, Uncertainty, doubt_of, rated, smooth_variance, solid_part
from marigold_ros.unknown import ENDLESS, forget_far

# Gives one scan, or those of several sensors; raises `Unusable` where there is none.
FindScan = Callable[[], "Scan | Sequence[Scan]"]

# Relative depth beyond this is 1 but for the rounding of a resize.
_SATURATED = 1.0 - 1e-5
# Images go on from each other up to so many seconds apart, or as many as metres are held, whichever is more: slow
# cameras and networks, too.
_GOES_ON_S = 5.0


class Estimator(Protocol):
    """What `estimator.load_estimator` returns, as far as a frame needs it."""

    space: str

    def coarse(self, rgb: np.ndarray, focal_px: float | None = None) -> np.ndarray:
        """(H, W, 3) uint8 -> (h, w) float32, increasing with distance, affine in `space`; of no more pixels than it."""

    def with_disagreement(self, rgb: np.ndarray, focal_px: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As `coarse`, and (h, w) float32 >= 0 in units of relative depth, larger is less sure."""

    def fit_of(self, camera: Camera) -> MetricFit | None:
        """What makes metres of its answer to this camera's images without anchors; None where nothing does."""


# (H, W, 3) uint8 -> (H, W, 3) float32 unit vectors in the optical frame.
NormalsNetwork = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class FrameDepth:
    """The answer to one image.

    `rgb` and `camera` are those of the rectified image, pixel on pixel with `relative` and `depth_m`, (H, W) float32.
    `depth_m` is None without a `fit`; a metric checkpoint has one of its own for want of another. `problem` says why
    anchors gave no new one, or no new correction, where they should. `metres` tells how sure the fit is; it is None
    where metres were not asked for.
    `calibration` is what many frames say of the extrinsic and the time offset; None while that is not known.
    None unless they were asked for: `sigma_m`, (H, W) float32, one standard deviation of `depth_m`; `confidence`,
    (H, W) float32 in [0, 1], that of metric depth by `sigma_m`; `solid_m`, `depth_m` that may go into a cloud.
    """

    rgb: np.ndarray
    camera: Camera
    relative: np.ndarray
    depth_m: np.ndarray | None = None
    fit: MetricFit | None = None
    anchors: Anchors | None = None
    problem: str | None = None
    stage_s: dict[str, float] = field(default_factory=dict)
    confidence: np.ndarray | None = None
    sigma_m: np.ndarray | None = None
    solid_m: np.ndarray | None = None
    metres: Metres | None = None
    calibration: Calibration | None = None

    @property
    def state(self) -> str:
        """One of `tracker.STATES`: RELATIVE where there are no metres, DEGRADED where they are the checkpoint's own."""
        if self.metres is None:
            return RELATIVE
        return DEGRADED if self.metres.fit is None and self.depth_m is not None else self.metres.state

    @property
    def cloud_m(self) -> np.ndarray | None:
        """What of `depth_m` goes into a cloud: all of it where `solid_m` was not asked for."""
        return self.depth_m if self.solid_m is None else self.solid_m

    @property
    def fit_age_s(self) -> float | None:
        """How long ago anchors were last in the fit; None where they never were, or it is the checkpoint's own."""
        return self.metres.age_s if self.metres is not None and self.metres.fit is not None else None


@dataclass(frozen=True)
class _Projected:
    """Scans as they were found and at the image's time, and their anchors."""

    found: Sequence[Scan]
    in_time: Sequence[Scan]
    anchors: Anchors


class Pipeline:
    """Runs the network, finds anchors, fits and applies; remembers the last fit for `fit.hold_s`.

    Of a metric checkpoint, its own scale and shift serve where no anchors give better ones.
    """

    def __init__(self, estimator: Estimator, normals: NormalsNetwork | None = None) -> None:
        self._estimator = estimator
        self._normals = normals
        self._tracker = MetricTracker(estimator.space)
        track = PictureTrack()
        self._seen = SeenMotion(track)
        # Works while the network does, which leaves a core free, or all of them: looks at the image, and before it does
        # what of the image before was not needed at once.
        self._beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="beside")
        self._put_off: list[Callable[[], object]] = []
        self._calibration = CalibrationMonitor(track)
        self._scans: Sequence[Scan] = ()
        # Sensors and times of the scans that were last new, all of them.
        self._counted: frozenset = frozenset()
        # The camera of the last image, and that of the first one since everything was forgotten.
        self._raw_camera: Camera | None = None
        self._first_camera: Camera | None = None
        self._rectifier: Rectifier | None = None
        # A metric checkpoint's scale and shift for this camera.
        self._own: MetricFit | None = None
        self._corrector = Corrector()
        self._start_anew()

    def _start_anew(self) -> None:
        """Forget what images before told: those to come are of another camera, or of another time.

        The watch over the calibration finds out by itself: it outlives a jump ahead.
        """
        self._tracker.reset()
        self._corrector.reset()
        self._seen.reset()
        self._uncertainty = Uncertainty()
        # How far the anchors of the last correction were evidence.
        self._reach = ENDLESS
        # The time of the last image that the tracker has seen.
        self._tracked_ns: int | None = None

    def __call__(
        self,
        rgb: np.ndarray,
        camera: Camera,
        stamp_ns: int,
        find_scan: FindScan,
        config: Config,
        *,
        metric: bool = True,
        confidence: bool = False,
        sigma: bool = False,
        solid: bool = False,
        find_motion: FindMotion = unknown_motion,
        peek_scan: FindScan | None = None,
    ) -> FrameDepth:
        """Depth of one (H, W, 3) uint8 image.

        `find_scan` is called after the network, so that a scan that arrives meanwhile still counts. Without `metric`
        only the relative depth is computed. `confidence` asks for that, too: of metric depth where it can be had, else
        that of model.confidence. `sigma` asks for the deviation of metric depth, `solid` for what of it has
        output.points_min_confidence. `find_motion` tells how the camera moved since an earlier image. `peek_scan` is
        called by another thread while the network works: what it gives is got ready, in case that `find_scan` gives
        the same.
        """
        stage_s: dict[str, float] = {}
        with _timed(stage_s, "rectify"):
            rgb, camera = self.rectified(rgb, camera)
        if not self._goes_on(stamp_ns, config.fit.hold_s):
            self._start_anew()
        asked = confidence or (metric and (sigma or solid))
        beside = partial(self._see, stamp_ns, rgb, camera, peek_scan, find_motion, config) if metric else None
        with self._at_work(beside, stage_s) as ready, _timed(stage_s, "network"):
            second = config.model.confidence if confidence or (metric and sigma) else "none"
            coarse, disagreement = self._look(rgb, camera, second)
            _require_answer(coarse, metres=self._own is not None)
            size = camera.width, camera.height
            relative = resize(coarse, *size)
            sure = self._sure(disagreement, size, config.model.confidence) if confidence else None
        if not metric:
            return FrameDepth(rgb, camera, relative, stage_s=stage_s, confidence=sure)
        with _timed(stage_s, "anchors"):
            projected, problem, fault = self._anchors(find_scan, camera, config, *ready)
            anchors = None if projected is None else projected.anchors
            scans = None if anchors is None else self._scans_id()
            calibration = self._watched(stamp_ns, rgb, camera, anchors, config)
        motion = self._seen.until_now(find_motion)

        def explained(by: MetricFit) -> bool:
            fitted = FittedDepth(by, relative, config.fit.max_depth_m)
            return self._corrector.explains(fitted, anchors, config.fit.correction_limit, motion)

        with _timed(stage_s, "fit"):
            metres = self._tracker.update(
                relative,
                anchors,
                config.fit,
                motion,
                problem=problem,
                fault=fault,
                own=self._own,
                scan=scans,
                explained=explained,
            )
            self._tracked_ns = stamp_ns
            fit, most_m = metres.fit or self._own, config.fit.max_depth_m
            fitted = None if fit is None else FittedDepth(fit, relative, most_m)
        with _timed(stage_s, "correct"):
            limit, depth_m = config.fit.correction_limit, None
            correction = self._corrector(fitted, metres, anchors, limit, motion, scans)
            if correction is not None:
                self._reach = correction.evidence.reach(fitted, self._reach)
                depth_m = apply_field(correction.field, fit, coarse, relative, most_m, self._reach)
                self._seen.remember(correction.evidence)
            elif fit is not None:
                depth_m = apply_fit(fit, relative, most_m)
                forget_far(depth_m, relative, ENDLESS if fit is self._own else self._reach, most_m)
            if depth_m is not None:
                if correction is not None and self._reach.fitted_m < most_m:
                    right = correction.evidence.trust > 0.5
                    forget_alike(depth_m, rgb, correction.evidence.pixels[right])
                self._forget_unknown(depth_m, relative)
        frame = FrameDepth(
            rgb,
            camera,
            relative,
            depth_m,
            fit,
            anchors,
            metres.problem or (correction and correction.problem),
            stage_s,
            sure,
            metres=metres,
            calibration=calibration,
        )
        if depth_m is None or not asked:
            return frame
        with _timed(stage_s, "sigma"):
            doubt = cache(lambda: doubt_of(apply_fit(fit, coarse, most_m), disagreement, fit, camera.width))
            self._learn(correction, limit, cache(lambda: resize(doubt(), *size)))
            law = self._uncertainty.law
            variance = smooth_variance(law, fitted, correction)
            sigma_m = None
            if sigma or confidence:
                sigma_m, sure = rated(depth_m, variance, doubt(), law, sigma=sigma, confidence=confidence)
            solid_m = solid_part(depth_m, variance, config.output.points_min_confidence) if solid else None
            return replace(frame, sigma_m=sigma_m, confidence=sure, solid_m=solid_m)

    def normals(self, rgb: np.ndarray) -> np.ndarray | None:
        """(H, W, 3) float32 normals of `rgb`, the image that was rectified last; NaN where the lens did not see.

        None without a network for them. Raises ArithmeticError where what it answers is not finite.
        """
        if self._normals is None:
            return None
        normals = self._normals(rgb)
        if not np.isfinite(normals).all():
            raise ArithmeticError("the answer of the network for normals is not finite: its engine is broken")
        if self._unseen is not None:
            normals[self._unseen] = np.nan
        return normals

    def _learn(self, correction: Correction | None, limit: float, find_doubt: Callable[[], np.ndarray]) -> None:
        """Look at how far wrong a correction by anchors of this image is; the first one at once, others later."""
        if correction is None or not correction.fresh:
            return
        learn = partial(self._uncertainty.learn, correction.evidence, limit, find_doubt)
        if self._uncertainty.law is USUAL:
            learn()
        else:
            self._put_off.append(learn)

    @contextmanager
    def _at_work(
        self, beside: Callable[[], _Projected | None] | None, stage_s: dict[str, float]
    ) -> Iterator[list[_Projected | None]]:
        """Do something beside the block, whose answer is then in the list; stage "beside" is the wait for it."""
        answer: list[_Projected | None] = []
        work = self._beside.submit(beside) if beside is not None else None
        try:
            yield answer
        finally:
            if work is not None:
                with _timed(stage_s, "beside"):
                    wait([work])
        if work is not None:
            answer.append(work.result())

    def _see(
        self,
        stamp_ns: int,
        rgb: np.ndarray,
        camera: Camera,
        peek_scan: FindScan | None,
        find_motion: FindMotion,
        config: Config,
    ) -> _Projected | None:
        """See how the camera moved; get ready what was remembered, and what scans there are."""
        put_off, self._put_off = self._put_off, []
        try:
            for work in put_off:
                work()
        finally:
            self._seen.see(stamp_ns, rgb, camera)
        if not any(sensor.fixed_frame for sensor in config.ranges):  # whose odometry may come while the network works
            self._corrector.get_ready(self._seen.until_now(find_motion))
        try:
            found = [] if peek_scan is None else _listed(peek_scan())
            return self._projected(found, camera, config) if found else None
        except Exception:  # what time does not mend, `find_scan` will say after the network
            return None

    def _projected(self, found: Sequence[Scan], camera: Camera, config: Config) -> _Projected:
        in_time = [self._seen.in_time(scan) for scan in found]
        anchors = anchors_of(in_time, camera, config.range, self._unseen)
        return _Projected(found, in_time, anchors)

    def _watched(
        self, stamp_ns: int, rgb: np.ndarray, camera: Camera, anchors: Anchors | None, config: Config
    ) -> Calibration | None:
        """What the frames before say of extrinsic and time offset of the first range sensor; this one says it later."""
        if not config.fit.check_calibration:
            self._calibration.reset()
            return None
        self._calibration.begin(stamp_ns, camera)
        first = [sensor.SECTION for sensor in config.ranges[:1]]
        scan = next((scan for scan in self._scans if (scan.limits or config.range).SECTION in first), None)
        if anchors is not None and scan is not None:
            alone = len(self._scans) == 1
            monitor, unseen = self._calibration, self._unseen  # without self, which would keep itself alive

            def update() -> None:
                own = anchors if alone else anchors_of([scan], camera, config.range, unseen)
                monitor.update(stamp_ns, rgb, camera, own, scan.camera_from_lidar[:3, 3], scan.age_s)

            self._put_off.append(update)
        return self._calibration.verdict

    def _scans_id(self) -> Hashable:
        """What tells this frame's scans from those of another; None where their times are not known.

        The same for as long as one of them is still that of the frame that got it: of several sensors the fastest would
        otherwise make something new of what the others said before.
        """
        if any(scan.stamp_ns is None for scan in self._scans):
            return None
        scans = frozenset((scan.limits and scan.limits.SECTION, scan.stamp_ns) for scan in self._scans)
        if not scans & self._counted:
            self._counted = scans
        return self._counted

    def _forget_unknown(self, depth_m: np.ndarray, relative: np.ndarray) -> None:
        """Set to NaN what is no depth wherever it is measured: the end of a metric checkpoint's range, which means that
        far or farther and is no wall, and what the lens did not see.
        """
        if self._own is not None:
            depth_m[relative > _SATURATED] = np.nan
        if self._unseen is not None:
            depth_m[self._unseen] = np.nan

    def _look(self, rgb: np.ndarray, camera: Camera, method: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Coarse relative depth and, unless `method` is 'none', the disagreement of two answers."""
        disagreement = None
        if method == "none":
            coarse = self._estimator.coarse(rgb, camera.focal_px)
        else:
            coarse, disagreement = self._estimator.with_disagreement(rgb, camera.focal_px)
        return np.ascontiguousarray(coarse, np.float32), disagreement

    def _sure(self, disagreement: np.ndarray | None, size: tuple[int, int], method: str) -> np.ndarray | None:
        """The confidence of relative depth, where there is one, at `size`: 0 where the lens did not see."""
        if disagreement is None:
            return None
        confidence = confidence_of(resize(disagreement, *size), method)
        if self._unseen is not None:
            confidence[self._unseen] = 0.0
        return confidence

    def rectified(self, rgb: np.ndarray, camera: Camera) -> tuple[np.ndarray, Camera]:
        """The (H, W, 3) image without lens distortion, and its camera."""
        if camera != self._raw_camera:
            self._rectifier = rectifier(camera)
            self._own = self._estimator.fit_of(camera if self._rectifier is None else self._rectifier.camera)
            first = self._first_camera
            if first is None or self._own is not None or not first.resembles(camera):
                self._start_anew()  # what was fitted belongs to another focal length, or to other pixels
                self._first_camera = camera
            self._raw_camera = camera  # last: where this failed, the next image tries again
        if self._rectifier is None:
            return rgb, camera
        return self._rectifier(rgb), self._rectifier.camera

    def _goes_on(self, stamp_ns: int, hold_s: float) -> bool:
        """Whether what is known from the images before serves for one of this time."""
        if self._tracked_ns is None:
            return True
        return 0.0 <= (stamp_ns - self._tracked_ns) * 1e-9 <= max(hold_s, _GOES_ON_S)

    @property
    def _unseen(self) -> np.ndarray | None:
        """(H, W) bool: pixels of the rectified image that the lens did not see; what the network says there is air."""
        return None if self._rectifier is None else self._rectifier.unseen

    def _anchors(
        self, find_scan: FindScan, camera: Camera, config: Config, ready: _Projected | None
    ) -> tuple[_Projected | None, str | None, bool]:
        """The scans' anchors, or None, why there are none, and whether that is a fault; `ready` are those of some.

        No reason is needed where metres do not depend on them.
        """
        if not config.ranges and self._own is not None:
            return None, None, False
        try:
            found = _listed(find_scan())
        except Unusable as problem:
            return None, str(problem), isinstance(problem, Fault)
        same = ready is not None and len(found) == len(ready.found) and all(map(Scan.equals, found, ready.found))
        projected = ready if same else self._projected(found, camera, config)
        self._scans = projected.in_time
        return projected, None, False


def _listed(scans: Scan | Sequence[Scan]) -> Sequence[Scan]:
    return [scans] if isinstance(scans, Scan) else scans


def _require_answer(relative: np.ndarray, metres: bool) -> None:
    """Half precision that overflows, or a device that is lost, leaves NaN or a constant: better no answer than that.

    metres: they can be had of it without anchors, which would notice a constant.
    """
    if not np.isfinite(relative).all() or (metres and np.ptp(relative) < 1e-6):
        raise ArithmeticError("the network's answer is constant or not finite: its engine or checkpoint is broken")


@contextmanager
def _timed(stage_s: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long the block took."""
    start = time.perf_counter()
    yield
    stage_s[stage] = time.perf_counter() - start
