# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Static networks: registered ones by name, exported files and the user's own factories.

A TorchScript file, a `torch.export` file or a factory executes code when loaded. They are loaded only if the user names
them, never because a checkpoint does.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.errors import CheckpointError, ConfigError, first_line
from vtseg_ros.model.normalization import Cast
from vtseg_ros.model.onnx_adapter import adapter_of
from vtseg_ros.model.registry import find_architecture, image_architectures
from vtseg_ros.model.state_dicts import METADATA_KEY

if TYPE_CHECKING:
    from vtseg_ros.model.vtseg import VTSeg

EXTERNAL = "external"
"""Entry of a checkpoint whose static network is a file or a factory that the user must name."""


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


def is_own(prior: nn.Module) -> bool:
    """Return whether a static network is registered: it can be cast and fused."""
    return find_architecture(prior.network if isinstance(prior, Cast) else prior) is not None


def build_prior(name: str, *, num_classes: int) -> nn.Module:
    """Build a registered static network, freshly initialised.

    Raises:
        ConfigError: if the name is not that of a network of single images.
    """
    if name == EXTERNAL:
        raise ConfigError(
            "static_prior: not part of this checkpoint; expected a TorchScript, torch.export or ONNX file, or "
            "package.module:factory, got none. Name it by the parameter `static_prior`"
        )
    known = image_architectures()
    if name not in known:
        raise ConfigError(
            f"static_prior: unknown; expected one of {', '.join(known)}, a .pt, .pt2 or .onnx file, or "
            f"package.module:factory, got {name!r}"
        )
    return known[name].build(num_classes=num_classes)


def load_external_prior(source: str, *, num_classes: int, size: tuple[int, int] = (64, 64)) -> nn.Module:
    """Load an external static network from a file or a factory. It executes code when loaded; use trusted files only.

    Args:
        source: path of a checkpoint of an image network (.safetensors), a TorchScript file (.pt, .ts, .jit), a torch.export file (.pt2), an ONNX file (.onnx),
            or `package.module:factory`, called with `num_classes=`.
        num_classes: classes C that its logits must have.
        size: (height, width) of the image that the shape of its output is checked with: the input size of the network,
            which files exported for one size must accept.

    Raises:
        ConfigError: if it cannot be found, or its output is not (n, C, H, W).
        CheckpointError: if the file cannot be read.
    """
    prior = (
        _factory(source, num_classes) if ":" in source and not Path(source).exists() else _file(Path(source))
    )
    prior.eval()
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


def _checkpoint(path: Path) -> nn.Module:
    from vtseg_ros.model.checkpoint import (
        load_checkpoint,  # it builds networks with the priors of this module
    )

    loaded = load_checkpoint(path)
    known = image_architectures()
    if loaded.architecture not in known:
        raise ConfigError(
            f"static_prior {path}: wrong network; expected a checkpoint of an image network ({', '.join(known)}), "
            f"got {loaded.architecture}"
        )
    return loaded.network


def _file(path: Path) -> nn.Module:
    if not path.is_file():
        raise ConfigError(
            f"static_prior {path}: no such file; expected a TorchScript, torch.export, ONNX or .safetensors file, or "
            "package.module:factory"
        )
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _checkpoint(path)
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


class ClassMapping(nn.Module):
    """Each target class takes the largest logit of the source classes that map to it.

    A target without a source gets the smallest logit of the pixel, so it is never preferred.

    Args:
        mapping: for each source class its target class, or -1 for none.
        num_classes: number C of target classes.
    """

    def __init__(self, mapping: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.sources = tuple(
            tuple(source for source, target in enumerate(mapping) if target == wanted)
            for wanted in range(num_classes)
        )

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits (n, C_prior, H, W) to (n, C, H, W)."""
        lowest = logits.amin(dim=1)  # (n, H, W)
        # Slices instead of lists of indices, which are uploaded each time and cannot be captured in a CUDA graph.
        columns = [
            reduce(torch.maximum, [logits[:, source] for source in sources]) if sources else lowest
            for sources in self.sources
        ]
        return torch.stack(columns, dim=1)


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return logits (n, C, h, w) as means over pixels or interpolated bilinearly, (n, C, *size)."""
    if tuple(logits.shape[2:]) == size:
        return logits
    if logits.shape[2] > size[0]:
        return F.interpolate(logits, size=size, mode="area")
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class StaticBranch(nn.Module):
    """The static network of a VTSeg, with normalised input and VTSeg's classes.

    Args:
        model: VTSeg that contains the static network; shared, not copied.
    """

    def __init__(self, model: VTSeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 logits (n, C, H, W) of images (n, 3, H, W), RGB in [0, 1]."""
        return self.model.static_logits(images).float()

    @property
    def static_network(self) -> nn.Module:
        """The static network."""
        return self.model.static_prior

    def for_inference(self, convert: Callable[[nn.Module], nn.Module], dtype: torch.dtype) -> StaticBranch:
        """See `VTSeg.for_inference`."""
        return StaticBranch(self.model.for_inference(convert, dtype))
