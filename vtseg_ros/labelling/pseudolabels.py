# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Label the images of a bag with the predictions of a teacher network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtseg_ros.bags.bag import BagReader, BagWriter
from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, PNG_LABEL, compressed_message, header_stamp, stamp_of
from vtseg_ros.errors import BagError, ConfigError, ImageError
from vtseg_ros.evaluation.class_map import ClassMap
from vtseg_ros.files import write_atomically
from vtseg_ros.image_ops import overlay
from vtseg_ros.importers.dataset_frames import LABEL_MAP_TOPIC, LABEL_TOPIC
from vtseg_ros.label_set import IGNORE, LabelSet
from vtseg_ros.labelling.masks import read_ego_mask
from vtseg_ros.labelling.merge import place_images
from vtseg_ros.labelling.teacher_probabilities import Teacher

SHEET = "contact_sheet.jpg"
SHEET_FRAMES = 12
SHEET_WIDTH = 480
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Acceptance:
    """Rules that decide which pixels get a label.

    Args:
        labels: Classes of the labels.
        groups: (T, S) float32, 1 where class s of the teacher counts as class t of the labels.
        min_confidence: Least probability of a labelled pixel, 0..1.
        class_confidence: Least probability for single classes, by name; replaces `min_confidence`.
        ego_mask: (H, W) bool, True on the robot's own body, which gets no label; None = not visible.

    Raises:
        ConfigError: For a value out of range or an unknown class.
    """

    labels: LabelSet
    groups: np.ndarray
    min_confidence: float = 0.0
    class_confidence: Mapping[str, float] = field(default_factory=dict)
    ego_mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, value in {"min-confidence": self.min_confidence, **self.class_confidence}.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name}: confidence out of range; expected 0 to 1, got {value:g}")
        for name in self.class_confidence:
            if name not in self.labels.names:
                raise ConfigError(
                    f"class-confidence: unknown class; expected one of {', '.join(self.labels.names)}, got {name!r}. "
                    "Correct the name"
                )

    def thresholds(self) -> np.ndarray:
        """Return the least probability of every class, (T,) float32."""
        values = [self.class_confidence.get(name, self.min_confidence) for name in self.labels.names]
        return np.asarray(values, np.float32)

    def check_size(self, image: np.ndarray) -> None:
        """Check the size of the ego mask against an image (H, W, 3).

        Raises:
            ConfigError: If the sizes differ.
        """
        if self.ego_mask is not None and self.ego_mask.shape != image.shape[:2]:
            (height, width), (high, wide) = self.ego_mask.shape, image.shape[:2]
            raise ConfigError(
                f"ego-mask: wrong size; expected {wide}x{high} px like the images, got {width}x{height}. "
                "Make it from images of this camera"
            )

    def decide(self, probabilities: Tensor, teacher: Teacher, image: np.ndarray) -> np.ndarray:
        """Return the label of an image.

        Args:
            probabilities: (S, h, w) float32 of the part of the image that the teacher sees.
            teacher: Teacher that returned them.
            image: (H, W, 3) uint8 RGB.

        Returns:
            (H, W) uint8 class ids; 255 = unlabelled.
        """
        seen = teacher.placement(image).source
        grouped = torch.einsum("ts,shw->thw", torch.from_numpy(self.groups), probabilities)
        # Classes without a target take part too: a pixel that is most likely one of them is unlabelled.
        others = (probabilities.sum(0) - grouped.sum(0)).clamp_(min=0)
        both = torch.cat([grouped, others[None]])
        both = F.interpolate(
            both[None], size=(seen.height, seen.width), mode="bilinear", align_corners=False
        )[0]
        confidence, ids = both.max(0)
        thresholds = torch.from_numpy(np.append(self.thresholds(), np.float32(2)))
        kept = torch.where(confidence < thresholds[ids], IGNORE, ids).to(torch.uint8).numpy()
        label = np.full(image.shape[:2], IGNORE, np.uint8)
        seen.of(label)[:] = kept
        if self.ego_mask is not None:
            label[self.ego_mask] = IGNORE
        return label


def groups_of(labels: LabelSet, class_map: ClassMap | None) -> tuple[LabelSet, np.ndarray]:
    """Return the classes of the labels, and the classes of the teacher that count as each of them.

    Args:
        labels: Classes of the teacher.
        class_map: Map from classes of the teacher to classes of the labels; None = they are equal.

    Returns:
        Classes of the labels, and (T, S) float32, 1 where class s of the teacher counts as class t.

    Raises:
        ConfigError: If the map names a class that the teacher does not have.
    """
    if class_map is None:
        return labels, np.eye(len(labels), dtype=np.float32)
    table = class_map.table(labels)[: len(labels)]
    return class_map.labels, (table[None] == np.arange(len(class_map.labels))[:, None]).astype(np.float32)


def open_ego_mask(path: Path) -> np.ndarray:
    """Read an ego mask; see `labelling.masks.read_ego_mask`.

    Returns:
        (H, W) bool, True on the robot's own body.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return read_ego_mask(path)
    except ImageError as err:
        raise ConfigError(
            f"{path}: not an ego mask; expected a png whose non-zero, or opaque, pixels are the robot's body, got: {err}. "
            "Make one with `vtseg ego-mask`"
        ) from err


@dataclass
class Labelled:
    """Result of `pseudolabel`.

    Attributes:
        images: Number of images copied.
        labels: Number of labels written.
        resumed: Number of labels taken from an interrupted run.
        empty: Number of frames without a labelled pixel.
        pixels: Labelled pixels by class, (T,) int64.
        total: Pixels of all labelled and empty frames.
        left_out: Reasons of frames that could not be used.
    """

    images: int = 0
    labels: int = 0
    resumed: int = 0
    empty: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    total: int = 0
    left_out: list[str] = field(default_factory=list)

    def summary(self, labels: LabelSet) -> dict[str, Any]:
        """Return plain values for JSON; shares refer to all pixels of labelled and empty frames."""
        total = max(self.total, 1)
        return {
            "images": self.images,
            "labels": self.labels,
            "resumed": self.resumed,
            "empty": self.empty,
            "kept_share": float(self.pixels.sum() / total),
            "class_shares": {name: float(n / total) for name, n in zip(labels.names, self.pixels)},
            "left_out": self.left_out,
        }


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


@dataclass
class _Frame:
    number: int
    stamp_ns: int
    image: np.ndarray
    known: tuple[np.ndarray, Tensor] | None = None  # image as the teacher sees it, and its probabilities


def pseudolabel(
    bag: BagReader,
    topic: str,
    out: Path,
    teacher: Teacher,
    acceptance: Acceptance,
    work: WorkFolder,
    *,
    every: int = 1,
    max_gap_s: float = 1.0,
    storage: str = "mcap",
    on_frame: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Labelled | None:
    """Write a bag with the images of another one and pseudo-labels.

    Images are copied byte by byte; labels have the stamps, bag times and frame_ids of their images. Frames that cannot be
    decoded, repeat a stamp or have no accepted pixel get no label.

    Args:
        bag: Bag to label.
        topic: Topic of its images.
        out: Folder to create; it also gets a contact sheet.
        teacher: Labels the frames.
        acceptance: Which pixels are labelled.
        work: Stores labels until the bag is complete, and is removed then.
        every: Label every n-th image.
        max_gap_s: Windows and neighbours do not extend over a longer pause, s.
        storage: `mcap` or `sqlite3`.
        on_frame: Called for each image of the bag.
        stopped: Called between frames; True ends the run.

    Returns:
        What was done; None if `stopped` ended the run, the labels so far are in `work` then.

    Raises:
        BagError: If the bag cannot be read or written, or no frame can be labelled.
        ConfigError: If the ego mask has another size.
    """
    done = Labelled(pixels=np.zeros(len(acceptance.labels), np.int64))
    stamps: list[int] = []
    for clip in _clips(bag, topic, max_gap_s, done.left_out, on_frame):
        for frame, label in _label_clip(clip, teacher, acceptance, work, every, done):
            if stopped():
                return None
            counts = np.bincount(label.reshape(-1), minlength=256)[: len(acceptance.labels)]
            done.pixels += counts
            done.total += label.size
            if counts.any():
                stamps.append(frame)
            else:
                done.empty += 1
        if stopped():
            return None
    done.labels = len(stamps)
    if not stamps:
        work.remove()
        raise BagError(
            f"{bag.path}: no frame got a label; expected at least one labelled pixel, got {done.empty} empty frames"
            + (f" and {len(done.left_out)} left out ({done.left_out[0]})" if done.left_out else "")
            + ". Lower --min-confidence, or correct the ego mask if there is one"
        )
    made = work.path / "bag" / out.name
    shutil.rmtree(made.parent, ignore_errors=True)
    done.images = _write(bag, topic, made, set(stamps), acceptance.labels, work, storage)
    sheet = contact_sheet(bag, topic, stamps, acceptance.labels, work)
    (made / SHEET).write_bytes(
        cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    )
    os.rename(made, out)
    work.remove()
    return done


def _clips(
    bag: BagReader, topic: str, max_gap_s: float, left_out: list[str], on_frame: Callable[[], None]
) -> Iterator[Iterator[_Frame]]:
    """Yield clips, which are frames of one size without a pause; each must be read to its end before the next one."""
    decode = ImageDecoder(topic)
    seen: set[int] = set()

    def decoded() -> Iterator[_Frame]:
        for number, (_, time_ns, message) in enumerate(
            bag.messages([topic], on_corrupt=lambda _, t, why: left_out.append(f"image at {t} ns: {why}"))
        ):
            on_frame()
            stamp_ns = stamp_of(message)
            try:
                if stamp_ns == 0:
                    raise ImageError("its header stamp is zero, labels are matched by stamp")
                if stamp_ns in seen:
                    raise ImageError("another image has the same header stamp")
                image = decode(message)
            except ImageError as err:
                left_out.append(f"image at {time_ns} ns: {err}")
                continue
            seen.add(stamp_ns)
            yield _Frame(number, stamp_ns, image)

    frames = decoded()
    ahead = next(frames, None)

    def clip() -> Iterator[_Frame]:
        nonlocal ahead
        while ahead is not None:
            frame, ahead = ahead, next(frames, None)
            yield frame
            if ahead is None or ahead.image.shape != frame.image.shape:
                return
            if not 0 < ahead.stamp_ns - frame.stamp_ns <= max_gap_s * 1e9:
                return

    while ahead is not None:
        yield clip()


def _label_clip(
    clip: Iterator[_Frame],
    teacher: Teacher,
    acceptance: Acceptance,
    work: WorkFolder,
    every: int,
    done: Labelled,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (stamp in ns, label) of every n-th image."""
    reach = teacher.averaging.neighbours
    # Older frames: the window of the oldest neighbour. Newer frames: the neighbours after the frame.
    past: deque[_Frame] = deque(maxlen=reach + teacher.window)
    future: deque[_Frame] = deque()

    def label(frame: _Frame) -> tuple[int, np.ndarray] | None:
        past.append(frame)
        if frame.number % every:
            return None
        acceptance.check_size(frame.image)
        ids = work.load(frame.stamp_ns, frame.image.shape[:2])
        if ids is None:
            ids = acceptance.decide(
                _probabilities(teacher, list(past), list(future)[:reach]), teacher, frame.image
            )
            work.make()
            work.save(frame.stamp_ns, ids)
        else:
            done.resumed += 1
        return frame.stamp_ns, ids

    for frame in clip:
        future.append(frame)
        if len(future) > reach:
            found = label(future.popleft())
            if found:
                yield found
    while future:
        found = label(future.popleft())
        if found:
            yield found


def _probabilities(teacher: Teacher, past: list[_Frame], future: list[_Frame]) -> Tensor:
    """Return (S, h, w) of the last frame of `past`, averaged with its neighbours."""
    frames, own = past + future, len(past) - 1
    reach = teacher.averaging.neighbours
    near = range(max(0, own - reach), min(len(frames), own + reach + 1))
    known = {}
    for place in near:
        frame = frames[place]
        if frame.known is None:
            window = frames[max(0, place - teacher.window + 1) : place + 1]
            probabilities = teacher.probabilities([one.image for one in window])
            frame.known = (teacher.small(frame.image) if reach else frame.image, probabilities)
        known[place] = frame.known
    image, probabilities = known.pop(own)
    return teacher.average(image, probabilities, list(known.values()))


def _write(
    bag: BagReader, topic: str, out: Path, stamps: set[int], labels: LabelSet, work: WorkFolder, storage: str
) -> int:
    """Write the images and the labels of some stamps; return the number of images."""
    places = place_images(bag, topic, stamps)
    images = 0
    left = set(stamps)
    with BagWriter(out, storage) as writer:
        for name, msgtype, time_ns, data in bag.raw([topic]):
            if not images:
                writer.write_label_map(LABEL_MAP_TOPIC, labels, time_ns)
            definition = bag.definitions.get(msgtype)
            writer.write_raw(name, msgtype, data, time_ns, definition=definition, qos=bag.qos[name])
            images += 1
            try:
                stamp_ns = header_stamp(data)
            except BagError:
                continue
            if stamp_ns in left and places[stamp_ns].time_ns == time_ns:
                left.discard(stamp_ns)
                payload = np.fromfile(work.path / f"{stamp_ns}.png", np.uint8)
                message = compressed_message(payload, PNG_LABEL, stamp_ns, places[stamp_ns].frame_id)
                writer.write(LABEL_TOPIC, COMPRESSED_IMAGE, message, time_ns)
    return images


def contact_sheet(
    bag: BagReader, topic: str, stamps: list[int], labels: LabelSet, work: WorkFolder
) -> np.ndarray:
    """Draw evenly spaced labelled frames, each next to its overlay.

    Args:
        bag: Bag of the images.
        topic: Topic of the images.
        stamps: Header stamps of the labelled frames, ns.
        labels: Classes of the labels.
        work: Folder with the labels.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    places = np.linspace(0, len(stamps) - 1, min(SHEET_FRAMES, len(stamps))).round().astype(int)
    wanted = {stamps[place] for place in places}
    decode, rows = ImageDecoder(topic), []
    for _, _, message in bag.messages([topic], on_corrupt=lambda *_: None):
        stamp_ns = stamp_of(message)
        if stamp_ns not in wanted:
            continue
        try:
            image = decode(message)
        except ImageError:
            continue
        ids = work.load(stamp_ns, image.shape[:2])
        if ids is None:
            continue
        wanted.discard(stamp_ns)
        size = (SHEET_WIDTH, max(1, round(SHEET_WIDTH * image.shape[0] / image.shape[1])))
        both = [
            cv2.resize(one, size, interpolation=cv2.INTER_AREA)
            for one in (image, overlay(image, ids, labels))
        ]
        rows.append(np.hstack(both))
    half = -(-len(rows) // 2)
    left, right = rows[:half], rows[half:]
    columns = [np.vstack(column) for column in (left, right) if column and _same_width_and_height(rows)]
    if len(columns) == 2:
        missing = columns[0].shape[0] - columns[1].shape[0]
        columns[1] = np.pad(columns[1], ((0, missing), (0, 0), (0, 0)))
    return np.hstack(columns) if columns else np.vstack(rows)


def _same_width_and_height(rows: list[np.ndarray]) -> bool:
    return len({row.shape for row in rows}) == 1
