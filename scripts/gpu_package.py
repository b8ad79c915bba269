# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Pack training frames, validation frames and the teacher of a training configuration into one file for a GPU machine.

`scripts/gpu_train.py` trains from the package with torch only, on a machine that has neither ROS nor the bags.
Usage: python scripts/gpu_package.py config/train/drive.yaml --frames 1000 --out drive_package.npz
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.dataset.frame_store import FrameStore
from vtseg_ros.errors import ConfigError
from vtseg_ros.model.checkpoint import resolve_checkpoint
from vtseg_ros.training.config_file import load_config
from vtseg_ros.training.training_data import TrainingData, build_labels

JPEG_QUALITY = 88


def pack(store: FrameStore, numbers: list[int]) -> dict[str, np.ndarray]:
    """Encode frames and their labels: bytes of all files one after the other, and where each ends."""
    images, labels = [], []
    for number in numbers:
        video, ids = store.window([number], 1)
        images.append(
            cv2.imencode(".jpg", video[0][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].reshape(-1)
        )
        labels.append(cv2.imencode(".png", ids[0])[1].reshape(-1))
    packed = {}
    for name, files in (("images", images), ("labels", labels)):
        packed[name] = np.concatenate(files)
        packed[f"{name}_end"] = np.cumsum([len(file) for file in files])
    return packed


def main() -> None:
    """Write the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="training YAML whose first stage has a teacher")
    parser.add_argument(
        "--frames", type=int, default=1000, help="training frames, evenly spaced (default 1000)"
    )
    parser.add_argument("--validation-frames", type=int, default=150)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    config = load_config(args.config)
    labels = build_labels(config.data)
    stage = config.stages[0]
    if not stage.teacher:
        raise ConfigError(
            f"{args.config}: stage {stage.name} has no teacher; expected one for the soft targets"
        )
    data = TrainingData(config, labels, length=1, needs_flow=False)
    windows = data.windows(stage)
    chosen = [windows[place][-1] for place in spread(len(windows), args.frames)]
    members = data.members("cpu")
    arrays = {f"train_{name}": values for name, values in pack(data.train_store, chosen).items()}
    judged = [
        data.validation_windows[place][-1]
        for place in spread(len(data.validation_windows), args.validation_frames)
    ]
    arrays |= {f"validation_{name}": values for name, values in pack(data.validation_store, judged).items()}
    frames = data.validation_store.index.frames
    classes = [data.validation_classes[frames[number].source] for number in judged]
    lists = list(dict.fromkeys(one.names for one in classes))
    same = np.arange(256, dtype=np.uint8)
    tables = {one.names: same if one.mask_table is None else one.mask_table for one in classes}
    arrays |= {
        "members": np.zeros((0, len(labels)), bool) if members is None else members.numpy(),
        "validation_list": np.array([lists.index(one.names) for one in classes], np.int64),
        "validation_tables": np.stack([tables[names] for names in lists]),
        "validation_sizes": np.array([len(names) for names in lists], np.int64),
        "teacher": np.frombuffer(resolve_checkpoint(stage.teacher).read_bytes(), np.uint8),
    }
    arrays["config"] = np.array(args.config.read_text())
    arrays["labels"] = np.array(json.dumps({"names": labels.names, "colors": labels.colors}))
    np.savez(args.out, **arrays)
    print(
        f"{args.out}: {len(chosen)} training and {len(judged)} validation frames, {args.out.stat().st_size / 1e6:.1f} MB"
    )


def spread(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of the numbers below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist()


if __name__ == "__main__":
    main()
