# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Logits of another class list: the largest of the sources, by operators that a CUDA graph can capture."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vtseg_ros.model.static_prior import ClassMapping


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


def test_the_largest_source_and_the_smallest_logit_without_one():
    logits = torch.tensor([3.0, -1.0, 5.0, 2.0]).reshape(1, 4, 1, 1)
    mapped = ClassMapping((1, 1, 0, -1), 3)(logits)
    assert mapped.flatten().tolist() == [5.0, 3.0, -1.0]


def test_nothing_is_uploaded():
    """A list of indices becomes a tensor on the CPU first: a copy to the GPU that waits, and breaks a capture."""
    with Operators() as operators:
        ClassMapping((1, 1, 0, -1), 3)(torch.rand(2, 4, 8, 8))
    assert "maximum" in operators.names
    assert not operators.names & {"lift_fresh", "index", "_to_copy", "_local_scalar_dense"}
