"""Group normalisation as OpenVINO's CPU plugin computes it fastest on large maps.

ONNX's opset 18 has no group normalisation of its own: exporters write reshape, instance normalisation, reshape. The
reshapes force every map out of the layout that convolutions use and back into it. Written with average pools and
element-wise operations alone, the map stays where it is.
"""

from __future__ import annotations

import numpy as np
import openvino
from openvino import opset13 as ops
from openvino.passes import ConstantFolding, Manager

# On smaller maps the many small operations cost more than the reshapes that they replace (measured).
_LARGE_PX = 6000
# Means are taken window by window and then of the windows: smaller ones leave more to do after the pool (measured).
_MIN_WINDOW_PX, _MAX_WINDOW_PX = 4, 48
# What follows the normalisation itself (MVN): scale and shift of the groups, back to (1, C, h, w), scale and shift.
_AFTER_MVN = ("Multiply", "Add", "Reshape", "Multiply", "Add")


def keep_large_maps_in_layout(model: openvino.Model) -> int:
    """Rewrite, in place, every group normalisation of a large map in `model`, whose shape is static; count them."""
    passes = Manager()
    # The graph's arithmetic on shapes reads the maps too, which hides the pattern.
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    norms = [path for node in model.get_ordered_ops() if (path := _large_norm(node))]
    for path in norms:
        pooled = _pooled(path)
        for reader in path[-1].output(0).get_target_inputs():
            reader.replace_source_output(pooled.output(0))
    model.validate_nodes_and_infer_types()
    return len(norms)


def _large_norm(node: openvino.Node) -> list[openvino.Node] | None:
    """The operations of the group normalisation in whose middle `node` is; None where it is in none, or a small one."""
    if node.get_type_name() != "MVN" or node.input_value(0).get_node().get_type_name() != "Reshape":
        return None
    path = [node.input_value(0).get_node(), node]
    for wanted in _AFTER_MVN:
        readers = list(path[-1].output(0).get_target_inputs())
        if len(readers) != 1 or readers[0].get_node().get_type_name() != wanted:
            return None
        path.append(readers[0].get_node())
    shape = list(path[0].input_value(0).get_shape())
    if len(shape) != 4 or shape[0] != 1 or list(path[-1].get_output_shape(0)) != shape:
        return None
    large = shape[2] * shape[3] >= _LARGE_PX and _window(*shape[2:]) >= _MIN_WINDOW_PX
    factors = (_constant(operation) for operation in path[2:])
    return path if large and all(factor is not None for factor in factors) else None


def _window(rows: int, columns: int) -> int:
    """Side of the largest square, up to a limit, that tiles the map."""
    return max(side for side in range(1, _MAX_WINDOW_PX + 1) if rows % side == 0 and columns % side == 0)


def _constant(operation: openvino.Node) -> np.ndarray | None:
    """The constant among the operation's inputs."""
    inputs = (value.get_node() for value in operation.input_values())
    return next((node.data for node in inputs if node.get_type_name() == "Constant"), None)


def _pooled(path: list[openvino.Node]) -> openvino.Node:
    """The group normalisation `path` in other operations.

    The variance is the mean square of what is left without the mean, as in the operations replaced: the mean of squares
    minus the squared mean would lose its digits in bfloat16.
    """
    reshape, norm, group_scale, group_shift, _, scale, shift = path
    source = reshape.input_value(0)
    _, channels, rows, columns = source.get_shape()
    groups = norm.get_output_shape(0)[1]
    each = channels // groups
    window = [_window(rows, columns)] * 2

    def mean(values: openvino.Output | openvino.Node) -> openvino.Node:
        """(1, C, h, w) -> each group's mean for each of its channels: (1, C), or (1, groups, C / groups)."""
        values = ops.avg_pool(values, window, [0, 0], [0, 0], window, True)
        values = ops.reduce_mean(values, ops.constant(np.array([2, 3])), False)
        if each > 1:
            values = ops.reshape(values, ops.constant([1, groups, each]), False)
            values = ops.reduce_mean(values, ops.constant(np.array([2])), True)
            values = ops.broadcast(values, ops.constant([1, groups, each]))
        return values

    def over_map(values: openvino.Node) -> openvino.Node:
        return ops.reshape(values, ops.constant([1, channels, 1, 1]), False)

    def per_channel(operation: openvino.Node) -> np.ndarray:
        factor = _constant(operation).astype(np.float32).reshape(-1)
        return np.repeat(factor, channels // factor.size)

    gain = per_channel(group_scale) * per_channel(scale)
    offset = per_channel(group_shift) * per_channel(scale) + per_channel(shift)
    centred = ops.subtract(source, over_map(mean(source)))
    variance = mean(ops.multiply(centred, centred))
    # These few numbers keep a rank below the map's, or OpenVINO computes them anew for every pixel.
    small = [1, groups, each] if each > 1 else [1, channels]
    deviation = ops.sqrt(ops.add(variance, ops.constant(np.float32(norm.get_attributes()["eps"]))))
    gain = ops.divide(ops.constant(gain.reshape(small)), deviation)
    return ops.add(ops.multiply(centred, over_map(gain)), ops.constant(offset.reshape(1, channels, 1, 1)))
