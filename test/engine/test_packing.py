"""Convolutions packed for the CPU: the same values, and none of it where the operators fail."""

from __future__ import annotations

import pytest
import torch
from conftest import randomize_batch_norm

from vtseg_ros.engine import packing
from vtseg_ros.engine.packing import PackedConv, pack
from vtseg_ros.engine.prepare import prepare
from vtseg_ros.model import ERFNet, VTSeg, VTSegConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, 1, 1), (1, 2, 1), (8, 1, 1), (1, 1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_convolution(groups, stride, dilation, dtype):
    if not packing.works(dtype):
        pytest.skip("this torch or processor has no such operators")
    conv = torch.nn.Conv2d(8, 8, 3, stride, padding=dilation, dilation=dilation, groups=groups).to(dtype)
    packed, rectified = PackedConv(conv), PackedConv(conv, relu=True)
    with torch.inference_mode():
        for rows in (1, 3, 1):  # packed for the first shape, right for all
            x = torch.randn(rows, 8, 12, 16).to(dtype)
            expected = conv(x)
            close = dict(atol=1e-5, rtol=1e-5) if dtype == torch.float32 else dict(atol=0.03, rtol=0.03)
            torch.testing.assert_close(packed(x), expected, **close)
            torch.testing.assert_close(rectified(x), torch.relu(expected), **close)
            if groups == 1:  # a sum after a depthwise convolution is not needed, nor everywhere possible
                residual = torch.randn_like(expected)
                torch.testing.assert_close(rectified(x, residual), torch.relu(expected + residual), **close)


@pytest.mark.parametrize("kind", [ERFNet, VTSeg])
def test_whole_networks(kind):
    torch.manual_seed(0)
    if kind is VTSeg:
        network, image = VTSeg(VTSegConfig.preset("tiny", num_classes=4)), torch.rand(1, 2, 3, 32, 64)
    else:
        network, image = ERFNet(num_classes=4), torch.rand(2, 3, 32, 64)
    randomize_batch_norm(network.eval())
    packed = prepare(network, CPU, torch.float32, packed=True)
    assert any(isinstance(module, PackedConv) for module in packed.modules()) == packing.works(torch.float32)
    with torch.inference_mode():
        assert (packed(image) - network(image)).abs().max() < 1e-4


def test_left_alone_where_the_operators_fail(monkeypatch):
    monkeypatch.setattr(packing, "works", lambda dtype: False)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
    assert type(pack(network)[0]) is torch.nn.Conv2d
