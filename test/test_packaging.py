# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Check what surrounds the package: the description of the wheel, the Docker files, the YAML examples of the documentation."""

from __future__ import annotations

import dataclasses
import re
import runpy

import pytest
import yaml
from conftest import ROOT

from vtseg_ros.model import VTSegConfig
from vtseg_ros.training.config import DataConfig, ModelConfig, StageConfig, TrainConfig

pytestmark = pytest.mark.unit
DESCRIPTION = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["description"]
README = """![Masks](docs/a.jpg) see [`tiny`](weights/tiny.md), [the site](https://example.org/x) and [below](#end)."""
FIELDS = {
    "": TrainConfig,
    "data": DataConfig,
    "model": ModelConfig,
    "stages": StageConfig,
}


def test_description_has_absolute_links():
    assert DESCRIPTION(README, "https://git.example.org/r") == (
        "![Masks](https://git.example.org/r/raw/HEAD/docs/a.jpg) see "
        "[`tiny`](https://git.example.org/r/blob/HEAD/weights/tiny.md), [the site](https://example.org/x) and [below](#end)."
    )


def test_description_without_repository_has_no_links_to_files():
    assert DESCRIPTION(README, "") == " see `tiny`, [the site](https://example.org/x) and [below](#end)."


def test_description_of_the_readme_has_no_relative_link():
    text = (ROOT / "README.md").read_text()
    for repository in ("", "https://git.example.org/r"):
        assert not re.findall(r"\]\((?!https://|#)", DESCRIPTION(text, repository))


@pytest.mark.parametrize("path", sorted((ROOT / "docker").glob("Dockerfile.*")), ids=lambda path: path.name)
def test_dockerfile_copies_what_exists(path):
    sources = re.findall(r"^COPY (\S+) ", path.read_text(), re.M)
    assert "requirements" in sources and "docker/entrypoint.sh" in sources
    assert [name for name in sources if not (ROOT / name).exists()] == []


def test_compose_builds_the_dockerfiles_and_names_launch_arguments():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    services = compose["services"].values()
    assert {service["build"]["dockerfile"] for service in services} == {
        "docker/Dockerfile.cpu",
        "docker/Dockerfile.cuda",
    }
    launch = (ROOT / "launch" / "replay.launch.py").read_text()
    for service in services:
        for argument in re.findall(r"(\w+):=", service["command"]):
            assert f'"{argument}"' in launch


def yaml_examples() -> list[tuple[str, dict]]:
    """Training configurations in the documentation, complete or in parts: (page, content)."""
    found = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S):
            content = yaml.safe_load(block)
            if isinstance(content, dict) and content.keys() & {"data", "model", "stages"}:
                found.append((page.name, content))
    return found


@pytest.mark.parametrize(
    "page, content", yaml_examples(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_keys_of_training_examples_exist(page, content):
    parts = [("", content), ("data", content.get("data", {})), ("model", content.get("model", {}))]
    parts += [("stages", stage) for stage in content.get("stages", [])]
    for name, values in parts:
        assert values.keys() <= {field.name for field in dataclasses.fields(FIELDS[name])}
    overrides = content.get("model", {}).get("overrides", {})
    assert overrides.keys() <= {field.name for field in dataclasses.fields(VTSegConfig)}
