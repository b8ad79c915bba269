# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read text and YAML files in UTF-8, with or without a byte order mark, and in UTF-16 with one."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import yaml

from vtseg_ros.errors import first_line
from vtseg_ros.files import read_limited

MAX_TEXT_BYTES = 64 << 20


def read_text(path: str | Path) -> str:
    """Read a text file; see `decode_text`. Raises OSError if it cannot be read or is larger than any list."""
    return decode_text(read_limited(Path(path), MAX_TEXT_BYTES))


def decode_text(data: bytes) -> str:
    r"""Decode the content of a text file, without its byte order mark and with `\n` at the ends of lines.

    Args:
        data: the file's bytes.

    Raises:
        UnicodeDecodeError: if it is neither UTF-8 nor marked as UTF-16.
    """
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if marked else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


class UniqueKeys(yaml.SafeLoader):
    """YAML loader that rejects a key that appears twice in a mapping; by default, the last value is used."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node.

        Args:
            node: the mapping in the file.
            deep: construct the values immediately.

        Raises:
            yaml.YAMLError: if a key appears twice.
        """
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(
                    f"the key {key.value} appears twice; expected it once, got it again in line {key.start_mark.line + 1}"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file of plain values; a key that appears twice is an error.

    Raises:
        OSError: if it cannot be read.
        yaml.YAMLError: if its content is no YAML of plain values; the message is one line with the place.
    """
    try:
        loader = UniqueKeys(read_text(path))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except UnicodeDecodeError as err:
        raise yaml.YAMLError("it is neither UTF-8 nor UTF-16: save it as UTF-8") from err
    except yaml.YAMLError as err:
        raise yaml.YAMLError(yaml_problem(err)) from err
    except ValueError as err:  # a date that does not exist
        raise yaml.YAMLError(first_line(err)) from err
    except RecursionError as err:
        raise yaml.YAMLError("too many levels of brackets") from err


def yaml_problem(err: yaml.YAMLError) -> str:
    """Return what is wrong with a YAML text and where, in one line."""
    if not isinstance(err, yaml.MarkedYAMLError) or err.problem_mark is None or not err.problem:
        return first_line(err)
    mark, problem = err.problem_mark, err.problem
    if problem.startswith("but ") and err.context:
        problem = f"{err.context}, {problem}"
    advice = ". Indent with spaces" if "'\\t'" in problem else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{advice}"
