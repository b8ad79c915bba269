# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Play a labelled bag to the segmenter and the evaluator with simulated time, and write a report at its end.

ros2 launch vtseg_ros replay.launch.py bag:=/data/drive output_dir:=evaluation

At the end of the bag, all processes of the launch exit, also those of a launch file that includes this one.
"""

from pathlib import Path

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
from vtseg_ros.nodes.dds import profile_environment
from vtseg_ros.nodes.launching import NOT_REPLAYED, describe_bag, find_topic, report_exit, require_file, truth
from vtseg_ros.topic_names import ANSWERS
from vtseg_ros.transports import TRANSPORTS

ARGUMENTS = (
    ("image_topic", "", "Base name of the bag's image topic; empty = the only camera in the bag."),
    ("label_topic", "", "Base name of the bag's label topic; empty = the only one in the bag."),
    ("image_transport", "", "raw, compressed, zstd, ffmpeg or foxglove; empty = as found in the bag."),
    ("label_transport", "", "raw, compressed or zstd; empty = as found in the bag."),
    ("checkpoint", "", "Shipped weights by name or a .safetensors file; empty = the parameter file's."),
    ("device", "", "auto, cpu, cuda or cuda:N; empty = the parameter file's."),
    ("window", "", "Frames of the sliding window; 0 = the checkpoint's; empty = the parameter file's."),
    ("output_size", "", "input, network or WIDTHxHEIGHT px; empty = the parameter file's."),
    ("resize_mode", "", "stretch, letterbox or crop; empty = the parameter file's."),
    ("min_confidence", "", "0..1; pixels below it become 255; empty = the parameter file's."),
    (
        "class_map",
        "",
        "YAML that maps each label class to the segmenter's classes that count as it; empty = the same classes.",
    ),
    ("rate", "1.0", "Playback speed."),
    ("loop", "false", "Repeat the bag until Ctrl-C."),
    ("output_dir", "evaluation", "Folder for report.json and report.html."),
    ("title", "Replay evaluation", "Heading of the report."),
    ("log_level", "info", "debug, info, warn, error or fatal."),
    ("fastdds_profile", "", "default (images over shared memory), loopback, or an XML file; empty = none."),
)
TYPED = ("checkpoint", "device", "window", "output_size", "resize_mode", "min_confidence")
# Writing the report of a long bag may take longer than launch's 5 s from SIGINT to SIGTERM, and again to SIGKILL.
PATIENCE_S = "60"


def _ends(reason):
    """Return the actions at the exit of a node, which end the launch."""

    def on_exit(event, context):
        report_exit(event, context)
        return [EmitEvent(event=Shutdown(reason=reason))]

    return on_exit


def _nodes(context):
    def value(name):
        return LaunchConfiguration(name).perform(context)

    params_file, bag = require_file("params_file", value("params_file")), str(Path(value("bag")).expanduser())
    loop = truth("loop", value("loop"))
    class_map = require_file("class_map", value("class_map")) if value("class_map") else ""
    info = describe_bag(bag)
    image, image_transport = find_topic("image", info, value("image_topic"), value("image_transport"))
    label, label_transport = find_topic("label", info, value("label_topic"), value("label_transport"))
    remappings = [
        *((f"image{suffix}", f"{image}{suffix}") for _, suffix in TRANSPORTS.values()),
        *((f"label{suffix}", f"{label}{suffix}") for _, suffix in TRANSPORTS.values()),
    ]
    sim_time = {"use_sim_time": True}
    arguments = ["--ros-args", "--log-level", value("log_level")]
    profile = profile_environment(value("fastdds_profile"), FindPackageShare("vtseg_ros").perform(context))

    def text(name):
        # A string, whatever it looks like: launch would take "2026" for a number.
        return ParameterValue(value(name), value_type=str)

    overrides = {name: text(name) for name in TYPED if value(name)}
    segmenter = Node(
        package="vtseg_ros",
        executable="segmenter",
        name="segmenter",
        parameters=[
            params_file,
            {**overrides, "image_transport": image_transport, "autostart": True, **sim_time},
        ],
        remappings=remappings,
        arguments=arguments,
        additional_env=profile,
        output="screen",
        sigterm_timeout=PATIENCE_S,
        sigkill_timeout=PATIENCE_S,
        on_exit=_ends("the segmenter exited"),
    )
    evaluator = Node(
        package="vtseg_ros",
        executable="evaluator",
        name="evaluator",
        parameters=[
            {
                "output_dir": text("output_dir"),
                "title": text("title"),
                "class_map": ParameterValue(class_map, value_type=str),
                "input_qos": "reliable",
                "image_transport": image_transport,
                "label_transport": label_transport,
                **sim_time,
            }
        ],
        remappings=remappings,
        arguments=arguments,
        additional_env=profile,
        output="screen",
        sigterm_timeout=PATIENCE_S,
        sigkill_timeout=PATIENCE_S,
        on_exit=_ends("the evaluator exited"),
    )
    published = {
        "image": image + TRANSPORTS[image_transport].suffix,
        "label": label + TRANSPORTS[label_transport].suffix,
    }
    # The bag starts when both nodes listen; `vtseg play` plays what `ros2 bag record` recorded.
    player = ExecuteProcess(
        cmd=[
            "vtseg",
            "play",
            bag,
            "--clock",
            "--rate",
            value("rate"),
            # If a node exits instead of subscribing, the whole launch ends.
            "--wait-timeout",
            "600",
            *(["--loop"] if loop else []),
            # Recorded topics that this run also publishes: they would be mistaken for its results, logs and diagnostics.
            "--exclude-regex",
            f"{ANSWERS}|{NOT_REPLAYED}",
            "--wait-for",
            published["image"],
            published["image"],
            published["label"],
        ],
        additional_env=profile,
        output="screen",
    )
    # The segmenter first: it finishes the current frame and publishes its final counters; then the other nodes end.
    end = EmitEvent(event=ShutdownProcess(process_matcher=matches_action(segmenter)))

    def player_ended(event, context):
        report_exit(event, context)
        return [end]

    finish = RegisterEventHandler(OnProcessExit(target_action=player, on_exit=player_ended))
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
