# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Programs that end by themselves, run one after another in one process: each process would import its packages again."""

from __future__ import annotations

import json
import subprocess
import sys

RUN = """
import importlib, json, os, sys, tempfile
ended = []
for name, arguments in json.loads(sys.argv[1]):
    program = importlib.import_module(f"vtseg_ros.{name}")
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            code = program.main(arguments)
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
        file.seek(0)
        ended.append((code, file.read().decode(errors="replace")))
print(json.dumps(ended))
"""


def run_programs(commands: list[tuple[str, list[str]]], environment: dict[str, str]) -> list[tuple[int, str]]:
    """Run the entry points of nodes or of the command line.

    Args:
        commands: module below vtseg_ros, such as `nodes.segmenter` or `cli`, and arguments of each program.
        environment: of the process.

    Returns:
        Exit code and standard error of each program.
    """
    command = [sys.executable, "-c", RUN, json.dumps(commands)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [(code, said) for code, said in json.loads(done.stdout.splitlines()[-1])]
