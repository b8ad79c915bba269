# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Parts of a long bag, and the frames before a part that bring a predictor into the state of an unsplit run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.messages import header_stamp
from vtseg_ros.errors import BagError, ImageError

Span = tuple[int | None, int | None]
"""Bag times (ns), the first included, the second not; None = the bag's begin or end."""


def plan_spans(bag: BagReader, topic: str, frames: int) -> list[Span]:
    """Cut a bag into spans of about `frames` messages of a topic. Messages of equal bag times stay together.

    Args:
        bag: an open bag.
        topic: topic of its images.
        frames: messages per span, at least 1.

    Returns:
        Spans in order; one span if the topic has at most `frames` messages.

    Raises:
        BagError: if there is no such topic, or the bag is damaged.
    """
    times = bag.times([topic])
    cuts = sorted(
        {int(time_ns) for time_ns in times[frames::frames]} - {int(time_ns) for time_ns in times[:1]}
    )
    edges = [None, *cuts, None]
    return list(zip(edges[:-1], edges[1:], strict=True))


def warm_up_start(bag: BagReader, topic: str, start_ns: int, *, frames: int, max_gap_ns: int) -> int | None:
    """Return where to start reading so that the window at a part's first frame is that of an unsplit run.

    A predictor that starts with frame a has the state of the unsplit run `frames` frames later, if that run accepts a.
    It drops a only if the stamp of a is at most the newest stamp it has seen. Let c be an earlier frame that can be
    decoded, with stamps that increase from c to a. If c is accepted, so is a. If c is dropped as late, the newest stamp
    is at most stamp(c) + max_gap. Hence a is accepted if stamp(a) > stamp(c) + max_gap.

    Args:
        bag: an open bag.
        topic: topic of its images.
        start_ns: bag time of the part's first frame, ns.
        frames: frames needed before the part.
        max_gap_ns: longest pause within a window, ns.

    Returns:
        Bag time, ns; None = start at the beginning of the bag, because no later place is certain.

    Raises:
        BagError: if the bag is damaged.
    """
    times = bag.times([topic])
    first = int(np.searchsorted(times, start_ns))
    reach = 2 * frames + 8
    while first > reach:
        begin = _certain(bag, topic, int(times[first - reach]), start_ns, frames, max_gap_ns)
        if begin is not None:
            return begin
        reach *= 2
    return None


def _certain(
    bag: BagReader, topic: str, begin_ns: int, start_ns: int, frames: int, max_gap_ns: int
) -> int | None:
    """The latest certain begin that a stretch of messages allows; None = there is none."""
    found = list(_headers(bag, topic, begin_ns, start_ns))
    # The stretch of growing stamps that reaches the part; a stamp of zero or without a header ends it.
    oldest = len(found)
    while oldest and found[oldest - 1][1] > 0:
        if oldest < len(found) and found[oldest - 1][1] >= found[oldest][1]:
            break
        oldest -= 1
    decode = ImageDecoder(topic)
    while oldest < len(found) and not _decodable(bag, topic, decode, found[oldest][0]):
        oldest += 1
    left = frames
    for place in range(len(found) - 1, oldest, -1):
        time_ns, stamp_ns = found[place]
        left -= _decodable(bag, topic, decode, time_ns)
        apart = found[place - 1][0] != time_ns
        if left <= 0 and apart and stamp_ns > found[oldest][1] + max_gap_ns:
            return time_ns
    return None


def _headers(bag: BagReader, topic: str, begin_ns: int, stop_ns: int) -> Iterator[tuple[int, int]]:
    for _, _, time_ns, data in bag.raw([topic], begin_ns, stop_ns):
        try:
            yield time_ns, header_stamp(data)
        except BagError:
            yield time_ns, 0


def _decodable(bag: BagReader, topic: str, decode: ImageDecoder, time_ns: int) -> bool:
    """Whether all messages of a bag time can be decoded."""
    corrupt: list[str] = []
    for _, _, message in bag.messages(
        [topic], time_ns, time_ns + 1, on_corrupt=lambda *found: corrupt.append(found[2])
    ):
        try:
            decode(message)
        except ImageError:
            return False
    return not corrupt
