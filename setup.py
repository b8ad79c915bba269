# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Build steps that pyproject.toml cannot express; colcon uses CMakeLists.txt instead."""

import os
import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Address of the repository, such as https://github.com/OWNER/vtseg_ros. A release sets it.
REPOSITORY = os.environ.get("VTSEG_REPOSITORY_URL", "").rstrip("/")
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


class BuildWithMessages(build_py):
    """Copy the .msg files next to the code that reads bags without ROS."""

    def run(self) -> None:
        """Build the package, then copy the messages."""
        super().run()
        target = Path(self.build_lib) / "vtseg_ros" / "bags" / "msg"
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(ROOT.glob("msg/*.msg")):
            (target / path.name).write_bytes(path.read_bytes())


def description(readme: str, repository: str) -> str:
    """Return the README for a package index, where paths of the repository do not exist.

    Args:
        readme: Markdown with links relative to the repository.
        repository: address of the repository; empty = links become text, and images are left out.

    Returns:
        Markdown whose links are absolute.
    """

    def absolute(link: re.Match) -> str:
        image, text, target = link.groups()
        if not repository:
            return "" if image else text
        return f"{image}[{text}]({repository}/{'raw' if image else 'blob'}/HEAD/{target})"

    return LINK.sub(absolute, readme)


if __name__ == "__main__":
    urls = {"Source": REPOSITORY, "Documentation": f"{REPOSITORY}/blob/HEAD/docs/index.md"}
    setup(
        cmdclass={"build_py": BuildWithMessages},
        long_description=description((ROOT / "README.md").read_text(encoding="utf-8"), REPOSITORY),
        long_description_content_type="text/markdown",
        project_urls=urls if REPOSITORY else {},
    )
