"""What pulls a diffusion towards the anchors: metres of its map, and how far they are from what was measured.

Two ways from the decoded map r in [0, 1] to y = g(metres) in the checkpoint's space, and to a loss at the anchors:
`Guarded`, which wrong anchors do not lead astray, and `Published`, Marigold-DC's own (arXiv 2412.13389), to measure
against. Both are made for one image and a batch of ensemble members, B of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from marigold_ros.anchors import Anchors
from marigold_ros.config import FitConfig, Unusable
from marigold_ros.geometry import in_image
from marigold_ros.metric import MetricFit, fit_metric, log_slope, to_space

# Relative depth error up to which the loss is quadratic, and the least at which an anchor counts as contradicted.
_KERNEL = 0.1
# An anchor is compared with so many of the nearest ones, itself among them: a majority of them must be right.
_NEIGHBOURS = 15
_ROWS_AT_ONCE = 1024
# With fewer, or with all within this factor of each other, two unknowns and a map cannot be had from them.
_FEWEST_ANCHORS = 20
_LEAST_SPREAD = 1.1
_PERCENTILES = (5.0, 95.0)
_FARTHEST_M = 1000.0


class Guarded:
    """Scale and shift by the node's robust fit to the map as it is in each step, and a loss that wrong anchors survive.

    The fit needs no start and no rate of learning, half of the anchors may be wrong, and the gradient is left to change
    the map alone. The loss is Huber's of the relative depth error, which is what the fit looks at too, and scaling all
    anchors by a factor changes nothing. A redescending weight on the error itself would give up what the network got
    wrong, such as a thing that it does not see; so it lies on the deviation of an anchor's error from the median of its
    neighbours' errors. What neighbours agree on pulls, what contradicts them does not.
    """

    learnt: tuple[Tensor, ...] = ()
    clip = False

    def __init__(self, anchors: Anchors, space: str, size: tuple[int, int], members: int, device: str) -> None:
        self._anchors, self._space, self._size = anchors, space, size
        depth_m = anchors.depth_m.astype(np.float64)
        y = to_space(depth_m, space)
        self._y, self._slope, self._weight = (
            torch.from_numpy(np.asarray(values, np.float32)).to(device)
            for values in (y, log_slope(depth_m, space), anchors.weight)
        )
        self._neighbours = _nearest(torch.from_numpy(anchors.pixels).to(device), _NEIGHBOURS)
        # Where the fit refuses from the start: what the published method does, without the few outermost anchors.
        low, high = np.percentile(y, _PERCENTILES)
        self._scale, self._shift = torch.full((members, 1), high - low), torch.full((members, 1), low)
        self._scale, self._shift = (line.float().to(device) for line in (self._scale, self._shift))

    def look_at(self, relative: Tensor) -> None:
        """Fit scale and shift to (B, 1, h, w) decoded maps; a member that the fit refuses keeps what it had."""
        whole = functional.interpolate(relative.detach(), self._size, mode="bilinear", align_corners=False)
        for member, image in enumerate(whole[:, 0].float().cpu().numpy()):
            fit = fit_metric(image, self._anchors, self._space, FitConfig(min_inliers=0.0))
            if isinstance(fit, MetricFit):
                self._scale[member], self._shift[member] = fit.scale, fit.shift

    def y(self, relative: Tensor) -> Tensor:
        """(B, M) values of the maps to (B, M) in the checkpoint's space."""
        return self._scale * relative + self._shift

    def loss(self, relative: Tensor) -> Tensor:
        """(B,) of (B, N) values of the maps at the anchors."""
        error = self._slope * (self.y(relative) - self._y)
        with torch.no_grad():
            deviation = error - error[:, self._neighbours].median(dim=2).values
            spread = 1.4826 * deviation.abs().median(dim=1, keepdim=True).values
            kernel = spread.clamp(min=_KERNEL)
            weight = self._weight * (kernel**2 / (kernel**2 + deviation**2)) ** 2
        huber = functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=_KERNEL)
        return (weight * huber).sum(dim=1) / weight.sum(dim=1)


class Published:
    """As published: the map's range starts as that of the anchors, scale and shift are learnt, L1 + L2 in metres.

    y = s^2 (high - low) r + t^2 low, in depth itself. In the other spaces, of which the paper knows nothing, low is not
    positive, so t is added.
    """

    clip = True

    def __init__(self, anchors: Anchors, space: str, size: tuple[int, int], members: int, device: str) -> None:
        self._space = space
        self._depth_m = torch.from_numpy(anchors.depth_m.astype(np.float32)).to(device)
        y = to_space(anchors.depth_m.astype(np.float64), space)
        self._low, self._range = float(y.min()), float(np.ptp(y))
        self.learnt = tuple(torch.ones(members, 1, device=device, requires_grad=True) for _ in range(2))

    def look_at(self, relative: Tensor) -> None:
        """Nothing: scale and shift follow the gradient."""

    def y(self, relative: Tensor) -> Tensor:
        """As `Guarded.y`."""
        s, t = self.learnt
        low = t**2 * self._low if self._space == "depth" else self._low + (t - 1.0) * self._range
        return s**2 * self._range * relative + low

    def loss(self, relative: Tensor) -> Tensor:
        """As `Guarded.loss`."""
        y = self.y(relative)
        if self._space == "inverse_depth":
            depth_m = -1.0 / y.clamp(max=-1.0 / _FARTHEST_M)
        else:
            depth_m = y.exp() if self._space == "log_depth" else y
        error = depth_m - self._depth_m
        return error.abs().mean(dim=1) + error.square().mean(dim=1)


def check_anchors(anchors: Anchors, size: tuple[int, int]) -> None:
    """Raise `Unusable` for anchors that cannot guide a map of (H, W) `size`."""
    if len(anchors) < _FEWEST_ANCHORS:
        raise Unusable(f"{len(anchors)} anchors: at least {_FEWEST_ANCHORS} are needed to guide; give more of them")
    low, high = np.percentile(anchors.depth_m, _PERCENTILES)
    if high < _LEAST_SPREAD * low:
        raise Unusable(
            f"all anchors lie at about one depth ({low:.2f} to {high:.2f} m), which leaves scale and shift open; give "
            "anchors at several depths"
        )
    if not in_image(anchors.pixels, size[1], size[0]).all():
        raise Unusable(f"anchors lie outside the image of {size[1]}x{size[0]}; give those of this image")


def places(anchors: Anchors, size: tuple[int, int], device: str) -> Tensor:
    """(1, 1, N, 2) places of the anchors for `grid_sample`: -1 and 1 are the edges of the image of (H, W) `size`."""
    pixels = torch.from_numpy(anchors.pixels).to(device).float()
    return ((pixels + 0.5) * 2.0 / pixels.new_tensor(size[::-1]) - 1.0)[None, None]


def at(relative: Tensor, where: Tensor) -> Tensor:
    """(B, N) bilinear samples of (B, 1, h, w) maps: the same as resizing them to the image first."""
    where = where.expand(len(relative), -1, -1, -1)
    found = functional.grid_sample(relative, where, mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, 0, 0]


def _nearest(pixels: Tensor, count: int) -> Tensor:
    """(N, K) indices of the nearest of (N, 2) pixels, K at most `count`; the first is the pixel itself."""
    count = min(count, len(pixels))
    rows = [torch.cdist(some, pixels).topk(count, largest=False).indices for some in pixels.split(_ROWS_AT_ONCE)]
    return torch.cat(rows)
