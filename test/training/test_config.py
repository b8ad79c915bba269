"""Training YAML: what is refused, and by what name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vtseg_ros.errors import ConfigError
from vtseg_ros.training.config import load_config

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "data": {"train": ["a"], "validation": [{"path": "b", "start_s": 3}], "size": [64, 32]},
    "stages": [{"name": "prior", "steps": 2, "max_lr": "6e-5"}],
}


def load(tmp_path, values):
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    return load_config(tmp_path / "train.yaml")


def test_values_and_paths(tmp_path):
    config = load(tmp_path, GOOD)
    assert config.data.train[0].path == str(tmp_path / "a")
    assert config.data.validation[0].start_s == 3.0 and config.stages[0].max_lr == 6e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stagess": []}, "did you mean stages"),
        ({"data": {**GOOD["data"], "labels_every": 2}}, "did you mean data.label_every"),
        ({"data": {**GOOD["data"], "size": [64]}}, "data.size must be a list"),
        ({"data": {**GOOD["data"], "size": [64, 33]}}, "multiples of 32"),
        ({"data": {**GOOD["data"], "workers": "two"}}, "data.workers must be of type int"),
        ({"data": {"train": ["a"]}}, "data.validation is missing"),
        ({"stages": [{"name": "warmup", "steps": 1}]}, "stages.name must be one of"),
        ({"stages": [{"name": "prior"}]}, "either epochs or steps"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"model": {"architecture": "erfnet"}, "stages": [{"name": "video", "steps": 1}]}, "image network"),
        ({"seed": True}, "seed must be of type int"),
    ],
)
def test_mistakes_are_named(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, {**GOOD, **change})


def test_other_files(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "code.yaml").write_text("data: !!python/object/apply:os.system ['touch hacked']")
    for name in ("list.yaml", "code.yaml", "missing.yaml"):
        with pytest.raises(ConfigError):
            load_config(tmp_path / name)


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "train").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_load(path):
    assert load_config(path).stages
