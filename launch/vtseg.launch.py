# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Start the segmenter, and RViz if requested.

ros2 launch vtseg_ros vtseg.launch.py image_topic:=/camera/image rviz:=true
"""

from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription
from vtseg_ros.errors import ConfigError
from vtseg_ros.nodes.dds import profile_environment
from vtseg_ros.nodes.launching import camera_topics, plain_section, report_exit, require_file, truth
from vtseg_ros.transports import TRANSPORTS

ARGUMENTS = (
    (
        "image_topic",
        "/camera/image",
        "Base name of the image topic; the transports add /compressed, /zstd, /ffmpeg or /foxglove.",
    ),
    ("image_transport", "", "raw, compressed, zstd, ffmpeg or foxglove; empty = the parameter file's."),
    ("checkpoint", "", "Shipped weights by name or a .safetensors file; empty = the parameter file's."),
    ("device", "", "auto, cpu, cuda or cuda:N; empty = the parameter file's."),
    ("window", "", "Frames of the sliding window; 0 = the checkpoint's; empty = the parameter file's."),
    ("output_size", "", "input, network or WIDTHxHEIGHT px; empty = the parameter file's."),
    ("resize_mode", "", "stretch, letterbox or crop; empty = the parameter file's."),
    ("min_confidence", "", "0..1; pixels below it become 255; empty = the parameter file's."),
    ("cameras", "", "Comma-separated camera names (topics <camera>/image); empty = one camera, image_topic."),
    (
        "image_topics",
        "",
        "Comma-separated image topics, one for each of cameras; empty = <camera>/image of each.",
    ),
    ("namespace", "", "Namespace of the node."),
    (
        "autostart",
        "true",
        "Configure and activate the node at its start; false leaves this to a lifecycle manager.",
    ),
    ("respawn", "false", "Restart the segmenter 2 s after it exits."),
    ("use_sim_time", "", "true takes the time from /clock; empty = the parameter file's."),
    ("log_level", "info", "debug, info, warn, error or fatal."),
    ("rviz", "false", "Start RViz with overlay, colour mask and camera."),
    ("fixed_frame", "", "Fixed frame of RViz; empty = segmentation_view, which this launch file publishes."),
    ("fastdds_profile", "", "default (images over shared memory), loopback, or an XML file; empty = none."),
)
TYPED = ("image_transport", "checkpoint", "device", "window", "output_size", "resize_mode", "min_confidence")


def _require_rviz():
    """Raise ConfigError before anything is started: launch would leave the segmenter running."""
    try:
        prefix = get_package_prefix("rviz2")
    except PackageNotFoundError:
        prefix = ""
    if not prefix or not (Path(prefix) / "lib" / "rviz2" / "rviz2").is_file():
        raise ConfigError("rviz: rviz2 is not installed; apt install ros-$ROS_DISTRO-rviz2, or rviz:=false")


def _parameters(path, namespaced):
    """A parameter file for the node in its namespace: by ROS's rules the plain key names the one in the root."""
    values = plain_section(path, "segmenter")
    if not namespaced:
        return [path]
    own = {
        name: ParameterValue(value, value_type=str) if isinstance(value, str) else value
        for name, value in values.items()
    }
    # Before the file, whose section for the namespaced name goes above the plain one.
    return [own, path] if own else [path]


def _remappings(name, topic):
    """Image, compressed image and camera_info of a camera: a remapping of a base name does not reach below it."""
    parent, slash, _ = topic.rpartition("/")
    prefix = f"{name}/" if name else ""
    return [
        *((f"{prefix}image{suffix}", f"{topic}{suffix}") for _, suffix in TRANSPORTS.values()),
        (f"{prefix}camera_info", f"{parent}{slash}camera_info"),
    ]


def _nodes(context):
    def value(name):
        return LaunchConfiguration(name).perform(context)

    share = FindPackageShare("vtseg_ros").perform(context)
    params_file = require_file("params_file", value("params_file"))
    autostart, respawn, rviz = (truth(name, value(name)) for name in ("autostart", "respawn", "rviz"))
    sim_time = (
        [{"use_sim_time": truth("use_sim_time", value("use_sim_time"))}] if value("use_sim_time") else []
    )
    if rviz:
        _require_rviz()
    # As strings, whatever they look like, which the node converts: launch would take "0x0" or "2026" for a number.
    overrides = {name: ParameterValue(value(name), value_type=str) for name in TYPED if value(name)}
    cameras = [name.strip() for name in value("cameras").split(",") if name.strip()]
    if cameras:
        overrides["cameras"] = cameras
    overrides["autostart"] = autostart
    topic, namespace = value("image_topic"), value("namespace").strip("/")
    topics = camera_topics(cameras, value("image_topics"))
    remappings = [pair for camera in topics for pair in _remappings(camera, topics[camera])]
    if not cameras:
        remappings = _remappings("", topic)
    pushed = context.launch_configurations.get("ros_namespace", "").strip("/")
    # What the RViz configuration shows, by the names it has here.
    spaces = [part for part in (pushed, namespace) if part]
    base = "".join(f"/{part}" for part in (*spaces, *cameras[:1]))
    shown = [(f"/segmentation/{name}", f"{base}/segmentation/{name}") for name in ("overlay", "color")]
    seen = topics.get(cameras[0], f"{cameras[0]}/image") if cameras else topic
    # RViz is in no namespace: there a relative name is another topic.
    seen = seen if seen.startswith("/") else "".join(f"/{part}" for part in (*spaces, seen))
    shown.append(("/camera/image", seen))
    profile = profile_environment(value("fastdds_profile"), share)
    nodes = [
        Node(
            package="vtseg_ros",
            executable="segmenter",
            name="segmenter",
            namespace=namespace,
            parameters=[*_parameters(params_file, bool(spaces)), overrides, *sim_time],
            remappings=remappings,
            arguments=["--ros-args", "--log-level", value("log_level")],
            additional_env=profile,
            output="screen",
            respawn=respawn,
            respawn_delay=2.0,
            on_exit=None if respawn else report_exit,
            # It finishes the frame in work and frees the GPU; launch's own limit is 5 s.
            sigterm_timeout="20",
        )
    ]
    if rviz:
        frame = value("fixed_frame")
        if not frame:
            # Images need no transform, but RViz warns of a fixed frame that does not exist.
            frame = "segmentation_view"
            nodes.append(
                Node(
                    package="tf2_ros",
                    executable="static_transform_publisher",
                    namespace="/",
                    arguments=["--frame-id", "segmentation_view_origin", "--child-frame-id", frame],
                    additional_env=profile,
                )
            )
        nodes.append(
            Node(
                package="rviz2",
                executable="rviz2",
                namespace="/",
                arguments=["-d", f"{share}/config/vtseg.rviz", "--fixed-frame", frame],
                parameters=sim_time,
                remappings=shown,
                additional_env=profile,
            )
        )
    return nodes


def generate_launch_description():
    params_file = PathJoinSubstitution([FindPackageShare("vtseg_ros"), "config", "segmenter.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("params_file", default_value=params_file, description="Parameter YAML."),
            *(DeclareLaunchArgument(n, default_value=d, description=text) for n, d, text in ARGUMENTS),
            OpaqueFunction(function=_nodes),
        ]
    )
