"""The first three experiments of the paper, on any checkpoint: what its VAE keeps, one image by heart, where to start.

    python -m trainer experiments --checkpoint nano --scenes DIR [--diffusion FOLDER] [--out DIR]

Reconstruction: how well depth maps survive the VAE (arXiv 2312.02145 wants a mean squared error below 0.01 in [-1, 1]).
Overfitting: how near end-to-end training comes to one single image. Timesteps: the errors of a diffusion network with
leading and trailing timesteps after 1, 4 and 10 steps (arXiv 2409.11355: one leading step is noise).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from marigold_ros.checkpoints import OWN_FILE, describe, find_checkpoint, load_modules, read_json
from marigold_ros.config import Unusable
from marigold_ros.multistep import MultiStep, Settings, quiet
from trainer.frames import Frame, evaluate, evaluate_frame, held_out_frames
from trainer.recipe import LAST, Augment, EndToEnd, Optimiser, RelativeLoss, Source, Stage, Start
from trainer.recipe_files import load_recipe
from trainer.samples import SampleFolder, write_sample
from trainer.targets import picture_of, quantile_normalised

STEPS = (1, 4, 10)


def main(argv: list[str]) -> int:
    """Run the experiments and print their tables; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="nano", help="single-step depth checkpoint (default: nano)")
    parser.add_argument("--diffusion", help="diffusion depth checkpoint, for the timesteps")
    parser.add_argument("--scenes", type=Path, required=True, help="folder of samples, with held_out/")
    parser.add_argument("--count", type=int, default=32, help="held-out samples (default 32)")
    parser.add_argument("--steps", type=int, default=300, help="steps of overfitting (default 300)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args(argv)
    quiet()
    found: dict[str, object] = {
        "reconstruction": reconstruction(arguments.checkpoint, arguments.scenes, arguments.count),
        "overfitting": overfitting(arguments.checkpoint, arguments.scenes, arguments.steps),
    }
    print(f"VAE, {arguments.count} depth maps: mean squared error {found['reconstruction']:.5f} in [-1, 1]")
    before, after = found["overfitting"]
    print(f"one image by heart, {arguments.steps} steps: AbsRel {before:.3f} before, {after:.3f} after")
    if arguments.diffusion:
        found["timesteps"] = timesteps(arguments.diffusion, arguments.scenes, arguments.count)
        print(timestep_table(found["timesteps"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


@torch.inference_mode()
def reconstruction(checkpoint: str, scenes: Path, count: int) -> float:
    """Mean squared error of affine-invariant depth maps in [-1, 1] that went through the VAE and back."""
    info = describe(find_checkpoint(checkpoint))
    vae = load_modules(info.folder).vae.eval()
    errors = []
    for frame in held_out_frames(scenes, count):
        height, width = (side // info.multiple * info.multiple for side in frame.depth_m.shape)
        depth_m = torch.from_numpy(frame.depth_m[:height, :width])[None]
        known = torch.isfinite(depth_m) & (depth_m > 0)
        # Of a network that predicts inverse depth, near is bright.
        map_ = -1 / depth_m if info.space == "inverse_depth" else depth_m
        drawn = quantile_normalised(map_, known) * (-1 if info.disparity else 1)
        picture = picture_of("depth", drawn)
        decoded = vae.decode(vae.encode(picture).latent_dist.mode(), return_dict=False)[0].mean(dim=1).clamp(-1, 1)
        errors.append(float((decoded - drawn)[known].square().mean()))
    return float(np.mean(errors))


def overfitting(checkpoint: str, scenes: Path, steps: int) -> tuple[float, float]:
    """AbsRel on one held-out sample before and after training on nothing else."""
    from trainer.loop import CHECKPOINT, train

    info = describe(find_checkpoint(checkpoint))
    sample = SampleFolder(scenes / "held_out").read(0, ("depth_m",))
    height, width = (max(64, side // 32 * 32) for side in sample.rgb.shape[:2])
    base = load_recipe("robot")
    rates = Optimiser(lr=3e-4, final_lr=3e-5, warmup_steps=10, clip_norm=1.0)
    objective = EndToEnd(loss="relative", relative=RelativeLoss())
    stage = Stage(steps, objective, batch=1, micro_batch=1, train=("unet", "decoder"), optimiser=rates)
    recipe = replace(
        base,
        space=info.space,
        size=(info.width, info.height),
        start=Start(checkpoint),
        data=(Source("one", sizes=((width, height, 1.0),)),),
        augment=Augment(flip=0.0),
        stages=(stage,),
        save_steps=steps,
        validate_steps=0,
        result=LAST,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in ("train", "held_out"):
            write_sample(folder / "one" / split, sample, jpeg_quality=0)
        before = evaluate(info.folder, folder / "one", [])["held-out"][0].best.abs_rel
        if not train(recipe, folder / "run", folder):
            raise Unusable("overfitting: stopped before its end")
        after = evaluate(folder / "run" / CHECKPOINT, folder / "one", [])["held-out"][0].best.abs_rel
    return before, after


def timesteps(checkpoint: str, scenes: Path, count: int) -> dict[str, dict[int, float]]:
    """Mean AbsRel on held-out samples by spacing of the timesteps and number of steps.

    Both without rescaling to zero terminal SNR, with which leading timesteps make no sense at all.
    """
    space = describe(find_checkpoint(checkpoint)).space
    frames = list(held_out_frames(scenes, count))
    with tempfile.TemporaryDirectory() as name:
        folder = _with_leading_schedule(find_checkpoint(checkpoint), Path(name) / "marigold-depth-v1-0")
        return {
            spacing: {steps: _abs_rel(folder, spacing, steps, frames, space) for steps in STEPS}
            for spacing in ("leading", "trailing")
        }


def _with_leading_schedule(source: Path, folder: Path) -> Path:
    """A copy by links of a diffusion checkpoint, with the scheduler that Marigold v1-0 was published with."""
    folder.mkdir()
    for path in source.resolve().iterdir():
        if path.name not in ("scheduler", OWN_FILE):
            (folder / path.name).symlink_to(path)
    config = read_json(source / "scheduler" / "scheduler_config.json")
    config |= {"timestep_spacing": "leading", "rescale_betas_zero_snr": False}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _abs_rel(folder: Path, spacing: str, steps: int, frames: list[Frame], space: str) -> float:
    pipeline = MultiStep(describe(folder), Settings(steps=steps, spacing=spacing, resolution=-1))
    told = tqdm(frames, desc=f"{spacing}, {steps} steps", mininterval=5)
    return float(np.mean([evaluate_frame(f, pipeline(f.rgb)["depth"].values, space).best.abs_rel for f in told]))


def timestep_table(found: dict[str, dict[int, float]]) -> str:
    """The errors by spacing and steps as a Markdown table."""
    lines = [f"| timesteps | {' | '.join(f'{steps} steps' for steps in STEPS)} |", "|---" * (len(STEPS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[steps]:.3f}' for steps in STEPS)} |" for name, row in found.items()]
    return "\n".join(lines)
