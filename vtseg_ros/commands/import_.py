# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg import`: convert data sets, image files and videos to bags."""

from __future__ import annotations

import argparse
from pathlib import Path

from vtseg_ros.bags.bag_writer import check_new_bag
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.progress import track
from vtseg_ros.commands.report_files import write_json
from vtseg_ros.errors import ConfigError
from vtseg_ros.importers import camvid, cityscapes, image_folder, vkitti2
from vtseg_ros.importers.dataset_frames import IMAGE_TOPIC, LABEL_TOPIC, DataFrame, write_frames
from vtseg_ros.importers.video_files import Crop, import_videos
from vtseg_ros.label_set import CAMVID, CITYSCAPES, STREET, LabelSet
from vtseg_ros.labelling.masks import UNKNOWN, MaskReader
from vtseg_ros.labelling.palette import open_palette
from vtseg_ros.sizes import parse_size
from vtseg_ros.video.reader import VideoReader

HELP = f"Convert data sets, image files and videos to bags: {IMAGE_TOPIC}, {LABEL_TOPIC} and the class list."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    sets = parser.add_subparsers(
        dest="data_set", required=True, metavar="{cityscapes,vkitti2,camvid,images,video}"
    )
    city = sets.add_parser("cityscapes", help="leftImg8bit_sequence and gtFine; the 19 train ids")
    city.add_argument(
        "--split", choices=cityscapes.SPLITS, default="train", help="split to import (default train)"
    )
    city.add_argument(
        "--before",
        type=int,
        default=3,
        metavar="N",
        help="frames to keep before each labelled one (default 3, for windows of 4)",
    )
    city.add_argument(
        "--after", type=int, default=0, metavar="N", help="frames to keep after each labelled one (default 0)"
    )
    kitti = sets.add_parser("vkitti2", help="Virtual KITTI 2: six variations, 14 classes")
    kitti.add_argument(
        "--split", choices=vkitti2.SPLITS, default="train", help="split to import (default train)"
    )
    kitti.add_argument(
        "--by",
        choices=("scene", "time"),
        default="scene",
        help="split into whole scenes (default; 68, 21 and 11 %% of the frames), or cut each scene in time "
        f"(70, 20 and 10 %%, {vkitti2.GUARD} frames apart)",
    )
    kitti.add_argument("--camera", type=int, choices=(0, 1), default=0, help="0 = left (default), 1 = right")
    cam = sets.add_parser("camvid", help="CamVid with the usual 11 classes")
    cam.add_argument("--list", type=Path, metavar="FILE", help="text file with the image names of a split")
    folder = sets.add_parser(
        "images", help="a folder of png or jpeg files, sorted by the numbers in their names"
    )
    folder.add_argument(
        "--rate", type=float, default=10.0, metavar="HZ", help="frames per second (default 10)"
    )
    folder.add_argument("--frame-id", default="camera", help="frame_id of the images (default camera)")
    folder.add_argument(
        "--masks", type=Path, metavar="DIR", help="folder of labels: png files with the names of the images"
    )
    folder.add_argument(
        "--labels",
        default="",
        metavar="LIST",
        help="class list of the labels: street, camvid, cityscapes or a labelmap.txt",
    )
    clips = sets.add_parser("video", help="video files; keeps the time of each frame")
    clips.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="video files; each becomes a sequence of the bag"
    )
    clips.add_argument("--every", type=int, default=1, metavar="N", help="keep every n-th frame (default 1)")
    clips.add_argument(
        "--start",
        type=float,
        default=0.0,
        metavar="S",
        help="first time to import, s after the first frame of each video",
    )
    clips.add_argument(
        "--end",
        type=float,
        metavar="S",
        help="last time to import, s after the first frame of each video (default: its end)",
    )
    clips.add_argument(
        "--crop",
        type=_parse_crop,
        metavar="W:H:X:Y",
        help="part of the images to keep, px, in the format of ffmpeg's crop",
    )
    clips.add_argument(
        "--quality",
        type=int,
        default=95,
        metavar="Q",
        help="quality of the jpeg images, 1 to 100 (default 95)",
    )
    _add_output(clips)
    folder.add_argument(
        "--unknown",
        choices=UNKNOWN,
        default="refuse",
        help="for pixels of no class (smoothed edges, partly transparent pixels): refuse the mask (default), or "
        "treat them as unlabelled",
    )
    for one in (city, kitti, cam, folder):
        _add_output(one)
        one.add_argument("root", type=Path, help="the data set's folder")
        one.add_argument("--jpeg", action="store_true", help="store images as jpeg (quality 95)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="BAG", help="bag to create")
    parser.add_argument("--size", type=parse_size, metavar="WxH", help="resize images and labels")
    parser.add_argument(
        "--storage", choices=("mcap", "sqlite3"), default="mcap", help="storage of the new bag (default mcap)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="JSON file to write: a summary of the new bag"
    )


def _parse_crop(text: str) -> Crop:
    try:
        return Crop.parse(text)
    except ConfigError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    check_new_bag(args.out)
    if args.data_set == "video":
        return _import_videos(args)
    reader = _mask_reader(args)
    frames, labels = _find(args, reader)
    with interrupts.unwritten(args.out), track(len(frames), "importing") as advance:
        write_frames(
            args.out, frames, labels, size=args.size, jpeg=args.jpeg, storage=args.storage, on_frame=advance
        )
    labelled = sum(frame.label is not None for frame in frames)
    sequences = len({frame.frame_id for frame in frames})
    print(f"{args.out}: {len(frames)} frames, {labelled} of them labelled, in {sequences} sequences")
    notes = reader.summary(reader.read) if reader else []
    for line in notes:
        print(f"  {line}")
    if args.json:
        made = {
            "bag": str(args.out),
            "frames": len(frames),
            "labelled": labelled,
            "sequences": sequences,
            "notes": notes,
        }
        write_json(args.json, made)
    return 0


def _import_videos(args: argparse.Namespace) -> int:
    if args.every < 1:
        raise ConfigError(f"--every: expected at least 1, got {args.every}")
    if not 1 <= args.quality <= 100:
        raise ConfigError(f"--quality: expected 1 to 100, got {args.quality}")
    if args.start < 0 or (args.end is not None and args.end <= args.start):
        raise ConfigError(f"--start, --end: expected 0 <= start < end, got {args.start:g} and {args.end}")
    total = 0
    for path in args.files:
        with VideoReader(path) as video:
            total += -(-video.frame_count // args.every)
    with interrupts.unwritten(args.out), track(total, "importing") as advance:
        done = import_videos(
            args.out,
            args.files,
            every=args.every,
            start_s=args.start,
            end_s=args.end,
            crop=args.crop,
            size=args.size,
            quality=args.quality,
            storage=args.storage,
            on_frame=advance,
        )
    written = sum(video.written for video in done)
    print(f"{args.out}: {written} frames in {len(done)} sequences")
    damaged = [video for video in done if video.damage]
    for one in damaged:
        print(f"  {one.path}: damaged after {one.read} frames: {one.damage}")
    if args.json:
        made = {
            "bag": str(args.out),
            "frames": written,
            "labelled": 0,
            "sequences": len(done),
            "damaged": {str(video.path): video.damage for video in damaged},
        }
        write_json(args.json, made)
    return 0


def _mask_reader(args: argparse.Namespace) -> MaskReader | None:
    """Return the reader of the masks in a folder, with the class list given by the user; None = no masks."""
    if args.data_set != "images" or not args.labels:
        return None
    return MaskReader(open_palette(args.labels), args.unknown)


def _find(args: argparse.Namespace, reader: MaskReader | None) -> tuple[list[DataFrame], LabelSet | None]:
    if args.data_set == "cityscapes":
        if args.before < 0 or args.after < 0:
            raise ConfigError(
                f"--before, --after: out of range; expected at least 0, got {args.before}, {args.after}"
            )
        return cityscapes.find_frames(args.root, args.split, before=args.before, after=args.after), CITYSCAPES
    if args.data_set == "vkitti2":
        return vkitti2.find_frames(args.root, args.split, by=args.by, camera=args.camera), STREET
    if args.data_set == "camvid":
        return camvid.find_frames(args.root, names=args.list), CAMVID
    if args.masks and not args.labels:
        raise ConfigError("--masks: no class list; expected one for the labels, got none. Add --labels")
    frames = image_folder.find_frames(
        args.root, rate_hz=args.rate, frame_id=args.frame_id, labels=args.masks, reader=reader
    )
    palette = reader.palette if reader else None
    return frames, palette.labels if palette else None
