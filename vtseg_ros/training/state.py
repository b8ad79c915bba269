# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The resumable state of a training run."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vtseg_ros.errors import CheckpointError, ConfigError, VTSegError
from vtseg_ros.files import write_atomically
from vtseg_ros.training.config import TrainConfig

NAME = "state.pt"
BEST, LAST, VALIDATIONS = "best.safetensors", "last.safetensors", "validation.jsonl"


class SaveError(VTSegError):
    """A file of a training run that cannot be written, for example because the disk is full."""


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turn a failure to write into a SaveError that names the state that is still there."""
    try:
        yield
    except OSError as err:
        kept = (
            f"{folder / NAME} is unchanged: continue from it with --resume"
            if (folder / NAME).is_file()
            else ""
        )
        raise SaveError(f"cannot save to {folder}: {err.strerror or err}. {kept}".rstrip()) from err


def refuse_used(folder: Path) -> None:
    """Check that a folder contains no files of an earlier training run that saved its state.

    Raises:
        ConfigError: If it does.
    """
    if any((folder / name).exists() for name in (NAME, BEST, LAST)):
        raise ConfigError(
            f"{folder} contains a training run: nothing is overwritten. Continue it with --resume (parameter resume of "
            "the node), or choose another folder"
        )


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of a run, which consists of tensors and plain values, to a folder."""
    # Not `Fabric.save`: it writes to the system's temporary folder and moves the file, which is not atomic on another
    # disk, and waits for all processes, of which only the first saves. `Fabric.load` is `torch.load`.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(folder / NAME, buffer.getvalue())


def load_state(folder: Path) -> dict[str, Any]:
    """Load the state that `save_state` wrote; loading executes no code from the file.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        raise CheckpointError(f"there is no training run to resume in {folder}: {NAME} is missing")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch raises pickle, zip and runtime errors for damaged files
        raise CheckpointError(f"training state {path} cannot be read: {type(err).__name__}") from err
    return state


def plan_of(
    config: TrainConfig, steps: list[int], world_size: int, teachers: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the values that must not change for a run to continue as if it had not been interrupted.

    Args:
        config: Configuration of the run.
        steps: Number of updates of each stage.
        world_size: Number of processes.
        teachers: Digest of the teacher of each stage, whose file may be moved.

    Returns:
        Plain values by name.
    """
    model = {
        k: v
        for k, v in dataclasses.asdict(config.model).items()
        if k not in ("warm_start", "warm_start_classes", "init_encoder")
    }
    stages = [
        {**dataclasses.asdict(stage), "epochs": 0, "steps": count, "teacher": teacher}
        for stage, count, teacher in zip(config.stages, steps, teachers or [""] * len(steps))
    ]
    plan: dict[str, Any] = {
        "processes": world_size,
        "seed": config.seed,
        "precision": config.precision,
        "model": model,
    }
    plan |= {"data.size": config.data.size, "data.label_stride": config.data.label_stride, "stages": stages}
    plan["data.resize_mode"] = config.data.resize_mode
    plain: dict[str, Any] = json.loads(json.dumps(plan, default=str))
    return plain


def check_plan(state: dict[str, Any], plan: dict[str, Any]) -> None:
    """Check that a run continues with the same plan; stages that have not begun may differ.

    Args:
        state: Saved state of the run.
        plan: Plan of the run that resumes, see `plan_of`.

    Raises:
        ConfigError: If a value differs; names it.
    """
    saved = state.get("plan", plan)
    begun = state["stage"] + 1
    saved, given = ({**p, "stages": p["stages"][:begun]} for p in (saved, plan))
    for key, value in saved.items():
        if _differs(value, given.get(key)):
            raise ConfigError(
                f"cannot resume: {key} is not that of the interrupted run; expected {value}, got {given.get(key)}"
            )


def _differs(saved: Any, given: Any) -> bool:
    """Return whether a value of the plan has changed; keys that the saved plan lacks are new and do not count."""
    if isinstance(saved, dict) and isinstance(given, dict):
        return any(_differs(value, given.get(key)) for key, value in saved.items())
    if isinstance(saved, list) and isinstance(given, list):
        return len(saved) != len(given) or any(map(_differs, saved, given))
    return bool(saved != given)
