# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation protocol against the networks run by hand on the whole window."""

from __future__ import annotations

import json
from collections import deque

import cv2
import numpy as np
import pytest
import torch
from conftest import make_checkpoint
from torch.nn import functional as F

from vtseg_ros.bags import messages
from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.cli import main
from vtseg_ros.dataset.corrupted_store import CorruptedStore
from vtseg_ros.dataset.corruptions import Corruption
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.evaluation.protocol import evaluate
from vtseg_ros.evaluation.selection import Selection, open_systems
from vtseg_ros.evaluation.systems import SystemInfo
from vtseg_ros.image_ops import resize_rgb
from vtseg_ros.label_set import STREET, LabelSet
from vtseg_ros.model import SegFormer, load_checkpoint, save_checkpoint

NS = 1_000_000_000


@pytest.fixture(scope="module")
def frames(street_bag):
    """The first 12 frames: images and labels of 128x64."""
    with BagReader(street_bag) as bag:
        images = [decode_any(m) for _, _, m in bag.messages(["/camera/image"])]
        labels = [decode_label(m) for _, _, m in bag.messages(["/camera/label"])]
    return images[:12], labels[:12]


@pytest.fixture(scope="module")
def short_bag(frames, tmp_path_factory):
    """Two sequences of 8 and 4 frames."""
    return write_bag(tmp_path_factory.mktemp("bags") / "short", *frames)


def write_bag(path, images, labels, *, labelled=lambda n: True, names=STREET, corrupt=()):
    """Frames at 10 Hz with a pause of 20 s after the eighth; `corrupt` ones are cut in half."""
    with BagWriter(path) as bag:
        if names is not None:
            bag.write_label_map("/camera/label_map", names, 100 * NS)
        for n, (image, label) in enumerate(zip(images, labels)):
            stamp = (100 + n // 10) * NS + n % 10 * NS // 10 + (20 * NS if n >= 8 else 0)
            # png keeps every pixel.
            payload = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
            payload = payload[: len(payload) // 2] if n in corrupt else payload
            message = messages.compressed_message(payload, "png", stamp, "camera")
            bag.write("/camera/image/compressed", messages.COMPRESSED_IMAGE, message, stamp)
            if labelled(n):
                bag.write_label("/camera/label", label, stamp, "camera")
    return path


def by_hand(model, frames, window, numbers=range(12), size=(64, 32), stride=1):
    """Confusion of whole-window forwards, bicubic upsampling and argmax; the pause is before frame 8."""
    images, labels = frames
    matrix = ConfusionMatrix(len(STREET))
    for n in numbers:
        first = 0 if n < 8 else 8
        chosen = [
            resize_rgb(images[i], size) for i in range(n - (window - 1) * stride, n + 1, stride) if i >= first
        ]
        video = torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2)[None] / 255
        with torch.no_grad():
            logits = (
                model(video)[:, -1]
                if hasattr(model, "decoder") and hasattr(model, "head")
                else model(video[:, -1])
            )
        large = F.interpolate(logits, size=labels[n].shape, mode="bicubic", align_corners=False)
        matrix.update(large.argmax(1)[0].byte().numpy(), labels[n])
    return matrix


def run(tmp_path, *arguments) -> dict:
    file = tmp_path / "scores.json"
    assert main(["evaluate", *map(str, arguments), "--device", "cpu", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def close(system, matrix):
    """A pixel or two of 98,304 may fall to the other side when logits tie within rounding."""
    assert system["miou"] == pytest.approx(matrix.miou(), abs=0.02)
    assert system["pixel_accuracy"] == pytest.approx(matrix.pixel_accuracy(), abs=0.01)
    assert [system["iou"][name] is None for name in STREET.names] == np.isnan(matrix.iou()).tolist()


@pytest.fixture(scope="module")
def lively(tiny_checkpoint, tmp_path_factory):
    """A network for which older frames matter: one mask in ten pixels changes with the window."""
    loaded = load_checkpoint(tiny_checkpoint)
    for name, parameter in loaded.model.named_parameters():
        if ".attention." in name and name.endswith("weight") and parameter.dim() == 2:
            parameter.data *= 10
    path = tmp_path_factory.mktemp("weights") / "lively.safetensors"
    save_checkpoint(path, loaded.model, labels=STREET, input_size=(64, 32))
    return path


def test_corrupted_frames_are_scored_as_if_recorded_so(tmp_path, short_bag, frames, lively):
    """Two sequences, of 8 and 4 frames: the parts' scores against separate counts over a bag of corrupted images."""
    corruption = Corruption(kind="dirt", severity=5)
    store = CorruptedStore(FrameIndex([BagSource(short_bag)]), corruption)
    images = [store.image(number) for number in range(12)]
    recorded = FrameStore(FrameIndex([BagSource(write_bag(tmp_path / "corrupted", images, frames[1]))]))
    systems = open_systems(Selection([str(lively)], windows=(1, 3), device="cpu"), recorded.index)
    numbers = {"corrupted": [2, 5, 10], "recovering": [3, 6, 11], "clean": [0, 1, 4, 7, 8, 9]}
    place = {number: part for part, members in numbers.items() for number in members}
    expected = evaluate(recorded, systems, part_of=place.__getitem__)
    plain = run(tmp_path, short_bag, "--checkpoint", lively, "--window", "1", "3")
    found = run(
        tmp_path, short_bag, "--checkpoint", lively, "--window", "1", "3", "--corrupt", "dirt:5", "black:1"
    )
    assert found["systems"] == plain["systems"]
    assert [one["corruption"] for one in found["corruptions"]] == ["dirt:5:1/3", "black:1:1/3"]
    dirt, black = (one["systems"] for one in found["corruptions"])
    for number, system in enumerate(dirt):
        for part in numbers:
            assert system[part]["miou"] == pytest.approx(expected.parts[part][number].miou(), abs=1e-3)
    # With a window of one frame a corruption changes the frames that it hits and no others.
    assert dirt[0]["clean"] == black[0]["clean"] and dirt[0]["recovering"] == black[0]["recovering"]
    assert dirt[0]["corrupted"] != black[0]["corrupted"]
    assert dirt[1]["recovering"] != black[1]["recovering"]


def test_measures_over_time(tmp_path, street_bag, lively, capsys):
    """30 frames. With a window of one frame, nothing is left of a disturbance on the first frame after it."""
    found = run(
        tmp_path,
        street_bag,
        *("--checkpoint", lively, "--window", "1", "3", "--out", tmp_path / "report"),
        *("--corrupt", "black:1", "--lag", "--scene-cuts", "5", "--drift", "20"),
    )
    recovery = [system["recovery"] for system in found["corruptions"][0]["systems"]]
    cuts = found["scene_cuts"]["systems"]
    # Frames 2, 5, ..., 29 are black: nine times two clean frames follow. Six pieces have five cuts between them.
    for systems, events, frames in ((recovery, 9, 2), (cuts, 5, 5)):
        assert [one["events"] for one in systems] == [events, events]
        assert (systems[0]["recovered"], systems[0]["mean_frames"]) == (events, 0.0)
        assert systems[0]["loss"] == [0.0] * frames + [None] * (8 - frames)
        # Windows of three hold a wrong frame on the first two frames after it.
        assert all(systems[1]["loss"][age] != 0.0 for age in (0, 1))
    assert cuts[1]["loss"][2:5] == pytest.approx([0.0] * 3, abs=0.3)
    one, three = found["appearance"]["systems"]
    assert one["appeared"] == three["appeared"] > 0
    assert (
        one["over_window_1"] == {"mean_frames": 0.0, "only_here": 0, "only_there": 0} or not one["segmented"]
    )
    drift = found["drift"]
    assert (drift["frames"], drift["span"], drift["sequences"]) == (20, 2, 1)
    for system in drift["systems"]:
        assert system["change"] == pytest.approx(system["last"] - system["first"], abs=1e-3)
    assert 0 < found["label_temporal_consistency"] <= 100
    page, out = (tmp_path / "report" / "report.html").read_text(), capsys.readouterr().out
    for text in ("Behaviour over time", "after scene cuts", "drift over 20 frames"):
        assert text in page and text in out
    assert f"temporal consistency of the labels: {found['label_temporal_consistency']:.2f}" in out


@pytest.mark.parametrize("stride", [1, 3])
def test_every_window_is_the_papers_protocol(short_bag, frames, lively, stride):
    store = FrameStore(FrameIndex([BagSource(short_bag)], stride=stride))
    selection = Selection([str(lively)], windows=(1, 3), stride=stride, device="cpu")
    outcome = evaluate(store, open_systems(selection, store.index))
    assert [(i.name, i.window) for i in outcome.infos] == [("VTSeg, k=1", 1), ("VTSeg, k=3", 3)]
    model, found = load_checkpoint(lively).model, [s.confusion.matrix for s in outcome.scores]
    for matrix, window in zip(found, (1, 3)):
        expected = by_hand(model, frames, window, stride=stride).matrix
        # A few of 98,304 pixels may fall to the other side where logits tie within rounding.
        assert np.abs(matrix - expected).sum() < 200
    assert np.abs(found[0] - found[1]).sum() > 2000


class Recorder:
    """A system that only notes which frames a window would hold."""

    def __init__(self, window):
        self.info = SystemInfo("recorder", "vtseg", "", window, "recorder", 0, (64, 32))
        self.labels, self.problems, self.seen, self.answers = STREET, [], {}, {}
        self.reach = window

    def reset(self, stream):
        self.seen.pop(stream, None)

    def step(self, number, image, size, stream):
        seen = self.seen.setdefault(stream, deque(maxlen=self.info.window))
        seen.append(number)
        self.answers[number] = list(seen)
        self.confidence = np.zeros(size[::-1], np.uint8)
        return np.zeros(size[::-1], np.uint8)


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("every", [1, 4])
def test_windows_hold_the_indexs_frames(frames, tmp_path, window, stride, every):
    bag = write_bag(tmp_path / "bag", *frames, labelled=lambda n: n not in (3, 4))
    store = FrameStore(FrameIndex([BagSource(bag)], stride=stride))
    recorder = Recorder(window)
    evaluate(store, [recorder], every=every)
    for newest, first in store.index.labelled(every):
        assert recorder.answers[newest] == store.index.window(newest, first, window)


def test_image_networks_and_the_static_network_inside(short_bag, frames, tiny_checkpoint, tmp_path):
    torch.manual_seed(0)
    segformer = SegFormer(num_classes=len(STREET)).eval()
    file = tmp_path / "s.safetensors"
    save_checkpoint(file, segformer, labels=STREET, input_size=(96, 64))
    found = run(tmp_path, short_bag, "--checkpoint", file)
    assert found["systems"][0]["model"] == "segformer_b0" and found["systems"][0]["window"] == 1
    close(found["systems"][0], by_hand(segformer, frames, 1, size=(96, 64)))
    prior = load_checkpoint(tiny_checkpoint).model.static_prior
    for model in ("erfnet", "static"):
        found = run(tmp_path, short_bag, "--checkpoint", tiny_checkpoint, "--model", model, "--window", 4)
        assert (found["systems"][0]["name"], found["systems"][0]["window"]) == ("ERFNet", 1)
        close(found["systems"][0], by_hand(prior, frames, 1))


def test_sparse_labels_see_their_windows_and_have_no_temporal_scores(frames, tiny_checkpoint, tmp_path):
    bag = write_bag(tmp_path / "sparse", *frames, labelled=lambda n: n % 4 == 3)
    found = run(tmp_path, bag, "--checkpoint", tiny_checkpoint, "--window", 2)
    assert found["labelled_frames"] == 3
    close(found["systems"][0], by_hand(load_checkpoint(tiny_checkpoint).model, frames, 2, (3, 7, 11)))
    assert found["systems"][0]["mvc8"] is None and found["systems"][0]["temporal_consistency"] is None


def test_dense_labels_have_temporal_scores(short_bag, tiny_checkpoint, tmp_path):
    system = run(tmp_path, short_bag, "--checkpoint", tiny_checkpoint)["systems"][0]
    assert 0 <= system["mvc8"] <= 100 and system["mvc16"] is None  # no 16 frames in a row
    assert 0 <= system["temporal_consistency"] <= 100
    every = run(tmp_path, short_bag, "--checkpoint", tiny_checkpoint, "--every", 2)["systems"][0]
    assert every["frames"] == 6 and every["mvc8"] is None


def test_a_longer_gap_joins_frames_for_the_temporal_scores_too(frames, tiny_checkpoint, tmp_path):
    with BagWriter(tmp_path / "slow") as bag:
        bag.write_label_map("/camera/label_map", STREET, 100 * NS)
        for n, (image, label) in enumerate(zip(*frames)):
            stamp = 100 * NS + n * 5 * NS // 4  # 0.8 Hz
            bag.write_image("/camera/image", image, stamp, "camera")
            bag.write_label("/camera/label", label, stamp, "camera")
    arguments = (tmp_path / "slow", "--checkpoint", tiny_checkpoint)
    slow, joined = (run(tmp_path, *arguments, *more)["systems"][0] for more in ((), ("--max-gap", 1.5)))
    assert slow["mvc8"] is slow["temporal_consistency"] is None
    assert joined["mvc8"] > 0 and joined["temporal_consistency"] > 0


def test_labels_without_an_image_are_counted(frames, tiny_checkpoint, tmp_path, capsys):
    with BagWriter(tmp_path / "half") as bag:
        bag.write_label_map("/camera/label_map", STREET, 100 * NS)
        for n, (image, label) in enumerate(zip(*frames)):
            stamp = 100 * NS + n * NS // 10
            bag.write_image("/camera/image", image, stamp, "camera")
            bag.write_label("/camera/label", label, stamp + 37 * (n % 2), "camera")
    report = run(tmp_path, tmp_path / "half", "--checkpoint", tiny_checkpoint)
    assert (report["scored_frames"], report["labels_without_image"]) == (6, 6)
    assert "6 more labels have a header stamp that no image has" in capsys.readouterr().out


def test_a_part_of_the_bag(short_bag, frames, tiny_checkpoint, tmp_path):
    found = run(tmp_path, short_bag, "--checkpoint", tiny_checkpoint, "--start", 10, "--window", 2)
    close(found["systems"][0], by_hand(load_checkpoint(tiny_checkpoint).model, frames, 2, range(8, 12)))


def test_corrupt_frames_are_counted_and_said(frames, tiny_checkpoint, tmp_path, capsys):
    bag = write_bag(tmp_path / "bad", *frames, corrupt=(2, 5))
    found = run(tmp_path, bag, "--checkpoint", tiny_checkpoint, "--window", 1)
    assert (found["labelled_frames"], found["scored_frames"], found["unscored_frames"]) == (12, 10, 2)
    assert len(found["corrupt"]) == 2 and found["corrupt"][0]["reason"].startswith("image: ")
    good = [n for n in range(12) if n not in (2, 5)]
    close(found["systems"][0], by_hand(load_checkpoint(tiny_checkpoint).model, frames, 1, good))
    out = capsys.readouterr().out
    assert "10 of 12 labelled frames scored" in out and "100.200 s" in out


def test_the_report_has_tables_and_every_systems_pictures(short_bag, tiny_checkpoint, tmp_path, capsys):
    other = make_checkpoint(tmp_path / "other.safetensors")
    out = tmp_path / "report"
    code = main(
        [
            "evaluate",
            str(short_bag),
            "--checkpoint",
            str(tiny_checkpoint),
            str(other),
            "--model",
            "erfnet",
            "vtseg",
            "--window",
            "1",
            "2",
            "--out",
            str(out),
            "--pictures",
            "3",
            "--device",
            "cpu",
        ]
    )
    assert code == 0
    names = [system["name"] for system in json.loads((out / "report.json").read_text())["systems"]]
    assert names == [
        "ERFNet (tiny)",
        "VTSeg (tiny), k=1",
        "VTSeg (tiny), k=2",
        "ERFNet (other)",
        "VTSeg (other), k=1",
        "VTSeg (other), k=2",
    ]
    page = (out / "report.html").read_text()
    assert page.count("<img ") == 3 * (2 + 4)  # image, truth, each system at its longest window
    assert "http" not in page.replace("http-equiv", "") and "mIoU by frames in the window" in page
    text = capsys.readouterr().out
    assert "traffic-sign" in text and "mIoU by frames" in text


def test_a_bag_without_a_label_map_is_said(frames, tiny_checkpoint, tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", *frames, names=None)
    found = run(tmp_path, bag, "--checkpoint", tiny_checkpoint, "--every", 6)
    assert "contains none" in found["facts"]["classes"] and "no label map" in capsys.readouterr().out


def test_sequences_without_a_longest_pause(short_bag, tiny_checkpoint, tmp_path):
    """An infinite `--max-gap` means none."""
    endless, long = (
        run(tmp_path, short_bag, "--checkpoint", tiny_checkpoint, "--max-gap", gap)["systems"][0]
        for gap in ("inf", "1000000")
    )
    assert endless == long


def test_names_of_ones_own(short_bag, tiny_checkpoint, tmp_path):
    found = run(tmp_path, short_bag, "--checkpoint", tiny_checkpoint, "--name", "ours")
    assert found["systems"][0]["name"] == "ours"
    both = run(
        tmp_path, short_bag, "--checkpoint", tiny_checkpoint, "--name", "ours", "--model", "vtseg", "static"
    )
    assert [system["name"] for system in both["systems"]] == ["ours: VTSeg", "ours: ERFNet"]


def test_mistakes_are_one_line(short_bag, frames, tiny_checkpoint, tmp_path, capsys):
    other = write_bag(tmp_path / "other", *frames, names=LabelSet.from_names([f"c{n}" for n in range(14)]))
    unlabelled = write_bag(tmp_path / "unlabelled", *frames, labelled=lambda n: False)
    sparse = write_bag(tmp_path / "sparse", *frames, labelled=lambda n: n % 4 == 3)
    for words, arguments in (
        ("Give --class-map FILE, which maps label classes to the checkpoint's", [other]),
        ("start out of range; expected 0 to 1e+09 s", [short_bag, "--start", "inf"]),
        ("end out of range; expected 0 to 1e+09 s", [short_bag, "--end", "-1"]),
        ("no label topic", [unlabelled]),
        (
            "no segformer_b0 in it; got a vtseg with the static network erfnet",
            [short_bag, "--model", "segformer_b0"],
        ),
        ("no gru in it", [short_bag, "--model", "gru"]),
        ("window: out of range", [short_bag, "--window", "-1"]),
        ("window: out of range; expected 1 to 64 frames", [short_bag, "--window", "4", "1000000"]),
        ("is a bag; expected a folder for the report", [short_bag, "--out", short_bag]),
        ("cannot be written; expected a folder", [short_bag, "--out", tiny_checkpoint]),
        ("more than 64 MiB", [short_bag, "--class-map", "/dev/zero"]),
        ("one name per checkpoint", [short_bag, "--name", "a", "b"]),
        ("--every: out of range; expected at least 1", [short_bag, "--every", "0"]),
        ("--pictures: out of range; expected at least 0, got -5", [short_bag, "--pictures", "-5"]),
        ("corruption severity: out of range; expected 1 to 5, got 9", [short_bag, "--corrupt", "dirt:9"]),
        (
            "--corrupt dirt:3:1/3: none of the 4 scored frames is corrupted",
            [short_bag, "--corrupt", "dirt:3", "--every", "3"],
        ),
        ("corruption run: out of range", [short_bag, "--corrupt", "dirt:3", "--corrupt-run", "4"]),
        ("--lag: needs every label; expected --every 1, got 2", [short_bag, "--lag", "--every", "2"]),
        ("no sequence is long enough; expected at least 1000 frames", [short_bag, "--drift"]),
        ("--lag: no two consecutive frames have labels", [sparse, "--lag"]),
        ("expected at least 3 pieces of 8 frames, got 2", [short_bag, "--scene-cuts", "8"]),
        ("no bag at", [tmp_path / "nowhere"]),
    ):
        assert main(["evaluate", *map(str, arguments), "--checkpoint", str(tiny_checkpoint)]) == 2
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vtseg")]
        assert len(err) == 1 and words in err[0], (words, err)
