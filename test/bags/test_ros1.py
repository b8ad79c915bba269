# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""ROS 1 bags: written by rosbags with the types of ROS Noetic, read like any other bag."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from bags.bagtools import CLASSES, START_NS, ids_of, picture
from conftest import make_checkpoint
from rosbags.rosbag1 import Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.bags.storage_files import is_bag
from vtseg_ros.bags.topics import read_label_set
from vtseg_ros.cli import main
from vtseg_ros.errors import BagError
from vtseg_ros.model import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
STORE = get_typestore(Stores.ROS1_NOETIC)
for kind in ("LabelEntry", "LabelMap"):
    STORE.register(get_types_from_msg((ROOT / "msg" / f"{kind}.msg").read_text(), f"vtseg_ros/msg/{kind}"))
STEP_NS = 100_000_000
FRAMES = 6


def _make(kind: str, /, **fields):
    return STORE.types[kind](**fields)


def _header(stamp_ns: int):
    stamp = _make("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return _make("std_msgs/msg/Header", seq=77, stamp=stamp, frame_id="cam")


def write_ros1(path: Path, compression: Writer.CompressionFormat | None = None) -> Path:
    """Images, png labels, calibrations, a class list, a text log (a type that ROS 2 has under another name)."""
    writer = Writer(path)
    if compression:
        writer.set_compression(compression)
    with writer as bag:

        def put(topic: str, kind: str, message, time_ns: int) -> None:
            if topic not in connections:
                connections[topic] = bag.add_connection(topic, kind, typestore=STORE)
            bag.write(connections[topic], time_ns, STORE.serialize_ros1(message, kind))

        connections: dict = {}
        entries = [
            _make("vtseg_ros/msg/LabelEntry", id=index, name=name, r=color[0], g=color[1], b=color[2])
            for index, (name, color) in enumerate(zip(CLASSES.names, CLASSES.colors))
        ]
        kind = "vtseg_ros/msg/LabelMap"
        put("/camera/label_map", kind, _make(kind, header=_header(START_NS), labels=entries), START_NS)
        for number in range(FRAMES):
            stamp = START_NS + number * STEP_NS
            bgr = np.ascontiguousarray(picture(number)[..., ::-1])
            kind = "sensor_msgs/msg/Image"
            image = _make(
                kind,
                header=_header(stamp),
                height=32,
                width=64,
                encoding="bgr8",
                is_bigendian=0,
                step=192,
                data=bgr.reshape(-1),
            )
            put("/camera/image", kind, image, stamp + 5)
            kind = "sensor_msgs/msg/CompressedImage"
            payload = cv2.imencode(".png", ids_of(number))[1].reshape(-1)
            label = _make(kind, header=_header(stamp), format="png", data=payload)
            put("/camera/label/compressed", kind, label, stamp + 6)
            kind = "sensor_msgs/msg/CameraInfo"
            roi = _make(
                "sensor_msgs/msg/RegionOfInterest",
                x_offset=0,
                y_offset=0,
                height=0,
                width=0,
                do_rectify=False,
            )
            info = _make(
                kind,
                header=_header(stamp),
                height=32,
                width=64,
                distortion_model="plumb_bob",
                D=np.arange(5.0),
                K=np.arange(9.0),
                R=np.arange(9.0),
                P=np.arange(12.0),
                binning_x=0,
                binning_y=0,
                roi=roi,
            )
            put("/camera/camera_info", kind, info, stamp + 7)
        kind = "rosgraph_msgs/msg/Log"
        log = _make(
            kind,
            header=_header(START_NS),
            level=2,
            name="n",
            msg="m",
            file="f",
            function="g",
            line=1,
            topics=[],
        )
        put("/rosout", kind, log, START_NS)
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    return write_ros1(tmp_path_factory.mktemp("ros1") / "drive.bag")


@pytest.mark.parametrize("compression", [None, *Writer.CompressionFormat])
def test_messages_are_those_of_ros_2(tmp_path, compression):
    path = write_ros1(tmp_path / "drive.bag", compression)
    assert is_bag(path)
    with BagReader(path) as bag:
        assert {name: (info.msgtype, info.count) for name, info in bag.topics.items()} == {
            "/camera/label_map": ("vtseg_ros/msg/LabelMap", 1),
            "/camera/image": ("sensor_msgs/msg/Image", FRAMES),
            "/camera/label/compressed": ("sensor_msgs/msg/CompressedImage", FRAMES),
            "/camera/camera_info": ("sensor_msgs/msg/CameraInfo", FRAMES),
        }
        assert "rosgraph_msgs/msg/Log" in bag.left_out["/rosout"]
        assert bag.span(["/camera/image"]) == (START_NS + 5, START_NS + 5 * STEP_NS + 5)
        images = list(bag.messages(["/camera/image"]))
        assert [time for _, time, _ in images] == [START_NS + n * STEP_NS + 5 for n in range(FRAMES)]
        for number, (_, time_ns, message) in enumerate(images):
            assert stamp_of(message) == time_ns - 5 and message.header.frame_id == "cam"
            assert np.array_equal(decode_any(message), picture(number))
        label = bag.read("/camera/label/compressed", START_NS + 2 * STEP_NS + 6)
        assert np.array_equal(decode_label(label), ids_of(2))
        info = bag.read("/camera/camera_info", START_NS + 7)
        assert info.k.tolist() == list(range(9)) and info.p.tolist() == list(range(12))
        assert info.distortion_model == "plumb_bob" and info.width == 64
        assert read_label_set(bag) == CLASSES


def test_two_readers_of_one_bag_in_turns(bag):
    with BagReader(bag) as reader:
        pairs = zip(reader.messages(["/camera/image"]), reader.messages(["/camera/label/compressed"]))
        seen = [(stamp_of(image), stamp_of(label)) for (_, _, image), (_, _, label) in pairs]
    assert seen == [(START_NS + n * STEP_NS,) * 2 for n in range(FRAMES)]


@pytest.mark.slow  # segments and evaluates a bag
def test_commands(bag, tmp_path, capsys):
    """info, segment and evaluate."""
    assert main(["info", str(bag), "--json", str(tmp_path / "info.json")]) == 0
    found = json.loads((tmp_path / "info.json").read_text())
    assert found["image_topic"] == "/camera/image" and found["label_topic"] == "/camera/label/compressed"
    assert found["seconds"] == pytest.approx(0.5, abs=0.01)
    checkpoint = make_checkpoint(tmp_path / "net.safetensors", labels=CLASSES)
    common = ["--checkpoint", str(checkpoint), "--device", "cpu"]
    assert main(["segment", str(bag), "--out", str(tmp_path / "masks"), *common]) == 0
    with BagReader(tmp_path / "masks") as masks:
        assert masks.topics["/segmentation/mask/compressed"].count == FRAMES
    report = tmp_path / "report.json"
    assert main(["evaluate", str(bag), *common, "--json", str(report)]) == 0
    assert json.loads(report.read_text())["systems"][0]["frames"] == FRAMES


@pytest.mark.slow  # trains
def test_training(bag, tmp_path):
    pytest.importorskip("lightning_fabric")
    data = {"train": [str(bag)], "validation": [str(bag)], "size": [64, 32], "workers": 0}
    values = {
        "data": data,
        "model": {"preset": "tiny", "overrides": {"window": 2}},
        "stages": [{"name": "video", "steps": 1, "batch": 1}],
        "device": "cpu",
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(tmp_path / "train.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").labels == CLASSES


def test_a_recorder_that_was_killed_and_a_cut_file(bag, tmp_path):
    data = bag.read_bytes()
    place = data.index(b"index_pos=") + len(b"index_pos=")
    killed = tmp_path / "killed.bag"
    killed.write_bytes(data[:place] + bytes(8) + data[place + 8 :])
    with pytest.raises(BagError, match=r"killed\.bag: cannot be read: .*no index.*rosbag reindex"):
        BagReader(killed)
    for length in (20, 5000, len(data) - 200):
        cut = tmp_path / f"cut{length}.bag"
        cut.write_bytes(data[:length])
        with pytest.raises(BagError, match=r"not a ROS 1 bag that can be read"):
            BagReader(cut)


def test_damage_within_the_file(bag, tmp_path, caplog):
    """The messages before the damage are read; the others are counted."""
    with BagReader(bag) as reader:
        whole = [(topic, time_ns, bytes(data)) for topic, _, time_ns, data in reader.raw()]
    content = bytearray(bag.read_bytes())
    places = [place.start() + 3 for place in re.finditer(rb"op=\x02", content)]  # headers of messages
    assert len(places) == len(whole) + 1  # /rosout is not converted
    content[places[len(places) // 2]] = 9
    damaged = tmp_path / "damaged.bag"
    damaged.write_bytes(content)
    with BagReader(damaged) as reader:
        found = [(topic, time_ns, bytes(data)) for topic, _, time_ns, data in reader.raw()]
        assert found == whole[: len(found)] and 0 < len(found) < len(whole)
        assert sum(reader.missing.values()) == len(whole) - len(found)
    assert "rest of the file is left out" in caplog.text


def test_a_type_of_another_definition_is_left_out(bag, tmp_path):
    """Its bytes would be read as something else."""
    checksum = STORE.generate_msgdef("sensor_msgs/msg/Image")[1].encode()
    other = tmp_path / "other.bag"
    other.write_bytes(bag.read_bytes().replace(checksum, checksum[::-1]))
    with BagReader(other) as reader:
        assert "its definition of sensor_msgs/msg/Image is not that" in reader.left_out["/camera/image"]
        assert reader.topics["/camera/label/compressed"].count == FRAMES
