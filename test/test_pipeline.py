"""The way of a frame without ROS, before a scene whose relative depth is known."""

import gc
import threading
import time
import weakref
from contextlib import nullcontext
from dataclasses import replace

import cv2
import numpy as np
import pytest
from test_picture_motion import CAMERA as LARGE
from test_picture_motion import seen

from marigold_ros import pipeline as pipeline_module
from marigold_ros.anchors import anchors_of
from marigold_ros.canonical import MetricScale
from marigold_ros.config import Config, FitConfig, ModelConfig, OutputConfig, Range2Config, RangeConfig, Unusable
from marigold_ros.disagreement import TYPICAL
from marigold_ros.geometry import Camera, Rectifier, backproject, pixel_rays
from marigold_ros.pipeline import Pipeline, Scan
from marigold_ros.seen_motion import SeenMotion
from marigold_ros.sweep import Sweep
from marigold_ros.tracker import HOLD, MetricTracker

CAMERA = Camera(64, 48, 50.0, 50.0, 31.5, 23.5)
DEPTH_M = np.broadcast_to(np.linspace(2.0, 10.0, 64, dtype=np.float32), (48, 64))
RGB = np.zeros((48, 64, 3), np.uint8)
CONFIG = Config(fit=FitConfig(hold_s=1.0, speed_m_s=0.0))
SECOND = 1_000_000_000


class Scene:
    """Answers with DEPTH_M under an unknown scale and shift; remembers what it saw."""

    space = "depth"

    def __init__(self):
        self.seen = []

    def coarse(self, rgb, focal_px=None):
        self.seen.append(rgb)
        return (DEPTH_M - 2.0) / 8.0

    def with_disagreement(self, rgb, focal_px=None):
        """Typical at the left, twice that at the right."""
        apart = np.linspace(1, 2, 64, dtype=np.float32)[None].repeat(48, 0) * np.float32(TYPICAL["mirror"])
        return self.coarse(rgb), apart

    def fit_of(self, camera):
        return None


def scan() -> Scan:
    points = backproject(DEPTH_M, pixel_rays(CAMERA))[::4, ::4].reshape(-1, 3)
    camera_from_lidar = np.eye(4)
    camera_from_lidar[:3, 3] = 0.3, -0.1, 0.2
    return Scan(points - camera_from_lidar[:3, 3].astype(np.float32), camera_from_lidar)


def no_scan() -> Scan:
    raise Unusable("no scan today")


def test_relative_depth_becomes_metres():
    frame = Pipeline(Scene())(RGB, CAMERA, 0, scan, CONFIG)
    np.testing.assert_allclose(frame.depth_m, DEPTH_M, rtol=1e-4)
    assert frame.problem is None
    assert (frame.fit_age_s, frame.fit.inliers) == (0.0, len(frame.anchors))


class Bent(Scene):
    """Answers what no scale and shift can mend: wrong by up to 15 % from top to bottom."""

    def coarse(self, rgb, focal_px=None):
        return ((DEPTH_M * np.linspace(0.85, 1.15, 48, dtype=np.float32)[:, None]) - 1.0) / 12.0


def error(frame) -> float:
    return float(np.abs(frame.depth_m / DEPTH_M - 1).mean())


def test_depth_is_brought_to_the_anchors_and_stays_there_for_a_while():
    pipeline = Pipeline(Bent())
    with_field = pipeline(RGB, CAMERA, 0, scan, CONFIG)
    held = [pipeline(RGB, CAMERA, tenths * SECOND // 10, no_scan, CONFIG) for tenths in (1, 7, 10)]
    plain = Config(fit=FitConfig(correction_limit=1.0))
    without = Pipeline(Bent())(RGB, CAMERA, 0, scan, plain)
    assert with_field.fit == without.fit
    assert all(frame.state == "HOLD" for frame in held)
    assert error(with_field) < 0.3 * error(without)
    assert error(held[0]) < 0.1 * error(without)
    assert error(held[0]) < error(held[1]) < error(held[2]) < 0.7 * error(without)


def test_every_stage_is_timed():
    frame = Pipeline(Scene())(RGB, CAMERA, 0, scan, CONFIG)
    assert set(frame.stage_s) == {"rectify", "network", "beside", "anchors", "fit", "correct"}
    assert all(seconds >= 0 for seconds in frame.stage_s.values())


def test_the_image_is_seen_beside_the_network_and_only_for_metres(monkeypatch):
    done, see = threading.Event(), SeenMotion.see
    monkeypatch.setattr(SeenMotion, "see", lambda *given: see(*given) or done.set())

    class Waiting(Scene):
        def coarse(self, rgb, focal_px=None):
            assert done.wait(10.0)
            return super().coarse(rgb)

    assert Pipeline(Waiting())(RGB, CAMERA, 0, scan, CONFIG).depth_m is not None
    done.clear()
    Pipeline(Scene())(RGB, CAMERA, 0, scan, CONFIG, metric=False)
    assert not done.is_set()


def test_a_scan_that_is_there_already_is_projected_beside_the_network_and_one_that_comes_later_after_it(monkeypatch):
    early, later = scan(), scan()
    threads = []
    monkeypatch.setattr(
        pipeline_module, "anchors_of", lambda *given: threads.append(threading.current_thread()) or anchors_of(*given)
    )

    def where(peek_scan, find_scan) -> list[str]:
        threads.clear()
        frame = Pipeline(Scene())(RGB, CAMERA, 0, find_scan, CONFIG, peek_scan=peek_scan)
        np.testing.assert_allclose(frame.depth_m, DEPTH_M, rtol=1e-4)
        return ["network" if thread is threading.main_thread() else "beside" for thread in threads]

    assert where(None, lambda: early) == ["network"]
    assert where(no_scan, lambda: early) == ["network"]
    assert where(list, lambda: early) == ["network"]
    assert where(lambda: 1 / 0, lambda: early) == ["network"]
    assert where(lambda: early, lambda: replace(early)) == ["beside"]
    assert where(lambda: early, lambda: later) == ["beside", "network"]
    assert where(lambda: early, lambda: [early]) == ["beside"]
    turned = replace(early, camera_from_lidar=early.camera_from_lidar @ np.diag([1, 1, 1.01, 1]))
    assert where(lambda: turned, lambda: early) == ["beside", "network"]


def test_scans_are_the_same_only_if_they_moved_the_same_way():
    def swept(until_s: float) -> Scan:
        poses = np.stack([np.eye(4), np.eye(4)])
        return replace(still, sweep=Sweep(np.array([0.0, until_s]), poses, 0.03))

    still = scan()
    assert still.equals(replace(still))
    assert swept(0.1).equals(swept(0.1))
    assert not swept(0.1).equals(swept(0.2))
    assert not still.equals(swept(0.1))
    assert not swept(0.1).equals(still)


def test_who_drops_it_drops_its_thread_too():
    # The first one may have loops compiled; what that leaves behind may hold who asked, until it is collected.
    for pipeline in (Pipeline(Scene()), Pipeline(Scene())):
        for tenths in range(3):
            pipeline(RGB, CAMERA, tenths * SECOND // 10, scan, CONFIG, sigma=True)
    gc.collect()
    threads = threading.active_count()
    gone = weakref.ref(pipeline)
    deadline = time.monotonic() + 10
    gc.disable()
    try:
        del pipeline
        while gone() is not None and time.monotonic() < deadline:
            time.sleep(0.01)  # its thread lets go of the last work a moment after that is done
        assert gone() is None
    finally:
        gc.enable()
    while threading.active_count() == threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads - 1


def test_a_network_that_fails_leaves_nobody_looking(monkeypatch):
    """It fails at once, while the image is still looked at; what follows finds that done."""
    see, ended = SeenMotion.see, []
    monkeypatch.setattr(SeenMotion, "see", lambda *given: (time.sleep(0.2), see(*given), ended.append(True)))

    class Broken(Scene):
        def coarse(self, rgb, focal_px=None):
            raise RuntimeError("the device is lost")

    with pytest.raises(RuntimeError, match="device is lost"):
        Pipeline(Broken())(RGB, CAMERA, 0, scan, CONFIG)
    assert ended == [True]


def test_a_network_of_fewer_pixels_than_the_image_does_as_well():
    """What is wrong with it is mended at its own size."""

    class Small(Bent):
        def coarse(self, rgb, focal_px=None):
            return cv2.resize(super().coarse(rgb), (32, 24), interpolation=cv2.INTER_AREA)

    frame = Pipeline(Small())(RGB, CAMERA, 0, scan, CONFIG, sigma=True, solid=True)
    assert {a.shape for a in (frame.relative, frame.depth_m, frame.sigma_m, frame.solid_m)} == {(48, 64)}
    plain = Config(fit=FitConfig(correction_limit=1.0))
    assert error(frame) < 0.1 * error(Pipeline(Small())(RGB, CAMERA, 0, scan, plain))


def test_depth_beside_what_is_beyond_the_limit_is_corrected_as_much_as_the_rest():
    """The network is bent, and has few pixels: of one beyond the limit those beside it in the image have a part."""

    class Small(Bent):
        def coarse(self, rgb, focal_px=None):
            return cv2.resize(super().coarse(rgb), (16, 12), interpolation=cv2.INTER_AREA)

    found, whole = (
        Pipeline(Small())(RGB, CAMERA, 0, scan, replace(CONFIG, fit=FitConfig(max_depth_m=most_m))).depth_m
        for most_m in (6.0, 100.0)
    )
    known = np.isfinite(found)
    assert 0.3 < known.mean() < 0.7
    # Anchors beyond the limit say nothing of the first: up to 2 % for that. Uncorrected neighbours made it 5 %.
    np.testing.assert_allclose(found[known], whole[known], rtol=0.03)


def test_the_scan_is_looked_for_after_the_network():
    scene = Scene()

    def late_scan():
        assert scene.seen
        return scan()

    assert Pipeline(scene)(RGB, CAMERA, 0, late_scan, CONFIG).depth_m is not None


def test_without_metric_nobody_asks_for_scans():
    frame = Pipeline(Scene())(RGB, CAMERA, 0, no_scan, CONFIG, metric=False)
    assert frame.depth_m is None
    assert frame.problem is None


def test_the_last_fit_is_held_and_then_given_up():
    pipeline = Pipeline(Scene())
    pipeline(RGB, CAMERA, 0, scan, CONFIG)
    held = pipeline(RGB, CAMERA, SECOND, no_scan, CONFIG)
    np.testing.assert_allclose(held.depth_m, DEPTH_M, rtol=1e-4)
    assert (held.problem, held.fit_age_s) == ("no scan today", 1.0)
    over = pipeline(RGB, CAMERA, SECOND + 1, no_scan, CONFIG)
    assert over.depth_m is None
    assert over.fit is None
    assert over.relative is not None


def test_a_stamp_that_comes_twice_is_no_reason_to_fail_even_without_a_hold():
    config = Config(fit=FitConfig(hold_s=0.0))
    pipeline = Pipeline(Scene())
    pipeline(RGB, CAMERA, SECOND, scan, config)
    assert pipeline(RGB, CAMERA, SECOND, no_scan, config).state == "HOLD"
    assert pipeline(RGB, CAMERA, SECOND + 1, no_scan, config).state == "RELATIVE"


def test_a_refusal_is_passed_on():
    behind = replace(scan(), points=-scan().points)
    frame = Pipeline(Scene())(RGB, CAMERA, 0, lambda: behind, CONFIG)
    assert (frame.depth_m, frame.state) == (None, "RELATIVE")
    assert "no anchor lies in the image" in frame.problem


def test_a_fit_is_not_carried_back_in_time():
    pipeline = Pipeline(Scene())
    pipeline(RGB, CAMERA, 10 * SECOND, scan, CONFIG)
    assert pipeline(RGB, CAMERA, 10 * SECOND - 1, no_scan, CONFIG).depth_m is None


class Places(Scene):
    """Outdoors, up to 82 m and bent; then a room, 2 to 6 m, with a window at the far end of relative depth, and scans
    that leave out the left.
    """

    def __init__(self, outdoors=True):
        super().__init__()
        self.outdoors = outdoors

    @property
    def depth_m(self):
        return 2.0 + 10.0 * (DEPTH_M - 2.0) if self.outdoors else 2.0 + (DEPTH_M - 2.0) / 2.0

    def coarse(self, rgb, focal_px=None):
        if self.outdoors:
            return self.depth_m * np.linspace(0.85, 1.15, 48, dtype=np.float32)[:, None] / 100.0
        relative = (self.depth_m - 2.0) / 8.0
        relative[:10] = 1.0
        return relative

    def scan(self, camera=CAMERA, factor=1.0):
        seen_m = backproject(self.depth_m, pixel_rays(camera))[10::4, 0 if self.outdoors else 16 :: 4]
        return Scan(seen_m.reshape(-1, 3) * np.float32(factor), np.eye(4))


@pytest.mark.parametrize("factor", [1.0, 1.6])
@pytest.mark.parametrize(
    ("seconds", "camera"),
    [(-5.0, CAMERA), (0.7, CAMERA), (60.0, CAMERA), (1.6, replace(CAMERA, fx=80.0, fy=80.0))],
    ids=["back", "a little back", "ahead", "camera"],
)
def test_the_first_scan_after_a_jump_in_time_or_to_another_camera_is_that_of_a_fresh_node(seconds, camera, factor):
    places, fresh = Places(), Places(outdoors=False)
    jumped, started = Pipeline(places), Pipeline(fresh)
    asked = {"sigma": True, "find_motion": lambda then_ns: np.eye(4)}
    for tenths in range(16):
        before = jumped(RGB, CAMERA, tenths * SECOND // 10, places.scan, CONFIG, **asked)
    assert before.state == "OK"
    places.outdoors = False
    for tenths in range(2):
        now_ns = round((seconds + tenths / 10) * SECOND)
        after, expected = (
            pipeline(RGB, camera, now_ns, lambda: fresh.scan(camera, factor), CONFIG, **asked)
            for pipeline in (jumped, started)
        )
        assert (after.state, after.problem, after.fit) == (expected.state, None, expected.fit)
        assert after.state == "DEGRADED"
        np.testing.assert_array_equal(after.depth_m, expected.depth_m)
        np.testing.assert_array_equal(after.sigma_m, expected.sigma_m)
        assert np.isnan(after.depth_m[:10]).all()


def contradicted(pipeline, at_s, config=CONFIG):
    """The state after a scan that is 1.6 times too far."""
    points = backproject(DEPTH_M, pixel_rays(CAMERA))[::4, ::4].reshape(-1, 3) * np.float32(1.6)
    return pipeline(RGB, CAMERA, round(at_s * SECOND), lambda: Scan(points, np.eye(4)), config).state


@pytest.mark.parametrize(
    ("hold_s", "pause_s", "state"),
    [(1.0, 1.0, "HOLD"), (1.0, 5.1, "DEGRADED"), (9.0, 8.9, "HOLD"), (9.0, 9.1, "DEGRADED"), (0.0, 0.5, "RELATIVE")],
)
def test_images_go_on_from_each_other_for_as_long_as_metres_are_held_and_five_seconds_at_least(hold_s, pause_s, state):
    """A `hold_s` below the time between two images must not make every one of them the first."""
    config, pipeline = Config(fit=FitConfig(hold_s=hold_s, speed_m_s=0.0)), Pipeline(Scene())
    states = [pipeline(RGB, CAMERA, tenths * SECOND // 10, scan, config).state for tenths in range(6)]
    assert states[2:] == ["OK"] * 4
    assert contradicted(pipeline, 0.5 + pause_s, config) == state


def test_metres_do_not_stay_young_while_images_fail_or_nobody_asks_for_them():
    class Failing(Scene):
        broken = False

        def coarse(self, rgb, focal_px=None):
            if self.broken:
                raise RuntimeError("the device is lost")
            return super().coarse(rgb)

    for asked in (True, False):
        scene = Failing()
        pipeline = Pipeline(scene)
        for tenths in range(6):
            pipeline(RGB, CAMERA, tenths * SECOND // 10, scan, CONFIG)
        scene.broken = asked
        for tenths in range(6, 60, 4):
            with pytest.raises(RuntimeError) if asked else nullcontext():
                pipeline(RGB, CAMERA, tenths * SECOND // 10, scan, CONFIG, metric=asked)
        scene.broken = False
        assert contradicted(pipeline, 6.0) == "DEGRADED"


def test_a_camera_of_an_image_every_two_seconds_has_metres_that_are_sure():
    pipeline = Pipeline(Scene())
    states = [pipeline(RGB, CAMERA, 2 * number * SECOND, scan, CONFIG).state for number in range(5)]
    assert states[2:] == ["OK"] * 3


def test_distorted_images_reach_the_network_rectified():
    scene, distorted = Scene(), replace(CAMERA, distortion=(-0.3, 0.05, 0.0, 0.0, 0.0))
    rgb = np.random.default_rng(0).integers(0, 255, RGB.shape, np.uint8)
    frame = Pipeline(scene)(rgb, distorted, 0, scan, CONFIG)
    assert frame.camera == CAMERA
    assert not np.array_equal(scene.seen[0], rgb)
    assert frame.rgb is scene.seen[0]


def test_the_camera_may_change_in_between():
    pipeline = Pipeline(Scene())
    pipeline(RGB, replace(CAMERA, distortion=(-0.3, 0.05, 0.0, 0.0, 0.0)), 0, scan, CONFIG)
    frame = pipeline(RGB, CAMERA, 1, scan, CONFIG)
    assert frame.rgb is RGB


def test_a_smaller_image_starts_anew():
    class Half(Scene):
        def coarse(self, rgb, focal_px=None):
            return super().coarse(rgb)[: rgb.shape[0], : rgb.shape[1]]

    pipeline = Pipeline(Half())
    for i in range(4):
        before = pipeline(RGB, CAMERA, i * SECOND // 10, scan, CONFIG)
    half = replace(CAMERA, width=32, height=24)
    assert pipeline(RGB[:24, :32], half, SECOND, no_scan, CONFIG).state == "RELATIVE"
    after = pipeline(RGB[:24, :32], half, SECOND, scan, CONFIG)
    assert (before.state, after.state, after.depth_m.shape) == ("OK", "DEGRADED", (24, 32))


def goes_on(cameras, camera=CAMERA) -> list[bool]:
    """After one image of `camera` with anchors, whether its metres go on in those of the others, which have none."""
    pipeline = Pipeline(Scene())
    pipeline(RGB, camera, 0, scan, CONFIG)
    frames = [pipeline(RGB, other, i * SECOND // 100, no_scan, CONFIG) for i, other in enumerate(cameras, start=1)]
    return [frame.state == "HOLD" for frame in frames]


def test_a_slow_zoom_starts_anew_when_its_steps_add_up_and_a_refined_calibration_does_not():
    random = np.random.default_rng(0)
    zoom = [replace(CAMERA, fx=50.0 * 1.006**step, fy=50.0 * 1.006**step) for step in range(1, 4)]
    assert goes_on(zoom) == [True, False, False]
    jitter = [replace(CAMERA, fx=50.0 + px, fy=50.0 - px, cx=31.5 - px) for px in random.uniform(-0.3, 0.3, 20)]
    assert goes_on(jitter) == 20 * [True]
    # From then on the zoomed camera is the one that others are compared with.
    pipeline = Pipeline(Scene())
    for number, camera in enumerate((CAMERA, zoom[1], *zoom[1:])):
        frame = pipeline(RGB, camera, number * SECOND // 100, scan if number < 2 else no_scan, CONFIG)
    assert frame.state == "HOLD"


def test_another_distortion_starts_anew():
    distorted = replace(CAMERA, distortion=(-0.3, 0.05, 0.0, 0.0, 0.0))
    changed = replace(CAMERA, distortion=(-0.2, 0.05, 0.0, 0.0, 0.0))
    refined = replace(CAMERA, distortion=(-0.302, 0.051, 0.0, 0.0, 0.0))
    assert goes_on([refined, changed, refined], distorted) == [True, False, False]


def test_an_answer_that_is_not_finite_fails_and_the_next_one_is_good():
    class Overflowing(Scene):
        def coarse(self, rgb, focal_px=None):
            found = super().coarse(rgb)
            if len(self.seen) == 5:
                found[3, 3] = np.nan
            return found

    pipeline = Pipeline(Overflowing())
    for i in range(4):
        pipeline(RGB, CAMERA, i * SECOND // 10, scan, CONFIG)
    with pytest.raises(ArithmeticError, match="the network's answer is constant or not finite"):
        pipeline(RGB, CAMERA, 4 * SECOND // 10, scan, CONFIG)
    assert pipeline(RGB, CAMERA, 5 * SECOND // 10, scan, CONFIG).state == "OK"


def test_range_problems_are_sentences_not_exceptions():
    frame = Pipeline(Scene())(RGB, CAMERA, 0, no_scan, CONFIG)
    assert frame.problem == "no scan today"


@pytest.mark.parametrize("points", [np.empty((0, 3), np.float32), np.full((50, 3), np.nan, np.float32)])
def test_scans_without_points_give_no_metres(points):
    frame = Pipeline(Scene())(RGB, CAMERA, 0, lambda: Scan(points, np.eye(4)), CONFIG)
    assert frame.depth_m is None
    assert len(frame.anchors) == 0


def test_normals_that_are_not_finite_are_a_failure():
    def broken(rgb):
        return np.full(rgb.shape, np.nan, np.float32)

    with pytest.raises(ArithmeticError, match="network for normals is not finite"):
        Pipeline(Scene(), broken).normals(RGB)
    assert Pipeline(Scene()).normals(RGB) is None


def test_where_the_lens_did_not_see_nothing_is_known():
    pincushion = replace(CAMERA, distortion=(0.4, 0.0, 0.0, 0.0, 0.0))
    frame = Pipeline(Scene())(RGB, pincushion, 0, scan, CONFIG)
    unseen = Rectifier(pincushion).unseen
    assert np.isnan(frame.depth_m[unseen]).all()
    assert np.isfinite(frame.depth_m[~unseen]).all()
    columns, rows = np.rint(frame.anchors.pixels).astype(int).T
    assert not unseen[np.clip(rows, 0, 47), np.clip(columns, 0, 63)].any()


class Street(Scene):
    """Two rows of houses and the sky between them, 80 m away; the left ones reach four pixels into it."""

    def __init__(self, times=1.0):
        super().__init__()
        houses_m = np.abs(np.linspace(-26.0, 26.0, 64, dtype=np.float32))
        self.truth_m = np.broadcast_to(np.where(houses_m < 10.0, np.inf, 34.0 - houses_m) * times, (48, 64))
        self.rgb = np.where(np.isinf(self.truth_m)[:, :, None], (200, 210, 220), (90, 80, 70)).astype(np.uint8)
        self.rgb = np.ascontiguousarray(self.rgb)

    def coarse(self, rgb, focal_px=None):
        seen_m = np.minimum(self.truth_m, 80.0)
        first = int(np.isinf(self.truth_m[0]).argmax())
        seen_m[:, first : first + 4] = seen_m[:, first - 1 : first]
        return ((seen_m - 2.0) / 100.0).astype(np.float32)

    def scan(self):
        points = backproject(self.truth_m.astype(np.float32), pixel_rays(CAMERA)).reshape(-1, 3)
        return Scan(points[np.isfinite(points).all(axis=1)], np.eye(4))


def test_what_looks_like_the_sky_is_unknown_where_there_is_a_sky():
    street = Street()
    sky = np.isinf(street.truth_m)
    frame = Pipeline(street)(street.rgb, CAMERA, 0, street.scan, CONFIG)
    assert np.isnan(frame.depth_m[sky]).all()
    assert np.isfinite(frame.depth_m[~sky]).all()
    # Of less reach, the sensor says nothing of what is behind: it may be a wall.
    street = Street(times=0.5)
    frame = Pipeline(street)(street.rgb, CAMERA, 0, street.scan, CONFIG)
    assert np.isfinite(frame.depth_m[:, np.isfinite(frame.depth_m[0])]).all()
    assert np.isfinite(frame.depth_m[sky]).sum() == 4 * 48


def test_confidence_is_there_for_who_asks_and_nothing_else_changes():
    config = replace(CONFIG, model=ModelConfig(confidence="mirror"))
    plain = Pipeline(Scene())(RGB, CAMERA, 0, scan, config)
    frame = Pipeline(Scene())(RGB, CAMERA, 0, scan, config, confidence=True, sigma=True)
    assert plain.confidence is None
    np.testing.assert_array_equal(frame.depth_m, plain.depth_m)
    np.testing.assert_allclose(frame.confidence, np.clip(1 - 2 * frame.sigma_m / frame.depth_m, 0, 1), atol=1e-6)
    alone = Pipeline(Scene())(RGB, CAMERA, 0, no_scan, config, metric=False, confidence=True)
    np.testing.assert_allclose(alone.confidence[:, [0, -1]], [[1 / 2, 1 / 3]] * 48, rtol=1e-6)
    without_scan = Pipeline(Scene())(RGB, CAMERA, 0, no_scan, config, confidence=True)
    np.testing.assert_array_equal(without_scan.confidence, alone.confidence)


def test_sigma_is_there_for_who_asks_and_grows_while_a_fit_is_held():
    pipeline = Pipeline(Bent())
    plain = pipeline(RGB, CAMERA, 0, scan, CONFIG)
    assert (plain.sigma_m, plain.confidence, plain.solid_m) == (None, None, None)
    assert "sigma" not in plain.stage_s
    frame = pipeline(RGB, CAMERA, 1, scan, CONFIG, sigma=True)
    assert (frame.confidence, frame.solid_m) == (None, None)
    assert "sigma" in frame.stage_s
    assert (frame.sigma_m > 0).all()
    held = pipeline(RGB, CAMERA, SECOND // 2, no_scan, CONFIG, sigma=True)
    assert np.median(held.sigma_m / held.depth_m) > 1.1 * np.median(frame.sigma_m / frame.depth_m)
    nothing = Pipeline(Bent())(RGB, CAMERA, 0, no_scan, CONFIG, sigma=True, solid=True)
    assert (nothing.depth_m, nothing.sigma_m, nothing.solid_m) == (None, None, None)


def test_without_the_correction_sigma_is_that_of_the_fit():
    plain = Config(fit=FitConfig(correction_limit=1.0))
    corrected = Pipeline(Bent())(RGB, CAMERA, 0, scan, CONFIG, sigma=True)
    fitted = Pipeline(Bent())(RGB, CAMERA, 0, scan, plain, sigma=True)
    assert np.median(fitted.sigma_m) > 2 * np.median(corrected.sigma_m)
    within = np.abs(fitted.depth_m - DEPTH_M) <= fitted.sigma_m
    assert 0.45 < within.mean() < 0.9


def test_the_second_pass_of_the_network_counts_in_sigma():
    config = replace(CONFIG, model=ModelConfig(confidence="mirror"))
    alone, both = (Pipeline(Bent())(RGB, CAMERA, 0, scan, c, sigma=True) for c in (CONFIG, config))
    assert (alone.sigma_m != both.sigma_m).any()
    np.testing.assert_array_equal(alone.depth_m, both.depth_m)


def test_the_cloud_is_what_has_the_confidence_that_is_asked_for():
    pipeline = Pipeline(Scene())
    for wanted, known in ((0.2, True), (1.0, False)):
        config = replace(CONFIG, output=OutputConfig(points_min_confidence=wanted))
        frame = pipeline(RGB, CAMERA, 0, scan, config, solid=True)
        assert np.isfinite(frame.solid_m).all() == known
        assert np.isfinite(frame.solid_m).any() == known
        assert np.isfinite(frame.depth_m).all()


def test_the_sky_is_no_wall():
    """The network's far end and nothing measured beyond 6 m: what would be 12 m and farther is unknown."""

    class Sky(Scene):
        def coarse(self, rgb, focal_px=None):
            relative = super().coarse(rgb, focal_px) * 0.25
            relative[:10] = 1.0
            return relative

    def near_scan():
        full = scan()
        return Scan(full.points[full.points[:, 2] < 6.0], full.camera_from_lidar)

    frame = Pipeline(Sky())(RGB, CAMERA, 0, near_scan, CONFIG)
    assert np.isnan(frame.depth_m[:10]).all()
    np.testing.assert_allclose(frame.depth_m[12:], DEPTH_M[12:], rtol=0.02)


class Outdoors(Scene):
    """At the left, before the sky, the LiDAR sees nothing; the network puts that at 37 m, and sees 6 to 30 m else."""

    sky = np.s_[:24, :20]

    def coarse(self, rgb, focal_px=None):
        relative = super().coarse(rgb, focal_px) * 0.5
        relative[self.sky] = 0.62
        return relative


def outdoor_scan(rows=slice(None), factor=1.0, wrong=0.0):
    full = scan()
    shift_m = full.camera_from_lidar[:3, 3]
    grid = (full.points + shift_m.astype(np.float32)).reshape(12, 16, 3).copy()
    grid[:6, :5] = np.nan
    points = grid[rows].reshape(-1, 3)
    random = np.random.default_rng(0)
    off = np.where(random.random(len(points)) < wrong, random.uniform(1.4, 3.0, len(points)), 1.0)
    return Scan((3.0 * factor * off[:, None] * points - shift_m).astype(np.float32), full.camera_from_lidar)


@pytest.mark.parametrize("wrong", [0.0, 0.4])
def test_the_sky_is_no_wall_though_the_network_puts_it_little_behind_the_rest(wrong):
    """Had it been a wall, the LiDAR would have seen that; wrong points that are farther are no evidence."""
    frame = Pipeline(Outdoors())(RGB, CAMERA, 0, lambda: outdoor_scan(wrong=wrong), CONFIG)
    assert np.isnan(frame.depth_m[:22, :18]).all()
    error = np.abs(frame.depth_m / (3.0 * DEPTH_M) - 1)[26:]
    assert np.quantile(error, 0.95) < 0.05


def test_what_the_lidar_does_not_look_at_or_reach_may_be_a_wall():
    for found in (outdoor_scan(rows=slice(7, None)), outdoor_scan(factor=0.6)):
        frame = Pipeline(Outdoors())(RGB, CAMERA, 0, lambda found=found: found, CONFIG)
        assert np.isfinite(frame.depth_m).all()


def test_while_metres_are_held_the_sky_is_no_wall_either():
    pipeline = Pipeline(Outdoors())
    for number in range(4):
        frame = pipeline(RGB, CAMERA, number * SECOND // 10, outdoor_scan if number < 3 else no_scan, CONFIG)
    assert frame.state == HOLD
    assert np.isnan(frame.depth_m[:22, :18]).all()
    # Nor where what was measured is lost, too.
    other = np.random.default_rng(1).integers(0, 255, RGB.shape).astype(np.uint8)
    frame = pipeline(other, CAMERA, 4 * SECOND // 10, no_scan, CONFIG)
    assert np.isnan(frame.depth_m[:22, :18]).all()


def test_where_the_lens_did_not_see_nothing_is_sure():
    pincushion = replace(CAMERA, distortion=(0.4, 0.0, 0.0, 0.0, 0.0))
    config = replace(CONFIG, model=ModelConfig(confidence="mirror"))
    frame = Pipeline(Scene())(RGB, pincushion, 0, scan, config, confidence=True)
    unseen = Rectifier(pincushion).unseen
    assert (frame.confidence[unseen] == 0).all()
    assert (frame.confidence[~unseen] > 0).all()


# A metric checkpoint, whose answer to this scene is exact for one focal length

METRIC = MetricScale(d_min_m=0.1, d_max_m=80.0, canonical_focal_px=100.0)
NO_LIDAR = replace(CONFIG, range=RangeConfig(type="none"))


class MetricScene(Scene):
    """Sees the scene as a metric network would, twice enlarged."""

    space = "log_depth"

    def coarse(self, rgb, focal_px=None):
        self.focal_px = focal_px
        return METRIC.relative(DEPTH_M, 2.0 * CAMERA.focal_px).astype(np.float32)

    def fit_of(self, camera):
        return METRIC.fit(2.0 * camera.focal_px)


def scaled(factor) -> Scan:
    """The scene's scan, every point `factor` times as far from the camera."""
    points = backproject(DEPTH_M, pixel_rays(CAMERA))[::4, ::4].reshape(-1, 3)
    return Scan(points * np.float32(factor), np.eye(4))


def test_a_metric_checkpoint_needs_no_range_sensor():
    scene = MetricScene()
    frame = Pipeline(scene)(RGB, CAMERA, 0, no_scan, NO_LIDAR)
    np.testing.assert_allclose(frame.depth_m, DEPTH_M, rtol=1e-4)
    assert scene.focal_px == pytest.approx(50.0)
    assert (frame.problem, frame.fit_age_s, frame.fit.source) == (None, None, "the checkpoint")
    assert frame.state == "DEGRADED"


def test_another_focal_length_is_another_depth():
    zoomed = replace(CAMERA, fx=200.0, fy=50.0)
    frame = Pipeline(MetricScene())(RGB, zoomed, 0, no_scan, NO_LIDAR)
    np.testing.assert_allclose(frame.depth_m, 2.0 * DEPTH_M, rtol=1e-4)


def test_anchors_refine_a_metric_checkpoint():
    frame = Pipeline(MetricScene())(RGB, CAMERA, 0, lambda: scaled(1.5), CONFIG)
    np.testing.assert_allclose(frame.depth_m, 1.5 * DEPTH_M, rtol=1e-3)
    assert (frame.problem, frame.fit_age_s) == (None, 0.0)
    assert frame.fit.source == f"{len(frame.anchors)} range points"


@pytest.mark.parametrize(
    ("find", "reason"),
    [
        (no_scan, "no scan today"),
        (lambda: scaled(6.0), "ask for 6"),
        (lambda: scaled(99.0), "no anchor"),
    ],
)
def test_without_usable_anchors_the_checkpoints_own_metres_serve(find, reason):
    frame = Pipeline(MetricScene())(RGB, CAMERA, 0, find, CONFIG)
    np.testing.assert_allclose(frame.depth_m, DEPTH_M, rtol=1e-4)
    assert frame.fit.source == "the checkpoint"
    assert frame.fit_age_s is None
    assert reason in frame.problem


def test_a_refined_fit_is_held_before_the_checkpoints_own_serves_again():
    pipeline = Pipeline(MetricScene())
    pipeline(RGB, CAMERA, 0, lambda: scaled(1.5), CONFIG)
    held = pipeline(RGB, CAMERA, SECOND, no_scan, CONFIG)
    np.testing.assert_allclose(held.depth_m, 1.5 * DEPTH_M, rtol=1e-3)
    assert held.fit_age_s == 1.0
    over = pipeline(RGB, CAMERA, SECOND + 1, no_scan, CONFIG)
    np.testing.assert_allclose(over.depth_m, DEPTH_M, rtol=1e-4)
    assert over.problem == "no scan today"


def test_a_refined_fit_is_not_held_for_another_focal_length():
    pipeline = Pipeline(MetricScene())
    pipeline(RGB, CAMERA, 0, lambda: scaled(1.5), CONFIG)
    frame = pipeline(RGB, replace(CAMERA, fx=100.0, fy=100.0), 1, no_scan, CONFIG)
    np.testing.assert_allclose(frame.depth_m, 2.0 * DEPTH_M, rtol=1e-4)


def test_the_end_of_a_metric_range_is_unknown_not_a_wall():
    class Sky(MetricScene):
        def coarse(self, rgb, focal_px=None):
            relative = super().coarse(rgb, focal_px)
            relative[:20] = np.nextafter(np.float32(1.0), np.float32(0.0))
            relative[0] = 0.999
            return relative

    frame = Pipeline(Sky())(RGB, CAMERA, 0, no_scan, NO_LIDAR)
    assert np.isnan(frame.depth_m[1:20]).all()
    np.testing.assert_allclose(frame.depth_m[0], 80.0 * 800.0**-0.001, rtol=1e-4)
    np.testing.assert_allclose(frame.depth_m[20:], DEPTH_M[20:], rtol=1e-4)


def test_the_calibration_watch_sees_every_scan_while_the_network_sees_the_next_image_until_it_is_turned_off(
    monkeypatch,
):
    seen = []

    def update(self, *frame):
        seen.append(frame)
        self.verdict = "verdict"

    monkeypatch.setattr("marigold_ros.calibration.CalibrationMonitor.update", update)
    pipeline = Pipeline(Scene())
    late = replace(scan(), age_s=0.04)
    assert pipeline(RGB, CAMERA, SECOND, lambda: late, CONFIG).calibration is None
    assert seen == []
    assert pipeline(RGB, CAMERA, 2 * SECOND, no_scan, CONFIG).calibration == "verdict"
    ((stamp_ns, rgb, camera, anchors, origin_m, age_s),) = seen
    assert (stamp_ns, camera, age_s) == (SECOND, CAMERA, 0.04)
    assert rgb is RGB
    assert len(anchors) > 0
    np.testing.assert_allclose(origin_m, [0.3, -0.1, 0.2])
    assert pipeline(RGB, replace(CAMERA, fx=50.3), 2 * SECOND + 1, no_scan, CONFIG).calibration is None
    off = replace(CONFIG, fit=FitConfig(check_calibration=False))
    assert [pipeline(RGB, CAMERA, i * SECOND, scan, off).calibration for i in (3, 4)] == [None, None]
    assert len(seen) == 1


def test_the_watch_looks_at_the_first_sensor_alone_whatever_others_there_are(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "marigold_ros.calibration.CalibrationMonitor.update",
        lambda self, *frame: seen.append((*frame, threading.current_thread())),
    )
    config, pipeline = replace(CONFIG, range2=Range2Config(type="depth_image")), Pipeline(Scene())
    tof = replace(scan(), points=scan().points[::7], camera_from_lidar=np.eye(4), limits=config.range2)
    lidar = replace(scan(), limits=config.range)
    for tenths, scans in enumerate([[tof, lidar], [tof], [lidar, tof], [tof]]):
        pipeline(RGB, CAMERA, tenths * SECOND // 10, lambda scans=scans: scans, config)
    expected = anchors_of([lidar], CAMERA, config.range)
    assert [stamp_ns for stamp_ns, *_ in seen] == [0, SECOND // 5]
    for _, _, _, anchors, origin_m, _, thread in seen:
        np.testing.assert_array_equal(anchors.pixels, expected.pixels)
        np.testing.assert_allclose(origin_m, [0.3, -0.1, 0.2])
        assert thread is not threading.main_thread()


class Still:
    """A network that sees a wall 8 m away, at the size of `CAMERA` of test_picture_motion."""

    space = "depth"

    def coarse(self, rgb, focal_px=None):
        return np.linspace(0.0, 1.0, rgb.shape[0] * rgb.shape[1], dtype=np.float32).reshape(rgb.shape[:2])

    def fit_of(self, camera):
        return None


def test_a_scan_of_another_time_is_moved_with_the_picture(monkeypatch):
    """The camera turns right by 20 pixels in a tenth of a second; the scan is 50 ms older, or newer, than the image."""
    ages = []
    monkeypatch.setattr(
        "marigold_ros.calibration.CalibrationMonitor.update", lambda self, *frame: ages.append(frame[-1])
    )
    points = backproject(np.full((240, 320), 8.0, np.float32), pixel_rays(LARGE))[20:220:20, 100:220:20].reshape(-1, 3)

    def moved_px(age_s, fixed=False):
        pipeline, at_rest = Pipeline(Still()), Pipeline(Still())
        for i in range(3):
            # What tf2 has moved with a fixed frame has no age.
            one = Scan(points, np.eye(4), age_s=0.0 if fixed else age_s)
            frame = pipeline(seen(20 * i), LARGE, SECOND + i * SECOND // 10, lambda one=one: one, CONFIG)
        there = at_rest(seen(40), LARGE, SECOND, lambda: Scan(points, np.eye(4)), CONFIG)
        return (frame.anchors.pixels - there.anchors.pixels).mean(axis=0)

    np.testing.assert_allclose(moved_px(0.05), [-10, 0], atol=1.5)
    np.testing.assert_allclose(moved_px(-0.05), [10, 0], atol=1.5)
    np.testing.assert_array_equal(moved_px(0.05, fixed=True), [0, 0])
    # Of the first image nobody knows how the picture moves: the watch is told the age. Later anchors have none.
    assert ages[:2] == [0.05, 0.0]


def test_remembered_anchors_wait_for_odometry_that_comes_while_the_network_works(monkeypatch):
    """The camera has gone right by 0.2 m, though the picture, which is bland, has not moved."""
    config = replace(CONFIG, range=RangeConfig(fixed_frame="odom"))
    pipeline, known, evidence = Pipeline(Scene()), [], []
    monkeypatch.setattr(SeenMotion, "remember", lambda self, used: evidence.append(used))
    now_from_then = np.eye(4)
    now_from_then[0, 3] = -0.2

    def odometry_comes():
        known.append(now_from_then)
        return no_scan()

    def find_motion(then_ns):
        return known[0] if known else None

    pipeline(RGB, CAMERA, 0, scan, config)
    frame = pipeline(RGB, CAMERA, SECOND // 10, odometry_comes, config, find_motion=find_motion)
    assert frame.state == "HOLD"
    for used, moved_m in zip(evidence, (0.0, 0.2), strict=True):
        then_px = (used.depth_m - 2.0) / 8.0 * 63
        np.testing.assert_allclose(used.pixels[:, 0], then_px - moved_m * CAMERA.fx / used.depth_m, atol=0.01)


@pytest.mark.parametrize("age_s", [0.0, 0.05])
def test_a_scan_without_points_has_no_times_of_points_either(age_s):
    pipeline, empty = Pipeline(Scene()), np.zeros((0, 3), np.float32)
    pipeline(RGB, CAMERA, 0, scan, CONFIG)
    timed = Scan(empty, np.eye(4), age_s=age_s, offset_s=np.zeros(0, np.float32))
    frame = pipeline(RGB, CAMERA, SECOND // 10, lambda: timed, CONFIG, peek_scan=lambda: timed)
    assert (frame.state, len(frame.anchors)) == ("HOLD", 0)


def test_one_wild_scan_is_not_said_twice_because_another_sensor_is_faster():
    """A LiDAR at 10 Hz and a second sensor at 30 Hz; the LiDAR's third scan is wild, in three images."""
    pipeline, states = Pipeline(Scene()), []
    config = replace(CONFIG, range2=Range2Config(type="pointcloud2"))
    points = backproject(DEPTH_M, pixel_rays(CAMERA))[::4, ::4].reshape(-1, 3)
    for number in range(18):
        now_ns, factor = number * SECOND // 30, 1.7 if number // 3 == 3 else 1.0
        lidar = Scan(points * np.float32(factor), np.eye(4), config.range, stamp_ns=number // 3 * SECOND // 10)
        few = Scan(points[::40], np.eye(4), config.range2, stamp_ns=now_ns)
        frame = pipeline(RGB, CAMERA, now_ns, lambda scans=(lidar, few): scans, config)
        states.append((frame.state, frame.metres.jumps))
    assert states[9:12] == [("HOLD", 0)] * 3
    assert [jumps for _, jumps in states[12:]] == [0] * 6
    assert states[-1][0] == "OK"


# What was measured before, over time.


def test_the_tracker_is_told_what_the_correction_explains(monkeypatch):
    """As the bent network is corrected, all anchors are where they should be; of a fit that is twice as far, none."""
    pipeline, asked = Pipeline(Bent()), []
    for tenths in range(2):
        pipeline(RGB, CAMERA, tenths * SECOND // 10, scan, CONFIG)
    update = MetricTracker.update

    def noticed(self, *given, explained, **options):
        metres = update(self, *given, explained=explained, **options)
        asked.extend(explained(fit) for fit in (metres.fit, replace(metres.fit, scale=2 * metres.fit.scale)))
        return metres

    monkeypatch.setattr(MetricTracker, "update", noticed)
    pipeline(RGB, CAMERA, SECOND // 5, scan, CONFIG)
    assert asked == [True, False]


def test_another_camera_forgets_where_the_camera_was():
    pipeline, forgotten = Pipeline(Scene()), []
    pipeline(RGB, CAMERA, 0, scan, CONFIG)
    pipeline._seen.reset = lambda: forgotten.append(True)
    pipeline(RGB, replace(CAMERA, fx=50.3), SECOND // 10, scan, CONFIG)
    assert forgotten == []
    pipeline(RGB, replace(CAMERA, fx=80.0), SECOND // 5, scan, CONFIG)
    assert forgotten == [True]
