# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Launch files of the package, included as a user's launch would, and what their processes print and end with."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from conftest import wait_until
from launch.actions import IncludeLaunchDescription, RegisterEventHandler, SetEnvironmentVariable
from launch.event_handlers import OnProcessExit, OnProcessIO
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_pytest.actions import ReadyToTest
from launch_ros.actions import PushRosNamespace, SetParameter

from launch import LaunchDescription

ROOT = Path(__file__).resolve().parents[2]
OURS = (
    "ROS_DOMAIN_ID",
    "FASTRTPS_DEFAULT_PROFILES_FILE",
    "FASTDDS_DEFAULT_PROFILES_FILE",
    "OMP_NUM_THREADS",
    "PYTHONUNBUFFERED",
)


class Watch:
    """Texts and exit codes by executable."""

    def __init__(self) -> None:
        self.text: dict[str, str] = defaultdict(str)
        self.codes: dict[str, int] = {}

    def _on_io(self, event) -> None:
        self.text[_executable(event)] += event.text.decode()

    def _on_exit(self, event, _) -> None:
        self.codes[_executable(event)] = event.returncode

    def actions(self) -> list:
        io = OnProcessIO(on_stdout=self._on_io, on_stderr=self._on_io)
        return [RegisterEventHandler(io), RegisterEventHandler(OnProcessExit(on_exit=self._on_exit))]

    def wait_for_text(self, executable: str, text: str) -> None:
        wait_until(
            lambda: text in self.text[executable] or executable in self.codes,
            lambda: str(self.text),
        )
        assert text in self.text[executable], self.text

    def wait_for_exit(self, *executables: str) -> None:
        wait_until(
            lambda: set(executables) <= self.codes.keys(),
            lambda: f"{self.codes} {dict(self.text)}",
        )


def _executable(event) -> str:
    return event.process_name.rpartition("-")[0]


def launched(
    name: str,
    watch: Watch,
    environment: dict[str, str],
    arguments: dict[str, str],
    parameters: dict[str, object] | None = None,
) -> LaunchDescription:
    """launch/NAME.launch.py with arguments, on this test run's loopback domain; `ros_namespace` is pushed.

    `parameters` are set for all nodes, as nav2's bring-up does.
    """
    pushed = arguments.pop("ros_namespace", "")
    source = PythonLaunchDescriptionSource(str(ROOT / "launch" / f"{name}.launch.py"))
    return LaunchDescription(
        [
            *(SetEnvironmentVariable(key, environment[key]) for key in OURS),
            *watch.actions(),
            *([PushRosNamespace(pushed)] if pushed else []),
            *(SetParameter(key, value) for key, value in (parameters or {}).items()),
            IncludeLaunchDescription(source, launch_arguments=arguments.items()),
            ReadyToTest(),
        ]
    )
