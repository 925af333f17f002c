"""How a camera moves, by what it sees: odometry for who has none.

Anchors that are found again in the next image tell how the camera moved (`visual_odometry`); where there are none, the
picture as a whole tells how it turned (`picture_motion`).
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, replace

import cv2
import numpy as np

from marigold_ros.anchors import TIME_ERROR_S, Scan
from marigold_ros.field import Evidence
from marigold_ros.geometry import Camera
from marigold_ros.motion import FindMotion, Motion
from marigold_ros.picture_motion import PictureTrack
from marigold_ros.sweep import first_and_last_s, sweep_through
from marigold_ros.visual_odometry import motion_between

# So many images are remembered.
_IMAGES = 32


@dataclass
class _Image:
    """A working picture (h, w) uint8, its points (N, 2) pixels and (N,) metres, if it has any, and (4, 4) how the
    camera moved until the next image: None where that cannot be told, or was not yet `asked` for. `since`: the image
    since which the camera has stood, if it has.
    """

    stamp_ns: int
    grey: np.ndarray
    pixels: np.ndarray | None = None
    depth_m: np.ndarray | None = None
    since: _Image | None = None
    asked: bool = False
    step: np.ndarray | None = None


class SeenMotion:
    """Looks at one camera's images; what nobody asks for is not worked out. One thread at a time."""

    def __init__(self, track: PictureTrack) -> None:
        """track: of the same camera; it sees each image through this."""
        self._track = track
        self._images: deque[_Image] = deque(maxlen=_IMAGES)
        # Whether anybody asked for motion since the newest image came.
        self._asked = False

    def reset(self) -> None:
        """Forget everything: another camera, another time."""
        self._images.clear()

    def see(self, stamp_ns: int, rgb: np.ndarray, camera: Camera) -> None:
        """Take the next (H, W, 3) uint8 image; a time that goes back starts anew.

        The motion since the image before is worked out at once if somebody asked for motion since that one came.
        """
        self._track.see(stamp_ns, rgb, camera)
        self._camera = camera
        if self._images:
            newest = self._images[-1]
            if stamp_ns == newest.stamp_ns:
                return
            if stamp_ns < newest.stamp_ns or self._track.grey.shape != newest.grey.shape:
                self.reset()
        self._images.append(_Image(stamp_ns, cv2.convertScaleAbs(self._track.grey)))
        asked, self._asked = self._asked, False
        if asked and len(self._images) > 1:
            self._step(self._images[-2], self._images[-1])

    def remember(self, evidence: Evidence) -> None:
        """Take what is believed of the anchors in the newest image as points to be found again."""
        right = np.flatnonzero(evidence.trust > 0.5)  # taking them is several times as fast as choosing them
        newest = self._images[-1]
        newest.pixels, newest.depth_m = evidence.pixels.take(right, axis=0), evidence.depth_m.take(right)

    def until_now(self, find_motion: FindMotion) -> Motion:
        """The motion until the newest image, as `find_motion` knows it and as it was seen."""
        now_ns = self._images[-1].stamp_ns
        return Motion(
            now_ns, self._camera, find_motion, self._since, lambda then_ns: self._track.shift_px(then_ns, now_ns)
        )  # fmt: skip

    def in_time(self, scan: Scan) -> Scan:
        """The scan; if it is of other times than the newest image and not yet moved, moved with the picture to the
        time of the nearest image, each point from its own time, and as the camera was seen to move since.
        """
        if scan.sweep is not None or (scan.age_s == 0 and scan.offset_s is None):
            return scan
        now_ns, offset_s = self._images[-1].stamp_ns, scan.offset_s
        scan_ns = now_ns - round(scan.age_s * 1e9)
        middle_s = 0.5 * sum(first_and_last_s(offset_s))
        middle_ns = scan_ns + round(middle_s * 1e9)
        near_ns = min((image.stamp_ns for image in self._images), key=lambda stamp_ns: abs(stamp_ns - middle_ns))
        now_from_near = self._since(near_ns)
        if now_from_near is None:
            near_ns, now_from_near = now_ns, np.eye(4)

        def pose(time_s: float) -> np.ndarray | None:
            near_from_then = self._turned(scan_ns + round(time_s * 1e9), near_ns)
            return None if near_from_then is None else now_from_near @ near_from_then @ scan.camera_from_lidar

        sweep = None if offset_s is None else sweep_through(pose, offset_s, TIME_ERROR_S)
        transform = pose(middle_s)
        if transform is None:
            if sweep is None:
                return scan
            transform = sweep.camera_from_sensor[np.abs(sweep.times_s - middle_s).argmin()]
        return replace(scan, camera_from_lidar=transform, age_s=0.0, sweep=sweep)

    def _turned(self, then_ns: int, until_ns: int) -> np.ndarray | None:
        """(4, 4) by which things have turned about the camera, as the picture has moved; None where nobody knows."""
        shift_px = self._track.shift_px(then_ns, until_ns)
        if shift_px is None:
            return None
        yaw, pitch = shift_px / (self._camera.fx, self._camera.fy)
        turned = np.eye(4)
        turned[:3, :3] = cv2.Rodrigues(np.array([-pitch, yaw, 0.0]))[0]
        return turned

    def _since(self, then_ns: int) -> np.ndarray | None:
        """(4, 4) now_from_then of the camera since the image of that very time; None where it cannot be told."""
        images = [image for image in self._images if image.stamp_ns >= then_ns]
        if not images or images[0].stamp_ns != then_ns:
            return None
        self._asked = True
        now_from_then = np.eye(4)
        for before, after in itertools.pairwise(images):
            step = self._step(before, after)
            if step is None:
                return None
            now_from_then = step @ now_from_then
        return now_from_then

    def _step(self, before: _Image, after: _Image) -> np.ndarray | None:
        if not before.asked:
            before.asked = True
            # Against the image since which the camera stands: what creeps would stand for ever from one to the next.
            stood = before.since
            if stood is not None:
                before.step = self._between(stood, after)
            if before.step is None:
                stood, before.since, before.step = before, None, self._between(before, after)
            if before.step is not None and np.array_equal(before.step, np.eye(4)):
                after.since = stood
        return before.step

    def _between(self, before: _Image, after: _Image) -> np.ndarray | None:
        if before.pixels is None:
            return None
        shift_px = self._track.shift_px(before.stamp_ns, after.stamp_ns)
        return motion_between(before.grey, after.grey, before.pixels, before.depth_m, self._camera, shift_px)
