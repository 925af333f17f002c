"""Each rule of TensorRT's is found broken where it is broken; the real exports keep to all of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from marigold_ros.config import Unusable
from marigold_ros.onnx_rules import broken_rules, require_rules
from marigold_ros.parts import PARTS, all_parts

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def write(path, nodes, initializers=(), shape=(1, 4, 8, 8), opset=18, ir=10, gives=HALF, out=None):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("given", HALF, shape)],
        [helper.make_tensor_value_info("gives", gives, out or shape)],
        [numpy_helper.from_array(values, name) for name, values in initializers],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.save(model, path)
    return path


def found(path):
    return "; ".join(broken_rules(path))


def sigmoid():
    return helper.make_node("Sigmoid", ["given"], ["gives"], name="node")


def test_the_exported_parts_keep_to_every_rule(small_parts):
    (parts,) = all_parts(small_parts[1])
    for part in PARTS:
        require_rules(parts.onnx(part))


def test_a_plain_graph_keeps_to_every_rule(tmp_path):
    assert found(write(tmp_path / "a.onnx", [sigmoid()])) == ""


def test_a_newer_opset(tmp_path):
    assert "operator sets are {'': 21}, not 18" in found(write(tmp_path / "a.onnx", [sigmoid()], opset=21))


def test_a_newer_ir(tmp_path):
    assert "IR version is 11" in found(write(tmp_path / "a.onnx", [sigmoid()], ir=11))


def test_a_symbolic_size(tmp_path):
    text = found(write(tmp_path / "a.onnx", [sigmoid()], shape=(1, 4, "h", 8)))
    assert "shape of given is not static" in text


def test_an_operator_that_is_not_known_in_float16(tmp_path):
    node = helper.make_node("Selu", ["given"], ["gives"], name="node")
    assert "node is a Selu" in found(write(tmp_path / "a.onnx", [node]))


def test_two_float_types_in_one_operator_are_found_by_onnx_or_by_us(tmp_path):
    cast = helper.make_node("Cast", ["given"], ["wide"], name="cast", to=FLOAT)
    # Concat's shape inference does not compare the types of its inputs.
    mixed = helper.make_node("Concat", ["wide", "given"], ["gives"], name="mixed", axis=1)
    path = write(tmp_path / "a.onnx", [cast, mixed], gives=FLOAT, out=(1, 8, 8, 8))
    with pytest.raises(Unusable, match=r"TensorRT would not take it: .*(mix|type)"):
        require_rules(path)


def test_double(tmp_path):
    cast = helper.make_node("Cast", ["given"], ["gives"], name="cast", to=TensorProto.DOUBLE)
    assert "gives is of type DOUBLE" in found(write(tmp_path / "a.onnx", [cast], gives=TensorProto.DOUBLE))


def test_axes_that_are_computed(tmp_path):
    axes = helper.make_node("Cast", ["axes32"], ["axes"], name="cast", to=TensorProto.INT64)
    mean = helper.make_node("ReduceMean", ["given", "axes"], ["gives"], name="mean")
    text = found(write(tmp_path / "a.onnx", [axes, mean], [("axes32", np.array([1], np.uint8))], out=(1, 1, 8, 8)))
    assert "input 1 of mean is not constant" in text


def test_a_resize_of_another_kind(tmp_path):
    resize = helper.make_node("Resize", ["given", "", "scales"], ["gives"], name="resize", mode="linear")
    scales = [("scales", np.array([1, 1, 2, 2], np.float32))]
    text = found(write(tmp_path / "a.onnx", [resize], scales, out=(1, 4, 16, 16)))
    assert "resize does not double pixels" in text


def test_a_graph_inside_an_operator(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("Identity", ["given"], ["out"])],
        "inner",
        [],
        [helper.make_tensor_value_info("out", HALF, None)],
    )
    constant = ("condition", np.array(True))
    branch = helper.make_node("If", ["condition"], ["gives"], name="branch", then_branch=inner, else_branch=inner)
    assert "branch holds a graph" in found(write(tmp_path / "a.onnx", [branch], [constant]))


def test_weights_elsewhere(tmp_path):
    path = tmp_path / "a.onnx"
    add = helper.make_node("Add", ["given", "weights"], ["gives"], name="add")
    write(path, [add], [("weights", np.ones((1, 4, 8, 8), np.float16))])
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="elsewhere", size_threshold=0)
    assert "['elsewhere'], not in a.onnx.data" in found(path)


def test_a_damaged_file_is_one_sentence(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(Unusable, match=r"a\.onnx: TensorRT would not take it"):
        require_rules(path)
