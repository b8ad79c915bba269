# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg bench`: measure the time per frame of the full window and of streaming in every backend, in one run."""

from __future__ import annotations

import argparse
import datetime
import platform
from pathlib import Path
from typing import Any, cast

import torch

from vtseg_ros.commands.report_files import write_json
from vtseg_ros.errors import ConfigError
from vtseg_ros.inference.backends import BACKEND_NAMES, installed_backends
from vtseg_ros.inference.devices import processor_name, resolve_device, resolve_precision
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import VTSeg, VTSegConfig
from vtseg_ros.model.checkpoint import Checkpoint, load_checkpoint
from vtseg_ros.model.registry import traits_of
from vtseg_ros.model.video_network import VideoNetwork
from vtseg_ros.model.vtseg import check_size
from vtseg_ros.model.vtseg_config import PRESETS, check_window
from vtseg_ros.profiling.benchmark import AGAINST, MODES, Settings, measure, modes_for, with_attention
from vtseg_ros.profiling.breakdown import measure_parts
from vtseg_ros.profiling.moving_images import moving_picture
from vtseg_ros.sizes import parse_size

HELP = "Measure the time per frame of all modes and backends, with the same weights and frames in one run."
PICTURES = 16
MAX_THREADS = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="b0", help="preset with random weights and 19 classes"
    )
    parser.add_argument("--checkpoint", help="checkpoint to measure instead of a preset")
    parser.add_argument(
        "--size",
        type=parse_size,
        nargs="+",
        default=[(256, 128)],
        metavar="WxH",
        help="image sizes (default 256x128)",
    )
    parser.add_argument(
        "--window", type=int, nargs="+", default=[4], metavar="K", help="window lengths in frames (default 4)"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        metavar="MODE",
        help=f"modes to measure: {', '.join(MODES)} (default: all that the network has)",
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKEND_NAMES[1:],
        metavar="BACKEND",
        help=f"backends of exact and causal: {', '.join(BACKEND_NAMES[1:])} (default: all that are installed)",
    )
    parser.add_argument(
        "--baseline",
        nargs="+",
        choices=AGAINST,
        default=[],
        metavar="NETWORK",
        help=f"other networks to measure: {', '.join(AGAINST)}",
    )
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N (default auto)"
    )
    parser.add_argument(
        "--precision",
        default="auto",
        help="precision of every mode except plain, which is fp32; auto also times bf16 if the processor has it",
    )
    parser.add_argument(
        "--no-cuda-graphs",
        action="store_true",
        help="launch every kernel separately instead of using CUDA graphs",
    )
    parser.add_argument("--compile", action="store_true", help="use torch.compile in every mode except plain")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the default of torch)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="measuring time for each size and window, s"
    )
    parser.add_argument(
        "--breakdown",
        action="store_true",
        help="operations, bytes and time of each part, and their lower bounds",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="JSON file to write")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="PNG",
        help="plot of the time per frame over window length and image size",
    )


def _random_checkpoint(preset: str) -> Checkpoint:
    torch.manual_seed(0)
    model = VTSeg(VTSegConfig.preset(preset, num_classes=19)).eval()
    count = model.config.num_classes
    labels = LabelSet(
        tuple(f"class_{i}" for i in range(count)), tuple((i * 13, 99, 255 - i * 13) for i in range(count))
    )
    return Checkpoint(model, model.architecture, model.config.to_dict(), labels, (256, 128))


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _check(args: argparse.Namespace) -> None:
    for width, height in args.size:
        check_size(height, width)
    for window in args.window:
        check_window(window, option="--window")
    if args.threads is not None and not 1 <= args.threads <= MAX_THREADS:
        raise ConfigError(f"--threads: out of range; expected 1 to {MAX_THREADS}, got {args.threads}")
    if not args.seconds >= 0:
        raise ConfigError(f"--seconds: out of range; expected at least 0, got {args.seconds}")
    if args.plot and args.plot.suffix.lower() != ".png":
        raise ConfigError(f"--plot: wrong suffix; expected .png, got {args.plot}")
    if args.plot and not args.plot.parent.is_dir():
        raise ConfigError(f"--plot: no such folder; expected {args.plot.parent} to exist. Create it")
    device = resolve_device(args.device)
    resolve_precision(args.precision, device)
    installed = installed_backends(device.type)
    args.backends = args.backends or list(installed)
    for name in args.backends:
        if name not in installed:
            raise ConfigError(
                f"--backends: {name} is not installed or does not run on {device.type}; "
                f"expected {', '.join(installed)}"
            )


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_mode = {row["mode"]: row["p50_ms"] for row in reversed(rows)}  # of two precisions the first, fp32
    for row in rows:
        for base in ("plain", "plain_optimised"):
            row[f"ratio_to_{base}"] = round(row["p50_ms"] / by_mode[base], 3) if base in by_mode else None
    return rows


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    _check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = _machine(resolve_device(args.device))
    checkpoint = load_checkpoint(args.checkpoint) if args.checkpoint else _random_checkpoint(args.preset)
    if checkpoint.model is None or not traits_of(checkpoint.model).takes_cache:
        raise ConfigError(
            f"{args.checkpoint}: wrong network; expected a video network such as vtseg, got {checkpoint.architecture}"
        )
    known = modes_for(cast(VideoNetwork, checkpoint.network))
    modes = args.modes or known
    other = [mode for mode in modes if mode not in known]
    if other:
        raise ConfigError(
            f"--modes: {' and '.join(other)} streaming does not exist for {checkpoint.architecture}; expected modes of "
            f"{', '.join(known)}, got {', '.join(modes)}"
        )
    if args.breakdown and "attention" not in checkpoint.config:
        raise ConfigError(f"--breakdown: wrong network; expected a vtseg, got {checkpoint.architecture}")
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    print(
        f"{machine['processor']}, {machine['threads']} threads{gpu}; torch {machine['torch']}; {machine['date']}"
    )
    if "causal" in modes and checkpoint.config.get("attention") == "full":
        print("causal uses weights trained with full attention: its times are valid, its masks are not")
    results: list[dict[str, Any]] = []
    for size in args.size:
        images = moving_picture(size, PICTURES)
        for window in args.window:
            settings = Settings(
                size=size,
                window=window,
                modes=tuple(modes),
                backends=tuple(args.backends),
                against=tuple(args.baseline),
                device=args.device,
                precision=args.precision,
                compile=args.compile,
                cuda_graphs=not args.no_cuda_graphs,
                seconds=args.seconds,
            )
            rows = _with_ratios(measure(checkpoint, settings, images))
            results += [{**row, "size": list(size), "window": window} for row in rows]
            _print(size, window, rows)
    if args.breakdown:
        _print_parts(checkpoint, args)
    if args.json:
        what = args.checkpoint or f"{args.preset}, random weights"
        write_json(args.json, {"weights": what, "machine": machine, "modes": results})
    if args.plot:
        from vtseg_ros.profiling.plot import plot

        plot(results, machine, args.plot)
    return 0


def _print(size: tuple[int, int], window: int, rows: list[dict[str, Any]]) -> None:
    print(f"\n{size[0]}x{size[1]} px, k = {window}")
    print(
        f"{'mode':<17}{'run':<13}{'prec.':<7}{'p50 ms':>9}{'p95 ms':>9}{'frames/s':>10}{'GMAC':>8}{'peak MB':>9}"
        f"{'/plain':>8}{'/plain_opt':>12}"
    )
    for row in rows:
        ratios = [row["ratio_to_plain"], row["ratio_to_plain_optimised"]]
        plain, optimised = ("" if ratio is None else f"{ratio:.3f}" for ratio in ratios)
        gmacs = "" if row["gmacs"] is None else f"{row['gmacs']:.2f}"
        print(
            f"{row['mode']:<17}{row['run']:<13}{row['precision']:<7}{row['p50_ms']:>9.2f}{row['p95_ms']:>9.2f}"
            f"{row['fps']:>10.1f}{gmacs:>8}{row['peak_memory_mb']:>9.0f}{plain:>8}{optimised:>12}"
        )


def _print_parts(checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    model: Any = with_attention(checkpoint, "causal").model
    for size in args.size:
        window = args.window[-1]
        parts, rate, bandwidth = measure_parts(
            model, size=size, window=window, device=args.device, precision=args.precision
        )
        print(
            f"\nparts of a frame, {size[0]}x{size[1]} px, {args.precision}; at best {rate:.0f} GMAC/s (matrix product), "
            f"{bandwidth:.1f} GB/s (copy)"
        )
        print(
            f"{'part':<22}{'GMAC':>8}{'weights MB':>12}{'p50 ms':>9}{'arithmetic ms':>15}{'weights ms':>12}"
        )
        for part in parts:
            print(
                f"{part.name:<22}{part.gmacs:>8.2f}{part.weights_mb:>12.1f}{part.p50_ms:>9.2f}"
                f"{part.arithmetic_ms:>15.2f}{part.bandwidth_ms:>12.2f}"
            )
