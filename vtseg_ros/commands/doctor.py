# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg doctor`: versions, devices, speed and known problems."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vtseg_ros.commands.report_files import write_json
from vtseg_ros.diagnosis import Diagnosis, diagnose

HELP = "Print versions, devices, speed and the known problems of this installation; for bug reports."
STANDARD_OUTPUT = "-"


def _report_file(text: str) -> Path | str:
    return text if text == STANDARD_OUTPUT else Path(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--topic",
        default="",
        help="report QoS and types of a topic's publishers and subscribers (needs ROS 2)",
    )
    parser.add_argument("--no-speed", action="store_true", help="omit the speed test of 2 s")
    parser.add_argument(
        "--json", type=_report_file, metavar="FILE", help="write the report as JSON; - = standard output"
    )


def run(args: argparse.Namespace) -> int:
    """Print the report and return 1 if there is a problem, otherwise 0."""
    diagnosis = diagnose(topic=args.topic, speed=not args.no_speed)
    report = diagnosis.as_dict()
    if args.json == STANDARD_OUTPUT:
        print(json.dumps(report, indent=2))
    else:
        _print(diagnosis)
        if args.json:
            write_json(args.json, report)
    return int(any(finding.problem for finding in diagnosis.findings))


def _print(diagnosis: Diagnosis) -> None:
    for section, facts in diagnosis.facts.items():
        print(section.replace("_", " "))
        for name, value in facts.items():
            for number, line in enumerate(_lines(value)):
                print(f"  {name if number == 0 else '':<18} {line}")
    for title, problem in (("problems", True), ("hints", False)):
        found = [finding for finding in diagnosis.findings if finding.problem == problem]
        print(f"{title}: {len(found) or 'none'}")
        for finding in found:
            print(f"  {finding.text}\n    {finding.remedy}")


def _lines(value: Any) -> list[str]:
    if isinstance(value, list):
        return [str(item) for item in value] or ["none"]
    return ["-" if value is None else str(value)]
