"""What the node says of itself."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy")
from marigold_ros.anchors import Anchors
from marigold_ros.calibration import Calibration
from marigold_ros.diagnostics import ERROR, OK, WARN, Diagnostics
from marigold_ros.geometry import Camera
from marigold_ros.metric import MetricFit
from marigold_ros.pipeline import FrameDepth
from marigold_ros.robust_fit import Belief, Evidence
from marigold_ros.tracker import Metres

CAMERA = Camera(4, 3, 1.0, 1.0, 0.0, 0.0)
EMPTY = np.zeros((3, 4), np.float32)
ANCHORS = Anchors(np.zeros((5, 2)), np.ones(5), np.ones(5), seen=8)
NOTHING = Belief(2.0, 0.0, (0.0, 0.0, 0.0))
EVIDENCE = Evidence(2.0, 1.0, 0.5, 0.5, 1.0, NOTHING, effective=3.6, reliability=1.0, sigma=0.1)
FIT = MetricFit("inverse_depth", 2.0, -0.5, anchors=5, inliers=4, residual=0.03, evidence=EVIDENCE)


class Watched:
    """Diagnostics on a clock that only moves when told."""

    def __init__(self):
        self.now = 0.0
        self.diagnostics = Diagnostics("/node: depth", clock=lambda: self.now)

    def status(self, state="active", listened=True, dropped=0):
        (status,) = self.diagnostics.message(state, listened, dropped).status
        return status, {pair.key: pair.value for pair in status.values}


@pytest.fixture
def watched():
    return Watched()


def good(**stages):
    metres = Metres("OK", FIT, fresh=True, sigma=0.021, age_s=0.0, problem=None, jumps=2)
    return FrameDepth(EMPTY, CAMERA, EMPTY, EMPTY, FIT, ANCHORS, None, stages, metres=metres)


def without_fit(state="RELATIVE"):
    metres = Metres(state, None, fresh=False, sigma=np.nan, age_s=None, problem="no scan", jumps=0)
    return FrameDepth(EMPTY, CAMERA, EMPTY, anchors=ANCHORS, problem="no scan", metres=metres)


def test_rates_and_latencies_are_those_of_the_last_seconds(watched):
    for i in range(21):
        watched.now = i * 0.1
        watched.diagnostics.count("image")
        watched.diagnostics.count("published")
        watched.diagnostics.frame(good(network=0.04, fit=0.002), 0, 0.05 if i < 20 else 0.5, metric=True)
    status, values = watched.status(dropped=3)
    assert (status.level, status.name, status.message) == (OK, "/node: depth", "10.0 frames per second")
    assert (values["image rate (Hz)"], values["published rate (Hz)"]) == ("10.00", "10.00")
    assert (values["latency stamp to publish p50 (ms)"], values["network time p95 (ms)"]) == ("50.0", "40.0")
    assert (values["images dropped"], values["published total"]) == ("3", "21")


def test_percentiles_and_rates_forget_what_is_older_than_ten_seconds(watched):
    """However many frames that were: of a slow network few, of a fast camera more than any fixed number."""
    watched.diagnostics.frame(good(network=0.9), 0, 2.0, metric=True)
    watched.now = 10.5
    watched.diagnostics.frame(good(network=0.04), 0, 0.05, metric=True)
    _, values = watched.status()
    assert (values["latency stamp to publish p95 (ms)"], values["network time p95 (ms)"]) == ("50.0", "40.0")
    watched.now = 21.0
    assert not [key for key in watched.status()[1] if "p50" in key or key.startswith("latency")]
    for i in range(1001):
        watched.now = 30.0 + i * 0.01
        watched.diagnostics.frame(good(), 0, 0.5 if i < 600 else 0.1, metric=True)
    assert watched.status()[1]["latency stamp to publish p50 (ms)"] == "500.0"


def test_a_topic_that_stops_fades_out(watched):
    for i in range(21):
        watched.now = i * 0.1
        watched.diagnostics.count("image")
    watched.now = 9.0
    assert float(watched.status()[1]["image rate (Hz)"]) < 3.0
    watched.now = 30.0
    status, values = watched.status()
    assert values["image rate (Hz)"] == "0.00"
    assert (status.level, status.message[:9]) == (WARN, "no images")


def test_the_fit_and_its_evidence_are_shown(watched):
    watched.diagnostics.frame(good(), 0, 0.05, metric=True)
    _, values = watched.status()
    expected = {"anchors used": "5", "anchors rejected": "3", "scale": "2", "shift": "-0.5", "fit age (s)": "0.000"}
    assert expected.items() <= values.items()
    assert (values["residual (relative)"], values["fit uncertainty (relative)"]) == ("0.0300", "0.0210")
    assert (values["metric state"], values["metres started anew"], values["independent anchors"]) == ("OK", "2", "4")


def test_a_frame_whose_fit_rests_on_other_anchors_says_how_many_of_its_own_agree(watched):
    of_others = replace(FIT, anchors=3000, inliers=1, residual=0.375)
    held = replace(good(), fit=of_others)
    watched.diagnostics.frame(held, 0, 0.05, metric=True)
    _, values = watched.status()
    assert (values["anchors that agree"], values["residual (relative)"]) == ("1 of 5", "0.3750")
    assert values["metres from"] == "3000 range points"
    watched.diagnostics.frame(replace(held, anchors=None), 0, 0.05, metric=True)
    _, values = watched.status()
    assert not {"anchors that agree", "residual (relative)"} & values.keys()
    assert values["metres from"] == "3000 range points"


def test_metres_of_the_checkpoint_are_told_from_those_of_lidar(watched):
    own = MetricFit("log_depth", 6.7, -2.3, anchors=0, inliers=0, residual=float("nan"))
    watched.diagnostics.count("image")
    watched.diagnostics.frame(good(), 0, 0.05, metric=True)
    assert watched.status()[1]["metres from"] == "5 range points"
    watched.diagnostics.frame(FrameDepth(EMPTY, CAMERA, EMPTY, EMPTY, own), 0, 0.05, metric=True)
    status, values = watched.status()
    assert (status.level, values["metres from"], values["scale"]) == (OK, "the checkpoint", "6.7")
    assert not {"residual (relative)", "fit age (s)", "anchors that agree", "anchors used"} & values.keys()
    refused = FrameDepth(EMPTY, CAMERA, EMPTY, EMPTY, own, anchors=ANCHORS, problem="5 anchors in the image")
    watched.diagnostics.frame(refused, 0, 0.05, metric=True)
    status, values = watched.status()
    assert (status.level, status.message) == (WARN, "metres from the checkpoint: 5 anchors in the image")
    assert (values["metres from"], values["anchors used"]) == ("the checkpoint", "5")


def test_metric_depth_that_is_off_says_since_when(watched):
    watched.diagnostics.count("image")
    for stamp_s in (100, 101):
        watched.diagnostics.frame(without_fit(), stamp_s * 10**9, 0.05, metric=True)
    status, values = watched.status()
    assert (status.level, status.message) == (WARN, "no metric depth since 100.000: no scan")
    assert values["metric off since (s)"] == "100.000"
    watched.diagnostics.frame(good(), 102 * 10**9, 0.05, metric=True)
    assert watched.status()[0].level == OK
    watched.diagnostics.frame(without_fit("FAULT"), 103 * 10**9, 0.05, metric=True)
    status, values = watched.status()
    assert (status.level, values["metric state"]) == (ERROR, "FAULT")


def test_metric_depth_that_is_off_when_time_goes_back_is_off_since_then(watched):
    for stamp_s in (100, 7, 8):
        watched.diagnostics.frame(without_fit(), stamp_s * 10**9, 0.05, metric=True)
    assert watched.status()[1]["metric off since (s)"] == "7.000"


def test_no_metres_are_a_state_even_without_anchors(watched):
    metres = without_fit().metres
    watched.diagnostics.frame(FrameDepth(EMPTY, CAMERA, EMPTY, problem="no scan", metres=metres), 0, 0.05, metric=True)
    assert watched.status()[1]["metric state"] == "RELATIVE"


@pytest.mark.parametrize("what", ["image", "camera_info", "frame"])
def test_while_images_are_not_answered_the_state_is_a_fault_and_not_that_of_the_last_answer(watched, what):
    watched.diagnostics.frame(good(), 0, 0.05, metric=True)
    watched.diagnostics.problem(what, "unusable")
    values = watched.status()[1]
    assert values["metric state"] == "FAULT"
    assert not {"scale", "fit age (s)", "anchors used"} & values.keys()
    watched.diagnostics.solved(what)
    assert watched.status()[1]["metric state"] == "OK"


def test_when_images_stop_the_last_answer_is_not_told_for_ever(watched):
    watched.diagnostics.count("image")
    watched.diagnostics.frame(good(), 0, 0.05, metric=True)
    assert watched.status()[1]["metric state"] == "OK"
    watched.now = 11.0
    status, values = watched.status()
    assert (status.level, values["metric state"]) == (WARN, "FAULT")
    assert "scale" not in values


def test_relative_depth_alone_is_no_problem(watched):
    watched.diagnostics.count("image")
    watched.diagnostics.frame(FrameDepth(EMPTY, CAMERA, EMPTY), 0, 0.05, metric=False)
    assert watched.status()[0].level == OK


def test_the_worst_problem_is_the_status_until_it_is_solved(watched):
    watched.diagnostics.count("image")
    watched.diagnostics.problem("camera_info", "no camera info")
    watched.diagnostics.problem("frame", "out of memory", ERROR)
    status, _ = watched.status()
    assert (status.level, status.message) == (ERROR, "out of memory; no camera info")
    watched.diagnostics.solved("frame", "unheard of")
    assert watched.status()[0].level == WARN


def test_nobody_listening_and_not_being_active_are_fine(watched):
    watched.diagnostics.count("image")
    assert "the network rests" in watched.status(listened=False)[0].message
    assert watched.status(state="inactive")[0].message == "inactive"


def test_the_hardware_is_named(watched):
    watched.diagnostics.describe(engine="OpenVINO on a CPU", checkpoint="nano")
    status, values = watched.status()
    assert status.hardware_id == "OpenVINO on a CPU"
    assert values["checkpoint"] == "nano"


def test_stamps_of_another_clock_are_not_sold_as_latency(watched):
    watched.diagnostics.frame(good(), 0, 1.7e9, metric=True)
    assert "use_sim_time" in watched.status()[1]["latency"]


def test_a_new_configuration_starts_at_zero(watched):
    watched.diagnostics.count("image")
    watched.diagnostics.problem("frame", "old", ERROR)
    watched.diagnostics.reset()
    assert watched.status(state="inactive")[0].level == OK
    assert watched.status()[1]["image total"] == "0"


def test_a_problem_with_frames_does_not_outlive_the_frames(watched):
    watched.diagnostics.count("image")
    watched.diagnostics.problem("camera_info", "no camera info yet")
    watched.diagnostics.problem("transition", "cannot become active", ERROR)
    watched.diagnostics.frame(without_fit(), 5_000_000_000, 0.1, metric=True)
    watched.diagnostics.rest()
    assert watched.status(listened=False)[0].message == "cannot become active"
    watched.diagnostics.solved("transition")
    assert watched.status(listened=False)[0].level == OK
    watched.diagnostics.frame(without_fit(), 90_000_000_000, 0.1, metric=True)
    assert "since 90.000" in watched.status()[0].message


def test_missing_images_are_said_beside_what_else_is_wrong(watched):
    watched.diagnostics.problem("range", "no scan")
    status, _ = watched.status()
    assert status.message.startswith("no images")
    assert "no scan" in status.message


def test_a_wrong_calibration_warns_until_it_is_right_again(watched):
    right = Calibration(20, (0.1, 0.0, 0.0), (0.1, 0.1, 0.4), 0.002, 0.004, (0.2, -1.3))
    wrong = replace(right, turn_deg=(0.1, 0.9, 0.0), shift_px=(8.4, -1.3), problem="the extrinsic looks wrong")
    for calibration, level in ((None, OK), (wrong, WARN), (right, OK), (wrong, WARN), (None, OK)):
        watched.diagnostics.count("image")
        watched.diagnostics.frame(replace(good(), calibration=calibration), 0, 0.05, metric=True)
        status, values = watched.status()
        assert status.level == level
        assert ("the extrinsic looks wrong" in status.message) == (level == WARN)
        assert ("time offset (ms)" in values) == (calibration is not None)
        if calibration is wrong:
            assert values["calibration shift (px)"] == "+8.4 right, -1.3 down"
            assert values["time offset (ms)"] == "+2 ± 4"
