# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Play a bag to a segmenter and an evaluator, and print the results. Called by demo.sh."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vtseg_ros import DEFAULT_CHECKPOINT
from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, stamp_of
from vtseg_ros.bags.topics import find_image_topic, find_label_topic, read_label_set
from vtseg_ros.errors import BagError, ImageError, VTSegError
from vtseg_ros.model.checkpoint import WEIGHTS_DIR, resolve_checkpoint
from vtseg_ros.nodes.dds import free_domain
from vtseg_ros.topic_names import ANSWERS
from vtseg_ros.video.overlay_video import overlay_video

FRAMES, SIZE, SEED = 200, "320x96", 2026
START_TIMEOUT_S, STOP_TIMEOUT_S = 300.0, 120.0  # of a machine with other work

console = Console()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo.sh", description=__doc__)
    parser.add_argument("--bag", type=Path, help="bag to play (default: held-out synthetic street)")
    parser.add_argument("--image-topic", default="")
    parser.add_argument("--label-topic", default="")
    parser.add_argument(
        "--checkpoint",
        help=f"shipped weights by name, or a file (default: street_tiny; with --bag, {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    return parser.parse_args()


def synthesize(path: Path) -> None:
    """Render scene 5, which was not used for training, with a seed that was not used either."""
    command = [
        "vtseg",
        "synth",
        "--out",
        path,
        "--scene",
        "5",
        "--frames",
        FRAMES,
        "--size",
        SIZE,
        "--seed",
        SEED,
    ]
    subprocess.run([str(part) for part in [*command, "--no-depth", "--no-flow"]], check=True)


class Processes:
    """Child processes with log files, which are ended at exit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen] = {}

    def start(self, name: str, command: list[str]) -> subprocess.Popen:
        with (self._folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._running[name] = process
        return process

    def check(self) -> None:
        for name, process in self._running.items():
            if process.poll() not in (None, 0):
                tail = (self._folder / f"{name}.log").read_text().strip().splitlines()[-3:]
                raise VTSegError(f"{name} ended with exit code {process.returncode}: " + " | ".join(tail))

    def stop(self, name: str) -> int:
        process = self._running.pop(name)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def stop_all(self) -> None:
        for name in list(self._running):
            self.stop(name)


def wait_for_line(path: Path, text: str, processes: Processes) -> None:
    """Wait until a log contains a text."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while text not in (path.read_text() if path.exists() else ""):
        processes.check()
        if time.monotonic() > deadline:
            raise VTSegError(
                f"{path}: no line with {text!r} after {START_TIMEOUT_S:.0f} s; see this log for the reason"
            )
        time.sleep(0.1)


def run(args: argparse.Namespace) -> int:
    out: Path = args.out
    checkpoint = resolve_checkpoint(args.checkpoint or (DEFAULT_CHECKPOINT if args.bag else "street_tiny"))
    shutil.rmtree(out / "masks", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    for stale in ("report.html", "report.json", "overlay.mp4"):
        (out / stale).unlink(missing_ok=True)
    bag_path = args.bag
    if bag_path is None:
        bag_path = out / "street"
        if not (bag_path / "metadata.yaml").is_file():
            shutil.rmtree(bag_path, ignore_errors=True)
            synthesize(bag_path)
    with BagReader(bag_path) as bag:
        image = args.image_topic or find_image_topic(bag)
        label = args.label_topic or find_label_topic(bag)
        bag.require(*(topic for topic in (image, label) if topic))
        suffixes = {
            topic: "/compressed" if bag.topics[topic].msgtype == COMPRESSED_IMAGE else ""
            for topic in (image, label)
            if topic
        }
        total = bag.topics[image].count
        unnamed = label is not None and read_label_set(bag) is None
        span_s = max((bag.end_ns - bag.start_ns) / 1e9, 1e-3)
    remaps = []
    for name, topic in zip(("image", "label"), suffixes):
        remaps += ["-r", f"{name}{suffixes[topic]}:={topic}"]
    # The baseline of the checkpoint, if there is one.
    baseline = WEIGHTS_DIR / f"{checkpoint.stem}.position_baseline.png"
    parameters = [
        "-p",
        f"checkpoint:={checkpoint}",
        "-p",
        "autostart:=true",
        "-p",
        f"image_transport:={'compressed' if suffixes[image] else 'raw'}",
    ]
    scoring = [
        "-p",
        f"output_dir:={out}",
        "-p",
        "input_qos:=reliable",
        "-p",
        f"title:=vtseg_ros on {bag_path.name}",
    ]
    if baseline.is_file() and args.bag is None:
        scoring += ["-p", f"baseline:={baseline}"]
    # A separate domain, to be isolated from other demos and from robots on this network.
    os.environ["ROS_DOMAIN_ID"] = str(free_domain())
    processes = Processes(out)
    try:
        processes.start("segmenter", ["segmenter", "--ros-args", *remaps, *parameters])
        processes.start("recorder", [sys.executable, "-m", "vtseg_ros.nodes.recorder", str(out / "masks")])
        processes.start("evaluator", ["evaluator", "--ros-args", *remaps, *scoring])
        wait_for_line(out / "segmenter.log", "window", processes)
        wait_for_line(out / "recorder.log", "recording", processes)
        waits = ["--wait-for", image, image] + ([label] if label else [])
        play = [
            "vtseg",
            "play",
            str(bag_path),
            *waits,
            "--clock",
            "--json",
            str(out / "sent.json"),
            "--exclude-regex",
            ANSWERS,
        ]
        console.print(f"playing {total} images, {span_s:.0f} s, to segmenter, evaluator and recorder")
        subprocess.run(play, check=True)
        processes.check()
        time.sleep(1.0)  # one inference and the idle status
        # The segmenter first: it finishes the current frame and publishes its final counters.
        codes = {"segmenter": processes.stop("segmenter")}
        time.sleep(0.5)
        codes |= {name: processes.stop(name) for name in ("evaluator", "recorder")}
    finally:
        processes.stop_all()
    for name, code in codes.items():
        what = (
            f"was killed, since it did not stop within {STOP_TIMEOUT_S:.0f} s"
            if code == -9
            else f"ended with {code}"
        )
        if code:
            console.print(f"[red]the {name} {what}; see {out / name}.log", soft_wrap=True)
    if any(codes.values()):
        return 1
    sent = json.loads((out / "sent.json").read_text())["sent"].get(image, 0)
    masks = write_overlay(bag_path, image, out)
    code = summarize(json.loads((out / "report.json").read_text()), sent, masks, span_s, out)
    if unnamed:
        console.print(
            f"[yellow]{label} comes without a label map: its ids were taken for {checkpoint.stem}'s classes. "
            "The score means nothing if they are others"
        )
    return code


def write_overlay(bag_path: Path, image: str, out: Path) -> int:
    """Write overlay.mp4, each frame with the newest mask at that time; return the number of masks in the bag."""
    with BagReader(out / "masks") as recorded:
        labels = read_label_set(recorded, of_masks=True)
        topic = "/segmentation/mask/compressed"
        if topic not in recorded.topics:
            return 0
        masks = {stamp_of(message): message for _, _, message in recorded.messages([topic])}
        count = recorded.topics[topic].count
    with BagReader(bag_path) as bag, overlay_video(out / "overlay.mp4", labels, bag.rate_hz(image)) as video:
        last = None
        for _, _, message in bag.messages([image]):
            found = masks.get(stamp_of(message))
            last = decode_label(found) if found is not None else last
            if last is not None:
                with suppress(ImageError):  # rejected by the segmenter, which counted it
                    video.add(decode_any(message), last)
    return count


def summarize(report: dict, sent: int, masks: int, span_s: float, out: Path) -> int:
    system = report["systems"][0]
    table = Table(title="Results", show_header=False)
    counts = {name: report[f"frames_{name}"] for name in ("processed", "dropped", "rejected", "lost")}
    accounted = sum(counts.values())
    table.add_row("images sent by the player", str(sent))
    for name, value in counts.items():
        table.add_row(f"  {name}", str(value))
    table.add_row("masks per second", f"{counts['processed'] / span_s:.1f}")
    if report["latency_p50_s"] is not None:
        table.add_row(
            "latency p50 / p95",
            f"{report['latency_p50_s'] * 1e3:.0f} / {report['latency_p95_s'] * 1e3:.0f} ms",
        )
    if system["miou"] is not None:
        baseline = (
            f"   (baseline {report['baseline_miou']:.1f})" if report["baseline_miou"] is not None else ""
        )
        table.add_row("mIoU", f"{system['miou']:.1f}{baseline}")
        shown = [
            f"{name} {system['iou'][name]:.0f}"
            for name in ("pole", "van", "car", "road")
            if system["iou"].get(name)
        ]
        table.add_row("IoU", ", ".join(shown))
    console.print(table)
    if counts["dropped"]:
        console.print(
            "dropped: a newer image arrived before the network had finished. overlay.mp4 shows the previous mask there",
            soft_wrap=True,
        )
    for name, what in (
        ("report.html", "the report"),
        ("overlay.mp4", "the masks over the video"),
        ("masks", "a bag with the masks"),
    ):
        console.print(f"  {out / name}  {what}", soft_wrap=True)
    if not masks or masks != counts["processed"]:
        console.print(f"[red]masks are missing: {counts['processed']} processed, {masks} recorded")
        return 1
    if accounted != sent:
        console.print(f"[red]frames are missing: {sent} sent, {accounted} counted")
        return 1
    return 0


def main() -> int:
    try:
        return run(parse_arguments())
    except (VTSegError, BagError) as err:
        print(f"demo: {err}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as err:
        print(f"demo: {' '.join(err.cmd[:2])} ended with exit code {err.returncode}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
