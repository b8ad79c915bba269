# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Topics of encoded video: streams that PyAV encodes, read from front to back, in parts and frame by frame."""

from __future__ import annotations

import builtins
import logging
from functools import lru_cache

import numpy as np
import pytest

pytest.importorskip("av")

from bags import videotools as tools
from bags.videotools import CODECS, FFMPEG, FOXGLOVE, GROUP, Packet, shows, stamp_of_frame
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.bags.topics import find_image_topic
from vtseg_ros.bags.video_decoder import AFTER_LOSS, NO_KEY_FRAME, VideoDecoder
from vtseg_ros.bags.video_messages import VideoPacket, codec_of
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.errors import BagError, ConfigError, ImageError

TOPIC = "/camera/image/foxglove"
COUNT = 18
NAMES = {"h264": "h264", "h265": "hevc", "vp9": "vp9", "av1": "av1"}


@lru_cache
def packets(codec: str) -> list[Packet]:
    return tools.encode(codec, COUNT)


def decoded(bag: BagReader, *limits):
    """(numbers of the frames in the order of reading, (bag time in ns, reason) of the others)."""
    numbers, corrupt = [], []
    topic = find_image_topic(bag)
    for _, time_ns, message in bag.messages(
        [topic], *limits, on_corrupt=lambda _, time_ns, reason: corrupt.append((time_ns, reason))
    ):
        number = (stamp_of(message) - tools.START) // tools.STEP
        assert shows(decode_any(message), number), number
        assert message.header.frame_id == "cam"
        assert tools.START <= time_ns - tools.DELAY <= tools.START + COUNT * tools.STEP
        numbers.append(number)
    return numbers, corrupt


class TestReading:
    @pytest.mark.parametrize("codec", CODECS)
    @pytest.mark.parametrize("msgtype", [FOXGLOVE, FFMPEG])
    def test_each_frame_has_the_stamp_of_its_own_message(self, tmp_path, codec, msgtype):
        path = tools.write_video_bag(tmp_path / "bag", packets(codec), codec, msgtype=msgtype)
        with BagReader(path) as bag:
            numbers, corrupt = decoded(bag)
        assert numbers == list(range(COUNT)) and corrupt == []

    @pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
    def test_fields_that_newer_definitions_append(self, tmp_path, storage):
        path = tools.write_video_bag(tmp_path / "bag", packets("h264"), "h264", storage=storage, newer=True)
        with BagReader(path) as bag:
            assert decoded(bag) == (list(range(COUNT)), [])

    def test_two_cameras_at_once(self, tmp_path):
        path = tmp_path / "bag"
        store = tools.make_store()
        with tools.Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
            topics = {name: writer.add_connection(f"/{name}", FOXGLOVE, typestore=store) for name in "ab"}
            for place in range(COUNT):
                for name, codec in (("a", "h264 with B-frames"), ("b", "h265")):
                    message = tools.make_message(store, FOXGLOVE, packets(codec)[place], codec, name)
                    writer.write(
                        topics[name], tools.START + place * tools.STEP, store.serialize_cdr(message, FOXGLOVE)
                    )
        seen = {"/a": [], "/b": []}
        with BagReader(path) as bag:
            for topic, _, message in bag.messages():
                number = (stamp_of(message) - tools.START) // tools.STEP
                assert shows(decode_any(message), number) and message.header.frame_id == topic[1:]
                seen[topic].append(number)
        assert seen == {"/a": list(range(COUNT)), "/b": list(range(COUNT))}

    @pytest.mark.parametrize("codec", ["h264", "h264 with B-frames", "h265", "h265 with B-frames", "vp9"])
    def test_a_part_begins_in_a_group(self, tmp_path, codec):
        """Frames before the part are decoded for it, and are no part of it."""
        stream = packets(codec)
        path = tools.write_video_bag(tmp_path / "bag", stream, codec)
        for start, stop in ((1, 5), (GROUP, 2 * GROUP), (GROUP + 2, COUNT), (2 * GROUP + 1, COUNT)):
            limits = (tools.START + place * tools.STEP + tools.DELAY for place in (start, stop))
            with BagReader(path) as bag:
                numbers, corrupt = decoded(bag, *limits)
            assert numbers == sorted(packet.number for packet in stream[start:stop]) and corrupt == []

    def test_preference_among_transports(self, tmp_path):
        path = tmp_path / "bag"
        packet = packets("h264")[0]
        store = tools.make_store()
        message = store.serialize_cdr(tools.make_message(store, FOXGLOVE, packet, "h264"), FOXGLOVE)
        with BagWriter(path) as writer:
            writer.write_raw("/camera/image/foxglove", FOXGLOVE, message, 1)  # the definition is ours
            writer.write_image("/camera/image/compressed", tools.scene(0), 1, "cam", compressed=True)
        with BagReader(path) as bag:
            assert find_image_topic(bag) == "/camera/image/compressed"
            assert "uint8[] data" in bag.definitions[FOXGLOVE][0]


class TestLoss:
    def test_messages_before_the_first_key_frame(self, tmp_path, caplog):
        path = tools.write_video_bag(tmp_path / "bag", packets("h264")[2:], "h264")
        with caplog.at_level(logging.WARNING), BagReader(path) as bag:
            numbers, corrupt = decoded(bag)
        assert numbers == list(range(GROUP, COUNT))
        assert [reason for _, reason in corrupt] == [NO_KEY_FRAME] * (GROUP - 2)
        assert (
            caplog.text.count("4 video packets gave no image: 4 since there is no key frame before it") == 1
        )
        with BagReader(path) as bag, pytest.raises(BagError, match="no key frame"):
            list(bag.messages())

    @pytest.mark.parametrize("codec", ["h264", "h265"])
    @pytest.mark.parametrize("place", [1, 3, GROUP - 1, GROUP, GROUP + 1])
    def test_a_lost_packet(self, tmp_path, codec, place):
        """What follows it in its group is refused; the next group is read."""
        path = tools.write_video_bag(tmp_path / "bag", packets(codec), codec, lost=[place])
        with BagReader(path) as bag:
            numbers, corrupt = decoded(bag)
        group = place // GROUP
        assert numbers == [n for n in range(COUNT) if n < place or n >= (group + 1) * GROUP]
        assert len(numbers) + len(corrupt) == COUNT - 1
        assert all(reason == AFTER_LOSS for _, reason in corrupt[1:])

    @pytest.mark.parametrize("codec", ["h264", "h264 with B-frames"])
    @pytest.mark.parametrize("place", [0, 2, GROUP, GROUP + 3])
    def test_a_damaged_packet(self, tmp_path, codec, place):
        path = tools.write_video_bag(tmp_path / "bag", packets(codec), codec, damaged=[place])
        with BagReader(path) as bag:
            numbers, corrupt = decoded(bag)
        later = {packet.number for packet in packets(codec)[place:]}
        again = (place // GROUP + 1) * GROUP
        assert set(range(again, COUNT)) <= set(numbers) and packets(codec)[place].number not in numbers
        assert numbers == sorted(numbers) and len(numbers) + len(corrupt) == COUNT
        assert not [n for n in later & set(numbers) if n < again]

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        codec=st.sampled_from(["h264", "h264 with B-frames", "h265"]),
        lost=st.sets(st.integers(0, COUNT - 1).filter(lambda place: place % GROUP or place == 0), max_size=6),
        live=st.booleans(),
    )
    def test_no_frame_that_is_given_out_differs(self, codec, lost, live):
        """Whatever is lost, each packet has one result, and each image is the one of the undamaged stream.

        Key frames but the first are not lost: the frame numbers of the next group may go on where the lost one began.
        """
        stream = packets(codec)
        whole = {one.token: one.image for one in run(codec, stream)}
        found = run(codec, [packet for place, packet in enumerate(stream) if place not in lost], live=live)
        assert sorted(one.token for one in found) == sorted(
            packet.number for place, packet in enumerate(stream) if place not in lost
        )
        for one in found:
            assert (one.image is None) == bool(one.reason)
            if one.image is not None:
                np.testing.assert_array_equal(one.image, whole[one.token])

    @settings(max_examples=100)
    @given(
        st.lists(st.binary(max_size=60), max_size=8), st.sampled_from(["h264", "hevc", "vp9", "av1", "vp8"])
    )
    def test_rubbish(self, contents, codec):
        decoder = VideoDecoder()
        found = [
            one for data in contents for one in decoder.push(VideoPacket(0, "", codec, b"\0\0\1" + data), 0)
        ]
        found += decoder.flush()
        assert len(found) == len(contents)


def run(codec: str, stream: list[Packet], *, live: bool = False):
    decoder = VideoDecoder(live=live)
    found = []
    for packet in stream:
        found += decoder.push(VideoPacket(0, "", NAMES[codec.split()[0]], packet.data), packet.number)
    return found + decoder.flush()


class TestRandomAccess:
    @pytest.mark.parametrize("codec", ["h264", "h264 with B-frames", "h265", "h265 with B-frames", "vp9"])
    def test_in_any_order(self, tmp_path, codec, rng):
        stream = packets(codec)
        path = tools.write_video_bag(tmp_path / "bag", stream, codec)
        with BagReader(path) as bag:
            for place in [COUNT - 1, 0, 7, 6, 5, 17, *rng.integers(0, COUNT, 20)]:
                number = stream[place].number
                time_ns = tools.START + int(place) * tools.STEP + tools.DELAY
                message = bag.read(TOPIC, time_ns, stamp_of_frame(number))
                assert stamp_of(message) == stamp_of_frame(number) and shows(decode_any(message), number)
            with pytest.raises(BagError, match="no message at 5 ns"):
                bag.read(TOPIC, 5)

    def test_few_images_are_kept(self, tmp_path, monkeypatch):
        monkeypatch.setattr("vtseg_ros.bags.video_topics.CACHE_BYTES", 0)
        monkeypatch.setattr("vtseg_ros.bags.video_topics.CACHE_IMAGES", 1)
        self.test_in_any_order(tmp_path, "h264 with B-frames", np.random.default_rng(1))

    def test_windows(self, tmp_path):
        """The windows of training and evaluation; frames without an image have no place in them."""
        path = tools.write_video_bag(tmp_path / "bag", packets("h264")[1:], "h264", lost=[GROUP + 2])
        index = FrameIndex([BagSource(path)], need_labels=False)
        numbers = [(frame.stamp_ns - tools.START) // tools.STEP for frame in index.frames]
        assert numbers == [*range(GROUP, GROUP + 3), *range(2 * GROUP, COUNT)]
        assert len(index.corrupt) == (GROUP - 1) + 2 and index.sequences == [(0, len(numbers))]
        assert all(frame.size == tools.SIZE for frame in index.frames)
        store = FrameStore(index)
        for newest in (len(numbers) - 1, 4, 0, 5):
            video, _ = store.window(index.window(newest, 0, 4), 4)
            for image, number in zip(video[::-1], numbers[: newest + 1][::-1]):
                assert shows(image, number)

    def test_parameter_sets_sent_once(self, tmp_path):
        """Some cameras send the SPS and PPS only with their first packet, or in one of its own."""
        stream = packets("h264")
        sets = VideoPacket(0, "", "h264", stream[0].data).parameters
        bare = [Packet(p.number, p.key, without_parameters(p.data)) for p in stream]
        first = Packet(0, False, sets)
        path = tools.write_video_bag(tmp_path / "bag", [first, *bare], "h264")
        with BagReader(path) as bag:
            numbers, corrupt = decoded(bag)
            assert numbers == list(range(COUNT)) and [reason for _, reason in corrupt] == [
                "it has parameters of the video and no image"
            ]
            place = GROUP * 2 + 3  # of the packet after the parameter sets
            message = bag.read(TOPIC, tools.START + (place + 1) * tools.STEP + tools.DELAY)
            assert shows(decode_any(message), place)


def without_parameters(data: bytes) -> bytes:
    units = data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]
    return b"".join(b"\0\0\1" + unit for unit in units if unit[0] & 0x1F not in (7, 8))


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "codec"),
        [
            ("h264", "h264"),
            ("H265", "hevc"),
            ("libx264", "h264"),
            ("hevc_nvenc", "hevc"),
            ("h264_vaapi", "h264"),
            ("h264;yuv420p;bgr8;bgr8", "h264"),
            ("hevc/yuv420p", "hevc"),
            ("libsvtav1", "av1"),
            ("vp9", "vp9"),
            ("mjpeg", "mjpeg"),
        ],
    )
    def test_names(self, name, codec):
        assert codec_of(name) == codec

    @pytest.mark.parametrize("name", ["", "theora", "h2640", "raw"])
    def test_unknown_names(self, name):
        with pytest.raises(ImageError, match="unknown video format"):
            codec_of(name)

    def test_no_start_code(self):
        (found,) = VideoDecoder().push(VideoPacket(0, "", "h264", b"\0\0\0\x20" + bytes(32)), 1)
        assert "Annex B" in found.reason

    def test_without_av(self, tmp_path, monkeypatch):
        path = tools.write_video_bag(tmp_path / "bag", packets("h264"), "h264")
        original = builtins.__import__

        def refuse(name, *args, **kwargs):
            if name == "av":
                raise ImportError(name)
            return original(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", refuse)
        with BagReader(path) as bag, pytest.raises(ConfigError, match=r"topic /camera.*vtseg_ros\[video\]"):
            list(bag.messages())
