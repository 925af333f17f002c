"""Ways from relative depth and anchors to metres: the node's own, the best possible, and what others use.

Each is a function of a `Question` that answers with (M,) metres at its pixels, NaN where it has none. A new way is a
new entry of `METHODS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import cv2
import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.config import FitConfig, Unusable
from marigold_ros.correction import Correction
from marigold_ros.field import apply_field, evidence_of, fitted_field
from marigold_ros.geometry import resize
from marigold_ros.metric import (
    FittedDepth,
    MetricFit,
    Refusal,
    apply_fit,
    fit_metric,
    from_space,
    log_slope,
    sample,
    to_space,
)
from marigold_ros.uncertainty import Uncertainty, doubt_of, rated, smooth_variance

OURS, GLOBAL = "ours", "ours, no correction"
ORACLE, LINEAR = "oracle affine", "linear interpolation"
_NEIGHBOURS = 5
_ORACLE_ROUNDS = 20
_PACKAGES = {"sklearn": "scikit-learn", "scipy": "scipy"}
_MAX_DEPTH_M = FitConfig().max_depth_m


@dataclass(frozen=True)
class Question:
    """What a method is given: `relative` (H, W) float32, affine in `space`; anchors; (M, 2) integer pixels u, v.

    own: a metric checkpoint's scale and shift for the image. coarse: (h, w) what `relative` was resized from, if so.
    """

    relative: np.ndarray
    space: str
    anchors: Anchors
    pixels: np.ndarray
    own: MetricFit | None = None
    coarse: np.ndarray | None = None

    def at_anchors(self) -> np.ndarray:
        """(N,) float64 relative depth at the anchors."""
        return sample(self.relative, self.anchors.pixels).astype(np.float64)

    def at_pixels(self) -> np.ndarray:
        """(M,) float32 relative depth at the pixels that are asked about."""
        return self.relative[self.pixels[:, 1], self.pixels[:, 0]]


Method = Callable[[Question], np.ndarray]


def own_fit(question: Question) -> MetricFit | Refusal:
    """The node's robust fit with its default settings."""
    return fit_metric(question.relative, question.anchors, question.space, FitConfig(), question.own)


def ours_without_correction(question: Question) -> np.ndarray:
    """The node's scale and shift alone; NaN where it refuses."""
    fit = own_fit(question)
    return _unknown(question) if isinstance(fit, Refusal) else apply_fit(fit, question.at_pixels(), _MAX_DEPTH_M)


def ours(question: Question) -> np.ndarray:
    """What the node publishes: its fit, corrected where anchors contradict it; NaN where it refuses."""
    return ours_with_sigma(question)[0]


def ours_with_sigma(question: Question) -> tuple[np.ndarray, np.ndarray]:
    """`ours`, and (M,) metres: the standard deviation that the node gives it, in its first frame."""
    fit = own_fit(question)
    if isinstance(fit, Refusal):
        return _unknown(question), _unknown(question)
    fitted = FittedDepth(fit, question.relative, _MAX_DEPTH_M)
    coarse = question.relative if question.coarse is None else question.coarse
    limit, correction = FitConfig().correction_limit, None
    doubt = doubt_of(apply_fit(fit, coarse, _MAX_DEPTH_M), None, fit, fitted.shape[1])
    uncertainty = Uncertainty()
    evidence = evidence_of(fitted, question.anchors, fit.evidence.sigma)
    if evidence is None:
        depth_m = apply_fit(fit, question.relative, _MAX_DEPTH_M)
    else:
        correction = Correction(evidence, fitted_field(evidence, limit), fresh=True)
        reach = evidence.reach(fitted)
        depth_m = apply_field(correction.field, fit, coarse, question.relative, _MAX_DEPTH_M, reach)
        uncertainty.learn(evidence, limit, lambda: resize(doubt, *fitted.shape[::-1]))
    variance = smooth_variance(uncertainty.law, fitted, correction)
    sigma_m, _ = rated(depth_m, variance, doubt, uncertainty.law, sigma=True)
    u, v = question.pixels.T
    return depth_m[v, u], sigma_m[v, u]


def oracle_affine(question: Question, truth_m: np.ndarray) -> np.ndarray:
    """The metres of `oracle_line`."""
    return _affine(question.at_pixels(), question.space, *oracle_line(question, truth_m))


def oracle_line(question: Question, truth_m: np.ndarray) -> tuple[float, float]:
    """The scale and shift with the least AbsRel on (M,) `truth_m` itself: a bound to all that fit these two.

    Reweighted least squares, then a simplex search. It stands for what the relative depth allows, so unknown depth
    counts as an error of 100 % when scales compete.
    """
    p, truth_m = question.at_pixels().astype(np.float64), truth_m.astype(np.float64)
    y = to_space(truth_m, question.space)
    slope = log_slope(truth_m, question.space)

    def errors(scale: float, shift: float) -> np.ndarray:
        return np.nan_to_num(np.abs(_affine(p, question.space, scale, shift) / truth_m - 1.0), nan=1.0)

    tried = []
    for weight in (np.ones_like(y), slope**2):
        for _ in range(_ORACLE_ROUNDS):
            scale, shift = _line(p, y, weight)
            # The error in metres, not its linear part in the space: near infinity the two are far apart.
            error = errors(scale, shift)
            tried.append((error.mean(), scale, shift))
            weight = error / np.maximum(np.abs(scale * p + shift - y), 1e-3 / slope) ** 2
    _, scale, shift = min(tried)
    # The line's ends as unknowns: scale and shift pull at each other.
    low, high = p.min(), p.max()
    ends = np.array([scale * low + shift, scale * high + shift])

    def line(ends: np.ndarray) -> tuple[float, float]:
        scale = (ends[1] - ends[0]) / max(high - low, 1e-12)
        return scale, ends[0] - scale * low

    found = _needed("scipy.optimize").minimize(
        lambda ends: errors(*line(ends)).mean(), ends, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-6}
    )
    return line(found.x)


def least_squares(question: Question) -> np.ndarray:
    """Unweighted least squares in the checkpoint's space."""
    return _fitted_in(question, question.space)


def least_squares_elsewhere(question: Question) -> np.ndarray:
    """Unweighted least squares in the wrong space: in depth, for checkpoints affine in depth in inverse depth."""
    return _fitted_in(question, "inverse_depth" if question.space == "depth" else "depth")


def huber(question: Question) -> np.ndarray:
    """scikit-learn's HuberRegressor with its defaults in the checkpoint's space, y brought to unit deviation."""
    p, y = question.at_anchors(), to_space(question.anchors.depth_m.astype(np.float64), question.space)
    if len(y) < 2 or np.ptp(y) == 0:
        return _unknown(question)
    deviation = y.std()
    regressor = _needed("sklearn.linear_model").HuberRegressor()
    try:
        found = regressor.fit(p[:, None], y / deviation)
    except ValueError:  # it did not converge
        return _unknown(question)
    scale, shift = found.coef_[0] * deviation, found.intercept_ * deviation
    return _affine(question.at_pixels(), question.space, scale, shift)


def ransac(question: Question) -> np.ndarray:
    """As Marsal et al. (arXiv 2412.14103): scikit-learn's RANSACRegressor, whose threshold is y's median deviation.

    In the checkpoint's space, which in theirs is disparity.
    """
    p, y = question.at_anchors(), to_space(question.anchors.depth_m.astype(np.float64), question.space)
    regressor = _needed("sklearn.linear_model").RANSACRegressor(random_state=0)
    try:
        found = regressor.fit(p[:, None], y).estimator_
    except ValueError:  # too few anchors, or no two of them agree
        return _unknown(question)
    return _affine(question.at_pixels(), question.space, found.coef_[0], found.intercept_)


def median_scaling(question: Question) -> np.ndarray:
    """One factor, the median ratio at the anchors, on the answer read as depth itself.

    Inverse depth is taken to fall from 1 (nearest) to 0, log depth to have the right scale.
    """
    as_depth = {
        "depth": lambda p: np.maximum(p, 1e-3),
        "inverse_depth": lambda p: 1.0 / np.maximum(1.0 - p, 1e-3),
        "log_depth": np.exp,
    }[question.space]
    if len(question.anchors) == 0:
        return _unknown(question)
    factor = np.median(question.anchors.depth_m / as_depth(question.at_anchors()))
    return (factor * as_depth(question.at_pixels())).astype(np.float32)


def nearest_affine(question: Question) -> np.ndarray:
    """Scale and shift from the five nearest anchors of each pixel, weighted by 1 / distance, in inverse depth or the
    checkpoint's own space: the coarse stage of Prior Depth Anything, without its network."""
    count = min(_NEIGHBOURS, len(question.anchors))
    if count == 0:
        return _unknown(question)
    tree = _needed("scipy.spatial").cKDTree(question.anchors.pixels)
    distance, nearest = tree.query(question.pixels, k=count)
    weight = 1.0 / np.maximum(distance.reshape(-1, count), 1e-3)
    nearest = nearest.reshape(-1, count)
    p = question.at_anchors()[nearest]
    y = to_space(question.anchors.depth_m.astype(np.float64), question.space)[nearest]
    total = weight.sum(axis=1)
    p_mean, y_mean = (weight * p).sum(axis=1) / total, (weight * y).sum(axis=1) / total
    p_off = p - p_mean[:, None]
    spread = (weight * p_off**2).sum(axis=1)
    covariance = (weight * p_off * (y - y_mean[:, None])).sum(axis=1)
    scale = np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 1e-12 * total)
    return _metres(scale * (question.at_pixels() - p_mean) + y_mean, question.space)


def linear_interpolation(question: Question) -> np.ndarray:
    """Linear over the anchors' Delaunay triangles, the nearest anchor's outside; the image is not looked at.

    The same as `beams.linear_depth`, which needs no scipy, but many times faster, and for anchors on one line too.
    """
    pixels = question.anchors.pixels.astype(np.float64)
    if len(pixels) == 0:
        return _unknown(question)
    depth_m = _unknown(question)
    # A 2D scan is one line, which has no triangles.
    if np.linalg.matrix_rank(pixels - pixels.mean(axis=0), tol=0.5 * len(pixels) ** 0.5) == 2:
        depth_m[:] = _needed("scipy.interpolate").LinearNDInterpolator(pixels, question.anchors.depth_m)(
            question.pixels
        )
    outside = np.isnan(depth_m)
    _, nearest = _needed("scipy.spatial").cKDTree(pixels).query(question.pixels[outside])
    depth_m[outside] = question.anchors.depth_m[nearest]
    return depth_m


def morphological(question: Question) -> np.ndarray:
    """Completion of the depth image by OpenCV's dilations, closings and blurs, in the order of IP-Basic's paper
    (Ku et al., CRV 2018); the image is not looked at. NaN where it fills nothing."""
    rows, columns = question.relative.shape
    order = np.argsort(-question.anchors.depth_m)  # the nearest anchor of a pixel is written last
    u, v = np.rint(question.anchors.pixels[order]).astype(np.intp).T
    sparse = np.zeros((rows, columns), np.float32)
    sparse[np.clip(v, 0, rows - 1), np.clip(u, 0, columns - 1)] = question.anchors.depth_m[order]
    # Inverted, so that dilation lets the nearer win; 0 stays unknown.
    ceiling = np.float32(question.anchors.depth_m.max(initial=0.0) + 10.0)
    inverted = np.where(sparse > 0, ceiling - sparse, np.float32(0))
    diamond = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inverted = cv2.dilate(inverted, cv2.dilate(np.pad(diamond, 1), diamond))  # a 5x5 diamond
    inverted = cv2.morphologyEx(inverted, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    inverted = _holes_dilated(inverted, 7)
    inverted = _holes_dilated(_extended_upwards(inverted), 31)
    known = inverted > 0
    inverted = np.where(known, cv2.medianBlur(inverted, 5), 0)
    weight = cv2.GaussianBlur(known.astype(np.float32), (5, 5), 0)
    blurred = cv2.GaussianBlur(inverted, (5, 5), 0) / np.maximum(weight, 1e-6)
    depth_m = np.where(known & (blurred > 0), ceiling - blurred, np.float32(np.nan))
    return depth_m[question.pixels[:, 1], question.pixels[:, 0]]


METHODS: dict[str, Method] = {
    OURS: ours,
    GLOBAL: ours_without_correction,
    "least squares": least_squares,
    "least squares, wrong space": least_squares_elsewhere,
    "Huber": huber,
    "RANSAC": ransac,
    "median scaling": median_scaling,
    "nearest affine": nearest_affine,
    LINEAR: linear_interpolation,
    "morphological": morphological,
}


def _holes_dilated(inverted: np.ndarray, size_px: int) -> np.ndarray:
    return np.where(inverted > 0, inverted, cv2.dilate(inverted, np.ones((size_px, size_px), np.uint8)))


def _extended_upwards(inverted: np.ndarray) -> np.ndarray:
    """The topmost known value of each column, continued to the image's upper edge."""
    known = inverted > 0
    top = known.argmax(axis=0)
    columns = np.arange(inverted.shape[1])
    above = (np.arange(inverted.shape[0])[:, None] < top) & known.any(axis=0)
    return np.where(above, inverted[top, columns], inverted)


def _unknown(question: Question) -> np.ndarray:
    return np.full(len(question.pixels), np.nan, np.float32)


def _line(p: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Weighted least squares of y on p; scale 0 where p is constant."""
    total = weight.sum()
    p_mean, y_mean = weight @ p / total, weight @ y / total
    spread = weight @ (p - p_mean) ** 2
    scale = float(weight @ ((p - p_mean) * (y - y_mean)) / spread) if spread > 1e-12 * total else 0.0
    return scale, float(y_mean - scale * p_mean)


def _fitted_in(question: Question, space: str) -> np.ndarray:
    """Unweighted least squares of the anchors, relative depth taken to be affine in `space`."""
    if len(question.anchors) == 0:
        return _unknown(question)
    y = to_space(question.anchors.depth_m.astype(np.float64), space)
    return _affine(question.at_pixels(), space, *_line(question.at_anchors(), y, np.ones(len(y))))


def _affine(p: np.ndarray, space: str, scale: float, shift: float) -> np.ndarray:
    return _metres(scale * p.astype(np.float64) + shift, space)


def _metres(y: np.ndarray, space: str) -> np.ndarray:
    """float32 metres; NaN beyond the node's farthest depth, as in its own output."""
    depth_m = from_space(y, space)
    with np.errstate(invalid="ignore"):
        return np.where(depth_m <= _MAX_DEPTH_M, depth_m, np.nan).astype(np.float32)


def _needed(module: str) -> ModuleType:
    """The module, or `Unusable` with the package to install: the node itself does without."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = _PACKAGES[module.partition(".")[0]]
        raise Unusable(f"{package} is not installed: the methods to compare with need it; pip install {package}") from (
            error
        )
