"""Start depth_node, which configures and activates itself.

Arguments that are left empty keep what `params_file` says. The Fast DDS profile is set unless the environment already
names one; every other process that exchanges images with the node needs it too (see config/fastdds.xml).

Under a lifecycle manager instead (Nav2): set node.autostart false in `params_file`; see docs/nav2.md.
"""

import os
from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

# In the sources and in the install tree alike.
CONFIG = Path(__file__).resolve().parent.parent / "config"
TOPICS = ("image", "camera_info", "range", "range2", "range3", "depth", "points")
TRANSFORMS = ("tf", "tf_static")
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
# Huge pages for images, which are made anew for every frame: a twentieth of what the node does beside the network.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

ARGUMENTS = {
    "namespace": ("", "Namespace of the node and its topics."),
    "params_file": (str(CONFIG / "depth.yaml"), "Parameter file; config/depth.yaml lists every parameter."),
    "image": ("image", "Camera image (sensor_msgs/Image, or CompressedImage with image.transport 'compressed')."),
    "camera_info": ("camera_info", "The camera's sensor_msgs/CameraInfo."),
    "range": ("range", "LiDAR (sensor_msgs/PointCloud2), or what range.type says."),
    "range2": ("range2", "A further range sensor; what it is, range2.type says in params_file."),
    "range3": ("range3", "One more, as range2."),
    "depth": ("depth", "Where the depth image goes."),
    "points": ("points", "Where the point cloud goes."),
    "tf": ("/tf", "Where transforms come from; 'tf' on robots that have one in each namespace."),
    "tf_static": ("/tf_static", "Where static ones come from; 'tf_static' on such robots."),
    "checkpoint": ("", "Overrides model.checkpoint."),
    "engine": ("", "Overrides model.engine."),
    "use_sim_time": ("", "Take the time from /clock: true or false."),
    "log_level": ("info", "Log level of the node."),
    "rviz": ("false", "Open RViz on the outputs."),
    "fixed_frame": ("base_link", "RViz' fixed frame."),
}


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, *_profile(), OpaqueFunction(function=_nodes)])


def _profile() -> list:
    """Set the DDS profile for everything that this launch file starts."""
    if any(os.environ.get(name) for name in PROFILE_VARIABLES):
        return []
    return [SetEnvironmentVariable(name, str(CONFIG / "fastdds.xml")) for name in PROFILE_VARIABLES]


def _nodes(context: LaunchContext) -> list:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    overrides = {f"model.{key}": given[key] for key in ("checkpoint", "engine") if given[key]}
    clock = {"use_sim_time": _is_true(given["use_sim_time"])} if given["use_sim_time"] else {}
    remappings = [(topic, given[topic]) for topic in TOPICS if given[topic] != topic]
    remappings += [(f"/{name}", given[name]) for name in TRANSFORMS if given[name] != f"/{name}"]
    nodes = [
        Node(
            package="marigold_ros",
            executable="depth_node",
            name="depth_node",
            namespace=given["namespace"],
            parameters=[given["params_file"], overrides | clock],
            remappings=remappings,
            arguments=["--ros-args", "--log-level", given["log_level"]],
            additional_env={name: os.environ.get(name, value) for name, value in HUGE_PAGES.items()},
            output="screen",
        )
    ]
    if _is_true(given["rviz"]):
        nodes.append(
            Node(
                package="rviz2",
                executable="rviz2",
                namespace=given["namespace"],
                arguments=["-d", str(CONFIG / "depth.rviz"), "-f", given["fixed_frame"]],
                remappings=remappings,
                parameters=[clock],
            )
        )
    return nodes


def _is_true(text: str) -> bool:
    return text.lower() in ("true", "1")
