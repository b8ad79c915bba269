# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Names of topics that our nodes publish, and of files that are not looked at."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

SEGMENTER = "(^|/)segmentation/"
"""Found in the name of every topic of a segmenter, in whatever namespace."""

ANSWERS = f"{SEGMENTER}|(^|/)evaluation$"
"""Found in the names of topics that would be taken for this run's when they are played from a bag."""


def is_of_segmenter(topic: str) -> bool:
    """Whether a topic is what a segmenter node publishes."""
    return re.search(SEGMENTER, topic) is not None


def is_hidden(name: str) -> bool:
    """Whether a file, named relative to where it was looked for, is one that systems and editors put beside files."""
    parts = PurePosixPath(name).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
