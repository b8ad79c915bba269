# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Write bags without ROS, in sqlite3 or mcap storage. rosbags serialises and writes."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Writer

from vtseg_ros.bags import messages
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, IMAGE, LABEL_MAP, NO_HASH, Message, typestore
from vtseg_ros.bags.sqlite_storage import is_too_long
from vtseg_ros.bags.video_messages import DEFINITIONS
from vtseg_ros.errors import BagError, first_line
from vtseg_ros.files import folder_problem
from vtseg_ros.label_set import LabelSet

JPEG_QUALITY = 95
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
MAX_NAME_BYTES = 250  # a file name has at most 255 bytes, of which a storage file needs some for its suffix
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
"""QoS of topics with a single message that late subscribers receive too."""


class _SqliteWriter(Sqlite3Writer):
    """rosbags' writer for any file name; the original puts the path into a URI without escaping `#`, `?` and `%`."""

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
    """Check that a bag can be created at a path.

    Args:
        path: Folder of the new bag.

    Raises:
        BagError: If the path exists or its folder cannot be written to, or its name is too long or not valid UTF-8.
    """
    name = path.name
    try:
        size = len(name.encode())
    except UnicodeEncodeError as err:
        raise BagError(
            f"{path!r}: the name of a bag must be valid UTF-8, like metadata.yaml. Rename it"
        ) from err
    if size > MAX_NAME_BYTES:
        raise BagError(
            f"{path}: the name of the bag is too long; expected at most {MAX_NAME_BYTES} bytes, got {size}"
        )
    if os.path.lexists(path):
        raise BagError(f"{path} exists: nothing is overwritten. Remove it or choose another name")
    problem = folder_problem(path)
    if problem:
        raise BagError(f"bag {path}: cannot be written; {problem}. Choose another place")


class BagWriter:
    """Write a bag message by message; use it as a context manager. An exception inside it removes the bag.

    Args:
        path: Folder to create; must not exist.
        storage: `mcap` or `sqlite3`.

    Raises:
        BagError: If the folder exists or cannot be created.
    """

    def __init__(self, path: str | Path, storage: str = "mcap") -> None:
        self.path = Path(path)
        check_new_bag(self.path)
        if storage not in STORAGES:
            raise BagError(f"storage: unknown; expected one of {', '.join(STORAGES)}, got {storage!r}")
        with self._one_line_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Version 8 is what Humble writes and every newer release reads.
            self._writer = _Writer(self.path, version=8, storage_plugin=STORAGES[storage])
            try:
                self._writer.open()
            except BaseException:
                with suppress(OSError):  # made by the writer before it failed
                    self.path.rmdir()
                raise
        self._connections: dict[str, Connection] = {}
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
            except BaseException:  # KeyboardInterrupt too: what is not finished does not stay
                self._remove()
                raise
        self._remove()

    def close(self) -> None:
        """Finish the bag; after this an exception inside the `with` block leaves the bag in place.

        Raises:
            BagError: If the disk is full.
        """
        with self._one_line_errors():
            self._writer.close()
        self._closed = True

    def abandon(self) -> None:
        """Close the files as they are, after an error; what was written stays, without index and metadata."""
        with suppress(Exception):  # a storage that cannot be written may not close either
            self._writer.abort()
        self._closed = True

    def _remove(self) -> None:
        self.abandon()
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Turn errors of the disk and of the storage into a BagError of one line."""
        try:
            yield
        except Exception as err:  # sqlite's come in the class of whichever binding rosbags uses
            raise BagError(f"bag {self.path} cannot be written: {first_line(err)}") from err

    def write_raw(
        self,
        topic: str,
        msgtype: str,
        data: bytes | memoryview,
        time_ns: int,
        *,
        definition: tuple[str, str] | None = None,
        qos: Sequence[Qos] = (),
    ) -> None:
        """Add a serialized message.

        Args:
            topic: Topic of the message.
            msgtype: Type of the message, such as `sensor_msgs/msg/Image`.
            data: CDR bytes.
            time_ns: Bag time.
            definition: Message definition and type hash, for types that this package does not know.
            qos: QoS that players offer for the topic; used when its first message is added.

        Raises:
            BagError: If the disk is full, or the type is unknown.
        """
        with self._one_line_errors():
            if topic not in self._connections:
                kind: dict[str, Any] = {"typestore": typestore()}
                if definition is None and msgtype in DEFINITIONS:
                    definition = DEFINITIONS[msgtype], NO_HASH
                if msgtype not in typestore().types and definition is not None:
                    kind = {"msgdef": definition[0], "rihs01": definition[1]}
                self._connections[topic] = self._writer.add_connection(
                    topic, msgtype, offered_qos_profiles=qos, **kind
                )
            self._writer.write(self._connections[topic], time_ns, data)

    def write(
        self, topic: str, msgtype: str, message: Message, time_ns: int, *, qos: Sequence[Qos] = ()
    ) -> None:
        """Serialize and add a message.

        Args:
            topic: Topic of the message.
            msgtype: Type of the message, such as `sensor_msgs/msg/Image`.
            message: Message of that type.
            time_ns: Bag time, ns.
            qos: QoS that players offer for the topic; used when its first message is added.

        Raises:
            BagError: If the disk is full.
        """
        self.write_raw(topic, msgtype, typestore().serialize_cdr(message, msgtype), time_ns, qos=qos)

    def write_image(
        self, topic: str, rgb: np.ndarray, stamp_ns: int, frame_id: str, *, compressed: bool = False
    ) -> None:
        """Add an image.

        Args:
            topic: Topic of the image.
            rgb: (H, W, 3) uint8 RGB.
            stamp_ns: Header stamp and bag time.
            frame_id: Frame of the camera.
            compressed: Write a CompressedImage (jpeg) instead of an Image (rgb8).
        """
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
        """Add a label.

        Args:
            topic: Topic of the label.
            ids: (H, W) uint8 class ids.
            stamp_ns: Header stamp and bag time.
            frame_id: Frame of the camera.
            compressed: Write a CompressedImage (png) instead of an Image (mono8).
        """
        if compressed:
            message = messages.compressed_message(
                cv2.imencode(".png", ids)[1], messages.PNG_LABEL, stamp_ns, frame_id
            )
            self.write(topic, COMPRESSED_IMAGE, message, stamp_ns)
        else:
            self.write(topic, IMAGE, messages.image_message(ids, "mono8", stamp_ns, frame_id), stamp_ns)

    def write_float(self, topic: str, values: np.ndarray, stamp_ns: int, frame_id: str) -> None:
        """Add depth or flow, at a header stamp that is also the bag time.

        Args:
            topic: Topic of the image.
            values: (H, W) float32, written as 32FC1 (depth, m), or (H, W, 2), written as 32FC2 (flow, px).
            stamp_ns: Header stamp and bag time.
            frame_id: Frame of the camera.
        """
        encoding = "32FC1" if values.ndim == 2 else f"32FC{values.shape[2]}"
        self.write(topic, IMAGE, messages.image_message(values, encoding, stamp_ns, frame_id), stamp_ns)

    def write_label_map(self, topic: str, labels: LabelSet, stamp_ns: int) -> None:
        """Add a class list, with a QoS that late subscribers receive too.

        Args:
            topic: Topic of the class list.
            labels: Class list.
            stamp_ns: Header stamp and bag time, ns.

        Raises:
            BagError: If the disk is full.
        """
        message = messages.label_map_message(labels, stamp_ns)
        self.write(topic, LABEL_MAP, message, stamp_ns, qos=[LATCHED])
