# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`ros2 launch`'s exit code, and what is checked before any process is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("launch_ros")

ROOT = Path(__file__).resolve().parents[2]
# What `ros2 launch` does with a file and its arguments.
RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [tuple(text.split(":=", 1)) for text in sys.argv[2:]]
service = LaunchService(noninteractive=True)
service.include_launch_description(LaunchDescription([
    IncludeLaunchDescription(PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)]))
sys.exit(service.run())
"""


def launch(environment, name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", RUN, str(ROOT / "launch" / f"{name}.launch.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("vtseg", ["params_file:=/nowhere/x.yaml"], "params_file: no such file"),
        ("vtseg", ["autostart:=perhaps"], "autostart: expected true or false"),
        ("vtseg", ["use_sim_time:=2"], "use_sim_time: expected true or false"),
        ("vtseg", ["cameras:=a,b", "image_topics:=/x"], "one topic per camera"),
        ("replay", ["bag:=/nowhere/bag"], "no such bag"),
        ("replay", ["bag:=/tmp", "loop:=always"], "loop: expected true or false"),
    ],
)
def test_nothing_is_started(ros_environment, name, arguments, words):
    done = launch(ros_environment, name, *arguments)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and words in said and "process started" not in said, said


def test_rviz_that_is_not_installed_is_told_before_anything_starts(ros_environment):
    from ament_index_python.packages import get_packages_with_prefixes

    if "rviz2" in get_packages_with_prefixes():
        pytest.skip("rviz2 is installed")
    done = launch(ros_environment, "vtseg", "rviz:=true")
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "rviz2 is not installed" in said and "process started" not in said, said


def test_a_checkpoint_that_does_not_exist(ros_environment):
    done = launch(ros_environment, "vtseg", "checkpoint:=/nowhere/x.safetensors")
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "/nowhere/x.safetensors: no checkpoint" in said, said
