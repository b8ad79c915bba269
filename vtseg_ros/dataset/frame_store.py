# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Windows of consecutive frames from bags, for training and evaluation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.open_bags import OpenBags
from vtseg_ros.dataset.frame_cache import open_cache
from vtseg_ros.dataset.frame_index import BagSource, CorruptMessage, Frame, FrameIndex
from vtseg_ros.errors import BagError, ImageError
from vtseg_ros.image_ops import resize_rgb
from vtseg_ros.label_set import IGNORE
from vtseg_ros.resize import Box, place

__all__ = ["BagSource", "CorruptMessage", "Frame", "FrameIndex", "FrameStore"]

log = logging.getLogger("vtseg_ros.dataset")


class FrameStore:
    """Random access to the images and labels of indexed frames; each process opens the bags itself.

    Args:
        index: Frames.
        size: (width, height) px that images and labels are resized to; None = not resized.
        cache_dir: Folder for decoded frames, shared by all processes; needs `size`. None = decode each time.
        label_tables: For each source a (256,) uint8 table that maps its label ids, or None = not mapped.
        resize_mode: How frames are resized, see `resize.place`.

    Raises:
        ConfigError: If the cache cannot be written.
    """

    def __init__(
        self,
        index: FrameIndex,
        *,
        size: tuple[int, int] | None = None,
        cache_dir: Path | None = None,
        label_tables: list[np.ndarray | None] | None = None,
        resize_mode: str = "stretch",
    ) -> None:
        self.index, self.size, self.resize_mode = index, size, resize_mode
        self.label_tables = label_tables or [None] * len(index.sources)
        self._bags = OpenBags([source.path for source in index.sources])
        # Shared with data loader workers: the process that started them counts the corrupt frames that they find.
        self._corrupt = torch.zeros(len(index.frames), dtype=torch.uint8)
        self._corrupt.share_memory_()
        self._cache: np.memmap | None = None
        if cache_dir is not None:
            if size is None:
                raise ValueError("a cache needs one size for all frames")
            self._cache, reasons = open_cache(Path(cache_dir), index, size, self._decode, resize_mode)
            for number, reason in reasons.items():
                self._report(number, reason)

    def __getstate__(self) -> dict[str, Any]:
        # Workers open the cache on disk again; pickled, all of it would be sent to each of them.
        return {**self.__dict__, "_cache": None if self._cache is None else str(self._cache.filename)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if state["_cache"] is not None:
            self._cache = np.load(state["_cache"], mmap_mode="r")

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.index.frames)

    def corrupt_count(self) -> int:
        """Return the number of corrupt messages: those the index left out, and those that no process could decode."""
        return len(self.index.corrupt) + int(self._corrupt.sum())

    def image(self, number: int) -> np.ndarray:
        """Return the image of a frame, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: If the message is corrupt.
            BagError: If the message cannot be read.
        """
        if self._cache is not None:
            self._refuse_corrupt(number)
            return self._cache[number, ..., :3]
        return self._decode_image(number)

    def label(self, number: int) -> np.ndarray | None:
        """Return the label of a frame, (H, W) uint8 class ids; None for a frame without a label.

        Raises:
            ImageError: If the message is corrupt.
            BagError: If the message cannot be read.
        """
        ids = self.raw_label(number)
        table = self.label_tables[self.index.frames[number].source]
        return ids if ids is None or table is None else table[ids]

    def raw_label(self, number: int) -> np.ndarray | None:
        """Return the label of a frame with the ids of its bag; see `label`."""
        if self.index.frames[number].label_ns is None:
            return None
        if self._cache is not None:
            self._refuse_corrupt(number)
            return self._cache[number, ..., 3]
        return self._decode_label(number)

    def window(self, numbers: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the frames of a window.

        A corrupt frame is logged and counted (`corrupt_count`), and ends the window like the start of a sequence. A
        corrupt newest frame gives a black window without labels, which does not affect training and scores.

        Args:
            numbers: Frame numbers, newest last.
            length: Frames k of the window; if there are fewer, the oldest one is repeated without its label.

        Returns:
            Video (k, H, W, 3) uint8 RGB and labels (k, H, W) uint8, 255 where there is none.

        Raises:
            ImageError: If the newest image is corrupt and `size` is None.
            BagError: If the newest image cannot be read and `size` is None.
        """
        images: list[np.ndarray] = []
        labels: list[np.ndarray | None] = []
        for number in reversed(numbers):
            try:
                images.append(self.image(number))
            except (ImageError, BagError) as err:
                self._report(number, str(err))
                if not images:
                    if self.size is None:
                        raise
                    images.append(np.zeros((self.size[1], self.size[0], 3), np.uint8))
                    labels.append(None)
                break
            try:
                labels.append(self.label(number))
            except (ImageError, BagError) as err:
                self._report(number, str(err))
                labels.append(None)
        missing = length - len(images)
        empty = np.full(images[0].shape[:2], IGNORE, np.uint8)
        video = images + [images[-1]] * missing
        ids = [empty if label is None else label for label in labels] + [empty] * missing
        return np.stack(video[::-1]), np.stack(ids[::-1])

    def _decode(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        labelled = self.index.frames[number].label_ns is not None
        return self._decode_image(number), self._decode_label(number) if labelled else None

    def _decode_image(self, number: int) -> np.ndarray:
        frame = self.index.frames[number]
        topic = self.index.topics[frame.source][0]
        rgb = decode_any(self._bags[frame.source].read(topic, frame.image_ns, frame.stamp_ns))
        return resize_rgb(rgb, self.size, self.resize_mode) if self.size else rgb

    def _decode_label(self, number: int) -> np.ndarray:
        frame = self.index.frames[number]
        topic = self.index.topics[frame.source][1]
        assert topic is not None and frame.label_ns is not None  # callers ask only for labelled frames
        ids = decode_label(self._bags[frame.source].read(topic, frame.label_ns, frame.stamp_ns))
        if self.size is None:
            return ids
        placement = place((ids.shape[1], ids.shape[0]), self.size, self.resize_mode)
        ids, target = placement.source.of(ids), placement.target
        if (ids.shape[1], ids.shape[0]) != (target.width, target.height):
            # EXACT takes the centre pixel, which the resize of the image is centred on too.
            ids = cv2.resize(ids, (target.width, target.height), interpolation=cv2.INTER_NEAREST_EXACT)
        if placement.fills:
            return ids
        canvas = np.full((self.size[1], self.size[0]), IGNORE, np.uint8)
        target.of(canvas)[:] = ids
        return canvas

    def seen(self, number: int) -> Box | None:
        """Return the part of the network's input that shows a frame; None = all of it."""
        size = self.index.frames[number].size
        if self.size is None or size is None:
            return None
        placement = place(size, self.size, self.resize_mode)
        return None if placement.fills else placement.target

    def _refuse_corrupt(self, number: int) -> None:
        if self._corrupt[number]:
            raise ImageError("the frame was corrupt when it was cached; the log says why")

    def _report(self, number: int, reason: str) -> None:
        """Count and log a frame that could not be decoded, once."""
        if self._corrupt[number]:
            return
        self._corrupt[number] = 1
        frame = self.index.frames[number]
        bag, (image, label) = self.index.sources[frame.source].path, self.index.topics[frame.source]
        log.warning("corrupt frame: %s, %s or %s, stamp %d ns: %s", bag, image, label, frame.stamp_ns, reason)
