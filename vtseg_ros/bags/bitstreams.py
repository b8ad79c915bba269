# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Find key frames, parameter sets and lost frames in the packets of encoded video, without decoding them."""

from __future__ import annotations

import re
from collections.abc import Iterator

_START_CODE = re.compile(rb"\x00\x00\x01")


def is_annex_b(data: bytes) -> bool:
    """Return whether data of H.264 or H.265 is in Annex B form, which separates NAL units by start codes."""
    return _START_CODE.search(data) is not None


def nal_units(codec: str, data: bytes) -> Iterator[tuple[int, bool, bytes]]:
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


def av1_units(data: bytes) -> Iterator[int]:
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


def is_vp9_key(data: bytes) -> bool:
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


class FrameNumbers:
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
        for kind, is_key, unit in nal_units("h264", data):
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
