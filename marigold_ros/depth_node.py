"""The ROS node: topics, lifecycle, diagnostics. What happens to a frame is in `frames.py` and `pipeline.py`.

`ros2 run marigold_ros depth_node` configures and activates itself; with `node.autostart` false it waits for a
lifecycle manager (docs/nav2.md).
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from marigold_ros import compiled, parameters
from marigold_ros.config import Config, ModelConfig, Unusable
from marigold_ros.diagnostics import ERROR, Diagnostics
from marigold_ros.frames import FrameProcessor
from marigold_ros.outputs import Outputs, naming, qos, qos_overrides
from marigold_ros.sources import RangeSources
from marigold_ros.worker import NewestOnly

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def load_estimator(settings: ModelConfig) -> Any:
    """The estimator of the settings; imported here because networks take seconds and this file must not.

    It exports nothing: lifecycle managers do not wait that long for a transition.
    """
    from marigold_ros import estimator

    return estimator.load_estimator(settings, export=False)


def load_normals(settings: ModelConfig) -> Any:
    """That of surface normals, if the settings name one."""
    if not settings.normals_checkpoint:
        return None
    from marigold_ros import estimator

    of_normals = replace(settings, checkpoint=settings.normals_checkpoint, confidence="none")
    try:
        return estimator.load_normals_estimator(of_normals, export=False)
    except Unusable as problem:
        raise Unusable(f"model.normals_checkpoint={settings.normals_checkpoint!r}: {problem}") from problem


class DepthNode(LifecycleNode):
    """Connects the topics of the camera and the range sensors to depth topics.

    configure loads the network and makes the publishers, activate makes the subscriptions and starts the worker;
    deactivate and cleanup undo them. `load_estimator` is an argument so that tests can look at a flat scene.
    """

    def __init__(self, load_estimator: Callable[[ModelConfig], Any] = load_estimator, **kwargs: Any) -> None:
        super().__init__("depth_node", automatically_declare_parameters_from_overrides=True, **kwargs)
        try:
            self._config = parameters.declare(self)
        except Unusable:
            self.destroy_node()
            raise
        self.add_on_set_parameters_callback(parameters.on_set(lambda: self._config, self._set_config))
        for service in self.services:
            if service.srv_type is ChangeState:
                service.callback = partial(self._change_state, service.callback)
        self._load_estimator = load_estimator
        self._label = "unconfigured"
        self._dropped = 0
        self._estimator: Any = None
        self._normals: Any = None
        self._sources: RangeSources | None = None
        self._outputs: Outputs | None = None
        self._frames: FrameProcessor | None = None
        self._worker: NewestOnly | None = None
        self._inputs: list[Subscription] = []
        self._diagnostics = Diagnostics(f"{self.get_fully_qualified_name()}: depth")
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # By the steady clock: diagnostics must go on when /clock stands still.
        self._diagnostics_timer = self.create_timer(
            self._config.node.diagnostics_period_s,
            self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def start(self) -> None:
        """Configure and activate, unless `node.autostart` leaves that to a lifecycle manager."""
        if self._config.node.autostart and self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def close(self) -> None:
        """Finish the frame in work, let go of everything."""
        self._stop()
        self._unload()
        self.destroy_node()

    # Lifecycle. rclpy swallows exceptions in transitions, so each one goes through `_transition`.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the network, make the publishers."""
        return self._transition("inactive", self._load, undo=self._unload)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Make the subscriptions, start the worker."""
        return self._transition("active", lambda: self._run(state), undo=self._stop)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Drop the subscriptions, finish the frame in work."""
        return self._transition("inactive", self._stop, lambda: super(DepthNode, self).on_deactivate(state))

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the network, remove the publishers."""
        return self._transition("unconfigured", self._unload)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of everything, from any state."""
        return self._transition("finalized", self._stop, self._unload)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an unforeseen failure: back to unconfigured with nothing left, so that configure may be tried again."""
        # Not a `_transition`: what went wrong must stay on /diagnostics.
        self._stop()
        self._unload()
        self._label = "unconfigured"
        return SUCCESS

    def _change_state(
        self, change: Callable[..., ChangeState.Response], request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """Refuse a transition that the state does not have; rclpy raises instead, which would end the node."""
        try:
            return change(request, response)
        except RuntimeError as problem:
            self.get_logger().error(f"cannot change the state from {self._label}: {problem}")
            response.success = False
            return response

    def _transition(
        self, label: str, *steps: Callable[[], object], undo: Callable[[], None] | None = None
    ) -> TransitionCallbackReturn:
        """Run the steps; when one fails, say why, undo, and stay in the state before."""
        try:
            for step in steps:
                step()
        except Exception as problem:
            if self.context.ok():  # otherwise ROS was shut down under the transition, and that is no error
                text = str(problem) if isinstance(problem, Unusable) else traceback.format_exc()
                self.get_logger().error(f"cannot become {label}: {text}")
            if undo is not None:
                undo()
            self._diagnostics.problem("transition", f"cannot become {label}: {problem}", ERROR)
            return FAILURE if isinstance(problem, Unusable) else TransitionCallbackReturn.ERROR
        self._diagnostics.solved("transition")
        self._label = label
        return SUCCESS

    def _load(self) -> None:
        start = time.perf_counter()
        self._diagnostics.reset()
        compiled.prepare()
        self._estimator = self._load_estimator(self._config.model)
        self._normals = load_normals(self._config.model)
        engine, checkpoint = self._estimator.engine, self._estimator.checkpoint
        self._sources = RangeSources(self, self._config, self._diagnostics)
        self._outputs = Outputs(self, self._config.output, normals=self._normals is not None)
        self._frames = FrameProcessor(
            self, lambda: self._config, self._estimator, self._sources, self._outputs, self._diagnostics, self._normals
        )
        self._diagnostics.describe(engine=str(engine), checkpoint=str(checkpoint), loops=compiled.description())
        if self._normals is not None:
            normals = f"{self._normals.checkpoint} on {self._normals.engine}"
            self._diagnostics.describe(normals=normals)
            self.get_logger().info(f"surface normals: {normals}")
        self.get_logger().info(f"{checkpoint} on {engine}, ready after {time.perf_counter() - start:.1f} s")

    def _unload(self) -> None:
        for thing in (self._outputs, self._sources, self._estimator, self._normals):
            if thing is not None:
                thing.close()
        self._frames = self._outputs = self._sources = self._estimator = self._normals = None

    def _run(self, state: LifecycleState) -> None:
        super().on_activate(state)  # the publishers
        frames, config = self._frames, self._config
        self._dropped = 0
        self._worker = NewestOnly(frames.process, "depth")
        image = CompressedImage if config.image.transport == "compressed" else Image
        self._subscribe(image, "image", self._on_image, depth=1)
        self._subscribe(CameraInfo, "camera_info", frames.on_camera_info, depth=1)
        for source in self._sources.inputs():
            self._subscribe(source.kind, source.topic, source.callback, source.depth)

    def _stop(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs.clear()
        if self._worker is not None:
            self._worker.stop()
            self._dropped = self._worker.dropped
            self._worker = None
        self._diagnostics.rest()

    def _subscribe(self, kind: type, topic: str, callback: Callable[[Any], None], depth: int) -> None:
        profile = qos(self._config.image.reliability, depth)
        with naming(topic):
            subscription = self.create_subscription(
                kind, topic, callback, profile, qos_overriding_options=qos_overrides()
            )
        self._inputs.append(subscription)

    def _on_image(self, message: Any) -> None:
        self._diagnostics.count("image")
        self._worker.put(message)

    def _set_config(self, config: Config) -> None:
        self._config = config

    def _publish_diagnostics(self) -> None:
        listened = self._outputs is not None and self._outputs.wanted().anything
        dropped = self._worker.dropped if self._worker is not None else self._dropped
        message = self._diagnostics.message(self._label, listened, dropped)
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics_publisher.publish(message)


class _ToRos(logging.Handler):
    """Passes on to ROS' log what the core, which knows no ROS, says to Python's."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log in one of three places, because rclpy ties each place to one severity."""
        ros, text = get_logger("depth_node"), self.format(record)
        if record.levelno >= logging.ERROR:
            ros.error(text)
        elif record.levelno >= logging.WARNING:
            ros.warning(text)
        else:
            ros.info(text)


def _log_to_ros() -> None:
    core = logging.getLogger("marigold_ros")
    core.setLevel(logging.INFO)
    core.propagate = False
    core.handlers = [_ToRos()]


def main(argv: list[str] | None = None, load_estimator: Callable[[ModelConfig], Any] = load_estimator) -> int:
    """Run the node until it is told to stop; 1 when a start value cannot be used."""
    rclpy.init(args=argv)
    _log_to_ros()
    node = None
    try:
        node = DepthNode(load_estimator)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        node.start()
        executor.spin()
    except Unusable as problem:
        get_logger("depth_node").fatal(str(problem))
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if rclpy.ok():
            raise
        # Told to stop in the middle of a transition: rclpy then raises whatever comes first.
    finally:
        if node is not None:
            node.close()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
