"""What INT8 costs in accuracy and gains in time: the network's parts for TensorRT, quantised and not, on real frames.

They run in ONNX Runtime on the processor, which computes quantised convolutions as TensorRT does, in integers. Times
are OpenVINO's, which takes the same files; TensorRT's need a GPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
from tqdm import tqdm

from marigold_ros.checkpoints import describe, find_checkpoint
from marigold_ros.engines.openvino_core import openvino_core
from marigold_ros.estimator import Estimator
from marigold_ros.onnx_export import export_parts
from marigold_ros.parts import INT8_PARTS, PARTS, Parts
from trainer.frames import Frame, evaluate_frame, mean

ROUNDS = 15


class OnnxRuntimeEngine:
    """Runs exported parts one after the other on the processor."""

    any_size = False

    def __init__(self, parts: Parts) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._sessions = [
            onnxruntime.InferenceSession(str(parts.onnx(part)), options, providers=["CPUExecutionProvider"])
            for part in PARTS
        ]
        self.description = f"onnxruntime {onnxruntime.__version__}"

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 -> the network's answer."""
        values = rgb[None]
        for session in self._sessions:
            values = session.run(None, {session.get_inputs()[0].name: values})[0]
        return values[0]

    def close(self) -> None:
        """Free the parts."""
        self._sessions = []


def study(checkpoint: str, frames: list[Frame], calibration: Sequence[Path]) -> str:
    """A Markdown table: AbsRel by set of frames for each value of model.int8, and the difference from float16."""
    info = describe(find_checkpoint(checkpoint))
    sets = list(dict.fromkeys(frame.name.split()[0] for frame in frames))
    lines = ["| model.int8 | " + " | ".join(f"{name}, AbsRel" for name in sets) + " | differs from float16 by |"]
    lines.append("|---" * (len(sets) + 2) + "|")
    with tempfile.TemporaryDirectory() as folder:
        exported = {}
        for int8 in INT8_PARTS:
            where = Path(folder) / int8
            exported[int8] = export_parts(info, info.width, info.height, where, int8, calibration)
        reference: list[np.ndarray] = []
        for int8, parts in exported.items():
            estimator = Estimator(info, OnnxRuntimeEngine(parts), "", info.width, info.height, fixed=True)
            answers = [estimator(frame.rgb) for frame in tqdm(frames, desc=int8)]
            reference = reference or answers
            scores: dict[str, list] = {name: [] for name in sets}
            for frame, relative in zip(frames, answers, strict=True):
                scores[frame.name.split()[0]].append(evaluate_frame(frame, relative, info.space))
            off = np.mean([np.abs(a - b).mean() for a, b in zip(answers, reference, strict=True)])
            cells = [f"{mean(scores[name], 'best', 'abs_rel'):.4f}" for name in sets]
            lines.append(f"| {int8} | " + " | ".join(cells) + f" | {off:.4f} |")
        return "\n".join([*lines, "", *times(exported["none"], exported["all"])])


def times(half: Parts, int8: Parts) -> list[str]:
    """Lines of a Markdown table: OpenVINO's milliseconds for each part, in float types and in INT8, and their ratio."""
    lines = ["| part, OpenVINO | float, ms | INT8, ms | times as fast |", "|---|---|---|---|"]
    for part in PARTS:
        requests = [_compiled(parts.onnx(part)) for parts in (half, int8)]
        given = requests[0].model_inputs[0]
        data = np.random.default_rng(0).standard_normal(given.get_shape()).astype(given.get_element_type().to_dtype())
        seconds = np.array([[_timed(request, data) for request in requests] for _ in range(ROUNDS)])
        ms = np.median(seconds, axis=0) * 1e3
        ratio = np.median(seconds[:, 0] / seconds[:, 1])
        lines.append(f"| {part} | {ms[0]:.1f} | {ms[1]:.1f} | {ratio:.2f} |")
    return lines


def _compiled(path: Path) -> openvino.InferRequest:
    core = openvino_core()
    return core.compile_model(core.read_model(path), "CPU", {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()


def _timed(request: openvino.InferRequest, data: np.ndarray) -> float:
    """Seconds of one run, the best of three in a row."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        request.infer({0: data})
        seconds.append(time.perf_counter() - start)
    return min(seconds)
