"""The demo: the real node, a player and a recorder as three processes over DDS, watched live. `make demo` runs it.

A bundled recording (a robot driving through a generated warehouse: camera, 16-beam LiDAR, true depth) is played to the
node. A table shows rate, latency, anchors and the error against the truth; a picture and a recording of the output for
Foxglove stay behind.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CompressedImage, Image

from marigold_ros import compiled, processes, shots
from marigold_ros.config import Unusable
from marigold_ros.geometry import quaternion_from_rotation
from marigold_ros.pictures import draw
from marigold_ros.places import shared
from marigold_ros.recordings import (
    CAMERA_INFO,
    GROUND_TRUTH,
    IMAGE,
    RANGE,
    TRUTH_STRIDE,
    Recording,
    header_stamp_ns,
    recorded_extrinsic,
    truth_from_png,
)
from marigold_ros.scores import Scores, score

DEPTH, DEPTH_INFO, POINTS, VISUAL = "/depth", "/depth/camera_info", "/points", "/depth/visual"
RECORDED = (IMAGE, CAMERA_INFO, RANGE, GROUND_TRUTH, DEPTH, DEPTH_INFO, POINTS, VISUAL, "/diagnostics")
_START_S, _RECORDER_START_S, _PLAYER_START_S, _TAIL_S = 180.0, 10.0, 20.0, 1.5
_REDRAW_S, _PLAIN_LINE_S = 0.25, 1.0
_KEPT = 30
LATENCY = "latency p50 / p95"


class Watcher(Node):
    """Compares the node's depth with the recording's truth, and keeps what its diagnostics say."""

    def __init__(self) -> None:
        super().__init__("watcher")
        self.facts: dict[str, str] = {}
        self.message = ""
        self.node_has_failed = False
        self.scores: list[Scores] = []
        self.arrivals_s: deque[float] = deque(maxlen=_KEPT)
        self.depths = 0
        self.truths = 0
        self._waiting_depth: dict[int, np.ndarray] = {}
        self._waiting_truth: dict[int, np.ndarray] = {}
        stream = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(Image, DEPTH, self._on_depth, stream)
        self.create_subscription(CompressedImage, GROUND_TRUTH, self._on_truth, stream)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _on_depth(self, message: Image) -> None:
        self.depths += 1
        self.arrivals_s.append(time.monotonic())
        depth_m = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
        self._waiting_depth[header_stamp_ns(message)] = depth_m[::TRUTH_STRIDE, ::TRUTH_STRIDE].copy()
        self._compare()

    def _on_truth(self, message: CompressedImage) -> None:
        self.truths += 1
        self._waiting_truth[header_stamp_ns(message)] = truth_from_png(message.data)
        self._compare()

    def _compare(self) -> None:
        for stamp in self._waiting_depth.keys() & self._waiting_truth.keys():
            self.scores.append(score(self._waiting_depth.pop(stamp), self._waiting_truth.pop(stamp)))
        for waiting in (self._waiting_depth, self._waiting_truth):
            while len(waiting) > _KEPT:
                del waiting[min(waiting)]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            # What was measured stays on the table when the last message, sent after the stream ended, lacks it.
            self.facts.update({pair.key: pair.value for pair in status.values})
            self.message = status.message
            self.node_has_failed = status.level == DiagnosticStatus.ERROR

    @property
    def node_is_active(self) -> bool:
        """Whether the node has said so."""
        return self.facts.get("lifecycle state") == "active"

    @property
    def engine(self) -> str:
        """The network and what runs it."""
        return f"{self.facts.get('checkpoint')} on {self.facts.get('engine')}"

    @property
    def rate_hz(self) -> float:
        """Depth images per second over the last frames."""
        span_s = self.arrivals_s[-1] - self.arrivals_s[0] if len(self.arrivals_s) > 1 else 0.0
        return (len(self.arrivals_s) - 1) / span_s if span_s > 0 else 0.0

    def rows(self) -> dict[str, str]:
        """What the table shows."""
        get = self.facts.get
        p50, p95 = (get(f"latency stamp to publish {p} (ms)", "-") for p in ("p50", "p95"))
        rows = {
            "depth images": f"{self.depths} of {self.truths} frames",
            "rate": f"{self.rate_hz:.1f} Hz",
            LATENCY: f"{p50} / {p95} ms",
            "LiDAR points in the image": get("anchors used", "-"),
            "of which agree with the fit": get("anchors that agree", "-"),
        }
        if self.scores:
            recent, mean = mean_scores(self.scores[-10:]), mean_scores(self.scores)
            rows["AbsRel, last second / so far"] = f"{recent.abs_rel:.3f} / {mean.abs_rel:.3f}"
            rows["δ1, last second / so far"] = f"{recent.delta1:.1%} / {mean.delta1:.1%}"
        return rows


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The mean of the frames' errors; frames where nothing could be compared are left out."""
    compared = [s for s in scores if s.pixels] or list(scores)
    names = ("abs_rel", "delta1", "rmse_m", "coverage", "mae_m")
    means = {name: float(np.mean([getattr(s, name) for s in compared])) for name in names}
    return Scores(**means, pixels=sum(s.pixels for s in compared))


class Display:
    """A live table on a terminal, lines of text elsewhere."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last_s = 0.0
        self._last_line = ""
        self._live: Any = None
        if sys.stdout.isatty():
            with suppress(ImportError):  # without rich there are lines of text on a terminal, too
                from rich.live import Live

                self._live = Live(auto_refresh=False)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *problem: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, rows: Mapping[str, str]) -> None:
        """Show the rows, unless that was done a moment ago."""
        now_s = time.monotonic()
        if now_s - self._last_s < (_PLAIN_LINE_S if self._live is None else _REDRAW_S):
            return
        self._last_s = now_s
        if self._live is None:
            line = "; ".join(f"{name}: {value}" for name, value in rows.items())
            if line != self._last_line:
                print(line, flush=True)
            self._last_line = line
        else:
            self._live.update(self._table(rows), refresh=True)

    def _table(self, rows: Mapping[str, str]) -> Any:
        from rich import box
        from rich.table import Table

        table = Table(title=self._title, title_justify="left", title_style="bold", show_header=False, box=box.ROUNDED)
        table.add_column(style="dim")
        table.add_column(min_width=34, style="bold")
        for name, value in rows.items():
            table.add_row(name, value)
        return table


def spin_until(node: Node, done: Callable[[], bool], timeout_s: float, each: Callable[[], None] = lambda: None) -> bool:
    """Handle the node's messages until `done`; `each` is called in between. False after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        rclpy.spin_once(node, timeout_sec=0.05)
        each()
    return True


def node_parameters(camera_from_lidar: np.ndarray, checkpoint: str) -> dict[str, Any]:
    """The node's settings for the bundled recording."""
    return {
        "model.checkpoint": checkpoint,
        "image.transport": "compressed",
        "range.extrinsic": "static",
        "range.translation_m": [float(v) for v in camera_from_lidar[:3, 3]],
        "range.rotation_xyzw": list(quaternion_from_rotation(camera_from_lidar[:3, :3])),
        "output.points_stride": 2,
    }


def run(arguments: argparse.Namespace) -> int:
    """Start everything, watch, write the results; returns the exit status."""
    began_s = time.monotonic()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / ".recording.part", ignore_errors=True)  # of a demo that was killed
    with Recording(arguments.recording) as recording:
        camera_from_lidar, length_s = recorded_extrinsic(recording), recording.duration_s / arguments.rate
    environment = processes.private_environment(processes.free_domain())
    processes.adopt(environment)
    rclpy.init(args=[], domain_id=int(environment["ROS_DOMAIN_ID"]))
    with ExitStack() as cleanup:
        cleanup.callback(rclpy.try_shutdown)
        watcher = Watcher()
        problem = _play(arguments, watcher, _Starter(cleanup, environment, out), camera_from_lidar, length_s)
    if problem:
        return _failed(problem.text, out / f"{problem.program}.log")
    mcap = _only_mcap(out / "recording", out / "output.mcap")
    shot = shots.from_recording(mcap, camera_from_lidar)
    title = "marigold_ros: camera + 16-beam LiDAR → metric depth, on ROS 2"
    draw(shot, title, f"{watcher.engine}    {watcher.rows()[LATENCY]} (stamp to publish)", out / "demo.png")
    _summary(watcher, out / "demo.png", mcap, time.monotonic() - began_s)
    return 0


@dataclass(frozen=True)
class _Problem:
    """What went wrong, and in which program, whose log says more."""

    text: str
    program: str


def _play(
    arguments: argparse.Namespace, watcher: Watcher, start: _Starter, camera_from_lidar: np.ndarray, length_s: float
) -> _Problem | None:
    """Play the recording to the node, show and record what it answers; returns what went wrong."""
    if compiled.why_not() is None:
        print("Compiling, the first time for ten seconds ...", flush=True)
        compiled.compile_all(["marigold_ros.pipeline", "marigold_ros.messages"])
    print("Starting the node ...", flush=True)
    remappings = {"image": IMAGE, "camera_info": CAMERA_INFO, "range": RANGE}
    parameters = node_parameters(camera_from_lidar, arguments.checkpoint)
    node = start("depth_node", processes.ros_arguments(parameters, remappings))
    decided = lambda: watcher.node_is_active or watcher.node_has_failed or node.poll() is not None  # noqa: E731
    spin_until(watcher, decided, _START_S)
    if not watcher.node_is_active:
        return _Problem("the node did not become active", "depth_node")
    print(watcher.engine, flush=True)
    recorder = start("recorder", ["--out", str(arguments.out / "recording"), *RECORDED])
    # It finds what is published within a moment; the first frames should not be missing.
    ready = lambda: watcher.count_subscribers(POINTS) > 0 or recorder.poll() is not None  # noqa: E731
    spin_until(watcher, ready, _RECORDER_START_S)
    if recorder.poll() is not None:
        return _died("recorder", recorder)
    # Two listen to each: the recorder, and the node or, to the truth, the watcher.
    waiting = ["--wait", "15", "--listeners", "2", "--wait-for", IMAGE, CAMERA_INFO, RANGE, GROUND_TRUTH]
    player = start("player", [str(arguments.recording), "--rate", str(arguments.rate), *waiting])
    programs = {"depth_node": node, "recorder": recorder, "player": player}
    _watch(watcher, programs, _PLAYER_START_S + length_s)
    return _end(watcher, programs)


def _watch(watcher: Watcher, programs: Mapping[str, subprocess.Popen], patience_s: float) -> None:
    """Show what comes until the first of the programs has ended, and a moment longer."""
    with Display("marigold_ros: camera + LiDAR -> metric depth") as display:

        def show() -> None:
            display.show(watcher.rows())

        ended = lambda: any(program.poll() is not None for program in programs.values())  # noqa: E731
        spin_until(watcher, ended, patience_s, show)
        spin_until(watcher, lambda: False, _TAIL_S, show)


def _end(watcher: Watcher, programs: Mapping[str, subprocess.Popen]) -> _Problem | None:
    """Stop the node and the recorder, which should still run; returns what went wrong."""
    for name, program in programs.items():
        if program.poll() is not None and (name != "player" or program.returncode):
            return _died(name, program)
    # The recorder first: afterwards there is nothing more to record.
    statuses = {name: processes.stop(programs[name]) for name in ("recorder", "depth_node")}
    if not watcher.depths:
        return _Problem(f"no depth image came ({watcher.message})", "depth_node")
    failed = [name for name, status in statuses.items() if status]
    return _Problem(f"the {failed[0]} ended with status {statuses[failed[0]]}", failed[0]) if failed else None


def _died(program: str, process: subprocess.Popen) -> _Problem:
    return _Problem(f"the {program} ended too early, with status {process.returncode}", program)


class _Starter:
    """Starts programs of the package whose output goes to a log file each, and which end with the demo."""

    def __init__(self, cleanup: ExitStack, environment: Mapping[str, str], out: Path) -> None:
        self._cleanup, self._environment, self._out = cleanup, environment, out

    def __call__(self, program: str, arguments: Sequence[str]) -> subprocess.Popen:
        log = self._cleanup.enter_context((self._out / f"{program}.log").open("w"))
        process = processes.start(f"marigold_ros.{program}", arguments, self._environment, log)
        self._cleanup.callback(processes.stop, process)
        return process


def _only_mcap(folder: Path, target: Path) -> Path:
    """Move the one .mcap of a recording's folder to `target` and drop the folder."""
    found = next(folder.glob("*.mcap"), None)
    if found is None:
        raise Unusable(f"{folder}: holds no recording; {target.with_name('recorder.log')} may say why")
    found.replace(target)
    (folder / "metadata.yaml").unlink(missing_ok=True)
    folder.rmdir()
    return target


def _failed(what: str, log: Path) -> int:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    print(f"demo: {what}. The end of {log}:", file=sys.stderr)
    print("\n".join(f"    {line}" for line in lines), file=sys.stderr)
    return 1


def _summary(watcher: Watcher, picture: Path, mcap: Path, seconds: float) -> None:
    rows = watcher.rows()
    if watcher.scores:
        mean = mean_scores(watcher.scores)
        rows["RMSE so far"] = f"{mean.rmse_m:.2f} m, over {mean.coverage:.1%} of the pixels with a known truth"
    width = max(map(len, rows))
    print("\nWhat came out:")
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")
    print(f"\nPicture:    {picture}")
    print(f"Recording:  {mcap} ({mcap.stat().st_size / 1e6:.0f} MB; open it in Foxglove)")
    print(f"Logs:       {picture.parent}/*.log")
    print(f"Done in {seconds:.0f} s.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; exit status 1 when no depth came."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.split("\n")[0])
    parser.add_argument("--recording", type=Path, default=None, help="another recording like the bundled one")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for picture, recording and logs")
    parser.add_argument("--rate", type=float, default=1.0, help="times the recorded speed (default 1)")
    parser.add_argument("--checkpoint", default="nano", help="another checkpoint (default nano)")
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(remove_ros_args(["", *argv])[1:])
    if not arguments.rate > 0:  # nan as well
        parser.error(f"--rate {arguments.rate}: must be greater than 0")
    try:
        arguments.recording = arguments.recording or shared("recordings/warehouse")
        return run(arguments)
    except Unusable as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
