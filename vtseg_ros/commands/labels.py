# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg labels`: frames of a bag out for labelling, label images back in."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import check_new_bag
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, header_stamp
from vtseg_ros.bags.topics import image_topics, read_label_set, require_image_topic
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.fleet_job import add_ray_arguments, exit_code, run_job, write_outcomes
from vtseg_ros.commands.progress import Tracker, reporting_to, track
from vtseg_ros.commands.report_files import write_json
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.fleet import Task, Url, expand_inputs, parse_place, plan_tasks
from vtseg_ros.labelling.frame_files import read_frames, write_frame
from vtseg_ros.labelling.label_files import CLASS_LIST, LabelFiles, frame_name, open_label_files
from vtseg_ros.labelling.masks import UNKNOWN
from vtseg_ros.labelling.merge import check_labels, merge, place_images
from vtseg_ros.labelling.palette import format_palette, open_palette
from vtseg_ros.topic_names import check_topic

HELP = "Extract frames of a bag for labelling, and merge label images into a copy of the bag."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{extract,merge}")
    extract = actions.add_parser("extract", help="write frames as PNG files whose names contain the stamps")
    extract.add_argument(
        "bag", nargs="+", help="a bag; several, globs, a .txt list of paths or URLs (s3://...) make a job"
    )
    extract.add_argument(
        "--out",
        type=parse_place,
        required=True,
        metavar="DIR",
        help="folder to create; for a job, a folder or URL",
    )
    which = extract.add_mutually_exclusive_group()
    which.add_argument("--every", type=int, metavar="N", help="extract every N-th frame (default 25)")
    which.add_argument("--count", type=int, metavar="N", help="extract N frames, evenly spaced over the bag")
    extract.add_argument("--image-topic", default="", help="image topic; required if a bag has several")
    add_ray_arguments(extract)
    join = actions.add_parser("merge", help="write a copy of the bag that also contains the labels")
    join.add_argument("bag", type=Path, help="bag to copy")
    join.add_argument(
        "masks",
        type=Path,
        metavar="DIR_OR_ZIP",
        help="PNG files of class ids or colours, a CVAT export (Segmentation mask 1.1), or a Label Studio "
        "export (Brush labels to PNG, with its JSON export in the same folder)",
    )
    join.add_argument("--out", type=Path, required=True, metavar="BAG", help="bag to create")
    join.add_argument(
        "--labels",
        default="",
        metavar="LIST",
        help="class list: street, camvid, cityscapes or a labelmap.txt (default: the export's, then the "
        "bag's)",
    )
    join.add_argument("--image-topic", default="", help="image topic; required if a bag has several")
    join.add_argument(
        "--topic", default="/camera/label/compressed", help="topic of the labels (default %(default)s)"
    )
    join.add_argument(
        "--storage", choices=("mcap", "sqlite3"), default="mcap", help="storage of the new bag (default mcap)"
    )
    join.add_argument(
        "--skip-refused", action="store_true", help="merge the other files if some cannot be used"
    )
    join.add_argument(
        "--unknown",
        choices=UNKNOWN,
        default="refuse",
        help="for pixels of no class (smoothed edges, partly transparent pixels): refuse the file (default), or "
        "treat them as unlabelled",
    )
    for action in (extract, join):
        action.add_argument("--json", type=Path, metavar="FILE", help="JSON file to write")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    return {"extract": _extract, "merge": _merge}[args.action](args)


def _check_steps(args: argparse.Namespace) -> None:
    for name in ("every", "count"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name}: out of range; expected at least 1, got {getattr(args, name)}")


def _chosen(args: argparse.Namespace, total: int) -> set[int]:
    """Return the numbers of the messages to extract."""
    if args.count is not None:
        return set(np.linspace(0, total - 1, min(args.count, total)).round().astype(int).tolist())
    return set(range(0, total, args.every or 25))


@dataclass(frozen=True)
class ExtractJob:
    """Frames of bags as PNG files, each bag in a folder.

    Args:
        args: of `vtseg labels extract`.
    """

    args: argparse.Namespace

    @property
    def checkpoints(self) -> list[str]:
        """See `Job.checkpoints`."""
        return []

    def settings(self) -> dict[str, Any]:
        """See `Job.settings`."""
        return {name: getattr(self.args, name) for name in ("every", "count", "image_topic")}

    def load(self) -> bool:
        """See `Job.load`."""
        return True

    def process(self, loaded: bool, task: Task, folder: Path, on_frame: Callable[[], None]) -> dict[str, Any]:
        """See `Job.process`."""
        found = _extract_frames(self.args, task.path, folder, reporting_to(on_frame))
        if not found.written:
            raise BagError(
                f"{task.source}: no frame could be extracted"
                + "".join(f": {one}" for one in found.left_out[:1])
            )
        return {**found.summary(), "frames": len(found.written)}


@dataclass(frozen=True)
class _Extracted:
    written: list[str]
    left_out: list[str]
    missing: int
    named: bool
    """Whether the class list was written."""

    def summary(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return {"frames": self.written, "left_out": self.left_out, "messages_missing": self.missing}


def _extract(args: argparse.Namespace) -> int:
    _check_steps(args)
    sources = expand_inputs(args.bag)
    only = parse_place(args.bag[0])
    if args.ray or sources != [only] or isinstance(only, Url) or isinstance(args.out, Url):
        outcomes = run_job(ExtractJob(args), plan_tasks(sources, args.out, args.image_topic), args)
        if args.json:
            write_outcomes(args.json, outcomes)
        return exit_code(outcomes)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ConfigError(
            f"--out: {args.out} exists; expected a new or empty folder. Remove it or choose another --out"
        )
    absent = not args.out.exists()
    found = _extract_frames(args, only, args.out, track)
    if absent and not found.written:
        shutil.rmtree(args.out, ignore_errors=True)
    print(f"{len(found.written)} frames of {only} in {args.out}")
    for line in found.left_out:
        print(f"  left out: {line}")
    if found.named:
        print(f"  {CLASS_LIST} contains the bag's class list")
    if args.json:
        write_json(args.json, found.summary())
    if not found.written:
        raise BagError(f"bag {only}: none of the {len(found.left_out)} frames could be extracted")
    return 0


def _extract_frames(args: argparse.Namespace, path: Path, out: Path, tracker: Tracker) -> _Extracted:
    written: list[str] = []
    left_out: list[str] = []
    with BagReader(path) as bag:
        topic = require_image_topic(bag, args.image_topic)
        chosen = _chosen(args, bag.topics[topic].count)
        labels = read_label_set(bag)
        try:
            out.mkdir(parents=True, exist_ok=True)
            with interrupts.deferred() as stop, tracker(len(chosen), "extracting") as advance:
                for stamp, result in read_frames(bag, topic, chosen):
                    if stop:
                        if not written and not any(out.iterdir()):
                            out.rmdir()
                            raise KeyboardInterrupt(f"{out} was not written")
                        raise KeyboardInterrupt(
                            f"{len(written)} of {len(chosen)} frames were written to {out}; to extract all, remove it and "
                            "run the command again"
                        )
                    advance()
                    if isinstance(result, str):
                        left_out.append(f"frame at stamp {stamp} ns: {result}")
                        continue
                    write_frame(out / frame_name(stamp), result)
                    written.append(frame_name(stamp))
            missing = sum(bag.missing.values())
            if labels is not None:
                (out / CLASS_LIST).write_text(format_palette(labels))
        except OSError as err:
            raise ConfigError(f"--out: frames cannot be written to {out}: {err.strerror or err}") from err
    return _Extracted(written, left_out, missing, labels is not None)


def _merge(args: argparse.Namespace) -> int:
    check_new_bag(args.out)
    check_topic("--topic", args.topic)
    with interrupts.unwritten(args.out), BagReader(args.bag) as bag:
        topic, own = require_image_topic(bag, args.image_topic), read_label_set(bag)
        taken = _stamps(bag, args.topic) if args.topic in bag.topics else set()
        named = open_palette(args.labels) if args.labels else None
        with open_label_files(args.masks, named, own, args.unknown) as found:
            places = place_images(bag, topic, {file.stamp_ns for file in found.files})
            good, refused = check_labels(found.files, places, taken)
            refused = found.refused + refused
            _report_refused(refused, args, found)
            if not good:
                raise ConfigError(
                    f"{args.masks}: none of its {found.kind} files can be merged; nothing was written"
                )
            labels = found.palette.labels if found.palette else None
            others = [name for name in image_topics(bag) if "label" in name and name != args.topic]
            total = sum(info.count for info in bag.topics.values())
            with track(total, "merging") as advance:
                lost = merge(
                    bag,
                    args.out,
                    good,
                    places,
                    topic=args.topic,
                    labels=None if own else labels,
                    storage=args.storage,
                    on_message=advance,
                )
            missing = sum(bag.missing.values())
    print(f"{args.out}: {len(good)} labels on {args.topic}, from {found.kind} files")
    notes = found.reader.summary(file.name for file in good)
    for line in notes:
        print(f"  {line}")
    for name in lost:
        print(f"  left out: topic {name}, because the bag does not contain the definition of its type")
    for name in others:
        print(f"  {name} also contains labels: set label_topic in the training configuration")
    if labels is None:
        print("  no class list: set data.class_names in the training configuration")
    if args.json:
        reasons = [{"file": name, "reason": reason} for name, reason in refused]
        write_json(
            args.json,
            {
                "labels": len(good),
                "refused": reasons,
                "topics_left_out": lost,
                "messages_missing": missing,
                "notes": notes,
            },
        )
    return 0


def _stamps(bag: BagReader, topic: str) -> set[int]:
    if bag.topics[topic].msgtype != COMPRESSED_IMAGE:
        raise ConfigError(
            f"--topic: {topic} has another type in bag {bag.path}; expected {COMPRESSED_IMAGE}, "
            f"got {bag.topics[topic].msgtype}. Choose another topic"
        )
    return {header_stamp(data) for _, _, _, data in bag.raw([topic])}


def _report_refused(refused: list[tuple[str, str]], args: argparse.Namespace, found: LabelFiles) -> None:
    for name, reason in refused:
        print(f"vtseg labels: refused {name}: {reason}", file=sys.stderr)
    if refused and not args.skip_refused:
        total = len({name for name, _ in refused} | {file.name for file in found.files})
        raise ConfigError(
            f"{args.masks}: {len(refused)} of {total} files cannot be used, see above; nothing was written. "
            "Correct or remove them, or merge the others with --skip-refused"
        )
