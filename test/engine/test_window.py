"""The rules of the sliding window, case by case."""

from __future__ import annotations

import pytest

from vtseg_ros.engine.window import Action, FrameWindow

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
        ((S - 1, SHAPE, "a"), Action.RESTART, "ran back"),
        ((1 * S, SHAPE, "a"), Action.DUPLICATE, ""),
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


def test_a_duplicate_is_not_remembered():
    decisions = actions((S, SHAPE, "a"), (S, SHAPE, "a"), (2 * S, SHAPE, "a"))
    assert decisions[2].action is Action.APPEND
