"""The estimator: any image in, relative depth at its size out; every engine answers like torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from family_checkpoints import FAMILY, write_family_checkpoint
from marigold_ros import estimator as module
from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.disagreement import disagreement
from marigold_ros.estimator import load_estimator, load_normals_estimator
from marigold_ros.geometry import Camera, resize
from marigold_ros.selfcheck import turned_from_x_left
from small_checkpoint import edit_json, make_metric, write_small_checkpoint

DATA = Path(os.environ.get("MARIGOLD_ROS_DATA", Path(__file__).parents[2] / "shared" / "data"))
REAL_FRAMES = [*sorted(DATA.glob("indoor/color_*.jpg")), *sorted(DATA.glob("kitti/*/image.png"))]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small random checkpoint on disk, and a cache for its export."""
    root = tmp_path_factory.mktemp("estimator")
    return {"checkpoint": str(write_small_checkpoint(root / "small")), "cache_dir": str(root / "cache")}


@pytest.fixture(scope="module")
def photo():
    """A picture with structure: OpenCV-drawn shapes on a gradient, (480, 640, 3) uint8."""
    image = np.linspace(30, 220, 640, dtype=np.uint8)[None, :, None].repeat(480, 0).repeat(3, 2).copy()
    cv2.rectangle(image, (100, 200), (300, 400), (200, 40, 30), -1)
    cv2.circle(image, (450, 150), 80, (30, 180, 90), -1)
    return image


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("method", ["mirror", "mirror_half"])
def test_disagreement_comes_with_the_unchanged_answer(small, photo, engine, method):
    plain = load_estimator(ModelConfig(engine=engine, **small))
    estimate = load_estimator(ModelConfig(engine=engine, confidence=method, **small))
    for image in (photo, photo[:200], photo[:96, :128]):
        expected = plain(image)
        np.testing.assert_array_equal(estimate(image), expected)
        relative, apart = estimate.with_disagreement(image)
        np.testing.assert_array_equal(relative, estimate.coarse(image))
        np.testing.assert_array_equal(resize(relative, *image.shape[1::-1]), expected)
        assert apart.shape == relative.shape
        assert apart.dtype == np.float32
        assert apart.min() >= 0
        if method == "mirror" and image.shape[:2] == (96, 128):  # nothing is resized: seen from outside
            mirrored = plain(image[:, ::-1])[:, ::-1]
            np.testing.assert_allclose(apart, disagreement(expected, mirrored), atol=1e-6)
    plain.close()
    estimate.close()


def test_coarse_is_what_a_call_resizes_and_no_larger_than_the_image(small, photo):
    estimate = load_estimator(ModelConfig(engine="torch", **small))
    coarse = estimate.coarse(photo)
    assert coarse.shape == (estimate.height, estimate.width) != photo.shape[:2]
    np.testing.assert_array_equal(resize(coarse, 640, 480), estimate(photo))
    before = coarse.copy()
    estimate.coarse(255 - photo)
    np.testing.assert_array_equal(coarse, before)  # the engine's next answer is not written over it
    thumbnail = np.ascontiguousarray(photo[::16, ::16])
    np.testing.assert_array_equal(estimate.coarse(thumbnail), estimate(thumbnail))
    assert estimate.coarse(thumbnail).shape == (30, 40)


def test_the_second_pass_at_half_the_size_has_an_engine_of_its_own(small):
    own = load_estimator(ModelConfig(engine="openvino", confidence="mirror_half", **small))
    assert own._second._engine is not own._engine
    assert own._second.working_size(640, 480) == (64, 64)  # the least that networks are exported for


def test_no_confidence_without_the_setting_and_none_for_normals(small, photo):
    with pytest.raises(Unusable, match=r"model\.confidence='none'.*set it to 'mirror'"):
        load_estimator(ModelConfig(engine="torch", **small)).with_disagreement(photo)
    with pytest.raises(Unusable, match="of depth only"):
        load_normals_estimator(ModelConfig(engine="torch", confidence="mirror", **small))
    with pytest.raises(Unusable, match="uint8"):
        load_estimator(ModelConfig(engine="torch", confidence="mirror", **small)).with_disagreement(photo[..., 0])


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_the_answer_has_the_images_size_and_lies_between_0_and_1(small, photo, engine):
    estimate = load_estimator(ModelConfig(engine=engine, **small))
    for image in (photo, photo[:480:2, ::3], photo[:200], np.asfortranarray(photo), photo[..., ::-1]):
        relative = estimate(image)
        assert relative.shape == image.shape[:2]
        assert relative.dtype == np.float32
        assert relative.min() >= 0
        assert relative.max() <= 1
    assert engine in estimate.engine
    estimate.close()


def test_an_answer_is_not_overwritten_by_the_next(small, photo):
    estimate = load_estimator(ModelConfig(engine="openvino", **small))
    image = photo[:96, :128]
    first = estimate(image)
    kept = first.copy()
    estimate(255 - image)
    np.testing.assert_array_equal(first, kept)


def test_the_same_image_gives_the_same_answer(small, photo):
    estimate = load_estimator(ModelConfig(engine="openvino", **small))
    np.testing.assert_array_equal(estimate(photo), estimate(photo))


def test_openvino_is_the_default_and_answers_like_torch(small, photo):
    default, reference = (load_estimator(ModelConfig(engine=engine, **small)) for engine in ("auto", "torch"))
    assert "openvino" in default.engine
    for image in (photo, photo[:180]):
        assert np.abs(default(image) - reference(image)).mean() < 0.01


@pytest.mark.parametrize("size", [(640, 480), (1242, 375), (1920, 1080), (480, 640), (2000, 400)])
def test_the_working_size_keeps_the_shape_and_the_number_of_pixels(small, size):
    estimate = load_estimator(ModelConfig(engine="torch", **small))
    width, height = estimate.working_size(*size)
    assert width % 32 == height % 32 == 0
    assert 0.5 < width * height / (128 * 96) < 2.5
    if size == (640, 480):
        assert (width, height) == (128, 96)


def test_a_size_given_by_the_user_is_kept_for_every_image(small, photo):
    estimate = load_estimator(ModelConfig(engine="torch", width=160, height=64, **small))
    assert estimate.working_size(640, 480) == (160, 64)
    assert estimate(photo).shape == (480, 640)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), "u1")]
)
def test_what_is_not_an_rgb_image_is_refused(small, image):
    with pytest.raises(Unusable, match="uint8"):
        load_estimator(ModelConfig(engine="torch", **small))(image)


def test_an_engine_that_is_not_installed_is_named_with_the_way_out(small, monkeypatch):
    monkeypatch.setitem(module.PACKAGES, "torch", {"torch": "torch", "no_such_module": "diffusers", "nor_this": "y"})
    with pytest.raises(Unusable, match=r"model\.engine='torch': is not .*; pip install diffusers; pip install y"):
        load_estimator(ModelConfig(engine="torch", **small))


def test_an_engine_that_is_there_but_broken_is_named_and_auto_goes_on(small, monkeypatch, caplog):
    """None in the place of a module has importing it raise ImportError."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in [name for name in sys.modules if name.startswith("marigold_ros.engines.openvino")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(module, "_installed", lambda name: name != "tensorrt")
    sentence = r"model\.engine='openvino': OpenVINO cannot be loaded \(.*openvino.*\); run .*doctor"
    with pytest.raises(Unusable, match=sentence):
        load_estimator(ModelConfig(engine="openvino", **small), export=False)
    opened = load_estimator(ModelConfig(**small), export=False)
    assert opened.engine.startswith("torch")
    assert re.search(rf"{sentence}.* \(until then torch runs it", caplog.text)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "marigold_ros.engines.torch_engine")
    with pytest.raises(Unusable, match=r"model\.engine='torch': torch cannot be loaded"):
        load_estimator(ModelConfig(**small), export=False)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(Unusable, match="no such folder"):
        load_estimator(ModelConfig(checkpoint=str(tmp_path / "gone")))


@pytest.fixture(scope="module")
def nano():
    """The bundled checkpoint in both engines."""
    return load_estimator(ModelConfig(engine="openvino")), load_estimator(ModelConfig(engine="torch"))


@pytest.mark.skipif(not REAL_FRAMES, reason=f"no real frames in {DATA} (set MARIGOLD_ROS_DATA)")
@pytest.mark.parametrize("frame", REAL_FRAMES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_nano_on_openvino_stays_within_a_hundredth_of_torch_on_real_frames(nano, frame):
    image = cv2.cvtColor(cv2.imread(str(frame)), cv2.COLOR_BGR2RGB)
    fast, reference = nano
    assert np.abs(fast(image) - reference(image)).mean() < 0.01


@pytest.mark.parametrize("row", [row for row in FAMILY if row.protocol == "e2e"], ids=lambda row: row.name)
def test_every_single_step_checkpoint_goes_through_onnx_and_openvino(row, photo, tmp_path):
    checkpoint = write_family_checkpoint(tmp_path, row, (128, 128))
    settings = {"checkpoint": str(checkpoint), "cache_dir": str(tmp_path / "cache")}
    load = load_normals_estimator if row.task == "normals" else load_estimator
    reference, fast = (load(ModelConfig(engine=engine, **settings)) for engine in ("torch", "openvino"))
    image = photo[:300, :400]
    expected, found = reference(image), fast(image)
    assert expected.shape == found.shape == ((300, 400, 3) if row.task == "normals" else (300, 400))
    # Random weights lose more in bfloat16 than trained ones, and of normals all three channels count.
    assert np.abs(found - expected).mean() < (0.05 if row.task == "normals" else 0.01)
    if row.task == "normals":
        np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1.0, atol=1e-3)
        # It draws about (0.6, 0.6, 0.6) everywhere: x to the left, y up and z to the viewer, of length 1.
        assert row.x_left
        np.testing.assert_allclose(found.mean(axis=(0, 1)), (-0.577, -0.577, -0.577), atol=0.1)
        assert turned_from_x_left(next((tmp_path / "cache").glob("*.onnx")))


def test_a_network_for_something_else_is_refused(tmp_path):
    rows = {row.name: row for row in FAMILY}
    normals = ModelConfig(checkpoint=str(write_family_checkpoint(tmp_path, rows["marigold-e2e-ft-normals"])))
    with pytest.raises(Unusable, match="gives normals, not depth"):
        load_estimator(normals)
    many_steps = ModelConfig(checkpoint=str(write_family_checkpoint(tmp_path, rows["marigold-depth-v1-1"])))
    with pytest.raises(Unusable, match="wants 4 steps"):
        load_estimator(many_steps)


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    """A small metric checkpoint on disk, working size 128x96, canonical focal length 100 pixels."""
    folder = write_small_checkpoint(tmp_path_factory.mktemp("metric") / "small", "log_depth")
    return ModelConfig(checkpoint=str(make_metric(folder, canonical_focal_px=100.0)), engine="torch")


@pytest.mark.parametrize(
    ("size", "focal_px", "working", "factor"),
    [
        ((640, 480), 500.0, (128, 96), 1.0),
        ((640, 480), 400.0, (160, 128), 4.0 * (160 / 640 * 128 / 480) ** 0.5),  # 160 x 120 would be exact
        ((640, 480), 50.0, (192, 128), 0.5 * (192 / 640 * 128 / 480) ** 0.5),  # no more than twice its pixels
        ((1280, 720), 400.0, (224, 128), 4.0 * (224 / 1280 * 128 / 720) ** 0.5),
        ((640, 480), 5000.0, (96, 64), 50.0 * (96 / 640 * 64 / 480) ** 0.5),  # no less than half of them
    ],
)
def test_a_metric_checkpoint_gives_metres_by_the_focal_length(metric, photo, size, focal_px, working, factor):
    estimate, image = load_estimator(metric), cv2.resize(photo, size)
    assert estimate.working_size(*size, focal_px) == working
    depth_m = estimate.depth_m(image, focal_px)
    assert depth_m.shape == image.shape[:2]
    assert depth_m.dtype == np.float32
    np.testing.assert_allclose(depth_m, 0.1 * 800.0 ** estimate(image, focal_px) * factor, rtol=1e-5)
    # The same as a fit, whatever fx and fy are for themselves.
    fit = estimate.fit_of(Camera(*size, 2.0 * focal_px, 0.5 * focal_px, 0.0, 0.0))
    np.testing.assert_allclose(np.exp(fit.scale * estimate(image, focal_px) + fit.shift), depth_m, rtol=1e-5)


def test_a_size_given_by_the_user_stays_and_the_factor_corrects_it(metric, photo):
    fixed = ModelConfig(checkpoint=metric.checkpoint, engine="torch", width=160, height=64)
    estimate = load_estimator(fixed)
    assert estimate.working_size(640, 480, 400.0) == (160, 64)
    factor = 4.0 * (160 / 640 * 64 / 480) ** 0.5
    np.testing.assert_allclose(estimate.depth_m(photo, 400.0), 0.1 * 800.0 ** estimate(photo) * factor, rtol=1e-5)


def test_without_a_focal_length_a_metric_checkpoint_answers_as_any_other(metric, photo):
    estimate = load_estimator(metric)
    assert estimate.working_size(640, 480) == (128, 96)
    small = cv2.resize(photo, (128, 96), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(estimate(photo), cv2.resize(estimate(small), (640, 480)))
    np.testing.assert_array_equal(estimate(photo), estimate(photo, 500.0))  # whose working size is its own
    with pytest.raises(Unusable, match="focal_px=0"):
        estimate.depth_m(photo, 0)


def test_to_a_relative_checkpoint_the_focal_length_means_nothing(small, photo):
    estimate = load_estimator(ModelConfig(engine="torch", confidence="mirror", **small))
    np.testing.assert_array_equal(estimate(photo, 100.0), estimate(photo))
    np.testing.assert_array_equal(estimate.with_disagreement(photo, 50.0)[1], estimate.with_disagreement(photo)[1])
    assert estimate.fit_of(Camera(640, 480, 400.0, 400.0, 0.0, 0.0)) is None
    with pytest.raises(Unusable, match="gives relative depth"):
        estimate.depth_m(photo, 400.0)


def test_a_signal_after_engines_are_gone_is_survived():
    """Each core of OpenVINO leaves a stack for signals behind; see openvino_core.py."""
    program = """
import os, signal
from marigold_ros.checkpoints import describe, find_checkpoint
from marigold_ros.engines.openvino_engine import OpenVinoEngine
onnx = describe(find_checkpoint("nano")).onnx
older, newer = OpenVinoEngine(onnx), OpenVinoEngine(onnx)
del older
del newer
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    ended = subprocess.run([sys.executable, "-X", "faulthandler", "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


def test_the_second_pass_at_half_the_size_follows_the_focal_length(tmp_path, photo):
    folder = write_small_checkpoint(tmp_path / "larger", "log_depth")
    edit_json(make_metric(folder, canonical_focal_px=100.0) / "marigold_ros.json", width=256, height=192)
    estimate = load_estimator(ModelConfig(checkpoint=str(folder), engine="torch", confidence="mirror_half"))
    engine, seen = estimate._second._engine, []
    estimate._second._engine = lambda rgb: seen.append(rgb.shape) or engine(rgb)
    relative, apart = estimate.with_disagreement(photo, 200.0)
    np.testing.assert_array_equal(relative, estimate.coarse(photo, 200.0))
    assert estimate.working_size(640, 480, 200.0) == (320, 256)
    assert seen == [(128, 160, 3)]
    assert apart.shape == relative.shape == (256, 320)


def test_torch_in_float16_must_answer_like_the_reference(monkeypatch, tmp_path):
    """Not real: the GPU that makes float16 of it; the network here is the reference itself, or one that is off."""
    from marigold_ros.engines import torch_engine

    class Half(torch_engine.TorchEngine):
        identity = "torch, float16, Fake GPU"
        off = 0.0

        def __call__(self, rgb):
            return super().__call__(rgb) + self.off

    monkeypatch.setattr(torch_engine, "TorchEngine", Half)
    estimator = load_estimator(ModelConfig(engine="torch", cache_dir=str(tmp_path / "alike")))
    assert "differs from torch by 0.0" in estimator.engine
    estimator.close()
    Half.off = 0.2
    with pytest.raises(Unusable, match=r"Fake GPU: differs from torch by 0\.2.*set model.engine to 'openvino'"):
        load_estimator(ModelConfig(engine="torch", cache_dir=str(tmp_path / "off")))
