# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg play`: a bag onto ROS topics."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.commands.progress import track
from vtseg_ros.commands.report_files import write_json
from vtseg_ros.errors import ConfigError

HELP = "Publish a bag's messages on their topics (needs ROS 2), like `ros2 bag play`."
MIN_RATE = 0.001


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("bag", type=Path, help="bag to play")
    parser.add_argument("--rate", type=float, default=1.0, help="playback speed; 1 = as recorded")
    parser.add_argument("--loop", action="store_true", help="repeat the bag until Ctrl-C")
    parser.add_argument(
        "--clock",
        type=float,
        nargs="?",
        const=100.0,
        default=0.0,
        metavar="HZ",
        help="publish /clock in bag time (100 Hz if no rate is given)",
    )
    parser.add_argument(
        "--topics", nargs="+", default=[], metavar="TOPIC", help="topics to publish (default: all)"
    )
    parser.add_argument(
        "--exclude-regex",
        default="",
        metavar="REGEX",
        help="do not publish topics whose name contains a match",
    )
    parser.add_argument(
        "--remap", nargs="+", default=[], metavar="FROM:=TO", help="publish topics under other names"
    )
    parser.add_argument(
        "--wait-for",
        nargs="+",
        default=[],
        metavar="TOPIC",
        help="start when these topics have a subscriber; repeat a topic to wait for two",
    )
    parser.add_argument(
        "--wait-timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="longest time to wait for subscribers, s (default 60)",
    )
    parser.add_argument(
        "--start-paused", action="store_true", help="start paused; the service player/pause continues"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="JSON file to write: number of messages sent on each topic"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    try:
        from vtseg_ros.nodes.player import PlayerConfig, PlayerNode
        from vtseg_ros.nodes.process import run_node
    except ImportError as err:
        raise ConfigError(
            f"ROS 2: not found; expected rclpy, got: {err}. Source ROS 2, or run scripts/setup.sh and source scripts/env.sh"
        ) from err
    try:
        re.compile(args.exclude_regex)
    except re.error as err:
        raise ConfigError(
            f"--exclude-regex: not a regular expression; got {args.exclude_regex}: {err}"
        ) from err
    if not args.rate >= MIN_RATE:
        raise ConfigError(f"--rate: out of range; expected at least {MIN_RATE}, got {args.rate}")
    for name in ("clock", "wait_timeout"):
        if getattr(args, name) < 0:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option}: out of range; expected at least 0, got {getattr(args, name):g}")
    remap = dict(pair.split(":=", 1) for pair in args.remap if ":=" in pair)
    if len(remap) != len(args.remap):
        raise ConfigError(f"--remap: expected FROM:=TO, got {' '.join(args.remap)}")
    config = PlayerConfig(
        bag=args.bag,
        rate=args.rate,
        loop=args.loop,
        clock_hz=args.clock,
        topics=tuple(args.topics),
        exclude=args.exclude_regex,
        remap=remap,
        wait_for=tuple(args.wait_for),
        wait_timeout_s=args.wait_timeout,
        paused=args.start_paused,
    )
    with BagReader(args.bag) as bag:
        total = sum(info.count for name, info in bag.topics.items() if config.plays(name))
    nodes: list[PlayerNode] = []

    with track(None if config.loop else total, "playing") as advance:

        def make() -> PlayerNode:
            nodes.append(PlayerNode(config, advance))
            return nodes[0]

        code = run_node(make, [])
    sent = dict(nodes[0].sent) if nodes else {}
    missing = nodes[0].messages_missing if nodes else 0
    if args.json:
        write_json(args.json, {"bag": str(args.bag), "sent": sent, "messages_missing": missing})
    for topic, count in sorted(sent.items()):
        print(f"{topic}: {count} sent")
    return code
