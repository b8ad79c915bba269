# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg synth`: render the synthetic street into a bag."""

from __future__ import annotations

import argparse
from pathlib import Path

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import CAMERA_INFO, camera_info_message
from vtseg_ros.commands.progress import track
from vtseg_ros.commands.report_files import write_json
from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import STREET
from vtseg_ros.sizes import parse_size
from vtseg_ros.street.scenes import SCENES, VARIATIONS
from vtseg_ros.street.sequence import RATE_HZ, render_sequence

HELP = "Render synthetic street video with labels, depth and optical flow into a bag."
START_NS = 1_000_000_000_000
SEQUENCE_GAP_NS = 20_000_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("--out", type=Path, required=True, help="the bag's folder; must not exist")
    parser.add_argument(
        "--scene", nargs="+", default=["1"], metavar="N", help="scenes 1 to 5, or all (default 1)"
    )
    parser.add_argument(
        "--variation",
        nargs="+",
        default=["clone"],
        metavar="V",
        help=f"variations: {', '.join(VARIATIONS)}, or all (default clone)",
    )
    parser.add_argument("--frames", type=int, default=100, help="frames per sequence, at 10 Hz (default 100)")
    parser.add_argument(
        "--size", type=parse_size, default=(640, 192), metavar="WxH", help="image size (default 640x192)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of layout, traffic and noise (default 0)"
    )
    parser.add_argument("--compressed", action="store_true", help="write images as jpeg and labels as png")
    parser.add_argument("--no-label", action="store_true", help="write neither labels nor their class list")
    parser.add_argument("--no-depth", action="store_true", help="write no depth topic")
    parser.add_argument("--no-flow", action="store_true", help="write no optical flow")
    parser.add_argument(
        "--storage", choices=("mcap", "sqlite3"), default="mcap", help="storage of the new bag (default mcap)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="JSON file to write: a summary of the new bag"
    )


def _choose(names: list[str], known: list[str], what: str) -> list[str]:
    if names == ["all"]:
        return known
    for name in names:
        if name not in known:
            raise ConfigError(f"{what}: unknown; expected one of {', '.join(known)}, all, got {name!r}")
    return names


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    scenes = [int(name) for name in _choose(args.scene, [str(n) for n in SCENES], "scene")]
    variations = _choose(args.variation, list(VARIATIONS), "variation")
    jobs = [(scene, variation) for scene in scenes for variation in variations]
    image, label = ("/camera/image", "/camera/label")
    if args.compressed:
        image, label = f"{image}/compressed", f"{label}/compressed"
    start_ns = START_NS
    with BagWriter(args.out, args.storage) as bag, track(len(jobs) * args.frames, "rendering") as advance:
        if not args.no_label:
            bag.write_label_map("/camera/label_map", STREET, start_ns)
        for scene, variation in jobs:
            sequence = render_sequence(
                scene=scene,
                variation=variation,
                frames=args.frames,
                size=args.size,
                seed=args.seed,
                start_ns=start_ns,
            )
            for frame in sequence:
                where = (frame.stamp_ns, frame.frame_id)
                bag.write_image(image, frame.rgb, *where, compressed=args.compressed)
                if not args.no_label:
                    bag.write_label(label, frame.label, *where, compressed=args.compressed)
                if not args.no_depth:
                    bag.write_float("/camera/depth", frame.depth, *where)
                if not args.no_flow:
                    bag.write_float("/camera/flow_forward", frame.flow_forward, *where)
                    bag.write_float("/camera/flow_backward", frame.flow_backward, *where)
                info = camera_info_message(args.size, frame.focal, *where)
                bag.write("/camera/camera_info", CAMERA_INFO, info, frame.stamp_ns)
                advance()
            start_ns += args.frames * (1_000_000_000 // RATE_HZ) + SEQUENCE_GAP_NS
    total = len(jobs) * args.frames
    print(f"{args.out}: {total} frames of {args.size[0]}x{args.size[1]} in {len(jobs)} sequences")
    if args.json:
        made = {
            "bag": str(args.out),
            "frames": total,
            "size": list(args.size),
            "seed": args.seed,
            "sequences": [{"scene": scene, "variation": variation} for scene, variation in jobs],
        }
        write_json(args.json, made)
    return 0
