"""Export: the ONNX file is what it says, is made once, and never half."""

import onnx
import pytest

from marigold_ros import export, onnx_export
from marigold_ros.checkpoints import describe
from marigold_ros.config import Unusable
from small_checkpoint import write_small_checkpoint


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    return describe(write_small_checkpoint(tmp_path_factory.mktemp("export") / "small"))


@pytest.fixture(scope="module")
def cached(info, tmp_path_factory):
    """A cache that holds the exported file."""
    cache = tmp_path_factory.mktemp("cache")
    export.onnx_file(info, cache)
    return cache


def test_the_file_is_opset_18_for_every_size_with_half_precision_weights(info, cached):
    model = onnx.load(export.onnx_file(info, cached))
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert model.ir_version == 10
    rows, columns = model.graph.input[0].type.tensor_type.shape.dim[1:3]
    assert rows.dim_param
    assert columns.dim_param
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2]
    assert {tensor.data_type for tensor in weights if tensor.data_type != onnx.TensorProto.INT64} == {
        onnx.TensorProto.FLOAT16
    }


def test_a_cached_file_is_used_again(info, cached, monkeypatch):
    monkeypatch.setattr(export, "export_onnx", lambda *_: pytest.fail("exported twice"))
    assert export.onnx_file(info, cached).parent == cached


def test_a_file_cut_in_half_is_exported_again(info, cached, caplog):
    path = export.onnx_file(info, cached)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert len(export.onnx_file(info, cached).read_bytes()) == pytest.approx(len(whole), rel=0.01)
    assert "damaged" in caplog.text


def test_a_failed_export_leaves_nothing_behind(info, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(onnx_export, "load_network", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        export.onnx_file(info, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(info, tmp_path):
    # A file where the folder should be: it cannot be written even by root, whom permissions do not stop.
    blocked = tmp_path / "cache"
    blocked.write_text("")
    with pytest.raises(Unusable, match=r"model\.cache_dir") as refusal:
        export.onnx_file(info, blocked)
    assert str(blocked) in str(refusal.value)


def test_the_program_reports_a_missing_checkpoint_as_one_sentence(capsys, tmp_path):
    assert export.main(["--checkpoint", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


def test_the_program_exports_and_checks(info, cached, capsys):
    """Found in the cache, so that only the check is left to do."""
    assert export.main(["--checkpoint", str(info.folder), "--cache-dir", str(cached)]) == 0
    printed = capsys.readouterr().out
    assert str(cached) in printed
    assert "accepted" in printed
    assert list((cached / "self_check").glob("*.json"))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(info, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_export, "load_network", full)
    with pytest.raises(Unusable, match=r"cannot be written \(No space left"):
        export.onnx_file(info, tmp_path)
    assert list(tmp_path.iterdir()) == []
