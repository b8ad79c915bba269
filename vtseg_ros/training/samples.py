"""Training samples by (step, slot): what a step sees depends on the seed alone, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vtseg_ros.data.augmentation import Augmentation
from vtseg_ros.data.flow import WindowFlow
from vtseg_ros.data.windows import FrameStore
from vtseg_ros.labels import IGNORE


class Samples(Dataset):
    """Augmented windows.

    Args:
        store: pixels.
        windows: frame indices of each labelled window; only labels of frames that are a window's newest one are used,
            so that labels left out by `label_every` stay out in older frames too.
        length: frames k of a window.
        augmentation: None = as they are.
        seed: of order and augmentation.
        stage: number of the training stage; stages draw differently.
        flow: where optical flow comes from, for networks that need it.
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
        flow: WindowFlow | None = None,
    ) -> None:
        self.store, self.windows, self.length = store, windows, length
        self.augmentation, self.seed, self.stage, self.flow = augmentation, seed, stage, flow
        self._labelled = {window[-1] for window in windows}

    def __getitem__(self, position: int) -> tuple[torch.Tensor, ...]:
        """The position-th sample of an endless shuffled stream.

        Returns:
            video (k, 3, H, W) uint8, labels (k, H, W) uint8 and, with `flow`, backward flow (k - 1, 2, H, W) float32.
        """
        epoch, place = divmod(position, len(self.windows))
        order = np.random.default_rng([self.seed, self.stage, epoch]).permutation(len(self.windows))
        numbers = self.windows[order[place]]
        video, labels = self.store.window(numbers, self.length)
        for age, number in enumerate(reversed(numbers)):
            if number not in self._labelled:
                labels[-1 - age] = IGNORE
        draw = None
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, self.stage, position, 1])
            draw = self.augmentation.draw(self.length, (video.shape[2], video.shape[1]), rng)
            video, labels = draw.apply(video, labels)
        sample = (torch.from_numpy(video.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels.copy()))
        if self.flow is None:
            return sample
        flow = self.flow.window(numbers, video, draw)  # (k - 1, H, W, 2)
        return (*sample, torch.from_numpy(flow.transpose(0, 3, 1, 2).copy()))


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
    return DataLoader(
        samples,
        batch_sampler=positions,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread if workers else None,
    )


def _one_thread(_: int) -> None:
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
