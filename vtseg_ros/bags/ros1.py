# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""ROS 1 bags as storage files: messages are converted to their ROS 2 types as they are read (rosbags).

rosbags makes Python code of the message definitions that it registers and executes it. So the definitions in a bag are
not used: messages are read with the types of ROS Noetic and our own, and only where their checksums are those of the bag.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from rosbags.interfaces import Connection as RosbagsConnection
from rosbags.rosbag1 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vtseg_ros.bags.messages import definitions_dir, typestore
from vtseg_ros.bags.storage import Connection, Messages
from vtseg_ros.errors import BagError, first_line

NOT_INDEXED = "not indexed"

Convert = Callable[[bytes], memoryview | bytes]


class Ros1Storage:
    """A ROS 1 bag; see `storage.Storage`.

    A topic whose type is not of ROS Noetic, or has no ROS 2 counterpart in this package, is refused.

    Args:
        path: the file.

    Raises:
        BagError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.notes: list[str] = []
        self.lost: Counter[int] = Counter()
        self._reader = Reader(path)
        try:
            self._reader.open()
            self._open()
        except Exception as err:  # lying lengths lead to struct, unicode, memory, value and assertion errors
            self.close()
            if NOT_INDEXED in str(err):
                raise BagError(
                    "it has no index: its recorder was killed. Run `rosbag reindex` on it, which ROS 1 has"
                ) from err
            raise BagError(f"it is not a ROS 1 bag that can be read: {first_line(err)}") from err

    def _open(self) -> None:
        self.connections: dict[int, Connection] = {}
        self._convert: dict[int, Convert] = {}
        self._connections: dict[int, RosbagsConnection] = {}
        for one in self._reader.connections:
            self._connections[one.id] = one
            refused = _problem(one)
            if not refused:
                self._convert[one.id] = _converter(one.msgtype)
            self.connections[one.id] = Connection(one.topic, one.msgtype, refused=refused)
        indexes = self._reader.indexes
        self.announced = Counter({number: len(indexes.get(number, ())) for number in self.connections})
        times = self.times(list(self.connections))
        self.start_ns, self.end_ns = (int(times[0]), int(times[-1])) if times.size else (0, 0)

    def count(self, number: int) -> int:
        """See `Storage.count`."""
        return self.announced[number]

    def times(self, wanted: Collection[int]) -> np.ndarray:
        """See `Storage.times`."""
        found = [
            np.fromiter((entry.time for entry in self._reader.indexes.get(number, ())), np.int64)
            for number in wanted
        ]
        return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def messages(self, wanted: Collection[int], start_ns: int | None, stop_ns: int | None) -> Messages[int]:
        """See `Storage.messages`."""
        chosen = [self._connections[number] for number in wanted if self.announced[number]]
        if not chosen:  # which the reader would take for all
            return
        for one, time_ns, data in self._reader.messages(chosen, start_ns, stop_ns):
            try:
                converted = bytes(self._convert[one.id](data))
            except (
                Exception
            ):  # a message that is none of its type: empty, it is reported as corrupt where it is read
                converted = b""
            yield one.id, time_ns, converted

    def check(self) -> None:
        """See `Storage.check`: ROS 1 bags have no checksums."""

    def close(self) -> None:
        """See `Storage.close`."""
        if self._reader.bio is not None:
            self._reader.close()


@lru_cache(maxsize=1)
def _noetic() -> Typestore:
    """Return the types that ROS 1 bags are read with."""
    store = get_typestore(Stores.ROS1_NOETIC)
    for path in sorted(definitions_dir().glob("*.msg")):
        store.register(get_types_from_msg(path.read_text(), f"vtseg_ros/msg/{path.stem}"))
    return store


def _problem(connection: RosbagsConnection) -> str:
    """Return why a connection's messages cannot be converted; empty if they can."""
    name = connection.msgtype
    if name not in _noetic().types or name not in typestore().types:
        return f"{name} is not known as a type of both ROS 1 and ROS 2"
    if connection.digest != _noetic().generate_msgdef(name)[1]:
        return f"its definition of {name} is not that of ROS Noetic"
    return ""


def _converter(name: str) -> Convert:
    """Return what turns serialized ROS 1 messages of a type into CDR of the ROS 2 type of the same name."""
    # Imported here: it takes 0.3 s, and few bags are ROS 1's.
    from rosbags.convert.converter import is_same_wireformat, migrate_bytes

    source, target = _noetic(), typestore()
    if is_same_wireformat(source, target, name, name):
        return partial(target.ros1_to_cdr, typename=name)
    cache: dict[str, object] = {}
    return lambda data: migrate_bytes(source, target, name, name, cache, data, src_is2=False, dst_is2=True)
