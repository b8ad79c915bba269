# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""docs/guide/train_without_labels.md walked: the page's own commands on a video of a synthetic street."""

from __future__ import annotations

import json
import re
import shlex

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import yaml

pytest.importorskip("lightning_fabric")

from conftest import ROOT

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.topics import read_label_set
from vtseg_ros.cli import main
from vtseg_ros.label_set import STREET
from vtseg_ros.labelling.masks import read_ego_mask
from vtseg_ros.model import load_checkpoint

pytestmark = pytest.mark.long

PAGE = (ROOT / "docs" / "guide" / "train_without_labels.md").read_text()
BONNET = 12
"""Rows at the bottom that show the robot."""


def commands() -> list[list[str]]:
    """The commands of the page, comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    return [
        shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()
    ]


def film(source, path) -> None:
    """The street's images as a video with a static bonnet."""
    paint = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 255, (BONNET, 128, 3), dtype=np.uint8), (0, 0), 2
    )
    writer = imageio_ffmpeg.write_frames(str(path), (128, 64), fps=10, quality=9, macro_block_size=2)
    writer.send(None)
    with BagReader(source) as bag:
        for _, _, message in bag.messages(["/camera/image"]):
            image = decode_any(message).copy()
            image[-BONNET:] = paint
            writer.send(image)
    writer.close()


def write_config(path) -> None:
    """The page's YAML with fewer and smaller steps."""
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
    config["data"].update(size=[64, 32], split_gap_s=0.3, workers=0)
    for stage in config["stages"]:
        stage.update(steps=3, batch=2)
    config.update(validate_every=0, device="cpu", window_sweep_frames=0)
    path.write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def walked(street_bag, tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        film(street_bag, folder / "drive.mp4")
        for command in commands():
            done.append(" ".join(command[1:3]))
            if command[1] == "weights":  # a download; the shipped weights take its place
                continue
            if command[1] == "train":
                write_config(folder / "train.yaml")
            command = ["street_tiny" if word.startswith("efficientvit") else word for word in command]
            assert main(command[1:]) == 0, command
    assert [name.split()[0] for name in done] == [
        "import",
        "ego-mask",
        "weights",
        "pseudolabel",
        "train",
        "segment",
    ]
    return folder


def test_the_bonnet_is_masked(walked):
    mask = read_ego_mask(walked / "ego.png")
    # The smooth grey road right above the bonnet hardly changes either.
    assert mask[2 - BONNET :].all() and mask[:-BONNET].mean() < 0.06


def test_every_fifth_image_has_a_label(walked):
    with BagReader(walked / "drive") as drive, BagReader(walked / "labelled") as bag:
        topic = "/camera/image/compressed"
        assert [data for *_, data in bag.raw([topic])] == [data for *_, data in drive.raw([topic])]
        labels = [decode_label(m) for _, _, m in bag.messages(["/camera/label/compressed"])]
        assert read_label_set(bag).names == STREET.names
    assert len(labels) == 6
    mask = read_ego_mask(walked / "ego.png")
    assert all((label[mask] == 255).all() and (label[:20] != 255).any() for label in labels)
    report = json.loads((walked / "labelled.json").read_text())
    kept = np.mean([label != 255 for label in labels])
    assert report["labels"] == 6 and report["kept_share"] == pytest.approx(kept)
    assert cv2.imread(str(walked / "labelled" / "contact_sheet.jpg")) is not None


def test_a_network_was_trained_and_runs(walked):
    loaded = load_checkpoint(walked / "run" / "best.safetensors")
    assert loaded.labels.names == STREET.names and loaded.input_size == (64, 32)
    assert loaded.training["labelled_frames"] >= 3
    video = cv2.VideoCapture(str(walked / "masks.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 30
