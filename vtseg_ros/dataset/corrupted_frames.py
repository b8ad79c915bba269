# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Corrupted frames in training windows: a run of adjacent frames that ends at the newest frame or before it.

The corruptions are those of the robustness scores (`dataset.corruptions`). A network can only learn to use older frames
where the newest one does not suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vtseg_ros.dataset.corruptions import FROZEN, KINDS, MAX_RUN, SEVERITIES, Corruption

DRAWS = 2**31


@dataclass(frozen=True)
class CorruptedFrame:
    """A corruption of one frame of a window.

    Attributes:
        frame: its place in the window, 0 = the oldest.
        corruption: kind and severity.
        draw: chooses the random numbers, see `Corruption.apply`.
    """

    frame: int
    corruption: Corruption
    draw: int

    def apply(self, video: np.ndarray) -> None:
        """Corrupt the frame of a window (k, H, W, 3) uint8, in place; `frozen` shows the frame before it, if any."""
        source = self.frame - 1 if self.corruption.kind == FROZEN and self.frame else self.frame
        video[self.frame] = self.corruption.apply(video[source], self.draw)


def draw_corrupted_frames(
    frames: int,
    *,
    share: float,
    newest: float,
    kinds: Sequence[str],
    severity: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[CorruptedFrame, ...]:
    """Draw which frames of a window are corrupted, and how; all of them by one kind and severity.

    Args:
        frames: k of the window.
        share: probability that the window has corrupted frames; with 0 nothing is drawn from `rng`.
        newest: probability that the corrupted frames of such a window end with the newest one; otherwise they end with
            an older one, and the newest one is clean.
        kinds: to choose from; empty = all of KINDS.
        severity: (lowest, highest), 1 to 5.
        rng: source of the draws.

    Returns:
        The corrupted frames, oldest first: 1 to `MAX_RUN` adjacent ones, but never all frames of a longer window.
    """
    if not share or rng.random() >= share:
        return ()
    kinds = kinds or KINDS
    corruption = Corruption(
        kind=kinds[int(rng.integers(len(kinds)))], severity=int(rng.integers(severity[0], severity[1] + 1))
    )
    last = frames - 1
    if rng.random() >= newest:
        if frames == 1:
            return ()
        last = int(rng.integers(frames - 1))
    length = 1 + int(rng.integers(min(MAX_RUN, max(1, frames - 1))))
    affected = range(max(0, last + 1 - length), last + 1)
    return tuple(CorruptedFrame(frame, corruption, int(rng.integers(DRAWS))) for frame in affected)


def check_kinds(kinds: Sequence[str], severity: tuple[int, int]) -> str:
    """Return what is wrong with kinds and (lowest, highest) severity; empty if nothing is."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        return f"corruption_kinds: unknown kind; expected some of {', '.join(KINDS)}, got {unknown[0]!r}"
    lowest, highest = severity
    if not SEVERITIES[0] <= lowest <= highest <= SEVERITIES[-1]:
        return (
            "corruption_severity: expected [lowest, highest] within "
            f"{SEVERITIES[0]} to {SEVERITIES[-1]}, got {list(severity)}"
        )
    return ""
