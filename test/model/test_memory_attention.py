# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Local attention to older frames, against a loop over cells that is written from the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.memory_attention import (
    APPEARANCES,
    BLOCK,
    MemoryAttention,
    MemoryConfig,
    appearance,
    certainty,
)

CLASSES, WIDTH = 3, 8
ROWS = WIDTH + 1 + APPEARANCES + CLASSES


def memory(radius: int = 2, seed: int = 0) -> MemoryAttention:
    """An attention with random weights everywhere, so that no term of the scores vanishes."""
    torch.manual_seed(seed)
    network = MemoryAttention(MemoryConfig(stride=4, radius=radius, width=8)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def inputs(frames: int, size: tuple[int, int], seed: int = 1) -> tuple[torch.Tensor, ...]:
    """Features (1, 8, h, w) and rows (1, D, h, w) of a frame, and the rows of older ones (1, frames, h, w, D)."""
    torch.manual_seed(seed)
    return torch.randn(1, WIDTH, *size), torch.randn(1, ROWS, *size), torch.randn(1, frames, *size, ROWS)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def attend_by_loops(network: MemoryAttention, features, logits, past, valid=None):
    """Each query scores every cell of its block and of the cells around it, in all older frames that exist."""
    radius, width = network.config.radius, network.config.width
    queries = network.query(features)[0].detach().double().numpy()
    own, rows = logits[0].double().numpy(), past[0].double().numpy()
    frames, height, columns, _ = rows.shape
    position = network.position.detach().double().numpy()
    reach = BLOCK + radius - 1
    slope = float(F.softplus(network.age.detach()))
    result = np.zeros((width + APPEARANCES + CLASSES, height, columns))
    for y in range(height):
        for x in range(columns):
            top, left = y // BLOCK * BLOCK, x // BLOCK * BLOCK
            scores, found = [], []
            for t in range(frames):
                if valid is not None and not valid[t]:
                    continue
                for v in range(max(0, top - radius), min(height, top + BLOCK + radius)):
                    for u in range(max(0, left - radius), min(columns, left + BLOCK + radius)):
                        key, quality, look, value = np.split(
                            rows[t, v, u], [width, width + 1, width + 1 + APPEARANCES]
                        )
                        score = queries[:, y, x] @ key / np.sqrt(width) + quality[0]
                        score += float(network.same_class.detach()) * softmax(own[:, y, x]) @ softmax(value)
                        score += position[(v - y + reach) * (2 * reach + 1) + (u - x + reach)]
                        score -= slope * (frames - 1 - t)
                        scores.append(score)
                        found.append(np.concatenate([key, look, value]))
            result[:, y, x] = softmax(np.array(scores)) @ np.array(found)
    return result


@pytest.mark.parametrize("size", [(8, 8), (11, 18), (5, 3)])
@pytest.mark.parametrize("valid", [None, (True, True), (False, True)])
def test_attention_equals_loops_over_cells(size, valid):
    network = memory()
    features, own, past = inputs(2, size)
    logits = own[:, -CLASSES:]
    shown = None if valid is None else torch.tensor(valid)
    with torch.no_grad():
        attended = torch.cat(network.attend(features, logits, past, shown), dim=1)
    expected = attend_by_loops(network, features, logits, past, valid)
    np.testing.assert_allclose(attended[0].numpy(), expected, atol=2e-5)


def test_missing_frames_have_no_influence():
    network = memory()
    features, own, past = inputs(3, (8, 16))
    with torch.no_grad():
        shorter, _ = network(features, own, past[:, 1:])
        longer, _ = network(features, own, past, torch.tensor([False, True, True]))
        none, _ = network(features, own, past, torch.tensor([False, False, False]))
    torch.testing.assert_close(longer, shorter, atol=1e-5, rtol=0)
    assert not none.any()


def test_a_closed_gate_changes_nothing_and_an_open_one_copies():
    network = memory()
    features, own, past = inputs(1, (8, 8))
    last = network.gate
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(-50.0)
        assert network(features, own, past)[0].abs().max() < 1e-6
        last.bias.fill_(50.0)
        change, _ = network(features, own, past)
        attended = network.attend(features, own[:, -CLASSES:], past)[-1]
    torch.testing.assert_close(own[:, -CLASSES:] + change, attended)


def test_caution_closes_the_gate_outside_training():
    network = memory()
    features, own, past = inputs(1, (8, 8))
    with torch.no_grad():
        cautious, gate = network(features, own, past)
        trained, same = network.train()(features, own, past)
    torch.testing.assert_close(gate, same)
    ratio = torch.sigmoid(gate - 1.0) / torch.sigmoid(gate)
    torch.testing.assert_close(cautious, trained * ratio)


def test_keys_beyond_the_radius_are_not_seen():
    network = memory(radius=2)
    features, own, past = inputs(1, (8, 32))
    changed = past.clone()
    changed[..., BLOCK + 2 :, :] = 7.0
    with torch.no_grad():
        before, after = (network.attend(features, own[:, -CLASSES:], rows)[-1] for rows in (past, changed))
    assert torch.equal(before[..., :BLOCK], after[..., :BLOCK])
    assert not torch.equal(before[..., BLOCK:], after[..., BLOCK:])


def test_nothing_depends_on_the_number_of_classes():
    network = memory()
    for classes in (1, 2, 19):
        images, logits = torch.rand(1, 3, 32, 32), torch.randn(1, classes, 8, 8)
        features, own = network.describe(images, logits)
        assert network(features, own, own.permute(0, 2, 3, 1)[:, None])[0].shape == logits.shape


def test_appearance_by_hand():
    """Columns of 0 and 0.5 in turn on the left, one grey on the right."""
    images = torch.full((1, 3, 4, 8), 0.5)
    images[..., 0:4:2] = 0
    look = appearance(images, 4)[0, :, 0]  # (6, 2 cells)
    # Left: each pixel differs by 0.5 from its right neighbour, but the last one's is grey as itself; none in y. The
    # Laplacian of the columns is -1 (left edge: -0.5, since the border is repeated), 1, -1 and 0.5.
    left = [-0.25] * 3 + [np.log(0.375 + 0.01) / 2, np.log(0.01) / 2, np.log(0.75 + 0.01) / 2]
    right = [0.0] * 3 + [np.log(0.01) / 2] * 3
    np.testing.assert_allclose(look.T.numpy(), [left, right], atol=1e-5)


def test_certainty_by_hand():
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25])).reshape(1, 3, 1, 1) + 2
    found = certainty(logits).flatten()
    entropy = -(0.5 * np.log(0.5) + 0.5 * np.log(0.25)) / np.log(3)
    np.testing.assert_allclose(found.numpy(), [0.5, 1 - entropy, 0.2], atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"), [("stride", 2), ("radius", 0), ("radius", 9), ("width", 4), ("caution", -1.0)]
)
def test_sizes_out_of_range(field, value):
    with pytest.raises(ConfigError, match=field):
        MemoryConfig(**{field: value})
