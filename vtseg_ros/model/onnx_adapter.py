# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, describe and run segmentation networks in ONNX files that this package did not export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vtseg_ros.errors import CheckpointError

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
INTEGERS = (
    "tensor(int64)",
    "tensor(int32)",
    "tensor(int16)",
    "tensor(int8)",
    "tensor(uint8)",
    "tensor(uint16)",
)
CERTAIN = 20.0
"""Logit of the predicted class of a network that returns ids; its softmax is 1 in 8 bits."""
EXPECTED_INPUT = "one float input (1, 3, H, W)"
EXPECTED_OUTPUT = "float logits (1, C, h, w), or integer class ids (1, h, w) or (1, 1, h, w)"


@dataclass(frozen=True)
class OnnxAdapter:
    """How to feed a network of single images and read its output.

    Args:
        input: name of the input, (1, 3, H, W).
        output: name of the output.
        dtype: of the input, as onnxruntime names it, such as `tensor(float)`.
        classes: C.
        mean: of RGB in [0, 1], per channel.
        std: of RGB in [0, 1], per channel, above 0.
    """

    input: str
    output: str
    dtype: str
    classes: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OnnxAdapter:
        """Read what `to_dict` returned.

        Raises:
            CheckpointError: if the values are not of this form.
        """
        try:
            mean, std = (tuple(float(value) for value in values[key]) for key in ("mean", "std"))
            if len(mean) != 3 or len(std) != 3 or not min(std) > 0 or values["dtype"] not in FLOATS:
                raise ValueError("mean, std or dtype")
            names = {key: str(values[key]) for key in ("input", "output", "dtype")}
            return cls(**names, classes=int(values["classes"]), mean=mean, std=std)
        except (KeyError, TypeError, ValueError) as err:
            raise CheckpointError(
                f"adapter: the entry in the file's metadata cannot be used: {err}. Convert the file again with vtseg weights convert"
            ) from err

    def run(self, session: Any, image: np.ndarray) -> np.ndarray:
        """Segment one image.

        Args:
            session: onnxruntime's InferenceSession of the file.
            image: (3, H, W) float32 RGB in [0, 1].

        Returns:
            logits (1, C, h, w) float32.

        Raises:
            CheckpointError: if the output has another shape than expected, or an id beyond the class list.
        """
        shape = (3, 1, 1)
        mean, std = (np.asarray(values, np.float32).reshape(shape) for values in (self.mean, self.std))
        normalized = ((image - mean) / std).astype(FLOATS[self.dtype])
        (output,) = session.run([self.output], {self.input: normalized[None]})
        return as_logits(output, self.classes)


def as_logits(output: np.ndarray, classes: int) -> np.ndarray:
    """Return a network's output as logits (1, C, h, w) float32.

    Raises:
        CheckpointError: if it is neither logits of C classes nor class ids 0..C-1.
    """
    if np.issubdtype(output.dtype, np.floating):
        if output.ndim != 4 or output.shape[:2] != (1, classes) or 0 in output.shape:
            raise CheckpointError(
                f"output: expected float logits (1, {classes}, h, w) for {classes} classes, got {output.shape}"
            )
        return output.astype(np.float32, copy=False)
    ids = output[:, 0] if output.ndim == 4 and output.shape[1] == 1 else output
    if not np.issubdtype(output.dtype, np.integer) or ids.ndim != 3 or ids.shape[0] != 1 or 0 in ids.shape:
        raise CheckpointError(f"output: expected {EXPECTED_OUTPUT}, got {output.shape} {output.dtype}")
    if ids.min() < 0 or ids.max() >= classes:
        raise CheckpointError(
            f"output: expected class ids 0..{classes - 1}, got ids {ids.min()}..{ids.max()}. Give a longer class list"
        )
    result: np.ndarray = CERTAIN * (ids[:, None] == np.arange(classes).reshape(1, -1, 1, 1)).astype(
        np.float32
    )
    return result


def adapter_of(metadata: dict[str, Any]) -> OnnxAdapter | None:
    """Return the adapter in a file's metadata; None for a network that this package exported."""
    return OnnxAdapter.from_dict(metadata["adapter"]) if "adapter" in metadata else None
