"""Play the bundled recording to the node and look at its answer in RViz.

The LiDAR's place comes from the recording's /tf_static. Without RViz: `rviz:=false`; once instead of for ever:
`loop:=false`.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

SHARE = Path(__file__).resolve().parent.parent
ARGUMENTS = {
    "recording": (str(SHARE / "recordings" / "warehouse"), "rosbag2 folder or .mcap file to play."),
    "loop": ("true", "Start again at the end."),
    "rviz": ("true", "Open RViz on the outputs."),
    "checkpoint": ("", "Overrides model.checkpoint."),
    "engine": ("", "Overrides model.engine."),
}
# What the recording holds, and what the node is told of it.
INPUTS = {"image": "/camera/image", "camera_info": "/camera/camera_info", "range": "/lidar/points"}


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    passed_on = {name: LaunchConfiguration(name) for name in ("rviz", "checkpoint", "engine")}
    depth = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "depth.launch.py")),
        launch_arguments={**INPUTS, **passed_on, "fixed_frame": "lidar"}.items(),
    )
    # After the include, whose DDS profile it needs.
    return LaunchDescription([*declared, depth, OpaqueFunction(function=_player)])


def _player(context: LaunchContext) -> list:
    given = {name: LaunchConfiguration(name).perform(context) for name in ("recording", "loop")}
    loop = ["--loop"] if given["loop"].lower() in ("true", "1") else []
    # --raw: the node's default parameters expect sensor_msgs/Image.
    arguments = [given["recording"], "--raw", *loop]
    return [Node(package="marigold_ros", executable="player", arguments=arguments, output="screen")]
