"""INT8: the quantised files are what TensorRT takes, answer nearly alike, and are chosen by setting and option."""

import json
import shutil
import sys

import cv2
import numpy as np
import onnx
import pytest

from marigold_ros import export, selfcheck
from marigold_ros.checkpoints import describe
from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.estimator import load_estimator
from marigold_ros.export import images_in, parts_of
from marigold_ros.onnx_rules import require_rules
from marigold_ros.parts import INT8_OPSET, PARTS, all_parts
from marigold_ros.places import shared
from marigold_ros.quantise import answers, quantise, too_fine
from nvidia import stand_ins
from tensorrt_signatures import NEWEST, OLDEST
from trainer import int8
from trainer.frames import Frame


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images like a robot's."""
    folder = tmp_path_factory.mktemp("images")
    for path in shared("checkpoints/self_check/room.jpg").parent.glob("*.jpg"):
        image = cv2.imread(str(path))
        cv2.imwrite(str(folder / path.name), image[:, ::-1])
    return folder


@pytest.fixture(scope="module")
def quantised(small_parts, images, tmp_path_factory):
    """Folder, cache and parts of a small checkpoint whose U-Net computes in INT8."""
    folder, _ = small_parts
    cache = tmp_path_factory.mktemp("int8")
    return folder, cache, parts_of(describe(folder), 128, 96, cache, "step", images_in(images))


def test_only_the_named_part_is_quantised_and_keeps_to_the_rules(quantised, small_parts):
    parts, (plain,) = quantised[2], all_parts(small_parts[1])
    assert [parts.facts(part)["precision"] for part in PARTS] == ["float16", "int8", "float16"]
    require_rules(parts.onnx("step"), INT8_OPSET)
    operators = [node.op_type for node in onnx.load(parts.onnx("step"), load_external_data=False).graph.node]
    assert operators.count("QuantizeLinear") > 10
    assert parts.facts("step")["bytes"] < 0.75 * plain.facts("step")["bytes"]
    for part in ("encode", "decode"):
        nodes = onnx.load(parts.onnx(part), load_external_data=False).graph.node
        assert "QuantizeLinear" not in {node.op_type for node in nodes}
    parts.require_whole()


def test_zero_points_that_are_not_zero_are_refused(quantised, tmp_path):
    shutil.copytree(quantised[2].folder, tmp_path / "parts")
    path = tmp_path / "parts" / "step.onnx"
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[2])
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(5, np.int8), tensor.name))
    onnx.save(model, path, save_as_external_data=True, location="step.onnx.data")
    with pytest.raises(Unusable, match="zero point other than 0"):
        require_rules(path, INT8_OPSET)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_setting_chooses_it_and_weak_types_allow_it(quantised, tmp_path, version, monkeypatch):
    """Not real: TensorRT and the GPU (fake_nvidia). Random weights differ by more than trained ones are allowed to."""
    monkeypatch.setattr(selfcheck, "_DEPTH_LIMITS", (0.05, 0.5))
    folder, cache, _ = quantised
    cache = shutil.copytree(cache, tmp_path / "cache")
    (parts,) = all_parts(cache)
    with stand_ins(version) as nvidia:
        if version == OLDEST:
            nvidia.trt.trouble.strong_build = "no"
        settings = nvidia.build.BuildSettings()
        nvidia.ready.build_and_open(parts, cache, settings, lambda part: lambda share, what: None)[0].close()
        (plan,) = (cache / "tensorrt").glob("*-step-int8-*.plan")
        assert json.loads(plan.read_bytes())["flags"] == (["FP16", "INT8"] if version == OLDEST else [])
        model = {"checkpoint": str(folder), "engine": "tensorrt", "cache_dir": str(cache)}
        load_estimator(ModelConfig(**model, int8="step"), export=False).close()
        with pytest.raises(Unusable, match=r"no TensorRT engine.*--engine tensorrt --size 128x96$"):
            load_estimator(ModelConfig(**model), export=False)
        with pytest.raises(Unusable, match=r"--int8 all --calibration FOLDER$"):
            load_estimator(ModelConfig(**model, int8="all"), export=False)


def test_other_engines_are_refused_by_name_and_serve_meanwhile_by_auto(small_export, tmp_path):
    folder, cache = small_export[0], shutil.copytree(small_export[1], tmp_path / "cache")
    model = {"checkpoint": str(folder), "cache_dir": str(cache), "int8": "step"}
    with pytest.raises(Unusable, match=r"model\.int8='step': is for TensorRT only"):
        load_estimator(ModelConfig(**model, engine="openvino"), export=False)
    load_estimator(ModelConfig(**model), export=False).close()


def test_bad_calibration(small_parts, images, tmp_path, monkeypatch):
    with pytest.raises(Unusable, match=r"holds no \.jpg or \.png"):
        images_in(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"no image")
    folder, _ = small_parts
    with pytest.raises(Unusable, match=r"a\.jpg: cannot be read"):
        parts_of(describe(folder), 64, 64, tmp_path / "cache", "step", images_in(tmp_path))
    assert all_parts(tmp_path / "cache") == []
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Unusable, match="pip install onnxruntime"):
        parts_of(describe(folder), 64, 64, tmp_path / "cache", "step", images_in(images))


def test_openvino_is_not_offered_int8(small_parts, capsys):
    assert export.main(["--checkpoint", str(small_parts[0]), "--int8", "step"]) == 1
    assert "--int8 step: means nothing to --engine openvino" in capsys.readouterr().err


def test_the_study_reports_accuracy_and_time(quantised, small_parts, monkeypatch):
    """On exports that are there already, two of them the same: exporting three times would take a minute."""
    folder, _, parts = quantised
    (plain,) = all_parts(small_parts[1])
    exported = {"none": plain, "step": parts, "all": parts}
    monkeypatch.setattr(int8, "export_parts", lambda info, width, height, where, name, images: exported[name])
    monkeypatch.setattr(int8, "ROUNDS", 2)
    rgb = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    frames = [Frame(name, rgb, np.full((96, 128), depth, np.float32)) for name, depth in (("a 1", 2.0), ("b 1", 3.0))]
    table = int8.study(str(folder), frames, [])
    rows = [line.split(" | ") for line in table.splitlines()]
    assert rows[0] == ["| model.int8", "a, AbsRel", "b, AbsRel", "differs from float16 by |"]
    assert rows[2][0] == "| none"
    assert rows[2][-1] == "0.0000 |"
    assert rows[3][1:] == rows[4][1:]
    assert float(rows[3][-1].split()[0]) > 0
    assert [row[0] for row in rows[-3:]] == ["| encode", "| step", "| decode"]


@pytest.mark.parametrize(
    ("kind", "options", "axis"), [("Conv", {}, 0), ("MatMul", {}, 1), ("Gemm", {}, 1), ("Gemm", {"transB": 1}, 0)]
)
def test_layers_with_channels_too_fine_for_float16_scales_stay_as_they_are(tmp_path, kind, options, axis):
    """The quantiser would make zeros of such a channel."""
    half = onnx.TensorProto.FLOAT16
    shape, sides = (1, 64) if kind != "Conv" else (1, 64, 4, 4), (64, 64) if kind != "Conv" else (64, 64, 1, 1)
    coarse = np.full(sides, 0.5, np.float16)
    fine = coarse.copy()
    np.moveaxis(fine, axis, 0)[1] = 0.005
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(kind, ["x", "coarse_weights"], ["y"], name="coarse", **options),
            onnx.helper.make_node(kind, ["y", "fine_weights"], ["z"], name="fine", **options),
        ],
        "two layers",
        [onnx.helper.make_tensor_value_info("x", half, shape)],
        [onnx.helper.make_tensor_value_info("z", half, shape)],
        [
            onnx.numpy_helper.from_array(coarse, "coarse_weights"),
            onnx.numpy_helper.from_array(fine, "fine_weights"),
        ],
    )
    assert too_fine(graph) == ["fine"]
    path = tmp_path / "two.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)
    data = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float16)
    (before,) = answers(path, [data])
    quantise(path, [data])
    (after,) = answers(path, [data])
    assert np.abs(after / before - 1).max() < 0.02
    quantised_model = onnx.load(path)
    assert {tensor.name for tensor in quantised_model.graph.initializer} >= {"fine_weights", "coarse_weights_quantized"}
