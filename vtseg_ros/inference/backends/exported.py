# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Exported networks: their metadata, and their inputs and outputs in any runtime that reads the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from vtseg_ros.errors import CheckpointError, ConfigError, DeviceError
from vtseg_ros.inference.backends.base import Backend, BackendOptions, run_one_by_one
from vtseg_ros.inference.devices import PRECISIONS
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model.checkpoint import Checkpoint, read_agreement, read_use
from vtseg_ros.model.licence import Licence
from vtseg_ros.model.onnx_adapter import adapter_of
from vtseg_ros.model.state_dicts import METADATA_KEY

CPU = torch.device("cpu")
MOST_LAYERS = 64
"""Attention layers assumed for files that do not state them."""


class Session(Protocol):
    """A file that a runtime has opened; onnxruntime.InferenceSession is one."""

    def run(self, outputs: list[str], feed: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """Return the outputs of these names; they may be valid until the next call only."""


class ExportedBackend(Backend):
    """A file of `vtseg export --format onnx`, or of `vtseg weights convert --as onnx`.

    Args:
        path: the file.
        metadata: its entry `METADATA_KEY`; see `parse_metadata`.
        precision: name of the precision that the runtime uses.

    Attributes:
        kind: `stream`, `window` or `image`.
        session: the opened file; a subclass sets it.
    """

    longest_window: int
    session: Session

    def __init__(self, path: Path, metadata: Mapping[str, Any], precision: str) -> None:
        self.kind = metadata["kind"]
        self._adapter = adapter_of(dict(metadata))
        width, height = (int(side) for side in metadata["input_size"])
        super().__init__(
            checkpoint=described(path, metadata),
            device=CPU,  # images and masks are processed on the CPU
            precision=precision,
            input_size=(width, height),
            streaming=metadata["streaming"],
            video=self.kind != "image",
            depth=int(metadata.get("depth", MOST_LAYERS)),
            longest_window=int(metadata["config"]["window"]),
        )
        self._row = 0
        """S, the number of cached values of a frame; a subclass sets it for streaming steps."""

    @property
    def description(self) -> str:
        """See `Backend.description`."""
        return f"{self.kind}, {self.streaming}"

    def run(self, images: Tensor, past: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, list[np.ndarray]]:
        """See `Backend.run`; everything is float32 on the CPU."""
        run = {"stream": self._stream, "window": self._whole_window, "image": self._image}[self.kind]
        return run_one_by_one(run, images, past)

    def _image(self, image: np.ndarray, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if self._adapter is not None:
            return self._adapter.run(self.session, image), np.empty(0, np.float32)
        (logits,) = self.session.run(["logits"], {"images": image[None]})
        return logits, np.empty(0, np.float32)

    def _stream(self, image: np.ndarray, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        older = self.longest_window - 1
        past, valid = _padded(rows, older, (self._row,))
        feed = {"images": image[None], "past": past[None], "valid": valid}
        logits, following = self.session.run(["logits", "past_next"], feed)
        return logits, following[0, -1].copy()  # only the new row, not the k - 1 older ones

    def _whole_window(self, image: np.ndarray, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        shape = (3, self.input_size[1], self.input_size[0])
        frames = [row.reshape(shape) for row in rows] + [image]
        video, valid = _padded(frames, self.longest_window, shape)
        (logits,) = self.session.run(["logits"], {"video": video[None], "valid": valid})
        return logits, image.reshape(-1)


def checked_path(source: str | Path | Checkpoint, options: BackendOptions) -> Path:
    """Return the path of an exported file after a check of the options that do not depend on its content.

    Raises:
        CheckpointError: if there is no such file.
        ConfigError, DeviceError: for an option that an exported file does not have.
    """
    path = Path(cast("str | Path", source))
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected an exported network")
    if options.precision not in ("auto", *PRECISIONS):
        raise DeviceError(
            f"precision: unknown; expected auto, {', '.join(PRECISIONS)}, got {options.precision!r}"
        )
    if options.static_prior:
        raise ConfigError(
            f"{path}: its static network was fixed when it was exported. Leave static_prior unset"
        )
    return path


def check_fixed(path: Path, metadata: Mapping[str, Any], options: BackendOptions) -> None:
    """Raise ConfigError if the options name another input size or streaming mode than the file has."""
    width, height = (int(side) for side in metadata["input_size"])
    if options.input_size is not None and tuple(options.input_size) != (width, height):
        raise ConfigError(
            f"input_size: fixed when {path} was exported; expected {width}x{height} px, "
            f"got {options.input_size[0]}x{options.input_size[1]}"
        )
    if options.streaming not in ("auto", metadata["streaming"]):
        raise ConfigError(
            f"streaming: fixed when {path} was exported; expected {metadata['streaming']}, got {options.streaming}"
        )


def parse_metadata(text: str | None, path: Path) -> dict[str, Any]:
    """Return the metadata of an exported file.

    Args:
        text: its entry `METADATA_KEY`; None = it has none.
        path: the file, for errors.

    Raises:
        CheckpointError: if it has none, or of an unknown format.
    """
    if text is None:
        raise CheckpointError(
            f"{path} was not written by `vtseg export`: it has no {METADATA_KEY!r} metadata with classes and size. "
            f"For another segmentation network: vtseg weights convert {path} --as onnx --labels FILE"
        )
    metadata = json.loads(text)
    if metadata.get("format") != 1:
        raise CheckpointError(f"{path}: unknown export format; expected 1, got {metadata.get('format')!r}")
    result: dict[str, Any] = metadata
    return result


def described(path: Path, metadata: Mapping[str, Any]) -> Checkpoint:
    """Return the description of an exported file as a checkpoint without a model."""
    width, height = (int(side) for side in metadata["input_size"])
    resize_mode, temperature = read_use(dict(metadata))
    colors = tuple(tuple(color) for color in metadata["class_colors"])
    return Checkpoint(
        model=None,
        architecture=metadata["architecture"],
        config=metadata["config"],
        labels=LabelSet(tuple(metadata["class_names"]), colors),
        input_size=(width, height),
        training=metadata["training"],
        path=path,
        licence=Licence.from_metadata(dict(metadata)),
        resize_mode=resize_mode,
        temperature=temperature,
        agreement=read_agreement(dict(metadata)),
    )


def _padded(
    entries: Sequence[np.ndarray], count: int, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (count, *shape) float32 with the entries last, and (count,) bool, True for entries."""
    stacked, valid = np.zeros((count, *shape), np.float32), np.zeros(count, bool)
    for index, entry in enumerate(entries, start=count - len(entries)):
        stacked[index], valid[index] = entry, True
    return stacked, valid
