# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Convert published weights to checkpoints of this package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from vtseg_ros.errors import CheckpointError, ConfigError
from vtseg_ros.files import sha256_of
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model.checkpoint import save_checkpoint
from vtseg_ros.model.licence import Licence
from vtseg_ros.model.registry import Network, image_architectures
from vtseg_ros.model.state_dicts import read_state_file
from vtseg_ros.model.vtseg import check_size
from vtseg_ros.published.table import PUBLISHED, Published

DEFAULT_SIZE = (512, 512)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Properties of a file that the user specifies; None = as in the table.

    Args:
        labels: class list.
        input_size: (width, height) in px, multiples of 32.
        mean: of RGB in [0, 1].
        std: of RGB in [0, 1].
        licence: name of the weights' licence.
    """

    labels: LabelSet | None = None
    input_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    licence: str | None = None


AS_PUBLISHED = Options()


def convert(path: Path, name: str, out: Path, options: Options = AS_PUBLISHED) -> Published | None:
    """Write the weights in a file as a checkpoint.

    Args:
        path: .safetensors, or a PyTorch file (.bin, .pth, .pt), without executing code in it.
        name: name in the table, or an architecture for the user's own weights.
        out: the checkpoint; written only if everything fits.
        options: values that replace those of the table. For a name in the table, class list, normalisation and licence
            are fixed.

    Returns:
        The entry of the table; None for the user's own weights.

    Raises:
        ConfigError: for an unknown name, a class list that is missing or does not fit, or an input size.
        CheckpointError: if the file does not contain these weights.
    """
    entry = PUBLISHED.get(name)
    known = image_architectures()
    if entry is None and name not in known:
        raise ConfigError(f"--as: expected onnx, {', '.join((*PUBLISHED, *known))}, got {name!r}")
    architecture = known[entry.architecture if entry else name]
    size = options.input_size or (entry.input_size if entry else DEFAULT_SIZE)
    check_size(size[1], size[0])
    if entry is not None:
        given = [key for key in ("labels", "mean", "std", "licence") if getattr(options, key) is not None]
        if given:
            raise ConfigError(
                f"--{given[0]}: {name} has its own; expected none, got one. For other weights of this network use "
                f"--as {architecture.name}"
            )
        labels, licence, (mean, std) = entry.labels, entry.licence, entry.normalization
    else:
        if not path.is_file():
            raise CheckpointError(f"weights {path}: no such file")
        labels = options.labels or _labels_beside(path)
        licence = Licence(options.licence or "")
        mean, std = architecture.normalization
        mean, std = options.mean or mean, options.std or std
    state = read_state_file(path, source=f"weights {path}")
    digest = sha256_of(path)
    if entry is not None and entry.sha256 not in ("", digest):
        raise CheckpointError(
            f"{path}: expected sha256 {entry.sha256} for {name}, got {digest}. The file is damaged or another one; "
            f"for other weights of this network use --as {architecture.name} --labels {entry.data}"
        )
    extra = entry.extra_classes if entry else 0
    model = cast(Network, architecture.build(num_classes=len(labels) + extra))
    try:
        model.load_published(state)
    except CheckpointError as err:
        raise CheckpointError(f"{path} does not hold the weights of {name}: {err}") from err
    bad = next((k for k, v in model.state_dict().items() if not torch.isfinite(v).all()), None)
    if bad:
        raise CheckpointError(f"{path}: {bad}: expected finite values, got others. Download the file again")
    if extra:
        model = _without_extra(model, len(labels))
    model.set_input_normalization(mean, std)
    save_checkpoint(
        out,
        model.eval(),
        labels=labels,
        input_size=size,
        training={"converted": _origin(name, entry, path, digest)},
        licence=licence,
    )
    return entry


def _origin(name: str, entry: Published | None, path: Path, digest: str) -> dict[str, object]:
    origin: dict[str, object] = {"name": name, "file": path.name, "sha256": digest}
    if entry is not None:
        origin |= {
            "source": entry.source,
            "revision": entry.revision,
            "published_miou": entry.score,
            "published_in": entry.score_source,
        }
    return origin


def _without_extra(model: Network, classes: int) -> Network:
    """Return the ERFNet without its outputs after those of the class list."""
    state: dict[str, Tensor] = model.state_dict()
    weight, bias = "decoder.output_conv.weight", "decoder.output_conv.bias"
    state[weight], state[bias] = state[weight][:, :classes], state[bias][:classes]
    smaller = type(model)(num_classes=classes)
    smaller.load_state_dict(state)
    return smaller


def _labels_beside(path: Path) -> LabelSet:
    """Return the class list in the config.json that Hugging Face transformers writes next to the weights."""
    file = path.with_name("config.json")
    if not file.is_file():
        raise ConfigError(
            f"--labels: no class list for {path}; expected a labelmap.txt (name:red,green,blue:: per line) or a known "
            "list's name, or config.json with id2label next to the weights, got neither"
        )
    try:
        names = json.loads(file.read_text(encoding="utf-8"))["id2label"]
        return LabelSet.from_names([str(names[str(index)]) for index in range(len(names))])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ConfigError(
            f"{file}: expected id2label with the ids 0..C-1, got none that can be read. Give --labels"
        ) from err
