# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What `vtseg evaluate` prints and writes: tables of scores, report.json and report.html."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vtseg_ros.dataset.corrupted_store import PARTS
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.evaluation.comparison import Sweep, as_json, entries, render_html, sweep, widest
from vtseg_ros.evaluation.protocol import Outcome
from vtseg_ros.evaluation.robustness import CorruptedScores, behaviour_rows, mean_corrupted
from vtseg_ros.evaluation.score import score_text
from vtseg_ros.files import write_atomically

FILE_WIDTH = 240


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation of one or several bags.

    Attributes:
        outcome: scores of the systems.
        facts: what was evaluated: texts by title.
        named: whether all bags contain their class names.
        missing: number of messages that the bags announce and do not contain.
        corrupted: scores under each corruption.
        behaviour: JSON values of `appearance`, `scene_cuts` and `drift`, those that were measured.
    """

    outcome: Outcome
    facts: dict[str, str]
    named: bool
    missing: int
    corrupted: Sequence[CorruptedScores] = ()
    behaviour: dict[str, Any] = field(default_factory=dict)


def report(args: argparse.Namespace, found: Evaluation) -> None:
    """Print the scores and write the files of `--out`, `--json` and `--html`.

    Args:
        args: of `vtseg evaluate`.
        found: scores; gets further facts.

    Raises:
        BagError: if no frame was scored; the files are written before.
        ConfigError: if a file cannot be written.
    """
    source = "class map" if args.class_map else "checkpoint"
    if not found.named:
        found.facts["classes"] = f"the {source}'s; the bag contains none"
    _print(found)
    if not found.named:
        print(f"The bag has no label map: its class ids are interpreted as those of the {source}.")
    if found.missing:
        found.facts["missing"] = f"{found.missing} messages that the bags announce are missing"
    _write(args, found)
    outcome = found.outcome
    if outcome.labelled == outcome.unscored:
        raise BagError("BAG: no labelled frame could be scored: " + outcome.corrupt[0][1])


def _print(found: Evaluation) -> None:
    outcome, corrupted = found.outcome, found.corrupted
    # A file or pipe has no width; 80 columns would cut off a table of many systems.
    width = None if sys.stdout.isatty() else FILE_WIDTH
    console, systems = Console(markup=False, width=width), entries(outcome)
    shown = [systems[place] for place in widest(outcome.infos)]
    table = Table(title="IoU by class (%)")
    table.add_column("class")
    for system in shown:
        table.add_column(system["name"], justify="right")
    for name in outcome.scores[0].labels.names:
        table.add_row(name, *(score_text(system["iou"][name]) for system in shown))
    table.add_section()
    rows = {
        "mean": "miou",
        "pixel accuracy": "pixel_accuracy",
        "mVC8": "mvc8",
        "mVC16": "mvc16",
        "temporal consistency": "temporal_consistency",
        "calibration error": "calibration_error",
    }
    for title, key in rows.items():
        table.add_row(title, *(score_text(system[key]) for system in shown))
    console.print(table)
    swept = sweep(systems)
    if swept:
        console.print(_sweep_table(swept))
    if corrupted:
        console.print(_corruption_table(corrupted))
    measures = behaviour_rows(found.behaviour, corrupted)
    if measures:
        table = Table(title="Behaviour over time")
        table.add_column("measure")
        for info in outcome.infos:
            table.add_column(info.name, justify="right")
        for title, values in measures:
            table.add_row(title, *values)
        console.print(table)
    if not np.isnan(outcome.label_consistency):
        console.print(f"temporal consistency of the labels: {outcome.label_consistency:.2f}")
    console.print(f"{outcome.labelled - outcome.unscored} of {outcome.labelled} labelled frames scored")
    if outcome.unmatched:
        console.print(f"{outcome.unmatched} more labels have a header stamp that no image has")
    if outcome.corrupt:
        console.print(f"{len(outcome.corrupt)} messages could not be decoded:")
        for stamp_ns, reason in outcome.corrupt[:5]:
            console.print(f"  frame at {stamp_ns / 1e9:.3f} s: {reason}", highlight=False)


def _sweep_table(swept: Sweep) -> Table:
    table = Table(title="mIoU by frames in the window (%)")
    table.add_column("system")
    for window in swept.windows:
        table.add_column(str(window), justify="right")
    for family, row in swept.rows.items():
        table.add_row(family, *(score_text(system["miou"]) if system else "" for system in row))
    return table


def _corruption_table(corrupted: Sequence[CorruptedScores]) -> Table:
    table = Table(title="mIoU on corrupted frames, on the frames after them, on the others (%)")
    table.add_column("corruption")
    for info in corrupted[0].infos:
        table.add_column(info.name, justify="right")
    for scores in corrupted:
        systems = scores.to_dict()["systems"]
        table.add_row(
            str(scores.corruption),
            *(", ".join(score_text(system[part]["miou"]) for part in PARTS) for system in systems),
        )
    if len(corrupted) > 1:
        table.add_section()
        table.add_row("mean on corrupted frames", *(score_text(value) for value in mean_corrupted(corrupted)))
    return table


def _write(args: argparse.Namespace, found: Evaluation) -> None:
    outcome, corrupted = found.outcome, found.corrupted
    content: dict[str, Any] = {
        **as_json(outcome, found.facts),
        "messages_missing": found.missing,
        **found.behaviour,
    }
    if corrupted:
        content["corruptions"] = [scores.to_dict() for scores in corrupted]
    pages = [args.html] if args.html else []
    files = [args.json] if args.json else []
    if args.out:
        files.append(args.out / "report.json")
        pages.append(args.out / "report.html")
    try:
        for path in (*files, *pages):
            path.parent.mkdir(parents=True, exist_ok=True)
        for path in files:
            write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
        if pages:
            rows = behaviour_rows(found.behaviour, corrupted)
            page = render_html(outcome, "Evaluation", found.facts, corrupted, rows).encode()
            for path in pages:
                write_atomically(path, page)
    except OSError as err:
        raise ConfigError(f"report: cannot be written: {err}") from err
