# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Pytest plugin: mark tests by tier, fail slow unit tests, and fail a run with a skip that has no listed reason."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).resolve().parent
SKIPS = FOLDER / "expected_skips.yaml"
TIERS = ("ros", "fault", "slow", "gpu")
MARKS_OF_PATH = {
    "nodes": "ros",
    "launch": "ros",
    "faults": "fault",
    "commands": "slow",
    "evaluation": "slow",
    "fleet": "slow",
    "training": "slow",
    "published": "slow",
    "video": "slow",
    "inference/test_bench.py": "slow",
    "inference/test_cuda.py": "gpu",
    "inference/test_export.py": "slow",
    "inference/test_gpu_check.py": "slow",
    "inference/test_openvino.py": "slow",
    "inference/test_openvino_export.py": "slow",
    "inference/test_optimise.py": "slow",
    "inference/test_precision.py": "slow",
    "labelling/test_pseudolabel.py": "slow",
    "model/test_priors.py": "slow",
    "street": "slow",
    "test_architecture.py": "slow",
    "test_cli.py": "slow",
    "test_diagnosis.py": "slow",
    "test_examples.py": "slow",
    "test_pytest_plugins.py": "slow",
    "test_toy_architecture.py": "slow",
    "test_train_without_labels.py": "slow",
    "test_your_own_labels.py": "slow",
}
"""Marks of tests by a folder or file below test/. None of these tests is a unit test."""
UNIT_CPU_S = 30.0
"""Most CPU time of a unit test. Nearly all take less than 1 s; a shared processor and measured coverage multiply it."""
LONGEST_FIRST = (
    "inference/test_openvino.py",
    "nodes/test_replay.py",
    "training/test_run.py",
    "inference/test_export.py",
    "nodes/test_segmenter.py",
    "training/test_processes.py",
    "faults/test_signals.py",
    "evaluation/test_protocol.py",
    "inference/test_precision.py",
    "evaluation/test_baselines.py",
    "inference/test_bench.py",
    "test_diagnosis.py",
    "faults/test_access.py",
    "published/test_network_guard.py",
    "nodes/test_trainer.py",
    "faults/test_writing.py",
    "model/test_efficientvit.py",
    "inference/test_predictor.py",
    "test_toy_architecture.py",
)
"""Files that take longest, which workers of pytest-xdist run first: one of them at the end leaves the others idle."""


class SkipGuard:
    """Compare the reason of every skip with the list in expected_skips.yaml.

    Args:
        expected: mappings with `reason` (a regular expression), `because`, and `not_in_ci` (bool).
        in_ci: whether entries with `not_in_ci` count as unexpected.
    """

    def __init__(self, expected: list[dict], in_ci: bool) -> None:
        self._patterns = [
            re.compile(entry["reason"]) for entry in expected if not (in_ci and entry.get("not_in_ci", False))
        ]
        self.unexpected: list[str] = []

    def record(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        """Remember a skip whose reason is not on the list; expected failures are not skips."""
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(pattern.search(reason) for pattern in self._patterns):
            self.unexpected.append(f"{report.nodeid}: {reason}")

    pytest_runtest_logreport = pytest_collectreport = record

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """List the unexpected skips."""
        if self.unexpected:
            terminalreporter.section("unexpected skips")
            for line in self.unexpected:
                terminalreporter.line(line)
            terminalreporter.line(f"List them in {SKIPS.name} with a reason, or install what is missing.")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Take over what a worker process of pytest-xdist skipped while it collected: it reports only tests."""
        for line in getattr(node, "workeroutput", {}).get("unexpected_skips", ()):
            if line not in self.unexpected:
                self.unexpected.append(line)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Turn a green run with unexpected skips into a failed one."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["unexpected_skips"] = self.unexpected
        elif self.unexpected and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    """Register the guard."""
    config.pluginmanager.register(SkipGuard(yaml.safe_load(SKIPS.read_text()), bool(os.environ.get("CI"))))


def _place(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix() if path.is_relative_to(FOLDER) else ""


def _marks(place: str) -> list[str]:
    return [
        mark for prefix, mark in MARKS_OF_PATH.items() if place == prefix or place.startswith(f"{prefix}/")
    ]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file of another tier for `-m unit`: some of them take seconds."""
    words = config.option.markexpr.split()
    only_unit = words[:1] == ["unit"] and "or" not in words
    return True if only_unit and _marks(_place(collection_path)) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a unit test that takes long, by its CPU time, on which other processes have little effect."""
    start = sum(os.times()[:4])  # of this process and of those that it started
    result = yield
    used = sum(os.times()[:4]) - start
    if item.get_closest_marker("unit") and used > UNIT_CPU_S:
        pytest.fail(
            f"{item.nodeid}: a slow unit test; expected at most {UNIT_CPU_S:g} s of CPU time, got {used:.1f} s. "
            "Make it faster or mark it slow",
            pytrace=False,
        )
    return result


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test by its place; what belongs to no other tier is a unit test."""
    if hasattr(
        config, "workerinput"
    ):  # pytest-xdist takes whole files in this order with --no-loadscope-reorder
        rank = {path: number for number, path in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: rank.get(_place(item.path), len(rank)))
    for item in items:
        for mark in _marks(_place(item.path)):
            item.add_marker(mark)
        if "ros_environment" in getattr(item, "fixturenames", ()):
            item.add_marker("ros")
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker("unit")
