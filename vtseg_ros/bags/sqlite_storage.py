# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read sqlite3 files of any of rosbag2's schemas."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from vtseg_ros.bags.storage import COPY_BYTES, Connection, Messages, normal_type, offered_qos
from vtseg_ros.errors import BagError, first_line


def is_too_long(path: Path) -> bool:
    """Return whether a path, or that of its journal, is too long for sqlite3, which allows 512 bytes.

    Args:
        path: Path of a database.
    """
    names = (os.fsencode(f"{path.resolve()}-journal"), os.fsencode(f"{path.name}-journal"))
    return len(names[0]) > 500 or len(names[1]) > 255


class SqliteStorage:
    """A sqlite3 file of any of rosbag2's schemas; see `Storage`.

    The journal that a killed recorder leaves next to the file is read too.

    Args:
        path: Database.
        scratch: Existing folder for a copy, which is made if there is a journal or the path is too long.

    Raises:
        BagError: If it is not a bag, or cannot be read.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.notes: list[str] = []
        self.lost: Counter[int] = Counter()
        journals = [path.with_name(path.name + suffix) for suffix in ("-wal", "-journal")]
        journals = [file for file in journals if file.is_file() and file.stat().st_size]
        if journals or is_too_long(path):
            # Reading a journal writes to the database and its folder, so a copy is read.
            copy = Path(tempfile.mkdtemp(dir=scratch)) / "bag.db3"
            for file in (path, *journals):
                target = copy.with_name(copy.name + file.name[len(path.name) :])
                with file.open("rb") as source, target.open("wb") as out:
                    while block := source.read(COPY_BYTES):
                        out.write(block)
            address = copy.as_uri()
        else:
            address = f"{path.resolve().as_uri()}?immutable=1"
        try:
            self._database = sqlite3.connect(address, uri=True, check_same_thread=False)
            self._database.text_factory = lambda data: data.decode("utf-8", "replace")
            self._open()
        except (sqlite3.Error, TypeError, ValueError, OverflowError) as err:
            self.close()
            raise BagError(f"its database cannot be read: {first_line(err)}") from err
        except BagError:
            self.close()
            raise

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(self._database.execute(query, values)) as cursor:
            return cursor.fetchall()

    def _columns(self, table: str) -> set[str]:
        return {row[1] for row in self._rows(f"PRAGMA table_info({table})")}

    def _open(self) -> None:
        columns = self._columns("topics")
        if not columns or not self._columns("messages"):
            raise BagError("its database has no tables `topics` and `messages`: it is not a bag")
        optional = ("serialization_format", "offered_qos_profiles", "type_description_hash")
        chosen = ", ".join(name if name in columns else "''" for name in optional)
        definitions = {}
        if self._columns("message_definitions"):
            rows = self._rows("SELECT topic_type, encoded_message_definition FROM message_definitions")
            definitions = {str(name): str(text) for name, text in rows}
        self.connections = {}
        for number, topic, msgtype, encoding, qos, digest in self._rows(
            f"SELECT id, name, type, {chosen} FROM topics ORDER BY id"
        ):
            refused = "" if encoding in ("cdr", "") else f"its messages are {encoding!r}; expected cdr"
            self.connections[number] = Connection(
                str(topic),
                normal_type(str(msgtype)),
                definitions.get(str(msgtype), ""),
                str(digest or ""),
                offered_qos(qos),
                refused,
            )
        self.announced = Counter(
            dict(self._rows("SELECT topic_id, count(*) FROM messages GROUP BY topic_id"))
        )
        lost = sum(count for number, count in self.announced.items() if number not in self.connections)
        if lost:
            self.notes.append(f"{lost} messages belong to no topic and are left out")
        # Two queries: each of them uses the index.
        self.start_ns, self.end_ns = (
            int(self._rows(f"SELECT {which}(timestamp) FROM messages")[0][0] or 0) for which in ("min", "max")
        )

    def count(self, number: int) -> int:
        """See `Storage.count`."""
        return self.announced[number]

    def times(self, wanted: Collection[int]) -> np.ndarray:
        """See `Storage.times`."""
        ids = list(wanted)
        marks = ", ".join("?" * len(ids))
        try:
            rows = self._rows(
                f"SELECT timestamp FROM messages WHERE topic_id IN ({marks}) ORDER BY timestamp", *ids
            )
            return np.array([row[0] for row in rows], np.int64)
        except (sqlite3.Error, TypeError, ValueError, OverflowError) as err:
            raise BagError(f"its database is damaged: {first_line(err)}") from err

    def messages(self, wanted: Collection[int], start_ns: int | None, stop_ns: int | None) -> Messages[int]:
        """See `Storage.messages`."""
        ids = list(wanted)
        query = (
            f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({', '.join('?' * len(ids))})"
        )
        limits = [("timestamp >= ?", start_ns), ("timestamp < ?", stop_ns)]
        given = [(text, min(max(value, -(2**63)), 2**63 - 1)) for text, value in limits if value is not None]
        query += "".join(f" AND {text}" for text, _ in given) + " ORDER BY timestamp, rowid"
        with closing(self._database.execute(query, [*ids, *(value for _, value in given)])) as cursor:
            for number, time_ns, data in cursor:
                if not isinstance(data, bytes) or not isinstance(time_ns, int):
                    raise BagError("its database is damaged: a message without time or data")
                yield number, time_ns, data

    def check(self) -> None:
        """See `Storage.check`: sqlite3 has no checksums."""

    def close(self) -> None:
        """Close the database."""
        if hasattr(self, "_database"):
            self._database.close()
