# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`scripts/gpu_check.sh` on the CPU with a small image; what it measures is no test's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNNEEDED = ("rosbags", "rclpy", "lightning_fabric", "onnx", "onnxruntime", "openvino", "transformers", "mcap")


def check(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts/gpu_check.sh"), "--device", "cpu", "--out", str(out), *arguments]
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=out)


@pytest.mark.long
@pytest.mark.slow
def test_all_steps_run_with_few_packages(tmp_path):
    """Packages that a GPU machine need not have cannot be imported here."""
    site = tmp_path / "site"
    for name in UNNEEDED:
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(f"raise ImportError('{name} is not installed')\n")
    # In front of the installed packages, behind this one.
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    done = check(tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu_report.json").read_text())
    assert report["machine"]["gpu"] is None and report["machine"]["device"] == "cpu"
    modes = {row["mode"]: row for row in report["bench"]}
    assert {"plain", "plain_optimised", "exact/torch", "causal/torch"} == set(modes)
    assert all(row["p50_ms"] > 0 and row["size"] == [128, 64] for row in modes.values())
    assert [row["agreement"] for row in report["masks"]] == [1.0]
    assert report["memory"]["frames"] == 50 and len(report["memory"]["samples"]) == 10
    assert report["steps"]["tests"]["result"] == "not run: no GPU was asked for"
    assert "exact/torch" in done.stdout and "% of pixels" in done.stdout


def test_a_step_that_has_no_time_is_reported(tmp_path):
    done = check(tmp_path, "--minutes", "0")
    assert done.returncode == 1 and "out of time" in done.stdout
    report = json.loads((tmp_path / "gpu_report.json").read_text())
    assert report["masks"] is None and report["bench"] == []
