"""The picture of a result: image, metric depth, error against the truth, and the cloud from the side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marigold_ros.scores import score

_BACKGROUND, _PANEL, _TEXT, _FAINT, _ACCENT = "#0f141b", "#161d27", "#e8ecf1", "#8b98a8", "#ffb000"
_DEPTH_COLOURS, _ERROR_COLOURS = "turbo_r", "inferno"
_WORST_ERROR = 0.3
_MOST_POINTS = 120_000


@dataclass(frozen=True)
class Shot:
    """One frame of a result.

    rgb: (H, W, 3) uint8; depth_m: (H, W) estimated; truth_m: (H, W) or coarser by whole pixels;
    pixels, lidar: (N, 2) and (N, 3) the LiDAR points in the image and in the camera frame; cloud, colours: (M, 3)
    estimated points in the camera frame and their colours, uint8. Metres; NaN unknown.
    """

    rgb: np.ndarray
    depth_m: np.ndarray
    truth_m: np.ndarray
    pixels: np.ndarray
    lidar: np.ndarray
    cloud: np.ndarray
    colours: np.ndarray


def draw(shot: Shot, title: str, footnote: str, path: Path) -> None:
    """Write the picture of `shot` to the PNG `path`."""
    # Figure instead of pyplot: no display, no global state.
    from matplotlib.figure import Figure

    height, width = shot.rgb.shape[:2]
    flat = width > 2 * height  # three of these beside each other would be stripes
    figure = Figure(figsize=(16, 7.6 if flat else 9.2), dpi=110, facecolor=_BACKGROUND)
    figure.text(0.045, 0.972, title, color=_TEXT, fontsize=19, fontweight="bold", va="top")
    figure.text(0.045, 0.018, footnote, color=_FAINT, fontsize=10.5, va="bottom")
    image, depth, error, side = _axes(figure, flat)
    near, far = _depth_limits(shot)
    _show_image(image, shot, near, far)
    _show_depth(depth, shot, near, far)
    _show_error(error, shot)
    _show_side(side, shot, far)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=_BACKGROUND)


def _axes(figure: Any, flat: bool) -> list[Any]:
    """The four panels: three views of the image, and the cloud."""
    frame = {"left": 0.045, "right": 0.975, "top": 0.9, "bottom": 0.1}
    if flat:
        grid = figure.add_gridspec(2, 2, hspace=0.3, wspace=0.08, **frame)
        cells = list(grid)
    else:
        grid = figure.add_gridspec(2, 3, height_ratios=(1, 0.8), hspace=0.36, wspace=0.06, **frame)
        cells = [grid[0, 0], grid[0, 1], grid[0, 2], grid[1, :]]
    return [figure.add_subplot(cell) for cell in cells]


def _depth_limits(shot: Shot) -> tuple[float, float]:
    known = shot.depth_m[np.isfinite(shot.depth_m)]
    if len(known) == 0:
        return 0.5, 20.0
    near, far = np.percentile(known, (1, 97))
    return float(near), float(max(far, near + 1.0))


def _titled(axes: Any, title: str) -> None:
    axes.set_title(title, color=_TEXT, fontsize=12.5, loc="left", pad=8)


def _picture(axes: Any, title: str) -> None:
    _titled(axes, title)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor(_PANEL)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colour_bar(axes: Any, mappable: Any, label: str) -> None:
    # An inset keeps the panels the same size whether they have a bar or not.
    inset = axes.inset_axes((0.0, -0.09, 1.0, 0.034))
    bar = axes.figure.colorbar(mappable, cax=inset, orientation="horizontal")
    bar.set_label(label, color=_FAINT, fontsize=10)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=_FAINT, labelsize=9, length=2)


def _show_image(axes: Any, shot: Shot, near: float, far: float) -> None:
    _picture(axes, f"Camera image with {len(shot.pixels)} LiDAR points")
    axes.imshow(shot.rgb)
    dots = axes.scatter(
        *shot.pixels.T, c=shot.lidar[:, 2], cmap=_DEPTH_COLOURS, vmin=near, vmax=far, s=2.2, linewidths=0
    )
    axes.set_xlim(-0.5, shot.rgb.shape[1] - 0.5)
    axes.set_ylim(shot.rgb.shape[0] - 0.5, -0.5)
    _colour_bar(axes, dots, "measured depth [m]")


def _show_depth(axes: Any, shot: Shot, near: float, far: float) -> None:
    _picture(axes, "Metric depth, every pixel")
    shown = axes.imshow(shot.depth_m, cmap=_DEPTH_COLOURS, vmin=near, vmax=far, interpolation="nearest")
    _colour_bar(axes, shown, "estimated depth [m]")


def _show_error(axes: Any, shot: Shot) -> None:
    rows, columns = shot.truth_m.shape
    steps = shot.depth_m.shape[0] // rows, shot.depth_m.shape[1] // columns
    depth_m = shot.depth_m[:: steps[0], :: steps[1]][:rows, :columns]
    error = np.abs(depth_m - shot.truth_m) / shot.truth_m
    found = score(depth_m, shot.truth_m)
    _picture(axes, f"Error against the truth:  AbsRel {found.abs_rel:.3f},  δ1 {found.delta1:.1%}")
    v, u = np.nonzero(np.isfinite(error))
    if len(v) > 0.3 * error.size:
        shown = axes.imshow(100 * error, cmap=_ERROR_COLOURS, vmin=0, vmax=100 * _WORST_ERROR, interpolation="nearest")
    else:  # sparse truth: dots that can be seen
        axes.imshow(shot.rgb.mean(axis=2), cmap="gray", vmin=0, vmax=900)
        shown = axes.scatter(
            u, v, c=100 * error[v, u], cmap=_ERROR_COLOURS, vmin=0, vmax=100 * _WORST_ERROR, s=3, linewidths=0
        )
    _colour_bar(axes, shown, "relative depth error [%]")


def _show_side(axes: Any, shot: Shot, far: float) -> None:
    _titled(axes, "The point cloud from the side: camera at the left, LiDAR points in orange")
    axes.set_facecolor(_PANEL)
    axes.set_xlabel("distance along the optical axis [m]", color=_FAINT, fontsize=10)
    axes.set_ylabel("height above the camera [m]", color=_FAINT, fontsize=10)
    axes.tick_params(colors=_FAINT, labelsize=9, length=2)
    axes.grid(color="#2a3442", linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    step = max(1, len(shot.cloud) // _MOST_POINTS)
    points, colours = shot.cloud[::step], shot.colours[::step] / 255.0
    colours = np.clip(1.15 * colours + 0.06, 0, 1)  # dark things must show on a dark ground
    axes.scatter(points[:, 2], -points[:, 1], c=colours, s=1.6, linewidths=0)
    axes.scatter(shot.lidar[:, 2], -shot.lidar[:, 1], color=_ACCENT, s=1.8, linewidths=0)
    axes.scatter([0], [0], marker=">", color=_TEXT, s=80, zorder=3)
    _fill_panel(axes, -points[:, 1][points[:, 2] < far], far)


def _fill_panel(axes: Any, heights: np.ndarray, far: float) -> None:
    """Limits that give both axes the same scale, show all of the scene and use the whole panel."""
    box = axes.get_position()
    panel = box.width * axes.figure.get_figwidth() / (box.height * axes.figure.get_figheight())
    low, high = np.percentile(heights, (0.2, 99.8)) if len(heights) else (-1.0, 1.0)
    length = max(1.1 * far, panel * 1.1 * (high - low))
    middle = (low + high) / 2
    axes.set_xlim(-0.03 * length, 0.97 * length)
    axes.set_ylim(middle - length / panel / 2, middle + length / panel / 2)
