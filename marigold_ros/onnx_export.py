"""Checkpoint -> ONNX files, by torch's exporter: one of any size for OpenVINO, three of one size for TensorRT."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from marigold_ros.checkpoints import CheckpointInfo, load_network
from marigold_ros.config import Unusable
from marigold_ros.family import NORMALS
from marigold_ros.files import folder_written_beside, sha256_of, written_beside
from marigold_ros.geometry import resize
from marigold_ros.parts import INT8_OPSET, INT8_PARTS, MANIFEST, PARTS, TENSORS, Parts, read_parts
from marigold_ros.selfcheck import frames, write_reference

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

    from marigold_ros.folds import FoldedNetwork
    from marigold_ros.half_range import Largest
    from marigold_ros.network import SingleStepNetwork

log = logging.getLogger(__name__)


def export_onnx(info: CheckpointInfo, path: Path) -> None:
    """Write the checkpoint's folded network to `path`, and torch's answers to the self-check's frames beside it.

    Height and width are symbolic, weights are stored as float16. Input `rgb` (1, 32 h, 32 w, 3) uint8; output
    `relative` (1, 32 h, 32 w) float32 in [0, 1], or of a network for normals `normals` (1, 32 h, 32 w, 3) float32.
    """
    torch = _require_exporter(info)
    from marigold_ros.folds import folded

    with written_beside(path) as beside, tempfile.TemporaryDirectory(prefix="export", dir=path.parent) as folder:
        network = load_network(info)
        rgb = frames(info.width, info.height)
        # Before anything is folded, so that the self-check sees the folds as well.
        answers = _answers(network, rgb)
        network = folded(network)
        example = torch.zeros(1, info.height, info.width, 3, dtype=torch.uint8)
        cells = {axis: info.multiple * torch.export.Dim(name, min=2, max=128) for axis, name in ((1, "h"), (2, "w"))}
        name = "normals" if info.kind.task == NORMALS else "relative"
        # By way of the disk: in memory, a large network in float32 would be there three times.
        whole = Path(folder) / "whole.onnx"
        onnx_program(network, example, "rgb", name, dynamic_shapes={"rgb": cells}).save(whole, external_data=True)
        del network
        gc.collect()
        _slim(whole, beside)
        # First the reference: a network without one is exported again, a reference without a network disturbs nobody.
        write_reference(path, rgb, answers, info.kind.x_left)


def export_parts(
    info: CheckpointInfo, width: int, height: int, folder: Path, int8: str = "none", calibration: Sequence[Path] = ()
) -> Parts:
    """Write the checkpoint's network at one working size, in pixels, as three ONNX files into the new `folder`.

    Bytes (1, height, width, 3) uint8 go into the first, (1, height, width) or, of normals, (1, height, width, 3)
    float32 comes out of the last, float16 latents go between. A part that would leave float16's range is
    written in float32.

    int8: which parts compute in INT8, as `model.int8`; calibration: image files that look like what the camera sees,
    without which the frames of the self-check serve.
    """
    torch = _require_exporter(info)
    if INT8_PARTS[int8]:
        _require_quantiser()
    from marigold_ros.folds import folded
    from marigold_ros.onnx_rules import OPSET, require_rules

    rgb = frames(width, height)
    inputs = _calibration(calibration, rgb) if INT8_PARTS[int8] else []
    network = load_network(info)
    # Before anything is folded, so that the self-check sees the folds as well.
    answers, largest = _watched_answers(network, rgb)
    reduction = 2 ** (len(network.vae.config.block_out_channels) - 1)
    latent = torch.zeros(1, network.vae.config.latent_channels, height // reduction, width // reduction).half()
    network = folded(network, transposed_upsampling=False)
    examples = (torch.zeros(1, height, width, 3, dtype=torch.uint8), latent, latent)
    with folder_written_beside(folder) as beside:
        facts = {}
        for number, (part, example) in enumerate(zip(PARTS, examples, strict=True)):
            dtype = _dtype(part, largest[part])
            log.info("exporting %s", part)
            _write_part(_part(network, part, dtype), example, beside / f"{part}.onnx", *TENSORS[number : number + 2])
            gc.collect()
            precision = "int8" if part in INT8_PARTS[int8] else str(dtype).removeprefix("torch.")
            facts[part] = {"precision": precision, "largest": round(largest[part].value, 3), "in": largest[part].where}
        del network
        if INT8_PARTS[int8]:
            _quantise(beside, INT8_PARTS[int8], inputs)
        for part in PARTS:
            path = beside / f"{part}.onnx"
            require_rules(path, INT8_OPSET if part in INT8_PARTS[int8] else OPSET)
            files = (path, path.with_name(f"{path.name}.data"))
            facts[part]["files"] = {file.name: sha256_of(file) for file in files}
            facts[part]["bytes"] = sum(file.stat().st_size for file in files)
        options = _options(info, width, height, int8)
        manifest = {"checkpoint": info.name, "options": options, "width": width, "height": height, "parts": facts}
        write_reference(beside / MANIFEST, rgb, answers, info.kind.x_left)
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    parts = read_parts(folder)
    assert parts is not None
    return parts


def _options(info: CheckpointInfo, width: int, height: int, int8: str) -> list[str]:
    """What the export program was called with, for doctor's advice."""
    options = ["--checkpoint", str(info.folder), "--size", f"{width}x{height}", "--int8", int8]
    if info.tiny is not None:
        options += ["--vae", "tiny" if info.tiny.encodes else "tiny-decoder", "--tiny-vae", str(info.tiny.folder)]
    return options


def _dtype(part: str, seen: Largest) -> torch.dtype:
    import torch

    if seen.fits:
        return torch.float16
    log.warning("%s: reaches %.3g in %s, so it is exported in float32", part, seen.value, seen.where)
    return torch.float32


def _calibration(images: Sequence[Path], frames_rgb: np.ndarray) -> list[np.ndarray]:
    """(1, h, w, 3) uint8 RGB of every image, at the size of the frames (N, h, w, 3); without images, of these."""
    if not images:
        log.warning("INT8 is calibrated on frames of generated scenes; better give --calibration FOLDER of the robot's")
        return list(frames_rgb[:, None])
    height, width = frames_rgb.shape[1:3]
    loaded = []
    for path in images:
        image = cv2.imread(str(path))
        if image is None:
            raise Unusable(f"calibration image {path}: cannot be read; take it out of the folder")
        loaded.append(resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), width, height)[None])
    return loaded


def _quantise(folder: Path, parts: Sequence[str], inputs: list[np.ndarray]) -> None:
    """Quantise some of the exported parts, each calibrated with what the float16 parts before it give."""
    from marigold_ros.quantise import answers, quantise

    for part in PARTS:
        path = folder / f"{part}.onnx"
        following = answers(path, inputs) if part != PARTS[-1] else []
        if part in parts:
            log.info("quantising %s on %d frames", part, len(inputs))
            quantise(path, inputs)
        inputs = following


def _require_exporter(info: CheckpointInfo) -> Any:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  torch's exporter needs it
        import torch
    except ImportError as error:
        raise Unusable(
            f"{error.name} is not installed: exporting checkpoint {info.name!r} needs torch, diffusers, onnx and "
            "onnxscript (pip install torch diffusers safetensors onnx onnxscript)"
        ) from error
    return torch


def _require_quantiser() -> None:
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise Unusable("onnxruntime is not installed: INT8 needs its tools (pip install onnxruntime)") from error


def _answers(network: nn.Module, rgb: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return np.stack([network(torch.from_numpy(frame[None]))[0].numpy() for frame in rgb])


def _watched_answers(network: SingleStepNetwork, rgb: np.ndarray) -> tuple[np.ndarray, dict[str, Largest]]:
    """Torch's answers, and the largest magnitude in each part on the way to them."""
    from marigold_ros.half_range import watched

    tiny, vae = network.tiny, network.vae
    encoder = vae.encoder if tiny is None or not network.tiny_encodes else tiny.encoder
    decoder = vae.decoder if tiny is None else tiny.decoder
    with watched(encoder) as encode, watched(network.unet) as step, watched(decoder) as decode:
        answers = _answers(network, rgb)
    return answers, dict(zip(PARTS, (encode, step, decode), strict=True))


def _part(network: FoldedNetwork, part: str, dtype: torch.dtype) -> nn.Module:
    """One part in `dtype` between its neighbours' float16 latents; the network's own modules change their type."""
    import torch
    from torch import nn

    from marigold_ros.network import answer, normalised

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            if part == "encode":
                return network.encode(normalised(given, dtype)).to(torch.float16)
            if part == "step":
                return network.predict(given.to(dtype)).to(torch.float16)
            return answer(network.decode(given.to(dtype)))

    # nn.Module's own, since diffusers' warns of modules that should stay in float32, of which there are none.
    nn.Module.to({"encode": network.encoder, "step": network.unet, "decode": network.decoder}[part], dtype)
    if part == "step" and network.prompt is not None:
        network.prompt = network.prompt.to(dtype)
    return Part()


def _write_part(part: nn.Module, example: torch.Tensor, path: Path, given: str, gives: str) -> None:
    import onnx

    from marigold_ros.onnx_rules import IR_VERSION

    onnx_program(part, example, given, gives).save(path, external_data=True)
    model = onnx.load(path, load_external_data=False)
    _strip(model)
    model.ir_version = IR_VERSION
    onnx.save(model, path)


def onnx_program(network: nn.Module, example: torch.Tensor, given: str, gives: str, **options: Any) -> Any:
    """`network` of one input, like `example`, and one output as torch's ONNXProgram, by default of static shape."""
    import torch

    from marigold_ros.onnx_rules import OPSET

    with _quiet(), torch.no_grad():
        return torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[given],
            output_names=[gives],
            verbose=False,
            **options,
        )


def _slim(path: Path, out: Path) -> None:
    """Write the graph at `path` in half its size: float16 weights behind casts. It computes as before."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo

    from marigold_ros.onnx_rules import IR_VERSION

    model = onnx.load(path, load_external_data=False)
    graph, casts = model.graph, []
    whole, small = list(graph.initializer), []
    for tensor in whole:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            facts = ExternalDataInfo(tensor)
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            # Never into the protobuf message: it would keep the memory.
            values = np.memmap(path.parent / facts.location, kind, "r", facts.offset or 0, tuple(tensor.dims))
        else:
            values = onnx.numpy_helper.to_array(tensor)
        # Small tensors are scales and shifts, where rounding would cost more than it saves.
        if values.dtype != np.float32 or values.ndim < 2:
            small.append((tensor.name, np.array(values)))
            continue
        half = graph.initializer.add()
        half.name, half.data_type = f"{tensor.name}_f16", onnx.TensorProto.FLOAT16
        half.dims.extend(values.shape)
        half.raw_data = values.astype(np.float16).tobytes()
        casts.append(onnx.helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT))
    for tensor in whole:
        graph.initializer.remove(tensor)
    graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in small)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    _strip(model)
    # Every consumer infers the shapes again once it has fixed the size.
    del graph.value_info[:]
    model.ir_version = IR_VERSION
    onnx.save(model, out)
    del model, graph
    onnx.checker.check_model(str(out))


def _strip(model: onnx.ModelProto) -> None:
    """Take out the exporter's annotations, which tell of source files."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


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
