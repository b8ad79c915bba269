# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg evaluate`: one or several checkpoints against a bag's labels, side by side."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtseg_ros import DEFAULT_CHECKPOINT
from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.storage_files import holds_bag
from vtseg_ros.bags.topics import read_label_set
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.evaluation_output import Evaluation, report
from vtseg_ros.commands.fleet_job import (
    absolute_checkpoint,
    add_ray_arguments,
    exit_code,
    refuse_urls,
    run_job,
)
from vtseg_ros.commands.progress import track
from vtseg_ros.dataset.corruptions import KINDS, Corruption
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.dataset.scene_cuts import with_cuts
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.evaluation.behaviour import AppearanceLag, Drift, FrameScores, Observer
from vtseg_ros.evaluation.class_map import load_class_map
from vtseg_ros.evaluation.merging import merge, to_counts
from vtseg_ros.evaluation.protocol import evaluate
from vtseg_ros.evaluation.robustness import (
    check_corruptions,
    check_cuts,
    evaluate_corrupted,
    evaluate_cuts,
    parse_corruptions,
)
from vtseg_ros.evaluation.selection import Selection, model_names, open_systems
from vtseg_ros.evaluation.systems import System
from vtseg_ros.files import folder_problem
from vtseg_ros.fleet import Place, Task, Url, expand_inputs, parse_place, plan_tasks
from vtseg_ros.fleet.object_store import upload
from vtseg_ros.fleet.results import read_file
from vtseg_ros.inference.backends import BACKEND_NAMES
from vtseg_ros.text import read_text

HELP = "Score one or several checkpoints on labelled bags with the protocol of the paper."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument(
        "bag",
        nargs="+",
        help="bags with images and labels of equal header stamps; also globs and .txt lists of paths",
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=[DEFAULT_CHECKPOINT],
        metavar="C",
        help=f"checkpoint files or names of shipped weights (default {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument(
        "--name", nargs="+", default=[], metavar="NAME", help="name of each checkpoint in the tables"
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        choices=model_names(),
        help="network of each checkpoint to score (default: the whole network); `static`, or the name of an image "
        "network, scores the static network inside a vtseg or gru checkpoint",
    )
    parser.add_argument(
        "--window",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help="window lengths in frames; 0 = as in the checkpoint (default)",
    )
    parser.add_argument(
        "--flow",
        nargs="+",
        default=[],
        metavar="F",
        help="optical flow of gru checkpoints: dis, topic (the bag's backward flow), the name of a topic, or "
        "package.module:factory, which executes code (default: as in training)",
    )
    parser.add_argument(
        "--static-prior", help="external static network; executes code when loaded, use trusted files only"
    )
    parser.add_argument(
        "--class-map",
        type=Path,
        metavar="FILE",
        help="YAML file that maps each label class, in the order of the ids, to the checkpoint classes that count as "
        "it. Not applied to checkpoints that have the classes of the labels",
    )
    parser.add_argument("--image-topic", default="", help="image topic; required if a bag has several")
    parser.add_argument("--label-topic", default="", help="label topic; required if a bag has several")
    parser.add_argument(
        "--start",
        type=float,
        default=0.0,
        metavar="S",
        help="first time to score, s after the start of each bag",
    )
    parser.add_argument(
        "--end",
        type=float,
        default=0.0,
        metavar="S",
        help="last time to score, s after the start of each bag; 0 = its end",
    )
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="score every n-th labelled frame; temporal scores need 1 (default)",
    )
    parser.add_argument(
        "--stride",
        type=int,
        default=1,
        metavar="N",
        help="distance between the frames of a window (default 1)",
    )
    parser.add_argument(
        "--max-gap",
        type=float,
        default=1.0,
        metavar="S",
        help="longest pause within a sequence, s (default 1)",
    )
    parser.add_argument(
        "--corrupt",
        nargs="+",
        default=[],
        metavar="KIND:SEVERITY[:SHARE]",
        help="score again with a share of the frames (default 1/3) corrupted, once per kind: "
        + ", ".join(KINDS)
        + ", or all; "
        "severity 1 to 5. Corrupted frames, the frames after them and the others are scored separately",
    )
    parser.add_argument(
        "--corrupt-run",
        type=int,
        default=1,
        metavar="N",
        help="number of consecutive frames to corrupt, 1 to 3 (default 1)",
    )
    parser.add_argument(
        "--lag",
        action="store_true",
        help="measure the frames until newly appeared objects are segmented; needs labels on all frames",
    )
    parser.add_argument(
        "--scene-cuts",
        type=int,
        default=0,
        metavar="N",
        help="score again with the frames reordered so that the scene changes every N frames, and measure the recovery",
    )
    parser.add_argument(
        "--drift",
        type=int,
        nargs="?",
        const=1000,
        default=0,
        metavar="N",
        help="compare the last with the first tenth of N frames of each sequence (default 1000); needs labels on all frames",
    )
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N (default auto)"
    )
    parser.add_argument(
        "--backend",
        choices=BACKEND_NAMES,
        default="auto",
        help="backend that executes the networks (default auto)",
    )
    parser.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16 (default auto)")
    parser.add_argument(
        "--pictures",
        type=int,
        default=6,
        metavar="N",
        help="number of frames shown in the report (default 6)",
    )
    parser.add_argument(
        "--out",
        type=parse_place,
        metavar="DIR",
        help="folder for report.json and report.html; for a job, a folder or URL",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="scores as a JSON file")
    parser.add_argument("--html", type=Path, metavar="FILE", help="report as an HTML file")
    add_ray_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    args.bag = expand_inputs(args.bag)
    corruptions = _check_arguments(args)
    if args.ray:
        return run_evaluate_job(args)
    refuse_urls([*args.bag, args.out], "Add --ray none and --out DIR")
    if args.out:
        _check_out(args.out)
    selection = _selection(args)
    index = _index(args, args.bag)
    store = FrameStore(index)
    systems = open_systems(selection, store.index)
    num_classes = len(systems[0].labels)
    named = [_check_classes(bag, systems[0], args.class_map) for bag in args.bag]
    # Reported before the frames are scored.
    _check_consecutive_labels(args, index)
    check_corruptions(index, corruptions, args.every)
    if args.scene_cuts:
        check_cuts(systems)
    cuts = with_cuts(index, args.scene_cuts) if args.scene_cuts else None
    lag = AppearanceLag(len(systems)) if args.lag else None
    drift = None
    if args.drift:
        drift = Drift(index, args.drift, num_classes=num_classes, systems=len(systems))
    undisturbed = FrameScores(num_classes)
    observers: list[Observer] = [undisturbed] if corruptions or cuts else []
    observers += [measure for measure in (lag, drift) if measure]
    total = len(index.labelled(args.every)) * (1 + len(corruptions)) + len(index.labelled()) * bool(cuts)
    with interrupts.unwritten("the report"), track(total, "evaluating") as advance:
        outcome = evaluate(
            store,
            systems,
            every=args.every,
            pictures=max(args.pictures, 0),
            observers=observers,
            on_frame=advance,
        )
        corrupted = evaluate_corrupted(
            index, systems, corruptions, every=args.every, undisturbed=undisturbed, on_frame=advance
        )
        behaviour: dict[str, Any] = {}
        if lag:
            behaviour["appearance"] = lag.to_dict(outcome.infos, systems[0].labels)
        if cuts:
            behaviour["scene_cuts"] = evaluate_cuts(
                cuts, systems, undisturbed, every=args.scene_cuts, on_frame=advance
            )
        if drift:
            behaviour["drift"] = drift.to_dict(outcome.infos)
    facts = _facts(args, args.bag, len(store), len(index.sequences), outcome.labelled)
    missing = sum(index.missing.values())
    report(args, Evaluation(outcome, facts, all(named), missing, corrupted, behaviour))
    return 0


def _check_arguments(args: argparse.Namespace) -> list[Corruption]:
    """Check the options before anything is loaded; return the corruptions to apply."""
    for name in ("every", "stride"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name}: out of range; expected at least 1, got {getattr(args, name)}")
    if not args.max_gap > 0:
        raise ConfigError(f"--max-gap: out of range; expected above 0 s, got {args.max_gap}")
    for name in ("lag", "drift"):
        if getattr(args, name) and args.every > 1:
            raise ConfigError(
                f"--{name}: needs every label; expected --every 1, got {args.every}. Leave --every out"
            )
    if args.pictures < 0:
        raise ConfigError(f"--pictures: out of range; expected at least 0, got {args.pictures}")
    if args.scene_cuts < 0:
        raise ConfigError(f"--scene-cuts: expected at least 1 frame between cuts, got {args.scene_cuts}")
    return parse_corruptions(args.corrupt, run=args.corrupt_run)


def _check_consecutive_labels(args: argparse.Namespace, index: FrameIndex) -> None:
    """Raise ConfigError for a measure over consecutive labels if there are none."""
    labelled = [number for number, _ in index.labelled()]
    if any(later == earlier + 1 for earlier, later in zip(labelled, labelled[1:])):
        return
    for name in ("lag", "drift"):
        if getattr(args, name):
            raise ConfigError(
                f"--{name}: no two consecutive frames have labels; expected labels on all frames"
            )


def _check_out(folder: Path) -> None:
    """Check the folder of the report before the frames are scored."""
    if folder.is_dir() and holds_bag(folder):
        raise ConfigError(
            f"--out: {folder} is a bag; expected a folder for the report. Choose another folder"
        )
    problem = folder_problem(folder / "report.json")
    if problem:
        raise ConfigError(f"--out: {folder} cannot be written; {problem}. Choose another folder")


def _selection(args: argparse.Namespace) -> Selection:
    return Selection(
        args.checkpoint,
        models=args.model,
        windows=args.window,
        flows=args.flow,
        names=args.name,
        static_prior=args.static_prior,
        stride=args.stride,
        device=args.device,
        backend=args.backend,
        precision=args.precision,
        class_map=load_class_map(args.class_map) if args.class_map else None,
    )


def _index(args: argparse.Namespace, bags: list[Path]) -> FrameIndex:
    sources = [BagSource(bag, args.image_topic, args.label_topic, args.start, args.end) for bag in bags]
    return FrameIndex(sources, max_gap_s=args.max_gap, stride=args.stride)


SETTINGS = (
    "model",
    "window",
    "flow",
    "name",
    "static_prior",
    "image_topic",
    "label_topic",
    "start",
    "end",
    "stride",
    "max_gap",
    "device",
    "backend",
    "precision",
)
"""Options that determine the scores."""
COUNTS = "counts.json"
MOST_NAMES = 20
"""If there are more bags, only their number is shown."""


@dataclass(frozen=True)
class EvaluateJob:
    """Scores of each bag separately, as counts that can be added.

    Args:
        args: of `vtseg evaluate`.
    """

    args: argparse.Namespace

    @property
    def checkpoints(self) -> list[str]:
        """See `Job.checkpoints`."""
        return list(self.args.checkpoint)

    def settings(self) -> dict[str, Any]:
        """See `Job.settings`."""
        class_map = read_text(self.args.class_map) if self.args.class_map else None
        return {**{name: getattr(self.args, name) for name in SETTINGS}, "class_map": class_map}

    def load(self) -> list[System]:
        """See `Job.load`."""
        _selection(self.args)  # raises an error if they do not fit together
        return []

    def process(
        self, loaded: list[System], task: Task, folder: Path, on_frame: Callable[[], None]
    ) -> dict[str, Any]:
        """See `Job.process`."""
        index = _index(self.args, [task.path])
        if not loaded or any(system.info.flow for system in loaded):  # flow is of one bag
            loaded[:] = open_systems(_selection(self.args), index)
        named = _check_classes(task.path, loaded[0], self.args.class_map)
        for system in loaded:
            system.problems.clear()  # of the bag before
        outcome = evaluate(FrameStore(index), loaded, pictures=0, on_frame=on_frame)
        (folder / COUNTS).write_text(json.dumps(to_counts(outcome)) + "\n")
        return {
            "frames": len(index.frames),
            "sequences": len(index.sequences),
            "named": named,
            "missing": sum(index.missing.values()),
        }


def run_evaluate_job(args: argparse.Namespace) -> int:
    """Score each bag in a separate task and report the sum.

    Returns:
        The exit code: 0 = all bags are scored, 1 = some failed.

    Raises:
        BagError: if no bag could be scored.
        ConfigError: if an option does not fit a job.
    """
    if not args.out or args.every != 1 or args.corrupt or args.lag or args.drift or args.scene_cuts:
        raise ConfigError(
            "--ray: the scores of each bag are written into a folder; expected --out DIR and none of --every, "
            "--corrupt, --lag, --drift and --scene-cuts. Leave them out, or leave --ray out"
        )
    args.checkpoint = [absolute_checkpoint(name) for name in args.checkpoint]
    if args.class_map:
        load_class_map(args.class_map)  # reports errors before the cluster starts
        args.class_map = args.class_map.absolute()
    outcomes = run_job(EvaluateJob(args), plan_tasks(args.bag, args.out, args.image_topic), args)
    complete = [one for one in outcomes if one.state != "failed"]
    if not complete:
        raise BagError(f"no bag could be scored: {outcomes[0].reason}")
    parts = [one.result for one in complete]
    total = merge(json.loads(read_file(one.task.output / COUNTS)) for one in complete)
    facts = _facts(
        args,
        [one.task.source for one in complete],
        sum(part["frames"] for part in parts),
        sum(part["sequences"] for part in parts),
        total.labelled,
    )
    if len(complete) < len(outcomes):
        facts["failed"] = f"{len(outcomes) - len(complete)} more bags could not be scored"
    named = all(part["named"] for part in parts)
    found = Evaluation(total, facts, named, sum(part["missing"] for part in parts))
    if not isinstance(args.out, Url):
        report(args, found)
        return exit_code(outcomes)
    with tempfile.TemporaryDirectory() as scratch:
        report(argparse.Namespace(**{**vars(args), "out": Path(scratch)}), found)
        upload(Path(scratch), args.out, "report.json")
    return exit_code(outcomes)


def _check_classes(path: Path, system: System, class_map: Path | None) -> bool:
    """Return whether the bag contains its class names; raise ConfigError if they differ from the system's."""
    with BagReader(path) as bag:
        own = read_label_set(bag)
    if own is not None and own.names != system.labels.names:
        owner = f"class map {class_map}" if class_map else f"checkpoint {system.info.checkpoint}"
        advice = (
            "Write a line for each class of the bag, in its order"
            if class_map
            else "Give --class-map FILE, which maps label classes to the checkpoint's"
        )
        raise ConfigError(
            f"bag {path}: other classes than the {owner}; expected {', '.join(system.labels.names)}, "
            f"got {', '.join(own.names)}. {advice}"
        )
    return own is not None


def _facts(
    args: argparse.Namespace, bags: Sequence[Place], frames: int, sequences: int, labelled: int
) -> dict[str, str]:
    facts = {
        "bag": ", ".join(bag.name for bag in bags) if len(bags) <= MOST_NAMES else f"{len(bags)} bags",
        "frames": str(frames),
        "labelled": str(labelled),
        "sequences": str(sequences),
    }
    if args.start or args.end:
        facts["part"] = f"{args.start:g} s to {f'{args.end:g} s' if args.end else 'the end'}"
    if args.class_map:
        facts["class map"] = args.class_map.name
    if args.every > 1:
        facts["scored"] = f"1 of {args.every} labels"
    if args.stride > 1:
        facts["windows"] = f"of frames {args.stride} apart"
    return facts
