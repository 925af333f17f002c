"""The self-check: an engine that answers like torch is accepted, any other is refused with the numbers."""

import shutil

import numpy as np
import pytest

pytest.importorskip("torch")

from marigold_ros.checkpoints import describe, find_checkpoint
from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.engines.openvino_engine import OpenVinoEngine
from marigold_ros.estimator import load_estimator
from marigold_ros.selfcheck import frames, kept_verdict, reference_of, verdict, write_reference


@pytest.fixture
def made_up(tmp_path):
    """A network file whose frames and answers are made up; returns it and an engine that gives just these answers."""
    network = tmp_path / "network.onnx"
    network.write_bytes(b"onnx")
    rgb = frames(64, 48)
    answers = np.random.default_rng(0).random((len(rgb), 48, 64)).astype(np.float16)
    write_reference(network, rgb, answers)
    table = {frame.tobytes(): answer.astype(np.float32) for frame, answer in zip(rgb, answers, strict=True)}
    return network, lambda frame: table[frame.tobytes()]


def test_the_stored_frames_differ_and_have_the_size():
    rgb = frames(96, 64)
    assert rgb.shape == (3, 64, 96, 3)
    assert rgb.dtype == np.uint8
    assert min(np.abs(rgb[i].astype(int) - rgb[j]).mean() for i, j in ((0, 1), (1, 2), (0, 2))) > 10


def test_the_bundled_network_passes_with_room():
    info = describe(find_checkpoint("nano"))
    found = verdict(OpenVinoEngine(info.onnx), info.onnx)
    assert found.passed
    assert found.mean < found.mean_limit / 2


@pytest.mark.parametrize(
    ("harm", "passes"),
    [
        (lambda answer: answer, True),
        (lambda answer: answer + 0.009, True),
        (lambda answer: answer + 0.011, False),
        (lambda answer: 1 - answer, False),
        (lambda answer: answer * np.nan, False),
        (lambda answer: answer[:-1], False),
        (lambda answer: np.where(np.arange(answer.size).reshape(answer.shape) < 10, answer + 0.2, answer), False),
        (lambda answer: np.where(np.arange(answer.size).reshape(answer.shape) < 1, answer + 0.2, answer), True),
    ],
    ids=["equal", "near", "far", "turned over", "nan", "other size", "a patch", "one pixel"],
)
def test_the_limits(made_up, harm, passes):
    network, engine = made_up
    assert verdict(lambda frame: harm(engine(frame)), network).passed == passes


def test_normals_are_compared_by_their_angle(tmp_path):
    network = tmp_path / "network.onnx"
    rgb = frames(64, 48)
    answers = np.zeros((len(rgb), 48, 64, 3), np.float16)
    answers[..., 2] = -1
    write_reference(network, rgb, answers)
    degrees = np.radians(3)
    turned = np.broadcast_to(np.float32((np.sin(degrees), 0, -np.cos(degrees))), (48, 64, 3))
    found = verdict(lambda frame: turned, network)
    assert found.mean == pytest.approx(3 / 180, rel=1e-2)
    assert found.passed
    assert not verdict(lambda frame: -turned, network).passed


def test_the_verdict_is_kept_until_something_changes(made_up, tmp_path):
    network, engine = made_up
    calls = []

    def counted(frame):
        calls.append(1)
        return engine(frame)

    cache = tmp_path / "cache"
    first = kept_verdict(counted, "one", network, cache)
    assert kept_verdict(counted, "one", network, cache) == first
    assert len(calls) == 3
    kept_verdict(counted, "another library", network, cache)
    assert len(calls) == 6
    network.write_bytes(b"another network")
    kept_verdict(counted, "one", network, cache)
    assert len(calls) == 9
    for record in cache.rglob("*.json"):
        record.write_text("{")
    kept_verdict(counted, "one", network, cache)
    assert len(calls) == 12


def test_a_cache_that_cannot_be_written_costs_a_check_and_no_more(made_up, tmp_path):
    network, engine = made_up
    (tmp_path / "file").write_text("in the way")
    assert kept_verdict(engine, "one", network, tmp_path / "file").passed


@pytest.mark.parametrize("kept", [0, 2, 0.5], ids=["empty", "two bytes", "half"])
def test_a_missing_or_damaged_self_check_is_named(made_up, tmp_path, kept):
    network, engine = made_up
    whole = reference_of(network).read_bytes()
    reference_of(network).write_bytes(whole[: int(len(whole) * kept) if kept < 1 else kept])
    with pytest.raises(Unusable, match=r"network\.check\.npz: cannot be read.*export"):
        verdict(engine, network)
    reference_of(network).unlink()
    with pytest.raises(Unusable, match=r"network\.check\.npz: is missing.*export"):
        kept_verdict(engine, "one", network, tmp_path)


@pytest.fixture
def wrong_engine(monkeypatch):
    """A real engine made to answer wrongly: what a faulty library or driver would do cannot be had here."""
    original = OpenVinoEngine.__call__
    monkeypatch.setattr(OpenVinoEngine, "__call__", lambda self, rgb: 1 - original(self, rgb))


def test_an_engine_that_answers_wrongly_is_refused_with_the_numbers(small_export, tmp_path, wrong_engine):
    folder, cache = small_export
    cache = shutil.copytree(cache, tmp_path / "cache")
    settings = {"checkpoint": str(folder), "cache_dir": str(cache)}
    with pytest.raises(Unusable, match=r"differs from torch by 0\.\d+ on average.*at most 0\.01 and 0\.1 .*'torch'"):
        load_estimator(ModelConfig(engine="openvino", **settings))


def test_where_the_choice_is_free_torch_takes_over(small_export, tmp_path, wrong_engine, caplog):
    folder, cache = small_export
    cache = shutil.copytree(cache, tmp_path / "cache")
    assert load_estimator(ModelConfig(checkpoint=str(folder), cache_dir=str(cache))).engine.startswith("torch")
    assert "until then torch runs it" in caplog.text


def test_the_engines_description_tells_the_verdict(small_export, tmp_path):
    folder, cache = small_export
    cache = shutil.copytree(cache, tmp_path / "cache")
    found = load_estimator(ModelConfig(checkpoint=str(folder), cache_dir=str(cache))).engine
    assert "openvino" in found
    assert "differs from torch by" in found
