# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Nodes that end by themselves, run one after another in one process, because each process would import PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys

RUN = """
import importlib, json, os, sys, tempfile
ended = []
for name, arguments in json.loads(sys.argv[1]):
    node = importlib.import_module(f"vtseg_ros.nodes.{name}")
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            code = node.main(arguments)
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
        file.seek(0)
        ended.append((code, file.read().decode(errors="replace")))
print(json.dumps(ended))
"""


def run_nodes(commands: list[tuple[str, list[str]]], environment: dict[str, str]) -> list[tuple[int, str]]:
    """Run the entry points of nodes.

    Args:
        commands: module below vtseg_ros.nodes and arguments of each node.
        environment: of the process.

    Returns:
        Exit code and standard error of each node.
    """
    command = [sys.executable, "-c", RUN, json.dumps(commands)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [(code, said) for code, said in json.loads(done.stdout.splitlines()[-1])]
