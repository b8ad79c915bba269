# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Class maps: what a file may hold, and masks of one class list against labels of another."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.cli import main
from vtseg_ros.errors import ConfigError
from vtseg_ros.evaluation.class_map import load_class_map
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.label_set import CAMVID, CITYSCAPES, IGNORE, STREET, LabelSet
from vtseg_ros.model import EfficientViTSeg, ERFNet, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "config" / "class_maps" / "cityscapes_to_camvid.yaml"


def write(path, text):
    path.write_text(text)
    return path


def test_the_shipped_map():
    """Train ids 0 to 18: road, sidewalk, building, wall, fence, pole, lights, signs, vegetation, terrain, sky, ..."""
    found = load_class_map(SHIPPED)
    assert found.labels == CAMVID and found.unmapped(CITYSCAPES) == ()
    expected = [3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10]
    assert found.table(CITYSCAPES)[:19].tolist() == expected
    assert (found.table(CITYSCAPES)[19:] == IGNORE).all()


def test_a_map_by_hand(tmp_path):
    found = load_class_map(write(tmp_path / "m.yaml", "b: [x, z]\nempty: []\na: y\n"))
    assert found.labels.names == ("b", "empty", "a")
    source = LabelSet.from_names(["w", "x", "y", "z"])
    assert found.table(source)[:6].tolist() == [255, 0, 2, 0, 255, 255] and found.table(source)[255] == 255
    assert found.unmapped(source) == ("w",)
    own = LabelSet.from_names(["b", "empty", "a"])  # masks that have the target classes stay as they are
    assert found.table(own)[:4].tolist() == [0, 1, 2, 255]


def test_wrong_maps_are_refused_in_one_line(tmp_path):
    for text, words in (
        ("", "m.yaml: not a class map; .* got NoneType"),
        ("- a\n- b", "not a class map; .* got list"),
        ("a: [b", "m.yaml: cannot be read"),
        ("a: [b]\na: [c]", "the key a appears twice"),
        ("a: {b: c}", "a: not source classes; .* got dict"),
        ("a: 3", "a: not source classes; .* got int"),
        ("a: [3]", "a class name is not a text; .* got 3"),
        ("on: [a]", "a class name is not a text; .* got True"),
        ("a: ['']", "a class name is not a text"),
        ("a: [b, c]\nd: [c]", "d: source class 'c' has two targets; expected one, got a and d"),
        ("a: [b, b]", "source class 'b' has two targets"),
        ("[1, 2]: [b]", "m.yaml"),
    ):
        with pytest.raises(ConfigError, match=words) as raised:
            load_class_map(write(tmp_path / "m.yaml", text))
        assert len(str(raised.value).splitlines()) == 1, text
    (tmp_path / "m.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "m.yaml", tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_class_map(path)
    with pytest.raises(ConfigError, match=r"1 to 255 names"):
        load_class_map(write(tmp_path / "m.yaml", "\n".join(f"c{n}: []" for n in range(256))))
    with pytest.raises(
        ConfigError, match="pavement: unknown source class; .* got 'sidewalk'. Correct the map"
    ):
        load_class_map(SHIPPED).table(LabelSet.from_names(["sky", "building", "wall", "pole", "road"]))
    with pytest.raises(ConfigError, match="got 'rod'. Did you mean road"):
        load_class_map(write(tmp_path / "m.yaml", "road: [rod]\nother: []")).table(CITYSCAPES)


@given(st.text(max_size=60))
def test_any_text_is_a_map_or_refused_in_one_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        found = load_class_map(path)
    except ConfigError as err:
        assert len(str(err).splitlines()) == 1
    else:
        assert len(found.groups) == len(found.labels) > 0


@pytest.fixture
def other_classes(street_bag, tmp_path):
    """Six street frames whose labels have three classes, the map, and the frames."""
    text = "plants: [tree, vegetation, terrain]\nvehicle: [car, van, truck]\nrest: [sky, road, building]\n"
    path = write(tmp_path / "map.yaml", text)
    groups = [["tree", "vegetation", "terrain"], ["car", "van", "truck"], ["sky", "road", "building"]]
    with BagReader(street_bag) as bag:
        images = [decode_any(m) for _, _, m in bag.messages(["/camera/image"])][:6]
        labels = [decode_label(m) for _, _, m in bag.messages(["/camera/label"])][:6]
    mapped = [np.full_like(label, IGNORE) for label in labels]
    for target, group in enumerate(groups):
        for name in group:
            for ids, label in zip(mapped, labels):
                ids[label == STREET.names.index(name)] = target
    with BagWriter(tmp_path / "bag") as bag:
        for n, (image, ids) in enumerate(zip(images, mapped)):
            stamp = (100 + n) * 10**8
            bag.write_image("/camera/image", image, stamp, "camera")
            bag.write_label("/camera/label", ids, stamp, "camera")
    return tmp_path / "bag", path, groups, images, mapped


def test_evaluate_maps_the_masks(other_classes, tiny_checkpoint, tmp_path, capsys):
    bag, path, groups, images, labels = other_classes
    three = tmp_path / "three.safetensors"
    names = LabelSet.from_names(["plants", "vehicle", "rest"])
    save_checkpoint(three, ERFNet(num_classes=3).eval(), labels=names, input_size=(64, 32))
    file = tmp_path / "scores.json"
    command = ["evaluate", str(bag), "--class-map", str(path), "--device", "cpu", "--json", str(file)]
    assert main([*command, "--checkpoint", str(tiny_checkpoint), str(three)]) == 0
    content = json.loads(file.read_text())
    assert content["facts"]["class map"] == "map.yaml" and "class map's" in content["facts"]["classes"]
    for checkpoint, system in zip((tiny_checkpoint, three), content["systems"], strict=True):
        segmenter = VideoPredictor(checkpoint, device="cpu", upsampling="bicubic")
        matrix = ConfusionMatrix(3)
        for image, label in zip(images, labels):
            mask = segmenter.step(image).mask
            if checkpoint == tiny_checkpoint:
                ids = [[STREET.names.index(name) for name in group] for group in groups]
                mask = np.select([np.isin(mask, group) for group in ids], [0, 1, 2], default=255)
            matrix.update(mask, cv2.resize(label, label.shape[::-1]))
        assert system["miou"] == pytest.approx(matrix.miou(), abs=1e-3)
        assert list(system["iou"]) == ["plants", "vehicle", "rest"]
    assert "those of the class map" in capsys.readouterr().out


def test_a_map_that_does_not_fit_is_one_line(other_classes, tiny_checkpoint, street_bag, tmp_path, capsys):
    bag, path, *_ = other_classes
    wrong = write(tmp_path / "wrong.yaml", "plants: [lawn]\n")
    for source, given_map, words in (
        (bag, wrong, "wrong.yaml: plants: unknown source class"),
        (bag, tmp_path / "missing.yaml", "missing.yaml: cannot be read"),
        (street_bag, path, "Write a line for each class of the bag, in its order"),
    ):
        command = [
            "evaluate",
            str(source),
            "--class-map",
            str(given_map),
            "--checkpoint",
            str(tiny_checkpoint),
        ]
        assert main(command) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vtseg")]
        assert len(lines) == 1 and words in lines[0]


def test_the_public_network_on_camvid(camvid, tmp_path):
    """Every fourth frame of camvid_val with the published weights; all frames reach 70.7 mIoU."""
    weights = camvid / "teacher" / "efficientvit_seg_b0_cityscapes.pt"
    if not weights.is_file():
        pytest.skip(f"no {weights}")
    model = EfficientViTSeg.from_official(weights)
    save_checkpoint(tmp_path / "b0.safetensors", model, labels=CITYSCAPES, input_size=(1024, 512))
    file = tmp_path / "scores.json"
    command = ["evaluate", str(camvid / "camvid_val"), "--checkpoint", str(tmp_path / "b0.safetensors")]
    command += ["--class-map", str(SHIPPED), "--device", "cpu", "--precision", "fp32", "--json", str(file)]
    assert main([*command, "--every", "4"]) == 0
    assert json.loads(file.read_text())["systems"][0]["miou"] == pytest.approx(70.7, abs=1.0)
