"""`vtseg select`: choose the frames of unlabelled bags to label next."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vtseg_ros.bags.bag import BagReader
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.progress import track
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.inference.devices import resolve_device
from vtseg_ros.labelling.frame_files import read_frames, require_image_topic, write_frame
from vtseg_ros.labelling.label_files import CLASS_LIST, frame_name
from vtseg_ros.labelling.palette import format_palette
from vtseg_ros.model.checkpoint import load_checkpoint
from vtseg_ros.selection import SCORES, FrameScorer, choose, combined_score

HELP = "Choose the frames of unlabelled bags to label next: uncertain and diverse ones."
TILE = (240, 180)
"""Width and height of the images in a contact sheet, px."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("bags", type=Path, nargs="+", metavar="BAG")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--count", type=int, default=50, help="frames to choose (default %(default)s)")
    parser.add_argument("--checkpoint", default="street_tiny", help="shipped weights by name, or a file")
    parser.add_argument(
        "--score",
        choices=("combined", *SCORES),
        default="combined",
        help="combined = mean rank of the others",
    )
    parser.add_argument(
        "--spacing", type=float, default=1.0, help="s; least time between chosen frames of a bag"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="score every N-th frame")
    parser.add_argument("--image-topic", default="", help="image topic; required if a bag has several")
    parser.add_argument("--device", default="auto")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    _check_arguments(args)
    scorer = FrameScorer(load_checkpoint(args.checkpoint, device=resolve_device(args.device)))
    frames, features, left_out = _score_bags(args, scorer)
    if not frames:
        raise BagError(f"{args.bags[0]}: no frame could be scored" + (f": {left_out[0]}" if left_out else ""))
    for frame, value in zip(frames, combined_score([frame["scores"] for frame in frames]), strict=True):
        frame["scores"]["combined"] = float(value)
    chosen = choose(
        np.array([frame["scores"][args.score] for frame in frames]),
        np.stack(features),
        [frame["bag"] for frame in frames],
        [frame["stamp_ns"] for frame in frames],
        count=args.count,
        spacing_s=args.spacing,
    )
    for place, index in enumerate(chosen):
        frames[index]["chosen"] = place
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with (
        interrupts.unwritten(args.out),
        tempfile.TemporaryDirectory(prefix=".vtseg_select_", dir=args.out.parent) as scratch,
    ):
        made = Path(scratch) / "selection"  # a failure leaves nothing behind
        _write_results(args, made, scorer, [frames[index] for index in chosen], frames, left_out)
        made.rename(args.out)
    print(f"{len(chosen)} of {len(frames)} scored frames in {args.out}")
    if len(chosen) < args.count:
        print(f"  fewer than --count {args.count}: no other frame keeps --spacing {args.spacing:g} s")
    for line in left_out[:5]:
        print(f"  left out: {line}")
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    for name in ("count", "every"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name}: out of range; expected at least 1, got {getattr(args, name)}")
    if not (math.isfinite(args.spacing) and args.spacing >= 0):
        raise ConfigError(f"--spacing: out of range; expected seconds of at least 0, got {args.spacing}")
    if args.out.exists():
        raise ConfigError(f"{args.out}: exists; expected a new folder. Nothing is overwritten")
    names = [bag.resolve().stem for bag in args.bags]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(
            f"BAG: two bags are named {twice}; expected different names, since each gets a folder"
        )


def _score_bags(
    args: argparse.Namespace, scorer: FrameScorer
) -> tuple[list[dict[str, Any]], list[np.ndarray], list[str]]:
    frames: list[dict[str, Any]] = []
    features: list[np.ndarray] = []
    left_out: list[str] = []
    for number, path in enumerate(args.bags):
        scorer.reset()
        with BagReader(path) as bag:
            topic = require_image_topic(bag, args.image_topic)
            total = bag.topics[topic].count
            with track(total, f"scoring {path.name}") as advance:
                for message, (stamp_ns, image) in enumerate(read_frames(bag, topic, range(total))):
                    advance()
                    if isinstance(image, str):
                        left_out.append(f"{path}: frame at {stamp_ns} ns: {image}")
                        continue
                    scorer.add(image, stamp_ns)
                    if message % args.every:
                        continue
                    scores, pooled = scorer.score()
                    frames.append({"bag": number, "message": message, "stamp_ns": stamp_ns, "scores": scores})
                    features.append(pooled)
    return frames, features, left_out


def _write_results(
    args: argparse.Namespace,
    out: Path,
    scorer: FrameScorer,
    chosen: list[dict[str, Any]],
    frames: list[dict[str, Any]],
    left_out: list[str],
) -> None:
    tiles: dict[int, np.ndarray] = {}
    out.mkdir()
    for number, path in enumerate(args.bags):
        own = {frame["message"]: frame for frame in chosen if frame["bag"] == number}
        if not own:
            continue
        folder = out / path.resolve().stem
        folder.mkdir()
        (folder / CLASS_LIST).write_text(format_palette(scorer.checkpoint.labels))
        with BagReader(path) as bag:
            topic = require_image_topic(bag, args.image_topic)
            for message, (stamp_ns, image) in zip(sorted(own), read_frames(bag, topic, own), strict=True):
                if isinstance(image, str):
                    raise BagError(f"{path}: frame at {stamp_ns} ns: {image}; it changed while it was read")
                write_frame(folder / frame_name(stamp_ns), image)
                tiles[own[message]["chosen"]] = cv2.resize(image, TILE, interpolation=cv2.INTER_AREA)
    write_frame(out / "contact_sheet.png", _contact_sheet([tiles[place] for place in sorted(tiles)]))
    found = {
        "checkpoint": str(args.checkpoint),
        "score": args.score,
        "spacing_s": args.spacing,
        "bags": [str(path) for path in args.bags],
        "frames": frames,
        "left_out": left_out,
    }
    (out / "scores.json").write_text(json.dumps(found, indent=1) + "\n")


def _contact_sheet(tiles: list[np.ndarray]) -> np.ndarray:
    """Arrange tiles (h, w, 3) uint8 in the order of choice, row by row, in a nearly square grid."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = TILE
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for place, tile in enumerate(tiles):
        top, left = place // columns * height, place % columns * width
        sheet[top : top + height, left : left + width] = tile
    return sheet
