# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Behaviour over time: new objects, recovery after a disturbance, and drift over long sequences.

Each measure is an observer of `protocol.evaluate`: it gets the label of each scored frame and the masks of all systems. All
systems are measured on the same events, which depend only on the labels and the disturbance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np

from vtseg_ros.dataset.corrupted_store import CorruptedStore
from vtseg_ros.dataset.frame_index import FrameIndex
from vtseg_ros.errors import ConfigError
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.evaluation.score import or_none
from vtseg_ros.evaluation.systems import SystemInfo
from vtseg_ros.label_set import IGNORE, LabelSet

MIN_AREA = 0.001
"""Least share of the pixels of the image for an object to count as visible."""
REACH = 0.02
"""Largest movement of an object between two frames without overlap, as a share of the width of the image."""
SEGMENTED = 0.5
"""Share of an object's pixels that must have its class in the mask."""
TOLERANCE = 1.0
"""Points of mIoU: a frame has recovered if it loses at most this much compared with the undisturbed run."""
LOSS_FRAMES = 8
"""Frames after a disturbance whose mean loss is reported."""


class Observer(Protocol):
    """Receives the scored frames of an evaluation in order."""

    def update(self, number: int, first: int, label: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        """Add a frame.

        Args:
            number: of the frame in its index.
            first: number of the first frame of its sequence.
            label: (H, W) uint8 class ids.
            masks: of the systems, in order, each (H, W) uint8.
        """


def references(infos: Sequence[SystemInfo]) -> list[int | None]:
    """Return for each system the index of the system of its family with a window of one frame; None if there is none."""
    single = {info.family: place for place, info in enumerate(infos) if info.window == 1}
    return [single.get(info.family) for info in infos]


# New objects


@dataclass
class Appearance:
    """An object that appeared during a sequence.

    Attributes:
        class_id: of the object.
        number: of the frame on which it appeared.
        frames: for each system the number of frames until the object was segmented, 0 = on its first frame; None = not
            segmented while it was tracked.
    """

    class_id: int
    number: int
    frames: list[int | None]


@dataclass
class _Objects:
    """Connected components of one class on one frame, by their id in `components`; 0 = none."""

    components: np.ndarray  # (H, W) int32
    known: set[int] = field(default_factory=set)
    followed: dict[int, Appearance] = field(default_factory=dict)


class AppearanceLag:
    """Number of frames until newly appeared objects are segmented.

    An object is a connected component of a class in the label. It appears on the frame on which it covers at least
    MIN_AREA of the image and continues no object that was visible before; objects of a sequence's first frame do not
    count. A component continues the component of the frame before that it overlaps most, or that it comes within REACH
    of. An object is segmented on a frame when at least SEGMENTED of its pixels have its class in the mask. An object
    that disappears, or becomes part of a larger one, is not tracked any further. This needs labels of consecutive frames:
    a gap starts a new sequence.

    Args:
        systems: number of systems.
    """

    def __init__(self, systems: int) -> None:
        self.appearances: list[Appearance] = []
        self._systems = systems
        self._previous: dict[int, _Objects] = {}
        self._shape: tuple[int, ...] = ()
        self._last = -1

    def update(self, number: int, first: int, label: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        """See `Observer.update`."""
        begins = number != self._last + 1 or number == first or label.shape != self._shape
        previous = {} if begins else self._previous
        self._last, self._shape, self._previous = number, label.shape, {}
        for class_id in np.unique(label).tolist():
            if class_id != IGNORE:
                self._previous[class_id] = self._advance(
                    class_id, number, label, masks, previous.get(class_id), begins
                )

    def _advance(
        self,
        class_id: int,
        number: int,
        label: np.ndarray,
        masks: Sequence[np.ndarray],
        before: _Objects | None,
        begins: bool,
    ) -> _Objects:
        least = max(1, round(MIN_AREA * label.size))
        count, components, stats, _ = cv2.connectedComponentsWithStats((label == class_id).astype(np.uint8))
        objects = _Objects(components)
        taken: set[int] = set()
        # Largest first: if an object falls into pieces, the largest one is tracked.
        for one in sorted(range(1, count), key=lambda place: -stats[place, cv2.CC_STAT_AREA]):
            parent = _parent(components, one, stats[one], before.components) if before else 0
            area = int(stats[one, cv2.CC_STAT_AREA])
            if begins or (before and parent in before.known):
                objects.known.add(one)
                if before and parent in before.followed and parent not in taken:
                    taken.add(parent)
                    objects.followed[one] = before.followed[parent]
            elif area >= least:
                objects.known.add(one)
                objects.followed[one] = Appearance(class_id, number, [None] * self._systems)
                self.appearances.append(objects.followed[one])
        for one, appearance in list(objects.followed.items()):
            _look(appearance, number, components == one, masks)
            if None not in appearance.frames:
                del objects.followed[one]
        return objects

    def to_dict(self, infos: Sequence[SystemInfo], labels: LabelSet) -> dict[str, Any]:
        """Return plain JSON values, one entry per system; None if not available."""
        systems = []
        for place, (info, reference) in enumerate(zip(infos, references(infos))):
            classes = {
                labels.names[class_id]: _lag(self._of(class_id), place)
                for class_id in sorted({one.class_id for one in self.appearances})
            }
            systems.append(
                {
                    "name": info.name,
                    "window": info.window,
                    **_lag(self.appearances, place),
                    "over_window_1": _lag_over(self.appearances, place, reference),
                    "classes": classes,
                }
            )
        return {"min_area": MIN_AREA, "systems": systems}

    def _of(self, class_id: int) -> list[Appearance]:
        return [one for one in self.appearances if one.class_id == class_id]


def _parent(components: np.ndarray, one: int, box: np.ndarray, before: np.ndarray) -> int:
    """Return the component of the frame before that a component continues; 0 = none."""
    left, top, width, height = (int(value) for value in box[:4])
    inside = np.s_[top : top + height, left : left + width]
    found = before[inside][components[inside] == one]
    if not found.any():
        reach = max(1, round(REACH * before.shape[1]))
        around = np.s_[
            max(0, top - reach) : top + height + reach, max(0, left - reach) : left + width + reach
        ]
        shape = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        grown = cv2.dilate((components[around] == one).astype(np.uint8), shape)
        found = before[around][grown > 0]
    counts = np.bincount(found[found > 0], minlength=1)
    return int(counts.argmax())


def _look(appearance: Appearance, number: int, region: np.ndarray, masks: Sequence[np.ndarray]) -> None:
    for place, mask in enumerate(masks):
        seen = (mask[region] == appearance.class_id).mean() >= SEGMENTED
        if appearance.frames[place] is None and seen:
            appearance.frames[place] = number - appearance.number


def _lag(appearances: Sequence[Appearance], place: int) -> dict[str, Any]:
    lags = [lag for one in appearances if (lag := one.frames[place]) is not None]
    return {
        "appeared": len(appearances),
        "segmented": len(lags),
        "on_first_frame": lags.count(0),
        "mean_frames": _mean(lags),
    }


def _lag_over(appearances: Sequence[Appearance], place: int, reference: int | None) -> dict[str, Any] | None:
    if reference is None:
        return None
    pairs = [(one.frames[place], one.frames[reference]) for one in appearances]
    return {
        "mean_frames": _mean([own - other for own, other in pairs if own is not None and other is not None]),
        "only_here": sum(own is not None and other is None for own, other in pairs),
        "only_there": sum(own is None and other is not None for own, other in pairs),
    }


def _mean(values: Sequence[float]) -> float | None:
    return or_none(float(np.mean(values))) if len(values) else None


# Recovery


class FrameScores:
    """Scores of single frames for every system: the mean IoU of the classes in the label, 0 to 100.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self.scores: dict[int, list[float]] = {}

    def update(self, number: int, first: int, label: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        """See `Observer.update`; a frame without a labelled pixel has no score."""
        scores = []
        for mask in masks:
            frame = ConfusionMatrix(self._num_classes)
            frame.update(mask, label)
            present = frame.matrix.sum(axis=1) > 0
            if not present.any():
                return
            scores.append(float(frame.iou()[present].mean()))
        self.scores[number] = scores


@dataclass(frozen=True)
class After:
    """A frame after a disturbance.

    Attributes:
        age: number of frames since the first undisturbed one, 0 = that one.
        disturbed, undisturbed: number of the frame in the disturbed and in the undisturbed run.
    """

    age: int
    disturbed: int
    undisturbed: int


def after_corruption(store: CorruptedStore) -> list[list[After]]:
    """Return for each run of corrupted frames the clean frames up to the next run or the end of the sequence."""
    events: list[list[After]] = []
    for start, stop in store.index.sequences:
        for number in range(start, stop):
            part = store.part(number)
            if part == "recovering":
                events.append([])
            # Clean frames before the first run of a sequence are not after a disturbance.
            if part != "corrupted" and events and (events[-1] or part == "recovering"):
                events[-1].append(After(len(events[-1]), number, number))
        events.append([])
    return [event for event in events if event]


def recovery(
    events: Iterable[Sequence[After]], disturbed: FrameScores, undisturbed: FrameScores, systems: int
) -> list[dict[str, Any]]:
    """Return how fast the scores of each system recover after disturbances.

    Args:
        events: the frames after each disturbance.
        disturbed: scores of the systems in the disturbed run.
        undisturbed: scores of the same systems in the other run.
        systems: number of systems.

    Returns:
        Plain JSON values for each system: `events`: number of events with a scored frame; `recovered`: number of
        events with a frame that loses at most TOLERANCE; `mean_frames`: mean number of frames until the first such frame,
        0 = at once; `loss`: mean loss in points on the first, second, ... frame after the disturbance (None = no frame).
    """
    events = [
        [one for one in event if one.disturbed in disturbed.scores and one.undisturbed in undisturbed.scores]
        for event in events
    ]
    events = [event for event in events if event]
    found = []
    for place in range(systems):
        frames: list[int] = []
        losses: list[list[float]] = [[] for _ in range(LOSS_FRAMES)]
        for event in events:
            loss = [
                (one.age, undisturbed.scores[one.undisturbed][place] - disturbed.scores[one.disturbed][place])
                for one in event
            ]
            frames += [age for age, lost in loss if lost <= TOLERANCE][:1]
            for age, lost in loss:
                if age < LOSS_FRAMES:
                    losses[age].append(lost)
        found.append(
            {
                "events": len(events),
                "recovered": len(frames),
                "mean_frames": _mean(frames),
                "loss": [_mean(values) for values in losses],
            }
        )
    return found


# Drift


class Drift:
    """Scores at the beginning and at the end of long sequences.

    In each sequence of at least `frames` frames, the first and the last tenth of the first `frames` frames are scored. The
    scene also changes the score: the change of the same network with a window of one frame, which uses no older frames, shows
    by how much.

    Args:
        index: the frames.
        frames: n, at least 10.
        num_classes: C.
        systems: number of systems.

    Raises:
        ConfigError: if no sequence is long enough.
    """

    def __init__(self, index: FrameIndex, frames: int, *, num_classes: int, systems: int) -> None:
        if frames < 10:
            raise ConfigError(f"--drift: too few frames; expected at least 10, got {frames}")
        self.frames, self.span = frames, frames // 10
        self.sequences = [start for start, stop in index.sequences if stop - start >= frames]
        if not self.sequences:
            longest = max(stop - start for start, stop in index.sequences)
            raise ConfigError(
                f"--drift: no sequence is long enough; expected at least {frames} frames, the longest has {longest}. "
                "Give a smaller number"
            )
        self._parts = {
            part: [ConfusionMatrix(num_classes) for _ in range(systems)] for part in ("first", "last")
        }

    def update(self, number: int, first: int, label: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        """See `Observer.update`."""
        position = number - first
        if first not in self.sequences or self.span <= position < self.frames - self.span:
            return
        if position < self.frames:
            for matrix, mask in zip(self._parts["first" if position < self.span else "last"], masks):
                matrix.update(mask, label)

    def to_dict(self, infos: Sequence[SystemInfo]) -> dict[str, Any]:
        """Return plain JSON values; mIoU 0 to 100, None if not available."""
        scores = np.array([[matrix.miou() for matrix in self._parts[part]] for part in ("first", "last")])
        change = scores[1] - scores[0]
        systems = [
            {
                "name": info.name,
                "window": info.window,
                "first": or_none(scores[0, place]),
                "last": or_none(scores[1, place]),
                "change": or_none(change[place]),
                "change_over_window_1": None
                if reference is None
                else or_none(change[place] - change[reference]),
            }
            for place, (info, reference) in enumerate(zip(infos, references(infos)))
        ]
        return {
            "frames": self.frames,
            "span": self.span,
            "sequences": len(self.sequences),
            "systems": systems,
        }
