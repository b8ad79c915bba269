# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Ego masks and baselines as people draw them, in running nodes."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("rclpy")

from bags.files import INDEXED, RGBA, png_file
from nodes.camera import Camera
from nodes.harness import LATCHED
from vtseg_ros.msg import LabelEntry, LabelMap


def test_a_black_robot_on_a_clear_layer(harness, start_segmenter, tiny_checkpoint, tmp_path):
    rgba = np.zeros((48, 80, 4), np.uint8)
    rgba[36:, :, 3] = 255
    (tmp_path / "hood.png").write_bytes(png_file(rgba, RGBA))
    node = start_segmenter("/hood", tiny_checkpoint, "-p", f"ego_mask:={tmp_path / 'hood.png'}")
    camera = Camera(harness, node, "/hood")
    found = camera.mask_of(camera.good())
    assert (found[36:] == 255).all() and (found[:36] != 255).all()
    assert "covers" not in node.output()


def test_an_ego_mask_that_covers_nothing_is_told(start_segmenter, tiny_checkpoint, tmp_path):
    (tmp_path / "clear.png").write_bytes(png_file(np.zeros((48, 80, 4), np.uint8), RGBA))
    node = start_segmenter("/clear", tiny_checkpoint, "-p", f"ego_mask:={tmp_path / 'clear.png'}")
    assert "clear.png covers nothing" in node.output()


def test_a_baseline_with_a_palette(harness, start_node, tmp_path):
    ids = np.array([[0, 1], [1, 0]])
    palette = [(0, 0, 0), (128, 0, 0)]
    (tmp_path / "base.png").write_bytes(png_file(ids, INDEXED, 1, palette=palette))
    node = start_node(
        "evaluator",
        "-r",
        "__ns:=/base",
        "-p",
        f"output_dir:={tmp_path / 'out'}",
        "-p",
        f"baseline:={tmp_path / 'base.png'}",
    )
    labels = [LabelEntry(id=0, name="ground", r=9), LabelEntry(id=1, name="road", r=8)]
    harness.publisher(LabelMap, "/base/segmentation/label_map", LATCHED).publish(LabelMap(labels=labels))
    node.wait_for("indices of 1 indexed masks are taken as class ids")
    assert node.stop() == 0, node.output()
    assert "baseline_miou" in json.loads((tmp_path / "out" / "report.json").read_text())
