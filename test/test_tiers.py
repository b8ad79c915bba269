# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The tiers of the tests, and the guard against silent skips."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tiers import FOLDER, LONGEST_FIRST, MARKS_OF_PATH, pytest_ignore_collect

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


SLOW_TEST = """
import time

def test_waits():
    time.sleep(0.4)

def test_computes():
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
"""


def test_a_unit_test_that_takes_long_fails(pytester, monkeypatch) -> None:
    pytester.makepyfile(SLOW_TEST)
    with monkeypatch.context() as patch:  # the limit holds for this test too, when it ends
        patch.setattr("tiers.UNIT_CPU_S", 0.2)
        done = pytester.runpytest_inprocess("-p", "tiers", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(
        ["*test_computes: a slow unit test; expected at most 0.2 s of CPU time, got 0.*"]
    )


def test_files_of_other_tiers_are_not_imported_for_the_unit_tests(pytestconfig, monkeypatch) -> None:
    paths = [FOLDER / name for name in ("nodes", "inference/test_export.py", "inference/test_window.py")]
    for expression, ignored in (
        ("unit", [True, True, None]),
        ("unit and not long", [True, True, None]),
        ("unit or ros", [None] * 3),
        ("not unit", [None] * 3),
        ("", [None] * 3),
    ):
        monkeypatch.setattr(pytestconfig.option, "markexpr", expression)
        assert [pytest_ignore_collect(path, pytestconfig) for path in paths] == ignored, expression


def test_the_files_with_marks_exist() -> None:
    assert [path for path in MARKS_OF_PATH if not (FOLDER / path).exists()] == []


def test_the_longest_files_exist() -> None:
    assert [path for path in LONGEST_FIRST if not (FOLDER / path).is_file()] == []


def test_the_version_is_the_same_everywhere() -> None:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.findtext("version") == vtseg_ros.__version__
