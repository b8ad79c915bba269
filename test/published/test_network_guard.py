# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Only `vtseg weights get` may use the network: seen in the imports, and at run time of every other command."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vtseg_ros.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vtseg_ros"
NETWORK = {
    "aiohttp",
    "ftplib",
    "http",
    "httpx",
    "huggingface_hub",
    "requests",
    "smtplib",
    "socketserver",
    "torch.hub",
    "urllib.request",
    "urllib3",
    "xmlrpc",
}
DOWNLOADS = "published/download.py"

# Stops at the first attempt to reach another machine. Sockets of this machine and Unix sockets are left alone.
GUARD = """
import ipaddress, json, sys

def hook(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if not isinstance(address, tuple):
            return
        host = address[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost"):
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        print(f"GUARD: {event} {host}", flush=True)
        raise PermissionError(f"the test allows no connection to {host}")

sys.addaudithook(hook)
"""
RUN = (
    GUARD
    + """
from vtseg_ros.cli import main
for line in json.loads(sys.argv[1]):
    print("RUN", *line, flush=True)
    code = main(line)
    assert code == 0, (line, code)
"""
)


WITHOUT_WAITING = "import time\ntime.sleep = lambda _: None\n" + RUN
"""For downloads, which are attempted again after some seconds."""


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_one_module_imports_what_can_download():
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name in NETWORK or name.partition(".")[0] in NETWORK for name in imported(path))
    }
    assert users == {DOWNLOADS}


def test_one_command_imports_that_module():
    module = "vtseg_ros.published.download"
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.startswith(module) for name in imported(path))
    }
    assert users == {"commands/weights.py"}


def run_guarded(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            **environment,
        },
    )


def test_the_guard_guards(tmp_path):
    pytest.importorskip("huggingface_hub")
    lines = [["weights", "get", "erfnet_cityscapes", "--out", str(tmp_path / "e.safetensors")]]
    done = run_guarded(WITHOUT_WAITING, json.dumps(lines))
    assert done.returncode != 0 and "GUARD: socket.getaddrinfo github.com" in done.stdout, (
        done.stdout + done.stderr
    )
    lines = [["weights", "get", "segformer_b0_cityscapes", "--out", str(tmp_path / "e.safetensors")]]
    done = run_guarded(WITHOUT_WAITING, json.dumps(lines), HF_ENDPOINT="https://hub.example")
    assert done.returncode != 0 and "GUARD: socket.getaddrinfo hub.example" in done.stdout, (
        done.stdout + done.stderr
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long  # trains, exports and times networks; the imports are checked above
def test_no_other_command_leaves_this_machine(tmp_path):
    for name in ("lightning_fabric", "onnxscript", "matplotlib"):
        pytest.importorskip(name)
    from conftest import make_checkpoint

    from vtseg_ros.model import ERFNet

    checkpoint, bag, run = tmp_path / "tiny.safetensors", tmp_path / "street", tmp_path / "run"
    make_checkpoint(checkpoint, window=2, depths=(1, 1, 1, 1))
    torch.save(ERFNet(num_classes=20).state_dict(), tmp_path / "e.pth")
    config = {
        "data": {
            "train": [str(bag)],
            "validation_share": 0.3,
            "split_gap_s": 0,
            "size": [64, 32],
            "labels": "street",
        },
        "model": {"architecture": "erfnet"},
        "stages": [{"name": "static", "steps": 1, "batch": 1, "max_lr": 0.001}],
        "device": "cpu",
        "window_sweep_frames": 0,
    }
    (tmp_path / "train.yaml").write_text(json.dumps(config))
    (tmp_path / "frames").mkdir()
    for number in range(2):
        cv2.imwrite(str(tmp_path / "frames" / f"{number}.png"), np.full((32, 64, 3), 90, np.uint8))
    weights, labels = str(checkpoint), tmp_path / "labels"
    lines = [
        [
            "synth",
            "--out",
            str(bag),
            "--scene",
            "5",
            "--frames",
            "12",
            "--size",
            "64x32",
            "--no-depth",
            "--no-flow",
        ],
        ["train", str(tmp_path / "train.yaml"), "--out", str(run)],
        ["preview-augmentation", str(tmp_path / "train.yaml"), "--out", str(tmp_path / "a.png")],
        ["segment", str(bag), "--checkpoint", weights, "--out", str(tmp_path / "masks"), "--device", "cpu"],
        ["evaluate", str(bag), "--checkpoint", weights, "--out", str(tmp_path / "scores"), "--device", "cpu"],
        ["labels", "extract", str(bag), "--out", str(labels)],
        ["bench", "--checkpoint", weights, "--size", "64x32", "--window", "2", "--modes", "plain", "exact"]
        + ["--backends", "torch", "openvino", "--seconds", "0", "--device", "cpu"],
        ["export", weights, "--out", str(tmp_path / "tiny.onnx")],
        ["import", "images", str(tmp_path / "frames"), "--out", str(tmp_path / "imported")],
        ["flops", "--network", "ERFNet", "--size", "64x32", "--window", "1"],
        [
            "pseudolabel",
            str(bag),
            "--checkpoint",
            weights,
            "--out",
            str(tmp_path / "pseudo"),
            "--device",
            "cpu",
        ],
        ["ego-mask", str(bag), "--out", str(tmp_path / "ego.png")],
        ["select", str(bag), "--checkpoint", weights, "--count", "2", "--out", str(tmp_path / "selected")],
        ["info", str(tmp_path / "tiny.onnx")],
        ["weights", "list"],
        [
            "weights",
            "convert",
            str(tmp_path / "e.pth"),
            "--as",
            "erfnet_cityscapes",
            "--out",
            str(tmp_path / "e.safetensors"),
        ],
    ]
    done = run_guarded(RUN, json.dumps(lines))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "GUARD:" not in done.stdout
    # ROS topics are DDS's own traffic; the viewer is a package of its own; doctor imports packages in child processes.
    missing = set(COMMANDS) - {line[0] for line in lines} - {"play", "view", "doctor"}
    assert not missing, f"commands that this test does not run: {missing}"


def test_telemetry_of_libraries_is_switched_off():
    from vtseg_ros.published.download import QUIET

    assert QUIET["HF_HUB_DISABLE_TELEMETRY"] == QUIET["DO_NOT_TRACK"] == "1"
