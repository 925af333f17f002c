"""Generated scenes in memory, and batches cut from them.

A folder of scenes holds `rgb/<id>.jpg`, `depth_m/<id>.npy` (float16 metres along the optical axis, +inf sky) and
`camera/<id>.json`, which is written last: a sample exists when its camera file does.

Batches are a function of (seed, step, the samples there are): nothing else needs to be saved to resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from marigold_ros.config import Unusable
from trainer.augment import Cut, cut, vary
from trainer.ranks import ALONE, Ranks
from trainer.recipe import AugmentRecipe, Phase

# Wider than this counts as a wide scene (vehicles' cameras), batches of which are wide too.
WIDE = 2.2


@dataclass(frozen=True)
class Sample:
    """rgb (H, W, 3) uint8; depth_m (H, W) float16, +inf sky, NaN unknown."""

    name: str
    rgb: np.ndarray
    depth_m: np.ndarray


class Scenes:
    """The samples of one split, decoded once and kept: decoding again for every epoch would cost the CPU's time."""

    def __init__(self, folder: Path, minimum: int = 1) -> None:
        self.folder = Path(folder)
        self.samples: list[Sample] = []
        self._known: set[str] = set()
        self._groups: dict[bool, list[int]] = {True: [], False: []}
        self.rescan()
        if len(self.samples) < minimum:
            raise Unusable(
                f"scenes {self.folder}: {len(self.samples)} samples, at least {minimum} needed; "
                "make some with 'python -m trainer generate'"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def rescan(self) -> int:
        """Load samples that were completed since the last look; returns how many there are now."""
        for path in sorted((self.folder / "camera").glob("*.json")):
            if path.stem in self._known:
                continue
            self._known.add(path.stem)
            sample = load_sample(self.folder, path.stem)
            height, width = sample.depth_m.shape
            self._groups[width / height > WIDE].append(len(self.samples))
            self.samples.append(sample)
        return len(self.samples)

    def draw(self, rng: np.random.Generator, wide: bool, other_shape: float) -> Sample:
        """A sample of the wanted shape, or, by chance `other_shape` or for want of any, of either."""
        group = self._groups[wide]
        if not group or rng.random() < other_shape:
            return self.samples[int(rng.integers(len(self.samples)))]
        return self.samples[group[int(rng.integers(len(group)))]]


def load_sample(folder: Path, name: str) -> Sample:
    """One sample from its files."""
    bgr = cv2.imread(str(folder / "rgb" / f"{name}.jpg"), cv2.IMREAD_COLOR)
    try:
        depth_m = np.load(folder / "depth_m" / f"{name}.npy")
    except (OSError, ValueError) as error:
        raise Unusable(f"scene {folder}/{name}: depth cannot be read ({error}); delete its files") from error
    if bgr is None or bgr.shape[:2] != depth_m.shape:
        raise Unusable(f"scene {folder}/{name}: image and depth do not belong together; delete its files")
    return Sample(name, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), depth_m.astype(np.float16))


def pick_size(phase: Phase, rng: np.random.Generator) -> tuple[int, int]:
    """(width, height) of a batch."""
    chances = np.array([chance for _, _, chance in phase.sizes])
    width, height, _ = phase.sizes[int(rng.choice(len(chances), p=chances / chances.sum()))]
    return width, height


def make_batch(
    scenes: Scenes, phase: Phase, augment: AugmentRecipe, seed: int, step: int, ranks: Ranks = ALONE
) -> tuple[np.ndarray, np.ndarray]:
    """This rank's share of the batch of `step`: rgb (N, H, W, 3) uint8, depth_m (N, H, W) float32 with +inf sky and
    NaN unknown. The whole batch is the same for any number of ranks."""
    width, height = pick_size(phase, np.random.default_rng([seed, step]))
    numbers = range(ranks.rank, phase.batch, ranks.count)
    rgbs = np.empty((len(numbers), height, width, 3), np.uint8)
    depths = np.empty((len(numbers), height, width), np.float32)
    for index, number in enumerate(numbers):
        rng = np.random.default_rng([seed, step, number])
        sample = scenes.draw(rng, width / height > WIDE, augment.other_shape)
        window = Cut.draw(rng, sample.depth_m.shape, (width, height), augment)
        rgb, depth_m = cut(sample.rgb, sample.depth_m, window)
        rgbs[index] = vary(rgb, depth_m, rng, augment)
        depths[index] = depth_m
    return rgbs, depths
