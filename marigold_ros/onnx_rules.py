"""What an ONNX file must keep to so that TensorRT 10.3 to 11.4 builds it as it is written.

Strongly typed networks are built in the types of the file: an operator that mixes two float types is an error there.
Shapes are static, weights lie in one file beside, and every operator is one that TensorRT's parser knows in float16.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from marigold_ros.config import Unusable, one_line

OPSET = 18
IR_VERSION = 10
# All that torch's exporter writes for U-Net, VAE and tiny VAE; each is supported from TensorRT 10.0 on.
OPERATORS = {
    "Add", "Cast", "Clip", "Concat", "Conv", "DequantizeLinear", "Div", "Erf", "Gemm", "InstanceNormalization",
    "LayerNormalization", "MatMul", "Max", "Mul", "Pad", "QuantizeLinear", "ReduceL2", "ReduceMean", "Relu",
    "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose",
    "Unsqueeze",
}  # fmt: skip
_FLOATS = {TensorProto.FLOAT16: "float16", TensorProto.FLOAT: "float32", TensorProto.BFLOAT16: "bfloat16"}
_TYPES = {*_FLOATS, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8}
# Inputs that the parser must know while it reads, by position.
_CONSTANT_INPUTS = {
    "Pad": (1,),
    "Slice": (1, 2, 3, 4),
    "ReduceMean": (1,),
    "ReduceL2": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
}
# Nearest neighbour as torch writes it; other ways differ in their rounding.
_RESIZE = {"mode": b"nearest", "coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}


def require_rules(path: Path, opset: int = OPSET) -> None:
    """Raise `Unusable` with every rule that the ONNX file `path` breaks."""
    try:
        problems = list(broken_rules(path, opset))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, OSError) as error:
        problems = [one_line(error)]
    if problems:
        raise Unusable(f"exported network {path}: TensorRT would not take it: {'; '.join(problems[:5])}")


def broken_rules(path: Path, opset: int = OPSET) -> Iterator[str]:
    """One sentence for each rule that is broken; raises onnx's own errors for what is no valid ONNX at all."""
    onnx.checker.check_model(str(path), full_check=False)
    with tempfile.TemporaryDirectory(prefix="onnx_rules", dir=path.parent) as folder:
        inferred = Path(folder) / "inferred.onnx"
        onnx.shape_inference.infer_shapes_path(str(path), str(inferred), strict_mode=True, data_prop=True)
        model = onnx.load(inferred, load_external_data=False)
    yield from _header(model, opset)
    yield from _weights_file(path, model.graph)
    initializers = {tensor.name for tensor in model.graph.initializer}
    types = dict(_types(model.graph))
    yield from _zero_points(model.graph)
    for name, kind in types.items():
        if kind not in _TYPES:
            yield f"{name} is of type {TensorProto.DataType.Name(kind)}"
    for node in model.graph.node:
        yield from _node(node, initializers, types)


def _header(model: onnx.ModelProto, opset: int) -> Iterator[str]:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": opset}:
        yield f"its operator sets are {opsets}, not {opset}"
    if model.ir_version > IR_VERSION:
        yield f"its IR version is {model.ir_version}, above {IR_VERSION}"
    if model.functions:
        yield "it has functions"
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if not all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim):
            yield f"the shape of {value.name} is not static"
    known = {value.name for value in (*graph.output, *graph.value_info)}
    for name in sorted({name for node in graph.node for name in node.output} - known):
        yield f"the shape of {name} is unknown"


def _weights_file(path: Path, graph: onnx.GraphProto) -> Iterator[str]:
    """All large tensors in one file beside the ONNX file."""
    locations = {
        entry.value
        for tensor in graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if locations - {f"{path.name}.data"}:
        yield f"its weights lie in {sorted(locations)}, not in {path.name}.data"


def _zero_points(graph: onnx.GraphProto) -> Iterator[str]:
    """TensorRT quantises symmetrically."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            point = tensors.get(node.input[2]) if len(node.input) > 2 else None
            if point is not None and onnx.numpy_helper.to_array(point).any():
                yield f"{node.name} has a zero point other than 0"


def _types(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name, value.type.tensor_type.elem_type
    for tensor in graph.initializer:
        yield tensor.name, tensor.data_type


def _node(node: onnx.NodeProto, initializers: set[str], types: dict[str, int]) -> Iterator[str]:
    if node.domain or node.op_type not in OPERATORS:
        yield f"{node.name} is a {node.domain}{node.op_type}"
    if any(attribute.g.node or attribute.graphs for attribute in node.attribute):
        yield f"{node.name} holds a graph"
    for position in _CONSTANT_INPUTS.get(node.op_type, ()):
        if position < len(node.input) and node.input[position] and node.input[position] not in initializers:
            yield f"input {position} of {node.name} is not constant"
    inputs = node.input[:1] if node.op_type == "Resize" else node.input  # its scales are float32 always
    floats = {_FLOATS[types[name]] for name in inputs if types.get(name) in _FLOATS}
    if len(floats) > 1:
        yield f"{node.name} mixes {' and '.join(sorted(floats))}"
    if node.op_type == "Resize":
        found = {attribute.name: attribute.s for attribute in node.attribute}
        if any(found.get(name) != value for name, value in _RESIZE.items()):
            yield f"{node.name} does not double pixels"
