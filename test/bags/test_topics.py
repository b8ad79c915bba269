# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Choice of the topics of a bag with the camera's images, its labels, and the classes of the labels."""

from __future__ import annotations

import numpy as np
import pytest
from bags.bagtools import CLASSES, START_NS, ids_of

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import make
from vtseg_ros.bags.topics import find_image_topic, find_label_topic, read_label_set, require_image_topic
from vtseg_ros.cli import main
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.label_set import LabelSet


def find_topics(bag):
    return find_image_topic(bag), find_label_topic(bag)


def named(tmp_path, *names):
    with BagWriter(tmp_path / "bag") as bag:
        for name in names:
            bag.write_label(name, ids_of(0), START_NS, "cam")
    return BagReader(tmp_path / "bag")


def test_other_images_are_not_taken_for_the_camera(tmp_path):
    with named(
        tmp_path,
        "/cam/image",
        "/cam/label",
        "/cam/depth",
        "/cam/flow_forward",
        "/segmentation/mask",
        "/segmentation/overlay",
    ) as bag:
        assert find_topics(bag) == ("/cam/image", "/cam/label")


def test_the_colour_camera_of_a_depth_camera(tmp_path):
    """RealSense's names; `color` is a segmenter's topic too."""
    with named(
        tmp_path,
        "/camera/color/image_raw",
        "/camera/aligned_depth_to_color/image_raw",
        "/camera/segmentation/color",
        "/camera/segmentation/label_mask",
    ) as bag:
        assert find_topics(bag) == ("/camera/color/image_raw", None)


def test_the_segmenters_classes_are_not_the_labels(tmp_path):
    other = LabelSet.from_names(["a", "b"])
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_label_map("/segmentation/label_map", other, START_NS)
        bag.write_label_map("/camera/label_map", CLASSES, START_NS)
    with BagReader(tmp_path / "bag") as bag:
        assert read_label_set(bag) == CLASSES and read_label_set(bag, of_masks=True) == other
    with BagWriter(tmp_path / "drive") as bag:
        bag.write_label_map("front/segmentation/label_map", other, START_NS)
    with BagReader(tmp_path / "drive") as bag:
        assert read_label_set(bag) is None and read_label_set(bag, of_masks=True) == other


def test_no_label(tmp_path):
    with named(tmp_path, "/cam/image") as bag:
        assert find_topics(bag) == ("/cam/image", None)


def test_several_and_none(tmp_path):
    with (
        named(tmp_path, "/a/image", "/b/image") as bag,
        pytest.raises(BagError, match="/a/image, /b/image"),
    ):
        find_topics(bag)


def test_several_labels(tmp_path):
    with named(tmp_path, "/a/image", "/a/label", "/b/label") as bag:
        with pytest.raises(
            BagError, match="several label topics: /a/label, /b/label. Choose one: --label-topic"
        ):
            find_topics(bag)


def test_none(tmp_path):
    with (
        named(tmp_path, "/a/label") as bag,
        pytest.raises(
            BagError,
            match="no camera images; expected a topic of images, got only masks or labels: /a/label. Give the bag",
        ),
    ):
        find_topics(bag)


class TestTransports:
    """The topics that image_transport adds to a camera's topic count as one camera."""

    def make(self, tmp_path, **counts):
        with BagWriter(tmp_path / "bag") as bag:
            for name, count in counts.items():
                for number in range(count):
                    bag.write_label(
                        name, ids_of(number), START_NS + number, "cam", compressed="raw" not in name
                    )
        return BagReader(tmp_path / "bag")

    @pytest.mark.parametrize(
        ("counts", "expected"),
        [
            ({"/cam/image_raw": 3, "/cam/image_raw/compressed": 3}, "/cam/image_raw"),
            ({"/cam/image_raw": 1, "/cam/image_raw/compressed": 3}, "/cam/image_raw/compressed"),
            ({"/cam/image_raw/compressed": 3, "/cam/image_raw/theora": 4}, "/cam/image_raw/compressed"),
            ({"/cam/image_raw/compressed": 3, "/cam/image_raw/zstd": 4}, "/cam/image_raw/zstd"),
            ({"/cam/image_raw/compressed": 3, "/cam/image_raw/zstd": 3}, "/cam/image_raw/zstd"),
            (
                {"/cam/image_raw/compressed": 3, "/cam/image_raw/compressedDepth": 2},
                "/cam/image_raw/compressed",
            ),
        ],
    )
    def test_one_camera(self, tmp_path, counts, expected):
        with self.make(tmp_path, **counts) as bag:
            assert find_image_topic(bag) == expected

    def test_two_cameras_stay_a_question(self, tmp_path):
        counts = {"/left/image_raw": 2, "/left/image_raw/compressed": 2, "/right/image_raw/compressed": 2}
        with self.make(tmp_path, **counts) as bag, pytest.raises(BagError, match="/left.*/right.*Choose one"):
            find_image_topic(bag)

    def test_labels_of_two_transports(self, tmp_path):
        with self.make(tmp_path, **{"/cam/label_raw": 2, "/cam/label_raw/compressed": 2}) as bag:
            assert find_label_topic(bag) == "/cam/label_raw"

    def test_labels_that_may_differ_stay_a_question(self, tmp_path):
        counts = {"/cam/label_raw": 2, "/cam/label_raw/compressed": 1}
        with self.make(tmp_path, **counts) as bag, pytest.raises(BagError, match="several label topics"):
            find_label_topic(bag)


def test_topics_without_a_message_are_no_candidates(tmp_path):
    from bags import storagetools as tools

    content = tools.messages(8)
    file = tools.write_mcap(tmp_path / "bag" / "a.mcap", content)
    tools.write_metadata(file.parent, [file.name], [*content, ("/other/image", 0, b"")], "mcap")
    with BagReader(file.parent) as bag:
        assert bag.topics["/other/image"].count == 0 and find_image_topic(bag) == "/camera/image_raw"


class TestNamedTopics:
    """Topics that a user names must contain images."""

    @pytest.fixture
    def bag(self, tmp_path):
        with BagWriter(tmp_path / "bag") as bag:
            bag.write_image("/camera/image", np.zeros((4, 4, 3), np.uint8), START_NS, "cam")
            text = make("std_msgs/msg/String", data="x")
            bag.write("/chatter", "std_msgs/msg/String", text, START_NS)
        return tmp_path / "bag"

    def test_of_images(self, bag):
        with BagReader(bag) as reader:
            assert (
                require_image_topic(reader) == require_image_topic(reader, "/camera/image") == "/camera/image"
            )
            with pytest.raises(BagError, match="has no topic /nothing. It has: /camera/image, /chatter"):
                require_image_topic(reader, "/nothing")
            with pytest.raises(
                ConfigError, match=r"/chatter is not an image topic.*got std_msgs/msg/String. Choose"
            ):
                require_image_topic(reader, "/chatter")

    @pytest.mark.parametrize(
        "arguments",
        [
            ["segment", "BAG", "--out", "x", "--checkpoint", "CHECKPOINT", "--device", "cpu"],
            ["evaluate", "BAG", "--label-topic", "/camera/image"],
            ["ego-mask", "BAG", "--out", "x.png"],
            ["labels", "extract", "BAG", "--out", "x"],
        ],
    )
    def test_in_commands(self, bag, arguments, tiny_checkpoint, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        values = {"BAG": str(bag), "CHECKPOINT": str(tiny_checkpoint)}
        assert main([*(values.get(text, text) for text in arguments), "--image-topic", "/chatter"]) == 2
        assert "/chatter is not an image topic" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["bag"]


def test_a_bag_without_images(tmp_path):
    with BagWriter(tmp_path / "bag") as bag:
        bag.write("/camera/image", "std_msgs/msg/String", make("std_msgs/msg/String", data="x"), START_NS)
    with (
        BagReader(tmp_path / "bag") as reader,
        pytest.raises(BagError, match=r"no image topic.*got /camera/image \(std_msgs/msg/String\)"),
    ):
        find_image_topic(reader)
