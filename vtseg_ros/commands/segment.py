"""`vtseg segment`: masks for every frame of a bag or video file."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.commands.arguments import parse_output_size
from vtseg_ros.commands.progress import track
from vtseg_ros.data.bags import BagReader, BagWriter
from vtseg_ros.data.images import decode_any
from vtseg_ros.data.messages import stamp_of
from vtseg_ros.data.topics import find_image_topic
from vtseg_ros.engine import Segmenter
from vtseg_ros.engine.predictor import STREAMING, UPSAMPLING
from vtseg_ros.errors import BagError, ConfigError, ImageError
from vtseg_ros.evaluation.video import DEFAULT_RATE_HZ, overlay_video

HELP = "Masks for every frame of a bag or video file: into a bag, an overlay mp4, or both."


@dataclass(frozen=True)
class Source:
    """Frames to segment: their count, an iterator of (stamp in ns, frame_id, RGB or the error), and their rate.

    The rate is for videos alone and asked for when it is wanted, since a bag has to be read for it; None = unknown.
    """

    total: int
    frames: Iterator[tuple[int, str, np.ndarray | ImageError]]
    rate_hz: Callable[[], float | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="a bag's folder or a video file")
    parser.add_argument("--checkpoint", default="street_tiny", help="shipped weights by name, or a file")
    parser.add_argument("--out", type=Path, metavar="BAG", help="bag to write the masks into")
    parser.add_argument("--overlay", type=Path, metavar="MP4", help="overlay video to write")
    parser.add_argument("--image-topic", default="", help="needed when the bag has several")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--window", type=int, default=0, help="frames; 0 = the checkpoint's")
    parser.add_argument("--streaming", choices=STREAMING, default="auto", help="how older frames are kept")
    parser.add_argument("--output-size", default="input", help="of the masks: input, network or WxH")
    parser.add_argument(
        "--upsampling", choices=UPSAMPLING, default="bilinear", help="of the logits, or of the mask"
    )
    parser.add_argument(
        "--min-confidence", type=float, default=0.0, help="below it, 0..1, a pixel becomes 255"
    )
    parser.add_argument("--max-gap", type=float, default=1.0, help="s; a longer pause starts a new window")
    parser.add_argument(
        "--static-prior", help="external static network; it can run code: trust it as a program"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")


def _from_bag(bag: BagReader, topic: str) -> Source:
    topic = topic or find_image_topic(bag)
    bag.require(topic)
    total = bag.topics[topic].count

    corrupt: list[tuple[int, str, ImageError]] = []

    def on_corrupt(_: str, time_ns: int, reason: str) -> None:
        corrupt.append((time_ns, "", ImageError(reason)))

    def frames() -> Iterator[tuple[int, str, np.ndarray | ImageError]]:
        for _, _, message in bag.messages([topic], on_corrupt=on_corrupt):
            yield from corrupt
            corrupt.clear()
            try:
                pixels: np.ndarray | ImageError = decode_any(message)
            except ImageError as err:
                pixels = err
            yield stamp_of(message), message.header.frame_id, pixels
        yield from corrupt

    return Source(total, frames(), lambda: bag.rate_hz(topic))


def _from_video(path: Path) -> Source:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ConfigError(f"{path} is neither a bag nor a video that can be read")
    rate = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_RATE_HZ

    def frames() -> Iterator[tuple[int, str, np.ndarray | ImageError]]:
        index = 0
        while True:
            more, bgr = capture.read()
            if not more:
                break
            yield round((index + 1) * 1e9 / rate), path.stem, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
            index += 1
        capture.release()

    return Source(max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0), frames(), lambda: rate)


def run(args: argparse.Namespace) -> int:
    if not args.out and not args.overlay:
        raise ConfigError("nothing to write: give --out BAG, --overlay MP4, or both")
    if args.overlay and args.overlay.exists():
        raise ConfigError(f"{args.overlay} exists: nothing is overwritten")
    if not args.input.exists():
        raise BagError(f"no such bag or video: {args.input}")
    segmenter = Segmenter(
        args.checkpoint,
        device=args.device,
        precision=args.precision,
        window=args.window,
        max_gap_s=args.max_gap,
        output_size=parse_output_size(args.output_size),
        upsampling=args.upsampling,
        min_confidence=args.min_confidence,
        streaming=args.streaming,
        static_prior=args.static_prior,
    )
    labels, done, bad = segmenter.labels, 0, []
    with ExitStack() as stack:
        if args.input.is_dir() or args.input.suffix in (".mcap", ".db3"):
            source = _from_bag(stack.enter_context(BagReader(args.input)), args.image_topic)
        else:
            source = _from_video(args.input)
        bag = stack.enter_context(BagWriter(args.out)) if args.out else None
        if args.overlay:
            args.overlay.parent.mkdir(parents=True, exist_ok=True)
        video = (
            stack.enter_context(overlay_video(args.overlay, labels, source.rate_hz()))
            if args.overlay
            else None
        )
        advance = stack.enter_context(track(source.total, "segmenting"))
        began = time.monotonic()
        for stamp_ns, frame_id, pixels in source.frames:
            advance()
            if isinstance(pixels, ImageError):
                bad.append(f"frame at {stamp_ns / 1e9:.3f} s: {pixels}")
                continue
            result = segmenter.step(pixels, stamp_ns, frame_id)
            if result.dropped:
                bad.append(f"frame at {stamp_ns / 1e9:.3f} s: {result.dropped}")
                continue
            if bag:
                if not done:
                    bag.write_label_map("/segmentation/label_map", labels, stamp_ns)
                bag.write_label(
                    "/segmentation/mask/compressed", result.mask, stamp_ns, frame_id, compressed=True
                )
            if video:
                video.add(pixels, result.mask)
            done += 1
        if done + len(bad) < source.total:
            bad.append(f"{source.total - done - len(bad)} frames that {args.input} claims could not be read")
        if not done:
            raise BagError(
                f"{args.input} has no frame that could be segmented" + (f": {bad[0]}" if bad else "")
            )
        rate = done / max(time.monotonic() - began, 1e-9)
    print(f"{done} masks, {rate:.1f} frames/s" + (f", {len(bad)} frames left out" if bad else ""))
    for line in bad[:5]:
        print(f"  {line}")
    if args.json:
        args.json.write_text(
            json.dumps({"frames": done, "left_out": bad, "frames_per_s": rate}, indent=2) + "\n"
        )
    return 0
