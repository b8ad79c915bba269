# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The recurrent flow baseline against its source's equations, pixel by pixel in float64."""

from __future__ import annotations

import math

import pytest
import torch

from vtseg_ros.model.stgru import STGRU, warp

HEIGHT, WIDTH, CLASSES, KERNEL = 5, 6, 3, 3


def at(image, row, column):
    """The pixel (C,) at a place; the border repeated outside."""
    return image[:, min(max(row, 0), HEIGHT - 1), min(max(column, 0), WIDTH - 1)]


def convolve(image, conv, row, column):
    """A convolution's outputs at one place, zeros outside."""
    total = torch.zeros(conv.weight.shape[0], dtype=image.dtype) if conv.bias is None else conv.bias.clone()
    for i in range(KERNEL):
        for j in range(KERNEL):
            y, x = row + i - KERNEL // 2, column + j - KERNEL // 2
            if 0 <= y < HEIGHT and 0 <= x < WIDTH:
                total = total + conv.weight[:, :, i, j] @ image[:, y, x]
    return total


def warped(image, flow):
    """Whole-pixel flow: (dx, dy) leads from the present to the past."""
    out = torch.empty_like(image)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            dx, dy = flow[:, row, column].tolist()
            out[:, row, column] = at(image, row + int(dy), column + int(dx))
    return out


def step_by_hand(model, past, present, image, past_image, flow):
    """The gates of Nilsson and Sminchisescu; the past is trusted where the flow explains the image."""
    old, difference = warped(past, flow), image - warped(past_image, flow)
    reset = torch.empty(HEIGHT, WIDTH, dtype=image.dtype)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            reset[row, column] = 1 - math.tanh(
                abs(float(convolve(difference, model.image_to_reset, row, column)))
            )
    trusted, out = reset * old, torch.empty_like(past)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            where = (row, column)
            candidate = convolve(present, model.present_to_candidate, *where)
            candidate = candidate + convolve(trusted, model.past_to_candidate, *where)
            gate = convolve(trusted, model.past_to_update, *where) + convolve(
                present, model.present_to_update, *where
            )
            update = 1 / (1 + math.exp(-float(gate)))
            out[:, row, column] = model.scale * ((1 - update) * trusted[:, row, column] + update * candidate)
    return out


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = STGRU(num_classes=CLASSES, kernel=KERNEL).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("static_prior"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def test_a_step_by_hand(model):
    past, present = (torch.rand(CLASSES, HEIGHT, WIDTH, dtype=torch.float64).softmax(0) for _ in range(2))
    image, past_image = (torch.rand(3, HEIGHT, WIDTH, dtype=torch.float64) for _ in range(2))
    flow = torch.randint(-2, 3, (2, HEIGHT, WIDTH)).double()
    with torch.no_grad():
        got = model.step(past[None], present[None], image[None], past_image[None], flow[None])[0]
        expected = step_by_hand(model, past, present, image, past_image, flow)
    assert torch.allclose(got, expected, atol=1e-10)


def test_a_window_is_the_steps_one_after_the_other(model):
    model.eval()
    video, flow = torch.rand(1, 3, 3, 16, 16).double(), torch.randn(1, 2, 2, 16, 16).double()
    with torch.no_grad():
        static = model.static_prior(video[0])
        second = model.step(
            static[:1].softmax(1), static[1:2].softmax(1), video[:, 1], video[:, 0], flow[:, 0]
        )
        third = model.step(second.softmax(1), static[2:].softmax(1), video[:, 2], video[:, 1], flow[:, 1])
        assert torch.allclose(model(video, flow)[0], torch.cat([static[:1], second, third]), atol=1e-10)


def test_half_a_pixel_and_unknown_flow():
    row = torch.tensor([0.0, 10.0, 20.0, 30.0]).reshape(1, 1, 1, 4)
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0, 0] = torch.tensor([0.5, 0.5, float("nan"), 5.0])
    assert warp(row, flow).flatten().tolist() == pytest.approx([5.0, 15.0, 20.0, 30.0])


def test_a_new_network_hardly_changes_the_static_masks():
    torch.manual_seed(1)
    model = STGRU(num_classes=CLASSES).eval()
    torch.nn.init.normal_(model.static_prior.decoder.output_conv.weight, std=3.0)
    video, flow = torch.rand(1, 3, 3, 32, 32), torch.zeros(1, 2, 2, 32, 32)
    with torch.no_grad():
        masks, static = model(video, flow)[0].argmax(1), model.static_prior(video[0]).argmax(1)
    assert (masks == static).float().mean() > 0.9 and len(static.unique()) == CLASSES


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_of_both_phases(model, frozen):
    model.freeze_prior(frozen)
    model.train()
    model(torch.rand(1, 2, 3, 16, 16).double(), torch.randn(1, 1, 2, 16, 16).double())[
        :, 1
    ].square().mean().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("static_prior") and frozen:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
