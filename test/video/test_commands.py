# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg import video` and `vtseg segment VIDEO`."""

from __future__ import annotations

import json
import os
import signal

import cv2
import numpy as np
import pytest
from video.videofiles import SHADES, write_video

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.cli import main
from vtseg_ros.importers import video_files as importer
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.video.reader import VideoReader

PAUSE_MS = [0, 100, 700, 800, 900]
START_MS = 1_000_000
TOPIC = "/camera/image/compressed"


@pytest.fixture
def clip(tmp_path):
    write_video(tmp_path / "clip.mp4", PAUSE_MS)
    return tmp_path / "clip.mp4"


def frames_of(path, topic=TOPIC):
    with BagReader(path) as bag:
        return [
            (stamp_of(m) // 1_000_000, m.header.frame_id, decode_any(m)) for _, _, m in bag.messages([topic])
        ]


def test_import_keeps_times(clip, tmp_path):
    assert (
        main(["import", "video", str(clip), "--out", str(tmp_path / "bag"), "--json", str(tmp_path / "j")])
        == 0
    )
    frames = frames_of(tmp_path / "bag")
    assert [t - START_MS for t, _, _ in frames] == PAUSE_MS and {name for _, name, _ in frames} == {"clip"}
    for (_, _, image), shade in zip(frames, SHADES):
        assert abs(int(image.mean()) - shade) <= 4
    assert json.loads((tmp_path / "j").read_text())["frames"] == 5


@pytest.mark.parametrize(
    ("options", "times"),
    [
        (["--every", "2"], [0, 700, 900]),
        (["--start", "0.1", "--end", "0.8"], [100, 700, 800]),
        (["--start", "0.65"], [700, 800, 900]),
    ],
)
def test_parts_of_a_video(clip, tmp_path, options, times):
    assert main(["import", "video", str(clip), "--out", str(tmp_path / "bag"), *options]) == 0
    assert [t - START_MS for t, _, _ in frames_of(tmp_path / "bag")] == times


def test_crop_and_size(tmp_path):
    image = np.zeros((48, 64, 3), np.uint8)
    image[16:48, 8:40] = 255
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    writer.write(image)
    writer.release()
    out = tmp_path / "bag"
    assert (
        main(
            [
                "import",
                "video",
                str(tmp_path / "a.avi"),
                "--out",
                str(out),
                "--crop",
                "32:32:8:16",
                "--size",
                "96x64",
            ]
        )
        == 0
    )
    ((_, _, found),) = frames_of(out)
    assert found.shape == (64, 96, 3) and found.min() > 240


def test_several_videos_are_sequences(clip, tmp_path):
    write_video(tmp_path / "b.mp4", [0, 100])
    assert main(["import", "video", str(clip), str(tmp_path / "b.mp4"), "--out", str(tmp_path / "bag")]) == 0
    frames = frames_of(tmp_path / "bag")
    assert [name for _, name, _ in frames] == ["clip"] * 5 + ["b"] * 2
    assert frames[5][0] - frames[4][0] > 1_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop", "65:10:0:0"], "extends beyond the image"),
        (["--start", "5"], "no frame to import"),
        (["--start", "2", "--end", "1"], "0 <= start < end"),
        (["--every", "0"], "--every"),
        (["--quality", "0"], "--quality"),
        (["missing.mp4"], "No such file"),
        (["text.mp4"], "not a video"),
    ],
)
def test_bad_input_writes_nothing(clip, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("text")
    before = sorted(tmp_path.iterdir())
    assert main(["import", "video", str(clip), *options, "--out", "bag"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vtseg import: ") and message in error
    assert sorted(tmp_path.iterdir()) == before


def test_an_empty_size_is_refused(clip, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["import", "video", str(clip), "--out", str(tmp_path / "bag"), "--size", "0x0"])
    assert stop.value.code == 2 and "--size: wrong image size" in capsys.readouterr().err


def test_a_crop_of_another_form_is_refused(clip, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["import", "video", str(clip), "--out", str(tmp_path / "bag"), "--crop", "1x2"])
    assert stop.value.code == 2 and "WIDTH:HEIGHT:X:Y" in capsys.readouterr().err


def test_nothing_is_left_when_interrupted(clip, tmp_path, capsys, monkeypatch):
    write, count = importer._write_jpeg, []

    def stop_at_third(*args):
        write(*args)
        count.append(1)
        if len(count) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(importer, "_write_jpeg", stop_at_third)
    assert main(["import", "video", str(clip), "--out", str(tmp_path / "bag")]) == 1
    assert "was not written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_masks_have_the_videos_times(clip, tiny_checkpoint, tmp_path):
    out = tmp_path / "masks"
    assert main(["segment", str(clip), "--checkpoint", str(tiny_checkpoint), "--out", str(out)]) == 0
    with BagReader(out) as bag:
        stamps = [stamp_of(m) for _, _, m in bag.messages(["/segmentation/mask/compressed"])]
    assert stamps == [1_000_000_000 + t * 1_000_000 for t in PAUSE_MS]


def test_a_pause_begins_a_new_window(clip, tiny_checkpoint, tmp_path):
    """After the pause of 0.6 s the first mask is that of a clip that begins there."""

    def masks(video, *options):
        out = tmp_path / f"{video.stem}{len(options)}"
        assert (
            main(["segment", str(video), "--checkpoint", str(tiny_checkpoint), "--out", str(out), *options])
            == 0
        )
        with BagReader(out) as bag:
            return [decode_label(m) for _, _, m in bag.messages(["/segmentation/mask/compressed"])]

    segmenter = VideoPredictor(tiny_checkpoint, device="cpu")
    with VideoReader(clip) as reader:
        later = [
            segmenter.step(frame.image, frame.time_ns + 1).mask
            for frame in reader.frames()
            if frame.index >= 2
        ]
    found = masks(clip, "--max-gap", "0.5")
    assert all(np.array_equal(a, b) for a, b in zip(found[2:], later))
    assert not all(np.array_equal(a, b) for a, b in zip(masks(clip)[2:], later))
