# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""docs/guide/your_own_camera.md walked: the page's own commands on an unlabelled drive, up to masks over DDS."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip("lightning_fabric")

from conftest import ROOT, wait_until

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.cli import main
from vtseg_ros.label_set import STREET
from vtseg_ros.labelling.palette import format_palette
from vtseg_ros.model import load_checkpoint

pytestmark = pytest.mark.long  # a walked guide

PAGE = (ROOT / "docs" / "guide" / "your_own_camera.md").read_text().split("## Data sets")[0]


def commands() -> list[list[str]]:
    """The commands of the page, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    return [
        shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()
    ]


def truth_of(bag: Path) -> dict[int, np.ndarray]:
    with BagReader(bag) as reader:
        return {stamp_of(m): decode_label(m) for _, _, m in reader.messages(["/camera/label"])}


def record_drive(source: Path, out: Path) -> None:
    """Only the camera's images, as `ros2 bag record` writes them."""
    with BagReader(source) as bag, BagWriter(out) as drive:
        for topic, msgtype, time_ns, data in bag.raw(["/camera/image"]):
            drive.write_raw(topic, msgtype, data, time_ns)


def paint(frames: Path, masks: Path, truth: dict[int, np.ndarray]) -> None:
    """The labelling: the true classes' colours under the frames' names, some uncertain pixels left black."""
    masks.mkdir()
    palette = STREET.palette()
    for file in frames.glob("*.png"):
        ids = truth[int(file.stem.split("_")[1])].copy()
        ids[:, :3] = 255
        cv2.imwrite(str(masks / file.name), palette[ids][..., ::-1])


def write_config(path: Path) -> None:
    """The page's YAML with fewer and smaller steps."""
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
    config["data"].update(size=[64, 32], split_gap_s=0.3, workers=0)
    for stage in config["stages"]:
        stage.update(steps=3, batch=2)
    config.update(validate_every=0, device="cpu", window_sweep_frames=0)
    path.write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def walked(street_bag, tmp_path_factory):
    """The folder after all commands but the last one, and that one's arguments."""
    folder = tmp_path_factory.mktemp("walk")
    truth = truth_of(street_bag)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "classes.txt").write_text(format_palette(STREET))
        done = []
        for command in commands():
            if command[0] == "ros2":
                record_drive(street_bag, folder / "drive")
            elif command[0] == "vtseg":
                assert main(command[1:]) == 0, command
            else:
                last = command
            done.append(" ".join(command[:3]))
            if command[:3] == ["vtseg", "labels", "extract"]:
                paint(folder / "frames", folder / "masks", truth)
            if command[:3] == ["vtseg", "labels", "merge"]:
                write_config(folder / "train.yaml")
    assert [words.split()[1] for words in done if words.startswith("vtseg")] == [
        "info",
        "labels",
        "labels",
        "preview-augmentation",
        "train",
        "segment",
    ]
    return folder, last


def test_twenty_labels_are_in_the_bag(walked, street_bag):
    folder, _ = walked
    truth = truth_of(street_bag)
    with BagReader(folder / "labelled") as bag:
        found = {stamp_of(m): decode_label(m) for _, _, m in bag.messages(["/camera/label/compressed"])}
        assert bag.topics["/camera/image"].count == 30
    assert len(found) == 20
    for stamp, ids in found.items():
        np.testing.assert_array_equal(ids[:, 3:], truth[stamp][:, 3:])
        assert (ids[:, :3] == 255).all()


def test_what_was_trained(walked):
    folder, _ = walked
    loaded = load_checkpoint(folder / "run" / "best.safetensors")
    assert loaded.labels.names == STREET.names and loaded.input_size == (64, 32)
    assert 8 <= loaded.training["labelled_frames"] <= 15  # three quarters of 20, less the guard
    assert cv2.imread(str(folder / "sheet.png")).shape[1] == 4 * 320 + 3 * 4
    video = cv2.VideoCapture(str(folder / "drive.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 30


def test_the_segmenter_runs_with_it(walked, ros_environment, start_node, tmp_path):
    pytest.importorskip("rclpy")
    from nodes.harness import Harness
    from sensor_msgs.msg import Image

    folder, command = walked
    assert command[:2] == ["segmenter", "--ros-args"]
    arguments = [a.replace("run/best", f"{folder}/run/best") for a in command[2:]]
    node = start_node("segmenter", *arguments, "-p", "input_qos:=reliable", "-p", "device:=cpu")
    node.wait_for("window 4")
    harness = Harness(ros_environment)
    try:
        masks = harness.collect(Image, "/segmentation/mask")
        wait_until(lambda: harness.node.count_publishers("/segmentation/mask") == 1)
        play = [
            sys.executable,
            "-m",
            "vtseg_ros.cli",
            "play",
            str(folder / "drive"),
            "--rate",
            "0.5",
            "--wait-for",
            "/camera/image",
        ]
        subprocess.run(play, env=ros_environment, check=True, timeout=600, capture_output=True)
        wait_until(lambda: len(masks) >= 5, lambda: node.output())
    finally:
        harness.close()
    assert all((m.height, m.width, m.encoding) == (64, 128, "mono8") for m in masks)
    assert max(max(m.data) for m in masks) < len(STREET)
