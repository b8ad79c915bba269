# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The tiers of the tests, and the guard against silent skips."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tiers import FOLDER, LONGEST_FIRST

import vtseg_ros

ROOT = Path(__file__).resolve().parents[1]

TEST_FILE = """
import pytest

def test_passes():
    pass

def test_skips():
    pytest.skip({reason!r})
"""


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
def test_a_skip_without_a_listed_reason_fails_the_run(
    pytester, monkeypatch, reason, environment, code
) -> None:
    monkeypatch.delenv("CI", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    pytester.makepyfile(TEST_FILE.format(reason=reason))
    done = pytester.runpytest_inprocess("-p", "tiers", "-p", "no:cacheprovider")
    output = done.stdout.str()
    assert done.ret == code, output
    assert ("unexpected skips" in output) == bool(code)
    assert (f"test_skips: Skipped: {reason}" in output) == bool(code)


def test_the_longest_files_exist() -> None:
    assert [path for path in LONGEST_FIRST if not (FOLDER / path).is_file()] == []


def test_the_version_is_the_same_everywhere() -> None:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.findtext("version") == vtseg_ros.__version__
