"""The segmenter's health as a diagnostic status, from plain numbers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

STALE_S = 2.0
DROP_SHARE = 0.2


@dataclass
class Health:
    """Recent activity of a camera; times in s on the steady clock."""

    inputs: deque = field(default_factory=lambda: deque(maxlen=200))
    outputs: deque = field(default_factory=lambda: deque(maxlen=200))
    latencies: deque = field(default_factory=lambda: deque(maxlen=200))
    last_rejection: str = ""
    last_error: str = ""


def rate(times: deque, now: float, span_s: float = 5.0) -> float:
    """Events per second over the last `span_s`."""
    recent = [t for t in list(times) if now - t <= span_s]
    return len(recent) / span_s


def status(
    *,
    name: str,
    hardware_id: str,
    health: Health,
    counters,
    previous_dropped: int,
    now: float,
    facts: dict[str, str],
) -> DiagnosticStatus:
    """Level, message and values.

    ERROR until the first image and after an inference error; WARN on rejected or dropped images and when none came
    for a while; else OK.
    """
    dropped = counters.dropped - previous_dropped
    message, level = "running", DiagnosticStatus.OK
    if not counters.received:
        message, level = "no image yet", DiagnosticStatus.ERROR
    elif health.last_error:
        message, level = f"inference failed: {health.last_error}", DiagnosticStatus.ERROR
    elif now - health.inputs[-1] > STALE_S:
        message, level = f"no image for {now - health.inputs[-1]:.0f} s", DiagnosticStatus.WARN
    elif counters.rejected and not counters.answered:
        message, level = f"every image is rejected: {health.last_rejection}", DiagnosticStatus.ERROR
    elif dropped > DROP_SHARE * max(rate(health.inputs, now, 1.0), 1.0):
        message, level = f"{dropped} images dropped in the last second", DiagnosticStatus.WARN
    latency = sum(health.latencies) / len(health.latencies) if health.latencies else float("nan")
    values = {
        "input rate (Hz)": f"{rate(health.inputs, now):.1f}",
        "output rate (Hz)": f"{rate(health.outputs, now):.1f}",
        "latency (s)": f"{latency:.3f}",
        "received": str(counters.received),
        "answered": str(counters.answered),
        "dropped": str(counters.dropped),
        "rejected": str(counters.rejected),
        "last rejection": health.last_rejection,
        **facts,
    }
    pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id, values=pairs)
