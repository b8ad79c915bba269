# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Check the documentation without building it: links between files, diagrams, and the link checker itself."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SITE = {
    "index.html": '<a href="guide/a.html#topic">a</a> <a href="https://example.org/x">x</a> <img src="a.png">',
    "guide/a.html": '<h1 id="topic">A</h1> <a href="../index.html">up</a> <a href="#topic">here</a>',
    "a.png": "",
}


@pytest.mark.unit
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_name_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    targets = [target for target in targets if target and "://" not in target]
    assert [target for target in targets if not (page.parent / target).is_file()] == []


@pytest.mark.unit
def test_diagrams_are_those_of_the_generator(monkeypatch):
    assert run_script(monkeypatch, "make_figures.py", "--check") == 0


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def run_script(monkeypatch, name: str, *arguments: str) -> int:
    """Run a script in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    return stopped.value.code


@pytest.fixture
def check(monkeypatch, capsys) -> Callable[[Path], tuple[int, str]]:
    """check(folder): exit code and output of check_links.py."""
    return lambda folder: (run_script(monkeypatch, "check_links.py", str(folder)), capsys.readouterr().out)


@pytest.mark.unit
def test_check_links_accepts_existing_targets(check, tmp_path):
    assert check(write(tmp_path, SITE)) == (0, "check_links: every internal link exists\n")


@pytest.mark.unit
def test_check_links_lists_missing_files_and_anchors(check, tmp_path):
    broken = SITE | {"guide/a.html": '<a href="b.html">b</a>'}
    assert check(write(tmp_path, broken)) == (
        1,
        "guide/a.html: b.html: no such file\nindex.html: guide/a.html#topic: no such anchor\n",
    )
