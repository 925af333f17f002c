"""Loops in machine code say what numpy says, on a recording's frames and at the ends of what they are given."""

import logging
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from std_msgs.msg import Header

from marigold_ros import (
    anchors,
    compiled,
    doctor,
    edges,
    field,
    messages,
    metric,
    metric_map,
    robust_fit,
    sky,
    uncertainty,
    unknown,
    vote,
)
from marigold_ros.anchors import Scan
from marigold_ros.compiled import LOOPS, Floats, Loop
from marigold_ros.config import Config, RangeConfig
from marigold_ros.geometry import resize
from marigold_ros.metric_sequences import read_sequence
from marigold_ros.pipeline import Pipeline
from marigold_ros.places import shared
from marigold_ros.sweep import Sweep

needs_numba = pytest.mark.skipif(compiled.why_not() is not None, reason="numba is not installed")
CONFIG = Config(range=RangeConfig(max_points=1000))  # fewer than there are
OUTPUTS = ("depth_m", "sigma_m", "confidence", "solid_m")


class Answers:
    """Instead of a network: the truth's inverse depth at half the size, bent, and under another scale and shift."""

    space = "inverse_depth"

    def __init__(self):
        self.left = []

    def source(self, frame):
        inverse = np.nan_to_num(np.float32(-1) / frame.depth_m)
        height, width = inverse.shape
        bent = np.linspace(0.9, 1.1, width, dtype=np.float32) * resize(inverse, width, height)
        self.left.append(resize(0.4 + bent, width // 2, height // 2))
        return self.left[-1], None

    def coarse(self, rgb, focal_px=None):
        return self.left.pop(0)

    def fit_of(self, camera):
        return None


@pytest.fixture(scope="module")
def sequence():
    return read_sequence(shared("recordings/warehouse"), Answers().source, "inverse_depth", 3)


def frames_of(sequence):
    """What the node makes of the frames, and the bytes of their clouds."""
    answers = Answers()
    answers.left = list(sequence.coarse)
    pipeline, cloud = Pipeline(answers), messages.CloudWriter(sequence.camera)
    for rgb, stamp_ns, points in zip(sequence.rgb, sequence.stamps_ns, sequence.scans, strict=True):
        poses = np.stack([sequence.camera_from_lidar, sequence.camera_from_lidar])
        poses[0, :3, 3] -= 0.1  # what the LiDAR moved by while it measured
        moved = Sweep(np.array([0.0, 0.1]), poses, 0.001) if stamp_ns == sequence.stamps_ns[-1] else None
        offset_s = None if moved is None else np.linspace(0.0, 0.1, len(points), dtype=np.float32)
        scan = Scan(points, sequence.camera_from_lidar, sweep=moved, stamp_ns=stamp_ns, offset_s=offset_s)
        frame = pipeline(
            rgb, sequence.camera, stamp_ns, lambda scan=scan: scan, CONFIG, confidence=True, sigma=True, solid=True
        )
        yield frame, np.array(cloud.organized(frame.solid_m, frame.rgb, Header()).data)


def assert_same(found, expected, where):
    """Up to rounding; a pixel at the very limit of a comparison may go to either side of it."""
    for one, other in zip(parts(found), parts(expected), strict=True):
        assert one.shape == other.shape, where
        assert one.dtype == other.dtype, where
        # OpenCV's remap looks places up to a 32nd of a node only.
        least = 0.03 * np.nanmax(np.abs(other)) if where == "_interpolated" else 2e-5
        close = np.isclose(one, other, rtol=2e-4, atol=least, equal_nan=True)
        assert np.count_nonzero(~close) <= 1e-4 * close.size, where


def parts(answer):
    return [leaf for part in answer for leaf in parts(part)] if isinstance(answer, tuple) else [np.asarray(answer)]


@needs_numba
def test_every_loop_says_what_numpy_says_on_a_recording(sequence, monkeypatch):
    asked = {}

    def listening(self, *arguments):
        before = [part.copy() if isinstance(part, np.ndarray) else part for part in arguments]
        asked.setdefault(self, []).append(before)
        # Where it only calls others they are asked, too.
        return (self.instead if self.instead is self.loop else self.compile())(*arguments)

    monkeypatch.setattr(Loop, "__call__", listening)
    for _ in frames_of(sequence):
        pass
    unknown.forget_far(-sequence.coarse[0], sequence.coarse[0], unknown.Reach(9.0), 120.0)  # where nothing is corrected
    # As if the upper half was the sky, down to the middle of some cells.
    depth_m = np.where(np.arange(480)[:, None] < 247, np.float32(np.nan), sequence.relative(0))
    for left, right in ((0, 320), (320, 640)):
        anchored = np.mgrid[left:right:7, 200:480:7].reshape(2, -1).T.astype(np.float32)
        sky.forget_alike(depth_m.copy(), sequence.rgb[0], anchored)
    monkeypatch.undo()
    assert {loop.loop.__name__ for loop in asked} == {loop.loop.__name__ for loop in LOOPS}
    for loop, calls in asked.items():
        assert loop.compile() is not loop.loop
        assert loop.compile() is not loop.instead
        for call in calls[:: max(1, len(calls) // 20)]:
            answers = []
            for way in (loop.compile(), loop.instead):
                given = [part.copy() if isinstance(part, np.ndarray) else part for part in call]
                # What it answers, or else what it wrote to.
                answers.append((way(*given), *(part for part in given if isinstance(part, np.ndarray))))
            answers = [answer[1:] if answer[0] is None else answer for answer in answers]
            assert_same(*answers, loop.loop.__name__)


def test_without_numba_frames_are_the_same(sequence, monkeypatch):
    usual = list(frames_of(sequence))
    monkeypatch.setattr(Loop, "__call__", lambda self, *arguments: self.instead(*arguments))
    for (frame, cloud), (other, other_cloud) in zip(usual, frames_of(sequence), strict=True):
        assert frame.fit.scale == pytest.approx(other.fit.scale, rel=1e-4)
        for name in OUTPUTS:
            one, two = getattr(frame, name), getattr(other, name)
            close = np.isclose(one, two, rtol=0.02, atol=1e-3, equal_nan=True)
            assert np.count_nonzero(~close) <= 5e-3 * close.size, name
        assert len(cloud) == len(other_cloud)


@needs_numba
@pytest.mark.parametrize("count", [0, 1, 2, 40, 3000])
def test_few_points_and_many(count):
    random = np.random.default_rng(count)
    points = random.normal(0, 10, (count, 3)).astype(np.float32)
    points[::7], points[3::7] = np.nan, 0
    pose, unseen = np.eye(3, 4, dtype=np.float32), np.zeros((480, 640), bool)
    unseen[random.random(unseen.shape) < 0.5] = True
    lens = np.float32([400, 400, 320, 240, 640, 480, 0.5, 30])
    for bounds in (anchors._bounds(), anchors._bounds(2.0, (-5, -5, -5, 5, 5, 5))):
        for hidden in (unseen, unseen[:0, :0]):
            given = points, pose, bounds, lens, hidden
            assert_same(anchors._projected(*given), anchors._projected.instead(*given), "projected")
    pixels = (random.random((count, 2)) * (639, 479)).astype(np.float32)
    log_m = random.normal(2, 0.5, count).astype(np.float32)
    given = pixels, log_m, 640, 480
    assert_same(anchors._visibility(*given), anchors._visibility.instead(*given), "visibility")
    for budget in (1, 17, 5000):
        given = pixels, budget, 640, 480
        np.testing.assert_array_equal(anchors._in_turns(*given), anchors._in_turns.instead(*given))
    places = np.stack([*(pixels.T * np.float32([[0.09], [0.09]])), random.random(count) * 5]).astype(np.float32)
    residual = random.uniform(-1.2, 1.2, count).astype(np.float32)
    given = places[:2].copy(), residual, np.abs(residual) / 2
    assert_same(vote._voted(*given), vote._voted.instead(*given), "voted")
    given = np.abs(residual), residual, places
    for loop in (field._at_nearest, field._at_corners):
        assert_same(loop(*given), loop.instead(*given), "sums")
    grid = random.random((46, 61, 6)).astype(np.float32)
    assert_same(field._read(grid, places), field._read.instead(grid, places), "read")
    for ends in ([0.5, 2.5, 0.5, 2.5], [0.5, 2.5, 1.0, 4.0], [3.0, 4.0, 0.0, 1.0]):
        elsewhere = grid, places, count // 2, np.array(ends)
        assert_same(field._read_elsewhere(*elsewhere), field._read_elsewhere.instead(*elsewhere), "elsewhere")
    given = random.choice(np.float32([3, 5, np.nan]), count), pixels, np.exp(log_m), 480, 640
    assert_same(field._placed(*given), field._placed.instead(*given), "placed")


@needs_numba
@pytest.mark.parametrize("count", [1, 2, 9, 700, 3000])
@pytest.mark.parametrize("space", [0, 1, 2])
def test_few_anchors_and_many_in_all_spaces(count, space):
    random = np.random.default_rng(count)
    relative, pixels = random.random((48, 64)).astype(np.float32), random.uniform(0, 47, (count, 2)).astype(np.float32)
    p, depth_m = metric.sample(relative, pixels), random.uniform(1, 30, count).astype(np.float32)
    some, floats = random.permutation(count)[: -(-count // 2)], random.random((3, count)).astype(np.float32)
    given = relative, pixels, depth_m, *floats, p, some, space
    measured = metric._measured(*given)
    assert_same(measured, metric._measured.instead(*given), "measured")
    given = p, depth_m, 3.0, -1.5, space
    predicted = metric._predicted(*given)
    assert_same(predicted, metric._predicted.instead(*given), "predicted")
    *numbers, groups = measured
    given = numbers[0], numbers[3], numbers[3] / 2, numbers[2], groups
    assert_same(robust_fit._independent(*given), robust_fit._independent.instead(*given), "independent")
    given = *numbers[:4], 3.0, -1.5
    assert_same(robust_fit._relative_error(*given), robust_fit._relative_error.instead(*given), "relative error")
    for additive in (0.0, 1.0):
        for free in (False, True):
            base, uniform = np.array([3.0, -1.5, 0.1, additive]), random.random(208)
            given = *numbers[:2], numbers[3], base, uniform, free
            assert_same(robust_fit._lines(*given), robust_fit._lines.instead(*given), "lines")
    given = p, 3.0, -1.5, 0.1, 0.01, 0.1, space
    assert_same(metric_map._sigma(*given), metric_map._sigma.instead(*given), "sigma")
    given = p, 3.0, -1.5, space
    assert_same(metric_map._sums(*given), metric_map._sums.instead(*given), "sums")
    lens, turned = np.array([60.0, 60, 31.5, 23.5]), np.eye(4)[:3] + random.normal(0, 0.02, (3, 4))
    for pose, shift_px in ((np.empty((0, 4)), np.array([5.0, -3.0])), (turned, np.zeros(2))):
        given = relative, pixels.astype(np.int64), p, 3.0, -1.5, space, pose, shift_px, lens
        assert_same(metric_map._seen_again(*given), metric_map._seen_again.instead(*given), "seen again")
    given = p, 3.1 * p - 1.4, 3.0, -1.5, space
    assert_same(
        metric_map._reduced_major_axis(*given), metric_map._reduced_major_axis.instead(*given), "reduced major axis"
    )


@needs_numba
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (11, 13), (37, 52)])
def test_small_images(shape):
    random = np.random.default_rng(0)
    image = random.choice(np.float32([2.0, 2.1, 4.0, 30.0, np.nan]), shape)
    np.testing.assert_allclose(edges._depth_ratio(image), edges._depth_ratio.instead(image), rtol=1e-5)
    steep = edges._steep(image)
    assert_same(steep, edges._steep.instead(image), "steep")
    assert_same(edges._in_the_air(image, *steep), edges._in_the_air.instead(image, *steep), "in the air")
    pixels = (random.random((50, 2)) * (shape[1], shape[0]) - 0.5).astype(np.float32)
    assert_same(metric._sample(image, pixels), metric._sample.instead(image, pixels), "sample")
    image, floats = np.nan_to_num(image), np.ones((4, 50), np.float32)
    given = image, np.maximum(pixels, 0), *floats, np.ones(50), np.arange(50), 0
    assert_same(metric._measured(*given), metric._measured.instead(*given), "measured")


@needs_numba
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (37, 52)])
@pytest.mark.parametrize(("sigma", "confidence"), [(True, True), (True, False), (False, True)])
def test_small_images_are_rated(shape, sigma, confidence):
    random, width = np.random.default_rng(0), shape[1]
    depth_m = random.choice(np.float32([2.0, 30.0, np.nan]), shape)
    variance = random.random((-(-shape[0] // 3), width)).astype(np.float32)
    doubt = random.random((-(-shape[0] // 2), width)).astype(np.float32)
    taller = random.random((shape[0] + 3, width)).astype(np.float32)  # a network's answer may be
    for given in ((depth_m, variance, doubt, 0.3, sigma, confidence), (depth_m, taller, doubt, 0.3, sigma, confidence)):
        assert_same(uncertainty._rated(*given), uncertainty._rated.instead(*given), "rated")
    for given in ((depth_m, random.random(shape) < 0.5, part, 0.5) for part in (variance, taller)):
        assert_same(uncertainty._solid(*given), uncertainty._solid.instead(*given), "solid")
    distance, beyond = (7 * random.random((2, *shape))).astype(np.float32)
    numbers, p = np.float32([0.001, 0.002, 0.003, -0.001, 0.002]), random.random(shape).astype(np.float32)
    for space in range(3):
        for fresh in (False, True):
            given = distance, beyond, depth_m, p, numbers, space, fresh
            assert_same(uncertainty._variance(*given), uncertainty._variance.instead(*given), "variance")
    p[::2] = 1.0
    for most_sky, inverse, part in ((0.5, False, variance), (0.3, True, variance), (0.5, True, taller)):
        given = part, p, 0.8, 0.1, np.float32([0.2, 0.9, 0.6, most_sky]), inverse
        assert_same(metric._enlarged(*given), metric._enlarged.instead(*given), "enlarged")


@needs_numba
@pytest.mark.parametrize(("most_m", "most_sky_m"), [(20.0, 12.0), (12.0, 20.0)])
def test_what_is_forgotten(most_m, most_sky_m):
    random = np.random.default_rng(0)
    depth_m, relative = random.uniform(1, 30, (20, 30)).astype(np.float32), random.random((20, 30)).astype(np.float32)
    relative[::2] = 1.0
    found, expected = depth_m.copy(), depth_m.copy()
    unknown._forget(found, relative, most_m, most_sky_m)
    unknown._forget.instead(expected, relative, most_m, most_sky_m)
    np.testing.assert_array_equal(found, expected)


# What becomes of a loop.


def twice_by_numpy(values):
    return 2 * values


def twice(values: Floats) -> np.ndarray:
    return values + values


VALUES = np.arange(3, dtype=np.float32)


@needs_numba
def test_a_loop_takes_what_must_not_be_written_to():
    loop, fixed = Loop(twice, twice_by_numpy), VALUES.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(loop(fixed), 2 * VALUES)
    assert loop.compile() is not twice_by_numpy


def test_without_numba_numpy_answers_and_doctor_says_what_mends_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    loop = Loop(twice, twice_by_numpy)
    np.testing.assert_array_equal(loop(VALUES), 2 * VALUES)
    assert loop.compile() is twice_by_numpy
    finding = doctor.numba()
    assert finding.level == doctor.NOTE
    assert "numba is not installed" in finding.text
    assert compiled.description() == "numpy (numba is not installed)"
    assert "install" in finding.mend


@pytest.mark.loops_may_fail
def test_what_numba_cannot_compile_numpy_answers_and_says_so_once(caplog):
    def unknown(values: Floats) -> np.ndarray:
        return values.no_such_thing()

    loop = Loop(unknown, twice_by_numpy)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(loop(VALUES), 2 * VALUES)
    assert [record.args[0] for record in caplog.records] == (["unknown"] if compiled.why_not() is None else [])


@needs_numba
@pytest.mark.loops_may_fail
def test_arrays_that_a_loop_was_not_compiled_for_are_numpys_business(caplog):
    loop = Loop(twice, twice_by_numpy)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(loop(VALUES[::2]), 2 * VALUES[::2])
    assert len(caplog.records) == 1
    with pytest.raises(TypeError):
        loop(object())  # which numpy takes no more than numba


@needs_numba
def test_a_loop_that_cannot_be_kept_on_disk_is_compiled_nevertheless():
    made = {"Floats": Floats, "np": np}
    exec("def nowhere(values: Floats) -> np.ndarray:\n    return values + values\n", made)  # in no file
    loop = Loop(made["nowhere"], lambda values: pytest.fail("numpy was asked"))
    np.testing.assert_array_equal(loop(VALUES), 2 * VALUES)


@needs_numba
def test_what_is_not_on_disk_is_compiled_by_another_process(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    compiled._compile_elsewhere({"marigold_ros.unknown"})
    assert any("_forget" in path.name for path in tmp_path.rglob("*.nbc"))


SOURCE = """
import numpy as np
from marigold_ros.compiled import Floats, compiled
FACTOR = {factor}
def by_numpy(values): return FACTOR * values
@compiled(by_numpy)
def times(values: Floats) -> np.ndarray:
    return np.float32(FACTOR) * values
"""
ASK = "import numpy, sys; from kept import times; x = times(numpy.ones(1, 'f4'))[0]; code = times.compile()"
ASK += "; print(x, code is not times.instead and sum(code.stats.cache_hits.values()))"


@needs_numba
def test_what_is_kept_on_disk_is_used_again_unless_it_is_damaged_or_a_constant_has_changed(tmp_path):
    module, environment = tmp_path / "kept.py", os.environ | {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
    module.write_text(SOURCE.format(factor=2))
    written = module.stat()

    def answer():
        run = [sys.executable, "-c", ASK]
        done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    assert answer() == ["2.0", "0"]
    assert answer() == ["2.0", "1"]
    # As if the constant came from another module: to numba, the file is what it was.
    module.write_text(SOURCE.format(factor=3))
    os.utime(module, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert answer() == ["3.0", "0"]
    for index in (tmp_path / "__pycache__").glob("*.nbi"):
        index.write_bytes(b"")
    assert answer() in (["3.0", "0"], ["3.0", "1"])  # in machine code


@needs_numba
def test_what_a_helper_of_another_module_calls_is_in_the_name_of_the_code():
    def made_of(function: str) -> list:
        space = {"__name__": "marigold_ros.elsewhere", "np": np}
        exec(f"def helper(x):\n return np.{function}(x)\ndef loop(x):\n return helper(x)", space)
        return compiled._with_helpers(space["loop"], {})[1]

    assert made_of("floor") == made_of("floor")
    assert made_of("floor") != made_of("ceil")


@needs_numba
def test_numpy_answers_while_loops_are_being_compiled(monkeypatch):
    """A node that starts for the first time does not wait for the compiler."""
    begun, goes_on, answered = threading.Event(), threading.Event(), []

    def slow_code(values):
        return values + values

    def slow(loop):
        begun.set()
        assert goes_on.wait(10)
        return slow_code

    def instead(values):
        answered.append(len(values))
        return 2 * values

    loop = Loop(twice, instead)
    monkeypatch.setattr(compiled, "LOOPS", [loop])
    monkeypatch.setattr(compiled, "_compiled", slow)
    monkeypatch.setattr(compiled, "_compile_elsewhere", lambda modules: pytest.fail("nothing is on disk"))
    slow_code.stats = SimpleNamespace(cache_misses={})
    thread = compiled.prepare()
    assert begun.wait(10)
    np.testing.assert_array_equal(loop(VALUES), 2 * VALUES)
    assert answered == [3]
    assert compiled.prepare() is thread
    goes_on.set()
    thread.join(10)
    np.testing.assert_array_equal(loop(VALUES), 2 * VALUES)
    assert answered == [3]
