# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Newest-only slots: nothing is lost from the counts."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("rclpy")

from vtseg_ros.nodes.ledger import Ledger, Waiting
from vtseg_ros.nodes.slots import Counters, Slots


def test_the_newest_of_every_camera_is_taken_oldest_first():
    slots = Slots(["fast", "slow"])
    for message in (1, 2, 3):
        slots.put("fast", message)
    slots.put("slow", 10)
    slots.put("fast", 4)
    taken = slots.take(0.0)
    assert [(p.camera, p.message) for p in taken.frames] == [("slow", 10), ("fast", 4)]
    assert [p.message for p in taken.dropped] == [1, 2, 3]
    assert slots.take(0.0).frames == []


def test_what_waits_at_the_end_is_told_as_dropped():
    slots = Slots(["a"])
    slots.put("a", 1)
    slots.put("a", 2)
    slots.close()
    taken = slots.take(0.0)
    assert taken.frames == [] and sorted(p.message for p in taken.dropped) == [1, 2]
    assert slots.counters["a"].dropped == slots.counters["a"].received == 2
    assert slots.take(0.0) is None


def test_a_skipped_message_leaves_what_waits():
    slots = Slots(["a"])
    slots.put("a", 1)
    slots.skip("a", 2, "above max_rate")
    taken = slots.take(0.0)
    assert [p.message for p in taken.frames] == [1]
    assert [(p.message, p.reason) for p in taken.dropped] == [(2, "above max_rate")]
    assert slots.counters["a"] == Counters(received=2, dropped=1)


def test_requests_one_at_a_time_and_not_too_many():
    slots = Slots(["a"])
    assert [slots.ask(number) for number in range(Slots.MAX_ASKED + 1)] == [True] * Slots.MAX_ASKED + [False]
    slots.put("a", 1)
    first, second = slots.take(0.0), slots.take(0.0)
    assert (first.asked, len(first.frames), second.asked, second.frames) == (0, 1, 1, [])
    assert slots.close() == list(range(2, Slots.MAX_ASKED))
    assert slots.take(0.0) is None and not slots.ask(99)


def test_counts_from_two_threads_add_up():
    slots, rounds = Slots(["a"]), 20_000

    def work(what: str) -> None:
        for _ in range(rounds):
            slots.count("a", what)

    threads = [threading.Thread(target=work, args=(what,)) for what in ("dropped", "dropped", "processed")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (slots.counters["a"].dropped, slots.counters["a"].processed) == (2 * rounds, rounds)


def test_a_ledger_of_a_looped_bag():
    ledger = Ledger()
    for _ in range(2):
        for stamp in (1, 2, 3):
            ledger.saw_image(stamp)
            ledger.saw_label(stamp)
    for event, stamp in (
        ("processed", 1),
        ("processed", 1),
        ("dropped", 2),
        ("processed", 2),
        ("rejected", 3),
    ):
        ledger.saw_status(event, stamp)
    assert ledger.counts() == {
        "frames_seen": 6,
        "labelled_frames": 6,
        "frames_received": 5,
        "frames_processed": 3,
        "frames_dropped": 1,
        "frames_rejected": 1,
        "frames_lost": 1,
        "frames_pending": 0,
    }
    assert ledger.labelled_processed() == 3


def test_a_frame_in_work_is_not_lost(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    ledger = Ledger()

    def lost_and_pending() -> tuple[int, int]:
        counts = ledger.counts()
        return counts["frames_lost"], counts["frames_pending"]

    for stamp in (1, 2, 3, 4):
        ledger.saw_image(stamp)
    assert lost_and_pending() == (0, 4)
    ledger.saw_status("processed", 2)  # frames are told of in the order they came: 1 never arrived
    assert lost_and_pending() == (1, 2)
    ledger.saw_status("dropped", 1)  # a status that came late all the same
    ledger.saw_status("processed", 5)  # one that was faster than its image
    ledger.saw_image(5)
    assert lost_and_pending() == (0, 2)
    ledger.saw_idle()  # told before the images could arrive there
    assert lost_and_pending() == (0, 2)
    now[0] = 1.0
    ledger.saw_image(6)
    ledger.saw_idle()
    assert lost_and_pending() == (2, 1)


def test_what_waits_for_its_counterpart_is_bounded():
    waiting = Waiting(items=3, size=100)
    for stamp in range(5):
        waiting.put(stamp, f"thing {stamp}", 10)
    assert [stamp in waiting for stamp in range(5)] == [False, False, True, True, True]
    waiting.put(9, "large", 95)
    assert len(waiting) == 1 and waiting.get(9) == waiting.pop(9) == "large" and waiting.pop(9) is None
    waiting.put(10, "larger than all", 1000)
    assert 10 in waiting
