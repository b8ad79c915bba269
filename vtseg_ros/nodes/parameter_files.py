# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Find faults in parameter files and `-p NAME:=VALUE` that ROS reports without their cause, or does not report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from vtseg_ros.nodes.typed_values import sections

FORM = "NODE: {ros__parameters: {NAME: VALUE}}"
"""Of a parameter file."""


ASSIGNMENTS = ("-p", "--param", "-r", "--remap")
"""Options of ROS that take `NAME:=VALUE`."""


def assignment_problems(argv: Sequence[str]) -> list[str]:
    """Return one line for each parameter or remapping of a command line that is not written as ROS expects."""
    return [
        f"{option} {text}: no assignment; expected NAME:=VALUE, got {text!r}. "
        f"Write {option} {text.replace('=', ':=', 1) if '=' in text else text + ':=VALUE'}"
        for option, text in zip(argv, argv[1:])
        if option in ASSIGNMENTS and ":=" not in text
    ]


def parameter_files(argv: Sequence[str]) -> list[str]:
    """Return the files that a command line names with `--params-file`."""
    return [path for option, path in zip(argv, argv[1:]) if option == "--params-file"]


def file_problem(path: str) -> str:
    """Return why a parameter file cannot be read, in one line; empty if it can."""
    try:
        content = yaml.safe_load(Path(path).read_bytes())
    except OSError as err:
        return f"--params-file {path}: cannot be read; expected a YAML file, got: {err.strerror or err}"
    except yaml.YAMLError as err:
        return f"--params-file {path}: not YAML: {' '.join(str(err).split())}"
    if not isinstance(content, dict):
        return f"--params-file {path}: no parameters; expected {FORM}, got {type(content).__name__}"
    plain = [str(key) for key, value in content.items() if not isinstance(value, dict)]
    if plain:
        return f"--params-file {path}: {', '.join(plain)} not below a node's name; expected {FORM}"
    return ""


def sections_of_others(argv: Sequence[str], node: str) -> list[str]:
    """Return one line for each parameter file in which no section addresses a node: ROS ignores such a file.

    Args:
        argv: Arguments of the process.
        node: Fully qualified name of the node, such as `/front/segmenter`.
    """
    files = {path: [name for name, _ in sections(path, yaml.SafeLoader)] for path in parameter_files(argv)}
    addressed = {path for path, names in files.items() if any(_addresses(name, node) for name in names)}
    lines = []
    for path, names in files.items():
        # Our launch file passes on, in a file of its own, what stands below the plain name of a node in a namespace.
        passed_on = addressed and node.rpartition("/")[2] in (name.rpartition("/")[2] for name in names)
        if names and path not in addressed and not passed_on:
            lines.append(
                f"--params-file {path}: no parameter is used; expected a section for {node}, got {', '.join(names)}. "
                f"Name the section {node} or /**"
            )
    return lines


def _addresses(section: str, node: str) -> bool:
    """Return whether a section's name, in which `*` is one part of a name and `**` any number of them, is a node's."""
    parts = [
        "(/[^/]+)*" if part == "**" else "/" + re.escape(part).replace(r"\*", "[^/]*")
        for part in section.split("/")
        if part
    ]
    return re.fullmatch("".join(parts), node) is not None
