"""Bags in and out, without ROS: sqlite3 and mcap, split files and compression, by rosbags."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import Reader, StoragePlugin, Writer

from vtseg_ros.data import messages
from vtseg_ros.data.messages import COMPRESSED_IMAGE, IMAGE, LABEL_MAP, typestore
from vtseg_ros.errors import BagError
from vtseg_ros.labels import LabelSet

JPEG_QUALITY = 95
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
NO_HASH = "RIHS01_" + 64 * "0"
RATE_MESSAGES = 201  # how many of a topic its rate is taken from
OnCorrupt = Callable[[str, int, str], None]
_NEVER = QosTime(9223372036, 854775807)  # how rosbag2 writes an infinite time
LATCHED = Qos(
    QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, _NEVER, _NEVER,
    QosLiveliness.AUTOMATIC, _NEVER, False,
)  # fmt: skip
"""Of topics whose one message is for whoever comes later."""


@dataclass(frozen=True)
class TopicInfo:
    """A topic of a bag: its message type and how many messages it has."""

    msgtype: str
    count: int


class BagReader:
    """A bag opened for reading; use it as a context manager.

    Args:
        path: the bag's folder, or a storage file inside it.

    Raises:
        BagError: if there is no bag, or it cannot be read; says which.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        folder = self.path.parent if self.path.is_file() else self.path
        if not folder.is_dir():
            raise BagError(f"no bag at {self.path}: no such folder")
        if not (folder / "metadata.yaml").is_file():
            raise BagError(
                f"{folder} is not a bag: it has no metadata.yaml. Expected: the folder that `ros2 bag record` made; "
                "`ros2 bag reindex` writes a lost metadata.yaml anew"
            )
        try:
            self._reader = Reader(folder)
            self._reader.open()
        except (
            Exception
        ) as err:  # rosbags lets yaml, sqlite3, struct and assertion errors of bad files through
            raise BagError(f"bag {folder} cannot be read: {_line(err)}") from err
        self.topics = {
            name: TopicInfo(info.msgtype or "", info.msgcount) for name, info in self._reader.topics.items()
        }
        self.definitions = {
            c.msgtype: (c.msgdef.data, c.digest or NO_HASH) for c in self._reader.connections if c.msgdef.data
        }
        """Message definition and type hash by type, of those that the bag carries."""
        self.qos: dict[str, list[Qos]] = {
            c.topic: list(c.ext.offered_qos_profiles) for c in self._reader.connections
        }
        """What the publishers of each topic offered when it was recorded; empty where the bag does not say."""
        self.start_ns, self.end_ns = self._reader.start_time, self._reader.end_time

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    def require(self, *topics: str) -> None:
        """Raise BagError if a topic is not in the bag; lists those that are."""
        for topic in topics:
            if topic not in self.topics:
                known = ", ".join(sorted(self.topics)) or "none"
                raise BagError(f"bag {self.path} has no topic {topic}. It has: {known}")

    def rate_hz(self, topic: str) -> float | None:
        """Messages per second by the median interval of the first ones, so that pauses do not count; None = unknown.

        Raises:
            BagError: if there is no such topic, or the storage is damaged.
        """
        times = [time_ns for _, _, time_ns, _ in islice(self.raw([topic]), RATE_MESSAGES)]
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
        connections = [c for c in self._reader.connections if topics is None or c.topic in topics]
        if not connections:
            return
        try:
            for connection, time_ns, data in self._reader.messages(connections, start_ns, stop_ns):
                yield connection.topic, connection.msgtype, time_ns, data
        except GeneratorExit:
            raise
        except Exception as err:  # see __init__
            raise BagError(f"bag {self.path} is damaged: {_line(err)}") from err

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
                reason = f"not a valid {msgtype}: {_line(err)}"
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


def _line(err: Exception) -> str:
    text = str(err).strip().splitlines()
    return text[0] if text else type(err).__name__


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
        if self.path.exists():
            raise BagError(f"{self.path} exists: nothing is overwritten. Remove it or choose another name")
        if storage not in STORAGES:
            raise BagError(f"storage must be one of {', '.join(STORAGES)}. Got: {storage!r}")
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Version 8 is what Humble writes and every newer release reads.
            self._writer = Writer(self.path, version=8, storage_plugin=STORAGES[storage])
            self._writer.open()
        self._connections: dict[str, object] = {}

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            try:
                self.close()
                return
            except BagError:
                self._remove()
                raise
        self._remove()

    def close(self) -> None:
        """Finish the bag; without it there is no metadata.yaml and readers refuse it."""
        with self._told():
            self._writer.close()

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
            raise BagError(f"bag {self.path} cannot be written: {_line(err)}") from err

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
