# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Add class list, normalisation and size to ONNX segmentation networks that this package did not export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np

from vtseg_ros.errors import CheckpointError, ConfigError, first_line
from vtseg_ros.files import sha256_of, write_atomically
from vtseg_ros.model.checkpoint import MAX_SIDE
from vtseg_ros.model.licence import Licence
from vtseg_ros.model.onnx_adapter import (
    EXPECTED_INPUT,
    EXPECTED_OUTPUT,
    FLOATS,
    INTEGERS,
    OnnxAdapter,
)
from vtseg_ros.model.registry import UNIT_RANGE
from vtseg_ros.model.state_dicts import METADATA_KEY
from vtseg_ros.published.converting import Options

FORMAT = 1


def adopt(path: Path, out: Path, options: Options, *, output: str = "") -> OnnxAdapter:
    """Write an ONNX file with the metadata that nodes and commands need; the network is not changed.

    Args:
        path: a network of single images: (1, 3, H, W) float in; logits (1, C, h, w) or ids (1, h, w), (1, 1, h, w) out.
        out: the new file; written only if a test run succeeds and the output fits the class list.
        options: class list; input size, required if that of the file is not fixed; normalisation (default: none); licence.
        output: name of the output to use if several fit.

    Returns:
        Description of its input and output.

    Raises:
        ConfigError: if an option is missing or does not fit the file.
        CheckpointError: if the file is not such a network.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as err:
        raise ConfigError(f"{path}: onnx and onnxruntime are missing. pip install 'vtseg_ros[onnx]'") from err
    if options.labels is None:
        raise ConfigError(
            f"--labels: no class list for {path}; expected a labelmap.txt (name:red,green,blue:: per line) or a known "
            "list's name, got none"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    runtime = onnxruntime.SessionOptions()
    runtime.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), runtime, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime raises its own exception classes
        raise CheckpointError(f"{path} cannot be read as ONNX: {first_line(err)}") from err
    size = _size(session, path, options.input_size)
    mean, std = options.mean or UNIT_RANGE[0], options.std or UNIT_RANGE[1]
    if not min(std) > 0 or max(map(abs, mean)) > 1:
        raise ConfigError(
            f"--mean, --std: expected values for RGB in [0, 1] and std above 0, got {mean}, {std}. Divide those for "
            "0..255 by 255"
        )
    one = session.get_inputs()[0]
    adapter = OnnxAdapter(
        input=one.name,
        output=_output(session, path, output, len(options.labels)),
        dtype=one.type,
        classes=len(options.labels),
        mean=cast("tuple[float, float, float]", mean),
        std=cast("tuple[float, float, float]", std),
    )
    _try(session, adapter, path, size)
    metadata = {
        "format": FORMAT,
        "kind": "image",
        "streaming": "plain",
        "architecture": "onnx",
        "config": {"num_classes": len(options.labels), "window": 1},
        "class_names": list(options.labels.names),
        "class_colors": [list(color) for color in options.labels.colors],
        "input_size": list(size),
        "training": {"converted": {"name": "onnx", "file": path.name, "sha256": sha256_of(path)}},
        "licence": Licence(options.licence or "").to_dict(),
        "adapter": adapter.to_dict(),
    }
    network = onnx.load(str(path))
    kept = [entry for entry in network.metadata_props if entry.key != METADATA_KEY]
    del network.metadata_props[:]
    network.metadata_props.extend(kept)
    network.metadata_props.add(key=METADATA_KEY, value=json.dumps(metadata))
    try:
        payload = network.SerializeToString()
    except Exception as err:  # protobuf's limit of 2 GB
        raise ConfigError(f"{path}: the network is too large for one file: {err}") from err
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, payload)
    return adapter


def _size(session: Any, path: Path, given: tuple[int, int] | None) -> tuple[int, int]:
    """Return (width, height) of the input, from the file or the user."""
    inputs = session.get_inputs()
    found = ", ".join(f"{one.name} {one.shape} {one.type}" for one in inputs)
    shape = inputs[0].shape if inputs else []
    fits = len(inputs) == 1 and inputs[0].type in FLOATS and len(shape) == 4
    if not fits or any(
        isinstance(side, int) and side != wanted for side, wanted in zip(shape[:2], (1, 3), strict=True)
    ):
        raise CheckpointError(f"{path}: input: expected {EXPECTED_INPUT}, got {found or 'none'}")
    fixed = tuple(side if isinstance(side, int) else None for side in (shape[3], shape[2]))
    if given is None:
        if None in fixed:
            raise ConfigError(f"--size: {path} takes images of any size; expected WxH, got none")
        return cast("tuple[int, int]", fixed)
    if any(side not in (None, wanted) for side, wanted in zip(fixed, given, strict=True)):
        text = "x".join("any" if side is None else str(side) for side in fixed)
        raise ConfigError(
            f"--size: {path} takes images of {text} px; expected that, got {given[0]}x{given[1]}"
        )
    if not all(1 <= side <= MAX_SIDE for side in given):
        raise ConfigError(f"--size: expected sides of 1..{MAX_SIDE} px, got {given[0]}x{given[1]}")
    return given


def _output(session: Any, path: Path, wanted: str, classes: int) -> str:
    """Return the name of the output with logits or class ids."""
    outputs = session.get_outputs()
    found = ", ".join(f"{one.name} {one.shape} {one.type}" for one in outputs)
    if wanted:
        if wanted not in [one.name for one in outputs]:
            raise ConfigError(
                f"--output: expected one of {', '.join(one.name for one in outputs)}, got {wanted!r}"
            )
        return wanted
    fitting = [one.name for one in outputs if _may_fit(one, classes)]
    if not fitting:
        raise CheckpointError(
            f"{path}: output: expected {EXPECTED_OUTPUT} for {classes} classes, got {found or 'none'}"
        )
    if len(fitting) > 1:
        raise ConfigError(
            f"--output: several outputs of {path} fit; expected one of {', '.join(fitting)}, got none"
        )
    result: str = fitting[0]
    return result


def _may_fit(output: Any, classes: int) -> bool:
    shape = output.shape
    if output.type in FLOATS:
        return len(shape) == 4 and (not isinstance(shape[1], int) or shape[1] == classes)
    one_map = len(shape) == 3 or (len(shape) == 4 and (not isinstance(shape[1], int) or shape[1] == 1))
    return output.type in INTEGERS and one_map


def _try(session: Any, adapter: OnnxAdapter, path: Path, size: tuple[int, int]) -> None:
    """Run the network once, because it may not do what the file declares."""
    image = np.random.default_rng(0).random((3, size[1], size[0]), dtype=np.float32)
    try:
        adapter.run(session, image)
    except CheckpointError as err:
        raise CheckpointError(f"{path}: {err}") from err
    except Exception as err:  # onnxruntime raises its own exception classes
        raise CheckpointError(
            f"{path} fails on an image of {size[0]}x{size[1]} px: {first_line(err)}. Give another --size"
        ) from err
