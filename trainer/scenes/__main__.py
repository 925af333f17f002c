"""Command line: renders samples into a folder, continuing where an earlier run stopped.

Per sample: `<split>/rgb/NNNNNN.jpg`, `<split>/depth_m/NNNNNN.npy` (float16, metres along the optical axis, +inf
for sky), `<split>/camera/NNNNNN.json` (family, K, size, camera height and so on; written last).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from tqdm import tqdm

from . import dataset
from .backend import check_backend


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    p = argparse.ArgumentParser(prog="trainer.scenes", description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, required=True, help="folder of the set")
    p.add_argument("--count", type=int, required=True, help="how many samples")
    p.add_argument("--split", choices=list(dataset.SPLITS), default="train")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--start", type=int, default=0, help="number of the first sample")
    p.add_argument("--spp", type=int, default=6, help="rays per pixel for sharp light")
    p.add_argument("--copies", type=float, default=1.0, help="size of the banks of textures and objects")
    p.add_argument("--contact-sheet", type=Path, help="also write pictures and depth of the first samples here")
    p.add_argument("--sheet-count", type=int, default=36, help="how many samples the sheet shows")
    return p.parse_args(argv)


def tasks(args: argparse.Namespace) -> list[tuple]:
    """The missing samples, grouped by shared geometry."""
    groups: dict[int, list[int]] = {}
    for index in range(args.start, args.start + args.count):
        if not dataset.complete(args.out, args.split, index):
            groups.setdefault(index // dataset.VIEWS, []).append(index)
    return [(str(args.out), args.seed, args.split, indices, args.spp) for indices in groups.values()]


def main(argv: list[str] | None = None) -> int:
    """Renders what is missing; returns 0, or 1 if some samples could not be rendered."""
    args = parse(argv)
    dataset.check_origin(args.out, args.split, args.seed)
    todo = tasks(args)
    if todo:
        check_backend()  # before the workers start: a pool replaces a worker that cannot, for ever
    missing = sum(len(t[3]) for t in todo)
    print(f"{args.count - missing} of {args.count} samples are there, {missing} to render")
    bar = tqdm(total=args.count, initial=args.count - missing, unit="image", smoothing=0.02, file=sys.stdout)
    # one thread per worker when the workers already fill the machine
    threads = max(1, (os.cpu_count() or 1) // max(1, args.workers))
    init = (args.seed, args.split, threads, args.copies)
    errors: list[str] = []
    if todo and args.workers <= 1:
        dataset.start_worker(*init)
        for t in todo:
            n, error = dataset.work(t)
            bar.update(n)
            errors += [error] if error else []
    elif todo:
        # spawned, not forked: Dr.Jit and its thread pool do not survive a fork
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(args.workers, len(todo)), _start_worker, init) as pool:
            for n, error in pool.imap_unordered(dataset.work, todo):
                bar.update(n)
                errors += [error] if error else []
    bar.close()
    if args.contact_sheet:
        from .sheet import contact_sheet

        wanted = list(range(args.start, args.start + min(args.count, args.sheet_count)))
        print(f"{contact_sheet(args.out, args.split, wanted, args.contact_sheet)} samples on {args.contact_sheet}")
    for error in errors:
        print(f"not rendered: {error}", file=sys.stderr)
    return 1 if errors else 0


def _start_worker(*init: object) -> None:
    # Ctrl-C goes to all; the first process ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    dataset.start_worker(*init)


if __name__ == "__main__":
    raise SystemExit(main())
