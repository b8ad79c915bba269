# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Run every file of examples/ on 30 frames of synthetic street: the files as they are, with small arguments."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, make_checkpoint, wait_until

from vtseg_ros.label_set import STREET

EXAMPLES = ROOT / "examples"
# The export and the kernel of the notebook are slow on a machine that is busy with other work.
pytestmark = pytest.mark.long


@pytest.fixture
def run(tmp_path, monkeypatch, street_bag):
    """run("file.py", "argument", ...) as `python file.py argument ...` in a folder that contains the bag `street`."""
    (tmp_path / "street").symlink_to(street_bag)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def start(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return start


def write_video(path: Path, frames: int) -> None:
    """Noise that moves to the right by 2 px per frame, 128x64."""
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (128, 64))
    assert video.isOpened()
    for number in range(frames):
        video.write(np.roll(image, 2 * number, axis=1))
    video.release()


def test_segment_video_writes_an_overlay_per_frame(run, tmp_path, capsys):
    write_video(tmp_path / "drive.mp4", 5)
    run("segment_video.py", "drive.mp4")
    files = sorted((tmp_path / "overlays").iterdir())
    assert [file.name for file in files] == [f"{number:06d}.jpg" for number in range(5)]
    assert cv2.imread(str(files[-1])).shape == (64, 128, 3)
    assert "frame 4: " in capsys.readouterr().out


def test_train_few_labels_and_evaluate_two_checkpoints(run, capsys):
    # 30 frames of 10 Hz: every fourth label of the 25 before the validation part.
    run("train_few_labels.py", "street", "run", "--steps", 2, "--size", 64, 32)
    assert "the best checkpoint is run/best.safetensors" in capsys.readouterr().out
    run("evaluate_two_checkpoints.py", "street", "street_tiny", "run/best.safetensors", "--every", 10)
    table = capsys.readouterr().out
    assert "3 of 3 labelled frames scored" in table
    names, *rows = [line.split() for line in table.splitlines() if "labelled frames" not in line]
    assert names == ["IoU", "(%)", "street_tiny", "run/best.safetensors"]
    assert [row[0] for row in rows] == [*STREET.names, "mIoU"]
    shipped, trained = (float(text) for text in rows[-1][1:])
    assert 0 < trained < shipped < 100  # two iterations at 64x32 do not reach the shipped weights


def test_custom_static_prior_trains_and_segments(run, capsys):
    run("custom_static_prior.py", "street", "run_prior", "--steps", 2)
    assert capsys.readouterr().out.splitlines()[-1] == "{(64, 128)}"


def test_export_and_openvino_gives_the_predictors_masks(run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    import vtseg_ros

    checkpoint = make_checkpoint(tmp_path / "tiny.safetensors", window=2)
    write_video(tmp_path / "drive.mp4", 3)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    run("export_and_openvino.py", "drive.mp4", "--checkpoint", checkpoint)
    shares = re.findall(r"'([\w-]+)': '(\d+)%'", capsys.readouterr().out.splitlines()[-1])
    predictor = vtseg_ros.VideoPredictor(checkpoint, output_size="network")
    mask = [result.mask for result in predictor.stream("drive.mp4")][-1]
    expected = np.bincount(mask.ravel(), minlength=len(STREET)) / mask.size
    for name, percent in shares:
        assert abs(100 * expected[STREET.names.index(name)] - int(percent)) < 1.5
    assert {STREET.names[i] for i in np.flatnonzero(expected > 0.01)} <= {name for name, _ in shares}


@pytest.mark.ros
def test_run_node_logs_each_mask_and_stops_on_ctrl_c(
    harness, ros_environment, start_process, tiny_checkpoint
):
    from nodes.encoders import image_message, picture
    from sensor_msgs.msg import Image

    command = [sys.executable, str(EXAMPLES / "run_node.py"), "--checkpoint", str(tiny_checkpoint)]
    node = start_process(command, ros_environment)
    images, sent = harness.publisher(Image, "/camera/image"), 0

    def logged() -> bool:
        nonlocal sent
        sent += 1
        images.publish(image_message(picture(sent), "rgb8", sent * 100_000_000))
        return "% of the image" in node.output() or not node.running()

    wait_until(logged, node.output)
    assert re.search(r"\[road_share\]: road: \d+ % of the image", node.output()), node.output()
    assert node.stop() == 0, node.output()
    assert "Traceback" not in node.output()


def test_notebook_runs_and_is_stored_without_outputs(run, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    notebook = nbformat.read(EXAMPLES / "bag_to_masks.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in code for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert "masks: 30" in "".join(output.get("text", "") for output in shown)
