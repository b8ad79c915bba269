# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Bags with encoded video, as drivers record it: encoded by PyAV, messages by rosbags from their definitions' fields."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vtseg_ros.bags.messages import IMAGE, LABEL_MAP, image_message, label_map_message, typestore
from vtseg_ros.label_set import LabelSet

NS = 1_000_000_000
CLASSES = LabelSet.from_names(["ground", "square"])
START = 100 * NS
STEP = NS // 10
DELAY = 3_000_000
"""Bag time after the header stamp, ns."""
FOXGLOVE, FFMPEG = "foxglove_msgs/msg/CompressedVideo", "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
FIELDS = {
    FOXGLOVE: "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format",
    FFMPEG: (
        "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\nuint8 flags\n"
        "bool is_bigendian\nuint8[] data"
    ),
}
NEWER_FOXGLOVE = FIELDS[FOXGLOVE] + "\nstring uuid\nfoxglove_msgs/LineageInfo lineage"
SIZE = (64, 48)
CODECS = {
    "h264": ("libx264", {"bf": "0", "tune": "zerolatency", "sc_threshold": "0"}),
    "h264 with B-frames": ("libx264", {"bf": "2", "sc_threshold": "0", "x264-params": "b-adapt=0"}),
    "h265": ("libx265", {"x265-params": "bframes=0:scenecut=0:open-gop=0:log-level=none"}),
    "h265 with B-frames": ("libx265", {"x265-params": "bframes=2:b-adapt=0:scenecut=0:log-level=none"}),
    "vp9": ("libvpx-vp9", {"lag-in-frames": "0", "deadline": "realtime", "crf": "30", "b": "0"}),
    "av1": ("libsvtav1", {"preset": "10", "svtav1-params": "pred-struct=1"}),
}
GROUP = 6
"""Frames from one key frame to the next."""


@dataclass(frozen=True)
class Packet:
    """An encoded frame: number of the frame in the order of display, whether it is a key frame, bytes."""

    number: int
    key: bool
    data: bytes


def scene(number: int) -> np.ndarray:
    """(H, W, 3) uint8 grey levels and a bright square that moves: tells frames apart after lossy coding."""
    image = np.full((SIZE[1], SIZE[0], 3), 40 + 8 * (number % 12), np.uint8)
    left = 3 * (number % 16)
    image[16:32, left : left + 16] = 230
    return image


def square_left(image: np.ndarray) -> int:
    """The first bright column of a decoded scene."""
    return int(np.flatnonzero(image[20:28, :, 1].mean(0) > 180)[0])


def shows(image: np.ndarray, number: int) -> bool:
    """Whether an image is that scene: the square within one px and the grey within five levels."""
    grey = float(np.median(image[:12]))
    return abs(square_left(image) - 3 * (number % 16)) <= 1 and abs(grey - (40 + 8 * (number % 12))) <= 5


def end_realtime_priority() -> None:
    """Give all threads of this process the usual priority.

    SVT-AV1 gives its threads real-time priority where it may (as root), and they then keep every other process waiting.
    """
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def encode(codec: str, count: int = 18, group: int = GROUP) -> list[Packet]:
    """Scenes 0 to count - 1, in the order of the stream."""
    name, options = CODECS[codec]
    encoder = av.CodecContext.create(name, "w")
    encoder.width, encoder.height, encoder.pix_fmt = *SIZE, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 10), Fraction(10)
    encoder.thread_count = 1
    encoder.options = {"g": str(group), **options}
    if name == "libx265":
        encoder.options = {
            **options,
            "x265-params": options["x265-params"] + f":keyint={group}:min-keyint={group}",
        }
    encoder.open()
    end_realtime_priority()
    packets: list[Packet] = []
    for number in [*range(count), None]:
        frame = None
        if number is not None:
            frame = av.VideoFrame.from_ndarray(scene(number), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, encoder.time_base
        packets += [Packet(one.pts, bool(one.is_keyframe), bytes(one)) for one in encoder.encode(frame)]
    return packets


def stamp_of_frame(number: int) -> int:
    return START + number * STEP


def make_message(store, msgtype: str, packet: Packet, codec: str, frame_id: str = "cam", **fields):
    """A message of either type, of rosbags' classes."""
    kinds = store.types
    stamp_ns = stamp_of_frame(packet.number)
    stamp = kinds["builtin_interfaces/msg/Time"](stamp_ns // NS, stamp_ns % NS)
    data = np.frombuffer(packet.data, np.uint8)
    name = codec.split()[0]
    if msgtype == FOXGLOVE:
        return kinds[msgtype](timestamp=stamp, frame_id=frame_id, data=data, format=name, **fields)
    return kinds[msgtype](
        header=kinds["std_msgs/msg/Header"](stamp, frame_id),
        width=SIZE[0],
        height=SIZE[1],
        encoding={"h264": "h264;yuv420p;bgr8;bgr8", "h265": "hevc_nvenc"}.get(name, name),
        pts=packet.number,
        flags=int(packet.key),
        is_bigendian=False,
        data=data,
    )


def make_store(newer: bool = False):
    store = get_typestore(Stores.ROS2_JAZZY)
    if newer:
        store.register(get_types_from_msg("string[] parents", "foxglove_msgs/msg/LineageInfo"))
    for name, text in {**FIELDS, **({FOXGLOVE: NEWER_FOXGLOVE} if newer else {})}.items():
        store.register(get_types_from_msg(text, name))
    return store


def write_video_bag(
    path: Path,
    packets: list[Packet],
    codec: str,
    *,
    msgtype: str = FOXGLOVE,
    topic: str = "/camera/image/foxglove",
    storage: StoragePlugin = StoragePlugin.MCAP,
    lost: Collection[int] = (),
    damaged: Collection[int] = (),
    newer: bool = False,
    labels: bool = False,
) -> Path:
    """Write a bag.

    Args:
        path: Folder to create.
        packets: In the order of the stream; the bag time is that of the encoder's output.
        codec: Name in `CODECS`.
        msgtype: Of the topic.
        topic: Of the packets.
        storage: Of the bag.
        lost: Places in the stream of packets that are left out.
        damaged: Places in the stream of packets of which the second half is missing.
        labels: Whether there is a label (/camera/label, 1 in the square, else 0) of every third frame, and a class list.
        newer: Whether the foxglove message has the fields that were appended in 2026.
    """
    store = make_store(newer)
    more = {}
    if newer:
        more = {"uuid": "a", "lineage": store.types["foxglove_msgs/msg/LineageInfo"](["b", "c"])}
    with Writer(path, version=8, storage_plugin=storage) as writer:
        connection = writer.add_connection(topic, msgtype, typestore=store)
        for place, packet in enumerate(packets):
            if place in lost:
                continue
            if place in damaged:
                packet = Packet(packet.number, packet.key, packet.data[: len(packet.data) // 2])
            message = make_message(store, msgtype, packet, codec, **(more if msgtype == FOXGLOVE else {}))
            writer.write(connection, START + place * STEP + DELAY, store.serialize_cdr(message, msgtype))
        if labels:
            _write_labels(writer, sorted(packet.number for packet in packets)[::3])
    return path


def _write_labels(writer: Writer, numbers: list[int]) -> None:
    store = typestore()
    topic = writer.add_connection("/camera/label", IMAGE, typestore=store)
    names = writer.add_connection("/camera/label_map", LABEL_MAP, typestore=store)
    listed = label_map_message(CLASSES, START)
    writer.write(names, START, store.serialize_cdr(listed, LABEL_MAP))
    for number in numbers:
        ids = (scene(number)[..., 0] == 230).astype(np.uint8)
        message = image_message(ids, "mono8", stamp_of_frame(number), "cam")
        writer.write(topic, stamp_of_frame(number) + DELAY, store.serialize_cdr(message, IMAGE))
