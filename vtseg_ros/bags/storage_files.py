# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Find the storage files of a bag. metadata.yaml is only a hint: it may be missing, damaged or out of date."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from rosbags.interfaces import Qos

from vtseg_ros.bags.storage import normal_type, offered_qos
from vtseg_ros.content import is_bag_file
from vtseg_ros.errors import BagError
from vtseg_ros.text import yaml_problem

METADATA = "metadata.yaml"
KINDS = {".mcap": "mcap", ".db3": "sqlite3", ".bag": "rosbag1"}
PACKED = (".zstd", ".zst", ".lz4")


@dataclass(frozen=True)
class TopicHint:
    """Entry of a topic in metadata.yaml.

    Attributes:
        msgtype: Type of the messages.
        count: Number of messages.
        digest: Type hash; empty = not in the file.
        qos: QoS that the publishers offered; empty = not in the file.
    """

    msgtype: str
    count: int
    digest: str
    qos: tuple[Qos, ...]


@dataclass(frozen=True)
class StorageFiles:
    """The storage files of a bag.

    Attributes:
        paths: Storage files, in the order of their names.
        topics: Entries of metadata.yaml by topic; empty without one.
        notes: Problems to log, one line each.
    """

    paths: list[Path]
    topics: dict[str, TopicHint] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def is_bag(path: Path) -> bool:
    """Return whether a path is any folder, or has the name or the content of a storage file; see `holds_bag`.

    Args:
        path: Path, which need not exist.
    """
    return path.is_dir() or kind_of(path.name) is not None or is_bag_file(path)


def holds_bag(path: Path) -> bool:
    """Return whether a path is a folder with a storage file or a metadata.yaml, or is a storage file itself.

    Args:
        path: Existing folder or file.
    """
    if path.is_dir():
        return any(entry.name == METADATA or kind_of(entry.name) for entry in path.iterdir())
    return is_bag(path)


def kind_of(name: str) -> str | None:
    """Return the storage of a file by its name.

    Args:
        name: Name of the file, compressed or not.

    Returns:
        `mcap`, `sqlite3` or `rosbag1`; None for other names.
    """
    name = name.lower()
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    return next((kind for suffix, kind in KINDS.items() if name.endswith(suffix)), None)


def find_storage(path: Path) -> StorageFiles:
    """Find the storage files of a bag.

    Args:
        path: Folder of the bag, or one storage file.

    Returns:
        Storage files, entries of metadata.yaml and problems.

    Raises:
        BagError: If there is none, or one that metadata.yaml lists is missing.
    """
    if path.is_file():
        return StorageFiles([path])
    if not path.is_dir():
        raise BagError(f"no bag at {path}: no such {'file' if kind_of(path.name) else 'folder'}")
    try:
        present = sorted(
            file
            for file in path.iterdir()
            if not file.name.startswith(".") and kind_of(file.name) and file.is_file()
        )
        listed, topics, notes = _read_metadata(path / METADATA)
    except OSError as err:
        raise BagError(f"bag {path} cannot be read: {err.strerror or err}") from err
    paths = [file for file in (_place(path, name) for name in listed) if file is not None]
    if paths and len(paths) < len(listed):
        lost = [name for name in listed if _place(path, name) is None]
        raise BagError(
            f"bag {path}: {METADATA} names files that are not there: {', '.join(lost)}. Restore them, or move {METADATA} "
            "away to read the other files"
        )
    if paths:
        others = {_unpacked(file.name) for file in present} - {_unpacked(file.name) for file in paths}
        if others:
            notes.append(f"{METADATA} does not name {', '.join(sorted(others))}: not read")
        return StorageFiles(paths, topics, notes)
    if not present:
        what = f"{METADATA} and no" if listed or topics or notes else f"neither {METADATA} nor an"
        raise BagError(
            f"{path} is not a bag: it has {what} mcap, sqlite3 or ROS 1 file; expected a folder written by `ros2 bag record`, or "
            "a storage file"
        )
    if len({kind_of(file.name) for file in present}) > 1:
        raise BagError(
            f"bag {path}: it has files of several formats and no {METADATA} that names its own: "
            f"{', '.join(file.name for file in present)}. Give one of these files instead of the folder"
        )
    if listed:
        notes.append(
            f"{METADATA} names {', '.join(listed)}, which is not there: {present[0].name} is read instead"
            if len(present) == 1
            else f"{METADATA} names files that are not there: {len(present)} others are read instead"
        )
    # Players leave the unpacked file next to the compressed one; the compressed one is the original.
    by_name = {_unpacked(file.name): file for file in sorted(present, key=lambda file: len(file.name))}
    return StorageFiles(sorted(by_name.values()), topics, notes)


def _place(folder: Path, name: str) -> Path | None:
    """Return a file that metadata.yaml lists, or its compressed or unpacked form; None if there is none."""
    last = name if (folder / Path(name).name).is_file() else re.split(r"[\\/]", name)[-1]
    last = Path(last).name
    for candidate in (last, *(last + suffix for suffix in PACKED), _unpacked(last)):
        if candidate and (folder / candidate).is_file():
            return folder / candidate
    return None


def _unpacked(name: str) -> str:
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in PACKED else name


def _read_metadata(path: Path) -> tuple[list[str], dict[str, TopicHint], list[str]]:
    """Return file names, topics and notes; empty if there is no such file, a note if it cannot be read."""
    if not path.is_file():
        return [], {}, []
    try:
        text = path.read_text("utf-8-sig", errors="replace")
        content = yaml.safe_load(text)["rosbag2_bagfile_information"]
        topics = {}
        for entry in content.get("topics_with_message_count") or []:
            one = entry["topic_metadata"]
            topics[str(one["name"])] = TopicHint(
                normal_type(str(one["type"])),
                int(entry.get("message_count") or 0),
                str(one.get("type_description_hash") or ""),
                offered_qos(one.get("offered_qos_profiles")),
            )
        return [str(name) for name in content.get("relative_file_paths") or []], topics, []
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
        problem = yaml_problem(err) if isinstance(err, yaml.YAMLError) else "it is not the metadata of a bag"
        return [], {}, [f"{METADATA} cannot be read ({problem}): the storage files are read without it"]
