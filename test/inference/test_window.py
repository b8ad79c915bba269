# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The rules of the sliding window, case by case."""

from __future__ import annotations

import pytest

from vtseg_ros.inference.window import Action, FrameWindow

S = 1_000_000_000
SHAPE = (48, 80)


def actions(*frames, max_gap_s=1.0):
    window = FrameWindow(max_gap_s)
    return [window.push(*frame) for frame in frames]


@pytest.mark.parametrize(
    ("second", "action", "words"),
    [
        ((1 * S + S // 10, SHAPE, "a"), Action.APPEND, ""),
        ((2 * S, SHAPE, "a"), Action.APPEND, ""),
        ((2 * S + 1, SHAPE, "a"), Action.RESTART, "pause of 1.000 s"),
        (
            (1, SHAPE, "a"),
            Action.DROP,
            "late stamp 0.000000001 s: 1.000 s older than the newest frame, 1.000000000 s",
        ),
        ((1 * S, SHAPE, "a"), Action.DROP, "repeated stamp 1.000000000 s"),
        ((1 * S + 5, (40, 80), "a"), Action.RESTART, "size changed from 80x48 to 80x40"),
        ((1 * S + 5, SHAPE, "b"), Action.RESTART, "frame_id changed from 'a' to 'b'"),
        ((None, SHAPE, "a"), Action.APPEND, ""),
        ((0, SHAPE, "a"), Action.APPEND, ""),
    ],
)
def test_second_frame(second, action, words):
    first, decision = actions((1 * S, SHAPE, "a"), second)
    assert first.action is Action.RESTART
    assert decision.action is action and words in decision.reason


def test_stamps_that_run_back_by_more_than_the_gap_start_a_new_window():
    for back, action in ((S, Action.DROP), (S + 1, Action.RESTART)):
        decisions = actions((5 * S, SHAPE, "a"), (5 * S - back, SHAPE, "a"))
        assert decisions[1].action is action
    assert decisions[1].reason == "stamps ran back by 1.000 s"


def test_dropped_frames_are_not_remembered():
    repeated = actions((S, SHAPE, "a"), (S, SHAPE, "a"), (2 * S, SHAPE, "a"))
    assert [d.action for d in repeated] == [Action.RESTART, Action.DROP, Action.APPEND]
    late = actions((2 * S, SHAPE, "a"), (S + 1, SHAPE, "a"), (2 * S, SHAPE, "a"), (3 * S, SHAPE, "a"))
    assert [d.action for d in late] == [Action.RESTART, Action.DROP, Action.DROP, Action.APPEND]
