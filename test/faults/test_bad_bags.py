# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Bags that are damaged or lie: refused in one line or read around, by the reader and by every command that reads one."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import IMAGE
from vtseg_ros.cli import main
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex
from vtseg_ros.errors import BagError, VTSegError

CUTS, FLIPS = 25, 60
NS = 1_000_000_000


@pytest.fixture(scope="module", params=["mcap", "sqlite3"])
def bag(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("bag") / request.param
    rng = np.random.default_rng(1)
    with BagWriter(path, request.param) as writer:
        for index in range(1, 9):
            writer.write_image(
                "/camera/image", rng.integers(0, 256, (32, 64, 3), dtype=np.uint8), index * NS // 10, "c"
            )
            writer.write_label(
                "/camera/label", rng.integers(0, 14, (32, 64), dtype=np.uint8), index * NS // 10, "c"
            )
    return path


def copy_of(bag, tmp_path, name):
    path = tmp_path / name
    shutil.copytree(bag, path)
    return path, next(file for file in path.iterdir() if file.suffix in (".mcap", ".db3"))


def read_all(path) -> int:
    """How many messages come out; whatever else comes must be a VTSegError."""
    count = 0
    with BagReader(path) as reader:
        for _ in reader.messages(on_corrupt=lambda *_: None):
            count += 1
    FrameIndex([BagSource(path)])
    return count


def test_truncated_anywhere(bag, tmp_path):
    for number in range(CUTS):
        path, file = copy_of(bag, tmp_path, str(number))
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) * number // CUTS])
        try:
            assert read_all(path) <= 16
        except VTSegError as err:
            assert "\n" not in str(err)


def test_flipped_bytes_anywhere(bag, tmp_path, rng):
    """A bag has check sums for some parts only: what is read is a message, the rest is refused."""
    path, file = copy_of(bag, tmp_path, "flipped")
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    for number in range(FLIPS):
        flipped = whole.copy()
        places = rng.integers(0, 200 if number % 2 else whole.size, 4)
        flipped[places] = rng.integers(0, 256, 4)
        file.write_bytes(flipped.tobytes())
        try:
            assert read_all(path) <= 16
        except VTSegError as err:
            assert str(err)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "rosbag2_bagfile_information: 3",
        "a: [",
        "rosbag2_bagfile_information: {version: 999}",
        "!!python/object/apply:os.system ['x']",
    ],
)
def test_metadata_that_is_none(bag, tmp_path, content, capsys, caplog):
    """It is only a hint: the storage files are read without it, and one line is logged."""
    path, file = copy_of(bag, tmp_path, "m")
    (path / "metadata.yaml").write_text(content)
    assert main(["info", str(path)]) == 0 and read_all(path) == 16
    assert caplog.text.count("metadata.yaml cannot be read") == ("999" not in content)
    (path / "metadata.yaml").unlink()
    assert main(["info", str(path)]) == 0 and read_all(path) == 16
    file.unlink()
    assert main(["info", str(path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def written(tmp_path, *messages: tuple[str, str, bytes]):
    with BagWriter(tmp_path / "made") as writer:
        for index, (topic, msgtype, data) in enumerate(messages, start=1):
            writer.write_raw(topic, msgtype, data, index * NS)
    return tmp_path / "made"


def test_wrong_cdr_is_counted_and_the_rest_read(bag, tmp_path, rng):
    with BagReader(bag) as reader:
        good = next(data for topic, _, _, data in reader.raw(["/camera/image"]))
    bad = [
        b"",
        b"\0",
        b"\0\1\0\0",
        bytes(good[:40]),
        bytes(rng.integers(0, 256, 300, dtype=np.uint8)),
        good[:20] + b"\xff" * 40,
    ]
    path = written(tmp_path, *(("/camera/image", IMAGE, bytes(data)) for data in [good, *bad, good]))
    corrupt = []
    with BagReader(path) as reader:
        read = list(reader.messages(on_corrupt=lambda topic, time, reason: corrupt.append(reason)))
    assert len(read) + len(corrupt) == 8 and len(read) >= 2 and len(corrupt) >= 4
    with BagReader(path) as reader, pytest.raises(BagError, match="not a valid"):
        list(reader.messages())
    index = FrameIndex([BagSource(path)], need_labels=False)
    assert len(index.frames) >= 1


def test_no_messages_and_unknown_types(tmp_path, tiny_checkpoint, capsys):
    """Reported in one line with the existing topics."""
    with BagWriter(tmp_path / "empty"):
        pass
    for command in (
        ["info"],
        ["segment", "--out", str(tmp_path / "o"), "--checkpoint", str(tiny_checkpoint)],
    ):
        code = main([command[0], str(tmp_path / "empty"), *command[1:]])
        assert code == (0 if command[0] == "info" else 2)
    assert "no image topic" in capsys.readouterr().err
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("int32 x", "nobodys_msgs/msg/Secret"))
    path = tmp_path / "secret"
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        secret = writer.add_connection("/secret", "nobodys_msgs/msg/Secret", typestore=store)
        writer.write(secret, NS, b"\0\1\0\0\1\0\0\0")
    with pytest.raises(BagError, match="unknown type nobodys_msgs/msg/Secret"):
        with BagReader(path) as reader:
            list(reader.messages())
    assert (
        main(["segment", str(path), "--out", str(tmp_path / "p"), "--checkpoint", str(tiny_checkpoint)]) == 2
    )
    assert "Traceback" not in capsys.readouterr().err
