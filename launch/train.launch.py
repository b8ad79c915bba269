"""Offline training from bags, with progress on training/progress.

ros2 launch vtseg_ros train.launch.py params_file:=train.yaml output_dir:=run
"""

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription


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
                "resume", default_value="false", description="Go on from the state in output_dir."
            ),
            Node(
                package="vtseg_ros",
                executable="trainer",
                name="trainer",
                parameters=[
                    {
                        "config": LaunchConfiguration("params_file"),
                        "output_dir": LaunchConfiguration("output_dir"),
                        "resume": ParameterValue(LaunchConfiguration("resume"), value_type=bool),
                    }
                ],
                output="screen",
                # Saving a checkpoint may take longer than launch's 5 s from SIGINT to SIGTERM, and again to SIGKILL.
                sigterm_timeout="120",
                sigkill_timeout="120",
            ),
        ]
    )
