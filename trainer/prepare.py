"""Turns the raw download of a dataset into what training reads: the layout of `trainer.samples`, one folder per split.

    python -m trainer prepare hypersim --raw DIR --out DIR

Every raw file of a frame is read whole and checked. A run can be stopped (Ctrl-C, SIGTERM, or killed) and goes on when
given again: samples that are there are not read again, frames that were damaged are tried again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from marigold_ros.config import Unusable
from marigold_ros.files import locked, written_beside
from trainer.datasets.catalogue import DATASETS, Dataset
from trainer.datasets.conversion import Plan, outcomes, stopped_by_signals
from trainer.datasets.reading import Frame
from trainer.samples import is_sample

# Of what is made of a raw frame: raise it when that changes, and only for what has changed.
VERSION = 1
NEWER = {("hypersim", "normals"): 2, ("interiorverse", "normals"): 2}
ORIGIN_FILE, DAMAGED_FILE, LEFT_OUT_FILE = "prepared.json", "damaged.txt", "left_out.txt"
STOPPED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare one split; returns 0, or 3 when it was stopped. Raises `Unusable`."""
    arguments = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    plan = _plan(arguments)
    frames = choose(DATASETS[plan.dataset], arguments)
    with locked(plan.folder):
        _check_origin(plan)
        _remove_left_overs(plan.folder)
        try:
            return _run(plan, frames, arguments.workers, arguments.damaged == "skip")
        finally:
            _remove_left_overs(plan.folder)


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:14} {each.title}\n{'':17}{each.source}" for name, each in DATASETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m trainer prepare",
        description=__doc__,
        epilog=f"datasets (docs/datasets.md has sizes, licences and layouts):\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", choices=DATASETS, metavar="dataset", help="one of those below")
    parser.add_argument("--raw", type=Path, required=True, help="folder of the unpacked download")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared dataset; gets one per split")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--maps", nargs="+", metavar="KIND", help="which maps every sample must have")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="0 0: as it is (default: as published)")
    parser.add_argument("--list", type=Path, help="only the frames of this list, e.g. of Marigold's data_split/")
    parser.add_argument("--scenes", default="*", metavar="GLOB", help="only these scenes")
    parser.add_argument("--limit", type=int, help="only so many frames, the first ones")
    parser.add_argument("--damaged", choices=("refuse", "skip"), default="refuse", help="default refuse")
    parser.add_argument(
        "--workers", type=int, default=max(1, os.cpu_count() or 1), help="processes (default: one per core)"
    )
    parser.add_argument("--jpeg-quality", type=int, default=95, help="of the pictures; 0 writes PNG (default 95)")
    return parser


def _plan(arguments: argparse.Namespace) -> Plan:
    dataset = DATASETS[arguments.dataset]
    maps = tuple(dict.fromkeys(arguments.maps or dataset.default_maps))
    for kind in maps:
        if kind not in dataset.maps:
            raise Unusable(f"--maps {kind}: {arguments.dataset} has none; choose from {', '.join(dataset.maps)}")
    if arguments.split not in dataset.splits and not arguments.list:
        raise Unusable(f"--split {arguments.split}: {arguments.dataset} has {' and '.join(dataset.splits)} only")
    for package in dataset.needs:
        if find_spec(package) is None:
            raise Unusable(f"{arguments.dataset}: its files are read with {package}; pip install {package}")
    if not arguments.raw.is_dir():
        raise Unusable(f"--raw {arguments.raw}: is no folder; give that of the unpacked download ({dataset.source})")
    for option, least in (("workers", 1), ("limit", 1), ("jpeg_quality", 0)):
        if (value := getattr(arguments, option)) is not None and value < least:
            raise Unusable(f"--{option.replace('_', '-')} {value}: must be at least {least}")
    size_px = dataset.size_px if arguments.size is None else tuple(arguments.size)
    if size_px and size_px != (0, 0) and min(size_px) < 1:
        raise Unusable(f"--size {size_px[0]} {size_px[1]}: must be positive, or 0 0 for the size of the raw frames")
    folder = arguments.out / arguments.split
    return Plan(arguments.dataset, folder, maps, size_px if size_px and any(size_px) else None, arguments.jpeg_quality)


def choose(dataset: Dataset, arguments: argparse.Namespace) -> list[Frame]:
    """The frames that are asked for, in the order of the dataset; raises `Unusable` where there are none."""
    frames = dataset.frames(arguments.raw, None if arguments.list else arguments.split)
    if arguments.list:
        wanted = listed_names(arguments.list, dataset.listed)
        frames = [frame for frame in frames if frame.name in wanted]
        if len(frames) < len(wanted):
            print(
                f"{arguments.list}: {len(wanted) - len(frames)} of its frames are not in the raw folder",
                file=sys.stderr,
            )
    frames = [frame for frame in frames if fnmatchcase(frame.scene, arguments.scenes)]
    if not frames:
        raise Unusable(
            f"--raw {arguments.raw}: has no frames of {arguments.dataset} for split {arguments.split} in scenes "
            f"{shlex.quote(arguments.scenes)}; docs/datasets.md shows the layout that is looked for"
        )
    return frames[: arguments.limit]


def listed_names(path: Path, pattern: str) -> set[str]:
    """The names of the frames in a published list, one frame to a line; other files in the line do not matter."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise Unusable(f"--list {path}: cannot be read ({error})") from error
    found = [re.search(pattern, line) for line in lines]
    if not all(found) or not lines:
        line = lines[found.index(None)] if lines else ""
        raise Unusable(f"--list {path}: {line!r} names no frame of this dataset; give one of its published lists")
    return {"_".join(match.groups()) for match in found}


def _check_origin(plan: Plan) -> None:
    """Record what the folder is made with; raises `Unusable` where it holds samples that were made otherwise."""
    path = plan.folder / ORIGIN_FILE
    dataset = DATASETS[plan.dataset]
    wanted = {
        "version": max(NEWER.get((plan.dataset, kind), VERSION) for kind in plan.maps),
        "dataset": plan.dataset,
        "maps": sorted(plan.maps),
        "size_px": list(plan.size_px) if plan.size_px else None,
        "jpeg_quality": plan.jpeg_quality,
    }
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = {} if (plan.folder / "camera").is_dir() else wanted
    except ValueError:
        there = {}
    for name, value in wanted.items():
        if there.get(name) != value:
            raise Unusable(
                f"folder {plan.folder}: holds samples of {name} {there.get(name)}, not {value}; give another --out"
            )
    with written_beside(path) as beside:
        facts = {**wanted, "source": dataset.source, "licence": dataset.licence, "depth_range_m": dataset.depth_range_m}
        beside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _remove_left_overs(folder: Path) -> None:
    """Remove what writers that were killed left behind; the folder must be locked and no worker at work."""
    for path in folder.glob("*/.*"):
        path.unlink(missing_ok=True)


def _run(plan: Plan, frames: list[Frame], workers: int, skip: bool) -> int:
    """Prepare those frames that are not there yet, and keep the lists of those that could not be."""
    left_out, broken = (_read_names(plan.folder / name) for name in (LEFT_OUT_FILE, DAMAGED_FILE))
    there = {frame.name for frame in frames if is_sample(plan.folder, frame.name)}
    todo = [frame for frame in frames if frame.name not in there and frame.name not in left_out]
    counts = {"written": 0, "damaged": 0, "left out": len(frames) - len(there) - len(todo)}
    stop = threading.Event()
    try:
        with (
            _bar(len(frames), len(frames) - len(todo)) as bar,
            stopped_by_signals(stop),
            closing(outcomes(plan, todo, min(workers, max(1, len(todo))), stop)) as results,
        ):
            for outcome in results:
                counts[outcome.state] += 1
                broken.pop(outcome.name, None)
                if outcome.state == "left out":
                    left_out[outcome.name] = outcome.why
                elif outcome.state == "damaged":
                    if not skip:
                        raise Unusable(outcome.why)
                    broken[outcome.name] = outcome.why
                    tqdm.write(f"skipped {outcome.name}: {outcome.why}", file=sys.stderr)
                bar.update()
    finally:
        _write_names(plan.folder / LEFT_OUT_FILE, left_out)
        _write_names(plan.folder / DAMAGED_FILE, broken)
    stopped = stop.is_set() and sum(counts.values()) + len(there) < len(frames)
    print(
        f"{plan.folder}: {counts['written']} written, {len(there)} already there, {counts['damaged']} skipped as "
        f"damaged, {counts['left out']} left out as published, of {len(frames)} frames"
        + ("; stopped, give the command again to go on" if stopped else "")
    )
    if stopped:
        return STOPPED
    if not counts["written"] and not there:
        raise Unusable(
            f"folder {plan.folder}: not one sample came out; {DAMAGED_FILE} and {LEFT_OUT_FILE} there say why"
        )
    return 0


def _bar(total: int, done: int) -> tqdm:
    # To a file, a line every half minute; to a terminal, a living bar.
    interval_s = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=done, unit="frame", smoothing=0.02, mininterval=interval_s)


def _read_names(path: Path) -> dict[str, str]:
    """What a list of frames says of each."""
    if not path.is_file():
        return {}
    return dict(line.split(": ", 1) for line in path.read_text(encoding="utf-8").splitlines() if ": " in line)


def _write_names(path: Path, names: dict[str, str]) -> None:
    """Keep a list of frames, `name: why` in each line; an empty one is removed."""
    if not names:
        path.unlink(missing_ok=True)
        return
    with written_beside(path) as beside:
        beside.write_text("".join(f"{name}: {names[name]}\n" for name in sorted(names)), encoding="utf-8")
