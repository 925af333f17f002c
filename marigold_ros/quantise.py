"""INT8 for TensorRT by explicit quantise and dequantise nodes, made with ONNX Runtime's tools.

Weights have a scale for each channel, activations one for each tensor, all symmetric: what TensorRT takes in every
version. The scales come from the largest values on calibration frames, so those should look like what the robot sees.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from marigold_ros.parts import INT8_OPSET

# ONNX Runtime warns of every operator that it has not in float16 on the processor; it computes it otherwise.
_WARNINGS, _ERRORS = 2, 3
_OPERATORS = ["Conv", "Gemm", "MatMul"]
_INT8_STEPS = 128

log = logging.getLogger(__name__)


class _Frames(CalibrationDataReader):
    def __init__(self, name: str, inputs: Iterable[np.ndarray]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = ({name: values} for values in inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantise(path: Path, inputs: Iterable[np.ndarray]) -> None:
    """Replace the ONNX file of one input, and its weights, with one whose convolutions and products are in INT8.

    inputs: what goes into it on the calibration frames.
    """
    logging.getLogger().addFilter(_no_advice)
    onnxruntime.set_default_logger_severity(_ERRORS)
    try:
        with tempfile.TemporaryDirectory(prefix="int8", dir=path.parent) as folder:
            model = onnx.load(path)
            model.opset_import[0].version = INT8_OPSET
            name = model.graph.input[0].name
            fine = too_fine(model.graph)
            if fine:
                log.info("%s: %d layers stay in float16: INT8 would lose channels of theirs", path.name, len(fine))
            newer, done = Path(folder) / "newer.onnx", Path(folder) / path.name
            onnx.save(model, newer, save_as_external_data=True, location=f"{newer.name}.data")
            del model
            quantize_static(
                newer,
                done,
                _Frames(name, inputs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS,
                nodes_to_exclude=fine,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                use_external_data_format=True,
                # TensorRT adds biases in higher precision.
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
            )
            for file in (done, done.with_name(f"{done.name}.data")):
                file.replace(path.with_name(file.name))
    finally:
        logging.getLogger().removeFilter(_no_advice)
        onnxruntime.set_default_logger_severity(_WARNINGS)


def too_fine(graph: onnx.GraphProto) -> list[str]:
    """Names of nodes with a channel of float16 weights whose INT8 scale is below float16's normal numbers.

    The quantiser takes 1 for such a scale, and makes zeros of the channel without a word.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    least = _INT8_STEPS * float(np.finfo(np.float16).tiny)
    found = []
    for node in graph.node:
        if node.op_type not in _OPERATORS or node.input[1] not in weights:
            continue
        values = np.abs(onnx.numpy_helper.to_array(weights[node.input[1]])).astype(np.float32)
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else 1  # as the quantiser takes channels
        largest = values.max(axis=tuple(other for other in range(values.ndim) if other != axis))
        if np.any((largest > 0) & (largest < least)):
            found.append(node.name)
    return found


def _no_advice(record: logging.LogRecord) -> bool:
    """The quantiser advises a preparation that torch's exporter has made already."""
    return "pre-processing" not in record.getMessage()


def answers(path: Path, inputs: Iterable[np.ndarray]) -> list[np.ndarray]:
    """What the ONNX file of one input gives for each, by ONNX Runtime on the processor."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [session.run(None, {name: values})[0] for values in inputs]
