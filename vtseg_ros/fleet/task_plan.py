# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""From paths, globs and lists of paths to tasks."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.storage_files import is_bag
from vtseg_ros.bags.topics import find_image_topic
from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.fleet import object_store
from vtseg_ros.fleet.jobs import Task
from vtseg_ros.fleet.parts import plan_spans
from vtseg_ros.fleet.urls import Place, Url, parse_place, result_name
from vtseg_ros.text import read_text

PARTS = ".parts"
"""Folder of the results of parts, next to the results."""


def expand_inputs(inputs: Iterable[str], lists: tuple[Path, ...] = ()) -> list[Place]:
    """Return the paths and URLs that inputs name, each once.

    Args:
        inputs: paths, URLs, globs of both, and `.txt` files with one of them per line (`#` starts a comment line).
        lists: `.txt` files that the inputs are from.

    Returns:
        Paths and URLs in the order of the inputs; the matches of a glob are sorted. They need not exist.

    Raises:
        ConfigError: if a list cannot be read, names nothing that exists, or contains itself, a glob matches nothing,
            or no path is left.
    """
    found: list[Place] = []
    for text in inputs:
        place = parse_place(text)
        if isinstance(place, Path) and place.suffix.lower() == ".txt" and place.is_file():
            if place.resolve() in lists:
                raise ConfigError(
                    f"{place}: the list contains itself; expected paths of bags or videos. Remove that line"
                )
            found += expand_inputs(_lines_of(place), (*lists, place.resolve()))
        elif not glob.has_magic(text) or (isinstance(place, Path) and place.exists()):
            found.append(place)
        else:
            matches = _matches(place)
            if not matches:
                raise ConfigError(
                    f"{text}: no path matches; expected a bag, a glob or a .txt list of paths. Correct the pattern"
                )
            found += matches
    if not found:
        raise ConfigError("input: the list is empty; expected at least one path. Add the bags to it")
    return list(dict.fromkeys(found))


def _lines_of(file: Path) -> list[str]:
    """Return the paths, URLs and globs in a list; raise ConfigError if it is another text."""
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except UnicodeDecodeError as err:
        raise ConfigError(
            f"{file}: cannot be read; expected one path per line in UTF-8, got another encoding. Save it as UTF-8"
        ) from err
    except OSError as err:
        raise ConfigError(
            f"{file}: cannot be read ({err.strerror or err}); expected a text file with one path per line"
        ) from err
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines and not any(_exists(line) for line in lines):
        raise ConfigError(
            f"{file}: not a list of bags or videos; expected one path per line, relative to {Path.cwd()}, got "
            f"{lines[0][:60]!r}, which does not exist, nor does any other line. Give a bag or a video, or correct the list"
        )
    return lines


def _exists(line: str) -> bool:
    """Return whether a line names a URL or something on this machine."""
    place = parse_place(line)
    return isinstance(place, Url) or os.path.lexists(place) or bool(glob.glob(str(place), recursive=True))


def _matches(pattern: Place) -> Sequence[Place]:
    if isinstance(pattern, Path):
        return [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    try:
        return object_store.find_matches(pattern)
    except VTSegError:
        return [pattern]  # its task reports it, and the others run


def plan_tasks(
    sources: Sequence[Place], out: Place, image_topic: str = "", *, part_frames: int = 0
) -> list[Task]:
    """Return one task per source. A source that cannot be read becomes a task that fails when it runs.

    Args:
        sources: bags or videos.
        out: folder or URL of the results, one folder per source.
        image_topic: topic whose messages are counted; empty = the only image topic.
        part_frames: split local bags with more frames into parts of this many frames, if their results are local;
            0 = never.

    Returns:
        Tasks in the order of the sources.

    Raises:
        ConfigError: if two sources have the same name.
    """
    tasks: dict[str, Task] = {}
    for source in sources:
        name = result_name(source)
        if name in tasks:
            raise ConfigError(
                f"input: {tasks[name].source} and {source} have the same name; expected different names, since both "
                f"results would be {out / name}. Rename one"
            )
        output = (out.absolute() if isinstance(out, Path) else out) / name
        if isinstance(source, Url):
            tasks[name] = Task(source, output)
        else:
            tasks[name] = _plan(source.absolute(), output, image_topic, part_frames)
    return list(tasks.values())


def _plan(source: Path, output: Place, image_topic: str, part_frames: int) -> Task:
    try:
        if not is_bag(source):
            return Task(source, output)
        with BagReader(source) as bag:
            topic = image_topic or find_image_topic(bag)
            frames = bag.topics[topic].count
            may_split = 0 < part_frames < frames and isinstance(output, Path)
            spans = plan_spans(bag, topic, part_frames) if may_split else []
    except (VTSegError, OSError, KeyError):
        return Task(source, output)  # the task reports it
    if len(spans) < 2 or isinstance(output, Url):
        return Task(source, output, frames)
    folder = output.parent / PARTS / output.name
    counts = [part_frames] * (len(spans) - 1)
    counts.append(max(frames - sum(counts), 0))
    parts = [
        Task(source, folder / f"{start or 'begin'}_{stop or 'end'}", count, (start, stop))
        for (start, stop), count in zip(spans, counts, strict=True)
    ]
    return Task(source, output, frames, parts=tuple(parts))
