# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode topics of encoded video: foxglove_msgs/CompressedVideo and ffmpeg_image_transport_msgs/FFMPEGPacket.

Most packets encode only what changed since earlier ones, so a topic is decoded from front to back, from a key frame on.
Decoders conceal a lost packet by repeating old pixels; here the packets up to the next key frame are refused instead.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from vtseg_ros.bags.containers import MAX_PIXELS
from vtseg_ros.errors import ConfigError, ImageError, first_line
from vtseg_ros.transports import FFMPEG_PACKET, FOXGLOVE_VIDEO

DEFINITIONS = {
    FOXGLOVE_VIDEO: "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n",
    FFMPEG_PACKET: (
        "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\nuint8 flags\n"
        "bool is_bigendian\nuint8[] data\n"
    ),
}
"""Message definitions, for bags that do not contain them."""
NO_KEY_FRAME = "there is no key frame before it"
AFTER_LOSS = "it follows a lost or damaged packet; decoding restarts at the next key frame"
NO_PIXELS = "its packet gave no image"
MAX_REORDERED = 64
"""Packets after which a decoder that still delays an image has lost it; the formats allow 16."""
KEY_FLAG = 1
"""Of `FFMPEGPacket.flags`: libavcodec's AV_PKT_FLAG_KEY."""
_NS = 1_000_000_000

# Names of codecs and of the encoders that write them, as drivers give them; the decoders of each, best first.
_CODECS = {
    "h264": re.compile(r"h\.?264|(lib)?x264|avc1?"),
    "hevc": re.compile(r"h\.?265|(lib)?x265|hevc|hvc1"),
    "vp9": re.compile(r"(libvpx-)?vp9"),
    "vp8": re.compile(r"(libvpx|vp8)"),
    "av1": re.compile(r"av1|libaom-av1|libsvtav1|librav1e"),
    "mjpeg": re.compile(r"mjpeg"),
    "mpeg4": re.compile(r"mpeg4|libxvid"),
}
_DECODERS = {"av1": ("libdav1d", "av1")}
_HARDWARE = re.compile(r"_(nvenc|nvmpi|vaapi|qsv|amf|v4l2m2m|omx|videotoolbox|vulkan|mf|mediacodec|rkmpp)$")
_CRA = 21
_START_CODE = re.compile(rb"\x00\x00\x01")


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
            return any(is_key for _, is_key, _ in _units(self.codec, self.data))
        if self.codec == "av1":
            return 1 in _av1_units(self.data)
        if self.codec == "vp9":
            return _is_vp9_key(self.data)
        if self.codec == "vp8":
            return bool(self.data) and not self.data[0] & 1
        return self.codec == "mjpeg" or bool(self.key)

    @property
    def is_open(self) -> bool:
        """Whether the packet is a key frame whose group has images that refer to the group before it (CRA of H.265)."""
        return self.codec == "hevc" and any(kind == _CRA for kind, _, _ in _units("hevc", self.data))

    @property
    def parameters(self) -> bytes:
        """The parameter sets (VPS, SPS, PPS) of H.264 and H.265, which some cameras send only once; empty if none."""
        kinds = {"h264": (7, 8), "hevc": (32, 33, 34)}.get(self.codec, ())
        if not kinds:
            return b""
        found = [unit for kind, _, unit in _units(self.codec, self.data) if kind in kinds]
        return b"".join(b"\0\0\0\1" + unit for unit in found)

    @property
    def is_empty(self) -> bool:
        """Whether the packet of H.264 or H.265 has parameter sets or notes, and no part of an image."""
        limit = {"h264": range(1, 6), "hevc": range(0, 32)}.get(self.codec)
        return limit is not None and not any(kind in limit for kind, _, _ in _units(self.codec, self.data))


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
    stamp_ns = int(stamp.sec) * _NS + int(stamp.nanosec)
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
    stamp_ns = fields.number("i", 4) * _NS + fields.number("I", 4)
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


def _units(codec: str, data: bytes) -> Iterator[tuple[int, bool, bytes]]:
    """Yield the NAL units of H.264 or H.265 in Annex B form: (type, whether it is of a key frame, bytes)."""
    starts = [match.end() for match in _START_CODE.finditer(data)]
    for start, stop in zip(starts, [*(start - 3 for start in starts[1:]), len(data)]):
        if start >= stop:
            continue
        if codec == "h264":
            kind = data[start] & 0x1F
            yield kind, kind == 5, data[start:stop]
        else:
            kind = data[start] >> 1 & 0x3F
            yield kind, 16 <= kind <= 21, data[start:stop]


def _av1_units(data: bytes) -> Iterator[int]:
    """Yield the types of the OBUs of an AV1 packet; 1 is the sequence header, which each key frame has."""
    place = 0
    while place < len(data):
        head = data[place]
        place += 2 if head & 4 else 1
        yield head >> 3 & 0xF
        if not head & 2:
            return
        size = shift = 0
        while place < len(data):
            size |= (data[place] & 0x7F) << shift
            shift += 7
            place += 1
            if not data[place - 1] & 0x80:
                break
        place += size


def _is_vp9_key(data: bytes) -> bool:
    """Return whether a VP9 packet starts with a key frame: 2 bits marker, 2 profile, show_existing, frame type."""
    if not data or data[0] >> 6 != 2:
        return False
    bits = f"{data[0]:08b}"
    rest = bits[5:] if bits[2:4] == "11" else bits[4:]
    return rest[:2] == "00"


class _Bits:
    """Read the bits of a NAL unit, without its emulation prevention bytes."""

    def __init__(self, unit: bytes) -> None:
        self._bits = int.from_bytes(unit.replace(b"\0\0\3", b"\0\0"), "big")
        self._left = 8 * len(unit.replace(b"\0\0\3", b"\0\0"))

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the unit is truncated")
        return self._bits >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed_golomb(self) -> int:
        value = self.golomb()
        return (value + 1) // 2 if value % 2 else -(value // 2)


_HIGH_PROFILES = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))


class _FrameNumbers:
    """Find lost reference frames of an H.264 stream by `frame_num` (ITU-T H.264, 7.4.3), which libavcodec conceals."""

    def __init__(self) -> None:
        self._bits: dict[int, tuple[int, bool, bool]] = {}
        """By id of the SPS: bits of frame_num, whether gaps are allowed, whether colour planes are coded apart."""
        self._sps: dict[int, int] = {}
        """Id of the SPS by id of the PPS."""
        self._reference = 0

    def has_gap(self, data: bytes) -> bool:
        """Note the frame numbers of a packet and return whether reference frames are missing before it."""
        gap = False
        for kind, is_key, unit in _units("h264", data):
            try:
                if kind == 7:
                    self._read_sps(_Bits(unit[1:]))
                elif kind == 8:
                    bits = _Bits(unit[1:32])
                    number = bits.golomb()
                    self._sps[number] = bits.golomb()
                elif kind in (1, 5):
                    gap |= self._read_slice(_Bits(unit[1:32]), is_key, bool(unit[0] & 0x60))
            except (ValueError, KeyError):  # the decoder reports damage itself
                continue
        return gap

    def _read_sps(self, bits: _Bits) -> None:
        profile = bits.take(8)
        bits.take(16)
        number, separate = bits.golomb(), False
        if profile in _HIGH_PROFILES:
            chroma = bits.golomb()
            separate = chroma == 3 and bool(bits.take(1))
            bits.golomb(), bits.golomb(), bits.take(1)
            if bits.take(1):
                for place in range(8 if chroma != 3 else 12):
                    if bits.take(1):
                        self._skip_scaling_list(bits, 16 if place < 6 else 64)
        length = bits.golomb() + 4
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.take(1), bits.signed_golomb(), bits.signed_golomb()
            for _ in range(min(bits.golomb(), 255)):
                bits.signed_golomb()
        bits.golomb()
        self._bits[number] = length, bool(bits.take(1)), separate

    @staticmethod
    def _skip_scaling_list(bits: _Bits, size: int) -> None:
        last = following = 8
        for _ in range(size):
            if following:
                following = (last + bits.signed_golomb()) % 256
            last = following or last

    def _read_slice(self, bits: _Bits, is_key: bool, is_reference: bool) -> bool:
        bits.golomb(), bits.golomb()
        length, allowed, separate = self._bits[self._sps[bits.golomb()]]
        if separate:
            bits.take(2)
        number, modulus = bits.take(length), 1 << length
        gap = not is_key and not allowed and number not in (self._reference, (self._reference + 1) % modulus)
        if is_reference or is_key:
            self._reference = number
        return gap


Token = TypeVar("Token")


@dataclass(frozen=True)
class Decoded(Generic[Token]):
    """What became of a packet.

    Attributes:
        token: What was given with the packet.
        image: (H, W, 3) uint8 RGB; None = the packet gave no image.
        reason: Why there is no image; empty with an image.
    """

    token: Token
    image: np.ndarray | None
    reason: str = ""


class VideoDecoder(Generic[Token]):
    """Decode the packets of one topic (PyAV); each packet leads to one result, also if it cannot be decoded.

    Images come in the order of their display, with the token of their own packet. A stream with B-frames delays them.
    The loss of packets within a group is found in H.264 (by its frame numbers) and H.265 (by the frames that a packet
    refers to). VP9 and AV1 do not number frames. Where a key frame is lost too, the numbers of the next group may
    happen to go on where the last one ended.

    Args:
        live: Whether an image is wanted as soon as it is complete. Otherwise the reordering that an H.264 stream allows
            is awaited, also if it does not say that it reorders.

    Raises:
        ConfigError: If the package `av` is missing.
    """

    def __init__(self, *, live: bool = False) -> None:
        self._av, self._live = require_av("reading encoded video"), live
        self._context: Any = None
        self._codec = ""
        self._waits = NO_KEY_FRAME
        """Why packets are refused until the next key frame; empty = they are not."""
        self._pending: dict[int, tuple[Token, bool]] = {}
        self._number = 0
        self._frame_numbers = _FrameNumbers()

    def push(self, packet: VideoPacket, token: Token) -> list[Decoded[Token]]:
        """Decode a packet.

        Args:
            packet: Next packet of the stream.
            token: Returned with the result of the packet.

        Returns:
            Results that are complete, of this and of earlier packets.
        """
        done = self._flush(NO_PIXELS) if self._context is not None and packet.codec != self._codec else []
        if self._context is None or packet.codec != self._codec:
            self._open(packet.codec)
        if packet.codec in ("h264", "hevc") and not _START_CODE.search(packet.data):
            return [*done, *self._fail(token, "its data is not in Annex B form: it has no start code")]
        gap = packet.codec == "h264" and self._frame_numbers.has_gap(packet.data)
        if packet.is_empty:
            self._send(packet.data, None)
            return [*done, Decoded(token, None, "it has parameters of the video and no image")]
        if packet.is_key:
            if self._waits:
                self._context.flush_buffers()
            self._waits = ""
        elif gap and not self._waits:
            done += self.lose()
        if self._waits:
            return [*done, Decoded(token, None, self._waits)]
        self._number += 1
        number = self._number
        self._pending[number] = token, packet.is_key
        try:
            frames = self._send(packet.data, number)
        except self._av.FFmpegError as err:
            del self._pending[number]
            return [*done, *self._fail(token, f"it cannot be decoded: {first_line(err)}")]
        done += self._results(frames)
        if number in self._pending or not frames:
            late = [older for older in self._pending if older <= number - MAX_REORDERED]
            done += [Decoded(self._pending.pop(older)[0], None, NO_PIXELS) for older in late]
        return done

    def lose(self) -> list[Decoded[Token]]:
        """Note that a packet is lost; the next packet must be a key frame.

        Returns:
            The delayed images.
        """
        done = self._flush(AFTER_LOSS)
        self._waits = self._waits or AFTER_LOSS
        return done

    def flush(self) -> list[Decoded[Token]]:
        """Return the delayed images at the end of the stream; the next packet must be a key frame."""
        done = self._flush(NO_PIXELS)
        self._waits = NO_KEY_FRAME
        return done

    def _open(self, codec: str) -> None:
        names = [name for name in _DECODERS.get(codec, (codec,)) if name in self._av.codecs_available]
        if not names:
            raise ConfigError(f"av: this build cannot decode {codec}. Run: pip install --force-reinstall av")
        context = self._av.CodecContext.create(names[0], "r")
        context.thread_count = 1  # more threads delay images and errors
        # Errors end decoding instead of being concealed; a stream must not ask for more memory than a raw image may.
        context.options = {"err_detect": "explode+crccheck", "max_pixels": str(MAX_PIXELS)}
        if not self._live:
            context.options = {**context.options, "strict": "1"}
        self._context, self._codec, self._waits = context, codec, NO_KEY_FRAME
        self._frame_numbers = _FrameNumbers()

    def _send(self, data: bytes, number: int | None) -> list[Any]:
        packet = self._av.Packet(data)
        packet.pts = packet.dts = number
        try:
            return list(self._context.decode(packet))
        except self._av.FFmpegError:
            if number is None:  # parameter sets by themselves give no image
                return []
            raise

    def _fail(self, token: Token, reason: str) -> list[Decoded[Token]]:
        return [*self.lose(), Decoded(token, None, reason)]

    def _flush(self, reason: str) -> list[Decoded[Token]]:
        """Return the delayed images, and all other pending packets with a reason."""
        done: list[Decoded[Token]] = []
        if self._context is not None and self._pending:
            try:
                done = self._results(list(self._context.decode(None)))
            except self._av.FFmpegError:
                pass
            self._context.flush_buffers()
        done += [Decoded(token, None, reason) for token, _ in self._pending.values()]
        self._pending.clear()
        return done

    def _results(self, frames: list[Any]) -> list[Decoded[Token]]:
        done: list[Decoded[Token]] = []
        for frame in frames:
            found = self._pending.pop(frame.pts, None)
            if found is None:
                continue
            token, is_key = found
            if is_key:  # images before a key frame come before it, or not at all
                older = [number for number in self._pending if number < frame.pts]
                done += [Decoded(self._pending.pop(number)[0], None, NO_PIXELS) for number in older]
            if frame.is_corrupt:
                done.append(Decoded(token, None, "its image is damaged"))
                continue
            done.append(Decoded(token, frame.to_ndarray(format="rgb24")))
        return done


def require_av(what: str) -> Any:
    """Return the module `av`.

    Args:
        what: What needs it, for the error.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import av
    except ImportError as err:
        raise ConfigError(
            f"{what}: the package av is missing; expected it to be installed. Run: pip install 'vtseg_ros[video]'"
        ) from err
    return av
