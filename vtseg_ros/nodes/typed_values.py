# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Parameter values as people, YAML and launch files type them, converted to the declared type."""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

TRUE, FALSE = ("true", "1", "yes", "on", "y"), ("false", "0", "no", "off", "n")
"""Spellings of a truth value, in any case: those of launch's conditions and of YAML."""


def converted(value: Any, kind: type, texts: Sequence[str] = ()) -> Any:
    """Return a parameter value in its declared type.

    Args:
        value: as rclpy has it: bool, int, float, str, bytes or a list or array of them.
        kind: the declared type: bool, int, float, str or list (of strings).
        texts: how the value may have been typed; YAML makes numbers of strings such as `0x0` and `2026`.

    Returns:
        The value as `kind`; unchanged where it is no value of that type, for rclpy to refuse.
    """
    if kind is not list and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if isinstance(value, (tuple, array.array)):
        value = list(value)
    if kind is list:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, list) and not any(isinstance(item, bytes) for item in value):
            return [_text(item) for item in value]
        return value
    if value is None or isinstance(value, (list, bytes)):
        return value
    if kind is str:
        return _typed(value, texts)
    if kind is bool:
        text = str(value).strip().lower()
        return True if text in TRUE else False if text in FALSE else value
    if isinstance(value, bool):
        return value
    try:
        number = float(value)
        if kind is float:
            return number
        return int(value) if isinstance(value, str) else int(number) if number.is_integer() else value
    except (ValueError, OverflowError):
        return value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _typed(value: Any, texts: Sequence[str]) -> str:
    """Return the last of the texts that YAML takes for this value; its usual spelling if there is none."""
    same = [text for text in texts if _scalar(text) == (type(value), value)]
    return same[-1] if same else _text(value)


def _scalar(text: str) -> tuple[type, Any]:
    """Convert a plain scalar as rcl's parser does: to a truth value, an integer of any base, a float, or a string."""
    lowered = text.strip().lower()
    if lowered in (*TRUE, *FALSE) and not lowered.isdigit():
        return bool, lowered in TRUE
    try:
        # Like C's strtoll: a leading zero is base 8.
        octal = lowered.lstrip("+-").startswith("0") and lowered.lstrip("+-").isdigit()
        return int, int(lowered, 8 if octal else 0)
    except ValueError:
        pass
    try:
        number = float(lowered.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return str, text
    return float, None if math.isnan(number) else number


def typed_texts(name: str, argv: Sequence[str]) -> list[str]:
    """Return how a parameter's value is spelt on a command line and in the files that it names, in their order.

    Args:
        name: of the parameter.
        argv: the process's arguments.
    """
    texts = []
    for option, given in zip(argv, argv[1:]):
        if option in ("-p", "--param"):
            typed, _, text = given.partition(":=")
            if typed.rpartition(":")[2] == name:
                texts.append(text.strip().strip("'\""))
        elif option == "--params-file":
            for _, values in sections(given, yaml.BaseLoader):
                texts += [text for key, text in dotted(values) if key == name and isinstance(text, str)]
    return texts


def names_for_all_nodes(argv: Sequence[str] | None = None) -> set[str]:
    """Return names in the sections of parameter files that address several nodes: some may be another node's."""
    argv = sys.argv if argv is None else argv
    files = [path for option, path in zip(argv, argv[1:]) if option == "--params-file"]
    return {
        name
        for path in files
        for section, values in sections(path, yaml.SafeLoader)
        if "*" in section
        for name, _ in dotted(values)
    }


def sections(path: str | Path, loader: type) -> Iterator[tuple[str, dict]]:
    """Yield a parameter file's node names (nested keys joined by `/`) and their values.

    Args:
        path: of a YAML file; one that cannot be read has no sections.
        loader: of PyYAML; BaseLoader keeps scalars as they are spelt.
    """

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, dict]]:
        for key, value in node.items() if isinstance(node, dict) else ():
            if key == "ros__parameters":
                yield prefix, value if isinstance(value, dict) else {}
            else:
                yield from walk(value, f"{prefix.rstrip('/')}/{key}" if prefix else str(key))

    try:
        reader = loader(Path(path).read_bytes())
        try:
            content = reader.get_single_data()
        finally:
            reader.dispose()
    except (OSError, yaml.YAMLError):
        return
    yield from walk(content, "")


def dotted(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the parameters of a section with dotted names."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
