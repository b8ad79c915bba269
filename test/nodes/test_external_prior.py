# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A user's TorchScript network of five classes as the static network of a VTSeg in a running segmenter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("rclpy")

from conftest import make_checkpoint, wait_until
from nodes.encoders import NS, image_message
from nodes.harness import LATCHED
from sensor_msgs.msg import Image
from vtseg_ros.msg import LabelMap, SegmentationStatus

from vtseg_ros.label_set import STREET
from vtseg_ros.model import load_checkpoint

# For each of ground, sky, plants, walls, vehicles: its class of the street's.
MAPPING = (5, 1, 2, 4, 12)


class Users(nn.Module):
    """Control flow keeps it from being traced: it is scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.convolution(images)
        for _ in range(2):
            logits = logits * 3.0
        return logits


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("users") / "users_network.pt"
    torch.jit.script(Users().eval()).save(str(path))
    return path


@pytest.fixture(scope="module")
def checkpoint(prior, tmp_path_factory):
    from vtseg_ros.model.checkpoint import load_external_prior

    path = tmp_path_factory.mktemp("weights") / "external.safetensors"
    network = load_external_prior(str(prior), num_classes=5, size=(32, 64))
    return make_checkpoint(
        path, network, window=2, static_prior="external", prior_classes=5, class_mapping=MAPPING
    )


def test_masks_over_dds_are_the_whole_networks(harness, start_node, checkpoint, prior):
    node = start_node(
        "segmenter",
        "-r",
        "__ns:=/external",
        "-p",
        f"checkpoint:={checkpoint}",
        "-p",
        f"static_prior:={prior}",
        "-p",
        "autostart:=true",
        "-p",
        "input_qos:=reliable",
        "-p",
        "max_gap:=60.0",
    )
    images = harness.publisher(Image, "/external/image")
    masks = harness.collect(Image, "/external/segmentation/mask")
    status = harness.collect(SegmentationStatus, "/external/segmentation/status")
    label_map = harness.collect(LabelMap, "/external/segmentation/label_map", LATCHED)
    node.wait_for("window 2")
    wait_until(lambda: images.get_subscription_count() > 0, node.output)
    wait_until(lambda: len(label_map) > 0, node.output)
    assert [entry.name for entry in label_map[-1].labels] == list(STREET.names)
    rng = np.random.default_rng(3)
    frames = [rng.integers(0, 256, (32, 64, 3), dtype=np.uint8) for _ in range(3)]
    for number, frame in enumerate(frames, start=1):
        images.publish(image_message(frame, "rgb8", number * NS))
        wait_until(lambda n=number: len(masks) == n, lambda: f"{node.output()} {status}")
    model = load_checkpoint(checkpoint, static_prior=str(prior)).model
    for newest in range(3):
        window = np.stack(frames[max(0, newest - 1) : newest + 1])
        with torch.no_grad():
            logits = model(torch.from_numpy(window).permute(0, 3, 1, 2)[None] / 255)[0, -1]
        mask = np.frombuffer(masks[newest].data, np.uint8).reshape(32, 64)
        assert (mask == logits.argmax(0).numpy()).mean() > 0.999
    assert len(np.unique(mask)) > 1
    processed = [s for s in status if s.event == SegmentationStatus.PROCESSED]
    assert [s.frames_in_window for s in processed] == [1, 2, 2]


def test_without_it_the_node_says_what_is_missing(start_node, checkpoint):
    node = start_node("segmenter", "-p", f"checkpoint:={checkpoint}", "-p", "autostart:=true")
    wait_until(lambda: "static_prior" in node.output(), node.output)
    assert "Name it by the parameter `static_prior`" in node.output() and "Traceback" not in node.output()
