"""Node parameters as a table: name, default, text, unit, range; declared, described and checked from it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from vtseg_ros.errors import ConfigError, VTSegError

_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    list: Parameter.Type.STRING_ARRAY,
}


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
    """

    name: str
    default: Any
    text: str
    low: float | None = None
    high: float | None = None
    allowed: tuple[str, ...] = ()
    check: Callable[[Any], None] | None = None
    live: bool = False

    def descriptor(self) -> ParameterDescriptor:
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

    def problem(self, value: Any) -> str:
        """Why a value is not allowed; empty if it is."""
        if value is None:
            return f"{self.name} cannot be without a value"
        if self.allowed and value not in self.allowed:
            return f"{self.name} must be one of {', '.join(self.allowed)}. Got: {value!r}"
        if self.low is not None and not self.low <= value <= self.high:
            return f"{self.name} must be in {self.low}..{self.high}. Got: {value}"
        if self.check is not None:
            try:
                self.check(value)
            except (
                VTSegError,
                OSError,
                RuntimeError,
                ValueError,
            ) as err:  # of a path that no file can have, say
                return f"{self.name}: {err}"
        return ""


class Parameters:
    """Declares a table on a node and checks every change.

    Args:
        node: which.
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
        for param in table:
            kind = _TYPES[type(param.default)]
            # rclpy takes an empty list for a byte array: declared by type, and then given its value, since one
            # parameter without a value makes every request for several come back empty.
            empty = param.default == []
            node.declare_parameter(param.name, kind if empty else param.default, param.descriptor())
            if empty and node.get_parameter_or(param.name, None).value is None:
                node.set_parameters([Parameter(param.name, kind, [])])
        self._refuse_unknown()
        node.add_on_set_parameters_callback(self._on_set)

    def __getitem__(self, name: str) -> Any:
        return self._node.get_parameter(name).value

    def check_all(self) -> None:
        """Raise ConfigError for the first value that is not allowed (overrides are not checked when declared)."""
        for name, param in self._table.items():
            problem = param.problem(self[name])
            if problem:
                raise ConfigError(problem)

    def _refuse_unknown(self) -> None:
        """Raise ConfigError for a name that this node does not have: rclpy would ignore it.

        One in a section for several nodes may be another node's: if it looks like one of ours, it is told.
        """
        for name in getattr(self._node, "_parameter_overrides", {}):
            if self._node.has_parameter(name) or name.startswith("qos_overrides."):
                continue
            near = get_close_matches(name, self._table, n=1)
            text = f"there is no parameter {name}" + (f"; did you mean {near[0]}?" if near else "")
            if name not in _names_for_all_nodes(sys.argv):
                raise ConfigError(text if near else f"{text}. Known: {', '.join(self._table)}")
            if near:
                self._node.get_logger().warning(f"{text} (in a section for several nodes: ignored)")

    def _on_set(self, changes: list[Parameter]) -> SetParametersResult:
        accepted: dict[str, Any] = {}
        for change in changes:
            param = self._table.get(change.name)
            if param is None:
                continue
            value = (
                list(change.value)
                if isinstance(param.default, list) and change.value is not None
                else change.value
            )
            problem = param.problem(value)
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
    """For nodes without a lifecycle: what is not live needs a restart."""
    return "" if param.live else "cannot change while the node runs: start it anew"


def _names_for_all_nodes(argv: list[str]) -> set[str]:
    """Names in the sections of parameter files that address several nodes (`/**`): some may be another node's."""
    names: set[str] = set()
    for option, path in zip(argv, argv[1:]):
        if option == "--params-file":
            sections = yaml.safe_load(Path(path).read_text())
            for key, section in (sections if isinstance(sections, dict) else {}).items():
                if "*" in str(key) and isinstance(section, dict):
                    names |= _dotted(section.get("ros__parameters"), "")
    return names


def _dotted(values: Any, prefix: str) -> set[str]:
    if not isinstance(values, dict):
        return {prefix.removesuffix(".")}
    return set().union(*(_dotted(value, f"{prefix}{key}.") for key, value in values.items()))
