"""Small samples of all kinds and small versions of the shipped recipes, for tests of the trainer.

Run by a launcher it trains recipes in several processes: `python test/training.py OUT DATA START RECIPE ...`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.recipe import Recipe
from trainer.recipe_files import find_recipe, load_recipe
from trainer.samples import Sample, write_sample

RECIPES = sorted(path.stem for path in find_recipe("nano").parent.glob("*.yaml"))
DATASETS = (
    "hypersim",
    "hypersim-normals",
    "hypersim-light",
    "vkitti2",
    "vkitti2-e2e",
    "vkitti2-normals",
    "tartanair",
    "interiorverse",
    "interiorverse-normals",
    "sintel",
    "generated",
    "recordings",
)


def scene(seed: int, shape: tuple[int, int] = (48, 64)) -> Sample:
    """Ground plane, a box, sky; the picture's brightness follows depth, so there is something to learn."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    horizon = shape[0] * rng.uniform(0.2, 0.4)
    with np.errstate(divide="ignore"):
        depth_m = np.where(rows > horizon, 40.0 / (rows - horizon), np.inf)
    left = int(rng.integers(0, shape[1] // 2))
    depth_m[shape[0] // 3 : shape[0] * 2 // 3, left : left + shape[1] // 4] = rng.uniform(1.5, 3)
    grey = np.repeat((255 / (1 + np.minimum(depth_m, 1e3) / 4))[..., None], 3, axis=2)
    normals = np.zeros((*shape, 3))
    normals[..., 1], normals[..., 2] = -0.6, -0.8
    normals[depth_m < 3] = (0, 0, -1)
    ramp = np.stack([rows / shape[0], columns / shape[1], np.full(shape, 0.5)], axis=-1)
    maps = {
        "depth_m": depth_m,
        "normals": normals,
        "prior": np.clip(1 - 2 / np.minimum(depth_m, 1e3), 0, 1),
        "albedo": ramp,
        "shading": 0.5 + ramp,
        "residual": 0.1 * ramp,
        "material": ramp[..., :2],
    }
    k = np.array([[50.0, 0, shape[1] / 2], [0, 50.0, shape[0] / 2], [0, 0, 1]])
    return Sample(f"{seed:06d}", grey.astype(np.uint8), maps, k)


def write_data(folder: Path, count: int = 5, held_out: int = 0) -> Path:
    """A folder of datasets that all hold the same samples, each with maps of every kind; every third one is wide.

    held_out: so many more that are not to be trained on.
    """
    first = folder / DATASETS[0]
    for seed in range(count + held_out):
        split = "train" if seed < count else "held_out"
        write_sample(first / split, scene(seed, (48, 64) if seed % 3 else (32, 96)))
    for name in DATASETS[1:]:
        (folder / name).symlink_to(first.name)
    return folder


def small_recipe(name: str, start: str, steps: int = 2, **changes: object) -> Recipe:
    """The shipped recipe `name` with `steps` steps of four small pictures in each stage.

    start: a small checkpoint for a recipe that starts from one; '' starts from random weights.
    """
    recipe = load_recipe(
        name,
        {
            "network": {
                "vae_channels": [8, 8, 16, 16],
                "latent_channels": 4,
                "vae_groups": 4,
                "unet_channels": [32, 32],
                "prompt_width": 16,
            }
        },
    )
    sizes = ((64, 32, 0.5), (32, 32, 0.5))
    stages = []
    # Of stages that differ in their sizes alone, the first will do.
    kinds = {(type(stage.objective), stage.train): stage for stage in reversed(recipe.stages)}
    for stage in reversed(kinds.values()):
        rates = replace(stage.optimiser, lr=1e-4, final_lr=1e-5, warmup_steps=1, decay_steps=0)
        stages.append(replace(stage, steps=steps, batch=4, micro_batch=2, sizes=sizes, optimiser=rates))
    checkpoint = start if recipe.start.checkpoint else ""
    tiny = "random" if recipe.start.tiny_vae else ""
    small = {
        "data": tuple(replace(source, crop="random") for source in recipe.data),
        "stages": tuple(stages),
        "start": replace(recipe.start, checkpoint=checkpoint, tiny_vae=tiny),
        "size": (64, 64),
        "precision": "no",
        "save_steps": 1,
        "log_steps": 1,
        "picture_steps": 1,
        "validate_samples": 2,
        "threads": 1,  # so small a network waits longer for its threads than it computes
    }
    return replace(recipe, **{**small, **changes})


def main(out: Path, data: Path, start: str, names: list[str]) -> None:
    """Train each of these recipes into its folder of `out`."""
    from trainer.loop import train

    for name in names:
        # The last weights: which are best is for validations of both runs to say, and one of them makes fewer.
        train(small_recipe(name, start, validate_steps=1, result="last"), out / name, data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
