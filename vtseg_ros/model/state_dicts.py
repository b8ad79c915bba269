# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read state dicts, check them against a network, and convert them to other classes, dimensions or memory layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vtseg_ros.content import are_weights, content_of
from vtseg_ros.errors import CheckpointError, first_line
from vtseg_ros.model.registry import class_dimensions

METADATA_KEY = "vtseg_ros"
"""Key of the metadata in our files (.safetensors, .onnx, .pt2)."""
SHOWN = 3
OPTIONAL = ("num_batches_tracked", "normalization.mean", "normalization.std")
"""Suffixes of optional entries: they do not affect the output, or `Normalization` sets them to 0 and 1."""


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def load_exact(module: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Copy `state` into `module`; every key and shape must agree.

    Entries that end in one of `OPTIONAL` may be absent.

    Raises:
        CheckpointError: if keys are missing, unexpected or of another shape; names the first ones.
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
                f"{source}: {key} has another shape; expected {tuple(own[key].shape)}, got {tuple(value.shape)}"
            )
    module.load_state_dict(state, strict=False)


def read_state_file(path: Path, *, source: str) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or PyTorch file; nothing in it is executed.

    Args:
        path: file with a state dict, or with a mapping that contains one as `state_dict` or `model`.
        source: name of the file in messages.

    Raises:
        CheckpointError: if it cannot be read, or contains no state dict.
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
            raise ValueError("not a state dict")
        return dict(state)
    except Exception as err:  # pickle, zip, safetensors and runtime errors of damaged files, and refused code
        content = content_of(path)
        weights = are_weights(content) or "unknown" in content
        raise CheckpointError(
            f"{source}: cannot be read; expected a complete .safetensors file, or a PyTorch file that contains "
            f"only tensors, got: {first_line(err) if weights else content}"
        ) from err


def inflate(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with 2-D convolutions converted to 3-D ones, where `own` has 3-D convolutions.

    Inflation as in "Quo Vadis, Action Recognition?" (Carreira and Zisserman), but with all weights in the present frame. A
    network with `mix_ffn: spatiotemporal` then gives the same output as the spatial one before it is trained.

    Args:
        state: (out, in, H, W) convolutions, and tensors of any other shape.
        own: state of the network to load into, with some tensors (out, in, T, H, W).
    """
    result = dict(state)
    for key, value in state.items():
        target = own.get(key)
        if target is not None and value.dim() == 4 and target.dim() == 5:
            result[key] = torch.zeros(*value.shape[:2], target.shape[2], *value.shape[2:], dtype=value.dtype)
            result[key][:, :, target.shape[2] // 2] = value
    return result


def use_channels_last(network: nn.Module) -> None:
    """Store the weights of all 2-D convolutions as (out, H, W, in), in place: the faster layout on CPUs and GPUs.

    `Module.to(memory_format=...)` fails for the five axes of a 3-D convolution (`mix_ffn: spatiotemporal`).
    """
    for part in network.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub


def translate_classes(
    state: dict[str, Tensor],
    own: dict[str, Tensor],
    *,
    old: tuple[str, ...],
    new: tuple[str, ...],
    sources: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Convert the state of a network with the classes `old` to the same network with the classes `new`.

    Weights of a class are copied to the class with the same name, or to those that name it as their source.

    Args:
        state: state of the trained network.
        own: state of the new network, newly initialised; classes without a source in `old` keep these weights.
        old: class names of `state`, in the order of their ids.
        new: class names of `own`.
        sources: from classes of `new` to classes of `old`, for other names.

    Returns:
        `state`, with the tensors that depend on the classes in the shapes of `own`. Tensors that differ in other ways are
        unchanged, so `load_exact` rejects them.
    """
    shared = [name for name in new if sources.get(name, name) in old]
    taken = [old.index(sources.get(name, name)) for name in shared], len(old)
    given = [new.index(name) for name in shared], len(new)
    result = dict(state)
    for key, value in state.items():
        dims = class_dimensions(key)
        if dims and key in own and _rest(value, dims, len(old)) == _rest(own[key], dims, len(new)):
            result[key] = own[key].clone()
            result[key][_grid(own[key], dims, *given)] = value[_grid(value, dims, *taken)]
    return result


def _rest(tensor: Tensor, dims: tuple[int, ...], classes: int) -> list[int]:
    """Return the shape without the dimensions of classes."""
    return [size - classes if dim in dims else size for dim, size in enumerate(tensor.shape)]


def _grid(tensor: Tensor, dims: tuple[int, ...], rows: list[int], classes: int) -> tuple[Tensor, ...]:
    """Return the indices of the rows of some classes, and of all rows that belong to no class."""
    along = [
        rows + list(range(classes, size)) if dim in dims else list(range(size))
        for dim, size in enumerate(tensor.shape)
    ]
    return torch.meshgrid(*[torch.tensor(indices, dtype=torch.long) for indices in along], indexing="ij")
