# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Results of a validation, by hand, and the files that record them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bags.bagtools import START_NS

pytest.importorskip("lightning_fabric")

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.dataset.class_groups import parse_class_groups
from vtseg_ros.dataset.flow import WindowFlow
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.label_set import IGNORE, STREET, LabelSet
from vtseg_ros.model import ERFNet, VTSeg, VTSegConfig
from vtseg_ros.model.attention import VideoAttention
from vtseg_ros.model.stgru import STGRU
from vtseg_ros.training.attention_statistics import AttentionShares, attention_figures
from vtseg_ros.training.preview import BETTER, WORSE, difference, row, sheet
from vtseg_ros.training.processes import launch
from vtseg_ros.training.record import Record
from vtseg_ros.training.validation import ScoredClasses, Validator, _Counts, _spread


@pytest.fixture(scope="module")
def fabric():
    return launch("cpu", "fp32")


@pytest.fixture(scope="module")
def store(street_flow_bag):
    return FrameStore(FrameIndex([BagSource(street_flow_bag)]), size=(64, 32))


@pytest.fixture
def vtseg():
    torch.manual_seed(3)
    return VTSeg(VTSegConfig.preset("tiny", num_classes=len(STREET), window=3))


def test_attention_share_against_loops():
    torch.manual_seed(1)
    layer = VideoAttention(dim=8, heads=2, reduction=2)
    frames, height, width = 3, 4, 4
    x = torch.randn(2 * frames, height * width, 8)
    keys = layer.project_memory(x[:, None], (height, width))[0][:, 0].detach().double()  # (6, 4, 8)
    queries = layer.query(x).detach().double()
    shares, evenness = [], []
    for window in range(2):
        for token in range(height * width):
            for head in range(2):
                part = slice(head * 4, head * 4 + 4)
                query = queries[window * frames + 2, token, part]
                weights = [
                    [float(torch.exp(query @ keys[window * frames + frame, m, part] / 2.0)) for m in range(4)]
                    for frame in range(frames)
                ]
                shares.append((sum(weights[0]) + sum(weights[1])) / sum(map(sum, weights)))
                share = np.array(weights).ravel() / np.sum(weights)
                evenness.append(-sum(p * np.log(p) for p in share) / np.log(12))
    windows = x.unflatten(0, (2, frames))
    every_key, _ = layer.project_memory(windows, (height, width))
    figures = attention_figures(layer.project_queries(windows), every_key, layer.heads)
    assert figures == pytest.approx((np.mean(shares), np.mean(evenness)), abs=1e-5)
    assert figures[1] < 0.999


def test_attention_that_ignores_time(vtseg):
    """Queries of zero look at every key alike: two thirds of the attention of three frames is elsewhere."""
    for module in vtseg.modules():
        if isinstance(module, VideoAttention):
            torch.nn.init.zeros_(module.query.weight)
    vtseg.eval()
    shares = AttentionShares(vtseg, vtseg.config.window)
    with torch.no_grad():
        vtseg(torch.rand(1, 3, 3, 32, 64), shares.cache())
    assert shares.totals() == pytest.approx(np.array([[4 / 3, 2.0, 2.0]] * 12), abs=1e-5)  # two layers each
    assert shares.names[0] == "encoder_1" and shares.names[-1] == "decoder_cross_4"
    with torch.no_grad():
        vtseg(torch.rand(1, 3, 3, 32, 64))
    assert (shares.totals()[:, 2] == 2).all()  # nothing is recorded without the cache


def test_who_is_right_where_they_differ_by_hand():
    counts = _Counts(3, 1)
    truth = np.array([[0, 1, 2, IGNORE, 1]], np.uint8)
    mask = np.array([[0, 1, 1, 0, 2]], np.uint8)
    prior = np.array([[0, 0, 2, 1, 0]], np.uint8)
    counts.total.update(mask, truth)
    counts.compare(mask, prior, truth)
    scores = counts.scores(video_network=True, swept=False)
    # Of four labelled pixels one agrees; of the others one is the network's, one the prior's, one nobody's.
    assert scores["agreement"] == 25.0
    assert scores["disagreement_accuracy"] == pytest.approx(100 / 3)
    assert scores["static_disagreement_accuracy"] == pytest.approx(100 / 3)


def test_validation_of_a_recurrent_network(fabric, store):
    """A window of one frame is the static network; the longest one is the network."""
    torch.manual_seed(2)
    model = STGRU(num_classes=len(STREET))
    windows = [w for w in store.index.windows(3) if len(w) == 3]
    validator = Validator(
        fabric,
        store,
        windows,
        length=3,
        labels=STREET,
        flow=WindowFlow("dis", store.index),
        window_sweep_frames=100,
    )
    model.train()
    result = validator(model)
    assert model.training
    assert result.miou_by_window[0] == pytest.approx(result.static_miou)
    assert result.miou_by_window[2] == pytest.approx(result.miou)
    total = ConfusionMatrix(len(STREET))
    with torch.no_grad():
        for window in windows:
            image = torch.from_numpy(store.image(window[-1]).copy()).permute(2, 0, 1)[None] / 255
            total.update(
                model.static_prior.eval()(image)[0].argmax(0).byte().numpy(), store.label(window[-1])
            )
    assert result.static_miou == pytest.approx(total.miou(), abs=0.05)
    assert result.cross_frame_attention == {}


def test_validation_of_an_image_network_and_short_windows(fabric, store, vtseg):
    windows = store.index.windows(1)
    result = Validator(fabric, store, windows, length=1, labels=STREET, pictures=0)(
        ERFNet(num_classes=len(STREET))
    )
    assert result.miou >= 0 and np.isnan(result.static_miou) and result.pictures is None
    short = [window for window in store.index.windows(3) if len(window) < 3]
    result = Validator(fabric, store, short, length=3, labels=STREET)(vtseg)
    assert result.miou >= 0 and result.miou_by_window == () and result.cross_frame_attention == {}


def test_what_is_recorded(fabric, store, vtseg, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = Validator(fabric, store, store.index.windows(3), length=3, labels=STREET, window_sweep_frames=4)(
        vtseg
    )
    assert result.pictures.shape == (4 * 32 + 3 * 4, 5 * 64 + 4 * 4, 3)
    record = Record(tmp_path, on_progress=None, history=[{"stage": "static", "step": 7}], step=7)
    record.validation("video", 2, 9, result)
    record.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    first, second = [
        json.loads(line, parse_constant=refuse)
        for line in (tmp_path / "validation.jsonl").read_text().splitlines()
    ]
    assert first == {"stage": "static", "step": 7} and second["step"] == 9
    assert len(second["miou_by_window"]) == 3 and len(second["cross_frame_attention"]) == 12
    assert len(second["iou"]) == len(STREET) and second == record.history[1]
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["validation"]
    for tag in (
        "validation/agreement",
        "validation_by_window/3",
        "cross_frame_attention/decoder_cross_4",
        "attention_entropy/encoder_1",
    ):
        assert tag in tags["scalars"]
    assert events.Scalars("validation/miou")[0].value == pytest.approx(result.miou, abs=1e-4)


def test_difference_by_hand():
    image = np.full((1, 4, 3), 90, np.uint8)
    truth, prior, mask = (np.array([v], np.uint8) for v in ([1, 1, 1, IGNORE], [1, 0, 1, 0], [1, 1, 0, 1]))
    picture = difference(image, truth, prior, mask)
    assert picture[0].tolist() == [[30] * 3, list(BETTER), list(WORSE), [30] * 3]
    assert row(image, truth, None, mask, STREET).shape == (1, 4 * 3 + 2 * 4, 3)
    assert sheet([image] * 2).shape == (1 + 4 + 1, 4, 3)


def test_spread():
    assert (
        _spread(range(10), 4) == [0, 3, 6, 9] and _spread([5, 6], 9) == [5, 6] and _spread(range(5), 0) == []
    )


class Constant(torch.nn.Module):
    """One class of the network on the left half, another on the right."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, images):
        logits = torch.zeros(len(images), 3, *images.shape[2:])
        middle = images.shape[3] // 2
        logits[:, self.left, :, :middle] = logits[:, self.right, :, middle:] = 1
        return logits


def test_bags_of_several_class_lists_by_hand(tmp_path, fabric):
    """Network a, b, c; the second bag has `ab` for its a and b, `nothing` for none, and `c` that is not learned."""
    network = LabelSet.from_names(["a", "b", "c"])
    left_right = np.repeat([[0, 1]], 32, axis=0).repeat(32, axis=1).astype(np.uint8)
    for name, ids in (
        ("own", left_right),
        ("grouped", np.roll(left_right, 16, axis=1)),
        ("more", left_right),
    ):
        with BagWriter(tmp_path / name) as bag:
            bag.write_image("/camera/image", np.full((32, 64, 3), 9, np.uint8), START_NS, "cam")
            bag.write_label("/camera/label", ids, START_NS, "cam")
    names = ("own", "grouped", "more")
    groups = parse_class_groups({"ab": ["a", "b"], "c": "c", "void": "ignore"}, None, network, "x")
    classes = [ScoredClasses.of(one, network) for one in (None, groups, None)]
    store = FrameStore(
        FrameIndex([BagSource(tmp_path / name) for name in names]),
        size=(64, 32),
        label_tables=[one.label_table for one in classes],
    )
    validator = Validator(
        fabric,
        store,
        [[0], [1], [2]],
        length=1,
        labels=network,
        classes=classes,
        window_sweep_frames=0,
        pictures=3,
    )
    result = validator(Constant(0, 2))  # a left, c right
    # own, more: a all right, b missed, c wrong: 100, 0, 0. grouped: columns 0-15 and 48-63 are `c`, 16-47 `ab`;
    # predicted ab left, c right: each 16 of 48 columns.
    assert result.bags["own"] == {"miou": pytest.approx(100 / 3), "iou": {"a": 100.0, "b": 0.0, "c": 0.0}}
    assert result.bags["grouped"]["iou"] == {
        "ab": pytest.approx(100 / 3),
        "c": pytest.approx(100 / 3),
        "void": pytest.approx(np.nan, nan_ok=True),
    }
    assert result.iou.tolist() == [100, 0, 0]
    assert result.miou == pytest.approx(100 / 3)
    result = validator(Constant(0, 1))  # own and more: a, b right; grouped: ab everywhere, half of it right
    assert result.bags["own"]["miou"] == pytest.approx(100) and result.bags["grouped"][
        "miou"
    ] == pytest.approx(25)
    assert result.miou == pytest.approx((100 + 25) / 2)  # the mean over two class lists, not three bags
