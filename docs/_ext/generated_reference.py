# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Write the reference pages from the code: options from the parsers, parameters, messages, public classes.

A page holds a line `<!-- generated: NAME -->`; it is replaced by the text that NAME's function returns when the
page is read. Nothing is written to the source tree, and ROS need not be installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import keyword
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import mock

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
# Packages whose `__all__` is the public Python API, in the order of the page. Absent ones are left out.
API = (
    ("vtseg_ros", "Top level"),
    ("vtseg_ros.inference", "Inference"),
    ("vtseg_ros.model", "Networks and checkpoints"),
    ("vtseg_ros.label_set", "Class lists"),
    ("vtseg_ros.clouds", "Point clouds"),
    ("vtseg_ros.bags", "Bags"),
    ("vtseg_ros.errors", "Errors"),
)
NODES = (
    ("Segmenter", "vtseg_ros.nodes.segmenter_parameters"),
    ("Evaluator", "vtseg_ros.nodes.evaluator"),
    ("Trainer", "vtseg_ros.nodes.trainer"),
    ("Cloud", "vtseg_ros.nodes.cloud"),
)


def cell(text: str) -> str:
    """Return `text` as the content of a Markdown table cell."""
    text = text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return " ".join(text.split())


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a Markdown table with a blank line on either side."""
    return [
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of one `vtseg` command, with its subcommands."""
    module = importlib.import_module(
        f"vtseg_ros.commands.{name.replace('-', '_')}{'_' if keyword.iskeyword(name) else ''}"
    )
    parser = argparse.ArgumentParser(prog=f"vtseg {name}", description=module.HELP)
    module.add_arguments(parser)
    return parser


def option_cell(action: argparse.Action) -> str:
    """Return an option with its placeholder, as the command's help shows it."""
    value = ""
    if action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction):
        if action.metavar:
            value = " ".join(action.metavar) if isinstance(action.metavar, tuple) else str(action.metavar)
        elif action.choices is not None:
            value = "{" + ",".join(str(choice) for choice in action.choices) + "}"
        else:
            value = action.dest.upper()
        value += " ..." if action.nargs in ("+", "*") else ""
    if not action.option_strings:
        return f"`{value.lower() if not action.metavar else value}`"
    return ", ".join(f"`{f'{option} {value}'.strip()}`" for option in action.option_strings)


def default_cell(action: argparse.Action) -> str:
    """Return the default value of an option; empty where there is none to show."""
    value = action.default
    if action.required or value in (None, False, "", [], (0, 0), argparse.SUPPRESS):
        return ""
    if isinstance(value, (list, tuple)):
        if "WxH" in str(action.metavar):
            sizes = value if isinstance(value[0], tuple) else [value]
            value = [f"{width}x{height}" for width, height in sizes]
        value = " ".join(str(part) for part in value)
    return f"`{value}`"


def parser_section(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """Yield the Markdown of a parser: heading, description, usage and options, then its subcommands."""
    yield from (f"{'#' * level} {parser.prog}", "", cell(parser.description or ""), "")
    usage = parser.format_usage().removeprefix("usage: ").strip()
    yield from ("```text", re.sub(r"\n\s+", "\n    ", usage), "```")
    nested: dict[str, argparse.ArgumentParser] = {}
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            nested = dict(action.choices)
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, child in nested.items():
                child.description = child.description or helps.get(name, "")
            continue
        text = parser._get_formatter()._expand_help(action) if action.help else ""
        rows.append((option_cell(action), default_cell(action), cell(text)))
    if rows:
        yield from table(("argument", "default", "description"), rows)
    for child in nested.values():
        yield from parser_section(child, level + 1)


def command_line() -> Iterator[str]:
    """Yield the sections of all `vtseg` commands."""
    from vtseg_ros.cli import COMMANDS

    for name in COMMANDS:
        yield from parser_section(parser_of(name), 2)


def node_parameters() -> Iterator[str]:
    """Yield the parameter tables of the nodes, from the declarations that the nodes themselves use."""
    for title, module in NODES:
        if importlib.util.find_spec(module) is None:
            continue
        yield from (f"## {title}", "")
        rows = []
        for param in importlib.import_module(module).PARAMETERS:
            kind = {bool: "bool", int: "int", float: "double", str: "string", list: "string[]"}[
                type(param.default)
            ]
            default = str(param.default).lower() if isinstance(param.default, bool) else str(param.default)
            allowed = ", ".join(f"`{value}`" for value in param.allowed)
            if param.low is not None:
                allowed = f"{param.low:g} to {param.high:g}"
            rows.append(
                (
                    f"`{param.name}`",
                    kind,
                    f"`{default}`" if default else "",
                    allowed,
                    "yes" if param.live else "",
                    cell(param.text),
                )
            )
        yield from table(("parameter", "type", "default", "values", "at run time", "description"), rows)


def messages() -> Iterator[str]:
    """Yield one section per .msg and .srv file: its comment and its fields."""
    for path in sorted([*ROOT.glob("msg/*.msg"), *ROOT.glob("srv/*.srv")]):
        yield from (f"## {path.stem}", "")
        rows: list[list[str]] = []
        intro: list[str] = []
        pending: list[str] = []
        for line in path.read_text().splitlines():
            declaration, _, comment = line.partition("#")
            declaration, comment = declaration.strip(), comment.strip()
            if declaration == "---":
                rows.append(["", "", "response:"])
                continue
            if not declaration:
                if comment:
                    (pending if rows else intro).append(comment)
                else:
                    pending = []
                continue
            kind, name = declaration.split(None, 1)
            rows.append([f"`{name}`", f"`{kind}`", cell(" ".join([*pending, comment]))])
            pending = []
        yield from (cell(" ".join(intro)), "")
        yield from table(("field", "type", "description"), [tuple(row) for row in rows])


def public_names(module: ModuleType) -> list[str]:
    """Return the names of a module's `__all__`, else the classes and functions that it defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def python_api() -> Iterator[str]:
    """Yield autodoc directives for every public class and function."""
    seen: set[Any] = set()
    for name, title in API:
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(name)
            names = [n for n in public_names(module) if n != "__version__"]
            values = [(n, getattr(module, n)) for n in names]
            new = [(n, value) for n, value in values if callable(value) and value not in seen]
            if not new:
                continue
            yield from (f"## {title}: `{name}`", "")
            for public, value in new:
                seen.add(value)
                kind = "autoclass" if inspect.isclass(value) else "autofunction"
                members = ["   :members:", "   :exclude-members: forward"] if kind == "autoclass" else []
                if inspect.isclass(value) and issubclass(value, Exception):
                    members = ["   :show-inheritance:"]
                yield from ("```{eval-rst}", f".. {kind}:: {name}.{public}", *members, "```", "")


GENERATORS: dict[str, Callable[[], Iterator[str]]] = {
    "command_line": command_line,
    "node_parameters": node_parameters,
    "messages": messages,
    "python_api": python_api,
}


def replace(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the marks of a page by generated text (event `source-read`)."""

    def generated(match: re.Match[str]) -> str:
        with mock(app.config.autodoc_mock_imports):
            return "\n".join(GENERATORS[match[1]]())

    source[0] = MARK.sub(generated, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", replace)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
