# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Record of a training run: log lines, validation.jsonl, TensorBoard, and progress callbacks."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtseg_ros.files import write_atomically
from vtseg_ros.training.state import VALIDATIONS
from vtseg_ros.training.validation import Validation

log = logging.getLogger("vtseg_ros.training")


@dataclass(frozen=True)
class Progress:
    """Progress of a training run after an update.

    Attributes:
        stage: Name of the stage.
        epoch: Current epoch of the stage, from 1.
        epochs: Number of epochs of the stage.
        step: Number of updates done, all stages.
        steps: Number of updates of all stages.
        stage_step: Number of updates done in the stage.
        stage_steps: Number of updates of the stage.
        loss: Mean cross-entropy over labelled pixels, nats.
        learning_rate: Learning rate of the last update.
        validation_miou: mIoU of the last validation, 0..100; NaN before the first.
        seconds_left: Estimated time to the end of the run, s.
        data_share: Share of the time spent waiting for data, 0..1.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    stage_step: int
    stage_steps: int
    loss: float
    learning_rate: float
    validation_miou: float
    seconds_left: float
    data_share: float


class Record:
    """Write the record of a run into its folder.

    Args:
        folder: Folder of the run.
        on_progress: Called after every update.
        history: Validations of the run before it was interrupted; later records are removed.
        step: Number of updates already done.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on_progress: Callable[[Progress], None] | None,
        history: list[dict[str, Any]],
        step: int,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.on_progress, self.history = folder, on_progress, history
        # Not Fabric's TensorBoardLogger: it wraps this class, and makes a ValueError of the OSError of a full disk.
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        lines = "".join(json.dumps(entry) + "\n" for entry in history)
        write_atomically(folder / VALIDATIONS, lines.encode())

    def close(self) -> None:
        """Close the TensorBoard file."""
        self._board.close()

    def update(self, progress: Progress, *, recent_share: float, log_it: bool) -> None:
        """Record an update.

        Args:
            progress: Progress after the update.
            recent_share: Share of the time since the last log line spent waiting for data, 0..1.
            log_it: Write a log line and TensorBoard values.
        """
        if log_it:
            log.info(
                "stage %s, step %d/%d: loss %.4f, learning rate %.2e, waited for data %.1f %%, %s left",
                progress.stage,
                progress.stage_step,
                progress.stage_steps,
                progress.loss,
                progress.learning_rate,
                100 * recent_share,
                _duration(progress.seconds_left),
            )
            for key in ("loss", "learning_rate"):
                self._board.add_scalar(f"train/{key}", getattr(progress, key), progress.step)
            self._board.add_scalar("train/data_share", recent_share, progress.step)
        if self.on_progress:
            self.on_progress(progress)

    def validation(self, stage: str, stage_step: int, step: int, result: Validation) -> None:
        """Record a validation.

        Args:
            stage: Name of the stage.
            stage_step: Number of updates done in the stage.
            step: Number of updates done, all stages.
            result: Scores.
        """
        values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "pictures"}
        values["iou"] = [float(value) for value in result.iou]
        entry = {"stage": stage, "step": step, **values}
        self.history.append(json.loads(json.dumps(_nulls(entry))))
        with (self.folder / VALIDATIONS).open("a") as file:
            file.write(json.dumps(self.history[-1]) + "\n")
        scalars = {
            key: value for key, value in values.items() if isinstance(value, float) and math.isfinite(value)
        }
        for key, value in scalars.items():
            self._board.add_scalar(f"validation/{key}", value, step)
        for window, value in enumerate(result.miou_by_window, start=1):
            self._board.add_scalar(f"validation_by_window/{window}", value, step)
        for group in ("cross_frame_attention", "attention_entropy"):
            for name, value in getattr(result, group).items():
                self._board.add_scalar(f"{group}/{name}", value, step)
        if result.pictures is not None:
            self._board.add_image("validation", result.pictures, step, dataformats="HWC")
        self._board.flush()
        text = ", ".join(f"{key} {value:.2f}" for key, value in scalars.items())
        log.info("validation, stage %s, step %d: %s", stage, stage_step, text)
        if result.miou_by_window:
            sweep = " ".join(f"{value:.2f}" for value in result.miou_by_window)
            log.info("  miou with windows of 1..%d frames: %s", len(result.miou_by_window), sweep)
        for name, scores in result.bags.items():
            log.info("  %s: miou %.2f", name, scores["miou"])
            if math.isfinite(scores["miou"]):
                self._board.add_scalar(f"validation_by_bag/{name}", scores["miou"], step)
        for group in ("cross_frame_attention", "attention_entropy"):
            if getattr(result, group):
                figures = ", ".join(f"{name} {value:.1f}" for name, value in getattr(result, group).items())
                log.info("  %s, %%: %s", group, figures)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _nulls(value: Any) -> Any:
    """Return a value for JSON, with null instead of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _nulls(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
