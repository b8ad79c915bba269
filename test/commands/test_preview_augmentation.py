# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg preview-augmentation`: the sheet shows windows with their labels, the same for the same seed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml
from bags.bagtools import CLASSES, write_bag

pytest.importorskip("lightning_fabric")

from vtseg_ros.cli import main


@pytest.fixture
def config(tmp_path):
    write_bag(tmp_path / "bag", [i / 10 for i in range(20)], label_stride=5)
    path = tmp_path / "train.yaml"
    plain = {
        "pseudo_clips": 1.0,
        "flip": 0.0,
        "blur": 0.0,
        "brightness": 0.0,
        "saturation": 0.0,
        "hue_deg": 0.0,
    }
    still = {
        "scale": [1.0, 1.0],
        "rotation_deg": 0.0,
        "path_zoom": 0.0,
        "path_shift": 0.0,
        "path_rotation_deg": 0.0,
    }
    values = {
        "data": {"train": ["bag"], "size": [64, 32], "validation_share": 0.4, "split_gap_s": 0.2},
        "stages": [{"name": "static", "steps": 1}],
        "augmentation": {**plain, **still},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def draw(config, out, *options) -> np.ndarray:
    assert main(["preview-augmentation", str(config), "--out", str(out), *options]) == 0
    return cv2.imread(str(out))[..., ::-1]


def test_frames_above_and_labels_below(config, tmp_path, capsys):
    """Without any change a pseudo-clip is its labelled frame k times; labels are its class's colour, 60 %."""
    sheet = draw(config, tmp_path / "sheet.png", "--windows", "2", "--frames", "3")
    printed = capsys.readouterr().out.strip()
    assert printed.endswith("2 windows of 3 frames, oldest on the left; 3 labelled frames for training")
    # Labelled frames of the training part: 0, 5 and 10, five-fold enlarged; two windows of a title and two rows.
    height = 24 + 2 * 160 + 4
    assert sheet.shape == (2 * height + 10, 3 * 320 + 2 * 4, 3)
    numbers = []
    for top in (24, 24 + height + 10):
        for column in range(3):
            image = sheet[top : top + 160, column * 324 : column * 324 + 320]
            below = sheet[top + 164 : top + 324, column * 324 : column * 324 + 320]
            numbers.append(int(image[0, 0, 0]))  # the red channel is the frame's number
            color = np.array(CLASSES.colors[numbers[-1]])
            np.testing.assert_allclose(below[100, 100], 0.4 * image[100, 100] + 0.6 * color, atol=1.5)
            np.testing.assert_array_equal(below[10, 100], image[10, 100] // 3)  # unlabelled: dark
    assert numbers[:3] == [numbers[0]] * 3 and numbers[3:] == [numbers[3]] * 3
    assert set(numbers) < {0, 5, 10} and len(set(numbers)) == 2


def test_a_seed_gives_the_same_sheet(config, tmp_path):
    one, two, three = (
        draw(config, tmp_path / f"{i}.png", "--seed", seed, "--windows", "3") for i, seed in enumerate("445")
    )
    assert np.array_equal(one, two) and not np.array_equal(one, three)


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("sheet.jpg", [], "expected .png"),
        ("sheet.png", ["--windows", "0"], "at least 1, got 0, 4"),
        ("train.yaml", [], "choose another --out"),
    ],
)
def test_mistakes(config, tmp_path, capsys, out, options, words):
    assert main(["preview-augmentation", str(config), "--out", str(tmp_path / out), *options]) == 2
    assert words in capsys.readouterr().err
