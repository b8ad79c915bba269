# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg export`: write a checkpoint for ONNX Runtime, TensorRT, or PyTorch without this package."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.topics import require_image_topic
from vtseg_ros.commands import interrupts
from vtseg_ros.commands.report_files import write_json
from vtseg_ros.errors import BagError, ConfigError, ImageError
from vtseg_ros.inference.exporter import (
    SUFFIXES,
    Verification,
    exportable,
    temporary_beside,
    verify,
    write_export,
)
from vtseg_ros.inference.precision import with_agreement
from vtseg_ros.model.checkpoint import load_checkpoint
from vtseg_ros.model.vtseg import check_size
from vtseg_ros.model.vtseg_config import check_window
from vtseg_ros.profiling.moving_images import moving_picture
from vtseg_ros.sizes import parse_size

HELP = (
    "Export a checkpoint as ONNX or torch.export file: the streaming step with its state, or the full window."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("checkpoint", help="checkpoint file, or name of shipped weights")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="file to write, .onnx or .pt2"
    )
    parser.add_argument(
        "--format", choices=tuple(SUFFIXES), help="file format (default: from the suffix of --out)"
    )
    parser.add_argument("--window", type=int, default=0, help="number of frames k; 0 = as in the checkpoint")
    parser.add_argument(
        "--size", type=parse_size, metavar="WxH", help="input size (default: as in the checkpoint)"
    )
    parser.add_argument(
        "--full-window", action="store_true", help="export the full window instead of the streaming step"
    )
    parser.add_argument(
        "--bag",
        type=Path,
        metavar="BAG",
        help="bag with images to verify the export on (default: a random moving image)",
    )
    parser.add_argument(
        "--image-topic", default="", help="image topic of --bag; required if the bag has several"
    )
    parser.add_argument(
        "--static-prior", help="external static network; executes code when loaded, use trusted files only"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="JSON file to write: the result of the verification"
    )


def _bag_frames(path: Path, topic: str, count: int) -> list[np.ndarray]:
    images: list[np.ndarray] = []
    with BagReader(path) as bag:
        topic = require_image_topic(bag, topic)
        decode = ImageDecoder(topic)
        for _, _, message in bag.messages([topic], on_corrupt=lambda *_: None):
            try:
                images.append(decode(message))
            except ImageError:
                continue
            if len(images) == count:
                break
    if not images:
        raise BagError(f"{path}: no image that can be decoded; expected a bag with images, got none")
    return images


def _format(out: Path, named: str | None) -> str:
    known = {suffix: name for name, suffix in SUFFIXES.items()}
    found = known.get(out.suffix.lower())
    if found is None or named not in (None, found):
        expected = SUFFIXES[named] if named else " or ".join(known)
        raise ConfigError(f"--out: wrong suffix; expected {expected}, got {out}")
    return found


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    file_format = _format(args.out, args.format)
    if args.size:
        check_size(args.size[1], args.size[0])
    check_window(args.window, option="--window", as_in_checkpoint=True)
    if not args.out.parent.is_dir():
        raise ConfigError(f"--out: no such folder; expected {args.out.parent} to exist. Create it")
    checkpoint = load_checkpoint(args.checkpoint, static_prior=args.static_prior)
    what = exportable(checkpoint, window=args.window or None, size=args.size, full_window=args.full_window)
    window, size = what.metadata["config"]["window"], tuple(what.metadata["input_size"])
    count = 2 * window + 1 if what.kind != "image" else 2
    images = _bag_frames(args.bag, args.image_topic, count) if args.bag else moving_picture(size, count)
    if args.bag:
        what.metadata["agreement"] = with_agreement(checkpoint, images).agreement
    temporary = temporary_beside(args.out)
    try:
        write_export(what, temporary, file_format)
        result = verify(temporary, what, checkpoint, images)
        _say(result, real=args.bag is not None)
        result.check(args.out)
        interrupts.check()
        temporary.chmod(0o644)
        temporary.replace(args.out)
    finally:
        temporary.unlink(missing_ok=True)
    kind = {
        "stream": f"streaming step ({what.metadata['streaming']})",
        "window": "full window",
        "image": "image network",
    }
    print(
        f"{args.out}: {kind[what.kind]}, k = {window}, {size[0]}x{size[1]} px, "
        f"{args.out.stat().st_size / 1e6:.1f} MB; inputs {', '.join(what.inputs)}; outputs {', '.join(what.outputs)}"
    )
    for precision, share in what.metadata["agreement"].items():
        print(f"{precision} agrees with fp32 on {100 * share:.2f} % of pixels")
    if args.json:
        write_json(args.json, {"file": str(args.out), **vars(result)})
    return 0


def _say(result: Verification, real: bool) -> None:
    print(
        f"against PyTorch on {result.frames} {'frames of the bag' if real else 'random images (use --bag for real ones)'}: "
        f"the same class on {100 * result.agreement:.3f} % of pixels, logits differ by at most {result.difference:.2e} "
        f"(largest logit {result.largest:.1f})"
    )
