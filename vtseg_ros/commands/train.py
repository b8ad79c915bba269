"""`vtseg train`: train from bags."""

from __future__ import annotations

import argparse
import json
import logging
import signal
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vtseg_ros.training.config import load_config
from vtseg_ros.training.run import Progress as Step
from vtseg_ros.training.run import train

HELP = "Train from bags as a YAML configuration says; Ctrl-C saves and ends, --resume goes on."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="training YAML, e.g. config/train/street.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the final figures")


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config)
    args.out.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(args.out / "train.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("vtseg_ros.training")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    stop = [False]

    def on_signal(*_: object) -> None:
        stop[0] = True

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    last: list[Step] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("starting")

            def on_progress(step: Step) -> None:
                last[:] = [step]
                text = f"{step.stage}: loss {step.loss:.3f}, mIoU {step.validation_miou:.1f}"
                bar.update(task, total=step.steps, completed=step.step, description=text)

            done = train(
                config, args.out, resume=args.resume, on_progress=on_progress, should_stop=lambda: stop[0]
            )
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        logger.removeHandler(handler)
        handler.close()
    if last:
        print(
            f"{'done' if done else 'stopped and saved'} at update {last[0].step} of {last[0].steps}: {args.out}"
        )
        if args.json:
            figures = {"step": last[0].step, "steps": last[0].steps, "loss": last[0].loss}
            figures["validation_miou"] = last[0].validation_miou if last[0].validation_miou >= 0 else None
            args.json.write_text(json.dumps({"done": done, **figures}, indent=2) + "\n")
    return 0
