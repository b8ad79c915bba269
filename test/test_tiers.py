# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The tiers of the tests, and the guard against silent skips."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import vtseg_ros

ROOT = Path(__file__).resolve().parents[1]

TEST_FILE = """
import pytest

def test_passes():
    pass

def test_skips():
    pytest.skip({reason!r})
"""


def run_pytest(folder: Path, reason: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_one.py").write_text(TEST_FILE.format(reason=reason))
    variables = {name: value for name, value in os.environ.items() if name != "CI"}
    path = os.pathsep.join([str(ROOT / "test"), variables.get("PYTHONPATH", "")])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tiers",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        str(folder),
    ]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**variables, **environment, "PYTHONPATH": path},
        cwd=folder,
    )


@pytest.mark.parametrize(
    ("reason", "environment", "code"),
    [
        ("no CUDA device", {}, 0),
        ("no CUDA device", {"CI": "true"}, 0),
        ("VTSEG_CAMVID is not set", {}, 0),
        ("VTSEG_CAMVID is not set", {"CI": "true"}, 1),
        ("could not import 'torch'", {}, 1),
    ],
)
def test_a_skip_without_a_listed_reason_fails_the_run(tmp_path, reason, environment, code) -> None:
    done = run_pytest(tmp_path, reason, **environment)
    assert done.returncode == code, done.stdout
    assert ("unexpected skips" in done.stdout) == bool(code)
    assert (f"test_skips: Skipped: {reason}" in done.stdout) == bool(code)


def test_the_version_is_the_same_everywhere() -> None:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.findtext("version") == vtseg_ros.__version__
