"""The segmenter, and RViz when asked.

ros2 launch vtseg_ros vtseg.launch.py image_topic:=/camera/image rviz:=true
"""

import yaml
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription
from vtseg_ros.fastdds import profile_environment

ARGUMENTS = (
    (
        "image_topic",
        "/camera/image",
        "Base name of the image topic; /compressed is added by image_transport.",
    ),
    ("image_transport", "", "raw or compressed; empty = the parameter file's."),
    ("checkpoint", "", "Shipped weights by name or a .safetensors file; empty = the parameter file's."),
    ("device", "", "auto, cpu, cuda or cuda:N; empty = the parameter file's."),
    ("cameras", "", "Comma-separated camera names (topics <camera>/image); empty = one camera, image_topic."),
    ("namespace", "", "Namespace of the node."),
    ("autostart", "true", "Configure and activate at once; false leaves it to a lifecycle manager."),
    ("use_sim_time", "", "true takes the time from /clock; empty = the parameter file's."),
    ("log_level", "info", "debug, info, warn, error or fatal."),
    ("rviz", "false", "Start RViz with overlay, colour mask and camera."),
    ("fastdds_profile", "", "default (images over shared memory), loopback, or an XML file; empty = none."),
)


def _parameters(path, namespace):
    """A parameter file for the node in its namespace: by ROS's rules the plain key names the one in the root."""
    if not namespace:
        return [path]
    with open(path) as file:
        content = yaml.safe_load(file) or {}
    values = content.get("segmenter", {}).get("ros__parameters", {})
    own = {
        name: ParameterValue(value, value_type=str) if isinstance(value, str) else value
        for name, value in values.items()
    }
    # Before the file, whose section for the namespaced name goes above the plain one.
    return [own, path] if own else [path]


def _nodes(context):
    def value(name):
        return LaunchConfiguration(name).perform(context)

    share = FindPackageShare("vtseg_ros").perform(context)
    # As strings, whatever they look like: launch would take "0x0" or "2026" for a number.
    overrides = {
        name: ParameterValue(value(name), value_type=str)
        for name in ("image_transport", "checkpoint", "device")
        if value(name)
    }
    cameras = [name.strip() for name in value("cameras").split(",") if name.strip()]
    if cameras:
        overrides["cameras"] = cameras
    overrides["autostart"] = value("autostart").lower() == "true"
    sim_time = []
    if value("use_sim_time"):
        sim_time.append({"use_sim_time": value("use_sim_time").lower() == "true"})
    topic, namespace = value("image_topic"), value("namespace").strip("/")
    parent, slash, _ = topic.rpartition("/")
    remappings = [
        ("image", topic),
        # A remapping of the base name does not reach names below it.
        ("image/compressed", f"{topic}/compressed"),
        ("camera_info", f"{parent}{slash}camera_info"),
    ]
    # What the RViz configuration shows, by the names it has here.
    base = "".join(f"/{part}" for part in (namespace, *cameras[:1]) if part)
    shown = [(f"/segmentation/{name}", f"{base}/segmentation/{name}") for name in ("overlay", "color")]
    # RViz is in no namespace: there a relative name is another topic.
    seen = topic if topic.startswith("/") else "".join(f"/{part}" for part in (namespace, topic) if part)
    shown.append(("/camera/image", f"{base}/image" if cameras else seen))
    profile = profile_environment(value("fastdds_profile"), share)
    return [
        Node(
            package="vtseg_ros",
            executable="segmenter",
            name="segmenter",
            namespace=namespace,
            parameters=[*_parameters(value("params_file"), namespace), overrides, *sim_time],
            remappings=[] if cameras else remappings,
            arguments=["--ros-args", "--log-level", value("log_level")],
            additional_env=profile,
            output="screen",
            # It finishes the frame in work and frees the GPU; launch's own limit is 5 s.
            sigterm_timeout="20",
        ),
        Node(
            package="rviz2",
            executable="rviz2",
            arguments=["-d", f"{share}/config/vtseg.rviz"],
            parameters=sim_time,
            remappings=shown,
            additional_env=profile,
            condition=IfCondition(LaunchConfiguration("rviz")),
        ),
    ]


def generate_launch_description():
    params_file = PathJoinSubstitution([FindPackageShare("vtseg_ros"), "config", "segmenter.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("params_file", default_value=params_file, description="Parameter YAML."),
            *(DeclareLaunchArgument(n, default_value=d, description=text) for n, d, text in ARGUMENTS),
            OpaqueFunction(function=_nodes),
        ]
    )
