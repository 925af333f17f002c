"""Makes a recording: a robot's drive through a generated scene, with camera, LiDAR and true depth.

For the demo, `python -m trainer record --out recordings/warehouse`; to try fine-tuning on, a drive through a mine, of
which there is nothing in training sets: `--family mine --frames 250 --rate 5 --max-mb 0`. To measure metric depth over
time on: a camera that stands still or turns, things that cross its view, and its pose (`--still --turn --movers
--pose`); the Makefile's `sequences` has the commands.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.geometry import Camera
from marigold_ros.recordings import Frame, write_frames

# A moment in the past that is the same for every run, so that a recording can be made again byte for byte.
_START_NS = 1_750_000_000_000_000_000
# The LiDAR turns all around, the camera looks ahead: what it cannot see is not worth the bytes.
_SECTOR_DEG = 84.0


def main(argv: Sequence[str] | None = None) -> int:
    """Render and write one recording; exit status 1 when it came out larger than may be bundled."""
    parser = argparse.ArgumentParser(prog="python -m trainer record", description=__doc__.split("\n")[0])
    text = "folder of the recording; an old one is replaced when the new one ends"
    parser.add_argument("--out", type=Path, required=True, help=text)
    parser.add_argument("--family", default="warehouse", help="kind of scene (default warehouse)")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--frames", type=int, default=80)
    parser.add_argument("--rate", type=float, default=10.0, help="frames per second (default 10)")
    parser.add_argument("--speed", type=float, default=0.9, help="metres per second (default 0.9)")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--samples", type=int, default=32, help="light paths per pixel (default 32)")
    parser.add_argument("--still", action="store_true", help="the camera stays where the drive begins")
    text = "the camera looks left and right of its way, turning at most so fast, degrees per second (default 0)"
    parser.add_argument("--turn", type=float, default=0.0, metavar="DEG_S", help=text)
    text = "people and loads that cross the view (default 0)"
    parser.add_argument("--movers", type=int, default=0, metavar="N", help=text)
    text = "standard deviation of the pictures' noise, of 255 levels (default 0)"
    parser.add_argument("--image-noise", type=float, default=0.0, metavar="LEVELS", help=text)
    text = "also record the camera's true pose on /tf, from the scene's frame 'odom'"
    parser.add_argument("--pose", action="store_true", help=text)
    text = "exit status 1 when the recording is larger, 0 for any size (default 10: what may be bundled)"
    parser.add_argument("--max-mb", type=float, default=10.0, help=text)
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if arguments.frames < 1 or not arguments.rate > 0:
        parser.error("--frames must be at least 1, --rate greater than 0")
    if min(arguments.turn, arguments.movers, arguments.image_noise) < 0:
        parser.error("--turn, --movers and --image-noise must not be negative")
    from trainer.scenes.dataset import FAMILIES

    if arguments.family not in FAMILIES:
        parser.error(f"--family {arguments.family!r}: must be one of {', '.join(FAMILIES)}")
    camera, camera_from_lidar = mounting(arguments.width, arguments.height)
    count = write_frames(arguments.out, _frames(arguments), camera, camera_from_lidar)
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{arguments.out}: {count} frames, {size / 1e6:.1f} MB")
    if arguments.max_mb and size > arguments.max_mb * 1e6:
        problem = f"{arguments.out}: {size} bytes are more than --max-mb {arguments.max_mb:g}; take fewer --frames"
        print(f"trainer: {problem}", file=sys.stderr)
        return 1
    return 0


def mounting(width: int, height: int) -> tuple[Camera, np.ndarray]:
    """The camera of recordings of this size, and (4, 4) camera_from_lidar."""
    from trainer.scenes.sequence import CAMERA_FROM_LIDAR, intrinsics

    k = intrinsics(width, height)
    # The renderer counts from the image's corner, ROS from the centre of its first pixel.
    fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2] - 0.5, k[1, 2] - 0.5
    return Camera(width, height, *map(float, (fx, fy, cx, cy))), CAMERA_FROM_LIDAR


def _frames(arguments: argparse.Namespace) -> Iterator[Frame]:
    from trainer.scenes.sequence import Course, render_sequence

    began_s = time.monotonic()
    drive = render_sequence(
        arguments.seed,
        arguments.frames,
        width=arguments.width,
        height=arguments.height,
        spp=arguments.samples,
        family=arguments.family,
        rate_hz=arguments.rate,
        speed=arguments.speed,
        course=Course(arguments.still, arguments.movers, arguments.turn, arguments.image_noise),
    )
    for number, (rgb, depth_m, points, pose, stamp_s) in enumerate(drive, 1):
        if not np.isfinite(depth_m).any():
            raise Unusable(f"--seed {arguments.seed}: frame {number} sees nothing; choose another seed")
        known_m = np.where(np.isfinite(depth_m), depth_m, np.nan).astype(np.float32)  # the sky has no depth
        pose = pose if arguments.pose else None
        yield Frame(_START_NS + round(stamp_s * 1e9), rgb, known_m, in_sector(points), pose)
        print(f"\r{number} of {arguments.frames} frames, {time.monotonic() - began_s:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)


def in_sector(points: np.ndarray) -> np.ndarray:
    """Those of the (N, 3) LiDAR points (x forward) that lie in the sector ahead, rounded to millimetres."""
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    ahead = points[np.abs(azimuth) <= np.radians(_SECTOR_DEG / 2)]
    # LiDARs do not measure finer, and the zeros compress.
    return np.round(ahead.astype(np.float64), 3).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
