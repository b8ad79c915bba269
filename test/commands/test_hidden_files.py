# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Hidden files of systems and editors are ignored, in folders and in zip files."""

from __future__ import annotations

import json
import zipfile

import cv2
import numpy as np
import pytest
from bags.bagtools import START_NS, picture, write_bag

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.cli import main

FORK = b"\0\5\x16\7\0\2\0\0Mac OS X        "
HIDDEN = (
    "._{}",
    ".~lock.{}",
    ".ipynb_checkpoints/{}",
    "__MACOSX/._{}",
    ".Trash-1000/files/{}",
    "__MACOSX/{}",
)
TOPIC = "/camera/label/compressed"


def png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


def frame(number):
    return f"frame_{START_NS + number * 10**8:019d}.png"


@pytest.mark.parametrize("packed", [True, False])
def test_masks(tmp_path, packed):
    bag = write_bag(tmp_path / "bag", [0, 0.1], label_stride=0)
    files = {frame(n): png(np.full((32, 64), n + 1, np.uint8)) for n in range(2)}
    files.update({pattern.format(name): FORK for name in list(files) for pattern in HIDDEN})
    files[".labelmap.txt"] = b"no class list"
    masks = tmp_path / ("masks.zip" if packed else "masks")
    if packed:
        with zipfile.ZipFile(masks, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (masks / name).parent.mkdir(parents=True, exist_ok=True)
            (masks / name).write_bytes(data)
    report = tmp_path / "r.json"
    assert (
        main(["labels", "merge", str(bag), str(masks), "--out", str(tmp_path / "out"), "--json", str(report)])
        == 0
    )
    assert json.loads(report.read_text())["refused"] == []
    with BagReader(tmp_path / "out") as merged:
        ids = [decode_label(message) for _, _, message in merged.messages([TOPIC])]
    assert [int(one.max()) for one in ids] == [1, 2] and [int(one.min()) for one in ids] == [1, 2]


def test_images_and_their_masks(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder / ".thumbnails").mkdir(parents=True)
        for number in range(3):
            data = png(picture(number)) if folder == "images" else png(np.full((32, 64), number, np.uint8))
            (tmp_path / folder / f"{number:04d}.png").write_bytes(data)
            (tmp_path / folder / f"._{number:04d}.png").write_bytes(FORK)
            (tmp_path / folder / f".{number:04d}.png.swp").write_bytes(FORK)
            (tmp_path / folder / ".thumbnails" / f"{number:04d}.png").write_bytes(FORK)
    (tmp_path / "classes.txt").write_text("a:1,2,3::\nb:2,3,4::\nc:3,4,5::\n")
    command = ["import", "images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    command += ["--labels", str(tmp_path / "classes.txt"), "--out", str(tmp_path / "bag")]
    assert main(command) == 0
    with BagReader(tmp_path / "bag") as bag:
        images = [decode_any(message) for _, _, message in bag.messages(["/camera/image/compressed"])]
        assert len(images) == 3 and bag.topics[TOPIC].count == 3


def test_bags(tmp_path):
    bag = write_bag(tmp_path / "bag", [0, 0.1])
    (bag / "metadata.yaml").unlink()
    (bag / "._bag.mcap").write_bytes(FORK)
    (bag / ".metadata.yaml.swp").write_bytes(FORK)
    with BagReader(bag) as reader:
        assert reader.topics["/camera/image"].count == 2
