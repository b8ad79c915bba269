# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Sequences through `VideoPredictor.stream`: arrays, folders, bags, videos, and what the results offer."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import vtseg_ros
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.inference.predictor import EMPTY, Result
from vtseg_ros.inference.sources import image_files
from vtseg_ros.label_set import STREET


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint):
    return vtseg_ros.VideoPredictor(tiny_checkpoint, device="cpu", window=2)


def pictures(count):
    return list(np.random.default_rng(2).integers(0, 256, (count, 40, 72, 3), dtype=np.uint8))


def test_arrays_are_one_clip(predictor):
    images = pictures(4)
    results = list(predictor.stream(images))
    assert [result.frames_in_window for result in results] == [1, 2, 2, 2]
    expected = [predictor.step(image) for image in images]
    assert all(np.array_equal(one.mask, other.mask) for one, other in zip(results, expected, strict=True))
    predictor.reset()
    assert [result.frames_in_window for result in predictor.stream(images[:1])] == [1]


def test_a_folder_in_the_order_of_its_names(predictor, tmp_path):
    images = pictures(3)
    for name, image in zip(("frame2.png", "frame10.png", "frame1.png"), images):
        cv2.imwrite(str(tmp_path / name), image[..., ::-1])
    (tmp_path / "frame3.png").write_bytes(b"no image")
    results = list(predictor.stream(tmp_path))
    assert [result.error is None for result in results] == [True, True, False, True]
    assert isinstance(results[2].error, ImageError) and "frame3.png" in str(results[2].error)
    shown = [result.image for result in results if result.error is None]
    assert all(np.array_equal(a, b) for a, b in zip(shown, (images[2], images[0], images[1]), strict=True))


def test_a_bag(predictor, street_bag):
    results = list(predictor.stream(street_bag))
    assert len(results) == 30 and results[0].mask.shape == (64, 128)
    assert {result.frames_in_window for result in results} == {1, 2}


def test_a_video(predictor, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "drive.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 72, 40, "yuv420p"
        for image in pictures(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    results = list(predictor.stream(tmp_path / "drive.mp4"))
    assert [result.frames_in_window for result in results] == [1, 2, 2]


def test_sources_that_cannot_be_read(predictor, tmp_path):
    for source in ("nowhere", "empty", "text.txt"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "text.txt").write_text("no video")
        with pytest.raises(ConfigError):
            list(predictor.stream(tmp_path / source))


def test_an_overlay_by_hand(predictor):
    image = np.full((1, 2, 3), 100, np.uint8)
    result = Result(np.array([[0, 255]], np.uint8), EMPTY, 1, labels=STREET, image=image)
    half = [round(50 + channel / 2) for channel in STREET.colors[0]]
    assert np.abs(result.overlay().astype(int) - [[half, [100] * 3]]).max() <= 1
    assert np.array_equal(result.overlay(alpha=0.0), image)
    assert predictor.step(image).labels is predictor.labels
    with pytest.raises(ConfigError, match="expected a processed frame"):
        Result(EMPTY, EMPTY, 0, dropped="late").overlay()


def test_images_of_other_formats_are_reported(tmp_path, caplog):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.HEIC").write_bytes(b"ftypheic")
    for source in (tmp_path / "photos", f"{tmp_path}/photos/*"):
        with pytest.raises(ConfigError, match=r"no image; .*, got 1 of \.heic\. Convert them to png or jpeg"):
            image_files(source)
    cv2.imwrite(str(tmp_path / "photos" / "2.jpg"), np.zeros((8, 8, 3), np.uint8))
    for source in (tmp_path / "photos", f"{tmp_path}/photos/*"):
        caplog.clear()
        assert image_files(source) == [tmp_path / "photos" / "2.jpg"]
        assert "images left out" in caplog.text and "1 of .heic" in caplog.text


def test_a_glob_and_a_bare_storage_file(predictor, street_bag, tmp_path):
    (tmp_path / "a").mkdir()
    images = pictures(3)
    for name, image in zip(("a/10.png", "a/9.png", "b.png"), images):
        cv2.imwrite(str(tmp_path / name), image[..., ::-1])
    shown = [result.image for result in predictor.stream(f"{tmp_path}/**/[0-9]*.png")]
    assert all(np.array_equal(a, b) for a, b in zip(shown, (images[1], images[0]), strict=True))
    with pytest.raises(ConfigError, match="no image; expected files of .png"):
        list(predictor.stream(f"{tmp_path}/*.jpg"))
    (file,) = street_bag.glob("*.mcap")
    assert len(list(predictor.stream(file))) == 30
