# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Mappings from the classes of a bag to sets of the network's classes."""

from __future__ import annotations

import numpy as np
import pytest

from vtseg_ros.dataset.class_groups import GroupTable, parse_class_groups
from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import IGNORE, LabelSet

NETWORK = LabelSet.from_names(["road", "sidewalk", "terrain", "car", "bus", "sky"])
GROUPS = {"drivable": "road", "other": ["terrain", "sidewalk"], "vehicle": ["car", "bus"], "far": "ignore"}


def test_tables_by_hand():
    groups = parse_class_groups(GROUPS, None, NETWORK, "x")
    assert groups.names == ("drivable", "other", "vehicle", "far")
    assert groups.members == ((0,), (1, 2), (3, 4), ())
    table = GroupTable(6)
    assert table.add(groups, "x")[[0, 1, 2, 3, IGNORE]].tolist() == [0, 6, 7, IGNORE, IGNORE]
    assert len(table) == 8
    assert table.members().tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]]
    assert groups.own_labels()[[0, 1, 2, 3, IGNORE]].tolist() == [0, 1, 2, IGNORE, IGNORE]
    assert groups.own_masks(6)[:6].tolist() == [0, 1, 1, 2, 2, IGNORE]
    assert groups.shown()[[0, 1, 2, 3, IGNORE]].tolist() == [0, 1, 3, IGNORE, IGNORE]


def test_equal_groups_of_two_bags_share_an_id():
    table = GroupTable(6)
    first = table.add(parse_class_groups(GROUPS, None, NETWORK, "x"), "x")
    other = parse_class_groups({"wheels": ["bus", "car"], "land": ["road", "terrain"]}, None, NETWORK, "y")
    second = table.add(other, "y")
    assert second[0] == first[2] == 7 and second[1] == 8 and len(table) == 9


def test_names_of_a_label_map_and_ids_may_be_mixed():
    own = LabelSet.from_names(["a", "b", "c"])
    groups = parse_class_groups({"c": "sky", 0: "road", "b": "ignore"}, own, NETWORK, "x")
    assert groups.members == ((0,), (), (5,))


def test_ids_without_a_label_map_leave_the_others_out():
    groups = parse_class_groups({0: "road", 2: "sky"}, None, NETWORK, "x")
    assert groups.members == ((0,), (), (5,))


@pytest.mark.parametrize(
    ("groups", "own", "named"),
    [
        ({"a": "street"}, None, "'street'"),
        ({"a": ["road", "road"]}, None, "different ones"),
        ({"a": []}, None, r"\[\]"),
        ({"a": 3}, None, "got 3"),
        ({"a": "road", "b": "sky"}, ["a"], "'b' is not a class of the bag"),
        ({"a": "road"}, ["a", "b"], "got none for b"),
        ({"a": "road", 0: "road"}, ["a"], "twice"),
        ({"a": "road", 1: "road"}, None, "all of them or none"),
        ({-1: "road"}, None, "0..253"),
    ],
)
def test_what_does_not_fit_is_named(groups, own, named):
    with pytest.raises(ConfigError, match=named):
        parse_class_groups(groups, own and LabelSet.from_names(own), NETWORK, "data.train[0].class_groups")


def test_a_bag_for_validation_needs_disjoint_groups():
    groups = parse_class_groups({"a": ["road", "sky"], "b": ["sky", "car"]}, None, NETWORK, "x")
    with pytest.raises(ConfigError, match="a and b correspond to one class"):
        groups.own_masks(6)


def test_more_ids_than_labels_can_hold():
    network = LabelSet.from_names([f"c{n}" for n in range(253)])
    table = GroupTable(253)
    table.add(parse_class_groups({"a": ["c0", "c1"]}, None, network, "x"), "x")
    with pytest.raises(ConfigError, match="too many groups"):
        table.add(parse_class_groups({"a": ["c0", "c2"]}, None, network, "x"), "x")
    assert np.all(table.members()[0, :2])
