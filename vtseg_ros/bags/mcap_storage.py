# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read mcap files in every layout that the format allows.

The mcap package parses records; their framing is parsed here, since the readers of the package need a file that was closed
properly and accept truncated records.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

import lz4.frame
import numpy as np
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Schema, Statistics

from vtseg_ros.bags.storage import (
    COPY_BYTES,
    UNKNOWN,
    Connection,
    Messages,
    merge_in_time,
    normal_type,
    offered_qos,
)
from vtseg_ros.content import MCAP_MAGIC
from vtseg_ros.errors import BagError, first_line

DEFINITION_ENCODINGS = ("ros2msg", "ros2idl", "omgidl", "")
BLOCK_BYTES = 512
_U64, _MESSAGE_HEAD, _RECORD_HEAD = 8, 22, 9
_CHAIN = 3
"""Records that must follow each other for the first of them to be taken for one behind a damaged part."""


@dataclass
class _Chunk:
    """Chunk record: start and length of its content in the file, and bag times by channel."""

    start: int
    length: int
    cut: bool = False
    checked: bool = False
    times: dict[int, np.ndarray] = field(default_factory=dict)


class McapStorage:
    """An mcap file; see `Storage`.

    Chunks, indexes and summary are optional and may be incomplete. A file without a footer comes from a killed recorder:
    all complete records are read. In a file with a footer, damaged chunks and records are left out and counted.

    Args:
        path: mcap file.

    Raises:
        BagError: If nothing of it can be read.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._size = path.stat().st_size
        self.notes: list[str] = []
        self.lost: Counter[int] = Counter()
        try:
            self._open()
        except BagError:
            self.close()
            raise
        except Exception as err:  # wrong lengths lead to struct, unicode, memory and value errors
            self.close()
            raise BagError(f"it is damaged: {first_line(err)}") from err

    def _open(self) -> None:
        end = self._walk()
        if end is not None and not any(self._read(max(0, self._size - len(MCAP_MAGIC)), len(MCAP_MAGIC))):
            self._size = self._written()
            end = self._walk()
        if end is not None:
            self._file.seek(max(0, self._size - len(MCAP_MAGIC)))
            if self._size > 2 * len(MCAP_MAGIC) and self._file.read() == MCAP_MAGIC:
                raise BagError(f"it is damaged at byte {end}")
            self._forgive_end()
            self.notes.append(
                f"it has no end: its recorder was killed or the file was cut. Read up to byte {end}"
            )
        known = set(self._loose).union(*(chunk.times for chunk in self._chunks))
        incomplete = bool(known - set(self._channels))
        self._counted: Counter[int] = Counter()
        for chunk in self._chunks:
            if incomplete or not chunk.times:
                self._check(chunk)
        for entries in self._loose.values():
            entries.sort()
        self.connections = {number: self._connection(channel) for number, channel in self._channels.items()}
        self._counted = Counter({number: len(entries) for number, entries in self._loose.items()})
        for chunk in self._chunks:
            self._counted.update({number: times.size for number, times in chunk.times.items()})
        self.announced = self._counted + self.lost
        if self._statistics:
            self.announced = Counter(self._statistics)
            unread = self.announced - self._counted - self.lost
            self.lost[UNKNOWN] = 0  # the statistics know
            if self._damaged and unread:
                self.lost.update(unread)
        lost = sum(count for number, count in self._counted.items() if number not in self.connections)
        if lost:
            self.notes.append(f"{lost} messages belong to no channel and are left out")
        times = self.times(list(self.connections))
        self.start_ns, self.end_ns = (int(times[0]), int(times[-1])) if times.size else (0, 0)
        if end is not None and not times.size:
            raise BagError("it is cut: no whole message is in it")

    def _walk(self) -> int | None:
        """Find the records; return the position at which the file is truncated, None if it is complete."""
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._chunks: list[_Chunk] = []
        # (time, start, length) of messages outside chunks, by channel.
        self._loose: dict[int, list[tuple[int, int, int]]] = {}
        self._statistics: dict[int, int] = {}
        self._damaged = False
        self._chunk: _Chunk | None = None
        has_end = self._read(max(0, self._size - len(MCAP_MAGIC)), len(MCAP_MAGIC)) == MCAP_MAGIC
        position = before = len(MCAP_MAGIC)
        while True:
            try:
                end = self._record(position)
            except (BagError, McapError, ValueError, struct.error):
                following = self._resume(before, position) if has_end else None
                if following is None:
                    return position
                position = before = following
                continue
            if end is None:
                return None
            before, position = position, end

    def _record(self, position: int) -> int | None:
        """Note what a record contains and return its end; None = it is the footer.

        Raises:
            BagError, McapError, ValueError, struct.error: If it is damaged or truncated.
        """
        head = self._read(position, _RECORD_HEAD)
        kind, length = struct.unpack("<BQ", head)
        body, end = position + _RECORD_HEAD, position + _RECORD_HEAD + length
        if kind == 0:
            raise BagError("no record")
        if end > self._size:
            if kind == Opcode.CHUNK:
                self._chunks.append(_Chunk(body, self._size - body, cut=True))
            raise BagError("a truncated record")
        if kind == Opcode.CHUNK:
            self._chunk = _Chunk(body, length)
            self._chunks.append(self._chunk)
        elif kind == Opcode.MESSAGE_INDEX and self._chunk is not None:
            channel, size = struct.unpack("<HI", self._read(body, 6))
            entries = np.frombuffer(self._read(body + 6, min(size, length - 6)), "<u8")
            if entries.size:
                self._chunk.times[channel] = np.sort(entries[::2].astype(np.int64))
        elif kind == Opcode.MESSAGE:
            channel, _, time_ns, _ = struct.unpack("<HIQQ", self._read(body, min(length, _MESSAGE_HEAD)))
            entry = (time_ns, body + _MESSAGE_HEAD, length - _MESSAGE_HEAD)
            self._loose.setdefault(channel, []).append(entry)
        elif kind in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.STATISTICS):
            self._define(kind, self._read(body, length))
        return None if kind == Opcode.FOOTER else end

    def _resume(self, before: int, position: int) -> int | None:
        """Find the next record behind damage; None if there is none.

        Args:
            before: Start of the last record whose end was found.
            position: That end, where no record is.
        """
        if self._chunks and self._chunks[-1].cut:
            self._chunks.pop()
        last = self._chunks[-1] if self._chunks else None
        search = position + 1
        is_record = 1 <= int.from_bytes(self._read(position, 1), "little") <= Opcode.DATA_END
        is_whole = last is not None and last.start == before + _RECORD_HEAD and self._loads(last)
        if before != position and not is_record and not is_whole:
            search = before + 1  # the length of the record before is wrong
            if last and last.start == before + _RECORD_HEAD:
                self._chunks.pop()
            for entries in self._loose.values():
                entries[:] = [entry for entry in entries if entry[1] != before + _RECORD_HEAD + _MESSAGE_HEAD]
        found = self._next_record(search)
        if found is not None:
            self._damaged, self._chunk = True, None
            self.notes.append(f"it is damaged from byte {search - 1} to byte {found}: this part is left out")
            self.lost[UNKNOWN] += 1
        return found

    def _loads(self, chunk: _Chunk) -> bool:
        try:
            self._load(chunk)
        except Exception:
            return False
        return True

    def _next_record(self, position: int) -> int | None:
        """Return the first place at which a chain of records starts."""
        while position < self._size:
            block = np.frombuffer(self._read(position, COPY_BYTES + _RECORD_HEAD), np.uint8)
            if block.size < _RECORD_HEAD:
                return None
            # A known kind, and a length below 2^40.
            count = int(block.size) - _RECORD_HEAD + 1
            fits = (block[:count] >= 1) & (block[:count] <= Opcode.DATA_END)
            for high in (6, 7, 8):
                fits &= block[high : high + count] == 0
            for place in map(int, np.flatnonzero(fits)):
                if self._starts_chain(position + place):
                    return position + place
            position += count
        return None

    def _starts_chain(self, position: int) -> bool:
        for _ in range(_CHAIN):
            kind, length = struct.unpack("<BQ", self._read(position, _RECORD_HEAD).ljust(_RECORD_HEAD, b"\0"))
            body, end = position + _RECORD_HEAD, position + _RECORD_HEAD + length
            if not 1 <= kind <= Opcode.DATA_END or end > self._size:
                return False
            if kind == Opcode.FOOTER:
                return bool(length == 20 and end + len(MCAP_MAGIC) == self._size)
            if kind == Opcode.MESSAGE and length < _MESSAGE_HEAD:
                return False
            if kind == Opcode.MESSAGE_INDEX:
                size = struct.unpack("<I", self._read(body + 2, 4))[0] if length >= 6 else -1
                if size + 6 != length or size % 16:
                    return False
            if kind == Opcode.CHUNK:
                name = struct.unpack("<I", self._read(body + 28, 4))[0] if length >= 40 else 40
                if name > 16 or struct.unpack("<Q", self._read(body + 32 + name, 8))[0] + 40 + name != length:
                    return False
            position = end
        return True

    def _written(self) -> int:
        """Return the number of bytes before the zeros that a power failure leaves at the end, in whole disk blocks."""
        end = self._size
        while end > 0:
            start = max(0, end - COPY_BYTES)
            block = self._read(start, end - start).rstrip(b"\0")
            if block:
                return min(self._size, -(-(start + len(block)) // BLOCK_BYTES) * BLOCK_BYTES)
            end = start
        return 0

    def _forgive_end(self) -> None:
        """Count the messages of the last chunk, whose indexes may be missing, and drop the chunk if it is damaged."""
        while self._chunks:
            last = self._chunks[-1]
            last.times, _ = self._content(last)
            if last.times:
                return
            # A chunk before a damaged one has complete indexes, unless it is damaged too.
            self._chunks.pop()
            if self._chunks and self._chunks[-1].times:
                return

    def _read(self, position: int, length: int) -> bytes:
        self._file.seek(position)
        return self._file.read(length)

    def _define(self, kind: int, body: bytes) -> None:
        stream = ReadDataStream(BytesIO(body))
        if kind == Opcode.SCHEMA:
            schema = Schema.read(stream)
            known = self._schemas.setdefault(schema.id, schema)
            if known.encoding not in DEFINITION_ENCODINGS:  # perhaps it is damaged; the summary repeats it
                self._schemas[schema.id] = schema
        elif kind == Opcode.CHANNEL:
            channel = Channel.read(stream)
            self._channels.setdefault(channel.id, channel)
        else:
            self._statistics = Statistics.read(stream).channel_message_counts

    def _connection(self, channel: Channel) -> Connection:
        schema = self._schemas.get(channel.schema_id)
        refused = ""
        if schema is not None and schema.encoding not in DEFINITION_ENCODINGS:
            refused = f"its schema's encoding is {schema.encoding!r}; expected ros2msg, ros2idl or omgidl"
        elif channel.message_encoding != "cdr":
            refused = f"its message encoding is {channel.message_encoding!r}; expected cdr"
        return Connection(
            topic=channel.topic,
            msgtype=normal_type(schema.name) if schema else "",
            definition=schema.data.decode("utf-8", "replace") if schema and not refused else "",
            qos=offered_qos(channel.metadata.get("offered_qos_profiles", "")),
            refused=refused,
        )

    def _load(self, chunk: _Chunk) -> memoryview:
        """Return the records of a chunk; of a truncated one, those that are there."""
        body = self._read(chunk.start, chunk.length)
        size, checksum, name_length = struct.unpack_from("<QII", body, 16)
        name = body[32 : 32 + name_length].decode()
        place = 32 + name_length + _U64
        (length,) = struct.unpack_from("<Q", body, place - _U64)
        packed = memoryview(body)[place : place + length]
        if len(packed) < length and not chunk.cut:
            raise BagError(f"the chunk at byte {chunk.start} is longer than its record")
        if name == "":
            data = packed
        elif name == "zstd":
            # Not in one call: the size may be missing in the frame and wrong in the chunk.
            data = memoryview(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
        elif name == "lz4":
            data = memoryview(lz4.frame.LZ4FrameDecompressor().decompress(packed))
        else:
            raise BagError(f"the chunk at byte {chunk.start} is compressed by {name!r}; expected zstd or lz4")
        if chunk.cut:
            return data
        if len(data) != size:
            raise BagError(f"the chunk at byte {chunk.start} has {len(data)} bytes; expected {size}")
        if checksum and zlib.crc32(data) != checksum:
            raise BagError(f"the chunk at byte {chunk.start} has a wrong checksum")
        return data

    def _records(self, chunk: _Chunk) -> Iterator[tuple[int, memoryview]]:
        data, position = self._load(chunk), 0
        while position + _RECORD_HEAD <= len(data):
            kind, length = struct.unpack_from("<BQ", data, position)
            start, position = position + _RECORD_HEAD, position + _RECORD_HEAD + length
            if position > len(data):
                if chunk.cut:
                    return
                raise BagError(f"a record in the chunk at byte {chunk.start} is cut")
            if kind == Opcode.MESSAGE and length < _MESSAGE_HEAD:
                raise BagError(f"a message in the chunk at byte {chunk.start} has {length} bytes")
            yield kind, data[start:position]

    def _content(self, chunk: _Chunk) -> tuple[dict[int, np.ndarray], str]:
        """Read the definitions and the bag times by channel in a chunk, and the reason why it was not read to its end."""
        times: dict[int, list[int]] = {}
        problem = ""
        try:
            for kind, body in self._records(chunk):
                if kind in (Opcode.SCHEMA, Opcode.CHANNEL):
                    self._define(kind, bytes(body))
                elif kind == Opcode.MESSAGE:
                    channel, _, time_ns = struct.unpack_from("<HIQ", body)
                    times.setdefault(channel, []).append(time_ns)
        except Exception as err:  # wrong lengths lead to struct, unicode, memory and value errors
            problem = first_line(err)
        return {
            channel: np.sort(np.array(found, np.uint64).astype(np.int64)) for channel, found in times.items()
        }, problem

    def _check(self, chunk: _Chunk) -> None:
        """Read a chunk; note and count what its index promises and its content does not have."""
        if chunk.checked:
            return
        chunk.checked = True
        promised = Counter({channel: times.size for channel, times in chunk.times.items()})
        chunk.times, problem = self._content(chunk)
        if not problem:
            return
        lost = promised - Counter({channel: times.size for channel, times in chunk.times.items()})
        self._damaged = True
        self._counted -= lost
        self.lost.update(lost if promised else {UNKNOWN: 1})
        names = sorted({self._channels[number].topic for number in lost if number in self._channels})
        which = (
            f"{lost.total()} messages of {', '.join(names)} are lost" if names else "its messages are lost"
        )
        place = f"the chunk at byte {chunk.start}"
        self.notes.append(f"{problem if place in problem else f'{place}: {problem}'}: {which}")

    def check(self) -> None:
        """See `Storage.check`."""
        for chunk in self._chunks:
            self._check(chunk)

    def count(self, number: int) -> int:
        """See `Storage.count`."""
        return self._counted[number]

    def times(self, wanted: Collection[int]) -> np.ndarray:
        """See `Storage.times`."""
        found = [chunk.times[number] for chunk in self._chunks for number in wanted if number in chunk.times]
        found += [
            np.array([entry[0] for entry in self._loose[number]], np.uint64).astype(np.int64)
            for number in wanted
            if number in self._loose
        ]
        return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def messages(self, wanted: Collection[int], start_ns: int | None, stop_ns: int | None) -> Messages[int]:
        """See `Storage.messages`."""
        wanted = frozenset(wanted)
        low = -(2**63) if start_ns is None else start_ns
        high = 2**64 if stop_ns is None else stop_ns

        def from_chunk(chunk: _Chunk) -> Messages[int]:
            found = []
            try:
                for kind, body in self._records(chunk):
                    if kind == Opcode.MESSAGE:
                        channel, _, time_ns = struct.unpack_from("<HIQ", body)
                        if channel in wanted and low <= time_ns < high:
                            found.append((channel, time_ns, body[_MESSAGE_HEAD:]))
            except (
                Exception
            ):  # what was read of it is whole: its checksum, if it has one, was compared before
                self._check(chunk)
            found.sort(key=lambda message: message[1])
            return ((channel, time_ns, bytes(data)) for channel, time_ns, data in found)

        def loose() -> Messages[int]:
            for (time_ns, start, length), channel in entries:
                yield channel, time_ns, self._read(start, length)

        parts: list[tuple[int, Callable[[], Messages[int]]]] = []
        for chunk in self._chunks:
            times = [chunk.times[number] for number in wanted & chunk.times.keys()]
            found = [first_from(one, low, high) for one in times]
            firsts = [first for first in found if first is not None]
            if firsts:
                parts.append((min(firsts), partial(from_chunk, chunk)))
        entries = sorted(
            (entry, number)
            for number in wanted & self._loose.keys()
            for entry in self._loose[number]
            if low <= entry[0] < high
        )
        if entries:
            parts.append((entries[0][0][0], loose))
        return merge_in_time(parts)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def first_from(times: np.ndarray, low: int, high: int) -> int | None:
    """Return the first time of a range.

    Args:
        times: (n,) int64, sorted, ns.
        low: Start of the range, ns.
        high: End of the range, excluded, ns.

    Returns:
        Time, ns; None if no time is in the range.
    """
    place = int(np.searchsorted(times, max(low, -(2**63))))
    return int(times[place]) if place < times.size and times[place] < high else None
