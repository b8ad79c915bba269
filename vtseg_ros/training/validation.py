# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Validation: mIoU at the resolution of the network, agreement with its static network, effect of older frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from vtseg_ros.dataset.class_groups import ClassGroups
from vtseg_ros.dataset.flow import WindowFlow
from vtseg_ros.dataset.frame_store import FrameStore
from vtseg_ros.errors import ConfigError
from vtseg_ros.evaluation.calibration import TemperatureFit
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.label_set import IGNORE, LabelSet
from vtseg_ros.model.cache import FrameCache
from vtseg_ros.model.registry import traits_of
from vtseg_ros.training.attention_statistics import AttentionShares
from vtseg_ros.training.build import Network
from vtseg_ros.training.preview import row, sheet
from vtseg_ros.training.processes import any_rank, sum_over_ranks

ATTENTION_FRAMES = 4
FIT_PIXELS = 1000
"""Number of pixels of each frame that the temperature is fitted to."""


@dataclass(frozen=True)
class ScoredClasses:
    """Class list for the scores of a validation bag.

    Attributes:
        names: Names of the classes.
        label_table: (256,) uint8 from label ids of the bag to ids of `names`; None = they are equal.
        mask_table: (256,) uint8 from class ids of the network to ids of `names`, 255 = none; None = they are equal.
        shown: (256,) uint8 from ids of `names` to one class of the network each, for its colour; None = they are equal.
    """

    names: tuple[str, ...]
    label_table: np.ndarray | None = None
    mask_table: np.ndarray | None = None
    shown: np.ndarray | None = None

    @classmethod
    def of(cls, groups: ClassGroups | None, labels: LabelSet) -> ScoredClasses:
        """Return the classes of a bag: its own if it has class groups, else those of the network."""
        if groups is None:
            return cls(labels.names)
        return cls(groups.names, groups.own_labels(), groups.own_masks(len(labels)), groups.shown())

    def members(self, num_classes: int) -> np.ndarray:
        """Return the classes of the network for each class, (len(names), num_classes) bool."""
        if self.mask_table is None:
            return np.eye(num_classes, dtype=bool)
        return np.asarray(self.mask_table[None, :num_classes] == np.arange(len(self.names))[:, None])

    def of_mask(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask with classes of the network as one with classes of `names`."""
        return mask if self.mask_table is None else np.take(self.mask_table, mask)

    def in_color(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask or label with classes of `names` as one with classes of the network, for its colours."""
        return mask if self.shown is None else np.take(self.shown, mask)


@dataclass(frozen=True)
class Validation:
    """Scores of a validation, 0 to 100; NaN or empty if not available.

    Attributes:
        miou: mIoU of the newest frames. Bags with the same class list are scored together; with several class lists
            each score is the mean over them.
        iou: IoU of the classes of the network, on bags that have them.
        bags: For each of several bags `miou` and, by class name, `iou`.
        static_miou: mIoU of the static network on the same frames.
        agreement: Share of labelled pixels on which both networks agree.
        disagreement_accuracy: Accuracy of the network where they differ.
        static_disagreement_accuracy: Accuracy of the static network where they differ.
        miou_by_window: mIoU with windows of 1 .. k frames, on some of the frames.
        cross_frame_attention: Share of the attention of the newest frame on other frames, by block (see
            `AttentionShares`).
        attention_entropy: Entropy of that attention; 100 = uniform attention.
        temperature: Divisor of the logits that maximises the likelihood of the labels.
        calibration_error: Expected calibration error at temperature 1.
        calibration_error_at_temperature: Expected calibration error at `temperature`.
        seconds: Duration of the validation, s.
        pictures: (H, W, 3) uint8 RGB: image, truth, static network, network, difference; None = not drawn.
    """

    miou: float
    iou: np.ndarray
    bags: dict[str, dict[str, Any]] = field(default_factory=dict)
    static_miou: float = float("nan")
    agreement: float = float("nan")
    disagreement_accuracy: float = float("nan")
    static_disagreement_accuracy: float = float("nan")
    miou_by_window: tuple[float, ...] = ()
    cross_frame_attention: dict[str, float] = field(default_factory=dict)
    attention_entropy: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    calibration_error: float = float("nan")
    calibration_error_at_temperature: float = float("nan")
    seconds: float = 0.0
    pictures: np.ndarray | None = None


class Validator:
    """Score the newest frame of each window; the windows are distributed over the processes.

    Args:
        fabric: Device, precision and processes.
        store: Frames and labels.
        windows: Frame numbers of each window, newest last; short windows are not extended.
        length: Frames k of a window.
        labels: Class list of the network.
        classes: Classes of each bag (source of the store); None = those of the network.
        flow: Optical flow of the windows, for networks that need it.
        window_sweep_frames: Number of frames on which windows of 1 .. k frames are compared; 0 = none.
        pictures: Number of frames in the preview; 0 = none.
        should_stop: Called before each window; True in any process ends the validation.
    """

    def __init__(
        self,
        fabric: Fabric,
        store: FrameStore,
        windows: list[list[int]],
        *,
        length: int,
        labels: LabelSet,
        classes: list[ScoredClasses] | None = None,
        flow: WindowFlow | None = None,
        window_sweep_frames: int = 24,
        pictures: int = 4,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.fabric, self.store, self.windows = fabric, store, windows
        self.length, self.labels, self.flow, self.should_stop = length, labels, flow, should_stop
        self.classes = classes or [ScoredClasses(labels.names)] * len(store.index.sources)
        whole = [number for number, window in enumerate(windows) if len(window) >= length]
        self.sweep = _spread(whole, window_sweep_frames)
        self.looked_at = _spread(self.sweep, ATTENTION_FRAMES)
        self.shown = _spread(range(len(windows)), pictures)

    @torch.inference_mode()
    def __call__(self, model: Network) -> Validation | None:
        """Validate a network, which is put in eval mode meanwhile.

        Returns:
            The scores; None if stopped before the end.

        Raises:
            ConfigError: If a label has an id that its class list does not have.
        """
        began = time.monotonic()
        was_training = model.training
        model.eval()
        counts = [_Counts(len(classes.names), self.length) for classes in self.classes]
        fit = TemperatureFit()
        kind = traits_of(model)
        shares = AttentionShares(model, self.length) if kind.takes_cache and self.length > 1 else None
        video_network = kind.video
        sweep, looked_at = set(self.sweep), set(self.looked_at)
        for turn in range(0, len(self.windows), self.fabric.world_size):
            if any_rank(self.fabric, self.should_stop()):
                model.train(was_training)
                return None
            number = turn + self.fabric.global_rank
            if number >= len(self.windows):
                break
            newest = self.windows[number][-1]
            bag = self.store.index.frames[newest].source
            predict, truth, _ = self._frames(model, self.windows[number])
            cache = shares.cache() if shares is not None and number in looked_at else None
            logits = predict.logits(self.length, cache)
            mask = predict.mask(logits)
            self._count(counts[bag].total, mask, truth, newest)
            self._fit(fit, logits, truth, self.classes[bag], number)
            if video_network:
                counts[bag].compare(mask, predict(0), truth)
            if video_network and number in sweep:
                for window in range(1, self.length):
                    counts[bag].sweep[window - 1].update(predict(window), truth)
                counts[bag].sweep[-1].update(mask, truth)
        for part in counts:
            part.reduce(self.fabric)
        fit.sums = sum_over_ranks(self.fabric, fit.sums)
        elsewhere, evenness = self._attention(shares)
        pictures = self._pictures(model, video_network) if self.fabric.is_global_zero else None
        model.train(was_training)
        scores = self._scores(counts, video_network)
        return Validation(
            **scores,
            cross_frame_attention=elsewhere,
            attention_entropy=evenness,
            pictures=pictures,
            temperature=fit.temperature(),
            calibration_error=fit.error(),
            calibration_error_at_temperature=fit.error(fit.best()),
            seconds=time.monotonic() - began,
        )

    def _frames(self, model: Network, numbers: list[int]) -> tuple[_Prediction, np.ndarray, np.ndarray]:
        """Return the predictor of a window, and the truth and the image of its newest frame."""
        classes = self.classes[self.store.index.frames[numbers[-1]].source]
        numbers = numbers[-self.length :]
        video, labels = self.store.window(numbers, len(numbers))
        device = self.fabric.device
        frames = torch.from_numpy(video).to(device).permute(0, 3, 1, 2).float().div_(255)  # (k, 3, H, W)
        flow = None
        kind = traits_of(model)
        if kind.needs_flow and self.flow is not None and len(video) > 1:
            flow = torch.from_numpy(self.flow.window(numbers, video)).to(device).permute(0, 3, 1, 2)
        return _Prediction(self.fabric, model, frames, flow, classes), labels[-1], video[-1]

    def _fit(
        self, fit: TemperatureFit, logits: Tensor, truth: np.ndarray, classes: ScoredClasses, number: int
    ) -> None:
        """Add some labelled pixels of a frame, the same ones in each validation."""
        places = np.flatnonzero(truth != IGNORE)
        rng = np.random.default_rng(number)
        places = places if len(places) <= FIT_PIXELS else rng.choice(places, FIT_PIXELS, replace=False)
        chosen = torch.from_numpy(places).to(logits.device)
        known = torch.from_numpy(truth.reshape(-1)[places].astype(np.int64)).to(logits.device)
        members = torch.from_numpy(classes.members(len(self.labels))).to(logits.device)
        fit.update(logits.flatten(1).T[chosen], known, members)

    def _count(self, total: ConfusionMatrix, mask: np.ndarray, truth: np.ndarray, newest: int) -> None:
        try:
            total.update(mask, truth)
        except ConfigError as err:
            frame = self.store.index.frames[newest]
            raise ConfigError(
                f"bag {self.store.index.sources[frame.source].path}, stamp {frame.stamp_ns} ns: {err}"
            ) from err

    def _scores(self, counts: list[_Counts], video_network: bool) -> dict[str, Any]:
        """Return the scores of all bags: of each class list, then the mean over class lists."""
        lists: dict[tuple[str, ...], _Counts] = {}
        for classes, part in zip(self.classes, counts):
            if classes.names not in lists:
                lists[classes.names] = _Counts(len(classes.names), self.length)
            lists[classes.names].merge(part)
        each = [whole.scores(video_network, bool(self.sweep)) for whole in lists.values()]
        scores: dict[str, Any] = {}
        for key in dict.fromkeys(key for one in each for key in one if key != "iou"):
            values = np.asarray([one[key] for one in each if key in one], np.float64)
            # A class list without labelled pixels in this part has no score.
            filled = values[~np.isnan(values).reshape(len(values), -1).any(axis=1)]
            mean = filled.mean(axis=0) if len(filled) else values[0]
            scores[key] = tuple(mean.tolist()) if mean.ndim else float(mean)
        own = lists.get(self.labels.names)
        scores["iou"] = own.total.iou() if own else np.full(len(self.labels), np.nan)
        paths = [str(source.path) for source in self.store.index.sources]
        if len(paths) > 1:
            scores["bags"] = {
                _bag_name(number, paths): {
                    "miou": part.total.miou(),
                    "iou": dict(zip(classes.names, part.total.iou().tolist())),
                }
                for number, (classes, part) in enumerate(zip(self.classes, counts))
            }
        return scores

    def _attention(self, shares: AttentionShares | None) -> tuple[dict[str, float], dict[str, float]]:
        if shares is None:
            return {}, {}
        totals = sum_over_ranks(self.fabric, shares.totals())  # (names, 3)
        if not totals[:, 2].all():
            return {}, {}
        means = 100.0 * totals[:, :2] / totals[:, 2:]
        elsewhere, evenness = (dict(zip(shares.names, column.tolist())) for column in means.T)
        return elsewhere, evenness

    def _pictures(self, model: Network, video_network: bool) -> np.ndarray | None:
        rows = []
        for number in self.shown:
            predict, truth, image = self._frames(model, self.windows[number])
            shown = self.classes[self.store.index.frames[self.windows[number][-1]].source].in_color
            prior = shown(predict(0)) if video_network else None
            rows.append(row(image, shown(truth), prior, shown(predict(self.length)), self.labels))
        return sheet(rows) if rows else None


@dataclass(frozen=True)
class _Prediction:
    """Predictions for the newest frame of a window, with a chosen number of frames; 0 = the static network.

    Masks have the classes that the bag is scored in, logits those of the network.
    """

    fabric: Fabric
    model: Network
    frames: Tensor
    flow: Tensor | None
    classes: ScoredClasses

    def __call__(self, window: int) -> np.ndarray:
        return self.mask(self.logits(window))

    def mask(self, logits: Tensor) -> np.ndarray:
        return self.classes.of_mask(logits.argmax(0).byte().cpu().numpy())

    def logits(self, window: int, cache: FrameCache | None = None) -> Tensor:
        """Return the logits, (C, H, W)."""
        with self.fabric.autocast():
            logits: Tensor = self._logits(window, cache)
        return logits

    def _logits(self, window: int, cache: FrameCache | None) -> Any:
        model, frames, flow = self.model, self.frames, self.flow
        kind, window = traits_of(model), min(window, len(frames))
        if not kind.video:
            return model(frames[-1:])[0]
        if window == 0:
            return model.static_logits(frames[-1:])[0]
        if kind.needs_flow:
            motion = flow[None, len(flow) - window + 1 :] if flow is not None and window > 1 else None
            return model(frames[None, -window:], motion)[0, -1]
        return model(frames[None, -window:], cache)[0, -1]


class _Counts:
    """Counts of a validation: sums over frames, which can be added over processes."""

    def __init__(self, num_classes: int, length: int) -> None:
        self.total, self.prior = ConfusionMatrix(num_classes), ConfusionMatrix(num_classes)
        self.sweep = [ConfusionMatrix(num_classes) for _ in range(length)]
        self.pixels: np.ndarray = np.zeros(
            4, np.int64
        )  # labelled, equal, network right, static network right

    def compare(self, mask: np.ndarray, prior: np.ndarray, truth: np.ndarray) -> None:
        self.prior.update(prior, truth)
        known = truth != IGNORE
        other = known & (mask != prior)
        self.pixels += (
            known.sum(),
            (known & ~other).sum(),
            (mask == truth)[other].sum(),
            (prior == truth)[other].sum(),
        )

    def merge(self, other: _Counts) -> None:
        for own, added in zip(
            (self.total, self.prior, *self.sweep), (other.total, other.prior, *other.sweep)
        ):
            own.merge(added)
        self.pixels += other.pixels

    def reduce(self, fabric: Fabric) -> None:
        for matrix in (self.total, self.prior, *self.sweep):
            matrix.matrix = sum_over_ranks(fabric, matrix.matrix)
        self.pixels = sum_over_ranks(fabric, self.pixels)

    def scores(self, video_network: bool, swept: bool) -> dict[str, Any]:
        scores: dict[str, Any] = {"miou": self.total.miou(), "iou": self.total.iou()}
        labelled, same, right, prior_right = self.pixels.tolist()
        if not video_network or not labelled:
            return scores
        scores |= {"static_miou": self.prior.miou(), "agreement": 100.0 * same / labelled}
        if labelled > same:
            scores["disagreement_accuracy"] = 100.0 * right / (labelled - same)
            scores["static_disagreement_accuracy"] = 100.0 * prior_right / (labelled - same)
        if swept:
            scores["miou_by_window"] = tuple(matrix.miou() for matrix in self.sweep)
        return scores


def _bag_name(number: int, paths: list[str]) -> str:
    """Return the name of a bag: that of its folder, with its number if several bags have it."""
    names = [Path(path).name for path in paths]
    return names[number] if names.count(names[number]) == 1 else f"{names[number]}_{number}"


def _spread(items: Iterable[int], count: int) -> list[int]:
    """Return at most `count` of the items, evenly spaced."""
    items = list(items)
    if count <= 0 or not items:
        return []
    places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[place] for place in places]
