"""The real node before a scene that needs no network: depth grows from left to right. A program for the node tests.

Environment: FLAT_SCENE_SECONDS is how long each look takes. With FLAT_SCENE_FACTOR it stands for a metric checkpoint,
whose metres are that many times the true ones. FLAT_SCENE_SWITCHES names a folder; while a file of one of these names
lies in it, the scene fails: 'unloadable', 'lost' (the device), 'nan', 'constant', 'slow' (looks take that long).
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

from marigold_ros import depth_node
from marigold_ros.canonical import MetricScale

NEAR_M, FAR_M = 2.0, 10.0


def relative_depth(width: int, height: int) -> np.ndarray:
    """(H, W) float32 from 0 at the left to 1 at the right."""
    return np.broadcast_to(np.linspace(0.0, 1.0, width, dtype=np.float32), (height, width)).copy()


def depth_m(width: int, height: int) -> np.ndarray:
    """(H, W) float32 metres: what the LiDAR of the tests measures."""
    return NEAR_M + (FAR_M - NEAR_M) * relative_depth(width, height)


def switched(*names: str) -> bool:
    """Whether one of these files is there."""
    folder = os.environ.get("FLAT_SCENE_SWITCHES")
    return folder is not None and any((Path(folder) / name).exists() for name in names)


class FlatScene:
    space, engine, checkpoint = "depth", "no engine", "flat scene"

    def __init__(self):
        self.seconds = float(os.environ.get("FLAT_SCENE_SECONDS", "0.03"))
        if switched("unloadable"):
            raise RuntimeError("CUDA error: out of memory")

    def coarse(self, rgb, focal_px=None):
        print("looking", file=sys.stderr, flush=True)
        time.sleep(self.seconds)
        while switched("slow"):
            time.sleep(0.01)
        if switched("lost"):
            raise RuntimeError("CUDA error: the device is lost")
        relative = relative_depth(rgb.shape[1], rgb.shape[0])
        return np.full_like(relative, np.nan if switched("nan") else 0.5) if switched("nan", "constant") else relative

    def with_disagreement(self, rgb, focal_px=None):
        """The farther, the less sure."""
        print("comparing", file=sys.stderr, flush=True)
        return self.coarse(rgb), 0.1 * relative_depth(rgb.shape[1], rgb.shape[0])

    def fit_of(self, camera):
        return None

    def close(self):
        print("closed", file=sys.stderr, flush=True)


class MetricFlatScene(FlatScene):
    space = "log_depth"
    metric = MetricScale(d_min_m=0.1, d_max_m=80.0, canonical_focal_px=100.0)

    def __init__(self):
        super().__init__()
        self.factor = float(os.environ["FLAT_SCENE_FACTOR"])

    def coarse(self, rgb, focal_px=None):
        told_m = self.factor * depth_m(rgb.shape[1], rgb.shape[0])
        return self.metric.relative(told_m, focal_px).astype(np.float32)

    def fit_of(self, camera):
        return self.metric.fit(camera.focal_px)


if __name__ == "__main__":
    scene = MetricFlatScene if "FLAT_SCENE_FACTOR" in os.environ else FlatScene
    sys.exit(depth_node.main(load_estimator=lambda settings: scene()))
