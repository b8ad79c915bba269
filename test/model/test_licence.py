# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Licences of weights: recorded, shown, and passed on to what is trained from them."""

from __future__ import annotations

import json

import pytest

from vtseg_ros.cli import main
from vtseg_ros.errors import CheckpointError
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import ERFNet, SegFormer, load_checkpoint, save_checkpoint
from vtseg_ros.model.checkpoint import WEIGHTS_DIR, read_metadata
from vtseg_ros.model.licence import SHIPPED, Licence, derived_licence

LABELS = LabelSet.from_names(("a", "b", "c"))
RESEARCH = Licence("non-commercial research", "data X")


@pytest.mark.parametrize(
    ("own", "sources", "expected"),
    [
        ("", [], ""),
        ("Apache-2.0", [], "Apache-2.0"),
        ("Apache-2.0", ["MIT", ""], "Apache-2.0"),
        ("", ["Apache-2.0"], ""),
        ("Apache-2.0", ["non-commercial research"], "non-commercial research"),
        ("", ["", "CC-BY-NC-4.0"], "CC-BY-NC-4.0"),
        ("CC-BY-NC-4.0", ["Apache-2.0"], "CC-BY-NC-4.0"),
        ("CC-BY-NC-4.0", ["non-commercial research"], "CC-BY-NC-4.0 AND non-commercial research"),
        ("", ["A AND B", "B"], "A AND B"),
        ("", ["A AND MIT"], "A"),
    ],
)
def test_the_stricter_licence_wins(own, sources, expected):
    assert derived_licence(Licence(own), [Licence(name) for name in sources]).name == expected


def test_notes_are_kept_once():
    found = derived_licence(Licence("Apache-2.0", "mine"), [RESEARCH, RESEARCH, Licence("B", "y")])
    assert (found.name, found.note) == ("non-commercial research AND B", "data X; y")


def test_a_checkpoint_carries_it_and_info_shows_it(tmp_path, capsys):
    path = tmp_path / "e.safetensors"
    save_checkpoint(path, ERFNet(num_classes=3), labels=LABELS, input_size=(64, 32), licence=RESEARCH)
    assert load_checkpoint(path).licence == RESEARCH
    assert main(["info", str(path), "--json", str(tmp_path / "i.json")]) == 0
    assert json.loads((tmp_path / "i.json").read_text())["licence"] == RESEARCH.to_dict()
    printed = capsys.readouterr().out
    assert "non-commercial research" in printed and "data X" in printed
    save_checkpoint(path, ERFNet(num_classes=3), labels=LABELS, input_size=(64, 32))
    assert load_checkpoint(path).licence == Licence()
    assert main(["info", str(path)]) == 0 and "not stated" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["Apache-2.0", {"name": 3}, {"kind": "x"}, None])
def test_a_licence_of_another_form_is_refused(value):
    with pytest.raises(CheckpointError, match="licence: expected"):
        Licence.from_metadata({"licence": value})


def test_every_shipped_file_has_a_licence_and_its_terms_are_shipped():
    root = WEIGHTS_DIR.parent.parent
    for path in WEIGHTS_DIR.glob("*.safetensors"):
        licence = load_checkpoint(path).licence
        assert licence.name, f"{path.name}: expected a licence in its metadata or in SHIPPED"
        if licence.restricted:
            assert path.name in (WEIGHTS_DIR / "LICENSE.research.md").read_text()
            assert "Apache-2.0" not in path.with_suffix(".md").read_text()
    for name in SHIPPED:  # an entry ends with the file that it is about
        path = WEIGHTS_DIR / f"{name}.safetensors"
        assert path.is_file() and "licence" not in read_metadata(path)
    package = (root / "package.xml").read_text()
    assert '<license file="vtseg_ros/weights/LICENSE.research.md">' in package
    assert "vtseg_ros/weights/LICENSE*" in (root / "pyproject.toml").read_text()


def test_files_from_before_the_normalisation_still_load(tmp_path):
    """SegFormers saved without the two buffers took RGB as it is."""
    from safetensors.torch import load_file, save_file

    path = tmp_path / "s.safetensors"
    save_checkpoint(path, SegFormer(num_classes=3), labels=LABELS, input_size=(64, 32))
    state, metadata = load_file(path), read_metadata(path)
    for key in ("normalization.mean", "normalization.std"):
        del state[key]
    metadata.pop("sha256")
    metadata.pop("licence")
    save_file(state, path, metadata={"vtseg_ros": json.dumps(metadata)})
    loaded = load_checkpoint(path)
    assert loaded.model.normalization.mean.tolist() == [0, 0, 0]
    assert loaded.model.normalization.std.tolist() == [1, 1, 1] and loaded.licence == Licence()
    SegFormer(num_classes=3).load_state_dict(state)  # a resumable state of a training run
