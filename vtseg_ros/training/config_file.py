# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read training configurations from YAML files."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from vtseg_ros.errors import ConfigError, first_line
from vtseg_ros.text import read_yaml
from vtseg_ros.training.config import SourceConfig, TrainConfig


def load_config(path: str | Path) -> TrainConfig:
    """Read a training configuration.

    Args:
        path: YAML file; relative paths of bags refer to its folder.

    Raises:
        ConfigError: If it cannot be read, or a key or value is not allowed; names it.
    """
    path = Path(path)
    try:
        values = read_yaml(path)
    except (OSError, yaml.YAMLError) as err:
        raise ConfigError(f"training configuration {path} cannot be read: {first_line(err)}") from err
    if not isinstance(values, dict):
        raise ConfigError(f"training configuration {path}: expected a mapping, got {type(values).__name__}")
    try:
        config: TrainConfig = parse(TrainConfig, values, "")
    except ConfigError as err:
        raise ConfigError(f"{path}: {err}") from err
    folder = path.resolve().parent

    def anchored(sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        return tuple(dataclasses.replace(s, path=str(folder / Path(s.path).expanduser())) for s in sources)

    data = dataclasses.replace(
        config.data, train=anchored(config.data.train), validation=anchored(config.data.validation)
    )
    return dataclasses.replace(config, data=data)


# Not pydantic, here and in `VTSegConfig.from_dict`: training on a rented GPU and reading a checkpoint on a robot work without
# it. Most checks involve several fields or the registry and would stay, and strict types, 6e-5 as a float, names for its
# error kinds and ConfigError from `dataclasses.replace` would need more code than the functions below have.
def parse(kind: Any, value: Any, where: str) -> Any:
    """Convert a YAML value to a dataclass, tuple or plain type.

    Args:
        kind: Type to convert to.
        value: Value from the YAML file.
        where: Name of the field in errors.

    Raises:
        ConfigError: If the value does not fit; names the field, the expected and the actual value.
    """
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if kind is SourceConfig and isinstance(value, str):
            value = {"path": value}
        return _parse_dataclass(kind, value, where)
    if origin is tuple:
        items = typing.get_args(kind)
        if not isinstance(value, (list, tuple)) or (Ellipsis not in items and len(value) != len(items)):
            raise ConfigError(f"{where}: not a list; expected {_name(kind)}, got {value!r}")
        kinds = [items[0]] * len(value) if Ellipsis in items else items
        return tuple(parse(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value)))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        return value
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            value = float(value)  # in YAML 1.1, 6e-5 is a string
    if isinstance(value, float) and math.isinf(value):
        raise ConfigError(f"{where}: not a finite number; expected {_name(kind)}, got {value}")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: wrong type; expected {_name(kind)}, got {value!r}")
    return value


def _name(kind: Any) -> str:
    return str(kind) if isinstance(kind, types.GenericAlias) else getattr(kind, "__name__", str(kind))


def _parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where or 'the configuration'}: expected a mapping, got {value!r}")
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in fields:
            near = get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(fields)}"
            raise ConfigError(f"unknown key {prefix}{key}; {hint}")
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise ConfigError(f"{prefix}{name} is missing")
    return kind(**{key: parse(hints[key], item, f"{prefix}{key}") for key, item in value.items()})
