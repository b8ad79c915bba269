# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg flops`: parameters and multiply-adds, by module and by network."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vtseg_ros.commands.report_files import write_json
from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import IGNORE
from vtseg_ros.model.vtseg_config import check_window
from vtseg_ros.profiling.flops import Cost, build, costs, networks
from vtseg_ros.sizes import parse_size

HELP = (
    "Count parameters and multiply-adds of the networks by module, size and window, without measuring time."
)
SIZES = ((1024, 512), (640, 192), (320, 96))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    known = list(networks())
    parser.add_argument(
        "--network",
        nargs="+",
        default=known,
        choices=known,
        metavar="NAME",
        help=f"{', '.join(known)} (default: all)",
    )
    parser.add_argument(
        "--size",
        nargs="+",
        type=parse_size,
        default=list(SIZES),
        metavar="WxH",
        help="sizes of the network input",
    )
    parser.add_argument(
        "--window",
        nargs="+",
        type=int,
        default=[1, 4],
        metavar="N",
        help="window lengths in frames (default 1 4)",
    )
    parser.add_argument(
        "--classes",
        type=int,
        default=19,
        metavar="C",
        help="number of classes (default 19, as in Cityscapes)",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="JSON file to write")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    for window in args.window:
        check_window(window, option="--window")
    if not 1 <= args.classes <= IGNORE:
        raise ConfigError(f"--classes: out of range; expected 1 to {IGNORE}, got {args.classes}")
    columns = [(size, frames) for size in args.size for frames in args.window]
    found: dict[str, list[list[Cost]]] = {}
    for name in args.network:
        model = build(name, args.classes)
        found[name] = [costs(model, size=size, frames=frames) for size, frames in columns]
    titles = [f"{size[0]}x{size[1]}, k={frames}" for size, frames in columns]
    tables = [
        (f"{name}: G multiply-adds by module", ["module", "parameters", *titles], _rows(by_column))
        for name, by_column in found.items()
        if len(by_column[0]) > 1
    ]
    totals = [[name, *_cells([column[-1] for column in by_column])] for name, by_column in found.items()]
    tables.append(
        (f"Networks, {args.classes} classes: G multiply-adds", ["network", "parameters", *titles], totals)
    )
    for title, head, rows in tables:
        _print(title, head, rows, args.markdown)
    if args.json:
        content = [
            {
                "network": name,
                "module": cost.name,
                "parameters": cost.parameters,
                "macs": cost.macs,
                "size": list(size),
                "window": frames,
            }
            for name, by_column in found.items()
            for (size, frames), column in zip(columns, by_column)
            for cost in column
        ]
        write_json(args.json, {"classes": args.classes, "costs": content})
    return 0


def _rows(by_column: list[list[Cost]]) -> list[list[str]]:
    return [[parts[0].name, *_cells(parts)] for parts in map(list, zip(*by_column))]


def _cells(parts: list[Cost]) -> list[str]:
    return [f"{parts[0].parameters:,}", *(f"{part.macs / 1e9:.2f}" for part in parts)]


def _print(title: str, head: list[str], rows: list[list[str]], markdown: bool) -> None:
    if markdown:
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        print(f"{title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
        return
    table = Table(title=title)
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row, end_section=row is rows[-2] if len(rows) > 2 and head[0] == "module" else False)
    Console().print(table)
