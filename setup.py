# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Build step that pyproject.toml cannot express; colcon uses CMakeLists.txt instead."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithMessages(build_py):
    """Copy the .msg files next to the code that reads bags without ROS."""

    def run(self) -> None:
        """Build the package, then copy the messages."""
        super().run()
        target = Path(self.build_lib) / "vtseg_ros" / "bags" / "msg"
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(ROOT.glob("msg/*.msg")):
            (target / path.name).write_bytes(path.read_bytes())


setup(cmdclass={"build_py": BuildWithMessages})
