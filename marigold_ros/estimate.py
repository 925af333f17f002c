"""Images in; depth, normals or intrinsic images out, by diffusers' pipelines: `ros2 run marigold_ros estimate`.

For every image and everything that the checkpoint predicts, DIR gets NAME_WHAT.npy (float32), NAME_WHAT.png (16 bits)
and NAME_WHAT_colour.png, and of ensembles the same of NAME_WHAT_uncertainty.

    depth       relative, in [0, 1], increasing with distance; PNG: 65535 is 1
    depth_m     metres along the optical axis, of a metric checkpoint with --focal-px, or of any depth checkpoint of
                several steps with --anchors; PNG: 256 is 1 m, 0 unknown
    normals     unit vectors in the optical frame (x right, y down, z forward); PNG: red, green, blue are x, y, z,
                0 is -1 and 65535 is 1
    albedo, ... in [0, 1], linear or sRGB as the checkpoint's model_index.json says; PNG: 65535 is 1

With --anchors, a sparse depth image guides the diffusion to metres (Marigold-DC, arXiv 2412.13389; with a guard against
wrong anchors): 50 steps forward and backward, minutes without a GPU. The answer is the median of the --ensemble.

The ablation of timesteps (arXiv 2409.11355, figure 1): run prs-eth/marigold-depth-v1-0 with --spacing leading and with
--spacing trailing, each with --steps 1, 2, 4, 10, 50.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from marigold_ros.anchors import Anchors
from marigold_ros.checkpoints import describe, find_checkpoint
from marigold_ros.config import Unusable, one_line
from marigold_ros.files import written_beside
from marigold_ros.sparse_depth import KITTI_PER_METRE, anchors_of, read_sparse_depth
from marigold_ros.sparse_depth import SUFFIXES as ANCHOR_SUFFIXES
from marigold_ros.visual import colour_map

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def images_in(paths: Iterable[Path]) -> list[Path]:
    """The image files among `paths` and in the folders among them; raises `Unusable` where there are none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise Unusable(f"folder {path}: holds no images ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise Unusable(f"image {path}: no such file")
    names = [path.stem for path in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Unusable(f"image {twice}: more than one has this name, and their results would overwrite each other")
    return found


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB; raises `Unusable` where the file is no image."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise Unusable(f"image {path}: cannot be read; give a {', '.join(SUFFIXES)} file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def write_result(stem: Path, what: str, values: np.ndarray) -> None:
    """Write `values`, named `what`, as .npy, 16-bit .png and coloured .png beside each other."""
    start = f"{stem}_{what}"
    unit = values
    if what == "normals":
        unit = (values + 1.0) * 0.5
    elif what.startswith("depth_m"):
        unit = np.nan_to_num(values, nan=0.0) * np.float32(256.0 / 65535.0)
    unit = np.clip(unit, 0.0, 1.0)
    _write(Path(f"{start}.npy"), values)
    _write(Path(f"{start}.png"), _bgr(np.round(unit * 65535.0).astype(np.uint16)))
    _write(Path(f"{start}_colour.png"), _colours(what, values, unit))


def _colours(what: str, values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 BGR for people: depth from red (near) to blue, normals as the field draws them."""
    if what == "normals":
        # Marigold's own frame (x right, y up, z to the viewer): facing surfaces are lilac, floors green.
        unit = np.clip((values * np.float32((1, -1, -1)) + 1.0) * 0.5, 0.0, 1.0)
    elif values.ndim == 2:
        # Metres have no end, and an uncertainty is small against what it doubts: 0 takes the 98th percentile.
        return colour_map(values, 0.0 if what == "depth_m" or what.endswith("uncertainty") else 1.0)
    return _bgr(np.round(unit * 255.0).astype(np.uint8))


def _bgr(image: np.ndarray) -> np.ndarray:
    return image[..., ::-1] if image.ndim == 3 else image


def _write(path: Path, values: np.ndarray) -> None:
    with written_beside(path) as beside:
        if path.suffix == ".npy":
            np.save(beside, values)
        elif not cv2.imwrite(str(beside), values):
            raise OSError("the disk may be full")  # OpenCV does not say why


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="estimate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    parser.add_argument("--checkpoint", default="nano", help="'nano', a folder, or a hub id (downloaded)")
    parser.add_argument("--out", type=Path, default=Path("estimates"), metavar="DIR", help="(estimates)")
    parser.add_argument("--steps", type=int, default=0, help="denoising steps (the checkpoint's; 50 with --anchors)")
    parser.add_argument("--ensemble", type=int, default=1, metavar="N", help="members; 3 and more give uncertainty")
    parser.add_argument(
        "--resolution", type=int, default=0, metavar="PX", help="long side; 0: the checkpoint's, -1: the image's own"
    )
    parser.add_argument(
        "--focal-px",
        type=float,
        default=0.0,
        metavar="F",
        help="the camera's focal length, sqrt(fx fy) in pixels of the images: metric checkpoints then give metres",
    )
    parser.add_argument("--spacing", default="", choices=("leading", "trailing"), help="instead of the checkpoint's")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="members that run at once")
    parser.add_argument("--alignment", default="closed", choices=("closed", "diffusers"), help="of an ensemble's depth")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--half", action="store_true", help="compute in float16, with --anchors in bfloat16 (on a GPU)")
    parser.add_argument(
        "--anchors",
        type=Path,
        metavar="FILE",
        help="sparse depth image of the image's size, 16-bit .png (0 unknown) or .npy of metres (NaN or 0 unknown), "
        "that guides the diffusion; for several images a folder with NAME.png or NAME.npy for each",
    )
    parser.add_argument(
        "--anchors-per-metre",
        type=float,
        default=KITTI_PER_METRE,
        metavar="N",
        help="of a .png: 256, as KITTI's, or 1000 for millimetres (256)",
    )
    return parser


def _device(name: str) -> str:
    """The torch device `name`, 'auto' being a GPU where there is one; raises `Unusable` where it cannot be used."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except Exception as error:  # of many kinds: no such device, no GPU, no driver, torch without CUDA
        raise Unusable(f"--device {name}: cannot be used here ({one_line(error)}); give auto, cpu or cuda") from error
    return name


def run(arguments: argparse.Namespace) -> None:
    """Run the checkpoint on every image."""
    images = images_in(arguments.images)
    if arguments.out.resolve() in {path.resolve().parent for path in images}:
        raise Unusable(f"--out {arguments.out}: holds images to be read; give another folder")
    anchors = None if arguments.anchors is None else _anchors(images, arguments.anchors, arguments.anchors_per_metre)
    info = describe(find_checkpoint(arguments.checkpoint, download=True))
    try:
        import torch
        from tqdm import tqdm

        from marigold_ros.guided import Guided
        from marigold_ros.multistep import MultiStep, Settings, quiet
    except ImportError as error:
        raise Unusable(
            f"{error.name} is not installed: 'estimate' needs torch and diffusers "
            "(pip install torch diffusers transformers safetensors)"
        ) from error
    quiet()
    device = _device(arguments.device)
    settings = Settings(
        steps=arguments.steps,
        ensemble=arguments.ensemble,
        resolution=arguments.resolution,
        focal_px=arguments.focal_px,
        spacing=arguments.spacing,
        seed=arguments.seed,
        batch=arguments.batch,
        diffusers_alignment=arguments.alignment == "diffusers",
    )
    half = torch.float16 if anchors is None else torch.bfloat16  # gradients of large networks leave float16's range
    dtype = half if arguments.half else torch.float32
    network = (MultiStep if anchors is None else Guided)(info, settings, device, dtype)
    print(f"{info.name}: {', '.join(info.kind.targets)}; {network.steps} steps, {settings.ensemble} members, {device}")
    if info.metric is not None and not arguments.focal_px and anchors is None:
        print("no --focal-px: no metres; they depend on the camera's focal length, and none is assumed")
    show = sys.stderr.isatty()
    with _folder(arguments.out):
        for path in tqdm(images, desc="images", unit="image", disable=None):
            if isinstance(network, Guided):
                predictions = {"depth_m": network(read_image(path), anchors[path], progress=show)}
            else:
                predictions = network(read_image(path), progress=show)
            for what, prediction in predictions.items():
                write_result(arguments.out / path.stem, what, prediction.values)
                if prediction.uncertainty is not None:
                    write_result(arguments.out / path.stem, f"{what}_uncertainty", prediction.uncertainty)


def _anchors(images: Sequence[Path], given: Path, per_metre: float) -> dict[Path, Anchors]:
    """The anchors of each image in `given`, its file or a folder of all; raises `Unusable` where they do not fit."""
    if given.is_dir():
        files = {path: _anchor_file(given, path.stem) for path in images}
    elif len(images) > 1:
        raise Unusable(f"--anchors {given}: is one file for {len(images)} images; give a folder with one for each")
    else:
        files = {images[0]: given}
    found = {}
    for path, file in files.items():
        depth_m, size = read_sparse_depth(file, per_metre), read_image(path).shape[:2]
        if depth_m.shape != size:
            raise Unusable(
                f"anchors {file}: is {depth_m.shape[1]}x{depth_m.shape[0]}, image {path.name} is {size[1]}x{size[0]}; "
                "give them at the image's size"
            )
        if not np.isfinite(depth_m).any():
            raise Unusable(f"anchors {file}: has no known depth; give a sparse depth image with some")
        found[path] = anchors_of(depth_m)
        low, high = np.nanmin(depth_m), np.nanmax(depth_m)
        print(f"{path.name}: {len(found[path])} anchors, {low:.2f} to {high:.2f} m")  # shows a wrong unit
    return found


def _anchor_file(folder: Path, stem: str) -> Path:
    files = [file for suffix in ANCHOR_SUFFIXES if (file := folder / f"{stem}{suffix}").is_file()]
    if len(files) != 1:
        what = "both" if files else "neither"
        raise Unusable(f"--anchors {folder}: has {what} of {stem}.png and {stem}.npy; give one for each image")
    return files[0]


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[None]:
    """The folder for results; made now, so that nothing is computed in vain, and gone if nothing came to lie in it."""
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(f"folder {out}: cannot be made ({error.strerror})") from error
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # it holds results
                out.rmdir()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        run(arguments)
    except Unusable as problem:
        print(f"estimate: {problem}", file=sys.stderr)
        return 1
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
