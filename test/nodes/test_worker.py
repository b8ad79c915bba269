# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The inference thread survives faults of what it publishes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

rclpy = pytest.importorskip("rclpy")

from conftest import wait_until  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from vtseg_ros.nodes.slots import Slots  # noqa: E402
from vtseg_ros.nodes.worker import Settings, Worker  # noqa: E402


def test_a_status_that_cannot_be_published_does_not_end_the_thread():
    published, warnings = [], []

    def publish(status):
        if not published and not warnings:
            raise rclpy._rclpy_pybind11.RCLError("no memory")
        published.append(status)

    slots = Slots([""])
    worker = Worker(
        slots=slots,
        segmenter=None,
        decode=None,
        outputs={"": SimpleNamespace(status=SimpleNamespace(publish=publish))},
        settings=Settings(),
        warn=lambda key, text: warnings.append(text),
        debug=lambda text: None,
        clock_now=lambda: None,
        context=SimpleNamespace(ok=lambda: True),
    )
    worker.start()
    try:
        for count, reason in enumerate(("first", "second"), start=1):
            slots.skip("", SimpleNamespace(header=Header()), reason)
            wait_until(lambda seen=count: len(warnings) + len(published) == seen, lambda: str(warnings))
    finally:
        slots.close()
        worker._thread.join()
    assert warnings == ["publishing failed: RCLError: no memory"]
    assert [status.reason for status in published] == ["second"]
