# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What is common to the storage files of a bag: their protocol, their connections, and merging them in time.

Connections are identified by topic and type.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from rosbags.interfaces import Qos
from rosbags.rosbag2.metadata import parse_qos

COPY_BYTES = 1 << 20
"""Bytes of a file that are read at a time."""
UNKNOWN = -1
"""Connection id of lost messages whose topic is not known."""


@dataclass(frozen=True)
class Connection:
    """A topic of one type in a storage file.

    Attributes:
        topic: Name of the topic.
        msgtype: Message type; empty = not in the storage.
        definition: Text of the message definition; empty = not in the storage.
        digest: Type hash; empty = not in the storage.
        qos: QoS that the publishers offered; empty = not in the storage.
        refused: Reason why its messages cannot be read; empty if they can.
    """

    topic: str
    msgtype: str
    definition: str = ""
    digest: str = ""
    qos: tuple[Qos, ...] = ()
    refused: str = ""


Key = TypeVar("Key")
Messages = Iterator[tuple[Key, int, bytes]]
"""Messages as (connection id or topic, bag time in ns, data)."""


class Storage(Protocol):
    """A storage file opened for reading.

    Attributes:
        connections: Connections by their id in the file.
        announced: Number of messages by connection id from the statistics of the file, or counted if it has none.
        notes: Problems of the file that cost messages, one line each; more may be added while messages are read.
        lost: Number of messages by connection id in parts of the file that were found to be damaged.
        start_ns: Bag time of the first message; 0 without messages.
        end_ns: Bag time of the last message; 0 without messages.
    """

    connections: dict[int, Connection]
    announced: Counter[int]
    notes: list[str]
    lost: Counter[int]
    start_ns: int
    end_ns: int

    def count(self, number: int) -> int:
        """Return the number of messages of a connection that are in the file.

        Args:
            number: Connection id.
        """

    def times(self, wanted: Collection[int]) -> np.ndarray:
        """Return the bag times of the messages of some connections.

        Args:
            wanted: Connection ids.

        Returns:
            Sorted bag times, (n,) int64, ns.

        Raises:
            BagError: If the file is damaged.
        """

    def messages(self, wanted: Collection[int], start_ns: int | None, stop_ns: int | None) -> Messages[int]:
        """Yield messages of some connections in time order; equal times in the order of the file.

        Args:
            wanted: Connection ids.
            start_ns: First bag time; None = no limit.
            stop_ns: Bag time to stop at, excluded; None = no limit.
        """

    def check(self) -> None:
        """Read what has checksums, so that `notes` and `lost` are complete."""

    def close(self) -> None:
        """Close the file."""


def offered_qos(value: Any) -> tuple[Qos, ...]:
    """Parse QoS profiles of metadata.yaml or of a storage file.

    Args:
        value: YAML text or the values parsed from it.

    Returns:
        The profiles; empty if they cannot be read.
    """
    with suppress(Exception):  # recorders and people write anything here, and the bag can be read without it
        return tuple(parse_qos(value))
    return ()


def normal_type(name: str) -> str:
    """Return a type as `package/msg/Name`.

    Args:
        name: `package/msg/Name` or `package/Name`.
    """
    return name if name.count("/") != 1 else name.replace("/", "/msg/")


def merge_in_time(parts: list[tuple[int, Callable[[], Messages[Key]]]]) -> Messages[Key]:
    """Yield the messages of several sources in time order. A source is opened when its first message is due.

    Args:
        parts: Bag time of the first message in ns, and function that opens the source; the messages of a source must be
            in time order.
    """
    waiting = sorted(enumerate(parts), key=lambda item: (item[1][0], item[0]))[::-1]
    due: list[tuple[int, int, tuple[Key, int, bytes], Messages[Key]]] = []

    def advance(number: int, source: Messages[Key]) -> None:
        message = next(source, None)
        if message is not None:
            heapq.heappush(due, (message[1], number, message, source))

    while waiting or due:
        while waiting and (not due or waiting[-1][1][0] <= due[0][0]):
            number, (_, opened) = waiting.pop()
            advance(number, opened())
        if due:
            _, number, message, source = heapq.heappop(due)
            yield message
            advance(number, source)
