"""`vtseg select`: choose the frames of unlabelled bags to label next."""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vtseg_ros import DEFAULT_CHECKPOINT
from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.topics import require_image_topic
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.fleet_job import (
    absolute_checkpoint,
    add_ray_arguments,
    bag_cache,
    exit_code,
    refuse_urls,
    run_job,
)
from vtseg_ros.commands.progress import Tracker, reporting_to, track
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.fleet import Place, Task, Url, expand_inputs, parse_place, plan_tasks, result_name
from vtseg_ros.fleet.object_store import list_files
from vtseg_ros.fleet.results import read_file, written_whole
from vtseg_ros.inference.devices import resolve_device
from vtseg_ros.label_set import LabelSet
from vtseg_ros.labelling.frame_files import read_frames, write_frame
from vtseg_ros.labelling.label_files import CLASS_LIST, frame_name
from vtseg_ros.labelling.palette import format_palette
from vtseg_ros.model.checkpoint import load_checkpoint
from vtseg_ros.selection import SCORES, FrameScorer, choose, combined_score

HELP = "Choose the most uncertain and diverse frames of unlabelled bags to label next."
SCORES_FILE, FEATURES_FILE = "scores.json", "features.npy"
TILE = (240, 180)
"""Width and height of the images in a contact sheet, px."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("bags", nargs="+", metavar="BAG", help="bags, globs or .txt lists of paths")
    parser.add_argument(
        "--out",
        type=parse_place,
        required=True,
        metavar="DIR",
        help="folder to create; for a job, a folder or URL",
    )
    parser.add_argument(
        "--count", type=int, default=50, help="number of frames to choose (default %(default)s)"
    )
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        help=f"checkpoint file, or name of shipped weights (default {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument(
        "--score",
        choices=("combined", *SCORES),
        default="combined",
        help="score to rank the frames by; combined = mean rank over all scores (default)",
    )
    parser.add_argument(
        "--spacing", type=float, default=1.0, help="least time between chosen frames of a bag, s (default 1)"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="score every N-th frame")
    parser.add_argument("--image-topic", default="", help="image topic; required if a bag has several")
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N (default auto)"
    )
    add_ray_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    args.bags = expand_inputs(args.bags)
    if args.ray:
        return _run_job(args)
    refuse_urls([*args.bags, args.out], "Add --ray none")
    _check_arguments(args)
    scorer = _scorer(args)
    frames: list[dict[str, Any]] = []
    features: list[np.ndarray] = []
    left_out: list[str] = []
    for number, path in enumerate(args.bags):
        of_bag = _score_bag(args, scorer, path, path, track)
        frames += [{"bag": number, **frame} for frame in of_bag.frames]
        features += of_bag.features
        left_out += of_bag.left_out
    _select(args, scorer.checkpoint.labels, frames, features, left_out)
    return 0


def _scorer(args: argparse.Namespace) -> FrameScorer:
    scorer = FrameScorer(load_checkpoint(args.checkpoint, device=resolve_device(args.device)))
    if args.score not in ("combined", *scorer.scores):
        raise ConfigError(
            f"--score: {scorer.checkpoint.architecture} has no such score; expected combined, "
            f"{', '.join(scorer.scores)}, got {args.score}"
        )
    return scorer


def _select(
    args: argparse.Namespace,
    labels: LabelSet,
    frames: list[dict[str, Any]],
    features: list[np.ndarray],
    left_out: list[str],
) -> None:
    """Choose among scored frames and write what is chosen into `args.out`."""
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
    with (
        interrupts.unwritten(args.out),
        written_whole(args.out, SCORES_FILE, bag_cache(args)) as made,  # a failure leaves nothing behind
    ):
        _write_results(args, made, labels, [frames[index] for index in chosen], frames, left_out)
    print(f"{len(chosen)} of {len(frames)} scored frames in {args.out}")
    if len(chosen) == len(frames) < args.count:
        print(f"  fewer than --count {args.count}: there are no more frames")
    elif len(chosen) < args.count:
        print(f"  fewer than --count {args.count}: no other frame keeps --spacing {args.spacing:g} s")
    for line in left_out[:5]:
        print(f"  left out: {line}")


@dataclass(frozen=True)
class SelectJob:
    """Scores and features of the frames of bags.

    Args:
        args: of `vtseg select`.
    """

    args: argparse.Namespace

    @property
    def checkpoints(self) -> list[str]:
        """See `Job.checkpoints`."""
        return [self.args.checkpoint]

    def settings(self) -> dict[str, Any]:
        """See `Job.settings`."""
        return {name: getattr(self.args, name) for name in ("every", "image_topic", "device")}

    def load(self) -> FrameScorer:
        """See `Job.load`."""
        return _scorer(self.args)

    def process(
        self, loaded: FrameScorer, task: Task, folder: Path, on_frame: Callable[[], None]
    ) -> dict[str, Any]:
        """See `Job.process`."""
        found = _score_bag(self.args, loaded, task.path, task.source, reporting_to(on_frame))
        if not found.frames:
            raise BagError(
                f"{task.source}: no frame could be scored" + "".join(f": {one}" for one in found.left_out[:1])
            )
        (folder / SCORES_FILE).write_text(json.dumps({"frames": found.frames, "left_out": found.left_out}))
        np.save(folder / FEATURES_FILE, np.stack(found.features))
        return {"frames": len(found.frames)}


def _run_job(args: argparse.Namespace) -> int:
    """Score the bags in tasks, in `--out`/scores, and write what is chosen into `--out`/selection."""
    folder, args.out = args.out, args.out / "selection"
    _check_arguments(args)
    args.checkpoint = absolute_checkpoint(args.checkpoint)
    labels = _scorer(args).checkpoint.labels  # a wrong --score is refused before the job
    outcomes = run_job(SelectJob(args), plan_tasks(args.bags, folder / "scores", args.image_topic), args)
    frames: list[dict[str, Any]] = []
    features: list[np.ndarray] = []
    left_out = [f"{one.task.source}: {one.reason}" for one in outcomes if one.state == "failed"]
    complete = [one.task for one in outcomes if one.state != "failed"]
    args.bags = [task.source for task in complete] or args.bags
    for number, task in enumerate(complete):
        scored = json.loads(read_file(task.output / SCORES_FILE))
        frames += [{"bag": number, **frame} for frame in scored["frames"]]
        features += list(np.load(io.BytesIO(read_file(task.output / FEATURES_FILE))))
        left_out += scored["left_out"]
    _select(args, labels, frames, features, left_out)
    return exit_code(outcomes)


def _check_arguments(args: argparse.Namespace) -> None:
    for name in ("count", "every"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name}: out of range; expected at least 1, got {getattr(args, name)}")
    if not (math.isfinite(args.spacing) and args.spacing >= 0):
        raise ConfigError(f"--spacing: out of range; expected seconds of at least 0, got {args.spacing}")
    if list_files(args.out) if isinstance(args.out, Url) else args.out.exists():
        raise ConfigError(
            f"--out: {args.out} exists; expected a new folder. Remove it or choose another --out"
        )
    names = [result_name(bag) for bag in args.bags]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(
            f"BAG: two bags are named {twice}; expected different names, since each gets a folder"
        )


@dataclass
class _ScoredBag:
    frames: list[dict[str, Any]] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def _score_bag(
    args: argparse.Namespace, scorer: FrameScorer, path: Path, source: Place, tracker: Tracker
) -> _ScoredBag:
    """Score the frames of a bag at a path, which is a copy where the source is a URL."""
    found = _ScoredBag()
    scorer.reset()
    with BagReader(path) as bag:
        topic = require_image_topic(bag, args.image_topic)
        total = bag.topics[topic].count
        with tracker(total, f"scoring {source.name}") as advance:
            for message, (stamp_ns, image) in enumerate(read_frames(bag, topic, range(total))):
                advance()
                if isinstance(image, str):
                    found.left_out.append(f"{source}: frame at {stamp_ns} ns: {image}")
                    continue
                scorer.add(image, stamp_ns)
                if message % args.every:
                    continue
                scores, pooled = scorer.score()
                found.frames.append({"message": message, "stamp_ns": stamp_ns, "scores": scores})
                found.features.append(pooled)
    return found


def _write_results(
    args: argparse.Namespace,
    out: Path,
    labels: LabelSet,
    chosen: list[dict[str, Any]],
    frames: list[dict[str, Any]],
    left_out: list[str],
) -> None:
    tiles: dict[int, np.ndarray] = {}
    cache = bag_cache(args)
    for number, source in enumerate(args.bags):
        own = {frame["message"]: frame for frame in chosen if frame["bag"] == number}
        if not own:
            continue
        folder = out / result_name(source)
        folder.mkdir()
        (folder / CLASS_LIST).write_text(format_palette(labels))
        with ExitStack() as stack:
            path = source
            if isinstance(source, Url):
                path = stack.enter_context(cache.local(source, list_files(source)))
            bag = stack.enter_context(BagReader(path))
            topic = require_image_topic(bag, args.image_topic)
            for message, (stamp_ns, image) in zip(sorted(own), read_frames(bag, topic, own), strict=True):
                if isinstance(image, str):
                    raise BagError(f"{source}: frame at {stamp_ns} ns: {image}; it changed while it was read")
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
    (out / SCORES_FILE).write_text(json.dumps(found, indent=1) + "\n")


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
