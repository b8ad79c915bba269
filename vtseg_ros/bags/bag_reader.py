# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read bags without ROS: sqlite3, mcap and ROS 1 storage, split files, compression. rosbags deserialises."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rosbags.interfaces import Qos
from zstandard import ZstdDecompressor

from vtseg_ros.bags.messages import NO_HASH, NS, Message, stamp_of, typestore
from vtseg_ros.bags.open_storage import open_storage
from vtseg_ros.bags.storage import UNKNOWN, Messages, Storage, merge_in_time
from vtseg_ros.bags.storage_files import StorageFiles, find_storage
from vtseg_ros.bags.video_topics import VideoImage, VideoIndex, VideoStream
from vtseg_ros.content import ZSTD_MAGIC
from vtseg_ros.errors import BagError, first_line
from vtseg_ros.transports import VIDEO_TYPES

DAY_NS = 86_400 * NS
UNKNOWN_TOPIC = "unknown topics"
OnCorrupt = Callable[[str, int, str], None]
"""Called with the topic, the bag time in ns and the reason."""

log = logging.getLogger("vtseg_ros.bags")


@dataclass(frozen=True)
class TopicInfo:
    """Type and size of a topic of a bag.

    Attributes:
        msgtype: Type of the messages, such as `sensor_msgs/msg/Image`.
        count: Number of messages in the storage files.
    """

    msgtype: str
    count: int


class BagReader:
    """Read a bag; use it as a context manager.

    The content of the storage files is read, with or without metadata.yaml. Announced messages that are not in the
    files are logged, one line per topic, and counted in `missing`.

    Args:
        path: Folder of the bag, or one storage file of it.

    Attributes:
        topics: Topics by name, with the number of messages in the storage files.
        definitions: Message definition and type hash by type, for the types that the bag contains.
        qos: QoS that the publishers of each topic offered when it was recorded; empty if not recorded.
        left_out: Reason by topic, for topics in the storage files that cannot be read.
        missing: Number of announced messages that are not in the files or in damaged parts of them, by topic. Complete
            for a topic after all its messages were read, or after `check`. UNKNOWN_TOPIC counts damaged parts whose
            messages are not known.
        size_bytes: Size of the storage files, bytes.

    Raises:
        BagError: If there is no bag, or it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        files = find_storage(self.path)
        self.size_bytes = sum(file.stat().st_size for file in files.paths if file.is_file())
        self._log(files.notes)
        self._stack = ExitStack()
        self._storages: list[Storage] = []
        self._names: list[str] = []
        self._reported: list[tuple[int, int]] = []
        self.missing: dict[str, int] = {}
        self._videos: dict[str, VideoIndex] = {}
        try:
            self._open(files)
        except BaseException:
            self.close()
            raise

    def _open(self, files: StorageFiles) -> None:
        scratch = Path(self._stack.enter_context(TemporaryDirectory(prefix="vtseg_bag_")))
        damaged = []
        for file in files.paths:
            try:
                storage = open_storage(file, scratch)
            except BagError as err:
                damaged.append(f"{file.name}: {err}")
                continue
            self._stack.callback(storage.close)
            self._storages.append(storage)
            self._names.append(file.name)
        if not self._storages:
            raise BagError(f"bag {self.path}: cannot be read: {damaged[0]}")
        self._log([f"{text}. The file is left out" for text in damaged])
        self._left_out_files = len(damaged)
        self._collect(files)

    def _collect(self, files: StorageFiles) -> None:
        found: dict[str, Counter[str]] = {}
        announced: dict[str, Counter[str]] = {}
        self.left_out: dict[str, str] = {}
        self.definitions: dict[str, tuple[str, str]] = {}
        self.qos: dict[str, list[Qos]] = {}
        self._ids: list[dict[int, tuple[str, str]]] = []
        for storage in self._storages:
            ids = {}
            for number, one in storage.connections.items():
                hint = files.topics.get(one.topic)
                msgtype = one.msgtype or (hint.msgtype if hint else "")
                refused = one.refused or ("" if msgtype else "the storage does not name its type")
                if refused:
                    self.left_out[one.topic] = refused
                    continue
                ids[number] = (one.topic, msgtype)
                found.setdefault(one.topic, Counter())[msgtype] += storage.count(number)
                announced.setdefault(one.topic, Counter())[msgtype] += storage.announced[number]
                digest = one.digest or (hint.digest if hint else "") or NO_HASH
                if one.definition:
                    self.definitions.setdefault(msgtype, (one.definition, digest))
                if not self.qos.get(one.topic):
                    self.qos[one.topic] = list(one.qos or (hint.qos if hint else ()))
            self._ids.append(ids)
        self.topics: dict[str, TopicInfo] = {}
        self._announced: dict[str, int] = {}
        for topic, types in found.items():
            msgtype = max(types, key=lambda name: (types[name], name))
            self.topics[topic] = TopicInfo(msgtype, types[msgtype])
            hint = files.topics.get(topic)
            promised = hint.count if hint and hint.msgtype == msgtype else 0
            self._announced[topic] = max(announced[topic][msgtype], promised)
            others = sorted(set(types) - {msgtype})
            if others:
                self._log([f"topic {topic} has several types: {msgtype} is read, {', '.join(others)} not"])
        for topic, hint in files.topics.items():
            if topic not in self.topics and topic not in self.left_out:
                self.topics[topic], self.qos[topic] = TopicInfo(hint.msgtype, 0), list(hint.qos)
                self._announced[topic] = hint.count
        self._log([f"topic {topic} is left out: {reason}" for topic, reason in self.left_out.items()])
        for topic, info in self.topics.items():
            self._compare(topic, info.count)
        self._report_damage()

    def _report_damage(self) -> None:
        """Log damage that the storage files found so far, count what it cost, and correct the numbers of messages."""
        state = [(len(storage.notes), storage.lost.total()) for storage in self._storages]
        if state == self._reported:
            return
        self._reported = state
        lost: Counter[str] = Counter()
        unknown = self._left_out_files
        for name, storage, ids in zip(self._names, self._storages, self._ids):
            self._log([f"{name}: {note}" for note in storage.notes])
            for number, count in storage.lost.items():
                if number in ids:
                    lost[ids[number][0]] += count
                elif number == UNKNOWN:
                    unknown += count
        for topic, count in lost.items():
            if count:
                self.missing[topic] = max(count, self.missing.get(topic, 0))
            if count and topic in self.topics:
                kind = self.topics[topic].msgtype
                found = sum(
                    storage.count(number)
                    for storage, ids in zip(self._storages, self._ids)
                    for number, one in ids.items()
                    if one == (topic, kind)
                )
                self.topics[topic] = TopicInfo(kind, found)
        if unknown and not self.missing:
            self.missing[UNKNOWN_TOPIC] = unknown

    def check(self) -> None:
        """Read all parts of the storage files that have checksums, so that `missing` is complete without reading messages."""
        for storage in self._storages:
            storage.check()
        self._report_damage()

    def _log(self, lines: list[str]) -> None:
        for line in lines:
            _warn_once(f"bag {self.path}: {line}")

    def _compare(self, topic: str, read: int) -> None:
        """Log and count messages of a topic that are announced and not in the files."""
        lost = self._announced[topic] - read
        if lost > self.missing.get(topic, 0):
            self.missing[topic] = lost
            self._log(
                [f"topic {topic} has {read} messages; expected {self._announced[topic]}: {lost} missing"]
            )

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the storage files and delete unpacked copies."""
        self._storages = []
        self._stack.close()

    def require(self, *topics: str) -> None:
        """Check that topics are in the bag.

        Raises:
            BagError: For a topic that is not in the bag or cannot be read; lists the topics of the bag.
        """
        for topic in topics:
            if topic in self.left_out:
                raise BagError(f"bag {self.path}: topic {topic} cannot be read: {self.left_out[topic]}")
            if topic not in self.topics:
                known = ", ".join(sorted(self.topics)) or "none"
                raise BagError(f"bag {self.path} has no topic {topic}. It has: {known}")

    def _wanted(self, topics: Collection[str] | None) -> Iterator[tuple[Storage, dict[int, str]]]:
        """Yield the storage files that have some of the topics, each with the topic by connection id."""
        for storage, ids in zip(self._storages, self._ids):
            chosen = {
                number: topic
                for number, (topic, msgtype) in ids.items()
                if (topics is None or topic in topics) and msgtype == self.topics[topic].msgtype
            }
            if chosen:
                yield storage, chosen

    def times(self, topics: Collection[str] | None = None) -> np.ndarray:
        """Return the bag times of the messages of some topics.

        Args:
            topics: Topics; None = all.

        Returns:
            Sorted bag times, (n,) int64, ns.

        Raises:
            BagError: If there is no such topic, or the storage is damaged.
        """
        if topics is not None:
            self.require(*topics)
        found = [storage.times(chosen) for storage, chosen in self._wanted(topics)]
        return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def span(self, topics: Collection[str] | None = None) -> tuple[int, int]:
        """Return the bag times of the first and the last message of some topics.

        Messages more than a day apart from most others are ignored: their time is zero, or comes from a clock that was
        not set yet.

        Args:
            topics: Topics; None = all.

        Returns:
            Both bag times, ns; (0, 0) without messages.
        """
        if topics is None:
            firsts = [storage.start_ns for storage in self._storages if storage.end_ns]
            first, last = min(firsts, default=0), max((one.end_ns for one in self._storages), default=0)
            if last - first <= DAY_NS:
                return first, last
        times = self.times(topics)
        if not times.size:
            return 0, 0
        parts = np.split(times, np.flatnonzero(np.diff(times) > DAY_NS) + 1)
        most = max(parts, key=lambda part: part.size)
        return int(most[0]), int(most[-1])

    @property
    def start_ns(self) -> int:
        """Bag time of the first message, ns; see `span`."""
        return self.span()[0]

    @property
    def end_ns(self) -> int:
        """Bag time of the last message plus 1, ns; see `span`."""
        return self.span()[1] + 1

    def rate_hz(self, topic: str) -> float | None:
        """Estimate the message rate of a topic from the median interval.

        Args:
            topic: Topic of the messages.

        Returns:
            Messages per second; None = unknown, with fewer than two messages.

        Raises:
            BagError: If there is no such topic, or the storage is damaged.
        """
        times = self.times([topic])
        interval_ns = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        return 1e9 / interval_ns if interval_ns > 0 else None

    def raw(
        self, topics: list[str] | None = None, start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[tuple[str, str, int, bytes]]:
        """Yield serialized messages in time order: (topic, type, bag time in ns, CDR bytes).

        Args:
            topics: Topics; None = all.
            start_ns: First bag time.
            stop_ns: Bag time to stop at, excluded.

        Raises:
            BagError: If the storage is damaged.
        """
        if topics is not None:
            self.require(*topics)
        read: Counter[str] = Counter()
        try:
            for topic, time_ns, data in self._in_time(topics, start_ns, stop_ns):
                read[topic] += 1
                if data[:4] == ZSTD_MAGIC:  # compressed message by message; CDR begins with 0
                    data = ZstdDecompressor().decompressobj().decompress(data)
                yield topic, self.topics[topic].msgtype, time_ns, data
        except Exception as err:  # wrong lengths lead to struct, memory, value and sqlite errors
            raise BagError(f"bag {self.path} is damaged: {first_line(err)}") from err
        finally:
            self._report_damage()
        if start_ns is None and stop_ns is None:
            for topic in self.topics if topics is None else topics:
                self._compare(topic, read[topic])

    def _in_time(
        self, topics: list[str] | None, start_ns: int | None, stop_ns: int | None
    ) -> Iterator[tuple[str, int, bytes]]:
        parts: list[tuple[int, Callable[[], Messages[str]]]] = []

        def opener(storage: Storage, chosen: dict[int, str]) -> Callable[[], Messages[str]]:
            def read() -> Messages[str]:
                found = False
                try:
                    for number, time_ns, data in storage.messages(chosen, start_ns, stop_ns):
                        found = True
                        yield chosen[number], time_ns, data
                except Exception as err:  # as in `raw`
                    if len(self._storages) == 1 and not found:
                        raise
                    # Unlike in mcap, what follows is not read: sqlite3 and ROS 1 files have no checksums, so that content
                    # behind the damage may be wrong without an error.
                    note = f"it is damaged: {first_line(err)}. The rest of the file is left out"
                    if note not in storage.notes:
                        storage.notes.append(note)
                    if start_ns is not None or stop_ns is not None:  # otherwise `raw` counts what is missing
                        storage.lost[UNKNOWN] = max(storage.lost[UNKNOWN], 1)

            return read

        for storage, chosen in self._wanted(topics):
            parts.append((storage.start_ns, opener(storage, chosen)))
        yield from merge_in_time(parts)

    def messages(
        self,
        topics: list[str] | None = None,
        start_ns: int | None = None,
        stop_ns: int | None = None,
        *,
        on_corrupt: OnCorrupt | None = None,
    ) -> Iterator[tuple[str, int, Message]]:
        """Yield messages in time order: (topic, bag time in ns, message).

        Packets of encoded video are decoded: they come as sensor_msgs/Image (rgb8) with the stamp of their own message,
        in the order of display. They may come later than other messages of the same time.

        Args:
            topics: Topics; None = all.
            start_ns: First bag time.
            stop_ns: Bag time to stop at, excluded.
            on_corrupt: Called for a message that cannot be deserialized and for a video packet that gives no image,
                which are then left out; None = such a message raises.

        Raises:
            BagError: For a damaged storage, an unknown type or (without `on_corrupt`) a corrupt message.
            ConfigError: For encoded video without the package `av`.
        """
        streams: dict[str, VideoStream] = {}

        def images(topic: str, found: list[VideoImage]) -> Iterator[tuple[str, int, Message]]:
            for one in found:
                if start_ns is not None and one.time_ns < start_ns:
                    continue
                if one.message is not None:
                    yield topic, one.time_ns, one.message
                elif on_corrupt is not None:
                    on_corrupt(topic, one.time_ns, one.reason)
                else:
                    raise BagError(f"bag {self.path}, topic {topic}, time {one.time_ns} ns: {one.reason}")

        for topic, msgtype, time_ns, data in self.raw(topics, start_ns, stop_ns):
            if msgtype in VIDEO_TYPES:
                if topic not in streams:
                    streams[topic] = (
                        VideoStream(topic, msgtype)
                        if start_ns is None
                        else self._video(topic).stream_from(start_ns)
                    )
                yield from images(topic, streams[topic].push(time_ns, data))
                continue
            if msgtype not in typestore().types:
                raise BagError(f"bag {self.path}: topic {topic} has the unknown type {msgtype}")
            try:
                message = typestore().deserialize_cdr(data, msgtype)
            except Exception as err:  # wrong lengths lead to struct, index, memory and value errors
                reason = f"not a valid {msgtype}: {first_line(err)}"
                if on_corrupt is None:
                    raise BagError(f"bag {self.path}, topic {topic}, time {time_ns} ns: {reason}") from err
                on_corrupt(topic, time_ns, reason)
                continue
            yield topic, time_ns, message
        for topic, stream in streams.items():
            yield from images(topic, stream.flush())
        self._log([line for topic, stream in streams.items() if (line := stream.summary(topic))])

    def _video(self, topic: str) -> VideoIndex:
        if topic not in self._videos:

            def read(start_ns: int | None, stop_ns: int | None) -> Iterator[tuple[int, bytes]]:
                for _, _, time_ns, data in self.raw([topic], start_ns, stop_ns):
                    yield time_ns, data

            self._videos[topic] = VideoIndex(self.path, topic, self.topics[topic].msgtype, read)
        return self._videos[topic]

    def read(self, topic: str, time_ns: int, stamp_ns: int | None = None) -> Message:
        """Seek to a message and return it.

        Args:
            topic: Topic of the message.
            time_ns: Bag time, ns.
            stamp_ns: Header stamp in ns, which distinguishes messages with the same bag time; None = the first one.

        Returns:
            The message; an rgb8 Image for encoded video.

        Raises:
            BagError: If there is none, or the storage or the message is damaged.
            ConfigError: For encoded video without the package `av`.
        """
        self.require(topic)
        if self.topics[topic].msgtype in VIDEO_TYPES:
            return self._video(topic).read(time_ns, stamp_ns)
        for _, _, message in self.messages([topic], time_ns, time_ns + 1):
            if stamp_ns is None or stamp_of(message) == stamp_ns:
                return message
        raise BagError(f"bag {self.path}, topic {topic}: no message at {time_ns} ns")


_warned: set[str] = set()


def _warn_once(text: str) -> None:
    """Log a line once per process: commands open a bag several times."""
    if text not in _warned:
        _warned.add(text)
        log.warning("%s", text)
