# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Offline training from bags, with progress on training/progress.

ros2 launch vtseg_ros train.launch.py params_file:=train.yaml output_dir:=run
"""

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription
from vtseg_ros.nodes.launching import report_exit


def generate_launch_description():
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "params_file", description="Training YAML, such as config/train/street.yaml."
            ),
            DeclareLaunchArgument(
                "output_dir", default_value="training", description="Folder for checkpoints and logs."
            ),
            DeclareLaunchArgument(
                "resume", default_value="false", description="Continue from the state in output_dir."
            ),
            Node(
                package="vtseg_ros",
                executable="trainer",
                name="trainer",
                parameters=[
                    {
                        # Strings, whatever they look like: launch would take "2026" for a number.
                        "config": ParameterValue(LaunchConfiguration("params_file"), value_type=str),
                        "output_dir": ParameterValue(LaunchConfiguration("output_dir"), value_type=str),
                        "resume": ParameterValue(LaunchConfiguration("resume"), value_type=str),
                    }
                ],
                output="screen",
                on_exit=report_exit,
                # Saving a checkpoint may take longer than launch's 5 s from SIGINT to SIGTERM, and again to SIGKILL.
                sigterm_timeout="120",
                sigkill_timeout="120",
            ),
        ]
    )
