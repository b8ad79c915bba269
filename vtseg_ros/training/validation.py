# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Validation: mIoU at the network's resolution, how far it leaves its static network, what older frames change."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

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
from vtseg_ros.training.preview import row, sheet
from vtseg_ros.training.processes import any_rank, sum_over_ranks

ATTENTION_FRAMES = 4
FIT_PIXELS = 1000
"""Pixels of each frame that the temperature is fitted to."""


@dataclass(frozen=True)
class ScoredClasses:
    """The class list that a validation bag is scored in.

    Attributes:
        names: of its classes.
        label_table: (256,) uint8 from the ids of the bag's labels to those of `names`; None = they are these.
        mask_table: (256,) uint8 from the network's class ids to those of `names`, 255 = none of them; None as above.
        shown: (256,) uint8 from the ids of `names` to a class of the network each, for its colour; None as above.
    """

    names: tuple[str, ...]
    label_table: np.ndarray | None = None
    mask_table: np.ndarray | None = None
    shown: np.ndarray | None = None

    @classmethod
    def of(cls, groups: ClassGroups | None, labels: LabelSet) -> ScoredClasses:
        """Return the classes of a bag: its own where it has class groups, else the network's."""
        if groups is None:
            return cls(labels.names)
        return cls(groups.names, groups.own_labels(), groups.own_masks(len(labels)), groups.shown())

    def members(self, num_classes: int) -> np.ndarray:
        """Return the network's classes of each class, (len(names), num_classes) bool."""
        if self.mask_table is None:
            return np.eye(num_classes, dtype=bool)
        return self.mask_table[None, :num_classes] == np.arange(len(self.names))[:, None]

    def of_mask(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask of the network's classes in those of `names`."""
        return mask if self.mask_table is None else self.mask_table[mask]

    def in_color(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask or label of the classes of `names` in classes of the network."""
        return mask if self.shown is None else self.shown[mask]


@dataclass(frozen=True)
class Validation:
    """Scores of a validation, 0 to 100; NaN and empty where there is nothing to say.

    Attributes:
        miou: of the network's newest frames. Bags of one class list are scored together; with several class lists
            each score is the mean over them.
        iou: of the network's classes, on bags that have them.
        bags: for each of several bags `miou` and, by class name, `iou`.
        static_miou: of its static network on the same frames.
        agreement: labelled pixels on which the two agree.
        disagreement_accuracy, static_disagreement_accuracy: who is right where they differ.
        miou_by_window: with windows of 1 .. k frames, on some of the frames.
        cross_frame_attention: share of the newest frame's attention on other frames, by block (see `AttentionShares`).
        attention_entropy: entropy of that attention; 100 = every key is looked at alike.
        temperature: that divides the logits so that confidences fit best, in the sense of the labels' likelihood.
        calibration_error, calibration_error_at_temperature: expected calibration error as it is, and with that.
        seconds: that it took.
        pictures: (H, W, 3) uint8 RGB: image, truth, static network, network, difference; None = none wanted.
    """

    miou: float
    iou: np.ndarray
    bags: dict[str, dict] = field(default_factory=dict)
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
    """Scores the newest frame of each window; the windows are shared out among the processes.

    Args:
        fabric: device, precision and processes.
        store, windows: as in training; short windows stay short.
        length: frames k of a window.
        labels: class list of the network.
        classes: of each bag (source of the store); None = the network's in all of them.
        flow: of the windows, for STGRU.
        window_sweep_frames: on how many frames windows of 1 .. k frames are compared; 0 = not at all.
        pictures: how many frames are shown; 0 = none.
        should_stop: asked before each window; True in any process ends the validation.
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
    def __call__(self, model: nn.Module) -> Validation | None:
        """Validate VTSeg, STGRU or an image network, which is in eval mode meanwhile; None = stopped before the end."""
        began = time.monotonic()
        was_training = model.training
        model.eval()
        counts = [_Counts(len(classes.names), self.length) for classes in self.classes]
        fit = TemperatureFit()
        kind = traits_of(model)
        shares = AttentionShares(model) if kind.takes_cache and self.length > 1 else None
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

    def _frames(self, model: nn.Module, numbers: list[int]) -> tuple[_Prediction, np.ndarray, np.ndarray]:
        """What the network makes of a window, and the newest frame's truth and image."""
        classes = self.classes[self.store.index.frames[numbers[-1]].source]
        numbers = numbers[-self.length :]
        video, labels = self.store.window(numbers, len(numbers))
        device = self.fabric.device
        frames = torch.from_numpy(video).to(device).permute(0, 3, 1, 2).float().div_(255)  # (k, 3, H, W)
        flow = None
        kind = traits_of(model)
        if kind.needs_flow and len(video) > 1:
            flow = torch.from_numpy(self.flow.window(numbers, video)).to(device).permute(0, 3, 1, 2)
        return _Prediction(self.fabric, model, frames, flow, classes), labels[-1], video[-1]

    def _fit(
        self, fit: TemperatureFit, logits: Tensor, truth: np.ndarray, classes: ScoredClasses, number: int
    ) -> None:
        """Add some of a frame's labelled pixels, the same ones in each validation."""
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

    def _scores(self, counts: list[_Counts], video_network: bool) -> dict:
        """Scores of all bags: of those of each class list together, then the mean over class lists."""
        lists: dict[tuple[str, ...], _Counts] = {}
        for classes, part in zip(self.classes, counts):
            if classes.names not in lists:
                lists[classes.names] = _Counts(len(classes.names), self.length)
            lists[classes.names].merge(part)
        each = [whole.scores(video_network, bool(self.sweep)) for whole in lists.values()]
        scores: dict = {}
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
        return tuple(dict(zip(shares.names, column.tolist())) for column in means.T)

    def _pictures(self, model: nn.Module, video_network: bool) -> np.ndarray | None:
        rows = []
        for number in self.shown:
            predict, truth, image = self._frames(model, self.windows[number])
            shown = self.classes[self.store.index.frames[self.windows[number][-1]].source].in_color
            prior = shown(predict(0)) if video_network else None
            rows.append(row(image, shown(truth), prior, shown(predict(self.length)), self.labels))
        return sheet(rows) if rows else None


@dataclass(frozen=True)
class _Prediction:
    """What a network makes of a window's newest frame, with as many frames as asked for; 0 = the static network's.

    Masks have the classes that the bag is scored in, logits those of the network.
    """

    fabric: Fabric
    model: nn.Module
    frames: Tensor
    flow: Tensor | None
    classes: ScoredClasses

    def __call__(self, window: int) -> np.ndarray:
        return self.mask(self.logits(window))

    def mask(self, logits: Tensor) -> np.ndarray:
        return self.classes.of_mask(logits.argmax(0).byte().cpu().numpy())

    def logits(self, window: int, cache: FrameCache | None = None) -> Tensor:
        """(C, H, W)."""
        model, frames, flow = self.model, self.frames, self.flow
        kind, window = traits_of(model), min(window, len(frames))
        with self.fabric.autocast():
            if not kind.video:
                return model(frames[-1:])[0]
            if window == 0:
                return model.static_logits(frames[-1:])[0]
            if kind.needs_flow:
                motion = flow[None, len(flow) - window + 1 :] if window > 1 else None
                return model(frames[None, -window:], motion)[0, -1]
            return model(frames[None, -window:], cache)[0, -1]


class _Counts:
    """What a validation counts; sums over frames, so that processes can be added up."""

    def __init__(self, num_classes: int, length: int) -> None:
        self.total, self.prior = ConfusionMatrix(num_classes), ConfusionMatrix(num_classes)
        self.sweep = [ConfusionMatrix(num_classes) for _ in range(length)]
        self.pixels = np.zeros(4, np.int64)  # labelled, the same, network right, static network right

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

    def scores(self, video_network: bool, swept: bool) -> dict:
        scores = {"miou": self.total.miou(), "iou": self.total.iou()}
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
    """Of a bag among several: its folder's name, with its number where several have that."""
    names = [Path(path).name for path in paths]
    return names[number] if names.count(names[number]) == 1 else f"{names[number]}_{number}"


def _spread(items, count: int) -> list[int]:
    """At most `count` of the items, evenly spaced."""
    items = list(items)
    if count <= 0 or not items:
        return []
    places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[place] for place in places]
