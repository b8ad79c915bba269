"""Loading a state dict that must fit: missing, unexpected and misshapen entries are refused by name."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vtseg_ros.errors import CheckpointError

METADATA_KEY = "vtseg_ros"
"""Under which our files (.safetensors, .onnx, .pt2) carry their metadata."""
SHOWN = 3
OPTIONAL = ("num_batches_tracked", "normalization.mean", "normalization.std")
"""Ends of names that a state may lack: no part of the output, or what `Normalization` then sets to 0 and 1."""


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def load_exact(module: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Copy `state` into `module`; every key and shape must agree.

    Entries that end in one of `OPTIONAL` may be absent.

    Raises:
        CheckpointError: naming the first keys that are missing, unexpected or of another shape.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith(OPTIONAL)]
    if missing:
        raise CheckpointError(f"{source}: {len(missing)} keys are missing: {_some(missing)}")
    unexpected = [key for key in state if key not in own]
    if unexpected:
        raise CheckpointError(
            f"{source}: {len(unexpected)} keys are not of this network: {_some(unexpected)}"
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise CheckpointError(
                f"{source}: {key} has another shape. Expected: {tuple(own[key].shape)}. Got: {tuple(value.shape)}"
            )
    module.load_state_dict(state, strict=False)


def read_state_file(path: Path, *, source: str) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or PyTorch file; nothing in it is executed.

    Args:
        path: a state dict, or a mapping that holds one as `state_dict` or `model`, as training programs write it.
        source: how messages name the file.

    Raises:
        CheckpointError: if it cannot be read, or holds no state dict.
    """
    if not path.is_file():
        raise CheckpointError(f"{source}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("it is not a state dict")
        return dict(state)
    except Exception as err:  # pickle, zip, safetensors and runtime errors of damaged files, and refused code
        raise CheckpointError(
            f"{source} cannot be read: {str(err).splitlines()[0] if str(err) else type(err).__name__}. "
            "Expected: a whole .safetensors file, or a PyTorch file that holds nothing but tensors"
        ) from err
