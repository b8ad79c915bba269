# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Images of zstd_image_transport: the layout of its publisher, with gzip (to Jazzy) and with Zstandard (later)."""

from __future__ import annotations

import gzip
import itertools
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.image_messages import decode_any, size_of
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, compressed_message
from vtseg_ros.bags.topics import find_image_topic
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.errors import ImageError

NS = 1_000_000_000
PACKERS = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "zstd": zstandard.compress,
    "zstd without size": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
}


def packed(pixels: np.ndarray, encoding: str, pack=gzip.compress, *, step: int = 0, **head: int) -> bytes:
    height, width = pixels.shape[:2]
    step = step or pixels[0].nbytes
    rows = pixels.reshape(height, -1).view(np.uint8)
    data = np.pad(rows, ((0, 0), (0, step - rows.shape[1]))).tobytes()
    known = {"height": height, "width": width, "big": 0, "step": step, "length": len(encoding), **head}
    return struct.pack("<IIBII", *known.values()) + encoding.encode() + pack(data)


def message(data: bytes, fmt: str = "zstd") -> SimpleNamespace:
    return SimpleNamespace(format=fmt, data=np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("step", [0, 40])
def test_decoding(pack, step, rng):
    rgb = rng.integers(0, 256, (6, 10, 3), dtype=np.uint8)
    one = message(packed(rgb, "rgb8", pack, step=step))
    np.testing.assert_array_equal(decode_any(one), rgb)
    assert size_of(one) == (10, 6)
    np.testing.assert_array_equal(decode_any(message(packed(rgb[..., ::-1].copy(), "bgr8", pack))), rgb)
    ids = rng.integers(0, 14, (6, 10), dtype=np.uint8)
    np.testing.assert_array_equal(decode_label(message(packed(ids, "mono8", pack))), ids)
    deep = (ids.astype(np.uint16) * 257).astype(">u2")
    np.testing.assert_array_equal(decode_any(message(packed(deep, "mono16", pack, big=1)))[..., 0], ids)


def test_in_a_bag(tmp_path, rng):
    images = rng.integers(0, 256, (4, 8, 12, 3), dtype=np.uint8)
    with BagWriter(tmp_path / "bag") as writer:
        for number, rgb in enumerate(images, start=1):
            data = np.frombuffer(packed(rgb, "rgb8"), np.uint8)
            one = compressed_message(data, "zstd", number * NS, "cam")
            writer.write("/camera/image/zstd", COMPRESSED_IMAGE, one, number * NS)
    with BagReader(tmp_path / "bag") as bag:
        assert find_image_topic(bag) == "/camera/image/zstd"
    index = FrameIndex([BagSource(tmp_path / "bag")], need_labels=False)
    assert [frame.size for frame in index.frames] == [(12, 8)] * 4
    np.testing.assert_array_equal(FrameStore(index).image(2), images[2])


GOOD = packed(np.zeros((4, 4, 3), np.uint8), "rgb8")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated; expected at least 17 bytes"),
        (GOOD[:16], "truncated"),
        (GOOD[:19], "its encoding has 4 bytes"),
        (GOOD[:21], "no end"),
        (GOOD[:-10], "no end"),
        (GOOD[:21] + b"rubbish", "cannot be decompressed"),
        (GOOD[:21] + b"\x28\xb5\x2f\xfd rubbish", "cannot be decompressed"),
        (packed(np.zeros((4, 4, 3), np.uint8), "rgb8", height=1 << 20, width=1 << 20), "claims"),
        (packed(np.zeros((4, 4, 3), np.uint8), "rgb8", length=1 << 30), "encoding has"),
        (packed(np.zeros((4, 4, 3), np.uint8), "rgb8", lambda _: gzip.compress(bytes(1 << 20))), "more than"),
        (
            packed(np.zeros((4, 4, 3), np.uint8), "rgb8", lambda _: zstandard.compress(bytes(1 << 20))),
            "1048576 bytes; expected at most 144",
        ),
        (packed(np.zeros((4, 4, 3), np.uint8), "rgb8", height=5), "too short"),
        (packed(np.zeros((4, 4, 3), np.uint8), "rgb8", height=0), "empty"),
        (packed(np.zeros((4, 4, 3), np.uint8), "what?"), "unknown encoding"),
    ],
    # The data would be part of the names, and gzip writes the time into it: two workers would collect other tests.
    ids=itertools.count(),
)
def test_damage(data, words):
    with pytest.raises(ImageError, match=words):
        decode_any(message(data))


@given(st.integers(0, len(GOOD)), st.binary(max_size=40))
def test_any_bytes(place, more):
    """Nothing but an ImageError comes of damaged bytes."""
    try:
        assert decode_any(message(GOOD[:place] + more)).dtype == np.uint8
    except ImageError as err:
        assert "\n" not in str(err)
