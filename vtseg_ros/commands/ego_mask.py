# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg ego-mask`: propose the mask of the robot's own body from a bag or a video."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.storage_files import is_bag
from vtseg_ros.bags.topics import require_image_topic
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.progress import track
from vtseg_ros.commands.report_files import write_json
from vtseg_ros.errors import BagError, ConfigError, ImageError
from vtseg_ros.files import write_atomically
from vtseg_ros.labelling.own_body import preview, propose_ego_mask
from vtseg_ros.video.reader import VideoReader

HELP = "Propose the mask of the robot's own body (and of black borders) from many frames of a moving camera."
FRAMES = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("input", type=Path, help="a bag's folder or a video file")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PNG",
        help="mask to write, the robot's body in white; a preview is written to NAME_preview.jpg",
    )
    parser.add_argument("--image-topic", default="", help="image topic; required if a bag has several")
    parser.add_argument(
        "--every",
        type=int,
        default=0,
        metavar="N",
        help=f"use every n-th frame (default: about {FRAMES} frames, evenly spaced)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="share of the median deviation over time below which a pixel is static; a larger share gives a "
        "larger mask (default 0.25)",
    )
    parser.add_argument(
        "--top",
        action="store_true",
        help="include static regions of the upper half, such as a roof or a mast; a clear sky is static too",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="JSON file to write")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    shown = args.out.with_name(f"{args.out.stem}_preview.jpg")
    for path in (args.out, shown):
        if path.exists():
            raise ConfigError(f"{path} exists: nothing is overwritten. Remove it or choose another name")
    if args.out.suffix.lower() != ".png":
        raise ConfigError(f"--out: expected a file name that ends in .png, got {args.out}")
    if args.every < 0:
        raise ConfigError(f"--every: expected at least 1, or 0 for about {FRAMES} frames, got {args.every}")
    if not 0 < args.threshold < 1:
        raise ConfigError(f"--threshold: expected more than 0 and less than 1, got {args.threshold:g}")
    if not args.input.exists():
        raise BagError(f"{args.input}: no such file; expected a bag or a video. Correct the path")
    images = _of_bag if is_bag(args.input) else _of_video
    with interrupts.unwritten(args.out):
        found = propose_ego_mask(images(args), threshold=args.threshold, top=args.top)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_atomically(shown, cv2.imencode(".jpg", preview(found)[..., ::-1])[1].tobytes())
            write_atomically(args.out, cv2.imencode(".png", found.mask.astype(np.uint8) * 255)[1].tobytes())
        except BaseException:
            for path in (args.out, shown):  # both or none
                path.unlink(missing_ok=True)
            raise
    share = float(found.mask.mean())
    print(f"{args.out}: {100 * share:.1f} % of the image is masked, from {found.frames} frames")
    if found.still:
        print(f"  {found.still} frames equal the previous one and were not used")
    print(f"  check {shown}; correct the mask in an image editor if needed")
    if args.json:
        made = {"mask": str(args.out), "preview": str(shown), "share": share, "frames": found.frames}
        write_json(args.json, {**made, "still": found.still})
    return 0


def _every(args: argparse.Namespace, total: int) -> int:
    return args.every or max(1, total // FRAMES)


def _of_bag(args: argparse.Namespace) -> Iterator[np.ndarray]:
    with BagReader(args.input) as bag:
        topic = require_image_topic(bag, args.image_topic)
        total = bag.topics[topic].count
        every, decode = _every(args, total), ImageDecoder(topic)
        with track(total, "reading") as advance:
            for number, (_, _, message) in enumerate(bag.messages([topic], on_corrupt=lambda *_: None)):
                advance()
                if number % every:
                    continue
                try:
                    yield decode(message)
                except ImageError:  # one frame less
                    continue


def _of_video(args: argparse.Namespace) -> Iterator[np.ndarray]:
    with VideoReader(args.input) as video:
        every = _every(args, video.frame_count)
        with track(-(-video.frame_count // every), "reading") as advance:
            yield from _counted(video, every, advance)


def _counted(video: VideoReader, every: int, advance: Callable[[], None]) -> Iterator[np.ndarray]:
    for frame in video.frames(every):
        advance()
        yield frame.image
