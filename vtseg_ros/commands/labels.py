# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg labels`: frames of a bag out for labelling, label images back in."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from vtseg_ros.bags.bag import BagReader, check_new_bag
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, header_stamp
from vtseg_ros.bags.topics import image_topics, read_label_set
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.progress import track
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.labelling.frame_files import read_frames, require_image_topic, write_frame
from vtseg_ros.labelling.label_files import CLASS_LIST, LabelFiles, frame_name, open_label_files
from vtseg_ros.labelling.masks import UNKNOWN
from vtseg_ros.labelling.merge import check_labels, merge, place_images
from vtseg_ros.labelling.palette import format_palette, open_palette

HELP = "Frames of a bag out for labelling, and label images back into a copy of the bag."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{extract,merge}")
    extract = actions.add_parser("extract", help="write frames as PNG files whose names carry their stamps")
    extract.add_argument("bag", type=Path)
    extract.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    which = extract.add_mutually_exclusive_group()
    which.add_argument(
        "--every", type=int, metavar="N", help="every N-th frame, from the first on (default 25)"
    )
    which.add_argument("--count", type=int, metavar="N", help="N frames, evenly spaced over the bag")
    extract.add_argument("--image-topic", default="", help="image topic; required if the bag has several")
    join = actions.add_parser("merge", help="write a copy of the bag that has the labels too")
    join.add_argument("bag", type=Path)
    join.add_argument(
        "masks",
        type=Path,
        metavar="DIR_OR_ZIP",
        help="PNG files of class ids or colours, a CVAT export (Segmentation mask 1.1), or a Label Studio "
        "export (Brush labels to PNG, its JSON export beside it)",
    )
    join.add_argument("--out", type=Path, required=True, metavar="BAG", help="bag to make")
    join.add_argument(
        "--labels",
        default="",
        metavar="LIST",
        help="class list: street, camvid, cityscapes or a labelmap.txt (default: the export's, then the "
        "bag's)",
    )
    join.add_argument("--image-topic", default="", help="image topic; required if the bag has several")
    join.add_argument(
        "--topic", default="/camera/label/compressed", help="of the labels (default %(default)s)"
    )
    join.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap")
    join.add_argument(
        "--skip-refused", action="store_true", help="merge the others when some files cannot be used"
    )
    join.add_argument(
        "--unknown",
        choices=UNKNOWN,
        default="refuse",
        help="pixels of no class (smoothed edges, half transparent ones): refuse the file (default), or "
        "take them as unlabelled",
    )
    for action in (extract, join):
        action.add_argument("--json", type=Path, metavar="FILE")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    return {"extract": _extract, "merge": _merge}[args.action](args)


def _chosen(args: argparse.Namespace, total: int) -> set[int]:
    """Numbers of the messages to extract."""
    for name in ("every", "count"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name}: out of range; expected at least 1, got {getattr(args, name)}")
    if args.count is not None:
        return set(np.linspace(0, total - 1, min(args.count, total)).round().astype(int).tolist())
    return set(range(0, total, args.every or 25))


def _extract(args: argparse.Namespace) -> int:
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ConfigError(f"{args.out} exists and is not an empty folder: nothing is overwritten")
    written: list[str] = []
    left_out: list[str] = []
    with BagReader(args.bag) as bag:
        topic = require_image_topic(bag, args.image_topic)
        chosen = _chosen(args, bag.topics[topic].count)
        labels = read_label_set(bag)
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            with interrupts.deferred() as stop, track(len(chosen), "extracting") as advance:
                for stamp, result in read_frames(bag, topic, chosen):
                    if stop:
                        raise KeyboardInterrupt(
                            f"{len(written)} of {len(chosen)} frames were written to {args.out}"
                        )
                    advance()
                    if isinstance(result, str):
                        left_out.append(f"frame at stamp {stamp} ns: {result}")
                        continue
                    write_frame(args.out / frame_name(stamp), result)
                    written.append(frame_name(stamp))
            missing = sum(bag.missing.values())
            if labels is not None:
                (args.out / CLASS_LIST).write_text(format_palette(labels))
        except OSError as err:
            raise ConfigError(f"frames cannot be written to {args.out}: {err.strerror or err}") from err
    print(f"{len(written)} frames of {args.bag} in {args.out}")
    for line in left_out:
        print(f"  left out: {line}")
    if labels is not None:
        print(f"  {CLASS_LIST} holds the bag's class list")
    if args.json:
        found = {"frames": written, "left_out": left_out, "messages_missing": missing}
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    if not written:
        raise BagError(f"bag {args.bag}: none of the {len(chosen)} frames could be extracted")
    return 0


def _merge(args: argparse.Namespace) -> int:
    check_new_bag(args.out)
    with interrupts.unwritten(args.out), BagReader(args.bag) as bag:
        topic, own = require_image_topic(bag, args.image_topic), read_label_set(bag)
        taken = _stamps(bag, args.topic) if args.topic in bag.topics else set()
        named = open_palette(args.labels) if args.labels else None
        with open_label_files(args.masks, named, own, args.unknown) as found:
            places = place_images(bag, topic, {file.stamp_ns for file in found.files})
            good, refused = check_labels(found.files, places, taken)
            refused = found.refused + refused
            _tell_refused(refused, args, found)
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
        print(f"  left out: topic {name}, of a type whose definition is not in the bag")
    for name in others:
        print(f"  there are labels on {name} too: name one of the two as label_topic in a training")
    if labels is None:
        print("  without a class list: name the classes in the training's data.class_names")
    if args.json:
        told = [{"file": name, "reason": reason} for name, reason in refused]
        args.json.write_text(
            json.dumps(
                {
                    "labels": len(good),
                    "refused": told,
                    "topics_left_out": lost,
                    "messages_missing": missing,
                    "notes": notes,
                },
                indent=2,
            )
        )
    return 0


def _stamps(bag: BagReader, topic: str) -> set[int]:
    if bag.topics[topic].msgtype != COMPRESSED_IMAGE:
        raise ConfigError(
            f"{topic} of bag {bag.path} is of type {bag.topics[topic].msgtype}. Choose another --topic"
        )
    return {header_stamp(data) for _, _, _, data in bag.raw([topic])}


def _tell_refused(refused: list[tuple[str, str]], args: argparse.Namespace, found: LabelFiles) -> None:
    for name, reason in refused:
        print(f"vtseg labels: refused {name}: {reason}", file=sys.stderr)
    if refused and not args.skip_refused:
        total = len({name for name, _ in refused} | {file.name for file in found.files})
        raise ConfigError(
            f"{len(refused)} of {total} files in {args.masks} cannot be used, as said above; nothing was written. "
            "Mend or remove them, or merge the others with --skip-refused"
        )
