# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Streams: a real RTSP server on loopback, and invalid sources. Without a V4L2 camera, only its errors are tested."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("av")

from video.rtsp_server import SIZE, RtspServer, shades

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.cli import main
from vtseg_ros.errors import ConfigError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.video.live import LiveReader, is_live


def test_what_is_live(tmp_path):
    for source in ("rtsp://host/a", "RTSP://host:1/a", "srt://host:1", "/dev/null"):
        assert is_live(source), source
    for source in ("rtsp:", "drive.mp4", "http://host/a.mp4", "12:30.mp4", str(tmp_path), "\0"):
        assert not is_live(source), source


def test_frames_of_a_stream_with_their_times():
    before = time.time_ns()
    with RtspServer(12, 0.05) as server, LiveReader(server.url) as stream:
        frames = list(stream.frames())
        after = time.time_ns()
        assert not stream.damage and len(frames) + stream.skipped <= 12
    greys = [float(np.median(frame.image)) for frame in frames]
    assert frames[0].image.shape == (SIZE[1], SIZE[0], 3)
    numbers = [int(np.argmin(np.abs(np.array(shades(12)) - grey))) for grey in greys]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 11  # in order, the newest is there
    stamps = [frame.stamp_ns for frame in frames]
    assert before < stamps[0] < after
    # As far apart as the stream says, however late they were read; FFmpeg guesses the first frame's time.
    apart = np.diff(stamps) / np.diff(numbers) / 1e9
    assert np.allclose(apart[1:], 0.05, atol=1e-3) and abs(apart[0] - 0.05) < 0.02


def test_the_newest_frame_for_a_slow_reader():
    with RtspServer(12, 0.01) as server, LiveReader(server.url) as stream:
        frames = stream.frames()
        first = next(frames)
        while not stream._ended:
            time.sleep(0.01)
        rest = list(frames)
        assert len(rest) == 1 and stream.skipped >= 5
        assert np.median(rest[0].image) == pytest.approx(shades(12)[-1], abs=2)
        assert rest[0].stamp_ns > first.stamp_ns


def test_predictor_and_command(tiny_checkpoint, tmp_path):
    predictor = VideoPredictor(tiny_checkpoint, device="cpu", window=2)
    with RtspServer(8, 0.05) as server:
        results = list(predictor.stream(server.url))
    assert results and all(result.mask.shape == (SIZE[1], SIZE[0]) for result in results)
    out = tmp_path / "masks"
    with RtspServer(200, 0.05) as server:
        command = ["segment", server.url, "--frames", "3", "--out", str(out)]
        assert main([*command, "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]) == 0
    with BagReader(out) as bag:
        masks = [message for _, _, message in bag.messages(["/segmentation/mask/compressed"])]
    assert len(masks) == 3 and abs(stamp_of(masks[0]) - time.time_ns()) < 600e9


def test_what_cannot_be_opened(capsys, tmp_path):
    with pytest.raises(ConfigError, match=r"^rtsp://127\.0\.0\.1:1/x: not a stream .*Connection refused"):
        LiveReader("rtsp://127.0.0.1:1/x")
    with pytest.raises(ConfigError, match=r"^/dev/null: not a stream that can be read; expected one"):
        LiveReader("/dev/null")
    assert main(["segment", "rtsp://127.0.0.1:1/x", "--out", str(tmp_path / "masks"), "--resume"]) == 2
    assert "--resume: a stream cannot be read again" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
