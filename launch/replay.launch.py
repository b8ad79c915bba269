"""Plays a labelled bag to the segmenter and the evaluator under sim time; ends with the bag and leaves a report.

ros2 launch vtseg_ros replay.launch.py bag:=/data/drive output_dir:=evaluation
"""

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

ARGUMENTS = (
    ("image_topic", "/camera/image", "Base name of the bag's image topic."),
    ("label_topic", "/camera/label", "Base name of the bag's label topic."),
    ("image_transport", "raw", "raw or compressed: how the bag holds the images."),
    ("label_transport", "raw", "raw or compressed: how the bag holds the labels."),
    ("checkpoint", "street_tiny", "Shipped weights by name or a .safetensors file."),
    ("device", "auto", "auto, cpu, cuda or cuda:N."),
    ("rate", "1.0", "Speed of the bag."),
    ("output_dir", "evaluation", "Folder for report.json and report.html."),
)


def _nodes(context):
    def value(name):
        return LaunchConfiguration(name).perform(context)

    image, label = value("image_topic"), value("label_topic")
    remappings = [("image", image), ("image/compressed", f"{image}/compressed"),
                  ("label", label), ("label/compressed", f"{label}/compressed")]  # fmt: skip
    sim_time = {"use_sim_time": True}
    segmenter = Node(
        package="vtseg_ros",
        executable="segmenter",
        name="segmenter",
        parameters=[
            value("params_file"),
            {
                "checkpoint": value("checkpoint"),
                "device": value("device"),
                "image_transport": value("image_transport"),
                "autostart": True,
                **sim_time,
            },
        ],
        remappings=remappings,
        output="screen",
    )
    evaluator = Node(
        package="vtseg_ros",
        executable="evaluator",
        name="evaluator",
        parameters=[{"output_dir": value("output_dir"), "input_qos": "reliable", **sim_time}],
        remappings=remappings,
        output="screen",
    )
    published = {
        name: base + ("/compressed" if value(f"{name}_transport") == "compressed" else "")
        for name, base in (("image", image), ("label", label))
    }
    # The bag starts when both nodes listen; `vtseg play` plays what `ros2 bag record` recorded.
    player = ExecuteProcess(
        cmd=["vtseg", "play", value("bag"), "--clock", "--rate", value("rate"),
             "--wait-for", published["image"], published["image"], published["label"]],
        output="screen",
    )  # fmt: skip
    finish = RegisterEventHandler(
        OnProcessExit(target_action=player, on_exit=[EmitEvent(event=Shutdown(reason="the bag ended"))])
    )
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
