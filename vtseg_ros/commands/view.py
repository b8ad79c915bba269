# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg view`: images, masks, confidence and latency in the Rerun viewer."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vtseg_ros import DEFAULT_CHECKPOINT
from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.bags.storage_files import holds_bag
from vtseg_ros.bags.topics import image_topics, read_label_set
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.frame_source import open_source, require_source, source_argument
from vtseg_ros.commands.progress import track
from vtseg_ros.errors import BagError, ConfigError, ImageError
from vtseg_ros.topic_names import is_of_segmenter
from vtseg_ros.viewing import WEB_PORT, Recording

if TYPE_CHECKING:
    from vtseg_ros.inference import VideoPredictor

HELP = (
    "Show images, masks, confidence and latency of a bag, a video or a running segmenter in the Rerun viewer."
)
STATUS = "vtseg_ros/msg/SegmentationStatus"
LATENCIES = ("queue", "preprocess", "inference", "total")
KINDS = {"mask": "mask", "mask/compressed": "mask", "confidence": "confidence", "status": "status"}
"""A segmenter's topics that are shown, by their names behind `segmentation/`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "source",
        type=source_argument,
        nargs="?",
        metavar="SOURCE",
        help="a bag, a video, a folder or quoted glob of images, a stream (rtsp://...) or a camera (/dev/video0)",
    )
    parser.add_argument(
        "--topics",
        metavar="IMAGE_TOPIC",
        nargs="?",
        const="/camera/image",
        help="show a running segmenter and this image topic (default /camera/image); needs ROS 2",
    )
    parser.add_argument("--namespace", default="", help="namespace of the segmenter, for --topics")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="stop after this time, for --topics (default: Ctrl-C)"
    )
    parser.add_argument(
        "--masks", type=Path, metavar="BAG", help="bag with the masks of SOURCE, as written by vtseg segment"
    )
    parser.add_argument(
        "--checkpoint",
        default="",
        help="segment the images with this checkpoint (default: show the masks in the bag; if it has none, "
        f"{DEFAULT_CHECKPOINT})",
    )
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N (default auto)"
    )
    parser.add_argument("--image-topic", default="", help="image topic; required if a bag has several")
    parser.add_argument("--frames", type=int, metavar="N", help="segment the first N frames only")
    parser.add_argument(
        "--save", type=Path, metavar="FILE.rrd", help="write a recording instead of starting a viewer"
    )
    parser.add_argument("--web", action="store_true", help="serve the viewer for a browser until Ctrl-C")
    parser.add_argument(
        "--port",
        type=int,
        default=WEB_PORT,
        help=f"port of the web viewer (default {WEB_PORT}); the next port serves the data",
    )


def run(args: argparse.Namespace) -> int:
    """Show or save a recording."""
    if (args.source is None) == (args.topics is None):
        raise ConfigError(
            "SOURCE: expected a bag, a video or --topics, got " + ("both" if args.source else "nothing")
        )
    if args.save and args.web:
        raise ConfigError(
            "--save and --web exclude each other; expected one, got both. Open the file with: rerun FILE.rrd"
        )
    if args.masks and (args.checkpoint or args.topics):
        raise ConfigError(
            "--masks: shows recorded masks; expected neither --checkpoint nor --topics, got one. Leave it out"
        )
    if args.topics is not None:
        return _run_live(args)
    for path in filter(None, (args.source, args.masks)):
        require_source(path)
    with ExitStack() as stack:
        recorded = None
        if args.masks or (isinstance(args.source, Path) and holds_bag(args.source) and not args.checkpoint):
            recorded = stack.enter_context(BagReader(args.masks or args.source))
            if not _segmenter_topics(recorded):
                if args.masks:
                    raise BagError(
                        f"--masks {args.masks}: no masks; expected a segmenter's topics, got {', '.join(recorded.topics)}"
                    )
                recorded = None
        segmenter = None
        if recorded is None:
            from vtseg_ros.inference import VideoPredictor  # imports torch, which recorded masks do not need

            segmenter = VideoPredictor(args.checkpoint or DEFAULT_CHECKPOINT, device=args.device)
        recording = stack.enter_context(Recording(save=args.save, web=args.web, port=args.port))
        left_out: list[str] = []
        if recorded is not None:
            _log_recorded(args, recorded, recording, left_out)
        elif segmenter is not None:
            _log_segmented(args, segmenter, recording, left_out)
        if not recording.counts:
            raise BagError(f"{args.source}: nothing to show" + (f": {left_out[0]}" if left_out else ""))
        _report(recording, left_out)
        if args.web:
            print(f"open {recording.url} in a browser; Ctrl-C ends")
            threading.Event().wait()
    if args.save:
        print(f"{args.save}: open it with: rerun {args.save}")
    return 0


def _report(recording: Recording, left_out: list[str]) -> None:
    print(", ".join(f"{number} {entity}" for entity, number in sorted(recording.counts.items())))
    if left_out:
        print(f"{len(left_out)} messages left out")
    for line in left_out[:5]:
        print(f"  {line}")


def _segmenter_topics(bag: BagReader) -> dict[str, tuple[str, str]]:
    """Return camera and kind of each topic with masks, confidence or status; of two transports, only the raw one."""
    found: dict[tuple[str, str], str] = {}
    for name, info in bag.topics.items():
        base, _, last = name.rpartition("segmentation/")
        if not is_of_segmenter(name) or last not in KINDS or not info.count:
            continue
        if (last == "status") != (info.msgtype == STATUS) or (
            last != "status" and name not in image_topics(bag)
        ):
            continue
        key = base.strip("/") or "camera", KINDS[last]
        found[key] = min(found.get(key, name), name, key=len)
    return {name: key for key, name in found.items()}


def _log_recorded(
    args: argparse.Namespace, bag: BagReader, recording: Recording, left_out: list[str]
) -> None:
    """Log the topics of a segmenter in a bag, and the images of the source."""
    topics = _segmenter_topics(bag)
    labels = read_label_set(bag, of_masks=True)
    cameras = sorted({camera for camera, _ in topics.values()})
    if labels is not None:
        for camera in cameras:
            recording.log_labels(labels, camera)
    decoders = {name: ImageDecoder(name) for name in topics}

    def corrupt(topic: str, time_ns: int, reason: str) -> None:
        left_out.append(f"{topic} at {time_ns / 1e9:.3f} s: {reason}")

    with interrupts.deferred() as stop:
        for stamp_ns, pixels in _images(args, cameras, left_out):
            if stop:
                raise KeyboardInterrupt
            if isinstance(pixels, ImageError):
                left_out.append(f"image at {stamp_ns / 1e9:.3f} s: {pixels}")
            else:
                recording.log_image(pixels, stamp_ns, cameras[0])
        for topic, time_ns, message in bag.messages(list(topics), on_corrupt=corrupt):
            if stop:
                raise KeyboardInterrupt
            camera, kind = topics[topic]
            stamp_ns = stamp_of(message) or time_ns
            try:
                if kind == "status":
                    if message.event == message.PROCESSED:
                        recording.log_latency(
                            {part: getattr(message, f"{part}_s") for part in LATENCIES}, stamp_ns, camera
                        )
                elif kind == "mask":
                    recording.log_mask(decoders[topic].label(message), stamp_ns, camera)
                else:
                    recording.log_confidence(decoders[topic].label(message), stamp_ns, camera)
            except ImageError as err:
                corrupt(topic, stamp_ns, str(err))


def _images(
    args: argparse.Namespace, cameras: list[str], left_out: list[str]
) -> Iterator[tuple[int, np.ndarray | ImageError]]:
    """Yield the stamps in ns and images (H, W, 3) uint8 RGB of the source; none if there are only masks."""
    with ExitStack() as stack:
        try:
            if len(cameras) > 1:
                raise BagError(f"--masks: several cameras; expected one, got {', '.join(cameras)}")
            source = open_source(args.source, args.image_topic, stack, left_out)
        except BagError as err:
            if args.image_topic or args.masks:
                raise
            print(f"vtseg view: without images: {err}", file=sys.stderr)
            return
        for stamp_ns, _, pixels in source.frames:
            yield stamp_ns, pixels


def _log_segmented(
    args: argparse.Namespace, segmenter: VideoPredictor, recording: Recording, left_out: list[str]
) -> None:
    """Segment the images of the source and log everything."""
    recording.log_labels(segmenter.labels)
    with ExitStack() as stack, interrupts.deferred() as stop:
        source = open_source(args.source, args.image_topic, stack, left_out)
        total = min(source.total or args.frames or 0, args.frames or source.total)
        with track(total or None, "segmenting") as advance:
            for number, (stamp_ns, frame_id, pixels) in enumerate(source.frames):
                if stop or number == args.frames:
                    break
                advance()
                if isinstance(pixels, ImageError):
                    left_out.append(f"image at {stamp_ns / 1e9:.3f} s: {pixels}")
                    continue
                result = segmenter.step(pixels, stamp_ns, frame_id)
                if result.dropped:
                    left_out.append(f"image at {stamp_ns / 1e9:.3f} s: {result.dropped}")
                    continue
                recording.log_image(pixels, stamp_ns)
                recording.log_mask(result.mask, stamp_ns)
                recording.log_confidence(result.confidence, stamp_ns)
                recording.log_latency(
                    {"preprocess": result.preprocess_s, "inference": result.inference_s}, stamp_ns
                )
        if source.missing():
            left_out.append(f"{source.missing()} messages that {args.source} claims could not be read")


def _run_live(args: argparse.Namespace) -> int:
    try:
        from vtseg_ros.nodes.process import run_node
        from vtseg_ros.nodes.viewer import ViewerNode
    except ImportError as err:
        raise ConfigError(
            f"--topics needs ROS 2; expected rclpy and this package's messages, got: {err}. Source it, or run scripts/setup.sh and source scripts/env.sh"
        ) from err
    with Recording(save=args.save, web=args.web, port=args.port) as recording:
        if recording.url:
            print(f"open {recording.url} in a browser; Ctrl-C ends", flush=True)
        code = run_node(
            lambda: ViewerNode(
                recording, image_topic=args.topics, namespace=args.namespace, seconds=args.seconds
            ),
            [],
        )
        if code:
            return code
        if not recording.counts:
            raise ConfigError(
                f"--topics {args.topics}: nothing arrived; expected images or masks, got none. Try: vtseg doctor --topic {args.topics}"
            )
        _report(recording, [])
    return 0
