# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg segment`: segment every frame of a bag or video file."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from vtseg_ros.bags.bag import BagReader, BagWriter, check_new_bag
from vtseg_ros.bags.image_messages import ImageDecoder, decode_label
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, header_stamp, stamp_of
from vtseg_ros.bags.storage_files import is_bag
from vtseg_ros.bags.topics import find_image_topic, read_label_set
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.progress import track
from vtseg_ros.errors import BagError, ConfigError, ImageError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.inference.backends import BACKEND_NAMES
from vtseg_ros.inference.postprocess import UPSAMPLING
from vtseg_ros.inference.predictor import STREAMING
from vtseg_ros.label_set import LabelSet
from vtseg_ros.sizes import parse_output_size
from vtseg_ros.video.overlay_video import OverlayVideo, check_new_video, overlay_video
from vtseg_ros.video.reader import VideoReader

HELP = "Segment every frame of a bag or video file and write the masks to a bag, an overlay mp4, or both."
MASKS, LABEL_MAP = "/segmentation/mask/compressed", "/segmentation/label_map"
VIDEO_START_NS = 1_000_000_000
"""Stamp of the first frame of a video, ns: a stamp of zero means no stamp."""


@dataclass(frozen=True)
class Source:
    """Frames to segment.

    Attributes:
        total: Number of frames.
        frames: Iterator of (stamp in ns, frame_id, (H, W, 3) uint8 RGB or the error).
        rate_hz: Returns the frames per second, None = unknown; a bag must be read for it.
        missing: Returns the number of announced messages that the bag does not have, after all frames were read.
    """

    total: int
    frames: Iterator[tuple[int, str, np.ndarray | ImageError]]
    rate_hz: Callable[[], float | None]
    missing: Callable[[], int] = lambda: 0


def open_source(path: Path, image_topic: str, stack: ExitStack, bad: list[str]) -> Source:
    """Open a bag or a video.

    Args:
        path: Bag or video file.
        image_topic: Image topic of the bag; empty = the only one.
        stack: Closes the bag or the video.
        bad: Gets a line if a video is damaged.

    Raises:
        BagError: If the bag cannot be read.
        ConfigError: If the video cannot be read.
    """
    if is_bag(path):
        return _from_bag(stack.enter_context(BagReader(path)), image_topic)
    return _from_video(stack.enter_context(VideoReader(path)), bad)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("input", type=Path, help="a bag's folder or a video file")
    parser.add_argument("--checkpoint", default="street_tiny", help="shipped weights by name, or a file")
    parser.add_argument("--out", type=Path, metavar="BAG", help="bag to write the masks to")
    parser.add_argument("--overlay", type=Path, metavar="MP4", help="overlay video to write")
    parser.add_argument("--image-topic", default="", help="image topic; required if the bag has several")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--backend",
        choices=BACKEND_NAMES,
        default="auto",
        help="backend that executes the network (default auto)",
    )
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--window", type=int, default=0, help="number of frames; 0 = as in the checkpoint")
    parser.add_argument("--streaming", choices=STREAMING, default="auto", help="how older frames are kept")
    parser.add_argument("--output-size", default="input", help="size of the masks: input, network or WxH")
    parser.add_argument(
        "--upsampling", choices=UPSAMPLING, default="bilinear", help="of the logits, or of the mask"
    )
    parser.add_argument(
        "--min-confidence", type=float, default=0.0, help="pixels with a lower confidence, 0..1, become 255"
    )
    parser.add_argument("--max-gap", type=float, default=1.0, help="s; a longer pause starts a new window")
    parser.add_argument(
        "--static-prior", help="external static network; executes code when loaded, use trusted files only"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the masks in --out after an interrupted run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")


def _from_bag(bag: BagReader, topic: str) -> Source:
    topic = topic or find_image_topic(bag)
    bag.require(topic)
    total = bag.topics[topic].count
    if not total:
        raise BagError(f"bag {bag.path} has no message on {topic}")

    decode = ImageDecoder(topic)
    corrupt: list[tuple[int, str, ImageError]] = []

    def on_corrupt(_: str, time_ns: int, reason: str) -> None:
        corrupt.append((time_ns, "", ImageError(reason)))

    def frames() -> Iterator[tuple[int, str, np.ndarray | ImageError]]:
        unstamped, delay_ns = False, 0
        for _, time_ns, message in bag.messages([topic], on_corrupt=on_corrupt):
            yield from corrupt
            corrupt.clear()
            stamp_ns = stamp_of(message)
            if stamp_ns:
                delay_ns = time_ns - stamp_ns
            else:
                if not unstamped:
                    unstamped, delay_ns = True, delay_ns or _delay_ns(bag, topic)
                    print(
                        f"vtseg segment: images on {topic} have the header stamp zero; their masks get the images' bag "
                        "times",
                        file=sys.stderr,
                    )
                stamp_ns = time_ns - delay_ns
            try:
                if stamp_ns <= 0:
                    raise ImageError("it has neither a header stamp nor a bag time")
                pixels: np.ndarray | ImageError = decode(message)
            except ImageError as err:
                pixels = err
            yield stamp_ns, message.header.frame_id, pixels
        yield from corrupt

    return Source(total, frames(), lambda: bag.rate_hz(topic), lambda: sum(bag.missing.values()))


def _delay_ns(bag: BagReader, topic: str) -> int:
    """Return the time from header stamp to bag time of the first image that has both, ns; 0 if none has."""
    for _, _, time_ns, data in bag.raw([topic]):
        try:
            stamp_ns = header_stamp(data)
        except BagError:
            continue
        if stamp_ns and time_ns:
            return time_ns - stamp_ns
    return 0


def _from_video(video: VideoReader, bad: list[str]) -> Source:
    def frames() -> Iterator[tuple[int, str, np.ndarray | ImageError]]:
        for frame in video.frames():
            yield VIDEO_START_NS + frame.time_ns, video.path.stem, frame.image
        if video.damage:
            bad.append(f"{video.path} is damaged: {video.damage}")

    return Source(video.frame_count, frames(), lambda: video.rate_hz)


class _Output:
    """Bag of masks, which may continue that of an interrupted run.

    Args:
        path: Bag to write; None = none.
        resume: Take over the masks of an existing bag.
        labels: Class list of the checkpoint.

    Raises:
        BagError: If the bag exists and is not to be resumed, or cannot be read or written.
        ConfigError: If its masks have other classes.
    """

    def __init__(self, path: Path | None, resume: bool, labels: LabelSet) -> None:
        self._path, self._labels = path, labels
        self._stack, self._began = ExitStack(), False
        self._old: BagReader | None = None
        self._scratch: Path | None = None
        self._bag: BagWriter | None = None
        self.known: set[int] = set()
        """Stamps of the existing masks, ns."""
        if path is None:
            return
        target = path
        if resume and path.exists():
            self._old = self._stack.enter_context(BagReader(path))
            self._old.require(MASKS)
            there = read_label_set(self._old, of_masks=True)
            if there is not None and there.names != labels.names:
                raise ConfigError(
                    f"--resume: the masks in {path} have other classes; expected {', '.join(labels.names)}, "
                    f"got {', '.join(there.names)}"
                )
            self.known = {header_stamp(data) for _, _, _, data in self._old.raw([MASKS])}
            self._scratch = Path(tempfile.mkdtemp(prefix=".vtseg_resume_", dir=path.resolve().parent))
            self._stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            target = self._scratch / path.name
        self._bag = self._stack.enter_context(BagWriter(target))

    def __enter__(self) -> _Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, mask: np.ndarray, stamp_ns: int, frame_id: str) -> None:
        """Add a mask (H, W) uint8."""
        if self._bag is None:
            return
        self._begin(self._bag, stamp_ns)
        self._bag.write_label(MASKS, mask, stamp_ns, frame_id, compressed=True)

    def take_over(self, stamp_ns: int) -> np.ndarray:
        """Copy an existing mask and return it, (H, W) uint8."""
        assert self._old is not None and self._bag is not None  # there are masks to copy
        self._begin(self._bag, stamp_ns)
        for _, _, _, data in self._old.raw([MASKS], stamp_ns, stamp_ns + 1):
            self._bag.write_raw(MASKS, COMPRESSED_IMAGE, data, stamp_ns)
            break
        return decode_label(self._old.read(MASKS, stamp_ns, stamp_ns))

    def _begin(self, bag: BagWriter, stamp_ns: int) -> None:
        if not self._began:
            self._began = True
            bag.write_label_map(LABEL_MAP, self._labels, stamp_ns)

    def finish(self) -> None:
        """Finish the bag and replace the one that it continues."""
        if self._bag is None:
            return
        self._bag.close()
        if self._scratch is not None and self._old is not None and self._path is not None:
            self._old.close()
            self._path.rename(self._scratch / "before")
            (self._scratch / self._path.name).rename(self._path)


def _check_arguments(args: argparse.Namespace) -> None:
    """Check the options before anything is loaded."""
    if not args.out and not args.overlay:
        raise ConfigError("nothing to write. Give --out BAG, --overlay MP4, or both")
    if args.resume and not args.out:
        raise ConfigError("--resume continues a bag of masks. Name it with --out")
    if args.overlay:
        check_new_video(args.overlay)
    if args.out and not (args.resume and args.out.exists()):
        check_new_bag(args.out)
    if not args.input.exists():
        raise BagError(f"no such bag or video: {args.input}")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    _check_arguments(args)
    segmenter = VideoPredictor(
        args.checkpoint,
        device=args.device,
        backend=args.backend,
        precision=args.precision,
        window=args.window or None,
        max_gap_s=args.max_gap,
        output_size=parse_output_size(args.output_size),
        upsampling=args.upsampling,
        min_confidence=args.min_confidence,
        streaming=args.streaming,
        static_prior=args.static_prior,
    )
    bad: list[str] = []
    with ExitStack() as stack:
        source = open_source(args.input, args.image_topic, stack, bad)
        output = stack.enter_context(_Output(args.out, args.resume, segmenter.labels))
        video = None
        if args.overlay:
            args.overlay.parent.mkdir(parents=True, exist_ok=True)
            video = stack.enter_context(overlay_video(args.overlay, segmenter.labels, source.rate_hz()))
        began = time.monotonic()
        done, taken_over = _segment(args, segmenter, source, output, video, bad)
        missing = source.missing()
        if done + len(bad) < source.total:
            missing = max(missing, source.total - done - len(bad))
            bad.append(f"{source.total - done - len(bad)} frames that {args.input} claims could not be read")
        if not done:
            raise BagError(
                f"{args.input} has no frame that could be segmented" + (f": {bad[0]}" if bad else "")
            )
        output.finish()
        rate = (done - taken_over) / max(time.monotonic() - began, 1e-9)
    before = f" ({taken_over} of them from before)" if taken_over else ""
    print(f"{done} masks{before}, {rate:.1f} frames/s" + (f", {len(bad)} frames left out" if bad else ""))
    for line in bad[:5]:
        print(f"  {line}")
    if args.json:
        found = {"frames": done, "left_out": bad, "frames_per_s": rate, "messages_missing": missing}
        args.json.write_text(json.dumps({**found, "resumed": taken_over}, indent=2) + "\n")
    return 0


def _segment(
    args: argparse.Namespace,
    segmenter: VideoPredictor,
    source: Source,
    output: _Output,
    video: OverlayVideo | None,
    bad: list[str],
) -> tuple[int, int]:
    """Write the masks of all frames; return their number and how many of them existed before.

    Raises:
        KeyboardInterrupt: After a signal; contains what was written.
    """
    done = taken_over = 0
    older: deque[tuple[int, str, np.ndarray]] = deque(maxlen=segmenter.history)
    with interrupts.deferred() as stop, track(source.total, "segmenting") as advance:
        for stamp_ns, frame_id, pixels in source.frames:
            if stop:
                _stop(args, output, done, source.total)
            advance()
            if isinstance(pixels, ImageError):
                bad.append(f"frame at {stamp_ns / 1e9:.3f} s: {pixels}")
                continue
            if stamp_ns in output.known:
                older.append((stamp_ns, frame_id, pixels))
                mask = output.take_over(stamp_ns)
                taken_over += 1
            else:
                while older:  # fill the window as in an uninterrupted run
                    time_ns, name, image = older.popleft()
                    segmenter.step(image, time_ns, name)
                result = segmenter.step(pixels, stamp_ns, frame_id)
                if result.dropped:
                    bad.append(f"frame at {stamp_ns / 1e9:.3f} s: {result.dropped}")
                    continue
                mask = result.mask
                output.write(mask, stamp_ns, frame_id)
            if video:
                video.add(pixels, mask)
            done += 1
    return done, taken_over


def _stop(args: argparse.Namespace, output: _Output, done: int, total: int) -> None:
    """Keep the masks written so far and raise KeyboardInterrupt."""
    lines = []
    if args.out and done and done >= len(output.known):
        output.finish()
        of = f" of {total}" if total else ""
        lines.append(f"{done}{of} masks were written to {args.out}, --resume continues it")
    elif args.out:
        lines.append(f"{args.out} is unchanged" if output.known else f"{args.out} was not written")
    if args.overlay:
        lines.append(f"{args.overlay} was not written")
    raise KeyboardInterrupt("; ".join(lines))
