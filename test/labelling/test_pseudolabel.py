# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg pseudolabel`: labels of a teacher, which pixels get them, interrupted runs and bad input."""

from __future__ import annotations

import json
import os
import signal

import cv2
import numpy as np
import pytest
import torch
from video.videofiles import write_video

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.bags.topics import read_label_set
from vtseg_ros.cli import main
from vtseg_ros.label_set import STREET, LabelSet
from vtseg_ros.labelling.acceptance import Acceptance
from vtseg_ros.labelling.teacher_probabilities import Averaging, Teacher, consistent
from vtseg_ros.labelling.work_folder import WorkFolder
from vtseg_ros.model import load_checkpoint

IMAGES, LABELS = "/camera/image", "/camera/label/compressed"


@pytest.fixture(scope="module")
def drive(street_bag, tmp_path_factory):
    """Eight unlabelled images of 128x64 px."""
    path = tmp_path_factory.mktemp("drive") / "drive"
    with BagReader(street_bag) as bag, BagWriter(path) as out:
        for number, (topic, kind, time_ns, data) in enumerate(bag.raw([IMAGES])):
            if number < 8:
                out.write_raw(topic, kind, data, time_ns)
    return path


def labels_of(path):
    with BagReader(path) as bag:
        return {stamp_of(m): decode_label(m) for _, _, m in bag.messages([LABELS])}


def images_of(path):
    with BagReader(path) as bag:
        return [(stamp_of(m), decode_any(m)) for _, _, m in bag.messages([IMAGES])]


def run(*arguments):
    return main(["pseudolabel", *map(str, arguments)])


def test_labels_are_the_teachers_masks(drive, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    report = tmp_path / "out.json"
    assert (
        run(drive, "--checkpoint", tiny_checkpoint, "--out", out, "--min-confidence", 0, "--json", report)
        == 0
    )
    loaded = load_checkpoint(tiny_checkpoint)
    images, labels = images_of(drive), labels_of(out)
    assert list(labels) == [stamp for stamp, _ in images]
    # The last window of the drive, computed without the code under test.
    window = int(loaded.config["window"])
    video = torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for _, image in images[-window:]])
    small = torch.nn.functional.interpolate(video, size=(32, 64), mode="bilinear", antialias=True)
    with torch.inference_mode():
        probabilities = loaded.model(small[None].float() / 255)[:, -1].softmax(1)
    large = torch.nn.functional.interpolate(probabilities, size=(64, 128), mode="bilinear")
    expected = large[0].argmax(0).numpy()
    assert (labels[images[-1][0]] == expected).mean() > 0.999
    with BagReader(drive) as before, BagReader(out) as after:
        assert [data for *_, data in before.raw([IMAGES])] == [data for *_, data in after.raw([IMAGES])]
        assert read_label_set(after).names == STREET.names
        assert after.times([LABELS]).tolist() == before.times([IMAGES]).tolist()
    summary = json.loads(report.read_text())
    assert summary["labels"] == summary["images"] == 8 and summary["kept_share"] == 1.0
    all_ids = np.concatenate([label.ravel() for label in labels.values()])
    for number, name in enumerate(STREET.names):
        assert summary["class_shares"][name] == pytest.approx((all_ids == number).mean())
    assert cv2.imread(str(out / "contact_sheet.jpg")).shape == (4 * 240, 2 * 2 * 480, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.json"]


def test_every_confidence_and_ego_mask(drive, tiny_checkpoint, tmp_path):
    mask = np.zeros((64, 128), np.uint8)
    mask[50:] = 255
    cv2.imwrite(str(tmp_path / "ego.png"), mask)
    all_, some = tmp_path / "all", tmp_path / "some"
    base = (drive, "--checkpoint", tiny_checkpoint, "--every", 3)
    assert run(*base, "--out", all_, "--min-confidence", 0) == 0
    assert (
        run(
            *base,
            "--out",
            some,
            "--min-confidence",
            0,
            "--class-confidence",
            "road=1",
            "--ego-mask",
            tmp_path / "ego.png",
        )
        == 0
    )
    everything, kept = labels_of(all_), labels_of(some)
    stamps = [stamp for stamp, _ in images_of(drive)]
    assert list(everything) == list(kept) == stamps[::3]
    road = STREET.names.index("road")
    for stamp, label in kept.items():
        expected = everything[stamp].copy()
        expected[expected == road] = 255
        expected[50:] = 255
        np.testing.assert_array_equal(label, expected)


def test_averaging_scales_and_flips(tiny_checkpoint, rng):
    image = rng.integers(0, 255, (64, 128, 3), dtype=np.uint8)
    loaded = load_checkpoint(tiny_checkpoint)

    def of(image, **options):
        return Teacher(loaded, Averaging((64, 32), **options)).probabilities([image]).numpy()

    plain, mirrored = of(image), of(np.ascontiguousarray(image[:, ::-1]))[..., ::-1]
    np.testing.assert_allclose(of(image, flip=True), (plain + mirrored) / 2, atol=1e-5)
    large = torch.from_numpy(Teacher(loaded, Averaging((128, 64))).probabilities([image]).numpy())
    both = of(image, scales=(1.0, 2.0))
    assert both.shape == plain.shape and np.allclose(both.sum(0), 1, atol=1e-4)
    # The mean of logits and of probabilities resized differ a little; their classes hardly.
    small = torch.nn.functional.interpolate(large[None], size=(32, 64), mode="bilinear")[0].numpy()
    assert np.abs(both - (plain + small) / 2).mean() < 0.05


def test_neighbours_are_warped_to_the_frame(tiny_checkpoint, rng):
    noise = cv2.GaussianBlur(rng.integers(0, 255, (96, 160, 3), dtype=np.uint8), (0, 0), 2)
    noise = cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX)
    image, other = noise[:, 20:148].copy(), noise[:, 26:154].copy()  # the other one is moved 6 px to the left
    teacher = Teacher(load_checkpoint(tiny_checkpoint), Averaging((128, 96), neighbours=1))
    columns = torch.arange(128.0).expand(1, 96, 128)
    mean = teacher.average(image, columns * 0, [(other, columns)])[0].numpy()
    expected = (np.arange(128) - 6) / 2  # half of where the pixel is in the other frame
    assert np.median(np.abs(mean[20:76, 20:110] - expected[20:110])) < 0.3


def test_flow_that_disagrees_does_not_count():
    there = np.zeros((10, 20, 2), np.float32)
    there[..., 0] = 3
    back = -there
    assert consistent(there, back)[:, :17].all()
    assert not consistent(there, back)[:, 17:].any()  # leads out of the image
    back[:, :10] += 4
    assert not consistent(there, back)[:, :7].any()


def test_classes_are_summed_by_the_map(tiny_checkpoint):
    loaded = load_checkpoint(tiny_checkpoint)
    teacher = Teacher(loaded, Averaging((64, 32)))
    labels = LabelSet.from_names(["vehicle", "flat"])
    groups = np.zeros((2, 14), np.float32)
    groups[0, [11, 12, 13]] = 1
    groups[1, 5] = 1
    probabilities = torch.zeros(14, 32, 64)
    probabilities[[11, 12, 13]] = 0.2  # together 0.6
    probabilities[5] = 0.25
    probabilities[1] = 0.15
    image = np.zeros((32, 64, 3), np.uint8)
    assert (Acceptance(labels, groups, 0.59).decide(probabilities, teacher, image) == 0).all()
    assert (Acceptance(labels, groups, 0.61).decide(probabilities, teacher, image) == 255).all()
    assert (
        Acceptance(labels, groups, 0.9, {"vehicle": 0.5}).decide(probabilities, teacher, image) == 0
    ).all()
    probabilities[[11, 12, 13]] = 0.1
    probabilities[1] = 0.45  # sky has no target
    assert (Acceptance(labels, groups).decide(probabilities, teacher, image) == 255).all()


def test_an_interrupted_run_goes_on(drive, tiny_checkpoint, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    base = (drive, "--checkpoint", tiny_checkpoint, "--min-confidence", 0.3, "--neighbours", 1)
    assert run(*base, "--out", whole) == 0
    save, saved = WorkFolder.save, []

    def stop_at_third(self, stamp_ns, ids):
        save(self, stamp_ns, ids)
        saved.append(stamp_ns)
        if len(saved) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(WorkFolder, "save", stop_at_third)
    assert run(*base, "--out", out) == 1
    assert not out.exists() and (tmp_path / ".out.pseudolabel").is_dir() and len(saved) == 3
    assert run(*base, "--flip", "--out", out) == 2  # other settings
    report = tmp_path / "out.json"
    assert run(*base, "--out", out, "--json", report) == 0
    assert len(saved) == 8 and json.loads(report.read_text())["resumed"] == 3
    first, second = labels_of(whole), labels_of(out)
    assert list(first) == list(second)
    assert all(np.array_equal(first[stamp], second[stamp]) for stamp in first)
    assert not (tmp_path / ".out.pseudolabel").exists()


def test_a_video(tiny_checkpoint, tmp_path):
    times_ms = [0, 100, 700, 800, 900]
    write_video(tmp_path / "clip.mp4", times_ms)
    out = tmp_path / "out"
    assert (
        run(tmp_path / "clip.mp4", "--checkpoint", tiny_checkpoint, "--out", out, "--min-confidence", 0) == 0
    )
    with BagReader(out) as bag:
        images = [stamp_of(m) for _, _, m in bag.messages(["/camera/image/compressed"])]
    stamps = list(labels_of(out))
    assert stamps == images and [(stamp - stamps[0]) // 1_000_000 for stamp in stamps] == times_ms
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out"]


def test_a_video_of_a_job_has_no_bar_of_its_own(tiny_checkpoint, tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", [0, 100])

    def refuse(*_: object) -> None:
        raise AssertionError("a second bar")

    monkeypatch.setattr("vtseg_ros.commands.pseudolabel.track", refuse)
    options = ("--checkpoint", tiny_checkpoint, "--min-confidence", 0, "--ray", "none")
    assert run(tmp_path / "clip.mp4", "--out", tmp_path / "out", *options) == 0


def test_frames_that_cannot_be_labelled_are_named(drive, tiny_checkpoint, tmp_path):
    with BagReader(drive) as bag, BagWriter(tmp_path / "odd") as out:
        for number, (topic, kind, time_ns, data) in enumerate(bag.raw([IMAGES])):
            out.write_raw(topic, kind, data[:60] if number == 2 else data, time_ns)
            if number == 4:
                out.write_raw(topic, kind, data, time_ns + 1)
    report = tmp_path / "report.json"
    options = ("--checkpoint", tiny_checkpoint, "--min-confidence", 0, "--json", report)
    assert run(tmp_path / "odd", "--out", tmp_path / "out", *options) == 0
    made = json.loads(report.read_text())
    assert (made["images"], made["labels"], len(made["left_out"])) == (9, 7, 2)
    assert len(labels_of(tmp_path / "out")) == 7


def test_no_confident_pixel(drive, tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(drive, "--checkpoint", tiny_checkpoint, "--out", out, "--min-confidence", 1, "--every", 4) == 2
    assert "no frame got a label" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nothing.safetensors"], "no checkpoint"),
        (["--class-map", "map.yaml"], "unknown source class"),
        (["--class-map", "none.yaml"], "cannot be read"),
        (["--class-confidence", "tram=0.5"], "unknown class"),
        (["--class-confidence", "road"], "NAME=PROBABILITY"),
        (["--class-confidence", "road=2"], "out of range"),
        (["--min-confidence", "-1"], "out of range"),
        (["--ego-mask", "small.png"], "wrong size"),
        (["--ego-mask", "none.png"], "not an ego mask"),
        (["--size", "100x50"], "multiples of 32"),
        (["--scales", "9"], "scales"),
        (["--neighbours", "-1"], "neighbours"),
        (["--every", "0"], "--every"),
        (["--image-topic", "/other"], "no topic /other"),
    ],
)
def test_bad_arguments(drive, tiny_checkpoint, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "map.yaml").write_text("road: [motorway]\n")
    cv2.imwrite("small.png", np.zeros((8, 8), np.uint8))
    before = sorted(tmp_path.iterdir())
    assert run(drive, "--checkpoint", tiny_checkpoint, "--out", "out", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vtseg pseudolabel: ") and message in error
    assert sorted(tmp_path.iterdir()) == before


def test_input_that_is_no_bag_or_video(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"not a video" * 100)
    for name, message in {"broken.mp4": "not a video", "missing": "no such file"}.items():
        out = tmp_path / "out"
        assert run(tmp_path / name, "--checkpoint", tiny_checkpoint, "--out", out) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["broken.mp4"]
