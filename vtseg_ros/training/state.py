# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The resumable state of a training run."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from vtseg_ros.errors import CheckpointError, ConfigError, VTSegError
from vtseg_ros.files import write_atomically
from vtseg_ros.training.config import TrainConfig

NAME = "state.pt"


BEST, LAST, VALIDATIONS = "best.safetensors", "last.safetensors", "validation.jsonl"


class SaveError(VTSegError):
    """Something of a run that cannot be written, for example because the disk is full."""


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turn a failure to write into a SaveError that says what is still there."""
    try:
        yield
    except OSError as err:
        kept = f"{folder / NAME} is as it was: --resume goes on from it" if (folder / NAME).is_file() else ""
        raise SaveError(f"cannot save to {folder}: {err.strerror or err}. {kept}".rstrip()) from err


def refuse_used(folder: Path) -> None:
    """Raise ConfigError if a folder holds what an earlier training saved; one that ended before that can start anew."""
    if any((folder / name).exists() for name in (NAME, BEST, LAST)):
        raise ConfigError(
            f"{folder} holds a training: nothing is overwritten. Go on with --resume (the node's parameter resume), "
            "or choose another folder"
        )


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of a run: tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(folder / NAME, buffer.getvalue())


def load_state(folder: Path) -> dict[str, Any]:
    """The state that `save_state` wrote; loaded without running anything in it.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        raise CheckpointError(f"there is no training to resume in {folder}: {NAME} is missing")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch raises pickle, zip and runtime errors for damaged files
        raise CheckpointError(f"training state {path} cannot be read: {type(err).__name__}") from err


def plan_of(
    config: TrainConfig, steps: list[int], world_size: int, teachers: Sequence[str] = ()
) -> dict[str, Any]:
    """What must be the same for a run to go on as if it had not been interrupted: plain values by name.

    Args:
        config: of the run.
        steps: updates of each stage.
        world_size: number of processes.
        teachers: digest of each stage's teacher, which may lie in another place by now.
    """
    model = {
        k: v for k, v in dataclasses.asdict(config.model).items() if k not in ("warm_start", "init_encoder")
    }
    stages = [
        {**dataclasses.asdict(stage), "epochs": 0, "steps": count, "teacher": teacher}
        for stage, count, teacher in zip_longest(config.stages, steps, teachers, fillvalue="")
    ]
    plan = {"processes": world_size, "seed": config.seed, "precision": config.precision, "model": model}
    plan |= {"data.size": config.data.size, "data.label_stride": config.data.label_stride, "stages": stages}
    plan["data.resize_mode"] = config.data.resize_mode
    return json.loads(json.dumps(plan, default=str))


def check_plan(state: dict[str, Any], plan: dict[str, Any]) -> None:
    """Refuse to resume with another plan; stages that have not begun may differ.

    Raises:
        ConfigError: naming what differs.
    """
    saved = state.get("plan", plan)
    begun = state["stage"] + 1
    saved, given = ({**p, "stages": p["stages"][:begun]} for p in (saved, plan))
    for key, value in saved.items():
        if _differs(value, given.get(key)):
            raise ConfigError(
                f"cannot resume: {key} is not what the interrupted run had. Expected: {value}. Got: {given.get(key)}"
            )


def _differs(saved: Any, given: Any) -> bool:
    """Whether a value of the plan has changed; a key that the saved plan does not know is new and does not count."""
    if isinstance(saved, dict) and isinstance(given, dict):
        return any(_differs(value, given.get(key)) for key, value in saved.items())
    if isinstance(saved, list) and isinstance(given, list):
        return len(saved) != len(given) or any(map(_differs, saved, given))
    return saved != given
