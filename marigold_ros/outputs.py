"""The topics that the node publishes, and who listens to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import LifecycleNode
from rclpy.lifecycle.publisher import LifecyclePublisher
from rclpy.qos import HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from marigold_ros import messages
from marigold_ros.config import OutputConfig, Unusable
from marigold_ros.diagnostics import metric_status
from marigold_ros.pipeline import FrameDepth
from marigold_ros.visual import colour_map


def qos(reliability: str, depth: int) -> QoSProfile:
    """A volatile profile that keeps the last `depth` messages; `reliability` as in the settings."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy[reliability.upper()])


def qos_overrides() -> QoSOverridingOptions:
    """Lets the user change a topic's QoS by parameters `qos_overrides./topic.subscription.reliability` and so on."""
    kinds = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
    return QoSOverridingOptions(kinds)


@contextmanager
def naming(topic: str) -> Iterator[None]:
    """Turn what rclpy raises for a topic that cannot be made into a sentence that names the topic."""
    try:
        yield
    except Exception as problem:
        text = f"topic {topic!r} cannot be made: {problem}; check its remapping and qos_overrides parameters"
        raise Unusable(text) from problem


def info_topic(depth_topic: str) -> str:
    """The camera info topic that subscribers of the depth topic will look for.

    image_transport takes the sibling of the image topic; `/depth` alone has no good sibling, `/x/depth/image` has.
    """
    parent, _, last = depth_topic.rpartition("/")
    return f"{parent}/camera_info" if last.startswith("image") else f"{depth_topic}/camera_info"


@dataclass(frozen=True)
class Wanted:
    """What somebody listens to."""

    relative: bool
    depth: bool
    points: bool
    visual: bool
    confidence: bool = False
    sigma: bool = False
    status: bool = False
    normals: bool = False

    @property
    def metric(self) -> bool:
        """Whether anything in metres is wanted; confidence may be had without."""
        return self.depth or self.points or self.visual or self.sigma or self.status

    def solid(self, settings: OutputConfig) -> bool:
        """Whether a topic is wanted that leaves out what is unsure or floats in the air."""
        return settings.points_min_confidence > 0.0 and (self.points or (self.depth and settings.depth_solid))

    @property
    def of_depth(self) -> bool:
        """Whether anything is wanted for which depth must be known."""
        return self.relative or self.confidence or self.metric

    @property
    def anything(self) -> bool:
        """Whether there is anything to do at all."""
        return self.of_depth or self.normals


class Outputs:
    """Publishes what is listened to, in the form that the settings ask for, under the image's own header.

    normals: whether there is a topic for them.
    """

    def __init__(self, node: LifecycleNode, settings: OutputConfig, normals: bool = False) -> None:
        self._node = node
        self._name = f"{node.get_fully_qualified_name()}: metres"
        self._profile = settings.reliability
        self._cloud: messages.CloudWriter | None = None
        self._publishers: list[LifecyclePublisher] = []
        try:
            self._depth = self._publisher(Image, "depth")
            self._info = self._publisher(CameraInfo, self._info_topic())
            self._points = self._publisher(PointCloud2, "points")
            self._relative = self._publisher(Image, "relative_depth")
            self._visual = self._publisher(Image, "depth/visual")
            self._confidence = self._publisher(Image, "confidence")
            self._sigma = self._publisher(Image, "depth/sigma")
            self._status = self._publisher(DiagnosticArray, "depth/status")
            self._normals = self._publisher(Image, "normals") if normals else None
        except Unusable:
            self.close()
            raise

    def wanted(self) -> Wanted:
        """Which outputs have subscribers now; the camera info alone is no reason to work."""
        return Wanted(
            relative=self._relative.get_subscription_count() > 0,
            depth=self._depth.get_subscription_count() > 0,
            points=self._points.get_subscription_count() > 0,
            visual=self._visual.get_subscription_count() > 0,
            confidence=self._confidence.get_subscription_count() > 0,
            sigma=self._sigma.get_subscription_count() > 0,
            status=self._status.get_subscription_count() > 0,
            normals=self._normals is not None and self._normals.get_subscription_count() > 0,
        )

    def publish(self, frame: FrameDepth, header: Header, wanted: Wanted, settings: OutputConfig) -> bool:
        """Publish one frame, without a fit nothing in metres; returns whether anything was published."""
        if frame.depth_m is not None:
            if wanted.depth:
                convert = messages.millimetre_image if settings.depth_encoding == "16UC1" else messages.float_image
                self._info.publish(messages.camera_info(frame.camera, header))
                self._depth.publish(convert(frame.cloud_m if settings.depth_solid else frame.depth_m, header))
            if wanted.points:
                self._points.publish(self._cloud_message(frame, header, settings.points_stride))
            if wanted.visual:
                picture = colour_map(frame.depth_m, settings.visual_max_m)
                self._visual.publish(messages.colour_image(picture, "bgr8", header))
            if wanted.sigma:
                self._sigma.publish(messages.float_image(frame.sigma_m, header))
        if wanted.status:
            self._status.publish(metric_status(frame, header, self._name))
        if wanted.relative:
            self._relative.publish(messages.float_image(frame.relative, header))
        sure = wanted.confidence and frame.confidence is not None
        if sure:
            self._confidence.publish(messages.float_image(frame.confidence, header))
        return wanted.relative or wanted.status or sure or (wanted.metric and frame.depth_m is not None)

    def publish_normals(self, normals: Any, header: Header) -> None:
        """Publish (H, W, 3) float32 unit vectors in the optical frame."""
        self._normals.publish(messages.float_image(normals, header))

    def close(self) -> None:
        """Remove the topics."""
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)

    def _info_topic(self) -> str:
        """The depth's camera info; raises `Unusable` where that, remapped as every name is, is the camera's own."""
        info = info_topic(self._depth.topic_name)
        resolved = self._node.resolve_topic_name(info)
        if resolved == self._node.resolve_topic_name("camera_info"):
            raise Unusable(
                f"topic {self._depth.topic_name!r}: its camera info would go to {resolved!r}, where the camera's own "
                "is; remap depth to another namespace, e.g. depth:=/depth"
            )
        return info

    def _publisher(self, kind: type, topic: str) -> LifecyclePublisher:
        profile = qos(self._profile, depth=2)
        with naming(topic):
            publisher = self._node.create_lifecycle_publisher(
                kind, topic, profile, qos_overriding_options=qos_overrides()
            )
        self._publishers.append(publisher)
        return publisher

    def _cloud_message(self, frame: FrameDepth, header: Header, stride: int) -> PointCloud2:
        if self._cloud is None or self._cloud.camera != frame.camera:
            self._cloud = messages.CloudWriter(frame.camera)
        if stride == 1:
            return self._cloud.organized(frame.cloud_m, frame.rgb, header)
        return self._cloud.strided(frame.cloud_m, frame.rgb, stride, header)
