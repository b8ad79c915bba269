# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg pseudolabel`: label a bag or a video with a teacher network."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import check_new_bag
from vtseg_ros.bags.storage_files import is_bag
from vtseg_ros.bags.topics import require_image_topic
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.fleet_job import (
    absolute_checkpoint,
    add_ray_arguments,
    exit_code,
    run_job,
    write_outcomes,
)
from vtseg_ros.commands.progress import Tracker, reporting_to, track
from vtseg_ros.commands.report_files import write_json
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.evaluation.class_map import load_class_map
from vtseg_ros.files import files_below, sha256_of
from vtseg_ros.fleet import Place, Task, Url, expand_inputs, parse_place, plan_tasks
from vtseg_ros.importers.video_files import import_videos
from vtseg_ros.label_set import LabelSet
from vtseg_ros.labelling.acceptance import Acceptance, groups_of, open_ego_mask
from vtseg_ros.labelling.pseudolabels import SHEET, Labelled, pseudolabel
from vtseg_ros.labelling.teacher_probabilities import Averaging, Teacher
from vtseg_ros.labelling.work_folder import WorkFolder
from vtseg_ros.model.checkpoint import load_checkpoint, resolve_checkpoint
from vtseg_ros.sizes import parse_size
from vtseg_ros.text import read_text
from vtseg_ros.video.reader import VideoReader

HELP = "Label a bag or a video with a teacher network; the result is a bag to train from."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument(
        "input",
        nargs="+",
        help="a bag's folder or a video file; several, globs or a .txt list of paths make a job",
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="TEACHER", help="checkpoint file, or name of shipped weights"
    )
    parser.add_argument(
        "--out",
        type=parse_place,
        required=True,
        metavar="BAG",
        help="bag to create; for a job, its folder or URL",
    )
    parser.add_argument("--image-topic", default="", help="image topic; required if a bag has several")
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="WxH",
        help="input size of the network at scale 1 (default: as in the checkpoint)",
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="F",
        help="average the predictions at these factors of --size (default 1)",
    )
    parser.add_argument("--flip", action="store_true", help="also average with mirrored images")
    parser.add_argument(
        "--neighbours",
        type=int,
        default=0,
        metavar="N",
        help="average with N frames before and after, warped along DIS optical flow (default 0)",
    )
    parser.add_argument(
        "--min-confidence",
        type=float,
        default=0.6,
        metavar="P",
        help="probability below which a pixel is unlabelled (default 0.6)",
    )
    parser.add_argument(
        "--class-confidence",
        action="append",
        default=[],
        metavar="NAME=P",
        help="as --min-confidence, for one class; may be repeated",
    )
    parser.add_argument(
        "--class-map",
        type=Path,
        metavar="FILE",
        help="YAML file with the teacher classes that count as each label class; their probabilities are added",
    )
    parser.add_argument(
        "--ego-mask",
        type=Path,
        metavar="PNG",
        help="mask whose non-zero pixels (the robot's own body) get no label; see vtseg ego-mask",
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="label every n-th image (default 1)"
    )
    parser.add_argument(
        "--max-gap",
        type=float,
        default=1.0,
        metavar="S",
        help="longest pause within a window or between neighbours, s (default 1)",
    )
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N (default auto)"
    )
    parser.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16 (default auto)")
    parser.add_argument(
        "--storage", choices=("mcap", "sqlite3"), default="mcap", help="storage of the new bag (default mcap)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="JSON file to write: a summary of the labels"
    )
    add_ray_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if args.every < 1:
        raise ConfigError(f"--every: expected at least 1, got {args.every}")
    if not args.max_gap > 0:
        raise ConfigError(f"--max-gap: expected more than 0 s, got {args.max_gap:g}")
    sources = expand_inputs(args.input)
    only = parse_place(args.input[0])
    if args.ray or sources != [only] or isinstance(only, Url) or isinstance(args.out, Url):
        return _run_job(args, sources)
    args.input = sources[0]
    check_new_bag(args.out)
    _check_input(args.input)
    prepared = _prepare(args)
    done = _label_input(args, prepared, track, track)
    if done is None:
        raise KeyboardInterrupt(
            f"{args.out} was not written; the labels so far are in {prepared.work_folder(args).path}, run the "
            "same command again to continue"
        )
    summary = done.summary(prepared.labels)
    print(
        f"{args.out}: {done.images} images, {done.labels} of them labelled"
        + (f" ({done.resumed} from before)" if done.resumed else "")
        + f"; {100 * summary['kept_share']:.1f} % of the pixels have a label"
    )
    for name, share in summary["class_shares"].items():
        print(f"  {name:<16}{100 * share:6.2f} %")
    if done.empty:
        print(f"  {done.empty} images have no confident pixel and no label")
    for line in done.left_out[:5]:
        print(f"  left out: {line}")
    print(f"  look at {args.out / SHEET}")
    if args.json:
        made = {"bag": str(args.out), "sheet": str(args.out / SHEET), **summary}
        write_json(args.json, made)
    return 0


def _check_input(path: Path) -> None:
    if not path.exists():
        raise BagError(f"{path}: no such file; expected a bag or a video. Correct the path")


@dataclass(frozen=True)
class Prepared:
    """What labels the frames of any input: classes, groups of the teacher's classes, and the teacher."""

    labels: LabelSet
    groups: np.ndarray
    acceptance: Acceptance
    teacher: Teacher

    def work_folder(self, args: argparse.Namespace) -> WorkFolder:
        """Return the folder of unfinished labels."""
        return WorkFolder(args.out, _settings(args, self.labels, self.groups, self.teacher.averaging))


def _prepare(args: argparse.Namespace) -> Prepared:
    checkpoint = load_checkpoint(args.checkpoint)
    class_map = load_class_map(args.class_map) if args.class_map else None
    labels, groups = groups_of(checkpoint.labels, class_map)
    acceptance = Acceptance(
        labels,
        groups,
        args.min_confidence,
        _class_confidence(args.class_confidence),
        open_ego_mask(args.ego_mask) if args.ego_mask else None,
    )
    averaging = Averaging(args.size or checkpoint.input_size, tuple(args.scales), args.flip, args.neighbours)
    teacher = Teacher(checkpoint, averaging, device=args.device, precision=args.precision)
    return Prepared(labels, groups, acceptance, teacher)


def _label_input(
    args: argparse.Namespace, prepared: Prepared, tracker: Tracker, reading: Tracker
) -> Labelled | None:
    """Label one bag or video; None if a signal ended it. `reading` tracks the import of a video before it is labelled."""
    work = prepared.work_folder(args)
    with ExitStack() as stack:
        bag = stack.enter_context(BagReader(_as_bag(args, work, reading)))
        topic = require_image_topic(bag, args.image_topic)
        stop = stack.enter_context(interrupts.deferred())
        advance = stack.enter_context(tracker(bag.topics[topic].count, "labelling"))
        try:
            return pseudolabel(
                bag,
                topic,
                args.out,
                prepared.teacher,
                prepared.acceptance,
                work,
                every=args.every,
                max_gap_s=args.max_gap,
                storage=args.storage,
                on_frame=advance,
                stopped=lambda: bool(stop),
            )
        except ConfigError:
            work.remove_if_new()
            raise


@dataclass(frozen=True)
class PseudolabelJob:
    """Labelled copies of bags or videos, each in a bag `labelled`.

    Args:
        args: of `vtseg pseudolabel`.
    """

    args: argparse.Namespace

    @property
    def checkpoints(self) -> list[str]:
        """See `Job.checkpoints`."""
        return [self.args.checkpoint]

    def settings(self) -> dict[str, Any]:
        """See `Job.settings`."""
        class_map = read_text(self.args.class_map) if self.args.class_map else None
        return {**_options(self.args), "class_map": class_map, "storage": self.args.storage}

    def load(self) -> Prepared:
        """See `Job.load`."""
        return _prepare(self.args)

    def process(
        self, loaded: Prepared, task: Task, folder: Path, on_frame: Callable[[], None]
    ) -> dict[str, Any]:
        """See `Job.process`."""
        _check_input(task.path)
        args = argparse.Namespace(**{**vars(self.args), "input": task.path, "out": folder / "labelled"})
        # The job has the bar, and counts each frame once.
        done = _label_input(args, loaded, reporting_to(on_frame), reporting_to(lambda: None))
        if done is None:
            raise KeyboardInterrupt
        return {"frames": done.images, **done.summary(loaded.labels)}


def _run_job(args: argparse.Namespace, sources: list[Place]) -> int:
    args.checkpoint = absolute_checkpoint(args.checkpoint)
    for name, check in (("class_map", load_class_map), ("ego_mask", open_ego_mask)):
        path = getattr(args, name)
        if path:
            check(path)  # refused before the cluster starts
            setattr(args, name, path.absolute())
    outcomes = run_job(PseudolabelJob(args), plan_tasks(sources, args.out, args.image_topic), args)
    if args.json:
        write_outcomes(args.json, outcomes)
    return exit_code(outcomes)


def _class_confidence(texts: list[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise ConfigError(
                f"--class-confidence: expected NAME=PROBABILITY such as person=0.4, got {text!r}"
            )
    return found


def _settings(
    args: argparse.Namespace, labels: LabelSet, groups: Any, averaging: Averaging
) -> dict[str, Any]:
    """Return all values that determine the labels of one input, as plain values."""
    files = files_below(args.input)
    return {
        "input": [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "checkpoint": sha256_of(resolve_checkpoint(args.checkpoint)),
        "classes": list(labels.names),
        "groups": groups.astype(int).tolist(),
        **_options(args),
        "size": list(averaging.size),
    }


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that determine the labels, as plain values."""
    return {
        "size": list(args.size) if args.size else None,
        "scales": list(args.scales),
        "flip": args.flip,
        "neighbours": args.neighbours,
        "min_confidence": args.min_confidence,
        "class_confidence": sorted(args.class_confidence),
        "ego_mask": sha256_of(args.ego_mask) if args.ego_mask else "",
        "image_topic": args.image_topic,
        "every": args.every,
        "max_gap": args.max_gap,
        "device": args.device,
        "precision": args.precision,
    }


def _as_bag(args: argparse.Namespace, work: WorkFolder, tracker: Tracker) -> Path:
    """Return the input, or the bag in the work folder with the frames of a video."""
    if is_bag(args.input):
        return Path(args.input)
    video = work.path / "video"
    if video.exists():
        return video
    with VideoReader(args.input) as reader:
        total = reader.frame_count
    half = work.path / "video.part"
    try:
        work.make()
        shutil.rmtree(half, ignore_errors=True)
        with interrupts.unwritten(args.out), tracker(total, "reading") as advance:
            import_videos(half, [args.input], on_frame=advance)
        half.rename(video)
    except BaseException:
        work.remove_if_new()
        raise
    return video
