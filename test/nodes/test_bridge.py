"""cv_bridge and our own conversions give the same arrays; a broken one is told once and left alone."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("rclpy")

from nodes.encoders import compressed_message, image_message, picture

from vtseg_ros.data.images import ENCODINGS, decode_any
from vtseg_ros.errors import ImageError
from vtseg_ros.nodes.bridge import image_decoder


@pytest.mark.parametrize("padding", [0, 1, 12])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_same_arrays_where_cv_bridge_works(encoding, padding):
    cv_bridge = pytest.importorskip("cv_bridge")
    warnings: list[str] = []
    decode = image_decoder(warnings.append)
    if warnings:
        pytest.skip(warnings[0])
    message = image_message(picture(1), encoding, 1, padding=padding)
    assert np.array_equal(decode(message), decode_any(message))
    if padding == 0 and encoding in ("rgb8", "bgr8", "rgba8", "bgra8", "mono8"):
        assert np.array_equal(cv_bridge.CvBridge().imgmsg_to_cv2(message, "rgb8"), decode_any(message))
    short = image_message(picture(1), encoding, 1)
    short.data = short.data[:100]
    with pytest.raises(ImageError, match="too short"):
        decode(short)
    assert decode(compressed_message(picture(2), "png", 1)).shape == picture(2).shape


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise ImportError('numpy.core.multiarray failed to import')", "multiarray failed to import"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it crashes"),
    ],
)
def test_a_broken_cv_bridge_is_told_and_left_alone(source, words, tmp_path, monkeypatch):
    (tmp_path / "cv_bridge.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    warnings: list[str] = []
    assert image_decoder(warnings.append) is decode_any
    assert len(warnings) == 1 and words in warnings[0] and "NumPy and OpenCV" in warnings[0]


def test_without_cv_bridge_nothing_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    warnings: list[str] = []
    assert image_decoder(warnings.append) is decode_any and warnings == []
