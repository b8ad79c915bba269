# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The files of `--json` and `--html`: checked before a command starts, written when it is done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vtseg_ros.content import content_of
from vtseg_ros.errors import ConfigError
from vtseg_ros.files import folder_problem, is_special

STARTS = {"json": b"{[", "html": b"<"}
"""First characters of a report, by its option."""


def check_report_file(option: str, path: Path) -> None:
    """Check that a report can be written, so that a command does not fail after its work.

    An earlier report is replaced, but nothing else: such a path is a typing error, perhaps that of the input.

    Args:
        option: `json` or `html`.
        path: the file; its folders are made later.

    Raises:
        ConfigError: if it is a folder or a file of another kind, or its folder cannot be written to.
    """
    if str(path) == "-":
        raise ConfigError(
            f"--{option} -: not the name of a report; expected a file name, got -. Add a name, such as report.{option}"
        )
    if path.is_dir():
        raise ConfigError(f"--{option} {path}: a folder; expected a file name, got a folder. Add a file name")
    if path.is_file():
        try:
            with path.open("rb") as file:
                start = file.read(64).lstrip()[:1]
        except OSError as err:
            raise ConfigError(
                f"--{option} {path}: cannot be replaced ({err.strerror or err}). Choose another name"
            ) from err
        if start not in STARTS[option]:
            raise ConfigError(
                f"--{option} {path}: only an earlier report is overwritten; expected a new file or {option.upper()}, got "
                f"{content_of(path)}. Choose another name"
            )
    problem = "" if is_special(path) and os.access(path, os.W_OK) else folder_problem(path)
    if problem:
        raise ConfigError(f"--{option} {path}: cannot be written; {problem}. Choose another folder")


def write_json(path: Path, content: Any) -> None:
    """Write values as JSON.

    Args:
        path: the file; its folder is made.
        content: JSON values.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
