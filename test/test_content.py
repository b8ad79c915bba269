# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What errors say a file contains."""

from __future__ import annotations

import os
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtseg_ros.content import START_BYTES, content_of, is_bag_file

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"hi\n", "a text file"),
        (b"BMW drive, PKW\n", "a text file"),  # begins like a bmp image
        (b"\xef\xbb\xbfroad\r\n", "a text file"),
        ("straße\r\n".encode("utf-16"), "a text file"),
        ("straße\n".encode("cp1252"), "a text file"),
        (b"x" * (START_BYTES - 1) + "ä".encode(), "a text file"),  # the last character is cut
        (b"<!DOCTYPE html>\n<html>404", "a web page"),
        (b"  <html>404", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"%PDF-1.4\n", "a pdf document"),
        (b"BM\x36\x00\x00\x00\x00\x00", "a bmp image"),
        (b"PK\x03\x04\x00", "a zip archive"),
        (struct.pack("<Q", 100) + b'{"a":', "a safetensors file"),
        (b"RIFF\x00\x10\x00\x00AVI LIST", "an avi video"),
        (b"\x00\x00\x00\x20ftypisom", "an mp4"),
        (b"\x89MCAP0\r\n\x01\x00", "an mcap bag"),
        (b"SQLite format 3\0\x10\x00", "a sqlite3 database"),
        (b"#ROSBAG V2.0\nE\0\0\0", "a ROS 1 bag"),
        (b"\x00\x01\x02\x03", "unknown content"),
        (b"\x81\xff\x8d", "unknown content"),
    ],
)
def test_words(tmp_path, data, words):
    (tmp_path / "x").write_bytes(data)
    assert words in content_of(tmp_path / "x")


def test_images_that_opencv_writes(tmp_path):
    for suffix in ("png", "jpg", "bmp", "tiff", "webp"):
        path = tmp_path / f"x.{suffix}"
        assert cv2.imwrite(str(path), np.zeros((4, 4, 3), np.uint8))
        assert content_of(path) == f"a {'jpeg' if suffix == 'jpg' else suffix} image"


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    assert content_of(tmp_path / "pipe") == content_of(tmp_path / "link") == "no file"
    assert content_of(tmp_path) == "a folder"
    assert not is_bag_file(tmp_path / "pipe") and not is_bag_file(tmp_path)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_any_text_is_text(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "text"
    path.write_text("notes: " + text, encoding="utf-8")
    assert content_of(path) == "a text file"


@given(st.binary(max_size=600))
def test_any_content_has_words(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "data"
    path.write_bytes(data)
    assert content_of(path).split()[0] in ("a", "an")
