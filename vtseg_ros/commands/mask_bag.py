# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The bag of masks that `vtseg segment` writes, which may continue that of an interrupted run."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, header_stamp
from vtseg_ros.bags.topics import read_label_set
from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import LabelSet

MASKS, LABEL_MAP = "/segmentation/mask/compressed", "/segmentation/label_map"


class MaskBag:
    """Bag of masks, which may continue that of an interrupted run.

    Args:
        path: Bag to write; None = none.
        resume: Take over the masks of an existing bag.
        labels: Class list of the checkpoint.

    Raises:
        BagError: If the bag exists and is not to be resumed, or cannot be read or written.
        ConfigError: If its masks have other classes.
    """

    def __init__(self, path: Path | None, resume: bool, labels: LabelSet) -> None:
        self._path, self._labels = path, labels
        self._began = False
        self._old: BagReader | None = None
        self._scratch: Path | None = None
        self._bag: BagWriter | None = None
        self.existing = 0
        """Number of the existing masks."""
        self.known: set[int] = set()
        """Stamps of the existing masks that have not been copied yet, ns."""
        with ExitStack() as until_open:
            if path is not None:
                target = self._continue(path, until_open) if resume and path.exists() else path
                self._bag = until_open.enter_context(BagWriter(target))
            self._stack = until_open.pop_all()

    def _continue(self, path: Path, stack: ExitStack) -> Path:
        """Open an existing bag and return where the bag that will replace it is written."""
        self._old = stack.enter_context(BagReader(path))
        self._old.require(MASKS)
        there = read_label_set(self._old, of_masks=True)
        if there is not None and there.names != self._labels.names:
            raise ConfigError(
                f"--resume: the masks in {path} have other classes; expected {', '.join(self._labels.names)}, "
                f"got {', '.join(there.names)}. Use the checkpoint that wrote them, or choose another --out"
            )
        stamps = [header_stamp(data) for _, _, _, data in self._old.raw([MASKS])]
        self.existing, self.known = len(stamps), set(stamps)
        self._scratch = Path(tempfile.mkdtemp(prefix=".vtseg_resume_", dir=path.resolve().parent))
        stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch / path.name

    def __enter__(self) -> MaskBag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, mask: np.ndarray, stamp_ns: int, frame_id: str) -> None:
        """Add a mask (H, W) uint8."""
        if self._bag is None:
            return
        self._begin(self._bag, stamp_ns)
        self._bag.write_label(MASKS, mask, stamp_ns, frame_id, compressed=True)

    def take_over(self, stamp_ns: int) -> np.ndarray:
        """Copy an existing mask and return it, (H, W) uint8."""
        assert self._old is not None and self._bag is not None  # there are masks to copy
        # A later frame with the same stamp is segmented: it is a repeated one, which is dropped, or from a bag that loops.
        self.known.remove(stamp_ns)
        self._begin(self._bag, stamp_ns)
        for _, _, _, data in self._old.raw([MASKS], stamp_ns, stamp_ns + 1):
            self._bag.write_raw(MASKS, COMPRESSED_IMAGE, data, stamp_ns)
            break
        return decode_label(self._old.read(MASKS, stamp_ns, stamp_ns))

    def _begin(self, bag: BagWriter, stamp_ns: int) -> None:
        if not self._began:
            self._began = True
            bag.write_label_map(LABEL_MAP, self._labels, stamp_ns)

    def finish(self) -> None:
        """Finish the bag and replace the one that it continues."""
        if self._bag is None:
            return
        self._bag.close()
        if self._scratch is not None and self._old is not None and self._path is not None:
            self._old.close()
            self._path.rename(self._scratch / "before")
            (self._scratch / self._path.name).rename(self._path)
