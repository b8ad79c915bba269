# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Build message packages that are not on PyPI from their definitions' fields, with colcon, as scripts/setup.sh does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bags.videotools import FFMPEG, FIELDS, FOXGLOVE

PACKAGE = """<?xml version="1.0"?>
<package format="3">
  <name>{name}</name><version>0.0.1</version><description>for a test</description>
  <maintainer email="test@example.com">test</maintainer><license>Apache-2.0</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <buildtool_depend>rosidl_default_generators</buildtool_depend>
  <depend>std_msgs</depend><depend>builtin_interfaces</depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
"""
CMAKE = """cmake_minimum_required(VERSION 3.19)
project({name} NONE)
enable_language(C CXX)
find_package(ament_cmake REQUIRED)
find_package(rosidl_default_generators REQUIRED)
find_package(std_msgs REQUIRED)
find_package(builtin_interfaces REQUIRED)
rosidl_generate_interfaces(${{PROJECT_NAME}} msg/{message}.msg DEPENDENCIES std_msgs builtin_interfaces)
ament_package()
"""


def build_video_messages(folder: Path) -> dict[str, str]:
    """Build foxglove_msgs and ffmpeg_image_transport_msgs; returns the environment variables that add them."""
    for msgtype in (FOXGLOVE, FFMPEG):
        name, _, message = msgtype.partition("/msg/")
        package = folder / "src" / name
        (package / "msg").mkdir(parents=True)
        (package / "package.xml").write_text(PACKAGE.format(name=name))
        (package / "CMakeLists.txt").write_text(CMAKE.format(name=name, message=message))
        (package / "msg" / f"{message}.msg").write_text(FIELDS[msgtype])
    environment = dict(os.environ)
    root = Path(sys.prefix)
    if (root / "share" / "rclpy").is_dir():  # ROS from PyPI
        environment["CMAKE_PREFIX_PATH"] = str(root)
    done = subprocess.run(
        [
            "colcon",
            "build",
            "--merge-install",
            "--cmake-args",
            f"-DPython3_EXECUTABLE={sys.executable}",
            "-DBUILD_TESTING=OFF",
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    prefix = folder / "install"
    (site,) = (path for path in prefix.glob("l*/**/*-packages") if (path / "foxglove_msgs").is_dir())
    added = {"AMENT_PREFIX_PATH": prefix, "LD_LIBRARY_PATH": prefix / "lib", "PYTHONPATH": site}
    return {
        name: os.pathsep.join(filter(None, [str(path), os.environ.get(name, "")]))
        for name, path in added.items()
    }
