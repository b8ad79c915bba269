# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: safetensors files with weights, configuration, classes, input size and training summary.

A checkpoint contains no code, and nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vtseg_ros.content import advice_on, content_of
from vtseg_ros.errors import CheckpointError, ConfigError
from vtseg_ros.files import write_atomically
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model.external_prior import check_prior_output, load_file_or_factory
from vtseg_ros.model.licence import NOT_STATED, SHIPPED, Licence
from vtseg_ros.model.registry import (
    Network,
    architecture_of,
    image_architectures,
    static_architectures,
    traits_of,
)
from vtseg_ros.model.registry import architecture as find
from vtseg_ros.model.state_dicts import METADATA_KEY, load_exact
from vtseg_ros.model.static_prior import EXTERNAL
from vtseg_ros.model.vtseg import check_size
from vtseg_ros.resize import RESIZE_MODES

FORMAT = 1
WEIGHTS_DIR = Path(__file__).resolve().parent.parent / "weights"
MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_SIDE = 16384
KEPT_FP32 = ("running_mean", "running_var", "normalization.mean", "normalization.std")
"""Suffixes of names of tensors that stay in fp32, because half precision is too inexact for them."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded network and its metadata.

    Attributes:
        model: the network, in eval mode, fp32; None for exported files, which another runtime executes.
        architecture: name of its kind in `vtseg_ros.model.registry`.
        config: the network's configuration as plain values.
        labels: its class list.
        input_size: (width, height) in px it was trained at.
        training: summary of its training (plain JSON values).
        path: the file.
        licence: of the weights.
        resize_mode: how images are resized to that size: `stretch`, `letterbox` or `crop`.
        temperature: divides the logits before the softmax, so that confidences are calibrated.
        agreement: share of pixels, 0 to 1, with the same class as in fp32, by reduced precision (`bf16`); measured on
            real frames; empty if not measured.
    """

    model: nn.Module | None
    architecture: str
    config: dict[str, Any]
    labels: LabelSet
    input_size: tuple[int, int]
    training: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    licence: Licence = NOT_STATED
    resize_mode: str = "stretch"
    temperature: float = 1.0
    agreement: dict[str, float] = field(default_factory=dict)

    @property
    def network(self) -> nn.Module:
        """The network.

        Raises:
            CheckpointError: for an exported file, which has no PyTorch network.
        """
        if self.model is None:
            raise CheckpointError(
                f"checkpoint {self.path}: no PyTorch network; expected a .safetensors file, got an exported one. "
                "Use the checkpoint that it was exported from"
            )
        return self.model


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    labels: LabelSet,
    input_size: tuple[int, int],
    training: dict[str, Any] | None = None,
    half: bool = False,
    licence: Licence = NOT_STATED,
    resize_mode: str = "stretch",
    temperature: float = 1.0,
    agreement: dict[str, float] | None = None,
) -> None:
    """Write a checkpoint to a temporary file next to `path`, and rename it.

    Args:
        path: the file; `.safetensors` by convention.
        model: a registered network.
        labels: class list, as long as the network's logits.
        input_size: (width, height) in px of the network's input.
        training: summary of the training run; plain JSON values.
        half: store weights in half precision (BatchNorm statistics and normalisation stay fp32).
        licence: of the weights.
        resize_mode: see `Checkpoint`.
        temperature: see `Checkpoint`.
        agreement: see `Checkpoint`.

    Raises:
        ConfigError: if the class list does not fit the network.
        OSError: if the file cannot be written; an existing file at `path` stays unchanged.
    """
    path = Path(path)
    architecture = architecture_of(model)
    assert isinstance(model, Network)  # all registered networks are
    config = model.config_values()
    if config["num_classes"] != len(labels):
        raise ConfigError(
            f"labels: wrong number of classes; expected {config['num_classes']} like the network, got {len(labels)}"
        )
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    if config.get("static_prior") == EXTERNAL:
        state = {key: value for key, value in state.items() if not key.startswith("static_prior.")}
    metadata = {
        "format": FORMAT,
        "architecture": architecture.name,
        "config": config,
        "class_names": list(labels.names),
        "class_colors": [list(color) for color in labels.colors],
        "input_size": list(input_size),
        "training": training or {},
        "licence": licence.to_dict(),
        "resize_mode": resize_mode,
        "temperature": temperature,
        "agreement": agreement or {},
    }
    tensors = {key: _stored(key, value, half) for key, value in state.items()}
    metadata["sha256"] = _digest(metadata, tensors)
    payload = save(tensors, metadata={METADATA_KEY: json.dumps(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, payload)


def save_again(path: str | os.PathLike[str], checkpoint: Checkpoint, *, half: bool = False) -> None:
    """Write a loaded checkpoint with its metadata; see `save_checkpoint`."""
    save_checkpoint(
        path,
        checkpoint.network,
        labels=checkpoint.labels,
        input_size=checkpoint.input_size,
        training=checkpoint.training,
        half=half,
        licence=checkpoint.licence,
        resize_mode=checkpoint.resize_mode,
        temperature=checkpoint.temperature,
        agreement=checkpoint.agreement,
    )


def store_agreement(path: Path, agreement: dict[str, float]) -> None:
    """Replace the agreement in a checkpoint file; its weights are not changed.

    Args:
        path: the file.
        agreement: see `Checkpoint`.

    Raises:
        CheckpointError: if it is not a checkpoint.
        OSError: if the file cannot be written; it then stays unchanged.
    """
    metadata, tensors = read_metadata(path), load_file(path)
    metadata["agreement"] = agreement
    metadata["sha256"] = _digest(metadata, tensors)
    write_atomically(path, save(tensors, metadata={METADATA_KEY: json.dumps(metadata)}))


def _digest(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of the metadata (without the checksum) and of every tensor's name, type, shape and bytes."""
    plain = {key: value for key, value in metadata.items() if key != "sha256"}
    total = hashlib.sha256(json.dumps(json.loads(json.dumps(plain)), sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key].contiguous()
        total.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _stored(key: str, value: Tensor, half: bool) -> Tensor:
    keep = not value.is_floating_point() or key.endswith(KEPT_FP32)
    value = value.detach().cpu()
    # Copied, because tensors with a shared or expanded storage cannot be saved.
    return (value if keep or not half else value.half()).contiguous().clone()


def resolve_checkpoint(name: str | os.PathLike[str]) -> Path:
    """Return the file of a checkpoint, given a path or the name of shipped weights.

    Raises:
        CheckpointError: if neither exists; lists the shipped names.
    """
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as err:  # name too long, unknown home folder, or a NUL character
        raise CheckpointError(f"{str(name)[:100]!r}: no checkpoint: {err}") from err
    shipped = WEIGHTS_DIR / f"{name}.safetensors"
    if len(path.parts) == 1 and shipped.is_file():
        return shipped
    known = _shipped_names()
    if path.is_dir():
        raise CheckpointError(
            f"{name}: a folder; expected a .safetensors file or the name of shipped weights ({known})"
        )
    raise CheckpointError(f"{name}: no checkpoint; expected a file or the name of shipped weights ({known})")


def _shipped_names() -> str:
    return ", ".join(sorted(p.stem for p in WEIGHTS_DIR.glob("*.safetensors"))) or "none"


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a checkpoint without loading its tensors.

    Raises:
        CheckpointError: if the file is not a whole safetensors file written by `save_checkpoint`.
    """
    try:
        size = path.stat().st_size
        file = path.open("rb")
    except OSError as err:
        raise CheckpointError(f"{path}: cannot be read: {err.strerror}") from err
    with file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        whole = len(start) == 8 and length <= min(MAX_HEADER_BYTES, size - 8)
        # The length of a header may begin with the same bytes, but those of an archive are larger than any file.
        if not whole and start[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
            raise CheckpointError(
                f"{path}: a pickle or zip archive, which could run code, so nothing of it was executed; "
                "expected a safetensors file written by save_checkpoint. Convert PyTorch files with "
                "`vtseg weights convert`"
            )
        header = file.read(length if whole else 1)
    if not whole and header == b"{":
        raise CheckpointError(
            f"{path}: not a complete safetensors file; its header claims {length} bytes, the file has {size}. Copy it again"
        )
    if header[:1] != b"{":
        content = content_of(path)
        raise CheckpointError(
            f"{path}: not a checkpoint; expected a .safetensors file or the name of shipped weights "
            f"({_shipped_names()}), got {content}. {advice_on(content)}"
        )
    try:
        metadata = json.loads(json.loads(header)["__metadata__"][METADATA_KEY])
        if not isinstance(metadata, dict):
            raise ValueError("metadata is not a mapping")
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise CheckpointError(
            f"{path}: not written by save_checkpoint; expected {METADATA_KEY!r} metadata in its header, got none that is "
            "valid. Convert weights of other programs with `vtseg weights convert`"
        ) from err
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: unknown format; expected {FORMAT}, got {metadata.get('format')!r}")
    return metadata


def licence_of(path: Path, metadata: dict[str, Any]) -> Licence:
    """Return the licence of a checkpoint file from its metadata, or that of shipped weights older than the entry.

    Raises:
        CheckpointError: if the entry is not a licence.
    """
    if "licence" not in metadata and path.parent == WEIGHTS_DIR:
        return SHIPPED.get(path.stem, NOT_STATED)
    return Licence.from_metadata(metadata)


def read_use(metadata: dict[str, Any]) -> tuple[str, float]:
    """Return the resize mode and the temperature in a file's metadata; older files have neither.

    Raises:
        CheckpointError: for values that do not exist.
    """
    mode, temperature = metadata.get("resize_mode", "stretch"), metadata.get("temperature", 1.0)
    if (
        mode not in RESIZE_MODES
        or not isinstance(temperature, (int, float))
        or not 0 < temperature < math.inf
    ):
        raise CheckpointError(
            f"metadata: unknown use; expected resize_mode of {', '.join(RESIZE_MODES)} and a temperature above 0, "
            f"got {mode!r} and {temperature!r}"
        )
    return mode, float(temperature)


def read_agreement(metadata: dict[str, Any]) -> dict[str, float]:
    """Return the agreement of reduced precisions in a file's metadata; older files have none.

    Raises:
        CheckpointError: if a value is not a share of pixels.
    """
    found = metadata.get("agreement", {})
    if not isinstance(found, dict) or not all(
        isinstance(share, (int, float)) and 0 <= share <= 1 for share in found.values()
    ):
        raise CheckpointError(f"metadata: agreement: expected shares of pixels by precision, got {found!r}")
    return {str(precision): float(share) for precision, share in found.items()}


def _build(name: str, config: dict[str, Any], static_prior: str | None, size: tuple[int, int]) -> nn.Module:
    try:
        architecture = find(name)
    except ConfigError as err:
        raise CheckpointError(str(err)) from err
    inside, prior = config.get("static_prior", EXTERNAL), None
    if inside not in (EXTERNAL, *static_architectures(name)):
        raise CheckpointError(
            f"static_prior: the checkpoint names {inside!r}, which is not built in, and a checkpoint cannot contain "
            "code. Select the static network with the parameter static_prior"
        )
    if static_prior and architecture.adds_to_prior:
        raise CheckpointError(
            f"static_prior: cannot replace the static network of {name}, which was trained together with the rest; "
            f"expected none, got {static_prior}. Leave the parameter static_prior out"
        )
    if inside == EXTERNAL and static_prior and architecture.video:
        prior = load_external_prior(static_prior, num_classes=_prior_classes(config), size=size)
    return architecture.from_config(config, static_prior=prior)


def _prior_classes(config: dict[str, Any]) -> int:
    result: int = config.get("prior_classes") or config["num_classes"]
    return result


def _check_claims(config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Raise CheckpointError if the configuration describes a network much larger than the file, before it is built."""
    if "static_prior_config" in config:
        _check_claims(config["static_prior_config"], state)
    layers = sum(config.get("depths", ()))
    if layers > len(state):
        raise CheckpointError(
            f"depths: the configuration claims {layers} layers, the file contains {len(state)} tensors"
        )
    elements = sum(value.numel() for value in state.values())
    ratio = config.get("mlp_ratio", 1)
    sides = [
        ("head_channels", config.get("head_channels", 1), 1),
        ("pixel_channels", config.get("pixel_channels", 0), 4 * 9),
    ]
    for width, reduction in zip(config.get("embed_dims", ()), config.get("sr_ratios", ())):
        sides += [("sr_ratios", width, reduction * reduction), ("mlp_ratio", width, ratio)]
    for key, width, times in sides:
        # Each is a matrix or kernel of the network with width x width x times values.
        if width * width * times > elements:
            raise CheckpointError(
                f"{key}: the configuration claims more values than the {elements} in the file"
            )


def load_checkpoint(
    name: str | os.PathLike[str], *, device: str | torch.device = "cpu", static_prior: str | None = None
) -> Checkpoint:
    """Load a checkpoint by path, or shipped weights by name.

    Args:
        name: a file, or a name such as `street_tiny`.
        device: where to put the network.
        static_prior: for a VTSeg trained on an external static network: that network (see
            `load_external_prior`). With any other VTSeg, it replaces the static network in the checkpoint.

    Raises:
        CheckpointError: if the file is truncated, not a checkpoint, or of another network; one line says which.
    """
    path = resolve_checkpoint(name)
    try:
        metadata = read_metadata(path)
        labels = LabelSet(
            tuple(metadata["class_names"]), tuple(tuple(color) for color in metadata["class_colors"])
        )
        width, height = (int(side) for side in metadata["input_size"])
        check_size(height, width)
        if max(width, height) > MAX_SIDE:
            raise CheckpointError(
                f"input_size: too large; expected sides of at most {MAX_SIDE} px, got {width}x{height}"
            )
        resize_mode, temperature = read_use(metadata)
        agreement = read_agreement(metadata)
        config, training = dict(metadata["config"]), dict(metadata["training"])
        licence = licence_of(path, metadata)
        if config["num_classes"] != len(labels):
            raise CheckpointError(
                f"class_names: expected {config['num_classes']} names like the network's classes, got {len(labels)}"
            )
        state = load_file(path)
        _check_claims(config, state)
        model = _build(metadata["architecture"], config, static_prior, (height, width))
    except CheckpointError:
        raise
    except Exception as err:  # invalid values cause all kinds of errors in libraries
        raise CheckpointError(f"checkpoint {path} cannot be used: {type(err).__name__}: {err}") from err
    bad = next((k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()), None)
    if bad:
        raise CheckpointError(f"checkpoint {path} cannot be used: {bad} contains values that are not finite")
    digest = _digest(metadata, state)
    target: nn.Module = model
    external = config.get("static_prior") == EXTERNAL
    if external:
        own = {k: v for k, v in model.state_dict().items() if k.startswith("static_prior.")}
        state = {**state, **own}
    load_exact(
        target,
        {key: value.float() if value.is_floating_point() else value for key, value in state.items()},
        source=f"checkpoint {path}",
    )
    if metadata.get("sha256", digest) != digest:
        raise CheckpointError(
            f"checkpoint {path} is damaged: its contents do not match its checksum. Copy it again"
        )
    if static_prior and not external and traits_of(model).takes_cache:
        classes = _prior_classes(config)
        model.static_prior = load_external_prior(static_prior, num_classes=classes, size=(height, width))
    model.eval().to(device)
    return Checkpoint(
        model=model,
        architecture=metadata["architecture"],
        config=config,
        labels=labels,
        input_size=(width, height),
        training=training,
        path=path,
        licence=licence,
        resize_mode=resize_mode,
        temperature=temperature,
        agreement=agreement,
    )


def load_external_prior(source: str, *, num_classes: int, size: tuple[int, int] = (64, 64)) -> nn.Module:
    """Load an external static network: a checkpoint of an image network, or what `load_file_or_factory` loads.

    Args:
        source: path of a checkpoint (.safetensors) or another file, or `package.module:factory`; all but a checkpoint
            execute code when loaded.
        num_classes: classes C that its logits must have.
        size: (height, width) of the image that the shape of its output is checked with: the input size of the network,
            which files exported for one size must accept.

    Raises:
        ConfigError: if it cannot be found, or its output is not (n, C, H, W).
        CheckpointError: if the file cannot be read.
    """
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".safetensors":
        prior = _image_network(path)
    else:
        prior = load_file_or_factory(source, num_classes=num_classes)
    prior.eval()
    return check_prior_output(prior, source, num_classes=num_classes, size=size)


def _image_network(path: Path) -> nn.Module:
    loaded = load_checkpoint(path)
    known = image_architectures()
    if loaded.architecture not in known:
        raise ConfigError(
            f"static_prior {path}: wrong network; expected a checkpoint of an image network ({', '.join(known)}), "
            f"got {loaded.architecture}"
        )
    return loaded.network
