# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training YAML: what is refused, and by what name."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from vtseg_ros.dataset.augmentation import AugmentationConfig
from vtseg_ros.errors import ConfigError
from vtseg_ros.model import VTSegConfig
from vtseg_ros.training.config import DataConfig, ModelConfig, StageConfig, TrainConfig
from vtseg_ros.training.config_file import load_config

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "data": {"train": ["a"], "validation": [{"path": "b", "start_s": 3}], "size": [64, 32]},
    "stages": [{"name": "static", "steps": 2, "max_lr": "6e-5"}],
}


def load(tmp_path, values):
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    return load_config(tmp_path / "train.yaml")


def test_values_and_paths(tmp_path):
    config = load(tmp_path, GOOD)
    assert config.data.train[0].path == str(tmp_path / "a")
    assert config.data.validation[0].start_s == 3.0 and config.stages[0].max_lr == 6e-5


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
def test_files_of_windows(tmp_path, codec):
    text = "# größe\n" + yaml.safe_dump(GOOD)
    (tmp_path / "train.yaml").write_bytes(text.replace("\n", "\r\n").encode(codec))
    assert load_config(tmp_path / "train.yaml") == load(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stagess": []}, "did you mean stages"),
        ({"data": {**GOOD["data"], "labels_stride": 2}}, "did you mean data.label_stride"),
        ({"data": {**GOOD["data"], "size": [64]}}, "data.size: not a list"),
        ({"data": {**GOOD["data"], "size": [64, 33]}}, "multiples of 32"),
        ({"data": {**GOOD["data"], "workers": "two"}}, "data.workers: wrong type; expected int"),
        ({"data": {"train": ["a"]}}, "data.size is missing"),
        (
            {"data": {**GOOD["data"], "random_strides": [1, 0]}},
            "data.random_strides must be at least 1, got 0",
        ),
        (
            {"data": {**GOOD["data"], "random_strides": [1, 2]}, "model": {"architecture": "erfnet"}},
            "data.random_strides has no effect on erfnet",
        ),
        (
            {"augmentation": {"corruption": 0.5, "corruption_kinds": ["mud"]}},
            "augmentation.corruption_kinds: unknown kind; expected some of shot_noise, .*, got 'mud'",
        ),
        (
            {"augmentation": {"corruption": 0.5, "corruption_severity": [3, 6]}},
            r"augmentation.corruption_severity: expected \[lowest, highest\] within 1 to 5, got \[3, 6\]",
        ),
        (
            {"stages": [{"name": "video", "steps": 1, "gate_loss": 0.5}]},
            "stage video: gate_loss has no effect; expected .* local_memory",
        ),
        (
            {
                "model": {"architecture": "local_memory"},
                "stages": [{"name": "video", "steps": 1, "gate_loss": 0.5}],
            },
            "stage video: gate_loss has no effect; expected .* augmentation.corruption",
        ),
        (
            {"augmentation": {"corruption_severity": [2, 4]}},
            "augmentation.corruption_severity has no effect without corruption",
        ),
        (
            {"data": {"train": ["a"], "size": [64, 32]}},
            "data.validation and data.validation_share: expected one of them",
        ),
        (
            {"data": {**GOOD["data"], "validation_share": 0.2}},
            "data.validation and data.validation_share: expected one of them",
        ),
        (
            {"data": {"train": ["a"], "size": [64, 32], "validation_share": 1.5}},
            "data.validation_share: out of range",
        ),
        (
            {"data": {**GOOD["data"], "split_gap_s": -1}},
            "data.split_gap_s: out of range; expected at least 0 s",
        ),
        ({"stages": [{"name": "warmup", "steps": 1}]}, "stages.name must be one of"),
        ({"stages": [{"name": "static"}]}, "either epochs or steps"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"model": {"architecture": "erfnet"}, "stages": [{"name": "video", "steps": 1}]}, "image network"),
        (
            {"stages": [{"name": "video", "steps": 1, "static_loss": 1}]},
            "static_loss belongs to stage end_to_end of vtseg",
        ),
        (
            {
                "model": {"architecture": "gru"},
                "stages": [{"name": "end_to_end", "steps": 1, "static_loss": 1}],
            },
            "static_loss belongs to stage end_to_end of vtseg",
        ),
        (
            {"stages": [{"name": "end_to_end", "steps": 1, "static_loss": -1}]},
            "static_loss must be at least 0, got -1",
        ),
        (
            {"stages": [{"name": "end_to_end", "steps": 1, "static_loss": float("nan")}]},
            "static_loss must be at least 0, got nan",
        ),
        ({"seed": True}, "seed: wrong type; expected int"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"weight_decay": -1}, "weight_decay must be at least 0, got -1"),
        ({"clip_norm": float("nan")}, "clip_norm must be at least 0, got nan"),
        ({"clip_norm": float("inf")}, "clip_norm: not a finite number; expected float, got inf"),
        ({"seed": 10**30}, r"seed: out of range; expected less than 2\*\*63"),
        ({"data": {**GOOD["data"], "workers": -1}}, "data.workers must be at least 0, got -1"),
        ({"data": {**GOOD["data"], "max_gap_s": 0}}, "data.max_gap_s must be above 0 s, got 0"),
        ({"data": {**GOOD["data"], "max_gap_s": float("nan")}}, "data.max_gap_s must be above 0 s, got nan"),
        (
            {"stages": [{"name": "static", "steps": 1, "max_lr": float("nan")}]},
            "max_lr must be above 0, got nan",
        ),
        ({"model": {"architecture": "erfnet", "preset": "tiny"}}, "model.preset has no effect on erfnet"),
        ({"model": {"architecture": "erfnet", "overrides": {"windw": 3}}}, "model.overrides has no effect"),
        (
            {"model": {"architecture": "gru", "static_prior": "x.pt"}},
            "model.static_prior has no effect on gru",
        ),
        (
            {"model": {"architecture": "segformer_b0", "flow": "dis2"}},
            "model.flow has no effect on segformer_b0",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words) as error:
        load(tmp_path, {**GOOD, **change})
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'train.yaml'}: ") and "\n" not in text


def test_a_key_that_stands_twice(tmp_path):
    (tmp_path / "twice.yaml").write_text("seed: 1\ndata: {train: [a]}\nseed: 2\n")
    with pytest.raises(
        ConfigError, match="the key seed appears twice; expected it once, got it again in line 3"
    ):
        load_config(tmp_path / "twice.yaml")


def test_other_files(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "code.yaml").write_text("data: !!python/object/apply:os.system ['touch hacked']")
    for name in ("list.yaml", "code.yaml", "missing.yaml"):
        with pytest.raises(ConfigError):
            load_config(tmp_path / name)


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "train").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_load(path):
    assert load_config(path).stages


def test_every_key_is_documented():
    """The tables in docs/reference/training_configuration.md have each key of the configuration, and no other."""
    listed = set()
    for line in (ROOT / "docs" / "reference" / "training_configuration.md").read_text().splitlines():
        if line.startswith("| `") and line.count("|") == 4:
            listed |= set(re.findall(r"`([a-z_.\[\]]+)`", line.split("|")[1]))
    groups = {
        "data": DataConfig,
        "model": ModelConfig,
        "stages[]": StageConfig,
        "augmentation": AugmentationConfig,
    }
    keys = {f.name for f in fields(TrainConfig)} - {name.rstrip("[]") for name in groups}
    keys |= {f"{group}.{f.name}" for group, kind in groups.items() for f in fields(kind)}
    assert keys - listed == set()
    assert {name for name in listed if "." in name} - keys == set()


@pytest.mark.parametrize("name", ["cityscapes", "vkitti2"])
def test_the_papers_values(name):
    """Windows of 4, batch 2, 100 and 200 epochs, 6e-5, weight decay 1e-2, 80 % derived (paper, Section IV-B)."""
    config = load_config(ROOT / "config" / "train" / f"{name}.yaml")
    video, end_to_end = config.stages[1:]
    assert (video.name, video.epochs, video.batch, video.max_lr) == ("video", 100, 2, 6e-5)
    assert (end_to_end.name, end_to_end.epochs, end_to_end.batch, end_to_end.max_lr) == (
        "end_to_end",
        200,
        2,
        6e-5,
    )
    assert (
        config.weight_decay == 1e-2
        and config.augmentation.pseudo_clips == 0.8
        and config.model.preset == "b0"
    )
    assert "window" not in config.model.overrides and VTSegConfig(num_classes=2).window == 4
    assert config.data.size == {"cityscapes": (1024, 512), "vkitti2": (640, 192)}[name]
    assert config.data.label_stride == {"cityscapes": 1, "vkitti2": 4}[name]
