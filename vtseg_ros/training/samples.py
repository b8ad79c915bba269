# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training samples by (step, slot): what a step sees depends on the seed alone, so that a run can be resumed."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from vtseg_ros.dataset.augmentation import Augmentation
from vtseg_ros.dataset.class_groups import UNKNOWN
from vtseg_ros.dataset.flow import WindowFlow
from vtseg_ros.dataset.frame_store import FrameStore
from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.label_set import IGNORE, OUTSIDE


class Samples(Dataset):
    """Augmented windows.

    Args:
        store: pixels.
        windows: frame indices of each window.
        labelled: frames whose labels are used, so that labels left out by `label_stride` stay out in older frames too;
            None = the newest frame of each window.
        length: frames k of a window.
        augmentation: None = as they are.
        seed: of order and augmentation.
        stage: number of the training stage; stages draw differently.
        num_classes: number of label ids; a label with an id from there on is a ConfigError.
        mark_outside: give pixels that are not of the image the label id 254 (`OUTSIDE`) instead of 255.
        flow: where optical flow comes from, for networks that need it.
        strides: distances between the frames of a window, one of which each window draws; empty = as in `windows`.
    """

    def __init__(
        self,
        store: FrameStore,
        windows: list[list[int]],
        *,
        length: int,
        augmentation: Augmentation | None,
        seed: int,
        stage: int,
        num_classes: int,
        flow: WindowFlow | None = None,
        labelled: set[int] | None = None,
        mark_outside: bool = False,
        strides: Sequence[int] = (),
    ) -> None:
        self.store, self.windows, self.length, self.strides = store, windows, length, strides
        self.augmentation, self.seed, self.stage, self.flow = augmentation, seed, stage, flow
        self.num_classes = num_classes
        self._labelled = {window[-1] for window in windows} if labelled is None else labelled
        self._outside = OUTSIDE if mark_outside else IGNORE

    def __getitem__(self, position: int) -> tuple[torch.Tensor, ...] | VTSegError:
        """The position-th sample of an endless shuffled stream.

        Returns:
            an error that the user must hear of, or video (k, 3, H, W) uint8, labels (k, H, W) uint8 and, with `flow`, backward flow (k - 1, 2, H, W) float32.
        """
        try:
            return self._sample(position)
        except VTSegError as err:
            return err

    def _sample(self, position: int) -> tuple[torch.Tensor, ...]:
        epoch, place = divmod(position, len(self.windows))
        order = np.random.default_rng([self.seed, self.stage, epoch]).permutation(len(self.windows))
        numbers = self.windows[order[place]]
        if self.strides:
            rng = np.random.default_rng([self.seed, self.stage, position, 2])
            index, newest = self.store.index, numbers[-1]
            stride = self.strides[rng.integers(len(self.strides))]
            numbers = index.window(newest, index.sequence_start(newest), self.length, stride)
        video, labels = self.store.window(numbers, self.length)
        for age, number in enumerate(reversed(numbers)):
            if number not in self._labelled:
                labels[-1 - age] = IGNORE
        self._check_ids(labels, numbers)
        if self._outside != IGNORE:
            self._mark_outside(video, labels, numbers)
        draw = None
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, self.stage, position, 1])
            draw = self.augmentation.draw(self.length, (video.shape[2], video.shape[1]), rng)
            video, labels = draw.apply(video, labels, outside=self._outside)
        sample = (torch.from_numpy(video.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels.copy()))
        if self.flow is None:
            return sample
        flow = self.flow.window(numbers, video, draw)  # (k - 1, H, W, 2)
        return (*sample, torch.from_numpy(flow.transpose(0, 3, 1, 2).copy()))

    def _mark_outside(self, video: np.ndarray, labels: np.ndarray, numbers: list[int]) -> None:
        if not video[-1].any():  # as a corrupt frame: there is nothing to learn from
            labels[:] = self._outside
        for place in range(len(labels)):
            seen = self.store.seen(numbers[max(0, len(numbers) - len(labels) + place)])
            if seen is not None:
                inside = seen.of(labels[place]).copy()
                labels[place] = self._outside
                seen.of(labels[place])[:] = inside

    def _check_ids(self, labels: np.ndarray, numbers: list[int]) -> None:
        # Here and not in the loss: on a GPU an id without a logit ends the process in an assertion.
        highest = int(np.where(labels == IGNORE, 0, labels).max())
        if highest >= self.num_classes:
            frame = self.store.index.frames[numbers[-1]]
            count, key = self.num_classes, "data.labels or data.class_names"
            table = self.store.label_tables[frame.source]
            if table is not None:
                key, count = "the names in class_groups", int((table[:IGNORE] != UNKNOWN).sum())
                raw = [ids for ids in map(self.store.raw_label, numbers) if ids is not None]
                highest = max(int(ids[table[ids] == UNKNOWN].max(initial=0)) for ids in raw)
            raise ConfigError(
                f"bag {self.store.index.sources[frame.source].path}: a label of the window that ends at stamp "
                f"{frame.stamp_ns} ns has the class id {highest}, but the class list has {count} classes "
                f"(0..{count - 1}; {IGNORE} = unlabelled): {key} must be the bags' own"
            )


class Positions:
    """Batches of stream positions from a step on: each rank and slot has its own.

    Args:
        first, last: micro-steps (batches) from first on, last not included.
        batch: samples per process and batch.
        rank, world: this process and how many there are.
    """

    def __init__(self, *, first: int, last: int, batch: int, rank: int, world: int) -> None:
        self.first, self.last, self.batch, self.rank, self.world = first, last, batch, rank, world

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            start = (step * self.world + self.rank) * self.batch
            yield list(range(start, start + self.batch))


def build_loader(samples: Samples, positions: Positions, workers: int, *, pin_memory: bool) -> DataLoader:
    """Batches of `samples`, stacked along a first axis B, prepared ahead by worker processes."""
    if workers:
        # Here, before they are forked: OpenCV's threads do not survive a fork, and a worker that uses or ends them hangs.
        cv2.setNumThreads(1)
    return DataLoader(
        samples,
        batch_sampler=positions,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        collate_fn=_collate,
        worker_init_fn=_set_up_worker if workers else None,
    )


def _collate(samples: list) -> list[torch.Tensor] | VTSegError:
    """Samples as one batch, or the first error among them."""
    errors = [sample for sample in samples if isinstance(sample, VTSegError)]
    return errors[0] if errors else default_collate(samples)


def _set_up_worker(_: int) -> None:
    # Ctrl-C in a terminal and systemd reach every process of a training: it ends its workers itself, once it has saved.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
