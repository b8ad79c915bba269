# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What a training learns from: windows of its stages, classes of its labels, and what contradicts them."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning_fabric")
from lightning_fabric import Fabric

from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import CAMVID, STREET
from vtseg_ros.training.config import DataConfig, SourceConfig, StageConfig, TrainConfig
from vtseg_ros.training.training_data import TrainingData, build_labels


def data_of(*bags, **values):
    return DataConfig(
        train=tuple(SourceConfig(str(bag)) for bag in bags),
        validation=(SourceConfig(str(bags[0])),),
        size=(64, 32),
        **values,
    )


def test_a_stage_with_a_shorter_window(street_bag):
    """The network's window is 4: stages of 4, 2 and 1 frames, and one of 5 that is refused."""

    def training_data(*stages):
        config = TrainConfig(data=data_of(street_bag, workers=0), stages=stages)
        return TrainingData(config, STREET, length=4, needs_flow=False)

    stages = [StageConfig("video", steps=2, window=w) for w in (0, 2, 1)] + [StageConfig("static", steps=2)]
    data, fabric = training_data(*stages), Fabric(accelerator="cpu", devices=1)
    lengths = [next(data.batches(n, steps=2, start=0, fabric=fabric))[0].shape[1] for n in range(4)]
    assert lengths == [4, 2, 1, 1]
    judged = [max(map(len, data.validator(s, fabric=fabric, should_stop=bool).windows)) for s in stages]
    assert judged == [4, 2, 1, 1]
    with pytest.raises(ConfigError, match=r"stage video: window out of range; expected 1 to 4 frames.*got 5"):
        training_data(StageConfig("video", steps=2, window=5))


def test_the_bag_tells_its_classes(street_bag):
    assert build_labels(data_of(street_bag)) == STREET
    assert build_labels(data_of(street_bag, labels="street")) == STREET


@pytest.mark.parametrize("values", [{"labels": "camvid"}, {"class_names": ("road", "rest")}])
def test_a_label_map_that_contradicts_the_configuration(street_bag, values):
    with pytest.raises(ConfigError, match="label map of other classes.*got terrain, sky") as caught:
        build_labels(data_of(street_bag, **values))
    assert str(street_bag) in str(caught.value)


def test_a_bag_without_a_label_map(camvid):
    """CamVid's bags have none: the configuration must name the classes."""
    bag = camvid / "camvid_val"
    assert build_labels(data_of(bag, labels="camvid")) == CAMVID
    with pytest.raises(ConfigError, match="has no label map. Give data.labels or data.class_names"):
        build_labels(data_of(bag))


def test_an_unknown_name(street_bag):
    with pytest.raises(ConfigError, match="data.labels: unknown; expected one of .*got 'kitti'"):
        build_labels(data_of(street_bag, labels="kitti"))
