# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg preview-augmentation`: draw a contact sheet of augmented windows with their labels."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.dataset.augmentation import Augmentation, Draw
from vtseg_ros.dataset.frame_store import FrameStore
from vtseg_ros.errors import ConfigError
from vtseg_ros.image_ops import overlay
from vtseg_ros.label_set import IGNORE, LabelSet
from vtseg_ros.training.config import TrainConfig
from vtseg_ros.training.config_file import load_config
from vtseg_ros.training.preview import joined
from vtseg_ros.training.training_data import build_labels, build_sources, build_store, read_class_groups

HELP = "Draw a contact sheet of augmented training windows, with the labels blended in below the frames."
TITLE_HEIGHT, GAP_HEIGHT = 24, 10
FRAME_WIDTH = 320


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("config", type=Path, help="training YAML")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PNG", help="image to write; must not exist"
    )
    parser.add_argument("--windows", type=int, default=6, metavar="N", help="number of windows (default 6)")
    parser.add_argument("--frames", type=int, default=4, metavar="K", help="frames per window (default 4)")
    parser.add_argument("--seed", type=int, metavar="N", help="random seed (default: from the configuration)")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if args.windows < 1 or args.frames < 1:
        raise ConfigError(
            f"--windows, --frames: out of range; expected at least 1, got {args.windows}, {args.frames}"
        )
    if args.out.exists():
        raise ConfigError(f"--out: {args.out} exists; expected a new file. Remove it or choose another --out")
    if args.out.suffix.lower() != ".png":
        raise ConfigError(f"--out: wrong suffix; expected .png, got {args.out}")
    config = load_config(args.config)
    labels = build_labels(config.data)
    groups = read_class_groups(config.data, labels, "train")
    # A group is shown in the colour of its first class.
    tables = [None if one is None else one.shown() for one in groups]
    store = build_store(
        config.data, build_sources(config.data)[0], label_tables=tables, need_labels=not _taught(config)
    )
    count = min(args.windows, len(_chosen(config, store)))
    picture = contact_sheet(
        config, store, labels, count, args.frames, config.seed if args.seed is None else args.seed
    )
    payload = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_bytes(payload)
    except OSError as err:
        raise ConfigError(f"--out: {args.out} cannot be written: {err.strerror}") from err
    labelled = len(store.index.labelled(config.data.label_stride))
    print(
        f"{args.out}: {count} windows of {args.frames} frames, oldest on the left; "
        f"{labelled} labelled frames for training"
    )
    return 0


def contact_sheet(
    config: TrainConfig, store: FrameStore, labels: LabelSet, count: int, length: int, seed: int
) -> np.ndarray:
    """Draw the windows below each other, each frame above the same frame with its labels: (H, W, 3) uint8 RGB."""
    chosen = _chosen(config, store)
    labelled = {number for number, _ in store.index.labelled(config.data.label_stride)}
    rng = np.random.default_rng(seed)
    augmentation = Augmentation(config.augmentation)
    parts = []
    for place in rng.permutation(len(chosen))[:count]:
        newest, first = chosen[place]
        strides = config.data.random_strides
        stride = int(rng.choice(strides)) if strides else None
        window = store.index.window(newest, first, length, stride)
        video, ids = store.window(window, length)
        for age, number in enumerate(reversed(window)):
            if number not in labelled:
                ids[-1 - age] = IGNORE  # as in training
        draw = augmentation.draw(length, config.data.size, rng)
        parts += _window(*draw.apply(video, ids), labels, _title(draw, store, newest))
    return np.concatenate(parts[:-1])


def _taught(config: TrainConfig) -> bool:
    """Return whether a stage has a teacher and therefore uses frames without labels."""
    return any(stage.teacher for stage in config.stages)


def _chosen(config: TrainConfig, store: FrameStore) -> list[tuple[int, int]]:
    """Return (frame number, first frame of its sequence) of the newest frame of each window."""
    chosen = store.index.labelled(config.data.label_stride)
    if _taught(config):
        strides = [source.unlabelled_stride for source in config.data.train]
        chosen = sorted(chosen + store.index.others({number for number, _ in chosen}, strides))
    return chosen


def _title(draw: Draw, store: FrameStore, newest: int) -> str:
    matrix = draw.transforms[-1, :2, :2]
    flipped = np.linalg.det(matrix) < 0
    zoom = np.sqrt(abs(np.linalg.det(matrix)))
    frame = store.index.frames[newest]
    kind = "pseudo-clip" if draw.pseudo_clip else "real frames"
    return (
        f"{kind}, {store.index.sources[frame.source].path.name} {frame.stamp_ns / 1e9:.2f} s, zoom {zoom:.2f}"
        + (", flipped" if flipped else "")
    )


def _window(video: np.ndarray, ids: np.ndarray, labels: LabelSet, title: str) -> list[np.ndarray]:
    """Return a title, the frames, the frames with labels, and a gap, all of one width."""
    scale = max(1, round(FRAME_WIDTH / video.shape[2]))
    size = (video.shape[2] * scale, video.shape[1] * scale)
    above, below = [], []
    for image, mask in zip(video, ids):
        image = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        above.append(image)
        shown = overlay(image, mask, labels, 0.6)
        shown[mask == IGNORE] //= 3  # dark: nothing is learned from there
        below.append(shown)
    rows = joined([joined(above, axis=1), joined(below, axis=1)], axis=0)
    strip = np.full((TITLE_HEIGHT, rows.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1, cv2.LINE_AA)
    return [strip, rows, np.full((GAP_HEIGHT, rows.shape[1], 3), 255, np.uint8)]
