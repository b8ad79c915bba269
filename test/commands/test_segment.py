# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg segment` on damaged input and with other sizes."""

from __future__ import annotations

import json
from itertools import islice

import cv2
import numpy as np
from bags import storagetools as tools

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import IMAGE, image_message, stamp_of, typestore
from vtseg_ros.cli import main
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.video.reader import VideoReader

NS = 1_000_000_000


def test_what_cannot_be_segmented_is_left_out_and_named(tiny_checkpoint, tmp_path, rng, capsys):
    frames = rng.integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
    stamps = [NS * (index + 1) // 10 for index in range(6)]
    with BagWriter(tmp_path / "bag") as bag:
        for index, stamp in enumerate(stamps):
            message = image_message(frames[index], "rgb8", stamp, "camera")
            data = typestore().serialize_cdr(message, IMAGE)
            if index == 1:
                data = data[:40]  # its lengths speak of bytes that are not there
            elif index == 3:
                data = typestore().serialize_cdr(
                    image_message(frames[index], "rgb16", stamp, "camera"), IMAGE
                )
            bag.write_raw("/camera/image", IMAGE, data, stamp)
    arguments = [
        "segment",
        str(tmp_path / "bag"),
        "--checkpoint",
        str(tiny_checkpoint),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "masks"),
        "--overlay",
        str(tmp_path / "new" / "overlay.mp4"),
        "--output-size",
        "32x24",
        "--min-confidence",
        "0.3",
        "--json",
        str(tmp_path / "figures.json"),
    ]
    assert main(arguments) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["frames"] == 4 and len(figures["left_out"]) == 2
    assert "0.200" in figures["left_out"][0] and "rgb16" in figures["left_out"][1]
    assert "4 masks" in capsys.readouterr().out and (tmp_path / "new" / "overlay.mp4").stat().st_size > 0
    expected = VideoPredictor(tiny_checkpoint, device="cpu", output_size=(32, 24), min_confidence=0.3)
    with BagReader(tmp_path / "masks") as bag:
        for _, _, message in bag.messages(["/segmentation/mask/compressed"]):
            index = stamps.index(stamp_of(message))
            assert np.array_equal(
                decode_label(message), expected.step(frames[index], stamps[index], "camera").mask
            )


def test_a_bad_size_is_refused_in_one_line(tiny_checkpoint, street_bag, tmp_path, capsys):
    arguments = [
        "segment",
        str(street_bag),
        "--checkpoint",
        str(tiny_checkpoint),
        "--out",
        str(tmp_path / "masks"),
    ]
    assert main([*arguments, "--output-size", "big"]) == 2
    assert "WIDTHxHEIGHT" in capsys.readouterr().err and not (tmp_path / "masks").exists()


def test_nothing_is_overwritten_and_nothing_left_of_a_failure(tiny_checkpoint, street_bag, tmp_path, capsys):
    common = ["--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    video = tmp_path / "drive.mp4"
    assert main(["segment", str(street_bag), *common, "--overlay", str(video)]) == 0
    recording = video.read_bytes()
    assert main(["segment", str(video), *common, "--overlay", str(video)]) == 2
    assert "drive.mp4 exists: nothing is overwritten" in capsys.readouterr().err
    assert video.read_bytes() == recording
    with BagWriter(tmp_path / "bad") as bag:
        bag.write("/camera/image", IMAGE, image_message(np.zeros((4, 4, 3), np.uint8), "rgb16", NS, "c"), NS)
    targets = ["--out", str(tmp_path / "masks"), "--overlay", str(tmp_path / "bad.mp4")]
    assert main(["segment", str(tmp_path / "bad"), *common, *targets]) == 2
    assert "no frame that could be segmented: frame at 1.000 s" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "drive.mp4"]


class TestTime:
    """Stamps as drivers make them: masks have true times, what is left out is named."""

    def segment(self, tmp_path, checkpoint, content, *options):
        tools.write_mcap(tmp_path / "bag.mcap", content)
        report = tmp_path / "report.json"
        command = ["segment", str(tmp_path / "bag.mcap"), "--checkpoint", str(checkpoint), "--device", "cpu"]
        code = main([*command, "--out", str(tmp_path / "masks"), "--json", str(report), *options])
        if code:
            assert not (tmp_path / "masks").exists()
            return code, [], None
        with BagReader(tmp_path / "masks") as bag:
            masks = [(stamp_of(m), time) for _, time, m in bag.messages(["/segmentation/mask/compressed"])]
        return code, masks, json.loads(report.read_text())

    @staticmethod
    def images(stamps, delay=0, frame_id="camera"):
        return [
            ("/camera/image_raw", time, tools.image(number, stamp))
            for number, (stamp, time) in enumerate(stamps)
        ]

    def test_all_zero(self, tmp_path, tiny_checkpoint, capsys):
        times = [tools.START + n * tools.STEP for n in range(5)]
        content = self.images([(0, time) for time in times])
        code, masks, report = self.segment(tmp_path, tiny_checkpoint, content)
        assert code == 0 and masks == [(time, time) for time in times] and report["left_out"] == []
        assert capsys.readouterr().err.count("have the header stamp zero") == 1

    def test_negative(self, tmp_path, tiny_checkpoint):
        """Of a clock before its epoch: as unusable as zero, and later masks must not be matched by it."""
        times = [tools.START + n * tools.STEP for n in range(3)]
        content = self.images([(stamp, time) for stamp, time in zip((-5 * 10**9, -4 * 10**9, 0), times)])
        code, masks, report = self.segment(tmp_path, tiny_checkpoint, content)
        assert code == 0 and masks == [(time, time) for time in times] and report["left_out"] == []

    def test_some_zero(self, tmp_path, tiny_checkpoint):
        """Bag times are 50 ms after the stamps: so is the one of a frame without a stamp."""
        stamps = [tools.START + n * tools.STEP // 4 for n in range(6)]
        content = self.images(
            [(0 if n in (0, 3) else stamp, stamp + 50_000_000) for n, stamp in enumerate(stamps)]
        )
        code, masks, report = self.segment(tmp_path, tiny_checkpoint, content)
        assert code == 0 and [stamp for stamp, _ in masks] == stamps and report["left_out"] == []

    def test_neither_stamp_nor_bag_time(self, tmp_path, tiny_checkpoint, capsys):
        code, _, _ = self.segment(tmp_path, tiny_checkpoint, self.images([(0, 0)] * 3))
        assert code == 2 and "neither a header stamp nor a bag time" in capsys.readouterr().err

    def test_late_and_repeated(self, tmp_path, tiny_checkpoint):
        stamps = [tools.START + ms * 10**6 for ms in (33, 66, 133, 100, 166, 166, 233, 200, 266)]
        content = self.images([(stamp, tools.START + n * tools.STEP) for n, stamp in enumerate(stamps)])
        code, masks, report = self.segment(tmp_path, tiny_checkpoint, content)
        assert code == 0 and [stamp for stamp, _ in masks] == [stamps[n] for n in (0, 1, 2, 4, 6, 8)]
        left_out = report["left_out"]
        assert len(left_out) == 3 and "late stamp 1700000000.100000000 s" in left_out[0]
        assert "repeated stamp 1700000000.166000000 s" in left_out[1]

    def test_a_bag_that_loops(self, tmp_path, tiny_checkpoint):
        stamps = [tools.START + n * NS for n in (0, 1, 2, 0, 1, 2)]
        content = self.images([(stamp, tools.START + n * tools.STEP) for n, stamp in enumerate(stamps)])
        code, masks, _ = self.segment(tmp_path, tiny_checkpoint, content)
        assert code == 0 and sorted(stamp for stamp, _ in masks) == sorted(stamps)


def test_overlay_names(tmp_path, street_bag, tiny_checkpoint, monkeypatch, capsys):
    """Any name of a known container; others are refused before anything is loaded."""
    monkeypatch.chdir(tmp_path)
    command = ["segment", str(street_bag), "--checkpoint", str(tiny_checkpoint), "--overlay"]
    for name in ("12:31.mp4", "a#b %03d.MP4", "x" * 251 + ".mkv"):
        assert main([*command, name]) == 0
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert cv2.VideoCapture(f"file:{tmp_path / name}").get(cv2.CAP_PROP_FRAME_COUNT) == 30
        (tmp_path / name).unlink()
    command[3] = "no checkpoint"
    for name in ("video", "video.xyz", ".mp4"):
        assert main([*command, name]) == 2
        assert "unknown container; expected a suffix of .mp4" in capsys.readouterr().err and not list(
            tmp_path.iterdir()
        )


def test_images_and_a_bare_mcap_file(tiny_checkpoint, street_bag, tmp_path, rng, capsys):
    for name in ("frame2.png", "frame10.png", "frame1.png"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    options = ["--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--window", "1"]

    def masks(source: object, name: str, *more: str) -> list[tuple[int, np.ndarray]]:
        assert main(["segment", str(source), "--out", str(tmp_path / name), *options, *more]) == 0
        with BagReader(tmp_path / name) as bag:
            return [
                (stamp_of(m), decode_label(m)) for _, _, m in bag.messages(["/segmentation/mask/compressed"])
            ]

    found = masks(tmp_path, "folder", "--image-rate", "5", "--classes", "road, sky", "--resize-mode", "crop")
    assert [stamp for stamp, _ in found] == [NS, NS + NS // 5, NS + 2 * NS // 5]
    predictor = VideoPredictor(
        tiny_checkpoint, device="cpu", window=1, classes=["road", "sky"], resize_mode="crop"
    )
    image = cv2.cvtColor(cv2.imread(str(tmp_path / "frame10.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(found[2][1], predictor.step(image).mask)
    assert len(masks(f"{tmp_path}/frame?.png", "glob")) == 2
    (file,) = street_bag.glob("*.mcap")
    assert len(masks(file, "bare", "--frames", "4")) == 4
    assert main(["segment", f"{tmp_path}/none*.png", "--out", str(tmp_path / "none"), *options]) == 2
    assert "none*.png: no path matches" in capsys.readouterr().err


def test_a_video_that_breaks_off_is_counted_in_frames(tiny_checkpoint, tmp_path, rng, monkeypatch):
    writer = cv2.VideoWriter(str(tmp_path / "drive.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(8):
        writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    whole = VideoReader.frames

    def broken(video):
        yield from islice(whole(video), 3)
        video.damage = "invalid data"

    monkeypatch.setattr(VideoReader, "frames", broken)
    command = [
        "segment",
        str(tmp_path / "drive.mp4"),
        "--checkpoint",
        str(tiny_checkpoint),
        "--device",
        "cpu",
    ]
    report = tmp_path / "report.json"
    assert main([*command, "--out", str(tmp_path / "masks"), "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert (found["frames"], found["messages_missing"]) == (3, 5)
    assert "drive.mp4 is damaged: invalid data" in found["left_out"][0]
    assert found["left_out"][1].startswith("5 frames that ") and len(found["left_out"]) == 2
