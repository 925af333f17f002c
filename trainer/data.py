"""Batches of training samples: a function of the seed and the place in the run alone.

Nothing of the data needs to be saved to go on where a run stopped, and any number of processes sees the same batches:
a step has a fixed number of passes (micro-batches), which the processes share out among them.
"""

from __future__ import annotations

import signal
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from marigold_ros.config import Unusable
from trainer.augment import Changes, Cut, cut
from trainer.recipe import Augment, Recipe, Source, Stage
from trainer.samples import OPTIONAL, Sample, SampleFolder

# A dataset of which so many samples in a row cannot be read is not worth reading on.
_MOST_SKIPPED = 50
# Of so many samples, evenly, the prior's space is looked up at a run's start: it is one for a whole collection.
_ASKED = 100


@dataclass(frozen=True)
class Batch:
    """What one pass takes.

    rgb: (N, H, W, 3) uint8; maps: by kind, (N, H, W) or (N, C, H, W) float32, see trainer/samples.py; focal_px: (N,)
    focal length at this size, NaN unknown; source: name of the dataset; skipped: samples that could not be read.
    """

    rgb: Tensor
    maps: Mapping[str, Tensor]
    focal_px: Tensor
    source: str
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        maps = {kind: values.to(device, non_blocking=True) for kind, values in self.maps.items()}
        rgb = self.rgb.to(device, non_blocking=True)
        return replace(self, rgb=rgb, maps=maps, focal_px=self.focal_px.to(device))


@dataclass(frozen=True)
class Bucket:
    """Samples of one source for batches of one shape: `numbers` in `samples`, `size` (width, height) pixels."""

    source: Source
    samples: SampleFolder
    numbers: np.ndarray
    size: tuple[int, int]
    chance: float


class Passes(Dataset):
    """The passes of one stage, by number: pass `p` of step `s` is number `s * stage.passes + p`.

    Every sample of a bucket comes once before one comes twice. Raises `Unusable` where a dataset is missing.
    """

    def __init__(self, recipe: Recipe, stage: Stage, number: int, data: Path) -> None:
        self.recipe, self.stage = recipe, stage
        self.buckets = [bucket for source in recipe.data for bucket in buckets_of(source, stage.sizes, data)]
        _check_optional(recipe, [bucket.samples.folder for bucket in self.buckets])
        _check_prior_space(recipe, self.buckets)
        # Stages must not repeat each other's draws.
        self.seed = [recipe.seed, number]
        chances = np.array([bucket.chance for bucket in self.buckets])
        count = stage.steps * stage.passes
        self._bucket = np.random.default_rng(self.seed).choice(len(chances), count, p=chances / chances.sum())
        # How many passes before each one took from the same bucket.
        self._before = np.zeros(count, np.int64)
        for index in range(len(self.buckets)):
            mine = self._bucket == index
            self._before[mine] = np.arange(np.count_nonzero(mine))
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._bucket)

    def __getitem__(self, number: int) -> Batch | Unusable:
        """The pass, or, since a worker's exceptions lose their text on the way, the reason why there is none."""
        try:
            return self._make(number)
        except Unusable as problem:
            return problem

    def _make(self, number: int) -> Batch:
        index = int(self._bucket[number])
        bucket = self.buckets[index]
        first = int(self._before[number]) * self.stage.micro_batch
        skipped: list[str] = []
        taken = []
        for position in range(self.stage.micro_batch):
            rng = np.random.default_rng([*self.seed, number, position])
            sample = self._read(bucket, self._sample_number(index, first + position), rng, skipped)
            taken.append(augmented(sample, bucket, self.recipe, rng))
        rgbs, maps, focals = zip(*taken, strict=True)
        stacked = {kind: _stacked([own[kind] for own in maps]) for kind in self.recipe.maps}
        rgb = torch.from_numpy(np.stack(rgbs))
        return Batch(rgb, stacked, torch.tensor(focals, dtype=torch.float32), bucket.source.name, tuple(skipped))

    def _sample_number(self, index: int, position: int) -> int:
        """The sample that is drawn as number `position` from bucket `index`: a new order in each epoch."""
        numbers = self.buckets[index].numbers
        epoch, place = divmod(position, len(numbers))
        if (index, epoch) not in self._orders:
            rng = np.random.default_rng([*self.seed, zlib.crc32(b"order"), index, epoch])
            self._orders = {key: order for key, order in self._orders.items() if key[0] != index}
            self._orders[index, epoch] = rng.permutation(numbers)
        return int(self._orders[index, epoch][place])

    def _read(self, bucket: Bucket, number: int, rng: np.random.Generator, skipped: list[str]) -> Sample:
        """The sample, or another one where it cannot be used and the recipe allows that."""
        while True:
            try:
                sample = bucket.samples.read(number, self.recipe.maps)
                _check(sample, bucket, self.recipe)
                return sample
            except Unusable as problem:
                if self.recipe.damaged == "refuse":
                    raise Unusable(f"{problem} (or set damaged: skip in the recipe)") from None
                skipped.append(f"{bucket.samples.folder.parent.name}/{bucket.samples.names[number]}")
                if len(skipped) > _MOST_SKIPPED:
                    raise Unusable(f"{problem}; and {_MOST_SKIPPED} more samples in a row are damaged") from None
            number = int(bucket.numbers[rng.integers(len(bucket.numbers))])


def _check_optional(recipe: Recipe, folders: list[Path]) -> None:
    """Raises `Unusable` where a map that some datasets may be without is in none of them."""
    for kind in set(OPTIONAL) & set(recipe.maps):
        if not any((folder / kind).is_dir() for folder in folders):
            raise Unusable(
                f"samples {folders[0]}: have no {kind}, and no other dataset of the recipe has it; collect them with "
                f"--{kind}, or set stages.N.objective.{kind} to 0"
            )


def _check_prior_space(recipe: Recipe, buckets: list[Bucket]) -> None:
    """Raises `Unusable` where a prior is affine in another space than the recipe's: no scale and shift lead over."""
    if "prior" not in recipe.maps:
        return
    for folder, samples in {bucket.samples.folder: bucket.samples for bucket in buckets}.items():
        for number in range(0, len(samples), -(-len(samples) // _ASKED)) if (folder / "prior").is_dir() else ():
            space = _prior_space(samples, number)
            if space not in (None, recipe.space):
                raise Unusable(
                    f"samples {folder}: the prior of {samples.names[number]} is affine in {space!r}, the recipe's "
                    f"space is {recipe.space!r}; collect them anew with --prior and a checkpoint of that space, or set "
                    f"space to {space!r}, or stages.N.objective.prior to 0"
                )


def _prior_space(samples: SampleFolder, number: int) -> str | None:
    """What the camera file says of the prior; None where it says nothing, or whoever reads the sample will complain."""
    try:
        prior = samples.about(number).get("prior")
    except Unusable:
        return None
    return prior.get("space") if isinstance(prior, dict) else None


def _stacked(maps: list[np.ndarray]) -> Tensor:
    stacked = torch.from_numpy(np.stack(maps))
    return stacked.movedim(-1, 1).contiguous() if stacked.ndim == 4 else stacked


def _check(sample: Sample, bucket: Bucket, recipe: Recipe) -> None:
    if recipe.metric is not None and sample.k is None:
        raise Unusable(
            f"sample {bucket.samples.folder}/{sample.name}: does not know its camera, which metric depth needs; give "
            "another dataset"
        )
    for kind, values in sample.maps.items():
        if kind in OPTIONAL:
            continue
        known = ~np.isnan(values)
        if kind == "depth_m":
            known = (values > max(0.0, bucket.source.valid_m[0])) & (values < bucket.source.valid_m[1])
        if not known.any():
            raise Unusable(
                f"sample {bucket.samples.folder}/{sample.name}: has not one pixel of known {kind}; delete its camera "
                "file"
            )


def buckets_of(
    source: Source, sizes: tuple[tuple[int, int, float], ...], data: Path, minimum: int = 1
) -> Iterator[Bucket]:
    """A bucket for each shape that batches of `source` have, where `sizes` replaces the source's own."""
    samples = SampleFolder(Path(data, source.folder or source.name) / source.split)
    sizes = sizes or source.sizes
    numbers = np.arange(len(samples))
    nearest = np.zeros(len(samples), int)
    if len(sizes) > 1:
        aspects = np.log([width / height for width, height, _ in sizes])
        own = np.log([_aspect(samples, number) for number in range(len(samples))])
        nearest = np.abs(own[:, None] - aspects[None]).argmin(axis=1)
    total = sum(chance for _, _, chance in sizes)
    for index, (width, height, chance) in enumerate(sizes):
        fitting = numbers[nearest == index]
        # A set without wide pictures still gives wide batches: cut out of the others.
        chosen = fitting if len(fitting) else numbers
        yield Bucket(source, samples, chosen, (int(width), int(height)), source.weight * chance / total)


def _aspect(samples: SampleFolder, number: int) -> float:
    about = samples.about(number)
    try:
        return float(about["width"]) / float(about["height"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise Unusable(
            f"sample {samples.folder}/{samples.names[number]}: its camera file has no width and height"
        ) from None


def _towards_canonical(sample: Sample, bucket: Bucket, recipe: Recipe) -> Augment:
    """For metric depth, a zoom that brings the focal length to the canonical one, varied by the recipe's own zoom."""
    augment = recipe.augment
    if recipe.metric is None:
        return augment
    height, width = sample.rgb.shape[:2]
    across = min(width, height * bucket.size[0] / bucket.size[1])
    whole_px = float(np.sqrt(sample.k[0, 0] * sample.k[1, 1])) * bucket.size[0] / across
    # Around the canonical focal length on both sides; a picture that is too narrow for it is taken whole.
    middle = whole_px / recipe.metric.canonical_focal_px / np.sqrt(augment.zoom[0] * augment.zoom[1])
    zoom = tuple(float(np.clip(edge * middle, 0.2, 1.0)) for edge in augment.zoom)
    return replace(augment, zoom=zoom)


def augmented(
    sample: Sample, bucket: Bucket, recipe: Recipe, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """(rgb, maps, focal_px) of a sample, cut to the bucket's size and varied."""
    augment, shape = recipe.augment, sample.rgb.shape[:2]
    if bucket.source.crop == "kitti":
        window = Cut.kitti(shape, bucket.size, rng, augment)
    else:
        window = Cut.draw(rng, shape, bucket.size, _towards_canonical(sample, bucket, recipe))
    changes = Changes.draw(rng, shape[0], augment)
    rgb, maps = cut(changes.of_sample(sample.rgb, rng), sample.maps, window)
    if "depth_m" in maps:
        near, far = bucket.source.valid_m
        # What is too far to be told counts as the sky: known to be far.
        depth_m = np.where(maps["depth_m"] >= far, np.float32(np.inf), maps["depth_m"])
        maps["depth_m"] = np.where(depth_m <= near, np.float32(np.nan), depth_m)
    rgb = changes.of_cut(rgb, maps.get("depth_m"), rng)
    focal_px = np.nan if sample.k is None else window.focal_px(sample.k)
    return np.ascontiguousarray(rgb), {kind: np.ascontiguousarray(v, np.float32) for kind, v in maps.items()}, focal_px


def passes_of(passes: Passes, first_step: int, rank: int, ranks: int, workers: int) -> Iterator[Batch]:
    """The passes of process `rank` of `ranks`, from `first_step` to the stage's end, prepared by worker processes.

    Raises `Unusable` for samples that cannot be used.
    """
    per_step = passes.stage.passes
    mine = [
        step * per_step + number
        for step in range(first_step, passes.stage.steps)
        for number in range(rank, per_step, ranks)
    ]
    loader = DataLoader(
        passes,
        batch_size=None,
        sampler=mine,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=4 if workers else None,
        pin_memory=False,
        worker_init_fn=_start_worker if workers else None,
    )
    for batch in loader:
        if isinstance(batch, Unusable):
            raise batch
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    # Whoever trains decides when to stop: a Ctrl-C reaches the workers as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
