# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Bad image messages against the conversions: each is accepted and right, or refused with a reason."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from faults import lies
from hypothesis import given, settings
from hypothesis import strategies as st

from vtseg_ros.bags.image_messages import decode_any, decode_compressed, decode_float, decode_image
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.errors import ImageError

MUTATED, DAMAGED = 20_000, 4_000


def compressed(data: bytes | np.ndarray, kind: str = "png") -> SimpleNamespace:
    array = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    return SimpleNamespace(format=kind, data=array)


@pytest.fixture
def traced() -> Iterator[Callable[[], int]]:
    """Peak bytes that Python and NumPy allocated so far in the test."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_mutated_images_are_right_or_refused(rng, traced):
    """Accepted exactly if the fields describe an image, and then equal to it; no message uses the memory that it claims."""
    told: Counter[str] = Counter()
    for _ in range(MUTATED):
        message = lies.lie(rng, lies.good(rng))
        try:
            rgb = decode_image(message)
        except ImageError as err:
            assert not lies.is_true(message), (vars(message), err)
            told[" ".join(str(err).split()[:2])] += 1
            continue
        assert lies.is_true(message), vars(message)
        expected = lies.picture_of(message)
        assert np.array_equal(rgb, decode_image(lies.unpadded(message)) if expected is None else expected)
        assert rgb.shape == (message.height, message.width, 3) and rgb.dtype == np.uint8
        told["accepted"] += 1
    assert sum(told.values()) == MUTATED and told["accepted"] > MUTATED // 10 and len(told) >= 6, told
    assert traced() < 8_000_000, "for messages of at most 10 kB"


FIELDS = st.one_of(st.integers(0, 40), st.sampled_from(lies.EXTREMES), st.integers(0, lies.U32))


@settings(max_examples=1500)
@given(
    height=FIELDS,
    width=FIELDS,
    step=FIELDS,
    is_bigendian=st.integers(0, 255),
    data=st.binary(max_size=400),
    encoding=st.one_of(
        st.sampled_from(list(lies.BYTES)), st.sampled_from(lies.FOREIGN), st.text(max_size=20)
    ),
)
def test_any_fields_are_right_or_refused(height, width, step, is_bigendian, data, encoding):
    message = SimpleNamespace(
        height=height,
        width=width,
        step=step,
        encoding=encoding,
        is_bigendian=is_bigendian,
        data=np.frombuffer(data, np.uint8),
    )
    try:
        assert decode_image(message).shape == (height, width, 3)
        accepted = True
    except ImageError as err:
        accepted = False
        assert 0 < len(str(err)) < 600
    assert accepted == lies.is_true(message)
    for decode, kinds in (
        (
            decode_label,
            ("mono8", "mono16", "8UC1", "16UC1", "16SC1", "32SC1", *(e for e in lies.BYTES if "8" in e)),
        ),
        (lambda m: decode_float(m, 1), ("32FC1",)),
    ):
        try:
            assert decode(message).shape[:2] == (height, width) and encoding in kinds
        except ImageError:
            pass


@settings(max_examples=500)
@given(
    start=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8", b"\xff\xd8\xff\xc0"]
    ),
    middle=st.binary(max_size=200),
    end=st.sampled_from([b"", b"\xff\xd9", b"\0\0\0\0IEND\xaeB`\x82"]),
)
def test_any_file_is_decoded_or_refused(start, middle, end):
    try:
        assert decode_any(compressed(start + middle + end)).ndim == 3
    except ImageError as err:
        assert str(err)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_damaged_files_are_right_or_refused(rng, kind):
    """A png has checksums, so it is decoded correctly or rejected; a jpeg has none: if it decodes, its size is the declared one."""
    rgb = cv2.resize(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), (32, 24))
    whole = cv2.imencode(f".{kind}", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    undamaged = decode_compressed(compressed(whole, kind))
    told: Counter[str] = Counter()
    for _ in range(DAMAGED):
        data = lies.damage(rng, whole)
        try:
            got = decode_compressed(compressed(data, kind))
        except ImageError:
            told["refused"] += 1
            continue
        told["accepted"] += 1
        assert got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3
        if kind == "png":
            assert np.array_equal(got, undamaged), "damaged and accepted"
    assert sum(told.values()) == DAMAGED and told["refused"] > DAMAGED // 10, told


BOMBS = {
    "png 65500 x 65500": lies.png_file(65500, 65500, b""),
    "png 2^31-1 x 1": lies.png_file(2**31 - 1, 1, b""),
    "png 2^32-1 x 2^32-1": lies.png_file(lies.U32, lies.U32, b""),
    "png whose second header is a giant": lies.png_file(
        8, 8, bytes(200), b"IHDR" + lies.png_file(60000, 60000, b"")[16:29]
    ),
    "jpeg 65500 x 65500": b"\xff\xd8\xff\xc0\x00\x11\x08"
    + b"\xff\xdc\xff\xdc"
    + b"\x03"
    + bytes(40)
    + b"\xff\xd9",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_decoding(name, traced):
    started = time.process_time()
    with pytest.raises(ImageError):
        decode_any(compressed(BOMBS[name]))
    assert traced() < 1_000_000 and time.process_time() - started < 1.0


def test_a_jpeg_of_thousands_of_scans_is_refused():
    """Each progressive scan covers the whole image: 242 kB of VGA would take 8 s."""
    whole = cv2.imencode(".jpg", np.zeros((480, 640, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[
        1
    ].tobytes()
    assert decode_any(compressed(whole)).shape == (480, 640, 3)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="too many scans"):
        decode_any(compressed(whole[:-2] + last * 20_000 + b"\xff\xd9"))


def test_not_a_number_stays_and_byte_orders_agree(rng):
    """NaN is "not measured" in a depth image (REP 118) and stays; in a camera image floats are refused."""
    values = rng.normal(size=(6, 5)).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = np.nan
    values[0, 0], values[5, 4] = np.inf, -np.inf
    for order, flag in (("<f4", 0), (">f4", 1)):
        data = np.frombuffer(values.astype(order).tobytes(), np.uint8)
        message = SimpleNamespace(height=6, width=5, encoding="32FC1", step=20, is_bigendian=flag, data=data)
        assert np.array_equal(decode_float(message, 1), values, equal_nan=True)
        with pytest.raises(ImageError, match="unknown encoding '32FC1'"):
            decode_image(message)


def test_wrong_byte_order_is_refused_in_labels():
    """Class id 5 read in the wrong order is 1280: not a class."""
    data = np.frombuffer(np.full((4, 4), 5, "<u2").tobytes(), np.uint8)
    message = SimpleNamespace(height=4, width=4, encoding="mono16", step=8, is_bigendian=0, data=data)
    assert (decode_label(message) == 5).all()
    message.is_bigendian = 1
    with pytest.raises(ImageError, match="1280"):
        decode_label(message)
