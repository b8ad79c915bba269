# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Counted costs against sums worked out by hand, and the document's tables against the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtseg_ros.cli import main
from vtseg_ros.errors import ConfigError
from vtseg_ros.profiling.flops import build, costs, networks

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "network.md"


def layer(tokens, keys, dim, reduction, frames, cross_tokens=0):
    """Multiply-adds of one layer: projections, reduction, attention over all frames, Mix-FFN."""
    project = frames * tokens * dim * dim * 2  # queries and the output
    reduce = frames * keys * dim * dim * reduction**2 if reduction > 1 else 0
    memory = frames * keys * dim * dim * 2
    attention = 2 * (frames * tokens) * (frames * keys) * dim  # scores, and the weighted sum
    hidden = 4 * dim
    ffn = frames * tokens * (2 * dim * hidden + 9 * hidden)
    return project + reduce + memory + attention + ffn


@pytest.mark.parametrize("frames", [1, 3])
def test_blocks_by_hand(frames):
    by_name = {cost.name: cost for cost in costs(build("VTSeg tiny", 5), size=(128, 64), frames=frames)}
    # Stage 1 at 32x16 tokens of width 16, R = 8: 8 keys a frame; the embedding is 7x7 of 3 channels.
    embed = frames * 512 * 16 * 3 * 49
    assert by_name["encoder, VTEncBlock 1"].macs == embed + 2 * layer(512, 8, 16, 8, frames)
    # Stage 4 at 4x2 tokens of width 128, R = 1.
    embed = frames * 8 * 128 * 64 * 9
    assert by_name["encoder, VTEncBlock 4"].macs == embed + 2 * layer(8, 8, 128, 1, frames)
    assert by_name["decoder, VTDecBlock 4"].macs == 2 * layer(8, 8, 128, 1, frames)
    parts = [cost for name, cost in by_name.items() if name != "total"]
    assert sum(cost.macs for cost in parts) == by_name["total"].macs
    # LayerNorm over the classes of VTDecConcat is the one part without a line.
    assert sum(cost.parameters for cost in parts) + 2 * 5 == by_name["total"].parameters


def test_known_parameters():
    assert costs(build("ERFNet", 20), size=(64, 32), frames=1)[-1].parameters == 2_064_256
    # transformers' SegformerForSemanticSegmentation of MiT-B0 with 150 classes: 3,752,694.
    assert costs(build("SegFormer-B0", 150), size=(64, 32), frames=1)[-1].parameters == 3_752_694


@pytest.mark.slow  # every network twice
def test_every_network_is_countable():
    for name in networks():
        one, four = (costs(build(name, 3), size=(64, 32), frames=k)[-1].macs for k in (1, 4))
        video = name.startswith("VTSeg") or name in ("GRU", "Local memory", "Mask feedback")
        assert one > 0 and (four > 4 * one if video else four == one)


def test_mistakes():
    with pytest.raises(ConfigError, match="expected one of ERFNet"):
        build("UNet", 3)
    with pytest.raises(ConfigError, match="multiples of 32"):
        costs(build("ERFNet", 3), size=(100, 32), frames=1)


@pytest.mark.slow  # every network at its full size
def test_the_documents_tables_are_the_commands(tmp_path, capsys):
    """One column of each table; the rest comes from the same call."""
    lines = [line.split(" | ") for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    file = tmp_path / "costs.json"
    assert main(["flops", "--size", "320x96", "--window", "4", "--json", str(file), "--markdown"]) == 0
    assert "320x96, k=4" in capsys.readouterr().out
    shown = [[cell.strip("| ") for cell in line] for line in lines]
    for cost in json.loads(file.read_text())["costs"]:
        row = [f"{cost['parameters']:,}", f"{cost['macs'] / 1e9:.2f}"]
        name = cost["network"] if cost["module"] == "total" else cost["module"]
        assert any(line[0] == name and [line[1], line[-1]] == row for line in shown if len(line) == 8), cost
