# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training from a package on a machine with torch only: the package, the geometry, a run on the CPU and its continuation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning_fabric")

from vtseg_ros.label_set import OUTSIDE, STREET
from vtseg_ros.model import ERFNet, load_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from gpu_train import learning_rate, photometric, warp  # noqa: E402

CONFIG = """
data: {{train: [{bag}], validation: [{validation}], size: [64, 32], labels: street, cache_dir: {cache}}}
model: {{preset: tiny, init: xavier, init_decoder: true}}
stages: [{{name: end_to_end, steps: 10, batch: 2, window: 1, max_lr: 1.0e-3, static_loss: 1.0, teacher: {teacher}}}]
"""


def run(*command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def package(tmp_path_factory, street_bag, street_flow_bag) -> Path:
    folder = tmp_path_factory.mktemp("package")
    torch.manual_seed(0)
    teacher = folder / "teacher.safetensors"
    save_checkpoint(teacher, ERFNet(num_classes=len(STREET)).eval(), labels=STREET, input_size=(64, 32))
    config = folder / "train.yaml"
    config.write_text(
        CONFIG.format(bag=street_bag, validation=street_flow_bag, cache=folder / "cache", teacher=teacher)
    )
    out = folder / "package.npz"
    done = run(ROOT / "scripts/gpu_package.py", config, "--frames", 9, "--validation-frames", 4, "--out", out)
    assert "9 training and 4 validation frames" in done.stdout
    return out


@pytest.mark.long  # trains twice with a time limit
def test_a_run_continues_where_it_was_interrupted(package, tmp_path):
    command = [ROOT / "scripts/gpu_train.py", package, "--out", tmp_path, "--device", "cpu", "--batch", 2]
    run(*command, "--iterations", 3)
    first = json.loads((tmp_path / "history.json").read_text())
    assert [entry["iterations"] for entry in first] == [3] and np.isfinite(first[0]["miou"])
    assert "expected an empty folder" in run(*command, "--iterations", 3, code=1).stderr
    run(*command, "--iterations", 5, "--resume")
    second = json.loads((tmp_path / "history.json").read_text())
    assert second[0] == first[0] and second[1]["iterations"] == 5
    loaded = load_checkpoint(tmp_path / "last.safetensors")
    assert (
        loaded.architecture == "vtseg"
        and loaded.labels.names == STREET.names
        and loaded.input_size == (64, 32)
    )


def test_labels_move_with_their_images():
    """An image that holds its own label: after the warp both agree wherever the label is inside the image."""
    ids = torch.zeros(6, 40, 80, dtype=torch.uint8)
    ids[:, :20], ids[:, 20:, 40:] = 3, 9
    images = (ids[:, None] * 20).expand(6, 3, 40, 80).contiguous()
    warped, moved = warp(images, ids, torch.Generator().manual_seed(1))
    assert warped.shape == (6, 3, 40, 80) and moved.shape == (6, 40, 80)
    inside = moved != OUTSIDE
    assert 0.5 < inside.float().mean() < 1 and set(moved.unique().tolist()) == {0, 3, 9, OUTSIDE}
    seen = warped[:, 0] * 255 / 20
    assert (seen - moved).abs()[inside].lt(0.6).float().mean() > 0.9  # bilinear at the edges of the regions
    again = warp(images, ids, torch.Generator().manual_seed(1))
    assert torch.equal(again[1], moved)


def test_colours_change_and_stay_in_range():
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    out = photometric(images, torch.Generator().manual_seed(2))
    assert out.shape == images.shape and out.min() >= 0 and out.max() <= 1
    assert (out.mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))).abs().max() > 0.05


def test_the_learning_rate_by_hand():
    """OneCycle: from peak / 25 to the peak at 15 %, then to peak / 1e4; half-way up and down the mean of both ends."""
    assert learning_rate(0.0, 1.0) == pytest.approx(0.04)
    assert learning_rate(0.075, 1.0) == pytest.approx(0.52)
    assert learning_rate(0.15, 1.0) == pytest.approx(1.0)
    assert learning_rate(0.575, 1.0) == pytest.approx(0.50005)
    assert learning_rate(1.0, 1.0) == pytest.approx(1e-4)
