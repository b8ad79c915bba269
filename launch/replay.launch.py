"""Plays a labelled bag to the segmenter and the evaluator under sim time; ends with the bag and leaves a report.

ros2 launch vtseg_ros replay.launch.py bag:=/data/drive output_dir:=evaluation

It ends as a whole: include it where nothing else is to go on after the bag.
"""

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown, matches_action
from launch.events.process import ShutdownProcess
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription
from vtseg_ros.fastdds import profile_environment
from vtseg_ros.names import ANSWERS

ARGUMENTS = (
    ("image_topic", "/camera/image", "Base name of the bag's image topic."),
    ("label_topic", "/camera/label", "Base name of the bag's label topic."),
    ("image_transport", "raw", "raw or compressed: how the bag holds the images."),
    ("label_transport", "raw", "raw or compressed: how the bag holds the labels."),
    ("checkpoint", "", "Shipped weights by name or a .safetensors file; empty = the parameter file's."),
    ("device", "", "auto, cpu, cuda or cuda:N; empty = the parameter file's."),
    (
        "class_map",
        "",
        "YAML of label class to the segmenter's classes that count as it; empty = the same classes.",
    ),
    ("rate", "1.0", "Speed of the bag."),
    ("loop", "false", "Play the bag over and over, until Ctrl-C."),
    ("output_dir", "evaluation", "Folder for report.json and report.html."),
    ("title", "Replay evaluation", "Heading of the report."),
    ("log_level", "info", "debug, info, warn, error or fatal."),
    ("fastdds_profile", "", "default (images over shared memory), loopback, or an XML file; empty = none."),
)
# Writing the report of a long bag may take longer than launch's 5 s from SIGINT to SIGTERM, and again to SIGKILL.
PATIENCE_S = "60"


def _nodes(context):
    def value(name):
        return LaunchConfiguration(name).perform(context)

    image, label = value("image_topic"), value("label_topic")
    remappings = [("image", image), ("image/compressed", f"{image}/compressed"),
                  ("label", label), ("label/compressed", f"{label}/compressed")]  # fmt: skip
    sim_time = {"use_sim_time": True}
    arguments = ["--ros-args", "--log-level", value("log_level")]
    profile = profile_environment(value("fastdds_profile"), FindPackageShare("vtseg_ros").perform(context))

    def text(name):
        # A string, whatever it looks like: launch would take "2026" for a number.
        return ParameterValue(value(name), value_type=str)

    overrides = {name: text(name) for name in ("checkpoint", "device") if value(name)}
    segmenter = Node(
        package="vtseg_ros",
        executable="segmenter",
        name="segmenter",
        parameters=[
            value("params_file"),
            {**overrides, "image_transport": text("image_transport"), "autostart": True, **sim_time},
        ],
        remappings=remappings,
        arguments=arguments,
        additional_env=profile,
        output="screen",
        sigterm_timeout=PATIENCE_S,
        sigkill_timeout=PATIENCE_S,
        on_exit=[EmitEvent(event=Shutdown(reason="the segmenter ended"))],
    )
    evaluator = Node(
        package="vtseg_ros",
        executable="evaluator",
        name="evaluator",
        parameters=[
            {
                "output_dir": text("output_dir"),
                "title": text("title"),
                "class_map": text("class_map"),
                "input_qos": "reliable",
                **sim_time,
            }
        ],
        remappings=remappings,
        arguments=arguments,
        additional_env=profile,
        output="screen",
        sigterm_timeout=PATIENCE_S,
        sigkill_timeout=PATIENCE_S,
        on_exit=[EmitEvent(event=Shutdown(reason="the evaluator ended"))],
    )
    published = {
        name: base + ("/compressed" if value(f"{name}_transport") == "compressed" else "")
        for name, base in (("image", image), ("label", label))
    }
    # The bag starts when both nodes listen; `vtseg play` plays what `ros2 bag record` recorded.
    player = ExecuteProcess(
        cmd=["vtseg", "play", value("bag"), "--clock", "--rate", value("rate"),
             # Should a node end instead of subscribing, so does all of this.
             "--wait-timeout", "600", *(["--loop"] if value("loop").lower() == "true" else []),
             # Recorded with the bag: it would be taken for this segmenter's.
             "--exclude-regex", ANSWERS,
             "--wait-for", published["image"], published["image"], published["label"]],
        additional_env=profile,
        output="screen",
    )  # fmt: skip
    # The segmenter first: it finishes what it has in work and tells its last counts, then the rest ends with it.
    end = EmitEvent(event=ShutdownProcess(process_matcher=matches_action(segmenter)))
    finish = RegisterEventHandler(OnProcessExit(target_action=player, on_exit=[end]))
    return [segmenter, evaluator, player, finish]


def generate_launch_description():
    params_file = PathJoinSubstitution([FindPackageShare("vtseg_ros"), "config", "segmenter.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="The labelled bag."),
            DeclareLaunchArgument("params_file", default_value=params_file, description="Parameter YAML."),
            *(DeclareLaunchArgument(n, default_value=d, description=text) for n, d, text in ARGUMENTS),
            OpaqueFunction(function=_nodes),
        ]
    )
