# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Run exported networks (.onnx) in OpenVINO on the CPU, with the cache of compiled networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vtseg_ros.errors import CheckpointError, first_line
from vtseg_ros.files import cache_folder, sha256_of
from vtseg_ros.inference.backends.base import BackendOptions
from vtseg_ros.inference.backends.exported import (
    ExportedBackend,
    check_fixed,
    checked_path,
    described,
    parse_metadata,
)
from vtseg_ros.inference.backends.openvino_runtime import (
    CompiledCache,
    CompiledMasks,
    ConversionError,
    check_options,
    import_openvino,
    precision_of,
    runtime_config,
)
from vtseg_ros.inference.postprocess import MaskOptions
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.model.state_dicts import METADATA_KEY


class OpenVinoSession:
    """A compiled exported network.

    Args:
        compiled: openvino.CompiledModel.
    """

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()

    def run(self, outputs: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """See `exported.Session`; the outputs are valid until the next call."""
        found = self._request.infer(dict(feed), share_inputs=True, share_outputs=True)
        return [found[name] for name in outputs]


class OpenVinoExport(ExportedBackend):
    """An exported network in OpenVINO.

    Args:
        path: the file.
        model: the openvino.Model of the file.
        metadata: of the file.
        options: options of the user.
        cache_dir: folder of compiled networks; None = no cache.
    """

    def __init__(
        self,
        path: Path,
        model: Any,
        metadata: Mapping[str, Any],
        options: BackendOptions,
        cache_dir: Path | None = None,
    ) -> None:
        precision = precision_of(options, described(path, metadata).agreement)
        super().__init__(path, metadata, precision)
        config = runtime_config(precision, options)
        self._masks = CompiledMasks(config)
        about = {"file": sha256_of(path), "size": list(self.input_size)}
        try:
            self._fix_shape(model)
            compiled = CompiledCache(cache_dir).compiled(about, lambda: model, config)
        except RuntimeError as err:
            raise ConversionError(
                f"backend openvino: {path} cannot be compiled: {first_line(err)}. Use backend onnx"
            ) from err
        self.session = OpenVinoSession(compiled)
        if self.kind == "stream":
            self._row = int(compiled.input("past").shape[2])

    @classmethod
    def open(cls, source: str | Path | Checkpoint, options: BackendOptions) -> OpenVinoExport:
        """See `Backend.open`."""
        path = checked_path(source, options)
        check_options(options)
        model = read_onnx(path)
        entry = ["framework", METADATA_KEY]
        metadata = parse_metadata(
            str(model.get_rt_info(entry).value) if model.has_rt_info(entry) else None, path
        )
        check_fixed(path, metadata, options)
        backend = cls(path, model, metadata, options, cache_folder("openvino"))
        backend.set_window(options.window)
        return backend

    @property
    def mode(self) -> str:
        """See `Backend.mode`."""
        return "openvino"

    def to_mask(self, logits: Tensor, options: MaskOptions) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.to_mask`; in a compiled model if that gives the same result."""
        return self._masks(logits, options)

    def _fix_shape(self, model: Any) -> None:
        """Give an image network that takes any size the input size, for which the runtime then compiles it."""
        if self.kind == "image" and model.is_dynamic():
            name = self._adapter.input if self._adapter is not None else "images"
            model.reshape({name: [1, 3, self.input_size[1], self.input_size[0]]})


def read_onnx(path: Path) -> Any:
    """Return the openvino.Model of an ONNX file.

    Raises:
        CheckpointError: if OpenVINO cannot read it.
        ConfigError: if the package is missing.
    """
    import_openvino()
    # Not Core.read_model, which tries the readers of other formats after a failure and prints their errors.
    from openvino.frontend import FrontEndManager

    reader = FrontEndManager().load_by_framework("onnx")
    try:
        return reader.convert(reader.load(str(path)))
    except Exception as err:  # the reader raises its own exception classes
        lines = [line for line in str(err).splitlines() if line.strip()] or [type(err).__name__]
        raise CheckpointError(f"{path} cannot be read as ONNX: {lines[-1].strip()}") from err
