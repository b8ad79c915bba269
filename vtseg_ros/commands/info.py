# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg info`: what a bag or a checkpoint holds."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.storage_files import is_bag
from vtseg_ros.bags.topics import find_image_topic, find_label_topic, read_label_set
from vtseg_ros.commands.report_files import write_json
from vtseg_ros.content import advice_on, are_weights, content_of
from vtseg_ros.errors import BagError, CheckpointError, ConfigError

HELP = "Show the content of a bag, a checkpoint or an exported network."


CHECKPOINTS = (".safetensors", ".onnx")
CHECKED_BYTES = 256 << 20
"""Bags up to this size are always read in full."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("what", help="a bag's folder, a checkpoint or .onnx file, or shipped weights by name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="JSON file to write")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"read the whole bag to find damaged parts; always done for bags below {CHECKED_BYTES >> 20} MB",
    )
    parser.add_argument(
        "--static-prior", help="external static network; executes code when loaded, use trusted files only"
    )


def _found(find: Callable[[BagReader], str | None], bag: BagReader) -> tuple[str | None, str]:
    """Return the topic that is used by default, or None, and a text for it: the topic or why there is none."""
    try:
        topic = find(bag)
    except BagError as err:
        return None, str(err)
    return topic, topic or "none"


def _describe_bag(path: Path, check: bool) -> tuple[dict[str, Any], list[str]]:
    """Return the content of a bag for the JSON file, and the lines about its default topics."""
    with BagReader(path) as bag:
        check = check or bag.size_bytes <= CHECKED_BYTES
        if check:
            bag.check()
        first, last = bag.span()
        topics = {
            name: {
                "type": info.msgtype,
                "messages": info.count,
                "rate_hz": _rate(bag, name),
                "messages_missing": bag.missing.get(name, 0),
            }
            for name, info in sorted(bag.topics.items())
        }
        image, images = _found(find_image_topic, bag)
        label, with_labels = _found(find_label_topic, bag)
        labels = read_label_set(bag) or read_label_set(bag, of_masks=True)
    found = {
        "bag": str(path),
        "seconds": round((last - first) / 1e9, 3),
        "topics": topics,
        "image_topic": image,
        "label_topic": label,
        "classes": list(labels.names) if labels else None,
        "topics_left_out": dict(bag.left_out),
        "messages_missing": sum(bag.missing.values()),
        "checked": check,
    }
    return found, [f"images: {images}", f"labels: {with_labels}"]


def _rate(bag: BagReader, topic: str) -> float | None:
    rate = bag.rate_hz(topic)
    return rate and round(rate, 2)


def _describe_checkpoint(name: str, static_prior: str | None) -> dict[str, Any]:
    # They import torch, which bags do not need.
    from vtseg_ros.inference.backends import BackendOptions, is_exported, open_backend
    from vtseg_ros.model.checkpoint import load_checkpoint, resolve_checkpoint

    try:
        path = resolve_checkpoint(name)
    except CheckpointError as err:
        if os.path.lexists(name) or "\0" in name:
            raise
        raise ConfigError(
            f"{name}: no such bag or checkpoint; expected a file, a folder or the name of shipped weights"
        ) from err
    content = content_of(path)
    # The error for PyTorch files says how to convert them.
    if path.suffix.lower() not in CHECKPOINTS and not are_weights(content):
        raise ConfigError(
            f"{name}: neither a bag nor a checkpoint; expected an mcap, sqlite3 or ROS 1 bag, or a {', '.join(CHECKPOINTS)} "
            f"file, got {content}. {advice_on(content)}"
        )
    export: str | None = None
    parts: dict[str, Any] = {}
    if is_exported(path):
        backend = open_backend(path, BackendOptions(device="cpu"))
        loaded, export = backend.checkpoint, backend.description
    else:
        loaded = load_checkpoint(path, static_prior=static_prior)
        parts = dict(loaded.network.named_children())
    parameters = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}
    return {
        "checkpoint": str(path),
        "architecture": loaded.architecture,
        "export": export,
        "bytes": path.stat().st_size,
        "input_size": list(loaded.input_size),
        "resize_mode": loaded.resize_mode,
        "temperature": loaded.temperature,
        "agreement": loaded.agreement,
        "parameters": {**{k: v for k, v in parameters.items() if v}, "total": sum(parameters.values())},
        "classes": list(loaded.labels.names),
        "config": loaded.config,
        "training": loaded.training,
        "licence": loaded.licence.to_dict(),
    }


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    path = Path(args.what)
    console = Console(markup=False)  # names come from files
    if is_bag(path):
        found, topics = _describe_bag(path, args.check)
        table = Table(title=f"{path}: {found['seconds']} s")
        for column in ("topic", "type", "messages", "Hz"):
            # Long names take several lines; an ellipsis would hide the end of a type.
            table.add_column(
                column, justify="right" if column in ("messages", "Hz") else "left", overflow="fold"
            )
        for name, info in found["topics"].items():
            table.add_row(name, info["type"], str(info["messages"]), str(info["rate_hz"] or ""))
        console.print(table)
        for line in topics:
            console.print(line, soft_wrap=True)
    else:
        found = _describe_checkpoint(args.what, args.static_prior)
        table = Table(title=str(found["checkpoint"]), show_header=False)
        table.add_row("architecture", found["architecture"])
        table.add_row("licence", found["licence"]["name"] or "not stated")
        if found["licence"]["note"]:
            table.add_row("licence note", found["licence"]["note"])
        table.add_row("size", f"{found['bytes'] / 1e6:.1f} MB")
        table.add_row("input", f"{'x'.join(map(str, found['input_size']))}, {found['resize_mode']}")
        table.add_row("temperature", f"{found['temperature']:.3g}")
        for precision, share in found["agreement"].items():
            table.add_row(f"{precision} equals fp32", f"{100 * share:.2f} % of pixels")
        if found["export"]:
            table.add_row("export", found["export"])
        else:
            table.add_row("parameters", ", ".join(f"{k} {v:,}" for k, v in found["parameters"].items()))
        for key, value in found["config"].items():
            table.add_row(key, str(value))
        score = found["training"].get("validation", {}).get("miou")
        if score is not None:
            table.add_row("validation mIoU", f"{score:.1f}")
        console.print(table)
    if found["classes"]:
        console.print("classes: " + ", ".join(found["classes"]))
    if args.json:
        write_json(args.json, found)
    return 0
