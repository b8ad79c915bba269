# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Names of topics that our nodes publish, and of files to ignore."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

SEGMENTER = "(^|/)segmentation/"
"""Matches the name of every topic of a segmenter, in any namespace."""

ANSWERS = f"{SEGMENTER}|(^|/)evaluation$"
"""Matches recorded topics that must not be played, because this run publishes them itself."""


def is_of_segmenter(topic: str) -> bool:
    """Return whether a topic is one that a segmenter node publishes."""
    return re.search(SEGMENTER, topic) is not None


def is_hidden(name: str) -> bool:
    """Return whether a file, given relative to the searched folder, is a hidden file of a system or an editor."""
    parts = PurePosixPath(name).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
