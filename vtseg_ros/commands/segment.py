# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg segment`: masks for the frames of a bag, a video file, images, a stream or a camera."""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vtseg_ros import DEFAULT_CHECKPOINT
from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter, check_new_bag
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.fleet_job import (
    absolute_checkpoint,
    add_ray_arguments,
    exit_code,
    is_on_cluster,
    run_job,
    write_outcomes,
)
from vtseg_ros.commands.frame_source import (
    IMAGE_RATE_HZ,
    Source,
    open_part,
    open_source,
    require_source,
    source_argument,
)
from vtseg_ros.commands.mask_bag import MASKS, MaskBag
from vtseg_ros.commands.progress import Tracker, reporting_to, track
from vtseg_ros.commands.report_files import write_json
from vtseg_ros.errors import BagError, ConfigError, ImageError
from vtseg_ros.fleet import Task, Url, expand_inputs, parse_place, plan_tasks
from vtseg_ros.fleet.parts import Span
from vtseg_ros.importers.image_folder import SUFFIXES, check_rate
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.inference.backends import BACKEND_NAMES
from vtseg_ros.inference.postprocess import UPSAMPLING
from vtseg_ros.inference.predictor import STREAMING
from vtseg_ros.resize import RESIZE_MODES
from vtseg_ros.sizes import parse_output_size
from vtseg_ros.video.live import is_live
from vtseg_ros.video.overlay_video import OverlayVideo, check_new_video, overlay_video

HELP = "Segment the frames of bags, videos, images, a stream or a camera; write masks, an overlay video, or both."
MASKS_BAG = "masks"
WHOLE = (None, None)
PART_FRAMES = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument(
        "input",
        nargs="+",
        help="a bag's folder or file, a video file, a folder or quoted glob of images, a stream (rtsp://...) or a camera "
        "(/dev/video0). Streams and cameras are read until Ctrl-C or --frames, always the newest frame. Several bags or "
        "videos, a quoted glob of them, a .txt list of paths or a URL of an object store (s3://...) make a job",
    )
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        help=f"checkpoint file, or name of shipped weights (default {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument(
        "--out",
        type=parse_place,
        metavar="BAG",
        help="bag of masks to create; for a job, its folder or URL",
    )
    parser.add_argument("--overlay", type=Path, metavar="MP4", help="overlay video to write")
    parser.add_argument("--image-topic", default="", help="image topic; required if a bag has several")
    parser.add_argument(
        "--frames", type=int, default=0, metavar="N", help="segment the first N frames only; 0 = all"
    )
    parser.add_argument(
        "--image-rate",
        type=float,
        default=IMAGE_RATE_HZ,
        metavar="HZ",
        help=f"frame rate of image files, which have no times (default {IMAGE_RATE_HZ:g})",
    )
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N (default auto)"
    )
    parser.add_argument(
        "--backend",
        choices=BACKEND_NAMES,
        default="auto",
        help="backend that executes the network (default auto)",
    )
    parser.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16 (default auto)")
    parser.add_argument(
        "--window", type=int, default=0, help="window length in frames; 0 = as in the checkpoint"
    )
    parser.add_argument(
        "--streaming", choices=STREAMING, default="auto", help="streaming mode (default auto)"
    )
    parser.add_argument("--output-size", default="input", help="size of the masks: input, network or WxH")
    parser.add_argument(
        "--upsampling",
        choices=UPSAMPLING,
        default="bilinear",
        help="upsampling of the logits; nearest upsamples the mask (default bilinear)",
    )
    parser.add_argument(
        "--min-confidence", type=float, default=0.0, help="pixels with a lower confidence, 0..1, become 255"
    )
    parser.add_argument(
        "--classes",
        default="",
        metavar="NAMES",
        help="comma-separated classes to keep; the others become 255",
    )
    parser.add_argument(
        "--resize-mode",
        choices=RESIZE_MODES,
        help="how images are resized to the input size (default: as in the checkpoint)",
    )
    parser.add_argument(
        "--max-gap", type=float, default=1.0, help="longest pause within a window, s (default 1)"
    )
    parser.add_argument(
        "--static-prior", help="external static network; executes code when loaded, use trusted files only"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted run that wrote to --out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="JSON file to write")
    add_ray_arguments(parser).add_argument(
        "--part-frames",
        type=int,
        metavar="N",
        help=f"for a job: split longer bags into parts of N frames; 0 = never (default {PART_FRAMES} on a cluster, else 0)",
    )


def _check_arguments(args: argparse.Namespace) -> None:
    """Check the options before anything is loaded."""
    if not args.out and not args.overlay:
        raise ConfigError("nothing to write. Give --out BAG, --overlay MP4, or both")
    if args.resume and not args.out:
        raise ConfigError("--resume: no bag to continue; expected --out BAG, got none. Add --out")
    if args.overlay:
        check_new_video(args.overlay)
    if args.out and not (args.resume and args.out.exists()):
        check_new_bag(args.out)
    require_source(args.input)
    if args.frames < 0:
        raise ConfigError(f"--frames: expected a number of frames, or 0 for all, got {args.frames}")
    check_rate("--image-rate", args.image_rate)
    if args.resume and isinstance(args.input, str) and is_live(args.input):
        raise ConfigError("--resume: a stream cannot be read again; expected a bag, a video or images")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    source = None if args.ray or isinstance(args.out, Url) else _only_source(args.input)
    if source is None:
        return _run_job(args)
    args.input = source
    _check_arguments(args)
    found = _segment_input(args, _open_predictor(args), track)
    before = f" ({found['resumed']} of them from before)" if found["resumed"] else ""
    bad = found["left_out"]
    print(
        f"{found['frames']} masks{before}, {found['frames_per_s']:.1f} frames/s"
        + (f", {len(bad)} frames left out" if bad else "")
    )
    for line in bad[:5]:
        print(f"  {line}")
    if args.json:
        write_json(args.json, found)
    return 0


def _only_source(inputs: list[str]) -> Path | str | None:
    """Return what one bag, video, stream or set of images is opened by; None for several bags or videos."""
    if len(inputs) > 1:
        return None
    if is_live(inputs[0]):
        return inputs[0]
    place = parse_place(inputs[0])
    if isinstance(place, Url):
        return None
    source = source_argument(str(place))
    if isinstance(source, Path):
        return None if source.suffix.lower() == ".txt" and source.is_file() else source
    matches = expand_inputs([source])
    return source if any(Path(match.name).suffix.lower() in SUFFIXES for match in matches) else None


def _open_predictor(args: argparse.Namespace) -> VideoPredictor:
    return VideoPredictor(
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
        classes=[name.strip() for name in args.classes.split(",") if name.strip()],
        resize_mode=args.resize_mode,
    )


SETTINGS = (
    "image_topic",
    "device",
    "backend",
    "precision",
    "window",
    "streaming",
    "output_size",
    "upsampling",
    "min_confidence",
    "max_gap",
    "static_prior",
    "classes",
    "resize_mode",
    "image_rate",
)
"""Options that decide the masks."""


@dataclass(frozen=True)
class SegmentJob:
    """Masks of bags or videos, each in a bag `masks`.

    Args:
        args: of `vtseg segment`.
    """

    args: argparse.Namespace

    @property
    def checkpoints(self) -> list[str]:
        """See `Job.checkpoints`."""
        return [self.args.checkpoint]

    def settings(self) -> dict[str, Any]:
        """See `Job.settings`."""
        return {name: getattr(self.args, name) for name in SETTINGS}

    def load(self) -> VideoPredictor:
        """See `Job.load`."""
        return _open_predictor(self.args)

    def process(
        self, loaded: VideoPredictor, task: Task, folder: Path, on_frame: Callable[[], None]
    ) -> dict[str, Any]:
        """See `Job.process`."""
        of_bag = {"input": task.path, "out": folder / MASKS_BAG, "overlay": None, "resume": False}
        args = argparse.Namespace(**{**vars(self.args), **of_bag})
        _check_arguments(args)
        loaded.reset()
        return _segment_input(args, loaded, reporting_to(on_frame), task.span)

    def join(self, task: Task, results: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
        """See `Job.join`."""
        began = False
        with BagWriter(folder / MASKS_BAG) as joined:
            for part in task.parts:
                assert isinstance(part.output, Path)
                with BagReader(part.output / MASKS_BAG) as bag:
                    for topic, msgtype, time_ns, data in bag.raw():
                        if topic == MASKS or not began:
                            joined.write_raw(topic, msgtype, data, time_ns, qos=bag.qos[topic])
                            began = True
        found = {
            "frames": sum(result["frames"] for result in results),
            "left_out": [line for result in results for line in result["left_out"]],
            "messages_missing": sum(result["messages_missing"] for result in results),
            "parts": len(results),
        }
        if not found["frames"]:
            raise BagError(
                f"{task.source}: no frame that could be segmented"
                + "".join(f": {one}" for one in found["left_out"][:1])
            )
        return found


def _run_job(args: argparse.Namespace) -> int:
    live = [text for text in args.input if is_live(text)]
    if live or args.frames:
        raise ConfigError(
            "INPUT: several inputs, and those of --ray, are read to their end; expected neither streams nor "
            f"--frames, got {live[0] if live else f'--frames {args.frames}'}. Leave it out"
        )
    sources = expand_inputs(args.input)
    if not args.out or args.overlay or args.resume:
        raise ConfigError(
            "INPUT: the results of several inputs, and those of --ray, are written into a folder; expected --out DIR "
            "and neither --overlay nor --resume. To continue, repeat the command: complete results are skipped"
        )
    if args.part_frames is not None and args.part_frames < 0:
        raise ConfigError(
            f"--part-frames: out of range; expected at least 0, got {args.part_frames}. Correct it"
        )
    parse_output_size(args.output_size)
    args.checkpoint = absolute_checkpoint(args.checkpoint)
    part_frames = args.part_frames
    if part_frames is None:
        part_frames = PART_FRAMES if is_on_cluster(args) else 0
    tasks = plan_tasks(sources, args.out, args.image_topic, part_frames=part_frames)
    outcomes = run_job(SegmentJob(args), tasks, args)
    if args.json:
        write_outcomes(args.json, outcomes)
    return exit_code(outcomes)


def _segment_input(
    args: argparse.Namespace, segmenter: VideoPredictor, tracker: Tracker, span: Span = WHOLE
) -> dict[str, Any]:
    """Segment one bag, a part of it, or a video; returns plain values for a report."""
    bad: list[str] = []
    with ExitStack() as stack:
        if span == WHOLE:
            source = open_source(args.input, args.image_topic, stack, bad, args.image_rate)
        else:
            source = open_part(args.input, args.image_topic, stack, segmenter, span)
        if args.frames:
            source = replace(
                source, total=min(source.total, args.frames), frames=islice(source.frames, args.frames)
            )
        output = stack.enter_context(MaskBag(args.out, args.resume, segmenter.labels))
        video = None
        if args.overlay:
            args.overlay.parent.mkdir(parents=True, exist_ok=True)
            video = stack.enter_context(overlay_video(args.overlay, segmenter.labels, source.rate_hz()))
        began = time.monotonic()
        frames = _segment(args, segmenter, source, output, video, bad, tracker)
        missing, unread = source.missing(), source.total - frames.read
        if unread > 0:
            missing = max(missing, unread)
            bad.append(f"{unread} frames that {args.input} claims could not be read")
        if not frames.done and span == WHOLE:
            raise BagError(f"{args.input}: no frame that could be segmented" + (f": {bad[0]}" if bad else ""))
        output.finish()
        rate = (frames.done - frames.taken_over) / max(time.monotonic() - began, 1e-9)
    return {
        "frames": frames.done,
        "left_out": bad,
        "frames_per_s": rate,
        "messages_missing": missing,
        "resumed": frames.taken_over,
    }


@dataclass
class _Frames:
    """Numbers of frames: read, with a mask, and with a mask that existed before."""

    read: int = 0
    done: int = 0
    taken_over: int = 0


def _segment(
    args: argparse.Namespace,
    segmenter: VideoPredictor,
    source: Source,
    output: MaskBag,
    video: OverlayVideo | None,
    bad: list[str],
    tracker: Tracker,
) -> _Frames:
    """Write the masks of all frames and return the numbers of frames.

    Raises:
        KeyboardInterrupt: After a signal; contains what was written.
    """
    frames = _Frames()
    older: deque[tuple[int, str, np.ndarray]] = deque(maxlen=segmenter.history)
    with interrupts.deferred() as stop, tracker(source.total or None, "segmenting") as advance:
        for stamp_ns, frame_id, pixels in source.frames:
            if stop and source.live:  # which ends in no other way
                break
            if stop:
                _stop(args, output, frames.done, source.total)
            advance()
            frames.read += 1
            if isinstance(pixels, ImageError):
                bad.append(f"frame at {stamp_ns / 1e9:.3f} s: {pixels}")
                continue
            if stamp_ns in output.known:
                older.append((stamp_ns, frame_id, pixels))
                mask = output.take_over(stamp_ns)
                frames.taken_over += 1
            else:
                while older:  # fill the window as in an uninterrupted run
                    time_ns, name, image = older.popleft()
                    segmenter.step(image, time_ns, name, with_confidence=False)
                result = segmenter.step(pixels, stamp_ns, frame_id, with_confidence=False)
                if result.dropped:
                    bad.append(f"frame at {stamp_ns / 1e9:.3f} s: {result.dropped}")
                    continue
                mask = result.mask
                output.write(mask, stamp_ns, frame_id)
            if video:
                video.add(pixels, mask)
            frames.done += 1
    return frames


def _stop(args: argparse.Namespace, output: MaskBag, done: int, total: int) -> None:
    """Keep the masks written so far and raise KeyboardInterrupt."""
    lines = []
    if args.out and done and done >= output.existing:
        output.finish()
        of = f" of {total}" if total else ""
        lines.append(f"{done}{of} masks were written to {args.out}, --resume continues it")
    elif args.out:
        lines.append(f"{args.out} is unchanged" if output.existing else f"{args.out} was not written")
    if args.overlay:
        lines.append(f"{args.overlay} was not written")
    raise KeyboardInterrupt("; ".join(lines))
