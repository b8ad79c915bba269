# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Every layout of storage files: what is in them is read, and what is not is logged and counted."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import struct
from collections import Counter

import lz4.frame
import numpy as np
import psutil
import pytest
import zstandard
from bags import storagetools as tools
from bags.storagetools import MCAP_LAYOUTS, SQLITE_LAYOUTS, START, STEP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import LATCHED
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.bags.open_bags import OpenBags
from vtseg_ros.cli import main
from vtseg_ros.errors import BagError

CONTENT = tools.messages()
IMAGES = [message for message in CONTENT if message[0] == "/camera/image_raw"]


def in_time(content):
    return sorted(content, key=lambda message: message[1])


def read(path, topics=None, *limits):
    with BagReader(path) as bag:
        return [(topic, time, bytes(data)) for topic, _, time, data in bag.raw(topics, *limits)]


def assert_holds(path, content=CONTENT):
    """The bag has these messages, in time order, whole and by parts, and counts them as the storage does."""
    assert read(path) == in_time(content)
    counts = Counter(topic for topic, _, _ in content)
    with BagReader(path) as bag:
        assert {topic: info.count for topic, info in bag.topics.items()} == counts
        for topic in counts:
            own = in_time(message for message in content if message[0] == topic)
            assert read(path, [topic]) == own
            np.testing.assert_array_equal(bag.times([topic]), [time for _, time, _ in own])
        middle, late = START + 3 * STEP, START + 7 * STEP
        part = [message for message in in_time(content) if middle <= message[1] < late]
        assert read(path, None, middle, late) == part
        for number, (_, message_ns, message) in enumerate(bag.messages(["/camera/image_raw"])):
            again = bag.read("/camera/image_raw", message_ns, stamp_of(message))
            assert (decode_any(again) == number).all()
        assert bag.missing == {}


@pytest.mark.parametrize("layout", MCAP_LAYOUTS)
def test_mcap(tmp_path, layout):
    assert_holds(tools.write_mcap(tmp_path / "bag" / "a.mcap", CONTENT, **MCAP_LAYOUTS[layout]))
    assert_holds(tmp_path / "bag")
    tools.write_metadata(tmp_path / "bag", ["a.mcap"], CONTENT, "mcap")
    assert_holds(tmp_path / "bag")


@pytest.mark.parametrize("layout", SQLITE_LAYOUTS)
def test_sqlite3(tmp_path, layout):
    assert_holds(tools.write_sqlite(tmp_path / "bag" / "a.db3", CONTENT, **SQLITE_LAYOUTS[layout]))
    assert_holds(tmp_path / "bag")
    tools.write_metadata(tmp_path / "bag", ["a.db3"], CONTENT, "sqlite3")
    assert_holds(tmp_path / "bag")


def write(folder, storage, content, name="a"):
    if storage == "mcap":
        return tools.write_mcap(folder / f"{name}.mcap", content)
    return tools.write_sqlite(folder / f"{name}.db3", content)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize(
    "qos",
    [
        "",
        [],
        "not yaml: [",
        [{"history": "keep_last", "depth": 1}],  # a profile without the other fields
        tools.QOS.replace("depth: 0", "depth: 7"),
    ],
)
def test_qos_of_the_metadata_is_no_part_of_a_connection(tmp_path, storage, qos):
    """`ros2 bag reindex` and people rewrite it."""
    file = write(tmp_path / "bag", storage, CONTENT)
    tools.write_metadata(tmp_path / "bag", [file.name], CONTENT, storage, qos=qos)
    assert_holds(tmp_path / "bag")


def test_qos_of_the_storage_is_kept(tmp_path):
    with BagReader(tools.write_mcap(tmp_path / "a.mcap", CONTENT)) as bag:
        assert bag.qos["/chatter"][0].durability == LATCHED.durability


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_split_files(tmp_path, storage, metadata, packed):
    """In parts that overlap in time, whole or compressed file by file."""
    folder, names = tmp_path / "bag", []
    for number in range(3):
        file = write(folder, storage, CONTENT[number::3], f"part_{number}")
        if packed:
            target = file.with_name(file.name + ".zstd")
            target.write_bytes(zstandard.ZstdCompressor().compress(file.read_bytes()))
            file.unlink()
            file = target
        names.append(file.name)
    (folder / "._part_0.mcap").write_bytes(b"a resource fork")
    if metadata:
        tools.write_metadata(folder, names, CONTENT, storage, mode="file" if packed else "")
    assert_holds(folder)
    if packed and storage == "mcap":  # a player leaves the unpacked file beside the compressed one
        write(folder, storage, CONTENT[::3], "part_0")
        assert_holds(folder)


def test_no_file_stays_open_after_a_compressed_bag(tmp_path):
    file = write(tmp_path / "bag", "mcap", CONTENT)
    file.with_name(file.name + ".zstd").write_bytes(zstandard.compress(file.read_bytes()))
    file.unlink()
    read(tmp_path / "bag")
    before = psutil.Process().num_fds()
    for _ in range(3):
        read(tmp_path / "bag")
    assert psutil.Process().num_fds() == before


def test_a_forked_process_leaves_the_unpacked_copies_of_its_parent(tmp_path, monkeypatch):
    file = write(tmp_path / "bag", "mcap", CONTENT)
    file.with_name(file.name + ".zstd").write_bytes(zstandard.compress(file.read_bytes()))
    file.unlink()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    bags = OpenBags([tmp_path / "bag"])
    assert bags[0].topics
    before = set((tmp_path / "scratch").rglob("*"))
    child = os.fork()
    if not child:
        os._exit(0 if bags[0].topics else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(before) == 2 and before <= set((tmp_path / "scratch").rglob("*"))
    bags[0].close()


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("metadata", [True, False])
def test_messages_compressed_one_by_one(tmp_path, storage, metadata):
    packed = [(topic, time, zstandard.compress(data)) for topic, time, data in CONTENT]
    file = write(tmp_path / "bag", storage, packed)
    if metadata:
        tools.write_metadata(tmp_path / "bag", [file.name], CONTENT, storage, mode="message")
    assert_holds(tmp_path / "bag")


class TestKilledRecorders:
    @pytest.mark.parametrize("layout", MCAP_LAYOUTS)
    @pytest.mark.parametrize("tail", [b"", bytes(5000)])
    def test_mcap_without_end(self, tmp_path, layout, tail, caplog):
        """Wherever a file is cut, all messages before are read, and a line is logged."""
        whole = tools.write_mcap(tmp_path / "whole.mcap", CONTENT, **MCAP_LAYOUTS[layout]).read_bytes()
        most = 0
        for share in (0.3, 0.5, 0.8, 0.95):
            folder = tmp_path / str(share)
            folder.mkdir()
            end = int(share * len(whole)) // 512 * 512 if tail else int(share * len(whole))
            (folder / "cut.mcap").write_bytes(whole[:end] + tail)
            caplog.clear()
            try:
                found = read(folder)
            except BagError as err:
                assert "no whole message" in str(err)  # compressed chunks have no part that can be read
                continue
            assert set(found) <= set(CONTENT) and found == in_time(found)
            assert set(found) == set(CONTENT[: len(found)]) and len(found) >= most
            most = len(found)
            assert "has no end" in caplog.text
            if len(found) < len(CONTENT):
                tools.write_metadata(folder, ["cut.mcap"], CONTENT, "mcap")
                with BagReader(folder) as bag:
                    assert sum(bag.missing.values()) == len(CONTENT) - len(found)
        assert most > 0 or "one chunk" in layout or tail

    def test_a_last_chunk_that_is_not_whole(self, tmp_path):
        whole = bytearray(tools.write_mcap(tmp_path / "a.mcap", CONTENT).read_bytes())
        chunks, place = [], 8
        while whole[place] != 0x0F:  # data end
            if whole[place] == 0x06:
                chunks.append(place)
            place += 9 + int.from_bytes(whole[place + 1 : place + 9], "little")
        cut, written = whole[:place], -(-(chunks[-1] + 90) // 512) * 512
        assert written < place
        cut[written:] = bytes(len(cut) - written)
        (tmp_path / "a.mcap").write_bytes(cut)
        found = read(tmp_path / "a.mcap")
        assert 0 < len(found) < len(CONTENT) and set(found) == set(CONTENT[: len(found)])

    @pytest.mark.parametrize("mode", ["WAL", "DELETE"])
    def test_sqlite3_with_a_journal(self, tmp_path, mode):
        """Rows in the log are read, rows that were not committed are not."""
        database = sqlite3.connect(tmp_path / "live.db3")
        database.execute(f"PRAGMA journal_mode={mode}")
        tools.fill_sqlite(database, CONTENT)
        database.execute("PRAGMA cache_size=1")
        for _ in range(40):
            database.execute(
                "INSERT INTO messages(topic_id, timestamp, data) VALUES (1, 5, ?)", [bytes(9000)]
            )
        (tmp_path / "bag").mkdir()
        for file in tmp_path.glob("live.db3*"):
            shutil.copy(file, tmp_path / "bag" / file.name.replace("live", "take #1"))
        database.close()
        before = sorted((file.name, file.read_bytes()) for file in (tmp_path / "bag").iterdir())
        assert len(before) >= 2
        assert_holds(tmp_path / "bag")
        assert sorted((file.name, file.read_bytes()) for file in (tmp_path / "bag").iterdir()) == before


class TestMetadata:
    def test_a_renamed_file(self, tmp_path, caplog):
        file = write(tmp_path / "bag", "mcap", CONTENT, "drive")
        tools.write_metadata(file.parent, ["rosbag2_2024.mcap"], CONTENT, "mcap")
        assert_holds(file.parent)
        assert (
            caplog.text.count("names rosbag2_2024.mcap, which is not there: drive.mcap is read instead") == 1
        )

    def test_one_of_several_files_is_missing(self, tmp_path):
        write(tmp_path / "bag", "mcap", CONTENT, "part_0")
        tools.write_metadata(tmp_path / "bag", ["part_0.mcap", "part_1.mcap"], CONTENT, "mcap")
        with pytest.raises(BagError, match="not there: part_1.mcap. Restore .* move metadata.yaml away"):
            BagReader(tmp_path / "bag")
        (tmp_path / "bag" / "metadata.yaml").unlink()  # the advice works
        assert_holds(tmp_path / "bag")

    def test_files_that_it_does_not_name(self, tmp_path, caplog):
        write(tmp_path / "bag", "mcap", CONTENT, "part_0")
        write(tmp_path / "bag", "mcap", CONTENT, "copy")
        tools.write_metadata(tmp_path / "bag", ["part_0.mcap"], CONTENT, "mcap")
        assert_holds(tmp_path / "bag")
        assert "does not name copy.mcap: not read" in caplog.text

    def test_both_storages_without_metadata(self, tmp_path):
        write(tmp_path / "bag", "mcap", CONTENT)
        write(tmp_path / "bag", "sqlite3", CONTENT)
        with pytest.raises(BagError, match="a.db3, a.mcap. Give one of these files"):
            BagReader(tmp_path / "bag")
        assert_holds(tmp_path / "bag" / "a.db3")

    @pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
    def test_more_messages_than_there_are(self, tmp_path, storage, caplog):
        file = write(tmp_path / "bag", storage, IMAGES[:5])
        tools.write_metadata(tmp_path / "bag", [file.name], CONTENT, storage)
        with BagReader(tmp_path / "bag") as bag:
            assert bag.topics["/camera/image_raw"].count == 5 and bag.topics["/chatter"].count == 0
            assert bag.missing == {"/camera/image_raw": 7, "/chatter": 4}
        assert "topic /camera/image_raw has 5 messages; expected 12: 7 missing" in caplog.text
        assert "topic /chatter has 0 messages; expected 4: 4 missing" in caplog.text

    def test_names_in_capitals_and_with_signs(self, tmp_path):
        for name in ("take #2?", "100 %41", "a:b", "ä ö", "-x", "[1]*", "a\nb"):
            for suffix, storage in ((".MCAP", "mcap"), (".DB3", "sqlite3")):
                file = write(tmp_path / name / storage, storage, CONTENT, name)
                file = file.rename(file.with_suffix(suffix))
                assert_holds(file)
                assert_holds(file.parent)


class TestStatistics:
    def test_more_than_the_file_holds(self, tmp_path, caplog):
        """The file's own count is what must be read."""
        file = tools.write_mcap(tmp_path / "a.mcap", CONTENT, use_chunking=False)
        data = bytearray(file.read_bytes())
        place = data.index(
            b"\x0b", data.index(b"\x0f\x04\0\0\0\0\0\0\0")
        )  # statistics, behind the data's end
        data[place + 9 + 42 + 4 + 2] = 20  # 12 of the first channel
        file.write_bytes(data)
        with BagReader(file) as bag:
            assert bag.missing == {"/camera/image_raw": 8}
        assert "has 12 messages; expected 20: 8 missing" in caplog.text


class TestOtherChannels:
    def test_other_encodings_are_left_out_and_named(self, tmp_path, caplog):
        for number, encoding in enumerate(("ros1msg", "protobuf", "jsonschema")):
            file = tools.write_mcap(tmp_path / f"{number}.mcap", CONTENT[1:2], encoding=encoding)
            with BagReader(file) as bag:
                topic = CONTENT[1][0]
                assert topic not in bag.topics and encoding in bag.left_out[topic]
                with pytest.raises(BagError, match=f"topic {topic} cannot be read.*{encoding}"):
                    bag.require(topic)
            assert encoding in caplog.text

    def test_a_channel_without_schema(self, tmp_path):
        with (tmp_path / "a.mcap").open("wb") as out:
            writer = tools.Writer(out)
            writer.start("", "")
            channel = writer.register_channel("/camera/image_raw", "cdr", 0)
            for _, time, data in IMAGES:
                writer.add_message(channel, time, data, time)
            writer.finish()
        with BagReader(tmp_path / "a.mcap") as bag:
            assert bag.topics == {} and "type" in bag.left_out["/camera/image_raw"]
        tools.write_metadata(tmp_path, ["a.mcap"], IMAGES, "mcap")  # it names the type
        assert read(tmp_path) == in_time(IMAGES)


class TestDamage:
    @pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
    def test_one_file_of_a_split_compressed_bag(self, tmp_path, storage, caplog):
        folder, names = tmp_path / "bag", []
        for number in range(3):
            file = write(folder, storage, CONTENT[5 * number : 5 * number + 5], f"part_{number}")
            packed = bytearray(zstandard.compress(file.read_bytes()))
            if number == 1:
                packed[len(packed) // 2 :] = bytes(len(packed) - len(packed) // 2)
            names.append(file.name + ".zstd")
            (folder / names[-1]).write_bytes(packed)
            file.unlink()
        tools.write_metadata(folder, names, CONTENT, storage, mode="file")
        with BagReader(folder) as bag:
            found = [(topic, time, data) for topic, _, time, data in bag.raw()]
            assert set(CONTENT[:5] + CONTENT[10:15]) <= set(found) <= set(CONTENT)
            assert sum(bag.missing.values()) == len(CONTENT) - len(found)
        assert f"part_1.{'mcap' if storage == 'mcap' else 'db3'}.zstd: its compressed data" in caplog.text

    def test_messages_of_no_topic(self, tmp_path, caplog):
        file = tools.write_sqlite(tmp_path / "a.db3", CONTENT)
        database = sqlite3.connect(file)
        database.execute("DELETE FROM topics WHERE name = '/chatter'")
        database.commit()
        database.close()
        assert read(file) == in_time(IMAGES)
        assert "4 messages belong to no topic and are left out" in caplog.text


def test_lines_come_once(tmp_path, caplog):
    file = write(tmp_path / "bag", "mcap", IMAGES[:5])
    tools.write_metadata(tmp_path / "bag", [file.name], IMAGES, "mcap")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            read(tmp_path / "bag")
    assert caplog.text.count("7 missing") == 1


def test_a_topic_that_is_told_of_but_empty_never_ends_well(tmp_path, capsys, tiny_checkpoint):
    file = write(tmp_path / "bag", "mcap", [message for message in CONTENT if message[0] == "/chatter"])
    tools.write_metadata(tmp_path / "bag", [file.name], CONTENT, "mcap")
    bag, out = str(tmp_path / "bag"), str(tmp_path / "out")
    for command in (
        ["segment", bag, "--checkpoint", str(tiny_checkpoint), "--out", out],
        [
            "segment",
            bag,
            "--checkpoint",
            str(tiny_checkpoint),
            "--out",
            out,
            "--image-topic",
            "/camera/image_raw",
        ],
        ["labels", "extract", bag, "--out", out],
        ["evaluate", bag, "--checkpoint", str(tiny_checkpoint)],
    ):
        assert main(command) == 2
        assert "/camera/image_raw" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


WHOLE = {
    layout: tools.mcap_bytes(CONTENT, **MCAP_LAYOUTS[layout])
    for layout in ("as rosbag2", "no chunks", "no summary")
}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(sorted(WHOLE)),
    flips=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 255)), max_size=4),
    end=st.one_of(st.none(), st.integers(0, 20_000)),
)
def test_any_damage_is_refused_or_named(tmp_path, layout, flips, end):
    """A damaged file raises only a BagError of one line, and truncation adds no message."""
    data = bytearray(WHOLE[layout])
    for place, bits in flips:
        data[place % len(data)] ^= bits
    (tmp_path / "a.mcap").write_bytes(data if end is None else data[:end])
    try:
        found = read(tmp_path / "a.mcap")
    except BagError as err:
        assert "\n" not in str(err)
        return
    if not flips:
        assert set(found) <= set(CONTENT) and (len(found) == len(CONTENT) or end is not None)


@pytest.mark.parametrize("compress", [zstandard.compress, lz4.frame.compress])
@pytest.mark.parametrize("block", [7, 4096, 1 << 20])
def test_compressed_files_of_several_frames(tmp_path, monkeypatch, caplog, compress, block):
    """As pzstd and `cat` make them: frames of a third each, before them frames to skip, after them bytes of a disk."""
    monkeypatch.setattr("vtseg_ros.bags.open_storage.COPY_BYTES", block)
    whole = WHOLE["as rosbag2"]
    third = len(whole) // 3 + 1
    frames = [compress(whole[start : start + third]) for start in range(0, len(whole), third)]
    skip = b"\x50\x2a\x4d\x18" + struct.pack("<I", 11) + bytes(11)
    (tmp_path / "a.mcap").write_bytes(b"".join(skip + frame for frame in frames) + bytes(20))
    assert_holds(tmp_path / "a.mcap")
    (tmp_path / "b.mcap").write_bytes(b"".join(frames)[:-9])
    with BagReader(tmp_path / "b.mcap"):
        assert "b.mcap: its compressed data is cut" in caplog.text


def test_more_layouts(tmp_path):
    """Messages outside chunks, records of unknown kinds, a file compressed by lz4, a wrong suffix, a symbolic link."""
    whole, place = WHOLE["as rosbag2"], 8
    while whole[place] != 0x0F:  # data end
        place += 9 + int.from_bytes(whole[place + 1 : place + 9], "little")
    loose = ("/camera/image_raw", START + 5, tools.image(0, START + 5))
    record = struct.pack("<HIQQ", 1, 0, loose[1], 0) + loose[2]
    records = struct.pack("<BQ", 0x90, 5) + b"hello" + struct.pack("<BQ", 5, len(record)) + record
    footer = struct.pack("<BQ", 15, 4) + bytes(4) + struct.pack("<BQ", 2, 20) + bytes(20) + tools.MAGIC
    (tmp_path / "mixed.mcap").write_bytes(whole[:place] + records + footer)
    assert read(tmp_path / "mixed.mcap") == in_time([*CONTENT, loose])
    (tmp_path / "a.mcap.lz4").write_bytes(lz4.frame.compress(whole))
    assert_holds(tmp_path / "a.mcap.lz4")
    tools.write_sqlite(tmp_path / "a.db3", CONTENT).rename(tmp_path / "b.mcap")
    assert_holds(tmp_path / "b.mcap")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "c.mcap").symlink_to(tmp_path / "b.mcap")
    assert_holds(tmp_path / "linked")
