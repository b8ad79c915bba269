# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are damaged or lie: refused in one line, without time or memory of what they claim."""

from __future__ import annotations

import copy
import json
import resource
import struct
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from vtseg_ros.cli import main
from vtseg_ros.errors import CheckpointError
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import ERFNet, VTSeg, VTSegConfig, load_checkpoint, save_checkpoint
from vtseg_ros.model.checkpoint import METADATA_KEY, read_metadata

LABELS = LabelSet.from_names(["road", "[/car]", "<b>sky</b>"])
FLIPS, LYING = 30, 100
LIES = [
    None,
    True,
    -1,
    0,
    10**6,
    10**30,
    1.5,
    float("nan"),
    "x",
    [],
    {},
    [1] * 4,
    [10**9] * 4,
    ["a"] * 4,
    [0, 0],
    [10**9, 10**9],
    [[1]],
    "os:system",
    "../x",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.manual_seed(0)
    small = {"embed_dims": (8,) * 4, "num_heads": (1,) * 4, "head_channels": 8, "sr_ratios": (2, 1, 1, 1)}
    model = VTSeg(VTSegConfig.preset("tiny", num_classes=3, **small)).eval()
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_checkpoint(file, model, labels=LABELS, input_size=(64, 32), half=True)
    return file


def test_flipped_bits_anywhere(path, tmp_path, rng):
    """A flipped bit of a weight is another network that nobody trained: refused by the check sum."""
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    header = 8 + struct.unpack("<Q", whole[:8].tobytes())[0]
    file = tmp_path / "flipped.safetensors"
    for number in range(FLIPS):
        flipped = whole.copy()
        place = int(rng.integers(header, whole.size) if number % 3 else rng.integers(0, header))
        flipped[place] ^= 1 << int(rng.integers(0, 8))
        file.write_bytes(flipped.tobytes())
        try:
            load_checkpoint(file)
        except CheckpointError as err:
            assert len(str(err).splitlines()) == 1
            continue
        # Only the name of the check sum itself may be hit without a trace: nothing else is then wrong.
        assert "sha256" not in read_metadata(file), place


def test_lies_in_any_field(path, tmp_path, rng):
    """Fields of the header replaced by what it must not be; nothing but CheckpointError comes out."""
    metadata, tensors = read_metadata(path), load_file(path)
    few = {key: value for key, value in tensors.items() if not key.startswith("static_prior")}
    file, told = tmp_path / "lie.safetensors", Counter()
    fields = [(key,) for key in metadata] + [("config", key) for key in metadata["config"]]
    every = [(where, number) for where in fields for number in range(len(LIES))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in rng.choice(len(every), LYING, replace=False):
        where, number = every[index]
        false = copy.deepcopy(metadata)
        inner = false[where[0]] if len(where) == 2 else false
        inner[where[-1]] = LIES[number]
        file.write_bytes(save(few, metadata={METADATA_KEY: json.dumps(false)}))
        with pytest.raises(CheckpointError) as err:
            load_checkpoint(file)
        told[str(err.value).split(":")[-1][:20]] += 1
    assert sum(told.values()) == LYING and len(told) > 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kB"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("window", 10**9, "window: out of range; expected 1 to 64"),
        ("window", 1.5, "window: wrong type; expected int"),
        ("depths", [10**9, 2, 2, 2], "claims 1000000006 layers"),
        ("embed_dims", [10**7] * 4, "claims more values"),
        ("mlp_ratio", 10**12, "claims more values"),
        ("sr_ratios", [10**6, 1, 1, 1], "claims more values"),
        ("head_channels", 8 * 10**6, "claims more values"),
        ("pixel_channels", 8 * 10**6, "claims more values"),
    ],
)
def test_claims_are_compared_before_anything_is_built(path, tmp_path, field, value, words):
    """Weights as they were; before, a claimed window was warmed up frame by frame, and claimed layers were built."""
    metadata, tensors = read_metadata(path), load_file(path)
    metadata["config"][field] = value
    save_file(tensors, tmp_path / "c.safetensors", metadata={METADATA_KEY: json.dumps(metadata)})
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(tmp_path / "c.safetensors")


def test_another_network_under_this_configuration(path, tmp_path):
    erfnet = tmp_path / "erfnet.safetensors"
    save_checkpoint(erfnet, ERFNet(num_classes=3), labels=LABELS, input_size=(64, 32))
    save_file(
        load_file(erfnet),
        tmp_path / "x.safetensors",
        metadata={METADATA_KEY: json.dumps(read_metadata(path))},
    )
    with pytest.raises(CheckpointError, match="keys are missing"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_class_names_are_text_and_never_markup(path, capsys):
    """A class called [/car] is not a tag of the terminal's."""
    assert main(["info", str(path)]) == 0
    assert "[/car]" in capsys.readouterr().out


@pytest.mark.parametrize("claim", [2**40, 2**63, 2**64 - 1])
def test_a_header_that_claims_terabytes(tmp_path, claim, capsys):
    file = tmp_path / "huge.safetensors"
    file.write_bytes(struct.pack("<Q", claim) + b"{}" * 100)
    assert main(["info", str(file)]) == 2
    assert "claims" in capsys.readouterr().err


def test_a_tensor_that_claims_terabytes(tmp_path, path):
    header = json.dumps(
        {
            "__metadata__": {METADATA_KEY: json.dumps(read_metadata(path))},
            "w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        }
    ).encode()
    file = tmp_path / "huge.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    with pytest.raises(CheckpointError):
        load_checkpoint(file)
