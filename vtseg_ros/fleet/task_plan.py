# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""From paths, globs and lists of paths to tasks."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from vtseg_ros.bags.bag import BagReader
from vtseg_ros.bags.storage_files import is_bag
from vtseg_ros.bags.topics import find_image_topic
from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.fleet.jobs import Task


def expand_inputs(inputs: Iterable[str]) -> list[Path]:
    """Return the paths that inputs name, each once.

    Args:
        inputs: paths, globs, and `.txt` files with one path or glob per line (`#` starts a comment line).

    Raises:
        ConfigError: if a list cannot be read, a glob matches nothing, or no path is left.
    """
    found: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.suffix == ".txt" and path.is_file():
            try:
                lines = [line.strip() for line in path.read_text().splitlines()]
            except (OSError, UnicodeDecodeError) as err:
                raise ConfigError(
                    f"{path}: cannot be read ({err}); expected a text file with one path per line"
                ) from err
            found += expand_inputs(line for line in lines if line and not line.startswith("#"))
        elif path.exists() or not glob.has_magic(text):
            found.append(path)
        else:
            matches = sorted(glob.glob(text, recursive=True))
            if not matches:
                raise ConfigError(
                    f"{text}: no path matches; expected a bag, a glob or a .txt list of paths. Correct the pattern"
                )
            found += [Path(match) for match in matches]
    if not found:
        raise ConfigError("input: the list is empty; expected at least one path. Add the bags to it")
    return list(dict.fromkeys(found))


def plan_tasks(sources: Sequence[Path], out: Path, image_topic: str = "") -> list[Task]:
    """Return one task per source; a source that cannot be read becomes a task that fails.

    Args:
        sources: bags or videos.
        out: folder of the results, one folder per source.
        image_topic: whose messages are counted; empty = the only image topic.

    Raises:
        ConfigError: if two sources have the same name.
    """
    tasks: dict[str, Task] = {}
    for source in sources:
        name = source.resolve().stem
        if name in tasks:
            raise ConfigError(
                f"input: {tasks[name].source} and {source} have the same name; expected different names, since both "
                f"results would be {out / name}. Rename one"
            )
        tasks[name] = Task(source.absolute(), out.absolute() / name, _frames(source, image_topic))
    return list(tasks.values())


def _frames(source: Path, image_topic: str) -> int:
    try:
        if not is_bag(source):
            return 0
        with BagReader(source) as bag:
            return bag.topics[image_topic or find_image_topic(bag)].count
    except (VTSegError, OSError, KeyError):
        return 0  # the task reports it
