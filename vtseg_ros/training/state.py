"""The resumable state of a training run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from vtseg_ros.errors import CheckpointError
from vtseg_ros.model.checkpoint import write_atomically

NAME = "state.pt"


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
