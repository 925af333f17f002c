"""The exported network on Intel's OpenVINO: the fastest way on a CPU, without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino

from marigold_ros.config import Unusable
from marigold_ros.engines.openvino_core import openvino_core
from marigold_ros.engines.openvino_norms import keep_large_maps_in_layout

_FEATURES = "OPTIMIZATION_CAPABILITIES"
_WEIGHTED = ("Convolution", "ConvolutionBackpropData", "MatMul")
# By these attributes OpenVINO knows casts that it must not fold; a version that does not know them computes as before.
_MARKS = ("DisableConstantFolding_0", "decompression_0")


class OpenVinoEngine:
    """Calls the ONNX file `onnx` on the CPU, compiled for the size of the image it is called with.

    Only the last size is kept: cameras have one, and every compiled network takes 150 MB of memory and more.
    `threads` 0 leaves their number to OpenVINO. Where the processor has bfloat16 instructions OpenVINO computes with
    them (twice as fast or more; the answer moves by less than 0.01 on average, which a test holds it to).
    """

    any_size = True

    def __init__(self, onnx: Path, threads: int = 0) -> None:
        self._core = openvino_core()
        self._onnx = onnx
        self._options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads:
            self._options["INFERENCE_NUM_THREADS"] = threads
        self._size: tuple[int, int] | None = None
        self._request: openvino.InferRequest | None = None
        # All that may change the answer, known before anything is compiled.
        device, features = (self._core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", _FEATURES))
        self.identity = f"openvino {openvino.get_version()}, {device} ({' '.join(sorted(features))})"
        self.description = f"openvino {openvino.get_version().split('-')[0]} (not compiled yet)"

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 at a working size -> what the network gives; the next call overwrites the returned array."""
        size = rgb.shape[:2]
        if size != self._size:
            self._size = self._request = None
            self._request = self._compile(size)
            self._size = size
        return self._request.infer({0: rgb[None]}, share_inputs=True, share_outputs=True)[0][0]

    def _compile(self, size: tuple[int, int]) -> openvino.InferRequest:
        try:
            model = self._core.read_model(self._onnx)
            # A static shape lets OpenVINO fold all of the graph's shape arithmetic and plan its memory.
            model.reshape([1, *size, 3])
            keep_weights_halved(model)
            keep_large_maps_in_layout(model)
            compiled = self._core.compile_model(model, "CPU", self._options)
        except RuntimeError as error:
            raise Unusable(
                f"network file {self._onnx}: OpenVINO cannot compile it for {size[1]}x{size[0]} "
                f"({str(error).splitlines()[-1]}); try another model.width and model.height, or model.engine: torch"
            ) from error
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        device = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        self.description = f"openvino {openvino.get_version().split('-')[0]}, {precision}, {device}"
        return compiled.create_infer_request()

    def close(self) -> None:
        """Free the compiled network."""
        self._size = self._request = None


def keep_weights_halved(model: openvino.Model) -> int:
    """Mark the casts of weights that `model` stores as float16, in place, as OpenVINO's own files do; count them.

    Without the marks every compiled network keeps a float32 copy of its weights beside those that it computes with.
    """
    casts = [node for node in model.get_ops() if node.get_type_name() == "Convert" and _is_of_weights(node)]
    for cast in casts:
        for mark in _MARKS:
            cast.get_rt_info()[mark] = ""
    return len(casts)


def _is_of_weights(cast: openvino.Node) -> bool:
    stored = cast.input_value(0).get_node()
    readers = {reader.get_node().get_type_name() for reader in cast.output(0).get_target_inputs()}
    halved = stored.get_type_name() == "Constant" and stored.get_element_type() == openvino.Type.f16
    return halved and readers.issubset(_WEIGHTED)
