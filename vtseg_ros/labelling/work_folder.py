# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Labels of a run that may be interrupted, kept next to the bag that they are for."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vtseg_ros.errors import ConfigError
from vtseg_ros.files import write_atomically

SETTINGS = "settings.json"


class WorkFolder:
    """Folder with the labels of a run that may be interrupted, one png per frame.

    Args:
        out: Bag to be written; the folder is next to it.
        settings: Plain values that determine the labels.

    Raises:
        ConfigError: If the folder contains labels of other settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.path = out.parent / f".{out.name}.pseudolabel"
        self._text = json.dumps({"sha256": digest_of(settings), "settings": settings}, indent=2) + "\n"
        self.existed = self.path.exists()
        if not self.existed:
            return
        try:
            there = json.loads((self.path / SETTINGS).read_text())["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            there = ""
        if there != digest_of(settings):
            raise ConfigError(
                f"{self.path}: labels of an interrupted run with other settings; expected the settings of this run. "
                "Remove the folder, or repeat the command as it was"
            )

    def make(self) -> None:
        """Create the folder if it does not exist."""
        if not (self.path / SETTINGS).exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / SETTINGS, self._text.encode())

    def load(self, stamp_ns: int, shape: tuple[int, int]) -> np.ndarray | None:
        """Return the saved label of a frame, (H, W) uint8; None if there is none of this shape."""
        file = self.path / f"{stamp_ns}.png"
        if not file.exists():
            return None
        ids = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        return ids if ids is not None and ids.shape == shape and ids.dtype == np.uint8 else None

    def save(self, stamp_ns: int, ids: np.ndarray) -> None:
        """Save the label of a frame, (H, W) uint8."""
        write_atomically(self.path / f"{stamp_ns}.png", cv2.imencode(".png", ids)[1].tobytes())

    def remove_if_new(self) -> None:
        """Remove the folder unless an earlier run created it."""
        if not self.existed:
            self.remove()

    def remove(self) -> None:
        """Remove the folder and its content."""
        shutil.rmtree(self.path, ignore_errors=True)


def digest_of(settings: dict[str, Any]) -> str:
    """Return the SHA-256 of plain values, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
