# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Frame store that corrupts some images, for robustness scores."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from vtseg_ros.dataset.corruptions import Corruption
from vtseg_ros.dataset.frame_store import FrameIndex, FrameStore

PARTS = ("corrupted", "recovering", "clean")


class CorruptedStore(FrameStore):
    """Frame store in which some images are corrupted; labels are not changed.

    The same frames are corrupted in the same way every time. Random numbers are seeded with the stamp of the first frame
    of a run, which keeps dirt in place during a run.

    Args:
        index: Frames.
        corruption: Kind of corruption and schedule of corrupted frames in each sequence.
    """

    def __init__(self, index: FrameIndex, corruption: Corruption) -> None:
        super().__init__(index)
        self.corruption = corruption
        self._starts = [start for start, _ in index.sequences]

    def _position(self, number: int) -> tuple[int, int]:
        """Return the number of the sequence's first frame and the frame's position in the sequence."""
        first = self._starts[bisect_right(self._starts, number) - 1]
        return first, number - first

    def part(self, number: int) -> str:
        """Return the part of a frame: `corrupted`, `recovering` (the first clean frame after a run) or `clean`."""
        position = self._position(number)[1]
        if self.corruption.affects(position):
            return "corrupted"
        return "recovering" if position and self.corruption.affects(position - 1) else "clean"

    def image(self, number: int) -> np.ndarray:
        """Return the image, (H, W, 3) uint8 RGB, corrupted according to the schedule; see `FrameStore.image`."""
        first, position = self._position(number)
        if not self.corruption.affects(position):
            return super().image(number)
        image = super().image(first + self.corruption.source(position))
        start = self.index.frames[first + self.corruption.run_start(position)]
        return self.corruption.apply(image, abs(start.stamp_ns))
