# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Matching by stamp: exact within a group, nearest for the sensor, in bounded memory."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vtseg_ros.nodes.matching import StampMatcher


def matcher(**options) -> StampMatcher:
    return StampMatcher(group=("mask", "confidence"), sensor="depth", **options)


def test_every_order_of_arrival_gives_the_same_match():
    arrivals = [("mask", 100), ("confidence", 100), ("depth", 103)]
    for order in itertools.permutations(arrivals):
        found = matcher()
        results = [found.put(topic, stamp, f"{topic}{stamp}", 1, 5) for topic, stamp in order]
        expected = {"mask": "mask100", "confidence": "confidence100", "depth": "depth103"}
        assert results == [None, None, expected]
        assert not found.dropped


def test_the_nearest_is_taken_and_used_once():
    found = StampMatcher(group=("mask",), sensor="depth")
    for stamp in (90, 98, 103):
        assert found.put("depth", stamp, stamp, 1, 10) is None
    assert found.put("mask", 100, 100, 1, 10) == {"mask": 100, "depth": 98}
    assert found.put("mask", 101, 101, 1, 10) == {"mask": 101, "depth": 103}
    assert found.put("mask", 102, 102, 1, 10) is None
    assert found.put("depth", 113, 113, 1, 10) is None  # 11 away
    assert found.put("depth", 112, 112, 1, 10) == {"mask": 102, "depth": 112}


def test_what_never_matches_is_dropped_and_counted():
    found = matcher(items=3)
    for stamp in range(10):
        found.put("mask", stamp, "m", 1, 0)
        if stamp % 2:
            found.put("confidence", stamp, "c", 1, 0)
    # Stamps 0 to 6 went: 4 of them without confidence, 3 complete ones without depth.
    assert found.dropped == {"confidence": 4, "depth": 3}


def test_memory_is_bounded_and_the_newest_waits():
    found = StampMatcher(group=("mask",), sensor="depth", size=100)
    for stamp in range(5):
        found.put("depth", stamp, "d", 40, 0)
    assert found.put("mask", 2, "m", 1, 0) is None  # 3 and 4 are left
    assert found.put("mask", 3, "m", 1, 0) is not None
    found.put("depth", 9, "large", 1000, 0)
    assert found.put("mask", 9, "m", 1, 0) == {"mask": "m", "depth": "large"}


def test_a_repeated_message_replaces_the_first():
    found = matcher()
    found.put("mask", 1, "old", 1, 0)
    found.put("mask", 1, "new", 1, 0)
    found.put("depth", 1, "d", 1, 0)
    assert found.put("confidence", 1, "c", 1, 0)["mask"] == "new"


@given(
    st.lists(st.tuples(st.sampled_from(["mask", "confidence", "depth"]), st.integers(0, 40)), max_size=120)
)
def test_matches_are_near_and_nothing_is_used_twice(arrivals):
    found, used = matcher(items=5), set()
    for number, (topic, stamp) in enumerate(arrivals):
        match = found.put(topic, stamp, (topic, stamp, number), 1, 3)
        if match:
            assert set(match) == {"mask", "confidence", "depth"}
            assert match["mask"][1] == match["confidence"][1]
            assert abs(match["mask"][1] - match["depth"][1]) <= 3
            assert not used & set(match.values())
            used |= set(match.values())
