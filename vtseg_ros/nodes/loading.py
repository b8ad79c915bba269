# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Load and warm up video predictors from parameters, at once or in a thread while another one runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np

from vtseg_ros.errors import ConfigError, ImageError, VTSegError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.labelling.masks import read_ego_mask
from vtseg_ros.nodes.parameters import Parameters
from vtseg_ros.sizes import parse_output_size, size_from_text


def load_segmenter(parameters: Parameters, checkpoint: str) -> VideoPredictor:
    """Load a segmenter and warm it up: the first forward passes allocate and choose kernels.

    Raises:
        VTSegError: naming what is wrong.
    """
    segmenter = VideoPredictor(
        checkpoint,
        device=parameters["device"],
        backend=parameters["backend"],
        precision=parameters["precision"],
        threads=parameters["threads"] or None,
        leave_core="OMP_NUM_THREADS" not in os.environ,  # the user's number for all programs
        pin_threads=parameters["pin_threads"],
        window=parameters["window"] or None,
        input_size=_given_size(parameters["input_size"]),
        max_gap_s=parameters["max_gap"],
        output_size=parse_output_size(parameters["output_size"]),
        upsampling=parameters["upsampling"],
        static_prior=parameters["static_prior"] or None,
        resize_mode=parameters["resize_mode"] or None,
        min_confidence=parameters["min_confidence"],
    )
    blank = np.zeros((segmenter.input_size[1], segmenter.input_size[0], 3), np.uint8)
    for _ in range(segmenter.window):
        segmenter.step(blank, with_confidence=False)
    segmenter.reset()
    return segmenter


def _given_size(text: str) -> tuple[int, int] | None:
    """`WxH` as (width, height); None for 0x0, the checkpoint's."""
    size = size_from_text(text)
    return size if any(size) else None


def licence_line(segmenter: VideoPredictor) -> str:
    """Return the log line for weights under another licence than the code's; empty when there is none."""
    licence, path = segmenter.checkpoint.licence, segmenter.checkpoint.path
    return f"licence of {path}: {licence}" if licence.restricted else ""


def load_ego_mask(path: str, warn: Callable[[str], None]) -> np.ndarray | None:
    """Read the ego mask of a parameter; see `labelling.masks.read_ego_mask`.

    Args:
        path: of the file; empty = none.
        warn: called when the mask covers no pixel or all of them.

    Returns:
        (h, w) bool, True where the robot sees itself; None for an empty path.

    Raises:
        ConfigError: if it cannot be read.
    """
    if not path:
        return None
    try:
        mask = read_ego_mask(path)
    except ImageError as err:
        raise ConfigError(
            f"ego_mask {path}: cannot be read; expected a PNG whose non-zero, or opaque, pixels are the robot, got: {err}"
        ) from err
    if not mask.any():
        warn(f"ego_mask {path} covers nothing: all its pixels are black or transparent")
    elif mask.all():
        warn(f"ego_mask {path} covers the whole image: all pixels of the masks will be 255")
    return mask


def one_line(err: Exception) -> str:
    """Return an error for the log: our own as they are, others with their type, first line only."""
    text = (str(err).strip().splitlines() or [""])[0]
    return text if isinstance(err, VTSegError) else f"{type(err).__name__}: {text}"


class Loader:
    """Loads one segmenter at a time in a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: VideoPredictor | Exception | None = None

    @property
    def busy(self) -> bool:
        """Return whether one is being loaded, or waits for `poll`."""
        return self._thread is not None

    def start(self, load: Callable[[], VideoPredictor]) -> None:
        """Begin to load; must not be busy."""
        self._thread = threading.Thread(target=self._run, args=(load,), name="loading", daemon=True)
        self._thread.start()

    def _run(self, load: Callable[[], VideoPredictor]) -> None:
        try:
            self._result = load()
        except Exception as err:  # the node logs it; nobody would see the traceback of a thread
            self._result = err

    def poll(self) -> VideoPredictor | Exception | None:
        """Return the segmenter, or why there is none, once; None while it is not done."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread.join()
        self._thread, result, self._result = None, self._result, None
        return result

    def discard(self) -> None:
        """Wait for what is being loaded and forget it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = self._result = None
