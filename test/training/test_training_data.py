"""Which classes a training's labels have, and what contradicts them."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning_fabric")

from vtseg_ros.errors import ConfigError
from vtseg_ros.labels import CAMVID, STREET
from vtseg_ros.training.config import DataConfig, SourceConfig
from vtseg_ros.training.data import build_labels


def data_of(*bags, **values):
    return DataConfig(
        train=tuple(SourceConfig(str(bag)) for bag in bags),
        validation=(SourceConfig(str(bags[0])),),
        size=(64, 32),
        **values,
    )


def test_the_bag_tells_its_classes(street_bag):
    assert build_labels(data_of(street_bag)) == STREET
    assert build_labels(data_of(street_bag, labels="street")) == STREET


@pytest.mark.parametrize("values", [{"labels": "camvid"}, {"class_names": ("road", "rest")}])
def test_a_label_map_that_contradicts_the_configuration(street_bag, values):
    with pytest.raises(ConfigError, match="label map of other classes.*Got: terrain, sky") as caught:
        build_labels(data_of(street_bag, **values))
    assert str(street_bag) in str(caught.value)


def test_a_bag_without_a_label_map(camvid):
    """CamVid's bags have none: the configuration must name the classes."""
    bag = camvid / "camvid_val"
    assert build_labels(data_of(bag, labels="camvid")) == CAMVID
    with pytest.raises(ConfigError, match="has no label map: give data.labels or data.class_names"):
        build_labels(data_of(bag))


def test_an_unknown_name(street_bag):
    with pytest.raises(ConfigError, match="data.labels must be one of .*Got: 'kitti'"):
        build_labels(data_of(street_bag, labels="kitti"))
