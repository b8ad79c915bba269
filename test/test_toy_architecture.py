# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A network in one file of somebody's package goes through training, evaluation, segmenting, export and the node."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning_fabric")
pytest.importorskip("onnxruntime")

from conftest import wait_until

from vtseg_ros.cli import main
from vtseg_ros.label_set import STREET
from vtseg_ros.model import load_checkpoint, registry

SOURCE = '''
import torch
from torch import nn

from vtseg_ros.model.registry import Network, register


@register("toy", title="Toy", class_dimensions={r"classify\\\\.(weight|bias)": (0,)})
class Toy(Network):
    """Two convolutions."""

    def __init__(self, *, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Conv2d(3, 8, 3, padding=1)
        self.classify = nn.Conv2d(8, num_classes, 1)

    def forward(self, images):
        return self.classify(torch.relu(self.features(images)))
'''
ENTRY_POINTS = "[vtseg_ros.architectures]\ntoy = toy_network\n"
CONFIG = """
data: {{train: [{bag}], validation_share: 0.4, size: [64, 32], labels: street, workers: 0}}
model: {{architecture: toy}}
stages: [{{name: static, steps: 2, batch: 2, max_lr: 0.01}}]
window_sweep_frames: 0
preview_frames: 0
device: cpu
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder of the installed package: its file, and the entry point that its installer writes."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "toy_network.py").write_text(SOURCE)
    installed = folder / "toy_network-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-network\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(ENTRY_POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(registry, "_plugins_loaded", False)
        patch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
        yield folder
    sys.modules.pop("toy_network", None)


@pytest.fixture(scope="module")
def trained(package, street_bag, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.yaml").write_text(CONFIG.format(bag=street_bag))
    assert main(["train", str(folder / "toy.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run" / "best.safetensors"


def test_training_records_the_architecture(trained):
    checkpoint = load_checkpoint(trained)
    assert checkpoint.architecture == "toy" and checkpoint.labels.names == STREET.names
    assert type(checkpoint.model).__name__ == "Toy"


def test_evaluation_uses_its_title(trained, street_bag, tmp_path):
    file = tmp_path / "scores.json"
    arguments = [str(street_bag), "--checkpoint", str(trained), "--device", "cpu", "--json", str(file)]
    assert main(["evaluate", *arguments]) == 0
    (system,) = json.loads(file.read_text())["systems"]
    assert system["name"] == "Toy" and system["model"] == "toy" and 0 <= system["miou"] <= 100


def test_segmenting_and_the_export_agree(trained, street_bag, tmp_path):
    from vtseg_ros import VideoPredictor

    exported = tmp_path / "toy.onnx"
    assert main(["export", str(trained), "--out", str(exported)]) == 0
    assert (
        main(
            [
                "segment",
                str(street_bag),
                "--checkpoint",
                str(trained),
                "--out",
                str(tmp_path / "masks"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    by_network, by_file = (
        VideoPredictor(source, device="cpu", precision="fp32").step(image) for source in (trained, exported)
    )
    assert (by_network.mask == by_file.mask).mean() > 0.999


def test_it_can_be_a_static_network(trained, street_bag, tmp_path):
    from vtseg_ros.model import VTSeg, VTSegConfig, save_checkpoint

    model = VTSeg(VTSegConfig.preset("tiny", num_classes=len(STREET), static_prior="toy"))
    save_checkpoint(tmp_path / "video.safetensors", model.eval(), labels=STREET, input_size=(64, 32))
    assert load_checkpoint(tmp_path / "video.safetensors").config["static_prior"] == "toy"


def test_costs_list_it(package, capsys):
    assert main(["flops", "--network", "Toy", "--size", "64x32", "--window", "1", "--classes", "5"]) == 0
    assert f"{3 * 8 * 9 + 8 + 8 * 5 + 5:,}" in capsys.readouterr().out


def test_the_node_runs_it(trained, package, start_node):
    pytest.importorskip("rclpy")
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    node = start_node(
        "segmenter",
        "-p",
        f"checkpoint:={trained}",
        "-p",
        "device:=cpu",
        "-p",
        "autostart:=true",
        environment={"PYTHONPATH": path},
    )
    wait_until(lambda: "(toy, 14 classes)" in node.output() or not node.running(), node.output)
    assert "(toy, 14 classes)" in node.output(), node.output()


def test_a_package_that_fails_is_left_out(package, tmp_path, monkeypatch, caplog):
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[vtseg_ros.architectures]\nbroken = no_such_module_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    with caplog.at_level("WARNING", logger="vtseg_ros.model"):
        assert "vtseg" in registry.architectures()
    assert "architecture broken is not available: ModuleNotFoundError" in caplog.text


def test_a_name_is_given_once():
    with pytest.raises(Exception, match="architecture 'erfnet': the name is taken by ERFNet"):
        registry.register("erfnet", title="Another")(type("Other", (registry.Network,), {}))


def test_the_source_is_one_file(package):
    assert sorted(path.name for path in Path(package).iterdir() if path.name != "__pycache__") == [
        "toy_network-1.0.dist-info",
        "toy_network.py",
    ]
