# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Damage within an mcap file that is complete otherwise: all other parts are read, and what is lost is counted."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterator

import pytest
from bags import storagetools as tools
from bags.storagetools import MCAP_LAYOUTS, STEP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vtseg_ros.bags.bag_reader import UNKNOWN_TOPIC, BagReader
from vtseg_ros.cli import main
from vtseg_ros.errors import BagError

CONTENT = tools.messages(24)
IMAGE_TOPIC = "/camera/image_raw"
CHUNK, MESSAGE, MESSAGE_INDEX, DATA_END = 6, 5, 7, 15


def records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(kind, start, end) of the records of the data section."""
    place = len(tools.MAGIC)
    while True:
        kind, length = struct.unpack_from("<BQ", data, place)
        yield kind, place, place + 9 + length
        place += 9 + length
        if kind == DATA_END:
            return


def in_chunk(data: bytes, number: int) -> list[tuple[str, int, bytes]]:
    """The messages of a chunk that is not compressed."""
    start = [one for one in records(data) if one[0] == CHUNK][number][1]
    inner = start + 9 + 40
    (size,) = struct.unpack_from("<Q", data, inner - 8)
    return [message for message in CONTENT if message[2] in data[inner : inner + size]]


def read(path, topics=None):
    """(messages, missing by topic)."""
    with BagReader(path) as bag:
        return [(topic, time, bytes(data)) for topic, _, time, data in bag.raw(topics)], dict(bag.missing)


def counts(content) -> dict[str, int]:
    return dict(Counter(topic for topic, _, _ in content))


def in_time(content):
    return sorted(content, key=lambda message: message[1])


def damage(data: bytes, kind: str, number: int, layout: str) -> bytes:
    """Damage one chunk in the way that is named."""
    _, start, end = [one for one in records(data) if one[0] == CHUNK][number]
    changed = bytearray(data)
    if kind == "content":
        changed[(start + end) // 2] ^= 0xFF
    elif kind == "checksum":
        changed[start + 9 + 24] ^= 1
    elif kind == "uncompressed size":
        changed[start + 9 + 16] ^= 1
    elif kind == "compression":
        changed[start + 9 + 28 : start + 9 + 30] = b"\xee\xee"
    elif kind == "zeros":  # a bad block of the disk
        changed[start + 60 : end] = bytes(end - start - 60)
    elif kind == "record length":
        changed[start + 4] ^= 0x40
    elif kind == "short record":
        changed[start + 1] ^= 0x07
    return bytes(changed)


DAMAGES = (
    "content",
    "checksum",
    "uncompressed size",
    "compression",
    "zeros",
    "record length",
    "short record",
)


@pytest.mark.parametrize("layout", ["as rosbag2", "zstd", "lz4", "no chunk index", "no summary"])
@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("number", [0, 2])
def test_a_chunk(tmp_path, layout, kind, number, caplog):
    plain = tools.mcap_bytes(CONTENT, **{**MCAP_LAYOUTS[layout], "compression": tools.CompressionType.NONE})
    lost = in_chunk(plain, number)
    assert 0 < len(lost) < len(CONTENT) / 2
    data = tools.mcap_bytes(CONTENT, **MCAP_LAYOUTS[layout])
    (tmp_path / "a.mcap").write_bytes(damage(data, kind, number, layout))
    if layout == "no summary" and number == 0:
        return  # the only definitions of the topics are in that chunk
    found, missing = read(tmp_path / "a.mcap")
    rest = [message for message in CONTENT if message not in lost]
    assert set(rest) <= set(found) <= set(CONTENT) and found == in_time(found)
    # A damaged head of a chunk that is not compressed leaves its messages readable.
    known = sum(missing.values()) - missing.get(UNKNOWN_TOPIC, 0)
    if layout != "no summary":
        assert known == len(CONTENT) - len(found)
    if len(found) < len(CONTENT):
        assert missing and "byte" in caplog.text


@pytest.mark.parametrize("layout", ["as rosbag2", "zstd"])
def test_counts_by_topic(tmp_path, layout, caplog):
    plain = tools.mcap_bytes(CONTENT)
    lost = in_chunk(plain, 1)
    path = tmp_path / "a.mcap"
    path.write_bytes(damage(tools.mcap_bytes(CONTENT, **MCAP_LAYOUTS[layout]), "content", 1, layout))
    with BagReader(path) as bag:
        assert bag.missing == {}  # not read yet
        bag.check()
        assert bag.missing == counts(lost)
        assert bag.topics[IMAGE_TOPIC].count == counts(CONTENT)[IMAGE_TOPIC] - counts(lost)[IMAGE_TOPIC]
    assert caplog.text.count(f"{len(lost)} messages of {', '.join(sorted(counts(lost)))} are lost") == 1
    found, missing = read(path, [IMAGE_TOPIC])
    assert missing == counts(lost) and len(found) == counts(CONTENT)[IMAGE_TOPIC] - missing[IMAGE_TOPIC]
    first = min(time for _, time, _ in lost)
    with BagReader(path) as bag:  # also by parts
        list(bag.raw([IMAGE_TOPIC], first, first + STEP))
        assert bag.missing == counts(lost)


def test_a_message_outside_chunks(tmp_path):
    for layout in ("no chunks", "no chunks, no summary"):
        data = bytearray(tools.mcap_bytes(CONTENT, **MCAP_LAYOUTS[layout]))
        places = [one for one in records(bytes(data)) if one[0] == MESSAGE]
        data[places[5][1] + 5] ^= 0x20  # its length
        (tmp_path / "a.mcap").write_bytes(data)
        found, missing = read(tmp_path / "a.mcap")
        assert set(found) < set(CONTENT) and len(found) == len(CONTENT) - 1
        assert sum(missing.values()) == 1


def test_a_record_that_is_cut_within_a_chunk(tmp_path):
    """Without checksums, what precedes the damage in a chunk is read."""
    data = bytearray(tools.mcap_bytes(CONTENT, enable_crcs=False))
    _, start, _ = [one for one in records(bytes(data)) if one[0] == CHUNK][2]
    inside = in_chunk(bytes(data), 2)
    last = data.index(inside[-1][2], start) - 22 - 9
    assert data[last] == MESSAGE
    data[last + 3] = 0xFF
    (tmp_path / "a.mcap").write_bytes(data)
    found, missing = read(tmp_path / "a.mcap")
    assert found == in_time(message for message in CONTENT if message is not inside[-1])
    assert missing == {inside[-1][0]: 1}


def test_nothing_known_of_what_is_lost(tmp_path, caplog):
    """Neither index nor statistics: at least one message."""
    options = {**MCAP_LAYOUTS["no summary"], "compression": tools.CompressionType.ZSTD}
    data = tools.mcap_bytes(CONTENT, **options)
    (tmp_path / "a.mcap").write_bytes(damage(data, "content", 2, "no summary"))
    found, missing = read(tmp_path / "a.mcap")
    assert 0 < len(found) < len(CONTENT) and missing == {UNKNOWN_TOPIC: 1}
    assert "its messages are lost" in caplog.text
    tools.write_metadata(tmp_path, ["a.mcap"], CONTENT, "mcap")
    assert read(tmp_path)[1] == counts(message for message in CONTENT if message not in found)


def test_one_damaged_file_of_a_split_bag(tmp_path, caplog):
    for number in range(4):
        data = tools.mcap_bytes(CONTENT[8 * number : 8 * number + 8])
        if number == 1:
            data = damage(data, "content", 0, "")
        (tmp_path / f"part_{number}.mcap").write_bytes(data)
    found, missing = read(tmp_path)
    assert {*CONTENT[:8], *CONTENT[16:]} <= set(found) and sum(missing.values()) == len(CONTENT) - len(
        found
    ) > 0
    assert "part_1.mcap: the chunk at byte" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [("data = 5", "rest of the file is left out"), ("timestamp = 'x'", "The file is left out")],
)
def test_one_damaged_database_of_a_split_bag(tmp_path, change, words, caplog):
    for number in range(2):
        tools.write_sqlite(tmp_path / f"part_{number}.db3", CONTENT[16 * number : 16 * number + 16])
    database = sqlite3.connect(tmp_path / "part_0.db3")
    database.execute(f"UPDATE messages SET {change} WHERE id = 4")
    database.commit()
    database.close()
    found, missing = read(tmp_path)
    assert set(CONTENT[16:]) <= set(found)
    if "data" in change:
        assert sum(missing.values()) == len(CONTENT) - len(found) > 0
    else:
        assert missing == {UNKNOWN_TOPIC: 1}
    assert "part_0.db3: " in caplog.text and words in caplog.text


def test_a_single_damaged_database(tmp_path, caplog):
    """Its messages before the damage are read; the others are counted, also when a part of the bag is read."""
    path = tmp_path / "bag.db3"
    tools.write_sqlite(path, CONTENT)
    database = sqlite3.connect(path)
    database.execute("UPDATE messages SET data = 5 WHERE id = 10")
    database.commit()
    database.close()
    found, missing = read(path)
    assert 0 < len(found) < len(CONTENT) and set(found) <= set(CONTENT)
    assert sum(missing.values()) == len(CONTENT) - len(found)
    assert "rest of the file is left out" in caplog.text
    with BagReader(path) as bag:
        assert list(bag.raw(None, 0)) and bag.missing
    database = sqlite3.connect(path)
    database.execute("UPDATE messages SET data = 5")
    database.commit()
    database.close()
    with BagReader(path) as bag, pytest.raises(BagError, match="is damaged: "):
        list(bag.raw())


@pytest.mark.slow  # segments a bag
def test_commands(tmp_path, tiny_checkpoint, capsys):
    path = tmp_path / "a.mcap"
    content = [
        (topic, time, tools.image(number, time, (64, 32)) if topic == IMAGE_TOPIC else data)
        for number, (topic, time, data) in enumerate(in_time(CONTENT))
    ]
    data = tools.mcap_bytes(content, chunk_size=30_000)
    path.write_bytes(damage(data, "content", 1, ""))
    report = tmp_path / "report.json"
    assert main(["info", str(path), "--json", str(report)]) == 0
    described = json.loads(report.read_text())
    lost = described["messages_missing"]
    assert 0 < lost < len(content) and described["checked"]
    images = described["topics"][IMAGE_TOPIC]
    assert images["messages"] + images["messages_missing"] == 24 and images["messages_missing"] > 0
    command = ["segment", str(path), "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "out")]
    assert main([*command, "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["frames"] == images["messages"] and found["messages_missing"] >= images["messages_missing"]


WHOLE = {
    name: tools.mcap_bytes(CONTENT, **MCAP_LAYOUTS[name])
    for name in ("as rosbag2", "zstd", "lz4", "no chunks")
}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(sorted(WHOLE)),
    place=st.integers(8, 1 << 16),
    rubbish=st.binary(min_size=1, max_size=600),
)
def test_any_damaged_part(tmp_path, layout, place, rubbish):
    """Chunks have checksums: no message that differs is read; most messages are, unless the file is refused as a whole."""
    data = bytearray(WHOLE[layout])
    end = [one for one in records(bytes(data))][-1][1]
    place = 8 + place % (end - 8)
    rubbish = rubbish[: end - place]
    data[place : place + len(rubbish)] = rubbish
    (tmp_path / "a.mcap").write_bytes(data)
    try:
        with BagReader(tmp_path / "a.mcap") as bag:
            found = [(topic, time, bytes(data)) for topic, _, time, data in bag.raw()]
            missing, left_out = dict(bag.missing), bag.left_out
    except BagError as err:
        assert "\n" not in str(err)
        return
    if left_out:  # the damage is in a definition that nothing repeats
        return
    if layout != "no chunks":
        assert len(found) >= len(CONTENT) - 14
    if layout != "no chunks" or missing:  # a message outside chunks may have another topic or time by damage
        assert sum(missing.values()) >= len(CONTENT) - len(found)
