# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the launch files check and find out before they start a process; needs neither ROS nor torch."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from vtseg_ros.errors import ConfigError
from vtseg_ros.nodes.typed_values import FALSE, TRUE, sections
from vtseg_ros.transports import BEST_FIRST, MSGTYPES, TRANSPORTS, base_topic, is_video, transport_of

NOT_REPLAYED = r"^/(rosout|diagnostics\w*|parameter_events)$|^/events/|/_service_event$"
"""Found in the names of topics of a `ros2 bag record -a` bag that say what the recorded processes did."""


def truth(name: str, text: str) -> bool:
    """Return the truth value of a launch argument.

    Args:
        name: of the argument, for the error.
        text: true, 1, yes, on, y, or false, 0, no, off, n, in any case.

    Raises:
        ConfigError: for another text.
    """
    lowered = text.strip().lower()
    if lowered in TRUE or lowered in FALSE:
        return lowered in TRUE
    raise ConfigError(f"{name}: expected true or false (1, 0, yes, no, on, off), got {text!r}")


def require_file(name: str, path: str) -> str:
    """Return the path of a launch argument with the home folder in place of `~`.

    Raises:
        ConfigError: if there is no such file.
    """
    found = Path(path).expanduser()
    if not found.is_file():
        raise ConfigError(f"{name}: no such file; expected an existing file, got {path}")
    return str(found)


def plain_section(path: str, node: str) -> dict[str, Any]:
    """Return the parameters below a node's plain name, which ROS gives to the node in the root namespace only.

    Args:
        path: of a parameter file.
        node: name without namespace.

    Raises:
        ConfigError: if the file is not YAML.
    """
    try:
        yaml.safe_load(Path(path).read_bytes())
    except yaml.YAMLError as err:
        raise ConfigError(f"params_file {path}: not YAML: {' '.join(str(err).split())}") from err
    found: dict[str, Any] = {}
    for name, values in sections(path, yaml.SafeLoader):
        if name.lstrip("/") == node:
            found.update(values)
    return found


def camera_topics(cameras: list[str], topics: str) -> dict[str, str]:
    """Return the image topic of each camera.

    Args:
        cameras: names.
        topics: comma-separated image topics, one per camera; empty = <camera>/image of each.

    Raises:
        ConfigError: if their numbers differ.
    """
    given = [topic.strip() for topic in topics.split(",") if topic.strip()]
    if not given:
        return {}
    if len(given) != len(cameras):
        raise ConfigError(
            f"image_topics: expected one topic per camera ({', '.join(cameras) or 'cameras is empty'}), got {topics}"
        )
    return dict(zip(cameras, given))


def describe_bag(bag: str) -> dict[str, Any]:
    """Return what `vtseg info` finds in a bag, by its JSON keys.

    Raises:
        ConfigError: if it cannot be read.
    """
    if not Path(bag).exists():
        raise ConfigError(f"bag: no such bag; expected a folder or a storage file, got {bag}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "info.json"
        command = ["vtseg", "info", bag, "--json", str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as err:
            raise ConfigError(
                f"vtseg: cannot be run ({err}). Source the workspace or scripts/env.sh"
            ) from err
        if done.returncode or not file.is_file():
            lines = done.stderr.strip().splitlines() or ["vtseg info failed"]
            raise ConfigError(f"bag {bag}: {lines[-1]}")
        found = json.loads(file.read_text())
    if "topics" not in found:
        raise ConfigError(f"bag: not a bag; expected a folder or a storage file, got the checkpoint {bag}")
    return found


def find_topic(what: str, info: dict[str, Any], topic: str, transport: str) -> tuple[str, str]:
    """Return the base name and the transport of a bag's image or label topic.

    Args:
        what: `image` or `label`.
        info: of `describe_bag`.
        topic: the user's choice, with or without the suffix of a transport; empty = the bag's only camera or label topic.
        transport: its name; empty = the topic's, else what the bag has most messages of, of equal numbers the best.

    Raises:
        ConfigError: if the bag has no such topic, or several and none is named.
    """
    images = {
        name: t["messages"] for name, t in info["topics"].items() if t["type"] in MSGTYPES and t["messages"]
    }
    listed = ", ".join(sorted(images)) or "none"
    found = topic or info[f"{what}_topic"] or ""
    if not found:
        raise ConfigError(
            f"{what}_topic: the bag has several, or none; expected one of {listed}. Set {what}_topic:=TOPIC"
        )
    possible = [name for name in BEST_FIRST if what == "image" or not is_video(name)]
    if transport and transport not in possible:
        raise ConfigError(f"{what}_transport: expected {', '.join(possible)}, got {transport!r}")
    base = base_topic(found)
    names = {name: base + TRANSPORTS[name].suffix for name in possible}
    if not transport and found != base:
        transport = transport_of(found)
    if not transport:
        transport = max(possible, key=lambda name: images.get(names[name], 0))
    if names.get(transport) not in images:
        raise ConfigError(
            f"{what}_topic: {names.get(transport, found)} has no message in the bag that can be used; expected one of {listed}"
        )
    return base, transport


def report_exit(event: Any, context: Any) -> None:
    """Make launch itself end with another code than 0 when a process did; what else runs goes on.

    Args:
        event: launch's ProcessExited.
        context: launch's LaunchContext. launch sets its own code where its loop's exception handler is called.
    """
    if event.returncode:
        text = f"{event.process_name} ended with exit code {event.returncode}"
        context.asyncio_loop.call_exception_handler({"message": text})
