# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Storage files as recorders, converters, people and crashes leave them; written without this package and rosbags.

mcap files by the mcap package's writer and by hand, sqlite3 files by the standard library.
"""

from __future__ import annotations

import sqlite3
import struct
from io import BytesIO
from pathlib import Path

import yaml
from mcap.writer import CompressionType, IndexType, Writer

IMAGE, TEXT = "sensor_msgs/msg/Image", "std_msgs/msg/String"
START, STEP = 1_700_000_000_000_000_000, 100_000_000
MAGIC = b"\x89MCAP0\r\n"
QOS = (
    "- history: 3\n  depth: 0\n  reliability: 1\n  durability: 1\n  deadline: {sec: 9, nsec: 0}\n  lifespan: {sec: 9, nsec: 0}\n"
    "  liveliness: 1\n  liveliness_lease_duration: {sec: 9, nsec: 0}\n  avoid_ros_namespace_conventions: false"
)
Message = tuple[str, int, bytes]
"""(topic, bag time in ns, CDR bytes)."""


def text(content: str) -> bytes:
    """A std_msgs/String as CDR."""
    data = content.encode() + b"\0"
    return b"\0\1\0\0" + struct.pack("<I", len(data)) + data


def image(number: int, stamp_ns: int, size: tuple[int, int] = (8, 4), frame_id: str = "camera") -> bytes:
    """A sensor_msgs/Image, rgb8, every byte of which is its number, as CDR."""

    def padded(data: bytes, width: int = 4) -> bytes:
        return data + bytes(-len(data) % width)

    def string(value: str) -> bytes:
        raw = value.encode() + b"\0"
        return struct.pack("<I", len(raw)) + raw

    stamp = struct.pack("<iI", stamp_ns // 10**9, stamp_ns % 10**9)
    head = padded(stamp + string(frame_id)) + struct.pack("<II", size[1], size[0]) + string("rgb8")
    pixels = bytes([number % 256]) * (3 * size[0] * size[1])
    # is_bigendian is one byte, step is aligned to four.
    return b"\0\1\0\0" + padded(head + b"\0") + struct.pack("<II", 3 * size[0], len(pixels)) + pixels


def messages(count: int = 12) -> list[Message]:
    """Images at 10 Hz and a text with each third one; some are stored later in the file than their times."""
    made: list[Message] = []
    for number in range(count):
        time = START + number * STEP
        made.append(("/camera/image_raw", time, image(number, time)))
        if number % 3 == 0:
            made.append(("/chatter", time + 1, text(str(number))))
    made[4], made[6] = made[6], made[4]
    return made


def write_mcap(path: Path, content: list[Message], *, encoding: str = "ros2msg", **options: object) -> Path:
    """An mcap file; see `mcap_bytes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mcap_bytes(content, encoding=encoding, **options))
    return path


def mcap_bytes(content: list[Message], *, encoding: str = "ros2msg", **options: object) -> bytes:
    """The content of an mcap file; options are those of mcap's writer."""
    file = BytesIO()
    writer = Writer(file, **{"compression": CompressionType.NONE, "chunk_size": 600, **options})
    writer.start("ros2", "a recorder")
    channels: dict[str, int] = {}
    for number, (topic, time, data) in enumerate(content):
        if topic not in channels:
            kind = TEXT if topic == "/chatter" else IMAGE
            schema = writer.register_schema(kind, encoding, b"# a definition")
            channels[topic] = writer.register_channel(topic, "cdr", schema, {"offered_qos_profiles": QOS})
        writer.add_message(channels[topic], time, data, time, sequence=number)
    writer.finish()
    return file.getvalue()


MCAP_LAYOUTS = {
    "as rosbag2": {},
    "zstd": {"compression": CompressionType.ZSTD},
    "lz4": {"compression": CompressionType.LZ4},
    "no chunks": {"use_chunking": False},
    "no chunks, no summary": {
        "use_chunking": False,
        "use_statistics": False,
        "use_summary_offsets": False,
        "repeat_channels": False,
        "repeat_schemas": False,
        "index_types": IndexType.NONE,
    },
    "no summary": {
        "use_statistics": False,
        "use_summary_offsets": False,
        "repeat_channels": False,
        "repeat_schemas": False,
        "index_types": IndexType.NONE,
    },
    "no statistics": {"use_statistics": False},
    "no message index": {"index_types": IndexType.CHUNK},
    "no chunk index": {"index_types": IndexType.MESSAGE},
    "channels in chunks alone": {"repeat_channels": False, "repeat_schemas": False},
    "no check sums": {"enable_crcs": False},
    "one chunk": {"chunk_size": 1 << 20},
}


def write_sqlite(
    path: Path, content: list[Message], *, schema: int = 4, index: bool = True, split_topics: bool = False
) -> Path:
    """A sqlite3 file of one of rosbag2's schemas.

    Args:
        path: of the file.
        content: in the order of the rows.
        schema: 1 (Dashing) to 4 (Iron and later).
        index: whether there is an index of times.
        split_topics: a row per topic and QoS, every second message to either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path)
    fill_sqlite(database, content, schema=schema, index=index, split_topics=split_topics)
    database.close()
    return path


def fill_sqlite(
    database: sqlite3.Connection,
    content: list[Message],
    *,
    schema: int = 4,
    index: bool = True,
    split_topics: bool = False,
) -> None:
    """The tables and rows of `write_sqlite`."""
    columns = (
        "id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, serialization_format TEXT NOT NULL"
    )
    columns += ", offered_qos_profiles TEXT NOT NULL" if schema >= 2 else ""
    columns += ", type_description_hash TEXT NOT NULL" if schema >= 4 else ""
    database.execute(f"CREATE TABLE topics({columns})")
    database.execute(
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL, data BLOB NOT NULL)"
    )
    if schema >= 3:
        database.execute("CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL)")
        database.execute("INSERT INTO schema VALUES (?, 'x')", [schema])
    if schema >= 4:
        database.execute(
            "CREATE TABLE message_definitions(id INTEGER PRIMARY KEY, topic_type TEXT NOT NULL, encoding TEXT NOT NULL, "
            "encoded_message_definition TEXT NOT NULL, type_description_hash TEXT NOT NULL)"
        )
    if index:
        database.execute("CREATE INDEX timestamp_idx ON messages (timestamp ASC)")
    topics = sorted({topic for topic, _, _ in content})
    for number, topic in enumerate(topics * (2 if split_topics else 1), start=1):
        kind = TEXT if topic == "/chatter" else IMAGE
        row = [
            number,
            topic,
            kind,
            "cdr",
            *([QOS if number == 1 else ""][: schema >= 2]),
            *([""][: schema >= 4]),
        ]
        database.execute(f"INSERT INTO topics VALUES ({', '.join('?' * len(row))})", row)
    for number, (topic, time, data) in enumerate(content):
        place = topics.index(topic) + 1 + (len(topics) if split_topics and number % 2 else 0)
        database.execute(
            "INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)", [place, time, data]
        )
    database.commit()


SQLITE_LAYOUTS = {
    **{f"schema {version}": {"schema": version} for version in (1, 2, 3, 4)},
    "no index": {"index": False},
    "a row per topic and QoS": {"split_topics": True},
}


def write_metadata(
    folder: Path, files: list[str], content: list[Message], storage: str, *, qos: object = "", mode: str = ""
) -> None:
    """metadata.yaml of a bag, as rosbag2 writes it."""
    times = [time for _, time, _ in content]
    topics = [
        {
            "topic_metadata": {
                "name": topic,
                "type": TEXT if topic == "/chatter" else IMAGE,
                "serialization_format": "cdr",
                "offered_qos_profiles": qos,
                "type_description_hash": "",
            },
            "message_count": sum(name == topic for name, _, _ in content),
        }
        for topic in sorted({topic for topic, _, _ in content})
    ]
    information = {
        "version": 9,
        "storage_identifier": storage,
        "relative_file_paths": files,
        "duration": {"nanoseconds": max(times) - min(times)},
        "starting_time": {"nanoseconds_since_epoch": min(times)},
        "message_count": len(content),
        "topics_with_message_count": topics,
        "compression_format": "zstd" if mode else "",
        "compression_mode": mode,
    }
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": information}))
