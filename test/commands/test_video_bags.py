# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The commands on bags whose camera is a topic of encoded video."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("av")

from bags import videotools as tools
from bags.videotools import FFMPEG, GROUP
from conftest import make_checkpoint

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.cli import main
from vtseg_ros.inference import VideoPredictor

COUNT, LOST = 18, GROUP + 2
TOPIC = "/camera/image/ffmpeg"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("weights") / "two.safetensors", labels=tools.CLASSES)


@pytest.fixture(scope="module", params=["h264 with B-frames", "h265"])
def bag(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "bag"
    stream = tools.encode(request.param, COUNT)
    return tools.write_video_bag(path, stream, request.param, msgtype=FFMPEG, topic=TOPIC, labels=True)


@pytest.fixture(scope="module")
def lossy_bag(tmp_path_factory):
    """Begins two frames before its second group, and the packet LOST is not in it."""
    stream = tools.encode("h264", COUNT)
    path = tmp_path_factory.mktemp("video") / "lossy"
    first = GROUP - 2
    return tools.write_video_bag(path, stream[first:], "h264", lost=[LOST - first], labels=True)


def stamps_of(path, topic):
    with BagReader(path) as bag:
        return [stamp_of(message) for _, _, message in bag.messages([topic])]


def test_info(bag, tmp_path):
    out = tmp_path / "info.json"
    assert main(["info", str(bag), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["image_topic"] == TOPIC and found["label_topic"] == "/camera/label"
    assert found["topics"][TOPIC]["messages"] == COUNT and found["messages_missing"] == 0


def test_segment(bag, tmp_path, checkpoint):
    out, report = tmp_path / "masks", tmp_path / "masks.json"
    command = ["segment", str(bag), "--checkpoint", str(checkpoint), "--out", str(out), "--json", str(report)]
    assert main(command) == 0
    found = json.loads(report.read_text())
    assert (found["frames"], found["left_out"], found["messages_missing"]) == (COUNT, [], 0)
    with BagReader(out) as masks:
        topic = next(name for name in masks.topics if "mask" in name)
    assert stamps_of(out, topic) == [tools.stamp_of_frame(number) for number in range(COUNT)]


def test_segment_counts_what_cannot_be_decoded(lossy_bag, tmp_path, checkpoint, capsys):
    report = tmp_path / "masks.json"
    command = ["segment", str(lossy_bag), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "m")]
    assert main([*command, "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    after = 2 * GROUP - LOST - 1  # in the group of the lost packet
    assert found["frames"] == COUNT - GROUP - 1 - after and len(found["left_out"]) == 2 + after
    assert "no key frame" in found["left_out"][0] and "lost" in found["left_out"][-1]


def test_evaluate(bag, lossy_bag, tmp_path, checkpoint):
    report = tmp_path / "scores.json"
    for path, labelled in ((bag, COUNT // 3), (lossy_bag, None)):
        command = [
            "evaluate",
            str(path),
            "--checkpoint",
            str(checkpoint),
            "--json",
            str(report),
            "--every",
            "2",
        ]
        assert main(command) == 0
        (system,) = json.loads(report.read_text())["systems"]
        if labelled:
            assert system["frames"] == labelled // 2


def test_pseudolabel_copies_the_packets(bag, tmp_path, checkpoint):
    out = tmp_path / "labelled"
    command = ["pseudolabel", str(bag), "--checkpoint", str(checkpoint), "--out", str(out)]
    assert main([*command, "--min-confidence", "0", "--every", "3"]) == 0
    with BagReader(bag) as before, BagReader(out) as after:
        assert [data for *_, data in before.raw([TOPIC])] == [data for *_, data in after.raw([TOPIC])]
        assert after.definitions[FFMPEG][0] == before.definitions[FFMPEG][0]
    stamps = stamps_of(out, "/camera/label/compressed")
    assert stamps == [tools.stamp_of_frame(number) for number in range(0, COUNT, 3)]


def test_select_and_extract(bag, tmp_path, checkpoint):
    out = tmp_path / "chosen"
    command = ["select", str(bag), "--checkpoint", str(checkpoint), "--out", str(out)]
    assert main([*command, "--count", "2", "--every", "3", "--spacing", "0"]) == 0
    assert len(list(out.rglob("*.png"))) >= 2
    assert main(["labels", "extract", str(bag), "--out", str(tmp_path / "frames"), "--every", "5"]) == 0
    names = {int(file.stem.split("_")[-1]) for file in (tmp_path / "frames").glob("*.png")}
    stream_order = {tools.stamp_of_frame(number) for number in range(COUNT)}
    assert len(names) == 4 and names <= stream_order


def test_predictor(bag, checkpoint):
    predictor = VideoPredictor(checkpoint, device="cpu")
    results = list(predictor.stream(str(bag)))
    assert len(results) == COUNT and all(result.mask.shape == tools.SIZE[::-1] for result in results)


def test_parts_of_a_job_equal_the_whole(bag, tmp_path, checkpoint):
    """Each part begins within a group of frames."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = ["segment", str(bag), "--checkpoint", str(checkpoint), "--out"]
    assert main([*command, str(whole)]) == 0
    from vtseg_ros.fleet.parts import plan_spans

    with BagReader(bag) as reader:
        spans = plan_spans(reader, TOPIC, 4)
        numbers = []
        for start, stop in spans:
            numbers += [stamp_of(message) for _, _, message in reader.messages([TOPIC], start, stop)]
    assert sorted(numbers) == [tools.stamp_of_frame(number) for number in range(COUNT)]
    assert not parts.exists()
