# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Jobs of evaluate, pseudolabel and select against single runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import IMAGE, image_message, typestore
from vtseg_ros.cli import main
from vtseg_ros.label_set import IGNORE, STREET

NS = 1_000_000_000


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Two bags of 19 images and labels whose content moves slowly, so that the temporal scores exist."""
    folder, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(11)
    for number in (1, 2):
        image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        label = rng.integers(0, len(STREET), (6, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        label[:4] = IGNORE
        with BagWriter(folder / f"drive_{number}") as bag:
            if number == 2:
                bag.write_label_map("/camera/label_map", STREET, NS)
            for index in range(19):
                stamp = NS + index * NS // 10 + (5 * NS if index >= 17 else 0)
                moved = np.roll(image, index, axis=1)
                data = typestore().serialize_cdr(image_message(moved, "rgb8", stamp, "camera"), IMAGE)
                bag.write_raw("/camera/image", IMAGE, data, stamp)
                if (number, index) != (1, 3):
                    bag.write_label("/camera/label", np.roll(label, index // 4, axis=1), stamp, "camera")
    return folder


def run(command, *arguments):
    return main([command, *map(str, arguments), "--device", "cpu"])


def test_merged_scores_equal_the_single_run(labelled, tiny_checkpoint, tmp_path, capsys):
    options = ["--checkpoint", tiny_checkpoint, "--window", "2"]
    bags = sorted(labelled.iterdir())
    assert run("evaluate", *bags, *options, "--json", tmp_path / "single.json", "--pictures", "0") == 0
    job = [f"{labelled}/*", *options, "--out", tmp_path / "out", "--ray", "none"]
    assert run("evaluate", *job) == 0
    single = json.loads((tmp_path / "single.json").read_text())
    merged = json.loads((tmp_path / "out" / "report.json").read_text())
    for one, other in zip(single["systems"], merged["systems"], strict=True):
        scores = [key for key, value in one.items() if isinstance(value, float)]
        assert {"miou", "pixel_accuracy", "mvc8", "mvc16", "temporal_consistency", "calibration_error"} == {
            *scores
        }
        for key in scores:
            assert other[key] == pytest.approx(one[key], abs=1e-9, rel=0), key
        assert other["iou"] == pytest.approx(one["iou"], abs=1e-9, rel=0, nan_ok=True)
        assert other["frames"] == one["frames"] == 37
    assert {**single["facts"]} == merged["facts"]
    assert "no label map" in capsys.readouterr().out
    written = (tmp_path / "out" / "drive_1" / "result.json").stat().st_mtime_ns
    assert run("evaluate", *job) == 0  # from the counts of the first run
    assert (tmp_path / "out" / "drive_1" / "result.json").stat().st_mtime_ns == written
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == merged
    assert run("evaluate", *job, "--every", "2") == 2
    assert "none of --every" in capsys.readouterr().err


def test_scores_without_the_unreadable_bag(labelled, tiny_checkpoint, tmp_path):
    (tmp_path / "bad").mkdir()
    options = ["--checkpoint", tiny_checkpoint, "--out", tmp_path / "out", "--ray", "none"]
    assert run("evaluate", labelled / "drive_1", tmp_path / "bad", *options) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["facts"]["bag"] == "drive_1" and report["facts"]["failed"].startswith("1 more")
    assert run("evaluate", tmp_path / "bad", *options) == 2


def test_pseudolabels_equal_the_single_run(labelled, tiny_checkpoint, tmp_path):
    options = ["--checkpoint", tiny_checkpoint, "--min-confidence", "0.1", "--every", "4"]
    single, out = tmp_path / "single", tmp_path / "out"
    assert run("pseudolabel", labelled / "drive_1", "--out", single, *options) == 0
    assert run("pseudolabel", f"{labelled}/drive_[12]", "--out", out, *options) == 0
    contents = []
    for path in (single, out / "drive_1" / "labelled"):
        with BagReader(path) as bag:
            contents.append([(topic, time_ns, bytes(data)) for topic, _, time_ns, data in bag.raw()])
    assert contents[0] == contents[1] and len(contents[0]) > 20
    assert (out / "drive_2" / "result.json").exists()
    assert not [path for path in out.rglob(".*")]  # nothing unfinished


def test_selection_equals_the_single_run(labelled, tiny_checkpoint, tmp_path):
    options = ["--checkpoint", tiny_checkpoint, "--count", "5", "--spacing", "0.3", "--every", "3"]
    bags = sorted(labelled.iterdir())
    assert run("select", *bags, "--out", tmp_path / "single", *options) == 0
    job = ["select", *bags, "--out", tmp_path / "out", "--ray", "none", *options]
    assert run(*job) == 0
    single, made = tmp_path / "single", tmp_path / "out" / "selection"
    names = sorted(path.relative_to(single) for path in single.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    for name in names:
        assert (single / name).read_bytes() == (made / name).read_bytes(), name
    assert run(*job) == 2  # nothing is overwritten
