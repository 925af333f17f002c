"""Evaluates a checkpoint by the published protocols: `python -m trainer evaluate`.

    python -m trainer evaluate --checkpoint nano --on nyuv2 kitti --data DATA --out OUT --size checkpoint

docs/evaluation.md says where the datasets come from, where their files lie below DATA, and what is compared with what.
A run that was stopped goes on when it is given again. Several processes share the images:

    torchrun --nproc-per-node 4 -m -- trainer evaluate ...

The process that scores the last image leaves OUT/table.md, OUT/results.json, and for each dataset best.png, median.png
and worst.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from marigold_ros.checkpoints import describe, find_checkpoint
from marigold_ros.family import DEPTH, INTRINSICS, NORMALS
from trainer.evaluation.alignment import ALIGNMENTS
from trainer.evaluation.predictors import How, load_predictor, usual_size
from trainer.evaluation.protocols import DSINE, MARIGOLD, protocols
from trainer.evaluation.run import REFUSE, SKIP, Options, Place, evaluate
from trainer.evaluation.tasks import OWN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer evaluate",
        description=f"{__doc__}\n{_datasets()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="'nano', a folder, or a hub id (downloaded)")
    parser.add_argument("--on", nargs="+", required=True, metavar="DATASET", help="see above")
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--out", type=Path, required=True, help="folder for scores and tables; one for each checkpoint")
    parser.add_argument(
        "--engine", default="auto", choices=("auto", "torch", "openvino", "tensorrt"), help="runs end-to-end networks"
    )
    parser.add_argument("--steps", type=int, default=0, help="denoising steps; 0 leaves them to the checkpoint")
    parser.add_argument("--ensemble", type=int, default=1, metavar="N", help="members, of networks with noise")
    parser.add_argument("--spacing", default="", choices=("leading", "trailing"), help="instead of the checkpoint's")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="members that run at once")
    parser.add_argument("--seed", type=int, help="of the noise, instead of the protocols'")
    parser.add_argument(
        "--size",
        default="",
        choices=("protocol", "checkpoint"),
        help="at which the network sees images: the protocol's, or the checkpoint's own as on the robot, which is near "
        "its canonical focal length where metres are compared; by default the checkpoint's own where it gives metres, "
        "else the protocol's",
    )
    parser.add_argument(
        "--align",
        default=OWN,
        choices=(OWN, *ALIGNMENTS),
        help="depth: fit scale and shift in the checkpoint's own space, or in this one; none compares metres",
    )
    parser.add_argument("--focal-px", type=float, metavar="PX", help="for metres: of all cameras, not the protocols'")
    parser.add_argument("--mean", default="", choices=("image", "pooled"), help="instead of the published one")
    parser.add_argument("--protocol", default=DSINE, choices=(DSINE, MARIGOLD), help="of normals")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of each dataset")
    parser.add_argument("--split-file", type=Path, metavar="FILE", help="list of files instead of the dataset's own")
    parser.add_argument(
        "--damaged", default=REFUSE, choices=(REFUSE, SKIP), help="images with missing or damaged files, or no truth"
    )
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0 leaves them to the engine")
    return parser


def _datasets() -> str:
    """What `--on` takes, as the help shows it."""
    lines = [
        ("depth", protocols(DEPTH)),
        ("normals, DSINE's protocol", protocols(NORMALS, DSINE)),
        ("normals, Marigold's protocol", protocols(NORMALS, MARIGOLD)),
        ("intrinsic images", protocols(INTRINSICS)),
    ]
    rows = (f"  {kind}: " + ", ".join(f"{p.name} ({p.images})" for p in found.values()) for kind, found in lines)
    return "datasets and their numbers of images:\n" + "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status. Raises `Unusable`."""
    arguments = _parser().parse_args(argv)
    info = describe(find_checkpoint(arguments.checkpoint, download=True))
    how = How(
        engine=arguments.engine,
        steps=arguments.steps,
        ensemble=arguments.ensemble,
        spacing=arguments.spacing,
        batch=arguments.batch,
        size=arguments.size or usual_size(info),
        threads=arguments.threads,
    )
    options = Options(
        on=tuple(arguments.on),
        data=arguments.data,
        out=arguments.out,
        how=how,
        seed=arguments.seed,
        align=arguments.align,
        mean=arguments.mean,
        normals=arguments.protocol,
        limit=arguments.limit,
        split_file=arguments.split_file,
        damaged=arguments.damaged,
        focal_px=arguments.focal_px,
    )
    print(evaluate(info, options, lambda: load_predictor(info, how), Place.of_this_process()))
    return 0
