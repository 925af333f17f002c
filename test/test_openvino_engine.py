"""The exported network on OpenVINO: what it keeps in memory."""

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from marigold_ros.checkpoints import describe, find_checkpoint
from marigold_ros.engines.openvino_core import openvino_core
from marigold_ros.engines.openvino_engine import OpenVinoEngine, keep_weights_halved

# Large enough for memory that goes back to the system as soon as it is freed.
CHANNELS = 4608
FLOATS_MB = CHANNELS**2 * 4e-6


def exported(path, halved):
    """An ONNX file with one large layer, whose weights are float16 behind a cast, as the exporter's, or float32."""
    random = np.random.default_rng(0)
    shapes = {"first": (CHANNELS, 3, 1, 1), "large": (CHANNELS, CHANNELS, 1, 1), "last": (1, CHANNELS, 1, 1)}
    weights = {name: random.normal(0.0, 0.01, shape).astype(np.float16) for name, shape in shapes.items()}
    stored = {name: values.astype(np.float32) for name, values in weights.items()}
    nodes = []
    if halved:
        stored["large_f16"] = weights["large"]
        del stored["large"]
        nodes.append(helper.make_node("Cast", ["large_f16"], ["large"], to=TensorProto.FLOAT))
    nodes += [
        helper.make_node("Cast", ["rgb"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["bytes"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "first"], ["many"]),
        helper.make_node("Conv", ["many", "large"], ["mixed"]),
        helper.make_node("Conv", ["mixed", "last"], ["one"]),
        helper.make_node("Squeeze", ["one", "axis"], ["relative"]),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("rgb", TensorProto.UINT8, [1, "h", "w", 3])],
        [helper.make_tensor_value_info("relative", TensorProto.FLOAT, [1, "h", "w"])],
        [numpy_helper.from_array(values, name) for name, values in (stored | {"axis": np.array([1])}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def taken_mb(path):
    """How much memory an engine that has answered takes, and its answer."""
    process = psutil.Process()
    before = process.memory_info().rss
    engine = OpenVinoEngine(path)
    answer = engine(np.full((8, 8, 3), 100, np.uint8)).copy()
    taken = (process.memory_info().rss - before) * 1e-6
    engine.close()
    return taken, answer


def test_weights_stored_as_halves_are_not_kept_as_floats_as_well(tmp_path):
    """A network of 900 million weights would take 1.8 GB more."""
    paths = {halved: tmp_path / f"{halved}.onnx" for halved in (False, True)}
    for halved, path in paths.items():
        exported(path, halved)
    taken_mb(paths[False])  # the first one also loads libraries
    floats_mb, expected = taken_mb(paths[False])
    halves_mb, answer = taken_mb(paths[True])
    assert halves_mb < floats_mb - 0.3 * FLOATS_MB
    np.testing.assert_array_equal(answer, expected)


def test_the_bundled_network_has_such_weights():
    """Another exporter may write them otherwise, and then none would be marked."""
    model = openvino_core().read_model(describe(find_checkpoint("nano")).onnx)
    assert keep_weights_halved(model) == 155  # 85 convolutions, 70 products of matrices
