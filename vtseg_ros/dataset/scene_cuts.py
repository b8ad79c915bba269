# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Scene cuts: the frames of bags in an order in which the scene changes from one frame to the next."""

from __future__ import annotations

import copy

from vtseg_ros.dataset.frame_index import FrameIndex
from vtseg_ros.errors import ConfigError


def with_cuts(index: FrameIndex, every: int) -> tuple[FrameIndex, list[list[int]]]:
    """Return the frames as one sequence with a scene cut every n frames, as in an edited video.

    Each sequence is cut into pieces of `every` frames (the last one may be shorter); pieces of the first and of the second
    half of all frames then take turns. No window is restarted at a cut.

    Args:
        index: the frames; left unchanged.
        every: n.

    Returns:
        The reordered index, and for each piece, in the new order, the numbers that its frames have in `index`.

    Raises:
        ConfigError: if there are fewer than three pieces, between which every change is a cut.
    """
    if every < 1:
        raise ConfigError(f"--scene-cuts: expected at least 1 frame between cuts, got {every}")
    pieces = [
        list(range(begin, min(begin + every, stop)))
        for start, stop in index.sequences
        for begin in range(start, stop, every)
    ]
    if len(pieces) < 3:
        raise ConfigError(
            f"--scene-cuts: too few frames; expected at least 3 pieces of {every} frames, got {len(pieces)}. "
            "Give a smaller number"
        )
    half = (len(pieces) + 1) // 2
    order = [pieces[place] for turn in range(half) for place in (turn, turn + half) if place < len(pieces)]
    cut = copy.copy(index)
    cut.frames = [index.frames[number] for piece in order for number in piece]
    cut.sequences = [(0, len(cut.frames))]
    return cut, order
