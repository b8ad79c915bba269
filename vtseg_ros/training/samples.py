# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training samples by position in a stream that depends only on the seed, which makes a run resumable."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from multiprocessing import active_children

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vtseg_ros.dataset.augmentation import Augmentation
from vtseg_ros.dataset.class_groups import UNKNOWN
from vtseg_ros.dataset.flow import WindowFlow
from vtseg_ros.dataset.frame_store import FrameStore
from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.label_set import IGNORE, OUTSIDE

Sample = tuple[torch.Tensor, ...]


class Samples(Dataset[Sample]):
    """Augmented windows in an endless shuffled stream.

    Args:
        store: Frames and labels.
        windows: Frame numbers of each window, newest last.
        length: Frames k of a window.
        augmentation: Applied to each window; None = no augmentation.
        seed: Seed of order and augmentation.
        stage: Number of the training stage; each stage has its own random numbers.
        num_classes: Number of label ids; a higher id raises ConfigError.
        flow: Source of optical flow for networks that need it.
        labelled: Frames whose labels are used. It keeps labels that `label_stride` leaves out from being used in older
            frames; None = the newest frame of each window.
        mark_outside: Give pixels outside the image the label id 254 (`OUTSIDE`) instead of 255.
        strides: Distances between the frames of a window, one of which each window draws; empty = as in `windows`.
        with_clean: Add the frames before covering and corruption to each sample.
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
        with_clean: bool = False,
    ) -> None:
        self.store, self.windows, self.length, self.strides = store, windows, length, strides
        self.augmentation, self.seed, self.stage, self.flow = augmentation, seed, stage, flow
        self.num_classes, self.with_clean = num_classes, with_clean
        self._labelled = {window[-1] for window in windows} if labelled is None else labelled
        self._outside = OUTSIDE if mark_outside else IGNORE
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    def __getitem__(self, position: int) -> Sample:
        """Return the sample at a position of the stream.

        Args:
            position: Position from 0 on; an epoch has as many positions as there are windows.

        Returns:
            Video (k, 3, H, W) uint8 RGB, labels (k, H, W) uint8, with `with_clean` the video before covering and
            corruption, and with `flow` the backward flow (k - 1, 2, H, W) float32 in px.

        Raises:
            ConfigError: If a label has an id that the class list does not have.
        """
        epoch, place = divmod(position, len(self.windows))
        if epoch != self._epoch:  # positions of a process grow: one permutation per epoch
            rng = np.random.default_rng([self.seed, self.stage, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(self.windows))
        numbers = self.windows[self._order[place]]
        if self.strides:
            rng = np.random.default_rng([self.seed, self.stage, position, 2])
            index, newest = self.store.index, numbers[-1]
            stride = self.strides[int(rng.integers(len(self.strides)))]
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
            clean, labels = draw.apply_clean(video, labels, outside=self._outside)
            video = draw.degrade(clean)
        else:
            clean = video
        sample: Sample = (_channels_first(video), torch.from_numpy(labels.copy()))
        if self.with_clean:
            sample = (*sample, _channels_first(clean))
        if self.flow is None:
            return sample
        flow = self.flow.window(numbers, video, draw)  # (k - 1, H, W, 2)
        return (*sample, _channels_first(flow))

    def _mark_outside(self, video: np.ndarray, labels: np.ndarray, numbers: list[int]) -> None:
        if not video[-1].any():  # a black image, which also replaces a corrupt one: nothing to learn from
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


def _channels_first(frames: np.ndarray) -> torch.Tensor:
    """Return (k, H, W, n) as a tensor (k, n, H, W)."""
    return torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())


class Positions:
    """Stream positions of each batch of one process.

    Args:
        first: First batch.
        last: Batch after the last one.
        batch: Samples per process and batch.
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(self, *, first: int, last: int, batch: int, rank: int, world: int) -> None:
        self.first, self.last, self.batch, self.rank, self.world = first, last, batch, rank, world

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            start = (step * self.world + self.rank) * self.batch
            yield list(range(start, start + self.batch))


def build_loader(
    samples: Samples, positions: Positions, workers: int, *, pin_memory: bool
) -> DataLoader[Sample]:
    """Build a loader of batches, stacked along a first axis B.

    Args:
        samples: Samples to load.
        positions: Positions of each batch.
        workers: Processes that prepare batches ahead; 0 = this process does it.
        pin_memory: Put batches into page-locked memory, for faster copies to a GPU.
    """
    if workers:
        # Here, before they are forked: OpenCV's threads do not survive a fork, and a worker that uses or ends them hangs.
        cv2.setNumThreads(1)
    return DataLoader(
        samples,
        batch_sampler=positions,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_set_up_worker if workers else None,
    )


def load_batches(loader: DataLoader[Sample]) -> Iterator[list[torch.Tensor]]:
    """Yield the batches of a loader.

    Raises:
        VTSegError: What a sample raised, with its own message also when a worker process raised it.
    """
    others = set(active_children())
    batches = iter(loader)
    workers = set(active_children()) - others
    try:
        yield from batches
    except VTSegError as err:
        # From a worker, torch raises the same class with the worker's traceback as its message.
        kind = type(err)
        _, found, message = str(err).rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
        if not found:
            raise
        raise kind(message.rstrip("\n")) from None
    finally:
        if workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]  # or the loss of a worker raises an error
        for worker in workers:  # they ignore the signal with which torch and Python end those that are left
            worker.kill()


def _set_up_worker(_: int) -> None:
    # Ctrl-C in a terminal and systemd signal every process of a run; the main process ends its workers after saving.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
