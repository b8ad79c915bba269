# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Every system of the paper: the recurrent baseline by hand, and all of them trained and compared by the commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.image_messages import decode_any, decode_float
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.cli import main
from vtseg_ros.dataset.flow import DisFlow
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.evaluation.recurrent import trained_flow, trained_window
from vtseg_ros.image_ops import resize_rgb
from vtseg_ros.label_set import STREET
from vtseg_ros.model import Checkpoint, save_checkpoint
from vtseg_ros.model.stgru import STGRU

SIZE = (64, 32)


def strong_gru() -> STGRU:
    """Random weights with masks that differ from place to place, and a past that matters."""
    torch.manual_seed(5)
    model = STGRU(num_classes=len(STREET)).eval()
    torch.nn.init.normal_(model.static_prior.decoder.output_conv.weight, std=2.0)
    torch.nn.init.constant_(model.present_to_update.bias, -1.0)
    return model


@pytest.fixture(scope="module")
def gru(tmp_path_factory):
    path = tmp_path_factory.mktemp("gru") / "gru.safetensors"
    training = {"config": {"model": {"flow": "/camera/flow_backward", "overrides": {"window": 3}}}}
    save_checkpoint(path, strong_gru(), labels=STREET, input_size=SIZE, training=training)
    return path


def frames_of(bag):
    with BagReader(bag) as opened:
        images = [decode_any(m) for _, _, m in opened.messages(["/camera/image"])]
        labels = [decode_label(m) for _, _, m in opened.messages(["/camera/label"])]
        flows = [decode_float(m, 2) for _, _, m in opened.messages(["/camera/flow_backward"])]
    return images, labels, flows


def by_hand(bag, kind, window):
    """Whole-window forwards of the network on 64x32, from a bag of 128x64: vectors are halved."""
    images, labels, flows = frames_of(bag)
    small = [resize_rgb(image, SIZE) for image in images]
    dis, matrix, model = DisFlow(), ConfusionMatrix(len(STREET)), strong_gru()
    for n, label in enumerate(labels):
        chosen = range(max(0, n - window + 1), n + 1)
        video = torch.from_numpy(np.stack([small[i] for i in chosen])).permute(0, 3, 1, 2)[None] / 255
        motion = []
        for i in list(chosen)[1:]:
            # The nearest neighbour at half the size is the odd pixel of each pair.
            motion.append(dis(small[i], small[i - 1]) if kind == "dis" else flows[i][1::2, 1::2] / 2)
        flow = torch.from_numpy(np.stack(motion)).permute(0, 3, 1, 2)[None] if motion else None
        with torch.no_grad():
            logits = model(video, flow)[:, -1]
        large = F.interpolate(logits, size=label.shape, mode="bicubic", align_corners=False)
        matrix.update(large.argmax(1)[0].byte().numpy(), label)
    return matrix


def run(tmp_path, *arguments) -> dict:
    file = tmp_path / "scores.json"
    assert main(["evaluate", *map(str, arguments), "--device", "cpu", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_the_recurrent_baseline_is_its_network_on_the_window(street_flow_bag, gru, tmp_path):
    found = run(tmp_path, street_flow_bag, "--checkpoint", gru, "--flow", "dis", "topic", "--window", 0, 1)
    names = [(s["name"], s["window"], s["flow"]) for s in found["systems"]]
    assert names == [
        ("GRU(DIS), k=3", 3, "dis"),
        ("GRU(DIS), k=1", 1, "dis"),
        ("GRU(topic), k=3", 3, "/camera/flow_backward"),
        ("GRU(topic), k=1", 1, "/camera/flow_backward"),
    ]
    for system in found["systems"]:
        expected = by_hand(street_flow_bag, system["flow"], system["window"])
        assert system["pixel_accuracy"] == pytest.approx(expected.pixel_accuracy(), abs=0.02)
        assert system["miou"] == pytest.approx(expected.miou(), abs=0.02)
    scores = [s["pixel_accuracy"] for s in found["systems"]]
    assert scores[1] == scores[3] and len({*scores}) == 3  # with one frame there is no flow


def test_flow_is_by_default_what_it_was_trained_with(street_flow_bag, gru, tmp_path):
    assert (
        run(tmp_path, street_flow_bag, "--checkpoint", gru)["systems"][0]["flow"] == "/camera/flow_backward"
    )


def test_a_checkpoint_cannot_start_a_program_as_its_flow(street_flow_bag, tmp_path, capsys, monkeypatch):
    (tmp_path / "evil_flow.py").write_text("raise SystemExit('executed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "gru.safetensors"
    training = {"config": {"model": {"flow": "evil_flow:make"}}}
    save_checkpoint(path, strong_gru(), labels=STREET, input_size=SIZE, training=training)
    assert main(["evaluate", str(street_flow_bag), "--checkpoint", str(path)]) == 2
    assert "Pass it with --flow" in capsys.readouterr().err


@pytest.mark.parametrize(
    "training", [{"config": 3}, {"config": {"model": {"flow": 7, "overrides": {"window": -1}}}}, {}]
)
def test_a_summary_of_another_shape_is_as_none(training):
    checkpoint = Checkpoint(strong_gru(), "gru", {}, STREET, SIZE, training)
    assert trained_flow(checkpoint, "c") == "dis" and trained_window(checkpoint) == 4


def test_an_estimator_of_ones_own(street_flow_bag, gru, tmp_path, monkeypatch):
    (tmp_path / "own_flow.py").write_text(
        "import numpy as np\n\ndef make():\n    return lambda present, past: np.zeros((*past.shape[:2], 2), np.float32)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = run(tmp_path, street_flow_bag, "--checkpoint", gru, "--flow", "own_flow:make", "dis")
    names, scores = zip(*((s["name"], s["pixel_accuracy"]) for s in found["systems"]))
    assert names == ("GRU(own_flow:make)", "GRU(DIS)") and scores[0] != scores[1]


def test_flow_that_is_not_there_and_flow_that_is_broken(street_bag, street_flow_bag, gru, tmp_path, capsys):
    assert main(["evaluate", str(street_bag), "--checkpoint", str(gru), "--flow", "topic"]) == 2
    assert "no topic of backward flow" in capsys.readouterr().err
    assert main(["evaluate", str(street_flow_bag), "--checkpoint", str(gru), "--stride", "2"]) == 2
    assert "expected 1, without random_strides" in capsys.readouterr().err
    broken = tmp_path / "broken"
    with BagReader(street_flow_bag) as bag, BagWriter(broken) as out:
        count = 0
        for topic, kind, time_ns, data in bag.raw():
            if topic == "/camera/flow_backward":
                count += 1
                data = data.replace(b"32FC2", b"32FC9") if count == 5 else data
            out.write_raw(topic, kind, data, time_ns)
    found = run(tmp_path, broken, "--checkpoint", gru)
    assert found["scored_frames"] == 12 and len(found["corrupt"]) == 1
    assert "GRU(topic), flow on /camera/flow_backward" in found["corrupt"][0]["reason"]


def configuration(folder, bag, name, architecture, stages, **model):
    source = [{"path": str(bag)}]
    values = {
        "data": {"train": source, "validation": source, "size": list(SIZE), "labels": "street", "workers": 0},
        "model": {"architecture": architecture, **model},
        "stages": [{"name": stage, "steps": 2, "batch": 1, "max_lr": 1e-3} for stage in stages],
        "device": "cpu",
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.long  # each of them is trained and evaluated in other files
def test_all_systems_of_the_paper_trained_and_compared(street_flow_bag, tmp_path, capsys):
    pytest.importorskip("lightning_fabric")
    prior = {"warm_start": str(tmp_path / "erfnet" / "last.safetensors")}
    runs = {
        "erfnet": ("erfnet", ["static"], {}),
        "segformer": ("segformer_b0", ["static"], {}),
        "gru_dis": ("gru", ["video"], {**prior, "flow": "dis"}),
        "gru_gt": ("gru", ["video"], {**prior, "flow": "/camera/flow_backward"}),
        "vtseg": ("vtseg", ["video"], {**prior, "preset": "tiny", "overrides": {"depths": [1, 1, 1, 1]}}),
    }
    for name, (architecture, stages, model) in runs.items():
        config = configuration(tmp_path, street_flow_bag, name, architecture, stages, **model)
        assert main(["train", str(config), "--out", str(tmp_path / name)]) == 0
    checkpoints = [tmp_path / name / "last.safetensors" for name in runs]
    capsys.readouterr()
    found = run(tmp_path, street_flow_bag, "--checkpoint", *checkpoints, "--every", 3)
    names = ["ERFNet", "SegFormer-B0", "GRU(DIS)", "GRU(topic)", "VTSeg"]
    assert [system["name"] for system in found["systems"]] == names
    assert [system["window"] for system in found["systems"]] == [1, 1, 4, 4, 4]
    assert all(system["frames"] == 4 and 0 <= system["miou"] <= 100 for system in found["systems"])
    table = capsys.readouterr().out
    assert all(name in table for name in names)
