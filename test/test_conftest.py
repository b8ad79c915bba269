# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How long tests wait."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import conftest
import pytest
from conftest import LONGEST_WAIT_S, PATIENCE_S, wait_until


@pytest.mark.parametrize(
    ("busy_share", "most_s"),
    [(0.0, PATIENCE_S), (0.5, 2 * PATIENCE_S), (1.0, LONGEST_WAIT_S)],
)
def test_a_busy_machine_is_given_more_time(monkeypatch, busy_share, most_s):
    """A clock on which every look takes 10 s, and processes wait for a processor for a share of that."""
    clock = itertools.count(0.0, 10.0)
    now = [0.0]

    def tick() -> float:
        now[0] = next(clock)
        return now[0]

    monkeypatch.setattr(conftest, "time", SimpleNamespace(monotonic=tick, sleep=lambda _: None))
    monkeypatch.setattr(conftest, "_busy_s", lambda: busy_share * now[0])
    with pytest.raises(AssertionError, match=r"timed out after \d+ s. no answer"):
        wait_until(lambda: False, lambda: "no answer")
    assert most_s <= now[0] <= most_s + 10


def test_the_end_of_a_wait_is_before_that_of_the_test(pytestconfig):
    assert LONGEST_WAIT_S < float(pytestconfig.getini("timeout"))
