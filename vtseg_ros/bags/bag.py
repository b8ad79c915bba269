# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Bags in and out, without ROS: sqlite3 and mcap, split files and compression. rosbags writes and (de)serialises."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Writer
from zstandard import ZstdDecompressor

from vtseg_ros.bags import messages
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, IMAGE, LABEL_MAP, typestore
from vtseg_ros.bags.storage import ZSTD_MAGIC, Storage, is_too_long, line_of, merge_in_time, open_storage
from vtseg_ros.bags.storage_files import StorageFiles, find_storage
from vtseg_ros.errors import BagError
from vtseg_ros.label_set import LabelSet

JPEG_QUALITY = 95
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
NO_HASH = "RIHS01_" + 64 * "0"
MAX_NAME_BYTES = 250  # a storage file adds its suffix, and names end at 255
DAY_NS = 86_400 * messages.NS
OnCorrupt = Callable[[str, int, str], None]
_NEVER = QosTime(9223372036, 854775807)  # how rosbag2 writes an infinite time
LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    _NEVER,
    _NEVER,
    QosLiveliness.AUTOMATIC,
    _NEVER,
    False,
)
"""Of topics whose one message is for whoever comes later."""

log = logging.getLogger("vtseg_ros.bags")


@dataclass(frozen=True)
class TopicInfo:
    """A topic of a bag: its message type and how many messages it has."""

    msgtype: str
    count: int


class BagReader:
    """A bag opened for reading; use it as a context manager.

    What is in the storage files is read, whatever metadata.yaml says or whether there is one. Messages that are told of
    but not there are logged, one line per topic, and counted in `missing`.

    Args:
        path: the bag's folder, or a storage file, which is then read by itself.

    Attributes:
        topics: by name, with the number of messages that the storage has.
        definitions: message definition and type hash by type, of those that the bag carries.
        qos: what the publishers of each topic offered when it was recorded; empty where the bag does not say.
        left_out: reason by name, of topics that are in the storage and cannot be read.
        missing: by topic, how many messages fewer there are than the storage or metadata.yaml says. Complete for a topic
            once all its messages were read.

    Raises:
        BagError: if there is no bag, or it cannot be read; says which.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        files = find_storage(self.path)
        self._tell(files.notes)
        self._stack = ExitStack()
        self._storages: list[Storage] = []
        self.missing: dict[str, int] = {}
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
            self._tell([f"{file.name}: {note}" for note in storage.notes])
        if not self._storages:
            raise BagError(f"bag {self.path} cannot be read: {damaged[0]}")
        self._tell([f"{text}. It is left out" for text in damaged])
        self._collect(files)

    def _collect(self, files: StorageFiles) -> None:
        found: dict[str, Counter[str]] = {}
        told: dict[str, Counter[str]] = {}
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
                told.setdefault(one.topic, Counter())[msgtype] += storage.told[number]
                digest = one.digest or (hint.digest if hint else "") or NO_HASH
                if one.definition:
                    self.definitions.setdefault(msgtype, (one.definition, digest))
                if not self.qos.get(one.topic):
                    self.qos[one.topic] = list(one.qos or (hint.qos if hint else ()))
            self._ids.append(ids)
        self.topics: dict[str, TopicInfo] = {}
        self._told: dict[str, int] = {}
        for topic, types in found.items():
            msgtype = max(types, key=lambda name: (types[name], name))
            self.topics[topic] = TopicInfo(msgtype, types[msgtype])
            hint = files.topics.get(topic)
            promised = hint.count if hint and hint.msgtype == msgtype else 0
            self._told[topic] = max(told[topic][msgtype], promised)
            others = sorted(set(types) - {msgtype})
            if others:
                self._tell([f"topic {topic} is of several types: {msgtype} is read, {', '.join(others)} not"])
        for topic, hint in files.topics.items():
            if topic not in self.topics and topic not in self.left_out:
                self.topics[topic], self.qos[topic] = TopicInfo(hint.msgtype, 0), list(hint.qos)
                self._told[topic] = hint.count
        self._tell([f"topic {topic} is left out: {reason}" for topic, reason in self.left_out.items()])
        for topic, info in self.topics.items():
            self._compare(topic, info.count)

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            _warn_once(f"bag {self.path}: {line}")

    def _compare(self, topic: str, read: int) -> None:
        """Log and remember when a topic has fewer messages than it should."""
        lost = self._told[topic] - read
        if lost > self.missing.get(topic, 0):
            self.missing[topic] = lost
            self._tell([f"topic {topic} has {read} messages; expected {self._told[topic]}: {lost} missing"])

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._storages = []
        self._stack.close()

    def require(self, *topics: str) -> None:
        """Raise BagError if a topic is not in the bag; lists those that are."""
        for topic in topics:
            if topic in self.left_out:
                raise BagError(f"bag {self.path}: topic {topic} cannot be read: {self.left_out[topic]}")
            if topic not in self.topics:
                known = ", ".join(sorted(self.topics)) or "none"
                raise BagError(f"bag {self.path} has no topic {topic}. It has: {known}")

    def _wanted(self, topics: Collection[str] | None) -> Iterator[tuple[Storage, dict[int, str]]]:
        """The storage files, each with the connections of some topics: topic by id."""
        for storage, ids in zip(self._storages, self._ids):
            chosen = {
                number: topic
                for number, (topic, msgtype) in ids.items()
                if (topics is None or topic in topics) and msgtype == self.topics[topic].msgtype
            }
            if chosen:
                yield storage, chosen

    def times(self, topics: Collection[str] | None = None) -> np.ndarray:
        """Bag times (ns, int64) of the messages of some topics, sorted; None = all topics.

        Raises:
            BagError: if there is no such topic, or the storage is damaged.
        """
        if topics is not None:
            self.require(*topics)
        found = [storage.times(chosen) for storage, chosen in self._wanted(topics)]
        return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def span(self, topics: Collection[str] | None = None) -> tuple[int, int]:
        """Bag times (ns) of the first and the last message of some topics; (0, 0) without messages.

        Messages that lie more than a day apart from most others do not count: some have the time zero, or that of a
        clock that was not set yet.
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
        """Bag time of the first message; see `span`."""
        return self.span()[0]

    @property
    def end_ns(self) -> int:
        """Bag time after the last message; see `span`."""
        return self.span()[1] + 1

    def rate_hz(self, topic: str) -> float | None:
        """Messages per second by the median interval, so that pauses do not count; None = unknown.

        Raises:
            BagError: if there is no such topic, or the storage is damaged.
        """
        times = self.times([topic])
        interval_ns = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        return 1e9 / interval_ns if interval_ns > 0 else None

    def raw(
        self, topics: list[str] | None = None, start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[tuple[str, str, int, bytes]]:
        """Serialized messages in time order: (topic, type, bag time in ns, CDR bytes).

        Raises:
            BagError: if the storage is damaged.
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
        except GeneratorExit:
            raise
        except Exception as err:  # lying lengths lead to struct, memory, value and sqlite errors
            raise BagError(f"bag {self.path} is damaged: {line_of(err)}") from err
        if start_ns is None and stop_ns is None:
            for topic in self.topics if topics is None else topics:
                self._compare(topic, read[topic])

    def _in_time(
        self, topics: list[str] | None, start_ns: int | None, stop_ns: int | None
    ) -> Iterator[tuple[str, int, bytes]]:
        parts, names = [], []
        for place, (storage, chosen) in enumerate(self._wanted(topics)):

            def opened(storage: Storage = storage, chosen: dict[int, str] = chosen, place: int = place):
                for number, time_ns, data in storage.messages(chosen, start_ns, stop_ns):
                    yield (place, number), time_ns, data

            parts.append((storage.start_ns, opened))
            names.append(chosen)
        for (place, number), time_ns, data in merge_in_time(parts):
            yield names[place][number], time_ns, data

    def messages(
        self,
        topics: list[str] | None = None,
        start_ns: int | None = None,
        stop_ns: int | None = None,
        *,
        on_corrupt: OnCorrupt | None = None,
    ) -> Iterator[tuple[str, int, object]]:
        """Messages in time order: (topic, bag time in ns, message).

        Args:
            topics: which; None = all.
            start_ns, stop_ns: bag times, start included, stop not.
            on_corrupt: called with (topic, bag time, reason) for a message that does not deserialize, which is
                then left out; None = such a message raises.

        Raises:
            BagError: for a damaged storage, an unknown type or (without `on_corrupt`) a corrupt message.
        """
        for topic, msgtype, time_ns, data in self.raw(topics, start_ns, stop_ns):
            if msgtype not in typestore().types:
                raise BagError(f"bag {self.path}: topic {topic} has the unknown type {msgtype}")
            try:
                message = typestore().deserialize_cdr(data, msgtype)
            except Exception as err:  # whatever lying lengths lead to: struct, index, memory and value errors
                reason = f"not a valid {msgtype}: {line_of(err)}"
                if on_corrupt is None:
                    raise BagError(f"bag {self.path}, topic {topic}, time {time_ns} ns: {reason}") from err
                on_corrupt(topic, time_ns, reason)
                continue
            yield topic, time_ns, message

    def read(self, topic: str, time_ns: int, stamp_ns: int | None = None):
        """The message of a topic at a bag time, by seeking.

        Args:
            stamp_ns: header stamp, which tells messages apart that were recorded at the same time; None = the first.

        Raises:
            BagError: if there is none, or the storage or the message is damaged.
        """
        for _, _, message in self.messages([topic], time_ns, time_ns + 1):
            if stamp_ns is None or messages.stamp_of(message) == stamp_ns:
                return message
        raise BagError(f"bag {self.path}, topic {topic}: no message at {time_ns} ns")


class OpenBags:
    """Bags opened when they are first asked for, anew in each process.

    A forked process shares file positions with its parent: what it reads from its parent's files is a matter of luck.

    Args:
        paths: one per bag.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths, self._open, self._process = paths, {}, os.getpid()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}

    def __getitem__(self, number: int) -> BagReader:
        if self._process != os.getpid():
            self._process, self._open = os.getpid(), {}
        if number not in self._open:
            self._open[number] = BagReader(self._paths[number])
        return self._open[number]


_warned: set[str] = set()


def _warn_once(text: str) -> None:
    """Log a line once per process: commands open a bag several times."""
    if text not in _warned:
        _warned.add(text)
        log.warning("%s", text)


class _SqliteWriter(Sqlite3Writer):
    """rosbags' writer, for any name: it makes a URI of the path, in which `#`, `?` and `%` have a meaning."""

    def __init__(self, path: Path, compression: CompressionMode) -> None:
        self.path = path / f"{path.name}.db3"
        if is_too_long(self.path):
            self.path = path / "bag.db3"
        self.conn = sqlite3.connect(self.path)
        self.conn.executescript(self.SQLITE_SCHEMA)
        self.cursor = self.conn.cursor()


class _Writer(Writer):
    STORAGE_PLUGINS = {**Writer.STORAGE_PLUGINS, StoragePlugin.SQLITE3: _SqliteWriter}


def check_new_bag(path: Path) -> None:
    """Refuse a bag that exists, or a name that the files inside it or metadata.yaml cannot have.

    Raises:
        BagError: naming the problem.
    """
    name = path.name
    try:
        size = len(name.encode())
    except UnicodeEncodeError as err:
        raise BagError(f"{path!r}: the name of a bag must be valid UTF-8, as metadata.yaml is") from err
    if size > MAX_NAME_BYTES:
        raise BagError(f"{path}: the name of a bag may have {MAX_NAME_BYTES} bytes. Got: {size}")
    if path.exists():
        raise BagError(f"{path} exists: nothing is overwritten. Remove it or choose another name")


class BagWriter:
    """A bag written message by message; use it as a context manager: an exception inside removes what was begun.

    Args:
        path: folder to make; must not exist.
        storage: `mcap` or `sqlite3`.

    Raises:
        BagError: if the folder exists or cannot be made.
    """

    def __init__(self, path: str | Path, storage: str = "mcap") -> None:
        self.path = Path(path)
        check_new_bag(self.path)
        if storage not in STORAGES:
            raise BagError(f"storage must be one of {', '.join(STORAGES)}. Got: {storage!r}")
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Version 8 is what Humble writes and every newer release reads.
            self._writer = _Writer(self.path, version=8, storage_plugin=STORAGES[storage])
            try:
                self._writer.open()
            except BaseException:
                with suppress(OSError):  # made by the writer before it failed
                    self.path.rmdir()
                raise
        self._connections: dict[str, object] = {}
        self._closed = False

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._closed:
            return
        if kind is None:
            try:
                self.close()
                return
            except BagError:
                self._remove()
                raise
        self._remove()

    def close(self) -> None:
        """Finish the bag; after this an exception inside the `with` leaves it as it is."""
        with self._told():
            self._writer.close()
        self._closed = True

    def _remove(self) -> None:
        with suppress(Exception):  # a storage that cannot be written may not close either
            self._writer.abort()
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the disk and of the storage in one line."""
        try:
            yield
        except Exception as err:  # sqlite's come in the class of whichever binding rosbags uses
            raise BagError(f"bag {self.path} cannot be written: {line_of(err)}") from err

    def write_raw(
        self,
        topic: str,
        msgtype: str,
        data: bytes,
        time_ns: int,
        *,
        definition: tuple[str, str] | None = None,
        qos: Sequence[Qos] = (),
    ) -> None:
        """Add a serialized message.

        Args:
            topic, msgtype: whose.
            data: CDR bytes.
            time_ns: bag time.
            definition: needed for types that this package does not know.
            qos: what the topic's publishers offer, for players; taken from the topic's first message.

        Raises:
            BagError: if the disk is full, or the type is unknown.
        """
        with self._told():
            if topic not in self._connections:
                kind: dict = {"typestore": typestore()}
                if msgtype not in typestore().types and definition is not None:
                    kind = {"msgdef": definition[0], "rihs01": definition[1]}
                self._connections[topic] = self._writer.add_connection(
                    topic, msgtype, offered_qos_profiles=qos, **kind
                )
            self._writer.write(self._connections[topic], time_ns, data)

    def write(self, topic: str, msgtype: str, message, time_ns: int, *, qos: Sequence[Qos] = ()) -> None:
        """Add a message at a bag time; see `write_raw`."""
        self.write_raw(topic, msgtype, typestore().serialize_cdr(message, msgtype), time_ns, qos=qos)

    def write_image(
        self, topic: str, rgb: np.ndarray, stamp_ns: int, frame_id: str, *, compressed: bool = False
    ) -> None:
        """(H, W, 3) uint8 RGB as rgb8, or as jpeg."""
        if compressed:
            bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
            payload = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            message = messages.compressed_message(payload, "rgb8; jpeg compressed bgr8", stamp_ns, frame_id)
            self.write(topic, COMPRESSED_IMAGE, message, stamp_ns)
        else:
            self.write(topic, IMAGE, messages.image_message(rgb, "rgb8", stamp_ns, frame_id), stamp_ns)

    def write_label(
        self, topic: str, ids: np.ndarray, stamp_ns: int, frame_id: str, *, compressed: bool = False
    ) -> None:
        """(H, W) uint8 class ids as mono8, or as png."""
        if compressed:
            message = messages.compressed_message(
                cv2.imencode(".png", ids)[1], messages.PNG_LABEL, stamp_ns, frame_id
            )
            self.write(topic, COMPRESSED_IMAGE, message, stamp_ns)
        else:
            self.write(topic, IMAGE, messages.image_message(ids, "mono8", stamp_ns, frame_id), stamp_ns)

    def write_float(self, topic: str, values: np.ndarray, stamp_ns: int, frame_id: str) -> None:
        """(H, W) float32 as 32FC1 (depth, m) or (H, W, 2) as 32FC2 (flow, px)."""
        encoding = "32FC1" if values.ndim == 2 else f"32FC{values.shape[2]}"
        self.write(topic, IMAGE, messages.image_message(values, encoding, stamp_ns, frame_id), stamp_ns)

    def write_label_map(self, topic: str, labels: LabelSet, stamp_ns: int) -> None:
        """The class list, latched."""
        message = messages.label_map_message(labels, stamp_ns)
        self.write(topic, LABEL_MAP, message, stamp_ns, qos=[LATCHED])
