"""From an image message to published depth: reads messages, runs the pipeline, publishes, reports.

One object lives from configure to cleanup. `on_…` are called by the executor, `process` by the worker's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from marigold_ros import decoding
from marigold_ros.complaints import Complaints
from marigold_ros.config import Config, Unusable
from marigold_ros.diagnostics import ERROR, Diagnostics
from marigold_ros.geometry import Camera
from marigold_ros.outputs import Outputs, Wanted
from marigold_ros.pipeline import Estimator, FrameDepth, NormalsNetwork, Pipeline
from marigold_ros.sources import RangeSources

ImageMessage = Image | CompressedImage
# So many late images in a row that go on from each other are a time started again, however little late they are.
_GO_ON = 3


class FrameProcessor:
    """Connects the messages of one camera and its range sensors to a `Pipeline` and its results to `Outputs`."""

    def __init__(
        self,
        node: LifecycleNode,
        config: Callable[[], Config],
        estimator: Estimator,
        sources: RangeSources,
        outputs: Outputs,
        diagnostics: Diagnostics,
        normals: NormalsNetwork | None = None,
    ) -> None:
        self._node = node
        self._config = config
        self._sources = sources
        self._outputs = outputs
        self._diagnostics = diagnostics
        self._pipeline = Pipeline(estimator, normals)
        self._complain = Complaints(node.get_logger().warning)
        self._topics = {name: node.resolve_topic_name(name) for name in ("image", "camera_info", "normals")}
        self._info: CameraInfo | None = None
        self._camera: tuple[tuple, Camera] | None = None
        self._newest_ns = 0
        # The time of the image before, if that was late, and how many late ones in a row went on from each other.
        self._late_ns: int | None = None
        self._late_count = 0

    def on_camera_info(self, message: CameraInfo) -> None:
        """Keep the newest camera info."""
        self._info = message

    def process(self, message: ImageMessage) -> None:
        """Answer one image; whatever goes wrong is reported, and the next image gets its chance."""
        try:
            self._answer(message)
        except Unusable as problem:
            self._unusable("image", problem)
        except Exception as problem:
            if not self._node.context.ok():
                return  # ROS was shut down in mid-frame: there is nobody left to publish to
            text = f"the frame failed with {type(problem).__name__}: {problem}"
            self._diagnostics.problem("frame", text, ERROR)
            self._diagnostics.count("failed")
            self._complain(self._topics["image"], text, "dropped")

    def _answer(self, message: ImageMessage) -> None:
        wanted = self._outputs.wanted()
        if not self._metres_needed(wanted):
            self._diagnostics.solved("metric", *self._sources.problems)
        if not wanted.normals:
            self._diagnostics.solved("normals")
        if not wanted.anything:
            self._diagnostics.rest()
            if self._info is None or self._camera is not None:
                return
        config, image_ns = self._config(), decoding.require_stamp(message.header)
        if not self._in_order(image_ns):
            return
        self._sources.expect(image_ns)
        start = time.perf_counter()
        compressed = isinstance(message, CompressedImage)
        rgb = decoding.rgb_from_compressed(message) if compressed else decoding.rgb_from_image(message)
        self._diagnostics.solved("image")
        before = self._camera
        camera = self._camera_of(rgb.shape[1], rgb.shape[0], config)
        if camera is None:
            return
        # The first look at a camera's shape compiles the networks for it: better now than when somebody waits.
        first, decoded = self._camera is not before, time.perf_counter()
        published = False
        if wanted.of_depth or first:
            frame = self._seen(message, rgb, camera, image_ns, wanted, config)
            rectified = frame.rgb
            if wanted.of_depth:
                published = self._publish(frame, message, image_ns, wanted, config, decode_s=decoded - start)
        else:
            rectified, _ = self._pipeline.rectified(rgb, camera)
        if wanted.normals or first:  # last: depth does not wait for them
            self._send_normals(rectified, message, image_ns, wanted, published)

    def _seen(
        self, message: ImageMessage, rgb: Any, camera: Camera, image_ns: int, wanted: Wanted, config: Config
    ) -> FrameDepth:
        """What the pipeline makes of the image."""
        return self._pipeline(
            rgb,
            camera,
            image_ns,
            partial(self._sources.scans, message, config),
            config,
            metric=wanted.metric or wanted.confidence,
            confidence=wanted.confidence,
            find_motion=self._sources.motion_until(message),
            sigma=wanted.sigma,
            solid=wanted.solid(config.output),
            peek_scan=partial(self._sources.peek, message, config),
        )

    def _publish(
        self,
        frame: FrameDepth,
        message: ImageMessage,
        image_ns: int,
        wanted: Wanted,
        config: Config,
        decode_s: float,
    ) -> bool:
        """Publish what is wanted of depth; returns whether anything was."""
        start = time.perf_counter()
        published = self._outputs.publish(frame, message.header, wanted, config.output)
        frame.stage_s.update(decode=decode_s, publish=time.perf_counter() - start)
        latency_s = self._latency_s(image_ns)
        self._diagnostics.solved("frame")
        if published:
            self._diagnostics.count("published")
        metres_needed = self._metres_needed(wanted)
        self._diagnostics.frame(frame, image_ns, latency_s, metres_needed)
        if metres_needed and frame.problem is not None:
            if frame.fit_age_s is not None:
                consequence = "the last correction serves" if frame.metres.fresh else "the last metres are held"
            else:
                consequence = "no metric depth" if frame.fit is None else f"metres from {frame.fit.source}"
            self._complain(self._sources.label, frame.problem, consequence)
        return published

    def _send_normals(self, rgb: Any, message: ImageMessage, image_ns: int, wanted: Wanted, published: bool) -> None:
        """Publish the normals of the image that was rectified last, if they are wanted; a failure costs nothing else.

        published: whether depth of this image was.
        """
        start = time.perf_counter()
        try:
            normals = self._pipeline.normals(rgb)
        except Exception as problem:
            if self._node.context.ok():
                text = f"surface normals failed with {type(problem).__name__}: {problem}"
                self._diagnostics.problem("normals", text)
                self._complain(self._topics["normals"], text, "no normals of this image")
            return
        self._diagnostics.solved("normals")
        if not wanted.normals:
            return
        taken_s = time.perf_counter() - start
        self._outputs.publish_normals(normals, message.header)
        if not published:
            self._diagnostics.count("published")
        self._diagnostics.normals(taken_s, None if wanted.of_depth else self._latency_s(image_ns))

    def _latency_s(self, image_ns: int) -> float:
        return (self._node.get_clock().now().nanoseconds - image_ns) * 1e-9

    def _metres_needed(self, wanted: Wanted) -> bool:
        """Whether something that is wanted cannot do without metres."""
        return wanted.metric or (wanted.confidence and self._config().model.confidence == "none")

    def _camera_of(self, width: int, height: int, config: Config) -> Camera | None:
        """The camera of an image of this size, or None while no camera info tells of one."""
        info = self._info
        try:
            if info is None:
                raise Unusable("no camera info yet; nothing is published without it")
            key = (width, height, decoding.info_key(info))
            if self._camera is None or self._camera[0] != key:
                camera = decoding.camera_from_info(info, width, height, rectified=config.image.rectified)
                self._camera = key, camera
        except Unusable as problem:
            self._unusable("camera_info", problem)
            return None
        self._diagnostics.solved("camera_info")
        return self._camera[1]

    def _in_order(self, image_ns: int) -> bool:
        """Whether to answer an image of this time; one or two that are a little late are dropped.

        When time runs backwards (a bag that starts again), what was known of the future is forgotten.
        """
        back_s, late_ns = (self._newest_ns - image_ns) * 1e-9, self._late_ns
        self._late_ns = None
        if back_s > 0.0:
            goes_on = late_ns is not None and image_ns > late_ns
            self._late_count = self._late_count + 1 if goes_on else 1
            if back_s < decoding.LATE_S and self._late_count < _GO_ON:
                self._late_ns = image_ns
                self._diagnostics.count("unusable")
                text = f"header.stamp is {back_s:.3f} s before that of an earlier image"
                self._complain(self._topics["image"], text, "dropped")
                return False
            self._complain(self._topics["image"], f"time went back by {back_s:.3f} s", "starting anew")
            self._sources.forget_after(image_ns, self._config())
        self._newest_ns = image_ns
        return True

    def _unusable(self, topic: str, problem: Unusable) -> None:
        """Drop, count, say once."""
        self._diagnostics.problem(topic, f"{self._topics[topic]}: {problem}")
        self._diagnostics.count("unusable")
        self._complain(self._topics[topic], str(problem), "dropped")
