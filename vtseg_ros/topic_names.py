# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Names of topics that our nodes publish, and of files to ignore."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from vtseg_ros.errors import ConfigError

SEGMENTER = "(^|/)segmentation/"
"""Matches the name of every topic of a segmenter, in any namespace."""

ANSWERS = f"{SEGMENTER}|(^|/)evaluation$"
"""Matches recorded topics that must not be played, because this run publishes them itself."""


def is_playable(topic: str) -> bool:
    """Return whether ROS can publish a topic of a bag, whose name may lack the first slash."""
    return re.fullmatch(r"/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*", topic) is not None


def check_topic(option: str, topic: str) -> None:
    """Refuse a topic that ROS cannot publish.

    Args:
        option: where the topic is from, for the error.
        topic: its name.

    Raises:
        ConfigError: if it is not an absolute topic name.
    """
    if not topic.startswith("/") or not is_playable(topic):
        raise ConfigError(
            f"{option}: not a topic name; expected one such as /camera/label, of letters, digits and _ with a / before each "
            f"part, got {topic!r}"
        )


def is_of_segmenter(topic: str) -> bool:
    """Return whether a topic is one that a segmenter node publishes."""
    return re.search(SEGMENTER, topic) is not None


def is_hidden(name: str) -> bool:
    """Return whether a file, given relative to the searched folder, is a hidden file of a system or an editor."""
    parts = PurePosixPath(name).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
