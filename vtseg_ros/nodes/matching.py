# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Match messages of several topics by their stamps, within bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Group:
    """Messages of one stamp, and their sizes in bytes, by topic."""

    messages: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(self.sizes.values())


class StampMatcher:
    """Match groups of messages with equal stamps to the nearest message of a sensor.

    message_filters.ApproximateTimeSynchronizer does this where ROS comes from apt; it is not on PyPI, and it neither
    requires equal stamps of some topics nor reports what it drops.

    Each message is used at most once. A match is made as soon as it is possible, with the nearest candidate that waits.
    Messages may come in any order; when more than `items` messages or `size` bytes wait, the oldest are dropped.

    Args:
        group: topics whose messages have equal stamps (a mask, its confidence); all are required.
        sensor: topic that is matched to complete groups by the nearest stamp.
        items: largest number of groups, and of sensor messages, that wait.
        size: largest number of bytes of groups, and of sensor messages, that wait. The newest always waits.
    """

    def __init__(
        self, *, group: Sequence[str], sensor: str, items: int = 60, size: int = 128 * 1024 * 1024
    ) -> None:
        self._topics, self._sensor, self._items, self._size = tuple(group), sensor, items, size
        self._groups: OrderedDict[int, _Group] = OrderedDict()
        self._sensors: OrderedDict[int, _Group] = OrderedDict()
        self.dropped: dict[str, int] = {}
        """Number of groups that were dropped, by the topic that was missing."""

    def put(
        self, topic: str, stamp_ns: int, message: Any, size: int, tolerance_ns: int
    ) -> dict[str, Any] | None:
        """Add a message; a waiting one of the same topic and stamp is replaced.

        Args:
            topic: one of the group's topics or the sensor's.
            stamp_ns: its stamp.
            message: kept until it is matched or dropped.
            size: its bytes.
            tolerance_ns: largest difference between the stamps of a group and its sensor message.

        Returns:
            The messages of a match by topic, or None.
        """
        waiting = self._sensors if topic == self._sensor else self._groups
        entry = waiting.pop(stamp_ns, None) or _Group()
        entry.messages[topic] = message
        entry.sizes[topic] = size
        waiting[stamp_ns] = entry
        match = None
        if topic == self._sensor or self._complete(entry):
            match = self._match(stamp_ns, waiting, tolerance_ns)
        self._bound(self._sensors)
        for group in self._bound(self._groups):
            missing = next((name for name in self._topics if name not in group.messages), self._sensor)
            self.dropped[missing] = self.dropped.get(missing, 0) + 1
        return match

    def _complete(self, group: _Group) -> bool:
        return len(group.messages) == len(self._topics)

    def _match(
        self, stamp: int, waiting: OrderedDict[int, _Group], tolerance_ns: int
    ) -> dict[str, Any] | None:
        others = self._groups if waiting is self._sensors else self._sensors
        near = [
            (abs(other - stamp), other)
            for other, entry in others.items()
            if abs(other - stamp) <= tolerance_ns and (others is self._sensors or self._complete(entry))
        ]
        if not near:
            return None
        return {**waiting.pop(stamp).messages, **others.pop(min(near)[1]).messages}

    def _bound(self, waiting: OrderedDict[int, _Group]) -> list[_Group]:
        """Drop the oldest entries; returns them."""
        dropped = []
        held = sum(entry.size for entry in waiting.values())
        while len(waiting) > 1 and (len(waiting) > self._items or held > self._size):
            dropped.append(waiting.popitem(last=False)[1])
            held -= dropped[-1].size
        return dropped
