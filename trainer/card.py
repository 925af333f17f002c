"""A finished run as a checkpoint folder with its model card: every number in it comes from a command of the trainer."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

from marigold_ros.checkpoints import describe
from marigold_ros.config import Unusable
from trainer.frames import as_json, evaluate, real_frames, table
from trainer.loop import LOG_FILE
from trainer.nano import load_run
from trainer.package import replace_folder, write_checkpoint

RESULTS_FILE = "evaluation.json"


def package_run(run: Path, out: Path, scenes: Path | None, notes: Path | None, onnx: bool = True) -> str:
    """Write the averaged weights of `run` to folder `out`, evaluate them there, write the card; returns the table."""
    # Everything that can fail is done before what lies in `out` is touched.
    network, recipe, state = load_run(run)
    facts = json.loads(_read(run / "run.json"))
    ending = "" if notes is None else "\n" + _read(notes)
    staging = out.with_name(f".{out.name}.staging")
    new = staging / out.name
    try:
        write_checkpoint(new, network, recipe.space, recipe.size, "# being evaluated\n", onnx)
        results = evaluate(new, scenes, list(real_frames()))
        numbers = table(results)
        (new / RESULTS_FILE).write_text(json.dumps(as_json(results, describe(new)), indent=1) + "\n", encoding="utf-8")
        text = card(out.name, facts, state["progress"], last_line(run), numbers) + ending
        (new / "README.md").write_text(text, encoding="utf-8")
        replace_folder(new, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return numbers


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Unusable(f"file {path}: cannot be read ({error.strerror})") from error


def card(name: str, facts: dict, progress: dict, last: dict, numbers: str) -> str:
    """The model card's computed part, Markdown."""
    recipe, versions = facts["recipe"], facts["versions"]
    minutes, trained = progress["seconds"] / 60, facts["trained_parameters"] / 1e6
    phases = "\n".join(_phase(phase) for phase in recipe["nano"]["phases"])
    return f"""# {name}

A single-step monocular depth network of the Marigold kind, in diffusers' folder format (`MarigoldDepthPipeline`),
trained from generated scenes only by `python -m trainer`. It answers relative depth, affine in `{recipe["space"]}`:
scale and shift must come from elsewhere (LiDAR points in `marigold_ros`). {facts["parameters"] / 1e6:.1f} million
parameters; float16; working size {recipe["size"][0]}×{recipe["size"][1]}.

## Results

{numbers}

AbsRel, δ1 and RMSE after the scale and shift in `{recipe["space"]}` that give the least AbsRel over all pixels of known
depth; 'near' is AbsRel below 5 m; 'plain' is after unweighted least squares in the same space. The image-blind baseline
is a plane of inverse depth over the image, fitted to the same pixels in the same two ways. Indoor: five PrimeSense
frames of a living room (test data of Open3D 0.10; `color_*.jpg`, `depth_*.png` in millimetres); kitti: frames 000000
and 000001 of the object benchmark's training set against the Velodyne. Both were used for evaluation only.

```
python -m trainer frames --checkpoint nano --scenes DIR --data FOLDER      # FOLDER/indoor, FOLDER/kitti
```

## Training

{_command(facts)}
Seed {recipe["seed"]}; {progress["step"]} steps in {minutes:.0f} minutes on {facts["device"]};
{last.get("samples", "?")} scenes; {trained:.1f} million trained parameters; last training loss
{last.get("loss", "?")}. Python {versions["python"]}, torch {versions["torch"]}.

| phase | target | length | batch | learning rate | sizes (width, height, chance) |
|---|---|---|---|---|---|
{phases}

All other knobs: `config/train/nano.yaml`.
"""


def _command(facts: dict) -> str:
    # Where the folders lay on the machine that trained is nobody's business.
    words = [Path(word).name if Path(word).is_absolute() else word for word in facts["command"][1:]]
    arguments = shlex.join(words)
    processes = facts["processes"]
    start = f"torchrun --nproc-per-node {processes} -m --" if processes > 1 else "python -m"
    return f"```\n{start} trainer {arguments}\n```\n"


def _phase(phase: dict) -> str:
    length = f"{phase['minutes']} minutes" if phase["steps"] is None else f"{phase['steps']} steps"
    sizes = ", ".join(f"{w}×{h} ({chance})" for w, h, chance in phase["sizes"])
    rates = " → ".join(f"{rate:g}" for rate in phase["lr"])
    return f"| {phase['name']} | {phase['target']} | {length} | {phase['batch']} | {rates} | {sizes} |"


def last_line(run: Path) -> dict:
    """The last entry of the run's log."""
    log = Path(run) / LOG_FILE
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return json.loads(lines[-1]) if lines else {}
