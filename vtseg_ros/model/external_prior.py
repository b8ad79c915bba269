# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Static networks of exported files and of the user's own factories, which checkpoints do not contain.

A TorchScript file, a `torch.export` file or a factory executes code when loaded. They are loaded only if the user names
them, never because a checkpoint does.
"""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.errors import CheckpointError, ConfigError, first_line
from vtseg_ros.model.onnx_adapter import adapter_of
from vtseg_ros.model.registry import find_architecture
from vtseg_ros.model.state_dicts import METADATA_KEY


class OnnxPrior(nn.Module):
    """A static network in an ONNX file, executed by ONNX Runtime on the CPU; it has no gradients.

    Args:
        path: the file; one input (n, 3, H, W) float32 and one output (n, C, H, W), or a file of
            `vtseg weights convert --as onnx`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as err:  # onnxruntime raises its own exception classes
            raise CheckpointError(f"static_prior {path}: cannot be read as ONNX: {first_line(err)}") from err
        self.input_name = self.session.get_inputs()[0].name
        metadata = json.loads(self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}"))
        self.adapter = adapter_of(metadata)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C, h, w) of images (n, 3, H, W), RGB in [0, 1]."""
        if self.adapter is not None:
            logits = [
                self.adapter.run(self.session, image) for image in images.detach().float().cpu().numpy()
            ]
            upsampled = F.interpolate(
                torch.from_numpy(np.concatenate(logits)),
                size=images.shape[2:],
                mode="bilinear",
                align_corners=False,
            )
            return upsampled.to(images.device, images.dtype)
        outputs = self.session.run(None, {self.input_name: images.detach().float().cpu().numpy()})
        return torch.from_numpy(outputs[0]).to(images.device, images.dtype)


class ExportedPrior(nn.Module):
    """A static network in a `torch.export` file, which has no training mode.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.network = torch.export.load(str(path)).module()

    def train(self, mode: bool = True) -> ExportedPrior:
        """Set the flag `training`, which has no effect on the exported program."""
        # The module of the program does not allow train() and eval().
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C, h, w) of images (n, 3, H, W), RGB in [0, 1]."""
        result: Tensor = self.network(images)
        return result


class ImageByImage(nn.Module):
    """A network that was exported for one image at a time, applied to the images of a batch in sequence."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C, h, w) of images (n, 3, H, W), RGB in [0, 1]."""
        return torch.cat([self.network(image[None]) for image in images])


def load_file_or_factory(source: str, *, num_classes: int) -> nn.Module:
    """Load a static network from a file or a factory. It executes code when loaded; use trusted files only.

    Args:
        source: path of a TorchScript file (.pt, .ts, .jit), a torch.export file (.pt2) or an ONNX file (.onnx), or
            `package.module:factory`, called with `num_classes=`.
        num_classes: classes of its logits.

    Raises:
        ConfigError: if it cannot be found.
        CheckpointError: if the file cannot be read.
    """
    return (
        _factory(source, num_classes) if ":" in source and not Path(source).exists() else _file(Path(source))
    )


def check_prior_output(
    prior: nn.Module, source: str, *, num_classes: int, size: tuple[int, int]
) -> nn.Module:
    """Check the shape of an external static network's output.

    Args:
        prior: the network.
        source: what it was loaded from, for errors.
        num_classes: classes C that its logits must have.
        size: (height, width) of the image to try.

    Returns:
        The network, made to take batches if it was exported for one image.

    Raises:
        ConfigError: if it fails, or its output is not (n, C, H, W).
    """
    expected = (num_classes, *size)
    try:
        logits = _probe(prior, 1, size)
    except Exception as err:  # a user's network may raise any exception
        raise ConfigError(
            f"static_prior {source}: fails on an image of shape {(1, 3, *size)}: {first_line(err)}"
        ) from err
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, *expected):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"static_prior {source}: wrong output; expected {(1, *expected)}, got {got}")
    try:
        batched = tuple(_probe(prior, 2, size).shape) == (2, *expected)
    except Exception:  # exported for one image, which is common
        batched = False
    return prior if batched else ImageByImage(prior)


def check_prior_size(prior: nn.Module, size: tuple[int, int]) -> None:
    """Raise ConfigError if an external static network does not take images of (height, width) px."""
    own = find_architecture(prior)
    if own is not None and type(prior) is own.kind:  # a derived class may not accept all sizes
        return
    try:
        _probe(prior, 1, size)
    except Exception as err:  # whatever a user's network raises
        raise ConfigError(
            f"static_prior: the network fails on images of {size[1]}x{size[0]} px: {first_line(err)}. "
            "Use the input size that it was exported for, or export it for this one"
        ) from err


@torch.no_grad()
def _probe(prior: nn.Module, count: int, size: tuple[int, int]) -> Tensor:
    own = next(itertools.chain(prior.parameters(), prior.buffers()), None)
    result: Tensor = prior(torch.zeros(count, 3, *size, device=own.device if own is not None else None))
    return result


def _factory(source: str, num_classes: int) -> nn.Module:
    module_name, _, attribute = source.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as err:  # the user's module may raise any exception
        raise ConfigError(
            f"static_prior {source}: cannot be imported; expected package.module:factory, got: {first_line(err)}"
        ) from err
    try:
        prior = factory(num_classes=num_classes)
    except Exception as err:
        raise ConfigError(
            f"static_prior {source}: calling it with num_classes={num_classes} fails: {first_line(err)}"
        ) from err
    if not isinstance(prior, nn.Module):
        raise ConfigError(
            f"static_prior {source}: wrong result; expected a torch.nn.Module, got {type(prior).__name__}"
        )
    return prior


def _file(path: Path) -> nn.Module:
    if not path.is_file():
        raise ConfigError(
            f"static_prior {path}: no such file; expected a TorchScript, torch.export, ONNX or .safetensors file, or "
            "package.module:factory"
        )
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return OnnxPrior(path)
    try:
        if suffix == ".pt2":
            return ExportedPrior(path)
        result: nn.Module = torch.jit.load(str(path), map_location="cpu")
        return result
    except Exception as err:  # torch raises RuntimeError, ValueError, zipfile errors ... for bad files
        raise CheckpointError(
            f"static_prior {path}: cannot be read as {'torch.export' if suffix == '.pt2' else 'TorchScript'}: "
            f"{first_line(err)}"
        ) from err
