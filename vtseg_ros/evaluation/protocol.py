# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation protocol of the paper: score every system on every labelled frame, and report frames without a score.

Images are resized to the training size of the system, its logits are upsampled bicubically to the size of the label, and
the argmax is taken (paper, Section IV-C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import cv2
import numpy as np

from vtseg_ros.dataset.frame_store import FrameIndex, FrameStore
from vtseg_ros.errors import BagError, ConfigError, ImageError
from vtseg_ros.evaluation.behaviour import Observer
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.evaluation.score import PICTURE_WIDTH, Scores
from vtseg_ros.evaluation.systems import System, SystemInfo
from vtseg_ros.evaluation.temporal import FlowImage, WarpedConsistency


@dataclass(frozen=True)
class PictureRow:
    """One frame as images of at most PICTURE_WIDTH px width: image (h, w, 3) uint8 RGB, the others (h, w) uint8 ids."""

    stamp_ns: int
    image: np.ndarray
    label: np.ndarray
    masks: tuple[np.ndarray, ...]


@dataclass
class Outcome:
    """Result of an evaluation.

    Attributes:
        infos, scores: information and scores of the systems, in order.
        rows: some frames with the masks of all systems.
        labelled: number of chosen labelled frames.
        corrupt: (stamp in ns, reason) of images, labels and flow that could not be decoded; the bag time if the message
            has no readable stamp.
        unscored: number of labelled frames whose image or label is corrupt; labelled = scored + unscored.
        unmatched: number of labels without an image of the same stamp; not part of `labelled`.
        parts: for each part of the frames, by name, one confusion matrix per system.
        warped_labels: counts of each label image compared with the previous one, warped by optical flow.
    """

    infos: list[SystemInfo]
    scores: list[Scores]
    rows: list[PictureRow] = field(default_factory=list)
    labelled: int = 0
    corrupt: list[tuple[int, str]] = field(default_factory=list)
    unscored: int = 0
    unmatched: int = 0
    parts: dict[str, list[ConfusionMatrix]] = field(default_factory=dict)
    warped_labels: ConfusionMatrix | None = None

    @property
    def label_consistency(self) -> float:
        """Temporal consistency of the labels, 0 to 100: the score of perfect masks.

        NaN without labels of consecutive frames.
        """
        return float("nan") if self.warped_labels is None else self.warped_labels.miou()


class _Images:
    """Cache of the last decoded frames by number; a corrupt one is reported once."""

    def __init__(self, store: FrameStore, keep: int, corrupt: list[tuple[int, str]]) -> None:
        self._store, self._keep, self._corrupt = store, keep, corrupt
        self._decoded: dict[int, np.ndarray | None] = {}

    def __getitem__(self, number: int) -> np.ndarray | None:
        if number not in self._decoded:
            try:
                image = self._store.image(number)
            except (ImageError, BagError) as err:
                image = None
                self._corrupt.append((self._store.index.frames[number].stamp_ns, f"image: {err}"))
            self._decoded[number] = image
            for old in [n for n in self._decoded if n <= number - self._keep]:
                del self._decoded[old]
        return self._decoded[number]


class _Feed:
    """Passes the frames that the masks of the scored frames depend on to one system, each once and in order.

    With a stride, windows of neighbouring frames have no frame in common: each remainder of the frame number is a separate stream.
    """

    def __init__(self, system: System, index: FrameIndex) -> None:
        self.system, self._index = system, index
        self._fed: dict[int, tuple[int, int]] = {}

    def mask(self, images: _Images, newest: int, first: int, size: tuple[int, int]) -> np.ndarray:
        """Return the mask of frame `newest`, whose sequence starts at `first`; its image must not be corrupt."""
        system, stride = self.system, self._index.stride
        window = self._index.window(newest, first, system.reach)
        stream = newest % stride
        sequence, last = self._fed.get(stream, (-1, -1))
        if sequence != first or not window[0] <= last + stride <= newest:
            system.reset(stream)
            last = -1
        self._fed[stream] = (first, newest)
        for number in window[:-1]:
            if number > last and (image := images[number]) is not None:
                system.step(number, image, system.info.input_size, stream)
        return system.step(newest, cast(np.ndarray, images[newest]), size, stream)


def evaluate(
    store: FrameStore,
    systems: Sequence[System],
    *,
    every: int = 1,
    pictures: int = 6,
    part_of: Callable[[int], str] | None = None,
    observers: Sequence[Observer] = (),
    on_frame: Callable[[], None] = lambda: None,
) -> Outcome:
    """Score all systems on the same frames.

    Args:
        store: frames as they were recorded (no `size`).
        systems: of one class list.
        every: score every n-th labelled frame; temporal scores need 1.
        pictures: number of frames to keep as images, evenly spaced.
        part_of: function from a frame number to the name of a part with separate scores; None = no parts.
        observers: receive each scored frame.
        on_frame: called after each labelled frame.

    Raises:
        ConfigError: if a label contains an id outside the class list.
    """
    index, labels = store.index, systems[0].labels
    outcome = Outcome(
        [s.info for s in systems], [Scores(labels, keep=0, max_gap_s=index.max_gap_s) for _ in systems]
    )
    outcome.unmatched = index.unmatched_labels
    chosen = index.labelled(every)
    outcome.labelled = len(chosen)
    shown = {chosen[i][0] for i in np.linspace(0, len(chosen) - 1, min(pictures, len(chosen))).astype(int)}
    outcome.corrupt += [(c.time_ns, f"{c.topic}: {c.reason}") for c in index.corrupt]
    images = _Images(store, max(s.reach for s in systems) * index.stride, outcome.corrupt)
    feeds = [_Feed(system, index) for system in systems]
    label_consistency = WarpedConsistency(len(labels), skip_unlabelled=True)
    last = -1
    for number, first in chosen:
        label = _label(store, number, outcome)
        image = images[number]
        if label is None or image is None:
            outcome.unscored += 1
            on_frame()
            continue
        if number != last + 1 or number == first:
            for scores in outcome.scores:
                scores.new_sequence()
            label_consistency.reset()
        last, stamp_ns = number, index.frames[number].stamp_ns
        size = (label.shape[1], label.shape[0])
        masks = [feed.mask(images, number, first, size) for feed in feeds]
        flow_image = FlowImage(image)
        for system, scores, mask in zip(systems, outcome.scores, masks):
            _score(scores, stamp_ns, mask, label, image, flow_image, system.confidence)
        label_consistency.update(flow_image, label)
        for observer in observers:
            observer.update(number, first, label, masks)
        if part_of is not None:
            part = outcome.parts.setdefault(part_of(number), [ConfusionMatrix(len(labels)) for _ in systems])
            for matrix, mask in zip(part, masks):
                matrix.update(mask, label)
        if number in shown:
            outcome.rows.append(_row(stamp_ns, image, label, masks))
        on_frame()
    outcome.warped_labels = label_consistency.confusion
    for system in systems:
        for number, reason in system.problems:
            outcome.corrupt.append((index.frames[number].stamp_ns, f"{system.info.name}, {reason}"))
    return outcome


def _label(store: FrameStore, number: int, outcome: Outcome) -> np.ndarray | None:
    try:
        return store.label(number)
    except (ImageError, BagError) as err:
        outcome.corrupt.append((store.index.frames[number].stamp_ns, f"label: {err}"))
        return None


def _score(
    scores: Scores,
    stamp_ns: int,
    mask: np.ndarray,
    label: np.ndarray,
    image: np.ndarray,
    flow_image: FlowImage,
    confidence: np.ndarray,
) -> None:
    try:
        scores.update(stamp_ns, mask, label, image, confidence=confidence)
        scores.watch(stamp_ns, mask, flow_image)
    except ConfigError as err:
        raise ConfigError(
            f"frame at {stamp_ns / 1e9:.3f} s: {err}. Map other classes with a class map (--class-map), and store "
            "unlabelled pixels as 255"
        ) from err


def _row(stamp_ns: int, image: np.ndarray, label: np.ndarray, masks: list[np.ndarray]) -> PictureRow:
    width = min(PICTURE_WIDTH, image.shape[1])
    size = (width, max(1, round(image.shape[0] * width / image.shape[1])))
    small = [cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST) for ids in (label, *masks)]
    return PictureRow(
        stamp_ns, cv2.resize(image, size, interpolation=cv2.INTER_AREA), small[0], tuple(small[1:])
    )
