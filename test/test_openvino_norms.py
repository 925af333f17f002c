"""Group normalisations of large maps, rewritten: the same answer, and nothing else is touched."""

import numpy as np
import pytest
import torch

from marigold_ros.checkpoints import describe, find_checkpoint
from marigold_ros.engines.openvino_core import openvino_core
from marigold_ros.engines.openvino_norms import keep_large_maps_in_layout

CHANNELS, EPSILON = 24, 1e-6


def exported(groups, size, path):
    """An ONNX file as the exporter writes it: a group norm with weights of its own between two element-wise steps."""
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(groups, CHANNELS, EPSILON)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    network = torch.nn.Sequential(torch.nn.ReLU(), norm, torch.nn.SiLU()).eval()
    example = torch.zeros(1, CHANNELS, *size)
    torch.onnx.export(network, (example,), path, dynamo=True, opset_version=18, verbose=False)
    return network


def answers(model, values, precision):
    compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return compiled.create_infer_request().infer({0: values})[0]


@pytest.mark.parametrize("groups", [1, 8, CHANNELS])
def test_the_rewritten_normalisation_answers_like_torch(groups, tmp_path):
    path = tmp_path / "norm.onnx"
    network = exported(groups, (96, 128), path)
    # Means far from zero: taking the variance as mean of squares minus squared mean would lose it.
    values = np.random.default_rng(0).normal(30.0, 1.0, (1, CHANNELS, 96, 128)).astype(np.float32)
    expected = network(torch.from_numpy(values)).detach().numpy()
    model = openvino_core().read_model(path)
    assert keep_large_maps_in_layout(model) == 1
    assert "MVN" not in {node.get_type_name() for node in model.get_ops()}
    np.testing.assert_allclose(answers(model, values, "f32"), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 48), (97, 128)], ids=["small", "no window tiles it"])
def test_other_maps_keep_their_normalisation(size, tmp_path):
    exported(8, size, tmp_path / "norm.onnx")
    model = openvino_core().read_model(tmp_path / "norm.onnx")
    assert keep_large_maps_in_layout(model) == 0
    assert "MVN" in {node.get_type_name() for node in model.get_ops()}


def test_the_bundled_network_has_the_pattern():
    """Another exporter may write it otherwise, and then nothing would be rewritten."""
    model = openvino_core().read_model(describe(find_checkpoint("nano")).onnx)
    model.reshape([1, 288, 384, 3])
    assert keep_large_maps_in_layout(model) == 19
