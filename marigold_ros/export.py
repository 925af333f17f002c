"""Checkpoint -> ONNX -> engine, made once, checked against torch and kept in the per-user cache.

    python -m marigold_ros.export --checkpoint FOLDER
    python -m marigold_ros.export --checkpoint FOLDER --engine tensorrt --size 640x480

For OpenVINO: one file whose height and width are symbolic (multiples of 32), because cameras differ in shape and the
bundled file must serve them without torch. For TensorRT: three files of one size (encode, step, decode) in float16, and
from them engines for the GPU of this machine, which takes minutes, on a Jetson tens of minutes. Frames with torch's
answers lie beside both, and an engine is accepted once it has answered them alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from marigold_ros.checkpoints import CheckpointInfo, describe, find_checkpoint, require_single_step, with_tiny_vae
from marigold_ros.config import SIZE_STEP_PX, ModelConfig, Unusable
from marigold_ros.family import DEPTH, NORMALS
from marigold_ros.files import locked, sha256_of, written_beside
from marigold_ros.nvidia_driver import install_command
from marigold_ros.onnx_export import export_onnx, export_parts
from marigold_ros.parts import PARTS, Parts, parts_folder, read_parts, ready_parts
from marigold_ros.roofline import size_of
from marigold_ros.selfcheck import kept_verdict, reference_of, turned_from_x_left

# What TensorRT needs: the modules, and the packages that they come in.
TENSORRT_PACKAGES = {"tensorrt": "tensorrt", "cuda": "cuda-python"}
# Part of the cache's file names: raise it when the exported graph changes.
_EXPORT_VERSION = 4
_CALIBRATION_IMAGES = 64

log = logging.getLogger(__name__)


def cache_folder(setting: str) -> Path:
    """The folder of exported networks: `setting` (parameter model.cache_dir) or the user's cache."""
    if setting:
        return Path(setting).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "marigold_ros"


def cached_file(info: CheckpointInfo, cache: Path) -> Path:
    """Where `cache` keeps the checkpoint's exported network; checksums lie beside it as .sha256."""
    return cache / f"{info.name}-{info.digest[:16]}-v{_EXPORT_VERSION}.onnx"


def cached_files(cache: Path) -> list[Path]:
    """All exported networks in `cache` of the kind that this version makes."""
    return sorted(cache.glob(f"*-v{_EXPORT_VERSION}.onnx"))


def ready_file(info: CheckpointInfo, cache: Path) -> Path | None:
    """The checkpoint's ONNX file as far as it exists: its own, else one in `cache` that matches its checksums.

    One without its self-check does not count, nor one that takes x of normals to point to the other side.
    """
    if info.onnx is not None and reference_of(info.onnx).is_file():
        if info.kind.task != NORMALS or turned_from_x_left(info.onnx) == info.kind.x_left:
            return info.onnx
        log.warning("%s takes x of normals to point to the other side (see normals_x); it is not used", info.onnx)
    path = cached_file(info, cache)
    if not path.is_file():
        return None
    if not intact(path):
        log.warning("%s is damaged (its checksum differs)", path)
        return None
    return path


def intact(path: Path) -> bool:
    """Whether the cached file `path` and its self-check are there and match their checksums."""
    checksums = path.with_suffix(".sha256")
    whole = checksums.is_file() and reference_of(path).is_file()
    return whole and _checksums(path) == checksums.read_text(encoding="utf-8")


def onnx_file(info: CheckpointInfo, cache: Path) -> Path:
    """The checkpoint's ONNX file, exported to `cache` where there is none that is whole.

    Raises `Unusable` where the cache cannot be written or torch is missing.
    """
    path = ready_file(info, cache)
    if path is None:
        path = cached_file(info, cache)
        log.info("exporting %s to %s: half a minute, of a large network minutes, once", info.name, path)
        export_onnx(info, path)
        with written_beside(path.with_suffix(".sha256")) as beside:
            beside.write_text(_checksums(path), encoding="utf-8")
    return path


def _checksums(path: Path) -> str:
    return f"{sha256_of(path)}\n{sha256_of(reference_of(path))}\n"


def parts_of(
    info: CheckpointInfo, width: int, height: int, cache: Path, int8: str = "none", calibration: Sequence[Path] = ()
) -> Parts:
    """The checkpoint's ONNX files for TensorRT at a working size, exported to `cache` where they are not there.

    Two programs that want the same export once. int8, calibration: see `export_parts`. Raises `Unusable` as `onnx_file`
    does.
    """
    folder = parts_folder(info, width, height, cache, int8)
    parts = read_parts(folder)
    if parts is not None:
        return parts
    with locked(folder):
        parts = read_parts(folder)
        if parts is None:
            log.info(
                "exporting %s at %dx%d to %s: a minute, of a large network minutes, once",
                info.name,
                width,
                height,
                folder,
            )
            parts = export_parts(info, width, height, folder, int8, calibration)
    return parts


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        status = _run(arguments)
        largest_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        log.info("at most %.1f GB of memory were used", largest_gb)
        return status
    except Unusable as problem:
        print(f"export: {problem}", file=sys.stderr)
    except KeyboardInterrupt:
        print("export: interrupted; nothing half-written is left, run it again to go on", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    model = {field.name: field for field in dataclasses.fields(ModelConfig)}
    parser = argparse.ArgumentParser(
        prog="export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="nano", help="'nano', a folder, or a hub id (downloaded)")
    parser.add_argument("--engine", default="openvino", choices=("openvino", "tensorrt"), help="for which engine")
    parser.add_argument(
        "--size",
        type=size_of,
        metavar="WxH",
        help="tensorrt: the working size in pixels (default: its own)",
    )
    parser.add_argument("--vae", default="full", choices=model["vae"].metadata["choices"], help="as model.vae")
    parser.add_argument("--tiny-vae", default=model["tiny_vae"].default, help="a folder, or a hub id (downloaded)")
    parser.add_argument("--output", type=Path, help="openvino: the ONNX file to write (default: into the cache)")
    parser.add_argument("--cache-dir", default="", help="the cache, default ~/.cache/marigold_ros")
    parser.add_argument(
        "--int8", default="none", choices=model["int8"].metadata["choices"], help="tensorrt: as model.int8"
    )
    parser.add_argument("--calibration", type=Path, metavar="FOLDER", help="for --int8: images like the robot's own")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--onnx-only", action="store_true", help="write ONNX, build and check no engine")
    only.add_argument(
        "--build-only", action="store_true", help="tensorrt: build from ONNX that is exported already; needs no torch"
    )
    parser.add_argument("--rebuild", action="store_true", help="tensorrt: build anew what is built already")
    parser.add_argument(
        "--typing",
        default="auto",
        choices=("auto", "strong", "weak"),
        help="tensorrt 10: types as in the file (strong), or as it likes (weak); the node takes what was exported last",
    )
    parser.add_argument(
        "--level", type=int, default=3, choices=range(6), help="tensorrt: how long to search for fast kernels (3)"
    )
    parser.add_argument(
        "--workspace", type=float, default=0.0, metavar="GIB", help="tensorrt: GPU memory it may use (default: all)"
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    cache = cache_folder(arguments.cache_dir)
    tensorrt = arguments.engine == "tensorrt"
    _check_options(arguments, tensorrt)
    info = describe(find_checkpoint(arguments.checkpoint, download=True))
    require_single_step(info, NORMALS if info.kind.task == NORMALS else DEPTH)
    info = with_tiny_vae(info, arguments.vae, arguments.tiny_vae, download=True)
    if tensorrt:
        return _run_tensorrt(info, arguments, cache)
    path = arguments.output
    if path is None:
        path = onnx_file(info, cache)
    else:
        export_onnx(info, path)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if arguments.onnx_only or arguments.output is not None or importlib.util.find_spec("openvino") is None:
        return 0
    return _check_openvino(path, cache)


def _check_options(arguments: argparse.Namespace, tensorrt: bool) -> None:
    own = ("build_only", "rebuild", "size", "workspace", "calibration", "typing") if not tensorrt else ("output",)
    for name in own:
        if getattr(arguments, name) not in (None, False, 0.0, "auto"):
            raise Unusable(
                f"--{name.replace('_', '-')}: means nothing to --engine {arguments.engine}"
                + ("" if tensorrt else ", whose file serves every size and is compiled at every start")
            )
    if arguments.int8 != "none" and not tensorrt:
        raise Unusable(f"--int8 {arguments.int8}: means nothing to --engine {arguments.engine}: it would be slower")
    if not 0 <= arguments.workspace < 1024:
        raise Unusable(f"--workspace {arguments.workspace}: must be GPU memory in GiB, or 0 for all of it")


def _check_openvino(path: Path, cache: Path) -> int:
    """Make OpenVINO's self-check of the exported file; returns the exit status."""
    from marigold_ros.engines.openvino_engine import OpenVinoEngine

    engine = OpenVinoEngine(path)
    found = kept_verdict(engine, engine.identity, path, cache)
    print(f"{engine.identity}: {found}: {'accepted' if found.passed else 'refused, run it with torch'}")
    return 0 if found.passed else 1


def _run_tensorrt(info: CheckpointInfo, arguments: argparse.Namespace, cache: Path) -> int:
    width, height = arguments.size or (info.width, info.height)
    _check_size(width, height)
    if not arguments.onnx_only:
        for module, package in TENSORRT_PACKAGES.items():
            if importlib.util.find_spec(module) is None:
                raise Unusable(
                    f"{package} is not installed: {install_command(package)}, or write the ONNX files alone with "
                    "--onnx-only"
                )
    if arguments.build_only:
        parts = ready_parts(info, width, height, cache, arguments.int8)
        if parts is None:
            folder = parts_folder(info, width, height, cache, arguments.int8)
            raise Unusable(
                f"--build-only: {folder} is not there, or not whole; run this without --build-only (it needs torch), "
                "or copy that folder from a machine that ran it with --onnx-only"
            )
    else:
        parts = parts_of(info, width, height, cache, arguments.int8, images_in(arguments.calibration))
    print(f"{parts.folder} ({sum(parts.facts(part)['bytes'] for part in PARTS) / 1e6:.1f} MB)")
    return 0 if arguments.onnx_only else _build_tensorrt(parts, arguments, cache)


def images_in(folder: Path | None) -> list[Path]:
    """Some of the images in `folder`, evenly, as many as calibration takes; none of None."""
    if folder is None:
        return []
    images = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not images:
        raise Unusable(f"--calibration {folder}: holds no .jpg or .png; give a folder of the camera's images")
    return images[:: -(-len(images) // _CALIBRATION_IMAGES)]


def _build_tensorrt(parts: Parts, arguments: argparse.Namespace, cache: Path) -> int:
    try:
        from marigold_ros.engines.tensorrt_build import BuildSettings
        from marigold_ros.engines.tensorrt_ready import build_and_open
    except ImportError as error:
        raise Unusable(f"TensorRT cannot be loaded ({error}); run 'ros2 run marigold_ros doctor'") from error
    from tqdm import tqdm

    # A plan made of a damaged file would be kept under the good one's name.
    parts.require_whole()
    bars: list[tqdm] = []

    def progress(part: str) -> Callable[[float, str], None]:
        bar = tqdm(total=100, desc=f"building {part}", unit="%", bar_format="{l_bar}{bar}| {elapsed} {postfix}")
        bars.append(bar)

        def show(share: float, what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update(max(0.0, 100 * share - bar.n))

        return show

    settings = BuildSettings(arguments.level, arguments.workspace)
    try:
        engine, found = build_and_open(parts, cache, settings, progress, arguments.rebuild, arguments.typing)
    finally:
        for bar in bars:
            bar.close()
    print(f"{engine.description}: {found}: accepted")
    engine.close()
    return 0


def _check_size(width: int, height: int) -> None:
    if width % SIZE_STEP_PX or height % SIZE_STEP_PX:
        nearest = "x".join(str(max(1, round(size / SIZE_STEP_PX)) * SIZE_STEP_PX) for size in (width, height))
        raise Unusable(f"--size {width}x{height}: must be multiples of {SIZE_STEP_PX} pixels; the nearest is {nearest}")


if __name__ == "__main__":
    sys.exit(main())
