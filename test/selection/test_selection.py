"""Frame scores and greedy k-centre by hand; `vtseg select` on bags."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import IMAGE, image_message, typestore
from vtseg_ros.cli import main
from vtseg_ros.label_set import STREET
from vtseg_ros.model import EfficientViTB0, load_checkpoint, save_checkpoint
from vtseg_ros.model.registry import architecture as registered
from vtseg_ros.selection import choose, combined_score, frame_scores
from vtseg_ros.selection.scores import FrameScorer, run_image_network

NS = 1_000_000_000


def test_scores_by_hand():
    # Left pixel: probabilities 3/4, 1/4. Right pixel: 1/2, 1/2 (class 0 by argmax).
    logits = torch.tensor([[[math.log(3.0), 0.0]], [[0.0, 0.0]]])
    static = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # classes 0, 1
    past = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])  # classes 1, 0
    flow = np.zeros((1, 2, 2), np.float32)
    flow[0, 0, 0] = 1.0  # the left pixel was at x = 1 before: class 0, as now
    flow[0, 1, 0] = 1.0  # the right one was outside
    found = frame_scores(logits, static, past, flow)
    left = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert found["entropy"] == pytest.approx((left + 1.0) / 2, abs=1e-6)
    assert found["margin"] == pytest.approx((0.5 + 1.0) / 2, abs=1e-6)
    assert found["static"] == 0.5 and found["temporal"] == 0.0
    still = frame_scores(logits, static, past, np.zeros((1, 2, 2), np.float32))
    assert still["temporal"] == 0.5
    without = frame_scores(logits, None, past, flow)
    assert without == {name: value for name, value in found.items() if name != "static"}
    unknown = frame_scores(logits, static, past, np.full((1, 2, 2), np.nan, np.float32))
    assert unknown["temporal"] == 0.0


def test_mean_ranks_by_hand():
    scores = [{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": 5.0}, {"a": 2.0, "b": 9.0}]
    # a: ranks 0, 2, 1; b: 0.5, 0.5, 2; divided by 2.
    assert combined_score(scores) == pytest.approx([0.125, 0.625, 0.75])
    assert combined_score(scores[:1]).tolist() == [0.0]


def test_k_centre_by_hand():
    features = np.array([[0.0], [1.0], [10.0], [4.0]])
    score = np.array([0.5, 0.9, 0.1, 0.2])
    stamps = [0, NS, 2 * NS, 3 * NS]
    # 1 has the best score; 10 is 9 away; then 4 is 3 away from 1, 0 is 1 away.
    assert choose(score, features, [0] * 4, stamps, count=4, spacing_s=0) == [1, 2, 3, 0]
    # Frames 0 and 2 are 1 s from frame 1: with 1.5 s only frame 3 is free.
    assert choose(score, features, [0] * 4, stamps, count=4, spacing_s=1.5) == [1, 3]
    # The spacing is between frames of one bag.
    assert choose(score, features, [0, 0, 1, 1], stamps, count=4, spacing_s=1.5) == [1, 2]


def _bag(path, rng, count=6):
    images = rng.integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
    with BagWriter(path) as bag:
        for index, image in enumerate(images):
            stamp = NS + index * NS // 2
            data = typestore().serialize_cdr(image_message(image, "rgb8", stamp, "camera"), IMAGE)
            bag.write_raw("/camera/image", IMAGE, data, stamp)
    return images


class _Halves(nn.Module):
    """Class 0 in the left half of the image with probability 3/4, class 1 in the right half."""

    def forward(self, images):
        logits = torch.zeros(len(images), 2, 8, 8)
        logits[:, 0, :, :4] = logits[:, 1, :, 4:] = math.log(3.0)
        return logits


def test_features_of_an_image_network_by_hand():
    logits, features = run_image_network(_Halves(), torch.zeros(1, 2, 3, 8, 8))
    assert logits.shape == (2, 2, 8, 8)
    row = [0.75, 0.75, 0.25, 0.25]
    assert np.allclose(features.reshape(2, 4, 4), np.stack([[row] * 4, [row[::-1]] * 4]))


@pytest.fixture(params=["vtseg", "efficientvit_b0"])
def scoring_checkpoint(request, tiny_checkpoint, tmp_path):
    """A VTSeg and an image network."""
    if request.param == "vtseg":
        return tiny_checkpoint
    path = tmp_path / "image.safetensors"
    torch.manual_seed(0)
    save_checkpoint(path, EfficientViTB0(num_classes=14), labels=STREET, input_size=(64, 32))
    return path


@pytest.mark.parametrize("architecture", ["local_memory", "mask_feedback"])
def test_networks_with_an_image_network_have_all_scores(architecture, tmp_path, rng):
    path = tmp_path / "network.safetensors"
    values = registered(architecture).kind.configure(num_classes=len(STREET), preset="b0", overrides={})
    network = registered(architecture).from_config(values).eval()
    save_checkpoint(path, network, labels=STREET, input_size=(96, 64))
    scorer = FrameScorer(load_checkpoint(path))
    for number in range(3):
        scorer.add(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8), number * 100_000_000)
    scores, features = scorer.score()
    assert set(scores) == {"entropy", "margin", "static", "temporal"}
    assert all(0 <= score <= 1 for score in scores.values()) and len(features) == len(STREET) * 16


def test_a_score_that_an_image_network_lacks_is_refused(tmp_path, rng, capsys):
    path = tmp_path / "image.safetensors"
    save_checkpoint(path, EfficientViTB0(num_classes=14), labels=STREET, input_size=(64, 32))
    _bag(tmp_path / "bag", rng, 2)
    arguments = [
        str(tmp_path / "bag"),
        "--checkpoint",
        str(path),
        "--score",
        "static",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["select", *arguments]) == 2
    assert "expected combined, entropy, margin, temporal, got static" in capsys.readouterr().err


@pytest.mark.slow  # selects from bags twice
def test_select_writes_the_chosen_frames_and_repeats_itself(scoring_checkpoint, tmp_path, rng):
    images = {name: _bag(tmp_path / name, rng) for name in ("one", "two")}
    bags = [str(tmp_path / name) for name in images]
    for out in ("a", "b"):
        assert (
            main(
                [
                    "select",
                    *bags,
                    "--checkpoint",
                    str(scoring_checkpoint),
                    "--device",
                    "cpu",
                    "--count",
                    "4",
                    "--spacing",
                    "1",
                    "--out",
                    str(tmp_path / out),
                ]
            )
            == 0
        )
    text = (tmp_path / "a" / "scores.json").read_text()
    assert text == (tmp_path / "b" / "scores.json").read_text()
    found = json.loads(text)
    assert len(found["frames"]) == 12
    chosen = [frame for frame in found["frames"] if "chosen" in frame]
    assert sorted(frame["chosen"] for frame in chosen) == [0, 1, 2, 3]
    for name in images:
        stamps = sorted(f["stamp_ns"] for f in chosen if found["bags"][f["bag"]].endswith(name))
        assert all(later - earlier >= NS for earlier, later in zip(stamps, stamps[1:], strict=False))
        written = sorted((tmp_path / "a" / name).glob("*.png"))
        assert len(written) == len(stamps)
        for path, stamp in zip(written, stamps, strict=True):
            rgb = cv2.imread(str(path))[..., ::-1]
            assert str(stamp) in path.name.replace("_", "").replace(".", "")
            assert np.array_equal(rgb, images[name][(stamp - NS) * 2 // NS])
    assert cv2.imread(str(tmp_path / "a" / "contact_sheet.png")).shape == (360, 480, 3)


@pytest.mark.parametrize(
    ("options", "problem"),
    [(["--count", "0"], "--count"), (["--spacing", "nan"], "--spacing"), ([], "no such")],
)
def test_select_refuses_bad_input_in_one_line(tmp_path, tiny_checkpoint, capsys, options, problem):
    arguments = ["select", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--checkpoint"]
    assert main([*arguments, str(tiny_checkpoint), *options]) == 2
    error = capsys.readouterr().err
    assert problem in error.lower() and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
