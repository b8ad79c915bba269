# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Which frames a rate limit admits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vtseg_ros.nodes.rate_limit import RateLimit

MS = 1_000_000


def admitted(limit: RateLimit, times_ms: list[int]) -> list[int]:
    return [time for time in times_ms if limit.admit(time * MS)]


def test_every_fourth_frame_and_no_frame_too_many_after_a_pause():
    assert admitted(RateLimit(5.0), list(range(0, 500, 50))) == [0, 200, 400]
    assert admitted(RateLimit(10.0), [0, 1000, 1010, 1099, 1100]) == [0, 1000, 1100]
    assert admitted(RateLimit(0.0), [0, 1, 1]) == [0, 1, 1]


def test_a_changed_rate_and_stamps_that_run_back_begin_anew():
    limit = RateLimit(1.0)
    assert admitted(limit, [5000, 5100, 4900]) == [5000]
    assert admitted(limit, [0, 500, 1000]) == [0, 1000]
    limit.rate_hz = 2.0
    assert admitted(limit, [1100, 1500, 1600]) == [1100, 1600]


@given(st.lists(st.integers(-10, 10), min_size=60, max_size=60))
def test_jitter_does_not_change_the_mean_rate(jitter):
    """A camera of 30 Hz limited to 10 Hz."""
    times = [round(index * 100 / 3) + shift for index, shift in enumerate(jitter)]
    assert 19 <= len(admitted(RateLimit(10.0), times)) <= 21


@given(st.lists(st.integers(0, 300), min_size=2, max_size=50), st.floats(0.5, 50.0))
def test_the_mean_rate_is_never_exceeded(gaps, rate_hz):
    times = [sum(gaps[:index]) for index in range(1, len(gaps) + 1)]
    span_s = (times[-1] - times[0]) / 1000
    assert len(admitted(RateLimit(rate_hz), times)) <= span_s * rate_hz + 2
