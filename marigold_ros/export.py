"""Checkpoint -> ONNX: one file for every image size, made once and kept.

    python -m marigold_ros.export --checkpoint FOLDER [--output FILE]

The file's height and width are symbolic (multiples of 32), because cameras differ in shape and the bundled file must
serve them without torch; engines fix them to one static size before they compile. Opset 18, IR 10, weights stored as
float16. Without --output the file goes where the node looks for it: the per-user cache. Frames with torch's answers
lie beside it, and OpenVINO is checked against them at once, so that the node need not do it while it starts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from marigold_ros.checkpoints import CheckpointInfo, describe, find_checkpoint, load_network, with_tiny_vae
from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.family import NORMALS
from marigold_ros.files import sha256_of, written_beside
from marigold_ros.selfcheck import frames, kept_verdict, reference_of, write_reference

if TYPE_CHECKING:
    import onnx

OPSET = 18
_IR_VERSION = 10
# Part of the cache's file names: raise it when the exported graph changes.
_EXPORT_VERSION = 4

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

    One without its self-check does not count.
    """
    if info.onnx is not None and reference_of(info.onnx).is_file():
        return info.onnx
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
        log.info("exporting %s to %s: about half a minute, once", info.name, path)
        export_onnx(info, path)
        with written_beside(path.with_suffix(".sha256")) as beside:
            beside.write_text(_checksums(path), encoding="utf-8")
    return path


def _checksums(path: Path) -> str:
    return f"{sha256_of(path)}\n{sha256_of(reference_of(path))}\n"


def export_onnx(info: CheckpointInfo, path: Path) -> None:
    """Write the checkpoint's folded network to `path`, and torch's answers to the self-check's frames beside it.

    Input `rgb` (1, 32 h, 32 w, 3) uint8; output `relative` (1, 32 h, 32 w) float32 in [0, 1], or of a network for
    normals `normals` (1, 32 h, 32 w, 3) float32.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
        import torch
    except ImportError as error:
        raise Unusable(
            f"{error.name} is not installed: exporting checkpoint {info.name!r} needs torch, diffusers, onnx and "
            "onnxscript (pip install torch diffusers safetensors onnx onnxscript)"
        ) from error
    from marigold_ros.folds import folded

    with written_beside(path) as beside:
        network = load_network(info)
        rgb = frames(info.width, info.height)
        with torch.inference_mode():
            # Before anything is folded, so that the self-check sees the folds as well.
            answers = np.stack([network(torch.from_numpy(frame[None]))[0].numpy() for frame in rgb])
        network = folded(network)
        example = torch.zeros(1, info.height, info.width, 3, dtype=torch.uint8)
        cells = {axis: info.multiple * torch.export.Dim(name, min=2, max=128) for axis, name in ((1, "h"), (2, "w"))}
        with _quiet():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["rgb"],
                output_names=["normals" if info.kind.task == NORMALS else "relative"],
                dynamic_shapes={"rgb": cells},
                verbose=False,
            )
        onnx.save(_slim(program.model_proto), beside)
    write_reference(path, rgb, answers)


def _slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """Halve the file: float16 weights behind casts, and no source-code annotations. The graph computes as before."""
    import onnx
    from onnx import numpy_helper

    graph, casts = model.graph, []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        # Small tensors are scales and shifts, where rounding would cost more than it saves.
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        half = numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_f16")
        casts.append(onnx.helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT))
        graph.initializer.remove(tensor)
        graph.initializer.append(half)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    # Every consumer infers the shapes again once it has fixed the size.
    del graph.value_info[:]
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter and its helpers, which tell of optional packages and every step of their own."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="export", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nano", help="'nano', a folder, or a hub id (downloaded)")
    vae = {field.name: field for field in dataclasses.fields(ModelConfig)}["vae"]
    parser.add_argument("--vae", default=vae.default, choices=vae.metadata["choices"], help="as model.vae")
    parser.add_argument("--tiny-vae", default=ModelConfig.tiny_vae, help="a folder, or a hub id (downloaded)")
    parser.add_argument("--output", type=Path, help="the ONNX file to write (default: into the cache)")
    parser.add_argument("--cache-dir", default="", help="the cache, default ~/.cache/marigold_ros")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        info = describe(find_checkpoint(arguments.checkpoint, download=True))
        info = with_tiny_vae(info, arguments.vae, arguments.tiny_vae, download=True)
        path = arguments.output
        if path is None:
            path = onnx_file(info, cache_folder(arguments.cache_dir))
        else:
            export_onnx(info, path)
    except Unusable as problem:
        print(f"export: {problem}", file=sys.stderr)
        return 1
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if arguments.output is not None or importlib.util.find_spec("openvino") is None:
        return 0
    return _check(path, cache_folder(arguments.cache_dir))


def _check(path: Path, cache: Path) -> int:
    """Make OpenVINO's self-check of the exported file; returns the exit status."""
    from marigold_ros.engines.openvino_engine import OpenVinoEngine

    try:
        engine = OpenVinoEngine(path)
        found = kept_verdict(engine, engine.identity, path, cache)
    except Unusable as problem:
        print(f"export: {problem}", file=sys.stderr)
        return 1
    print(f"{engine.identity}: {found}: {'accepted' if found.passed else 'refused, run it with torch'}")
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
