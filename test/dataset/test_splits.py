# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Parts of bags for training and validation."""

from __future__ import annotations

import pytest
from bags.bagtools import storage_file, write_bag

from vtseg_ros.dataset.frame_store import BagSource, FrameIndex
from vtseg_ros.dataset.splits import require_apart, split_by_time
from vtseg_ros.errors import ConfigError


@pytest.fixture
def bag(tmp_path):
    """101 frames in 10 s."""
    return write_bag(tmp_path / "bag", [i / 10 for i in range(101)], size=(8, 8))


def stamps(source: BagSource) -> list[float]:
    index = FrameIndex([source])
    return [round((frame.stamp_ns - 100e9) / 1e9, 3) for frame in index.frames]


def test_the_end_is_held_out_behind_a_guard(bag):
    (training,), (validation,) = split_by_time([BagSource(bag)], 0.25, 2.0)
    first, second = stamps(training), stamps(validation)
    assert (first[0], second[-1]) == (0.0, 10.0)
    assert second[0] - first[-1] == pytest.approx(2.0, abs=0.11)
    assert len(second) / (len(first) + len(second)) == pytest.approx(0.25, abs=0.02)
    require_apart([training], [validation], 2.0)


def test_parts_of_a_bag_are_split_themselves(bag):
    (training,), (validation,) = split_by_time([BagSource(bag, start_s=2.0, end_s=8.0)], 0.5, 1.0)
    assert stamps(training)[0] == 2.0 and stamps(training)[-1] == pytest.approx(4.4, abs=0.11)
    assert stamps(validation)[0] == pytest.approx(5.5, abs=0.11) and stamps(validation)[-1] < 8.0


def test_an_end_beyond_the_bags(bag):
    beyond, whole = (split_by_time([BagSource(bag, end_s=end)], 0.25, 2.0) for end in (60.0, 0.0))
    assert beyond[0] == whole[0] and stamps(beyond[1][0]) == stamps(whole[1][0])


def test_a_bag_that_is_too_short(bag):
    with pytest.raises(ConfigError, match="its 10.0 s cannot be split with a gap of 30 s"):
        split_by_time([BagSource(bag)], 0.2, 30.0)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ((0, 4), (5, 0), "0 s to 4 s.*5 s to the end.*are 1.0 s apart; expected at least 2 s"),
        ((5, 0), (0, 4), "are 1.0 s apart"),
        ((0, 0), (8, 0), "overlap; expected"),
        ((0, 5), (4, 8), "overlap"),
    ],
)
def test_parts_that_are_too_near(bag, one, other, words, caplog):
    parts = [BagSource(bag, start_s=one[0], end_s=one[1])], [BagSource(bag, start_s=other[0], end_s=other[1])]
    with pytest.raises(ConfigError, match=words):
        require_apart(*parts, 2.0)
    require_apart(*parts, 0.0)  # no gap is asked for: logged, not refused
    assert ("overlap" in caplog.text) == ("overlap" in words)


def test_parts_that_are_far_enough_and_other_bags(bag, tmp_path, caplog):
    require_apart([BagSource(bag, end_s=4.0)], [BagSource(bag, start_s=6.0)], 2.0)
    require_apart([BagSource(bag)], [BagSource(tmp_path / "other")], 100.0)
    assert not caplog.text
    for same in (bag / ".." / "bag", storage_file(bag)):
        with pytest.raises(ConfigError, match="overlap"):
            require_apart([BagSource(bag)], [BagSource(same)], 1.0)
