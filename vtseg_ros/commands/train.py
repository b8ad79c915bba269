# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg train`: train from bags."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from vtseg_ros.commands import interrupts
from vtseg_ros.commands.progress import progress_bars
from vtseg_ros.commands.report_files import write_json
from vtseg_ros.training.config_file import load_config
from vtseg_ros.training.processes import is_main_process
from vtseg_ros.training.record import Progress as Step
from vtseg_ros.training.run import train
from vtseg_ros.training.state import refuse_used, saving

HELP = "Train a network from bags with a YAML configuration. Ctrl-C saves the state, --resume continues."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("config", type=Path, help="training YAML, e.g. config/train/street.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--resume", action="store_true", help="continue from the state in --out")
    parser.add_argument(
        "--init-encoder",
        type=Path,
        metavar="FILE",
        help="initial weights of the encoder: a Hugging Face SegformerModel (.safetensors or .bin), or a checkpoint of "
        "segformer_b* or vtseg",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="JSON file to write: the final scores")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    config = load_config(args.config)
    if args.init_encoder:
        model = dataclasses.replace(config.model, init_encoder=str(args.init_encoder))
        config = dataclasses.replace(config, model=model)
    if not args.resume:
        refuse_used(args.out)  # before train.log is created there
    with saving(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
    last: list[Step] = []
    # A second signal must not interrupt the saving that the first one asked for.
    with interrupts.deferred(second_raises=False) as stop, _log_file(args.out), _progress_bar() as show:

        def on_progress(step: Step) -> None:
            last[:] = [step]
            show(step)

        done = train(
            config, args.out, resume=args.resume, on_progress=on_progress, should_stop=lambda: bool(stop)
        )
    if not is_main_process():
        return 0
    if last:
        where = f"at iteration {last[0].step} of {last[0].steps}"
        print(f"{'done' if done else 'stopped and saved'} {where}: {args.out}")
    else:
        print(f"nothing left to do: {args.out}")
    if args.json and last:
        miou = last[0].validation_miou
        numbers = {
            "done": done,
            "step": last[0].step,
            "steps": last[0].steps,
            "loss": last[0].loss,
            "validation_miou": miou if math.isfinite(miou) else None,
        }
        write_json(args.json, numbers)
    return 0


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore a log line that cannot be written: saving the state shows whether the run can continue."""


@contextmanager
def _log_file(folder: Path) -> Iterator[None]:
    """Write the log lines of the main process to `train.log`."""
    if not is_main_process():
        yield
        return
    with saving(folder):
        handler = _LogFile(folder / "train.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("vtseg_ros")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


@contextmanager
def _progress_bar() -> Iterator[Callable[[Step], None]]:
    """Yield a function that displays an update, with loss, validation mIoU and remaining time."""
    with progress_bars(Console(stderr=True), disable=not is_main_process()) as bar:
        task = bar.add_task("starting", total=None)

        def show(step: Step) -> None:
            miou = f", mIoU {step.validation_miou:.1f}" if math.isfinite(step.validation_miou) else ""
            text = f"{step.stage}, epoch {step.epoch}/{step.epochs}: loss {step.loss:.3f}{miou}"
            bar.update(task, total=step.steps, completed=step.step, description=text)

        yield show
