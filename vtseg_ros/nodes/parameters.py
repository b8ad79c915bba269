# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Node parameters as a table: name, default, text, unit, range; declared, described and checked from it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.nodes.parameter_files import sections_of_others
from vtseg_ros.nodes.typed_values import converted, names_for_all_nodes, typed_texts

NEAR = 0.7  # similarity from which an unknown name is a misspelt one of ours; `camera_name` and `cameras` have 0.67

_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    list: Parameter.Type.STRING_ARRAY,
}
_EXPECTED = {
    bool: "true or false",
    int: "an integer such as 2",
    float: "a number such as 0.5",
    str: "a text",
    list: "a list of texts such as [a, b]",
}


def check_name(name: str) -> None:
    """Refuse a name, or several joined by `/`, that topic names cannot contain.

    Raises:
        ConfigError: with the reason.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*", name):
        raise ConfigError(
            f"not usable in a topic name; expected letters, digits and _, no digit first, got {name!r}"
        )


@dataclass(frozen=True)
class Param:
    """One parameter.

    Args:
        name: of the parameter.
        default: its one default; the type follows from it (a list is a list of strings).
        text: what it is, with the unit.
        low, high: range of a number, both allowed.
        allowed: the values of a string.
        check: raises ConfigError for a value that is not allowed.
        live: whether it can change while the node runs.
        path: whether it is a path, in which `~` is the home folder.
        convert: applied to a value in the declared type, for other spellings of the same value.
    """

    name: str
    default: Any
    text: str
    low: float | None = None
    high: float | None = None
    allowed: tuple[str, ...] = ()
    check: Callable[[Any], None] | None = None
    live: bool = False
    path: bool = False
    convert: Callable[[Any], Any] = lambda value: value

    def descriptor(self) -> ParameterDescriptor:
        """Build the description of the parameter that `ros2 param describe` shows."""
        text = self.text + (f" One of: {', '.join(self.allowed)}." if self.allowed else "")
        descriptor = ParameterDescriptor(name=self.name, description=text, read_only=False)
        descriptor.type = _TYPES[type(self.default)].value
        if self.live:
            descriptor.additional_constraints = "Can change while the node runs."
        if self.low is not None:
            if isinstance(self.default, int):
                descriptor.integer_range = [
                    IntegerRange(from_value=int(self.low), to_value=int(self.high), step=0)
                ]
            else:
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=float(self.low), to_value=float(self.high), step=0.0)
                ]
        return descriptor

    def converted(self, value: Any, texts: list[str] | None = None) -> Any:
        """Return a value in the declared type; see `typed_values.converted`."""
        value = converted(value, type(self.default), texts or [])
        return self.convert(value) if isinstance(value, type(self.default)) else value

    def meant(self, value: Any) -> Any:
        """Return the value that the node works with: paths with the home folder in place of `~`."""
        return os.path.expanduser(value) if self.path and isinstance(value, str) else value

    def problem(self, value: Any) -> str:
        """Return why a value is not allowed; empty if it is."""
        if value is None:
            return f"{self.name}: no value; expected one like {self.default!r}"
        value = self.meant(value)
        if self.path and value.startswith("~"):
            return (
                f"{self.name}: {value} is in the home folder of an unknown user. Use ~/ or an absolute path"
            )
        if self.allowed and value not in self.allowed:
            return f"{self.name}: unknown; expected one of {', '.join(self.allowed)}, got {value!r}"
        if self.low is not None and not self.low <= value <= self.high:
            return f"{self.name}: out of range; expected {self.low} to {self.high}, got {value}"
        if self.check is not None:
            try:
                self.check(value)
            except (
                VTSegError,
                OSError,
                RuntimeError,
                ValueError,
            ) as err:  # of a path that no file can have, say
                text = str(err)
                return text if text.startswith(f"{self.name}: ") else f"{self.name}: {text}"
        return ""


class TypedParameters:
    """Mixin of a node, before its class: values that are set by service are converted to the declared types."""

    _params: Parameters

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """Set parameters; see rclpy. Every parameter service ends here."""
        values = [self._params.converted(p) for p in parameter_list]
        problem = next(filter(None, map(self._params.wrong_type, values)), "")
        if problem:
            return SetParametersResult(successful=False, reason=problem)
        return super().set_parameters_atomically(values)


class Parameters:
    """Declares a table on a node and checks every change.

    Args:
        node: which; a `TypedParameters`.
        table: its parameters.
        on_change: called with (name, value) when all changes of a request passed the checks; must not fail.
        locked: why a parameter cannot change now; empty if it can.
        vet: why the values of a request, by name, cannot be taken together; empty if they can.
    """

    def __init__(
        self,
        node: Node,
        table: tuple[Param, ...],
        on_change: Callable[[str, Any], None] = lambda name, value: None,
        locked: Callable[[Param], str] = lambda param: "",
        vet: Callable[[dict[str, Any]], str] = lambda values: "",
    ) -> None:
        self._table = {param.name: param for param in table}
        self._node, self._on_change, self._locked, self._vet = node, on_change, locked, vet
        overrides = getattr(node, "_parameter_overrides", {})
        for name, given in overrides.items():
            overrides[name] = self.converted(given, typed_texts(name, sys.argv))
            if problem := self.wrong_type(overrides[name]):
                raise ConfigError(problem)
        for param in table:
            kind = _TYPES[type(param.default)]
            # rclpy takes an empty list for a byte array: declared by type, and then given its value, since one
            # parameter without a value makes every request for several come back empty.
            empty = param.default == []
            node.declare_parameter(param.name, kind if empty else param.default, param.descriptor())
            if empty and node.get_parameter_or(param.name, None).value is None:
                node.set_parameters([Parameter(param.name, kind, [])])
        self._refuse_unknown(overrides)
        for line in sections_of_others(sys.argv, node.get_fully_qualified_name()):
            node.get_logger().warning(line)
        node.add_on_set_parameters_callback(self._on_set)

    def __getitem__(self, name: str) -> Any:
        return self._table[name].meant(self._node.get_parameter(name).value)

    def converted(self, given: Parameter, texts: list[str] | None = None) -> Parameter:
        """Return a parameter with its value in the declared type, where it is one of the table and has one."""
        param = self._table.get(given.name)
        if param is None:
            return given
        value = param.converted(given.value, texts)
        kind = _TYPES[type(param.default)]
        fits = isinstance(value, bool) == isinstance(param.default, bool) and kind.check(value)
        return Parameter(given.name, kind, value) if fits else given

    def wrong_type(self, given: Parameter) -> str:
        """Return why a value that `converted` left as it is does not have the declared type; empty if it has."""
        param = self._table.get(given.name)
        kind = param and _TYPES[type(param.default)]
        if param is None or given.type_ in (kind, Parameter.Type.NOT_SET):
            return ""
        return f"{param.name}: wrong type; expected {_EXPECTED[type(param.default)]}, got {given.value!r}"

    def check_all(self) -> None:
        """Raise ConfigError for the first value that is not allowed (overrides are not checked when declared)."""
        for name, param in self._table.items():
            problem = param.problem(self[name])
            if problem:
                raise ConfigError(problem)

    def _refuse_unknown(self, overrides: dict[str, Parameter]) -> None:
        """Raise ConfigError for a misspelt name, which rclpy would ignore; warn once of names unlike any of ours.

        Launch files set parameters for every node of a robot. In a section for several nodes even a name that is
        like one of ours may be another node's.
        """
        unknown = [
            name
            for name in overrides
            if not self._node.has_parameter(name) and not name.startswith("qos_overrides.")
        ]
        shared, foreign = names_for_all_nodes() if unknown else set(), []
        for name in unknown:
            near = get_close_matches(name, self._table, n=1, cutoff=NEAR)
            text = f"there is no parameter {name}" + (f"; did you mean {near[0]}?" if near else "")
            if near and name not in shared:
                raise ConfigError(text)
            if near:
                self._node.get_logger().warning(f"{text} (in a section for several nodes: ignored)")
            elif name not in shared:
                foreign.append(name)
        if foreign:
            self._node.get_logger().warning(
                f"ignored parameters that {self._node.get_name()} does not have: {', '.join(foreign)}"
            )

    def _on_set(self, changes: list[Parameter]) -> SetParametersResult:
        accepted: dict[str, Any] = {}
        for change in changes:
            param = self._table.get(change.name)
            if param is None:
                continue
            value = param.converted(change.value)
            problem = param.problem(value)
            value = param.meant(value)
            if not problem and value != self[param.name]:
                reason = self._locked(param)
                problem = f"{param.name} {reason}" if reason else ""
            if problem:
                return SetParametersResult(successful=False, reason=problem)
            accepted[param.name] = value
        problem = self._vet(accepted)
        if problem:
            return SetParametersResult(successful=False, reason=problem)
        # Only now, when nothing can refuse any more: a request that sets several is taken or refused as a whole.
        for name, value in accepted.items():
            self._on_change(name, value)
        return SetParametersResult(successful=True)


def locked_while_running(param: Param) -> str:
    """Return why a parameter of a node without lifecycle is locked: what is not live needs a restart."""
    return "" if param.live else "cannot change while the node runs. Restart the node"
