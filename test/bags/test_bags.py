# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading and writing of bags: both storages, split files, compression; errors are one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from bags.bagtools import CLASSES, START_NS, ids_of, picture, storage_file, write_bag
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import LATCHED, BagWriter
from vtseg_ros.bags.image_messages import decode_any, decode_float
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import IMAGE, NS, image_message, label_map_message, stamp_of, typestore
from vtseg_ros.bags.topics import find_image_topic, find_label_topic, read_label_set
from vtseg_ros.errors import BagError

STAMPS = [i / 10 for i in range(8)]


def images_of(bag: BagReader, topic: str = "/camera/image"):
    return [(stamp_of(m), decode_any(m)) for _, _, m in bag.messages([topic])]


def assert_whole(path):
    with BagReader(path) as bag:
        found = images_of(bag)
        assert [stamp for stamp, _ in found] == [START_NS + i * NS // 10 for i in range(8)]
        for number, (stamp, image) in enumerate(found):
            np.testing.assert_array_equal(image, picture(number))
            np.testing.assert_array_equal(decode_any(bag.read("/camera/image", stamp)), picture(number))


@pytest.mark.parametrize(
    ("stamps", "rate"),
    [
        ([0, 0.1, 0.2, 0.3, 20, 20.1, 20.2], 10.0),  # one pause among six intervals
        ([0, 0.1, 0.35], 1 / 0.175),  # the mean of 0.1 and 0.25
        ([0.5], None),
    ],
)
def test_the_rate_leaves_pauses_out(tmp_path, stamps, rate):
    with BagReader(write_bag(tmp_path / "bag", stamps)) as bag:
        assert bag.rate_hz("/camera/image") == (rate and pytest.approx(rate))


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_written_is_read(tmp_path, storage, compressed):
    path = write_bag(tmp_path / "bag", STAMPS, storage=storage, compressed=compressed)
    with BagReader(path) as bag:
        image, label = find_image_topic(bag), find_label_topic(bag)
        assert bag.topics[image].count == bag.topics[label].count == 8
        assert read_label_set(bag) == CLASSES
        for number, (stamp, found) in enumerate(images_of(bag, image)):
            assert stamp == START_NS + number * NS // 10
            assert np.abs(found.astype(int) - picture(number)).max() <= (12 if compressed else 0)  # jpeg
        labels = [decode_label(m) for _, _, m in bag.messages([label])]
        for number, ids in enumerate(labels):
            np.testing.assert_array_equal(ids, ids_of(number))
        part = [t for _, t, _ in bag.messages([image], START_NS + 2 * NS // 10, START_NS + 5 * NS // 10)]
        assert part == [START_NS + i * NS // 10 for i in (2, 3, 4)]
    with BagReader(storage_file(path)) as bag:  # the storage file stands for its bag
        assert bag.topics[image].count == 8


@pytest.mark.parametrize(
    ("storage", "mode"),
    [
        (StoragePlugin.MCAP, CompressionMode.STORAGE),
        (StoragePlugin.MCAP, CompressionMode.FILE),
        (StoragePlugin.MCAP, CompressionMode.MESSAGE),
        (StoragePlugin.SQLITE3, CompressionMode.FILE),
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
    ],
)
def test_zstd(tmp_path, storage, mode):
    writer = Writer(tmp_path / "bag", version=8, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/camera/image", IMAGE, typestore=typestore())
        for number in range(8):
            stamp = START_NS + number * NS // 10
            message = image_message(picture(number), "rgb8", stamp, "cam")
            writer.write(connection, stamp, typestore().serialize_cdr(message, IMAGE))
    assert_whole(tmp_path / "bag")


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_split_files(tmp_path, storage):
    """Two recordings in one folder, as `ros2 bag record -d` leaves them."""
    whole = tmp_path / "whole"
    whole.mkdir()
    merged = None
    for part in range(2):
        one = tmp_path / f"part{part}"
        with BagWriter(one, storage) as bag:
            for number in range(4 * part, 4 * part + 4):
                bag.write_image("/camera/image", picture(number), START_NS + number * NS // 10, "cam")
        shutil.move(storage_file(one), whole)
        info = yaml.safe_load((one / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
        if merged is None:
            merged = info
        else:
            merged["relative_file_paths"] += info["relative_file_paths"]
            merged["files"] += info["files"]
            merged["duration"]["nanoseconds"] = 7 * NS // 10
            merged["message_count"] = merged["topics_with_message_count"][0]["message_count"] = 8
    (whole / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": merged}))
    assert_whole(whole)
    (whole / merged["relative_file_paths"][1]).unlink()
    with pytest.raises(BagError, match="part1"):
        BagReader(whole)


def test_floats(tmp_path, rng):
    depth, flow = rng.random((4, 6), np.float32), rng.random((4, 6, 2), np.float32)
    depth[0, 0], flow[1, 1, 0] = np.inf, np.nan
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_float("/camera/depth", depth, START_NS, "cam")
        bag.write_float("/camera/flow_forward", flow, START_NS, "cam")
    with BagReader(tmp_path / "bag") as bag:
        np.testing.assert_array_equal(decode_float(bag.read("/camera/depth", START_NS), 1), depth)
        np.testing.assert_array_equal(decode_float(bag.read("/camera/flow_forward", START_NS), 2), flow)


def test_messages_of_one_bag_time_are_told_apart_by_their_stamps(tmp_path):
    with BagWriter(tmp_path / "bag") as bag:
        for number in range(3):
            message = image_message(picture(number), "rgb8", START_NS + number, "cam")
            bag.write("/camera/image", IMAGE, message, START_NS)
    with BagReader(tmp_path / "bag") as bag:
        for number in (2, 0, 1):
            message = bag.read("/camera/image", START_NS, START_NS + number)
            np.testing.assert_array_equal(decode_any(message), picture(number))
        with pytest.raises(BagError, match="no message at"):
            bag.read("/camera/image", START_NS, START_NS + 9)


def test_a_label_map_as_others_write_it(tmp_path):
    """Entries in any order make the same list."""
    message = label_map_message(CLASSES, START_NS)
    message.labels.reverse()
    with BagWriter(tmp_path / "bag") as bag:
        bag.write("/map", "vtseg_ros/msg/LabelMap", message, START_NS)
    with BagReader(tmp_path / "bag") as bag:
        assert read_label_set(bag) == CLASSES


def test_label_ids_with_holes_are_refused(tmp_path):
    message = label_map_message(CLASSES, START_NS)
    del message.labels[3]
    with BagWriter(tmp_path / "bag") as bag:
        bag.write("/map", "vtseg_ros/msg/LabelMap", message, START_NS)
    with (
        BagReader(tmp_path / "bag") as bag,
        pytest.raises(BagError, match="topic /map: label map: wrong ids; expected 0 to 18, each once"),
    ):
        read_label_set(bag)


class TestBroken:
    def test_no_such_folder(self, tmp_path):
        with pytest.raises(BagError, match="no bag at .*nowhere: no such folder"):
            BagReader(tmp_path / "nowhere")

    def test_no_metadata(self, tmp_path):
        path = write_bag(tmp_path / "bag", STAMPS)
        (path / "metadata.yaml").unlink()
        assert_whole(path)
        storage_file(path).unlink()
        with pytest.raises(
            BagError, match="is not a bag: it has neither metadata.yaml nor an mcap, sqlite3 or ROS 1"
        ):
            BagReader(path)

    @pytest.mark.parametrize("text", ["", "{", "rosbag2_bagfile_information: 3", "a: b", "\x00\xff"])
    def test_rubbish_metadata(self, tmp_path, text, caplog):
        """A recorder that ran out of disk leaves an empty one: the storage is read without it."""
        path = write_bag(tmp_path / "bag", STAMPS)
        (path / "metadata.yaml").write_text(text)
        assert_whole(path)
        assert caplog.text.count("metadata.yaml cannot be read") == 1

    @pytest.mark.parametrize(
        ("storage", "share", "reason"),
        [
            *(("mcap", share, "has no end") for share in (0.1, 0.5, 0.97)),
            ("sqlite3", 0.97, "is damaged: database disk image is malformed"),
        ],
    )
    def test_a_storage_cut_short(self, tmp_path, storage, share, reason, caplog):
        """Read as far as it goes; what is missing is logged and counted."""
        path = write_bag(tmp_path / "bag", STAMPS, storage=storage)
        file = storage_file(path)
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
        with BagReader(path) as bag:
            read = len(list(bag.messages()))
            assert sum(bag.missing.values()) == 17 - read and 0 < read
        assert reason in caplog.text and (read == 17 or " missing" in caplog.text)

    @pytest.mark.parametrize(
        ("storage", "share"), [("mcap", 0.0), *(("sqlite3", share) for share in (0.0, 0.1, 0.5))]
    )
    def test_a_storage_without_a_readable_message(self, tmp_path, storage, share):
        """Refused when opened or, at the latest, when read: never fewer messages without a word."""
        path = write_bag(tmp_path / "bag", STAMPS, storage=storage)
        file = storage_file(path)
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
        with pytest.raises(BagError) as refused, BagReader(path) as bag:
            list(bag.messages())
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)

    @pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
    def test_flipped_bytes_never_escape_as_other_errors(self, tmp_path, storage):
        path = write_bag(tmp_path / "bag", STAMPS[:3], storage=storage)
        file, rng = storage_file(path), np.random.default_rng(1)
        whole = file.read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 6):
                damaged[place] = int(rng.integers(256))
            file.write_bytes(damaged)
            try:
                with BagReader(path) as bag:
                    list(bag.messages(on_corrupt=lambda *_: None))
            except BagError:
                pass

    def test_unknown_types_and_topics(self, tmp_path):
        store = typestore()
        writer = Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin.MCAP)
        with writer:
            odd = writer.add_connection(
                "/odd", "mine_msgs/msg/Odd", msgdef="uint8 value\n", rihs01="RIHS01_00"
            )
            image = writer.add_connection("/camera/image", IMAGE, typestore=store)
            writer.write(odd, START_NS, b"\x00\x01\x00\x00\x07")
            message = image_message(picture(0), "rgb8", START_NS, "cam")
            writer.write(image, START_NS, store.serialize_cdr(message, IMAGE))
        with BagReader(tmp_path / "bag") as bag:
            assert bag.topics["/odd"].msgtype == "mine_msgs/msg/Odd"
            assert len(images_of(bag)) == 1  # what is not asked for is in nobody's way
            with pytest.raises(BagError, match="/odd has the unknown type mine_msgs/msg/Odd"):
                list(bag.messages())
            with pytest.raises(BagError, match="no topic /nope. It has: /camera/image, /odd"):
                list(bag.messages(["/nope"]))

    def test_corrupt_messages_are_reported_with_their_place(self, tmp_path):
        with BagWriter(tmp_path / "bag") as bag:
            for number in range(3):
                message = image_message(picture(number), "rgb8", START_NS + number, "cam")
                data = bytes(typestore().serialize_cdr(message, IMAGE))
                bag.write_raw("/camera/image", IMAGE, data[:30] if number == 1 else data, START_NS + number)
        noted = []
        with BagReader(tmp_path / "bag") as bag:
            found = list(bag.messages(on_corrupt=lambda *entry: noted.append(entry)))
            assert [time - START_NS for _, time, _ in found] == [0, 2]
            assert (
                noted[0][:2] == ("/camera/image", START_NS + 1)
                and "not a valid sensor_msgs/msg/Image" in noted[0][2]
            )
            with pytest.raises(BagError, match=f"time {START_NS + 1} ns: not a valid"):
                list(bag.messages())


class TestWriter:
    @pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
    def test_what_publishers_offered_is_kept(self, tmp_path, storage):
        with BagWriter(tmp_path / "one", storage) as bag:
            bag.write_label_map("/label_map", CLASSES, START_NS)
            bag.write_label("/label", ids_of(0), START_NS, "cam")
        with BagReader(tmp_path / "one") as one, BagWriter(tmp_path / "two", storage) as two:
            assert one.qos == {"/label_map": [LATCHED], "/label": []}
            for topic, msgtype, time_ns, data in one.raw():
                two.write_raw(topic, msgtype, data, time_ns, qos=one.qos[topic])
        with BagReader(tmp_path / "two") as two:
            assert two.qos == {"/label_map": [LATCHED], "/label": []}

    def test_nothing_is_overwritten(self, tmp_path):
        path = write_bag(tmp_path / "bag", STAMPS)
        before = storage_file(path).read_bytes()
        with pytest.raises(BagError, match="exists: nothing is overwritten"):
            BagWriter(path)
        assert storage_file(path).read_bytes() == before

    def test_unknown_storage(self, tmp_path):
        with pytest.raises(BagError, match="expected one of mcap, sqlite3, got 'db'"):
            BagWriter(tmp_path / "bag", "db")
        assert not (tmp_path / "bag").exists()

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(BagError, match="cannot be written"):
            BagWriter(tmp_path / "file" / "bag")

    def test_a_full_disk(self, tmp_path):
        bag = BagWriter(tmp_path / "bag", "mcap")
        bag._writer.storage.bio.close()
        bag._writer.storage.bio = open("/dev/full", "wb")  # noqa: SIM115
        with pytest.raises(BagError, match="cannot be written: .*No space left"), bag:
            for number in range(300):
                bag.write_image("/camera/image", picture(number % 200), START_NS + number, "cam")
        assert not (tmp_path / "bag").exists()

    def test_an_error_inside_leaves_no_bag_that_looks_whole(self, tmp_path):
        with pytest.raises(RuntimeError), BagWriter(tmp_path / "bag") as bag:
            bag.write_image("/camera/image", picture(0), START_NS, "cam")
            raise RuntimeError("stop")
        assert not (tmp_path / "bag").exists()

    @pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
    @pytest.mark.parametrize(
        "name", ["take #2", "a?b=c", "100%41", "12:30:00", "ä ö", " x ", "-n", "a\nb", "b" * 250]
    )
    def test_any_name(self, tmp_path, monkeypatch, storage, name):
        """Absolute and relative paths; no file is written next to the bag."""
        monkeypatch.chdir(tmp_path)
        for path in (tmp_path / name, Path("below") / name):
            write_bag(path, STAMPS, storage=storage)
            assert_whole(path)
            assert_whole(storage_file(path))
            assert [file.name for file in path.parent.iterdir() if file.name != "below"] == [name]
            assert len(list(path.iterdir())) == 2

    @pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
    @pytest.mark.parametrize("name", ["b" * 251, "\udcff"])
    def test_names_that_cannot_be_served(self, tmp_path, storage, name):
        with pytest.raises(BagError, match="the name of (a|the) bag") as refused:
            BagWriter(tmp_path / name, storage)
        assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())
