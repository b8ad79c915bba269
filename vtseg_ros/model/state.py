"""Loading a state dict that must fit: missing, unexpected and misshapen entries are refused by name."""

from __future__ import annotations

from torch import Tensor, nn

from vtseg_ros.errors import CheckpointError

SHOWN = 3


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def load_exact(module: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Copy `state` into `module`; every key and shape must agree.

    BatchNorm's `num_batches_tracked` may be absent (it plays no part in the output).

    Raises:
        CheckpointError: naming the first keys that are missing, unexpected or of another shape.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
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
