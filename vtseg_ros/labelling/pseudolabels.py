# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Label the images of a bag with the predictions of a teacher network."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, PNG_LABEL, compressed_message, header_stamp, stamp_of
from vtseg_ros.errors import BagError, ImageError
from vtseg_ros.image_ops import overlay
from vtseg_ros.importers.dataset_frames import LABEL_MAP_TOPIC, LABEL_TOPIC
from vtseg_ros.label_set import LabelSet
from vtseg_ros.labelling.acceptance import Acceptance
from vtseg_ros.labelling.merge import place_images
from vtseg_ros.labelling.teacher_probabilities import Teacher
from vtseg_ros.labelling.work_folder import WorkFolder

SHEET = "contact_sheet.jpg"
SHEET_FRAMES = 12
SHEET_WIDTH = 480


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
