# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Start the cloud node, which combines masks with depth images or points.

ros2 launch vtseg_ros cloud.launch.py depth_topic:=/camera/aligned_depth_to_color/image_raw
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription
from vtseg_ros.nodes.dds import profile_environment
from vtseg_ros.transports import COMPRESSED_DEPTH, TRANSPORTS

ARGUMENTS = (
    ("source", "depth", "depth (registered depth image) or points (PointCloud2)."),
    (
        "image_topic",
        "/camera/image",
        "Image topic of the mask's camera; camera_info is in the same namespace.",
    ),
    ("depth_topic", "/camera/depth", "Depth image, registered to the camera."),
    ("points_topic", "/points", "Point cloud."),
    ("image_transport", "raw", "raw, compressed, zstd, ffmpeg or foxglove; for color:=image."),
    ("depth_transport", "raw", "raw, compressed, zstd or compressedDepth."),
    (
        "extrinsics",
        "",
        "Pose of the points' frame in the camera's optical frame, x y z qx qy qz qw; empty = tf2.",
    ),
    ("color", "class", "Colour of the points: class, image or none."),
    ("classes", "", "Comma-separated names of the classes to keep; empty = all."),
    ("max_range", "100.0", "m along the camera's z axis; points further away are removed."),
    ("stride", "1", "Use every n-th px in both directions, or every n-th point."),
    (
        "max_time_difference",
        "0.02",
        "s; largest difference between the stamps of mask and depth image or points.",
    ),
    ("namespace", "", "Namespace of the node and of the segmenter's topics."),
    ("use_sim_time", "false", "true takes the time from /clock."),
    ("log_level", "info", "debug, info, warn, error or fatal."),
    ("fastdds_profile", "", "default (images over shared memory), loopback, or an XML file; empty = none."),
)
SUFFIXES = (*(transport.suffix for transport in TRANSPORTS.values()), COMPRESSED_DEPTH)
TYPES = {
    "source": str,
    "extrinsics": str,
    "color": str,
    "image_transport": str,
    "depth_transport": str,
    "max_range": float,
    "stride": int,
    "max_time_difference": float,
    "use_sim_time": bool,
}


def _nodes(context):
    def value(name):
        return LaunchConfiguration(name).perform(context)

    # With their types: launch would take "1" for an integer where the parameter is a double.
    parameters = {name: ParameterValue(value(name), value_type=kind) for name, kind in TYPES.items()}
    classes = [name.strip() for name in value("classes").split(",") if name.strip()]
    if classes:
        parameters["classes"] = classes
    image = value("image_topic")
    parent, slash, _ = image.rpartition("/")
    return [
        Node(
            package="vtseg_ros",
            executable="cloud",
            name="cloud",
            namespace=value("namespace").strip("/"),
            parameters=[parameters],
            remappings=[
                ("camera_info", f"{parent}{slash}camera_info"),
                ("points", value("points_topic")),
                *((f"image{suffix}", f"{image}{suffix}") for suffix in SUFFIXES),
                *((f"depth{suffix}", f"{value('depth_topic')}{suffix}") for suffix in SUFFIXES),
            ],
            arguments=["--ros-args", "--log-level", value("log_level")],
            additional_env=profile_environment(
                value("fastdds_profile"), FindPackageShare("vtseg_ros").perform(context)
            ),
            output="screen",
        )
    ]


def generate_launch_description():
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(n, default_value=d, description=text) for n, d, text in ARGUMENTS),
            OpaqueFunction(function=_nodes),
        ]
    )
