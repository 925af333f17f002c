"""Command-line arguments that name the sensors of a recording and say where they sit."""

from __future__ import annotations

import argparse
from typing import Any

from marigold_ros.config import RangeConfig


def add_rig_arguments(parser: argparse.ArgumentParser, max_age_s: float) -> None:
    """Add topics, extrinsic and the age of scans to the parser; `max_age_s` is the default of the last."""
    add = parser.add_argument
    add("--image", default="", metavar="TOPIC", help="Image or CompressedImage (default: the only one)")
    add("--camera-info", default="", metavar="TOPIC", help="(default: the one beside the image)")
    add("--range", default="", metavar="TOPIC", help="PointCloud2 or LaserScan (default: the only one)")
    add("--rectified", action="store_true", help="the image is an image_rect: P counts, D does not")
    add("--translation", type=float, nargs=3, metavar=("X", "Y", "Z"),
        help="origin of the LiDAR in the camera's optical frame, metres, instead of /tf and /tf_static")  # fmt: skip
    add("--rotation", type=float, nargs=4, metavar=("X", "Y", "Z", "W"), help="its rotation into that frame")
    add("--fixed-frame", default="", metavar="FRAME", help="e.g. odom: scans are moved to the image's time by /tf")
    add("--no-point-times", dest="point_times", action="store_false",
        help="the clouds were corrected for motion already, as range.point_times=false")  # fmt: skip
    add("--max-age", type=float, default=max_age_s, metavar="S",
        help="most seconds between image and scan (default %(default)g)")  # fmt: skip
    add("--time-offset", type=float, default=0.0, metavar="S",
        help="seconds to add to the stamps of the scans, negative where they were measured earlier")  # fmt: skip


def range_settings(arguments: argparse.Namespace, **more: Any) -> RangeConfig:
    """The settings that the arguments ask for, and `more` of them; raises `Unusable` for what means nothing."""
    static = arguments.translation is not None or arguments.rotation is not None
    return RangeConfig(
        max_age_s=arguments.max_age,
        extrinsic="static" if static else "tf",
        translation_m=tuple(arguments.translation or (0.0, 0.0, 0.0)),
        rotation_xyzw=tuple(arguments.rotation or (0.0, 0.0, 0.0, 1.0)),
        fixed_frame=arguments.fixed_frame,
        time_offset_s=arguments.time_offset,
        point_times=arguments.point_times,
        **more,
    )
