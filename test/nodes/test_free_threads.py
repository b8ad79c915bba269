# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""By default, the segmenter leaves one core to the rest of the graph."""

from __future__ import annotations

import pytest
import torch

from vtseg_ros.nodes import loading


@pytest.mark.parametrize(
    ("cores", "variable", "threads"),
    [(1, None, 1), (2, None, 2), (3, None, 2), (8, None, 7), (64, None, 63), (8, "8", 8)],
)
def test_one_core_is_left_if_there_are_more_than_two(cores, variable, threads, monkeypatch):
    """Unless the user set a number of threads for all programs."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    loading._free_threads.cache_clear()
    try:
        assert loading._free_threads() == threads
    finally:
        loading._free_threads.cache_clear()
