# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The segmenter's health, from plain numbers."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import Header

from vtseg_ros.nodes.diagnostics import Counts, Health, memory_mb, rate, status
from vtseg_ros.nodes.segmenter import SegmenterNode
from vtseg_ros.nodes.slots import Slots

NONE = Counts()
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


def told(counts: Counts, *, before: Counts = NONE, now: float = 100.0, enabled: bool = True, **health):
    made = Health(since=0.0)
    made.inputs.extend(health.pop("inputs", [99.5]))
    for name, value in health.items():
        setattr(made, name, value)
    return status(
        name="segmenter: camera",
        hardware_id="cpu",
        health=made,
        counts=counts,
        before=before,
        enabled=enabled,
        now=now,
        facts={"device": "cpu"},
    )


@pytest.mark.parametrize(
    ("counts", "before", "health", "level", "words"),
    [
        (Counts(), Counts(), {"inputs": []}, ERROR, "no image yet"),
        (Counts(10, 10), Counts(5, 5), {}, OK, "running"),
        (Counts(20, 12, 8), Counts(10, 10), {}, WARN, "8 images dropped"),
        (Counts(20, 12, 8), Counts(10, 10), {}, WARN, "faster than the model"),
        (
            Counts(30, 10, 20, 0, 20),
            Counts(),
            {"last_bad_stamp": "repeated stamp 7.1 s"},
            WARN,
            "stamps: repeated stamp 7.1 s",
        ),
        (Counts(20, 19, 1), Counts(10, 10), {}, OK, "running"),
        (Counts(40, 10, 30, 0, 0, 30), Counts(), {}, OK, "running"),
        (
            Counts(30, 10, 20, 0, 0, 0, 20),
            Counts(),
            {"last_lost_packet": "there is no key frame before it"},
            WARN,
            "20 video packets gave no image in the last second: there is no key frame",
        ),
        (Counts(10, 10), Counts(10, 10), {"inputs": [90.0]}, WARN, "no image for 10 s"),
        (Counts(10, 9, 0, 1), Counts(9, 9), {"last_rejection": "too short"}, WARN, "too short"),
        (Counts(3, 0, 0, 3), Counts(3, 0, 0, 3), {"last_rejection": "too short"}, ERROR, "every image"),
        (Counts(3, 2, 0, 1), Counts(), {"last_error": "out of memory"}, ERROR, "out of memory"),
    ],
)
def test_levels(counts, before, health, level, words):
    got = told(counts, before=before, **health)
    assert got.level == level and words in got.message


def test_video_that_begins_between_key_frames():
    """Its packets arrive and give no image: that is the status, until the first key frame."""
    worker = SimpleNamespace(enabled=True, health={"": Health()})
    node = SimpleNamespace(_worker=worker, _slots=Slots([""]))
    SegmenterNode._on_lost_packet(node, "", Header(), "there is no key frame before it")
    health = worker.health[""]
    counts = Counts(**vars(node._slots.counters[""]), lost_packets=health.lost_packets)
    got = status(
        name="camera",
        hardware_id="cpu",
        health=health,
        counts=counts,
        before=NONE,
        enabled=True,
        now=time.monotonic(),
        facts={},
    )
    assert got.level == WARN and got.message.endswith("last second: there is no key frame before it")


def test_a_pause_is_not_a_fault():
    got = told(Counts(10, 10), inputs=[10.0], enabled=False)
    assert got.level == OK and "paused" in got.message


def test_values_name_their_unit():
    values = {pair.key: pair.value for pair in told(Counts(10, 8, 1, 1)).values}
    assert values["received"] == "10" and values["dropped"] == "1" and values["device"] == "cpu"
    assert {"input rate (Hz)", "output rate (Hz)", "latency (s)"} <= values.keys()


def test_rates():
    every_10_ms = [t / 100 for t in range(10_000)]
    assert rate(every_10_ms, 100.0, 0.0) == pytest.approx(100.0, abs=0.5)
    # A node that has run for one second does not tell a fifth of the rate.
    assert rate([99.1, 99.5, 99.9], 100.0, 99.0) == pytest.approx(3.0)
    assert rate([1.0, 2.0], 100.0, 0.0) == 0.0


def test_memory_is_this_process():
    assert 10 < memory_mb() < 100_000
