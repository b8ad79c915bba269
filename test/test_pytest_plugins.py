# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The pinned pytest accepts the hooks of Humble's and Jazzy's launch_testing, which a sourced ROS 2 loads by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PINS = Path(__file__).resolve().parents[1] / "requirements" / "constraints.txt"
# The signature of launch_testing's plugin: `path` is a py.path.local, which pytest 9 no longer passes.
PLUGIN = """
def pytest_pycollect_makemodule(path, parent):
    print("hook of", path)
    return None
"""


def test_old_hooks(tmp_path):
    pinned = re.search(r"^pytest==(\S+)", PINS.read_text(), re.M)[1]
    if pytest.__version__ != pinned:
        pytest.skip(f"pytest {pytest.__version__} is installed, not the pinned {pinned}")
    (tmp_path / "old_hooks.py").write_text(PLUGIN)
    (tmp_path / "test_one.py").write_text("def test_one(): pass\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "old_hooks",
        "-p",
        "no:cacheprovider",
        "test_one.py",
    ]
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    assert "hook of" in done.stdout


def test_the_scope_of_fixtures():
    """launch_pytest of Humble and Jazzy reads it from an attribute that pytest 8.4 does not have."""

    @pytest.fixture(scope="module")
    def fixture(): ...

    assert fixture._pytestfixturefunction.scope == "module"
