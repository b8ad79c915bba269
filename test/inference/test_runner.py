# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What becomes of graphs that do not fit into the memory; real ones are tested in test_cuda.py."""

from __future__ import annotations

import pytest
import torch

from vtseg_ros.inference.backends import torch_backend as running
from vtseg_ros.inference.backends.torch_backend import StepRunner
from vtseg_ros.inference.step import build_step
from vtseg_ros.model import ERFNet


class GraphOfOne:
    """Takes the memory that one camera's graph needs, and no more."""

    def __init__(self, step, images, past):
        tried.append(images.shape[0])
        if images.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.step = step

    def __call__(self, images, past):
        logits, kept = self.step(images, images.new_empty(1, 0, 0))
        return logits, list(kept)


tried: list[int] = []


@torch.inference_mode()
def test_what_did_not_fit_as_a_graph_is_not_tried_at_every_frame(monkeypatch):
    monkeypatch.setattr(running, "_Graph", GraphOfOne)
    tried.clear()
    network = ERFNet(num_classes=3).eval()
    runner = StepRunner(build_step(network, (32, 64), "plain"), window=1, graph=True)
    one, two = torch.rand(1, 3, 32, 64), torch.rand(2, 3, 32, 64)
    runner(one, [[]])
    with pytest.raises(torch.OutOfMemoryError):
        runner(two, [[], []])
    for _ in range(3):
        assert torch.allclose(runner(two, [[], []])[0], network(two), atol=1e-5)
        assert torch.allclose(runner(one, [[]])[0], network(one), atol=1e-5)
    assert tried == [
        1,
        2,
        1,
    ]  # all graphs make room when one does not fit, then the smaller one is there again
    assert runner.mode == "graph"
