# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The video reader: frame times, rotation, names and damage."""

from __future__ import annotations

import builtins
import os
import subprocess

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from video.videofiles import SHADES, write_video

from vtseg_ros.errors import ConfigError
from vtseg_ros.video.reader import VideoReader, is_video, upright

PAUSE_MS = [0, 100, 700, 800, 900]


def read(path, every=1):
    with VideoReader(path) as video:
        return list(video.frames(every)), video


@pytest.mark.parametrize("name", ["a.mp4", "12:31.mp4", "a#b %03d?.mp4", "file:x.mp4"])
def test_times_of_a_video_with_a_pause(tmp_path, name):
    write_video(tmp_path / name, PAUSE_MS)
    frames, video = read(tmp_path / name)
    assert [frame.time_ns for frame in frames] == [t * 1_000_000 for t in PAUSE_MS]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4] and video.frame_count == 5
    for frame, shade in zip(frames, SHADES):
        assert frame.image.shape == (48, 64, 3) and abs(int(frame.image.mean()) - shade) <= 4
    assert not video.damage


def test_a_first_frame_later_than_zero(tmp_path):
    write_video(tmp_path / "a.mp4", [500, 600, 900])
    assert [frame.time_ns // 1_000_000 for frame in read(tmp_path / "a.mp4")[0]] == [0, 100, 400]


def test_every_second_frame(tmp_path):
    write_video(tmp_path / "a.mp4", PAUSE_MS)
    frames, _ = read(tmp_path / "a.mp4", every=2)
    assert [(frame.index, frame.time_ns // 1_000_000) for frame in frames] == [(0, 0), (2, 700), (4, 900)]


def test_a_bare_stream_has_no_times(tmp_path, caplog):
    """FFmpeg gives it 25 Hz; its own header says 10."""
    write_video(tmp_path / "a.mp4", PAUSE_MS)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-r", "10", "-i", str(tmp_path / "a.mp4")]
    subprocess.run([*command, "-c:v", "libx264", "-r", "10", str(tmp_path / "a.h264")], check=True)
    frames, _ = read(tmp_path / "a.h264")
    assert [frame.time_ns // 1_000_000 for frame in frames] == [100 * n for n in range(len(frames))]
    (record,) = caplog.records
    assert "contains no times; 10 Hz is assumed" in record.getMessage()
    caplog.clear()
    advised = [command[0], "-v", "error", "-r", "5", "-i", "a.h264", "out.mp4"]
    subprocess.run(advised, check=True, cwd=tmp_path)
    frames, _ = read(tmp_path / "out.mp4")
    assert [frame.time_ns // 1_000_000 for frame in frames] == [200 * n for n in range(len(frames))]
    assert not caplog.records


def test_gif(tmp_path):
    from PIL import Image

    images = [Image.fromarray(np.full((48, 64, 3), shade, np.uint8)) for shade in SHADES]
    images[0].save(
        tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[100, 600, 100, 100, 100]
    )
    frames, _ = read(tmp_path / "a.gif")
    assert [frame.time_ns // 1_000_000 for frame in frames] == [0, 100, 700, 800, 900]
    assert [int(frame.image.mean()) for frame in frames] == list(SHADES)


def test_avi(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 20, (64, 48))
    for shade in SHADES:
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    frames, video = read(tmp_path / "a.avi")
    assert [frame.time_ns for frame in frames] == [50_000_000 * n for n in range(5)] and video.rate_hz == 20


@pytest.mark.parametrize(
    "options",
    [
        "-display_rotation 90",
        "-display_rotation 180",
        "-display_rotation 270",
        "-display_hflip",
        "-display_vflip",
        "-display_rotation 90 -display_hflip",
    ],
)
def test_frames_are_upright(tmp_path, options):
    flat, turned = tmp_path / "flat.mp4", tmp_path / "turned.mp4"
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = (255, 0, 0)  # red top left
    image[:24, 32:] = (0, 255, 0)  # green top right
    image[24:, :32] = (0, 0, 255)  # blue bottom left
    writer = cv2.VideoWriter(str(flat), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(3):
        writer.write(image[..., ::-1])
    writer.release()
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error"]
    subprocess.run([*ffmpeg, *options.split(), "-i", flat, "-c", "copy", turned], check=True)
    # ffmpeg's own decoder turns frames upright: an independent expectation.
    raw = subprocess.run(
        [*ffmpeg, "-i", turned, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True
    ).stdout
    shape = (64, 48, 3) if "90" in options or "270" in options else (48, 64, 3)
    expected = np.frombuffer(raw, np.uint8).reshape(-1, *shape)
    frames, _ = read(turned)
    assert len(frames) == len(expected) == 3
    for frame, one in zip(frames, expected):
        assert frame.image.shape == shape
        assert np.abs(frame.image.astype(int) - one).mean() < 4


def test_matrices_by_hand():
    """Rows and columns of 2x3 pixels; 65536 is 1.0."""
    image = np.arange(6).reshape(2, 3, 1)
    one = 65536
    for (a, b, c, d), expected in (
        ((one, 0, 0, one), [[0, 1, 2], [3, 4, 5]]),
        ((-one, 0, 0, one), [[2, 1, 0], [5, 4, 3]]),
        ((one, 0, 0, -one), [[3, 4, 5], [0, 1, 2]]),
        ((-one, 0, 0, -one), [[5, 4, 3], [2, 1, 0]]),
        ((0, -one, one, 0), [[2, 5], [1, 4], [0, 3]]),
        ((0, one, -one, 0), [[3, 0], [4, 1], [5, 2]]),
        ((0, one, one, 0), [[0, 3], [1, 4], [2, 5]]),
        ((0, -one, -one, 0), [[5, 2], [4, 1], [3, 0]]),
        ((46340, -46340, 46340, 46340), [[0, 1, 2], [3, 4, 5]]),  # 45 degrees
    ):
        assert upright(image, (a, b, 0, c, d, 0, 0, 0, 1 << 30))[..., 0].tolist() == expected
    assert upright(image, ()) is image


def test_a_truncated_file_without_its_index(tmp_path):
    write_video(tmp_path / "a.mp4", [0, 100, 200])
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="that is damaged or incomplete. Copy the file again"):
        VideoReader(tmp_path / "b.mp4")


def test_a_truncated_file_gives_what_it_has(tmp_path):
    write_video(tmp_path / "a.mkv", list(range(0, 4000, 100)), container="matroska", size=(320, 240))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "b.mkv").write_bytes(data[: len(data) // 2])
    frames, _ = read(tmp_path / "b.mkv")
    assert 1 <= len(frames) < 40


@pytest.mark.parametrize("content", [b"", b"text", b"\0" * 5000])
def test_what_is_no_video(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a.mp4: not a video that can be read"):
        VideoReader(tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match="No such file"):
        VideoReader(tmp_path / "b.mp4")
    with pytest.raises(ConfigError, match="got a folder"):
        VideoReader(tmp_path)


def test_a_pipe_is_no_video(tmp_path):
    """Opening one that has no writer would wait forever."""
    os.mkfifo(tmp_path / "camera.mp4")
    with pytest.raises(ConfigError, match="got a pipe. Save the video to a file"):
        VideoReader(tmp_path / "camera.mp4")


def test_a_file_without_video(tmp_path):
    sound = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-f",
        "lavfi",
        "-i",
        "sine=duration=0.2",
        tmp_path / "a.wav",
    ]
    subprocess.run(sound, check=True)
    with pytest.raises(ConfigError, match="no video stream"):
        VideoReader(tmp_path / "a.wav")


def test_a_cover_is_no_video(tmp_path):
    """Recordings of sound have a cover, and phones put a preview before the video."""
    cv2.imwrite(str(tmp_path / "cover.png"), np.zeros((32, 32, 3), np.uint8))
    write_video(tmp_path / "a.mp4", [0, 100, 200])
    run = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error"]
    cover = ["-i", tmp_path / "cover.png"]
    both = ["-map", "0", "-map", "1", "-c:v:0", "png", "-disposition:v:0", "attached_pic"]
    sound = ["-f", "lavfi", "-i", "sine=duration=0.2"]
    subprocess.run([*run, *sound, *cover, *both, tmp_path / "sound.m4a"], check=True)
    with pytest.raises(ConfigError, match="no video stream"):
        VideoReader(tmp_path / "sound.m4a")
    video = ["-i", tmp_path / "a.mp4"]
    subprocess.run([*run, *cover, *video, *both, "-c:v:1", "copy", tmp_path / "b.mp4"], check=True)
    frames, _ = read(tmp_path / "b.mp4")
    assert [frame.image.shape for frame in frames] == [(48, 64, 3)] * 3


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    found = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'vtseg_ros\[video\]'"):
        VideoReader(tmp_path / "a.mp4")


def test_suffixes(tmp_path):
    assert is_video(tmp_path / "a.MP4") and not is_video(tmp_path / "a.png")
