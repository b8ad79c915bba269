# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Packets of encoded video in messages: foxglove_msgs/CompressedVideo and ffmpeg_image_transport_msgs/FFMPEGPacket."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

from vtseg_ros.bags.bitstreams import av1_units, is_vp9_key, nal_units
from vtseg_ros.bags.messages import NS
from vtseg_ros.errors import ImageError
from vtseg_ros.transports import FFMPEG_PACKET, FOXGLOVE_VIDEO

DEFINITIONS = {
    FOXGLOVE_VIDEO: "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n",
    FFMPEG_PACKET: (
        "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\nuint8 flags\n"
        "bool is_bigendian\nuint8[] data\n"
    ),
}
"""Message definitions, for bags that do not contain them."""
KEY_FLAG = 1
"""Of `FFMPEGPacket.flags`: libavcodec's AV_PKT_FLAG_KEY."""

# Names of codecs and of the encoders that write them, as drivers give them.
_CODECS = {
    "h264": re.compile(r"h\.?264|(lib)?x264|avc1?"),
    "hevc": re.compile(r"h\.?265|(lib)?x265|hevc|hvc1"),
    "vp9": re.compile(r"(libvpx-)?vp9"),
    "vp8": re.compile(r"(libvpx|vp8)"),
    "av1": re.compile(r"av1|libaom-av1|libsvtav1|librav1e"),
    "mjpeg": re.compile(r"mjpeg"),
    "mpeg4": re.compile(r"mpeg4|libxvid"),
}
_HARDWARE = re.compile(r"_(nvenc|nvmpi|vaapi|qsv|amf|v4l2m2m|omx|videotoolbox|vulkan|mf|mediacodec|rkmpp)$")
_CRA = 21


@dataclass(frozen=True)
class VideoPacket:
    """One message of a video topic.

    Attributes:
        stamp_ns: Header stamp, ns.
        frame_id: Frame of the camera.
        codec: Codec, `h264`, `hevc`, `vp9`, `vp8`, `av1`, `mjpeg` or `mpeg4`.
        data: Encoded bytes.
        key: Whether the message marks itself as a key frame; None = it does not say.
    """

    stamp_ns: int
    frame_id: str
    codec: str
    data: bytes
    key: bool | None = None

    @property
    def is_key(self) -> bool:
        """Whether decoding can start with the packet."""
        if self.codec in ("h264", "hevc"):
            return any(is_key for _, is_key, _ in nal_units(self.codec, self.data))
        if self.codec == "av1":
            return 1 in av1_units(self.data)
        if self.codec == "vp9":
            return is_vp9_key(self.data)
        if self.codec == "vp8":
            return bool(self.data) and not self.data[0] & 1
        return self.codec == "mjpeg" or bool(self.key)

    @property
    def is_open(self) -> bool:
        """Whether the packet is a key frame whose group has images that refer to the group before it (CRA of H.265)."""
        return self.codec == "hevc" and any(kind == _CRA for kind, _, _ in nal_units("hevc", self.data))

    @property
    def parameters(self) -> bytes:
        """The parameter sets (VPS, SPS, PPS) of H.264 and H.265, which some cameras send only once; empty if none."""
        kinds = {"h264": (7, 8), "hevc": (32, 33, 34)}.get(self.codec, ())
        if not kinds:
            return b""
        found = [unit for kind, _, unit in nal_units(self.codec, self.data) if kind in kinds]
        return b"".join(b"\0\0\0\1" + unit for unit in found)

    @property
    def is_empty(self) -> bool:
        """Whether the packet of H.264 or H.265 has parameter sets or notes, and no part of an image."""
        limit = {"h264": range(1, 6), "hevc": range(0, 32)}.get(self.codec)
        return limit is not None and not any(kind in limit for kind, _, _ in nal_units(self.codec, self.data))


def codec_of(name: str) -> str:
    """Return the codec that `format` or `encoding` names.

    Args:
        name: Codec or encoder; what follows a semicolon or slash (pixel formats) is ignored.

    Raises:
        ImageError: For an unknown codec.
    """
    first = re.split(r"[;/,]", name.strip().lower())[0].strip()
    plain = _HARDWARE.sub("", first)
    for codec, pattern in _CODECS.items():
        if pattern.fullmatch(plain):
            return codec
    raise ImageError(f"unknown video format {name[:40]!r}; expected h264, h265, vp9 or av1")


def packet_of(message: Any) -> VideoPacket:
    """Return the packet of a message of either type, read by its fields.

    Args:
        message: foxglove_msgs/CompressedVideo or ffmpeg_image_transport_msgs/FFMPEGPacket.

    Returns:
        The packet.

    Raises:
        ImageError: For an unknown codec.
    """
    if hasattr(message, "timestamp"):
        stamp, frame_id, name, key = message.timestamp, message.frame_id, message.format, None
    else:
        stamp, frame_id, name = message.header.stamp, message.header.frame_id, message.encoding
        key = bool(message.flags & KEY_FLAG)
    stamp_ns = int(stamp.sec) * NS + int(stamp.nanosec)
    return VideoPacket(stamp_ns, str(frame_id), codec_of(name), bytes(message.data), key)


def packet_from_cdr(msgtype: str, data: bytes) -> VideoPacket:
    """Return the packet of a serialized message.

    Fields that newer versions of the type append are ignored, for which a deserializer needs their definition.

    Args:
        msgtype: One of `VIDEO_TYPES`.
        data: CDR bytes.

    Raises:
        ImageError: If it is truncated, or of an unknown codec.
    """
    fields = _CdrReader(data)
    stamp_ns = fields.number("i", 4) * NS + fields.number("I", 4)
    frame_id = fields.text()
    if msgtype == FOXGLOVE_VIDEO:
        payload = fields.octets()
        return VideoPacket(stamp_ns, frame_id, codec_of(fields.text()), payload)
    fields.number("i", 4), fields.number("i", 4)
    codec = codec_of(fields.text())
    fields.number("Q", 8)
    flags = fields.number("B", 1)
    fields.number("B", 1)
    return VideoPacket(stamp_ns, frame_id, codec, fields.octets(), bool(flags & KEY_FLAG))


class _CdrReader:
    """Read the fields of a CDR message in their order."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 4
        self._order = "<" if len(data) > 1 and data[1] & 1 else ">"

    def number(self, kind: str, size: int) -> int:
        """Return an integer of a struct format and its size in bytes."""
        self._place += -(self._place - 4) % size
        value = int(struct.unpack(self._order + kind, self._take(size))[0])
        return value

    def octets(self) -> bytes:
        """Return a sequence of bytes."""
        return self._take(self.number("I", 4))

    def text(self) -> str:
        """Return a string."""
        return self.octets().rstrip(b"\0").decode("utf-8", "replace")

    def _take(self, size: int) -> bytes:
        end = self._place + size
        if end > len(self._data):
            raise ImageError(f"the video message is truncated; expected {end} bytes, got {len(self._data)}")
        data, self._place = bytes(self._data[self._place : end]), end
        return data
