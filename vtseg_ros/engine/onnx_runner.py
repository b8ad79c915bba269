"""Exported networks (.onnx) run by onnxruntime, on whichever of its providers are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtseg_ros.errors import CheckpointError, ConfigError, DeviceError
from vtseg_ros.labels import LabelSet
from vtseg_ros.model.checkpoint import Checkpoint, read_use
from vtseg_ros.model.licence import Licence
from vtseg_ros.model.onnx_adapter import adapter_of
from vtseg_ros.model.state import METADATA_KEY

PROVIDERS = {
    "cuda": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "cpu": ("CPUExecutionProvider",),
}


class OnnxRunner:
    """Stands in for `vtseg_ros.engine.runner.Runner`; cameras run one after the other.

    Args:
        path: a file written by `vtseg export --format onnx` or `vtseg weights convert --as onnx`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`: auto takes a GPU if onnxruntime has a provider for it.

    Attributes:
        checkpoint: what the file says about itself; its `model` is empty.
        kind: `stream`, `window` or `image`.
        streaming: `exact`, `causal` or `plain`.
        window: frames k to use, at most `longest`.
    """

    mode = "onnxruntime"

    def __init__(self, path: Path, device: str = "auto") -> None:
        try:
            import onnxruntime
        except ImportError as err:
            raise ConfigError(f"{path} needs onnxruntime: pip install vtseg_ros[onnx]") from err
        kind, _, index = device.partition(":")
        available = onnxruntime.get_available_providers()
        has_gpu = "CUDAExecutionProvider" in available
        if kind == "cuda" and not has_gpu:
            raise DeviceError(
                f"device {device}: this onnxruntime has no CUDA provider ({', '.join(available)}). "
                "Use cpu, or install onnxruntime-gpu"
            )
        kind = "cuda" if kind == "cuda" or (kind == "auto" and has_gpu) else "cpu"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        providers: list[Any] = [name for name in PROVIDERS[kind] if name in available]
        if kind == "cuda":
            providers = [
                name if name.startswith("CPU") else (name, {"device_id": int(index or 0)})
                for name in providers
            ]
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as err:  # onnxruntime raises classes of its own for each kind of bad file
            raise CheckpointError(f"{path} cannot be read as ONNX: {str(err).splitlines()[0]}") from err
        metadata = self._metadata(path)
        self.device = torch.device("cpu")  # images and masks are made on the CPU
        self.providers = self.session.get_providers()
        self.kind, self.streaming = metadata["kind"], metadata["streaming"]
        self.longest = self.window = int(metadata["config"]["window"])
        width, height = (int(side) for side in metadata["input_size"])
        self._input_size = (height, width)
        resize_mode, temperature = read_use(metadata)
        colors = tuple(tuple(color) for color in metadata["class_colors"])
        self.checkpoint = Checkpoint(
            model=nn.Identity(),
            architecture=metadata["architecture"],
            config=metadata["config"],
            labels=LabelSet(tuple(metadata["class_names"]), colors),
            input_size=(width, height),
            training=metadata["training"],
            path=path,
            licence=Licence.from_metadata(metadata),
            resize_mode=resize_mode,
            temperature=temperature,
        )
        self._adapter = adapter_of(metadata)
        if self.kind == "stream":
            past = next(one for one in self.session.get_inputs() if one.name == "past")
            self._row = int(past.shape[2])

    def _metadata(self, path: Path) -> dict[str, Any]:
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise CheckpointError(
                f"{path} was not written by `vtseg export`: it has no {METADATA_KEY!r} metadata with classes and size. "
                f"For another segmentation network: vtseg weights convert {path.name} --as onnx --labels FILE"
            )
        metadata = json.loads(text)
        if metadata.get("format") != 1:
            raise CheckpointError(f"{path} has export format {metadata.get('format')!r}. Expected: 1")
        return metadata

    def __call__(self, images: Tensor, past: Sequence[Sequence[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """See `Runner.__call__`; everything is float32 on the CPU."""
        run = {"stream": self._stream, "window": self._window, "image": self._image}[self.kind]
        answers = [run(image.numpy(), rows) for image, rows in zip(images.contiguous(), past)]
        logits = torch.from_numpy(np.concatenate([logits for logits, _ in answers]))
        return logits, [torch.from_numpy(row) for _, row in answers]

    def _image(self, image: np.ndarray, rows: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        if self._adapter is not None:
            return self._adapter.run(self.session, image), np.empty(0, np.float32)
        (logits,) = self.session.run(["logits"], {"images": image[None]})
        return logits, np.empty(0, np.float32)

    def _stream(self, image: np.ndarray, rows: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        older = self.longest - 1
        past, valid = _padded([row.numpy() for row in rows], older, (self._row,))
        feed = {"images": image[None], "past": past[None], "valid": valid}
        logits, following = self.session.run(["logits", "past_next"], feed)
        return logits, following[0, -1].copy()  # the row alone, not the k - 1 that it came with

    def _window(self, image: np.ndarray, rows: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        shape = (3, *self._input_size)
        frames = [row.numpy().reshape(shape) for row in rows] + [image]
        video, valid = _padded(frames, self.longest, shape)
        (logits,) = self.session.run(["logits"], {"video": video[None], "valid": valid})
        return logits, image.reshape(-1)


def _padded(
    entries: Sequence[np.ndarray], count: int, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(count, *shape) float32 with the entries last, and which of them are entries."""
    stacked, valid = np.zeros((count, *shape), np.float32), np.zeros(count, bool)
    for index, entry in enumerate(entries, start=count - len(entries)):
        stacked[index], valid[index] = entry, True
    return stacked, valid
