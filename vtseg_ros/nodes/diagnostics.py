# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The segmenter's health as a diagnostic status, from plain numbers."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import psutil
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

STALE_S = 2.0
DROP_SHARE = 0.2
RATE_SPAN_S = 5.0
# Times kept for the rates: RATE_SPAN_S of a 400 Hz camera.
KEPT = 2000


@dataclass
class Health:
    """Recent activity of a camera since its activation; times in s on the steady clock."""

    inputs: deque = field(default_factory=lambda: deque(maxlen=KEPT))
    outputs: deque = field(default_factory=lambda: deque(maxlen=KEPT))
    latencies: deque = field(default_factory=lambda: deque(maxlen=200))
    since: float = field(default_factory=time.monotonic)
    last_rejection: str = ""
    bad_stamps: int = 0
    """Frames dropped for a repeated or late stamp; part of the dropped ones."""
    over_rate: int = 0
    """Frames dropped since they exceed `max_rate`; part of the dropped ones."""
    lost_packets: int = 0
    """Video packets without an image; part of the dropped frames."""
    last_bad_stamp: str = ""
    last_lost_packet: str = ""
    last_error: str = ""


def rate(times: deque, now: float, since: float, span_s: float = RATE_SPAN_S) -> float:
    """Return the events per second over the last `span_s`, or since `since` when that is later."""
    span_s = min(span_s, max(now - since, 1e-3))
    return sum(now - t <= span_s for t in list(times)) / span_s


def memory_mb() -> float:
    """Return the resident memory of this process, MB."""
    return psutil.Process().memory_info().rss / 1e6


@dataclass(frozen=True)
class Counts:
    """A camera's counts at a time; see `slots.Counters`."""

    received: int = 0
    processed: int = 0
    dropped: int = 0
    rejected: int = 0
    bad_stamps: int = 0
    """Part of `dropped`: repeated or late stamps, not a model that is too slow."""
    over_rate: int = 0
    """Part of `dropped`: above the rate that the user set."""
    lost_packets: int = 0
    """Part of `dropped`: video packets without an image."""


def status(
    *,
    name: str,
    hardware_id: str,
    health: Health,
    counts: Counts,
    before: Counts,
    enabled: bool,
    now: float,
    facts: dict[str, str],
) -> DiagnosticStatus:
    """Build a status with level, message and values.

    ERROR until the first image, after an inference error and while every image is rejected; WARN on rejected or
    dropped images and when none came for a while; else OK. Images dropped for their stamps, video packets without an
    image, and images dropped because newer ones came before the model was free have different messages.

    Args:
        name: Name of the status.
        hardware_id: Device that runs the network.
        health: Recent activity of the camera.
        counts: Counts now.
        before: Counts at the last status, a second ago.
        enabled: False while the service ~/enable pauses the node.
        now: Time on the steady clock, s.
        facts: Values to add.

    Returns:
        The status of one camera.
    """
    dropped, rejected = counts.dropped - before.dropped, counts.rejected - before.rejected
    bad_stamps = counts.bad_stamps - before.bad_stamps
    lost_packets = counts.lost_packets - before.lost_packets
    too_fast = dropped - bad_stamps - lost_packets - (counts.over_rate - before.over_rate)
    message, level = "running", DiagnosticStatus.OK
    if not enabled:
        message = "paused by ~/enable"
    elif not counts.received:
        message, level = "no image yet", DiagnosticStatus.ERROR
    elif health.last_error:
        message, level = f"inference failed: {health.last_error}", DiagnosticStatus.ERROR
    elif counts.rejected and not counts.processed:
        message, level = f"every image is rejected: {health.last_rejection}", DiagnosticStatus.ERROR
    elif now - health.inputs[-1] > STALE_S:
        message, level = f"no image for {now - health.inputs[-1]:.0f} s", DiagnosticStatus.WARN
    elif rejected:
        message = f"{rejected} images rejected in the last second: {health.last_rejection}"
        level = DiagnosticStatus.WARN
    elif lost_packets:
        message = f"{lost_packets} video packets gave no image in the last second: {health.last_lost_packet}"
        level = DiagnosticStatus.WARN
    elif bad_stamps:
        message = f"{bad_stamps} images dropped in the last second for their stamps: {health.last_bad_stamp}"
        level = DiagnosticStatus.WARN
    elif too_fast > DROP_SHARE * max(counts.received - before.received, 1):
        message = f"{too_fast} images dropped in the last second: they come faster than the model runs"
        level = DiagnosticStatus.WARN
    latency = sum(health.latencies) / len(health.latencies) if health.latencies else float("nan")
    values = {
        "input rate (Hz)": f"{rate(health.inputs, now, health.since):.1f}",
        "output rate (Hz)": f"{rate(health.outputs, now, health.since):.1f}",
        "latency (s)": f"{latency:.3f}",
        "received": str(counts.received),
        "processed": str(counts.processed),
        "dropped": str(counts.dropped),
        "dropped for their stamps": str(counts.bad_stamps),
        "dropped above max_rate": str(counts.over_rate),
        "dropped video packets": str(counts.lost_packets),
        "rejected": str(counts.rejected),
        "last bad stamp": health.last_bad_stamp,
        "last rejection": health.last_rejection,
        **facts,
    }
    pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id, values=pairs)
