# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays, compared with formulas written out here; bad ones refused with a reason."""

from __future__ import annotations

import io
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import PIL.Image
import pytest
from bags.files import GREY, GREY_ALPHA, INDEXED, RGB, RGBA, jpeg_file, png_file, smooth_picture
from hypothesis import given, settings
from hypothesis import strategies as st

from vtseg_ros.bags.image_messages import (
    ENCODINGS,
    MAX_PIXELS,
    ImageDecoder,
    decode_any,
    decode_compressed,
    decode_float,
    decode_image,
)
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.errors import ImageError

BYTES_PER_PIXEL = {
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "mono8": 1,
    "mono16": 2,
    "yuv422": 2,
    "uyvy": 2,
    "yuv422_yuy2": 2,
    "yuyv": 2,
    "rgb16": 6,
    "bgr16": 6,
    "rgba16": 8,
    "bgra16": 8,
    "bayer_rggb16": 2,
    "bayer_bggr16": 2,
    "bayer_gbrg16": 2,
    "bayer_grbg16": 2,
}


def message(rows: np.ndarray, encoding: str, width: int, height: int, *, big: bool = False, padding: int = 0):
    """A message whose rows end in `padding` bytes of rubbish."""
    rows = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAB)
    return SimpleNamespace(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(big),
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def rgb_of(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """ITU-R BT.601, studio range: (H, W) each -> (H, W, 3) uint8."""
    y, u, v = 1.164383 * (y.astype(float) - 16), u.astype(float) - 128, v.astype(float) - 128
    rgb = np.stack([y + 1.596027 * v, y - 0.391762 * u - 0.812968 * v, y + 2.017232 * u], axis=2)
    return np.clip(np.round(rgb), 0, 255).astype(np.uint8)


def close(found: np.ndarray, expected: np.ndarray, tolerance: int) -> bool:
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= tolerance


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 2**32 - 1)


@given(size=sizes, seed=seeds, padding=st.integers(0, 5))
@settings(max_examples=30)
def test_plain_encodings(size, seed, padding):
    height, width = size
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, (height, width, 1), dtype=np.uint8)
    rows = {
        "rgb8": rgb,
        "bgr8": rgb[..., ::-1],
        "rgba8": np.concatenate([rgb, alpha], axis=2),
        "bgra8": np.concatenate([rgb[..., ::-1], alpha], axis=2),
    }
    for encoding, pixels in rows.items():
        found = decode_image(message(pixels, encoding, width, height, padding=padding))
        assert found.dtype == np.uint8 and found.flags.c_contiguous
        np.testing.assert_array_equal(found, rgb)
    gray = rgb[..., 0]
    found = decode_image(message(gray, "mono8", width, height, padding=padding))
    np.testing.assert_array_equal(found, np.repeat(gray[..., None], 3, axis=2))


@given(size=sizes, seed=seeds, padding=st.integers(0, 3), big=st.booleans())
@settings(max_examples=30)
def test_mono16_is_divided_by_257_in_both_byte_orders(size, seed, padding, big):
    deep = np.random.default_rng(seed).integers(0, 65536, size)
    rows = deep.astype(">u2" if big else "<u2")
    found = decode_image(message(rows, "mono16", size[1], size[0], big=big, padding=padding))
    expected = np.floor(deep / 257 + 0.5).astype(np.uint8)  # k + 0.5 cannot occur: 257 is odd
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=2))


@given(size=sizes, seed=seeds, padding=st.integers(0, 3))
@settings(max_examples=30)
def test_packed_yuv(size, seed, padding):
    height, width = size[0], 2 * size[1]
    rng = np.random.default_rng(seed)
    y = rng.integers(16, 236, (height, width), dtype=np.uint8)
    u, v = rng.integers(16, 241, (2, height, width // 2), dtype=np.uint8)
    expected = rgb_of(y, np.repeat(u, 2, axis=1), np.repeat(v, 2, axis=1))
    uyvy = np.stack([u, y[:, 0::2], v, y[:, 1::2]], axis=2)
    yuyv = np.stack([y[:, 0::2], u, y[:, 1::2], v], axis=2)
    for encoding, rows in (("yuv422", uyvy), ("uyvy", uyvy), ("yuv422_yuy2", yuyv), ("yuyv", yuyv)):
        found = decode_image(message(rows, encoding, width, height, padding=padding))
        assert close(found, expected, 2), encoding


@given(size=sizes, seed=seeds, padding=st.integers(0, 3))
@settings(max_examples=30)
def test_planar_yuv(size, seed, padding):
    height, width = 2 * size[0], 2 * size[1]
    rng = np.random.default_rng(seed)
    y = rng.integers(16, 236, (height, width), dtype=np.uint8)
    u, v = rng.integers(16, 241, (2, height // 2, width // 2), dtype=np.uint8)
    expected = rgb_of(y, u.repeat(2, 0).repeat(2, 1), v.repeat(2, 0).repeat(2, 1))
    for encoding, pair in (("nv12", (u, v)), ("nv21", (v, u))):
        chroma = np.stack(pair, axis=2).reshape(height // 2, width)
        found = decode_image(message(np.vstack([y, chroma]), encoding, width, height, padding=padding))
        assert close(found, expected, 2), encoding


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer(pattern, rng):
    """Away from the border: a pixel keeps its own sample, the other two channels are their neighbours' means."""
    height, width = 12, 16
    mosaic = rng.integers(0, 256, (height, width), dtype=np.uint8)
    channel = np.array(
        [["rgb".index(pattern[2 * (r % 2) + c % 2]) for c in range(width)] for r in range(height)]
    )
    expected = np.zeros((height, width, 3))
    for r in range(1, height - 1):
        for c in range(1, width - 1):
            near = channel[r - 1 : r + 2, c - 1 : c + 2]
            samples = mosaic[r - 1 : r + 2, c - 1 : c + 2]
            for wanted in range(3):
                own = channel[r, c] == wanted
                # A green pixel has greens at its corners too, and is not averaged with them.
                expected[r, c, wanted] = mosaic[r, c] if own else samples[near == wanted].mean()
    found = decode_image(message(mosaic, f"bayer_{pattern}8", width, height, padding=3))
    assert close(found[1:-1, 1:-1], np.round(expected[1:-1, 1:-1]).astype(int), 1)


def test_every_encoding_of_the_interface_is_known():
    assert set(ENCODINGS) == {
        "rgb8",
        "bgr8",
        "rgba8",
        "bgra8",
        "mono8",
        "mono16",
        "bayer_rggb8",
        "bayer_bggr8",
        "bayer_gbrg8",
        "bayer_grbg8",
        "bayer_rggb16",
        "bayer_bggr16",
        "bayer_gbrg16",
        "bayer_grbg16",
        "rgb16",
        "bgr16",
        "rgba16",
        "bgra16",
        "yuv422",
        "uyvy",
        "yuv422_yuy2",
        "yuyv",
        "nv21",
        "nv12",
        "nv24",
    }


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lies_of_every_encoding_are_refused(encoding):
    width, height = 8, 4
    row = width * BYTES_PER_PIXEL.get(encoding, 1)
    rows = height * {"nv12": 3, "nv21": 3, "nv24": 6}.get(encoding, 2) // 2
    good = dict(height=height, width=width, encoding=encoding, is_bigendian=0, step=row)
    data = np.zeros(rows * row, np.uint8)
    assert decode_image(SimpleNamespace(**good, data=data)).shape == (height, width, 3)
    assert decode_image(SimpleNamespace(**good, data=data.tobytes())).shape == (height, width, 3)
    for change, words in (
        ({"data": data[:-1]}, "too short"),
        ({"data": data[:0]}, "too short"),
        ({"step": row - 1}, "step is too small"),
        ({"step": 2**31, "data": data}, "too short"),
        ({"height": 0}, "empty"),
        ({"width": 0}, "empty"),
        ({"height": 2**31, "width": 2**31}, "at most"),
        ({"encoding": "32FC1"}, "unknown encoding '32FC1'; expected rgb8"),
        ({"encoding": ""}, "unknown encoding"),
        ({"encoding": "x" * 10_000}, "x" * 38),
    ):
        with pytest.raises(ImageError, match=words) as refused:
            decode_image(SimpleNamespace(**{**good, "data": data, **change}))
        assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("encoding", "width", "height"),
    [("yuyv", 7, 4), ("nv12", 8, 3), ("bayer_rggb8", 7, 4), ("bayer_rggb8", 2, 2)],
)
def test_sides_that_colours_cannot_be_shared_on_are_refused(encoding, width, height):
    with pytest.raises(ImageError, match="even"):
        decode_image(message(np.zeros((height * 2, width * 2), np.uint8), encoding, width, height))


@given(
    encoding=st.sampled_from(ENCODINGS),
    height=st.integers(0, 40),
    width=st.integers(0, 40),
    step=st.integers(0, 200),
    size=st.integers(0, 4000),
    big=st.integers(0, 1),
)
@settings(max_examples=300)
def test_any_fields_give_an_image_or_an_image_error(encoding, height, width, step, size, big):
    made = SimpleNamespace(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=big,
        step=step,
        data=np.zeros(size, np.uint8),
    )
    try:
        assert decode_image(made).shape == (height, width, 3)
    except ImageError:
        pass


def compressed(payload: bytes, fmt: str = "jpeg"):
    return SimpleNamespace(format=fmt, data=np.frombuffer(payload, np.uint8))


def picture(rng) -> np.ndarray:
    smooth = cv2.resize(
        rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), (48, 32), interpolation=cv2.INTER_CUBIC
    )
    return np.ascontiguousarray(smooth)


def test_compressed_images_by_another_decoder(rng, tmp_path):
    import io

    from PIL import Image

    rgb = picture(rng)
    for fmt, tolerance in (("png", 0), ("jpeg", 4)):
        payload = io.BytesIO()
        Image.fromarray(rgb).save(payload, fmt, **({"quality": 95} if fmt == "jpeg" else {}))
        expected = np.asarray(Image.open(payload).convert("RGB"))
        found = decode_any(compressed(payload.getvalue(), fmt))
        assert close(found, expected.astype(int), tolerance)


def test_a_giant_picture_in_a_small_file_is_refused_before_it_is_decoded(rng):
    png = bytearray(cv2.imencode(".png", picture(rng))[1].tobytes())
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match=f"claims 60000x60000 px; expected at most {MAX_PIXELS}"):
        decode_compressed(compressed(bytes(png)))
    jpeg = bytearray(cv2.imencode(".jpg", picture(rng))[1].tobytes())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = (65_000).to_bytes(2, "big") * 2
    with pytest.raises(ImageError, match="claims 65000x65000 px"):
        decode_compressed(compressed(bytes(jpeg)))
    jpeg[frame + 5 : frame + 9] = bytes(4)
    with pytest.raises(ImageError, match="empty"):
        decode_compressed(compressed(bytes(jpeg)))


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_a_file_cut_anywhere_is_refused(rng, kind):
    payload = cv2.imencode(kind, picture(rng))[1].tobytes()
    for length in range(0, len(payload) - 4, 7):
        with pytest.raises(ImageError):
            decode_compressed(compressed(payload[:length]))


@given(
    data=st.binary(max_size=200), prefix=st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
)
@settings(max_examples=200)
def test_any_bytes_give_an_image_or_an_image_error(data, prefix):
    for ending in (b"", b"\xff\xd9", b"IEND\xaeB`\x82"):
        try:
            decode_compressed(compressed(prefix + data + ending))
        except ImageError:
            pass


@given(seed=seeds, kind=st.sampled_from([".jpg", ".png"]), flips=st.integers(1, 5))
@settings(max_examples=100)
def test_flipped_bytes_give_an_image_or_an_image_error(seed, kind, flips):
    rng = np.random.default_rng(seed)
    payload = bytearray(cv2.imencode(kind, picture(rng))[1].tobytes())
    for place in rng.integers(0, len(payload), flips):
        payload[place] ^= int(rng.integers(1, 256))
    try:
        assert decode_compressed(compressed(bytes(payload))).ndim == 3
    except ImageError:
        pass


VIDEO = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(range(250)) * 8


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
@pytest.mark.parametrize(
    "behind",
    [
        b"\xff\xd9",
        VIDEO + b"\xff\xd9",
        b"\xff\xd9" + VIDEO,
        VIDEO + b"\xff\xd9" + VIDEO,
        bytes(999) + b"\xff\xd9",
        b"\xff\xd9" + bytes(999),
    ],
)
def test_a_cut_jpeg_is_refused_even_with_an_end_behind_it(behind, options):
    """The data ends before the image does, whatever bytes follow."""
    whole = jpeg_file(smooth_picture(1, (96, 64)), *options)
    first = whole.rindex(b"\xff\xda") + 14
    for length in range(first, len(whole) - 40, 29):
        with pytest.raises(ImageError, match="truncated"):
            decode_compressed(compressed(whole[:length] + behind))


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    seed=seeds,
    flat=st.booleans(),
    tail=st.binary(max_size=9),
)
@settings(max_examples=100)
def test_no_whole_jpeg_is_taken_for_a_cut_one(width, height, seed, flat, tail):
    rgb = np.full((height, width, 3), seed % 256, np.uint8) if flat else smooth_picture(seed, (width, height))
    for options in ((), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)):
        whole = jpeg_file(rgb, *options)
        expected = np.asarray(PIL.Image.open(io.BytesIO(whole)).convert("RGB"))
        for data in (whole, whole + tail, whole + bytes(500)):
            assert close(decode_compressed(compressed(data)), expected.astype(int), 4)


def test_jpegs_of_other_colours_by_another_decoder():
    """Grey, CMYK as Adobe writes it, progressive."""
    rgb = smooth_picture(1, (96, 64))
    for mode, options in (
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0}),
    ):
        payload = io.BytesIO()
        PIL.Image.fromarray(rgb).convert(mode).save(payload, "JPEG", quality=95, **options)
        expected = np.asarray(PIL.Image.open(payload).convert("RGB")).astype(int)
        found = decode_compressed(compressed(payload.getvalue()))
        assert np.abs(found.astype(int) - expected).mean() < 3, mode


def test_labels(rng):
    ids = rng.integers(0, 256, (5, 7), dtype=np.uint8)
    np.testing.assert_array_equal(decode_label(message(ids, "mono8", 7, 5, padding=2)), ids)
    for big in (False, True):
        rows = ids.astype(">u2" if big else "<u2")
        np.testing.assert_array_equal(decode_label(message(rows, "mono16", 7, 5, big=big)), ids)
    deep = ids.astype(np.uint16)
    for pixels in (ids, deep):
        payload = cv2.imencode(".png", pixels)[1].tobytes()
        np.testing.assert_array_equal(decode_label(compressed(payload, "png")), ids)
    deep[2, 3] = 300
    with pytest.raises(ImageError, match="class id out of range; expected 0..255, got 300"):
        decode_label(message(deep, "mono16", 7, 5))
    with pytest.raises(ImageError, match="mono8 or mono16, got 'yuyv'"):
        decode_label(message(np.zeros((5, 16), np.uint8), "yuyv", 8, 5))
    with pytest.raises(ImageError, match="one channel of class ids, got 3"):
        decode_label(compressed(cv2.imencode(".png", picture(rng))[1].tobytes(), "png"))
    with pytest.raises(ImageError, match="jpeg, which changes class ids"):
        decode_label(compressed(cv2.imencode(".jpg", ids)[1].tobytes()))


@pytest.mark.parametrize("big", [False, True])
def test_depth_and_flow(rng, big):
    flow = rng.normal(size=(5, 6, 2)).astype(np.float32)
    rows = flow.reshape(5, 12).astype(">f4" if big else "<f4")
    np.testing.assert_array_equal(decode_float(message(rows, "32FC2", 6, 5, big=big, padding=4), 2), flow)
    depth = flow[..., 0]
    rows = depth.astype(">f4" if big else "<f4")
    np.testing.assert_array_equal(decode_float(message(rows, "32FC1", 6, 5, big=big), 1), depth)
    with pytest.raises(ImageError, match="32FC2, got '32FC1'"):
        decode_float(message(rows, "32FC1", 6, 5), 2)


def turned_jpeg(image: np.ndarray) -> bytes:
    """A jpeg with an EXIF orientation of 90 degrees, as phones write them."""
    buffer, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(image).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def test_exif_does_not_turn_a_cameras_image():
    """Its label, its intrinsics and the size in its header belong to the pixels as they are stored."""
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 200
    decoded = decode_compressed(compressed(np.frombuffer(turned_jpeg(image), np.uint8)))
    assert decoded.shape == image.shape and np.abs(decoded.astype(int) - image).max() < 20


class Warnings(list):
    """Texts of warnings, in order."""

    def decoder(self) -> ImageDecoder:
        return ImageDecoder("/camera", self.append)


@given(size=sizes, seed=seeds, padding=st.integers(0, 5), big=st.booleans())
@settings(max_examples=30)
def test_colours_of_16_bits(size, seed, padding, big):
    deep = np.random.default_rng(seed).integers(0, 65536, (*size, 4))
    expected = np.floor(deep[..., :3] / 257 + 0.5).astype(np.uint8)
    for encoding, order in (
        ("rgb16", [0, 1, 2]),
        ("bgr16", [2, 1, 0]),
        ("rgba16", [0, 1, 2, 3]),
        ("bgra16", [2, 1, 0, 3]),
    ):
        rows = deep[..., order].astype(">u2" if big else "<u2")
        found = decode_image(message(rows, encoding, size[1], size[0], big=big, padding=padding))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_of_16_bits_is_the_same_picture(pattern, rng):
    mosaic = rng.integers(0, 256, (12, 16), dtype=np.uint8)
    eight = decode_image(message(mosaic, f"bayer_{pattern}8", 16, 12))
    wide = decode_image(message(mosaic.astype("<u2") * 257, f"bayer_{pattern}16", 16, 12))
    assert close(wide, eight.astype(int), 1)


@given(size=sizes, seed=seeds, padding=st.integers(0, 3))
@settings(max_examples=30)
def test_nv24(size, seed, padding):
    """Luma rows, then rows of a U and a V for every pixel, twice as long with twice the padding."""
    rng = np.random.default_rng(seed)
    y = rng.integers(16, 236, size, dtype=np.uint8)
    u, v = rng.integers(16, 241, (2, *size), dtype=np.uint8)
    luma = np.pad(y, ((0, 0), (0, padding)))
    chroma = np.pad(np.stack([u, v], axis=2).reshape(size[0], -1), ((0, 0), (0, 2 * padding)))
    made = SimpleNamespace(
        height=size[0],
        width=size[1],
        encoding="nv24",
        is_bigendian=0,
        step=luma.shape[1],
        data=np.concatenate([luma.ravel(), chroma.ravel()]),
    )
    assert close(decode_image(made), rgb_of(y, u, v), 2)


@pytest.mark.parametrize(
    ("encoding", "same"),
    [("8UC1", "mono8"), ("8UC3", "bgr8"), ("8UC4", "bgra8"), ("16UC1", "mono16"), ("16UC3", "bgr16")],
)
def test_names_of_opencv_types_are_taken_with_one_warning(encoding, same, rng):
    rows = rng.integers(0, 256, (6, 8 * BYTES_PER_PIXEL[same]), dtype=np.uint8)
    told = Warnings()
    decode = told.decoder()
    for _ in range(3):
        found = decode(message(rows, encoding, 8, 6))
    np.testing.assert_array_equal(found, decode_image(message(rows, same, 8, 6)))
    assert len(told) == 1 and f"encoding='{same}'" in told[0] and told[0].startswith("/camera: ")


@pytest.mark.parametrize("encoding", ["RGB8", " rgb8 ", "Rgb8"])
def test_case_and_blanks_do_not_matter(encoding, rng):
    rows = rng.integers(0, 256, (4, 18), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(message(rows, encoding, 6, 4)).reshape(4, 18), rows)


@pytest.mark.parametrize("encoding", ["8UC2", "32FC3", "jpeg", "yuv420p"])
def test_what_cannot_be_guessed_is_refused_with_advice(encoding):
    with pytest.raises(ImageError, match="Set one of them where the image is published"):
        decode_image(message(np.zeros((4, 64), np.uint8), encoding, 4, 4))


class TestStep:
    """Steps that drivers set, of an 8x4 image."""

    def planes(self, rng, stride: int):
        rows = rng.integers(16, 236, (6, stride), dtype=np.uint8)
        return rows, decode_image(message(np.ascontiguousarray(rows[:, :8]), "nv12", 8, 4))

    @pytest.mark.parametrize("stride", [8, 12, 16])
    def test_all_planes_divided_by_the_height(self, rng, stride):
        rows, expected = self.planes(rng, stride)
        made = message(rows, "nv12", 8, 4)
        made.step = stride * 3 // 2
        np.testing.assert_array_equal(decode_image(made), expected)

    @pytest.mark.parametrize("encoding", ["rgb8", "bgra8", "mono16", "yuyv", "nv12", "bayer_rggb8"])
    def test_unset_or_in_pixels(self, rng, encoding):
        rows = rng.integers(
            0, 256, (6 if encoding == "nv12" else 4, 8 * BYTES_PER_PIXEL.get(encoding, 1)), dtype=np.uint8
        )
        made = message(rows, encoding, 8, 4)
        expected = decode_image(made)
        for step in (0, 8):
            made.step = step
            np.testing.assert_array_equal(decode_image(made), expected)
        made.data = np.append(made.data, np.uint8(0))  # not its size: nothing says that 0 means packed
        made.step = 0
        with pytest.raises(ImageError, match="step is too small"):
            decode_image(made)

    @pytest.mark.parametrize("step", [1, 7, 9, 13, 100])
    def test_others_are_refused_with_the_one_expected(self, rng, step):
        made = message(self.planes(rng, 8)[0], "nv12", 8, 4)
        made.step = step
        with pytest.raises(ImageError, match="at least 8 bytes|or a step of 8"):
            decode_image(made)


class TestSixteenBits:
    def thermal(self, low: int, high: int) -> np.ndarray:
        return np.linspace(low, high, 32 * 24).astype("<u2").reshape(24, 32)

    @pytest.mark.parametrize("low_high", [(7160, 9000), (0, 4095), (100, 16000), (60000, 65535)])
    def test_a_range_that_is_hardly_used_is_told_once(self, low_high):
        told = Warnings()
        decode = told.decoder()
        values = self.thermal(*low_high)
        for _ in range(3):
            raw = decode(message(values, "mono16", 32, 24))
            file = decode(compressed(cv2.imencode(".png", values)[1].tobytes(), "mono16; png compressed "))
            np.testing.assert_array_equal(raw, file)
        assert len(told) == 1 and f"values {low_high[0]} to {low_high[1]}" in told[0]
        np.testing.assert_array_equal(raw[..., 0], np.floor(values / 257 + 0.5))

    def test_a_range_that_is_used_is_not(self):
        told = Warnings()
        told.decoder()(message(self.thermal(3000, 50000), "mono16", 32, 24))
        assert not told


def test_other_formats_are_named():
    for suffix in ("webp", "bmp", "tiff"):
        data = cv2.imencode(f".{suffix}", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
        with pytest.raises(ImageError, match=f"expected jpeg or png, got a {suffix} image"):
            decode_compressed(compressed(data))


class TestImagesOfClassIds:
    """Topics of labels have the types of images, so one may be chosen by mistake."""

    def test_they_are_told_once(self):
        told = Warnings()
        decode = told.decoder()
        ids = np.arange(32 * 24, dtype=np.uint8).reshape(24, 32) % 14
        for _ in range(3):
            decode(message(ids, "mono8", 32, 24))
            decode(compressed(cv2.imencode(".png", ids)[1].tobytes(), "mono8; png compressed "))
        assert len(told) == 1 and "only values up to 13 of 255, like an image of class ids" in told[0]

    def test_a_grey_camera_is_not_told(self):
        told = Warnings()
        image = (np.arange(32 * 24) % 256).astype(np.uint8).reshape(24, 32)
        told.decoder()(message(image, "mono8", 32, 24))
        told.decoder()(compressed(cv2.imencode(".png", image)[1].tobytes(), "mono8; png compressed "))
        told.decoder()(message(np.zeros((24, 32, 3), np.uint8), "rgb8", 32, 24))
        told.decoder()(message(np.zeros((24, 32), np.uint8), "mono8", 32, 24))  # of a covered lens
        assert not told


class TestBayerFiles:
    @pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
    def test_a_mosaic_in_a_png(self, pattern, rng):
        mosaic = rng.integers(0, 256, (12, 16), dtype=np.uint8)
        told = Warnings()
        file = compressed(cv2.imencode(".png", mosaic)[1].tobytes(), f"bayer_{pattern}8; png compressed ")
        expected = decode_image(message(mosaic, f"bayer_{pattern}8", 16, 12))
        np.testing.assert_array_equal(told.decoder()(file), expected)
        assert not told

    def test_a_mosaic_that_went_through_jpeg_is_told(self):
        mosaic = smooth_picture(1)[..., 0]
        told = Warnings()
        decode = told.decoder()
        for _ in range(2):
            decode(compressed(jpeg_file(mosaic), "bayer_rggb8; jpeg compressed "))
        assert len(told) == 1 and "lost part of its colours" in told[0]

    def test_colours_that_were_made_before_the_compression_stay(self):
        rgb = smooth_picture(1)
        file = compressed(
            cv2.imencode(".png", rgb[..., ::-1])[1].tobytes(), "bayer_rggb8; png compressed bgr8"
        )
        np.testing.assert_array_equal(decode_any(file), rgb)


class TestLabels:
    """Class ids as simulators and converters publish them."""

    ids = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7) % 4

    def packed(self, encoding: str, channel: int | None, alpha: int | np.ndarray = 255):
        letters = encoding.removesuffix("8")
        pixels = np.zeros((5, 7, len(letters)), np.uint8)
        for place, letter in enumerate(letters):
            if letter == "a":
                pixels[..., place] = alpha
            elif channel is None or "rgb".index(letter) == channel:
                pixels[..., place] = self.ids
        return message(pixels, encoding, 7, 5)

    @pytest.mark.parametrize("channel", [0, 1, 2, None])
    @pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
    def test_ids_in_one_channel_or_in_all(self, encoding, channel):
        told = Warnings()
        decode = told.decoder()
        for alpha in (255, 0):
            np.testing.assert_array_equal(decode.label(self.packed(encoding, channel, alpha)), self.ids)
        assert len(told) == (channel is not None)
        assert channel is None or ("red", "green", "blue")[channel] in told[0]

    def test_channels_that_differ_are_refused(self, rng):
        rows = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
        with pytest.raises(
            ImageError,
            match="channels of the label differ; .*got 3 channels of bgra8. Publish the class ids as mono8",
        ):
            decode_label(message(rows, "bgra8", 7, 5))

    def test_alpha_decides_where_it_differs(self):
        alpha = np.full((5, 7), 255, np.uint8)
        alpha[1] = 0
        expected = np.where(alpha == 0, 255, self.ids)
        np.testing.assert_array_equal(decode_label(self.packed("rgba8", 0, alpha)), expected)
        alpha[2, 3] = 100
        with pytest.raises(ImageError, match=r"transparent in part \(row 2, column 3\)"):
            decode_label(self.packed("rgba8", 0, alpha))

    @pytest.mark.parametrize("big", [False, True])
    @pytest.mark.parametrize(("encoding", "kind"), [("16SC1", "i2"), ("32SC1", "i4"), ("16UC1", "u2")])
    def test_signed_and_wide_ids(self, encoding, kind, big):
        rows = self.ids.astype(f"{'>' if big else '<'}{kind}")
        np.testing.assert_array_equal(decode_label(message(rows, encoding, 7, 5, big=big)), self.ids)
        rows[0, 0] = 256 if kind == "u2" else -1
        with pytest.raises(ImageError, match="class id out of range; expected 0..255, got "):
            decode_label(message(rows, encoding, 7, 5, big=big))

    @pytest.mark.parametrize("interlaced", [False, True])
    @pytest.mark.parametrize(
        ("color_type", "depth"),
        [
            (GREY, 2),
            (GREY, 4),
            (GREY, 8),
            (GREY, 16),
            (INDEXED, 2),
            (INDEXED, 4),
            (INDEXED, 8),
            (RGB, 8),
            (RGBA, 8),
            (GREY_ALPHA, 8),
        ],
    )
    def test_png_files_of_every_kind(self, color_type, depth, interlaced):
        channels = {RGB: 3, RGBA: 4, GREY_ALPHA: 2}.get(color_type, 1)
        pixels = np.repeat(self.ids[..., None], channels, axis=2)
        if channels % 2 == 0:
            pixels[..., -1] = 255
        palette = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)] if color_type == INDEXED else ()
        file = png_file(pixels, color_type, depth, palette=palette, interlaced=interlaced)
        told = Warnings()
        np.testing.assert_array_equal(told.decoder().label(compressed(file, "png")), self.ids)
        assert len(told) == (color_type == INDEXED)
