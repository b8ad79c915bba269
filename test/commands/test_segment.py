"""`vtseg segment` on damaged input and with other sizes."""

from __future__ import annotations

import json

import numpy as np

from vtseg_ros.cli import main
from vtseg_ros.data.bags import BagReader, BagWriter
from vtseg_ros.data.images import decode_label
from vtseg_ros.data.messages import IMAGE, image_message, stamp_of, typestore
from vtseg_ros.engine import Segmenter

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
    arguments = ["segment", str(tmp_path / "bag"), "--checkpoint", str(tiny_checkpoint), "--device", "cpu",
                 "--out", str(tmp_path / "masks"), "--overlay", str(tmp_path / "new" / "overlay.mp4"),
                 "--output-size", "32x24", "--min-confidence", "0.3", "--json", str(tmp_path / "figures.json")]  # fmt: skip
    assert main(arguments) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["frames"] == 4 and len(figures["left_out"]) == 2
    assert "0.200" in figures["left_out"][0] and "rgb16" in figures["left_out"][1]
    assert "4 masks" in capsys.readouterr().out and (tmp_path / "new" / "overlay.mp4").stat().st_size > 0
    expected = Segmenter(tiny_checkpoint, device="cpu", output_size=(32, 24), min_confidence=0.3)
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
