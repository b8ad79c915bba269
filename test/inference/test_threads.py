# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The number of CPU threads."""

from __future__ import annotations

import pytest
import torch

from vtseg_ros.inference.backends import base
from vtseg_ros.inference.backends.base import BackendOptions


@pytest.mark.parametrize(
    ("cores", "one_of_two", "both_of_two"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (64, 63, 63)]
)
def test_a_core_is_left_even_after_a_network_was_loaded(cores, one_of_two, both_of_two, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    base._first_thread_count.cache_clear()
    try:
        options = BackendOptions(leave_core=True)
        assert options.thread_count(of_two=1) == one_of_two
        monkeypatch.setattr(torch, "get_num_threads", lambda: one_of_two)
        assert options.thread_count(of_two=2) == both_of_two
    finally:
        base._first_thread_count.cache_clear()


@pytest.mark.parametrize("leave_core", [False, True])
def test_the_user_s_number_is_used(leave_core):
    assert BackendOptions(threads=3, leave_core=leave_core).thread_count(of_two=1) == 3
    assert BackendOptions().thread_count(of_two=1) is None
