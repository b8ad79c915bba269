"""Names of what our nodes publish, for those who must tell it from what cameras do: launch files, bags, the demo."""

from __future__ import annotations

import re

SEGMENTER = "(^|/)segmentation/"
"""Found in the name of every topic of a segmenter, in whatever namespace."""

ANSWERS = f"{SEGMENTER}|(^|/)evaluation$"
"""Found in the names of topics that would be taken for this run's when they are played from a bag."""


def is_of_segmenter(topic: str) -> bool:
    """Whether a topic is what a segmenter node publishes."""
    return re.search(SEGMENTER, topic) is not None
